"""Where files go: whole objects by relative name, each replaced at once or not at all."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import quote, urlsplit
from uuid import uuid4

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

OBJECT_STORES: Final = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "memory")
"""Schemes of stores that publish an object when it is complete, and so never show a part of one."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure"}
_LOCAL_SCHEMES = ("file", "local")
_ABANDONED_AFTER = 3600.0
_FOLDERS_REMEMBERED = 256  # more than are written to in turns, and few enough for any number of organizations
_PAUSES = (0.1, 0.5, 2.0)


def check_output_path(output_path: object) -> str:
    """
    A location that means the same on every worker, in a store where a file can be replaced at once.

    :raises ValueError: naming the value and the remedy.
    """
    if isinstance(output_path, str):
        if ".." in output_path.split("/"):
            raise ValueError(
                f"output_path must be without '..', by which a template's value leads anywhere, not {output_path!r}"
            )
        if _local_path(output_path) is not None:
            return output_path
        parts = urlsplit(output_path)
        conn_id, _, bucket = parts.netloc.rpartition("@")
        if ":" in conn_id:
            raise ValueError(
                "output_path must not hold a password: put it into an Airflow connection, and the connection's id "
                "before the @, or into output_conn_id"
            )
        if bucket.endswith(".core.windows.net"):
            raise ValueError(
                f"output_path must be like abfs://container/folder, the account in the Airflow connection; "
                f"of {output_path!r} the part before the @ would be taken for a connection's id"
            )
        if parts.scheme in OBJECT_STORES and bucket and "::" not in output_path:
            return output_path
        if parts.scheme and parts.scheme not in (*OBJECT_STORES, *_LOCAL_SCHEMES):
            raise ValueError(
                f"output_path must be in a store whose files can be replaced at once, a local one or one of "
                f"{', '.join(OBJECT_STORES[:-1])}; {output_path!r} is not"
            )
    raise ValueError(
        f"output_path must be a URL such as s3://bucket/folder or an absolute path, not {output_path!r}: "
        "where a relative path leads depends on the worker"
    )


def split_object_path(output_path: str) -> tuple[str, str]:
    """
    Return the folder of an object, and its name there.

    :param output_path: see :func:`check_output_path`.
    :raises ValueError: for a location that names no object.
    """
    scheme = "" if output_path.startswith("/") else f"{output_path.partition('://')[0]}://"
    folder, slash, name = output_path.removeprefix(scheme).rpartition("/")
    if not (slash and name):
        raise ValueError(f"output_path must name a file when partitioned=False, not the folder {output_path!r}")
    return f"{scheme}{folder}/", name


def open_storage(location: str, conn_id: str | None = None) -> Storage:
    """
    The files below ``location``, see :func:`check_output_path`.

    :param conn_id: the Airflow connection for an object store; ``s3://conn_id@bucket`` names one too.
    :raises ValueError: for a location that can't be used.
    :raises ImportError: when the package for the object store is missing.
    """
    check_output_path(location)
    path = _local_path(location)
    return ObjectStorage(location, conn_id) if path is None else LocalStorage(path)


class Storage(ABC):
    """Files below one location, by relative name; the empty name is the location itself."""

    parallel: ClassVar[int] = 1
    """How many files are best written at the same time."""

    @property
    def account(self) -> str | None:
        """The account that a container of Azure belongs to. Elsewhere None: the name of a bucket says all."""
        return None

    @abstractmethod
    def location(self, name: str = "") -> str:
        """Return the URL of a file as people and fsspec write it: nothing is escaped, and no connection is named."""

    def uri(self, name: str = "") -> str:
        """Return the URI of a file, percent-encoded (RFC 3986): a ``%`` of its name is ``%25``."""
        scheme, _, path = self.location(name).partition("://")
        return f"{scheme}://{quote(os.fsencode(path), safe='/:=@')}"

    @abstractmethod
    def read(self, name: str = "") -> bytes | None:
        """A file's content; None if there is no such file."""

    @abstractmethod
    def replace(self, name: str, content: bytes) -> None:
        """Create a file, or replace it, with all of its content at once: a reader sees the old or the new."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> None:
        """
        Create a file with all of its content at once.

        :raises FileExistsError: if there is one, which is left as it is.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it is there."""

    @abstractmethod
    def names(self, folder: str) -> Iterator[str]:
        """The names of all files below a folder, its own name included, in order."""


class LocalStorage(Storage):
    """
    A folder of this machine, or one that is mounted.

    Content is written beside its target, and so on the same file system, and renamed onto it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # Once in a while: to look through a folder for every one of its thousands of files takes ever longer.
        self._tidied: set[Path] = set()

    def location(self, name: str = "") -> str:
        return f"file://{self._path(name)}"

    def read(self, name: str = "") -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def replace(self, name: str, content: bytes) -> None:
        with self._written(name, content) as (beside, target):
            beside.replace(target)

    def create(self, name: str, content: bytes) -> None:
        with self._written(name, content) as (beside, target):
            try:
                target.hardlink_to(beside)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                if target.exists():
                    raise FileExistsError(target) from None
                beside.replace(target)

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def names(self, folder: str) -> Iterator[str]:
        for path in sorted(self._path(folder).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield str(path.relative_to(self._root))

    def _path(self, name: str) -> Path:
        return self._root / name if name else self._root

    @contextmanager
    def _written(self, name: str, content: bytes) -> Iterator[tuple[Path, Path]]:
        """The content in a file beside its target, and the target."""
        target = self._path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._tidy(target.parent)
        # Engines pass over names that begin with a dot.
        beside = target.parent / f".{uuid4().hex}.writing"
        try:
            with beside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield beside, target
        finally:
            beside.unlink(missing_ok=True)

    def _tidy(self, folder: Path) -> None:
        """Remove what writers that were killed left behind."""
        if folder in self._tidied:
            return
        if len(self._tidied) == _FOLDERS_REMEMBERED:
            self._tidied.clear()
        self._tidied.add(folder)
        for beside in folder.glob(".*.writing"):
            with suppress(FileNotFoundError):  # its writer, or another tidying one, was faster
                if time.time() - beside.stat().st_mtime > _ABANDONED_AFTER:
                    beside.unlink()


class ObjectStorage(Storage):
    """A place in an object store, through Airflow's ``ObjectStoragePath`` and its connections."""

    parallel = 8

    def __init__(self, location: str, conn_id: str | None = None) -> None:
        from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, ObjectStoragePath

        conn_id = urlsplit(location).netloc.rpartition("@")[0] or conn_id
        if conn_id:
            try:
                # An id that does not exist would be taken for anonymous access, after a warning.
                BaseHook.get_connection(conn_id)
            except AirflowNotFoundException as error:
                raise ValueError(f"there is no Airflow connection {conn_id!r}, which {location} needs") from error
        try:
            root = ObjectStoragePath(_with_single_slashes(location), conn_id=conn_id)
            self._fs: AbstractFileSystem = root.fs
        except (ImportError, ValueError) as error:
            extra = _EXTRAS.get(urlsplit(location).scheme)
            raise ValueError(
                f"{location} can't be opened: {error}. Is airflow-provider-reducto[{extra}] installed, and the "
                "connection complete?"
            ) from error
        except Exception as error:  # a role that can't be assumed, and whatever else the store's own hook raises
            raise OSError(f"{location} can't be opened: {type(error).__name__}: {error}") from error
        self._root: str = root.path.rstrip("/")
        self._scheme: str = root.protocol
        # s3fs asks for a file's size first: one request more, which may see another version, and whose refusal has
        # no text ("Bad Request" for a credential that is expired).
        can_be_told = "max_concurrency" in signature(self._fs.cat_file).parameters
        self._at_once: dict[str, Any] = {"max_concurrency": 1} if can_be_told else {}

    def location(self, name: str = "") -> str:
        return f"{self._scheme}://{self._path(name)}"

    @property
    def account(self) -> str | None:
        account: str | None = getattr(getattr(self._fs, "service_client", None), "account_name", None)
        return account

    def read(self, name: str = "") -> bytes | None:
        try:
            with _advice():
                content: bytes = self._fs.cat_file(self._path(name), **self._at_once)
        except FileNotFoundError:
            return None
        return content

    def replace(self, name: str, content: bytes) -> None:
        with _advice():
            self._fs.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> None:
        for pause in (*_PAUSES, None):
            try:
                with _advice():
                    self._fs.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                raise
            except OSError as error:
                # What S3 answers while somebody else creates the file, and to ask again is what it asks for.
                if pause is None or "ConditionalRequestConflict" not in str(error.__cause__):
                    raise
                time.sleep(pause)
            else:
                return

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), _advice():
            self._fs.rm_file(self._path(name))

    def names(self, folder: str) -> Iterator[str]:
        self._fs.invalidate_cache()
        with _advice():
            found = self._fs.find(self._path(folder))
        for path in sorted(found):
            yield str(path).removeprefix(f"{self._root}/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


@contextmanager
def _advice() -> Iterator[None]:
    """Say of a store's short refusals what can be done about them."""
    try:
        yield
    except PermissionError as error:
        advice = "check the connection's credential, and that it may read, write, remove and list objects there"
        error.args = (f"{str(error).rstrip('.')}; {advice}",)
        raise
    except FileNotFoundError as error:
        advice = "the bucket or container must be there, an export creates none"
        error.args = (f"{str(error).rstrip('.')}; {advice}",)
        raise


def _with_single_slashes(location: str) -> str:
    """
    Return a location with one slash where it has several, as on a local path: a template rendered to nothing.

    s3fs can write keys that begin with a slash, but lists others in their place.
    """
    scheme, _, path = location.partition("://")
    return f"{scheme}://{'/'.join(filter(None, path.split('/')))}"


def _local_path(location: str) -> Path | None:
    """The absolute local path that a location is, if it is one."""
    for scheme in _LOCAL_SCHEMES:
        location = location.removeprefix(f"{scheme}://")
    return Path(f"/{location.lstrip('/')}") if location.startswith("/") else None

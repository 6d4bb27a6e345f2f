"""Storage for files: whole objects by relative name, replaced atomically."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

from reducto_provider.export.locations import check_output_path, local_path, with_single_slashes

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure"}
# Older clients ignore `mode="create"` and overwrite (s3fs), or do not accept it (gcsfs, adlfs).
_CLIENTS, _MIN_CLIENT = ("s3fs", "gcsfs", "adlfs"), (2024, 12)
_ABANDONED_AFTER = 3600.0
_MAX_TIDIED_FOLDERS = 256  # more than are written in turns, and bounded for any number of organizations
_PAUSES = (0.1, 0.5, 2.0)


def open_storage(location: str, conn_id: str | None = None) -> Storage:
    """
    Return the storage at ``location``, see :func:`~reducto_provider.export.locations.check_output_path`.

    :param conn_id: the Airflow connection for an object store; ``s3://conn_id@bucket`` takes precedence.
    :raises ValueError: if the location can't be used, or a package for the object store is missing or too old.
    """
    check_output_path(location)
    path = local_path(location)
    return ObjectStorage(location, conn_id) if path is None else LocalStorage(path)


class Storage(ABC):
    """Files below one location, by relative name; the empty name is the location itself."""

    max_concurrent_writes: ClassVar[int] = 1
    """How many files to write concurrently."""

    @property
    def account(self) -> str | None:
        """The storage account of an Azure container. None elsewhere: bucket names are globally unique."""
        return None

    @abstractmethod
    def uri(self, name: str = "") -> str:
        """
        Return the URI of a file, without a connection id.

        It is percent-encoded (RFC 3986): a ``%`` of a file's name is ``%25``.
        """

    def location(self, name: str = "") -> str:
        """Return the URI with nothing encoded: as people write it, and fsspec takes it."""
        return unquote(self.uri(name), errors="surrogateescape")

    @abstractmethod
    def read(self, name: str = "") -> bytes | None:
        """Return a file's content, None if there is no such file."""

    @abstractmethod
    def replace(self, name: str, content: bytes) -> None:
        """Create or replace a file atomically: a reader sees the old content or the new."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> None:
        """
        Create a file atomically.

        :raises FileExistsError: if it exists. It is left unchanged.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    @abstractmethod
    def names(self, folder: str) -> Iterator[str]:
        """Yield the names of all files below a folder, sorted and relative to the location."""

    @abstractmethod
    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in a folder, sorted; an empty list if there is no such folder."""

    def md5s(self, folder: str, prefix: str) -> dict[str, str] | None:
        """
        Return the MD5s in a fresh listing of a folder's files whose names begin with ``prefix``, by name; None for a
        store that lists none.

        The expected MD5 proves the content. Any other proves nothing: some objects have another kind of version.
        """
        return None


class LocalStorage(Storage):
    """
    A folder on this machine, local or mounted.

    Content is written to a temporary file beside its target, on the same file system, and renamed onto it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # Tidied once in a while: listing a folder for each of its thousands of files would take quadratic time.
        self._tidied: set[Path] = set()

    def uri(self, name: str = "") -> str:
        return f"file://{_encoded(str(self._path(name)))}"

    def read(self, name: str = "") -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def replace(self, name: str, content: bytes) -> None:
        with self._written(name, content) as (temporary, target):
            temporary.replace(target)

    def create(self, name: str, content: bytes) -> None:
        with self._written(name, content) as (temporary, target):
            try:
                target.hardlink_to(temporary)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                if target.exists():
                    raise FileExistsError(target) from None
                temporary.replace(target)

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def names(self, folder: str) -> Iterator[str]:
        for path in sorted(self._path(folder).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield str(path.relative_to(self._root))

    def folders(self, folder: str) -> list[str]:
        try:
            return sorted(path.name for path in self._path(folder).iterdir() if path.is_dir())
        except FileNotFoundError:
            return []

    def _path(self, name: str) -> Path:
        return self._root / name if name else self._root

    @contextmanager
    def _written(self, name: str, content: bytes) -> Iterator[tuple[Path, Path]]:
        """Write the content to a temporary file beside its target. Yield both paths."""
        target = self._path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._tidy(target.parent)
        # Engines skip names that begin with a dot.
        temporary = target.parent / f".{uuid4().hex}.writing"
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary, target
        finally:
            temporary.unlink(missing_ok=True)

    def _tidy(self, folder: Path) -> None:
        """Remove temporary files left by writers that were killed."""
        if folder in self._tidied:
            return
        if len(self._tidied) == _MAX_TIDIED_FOLDERS:
            self._tidied.clear()
        self._tidied.add(folder)
        for temporary in folder.glob(".*.writing"):
            with suppress(FileNotFoundError):  # removed meanwhile by its writer or another process
                if time.time() - temporary.stat().st_mtime > _ABANDONED_AFTER:
                    temporary.unlink()


class ObjectStorage(Storage):
    """A location in an object store, through Airflow's ``ObjectStoragePath`` and its connections."""

    max_concurrent_writes = 8

    def __init__(self, location: str, conn_id: str | None = None) -> None:
        from reducto_provider.airflow_compat import AirflowNotFoundException, BaseHook, ObjectStoragePath

        conn_id = urlsplit(location).netloc.rpartition("@")[0] or conn_id
        if conn_id:
            try:
                # For an unknown id Airflow only warns, and accesses the store anonymously.
                BaseHook.get_connection(conn_id)
            except AirflowNotFoundException as error:
                raise ValueError(f"there is no Airflow connection {conn_id!r}, which {location} needs") from error
        try:
            root = ObjectStoragePath(with_single_slashes(location), conn_id=conn_id)
            self._fs: AbstractFileSystem = root.fs
        except (ImportError, ValueError) as error:
            extra = _EXTRAS.get(urlsplit(location).scheme)
            raise ValueError(
                f"{location} can't be opened: {error}. Is airflow-provider-reducto[{extra}] installed, and the "
                "connection complete?"
            ) from error
        except Exception as error:  # such as a role that can't be assumed: store hooks raise their own types
            raise OSError(f"{location} can't be opened: {type(error).__name__}: {error}") from error
        _check_client(self._fs)
        self._root: str = root.path.rstrip("/")
        self._scheme: str = root.protocol
        # By default s3fs requests a file's size first. That request may see another version, and its errors have no
        # text ("Bad Request" for an expired credential).
        accepts_concurrency = "max_concurrency" in signature(self._fs.cat_file).parameters
        self._read_options: dict[str, Any] = {"max_concurrency": 1} if accepts_concurrency else {}

    def uri(self, name: str = "") -> str:
        return f"{self._scheme}://{_encoded(self._path(name))}"

    @property
    def account(self) -> str | None:
        account: str | None = getattr(getattr(self._fs, "service_client", None), "account_name", None)
        return account

    @property
    def file_system(self) -> Any:
        """The store's client, for the settings of a client of another kind."""
        return self._fs

    def read(self, name: str = "") -> bytes | None:
        try:
            with _advice():
                content: bytes = self._fs.cat_file(self._path(name), **self._read_options)
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
                # S3 answers this while another writer creates the file, and asks for a retry.
                if pause is None or "ConditionalRequestConflict" not in str(error.__cause__):
                    raise
                time.sleep(pause)
            else:
                return

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), _advice():
            try:
                self._fs.rm_file(self._path(name))
            except NotImplementedError:  # adlfs 2024.12, which the constraints of Airflow 2.11.0 and 3.0 have
                self._fs.rm(self._path(name))

    def names(self, folder: str) -> Iterator[str]:
        self._fs.invalidate_cache()
        with _advice():
            found = self._fs.find(self._path(folder))
        for path in sorted(found):
            yield str(path).removeprefix(f"{self._root}/")

    def folders(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        names = [str(each["name"]).rstrip("/") for each in found if each["type"] == "directory"]
        return sorted(name.rpartition("/")[2] for name in names)

    def md5s(self, folder: str, prefix: str) -> dict[str, str] | None:
        if _EXTRAS.get(self._scheme) not in ("s3", "gcs"):
            return None
        self._fs.invalidate_cache()
        with _advice():
            found = self._fs.find(self._path(folder), prefix=prefix, detail=True)
        return {str(path).removeprefix(f"{self._root}/"): _listed_md5(info) for path, info in found.items()}

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


@contextmanager
def _advice() -> Iterator[None]:
    """Add the remedy to a store's terse errors."""
    try:
        yield
    except PermissionError as error:
        advice = "check the connection's credential, and that it may read, write, remove and list objects there"
        error.args = (f"{str(error).rstrip('.')}; {advice}",)
        raise
    except FileNotFoundError as error:
        advice = "the bucket or container must exist, an export does not create it"
        error.args = (f"{str(error).rstrip('.')}; {advice}",)
        raise


def _check_client(fs: AbstractFileSystem) -> None:
    """Raise ValueError if the client would let two exports create the same object."""
    package = type(fs).__module__.partition(".")[0]
    if package in _CLIENTS:
        installed = version(package)
        if tuple(int(part) for part in installed.split(".")[:2]) < _MIN_CLIENT:
            oldest = ".".join(map(str, _MIN_CLIENT))
            raise ValueError(
                f"{package} {installed} can't create an object only if there is none: install {package}>={oldest}"
            )


def _listed_md5(info: Mapping[str, Any]) -> str:
    """Return the MD5 in a listing of S3 or, in base64, of Google Cloud Storage. It can be empty or something else."""
    return b64decode(md5).hex() if (md5 := info.get("md5Hash")) else str(info.get("ETag", "")).strip('"')


def _encoded(path: str) -> str:
    return quote(os.fsencode(path), safe="/:=@")

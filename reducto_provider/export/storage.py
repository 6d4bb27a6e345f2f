"""Where files go: whole objects by relative name, each replaced at once or not at all."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import urlsplit
from uuid import uuid4

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

OBJECT_STORES: Final = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "adl", "memory")
"""Schemes of stores that publish an object when it is complete, and so never show a part of one."""

_LOCAL_SCHEMES = ("file", "local")
_ABANDONED_AFTER = 3600.0


def check_output_path(output_path: object) -> str:
    """
    A location that means the same on every worker, in a store where a file can be replaced at once.

    :raises ValueError: naming the value and the remedy.
    """
    if isinstance(output_path, str):
        if _local_path(output_path) is not None:
            return output_path
        parts = urlsplit(output_path)
        if parts.scheme in OBJECT_STORES and parts.netloc and "::" not in output_path:
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

    @abstractmethod
    def uri(self, name: str = "") -> str:
        """The URL of a file, without a connection id."""

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

    def uri(self, name: str = "") -> str:
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
        for beside in folder.glob(".*.writing"):
            with suppress(FileNotFoundError):  # its writer, or another tidying one, was faster
                if time.time() - beside.stat().st_mtime > _ABANDONED_AFTER:
                    beside.unlink()


class ObjectStorage(Storage):
    """A place in an object store, through Airflow's ``ObjectStoragePath`` and its connections."""

    parallel = 8

    def __init__(self, location: str, conn_id: str | None = None) -> None:
        from airflow.providers.common.compat.sdk import BaseHook, ObjectStoragePath

        root = ObjectStoragePath(location.rstrip("/"), conn_id=conn_id)
        if root.conn_id:
            # An id that does not exist would be taken for anonymous access, after a warning.
            BaseHook.get_connection(root.conn_id)
        self._fs: AbstractFileSystem = root.fs
        self._root: str = root.path.rstrip("/")
        self._scheme: str = root.protocol

    def uri(self, name: str = "") -> str:
        return f"{self._scheme}://{self._path(name)}"

    def read(self, name: str = "") -> bytes | None:
        try:
            content: bytes = self._fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return content

    def replace(self, name: str, content: bytes) -> None:
        self._fs.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> None:
        self._fs.pipe_file(self._path(name), content, mode="create")

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def names(self, folder: str) -> Iterator[str]:
        self._fs.invalidate_cache()
        for path in sorted(self._fs.find(self._path(folder))):
            yield str(path).removeprefix(f"{self._root}/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def _local_path(location: str) -> Path | None:
    """The absolute local path that a location is, if it is one."""
    for scheme in _LOCAL_SCHEMES:
        location = location.removeprefix(f"{scheme}://")
    return Path(f"/{location.lstrip('/')}") if location.startswith("/") else None

"""Where files go: whole objects by relative name, each replaced at once or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_LOCAL_SCHEMES = ("file", "local")


def check_output_path(output_path: object) -> str:
    """
    A location that means the same on every worker: a URL such as ``s3://bucket/folder``, or an absolute path.

    :raises ValueError: naming the value and the remedy.
    """
    if isinstance(output_path, str) and (output_path.startswith("/") or urlsplit(output_path).scheme):
        return output_path
    raise ValueError(
        f"output_path must be a URL such as s3://bucket/folder or an absolute path, not {output_path!r}: "
        "where a relative path leads depends on the worker"
    )


class Storage:
    """
    The files below one location, local or in an object store, through Airflow's ``ObjectStoragePath``.

    A file is only ever replaced by a whole new one, so that a reader beside it sees the old or the new and never
    a part: an object store publishes an object when it is complete; locally the bytes are written beside their
    target, on the same file system, and renamed onto it.

    :param location: see :func:`check_output_path`; ``s3://conn_id@bucket`` names a connection too.
    :param conn_id: the Airflow connection for the store.
    """

    def __init__(self, location: str, conn_id: str | None = None) -> None:
        from airflow.providers.common.compat.sdk import BaseHook, ObjectStoragePath

        if location.startswith("/"):
            location = f"file://{location}"
        root = ObjectStoragePath(location.rstrip("/"), conn_id=conn_id)
        if root.conn_id:
            # An id that does not exist would be taken for anonymous access, after a warning.
            BaseHook.get_connection(root.conn_id)
        self._fs: AbstractFileSystem = root.fs
        self._root: str = root.path.rstrip("/")
        self._local = root.protocol in _LOCAL_SCHEMES
        self._scheme = "file" if self._local else root.protocol

    def uri(self, name: str = "") -> str:
        """The URL of a file, without a connection id."""
        path = self._path(name)
        return f"{self._scheme}://{path}"

    def read(self, name: str = "") -> bytes | None:
        """A file's content; None if there is no such file."""
        try:
            content: bytes = self._fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return content

    def replace(self, name: str, content: bytes) -> None:
        """Create a file, or replace it, with all of its content at once."""
        if self._local:
            _replace_local(Path(self._path(name)), content)
        else:
            self._fs.pipe_file(self._path(name), content)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def _replace_local(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Engines pass over names that begin with a dot.
    beside = target.parent / f".{uuid4().hex}.writing"
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise

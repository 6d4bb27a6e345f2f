"""Where an export may write: locations as DAG authors and commands name them."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

OBJECT_STORES: Final = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "memory")
"""Schemes of stores that publish an object only when it is complete."""

_LOCAL_SCHEMES = ("file", "local")


def check_output_path(output_path: object) -> str:
    """
    Return the location if every worker resolves it alike and its store replaces files atomically.

    :raises ValueError: naming the value and the remedy.
    """
    if isinstance(output_path, str):
        if ".." in output_path.split("/"):
            raise ValueError(
                f"output_path must not contain '..', by which a template's value could lead anywhere: {output_path!r}"
            )
        if local_path(output_path) is not None:
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
                f"the part of {output_path!r} before the @ would be taken for a connection's id"
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
        "a relative path differs from worker to worker"
    )


def location_argument(text: str) -> str:
    """Return the location that an argument of a command names. A relative path is in the current folder."""
    return text if urlsplit(text).scheme else str(Path(text).resolve())


def split_object_path(output_path: str) -> tuple[str, str]:
    """
    Return the folder of an object, and its name in it.

    :param output_path: see :func:`check_output_path`.
    :raises ValueError: if the location names no object.
    """
    scheme = "" if output_path.startswith("/") else f"{output_path.partition('://')[0]}://"
    folder, slash, name = output_path.removeprefix(scheme).rpartition("/")
    if not (slash and name):
        raise ValueError(f"output_path must name a file when partitioned=False, not the folder {output_path!r}")
    return f"{scheme}{folder}/", name


def local_path(location: str) -> Path | None:
    """Return a location's absolute local path, None if it is not local."""
    for scheme in _LOCAL_SCHEMES:
        location = location.removeprefix(f"{scheme}://")
    return Path(f"/{location.lstrip('/')}") if location.startswith("/") else None


def with_single_slashes(location: str) -> str:
    """
    Return a location with repeated slashes collapsed, as local paths do. A template rendered to nothing leaves them.

    s3fs can write keys that begin with a slash, but does not list them under these names.
    """
    scheme, _, path = location.partition("://")
    return f"{scheme}://{'/'.join(filter(None, path.split('/')))}"

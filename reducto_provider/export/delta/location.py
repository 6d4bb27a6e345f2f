"""Where a Delta table is: its URI and options for the Rust client of ``deltalake``, from Airflow connections."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

from reducto_provider.export.delta.journal import FOLDER
from reducto_provider.export.formats import FORMATS, TABLE_FORMAT
from reducto_provider.export.locations import check_output_path
from reducto_provider.export.sink import storage_errors
from reducto_provider.export.storage import ObjectStorage, Storage, open_storage

DELTA_STORES: Final = ("s3", "s3a", "abfs", "abfss")
"""Schemes of object stores that hold Delta tables: each can create an object only if it does not exist."""

# deltalake takes these from the environment, and prefers them to a SAS token.
_AZURE_KEYS = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY")
_SERVICE_PRINCIPAL = {
    "azure_client_id": "client_id",
    "azure_client_secret": "client_secret",
    "azure_tenant_id": "tenant_id",
}

# What deltalake takes for something else: it decodes paths once too often, and fails for some characters.
_UNSAFE = re.compile(r"[\[\]\\^|\x00-\x1f\x7f-\x9f\u2028\u2029]|%[0-9A-Fa-f]{2}")
# It cuts the URL of an object store at these, and leaves out such a folder: the table would be elsewhere.
_UNSAFE_IN_URL = re.compile(r"[?#]|/\.(?=/|\Z)")

TEMPORARY: Final = ".writing"
"""How the names of objects end that may be left if they can't be removed."""

Options = Callable[[], Mapping[str, str]]
"""Return the options for the store's client, with credentials that have not expired."""


def check_table_location(output_path: object) -> str:
    """
    Return the location if it can hold a Delta table.

    :raises ValueError: naming the value and the remedy.
    """
    path = check_output_path(output_path)
    scheme = path.partition("://")[0] if "://" in path else "file"
    if scheme not in (*DELTA_STORES, "file", "local"):
        raise ValueError(
            f"output_path must be a local path or one of {', '.join(DELTA_STORES)} for output_format='delta', "
            f"not {path!r}"
        )
    found = _UNSAFE.search(path) or (scheme in DELTA_STORES and _UNSAFE_IN_URL.search(path))
    if found:
        raise ValueError(f"output_path must not contain {found[0]!r} for output_format='delta': {path!r}")
    return path


def check_exclusive_creation(storage: Storage) -> None:
    """
    Check that the store can create an object only if there is none, on which commits at the same time rely.

    :raises ValueError: if the store overwrites the object instead.
    :raises PublishError: if it can't be written.
    """
    if not isinstance(storage, ObjectStorage):  # a file system can
        return
    name = f"{FOLDER}/.{uuid4().hex}{TEMPORARY}"
    with storage_errors(f"could not write to {storage.location()}"):
        storage.create(name, b"")
        try:
            storage.create(name, b"")
        except FileExistsError:
            return
        finally:
            with suppress(OSError):  # a table needs no permission to remove objects
                storage.remove(name)
    raise ValueError(
        f"output_path must be in a store that can create an object only if there is none (If-None-Match), which "
        f"{storage.location()} ignores: exports at the same time would lose each other's commits. Export to files there"
    )


@dataclass(frozen=True)
class TableLocation:
    """
    Where a table is, for the two clients that read and write it.

    :param storage: for what is beside the table.
    :param uri: for ``deltalake``, as for ``options``.
    """

    storage: Storage
    uri: str
    options: Options


def table_location(output_path: object, conn_id: str | None) -> TableLocation:
    """
    Return where a table is. Nothing is read or written yet.

    Connections are looked up now, in the thread of the caller.

    :raises ValueError: see :func:`check_table_location`.
    :raises ImportError: naming the extra to install, if ``deltalake`` or the store's package is missing or too old.
    """
    FORMATS[TABLE_FORMAT].load()
    path = check_table_location(output_path)
    storage = open_storage(path, conn_id)
    location = storage.location()
    if not isinstance(storage, ObjectStorage):
        return TableLocation(storage, location.removeprefix("file://"), dict)
    parts = urlsplit(path)
    conn_id = parts.netloc.rpartition("@")[0] or conn_id
    _, _, in_store = location.partition("://")
    if parts.scheme.startswith("s3"):
        return TableLocation(storage, f"s3://{in_store}", _s3_options(conn_id))
    return TableLocation(storage, f"abfs://{in_store}", _azure_options(storage))


def _s3_options(conn_id: str | None) -> Options:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook(aws_conn_id=conn_id)
    # One session: credentials of a role are renewed in it, without another look at the connection.
    session = hook.get_session()
    credentials = session.get_credentials()
    fixed: dict[str, str] = {}
    if region := hook.region_name or session.region_name:
        fixed["AWS_REGION"] = region
    if endpoint := hook.conn_config.get_service_endpoint_url("s3"):
        fixed["AWS_ENDPOINT_URL"] = fixed["AWS_ENDPOINT_URL_S3"] = endpoint
        fixed["AWS_ALLOW_HTTP"] = str(endpoint.startswith("http://")).lower()
    if hook.verify is False:
        fixed["AWS_ALLOW_INVALID_CERTIFICATES"] = "true"

    def options() -> Mapping[str, str]:
        if credentials is None:
            return {**fixed, "AWS_SKIP_SIGNATURE": "true"}
        key = credentials.get_frozen_credentials()
        if not key.token and os.environ.get("AWS_SESSION_TOKEN"):
            raise ValueError(
                "the environment variable AWS_SESSION_TOKEN is set, and deltalake would send it with the keys of "
                f"connection {conn_id!r}, which have no token. Unset it where the task runs"
            )
        token = {"AWS_SESSION_TOKEN": key.token} if key.token else {}
        return {**fixed, "AWS_ACCESS_KEY_ID": key.access_key, "AWS_SECRET_ACCESS_KEY": key.secret_key, **token}

    return options


def _azure_options(storage: ObjectStorage) -> Options:
    """Return the options of the client that Airflow's file system has made from the connection, of whatever kind."""
    file_system = storage.file_system
    client = file_system.service_client
    url = urlsplit(client.url)
    options = {
        "azure_storage_account_name": client.account_name or file_system.account_name or url.netloc.partition(".")[0],
        "azure_storage_endpoint": f"{url.scheme}://{url.netloc}{url.path}".rstrip("/"),
        "allow_http": str(url.scheme == "http").lower(),
    }
    if key := getattr(client.credential, "account_key", None):
        options["azure_storage_account_key"] = key
    elif url.query:
        if found_key := next((name for name in _AZURE_KEYS if os.environ.get(name)), None):
            raise ValueError(
                f"the environment variable {found_key} is set, and deltalake would use it instead of the connection's "
                "SAS token. Unset it where the task runs"
            )
        options["azure_storage_sas_key"] = url.query
    else:
        found = {option: getattr(file_system, name) for option, name in _SERVICE_PRINCIPAL.items()}
        options |= {option: value for option, value in found.items() if value}
    return lambda: options

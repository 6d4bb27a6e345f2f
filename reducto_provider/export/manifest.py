"""The manifests of a partitioned dataset: one per day, written after the day's file."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final
from urllib.parse import quote

import msgspec

from reducto_provider import __version__
from reducto_provider.export.reported import Change
from reducto_provider.export.storage import Storage
from reducto_provider.usage.checks import INVALID_JSON
from reducto_provider.usage.report import CREDITS_SCALE

DATASET_FILE: Final = "metadata/dataset.json"
"""The name of a dataset's description."""

_TABLE_FILES: Final = ("_delta_log/00000000000000000000.json", "_delta_log/_last_checkpoint")
"""The names of a Delta table's first version, and of what is there once that was removed because of its age."""

_MAX_NAME_BYTES = 255  # the limit of common file systems
_MAX_WRITES = 10
_PLAIN_NUMBER = re.compile(rf"\d{{1,60}}(\.\d{{1,{CREDITS_SCALE}}})?", re.ASCII)
_NAME = re.compile(r"metadata/(org_id=[^/]+/group_by=[^/]+)/dt=(\d{4}-\d{2}-\d{2})\.json", re.ASCII)

Count = Annotated[int, msgspec.Meta(ge=0)]


def holds_table(storage: Storage) -> bool:
    """Return whether there is a Delta table."""
    return any(storage.read(name) is not None for name in _TABLE_FILES)


class Manifest(msgspec.Struct, kw_only=True):
    """
    What is known of a day, in the order in which it is written.

    :param file: None for a day without usage, which has no file.
    :param sha256: of the file.
    :param md5: of the file. Some stores list it, which proves the file without reading it.
    :param rows_sha256: of the rows, whatever the file's format.
    :param final: whether the day was over when it was requested. False also for a manifest that does not say so.
    :param query: with the organization, even if the query left it to the service, and with filters in order.
    :param run: identifies the task instance that wrote the day.
    """

    date: date
    file: str | None
    row_count: Count
    bytes: Count
    sha256: str | None
    md5: str | None = None
    rows_sha256: str | None
    change: Change
    credits: str | None
    request_count: Count
    final: bool = False
    query: list[tuple[str, str]]
    run: str | None
    package_version: str = __version__
    exported_at: str = msgspec.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        """
        Validate ``credits``.

        :raises ValueError: for a number that no export writes. Printing some of these would exhaust memory.
        """
        if self.credits is not None and not _PLAIN_NUMBER.fullmatch(self.credits):
            raise ValueError("credits must be a decimal number without sign or exponent")


_MANIFEST = msgspec.json.Decoder(Manifest)


class InvalidManifestError(ValueError):
    """A manifest can't be decoded, or is of another day."""


def decode_manifest(content: bytes) -> Manifest:
    """
    Return the manifest in a file.

    :raises InvalidManifestError: if the content is not one.
    """
    try:
        return _MANIFEST.decode(content)
    except INVALID_JSON as error:
        raise InvalidManifestError(f"it is not a manifest: {error}") from error


def write_with_manifest(storage: Storage, file: str, content: bytes | None, manifest: str, description: bytes) -> None:
    """
    Write a file and then its manifest. Remove the file if ``content`` is None. Call :func:`settle` afterwards.

    :raises OSError: also anything else the store raises.
    """
    if content is None:
        storage.remove(file)
    else:
        storage.replace(file, content)
    storage.replace(manifest, description)


def settle(storage: Storage, file: str, manifest: str, write_again: Callable[[], None]) -> None:
    """
    Write a file and its manifest again until both are of one export: another one may have written between the two.

    The last writer notices, since it checks after its last write.

    :raises OSError: also anything else the store raises.
    """
    for write in range(_MAX_WRITES):
        if _agree(storage, file, manifest):
            return
        # Jitter: in lockstep, two exports would keep overwriting each other.
        time.sleep(write and random.uniform(0, 0.02 * 2**write))  # noqa: S311
        write_again()
    raise OSError(f"other exports keep writing {storage.location(file)} at the same time")


def _agree(storage: Storage, file: str, manifest: str) -> bool:
    description = storage.read(manifest)
    with suppress(*INVALID_JSON):
        return _DESCRIBED.decode(description or b"").sha256 == checksum(storage.read(file))
    return False


class _Described(msgspec.Struct):
    sha256: str | None


_DESCRIBED = msgspec.json.Decoder(_Described)


def partition_of(org_id: str, group_by: str) -> str:
    """
    Return the folder of an organization's dimension. Ids are escaped as Hive does, so that each stays one name.

    :raises ValueError: if the id is too long for a file name.
    """
    name = f"org_id={quote(org_id, safe='')}"
    if len(name) > _MAX_NAME_BYTES:
        raise ValueError(f"org_id is too long for the name of a folder: {org_id[:60]!r}...")
    return f"{name}/group_by={group_by}"


def metadata_folder(org_id: str, group_by: str) -> str:
    """Return the folder of the manifests of an organization's dimension."""
    return f"metadata/{partition_of(org_id, group_by)}"


def parse_manifest_name(name: str) -> tuple[str, date] | None:
    """Return a manifest's partition and day; None for a file that is not a manifest."""
    if match := _NAME.fullmatch(name):
        with suppress(ValueError):  # a date that does not exist
            return match[1], date.fromisoformat(match[2])
    return None


def checksum(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def md5_of(content: bytes | None) -> str | None:
    """Return the digest that some stores list. It is no protection against an attacker."""
    return None if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()


def json_file(content: Manifest | Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content)) + b"\n"

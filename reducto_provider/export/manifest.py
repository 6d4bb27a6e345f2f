"""The manifests of a partitioned dataset: one per day, written after the day's file."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final, Self
from urllib.parse import quote

import msgspec

from reducto_provider import __version__
from reducto_provider.export.reported import Change
from reducto_provider.export.sink import Attempt, storage_errors
from reducto_provider.export.storage import Storage
from reducto_provider.usage.checks import INVALID_JSON
from reducto_provider.usage.query import UsageQuery
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


class ManifestHead(msgspec.Struct):
    """The fields of a manifest that every export reads."""

    sha256: str | None
    rows_sha256: str | None
    change: Change

    @classmethod
    def decode(cls, content: bytes | None) -> Self | None:
        """Return None if there is no manifest or it can't be decoded."""
        try:
            return None if content is None else msgspec.json.decode(content, type=cls)
        except INVALID_JSON:
            return None


class ManifestAttempt(msgspec.Struct):
    """The try that wrote a manifest, see :class:`~reducto_provider.export.sink.Attempt`."""

    number: int
    fingerprint: str


class Manifest(msgspec.Struct, kw_only=True):
    """
    What is known of a day, in the order in which it is written.

    Later tries pass its figures on to XCom, so they are validated.

    :param file: None for a day without usage, which has no file.
    :param sha256: of the file.
    :param rows_sha256: of the rows, whatever the file's format.
    :param run: identifies the task instance that exported the day.
    :param attempt: left out if the day was not over.
    """

    date: date
    file: str | None
    row_count: Count
    bytes: Count
    sha256: str | None
    rows_sha256: str | None
    change: Change
    credits: str | None
    request_count: Count
    query: list[tuple[str, str]]
    run: str | None
    attempt: ManifestAttempt | msgspec.UnsetType = msgspec.UNSET
    package_version: str = __version__
    exported_at: str = msgspec.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        """
        Validate ``credits``.

        :raises ValueError: for a number that no export writes. Printing some of these would exhaust memory.
        """
        if self.credits is not None and not _PLAIN_NUMBER.fullmatch(self.credits):
            raise ValueError("credits must be a decimal number without sign or exponent")

    @property
    def is_final(self) -> bool:
        """Whether the day was over when it was exported."""
        return self.exported_at[:10] > self.date.isoformat()

    def is_of(self, query: UsageQuery, run: str, attempt: Attempt) -> bool:
        """Return whether an earlier try of ``run`` wrote it for ``query``."""
        return (
            self.run == run
            and self.query == query.params()
            and self.attempt is not msgspec.UNSET
            and attempt.first <= self.attempt.number < attempt.number
            and self.attempt.fingerprint == attempt.fingerprint
        )


class DayManifests:
    """The manifests of an organization by a dimension."""

    def __init__(self, storage: Storage, org_id: str, group_by: str) -> None:
        self.partition = partition_of(org_id, group_by)
        self.folder = metadata_folder(org_id, group_by)
        self._storage = storage

    def name(self, day: date) -> str:
        """Return the name of a day's manifest."""
        return f"{self.folder}/dt={day}.json"

    def head(self, day: date) -> ManifestHead | None:
        """Return what is known of a day before it is published; None if there is no manifest."""
        return ManifestHead.decode(self._storage.read(self.name(day)))

    def find(self, day: date) -> Manifest | None:
        """
        Return the manifest of a day, None if there is none or it can't be decoded.

        :raises PublishError: if it can't be read.
        """
        name = self.name(day)
        with storage_errors(f"could not read {self._storage.location(name)}"):
            content = self._storage.read(name)
        with suppress(ValueError):
            return None if content is None else decode_manifest(content)
        return None

    def publish(self, file: str, content: bytes | None, manifest: Manifest) -> None:
        """
        Write a day's file, or remove it, and then its manifest.

        :raises OSError: also anything else the store raises.
        """
        write_with_manifest(self._storage, file, content, self.name(manifest.date), json_file(manifest))


def decode_manifest(content: bytes) -> Manifest:
    """
    Return the manifest in a file.

    :raises ValueError: if the content is not one.
    """
    try:
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"it is not a manifest: {error}") from error


def write_with_manifest(storage: Storage, file: str, content: bytes | None, manifest: str, description: bytes) -> None:
    """
    Write a file and then its manifest. Remove the file if ``content`` is None.

    :raises OSError: also anything else the store raises.
    """
    for write in range(_MAX_WRITES):
        # Jitter: in lockstep, two exports would keep overwriting each other.
        time.sleep(write and random.uniform(0, 0.02 * 2**write))  # noqa: S311
        if content is None:
            storage.remove(file)
        else:
            storage.replace(file, content)
        storage.replace(manifest, description)
        # Another export may have written between the two. The last writer notices, so that file and manifest end up
        # from the same export.
        written = ManifestHead.decode(storage.read(manifest))
        if written is not None and written.sha256 == checksum(storage.read(file)):
            return
    raise OSError(f"other exports keep writing {storage.location(file)} at the same time")


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


def json_file(content: Manifest | Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content)) + b"\n"

"""A partitioned dataset of usage: its layout, its publication day by day, and what it says of itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import groupby
from typing import Any, Final
from urllib.parse import quote

import msgspec

from reducto_provider import __version__
from reducto_provider.export.formats import Format
from reducto_provider.export.storage import Storage
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport, UsageRow, plain, sum_credits
from reducto_provider.usage.window import DayRange

LAYOUT_VERSION: Final = 1
_DATASET_FILE = "metadata/dataset.json"
_LONGEST_NAME = 255  # bytes that file systems allow a name


class DatasetMismatchError(ValueError):
    """The export would put into a dataset what does not belong there: another format, or filtered days."""


class PublishError(OSError):
    """A file could not be written. What was there before is untouched; ``published`` are the days before it."""

    def __init__(self, message: str, published: Sequence[PublishedFile] = ()) -> None:
        super().__init__(message)
        self.published = tuple(published)


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """
    What one day, or the one object of an unpartitioned export, now holds.

    :param uri: None for a day without usage: it has no file.
    :param day: None for an unpartitioned export.
    :param changed: whether the content differs from what was published before; True if nothing was.
    """

    uri: str | None
    day: date | None
    row_count: int
    size: int
    changed: bool

    def as_json(self) -> dict[str, Any]:
        """For XCom: plain JSON values."""
        return {
            "uri": self.uri,
            "date": self.day and self.day.isoformat(),
            "row_count": self.row_count,
            "bytes": self.size,
            "changed": self.changed,
        }


class UsageDataset:
    """
    Usage at one location, partitioned by organization, dimension and day::

        data/org_id=<org>/group_by=<dimension>/dt=YYYY-MM-DD/usage.<ext>
        metadata/dataset.json
        metadata/org_id=<org>/group_by=<dimension>/dt=YYYY-MM-DD.json

    A day has one file, always of the same name, or none when it had no usage. Its manifest, written after it,
    tells a day without usage from one that was never exported. The dimensions are views of the same usage: they
    lie apart, so that a sum over one never counts twice.
    """

    def __init__(self, storage: Storage, format: Format, filters: Mapping[str, Sequence[str]]) -> None:
        self._storage = storage
        self._format = format
        self._identity = {
            "layout_version": LAYOUT_VERSION,
            "format": format.name,
            "compression": None,
            "filters": dict(filters),
        }

    def check(self) -> None:
        """
        Make sure that an export like this one belongs into the dataset.

        :raises DatasetMismatchError: naming what differs, and what to do.
        """
        if (content := self._read(_DATASET_FILE)) is None:
            return
        try:
            found = msgspec.json.decode(content, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise DatasetMismatchError(f"{self._storage.uri(_DATASET_FILE)} can't be read: {error}") from error
        different = [
            f"{name} is {found.get(name)!r}, this export's {value!r}"
            for name, value in self._identity.items()
            if found.get(name) != value
        ]
        if different:
            raise DatasetMismatchError(
                f"the dataset at {self._storage.uri()} holds something else: {'; '.join(different)}. Export to "
                "another output_path, or remove the dataset first"
            )

    def publish(self, report: UsageReport, query: UsageQuery) -> list[PublishedFile]:
        """
        Make the dataset hold, for each day of the report, exactly its rows: days without rows lose their file.

        :param query: what was asked, for the manifests.
        :raises DatasetMismatchError: see :meth:`check`.
        :raises PublishError: naming the day; its file and those of later days are as they were.
        """
        folder = _partition(report.org_id, report.group_by)
        self.check()
        published: list[PublishedFile] = []
        rows_of = _rows_by_day(report, self._format)
        try:
            self._storage.replace(_DATASET_FILE, _json_file(self._identity))
            for day in DayRange(report.start, report.end).days():
                rows, encodable = rows_of.get(day, ((), ()))
                published.append(self._publish_day(folder, day, rows, encodable, query))
        except Exception as error:
            where = f"{DayRange(report.start, report.end)}" if not published else f"after {published[-1].day}"
            raise PublishError(
                f"could not write usage of {report.org_id} ({where}) to {self._storage.uri()}: {error!r}; "
                f"{len(published)} days are published, no file is partial, and the export can be run again",
                published,
            ) from error
        return published

    def _publish_day(
        self, folder: str, day: date, rows: Sequence[UsageRow], encodable: Sequence[Any], query: UsageQuery
    ) -> PublishedFile:
        file = f"data/{folder}/dt={day}/usage.{self._format.extension}"
        manifest = f"metadata/{folder}/dt={day}.json"
        before = self._storage.read(manifest)
        content = self._format.encode(encodable, {}) if rows else b""
        checksum = hashlib.sha256(content).hexdigest() if rows else None
        if rows:
            self._storage.replace(file, content)
        else:
            self._storage.remove(file)
        credits = sum_credits(rows)
        self._storage.replace(
            manifest,
            _json_file(
                {
                    "date": day.isoformat(),
                    "file": file if rows else None,
                    "row_count": len(rows),
                    "bytes": len(content),
                    "sha256": checksum,
                    "credits": None if credits is None else plain(credits),
                    "request_count": sum(row.request_count for row in rows),
                    "query": query.params(),
                    "package_version": __version__,
                    "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
                }
            ),
        )
        return PublishedFile(
            uri=self._storage.uri(file) if rows else None,
            day=day,
            row_count=len(rows),
            size=len(content),
            changed=before is None or _checksum_of(before) != checksum,
        )

    def _read(self, name: str) -> bytes | None:
        try:
            return self._storage.read(name)
        except Exception as error:
            raise PublishError(f"could not read {self._storage.uri(name)}: {error!r}") from error


def publish_object(storage: Storage, format: Format, report: UsageReport) -> PublishedFile:
    """
    Write the whole report as one object at the storage's own location, organization and dimension as columns.

    :raises PublishError: what was there before is untouched.
    """
    keys = {"org_id": report.org_id, "group_by": report.group_by}
    content = format.encode(format.rows(report), keys)
    try:
        changed = storage.read() != content
        storage.replace("", content)
    except Exception as error:
        raise PublishError(
            f"could not write usage of {report.org_id} to {storage.uri()}: {error!r}; what was there is untouched"
        ) from error
    return PublishedFile(uri=storage.uri(), day=None, row_count=len(report.rows), size=len(content), changed=changed)


def _partition(org_id: str, group_by: str) -> str:
    """The folder of an organization's dimension. Foreign text is escaped as Hive does, so that it stays one name."""
    name = f"org_id={quote(org_id, safe='')}"
    if len(name) > _LONGEST_NAME:
        raise DatasetMismatchError(f"the organization id {org_id[:60]!r}... is too long for the name of a folder")
    return f"{name}/group_by={group_by}"


def _rows_by_day(report: UsageReport, format: Format) -> dict[date, tuple[Sequence[UsageRow], Sequence[Any]]]:
    pairs = zip(report.rows, format.rows(report), strict=True)
    return {
        day: tuple(zip(*group, strict=True))  # type: ignore[misc]  # the rows, and what the format takes for them
        for day, group in groupby(pairs, key=lambda pair: pair[0].date)
    }


def _checksum_of(manifest: bytes) -> object:
    try:
        return msgspec.json.decode(manifest, type=dict[str, Any]).get("sha256")
    except msgspec.DecodeError:
        return b"unreadable"  # equal to no checksum


def _json_file(content: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content)) + b"\n"

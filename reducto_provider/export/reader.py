"""Read a partitioned dataset or a Delta table back: its rows, and which of its days were exported."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from typing import ClassVar, Final, TypeVar
from urllib.parse import unquote

import msgspec

from reducto_provider.export.dataset import LAYOUT_VERSION
from reducto_provider.export.exported_days import ExportedDay, ExportedDays
from reducto_provider.export.formats import COMPRESSIONS, FORMATS, Format
from reducto_provider.export.formats.compressed import Compressed
from reducto_provider.export.manifest import (
    DATASET_FILE,
    InvalidManifestError,
    Manifest,
    checksum,
    holds_table,
    partition_of,
)
from reducto_provider.export.sink import short, storage_errors
from reducto_provider.export.storage import Storage, open_storage
from reducto_provider.export.stored import StoredDays
from reducto_provider.export.threads import map_in_threads
from reducto_provider.usage.checks import INVALID_JSON
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.query import DIMENSIONS, UsageQuery
from reducto_provider.usage.report import UsageRow

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

MAX_CONCURRENT_READS: Final = 16

MAX_READS: Final = 10
"""How often a day is read while others keep exporting it."""

_MAX_NAMED: Final = 10


class UsageReadError(ValueError):
    """A dataset can't be read as usage: something in it is missing, damaged or not what an export writes."""


class RowCache:
    """
    The rows of files, by the files' names and digests: those used last, up to a number of rows.

    Every method may be called in several threads at once.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._row_count = 0
        self._rows: dict[tuple[str, str], list[UsageRow]] = {}
        self._lock = threading.Lock()

    def find(self, name: str, sha256: str) -> list[UsageRow] | None:
        """Return the rows of a file, None if they are not cached."""
        with self._lock:
            rows = self._rows.pop((name, sha256), None)
            if rows is not None:
                self._rows[name, sha256] = rows  # the last to be dropped
            return rows

    def add(self, name: str, sha256: str, rows: list[UsageRow]) -> None:
        """Cache the rows of a file, and drop those that have not been used for longest."""
        with self._lock:
            self._row_count += len(rows) - len(self._rows.pop((name, sha256), ()))
            self._rows[name, sha256] = rows
            while self._row_count > self._max_rows:
                self._row_count -= len(self._rows.pop(next(iter(self._rows))))


class _Identity(msgspec.Struct):
    layout_version: int
    format: str
    compression: str | None
    filters: dict[str, list[str]]


_IDENTITY = msgspec.json.Decoder(_Identity)


class UsageReader:
    """
    A reader of the dataset at one location. Every method may be called in several threads at once.

    Nothing is opened because a manifest names it: names are made from the organization, the dimension and the day.

    :param cache: of rows; None to read every file.
    :param max_concurrent_reads: from an object store.
    :raises UsageReadError: if there is no dataset, or it is of another version of this package.
    :raises OSError: if the store can't be read. Likewise all methods.
    """

    _folder: ClassVar = "metadata"
    """The folder that has a folder for each organization."""

    def __init__(
        self, storage: Storage, cache: RowCache | None = None, max_concurrent_reads: int = MAX_CONCURRENT_READS
    ) -> None:
        self._storage = storage
        self._cache = cache or RowCache(0)
        self.max_concurrent_reads = max_concurrent_reads if storage.max_concurrent_writes > 1 else 1
        self.format, self.filters = self._read_identity()

    def _read_identity(self) -> tuple[Format, Mapping[str, Sequence[str]]]:
        """Return the format of the rows, and the filters of the usage."""
        storage = self._storage
        with storage_errors(f"could not read {storage.location(DATASET_FILE)}"):
            content = storage.read(DATASET_FILE)
        if content is None:
            raise UsageReadError(
                f"there is no {DATASET_FILE} at {storage.location()}: has an export with this output_path succeeded?"
            )
        try:
            identity = _IDENTITY.decode(content)
        except INVALID_JSON as error:
            raise UsageReadError(f"{storage.location(DATASET_FILE)} can't be decoded: {error}") from error
        return self._format_of(identity), identity.filters

    @property
    def location(self) -> str:
        """The URI with nothing encoded, for people."""
        return self._storage.location()

    def org_ids(self) -> list[str]:
        """Return the organizations that have a folder, sorted. In it may be no dimension yet."""
        with storage_errors(f"could not list {self.location}"):
            folders = self._storage.folders(self._folder)
        return sorted(org_id for folder in folders if (org_id := _org_id(folder)) is not None)

    def organizations(self) -> dict[str, tuple[str, ...]]:
        """Return the organizations that have been exported, sorted, and the dimensions of each."""
        ids = self.org_ids()
        return {org_id: found for org_id, found in zip(ids, self._map(self.dimensions, ids), strict=True) if found}

    def dimensions(self, org_id: str) -> tuple[str, ...]:
        """Return the dimensions by which an organization has been exported; none for an unknown one."""
        try:
            folder = f"{self._folder}/{partition_of(org_id, 'product').rpartition('/')[0]}"
        except ValueError:  # no export writes an id that is too long, or not valid text
            return ()
        with storage_errors(f"could not list {self._storage.location(folder)}"):
            found = self._storage.folders(folder)
        return tuple(dimension for dimension in DIMENSIONS if f"group_by={dimension}" in found)

    def exported_days(self, org_id: str, group_by: str, days: DayRange) -> ExportedDays:
        """Return what the manifests say of these days. The index saves reading those that a listing proves."""
        stored = self.stored_days(org_id, group_by)
        with storage_errors(f"could not list {self._storage.location(stored.folder)}"):
            listed = stored.list_manifests()
            exported = [day for day in listed if days.first <= day <= days.last]
            if len(exported) > 1:
                stored.load_index()
        found: dict[date, ExportedDay] = {}
        unreadable = []
        manifests = self._map(lambda day: self._manifest(stored, day, stored.manifest), exported)
        for day, manifest in zip(exported, manifests, strict=True):
            if isinstance(manifest, ExportedDay):
                found[day] = manifest
            elif isinstance(manifest, UsageReadError):
                unreadable.append(day)
        span = DayRange(listed[0], listed[-1]) if listed else None
        return ExportedDays(days=found, unreadable=tuple(unreadable), span=span)

    def indexed_days(self, org_id: str, group_by: str, days: DayRange) -> ExportedDays | None:
        """
        Return what the index holds of these days, with one request. Nothing proves it: an index may be behind.

        :return: None if there is no index, or it can't be decoded.
        """
        stored = self.stored_days(org_id, group_by)
        with storage_errors(f"could not read the index in {self._storage.location(stored.folder)}"):
            try:
                found = stored.indexed(days)
            except ValueError:  # no export writes what the index holds
                return None
        if found is None:
            return None
        manifests, span = found
        return ExportedDays(days={each.date: ExportedDay.from_manifest(each) for each in manifests}, span=span)

    def rows(self, org_id: str, group_by: str, exported: Iterable[ExportedDay]) -> list[UsageRow]:
        """
        Return the rows of these days, in their order and in that of the files.

        :param exported: days as :meth:`exported_days` returned them. For one that was exported again since, the new
            rows are returned, unless the reader still has a version of the table with the old ones.
        :raises UsageReadError: naming the file that is missing or damaged.
        """
        days = list(exported)
        if any(day.sha256 for day in days):
            try:
                self.format.load()
            except ImportError as error:
                raise UsageReadError(str(error)) from error
        per_day = self._map(lambda day: self._rows_of_day(org_id, group_by, day), days)
        return [row for rows in per_day for row in rows]

    def manifest(self, org_id: str, group_by: str, day: date) -> bytes | None:
        """Return the content of a day's manifest, None if there is none."""
        name = self.stored_days(org_id, group_by).manifest_name(day)
        with storage_errors(f"could not read {self._storage.location(name)}"):
            return self._storage.read(name)

    def stored_days(self, org_id: str, group_by: str) -> StoredDays:
        """Return the files and manifests of an organization by a dimension."""
        return StoredDays(self._storage, org_id, group_by, self.filters, self.format.extension)

    def _rows_of_day(self, org_id: str, group_by: str, exported: ExportedDay) -> list[UsageRow]:
        stored = self.stored_days(org_id, group_by)
        name = stored.file(exported.day)
        location = self._storage.location(name)
        for read in range(MAX_READS):
            if exported.sha256 is None:
                return []
            if (rows := self._cache.find(name, exported.sha256)) is not None:
                return rows
            with storage_errors(f"could not read {location}"):
                content = self._storage.read(name)
            if content is not None and checksum(content) == exported.sha256:
                rows = self._decode(content, exported, location)
                self._cache.add(name, exported.sha256, rows)
                return rows
            # An export writes the file and then its manifest.
            time.sleep(min(0.02 * 2**read, 0.2))
            again = self._manifest(stored, exported.day, stored.read_manifest)
            if isinstance(again, UsageReadError):
                raise again
            if again is None:
                return []
            exported = again
        problem = "is missing" if content is None else "is not what its manifest describes"
        raise UsageReadError(f"{location} {problem}: export the day again")

    def _decode(self, content: bytes, exported: ExportedDay, location: str) -> list[UsageRow]:
        try:
            rows = self.format.decode(content)
        except ValueError as error:
            raise UsageReadError(f"{location} can't be decoded as {self.format.name}: {error}") from error
        if len(rows) != exported.row_count or any(row.date != exported.day for row in rows):
            raise UsageReadError(f"{location} does not have the {exported.row_count} rows of {exported.day} alone")
        return rows

    def _manifest(
        self, stored: StoredDays, day: date, find: Callable[[date], Manifest | None]
    ) -> ExportedDay | UsageReadError | None:
        """Return a day's manifest, the error if it can't be decoded, or None if there is none."""
        location = self._storage.location(stored.manifest_name(day))
        with storage_errors(f"could not read {location}"):
            try:
                manifest = find(day)
            except InvalidManifestError as error:
                return UsageReadError(f"{location} can't be decoded: {error}")
        if manifest is None:  # removed since it was listed
            return None
        return ExportedDay.from_manifest(manifest)

    def _format_of(self, identity: _Identity) -> Format:
        format = FORMATS.get(identity.format)
        if identity.layout_version != LAYOUT_VERSION or format is None:
            raise UsageReadError(
                f"the dataset at {short(self.location)} has layout {identity.layout_version} and format "
                f"{short(repr(identity.format))}, which this version of the package can't read"
            )
        if identity.compression == format.compression:
            return format
        if format.compression or identity.compression not in COMPRESSIONS:
            raise UsageReadError(
                f"the dataset at {short(self.location)} has compression {short(repr(identity.compression))}, which "
                "this version of the package can't read"
            )
        return Compressed(format, identity.compression)

    def _map(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """Return the results for all items, in order. From an object store several are read at a time."""
        return map_in_threads(function, items, self.max_concurrent_reads)


def _org_id(folder: str) -> str | None:
    """Return the organization of a folder, None if no export makes a folder of this name."""
    org_id = unquote(folder.removeprefix("org_id="))
    with suppress(ValueError):
        if org_id.strip() and partition_of(org_id, "product") == f"{folder}/group_by=product":
            return org_id
    return None


def open_reader(
    output_path: str,
    conn_id: str | None = None,
    cache: RowCache | None = None,
    max_concurrent_reads: int = MAX_CONCURRENT_READS,
) -> UsageReader:
    """
    Return a reader of what exports wrote to ``output_path``: files of any format, or a Delta table.

    :param conn_id: the Airflow connection for an object store; ``s3://conn_id@bucket`` takes precedence.
    :param cache: see :class:`UsageReader`, as for ``max_concurrent_reads``.
    :raises ValueError: if the location can't be used.
    :raises UsageReadError: if nothing is there that can be read as usage.
    :raises OSError: if the store can't be read.
    """
    storage = open_storage(output_path, conn_id)
    try:
        return UsageReader(storage, cache, max_concurrent_reads)
    except UsageReadError:
        with storage_errors(f"could not read {storage.location()}"):
            is_table = holds_table(storage)
        if not is_table:
            raise
    from reducto_provider.export.delta.reader import UsageTableReader

    return UsageTableReader(output_path, conn_id, cache, max_concurrent_reads)


def read_usage(
    output_path: str,
    *,
    org_id: str,
    start: date,
    end: date,
    group_by: str = "product",
    conn_id: str | None = None,
) -> list[UsageRow]:
    """
    Return the rows that were exported of an organization by a dimension, with exact credits, by day.

    :param output_path: that of the export.
    :param start: first day.
    :param end: last day, included.
    :param conn_id: the Airflow connection for an object store; ``s3://conn_id@bucket`` takes precedence.
    :raises ValueError: for bad arguments, see :class:`~reducto_provider.usage.query.UsageQuery`.
    :raises UsageReadError: if a day was never exported, or a file is missing or damaged.
    :raises OSError: if the store can't be read.
    """
    query = UsageQuery(start=start, end=end, org_id=org_id, group_by=group_by)
    reader, days = open_reader(output_path, conn_id), DayRange(query.start, query.end)
    found = reader.exported_days(org_id, group_by, days)
    if absent := [*found.missing(days), *(DayRange(day, day) for day in found.unreadable)]:
        named = ", ".join(map(str, absent[:_MAX_NAMED]))
        more = f" and {len(absent) - _MAX_NAMED} more ranges" if len(absent) > _MAX_NAMED else ""
        raise UsageReadError(
            f"{reader.location} has no manifest that can be read of {named}{more}, of {short(org_id)} by {group_by}: "
            "export these days"
        )
    return reader.rows(org_id, group_by, found.days.values())

"""A partitioned dataset of usage: its layout, and how each day is published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec

from reducto_provider.export import reported
from reducto_provider.export.formats import Format
from reducto_provider.export.manifest import (
    DATASET_FILE,
    InvalidManifestError,
    Manifest,
    checksum,
    holds_table,
    json_file,
    md5_of,
    metadata_folder,
    partition_of,
    settle,
    write_with_manifest,
)
from reducto_provider.export.sink import (
    Changes,
    DatasetMismatchError,
    Filters,
    PublishedFile,
    Sink,
    short,
    storage_errors,
)
from reducto_provider.export.storage import Storage, open_storage
from reducto_provider.export.stored import StoredDays
from reducto_provider.usage.checks import INVALID_JSON
from reducto_provider.usage.days import DayRange, today
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import DailyUsage, UsageReport, format_decimal

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset

Item = TypeVar("Item")
Result = TypeVar("Result")

LAYOUT_VERSION: Final = 1
_MAX_NAMED = 10
_IDENTITY = msgspec.json.Decoder(dict[str, Any])


class UsageDataset(Sink):
    """
    Usage at one location, partitioned by organization, dimension and day::

        data/org_id=<org>/group_by=<dimension>/dt=YYYY-MM-DD/usage.<ext>
        metadata/dataset.json
        metadata/org_id=<org>/group_by=<dimension>/dt=YYYY-MM-DD.json
        metadata/org_id=<org>/group_by=<dimension>/index.json
        metadata/org_id=<org>/group_by=<dimension>/.reported-YYYY

    A day has one file, always of the same name, or none if it had no usage. The manifest is written after the file and
    distinguishes a day without usage from one that was never exported. The dimensions are views of the same usage and
    have separate folders, so that a sum over one never counts twice. The changes reported by successful runs are kept
    per year, see :class:`~reducto_provider.export.reported.ReportedChanges`.
    """

    def __init__(self, storage: Storage, format: Format, filters: Filters) -> None:
        self._storage = storage
        self._format = format
        self._is_described = False
        self._identity = {"layout_version": LAYOUT_VERSION, **format.identity(), "filters": dict(filters)}

    @classmethod
    def open(cls, output_path: str, conn_id: str | None, format: Format, filters: Filters) -> Self:
        return cls(open_storage(output_path, conn_id), format, filters)

    @property
    def location(self) -> str:
        return self._storage.location()

    @property
    def uri(self) -> str:
        return self._storage.uri()

    def check(self, query: UsageQuery | None = None, run: str | None = None) -> None:
        with storage_errors(f"could not read {self._storage.location(DATASET_FILE)}"):
            content = self._storage.read(DATASET_FILE)
            is_table = content is None and holds_table(self._storage)
        if is_table:
            raise DatasetMismatchError(
                f"the dataset at {self._storage.location()} is a Delta table. Use output_format='delta', or export to "
                "another output_path"
            )
        if content is None:
            self._is_described = False
            return
        try:
            found = _IDENTITY.decode(content)
        except INVALID_JSON as error:
            raise DatasetMismatchError(
                f"{self._storage.location(DATASET_FILE)} can't be decoded, so the dataset's format and filters are "
                f"unknown: {error}"
            ) from error
        different = [
            f"{short(name)} is {short(repr(found.get(name)))}, this export's {self._identity.get(name)!r}"
            for name in dict.fromkeys((*self._identity, *found))
            if found.get(name) != self._identity.get(name)
        ]
        if different:
            more = f"; and {len(different) - _MAX_NAMED} more" if len(different) > _MAX_NAMED else ""
            raise DatasetMismatchError(
                f"the dataset at {self._storage.location()} holds something else: {'; '.join(different[:_MAX_NAMED])}"
                f"{more}. Export to another output_path, or remove the dataset first"
            )
        self._is_described = True

    def publish(
        self, report: UsageReport, query: UsageQuery, run: str | None = None, requested_on: date | None = None
    ) -> list[PublishedFile]:
        """
        Publish each day of the report: write its rows, and remove the file of a day without rows.

        A day that has these rows already is not written again. Days published before an error stay.
        """
        filters = self._identity["filters"]
        stored = StoredDays(self._storage, report.org_id, report.group_by, filters, self._format.extension)
        encodable = _encodable_by_day(report, self._format)  # before any write: a format can reject a report
        # A future day has no usage yet: publishing it as a day without usage would be wrong.
        days = [day for day in DayRange(report.start, report.end).days() if day <= today() or day in report.days]
        claimed = not self._is_described and self._ensure_identity()
        with storage_errors(f"could not read {self._storage.location(stored.folder)}"):
            stored.look(days)
        export = _Export(query, run, requested_on or today())
        done = 0

        def publish_day(day: date) -> tuple[Manifest, bool]:
            nonlocal done
            with storage_errors(
                lambda: (
                    f"could not publish {day} of {report.org_id} at {self._storage.location()} ({done} of "
                    f"{len(days)} days are published, each file is whole, and the export can be run again)"
                )
            ):
                published = self._publish_day(stored, day, report.usage_on(day), encodable.get(day, ()), export)
            done += 1
            return published

        def settle_day(manifest: Manifest) -> None:
            with storage_errors(
                f"could not read back {manifest.date} of {report.org_id} at {self._storage.location()} (the export can "
                "be run again)"
            ):
                settle(
                    self._storage,
                    stored.file(manifest.date),
                    stored.manifest_name(manifest.date),
                    lambda: self._write(stored, manifest, self._encode(encodable.get(manifest.date, ()))),
                )

        published = self._in_turn(publish_day, days)
        written = [manifest for manifest, was_written in published if was_written]
        if written:
            with storage_errors(f"could not list {self._storage.location(stored.folder)}"):
                unproven = stored.unproven(written)
            self._in_turn(settle_day, unproven)
            if claimed:
                self.check()  # a store that can't create exclusively may have been claimed twice
        with storage_errors(f"could not write the index in {self._storage.location(stored.folder)}"):
            stored.keep_index([manifest for manifest, _ in published])
        # Read last: what another run published and reported meanwhile may just have been replaced by an older answer.
        reported_changes = self._reported_changes(stored.folder, days)
        return [
            PublishedFile(
                uri=None if manifest.file is None else self._storage.uri(manifest.file),
                day=manifest.date,
                row_count=manifest.row_count,
                size=manifest.bytes,
                changed=manifest.change != reported_changes.get(manifest.date),
                change=manifest.change,
                written=was_written,
            )
            for manifest, was_written in published
        ]

    def acknowledge(self, changes: Changes) -> int:
        by_folder = {
            metadata_folder(*partition): {day: change for day, change in of_partition if day}
            for partition, of_partition in changes.items()
        }
        return reported.acknowledge(self._storage, by_folder)

    def output(self, org_id: str, group_by: str, files: Sequence[PublishedFile] | None) -> OutputDataset:
        from reducto_provider.lineage import files_dataset

        return files_dataset(self._storage, f"data/{partition_of(org_id, group_by)}", self._format.columns(), files)

    def _reported_changes(self, folder: str, days: Iterable[date]) -> dict[date, str]:
        with storage_errors(f"could not read the reported changes in {self._storage.location(folder)}"):
            return reported.ReportedChanges(self._storage, folder).read(days)

    def _ensure_identity(self) -> bool:
        """
        Write the dataset's description if there is none, and check that this export matches it.

        :return: whether this export wrote it, or another one at the same time.
        """
        with storage_errors(f"could not write {self._storage.location(DATASET_FILE)}"):
            self.check()
            if self._is_described:
                return False
            with suppress(FileExistsError):  # another export was faster
                self._storage.create(DATASET_FILE, json_file(self._identity))
        self.check()
        return True

    def _in_turn(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Call a function for each item, as many at a time as the store takes. The first error ends it."""
        if self._storage.max_concurrent_writes == 1 or len(items) <= 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(len(items), self._storage.max_concurrent_writes)) as executor:
            waiting = [executor.submit(function, item) for item in items]
            try:
                return [each.result() for each in waiting]
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise

    def _publish_day(
        self, stored: StoredDays, day: date, usage: DailyUsage, encodable: Sequence[Any], export: _Export
    ) -> tuple[Manifest, bool]:
        """Return the day's manifest, and whether it had to be written."""
        facts: dict[str, Any] = {
            "date": day,
            "rows_sha256": self._format.digest(usage.rows, encodable),
            "row_count": len(usage.rows),
            "credits": None if usage.credits is None else format_decimal(usage.credits),
            "request_count": usage.request_count,
        }
        final = day < export.requested_on
        before = None
        with suppress(InvalidManifestError):  # it is written again
            before = stored.manifest(day)
        is_same = before is not None and all(getattr(before, name) == value for name, value in facts.items())
        if before and is_same and (before.final or not final) and stored.has_file_of(before):
            return before, False
        content = self._encode(encodable)
        manifest = Manifest(
            file=None if content is None else stored.file(day),
            bytes=len(content or b""),
            sha256=checksum(content),
            md5=md5_of(content),
            change=before.change if before and before.rows_sha256 == facts["rows_sha256"] else reported.new_change(),
            final=final,
            query=stored.query(str(export.query.start), str(export.query.end)),
            run=export.run,
            **facts,
        )
        self._write(stored, manifest, content)
        return manifest, True

    def _encode(self, encodable: Sequence[Any]) -> bytes | None:
        """Return the content of a day's file, None for a day without rows."""
        return self._format.encode(encodable, {}) if encodable else None

    def _write(self, stored: StoredDays, manifest: Manifest, content: bytes | None) -> None:
        day = manifest.date
        write_with_manifest(self._storage, stored.file(day), content, stored.manifest_name(day), json_file(manifest))


class _Export(msgspec.Struct, frozen=True):
    """What the manifests of an export have in common."""

    query: UsageQuery
    run: str | None
    requested_on: date


def _encodable_by_day(report: UsageReport, format: Format) -> dict[date, Sequence[Any]]:
    """Return the rows of each day in their encodable form."""
    rows = format.rows(report)
    found = {}
    start = 0
    for day, usage in report.days.items():
        end = start + len(usage.rows)
        found[day] = rows[start:end]
        start = end
    return found

"""A partitioned dataset of usage: its layout, and how each day is published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import date
from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from reducto_provider.export import reported
from reducto_provider.export.formats import Format
from reducto_provider.export.manifest import (
    DATASET_FILE,
    DayManifests,
    Manifest,
    ManifestAttempt,
    checksum,
    holds_table,
    json_file,
    metadata_folder,
    partition_of,
)
from reducto_provider.export.sink import (
    Attempt,
    Changes,
    DatasetMismatchError,
    Filters,
    PublishedDays,
    PublishedFile,
    Sink,
    short,
    storage_errors,
)
from reducto_provider.export.storage import Storage, open_storage
from reducto_provider.usage.checks import INVALID_JSON
from reducto_provider.usage.days import DayRange, today
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport, UsageRow, add_credits, format_decimal, sum_credits

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset

LAYOUT_VERSION: Final = 1
_MAX_NAMED = 10


class UsageDataset(Sink):
    """
    Usage at one location, partitioned by organization, dimension and day::

        data/org_id=<org>/group_by=<dimension>/dt=YYYY-MM-DD/usage.<ext>
        metadata/dataset.json
        metadata/org_id=<org>/group_by=<dimension>/dt=YYYY-MM-DD.json
        metadata/org_id=<org>/group_by=<dimension>/.reported-YYYY

    A day has one file, always of the same name, or none if it had no usage. The manifest is written after the file and
    distinguishes a day without usage from one that was never exported. The dimensions are views of the same usage and
    have separate folders, so that a sum over one never counts twice. The changes reported by successful runs are kept
    per year, see :class:`~reducto_provider.export.reported.ReportedChanges`.
    """

    def __init__(self, storage: Storage, format: Format, filters: Filters) -> None:
        self._storage = storage
        self._format = format
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
            return
        try:
            found = msgspec.json.decode(content, type=dict[str, Any])
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

    def published_before(self, query: UsageQuery, run: str, attempt: Attempt) -> PublishedDays | None:
        manifests = DayManifests(self._storage, str(query.org_id), query.group_by)
        found: dict[date, Manifest] = {}
        for day in DayRange(query.start, query.end).days():
            manifest = manifests.find(day)
            if manifest is None or not manifest.is_of(query, run, attempt):
                return None
            found[day] = manifest
        reported_changes = self._reported_changes(manifests.folder, found)
        return PublishedDays(
            row_count=sum(each.row_count for each in found.values()),
            credits=add_credits(None if each.credits is None else Decimal(each.credits) for each in found.values()),
            request_count=sum(each.request_count for each in found.values()),
            changed={day: each.change for day, each in found.items() if each.change != reported_changes.get(day)},
        )

    def publish(
        self, report: UsageReport, query: UsageQuery, run: str | None = None, attempt: Attempt | None = None
    ) -> list[PublishedFile]:
        """
        Publish each day of the report: write its rows, and remove the file of a day without rows.

        Days published before an error stay.
        """
        manifests = DayManifests(self._storage, report.org_id, report.group_by)
        self.check()
        rows_of = _rows_by_day(report, self._format)  # before any write: a format can reject a report
        # A future day has no usage yet: publishing it as a day without usage would be wrong.
        days = [day for day in DayRange(report.start, report.end).days() if day <= today() or day in rows_of]
        self._ensure_identity()
        done = 0

        def publish_day(day: date) -> PublishedFile:
            nonlocal done
            with storage_errors(
                lambda: (
                    f"could not publish {day} of {report.org_id} at {self._storage.location()} ({done} of "
                    f"{len(days)} days are published, each file is whole, and the export can be run again)"
                )
            ):
                published = self._publish_day(manifests, day, *rows_of.get(day, ((), ())), query, run, attempt)
            done += 1
            return published

        if self._storage.max_concurrent_writes == 1:
            files = [publish_day(day) for day in days]
        else:
            with ThreadPoolExecutor(self._storage.max_concurrent_writes) as executor:
                waiting = [executor.submit(publish_day, day) for day in days]
                try:
                    files = [each.result() for each in waiting]
                except BaseException:
                    executor.shutdown(cancel_futures=True)
                    raise
        self.check()  # a store that can't create exclusively may have been claimed twice
        # Read last: what another run published and reported meanwhile may just have been replaced by an older answer.
        reported_changes = self._reported_changes(manifests.folder, days)
        return [
            replace(file, changed=file.change != reported_changes.get(day))
            for file, day in zip(files, days, strict=True)
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

    def _ensure_identity(self) -> None:
        """Write the dataset's description if there is none, and check that this export matches it."""
        with storage_errors(f"could not write {self._storage.location(DATASET_FILE)}"):
            if self._storage.read(DATASET_FILE) is None:
                with suppress(FileExistsError):  # another export was faster
                    self._storage.create(DATASET_FILE, json_file(self._identity))
        self.check()

    def _publish_day(
        self,
        manifests: DayManifests,
        day: date,
        rows: Sequence[UsageRow],
        encodable: Sequence[Any],
        query: UsageQuery,
        run: str | None,
        attempt: Attempt | None,
    ) -> PublishedFile:
        rows_sha256 = self._format.digest(rows, encodable)
        before = manifests.head(day)
        file = f"data/{manifests.partition}/dt={day}/usage.{self._format.extension}"
        content = self._format.encode(encodable, {}) if rows else None
        credits = sum_credits(rows)
        manifest = Manifest(
            date=day,
            file=None if content is None else file,
            row_count=len(rows),
            bytes=len(content or b""),
            sha256=checksum(content),
            rows_sha256=rows_sha256,
            change=before.change if before and before.rows_sha256 == rows_sha256 else reported.new_change(),
            credits=None if credits is None else format_decimal(credits),
            request_count=sum(row.request_count for row in rows),
            query=query.params(),
            run=run,
            attempt=ManifestAttempt(attempt.number, attempt.fingerprint) if attempt else msgspec.UNSET,
        )
        manifests.publish(file, content, manifest)
        return PublishedFile(
            uri=None if content is None else self._storage.uri(file),
            day=day,
            row_count=manifest.row_count,
            size=manifest.bytes,
            changed=True,  # unless it has been reported
            change=manifest.change,
        )


def _rows_by_day(report: UsageReport, format: Format) -> dict[date, tuple[Sequence[UsageRow], Sequence[Any]]]:
    pairs = zip(report.rows, format.rows(report), strict=True)
    return {
        day: tuple(zip(*group, strict=True))  # type: ignore[misc]  # the rows, and their encodable form
        for day, group in groupby(pairs, key=lambda pair: pair[0].date)
    }

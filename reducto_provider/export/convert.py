"""
Convert a dataset of files to a Delta table.

From the command line, with locations as the operators accept them::

    python -m reducto_provider.export.convert /lake/reducto s3://my_aws_connection@finops-lake/reducto_table

Every file is first compared with its manifest. If one is missing or damaged, there is no table. Each commit then has
a month of a dimension, so that an interrupted conversion continues where it was when it is run again.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Final

from reducto_provider.export.delta.conversion import Conversion, FileDay, Outcome, commit
from reducto_provider.export.delta.location import table_location
from reducto_provider.export.delta.table import UsageDeltaTable
from reducto_provider.export.exported_days import ExportedDay
from reducto_provider.export.focus import FOCUS_FORMATS
from reducto_provider.export.formats import FORMATS, TABLE_FORMAT
from reducto_provider.export.locations import location_argument
from reducto_provider.export.manifest import Manifest, decode_manifest
from reducto_provider.export.reader import MAX_CONCURRENT_READS, MAX_READS, UsageReader, UsageReadError
from reducto_provider.export.reported import ReportedChanges
from reducto_provider.export.sink import Filters, open_sink, storage_errors
from reducto_provider.export.storage import Storage, open_storage
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.report import UsageRow

_ALL_DAYS: Final = DayRange(date.min, date.max)
_MAX_NAMED: Final = 10

# A batch is held in memory and committed at once: the predicate has a condition for each organization.
_MAX_ORGANIZATIONS: Final = 250
_MAX_ROWS: Final = 250_000


@dataclass(frozen=True)
class ConvertedDay:
    """
    A day of all organizations by a dimension.

    :param converted: how many organizations it has been converted of.
    :param present: of how many the table had the same rows already.
    :param newer: of how many it was exported to the table later, and is left as it is there.
    """

    day: date
    group_by: str
    converted: int
    present: int
    newer: int

    def __str__(self) -> str:
        counts = ((self.converted, "converted"), (self.present, "already there"), (self.newer, "newer in the table"))
        return f"{self.day} by {self.group_by}: {', '.join(f'{count} {what}' for count, what in counts if count)}"


def convert_dataset(
    dataset: str, table: str, *, conn_id: str | None = None, table_conn_id: str | None = None
) -> Iterator[ConvertedDay]:
    """
    Convert a dataset of files to a Delta table, and yield each day when it is committed.

    The table gets the dataset's filters. The commits name the runs and queries of the days. A day stays final or not,
    and a change that no successful run has reported will be reported by the next export to the table.

    :param dataset: the ``output_path`` of the files.
    :param table: the ``output_path`` of the table.
    :param conn_id: the Airflow connection for the store of the dataset, and ``table_conn_id`` for that of the table.
    :raises ValueError: if a location can't be used, or the dataset has FOCUS files.
    :raises UsageReadError: if there is no dataset, or files are missing or damaged. Nothing has been written then.
    :raises DatasetMismatchError: if the table's location has something else, or usage with other filters.
    :raises OSError: if a store can't be read or written. What was committed stays; run the conversion again.
    """
    files = _Files(open_storage(dataset, conn_id))
    open_sink(table, table_conn_id, FORMATS[TABLE_FORMAT], files.filters).check()
    months: defaultdict[tuple[date, str], list[tuple[str, list[date]]]] = defaultdict(list)
    for (org_id, group_by), days in sorted(files.verify().items()):
        for month, of_month in groupby(days, key=lambda day: day.replace(day=1)):
            months[month, group_by].append((org_id, list(of_month)))
    place = table_location(table, table_conn_id)
    storage = place.storage
    for (_, group_by), organizations in sorted(months.items()):
        outcomes: defaultdict[date, Counter[Outcome]] = defaultdict(Counter)
        for batch in files.read(group_by, organizations):
            conversions = [Conversion(storage, org_id, group_by, days) for org_id, days in batch.items()]
            with storage_errors(f"could not convert {files.location}; the conversion can be run again"):
                opened = UsageDeltaTable.open_or_create(place.uri, place.options(), storage.location(), files.filters)
                commit(opened, conversions, storage.max_concurrent_writes)
            for conversion in conversions:
                for day, outcome in conversion.outcomes.items():
                    outcomes[day][outcome] += 1
        for day, counts in sorted(outcomes.items()):
            yield ConvertedDay(day, group_by, counts["converted"], counts["present"], counts["newer"])


class _Files:
    """A dataset of files, read by day."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._reader = UsageReader(storage)
        if self._reader.format.name in FOCUS_FORMATS:
            raise ValueError(f"{self.location} has FOCUS files, whose prices and other columns a table does not have")
        self._threads = MAX_CONCURRENT_READS if storage.max_concurrent_writes > 1 else 1

    @property
    def filters(self) -> Filters:
        return self._reader.filters

    @property
    def location(self) -> str:
        return self._reader.location

    def verify(self) -> dict[tuple[str, str], list[date]]:
        """
        Return the exported days of each organization and dimension, in order.

        :raises UsageReadError: naming the files that are missing, damaged or in no manifest.
        """
        problems: list[str] = []
        found: dict[tuple[str, str], list[date]] = {}
        with storage_errors(f"could not list {self.location}"):
            unlisted = set(self._storage.names("data"))
        for org_id, dimensions in self._reader.organizations().items():
            for group_by in dimensions:
                exported = self._reader.exported_days(org_id, group_by, _ALL_DAYS)
                stored = self._reader.stored_days(org_id, group_by)
                names = (self._storage.location(stored.manifest_name(day)) for day in exported.unreadable)
                problems += [f"{name} can't be decoded" for name in names]
                for _, days in groupby(exported.days.values(), key=lambda each: each.day.replace(day=1)):
                    problems += self._damage(org_id, group_by, list(days))
                unlisted -= {stored.file(day) for day in exported.days}
                found[org_id, group_by] = list(exported.days)
        problems += [f"{self._storage.location(name)} is in no manifest" for name in sorted(unlisted)]
        if problems:
            more = f"; and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
            raise UsageReadError(
                f"nothing was converted, since files are missing or damaged: {'; '.join(problems[:_MAX_NAMED])}{more}"
            )
        return found

    def read(
        self, group_by: str, organizations: Sequence[tuple[str, Sequence[date]]]
    ) -> Iterator[dict[str, dict[date, FileDay]]]:
        """Yield the given days of organizations in batches that fit in memory and in one commit."""
        batch: dict[str, dict[date, FileDay]] = {}
        row_count = 0
        for org_id, days in organizations:
            batch[org_id] = self._read(org_id, group_by, days)
            row_count += sum(len(each.rows) for each in batch[org_id].values())
            if len(batch) == _MAX_ORGANIZATIONS or row_count > _MAX_ROWS:
                yield batch
                batch, row_count = {}, 0
        if batch:
            yield batch

    def _damage(self, org_id: str, group_by: str, exported: Sequence[ExportedDay]) -> list[str]:
        """Return what is wrong with the files of these days."""
        try:
            self._reader.rows(org_id, group_by, exported)
        except UsageReadError as error:
            if len(exported) == 1:
                return [str(error)]
            return [problem for each in exported for problem in self._damage(org_id, group_by, [each])]
        return []

    def _read(self, org_id: str, group_by: str, days: Sequence[date]) -> dict[date, FileDay]:
        folder = self._reader.stored_days(org_id, group_by).folder
        with storage_errors(f"could not read the reported changes in {self._storage.location(folder)}"):
            reported = ReportedChanges(self._storage, folder).read(days)
        with ThreadPoolExecutor(self._threads) as executor:
            found = executor.map(lambda day: self._read_day(org_id, group_by, day), days)
            return {
                day: FileDay(manifest, rows, is_reported=reported.get(day) == manifest.change)
                for day, (manifest, rows) in zip(days, found, strict=True)
            }

    def _read_day(self, org_id: str, group_by: str, day: date) -> tuple[Manifest, list[UsageRow]]:
        """Return the manifest of a day and its rows, both of the same export."""
        for _ in range(MAX_READS):
            content = self._reader.manifest(org_id, group_by, day)
            if content is None:
                break
            manifest = decode_manifest(content)
            rows = self._reader.rows(org_id, group_by, [ExportedDay.from_manifest(manifest)])
            if self._reader.manifest(org_id, group_by, day) == content:
                return manifest, rows
        raise UsageReadError(f"{day} of {org_id} by {group_by} at {self.location} changes while it is read")


def main(arguments: list[str] | None = None) -> int:
    """Convert a dataset, and print each day. Return 1 if that fails."""
    parser = argparse.ArgumentParser(prog="python -m reducto_provider.export.convert", description=main.__doc__)
    parser.add_argument("dataset", type=location_argument, help="the output_path of the files")
    parser.add_argument("table", type=location_argument, help="the output_path of the Delta table")
    parser.add_argument("--conn-id", help="the Airflow connection for the object store of the dataset")
    parser.add_argument("--table-conn-id", help="the Airflow connection for the object store of the table")
    options = parser.parse_args(arguments)
    converted = present = newer = 0
    try:
        for day in convert_dataset(
            options.dataset, options.table, conn_id=options.conn_id, table_conn_id=options.table_conn_id
        ):
            print(day, flush=True)
            converted, present, newer = converted + day.converted, present + day.present, newer + day.newer
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"In all: {converted} converted, {present} already there, {newer} newer in the table")
    return 0


if __name__ == "__main__":
    sys.exit(main())

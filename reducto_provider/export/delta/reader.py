"""Read a Delta table of usage back: its rows, and which of its days were exported."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal

import msgspec

from reducto_provider.export.delta.commits import Days
from reducto_provider.export.delta.journal import FOLDER, NOTHING_RECORDED, Day, Journal, Year
from reducto_provider.export.delta.location import table_location
from reducto_provider.export.delta.table import UsageDeltaTable
from reducto_provider.export.exported_days import ExportedDay, ExportedDays
from reducto_provider.export.formats import FORMATS, TABLE_FORMAT, Format
from reducto_provider.export.manifest import json_file
from reducto_provider.export.reader import (
    MAX_CONCURRENT_READS,
    MAX_READS,
    RowCache,
    UsageReader,
    UsageReadError,
)
from reducto_provider.export.sink import DatasetMismatchError, short, storage_errors
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.report import DailyUsage, UsageRow


class UsageTableReader(UsageReader):
    """
    A reader of the Delta table at one location. Every method may be called in several threads at once.

    The totals of a day are those that its export recorded after the commit. If an export was killed before it recorded
    its commit, the totals of the year are computed from the rows, and days that are not as recorded are not final.
    """

    _folder = FOLDER
    _table: UsageDeltaTable

    def __init__(
        self,
        output_path: str,
        conn_id: str | None = None,
        cache: RowCache | None = None,
        max_concurrent_reads: int = MAX_CONCURRENT_READS,
    ) -> None:
        try:
            self._place = table_location(output_path, conn_id)
        except ImportError as error:
            raise UsageReadError(str(error)) from error
        super().__init__(self._place.storage, cache, max_concurrent_reads)

    def exported_days(self, org_id: str, group_by: str, days: DayRange) -> ExportedDays:
        journal = Journal(self._storage, org_id, group_by)
        with storage_errors(f"could not read the exported days of {short(org_id)} at {self.location}"):
            table, counts, recorded = self._recorded(journal, days)
            found = {day: _exported(day, each) for year in recorded.values() for day, each in year.days.items()}
            for year, count in counts.items():
                if recorded[year].commit != count:
                    found |= self._computed(table, org_id, group_by, year, recorded[year].days)
        return ExportedDays(
            days={day: each for day, each in sorted(found.items()) if days.first <= day <= days.last},
            span=DayRange(min(found), max(found)) if found else None,
        )

    def indexed_days(self, org_id: str, group_by: str, days: DayRange) -> None:
        """Return None: a table has no index, and needs none, since a year is one record."""

    def rows(self, org_id: str, group_by: str, exported: Iterable[ExportedDay]) -> list[UsageRow]:
        expected = {each.day: each for each in exported}
        found: dict[date, list[UsageRow]] = {}
        folder = Journal(self._storage, org_id, group_by).folder
        for read in range(MAX_READS):
            absent = {}
            for day, each in expected.items():
                if each.sha256 is None:
                    found[day] = []
                elif (cached := self._cache.find(f"{folder}/{day}", each.sha256)) is not None:
                    found[day] = cached
                elif day not in found:
                    absent[day] = each.sha256
            if absent:
                with storage_errors(f"could not read {self.location}"):
                    by_day = self._table.read_rows([Days.of(org_id, group_by, sorted(absent))])
                for day, rows in by_day.get((org_id, group_by), {}).items():
                    if self._digest(rows) == absent[day]:
                        self._cache.add(f"{folder}/{day}", absent[day], rows)
                        found[day] = rows
            differing = sorted(absent.keys() - found.keys())
            if not differing:
                return [row for day in expected for row in found[day]]
            # They were exported again since, or something else has altered the table.
            time.sleep(min(0.02 * 2**read, 0.2))
            self._table = self._open()
            again = self.exported_days(org_id, group_by, DayRange(differing[0], differing[-1]))
            expected |= {day: each for day, each in again.days.items() if day in differing}
        raise UsageReadError(
            f"the rows of {differing[0]} of {short(org_id)} by {group_by} at {self.location} are not those that were "
            "exported: export the day again"
        )

    def manifest(self, org_id: str, group_by: str, day: date) -> bytes | None:
        """Return the record of a day as JSON, None if there is none."""
        journal = Journal(self._storage, org_id, group_by)
        with storage_errors(f"could not read the exported days of {short(org_id)} at {self.location}"):
            found = journal.read(day.year).days.get(day)
        return None if found is None else json_file({"date": day, **msgspec.to_builtins(found)})

    def _read_identity(self) -> tuple[Format, Mapping[str, Sequence[str]]]:
        self._table = self._open()
        try:
            return FORMATS[TABLE_FORMAT], self._table.filters
        except DatasetMismatchError as error:
            raise UsageReadError(str(error)) from error

    def _open(self) -> UsageDeltaTable:
        """Return the newest version of the table."""
        try:
            with storage_errors(f"could not read {self.location}"):
                table = UsageDeltaTable.open(self._place.uri, self._place.options(), self.location)
        except DatasetMismatchError as error:
            raise UsageReadError(str(error)) from error
        if table is None:
            raise UsageReadError(f"there is no Delta table at {self.location}")
        return table

    def _recorded(self, journal: Journal, days: DayRange) -> tuple[UsageDeltaTable, dict[int, int], dict[int, Year]]:
        """Return the table, how many commits it has counted of each year of ``days``, and all that is recorded."""
        years_of_days = range(days.first.year, days.last.year + 1)
        for read in range(MAX_READS):
            table = self._table
            years = sorted({*journal.years(), *years_of_days})
            recorded = {
                year: found if found.table == table.id else NOTHING_RECORDED
                for year, found in zip(years, self._map(journal.read, years), strict=True)
            }
            counts = {year: table.commit_count(journal.counter(year)) for year in years_of_days}
            if all(recorded[year].commit <= count for year, count in counts.items()):
                break
            # They were exported since the table was opened.
            time.sleep(min(0.02 * 2**read, 0.2))
            self._table = self._open()
        return table, counts, recorded

    def _computed(
        self, table: UsageDeltaTable, org_id: str, group_by: str, year: int, recorded: Mapping[date, Day]
    ) -> dict[date, ExportedDay]:
        """Return the exported days of a year by its rows, since its last commit is not recorded."""
        whole_year = Days(org_id, group_by, ((date(year, 1, 1), date(year, 12, 31)),))
        rows_of = table.read_rows([whole_year]).get((org_id, group_by), {})
        found = {}
        for day in {*rows_of, *recorded}:
            usage = DailyUsage(tuple(rows_of.get(day, ())))
            sha256 = self._digest(usage.rows)
            if day in recorded and recorded[day].rows_sha256 == sha256:
                found[day] = _exported(day, recorded[day])
            else:
                found[day] = ExportedDay(
                    day=day,
                    row_count=len(usage.rows),
                    credits=usage.credits,
                    request_count=usage.request_count,
                    is_final=False,
                    exported_at="",
                    run=None,
                    sha256=sha256,
                )
        return found

    def _digest(self, rows: Sequence[UsageRow]) -> str | None:
        return self.format.digest(rows, rows)


def _exported(day: date, recorded: Day) -> ExportedDay:
    return ExportedDay(
        day=day,
        row_count=recorded.row_count,
        credits=None if recorded.credits is None else Decimal(recorded.credits),
        request_count=recorded.request_count,
        is_final=recorded.final,
        exported_at=recorded.exported_at,
        run=None,
        sha256=recorded.rows_sha256,
    )

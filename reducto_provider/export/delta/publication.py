"""A report on its way into a Delta table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from itertools import groupby
from typing import TYPE_CHECKING

from msgspec import structs

from reducto_provider.export.delta.commits import Days, ExportRecord
from reducto_provider.export.delta.journal import Day, Journal, Year
from reducto_provider.export.formats import Format
from reducto_provider.export.reported import new_change
from reducto_provider.export.storage import Storage
from reducto_provider.usage.days import DayRange, today
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport, UsageRow, format_decimal

if TYPE_CHECKING:
    import pyarrow as pa


class Publication:
    """
    A report to publish, compared with what the table holds of its days.

    :param requested_on: the day on which the report was requested. The days before it were over.
    """

    def __init__(
        self,
        report: UsageReport,
        query: UsageQuery,
        run: str | None,
        requested_on: date,
        *,
        format: Format,
        storage: Storage,
    ) -> None:
        self.report = report
        self.journal = Journal(storage, report.org_id, report.group_by)
        self.is_done = False
        self.error: BaseException | None = None
        self._query = query
        self._run = run
        self._requested_on = requested_on
        self._format = format
        # A future day has no usage yet: publishing it as a day without usage would be wrong.
        days = [day for day in DayRange(report.start, report.end).days() if day <= today() or day in report.days]
        self.days = Days.of(report.org_id, report.group_by, days)
        self._digests = {day: self._digest(report.usage_on(day).rows) for day in days}
        self._years: dict[int, Year] = {}
        self._recorded: dict[date, Day] = {}
        self._changed: list[date] = []
        self._counts: dict[int, int] = {}
        self._table_id = ""

    @property
    def partition(self) -> tuple[str, str]:
        return self.report.org_id, self.report.group_by

    @property
    def counters(self) -> Mapping[int, str]:
        """By year, under what the table counts its commits."""
        return {year: self.journal.counter(year) for year in self._years}

    def load(self) -> None:
        """Read what is known of the days."""
        self._years = {year: self.journal.read(year) for year in sorted({day.year for day in self._digests})}

    def compare(self, table: str, counts: Mapping[str, int], rows: Mapping[date, Sequence[UsageRow]]) -> None:
        """
        Find out which days have changed.

        :param table: the id of the table.
        :param counts: those of :attr:`counters`.
        :param rows: those in the table, by day.
        """
        self._table_id = table
        self._counts = {year: counts[counter] for year, counter in self.counters.items()}
        for year, count in self._counts.items():
            if self._years[year].commit != count:  # others have replaced other days of the year since it was read
                self._years[year] = self.journal.read(year)
        known = {
            day: each
            for year, recorded in self._years.items()
            for day, each in recorded.known_at(table, self._counts[year]).items()
        }
        self._changed = []
        for day, digest in self._digests.items():
            recorded = self._day(day, new_change())
            if self._digest(rows.get(day, ())) != digest:
                self._changed.append(day)
            elif day in known and known[day].rows_sha256 == digest:
                recorded = structs.replace(recorded, change=known[day].change)
                if recorded.final == known[day].final:
                    recorded = structs.replace(recorded, exported_at=known[day].exported_at)
            self._recorded[day] = recorded

    def replaces(self, day: date) -> bool:
        """Return whether the commit replaces the rows of a day."""
        return day in self._changed

    @property
    def export_record(self) -> ExportRecord | None:
        """What the commit says of it, None if no day has changed."""
        if not self._changed:
            return None
        ranges = Days.of(*self.partition, self._changed).ranges
        return ExportRecord(*self.partition, self._run, self._query.params(), list(ranges))

    @property
    def new_counts(self) -> Mapping[str, int]:
        """The counts of the years with changed days, once they are committed."""
        return {self.journal.counter(year): self._counts[year] + 1 for year in {day.year for day in self._changed}}

    def arrow_table(self) -> pa.Table:
        """Return the rows of the changed days."""
        from reducto_provider.export.formats.parquet import arrow_table

        keys = {"org_id": self.report.org_id, "group_by": self.report.group_by}
        return arrow_table([row for day in self._changed for row in self.report.usage_on(day).rows], keys)

    def record(self) -> Mapping[date, Day]:
        """Record the exported days, and return them."""
        changed_years = {day.year for day in self._changed}
        for year, days in groupby(self._recorded, key=lambda day: day.year):
            committed = year in changed_years
            self.journal.record(
                year,
                self._table_id,
                self._counts[year] + committed,
                {day: self._recorded[day] for day in days},
                committed=committed,
            )
        return self._recorded

    def _day(self, day: date, change: str) -> Day:
        usage = self.report.usage_on(day)
        return Day(
            rows_sha256=self._digests[day],
            change=change,
            row_count=len(usage.rows),
            credits=None if usage.credits is None else format_decimal(usage.credits),
            request_count=usage.request_count,
            final=day < self._requested_on,
            exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _digest(self, rows: Sequence[UsageRow]) -> str | None:
        return self._format.digest(rows, rows)

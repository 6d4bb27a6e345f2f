"""Commit days that were exported as files to a Delta table, as they were published."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from itertools import repeat
from typing import TYPE_CHECKING, Final, Literal

from reducto_provider.export.delta.commits import Days, ExportRecord
from reducto_provider.export.delta.journal import Day, Journal
from reducto_provider.export.delta.table import ConflictError, UsageDeltaTable
from reducto_provider.export.formats import FORMATS, TABLE_FORMAT
from reducto_provider.export.formats.parquet import arrow_table
from reducto_provider.export.manifest import Manifest
from reducto_provider.export.reported import ReportedChanges
from reducto_provider.export.storage import Storage
from reducto_provider.usage.report import DailyUsage, UsageRow, format_decimal

if TYPE_CHECKING:
    import pyarrow as pa

Outcome = Literal["converted", "present", "newer"]
"""``present``: the table has these rows already. ``newer``: it has others, which were exported to it later."""

_MAX_COMMITS: Final = 30
_MAX_PAUSE: Final = 2.0


@dataclass(frozen=True)
class FileDay:
    """
    A day of a dataset of files.

    :param is_reported: whether a successful run has reported its last change.
    """

    manifest: Manifest
    rows: Sequence[UsageRow]
    is_reported: bool


class Conversion:
    """Days of an organization by a dimension, all of one year, on their way into a table."""

    def __init__(self, storage: Storage, org_id: str, group_by: str, days: Mapping[date, FileDay]) -> None:
        self.partition = org_id, group_by
        self.days = Days.of(org_id, group_by, sorted(days))
        self.outcomes: dict[date, Outcome] = {}
        self._journal = Journal(storage, org_id, group_by)
        self._reported = ReportedChanges(storage, self._journal.folder)
        self._days = dict(sorted(days.items()))
        self._digests = {day: _digest(each.rows) for day, each in self._days.items()}
        [self._year] = {day.year for day in days}
        self._replaced: list[date] = []
        self._known: Mapping[date, Day] = {}
        self._table_id = ""
        self._count = 0

    def compare(self, table: UsageDeltaTable, rows: Mapping[date, Sequence[UsageRow]]) -> None:
        """
        Find out which days the table lacks.

        :param rows: those in the table, by day.
        """
        self._table_id, self._count = table.id, table.commit_count(self._journal.counter(self._year))
        recorded = self._journal.read(self._year)
        exported = recorded.days if recorded.table == table.id else {}
        self._known = recorded.known_at(table.id, self._count)
        self._replaced = []
        for day, each in self._days.items():
            digest = self._digests[day]
            if _digest(rows.get(day, ())) == digest:
                self.outcomes[day] = "present" if self._is_recorded(day) else "converted"
            elif day in exported:
                is_newer = exported[day].exported_at > each.manifest.exported_at
                self.outcomes[day] = "newer" if is_newer else "converted"
            else:  # rows that are not recorded are of an export that was killed after its commit
                self.outcomes[day] = "newer" if day in rows else "converted"
            if self.outcomes[day] == "converted" and _digest(rows.get(day, ())) != digest:
                self._replaced.append(day)

    @property
    def export_records(self) -> list[ExportRecord]:
        """What the commit says: for each run that exported some of its days to files, which ones."""
        days_of: dict[tuple[str | None, tuple[tuple[str, str], ...]], list[date]] = {}
        for day in self._replaced:
            manifest = self._days[day].manifest
            days_of.setdefault((manifest.run, tuple(manifest.query)), []).append(day)
        return [
            ExportRecord(*self.partition, run, list(query), list(Days.of(*self.partition, days).ranges))
            for (run, query), days in days_of.items()
        ]

    @property
    def new_count(self) -> dict[str, int]:
        """The count of the year's commits, once this is committed."""
        return {self._journal.counter(self._year): self._count + 1}

    def arrow_table(self) -> pa.Table:
        """Return the rows to commit."""
        org_id, group_by = self.partition
        rows = [row for day in self._replaced for row in self._days[day].rows]
        return arrow_table(rows, {"org_id": org_id, "group_by": group_by})

    def record(self) -> None:
        """Record the days as exported, and which of their changes have been reported."""
        converted = {day: self._day(day) for day, outcome in self.outcomes.items() if outcome == "converted"}
        if converted:
            committed = bool(self._replaced)
            self._journal.record(self._year, self._table_id, self._count + committed, converted, committed=committed)
        reported = {}
        for day, each in self._days.items():
            recorded = converted.get(day) or self._known.get(day)
            if each.is_reported and recorded and recorded.change == each.manifest.change:
                reported[day] = each.manifest.change
        self._reported.add(reported)

    def _is_recorded(self, day: date) -> bool:
        known = self._known.get(day)
        return (
            known is not None
            and known.rows_sha256 == self._digests[day]
            and (known.final or not self._days[day].manifest.final)
        )

    def _day(self, day: date) -> Day:
        manifest, usage = self._days[day].manifest, DailyUsage(tuple(self._days[day].rows))
        return Day(
            rows_sha256=self._digests[day],
            change=manifest.change,
            row_count=len(usage.rows),
            credits=None if usage.credits is None else format_decimal(usage.credits),
            request_count=usage.request_count,
            final=manifest.final,
            exported_at=manifest.exported_at,
        )


def commit(table: UsageDeltaTable, conversions: Sequence[Conversion], max_threads: int) -> None:
    """
    Commit the days that the table lacks, and record them. If it lacks none, nothing is committed.

    :param max_threads: how many conversions to compare and record at a time.
    :raises TimeoutError: if others keep committing the same days.
    """
    for number in range(_MAX_COMMITS):
        time.sleep(number and random.uniform(0, min(_MAX_PAUSE, 0.02 * 2**number)))  # noqa: S311
        table.update()
        rows = table.read_rows([each.days for each in conversions])
        with ThreadPoolExecutor(max_threads) as threads:
            of_each = [rows.get(each.partition, {}) for each in conversions]
            list(threads.map(Conversion.compare, conversions, repeat(table), of_each))
        changed = [each for each in conversions if each.export_records]
        try:
            if changed:
                table.replace(
                    [each.arrow_table() for each in changed],
                    [record for each in changed for record in each.export_records],
                    {counter: count for each in changed for counter, count in each.new_count.items()},
                )
        except ConflictError as error:
            conflict = error
            continue
        with ThreadPoolExecutor(max_threads) as threads:
            list(threads.map(Conversion.record, conversions))
        return
    raise TimeoutError(f"{_MAX_COMMITS} commits in a row have conflicted with others: {conflict}")


def _digest(rows: Sequence[UsageRow]) -> str | None:
    return FORMATS[TABLE_FORMAT].digest(rows, rows)

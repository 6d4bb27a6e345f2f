"""Keep a table fast: few files for each month and dimension, and no files that no version needs."""

from __future__ import annotations

import logging
from calendar import monthrange
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from reducto_provider.export.delta.location import table_location
from reducto_provider.export.delta.table import ConflictError, DataFile, UsageDeltaTable
from reducto_provider.usage.checks import check_whole_number
from reducto_provider.usage.days import DayRange, today

COMMITS_BETWEEN: Final = 20
"""Every so many commits, the export that made the last of them compacts a month."""

MIN_AGE_DAYS: Final = 40
"""Younger days are still restated: an export of days in a compacted file conflicts with any other of that file."""

MAX_FILES: Final = 8
"""A month and dimension with more files is compacted."""

_MAX_FILES_AT_ONCE: Final = 500
_LARGE_FILE: Final = 64 * 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compaction:
    """
    What was compacted.

    :param files: how many files were replaced.
    :param months_left: the dimensions, and first days of months, that still have many files, since exports changed the
        table while they were compacted.
    """

    files: int
    months_left: tuple[tuple[str, date], ...]


def compact_table(output_path: str, conn_id: str | None = None) -> Compaction:
    """
    Compact all months of a table that have many files, except for the youngest days.

    Exports may run at the same time: a month that conflicts with them is left for the next time.

    :raises FileNotFoundError: if there is no table.
    :raises DatasetMismatchError: if the table is not one of usage.
    """
    table = UsageDeltaTable.open_existing(table_location(output_path, conn_id))
    total = 0
    left: list[tuple[str, date]] = []
    while due := find_due(table.data_files(), today(), left):
        replaced = compact(table, *due)
        if replaced > 0:
            total += replaced
            continue
        group_by, days = due
        left.append((group_by, days.first.replace(day=1)))
        log.warning(
            "Exports changed the Delta table while %s by %s was compacted, so it still has many files: run the upkeep "
            "again",
            days,
            group_by,
        )
        table.update()
    return Compaction(total, tuple(left))


def vacuum_table(output_path: str, conn_id: str | None = None, *, keep_days: int | None = None) -> list[str]:
    """
    Remove the files that no version of the last ``keep_days`` days needs.

    :param keep_days: None for the ten years that the table's history is kept. Versions before can't be read any more.
    :return: the names of the removed files.
    :raises ValueError: if ``keep_days`` is less than one: readers and exports may still use such files.
    :raises FileNotFoundError: if there is no table.
    :raises DatasetMismatchError: if the table is not one of usage.
    """
    if keep_days is not None:
        check_whole_number("keep_days", keep_days, 1)
    return UsageDeltaTable.open_existing(table_location(output_path, conn_id)).vacuum(keep_days)


def compact_oldest(open_table: Callable[[], UsageDeltaTable | None]) -> None:
    """Compact the oldest month that has many files. An error is only logged: the export has succeeded."""
    try:
        if (table := open_table()) and (due := find_due(table.data_files(), today())):
            compact(table, *due)
    except Exception as error:  # noqa: BLE001
        log.warning("Could not compact the Delta table: %s. The next try is after %d commits", error, COMMITS_BETWEEN)


def compact(table: UsageDeltaTable, group_by: str, days: DayRange) -> int:
    """
    Write the rows of a dimension's days as one file, unless an export is faster.

    :return: how many files were replaced.
    """
    before = len(table.data_files())
    try:
        table.compact(group_by, days.first, days.last)
    except ConflictError:
        return 0
    return before - len(table.data_files())


def find_due(files: list[DataFile], day: date, left: Collection[tuple[str, date]] = ()) -> tuple[str, DayRange] | None:
    """
    Return the oldest dimension's days that have many files, at most a month; None if none has.

    :param left: dimensions, and first days of months, to leave out.
    """
    small = [file for file in files if file.size < _LARGE_FILE]
    last = day - timedelta(days=MIN_AGE_DAYS + 1)
    for group_by in sorted({file.group_by for file in small}):
        of_dimension = [file for file in small if file.group_by == group_by]
        for month in _months(min(file.first for file in of_dimension), last):
            found = [file for file in of_dimension if file.overlaps(month)]
            if len(found) > MAX_FILES and (group_by, month.first) not in left:
                return group_by, max(_parts(month, found), key=lambda part: sum(file.overlaps(part) for file in found))
    return None


def _parts(month: DayRange, files: list[DataFile]) -> Iterator[DayRange]:
    """Split a month so that each part has few enough files to be compacted at once, or is one day."""
    part = DayRange(month.first, month.first)
    for day in list(month.days())[1:]:
        longer = DayRange(part.first, day)
        if sum(file.overlaps(longer) for file in files) > _MAX_FILES_AT_ONCE:
            yield part
            longer = DayRange(day, day)
        part = longer
    yield part


def _months(first: date, last: date) -> Iterator[DayRange]:
    """Yield the months that are over by ``last``, from that of ``first`` on."""
    start = first.replace(day=1)
    while (end := start.replace(day=monthrange(start.year, start.month)[1])) <= last:
        yield DayRange(start, end)
        start = end + timedelta(days=1)

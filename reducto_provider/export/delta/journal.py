"""The days that were exported to a Delta table: a file per organization, dimension and year, under ``_reducto/``."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from typing import Annotated, Final

import msgspec
from msgspec import structs

from reducto_provider.export.manifest import Count, partition_of
from reducto_provider.export.reported import Change, new_change
from reducto_provider.export.storage import Storage
from reducto_provider.usage.checks import INVALID_JSON
from reducto_provider.usage.report import CREDITS_SCALE

FOLDER: Final = "_reducto"
"""Hidden by its name: engines skip it, and vacuum leaves it alone."""

_MAX_WRITES = 10
_FILE_NAME = re.compile(r"(\d{4})\.json", re.ASCII)

# Printing some of the numbers that no export writes would exhaust memory.
PlainNumber = Annotated[str, msgspec.Meta(pattern=rf"(?a)^\d{{1,60}}(\.\d{{1,{CREDITS_SCALE}}})?\Z")]


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is known of an exported day.

    :param rows_sha256: of its rows, None without usage.
    :param final: whether the day was over when it was requested.
    :param exported_at: when the rows, or whether they are final, last changed, in ISO 8601.
    """

    rows_sha256: str | None
    change: Change
    row_count: Count
    credits: PlainNumber | None
    request_count: Count
    final: bool
    exported_at: str


class Year(msgspec.Struct, frozen=True):
    """
    The exported days of a year, and the number of the last commit that replaced any of them.

    The table itself counts these commits. If its count differs, a writer was killed after its commit, or others have
    committed since: the change ids are then not known to be those of the rows.

    :param table: the id of the table. One that was made anew counts from the start.
    """

    table: str
    commit: int
    days: dict[date, Day]

    def known_at(self, table: str, commit: int) -> Mapping[date, Day]:
        """Return the days if this is what was recorded after that commit, else none."""
        return self.days if (self.table, self.commit) == (table, commit) else {}


_YEAR = msgspec.json.Decoder(Year)

NOTHING_RECORDED: Final = Year("", 0, {})


class Journal:
    """The exported days of an organization by a dimension."""

    def __init__(self, storage: Storage, org_id: str, group_by: str) -> None:
        self.folder = f"{FOLDER}/{partition_of(org_id, group_by)}"
        self._storage = storage

    def counter(self, year: int) -> str:
        """Return the id under which the table counts the commits of a year, as Delta's transactions of applications."""
        return f"{self.folder}/{year:04}"

    def years(self) -> list[int]:
        """Return the years of which days are recorded, in order."""
        names = (name.removeprefix(f"{self.folder}/") for name in self._storage.names(self.folder))
        return [int(match[1]) for name in names if (match := _FILE_NAME.fullmatch(name))]

    def read(self, year: int) -> Year:
        """Return what is known of a year. A file that can't be decoded is ignored, and replaced by the next export."""
        content = self._storage.read(self._name(year))
        with suppress(*INVALID_JSON):
            return NOTHING_RECORDED if content is None else _YEAR.decode(content)
        return NOTHING_RECORDED

    def record(self, year: int, table: str, commit: int, days: Mapping[date, Day], *, committed: bool) -> None:
        """
        Record exported days.

        :param table: the id of the table.
        :param commit: the number of the year's last commit.
        :param committed: whether these days were replaced by that commit. If not, they were there as they are.
        """
        for write in range(_MAX_WRITES):
            found = self.read(year)
            if found.table != table:
                found = Year(table, 0, {})
            # Each number is of one commit, so that nobody else has recorded this one.
            if found.commit in (commit, commit - committed):
                merged = {**found.days, **days}
            elif found.commit < commit:  # the writer of a commit between them was killed
                merged = {
                    **{day: structs.replace(each, change=new_change()) for day, each in found.days.items()},
                    **days,
                }
            else:  # others have committed since: what they recorded is newer
                merged = {**days, **found.days}
            recorded = Year(table, max(found.commit, commit), dict(sorted(merged.items())))
            if recorded == found:
                return
            time.sleep(write and random.uniform(0, 0.02 * 2**write))  # noqa: S311
            self._storage.replace(self._name(year), msgspec.json.encode(recorded))
            # Read again: another export may have overwritten it without these days.

    def _name(self, year: int) -> str:
        return f"{self.folder}/{year:04}.json"

"""The commits of a table of usage: what they say of themselves, and which of them make a report outdated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Self

import msgspec

from reducto_provider import __version__
from reducto_provider.export.storage import Storage
from reducto_provider.usage.checks import INVALID_JSON

# What others may commit without a change of any row.
_KEEPS_ROWS = {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "CREATE TABLE", "ADD CONSTRAINT"}


@dataclass(frozen=True)
class Days:
    """Some days of an organization by a dimension."""

    org_id: str
    group_by: str
    ranges: tuple[tuple[date, date], ...]
    """First and last day of each, both included."""

    @classmethod
    def of(cls, org_id: str, group_by: str, days: Sequence[date]) -> Days:
        """Return sorted days as ranges."""
        ranges: list[tuple[date, date]] = []
        for day in days:
            if ranges and day - ranges[-1][1] == timedelta(days=1):
                ranges[-1] = (ranges[-1][0], day)
            else:
                ranges.append((day, day))
        return cls(org_id, group_by, tuple(ranges))

    def overlap(self, other: Days) -> bool:
        """Return whether both have a day in common."""
        return (self.org_id, self.group_by) == (other.org_id, other.group_by) and any(
            first <= other_last and other_first <= last
            for first, last in self.ranges
            for other_first, other_last in other.ranges
        )

    def predicate(self) -> str:
        """Return the SQL condition for the rows of these days."""
        of_days = " OR ".join(f"(date >= '{first}' AND date <= '{last}')" for first, last in self.ranges)
        return f"(group_by = {sql_literal(self.group_by)} AND org_id = {sql_literal(self.org_id)} AND ({of_days}))"


class ExportRecord(msgspec.Struct, frozen=True):
    """
    What a commit says of an export in it.

    :param run: identifies the exporting task instance: DAG, run, task and map index.
    :param replaced: first and last day of each range whose rows it replaced.
    """

    org_id: str
    group_by: str
    run: str | None
    query: list[tuple[str, str]]
    replaced: list[tuple[date, date]]

    @property
    def days(self) -> Days:
        return Days(self.org_id, self.group_by, tuple(self.replaced))


class CommitRecord(msgspec.Struct, frozen=True):
    """What a commit says of itself in ``userMetadata``, which ``DESCRIBE HISTORY`` shows."""

    exports: list[ExportRecord]
    package_version: str = __version__

    def as_text(self) -> str:
        return msgspec.json.encode(self).decode()


class _Action(msgspec.Struct):
    commit_info: dict[str, Any] | None = msgspec.field(default=None, name="commitInfo")


@dataclass(frozen=True)
class Commit:
    """A commit of a table's history. ``replaced`` is None if it may have changed any row."""

    version: int
    replaced: tuple[Days, ...] | None

    @classmethod
    def read(cls, storage: Storage, version: int) -> Self:
        """
        Read a commit from the table's log.

        ``DeltaTable.history`` does the same, but keeps all other Python threads waiting for the store.
        """
        content = storage.read(f"_delta_log/{version:020}.json") or b""
        with suppress(*INVALID_JSON):
            for action in _ACTIONS.decode_lines(content):
                if action.commit_info:
                    return cls(version, _replaced_by(action.commit_info))
        return cls(version, None)

    def may_overlap(self, days: Days) -> bool:
        """Return whether it may have changed rows of these days."""
        return self.replaced is None or any(each.overlap(days) for each in self.replaced)


class OtherCommits:
    """
    The commits of others since reports were requested.

    :param version: the table's version before any request, -1 if there was no table; None if it is not known, so that
        what was committed before the first look counts as older.
    """

    def __init__(self, storage: Storage, version: int | None = None) -> None:
        self.own: set[int] = set()
        self._storage = storage
        self._read_up_to = version
        self._replaced: list[Commit] = []
        self._requested_at: dict[tuple[str, str], int] = {}

    def read_up_to(self, version: int) -> None:
        """Read the commits up to a version of the table."""
        start = version if self._read_up_to is None else self._read_up_to
        new = [each for each in range(start + 1, version + 1) if each not in self.own]
        commits = [Commit.read(self._storage, each) for each in new]
        self._replaced += [each for each in commits if each.replaced != ()]
        self._read_up_to = version

    def find_newer(self, days: Days) -> Commit | None:
        """Return a commit that has replaced some of these days since their report was requested, None if none has."""
        partition = days.org_id, days.group_by
        requested_at = self._requested_at.get(partition, -1)
        for commit in self._replaced:
            if commit.version > requested_at and commit.may_overlap(days):
                self._requested_at[partition] = self._replaced[-1].version  # the report will be requested again
                return commit
        return None


_ACTIONS = msgspec.json.Decoder(_Action)

_RECORD = msgspec.json.Decoder(CommitRecord)


def _replaced_by(entry: Mapping[str, Any]) -> tuple[Days, ...] | None:
    if entry.get("operation") in _KEEPS_ROWS:
        return ()
    try:
        record = _RECORD.decode(entry.get("userMetadata") or "")
    except INVALID_JSON:
        return None
    return tuple(export.days for export in record.exports)


def sql_literal(text: str) -> str:
    """Return foreign text as an SQL literal. Only the quote has a meaning in it."""
    return "'" + text.replace("'", "''") + "'"

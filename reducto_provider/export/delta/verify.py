"""Verify a table against its journals: that every exported day is there, as it was published."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from urllib.parse import unquote

from reducto_provider.export.delta.commits import Days
from reducto_provider.export.delta.journal import FOLDER, Day, Journal
from reducto_provider.export.delta.location import TEMPORARY, table_location
from reducto_provider.export.delta.table import UsageDeltaTable
from reducto_provider.export.formats import FORMATS, TABLE_FORMAT
from reducto_provider.export.storage import Storage
from reducto_provider.export.verify import Problem, Verification, gaps

_NAME = re.compile(rf"{FOLDER}/org_id=([^/]+)/group_by=([^/]+)/(?:(\d{{4}})\.json|\.reported-\d{{4}})", re.ASCII)

Partition = tuple[str, str]


def verify_table(output_path: str, conn_id: str | None = None) -> Verification:
    """
    Check every exported day of the table, and that all of its files are there.

    :raises DatasetMismatchError: if the table is not one of usage.
    :raises OSError: also anything else the store raises when it can't be read.
    """
    place = table_location(output_path, conn_id)
    storage, table = place.storage, UsageDeltaTable.open_existing(place)
    files = table.file_names()
    present = {name for folder in {name.partition("/")[0] for name in files} for name in storage.names(folder)}
    exported, problems = _journals(storage)
    if lost := sorted(set(files) - present):
        problems += [Problem("missing", name, "the table lists it, and can't be read without it") for name in lost]
    else:
        problems += _compare(table, exported)
    for partition, days in sorted(exported.items()):
        for gap in gaps(list(days)):
            detail = "the day was never exported" if gap.length == 1 else f"{gap} were never exported"
            problems.append(Problem("missing", _name(partition, gap.first), detail))
    return Verification(days=sum(map(len, exported.values())), files=len(files), problems=tuple(problems))


def _journals(storage: Storage) -> tuple[dict[Partition, dict[date, Day]], list[Problem]]:
    """Return the exported days of each organization and dimension, and what is not a journal."""
    exported: defaultdict[Partition, dict[date, Day]] = defaultdict(dict)
    problems = []
    for name in storage.names(FOLDER):
        match = _NAME.fullmatch(name)
        if match is None:
            if not name.endswith(TEMPORARY):
                problems.append(Problem("unknown", name, "it does not list the exported days of anything"))
        elif year := match[3]:
            partition = unquote(match[1]), match[2]
            days = Journal(storage, *partition).read(int(year)).days
            if not days:
                problems.append(Problem("unreadable", name, "it can't be decoded, or lists no days"))
            exported[partition] |= days
    return exported, problems


def _compare(table: UsageDeltaTable, exported: dict[Partition, dict[date, Day]]) -> Iterator[Problem]:
    for (org_id, group_by), day in sorted(table.days_with_rows()):
        if day not in exported.get((org_id, group_by), {}):
            yield Problem("unknown", _name((org_id, group_by), day), "it has rows, but no export is recorded")
    format = FORMATS[TABLE_FORMAT]
    for partition, days in sorted(exported.items()):
        for year in sorted({day.year for day in days}):
            of_year = Days.of(*partition, sorted(day for day in days if day.year == year))
            rows = table.read_rows([of_year]).get(partition, {})
            for day, known in sorted(days.items()):
                if day.year != year or format.digest(rows.get(day, ()), rows.get(day, ())) == known.rows_sha256:
                    continue
                detail = f"{len(rows.get(day, ()))} rows, not the {known.row_count} published"
                yield Problem("altered" if day in rows else "missing", _name(partition, day), detail)


def _name(partition: Partition, day: date) -> str:
    org_id, group_by = partition
    return f"{org_id} by {group_by} on {day}"

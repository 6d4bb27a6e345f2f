"""A fleet of organizations: which partitions an export of it writes, and what became of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec

from reducto_provider.export.dataset import PublishedDays, metadata_folder, partition_of
from reducto_provider.usage.fields import is_literal
from reducto_provider.usage.query import DIMENSIONS, UsageQuery, check_text
from reducto_provider.usage.report import add_credits, json_number, plain

Status = Literal["exported", "exported before", "failed"]

MOST_CHANGED_DAYS: Final = 31
"""How many changed days of an organization a result lists, the latest ones."""

LONGEST_MESSAGE: Final = 500
"""How many characters of an error a result holds."""

_MOST_NAMED = 10
_ENTRY_FIELDS = {"org_id", "reducto_conn_id"}


@dataclass(frozen=True)
class FleetEntry:
    """One organization by one dimension, asked for by one connection."""

    org_id: str
    group_by: str
    conn_id: str

    def __str__(self) -> str:
        return f"{self.org_id} by {self.group_by}"


def is_literal_fleet(organizations: object) -> bool:
    """Whether organizations are final, not a template or another task's result."""
    several = organizations if isinstance(organizations, list | tuple) else (organizations,)
    return all(is_literal(list(each.values()) if isinstance(each, Mapping) else each) for each in several)


def parse_fleet(organizations: object, group_by: object, conn_id: str) -> list[FleetEntry]:
    """
    What to export, in the order given.

    :param organizations: several, or JSON text of them: each an id, or ``org_id`` and ``reducto_conn_id``.
    :param group_by: one dimension or several.
    :param conn_id: the connection of organizations that name none.
    :raises ValueError: naming the field, the value and the remedy; also for what would be written twice.
    """
    dimensions = [group_by] if isinstance(group_by, str) and not group_by.startswith("[") else group_by
    entries = [
        FleetEntry(org_id, _dimension(dimension), each_conn_id)
        for org_id, each_conn_id in (_organization(each, conn_id) for each in _several("organizations", organizations))
        for dimension in _several("group_by", dimensions)
    ]
    partitions = [partition_of(entry.org_id, entry.group_by) for entry in entries]
    if len(set(partitions)) < len(partitions):
        twice = list(dict.fromkeys(str(e) for e, p in zip(entries, partitions, strict=True) if partitions.count(p) > 1))
        raise ValueError(f"organizations and group_by must name nothing twice: {_enumerate(twice)}")
    return entries


def split_query(query: UsageQuery, days: int) -> Iterator[UsageQuery]:
    """The same question in parts of at most so many days, in order."""
    start = query.start
    while start <= query.end:
        end = min(query.end, start + timedelta(days=days - 1))
        yield replace(query, start=start, end=end)
        start = end + timedelta(days=1)


@dataclass
class FleetOutcome:
    """What became of an entry. It holds no report and no exception, which would hold one."""

    entry: FleetEntry
    status: Status = "exported before"
    row_count: int = 0
    credits: Decimal | None = Decimal(0)
    request_count: int = 0
    changed: Mapping[date, str] = field(default_factory=dict)
    """The latest of the days that changed, and each one's change."""
    changed_day_count: int = 0
    error: str | None = None
    hopeless: bool = False
    """Whether it failed for a reason that no retry can mend."""

    def add(self, days: PublishedDays) -> None:
        """Count in what was published."""
        self.row_count += days.row_count
        self.credits = add_credits((self.credits, days.credits))
        self.request_count += days.request_count
        self.changed = dict([*self.changed.items(), *days.changed.items()][-MOST_CHANGED_DAYS:])
        self.changed_day_count += len(days.changed)

    def fail(self, error: str, *, hopeless: bool) -> None:
        """Note why not all of it could be published."""
        self.status = "failed"
        self.error = _cut(error, LONGEST_MESSAGE)
        self.hopeless = hopeless

    def __str__(self) -> str:
        if self.status == "failed":
            return f"{self.entry} failed: {self.error}"
        credits = "no figure of" if self.credits is None else plain(self.credits)
        return (
            f"{self.entry} {self.status}: {credits} credits in {self.request_count} requests "
            f"({self.row_count} rows, {self.changed_day_count} days changed)"
        )

    def as_json(self) -> dict[str, Any]:
        """For XCom: plain JSON values. What failed has no figures, since they would not be those of all days."""
        failed = self.status == "failed"
        return {
            "org_id": self.entry.org_id,
            "reducto_conn_id": self.entry.conn_id,
            "group_by": self.entry.group_by,
            "status": self.status,
            "row_count": None if failed else self.row_count,
            "credits": None if failed or self.credits is None else json_number(self.credits),
            "request_count": None if failed else self.request_count,
            "changed_day_count": self.changed_day_count,
            "changed_days": [day.isoformat() for day in self.changed],
            "error": self.error,
        }


def fleet_result(query: UsageQuery, outcomes: Sequence[FleetOutcome], max_bytes: int) -> dict[str, Any]:
    """
    What goes to XCom, at most so many bytes: of the organizations those that failed come first, then those with changed
    days, and as many as fit.

    ``exported`` and ``failed`` count all of them, ``organizations_left_out`` those that did not fit.
    """
    failed = failures(outcomes)
    result: dict[str, Any] = {
        "usage_start_date": query.start.isoformat(),
        "usage_end_date": query.end.isoformat(),
        "exported": len(outcomes) - len(failed),
        "failed": len(failed),
        "organizations": [],
        "organizations_left_out": len(outcomes),
    }
    size = len(msgspec.json.encode(result))
    for outcome in sorted(outcomes, key=_order):
        entry = outcome.as_json()
        size += len(msgspec.json.encode(entry)) + 1
        if size > max_bytes:
            break
        result["organizations"].append(entry)
        result["organizations_left_out"] -= 1
    return result


def reported_changes(result: Mapping[str, Any], outcomes: Iterable[FleetOutcome]) -> dict[str, Mapping[date, str]]:
    """Return the changes that a result names: of each folder of manifests its days. Those left out are not reported."""
    named = {(each["org_id"], each["group_by"]) for each in result["organizations"]}
    return {
        metadata_folder(each.entry.org_id, each.entry.group_by): each.changed
        for each in outcomes
        if each.changed and (each.entry.org_id, each.entry.group_by) in named
    }


def failures(outcomes: Iterable[FleetOutcome]) -> list[FleetOutcome]:
    """Those that failed."""
    return [each for each in outcomes if each.status == "failed"]


def describe_failures(outcomes: Sequence[FleetOutcome]) -> str:
    """What failed and why, in words for a person on call; the first ones of many."""
    failed = failures(outcomes)
    named = [f"{each.entry} ({_cut(each.error or '', 200)})" for each in failed]
    return f"{len(failed)} of {len(outcomes)} could not be exported: {_enumerate(named)}"


def _order(outcome: FleetOutcome) -> tuple[bool, bool]:
    return outcome.status != "failed", not outcome.changed


def _several(name: str, value: object) -> Sequence[Any]:
    given = value
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except ValueError:
            raise ValueError(
                f"{name} must be several, or JSON text of them, not {_cut(repr(given), 80)}: render a list with "
                "'| tojson', or set render_template_as_native_obj=True on the DAG"
            ) from None
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be several, not {_cut(repr(given), 80)}")
    if not (values := list(value)):
        raise ValueError(f"{name} is empty: name at least one")
    return values


def _organization(value: object, conn_id: str) -> tuple[str, str]:
    if not isinstance(value, Mapping):
        return check_text("org_id", value), conn_id
    if "org_id" not in value or not value.keys() <= _ENTRY_FIELDS:
        raise ValueError(
            "each of organizations must be an id, or have org_id and perhaps reducto_conn_id, not "
            + _cut(repr(value), 80)
        )
    return check_text("org_id", value["org_id"]), check_text("reducto_conn_id", value.get("reducto_conn_id", conn_id))


def _dimension(value: object) -> str:
    if value not in DIMENSIONS:
        raise ValueError(f"group_by must be one or several of {', '.join(DIMENSIONS)}, not {_cut(repr(value), 80)}")
    return str(value)


def _enumerate(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return "; ".join(texts[:_MOST_NAMED]) + more


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."

"""A fleet of organizations: the partitions its export writes, and the outcome of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec

from reducto_provider.export.manifest import partition_of
from reducto_provider.export.sink import Changes, PublishedFile
from reducto_provider.usage.checks import INVALID_JSON, check_single_name
from reducto_provider.usage.fields import is_literal
from reducto_provider.usage.query import DIMENSIONS, UsageQuery
from reducto_provider.usage.report import UsageReport, format_decimal, json_number, sum_amounts

Status = Literal["exported", "failed"]

MAX_CHANGED_DAYS: Final = 31
"""Maximum number of changed days a result lists for an organization: the latest ones."""

MAX_MESSAGE_LENGTH: Final = 500
"""Maximum number of characters of an error in a result."""

_MAX_NAMED = 10
_ENTRY_FIELDS = {"org_id", "reducto_conn_id"}
_JSON = msgspec.json.Decoder()


@dataclass(frozen=True)
class FleetEntry:
    """One organization by one dimension, read through one connection."""

    org_id: str
    group_by: str
    conn_id: str

    def __str__(self) -> str:
        return f"{self.org_id} by {self.group_by}"


def is_literal_fleet(organizations: object) -> bool:
    """Return whether organizations are literal, not a template or another task's result."""
    values = organizations if isinstance(organizations, list | tuple) else (organizations,)
    return all(is_literal(list(each.values()) if isinstance(each, Mapping) else each) for each in values)


def parse_fleet(organizations: object, group_by: object, conn_id: str) -> list[FleetEntry]:
    """
    Return what to export, in the given order.

    :param organizations: a list or its JSON text. Each item is an id, or has ``org_id`` and ``reducto_conn_id``.
    :param group_by: one dimension or a list of them.
    :param conn_id: the connection of organizations that name none.
    :raises ValueError: naming the field, the value and the remedy; also for duplicates.
    """
    dimensions = [group_by] if isinstance(group_by, str) and not group_by.startswith("[") else group_by
    entries = [
        FleetEntry(org_id, _dimension(dimension), each_conn_id)
        for org_id, each_conn_id in (_organization(each, conn_id) for each in _as_list("organizations", organizations))
        for dimension in _as_list("group_by", dimensions)
    ]
    partitions = [partition_of(entry.org_id, entry.group_by) for entry in entries]
    if len(set(partitions)) < len(partitions):
        twice = list(dict.fromkeys(str(e) for e, p in zip(entries, partitions, strict=True) if partitions.count(p) > 1))
        raise ValueError(f"organizations and group_by must not contain duplicates: {_enumerate(twice)}")
    return entries


def split_query(query: UsageQuery, days: int) -> Iterator[UsageQuery]:
    """Split a query into parts of at most ``days`` days, in order."""
    start = query.start
    while start <= query.end:
        end = min(query.end, start + timedelta(days=days - 1))
        yield replace(query, start=start, end=end)
        start = end + timedelta(days=1)


@dataclass
class FleetOutcome:
    """The outcome of an entry. It keeps no report, and no exception, whose traceback would keep one."""

    entry: FleetEntry
    status: Status = "exported"
    row_count: int = 0
    credits: Decimal | None = Decimal(0)
    request_count: int = 0
    changed: Mapping[date, str] = field(default_factory=dict)
    """The latest changed days and their change ids."""
    changed_day_count: int = 0
    error: str | None = None
    permanent: bool = False
    """Whether a retry can't fix the failure."""

    def add(self, report: UsageReport, files: Sequence[PublishedFile]) -> None:
        """Add a published report to the totals."""
        changed = {file.day: file.change for file in files if file.day and file.changed}
        self.row_count += len(report.rows)
        self.credits = sum_amounts((self.credits, report.credits))
        self.request_count += report.request_count
        self.changed = dict([*self.changed.items(), *changed.items()][-MAX_CHANGED_DAYS:])
        self.changed_day_count += len(changed)

    def fail(self, error: str, *, permanent: bool) -> None:
        """Record the failure."""
        self.status = "failed"
        self.error = _cut(error, MAX_MESSAGE_LENGTH)
        self.permanent = permanent

    def __str__(self) -> str:
        if self.status == "failed":
            return f"{self.entry} failed: {self.error}"
        credits = "an unknown number of" if self.credits is None else format_decimal(self.credits)
        return (
            f"{self.entry} {self.status}: {credits} credits in {self.request_count} requests "
            f"({self.row_count} rows, {self.changed_day_count} days changed)"
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for XCom. A failed entry has no figures: they would not cover all days."""
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
    Return the XCom result, at most ``max_bytes`` long.

    It lists as many organizations as fit: failed ones first, then those with changed days. ``exported`` and ``failed``
    count all of them, ``organizations_left_out`` those that did not fit.
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


def reported_changes(result: Mapping[str, Any], outcomes: Iterable[FleetOutcome]) -> Changes:
    """Return the changes that a result lists. Organizations left out are not reported."""
    listed = {(each["org_id"], each["group_by"]) for each in result["organizations"]}
    return {
        (each.entry.org_id, each.entry.group_by): each.changed.items()
        for each in outcomes
        if each.changed and (each.entry.org_id, each.entry.group_by) in listed
    }


def failures(outcomes: Iterable[FleetOutcome]) -> list[FleetOutcome]:
    """Return the failed outcomes."""
    return [each for each in outcomes if each.status == "failed"]


def describe_failures(outcomes: Sequence[FleetOutcome]) -> str:
    """Return what failed and why, for a person on call. Only the first ones are named."""
    failed = failures(outcomes)
    named = [f"{each.entry} ({_cut(each.error or '', 200)})" for each in failed]
    return f"{len(failed)} of {len(outcomes)} could not be exported: {_enumerate(named)}"


def _order(outcome: FleetOutcome) -> tuple[bool, bool]:
    return outcome.status != "failed", not outcome.changed


def _as_list(name: str, value: object) -> Sequence[Any]:
    given = value
    if isinstance(value, str):
        try:
            value = _JSON.decode(value)
        except INVALID_JSON:
            raise ValueError(
                f"{name} must be a list or its JSON text, not {_cut(repr(given), 80)}: render a list with "
                "'| tojson', or set render_template_as_native_obj=True on the DAG"
            ) from None
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list, not {_cut(repr(given), 80)}")
    if not (values := list(value)):
        raise ValueError(f"{name} is empty: name at least one")
    return values


def _organization(value: object, conn_id: str) -> tuple[str, str]:
    if not isinstance(value, Mapping):
        return check_single_name("org_id", value), conn_id
    if "org_id" not in value or not value.keys() <= _ENTRY_FIELDS:
        raise ValueError(
            "each organization must be an id, or a dict of org_id and optionally reducto_conn_id, not "
            + _cut(repr(value), 80)
        )
    return check_single_name("org_id", value["org_id"]), check_single_name(
        "reducto_conn_id", value.get("reducto_conn_id", conn_id)
    )


def _dimension(value: object) -> str:
    if value not in DIMENSIONS:
        raise ValueError(f"group_by must be one or more of {', '.join(DIMENSIONS)}, not {_cut(repr(value), 80)}")
    return str(value)


def _enumerate(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _MAX_NAMED} more" if len(texts) > _MAX_NAMED else ""
    return "; ".join(texts[:_MAX_NAMED]) + more


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."

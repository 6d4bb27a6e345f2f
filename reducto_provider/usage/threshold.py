"""When a threshold is exceeded: one pure decision, shared by the sensor in all its modes and by its trigger."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal

import msgspec

from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import (
    CreditsUnavailableError,
    UsageReport,
    UsageRow,
    json_number,
    plain,
    sum_credits,
)
from reducto_provider.usage.window import DayRange

Metric = Literal["credits", "requests"]
METRICS: Final = ("credits", "requests")
Outcome = Literal["exceeded", "closed", "waiting"]

MAX_FAILED_POLLS: Final = 5
"""Polls in a row that may fail for a passing reason before a wait ends; the hook's attempts within one don't count."""

_THRESHOLD_RANGE = (Decimal("1e-9"), Decimal("1e29"))  # what credits are kept to: nothing lies between it and 0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """
    What a metric came to, and what it was held against.

    ``window`` is the whole period in UTC days, also while it is still running. ``group`` is the one that the
    value belongs to when groups are looked at one by one, else None. ``time`` is when it was read, in UTC.
    """

    metric: Metric
    value: Decimal
    threshold: Decimal
    window: DayRange
    org_id: str
    group_by: str
    group: str | None
    time: datetime

    @property
    def exceeded(self) -> bool:
        """Strictly more than the threshold."""
        return self.value > self.threshold

    def as_json(self) -> dict[str, Any]:
        """The reading as plain JSON values, for XCom and events: numbers as numbers, days as yyyy-mm-dd."""
        return {
            "metric": self.metric,
            "value": json_number(self.value),
            "threshold": json_number(self.threshold),
            "exceeded": self.exceeded,
            "usage_start_date": self.window.first.isoformat(),
            "usage_end_date": self.window.last.isoformat(),
            "org_id": self.org_id,
            "group_by": self.group_by,
            "group": self.group,
            "time": self.time.isoformat(timespec="seconds"),
        }

    @classmethod
    def from_json(cls, content: object) -> Reading:
        """
        The reading that :meth:`as_json` was made of, but for digits that a JSON number does not hold.

        :raises ValueError: for anything else.
        """
        sent = msgspec.convert(content, _JsonReading)
        value, threshold = Decimal(str(sent.value)), Decimal(str(sent.threshold))
        if not (value.is_finite() and threshold.is_finite() and sent.time.tzinfo):
            raise ValueError(f"not a reading: {content!r}")
        return cls(
            metric=sent.metric,
            value=value,
            threshold=threshold,
            window=DayRange(sent.usage_start_date, sent.usage_end_date),
            org_id=sent.org_id,
            group_by=sent.group_by,
            group=sent.group,
            time=sent.time,
        )

    def __str__(self) -> str:
        of = f"{self.org_id}, {self.group_by} {self.group!r}" if self.group is not None else self.org_id
        share = f" ({self.value / self.threshold:.1%})" if self.threshold else ""
        return f"{of}, {self.window}: {plain(self.value)} of {plain(self.threshold)} {self.metric}{share}"


class _JsonReading(msgspec.Struct):
    metric: Metric
    value: int | float
    threshold: int | float
    exceeded: bool
    usage_start_date: date
    usage_end_date: date
    org_id: str
    group_by: str
    group: str | None
    time: datetime


@dataclass(frozen=True, kw_only=True)
class UsageThreshold:
    """
    What somebody waits for: that ``metric``, over the days of ``query``, exceeds ``threshold``.

    :param query: the whole window, which may reach into the future, and what of the usage counts.
    :param metric: ``credits`` or ``requests``.
    :param threshold: 0 or more; to exceed it is strictly more.
    :param per_group: hold each group against the threshold by itself, instead of their sum.
    :param settle_days: days after the window's end in which restatements may still come.
    """

    query: UsageQuery
    metric: Metric
    threshold: Decimal
    per_group: bool = False
    settle_days: int = 0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {self.metric!r}")

    @property
    def window(self) -> DayRange:
        return DayRange(self.query.start, self.query.end)

    def query_at(self, time: datetime) -> UsageQuery:
        """
        The query to send at a moment: days to come are left out. Nothing can have been used on them, and a
        service that shortens such a range would answer for another than was asked for.
        """
        return replace(self.query, end=max(self.query.start, min(self.query.end, time.astimezone(UTC).date())))

    def read(self, report: UsageReport, time: datetime) -> Reading:
        """
        Hold a report against the threshold.

        :param time: when the report was asked for.
        :raises CreditsUnavailableError: when credits are needed and the service sent none for some row.
        """
        groups: dict[str | None, list[UsageRow]] = {}
        for row in report.rows:
            groups.setdefault(row.group if self.per_group else None, []).append(row)
        group, value = None, Decimal(0)
        for each, rows in groups.items():
            if (amount := _amount(rows, self.metric, report.org_id)) > value:
                group, value = each, amount
        return Reading(
            metric=self.metric,
            value=value,
            threshold=self.threshold,
            window=self.window,
            org_id=report.org_id,
            group_by=report.group_by,
            group=group,
            time=time,
        )

    def outcome(self, reading: Reading) -> Outcome:
        """
        What a reading means for who waits.

        ``closed``: the threshold is not exceeded, and when it was read the window had lain in the past for more
        than ``settle_days``: usage can't grow any more, bar restatements.
        """
        if reading.exceeded:
            return "exceeded"
        days_past = (reading.time.astimezone(UTC).date() - self.window.last).days
        return "closed" if days_past > self.settle_days else "waiting"


def parse_threshold(value: object) -> Decimal:
    """
    A threshold as authors and templates give it: a number, or a number as text, 0 or more.

    :raises ValueError: for anything else, text that rendered to nothing included.
    """
    if not isinstance(value, bool) and isinstance(value, int | float | Decimal | str):
        try:
            number = Decimal(str(value).strip())
            if number == 0 or _THRESHOLD_RANGE[0] <= number < _THRESHOLD_RANGE[1]:
                return number.copy_abs()
        except InvalidOperation:  # not a number, or NaN, which compares with nothing
            pass
    raise ValueError(f"threshold must be a number, 0 or more, not {value!r}; does its template render to one?")


def _amount(rows: list[UsageRow], metric: Metric, org_id: str) -> Decimal:
    if metric == "requests":
        return Decimal(sum(row.request_count for row in rows))
    if (total := sum_credits(rows)) is None:
        raise CreditsUnavailableError(
            f"Reducto sends no credits for organization {org_id}, as for accounts on its newer pricing: wait for "
            "metric='requests' instead"
        )
    return total

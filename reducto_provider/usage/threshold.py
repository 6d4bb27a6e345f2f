"""Decide whether a threshold is exceeded, for the sensor in all its modes and for the triggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal, localcontext
from heapq import nlargest
from typing import Any, Final, Literal, get_args

import msgspec

from reducto_provider.usage.checks import INVALID_JSON, check_number
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.fields import QUERY_FIELDS, check_both_days, is_run_days, parse_query
from reducto_provider.usage.projection import MIN_COMPLETE_DAYS, first_day_of_history, project
from reducto_provider.usage.query import UsageQuery, printable
from reducto_provider.usage.report import EXACT, Metric, UsageReport, format_decimal, json_number
from reducto_provider.usage.run import Run
from reducto_provider.usage.window import days_of_run, days_of_window

METRICS: Final = get_args(Metric)
Outcome = Literal["exceeded", "closed", "waiting"]

RUN_FIELDS: Final = ("window", "threshold", "metric", "per_group", "projected", "settle_days", *QUERY_FIELDS)
"""The arguments of a sensor that :meth:`UsageThreshold.from_run` takes."""

# Credits are multiples of the first. Below the second a number fits into 64 bits: Airflow can't pass a longer integer
# to a task, and PostgreSQL turns large floats into integers.
_MIN_THRESHOLD = Decimal("1e-9")
_THRESHOLD_LIMIT = Decimal("1e18")


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """
    The value of a metric, and the threshold that it is compared with.

    ``value`` is the usage so far (``used``), or if ``projected`` the projected usage of the whole window. ``window`` is
    the whole period in UTC days, including days to come. ``group`` is the group of the value if groups are compared
    one by one, else None. ``time`` is when it was read, in UTC.
    """

    metric: Metric
    value: Decimal
    used: Decimal
    projected: bool
    threshold: Decimal
    window: DayRange
    org_id: str
    group_by: str
    group: str | None
    time: datetime

    @property
    def exceeded(self) -> bool:
        """Whether the value is more than the threshold. A value equal to the threshold does not exceed it."""
        return self.value > self.threshold

    def has_room_for(self, reserve: Decimal) -> bool:
        """Return whether the value and ``reserve`` together do not exceed the threshold."""
        with localcontext(EXACT):
            return self.value + reserve <= self.threshold

    def describe_room(self, reserve: Decimal) -> str:
        """Return the reading, ``reserve`` and whether they are within the budget, in one line for the log."""
        return f"{self.with_reserve(reserve)}: {'within' if self.has_room_for(reserve) else 'over'} the budget"

    def with_reserve(self, reserve: Decimal) -> str:
        """Return the reading and ``reserve``, as they are in the log."""
        return f"{self}, and {format_decimal(reserve)} in reserve" if reserve else str(self)

    def as_json(self) -> dict[str, Any]:
        """Return the reading as JSON values, for XCom and events: numbers as numbers, days as yyyy-mm-dd."""
        return {
            "metric": self.metric,
            "value": json_number(self.value),
            "used": json_number(self.used),
            "projected": self.projected,
            "threshold": json_number(self.threshold),
            "exceeded": self.exceeded,
            "usage_start_date": self.window.first.isoformat(),
            "usage_end_date": self.window.last.isoformat(),
            "org_id": without_nul(self.org_id),
            "group_by": self.group_by,
            "group": None if self.group is None else without_nul(self.group),
            "time": self.time.isoformat(timespec="seconds"),
        }

    @classmethod
    def from_json(cls, content: object) -> Reading:
        """
        Return the reading that :meth:`as_json` describes, as exactly as JSON numbers allow.

        :raises ValueError: for any other content.
        """
        try:
            sent = _READING.decode(msgspec.json.encode(content))
        except (*INVALID_JSON, TypeError) as error:
            raise ValueError(str(error)) from error
        value, used, threshold = (Decimal(str(number)) for number in (sent.value, sent.used, sent.threshold))
        if not (value.is_finite() and used.is_finite() and threshold.is_finite() and sent.time.tzinfo):
            raise ValueError(f"not a reading: {content!r}")
        return cls(
            metric=sent.metric,
            value=value,
            used=used,
            projected=sent.projected,
            threshold=threshold,
            window=DayRange(sent.usage_start_date, sent.usage_end_date),
            org_id=sent.org_id,
            group_by=sent.group_by,
            group=sent.group,
            time=sent.time,
        )

    def __str__(self) -> str:
        owner = printable(self.org_id)
        if self.group is not None:
            owner += f", {self.group_by} {self.group!r}"
        share = f" ({self.value / self.threshold:.1%})" if self.threshold else ""
        value = (
            f"{format_decimal(self.used)} used, {format_decimal(self.value)} projected"
            if self.projected
            else format_decimal(self.value)
        )
        return f"{owner}, {self.window}: {value} of {format_decimal(self.threshold)} {self.metric}{share}"


def without_nul(text: str) -> str:
    """Return foreign text without NUL, which PostgreSQL's JSON refuses: an event with it would end the triggerer."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


class _JsonReading(msgspec.Struct):
    metric: Metric
    value: int | float
    used: int | float
    projected: bool
    threshold: int | float
    exceeded: bool
    usage_start_date: date
    usage_end_date: date
    org_id: str
    group_by: str
    group: str | None
    time: datetime


_READING = msgspec.json.Decoder(_JsonReading)


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageThreshold:
    """
    The condition that ``metric``, over the days of ``query``, exceeds ``threshold``.

    :param query: the whole window, which may reach into the future, and the filters.
    :param metric: ``credits`` or ``requests``.
    :param threshold: 0 or more. A value equal to the threshold does not exceed it.
    :param per_group: compare each group with the threshold, instead of their sum.
    :param projected: compare the projected usage of the whole window with the threshold, see :meth:`read`.
    :param settle_days: days after its end during which a day, and so the window, may still be restated.
    :raises ValueError: for an unknown metric.
    """

    query: UsageQuery
    metric: Metric
    threshold: Decimal
    per_group: bool = False
    projected: bool = False
    settle_days: int = 0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {self.metric!r}")

    @classmethod
    def from_run(
        cls,
        get_run: Callable[[], Run],
        *,
        window: str | int,
        threshold: object,
        metric: Metric,
        per_group: bool,
        projected: bool,
        settle_days: int = 0,
        moment: datetime | None = None,
        **fields: object,
    ) -> UsageThreshold:
        """
        Return the condition of a task in a DAG run, from its rendered arguments.

        :param get_run: returns the DAG run. Called only if the days depend on it.
        :param moment: the time that the calendar or trailing window contains; by default that of the run.
        :param fields: those of :data:`QUERY_FIELDS`. Without days, those of ``window``.
        :raises NoDayEndedError: if the run covers no day.
        :raises ValueError: for an invalid argument, naming it.
        """
        check_both_days(fields)
        check_one_window(window, fields["usage_start_date"])
        if fields["usage_start_date"] is None:
            fields["usage_start_date"], fields["usage_end_date"] = days_of_window(window, get_run(), moment=moment)
        elif is_run_days(fields):
            fields["usage_start_date"], fields["usage_end_date"] = days_of_run(get_run())
        return cls(
            query=parse_query(**{name: fields[name] for name in QUERY_FIELDS}),
            metric=metric,
            threshold=parse_threshold(threshold),
            per_group=per_group,
            projected=projected,
            settle_days=settle_days,
        )

    @property
    def window(self) -> DayRange:
        return DayRange(self.query.start, self.query.end)

    @property
    def query_with_history(self) -> UsageQuery:
        """The query of the window, and if ``projected`` of the weeks before that a projection is made from."""
        if not self.projected:
            return self.query
        return replace(self.query, start=first_day_of_history(self.window, self.settle_days))

    def query_at(self, time: datetime) -> UsageQuery | None:
        """
        Return the query to send at a moment, or None before the window begins.

        It leaves out days in the future: they have no usage, and a service that shortens such a range would not echo
        the range of the query. When the window is over, nothing is projected, and history is left out.
        """
        day = time.astimezone(UTC).date()
        if day < self.query.start:
            return None
        return self.query if day > self.query.end else replace(self.query_with_history, end=day)

    def read(self, report: UsageReport, time: datetime) -> Reading:
        """
        Compare a report with the threshold.

        If ``projected`` the value is that of :func:`~reducto_provider.usage.projection.project`. Where it makes none,
        and when the window is over, the value is what was used.

        :param report: the answer to :meth:`query_at`.
        :param time: when the request was sent.
        :raises CreditsUnavailableError: when credits are needed and the service sent none for some row.
        """
        [largest] = self.read_largest(report, time, 1)
        return largest

    def read_largest(self, report: UsageReport, time: datetime, count: int) -> list[Reading]:
        """
        Return the readings of up to ``count`` groups, the largest first; a single one without ``per_group``.

        The parameters and errors are those of :meth:`read`.
        """
        used = report.amounts(self.metric, per_group=self.per_group, since=self.window.first)
        projections: Mapping[str | None, Decimal] = {}
        if self.projected and self._is_running(time):
            projections = project(
                report,
                self.metric,
                per_group=self.per_group,
                window=self.window,
                today=time.astimezone(UTC).date(),
                settle_days=self.settle_days,
            )
        values = {**used, **projections}
        return [
            Reading(
                metric=self.metric,
                value=values.get(group, Decimal(0)),
                used=used.get(group, Decimal(0)),
                projected=group in projections,
                threshold=self.threshold,
                window=self.window,
                org_id=report.org_id,
                group_by=report.group_by,
                group=group if values.get(group) else None,
                time=time,
            )
            for group in nlargest(count, values, key=values.__getitem__) or [None]
        ]

    def _is_running(self, time: datetime) -> bool:
        return self.window.first <= time.astimezone(UTC).date() <= self.window.last

    def outcome(self, reading: Reading) -> Outcome:
        """
        Return what a reading means for a sensor.

        ``closed``: the threshold is not exceeded, and at the time of the reading the window had been over for more
        than ``settle_days``. Its usage no longer grows, except by restatements.
        """
        if reading.exceeded:
            return "exceeded"
        days_past = (reading.time.astimezone(UTC).date() - self.window.last).days
        return "closed" if days_past > self.settle_days else "waiting"

    def describe_wait(self, reading: Reading | None) -> str:
        """
        Return a poll that decided nothing as one line for the log.

        :param reading: None for a window that has not begun.
        """
        if reading is None:
            return f"{self.window} has not begun"
        if self.projected and not reading.projected and self._is_running(reading.time):
            return f"{reading}; projected from {MIN_COMPLETE_DAYS} complete days on"
        return str(reading)


def check_one_window(window: str | int, usage_start_date: object) -> None:
    """
    Check that a window other than the default is not combined with days, which would replace it silently.

    :raises ValueError: naming both.
    """
    if usage_start_date is not None and window != "month":
        raise ValueError(f"window={window!r} and usage_start_date are two windows: give one of them")


def parse_threshold(value: object, name: str = "threshold") -> Decimal:
    """
    Return a threshold, given as a number or as text: 0, or from 1e-9 to less than 1e18.

    :param name: the argument.
    :raises ValueError: for anything else, including text that rendered to nothing.
    """
    return check_number(
        name,
        value,
        lambda number: number == 0 or is_budget(number),
        "0 or a number from 1e-9 to less than 1e18",
        "does its template render to one?",
    )


def is_budget(number: Decimal) -> bool:
    """Whether a number is a threshold that has percentages."""
    return _MIN_THRESHOLD <= number < _THRESHOLD_LIMIT

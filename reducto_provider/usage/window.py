"""Which days: of a DAG run, of a calendar period, trailing.

This is the only place that knows both that the service counts whole days, the last one included, and that
Airflow's intervals are moments, the end excluded.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta
from typing import Any, Final, NamedTuple

import pendulum
from croniter import croniter

USAGE_TIMEZONE: Final = "UTC"
"""The time zone whose days usage is counted by. The service documents none: UTC is this package's reading."""

CALENDAR_WINDOWS: Final = ("month", "week", "day")

_ASSET_RUN_TYPES = ("asset_triggered", "dataset_triggered")


class DayRange(NamedTuple):
    """The days from ``first`` to ``last``, both included."""

    first: date
    last: date

    def days(self) -> Iterator[date]:
        """Every day of the range, in order."""
        for offset in range((self.last - self.first).days + 1):
            yield self.first + timedelta(days=offset)

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first} to {self.last}"


def today(timezone: str = USAGE_TIMEZONE) -> date:
    """The day that is not over yet."""
    return _day(pendulum.now(timezone), timezone)


def days_of_run(context: Mapping[str, Any], timezone: str = USAGE_TIMEZONE) -> DayRange:
    """
    The days that a DAG run covers, so that each day is covered once and complete under any schedule of a day or
    longer, on Airflow 2 and 3.

    ============================================================  ===========================================
    the run has                                                   days
    ============================================================  ===========================================
    a partition key or date                                       that day; for a month key, that month
    an interval that spans a midnight                             from its start's day up to, not including,
                                                                  its end's day
    an interval inside one day                                    that day
    an interval of no length, from a cron or delta schedule       the schedule's last complete period before
    (the default of Airflow 3)                                    the run stands in for the interval
    an interval of no length otherwise                            the day before it
    no interval                                                   the day before ``run_after``
    ============================================================  ===========================================

    :param context: the task's context; ``dag_run`` and ``dag`` are read.
    :param timezone: whose days to count.
    :raises ValueError: for a partition key that names neither a day nor a month.
    """
    run = context["dag_run"]
    if (key := getattr(run, "partition_key", None)) is not None:
        # A partition's moment is midnight in the zone of its timetable, which elsewhere may be another day.
        zone = _attribute(context["dag"].timetable, "timezone") or timezone
        return _days_of_partition(key, context.get("partition_date"), zone)
    start, end = run.data_interval_start, run.data_interval_end
    if start is None or end is None:
        return _day_before(moment_of_run(context), timezone)
    if start == end:
        period = None if run.run_type in _ASSET_RUN_TYPES else _last_period(context["dag"].timetable, end)
        if period is None:
            return _day_before(end, timezone)
        start, end = period
    first, after = _day(start, timezone), _day(end, timezone)
    return DayRange(first, max(first, after - timedelta(days=1)))


def days_of_window(window: str | int, context: Mapping[str, Any], timezone: str = USAGE_TIMEZONE) -> DayRange:
    """
    The days of a window that is anchored at a DAG run, and so the same for its retries and when it is cleared.

    :param window: ``"month"``, ``"week"`` (from Monday) or ``"day"``: the calendar period that holds the run's
        moment (:func:`moment_of_run`); a whole number N: the N days that end with the day of that moment;
        ``"run"``: what :func:`days_of_run` says.
    :raises ValueError: for any other window.
    """
    if window == "run":
        return days_of_run(context, timezone)
    window = check_window(window)
    day = _day(moment_of_run(context), timezone)
    if window == "month":
        return _month(day)
    if window == "week":
        monday = day - timedelta(days=day.weekday())
        return DayRange(monday, monday + timedelta(days=6))
    trailing = 1 if window == "day" else int(window)
    return DayRange(day - timedelta(days=trailing - 1), day)


def check_window(window: str | int) -> str | int:
    """
    A window as :func:`days_of_window` takes it; whole numbers may come as text, as templates give them.

    :raises ValueError: naming the value and what is allowed.
    """
    if window in (*CALENDAR_WINDOWS, "run"):
        return window
    if isinstance(window, str) and window.strip().isdecimal():
        window = int(window)
    if isinstance(window, int) and not isinstance(window, bool) and 1 <= window <= 3650:
        return window
    allowed = ", ".join(repr(name) for name in (*CALENDAR_WINDOWS, "run"))
    raise ValueError(f"window must be {allowed} or a whole number of days from 1 to 3650, not {window!r}")


def moment_of_run(context: Mapping[str, Any]) -> datetime:
    """The moment that a run stands for: the end of its data interval, else the one after which it was to run."""
    run = context["dag_run"]
    # run_after came with Airflow 3; a run of Airflow 2 without an interval has a logical date.
    moment: datetime = run.data_interval_end or getattr(run, "run_after", None) or run.logical_date
    return moment


def _days_of_partition(key: str, moment: datetime | None, timezone: Any) -> DayRange:
    # The key comes first: it is the day's name, as its author and the partitions downstream spell it.
    if match := re.fullmatch(r"(\d{4}-\d{2}-\d{2})([T ].*)?", key):
        day = date.fromisoformat(match[1])
        return DayRange(day, day)
    if match := re.fullmatch(r"(\d{4})-(\d{2})", key):
        return _month(date(int(match[1]), int(match[2]), 1))
    if moment is not None:
        day = _day(moment, timezone)
        return DayRange(day, day)
    raise ValueError(
        f"the run's partition key {key!r} names neither a day (yyyy-mm-dd) nor a month (yyyy-mm): "
        "say which days with usage_start_date and usage_end_date"
    )


def _last_period(timetable: Any, moment: datetime) -> tuple[datetime, datetime] | None:
    """The last complete period of a schedule that ended at or before ``moment``; None if it has no periods."""
    if (delta := _attribute(timetable, "delta")) is not None:
        return moment - delta, moment
    if (end := _last_tick(timetable, moment + timedelta(seconds=1))) is None:
        return None
    start = _last_tick(timetable, end)
    return None if start is None else (start, end)


def _last_tick(timetable: Any, before: datetime) -> datetime | None:
    """The last moment before ``before`` at which a schedule by cron, or by several, is due."""
    if (inner := _attribute(timetable, "timetable")) is not None:  # by time or by assets
        return _last_tick(inner, before)
    if (several := _attribute(timetable, "timetables")) is not None:
        return max((tick for tick in (_last_tick(each, before) for each in several) if tick), default=None)
    if (expression := _attribute(timetable, "expression")) is None:
        return None
    zone = _attribute(timetable, "timezone")
    # Cron knows whole seconds of a wall clock; the zone, with its changes of the clock, is put on afterwards.
    local = pendulum.instance(before).in_timezone(zone).replace(microsecond=0).naive()
    return pendulum.instance(croniter(expression, local).get_prev(datetime), tz=zone)


def _attribute(timetable: Any, name: str) -> Any:
    """Airflow's timetables share no way to ask for their schedule, and before 3.2 their attributes are private."""
    return getattr(timetable, name, getattr(timetable, f"_{name}", None))


def _day_before(moment: datetime, timezone: str) -> DayRange:
    day = _day(moment, timezone) - timedelta(days=1)
    return DayRange(day, day)


def _day(moment: datetime, timezone: Any) -> date:
    local = pendulum.instance(moment).in_timezone(timezone)
    return date(local.year, local.month, local.day)


def _month(day: date) -> DayRange:
    return DayRange(day.replace(day=1), day.replace(day=monthrange(day.year, day.month)[1]))

"""Which days: of a DAG run, of a calendar period, trailing.

This is the only place that knows both that the service counts whole days, the last one included, and that
Airflow's intervals are moments, the end excluded.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime, timedelta
from typing import Any, Final, NamedTuple

import pendulum
from croniter import croniter

USAGE_TIMEZONE: Final = "UTC"
"""The time zone whose days usage is counted by. The service documents none: UTC is this package's reading."""

CALENDAR_WINDOWS: Final = ("month", "week", "day")

_ASSET_RUN_TYPES = ("asset_triggered", "dataset_triggered")


# The clock may be put forward by two hours; no schedule of hours has periods as long.
_ABOUT_A_DAY = timedelta(hours=22)

# A preset of Airflow's that some of its versions, such as 3.2, hand on as it is written.
_UNKNOWN_TO_CRONITER = {"@quarterly": "0 0 1 */3 *"}

_DAY_KEY = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[T ][0-9:.]+)?")
_MONTH_KEY = re.compile(r"\d{4}-\d{2}")
_COARSE_KEY = re.compile(r"\d{4}|.*[QWqw]\d.*")  # a year, a quarter, a week


class NoDayEndedError(ValueError):
    """A run covers no day: its period lies within one that is not over."""


class DayRange(NamedTuple):
    """The days from ``first`` to ``last``, both included."""

    first: date
    last: date

    @property
    def length(self) -> int:
        """How many days it has."""
        return (self.last - self.first).days + 1

    def days(self) -> Iterator[date]:
        """Every day of the range, in order."""
        for offset in range(self.length):
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
    a partition key or date                                       that day; for a month key, that month; for a
                                                                  cron with longer periods, the period that
                                                                  begins on that day
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
    :raises NoDayEndedError: when a period of about a day lies inside one day, which a change of the clock brings
        about near midnight: that day is the next run's.
    :raises ValueError: for a partition key that names no days.
    """
    run = context["dag_run"]
    if (key := getattr(run, "partition_key", None)) is not None:
        return _days_of_partition(key, context.get("partition_date"), context["dag"].timetable, timezone)
    start, end = run.data_interval_start, run.data_interval_end
    if start is None or end is None:
        return _day_before(moment_of_run(context), timezone)
    if start == end:
        period = None if run.run_type in _ASSET_RUN_TYPES else _last_period(context["dag"].timetable, end)
        if period is None:
            return _day_before(end, timezone)
        start, end = period
    first, after = _day(start, timezone), _day(end, timezone)
    if first == after and end - start >= _ABOUT_A_DAY:
        raise NoDayEndedError(f"no day of {timezone} ended between {start} and {end}: {first} is for the next run")
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
    if window in CALENDAR_WINDOWS:
        return calendar_window(str(window), day)
    return DayRange(day - timedelta(days=int(window) - 1), day)


def calendar_window(window: str, day: date) -> DayRange:
    """The ``"month"``, the ``"week"`` (from Monday) or the ``"day"`` that a day lies in."""
    if window == "month":
        return _month(day)
    if window == "week":
        monday = day - timedelta(days=day.weekday())
        return DayRange(monday, monday + timedelta(days=6))
    return DayRange(day, day)


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


def least_days(window: str | int) -> int | None:
    """How many days a window of :func:`check_window` has at the least; None for ``"run"``, of which nobody knows."""
    return window if isinstance(window, int) else {"month": 28, "week": 7, "day": 1}.get(window)


def moment_of_run(context: Mapping[str, Any]) -> datetime:
    """The moment that a run stands for: the end of its data interval, else the one after which it was to run."""
    run = context["dag_run"]
    # run_after came with Airflow 3; a run of Airflow 2 without an interval has a logical date.
    moment: datetime = run.data_interval_end or getattr(run, "run_after", None) or run.logical_date
    return moment


def _days_of_partition(key: str, moment: datetime | None, timetable: Any, timezone: str) -> DayRange:
    # A partition's moment is midnight in the zone of its timetable; in UTC that may be another day.
    zone = _attribute(timetable, "timezone") or timezone
    own_key = _attribute(timetable, "key_format") is not None  # then its period is known, however it is spelled
    with suppress(ValueError):  # of a day that no calendar has
        if _MONTH_KEY.fullmatch(key):
            return _month(date.fromisoformat(f"{key}-01"))
        if match := _DAY_KEY.fullmatch(key):
            day = date.fromisoformat(match[1])
            return DayRange(day, _last_day_of_partition(timetable, day, moment, zone))
    if moment is not None and (own_key or not _COARSE_KEY.fullmatch(key)):
        day = _day(moment, zone)
        return DayRange(day, _last_day_of_partition(timetable, day, moment, zone))
    raise ValueError(
        f"the run's partition key {key!r} names neither a day (yyyy-mm-dd) nor a month (yyyy-mm): "
        "say which days with usage_start_date and usage_end_date"
    )


def _last_day_of_partition(timetable: Any, day: date, moment: datetime | None, zone: Any) -> date:
    """The last day of the partition that begins on ``day``: with a cron of a day or less, the same."""
    moment = moment or pendulum.datetime(day.year, day.month, day.day, tz=zone)
    expression = _expression(timetable)
    if expression is None or _last_tick(timetable, _just_after(moment)) != moment:
        return day
    local = pendulum.instance(moment).in_timezone(zone).naive()
    after: datetime = croniter(expression, local).get_next(datetime)
    return max(day, after.date() - timedelta(days=1))


def _last_period(timetable: Any, moment: datetime) -> tuple[datetime, datetime] | None:
    """The last complete period of a schedule that ended at or before ``moment``; None if it has no periods."""
    if (inner := _attribute(timetable, "timetable")) is not None:  # by time or by assets
        return _last_period(inner, moment)
    if (delta := _attribute(timetable, "delta")) is not None:
        return _step_back(moment, delta), moment
    if (end := _last_tick(timetable, _just_after(moment))) is None:
        return None
    start = _last_tick(timetable, end)
    return None if start is None else (start, end)


def _step_back(moment: datetime, delta: Any) -> datetime:
    """The moment that ``delta`` led on from. Of months and days a relativedelta adds the months first."""
    if any(getattr(delta, name, 0) for name in ("years", "months")):
        months = type(delta)(years=delta.years, months=delta.months)
        before: datetime = moment - (delta - months) - months
        return before
    whole: datetime = moment - delta
    return whole


def _last_tick(timetable: Any, before: datetime) -> datetime | None:
    """The last moment before ``before`` at which a schedule by cron, or by several, is due."""
    if (several := _attribute(timetable, "timetables")) is not None:
        return max((tick for tick in (_last_tick(each, before) for each in several) if tick), default=None)
    if (expression := _expression(timetable)) is None:
        return None
    zone = _attribute(timetable, "timezone")
    # Cron knows whole seconds of a wall clock; the zone, with its changes of the clock, is put on afterwards.
    moment = pendulum.instance(before).in_timezone(zone).replace(microsecond=0)
    cron = croniter(expression, moment.naive())
    tick: datetime = cron.get_prev(datetime)
    if cron.expanded[1] == ["*"]:
        # Due in every hour: the one that the clock repeats counts twice, which its wall-clock time can't tell.
        return moment - (moment.naive() - pendulum.naive(*tick.timetuple()[:6]))
    return pendulum.instance(tick, tz=zone)


def _just_after(moment: datetime) -> datetime:
    """A schedule is due at whole seconds: one that is due at ``moment`` is due before this."""
    return moment + timedelta(seconds=1)


def _expression(timetable: Any) -> str | None:
    """The cron expression of a timetable that has one, as croniter knows it."""
    expression: str | None = _attribute(timetable, "expression")
    return _UNKNOWN_TO_CRONITER.get(expression, expression) if expression is not None else None


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

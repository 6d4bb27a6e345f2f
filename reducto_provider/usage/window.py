"""Which days: of a DAG run, of a calendar period, trailing.

This is the only place that knows both that the service counts whole days, the last one included, and that
Airflow's intervals are moments, the end excluded.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from itertools import pairwise
from math import ceil
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

_DAY_KEY = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[T ]([0-9:.]+))?")
_MIDNIGHT = re.compile(r"00:00(:00(\.0+)?)?")  # as CronPartitionTimetable spells a day by default; "00" is an hour
_MONTH_KEY = re.compile(r"\d{4}-\d{2}")
_COARSE_KEY = re.compile(r"\d{4}|.*[QWqw]\d.*")  # a year, a quarter, a week


class NoDayEndedError(ValueError):
    """A run covers no day: its period lies within one that is not over."""


class DayNotOverError(ValueError):
    """A run covers a day that is not over, or has not settled; the message says when it will be, and what to change."""


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
                                                                  begins on that day; for an hour's key, the day
                                                                  that the hour lies in
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
    if (partition := _partition_of_run(context, timezone)) is not None:
        return partition.days
    run = context["dag_run"]
    start, end = run.data_interval_start, run.data_interval_end
    if start is None or end is None:
        return _day_before(moment_of_run(context), timezone)
    if start == end:
        period = None if run.run_type in _ASSET_RUN_TYPES else _last_period(context["dag"].timetable, end)
        if period is None:
            return _day_before(end, timezone)
        start, end = period
    return _days_between(start, end, timezone)


def check_days_over(context: Mapping[str, Any], today: date, settle_days: int = 0) -> None:
    """
    Check that the last day of a run's partition of a day or longer is over and has settled.

    Other runs are due once their days are over, or are of hours and come again.

    :param context: as for :func:`days_of_run`.
    :param today: the current UTC day.
    :param settle_days: complete days after a day in which it may still change.
    :raises DayNotOverError: naming the day, when it will be over, and how to move the timetable.
    """
    partition = _partition_of_run(context, USAGE_TIMEZONE)
    if partition is None or partition.of_hours or (last := partition.days.last) < today - timedelta(days=settle_days):
        return
    early = _first_early_run(context, today, settle_days)
    then = f"retry after that. {early.schedule} is due too early: {early.remedy}" if early else "retry after that"
    day, over_at = f"the last day of the run's partition, {last}", f"{last + timedelta(days=settle_days + 1)} 00:00 UTC"
    if settle_days:
        raise DayNotOverError(f"{day}, is not settled before {over_at}, with settle_days={settle_days}: {then}")
    raise DayNotOverError(f"{day}, is not over before {over_at}: {then}")


def warn_of_early_run(context: Mapping[str, Any], today: date, settle_days: int = 0) -> str | None:
    """
    Return what to warn of when a partition timetable will be due too early within a year, for instance after a change
    of the clock; else None.

    The parameters are those of :func:`check_days_over`, which will fail then.
    """
    if (early := _first_early_run(context, today, settle_days)) is None:
        return None
    state = "have settled" if settle_days else "be over"
    return (
        f"{early.schedule} will be due too early at {early.due.in_timezone('UTC'):%Y-%m-%d %H:%M} UTC, and that run "
        f"will fail, since {early.last_day} will not {state} then: {early.remedy}"
    )


def days_of_window(
    window: str | int, context: Mapping[str, Any], timezone: str = USAGE_TIMEZONE, *, moment: datetime | None = None
) -> DayRange:
    """
    The days of a window that is anchored at a DAG run, and so the same for its retries and when it is cleared.

    :param window: ``"month"``, ``"week"`` (from Monday) or ``"day"``: the calendar period that holds the run's
        moment (:func:`moment_of_run`); a whole number N: the N days that end with the day of that moment;
        ``"run"``: what :func:`days_of_run` says.
    :param moment: instead of the run's.
    :raises ValueError: for any other window.
    """
    if window == "run":
        return days_of_run(context, timezone)
    window = check_window(window)
    day = _day(moment or moment_of_run(context, timezone), timezone)
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


def moment_of_run(context: Mapping[str, Any], timezone: str = USAGE_TIMEZONE) -> datetime:
    """
    Return the moment that a run stands for: the last day of its partition, whether it is scheduled or backfilled; else
    the end of its data interval; else the one after which it was to run.
    """
    with suppress(ValueError):  # of a key that names no day
        if (partition := _partition_of_run(context, timezone)) is not None:
            return pendulum.instance(datetime.combine(partition.days.last, time.min), tz=timezone)
    run = context["dag_run"]
    # run_after came with Airflow 3; a run of Airflow 2 without an interval has a logical date.
    moment: datetime = run.data_interval_end or getattr(run, "run_after", None) or run.logical_date
    return moment


class _Partition(NamedTuple):
    days: DayRange
    of_hours: bool
    """Whether it is shorter than a day."""


def _partition_of_run(context: Mapping[str, Any], timezone: str) -> _Partition | None:
    """
    Return what a run's partition key and date name; None for a run by interval.

    :raises ValueError: for a key that names no days.
    """
    key = getattr(context["dag_run"], "partition_key", None)
    if key is None:
        return None
    moment, timetable = context.get("partition_date"), context["dag"].timetable
    zone = _attribute(timetable, "timezone") or timezone
    own_key = _attribute(timetable, "key_format") is not None  # then its period is known, however it is spelled
    with suppress(ValueError):  # of a month that no calendar has
        if _MONTH_KEY.fullmatch(key):
            return _Partition(_month(date.fromisoformat(f"{key}-01")), of_hours=False)
    if period := _period_of_key(timetable, key, moment):
        start, end = period
        if end - start < _ABOUT_A_DAY:
            day = _day(moment or start, timezone)
            return _Partition(DayRange(day, day), of_hours=True)
        return _Partition(_days_between(start, end, _zone_of_keys(timetable, moment)), of_hours=False)
    with suppress(ValueError):  # of a day that no calendar has
        if match := _DAY_KEY.fullmatch(key):
            day = date.fromisoformat(match[1])
            if match[2] is None or _MIDNIGHT.fullmatch(match[2]):
                return _Partition(DayRange(day, _last_day_of_period(timetable, day, zone)), of_hours=False)
            # The hours of another zone's day lie in two days of this one.
            day = day if moment is None else _day(moment, timezone)
            return _Partition(DayRange(day, day), of_hours=True)
    if moment is not None and (own_key or not _COARSE_KEY.fullmatch(key)):
        day = _day(moment, zone)
        return _Partition(DayRange(day, _last_day_of_period(timetable, day, zone)), of_hours=False)
    raise ValueError(
        f"the run's partition key {key!r} names neither a day (yyyy-mm-dd) nor a month (yyyy-mm): "
        "say which days with usage_start_date and usage_end_date"
    )


def _period_of_key(timetable: Any, key: str, moment: datetime | None) -> tuple[datetime, datetime] | None:
    """The period of a timetable that spells its own keys by cron; None if none of its periods has this key."""
    key_format = _attribute(timetable, "key_format")
    if key_format is None or _expression(timetable) is None:
        return None
    zone = _zone_of_keys(timetable, moment)
    if moment is None:
        try:
            moment = pendulum.instance(datetime.strptime(key, key_format), tz=zone)
        except ValueError:
            return None
    # A key without a time of day, of a run by hand, is read as midnight, after which its period begins.
    for start in (_tick_until(timetable, moment), _next_tick(timetable, moment)):
        if start.in_timezone(zone).strftime(key_format) == key:
            return start, _next_tick(timetable, start)
    return None


def _zone_of_keys(timetable: Any, moment: datetime | None) -> Any:
    """The zone that a partition timetable spells its keys in: on Airflow 3.2, which tells no moment, UTC."""
    return "UTC" if moment is None else _attribute(timetable, "timezone")


def _last_day_of_period(timetable: Any, day: date, zone: Any) -> date:
    """The last day of a cron's period that begins on ``day``: with periods of a day or less, the same."""
    if _expression(timetable) is None:
        return day
    start = _next_tick(timetable, _on_the_clock(datetime.combine(day, time.min), zone) - timedelta(seconds=1))
    return day if _day(start, zone) != day else max(day, _day(_next_tick(timetable, start), zone) - timedelta(days=1))


class _EarlyRun(NamedTuple):
    due: pendulum.DateTime
    last_day: date
    schedule: str
    remedy: str


def _first_early_run(context: Mapping[str, Any], today: date, settle_days: int) -> _EarlyRun | None:
    """The first run of the year to come that is due before the last day of its partition is over and has settled."""
    timetable = context["dag"].timetable
    expression, key_format = _expression(timetable), _attribute(timetable, "key_format")
    key = getattr(context["dag_run"], "partition_key", None)
    if key is None or expression is None or key_format is None:
        return None
    begin = pendulum.instance(datetime.combine(today, time.min), tz=USAGE_TIMEZONE)
    zone, offset = _attribute(timetable, "timezone"), _attribute(timetable, "run_offset") or 0
    cron = croniter(expression, begin.subtract(days=2).in_timezone(zone).naive())  # yesterday's may be due today
    on_the_wall: list[datetime] = []
    ticks: list[pendulum.DateTime] = []
    while len(ticks) < abs(offset) + 3 or ticks[-1] < begin.add(years=1):
        on_the_wall.append(cron.get_next(datetime))
        ticks.append(_on_the_clock(on_the_wall[-1], zone))
        if len(ticks) > 1 and ticks[-1] - ticks[-2] < _ABOUT_A_DAY:
            return None
    spelled = [tick.in_timezone(_zone_of_keys(timetable, context.get("partition_date"))) for tick in ticks]
    months = _MONTH_KEY.fullmatch(key) is not None
    last_days = [
        _month(start.date()).last if months else after.date() - timedelta(days=1) for start, after in pairwise(spelled)
    ]
    left_out = [tick.naive() != local for tick, local in zip(ticks, on_the_wall, strict=True)]
    earliest = -len(ticks)
    for number, due in enumerate(ticks):
        # Airflow does not get back beyond a time that a change of the clock leaves out.
        earliest = number if left_out[number] else earliest
        partition = max(number + offset, earliest) if offset < 0 else number + offset
        if due <= begin or not 0 <= partition < len(last_days):
            continue
        if _day(due, USAGE_TIMEZONE) <= last_days[partition] + timedelta(days=settle_days):
            break
    else:
        return None
    remedies = []
    shortest = min((after.date() - start.date()).days for start, after in pairwise(spelled))
    if offset > (enough := -1 - ceil(settle_days / max(1, shortest))):
        remedies.append(f"run_offset={enough}")
    day_ends = _end_of_utc_days(begin, zone, spelled)
    if any(left_out) or min(tick.time() for tick in spelled) < day_ends:
        remedies.append(f"either timezone='UTC' or a time of day such as {day_ends:%H:%M}")
    arguments = f"{expression!r}, timezone={getattr(zone, 'name', zone)!r}, run_offset={offset}"
    return _EarlyRun(
        due=due,
        last_day=last_days[partition],
        schedule=f"{type(timetable).__name__}({arguments})",
        remedy=f"give it {' and '.join(remedies)}",
    )


def _end_of_utc_days(begin: pendulum.DateTime, zone: Any, spelled: list[pendulum.DateTime]) -> time:
    """A time of day in a zone at which, through a year, the UTC day before is over, and which no change leaves out."""
    ends = (begin + max(timedelta(), *(tick.utcoffset() or timedelta() for tick in spelled))).time()
    for number in range(366):
        ends = _on_the_clock(datetime.combine(begin.add(days=number), ends), zone).time()
    return ends


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


def _next_tick(timetable: Any, after: datetime) -> pendulum.DateTime:
    """The first moment after ``after`` at which a partition timetable has a partition begin."""
    zone, expression = _attribute(timetable, "timezone"), _expression(timetable) or ""
    local = pendulum.instance(after).in_timezone(zone).naive()
    return _on_the_clock(croniter(expression, local).get_next(datetime), zone)


def _tick_until(timetable: Any, moment: datetime) -> pendulum.DateTime:
    """The last such moment until ``moment``, included."""
    zone, expression = _attribute(timetable, "timezone"), _expression(timetable) or ""
    local = pendulum.instance(moment).in_timezone(zone).naive()
    return _on_the_clock(croniter(expression, _just_after(local)).get_prev(datetime), zone)


def _on_the_clock(local: datetime, zone: Any) -> pendulum.DateTime:
    """The moment of a wall-clock time, as Airflow has it: the later of two, and one that is left out comes later."""
    return pendulum.instance(local.replace(fold=1), tz=zone)


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


def _days_between(start: datetime, end: datetime, timezone: Any) -> DayRange:
    """
    The days of a period, its end excluded.

    :raises NoDayEndedError: for a period of about a day that lies inside one day.
    """
    first, after = _day(start, timezone), _day(end, timezone)
    if first == after and end - start >= _ABOUT_A_DAY:
        raise NoDayEndedError(f"no day of {timezone} ended between {start} and {end}: {first} is for the next run")
    return DayRange(first, max(first, after - timedelta(days=1)))


def _day_before(moment: datetime, timezone: str) -> DayRange:
    day = _day(moment, timezone) - timedelta(days=1)
    return DayRange(day, day)


def _day(moment: datetime, timezone: Any) -> date:
    local = pendulum.instance(moment).in_timezone(timezone)
    return date(local.year, local.month, local.day)


def _month(day: date) -> DayRange:
    return DayRange(day.replace(day=1), day.replace(day=monthrange(day.year, day.month)[1]))

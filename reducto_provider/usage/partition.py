"""The days of a run's partition, and whether they are over when the run is due."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import pendulum

from reducto_provider.usage.days import ABOUT_A_DAY, USAGE_TIMEZONE, DayRange, day_of, days_between, month_of
from reducto_provider.usage.schedule import Schedule, on_the_clock

if TYPE_CHECKING:
    from reducto_provider.usage.days import Zone
    from reducto_provider.usage.run import Run

_DAY_KEY = r"(\d{4}-\d{2}-\d{2})(?:[T ]([0-9:.]+))?"
_MIDNIGHT = r"00:00(:00(\.0+)?)?"  # CronPartitionTimetable's default format of a day; "00" is an hour
_MONTH_KEY = r"\d{4}-\d{2}"
_COARSE_KEY = r"\d{4}|.*[QWqw]\d.*"  # a year, a quarter, a week


class DayNotOverError(ValueError):
    """A run covers a day that is not over or not settled. The message says when it will be, and what to change."""


class Partition(NamedTuple):
    """The days of a partition."""

    days: DayRange
    of_hours: bool
    """Whether it is shorter than a day."""


def partition_of_run(run: Run, timezone: Zone) -> Partition | None:
    """
    Return what a run's partition key and date name; None for a run without a partition.

    :raises ValueError: if the key names no days.
    """
    if (key := run.partition_key) is None:
        return None
    moment, schedule = run.partition_date, run.schedule
    zone = schedule.timezone or timezone
    with suppress(ValueError):  # a month that is in no calendar
        if re.fullmatch(_MONTH_KEY, key):
            return Partition(month_of(date.fromisoformat(f"{key}-01")), of_hours=False)
    if period := _period_of_key(schedule, key, moment):
        start, end = period
        if end - start < ABOUT_A_DAY:
            day = day_of(moment or start, timezone)
            return Partition(DayRange(day, day), of_hours=True)
        return Partition(days_between(start, end, _zone_of_keys(schedule, moment)), of_hours=False)
    with suppress(ValueError):  # a day that is in no calendar
        if match := re.fullmatch(_DAY_KEY, key):
            day = date.fromisoformat(match[1])
            if match[2] is None or re.fullmatch(_MIDNIGHT, match[2]):
                return Partition(DayRange(day, _last_day_of_period(schedule, day, zone)), of_hours=False)
            # The hours of another zone's day lie in two days of this one.
            day = day if moment is None else day_of(moment, timezone)
            return Partition(DayRange(day, day), of_hours=True)
    # The period of a timetable with its own key format is known, even if the key looks like a coarser one.
    if moment is not None and (schedule.key_format is not None or not re.fullmatch(_COARSE_KEY, key)):
        day = day_of(moment, zone)
        return Partition(DayRange(day, _last_day_of_period(schedule, day, zone)), of_hours=False)
    raise ValueError(
        f"the run's partition key {key!r} names neither a day (yyyy-mm-dd) nor a month (yyyy-mm): "
        "set usage_start_date and usage_end_date"
    )


def check_days_over(run: Run, today: date, settle_days: int = 0) -> None:
    """
    Check that the last day of a run's partition of a day or longer is over and has settled.

    Other runs pass: they are due once their days are over, or are hourly and come again.

    :param today: the current UTC day.
    :param settle_days: complete days after a day during which it may still change.
    :raises DayNotOverError: naming the day, when it will be over, and how to move the timetable.
    """
    partition = partition_of_run(run, USAGE_TIMEZONE)
    if partition is None or partition.of_hours or (last := partition.days.last) < today - timedelta(days=settle_days):
        return
    early = _first_early_run(run, today, settle_days)
    then = f"retry after that. {early.timetable} is due too early: {early.remedy}" if early else "retry after that"
    day, over_at = f"the last day of the run's partition, {last}", f"{last + timedelta(days=settle_days + 1)} 00:00 UTC"
    if settle_days:
        raise DayNotOverError(f"{day}, is not settled before {over_at}, with settle_days={settle_days}: {then}")
    raise DayNotOverError(f"{day}, is not over before {over_at}: {then}")


def warn_of_early_run(run: Run, today: date, settle_days: int = 0) -> str | None:
    """
    Return a warning if a run of the next year will be due too early, for instance after a change of the clock.

    The parameters are those of :func:`check_days_over`, which will raise in that run.
    """
    if (early := _first_early_run(run, today, settle_days)) is None:
        return None
    state = "have settled" if settle_days else "be over"
    return (
        f"{early.timetable} will be due too early at {early.due.in_timezone('UTC'):%Y-%m-%d %H:%M} UTC, and that run "
        f"will fail, since {early.last_day} will not {state} then: {early.remedy}"
    )


def _period_of_key(schedule: Schedule, key: str, moment: datetime | None) -> tuple[datetime, datetime] | None:
    """Return the period that a cron with a key format of its own names ``key``; None if there is none."""
    if schedule.key_format is None or schedule.expression is None:
        return None
    zone = _zone_of_keys(schedule, moment)
    if moment is None:
        try:
            moment = pendulum.instance(datetime.strptime(key, schedule.key_format), tz=zone)
        except ValueError:
            return None
    # The key of a manual run may have no time of day. It then stands for midnight, and its period begins later.
    for start in (schedule.tick_until(moment), schedule.next_tick(moment)):
        if start.in_timezone(zone).strftime(schedule.key_format) == key:
            return start, schedule.next_tick(start)
    return None


def _zone_of_keys(schedule: Schedule, moment: datetime | None) -> Zone:
    """Return the zone of a timetable's keys: UTC on Airflow 3.2, which passes no moment to tasks."""
    return "UTC" if moment is None else schedule.timezone or USAGE_TIMEZONE


def _last_day_of_period(schedule: Schedule, day: date, zone: Zone) -> date:
    """Return the last day of the cron's period that begins on ``day``; ``day`` itself if none does."""
    if schedule.expression is None:
        return day
    start = schedule.next_tick(on_the_clock(datetime.combine(day, time.min), zone) - timedelta(seconds=1))
    return day if day_of(start, zone) != day else max(day, day_of(schedule.next_tick(start), zone) - timedelta(days=1))


class _EarlyRun(NamedTuple):
    due: pendulum.DateTime
    last_day: date
    timetable: str
    remedy: str


def _first_early_run(run: Run, today: date, settle_days: int) -> _EarlyRun | None:
    """Return the first run of the next year that is due before its partition's last day is over and has settled."""
    key, schedule = run.partition_key, run.schedule
    if key is None or schedule.expression is None or schedule.key_format is None:
        return None
    begin = pendulum.instance(datetime.combine(today, time.min), tz=USAGE_TIMEZONE)
    zone, offset = schedule.timezone or USAGE_TIMEZONE, schedule.run_offset
    # Yesterday's run may be due today.
    from croniter import croniter  # not when a DAG file is parsed

    cron = croniter(schedule.expression, begin.subtract(days=2).in_timezone(zone).naive())
    on_the_wall: list[datetime] = []
    ticks: list[pendulum.DateTime] = []
    while len(ticks) < abs(offset) + 3 or ticks[-1] < begin.add(years=1):
        on_the_wall.append(cron.get_next(datetime))
        ticks.append(on_the_clock(on_the_wall[-1], zone))
        if len(ticks) > 1 and ticks[-1] - ticks[-2] < ABOUT_A_DAY:
            return None
    in_zone_of_keys = [tick.in_timezone(_zone_of_keys(schedule, run.partition_date)) for tick in ticks]
    months = re.fullmatch(_MONTH_KEY, key) is not None
    last_days = [
        month_of(start.date()).last if months else after.date() - timedelta(days=1)
        for start, after in pairwise(in_zone_of_keys)
    ]
    skipped = [tick.naive() != local for tick, local in zip(ticks, on_the_wall, strict=True)]
    earliest = -len(ticks)
    for number, due in enumerate(ticks):
        earliest = number if skipped[number] and schedule.offset_stops_at_skipped_times else earliest
        partition = max(number + offset, earliest) if offset < 0 else number + offset
        if due <= begin or not 0 <= partition < len(last_days):
            continue
        if day_of(due, USAGE_TIMEZONE) <= last_days[partition] + timedelta(days=settle_days):
            break
    else:
        return None
    remedies = []
    shortest = min((after.date() - start.date()).days for start, after in pairwise(in_zone_of_keys))
    if offset > (enough := -1 - ceil(settle_days / max(1, shortest))):
        remedies.append(f"run_offset={enough}")
    day_ends = _end_of_utc_days(begin, zone, in_zone_of_keys)
    if any(skipped) or min(tick.time() for tick in in_zone_of_keys) < day_ends:
        remedies.append(f"either timezone='UTC' or a time of day such as {day_ends:%H:%M}")
    arguments = f"{schedule.expression!r}, timezone={getattr(zone, 'name', zone)!r}, run_offset={offset}"
    return _EarlyRun(
        due=due,
        last_day=last_days[partition],
        timetable=f"{schedule.timetable}({arguments})",
        remedy=f"give it {' and '.join(remedies)}",
    )


def _end_of_utc_days(begin: pendulum.DateTime, zone: Zone, ticks: list[pendulum.DateTime]) -> time:
    """Return a time of day at which the UTC day before is over all year, and which no change of the clock skips."""
    ends = (begin + max(timedelta(), *(tick.utcoffset() or timedelta() for tick in ticks))).time()
    for number in range(366):
        ends = on_the_clock(datetime.combine(begin.add(days=number), ends), zone).time()
    return ends

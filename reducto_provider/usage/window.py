"""Which days: of a DAG run, of a calendar period, trailing."""

from __future__ import annotations

from contextlib import suppress
from datetime import date, datetime, time, timedelta
from typing import Final

import pendulum

from reducto_provider.usage.checks import is_whole_number
from reducto_provider.usage.days import USAGE_TIMEZONE, DayRange, day_before, day_of, days_between, month_of
from reducto_provider.usage.partition import partition_of_run
from reducto_provider.usage.run import Run

CALENDAR_WINDOWS: Final = ("month", "week", "day")


def days_of_run(run: Run, timezone: str = USAGE_TIMEZONE) -> DayRange:
    """
    Return the days that a DAG run covers.

    Under any schedule of a day or longer, the runs cover each day once, when it is over, on Airflow 2 and 3.

    ============================================================  ===========================================
    the run has                                                   days
    ============================================================  ===========================================
    a partition key or date                                       that day; for a month key, that month; for a
                                                                  cron with longer periods, the period that
                                                                  begins on that day; for an hour's key, the day
                                                                  that contains the hour
    an interval that spans a midnight                             from its start's day up to, not including,
                                                                  its end's day
    an interval inside one day                                    that day
    an interval of no length, from a cron or delta schedule       the schedule's last complete period before
    (the default of Airflow 3)                                    the run replaces the interval
    an interval of no length otherwise                            the day before it
    no interval                                                   the day before ``run_after``
    ============================================================  ===========================================

    :param run: from :func:`reducto_provider.airflow_compat.run_from_context`.
    :param timezone: the time zone whose days to count.
    :raises NoDayEndedError: if a period of about a day is inside one day, as after a change of the clock near
        midnight. The next run covers that day.
    :raises ValueError: if a partition key names no days.
    """
    if (partition := partition_of_run(run, timezone)) is not None:
        return partition.days
    start, end = run.interval_start, run.interval_end
    if start is None or end is None:
        return day_before(moment_of_run(run), timezone)
    if start == end:
        period = None if run.by_assets else run.schedule.last_period(end)
        if period is None:
            return day_before(end, timezone)
        start, end = period
    return days_between(start, end, timezone)


def moment_of_run(run: Run, timezone: str = USAGE_TIMEZONE) -> datetime:
    """
    Return the reference time of a run.

    That is the last day of its partition, whether it is scheduled or backfilled; else the end of its data interval;
    else the moment after which it was to run.
    """
    with suppress(ValueError):  # the key names no day
        if (partition := partition_of_run(run, timezone)) is not None:
            return pendulum.instance(datetime.combine(partition.days.last, time.min), tz=timezone)
    return run.moment


def days_of_window(
    window: str | int, run: Run, timezone: str = USAGE_TIMEZONE, *, moment: datetime | None = None
) -> DayRange:
    """
    Return the days of a window that is fixed by a DAG run, and so the same for its retries and when it is cleared.

    :param window: ``"month"``, ``"week"`` (from Monday) or ``"day"``: the calendar period that contains the run's
        reference time (:func:`moment_of_run`); a whole number N: the N days that end with the day of that time;
        ``"run"``: the days of :func:`days_of_run`.
    :param moment: the time to use instead of the run's.
    :raises ValueError: for any other window.
    """
    if window == "run":
        return days_of_run(run, timezone)
    window = check_window(window)
    day = day_of(moment or moment_of_run(run, timezone), timezone)
    if window in CALENDAR_WINDOWS:
        return calendar_window(str(window), day)
    return DayRange(day - timedelta(days=int(window) - 1), day)


def calendar_window(window: str, day: date) -> DayRange:
    """Return the ``"month"``, the ``"week"`` (from Monday) or the ``"day"`` that contains a day."""
    if window == "month":
        return month_of(day)
    if window == "week":
        monday = day - timedelta(days=day.weekday())
        return DayRange(monday, monday + timedelta(days=6))
    return DayRange(day, day)


def check_window(window: str | int) -> str | int:
    """
    Return a window as :func:`days_of_window` takes it. Whole numbers may be text, as templates render them.

    :raises ValueError: naming the value and what is allowed.
    """
    if window in (*CALENDAR_WINDOWS, "run"):
        return window
    if isinstance(window, str) and window.strip().isdecimal():
        window = int(window)
    if is_whole_number(window, 1, 3650):
        return window
    allowed = ", ".join(repr(name) for name in (*CALENDAR_WINDOWS, "run"))
    raise ValueError(f"window must be {allowed} or a whole number of days from 1 to 3650, not {window!r}")

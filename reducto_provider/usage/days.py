"""Whole days: ranges of them, the current one, and those of a period between two moments.

The service counts whole days and includes the last one. Airflow's intervals are moments and exclude the end.
:func:`days_between` is the one place that converts the latter to the former.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

import pendulum

Zone: TypeAlias = str | pendulum.Timezone | pendulum.FixedTimezone

USAGE_TIMEZONE: Final = "UTC"
"""The time zone whose days usage is counted by. The service documents none: this package assumes UTC."""

ABOUT_A_DAY: Final = timedelta(hours=22)
"""The shortest period that counts as a day: a change of the clock takes up to two hours off."""


class NoDayEndedError(ValueError):
    """A run covers no day: its period is within a day that is not over."""


class DayRange(NamedTuple):
    """The days from ``first`` to ``last``, both included."""

    first: date
    last: date

    @property
    def length(self) -> int:
        """The number of days."""
        return (self.last - self.first).days + 1

    def days(self) -> Iterator[date]:
        """Yield each day, in order."""
        for offset in range(self.length):
            yield self.first + timedelta(days=offset)

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first} to {self.last}"


def today(timezone: str = USAGE_TIMEZONE) -> date:
    """Return the current day, which is not over yet."""
    return day_of(pendulum.now(timezone), timezone)


def day_of(moment: datetime, timezone: Zone) -> date:
    """Return the day of a moment."""
    local = pendulum.instance(moment).in_timezone(timezone)
    return date(local.year, local.month, local.day)


def day_before(moment: datetime, timezone: Zone) -> DayRange:
    """Return the day before that of a moment."""
    day = day_of(moment, timezone) - timedelta(days=1)
    return DayRange(day, day)


def days_between(start: datetime, end: datetime, timezone: Zone) -> DayRange:
    """
    Return the days of a period whose end is excluded.

    :raises NoDayEndedError: if a period of about a day is inside one day.
    """
    first, after = day_of(start, timezone), day_of(end, timezone)
    if first == after and end - start >= ABOUT_A_DAY:
        raise NoDayEndedError(f"no day of {timezone} ended between {start} and {end}: the next run covers {first}")
    return DayRange(first, max(first, after - timedelta(days=1)))


def month_of(day: date) -> DayRange:
    """Return the calendar month of a day."""
    return DayRange(day.replace(day=1), day.replace(day=monthrange(day.year, day.month)[1]))

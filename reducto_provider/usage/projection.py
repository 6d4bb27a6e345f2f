"""What the usage of a window will be when it is over, by the means of the weekdays so far."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal, localcontext
from typing import Final

from reducto_provider.usage.days import DayRange
from reducto_provider.usage.report import CREDITS_UNIT, EXACT, Metric, UsageReport

MIN_COMPLETE_DAYS: Final = 3
"""Complete days that a projection needs: fewer say too little about the days to come."""

MIN_WEEKS: Final = 2
"""Complete weeks from which the weekdays are told apart: in a single one, each has a single day."""

MAX_WEEKS: Final = 4
"""Complete weeks that the means are taken of: older ones say less about the days to come."""

_ZERO = Decimal(0)


def first_day_of_history(window: DayRange, settle_days: int = 0) -> date:
    """Return the first day to request, so that on its first day a window has :data:`MAX_WEEKS` complete weeks."""
    days = 7 * MAX_WEEKS + settle_days
    return max(date.min + timedelta(days=days), window.first) - timedelta(days=days)


def project(
    report: UsageReport, metric: Metric, *, per_group: bool, window: DayRange, today: date, settle_days: int = 0
) -> Mapping[str | None, Decimal]:
    """
    Return the projected total of a window by group, or of all rows under the group None.

    It is what was used before today, the larger of what today has and the mean of its weekday, and for each day to
    come the mean of its weekday. The means are those of the last complete weeks, at least :data:`MIN_WEEKS` and at
    most :data:`MAX_WEEKS`. With fewer, every day's mean is that of all complete days. A day is complete when it has
    been over for more than ``settle_days``; the first is the first that has a row, of the group itself if
    ``per_group``. A group with fewer than :data:`MIN_COMPLETE_DAYS` has no projection.

    The result is rounded half-even to nine places. It is computed once, however many callers: a report may be shared.

    :param report: of the window's days until today, and of those from :func:`first_day_of_history` on.
    :param today: the day that is not over, one of the window's.
    :raises CreditsUnavailableError: for credits, when the service sent none for some row.
    """

    def compute() -> dict[str | None, Decimal]:
        complete_until = today - timedelta(days=settle_days + 1)
        days_left = _count_weekdays(DayRange(today + timedelta(days=1), window.last))
        projections: dict[str | None, Decimal] = {}
        for group, amounts in report.daily_amounts(metric, per_group=per_group).items():
            if (means := _weekday_means(amounts, complete_until)) is None:
                continue
            with localcontext(EXACT):
                used = sum((amount for day, amount in amounts.items() if window.first <= day < today), _ZERO)
                now = max(amounts.get(today, _ZERO), means[today.weekday()])
                to_come = sum((mean * days for mean, days in zip(means, days_left, strict=True)), _ZERO)
                projections[group] = (used + now + to_come).quantize(CREDITS_UNIT)
        return projections

    return report.remember(("project", metric, per_group, window, today, settle_days), compute)


def _weekday_means(amounts: Mapping[date, Decimal], last: date) -> list[Decimal] | None:
    """Return the mean of each weekday, from Monday, of the complete days until ``last``; None if they are too few."""
    days = min((last - min(amounts)).days + 1, 7 * MAX_WEEKS)
    if days < MIN_COMPLETE_DAYS:
        return None
    weeks = days // 7
    sums = [_ZERO] * 7
    with localcontext(EXACT):
        for offset in range(7 * weeks if weeks >= MIN_WEEKS else days):
            day = last - timedelta(days=offset)
            sums[day.weekday()] += amounts.get(day, _ZERO)
        if weeks >= MIN_WEEKS:
            return [each / weeks for each in sums]
        return [sum(sums, _ZERO) / days] * 7


def _count_weekdays(days: DayRange) -> list[int]:
    """Return how many days of each weekday, from Monday, there are."""
    whole_weeks, rest = divmod(days.length, 7)
    counts = [whole_weeks] * 7
    for offset in range(rest):
        counts[(days.first.weekday() + offset) % 7] += 1
    return counts

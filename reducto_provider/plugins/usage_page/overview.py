"""The overview's figures: each organization's month against its budget, from what its days' manifests say."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal, localcontext
from typing import Final, Self

from reducto_provider.export.exported_days import ExportedDay, ExportedDays
from reducto_provider.usage.days import DayRange, month_of
from reducto_provider.usage.projection import MAX_WEEKS, first_day_of_history, project
from reducto_provider.usage.report import EXACT, Metric, UsageReport, UsageRow, sum_amounts

SPARKLINE_DAYS: Final = 60

_ONE_DAY: Final = timedelta(days=1)
_ZERO: Final = Decimal(0)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """
    What a month will be when it is over.

    :param total: None if there is no projection; ``reason`` then says why.
    :param since: the first day that is projected.
    """

    total: Decimal | None = None
    since: date | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class OrganizationSummary:
    """
    An organization's month.

    :param used: the sum of the month's exported days; None if the service sent no credits for one of them.
    :param exceeded_on: the first day on which the month's usage exceeds the budget, as exported or as projected.
    :param daily: the amounts of :data:`SPARKLINE_DAYS` days until today; None for a day that is not exported or whose
        manifest can't be read.
    :param first_exported: the first day with a manifest. The days of the month before it are in no figure.
    :param last_exported: the last day with a manifest.
    :param gaps: the days never exported, since the first that was, until yesterday, of those that were looked at.
    :param not_final: the days before today that were exported before they were over, and not again since.
    :param error: why nothing is known, instead of figures.
    """

    org_id: str
    group_by: str
    metric: Metric
    month: DayRange
    used: Decimal | None = None
    budget: Decimal | None = None
    projection: Projection = Projection()
    exceeded_on: date | None = None
    daily: tuple[tuple[date, Decimal | None], ...] = ()
    first_exported: date | None = None
    last_exported: date | None = None
    gaps: tuple[DayRange, ...] = ()
    not_final: tuple[date, ...] = ()
    unreadable: tuple[date, ...] = ()
    error: str = ""

    @property
    def share(self) -> Decimal | None:
        """What part of the budget is used; None without a budget or without figures."""
        if self.used is None or not self.budget:
            return None
        with localcontext(EXACT):
            return self.used / self.budget

    @property
    def is_exceeded(self) -> bool:
        """Whether the exported days alone exceed the budget."""
        return self.used is not None and self.budget is not None and self.used > self.budget


@dataclass(frozen=True, kw_only=True)
class Totals:
    """
    What organizations have in common.

    :param used: None if it is not known of one of them.
    :param exceeded: how many have exceeded their budgets.
    :param expected: how many others are projected to.
    :param incomplete: of how many days are missing, not over when exported, or unreadable.
    :param failed: how many could not be read.
    """

    used: Decimal | None
    exceeded: int
    expected: int
    incomplete: int
    failed: int

    @classmethod
    def of(cls, summaries: Sequence[OrganizationSummary]) -> Self:
        """Return the totals of the organizations."""
        return cls(
            used=sum_amounts(each.used for each in summaries),
            exceeded=sum(each.is_exceeded for each in summaries),
            expected=sum(each.exceeded_on is not None and not each.is_exceeded for each in summaries),
            incomplete=sum(bool(each.gaps or each.not_final or each.unreadable) for each in summaries),
            failed=sum(bool(each.error) for each in summaries),
        )


def days_needed(today: date) -> DayRange:
    """Return the days that a summary is made of."""
    first = min(today - timedelta(days=SPARKLINE_DAYS - 1), first_day_of_history(month_of(today)))
    return DayRange(first, today)


def summarize(
    org_id: str, group_by: str, exported: ExportedDays, metric: Metric, budget: Decimal | None, today: date
) -> OrganizationSummary:
    """
    Return an organization's month.

    :param exported: the days of :func:`days_needed`, by any dimension: all have the same totals.
    """
    month = month_of(today)
    amounts = {day: amount_of(each, metric) for day, each in exported.days.items()}
    of_month = [(day, amount) for day, amount in amounts.items() if month.first <= day <= today]
    used = sum_amounts(amount for _, amount in of_month)
    projection = _project(org_id, group_by, exported, metric, month, today)
    return OrganizationSummary(
        org_id=org_id,
        group_by=group_by,
        metric=metric,
        month=month,
        used=used,
        budget=budget,
        projection=projection,
        exceeded_on=_exceeded_on(of_month, budget)
        or _projected_day(org_id, group_by, exported, metric, budget, projection),
        daily=tuple(
            (day, amounts.get(day)) for day in DayRange(today - timedelta(days=SPARKLINE_DAYS - 1), today).days()
        ),
        first_exported=exported.span and exported.span.first,
        last_exported=exported.span and exported.span.last,
        gaps=tuple(_gaps(exported, DayRange(days_needed(today).first, today - _ONE_DAY))),
        not_final=tuple(day for day, each in exported.days.items() if day < today and not each.is_final),
        unreadable=exported.unreadable,
    )


def sort_summaries(summaries: Iterable[OrganizationSummary]) -> list[OrganizationSummary]:
    """Return the summaries by how much of the budget is used; those without a budget last, by what they used."""
    return sorted(
        summaries,
        key=lambda each: (each.share is None, -(each.share or _ZERO), -(each.used or _ZERO), each.org_id),
    )


def amount_of(day: ExportedDay, metric: Metric) -> Decimal | None:
    """Return a day's amount, None if the service sent no credits."""
    return day.credits if metric == "credits" else Decimal(day.request_count)


def _gaps(exported: ExportedDays, days: DayRange) -> list[DayRange]:
    if exported.span is None or exported.span.first > days.last:
        return []
    return exported.missing(DayRange(max(days.first, exported.span.first), days.last))


def _project(
    org_id: str, group_by: str, exported: ExportedDays, metric: Metric, month: DayRange, today: date
) -> Projection:
    """Project a month from its complete days. Days without a complete export would count as days without usage."""
    if any(amount_of(each, metric) is None for each in exported.days.values()):
        return Projection(reason="the service sent no credits for some days")
    final = [day for day, each in exported.days.items() if each.is_final and day < today]
    since = max(month.first, final[-1] + _ONE_DAY) if final else today
    # What a later day has already would not be in the projection.
    last = max(since, *(day for day in exported.days if day <= today)) if exported.days else since
    used = DayRange(min(month.first, since - timedelta(days=7 * MAX_WEEKS)), last - _ONE_DAY)
    begin = exported.span.first if exported.span else since
    absent = [
        day
        for day in used.days()
        if (day >= begin or day >= month.first) and (day not in exported.days or not exported.days[day].is_final)
    ]
    if absent:
        count = f"{len(absent)} days it is made of are" if len(absent) > 1 else "a day it is made of is"
        return Projection(reason=f"{count} not completely exported")
    report = _report(org_id, group_by, exported, month, today)
    total = project(report, metric, per_group=False, window=month, today=since).get(None)
    if total is None:
        return Projection(reason="there are too few complete days")
    return Projection(total=total, since=since)


def _exceeded_on(of_month: Iterable[tuple[date, Decimal | None]], budget: Decimal | None) -> date | None:
    total = _ZERO
    with localcontext(EXACT):
        for day, amount in of_month:
            if budget is None or amount is None:
                return None
            total += amount
            if total > budget:
                return day
    return None


def _projected_day(
    org_id: str,
    group_by: str,
    exported: ExportedDays,
    metric: Metric,
    budget: Decimal | None,
    projection: Projection,
) -> date | None:
    """Return the first day until which the projected usage exceeds the budget."""
    since = projection.since
    if budget is None or since is None or projection.total is None or projection.total <= budget:
        return None
    month = month_of(since)
    report = _report(org_id, group_by, exported, month, since)
    days = list(DayRange(since, month.last).days())

    def exceeds(day: date) -> bool:
        window = DayRange(month.first, day)
        return project(report, metric, per_group=False, window=window, today=since)[None] > budget

    return days[bisect_left(days, True, key=exceeds)]


def _report(org_id: str, group_by: str, exported: ExportedDays, month: DayRange, end: date) -> UsageReport:
    """
    Return the days' totals as a report, with a row for each day that has usage.

    It has the days that the sensor requests for the same projection: history begins with the first of them that has
    usage.
    """
    start = first_day_of_history(month)
    rows = tuple(
        UsageRow(day, None, each.credits, each.request_count)
        for day, each in exported.days.items()
        if each.row_count and start <= day <= end
    )
    return UsageReport(org_id=org_id, start=start, end=end, group_by=group_by, rows=rows)

"""The geometry of the charts, in units of an SVG's view box that is stretched to its place."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Final

from reducto_provider.plugins.usage_page.organization import Day, OrganizationUsage
from reducto_provider.plugins.usage_page.overview import OrganizationSummary
from reducto_provider.usage.report import EXACT

HEIGHT: Final = 100
_GAP: Final = 0.15
_MAX_STEPS: Final = 5
_ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle. ``kind`` is its CSS class."""

    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True, slots=True)
class Column:
    """A day of a chart, with one rectangle for each group that has usage, from the bottom up."""

    title: str
    rects: tuple[Rect, ...]


def budget_bar(summary: OrganizationSummary) -> tuple[tuple[Rect, ...], float]:
    """Return the parts of the bar of an organization with a budget, 100 wide, and where the budget ends."""
    used, projected, budget = summary.used or _ZERO, summary.projection.total or _ZERO, summary.budget or _ZERO
    scale = max(used, projected, budget)
    rects = []
    if projected > used:
        rects.append(Rect(0, 0, _part(projected, scale), HEIGHT, "projected"))
    rects.append(Rect(0, 0, _part(used, scale), HEIGHT, "over" if summary.is_exceeded else "used"))
    return tuple(rects), _part(budget, scale)


def sparkline(summary: OrganizationSummary) -> tuple[Rect, ...]:
    """Return a bar for each day, one unit wide; a day without figures is a bar of its own kind."""
    top = max((amount for _, amount in summary.daily if amount is not None), default=Decimal(0))
    rects = []
    last = max((day for day, _ in summary.daily), default=date.min)
    for place, (day, amount) in enumerate(summary.daily):
        if amount is None:
            # Before the first export nothing is missing, and today is exported later.
            if summary.first_exported and summary.first_exported < day < last:
                rects.append(Rect(place, 0, 1, HEIGHT, "gap"))
        elif amount:
            height = max(_part(amount, top), 3)
            rects.append(Rect(place + _GAP / 2, HEIGHT - height, 1 - _GAP, height, "used"))
    return tuple(rects)


def axis(usage: OrganizationUsage) -> list[Decimal]:
    """Return the amounts at the lines of a chart from the top down to 0: round ones, of which the first is enough."""
    largest = max((day_total(day) for day in usage.days), default=_ZERO)
    if not largest:
        return [_ZERO]
    power = Decimal(1).scaleb((largest / _MAX_STEPS).adjusted())
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step * _MAX_STEPS >= largest)
    if usage.metric == "requests":
        step = max(step, Decimal(1))
    return [step * count for count in range(int((largest / step).to_integral_value(ROUND_CEILING)), -1, -1)]


def day_total(day: Day) -> Decimal:
    """Return the exact total of a day's groups."""
    with localcontext(EXACT):
        return sum(day.amounts, _ZERO)


def stacked_columns(usage: OrganizationUsage, titles: list[str], top: Decimal) -> tuple[Column, ...]:
    """
    Return a column for each day, one unit wide.

    :param top: the amount that the height stands for, see :func:`axis`.
    """
    columns = []
    for place, (day, title) in enumerate(zip(usage.days, titles, strict=True)):
        rects = []
        if day.status in ("never exported", "unreadable"):
            rects.append(Rect(place, 0, 1, HEIGHT, "gap"))
        bottom = float(HEIGHT)
        for group, amount in enumerate(day.amounts):
            if amount and top:
                height = _part(amount, top)
                bottom -= height
                rects.append(Rect(place + _GAP / 2, round(bottom, 3), 1 - _GAP, height, f"g{group}"))
        columns.append(Column(title, tuple(rects)))
    return tuple(columns)


def share_bar(group: int, share: Decimal) -> Rect:
    """Return a group's share as a bar, of which the whole is 100 wide."""
    return Rect(0, 0, _part(share, Decimal(1)), HEIGHT, f"g{group}")


def _part(amount: Decimal, whole: Decimal) -> float:
    return round(float(amount / whole * HEIGHT), 3)

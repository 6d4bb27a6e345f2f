"""The geometry of the charts, in units of an SVG's view box that is stretched to its place."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from reducto_provider.plugins.usage_page.organization import OrganizationUsage
from reducto_provider.plugins.usage_page.overview import OrganizationSummary

HEIGHT: Final = 100
_GAP: Final = 0.15


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


def budget_bar(summary: OrganizationSummary) -> tuple[tuple[Rect, ...], float | None]:
    """Return the parts of an organization's bar, 100 wide, and where its budget ends; None without a budget."""
    used, projected, budget = summary.used or Decimal(0), summary.projection.total or Decimal(0), summary.budget
    scale = max(used, projected, budget or Decimal(0))
    if not scale:
        return (), None
    rects = []
    if projected > used:
        rects.append(Rect(0, 0, _part(projected, scale), HEIGHT, "projected"))
    rects.append(Rect(0, 0, _part(used, scale), HEIGHT, "over" if summary.is_exceeded else "used"))
    return tuple(rects), None if budget is None else _part(budget, scale)


def sparkline(summary: OrganizationSummary) -> tuple[Rect, ...]:
    """Return a bar for each day, one unit wide; a day without figures is a bar of its own kind."""
    top = max((amount for _, amount in summary.daily if amount is not None), default=Decimal(0))
    rects = []
    for place, (_, amount) in enumerate(summary.daily):
        if amount is None:
            if place < len(summary.daily) - 1:  # today is exported later
                rects.append(Rect(place, 0, 1, HEIGHT, "gap"))
        elif amount:
            height = max(_part(amount, top), 3)
            rects.append(Rect(place + _GAP / 2, HEIGHT - height, 1 - _GAP, height, "used"))
    return tuple(rects)


def stacked_columns(usage: OrganizationUsage, titles: list[str]) -> tuple[tuple[Column, ...], Decimal]:
    """Return a column for each day, one unit wide, and the amount that the height stands for."""
    top = max((sum(day.amounts, Decimal(0)) for day in usage.days), default=Decimal(0))
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
    return tuple(columns), top


def _part(amount: Decimal, whole: Decimal) -> float:
    return round(float(amount / whole * HEIGHT), 3)

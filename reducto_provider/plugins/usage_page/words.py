"""Figures, days and charts in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal
from typing import Final

from reducto_provider.plugins.usage_page import charts
from reducto_provider.plugins.usage_page.organization import Day, Group, OrganizationUsage
from reducto_provider.plugins.usage_page.overview import OrganizationSummary
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.report import EXACT, Metric

MISSING: Final = "\N{EN DASH}"

_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_ONE_DECIMAL: Final = Decimal("0.1")
_DIRECTIONS: Final = re.compile("[\u202a-\u202e\u2066-\u2069]")


def number(value: Decimal | int | None) -> str:
    """Return an exact number with thousands separators."""
    if value is None:
        return MISSING
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def rounded(value: Decimal | None) -> str:
    """Return a number with at most one decimal place."""
    return number(value if value is None else value.quantize(_ONE_DECIMAL, ROUND_HALF_EVEN, EXACT))


def column(values: Iterable[Decimal | int | None]) -> list[str]:
    """Return the exact numbers of a table's column, with the same number of decimal places."""
    texts = [number(value) for value in values]
    places = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [
        text if text == MISSING or not places else f"{text.partition('.')[0]}.{text.partition('.')[2]:0<{places}}"
        for text in texts
    ]


def count(value: int, singular: str, plural: str = "") -> str:
    """Return a number of things."""
    return f"{number(value)} {singular if value == 1 else plural or f'{singular}s'}"


def unit(value: Decimal | None, metric: Metric) -> str:
    """Return the unit of an amount."""
    return metric.removesuffix("s") if value == 1 else metric


def amount(value: Decimal | None, metric: Metric) -> str:
    """Return an exact amount with its unit."""
    return f"{number(value)} {unit(value, metric)}"


def percent(value: Decimal | None) -> str:
    """Return a part of 1 in percent. It is rounded down: 99.96 % of a budget is not all of it."""
    if value is None:
        return MISSING
    return f"{number(EXACT.scaleb(value, 2).quantize(_ONE_DECIMAL, ROUND_DOWN, EXACT))}\N{NO-BREAK SPACE}%"


def change(value: Decimal | None) -> str:
    """Return a relative change in percent, with its sign."""
    if value is None:
        return MISSING
    size = percent(abs(value))
    sign = "" if size == percent(Decimal(0)) else "+" if value > 0 else "\N{MINUS SIGN}"
    return f"{sign}{size}"


def day(value: date) -> str:
    """Return a day as people write it."""
    return f"{value.day} {_MONTHS[value.month - 1]} {value.year}"


def short_day(value: date) -> str:
    """Return a day as a table has it, not to be broken into two lines."""
    return f"{value.day} {_MONTHS[value.month - 1][:3]} {value.year}".replace(" ", "\N{NO-BREAK SPACE}")


def moment(value: datetime) -> str:
    """Return a moment of UTC."""
    return f"{short_day(value)}, {value:%H:%M}\N{NO-BREAK SPACE}UTC"


def written(text: str) -> str:
    """Return when a manifest was written; as it is if no export writes it like this."""
    try:
        return moment(datetime.fromisoformat(text).astimezone(UTC))
    except (ValueError, OverflowError):
        return text


def month(value: date) -> str:
    """Return the month of a day."""
    return f"{_MONTHS[value.month - 1]} {value.year}"


def days(value: DayRange) -> str:
    """Return a range of days."""
    first, last = value
    if first == last:
        return day(first)
    if (first.year, first.month) == (last.year, last.month):
        return f"{first.day} to {day(last)}"
    return f"{day(first)} to {day(last)}"


def ranges(values: Sequence[date]) -> list[DayRange]:
    """Return sorted days as ranges of consecutive ones."""
    found: list[DayRange] = []
    for value in values:
        if found and (value - found[-1].last).days == 1:
            found[-1] = DayRange(found[-1].first, value)
        else:
            found.append(DayRange(value, value))
    return found


def several_days(values: Sequence[DayRange], limit: int = 3) -> str:
    """Return ranges of days, the latest first, at most ``limit`` of them."""
    named = [days(each) for each in reversed(values)]
    more = f" and {len(named) - limit} more" if len(named) > limit else ""
    return f"{', '.join(named[:limit])}{more}"


def group(name: str | None, group_by: str, count: int = 1) -> str:
    """Return a group's name for people."""
    if count > 1:
        return f"{count} other groups"
    if name is None:
        return f"no {dimension(group_by)}"
    return name if name.strip() else '""'


def names(values: Sequence[str], limit: int = 10) -> str:
    """Return names, at most ``limit`` of them."""
    more = f" and {number(len(values) - limit)} more" if len(values) > limit else ""
    return f"{', '.join(values[:limit])}{more}"


def isolated(text: str) -> str:
    """Return text that can't reverse the figures around it, whatever its direction and the controls in it."""
    return f"\N{FIRST STRONG ISOLATE}{_DIRECTIONS.sub('', text)}\N{POP DIRECTIONAL ISOLATE}"


def dimension(group_by: str) -> str:
    """Return the name of a dimension."""
    return {"api_key": "API key"}.get(group_by, group_by.replace("_", " "))


def days_exported(usage: OrganizationUsage) -> str:
    """Return how many of a month's days that are over were exported, and how many days are over."""
    over = [each for each in usage.days if each.day < usage.today]
    return f"{sum(each.exported is not None for each in over)} of {len(over)}"


def credits_of(found: Iterable[Day]) -> list[Decimal | None]:
    """Return the credits of each day."""
    return [each.exported.credits if each.exported else None for each in found]


def describe_budget(summary: OrganizationSummary) -> str:
    """Describe the bar of an organization with a budget."""
    if summary.used is None:
        return "The service sent no credits for some days."
    within = f"used in {month(summary.month.first)}"
    budget = amount(summary.budget, summary.metric)
    text = f"{number(summary.used)} of {budget} {within}: {percent(summary.share)}."
    if summary.projection.total is not None:
        text += f" Projected: {rounded(summary.projection.total)}."
    return text


def describe_sparkline(summary: OrganizationSummary) -> str:
    """Describe the daily amounts of the last weeks."""
    found = [(amount, day) for day, amount in summary.daily if amount is not None]
    if not found:
        return f"No day of the last {len(summary.daily)} has figures."
    highest, on = max(found)
    return (
        f"{summary.metric.capitalize()} of the last {len(summary.daily)} days: "
        f"{count(len(found), 'day has', 'days have')} figures. "
        f"Highest: {number(highest)} on {day(on)}; latest: {number(found[-1][0])} on {day(found[-1][1])}."
    )


def describe_chart(usage: OrganizationUsage) -> str:
    """Describe the daily amounts of an organization's month."""
    text = f"Daily {usage.metric} of {month(usage.month.first)} by {dimension(usage.group_by)}."
    if usage.total is None:
        return f"{text} The service sent no credits for some rows."
    text += f" Total: {number(usage.total)}."
    if usage.groups:
        highest = max(usage.days, key=charts.day_total)
        largest: Group = usage.groups[0]
        name = isolated(group(largest.name, usage.group_by, largest.count))
        text += (
            f" Highest day: {day(highest.day)} with {number(charts.day_total(highest))}."
            f" Largest group: {name} with {percent(largest.share)}."
        )
    if absent := sum(each.status in ("never exported", "unreadable") for each in usage.days):
        text += f" Days without figures: {absent}."
    return text

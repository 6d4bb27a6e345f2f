"""One organization's month by a dimension: its largest groups, their daily amounts, and how each day was exported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal, localcontext
from typing import Final, Literal

from reducto_provider.export.exported_days import ExportedDay, ExportedDays
from reducto_provider.plugins.usage_page.overview import amount_of
from reducto_provider.usage.days import DayRange, month_of
from reducto_provider.usage.report import EXACT, Metric, UsageRow, sum_amounts

MAX_GROUPS: Final = 10
"""The groups that a chart tells apart. The others are one."""

RESTATED_DAYS: Final = 7
"""For how many days it is shown that an older day was written again."""

_SETTLED_DAYS: Final = 3
_ONE_DAY: Final = timedelta(days=1)
_ZERO: Final = Decimal(0)

DayStatus = Literal["exported", "no usage", "not final", "never exported", "unreadable", "to come"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """
    A group's total of a month. The rest of the groups has ``name`` None and ``count`` above 1.

    :param share: of the month's total, from 0 to 1.
    :param change: relative to the month before, see :class:`OrganizationUsage`; None if the group had no usage then.
    """

    name: str | None
    count: int
    amount: Decimal
    credits: Decimal | None
    request_count: int
    share: Decimal
    change: Decimal | None


@dataclass(frozen=True, kw_only=True)
class Day:
    """
    A day of a month.

    :param amounts: by place in the list of :attr:`OrganizationUsage.groups` that is shown.
    :param was_restated: whether it was written lately, days after it was over: restated, or exported late.
    """

    day: date
    status: DayStatus
    amount: Decimal | None
    amounts: tuple[Decimal, ...]
    exported: ExportedDay | None
    was_restated: bool


@dataclass(frozen=True, kw_only=True)
class OrganizationUsage:
    """
    An organization's month by a dimension.

    :param total: None if the service sent no credits for a row.
    :param groups: by amount, the largest first; at most :data:`MAX_GROUPS`, and the rest as one.
    :param compared: the days of the month that are compared with the month before: until the last complete one.
    :param before: the days of the month before that they are compared with, as many as there are.
    :param change: of the total; None if there is nothing to compare, or one of the days is not exported completely.
    """

    org_id: str
    group_by: str
    metric: Metric
    month: DayRange
    today: date
    total: Decimal | None
    groups: tuple[Group, ...]
    days: tuple[Day, ...]
    compared: DayRange | None
    before: DayRange | None
    change: Decimal | None
    rows: tuple[UsageRow, ...]


def months_needed(month: DayRange) -> DayRange:
    """Return the days of a month and of the one before, which it is compared with."""
    return DayRange(month_of(month.first - _ONE_DAY).first, month.last)


def organization_usage(
    org_id: str,
    group_by: str,
    exported: ExportedDays,
    rows: Sequence[UsageRow],
    metric: Metric,
    month: DayRange,
    today: date,
) -> OrganizationUsage:
    """
    Return an organization's month.

    :param exported: the days of :func:`months_needed`.
    :param rows: of these days.
    """
    of_month = _between(rows, month)
    compared, before = _compared(exported, month, today)
    pairs = [(_between(rows, compared), _between(rows, before))] if compared and before else []
    groups, places = _groups(of_month, metric, pairs)
    totals = [[sum_amounts(_amount(row, metric) for row in part) for part in pair] for pair in pairs]
    return OrganizationUsage(
        org_id=org_id,
        group_by=group_by,
        metric=metric,
        month=month,
        today=today,
        total=sum_amounts(_amount(row, metric) for row in of_month),
        groups=groups,
        days=tuple(_days(exported, of_month, metric, month, today, places, len(groups))),
        compared=compared,
        before=before,
        change=_change(*totals[0]) if totals else None,
        rows=tuple(of_month),
    )


def _between(rows: Iterable[UsageRow], days: DayRange) -> list[UsageRow]:
    return [row for row in rows if days.first <= row.date <= days.last]


def _change(amount: Decimal | None, before: Decimal | None) -> Decimal | None:
    if amount is None or not before:
        return None
    with localcontext(EXACT):
        return (amount - before) / before


def _amount(row: UsageRow, metric: Metric) -> Decimal | None:
    return row.credits if metric == "credits" else Decimal(row.request_count)


def _compared(exported: ExportedDays, month: DayRange, today: date) -> tuple[DayRange | None, DayRange | None]:
    """Return the days to compare, and those of the month before. Neither if one of them was not exported completely."""
    final = {day for day, each in exported.days.items() if each.is_final and day < today}
    last = max((day for day in final if month.first <= day <= month.last), default=None)
    if last is None:
        return None, None
    before = month_of(month.first - _ONE_DAY)
    if last < month.last:
        before = DayRange(before.first, min(before.last, before.first + (last - month.first)))
    compared = DayRange(month.first, last)
    if not final.issuperset({*compared.days(), *before.days()}):
        return None, None
    return compared, before


def _groups(
    rows: Sequence[UsageRow], metric: Metric, compared: Iterable[tuple[Sequence[UsageRow], Sequence[UsageRow]]]
) -> tuple[tuple[Group, ...], dict[str | None, int]]:
    """
    Return the groups to show, and each group's place among them. Without credits there are none.

    :param compared: the rows to compare and those of the month before, or nothing.
    """
    amounts = _sums(rows, metric)
    if amounts is None:
        return (), {}
    pairs = [(_sums(now, metric) or {}, _sums(before, metric) or {}) for now, before in compared]
    names = sorted(amounts, key=lambda name: (-amounts[name], name is not None, name or ""))
    shown = [[name] for name in names[:MAX_GROUPS]]
    if len(names) > MAX_GROUPS:
        shown.append(names[MAX_GROUPS:])
    places = {name: place for place, members in enumerate(shown) for name in members}
    members_rows: list[list[UsageRow]] = [[] for _ in shown]
    for row in rows:
        members_rows[places[row.group]].append(row)
    total = sum_amounts(amounts.values())
    groups = []
    for members, of_group in zip(shown, members_rows, strict=True):
        amount = _sum_of(amounts, members)
        changes = [_change(_sum_of(now, members), _sum_of(before, members)) for now, before in pairs]
        groups.append(
            Group(
                name=members[0] if len(members) == 1 else None,
                count=len(members),
                amount=amount,
                credits=sum_amounts(row.credits for row in of_group),
                request_count=sum(row.request_count for row in of_group),
                share=EXACT.divide(amount, total) if total else _ZERO,
                change=changes[0] if changes else None,
            )
        )
    return tuple(groups), places


def _sum_of(amounts: dict[str | None, Decimal], names: Iterable[str | None]) -> Decimal:
    with localcontext(EXACT):
        return sum((amounts.get(name, _ZERO) for name in names), _ZERO)


def _sums(rows: Iterable[UsageRow], metric: Metric) -> dict[str | None, Decimal] | None:
    sums: dict[str | None, Decimal] = {}
    with localcontext(EXACT):
        for row in rows:
            if (amount := _amount(row, metric)) is None:
                return None
            sums[row.group] = sums.get(row.group, _ZERO) + amount
    return sums


def _days(
    exported: ExportedDays,
    rows: Sequence[UsageRow],
    metric: Metric,
    month: DayRange,
    today: date,
    places: dict[str | None, int],
    count: int,
) -> Iterable[Day]:
    by_day: dict[date, list[Decimal]] = {day: [_ZERO] * count for day in month.days()}
    with localcontext(EXACT):
        for row in rows if places else ():
            by_day[row.date][places[row.group]] += _amount(row, metric) or _ZERO
    for day in month.days():
        found = exported.days.get(day)
        yield Day(
            day=day,
            status=_status(found, day in exported.unreadable, day, today),
            amount=amount_of(found, metric) if found else None,
            amounts=tuple(by_day[day]),
            exported=found,
            was_restated=found is not None and _was_restated(found, today),
        )


def _status(found: ExportedDay | None, is_unreadable: bool, day: date, today: date) -> DayStatus:
    if is_unreadable:
        return "unreadable"
    if found is None:
        return "never exported" if day < today else "to come"
    if not found.is_final:
        return "not final"
    return "exported" if found.row_count else "no usage"


def _was_restated(found: ExportedDay, today: date) -> bool:
    try:
        written = date.fromisoformat(found.exported_at[:10])
    except ValueError:
        return False
    return (written - found.day).days > _SETTLED_DAYS and (today - written).days < RESTATED_DAYS

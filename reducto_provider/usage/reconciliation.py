"""Compare reports by different dimensions: they are views of the same usage, so their totals of a day are equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Literal

from reducto_provider.usage.days import DayRange
from reducto_provider.usage.report import (
    CREDITS_SCALE,
    UsageContractError,
    UsageReport,
    UsageRow,
    format_decimal,
    sum_credits,
)

# Each value was rounded once to this unit, and may have had the error of a binary float before.
_UNIT = Decimal(1).scaleb(-CREDITS_SCALE)


@dataclass(frozen=True, kw_only=True)
class Discrepancy:
    """A day on which dimensions differ, with the total by each of them: None where credits are missing."""

    day: date
    metric: Literal["credits", "requests"]
    totals: Mapping[str, Decimal | None]

    def __str__(self) -> str:
        totals = {
            dimension: "no figure" if total is None else format_decimal(total)
            for dimension, total in self.totals.items()
        }
        text = f"{self.day}: {self.metric} by " + ", by ".join(f"{name} {total}" for name, total in totals.items())
        known = [total for total in self.totals.values() if total is not None]
        return f"{text} (difference {format_decimal(max(known) - min(known))})" if known else text


def reconcile(reports: Mapping[str, UsageReport]) -> list[Discrepancy]:
    """
    Return the days on which reports of the same usage by different dimensions disagree.

    Requests must be equal. Credits may differ by one rounding unit (the ninth decimal place) per row. Credits that no
    dimension has, as for accounts on newer pricing, are not compared.

    :param reports: by dimension; all of the same organization and days.
    :raises UsageContractError: for reports of different organizations or days, as when the key was replaced between
        two requests without ``org_id``.
    """
    ranges = {(report.org_id, report.start, report.end) for report in reports.values()}
    if len(ranges) != 1:
        answers = ", ".join(f"{org_id!r} on {DayRange(start, end)}" for org_id, start, end in sorted(ranges))
        raise UsageContractError(f"the dimensions are not of one organization and the same days, but of {answers}")
    [(_, start, end)] = ranges
    by_day = {dimension: _rows_by_day(report) for dimension, report in reports.items()}
    found = []
    for day in DayRange(start, end).days():
        rows = {dimension: days.get(day, []) for dimension, days in by_day.items()}
        requests = {name: Decimal(sum(row.request_count for row in each)) for name, each in rows.items()}
        if len(set(requests.values())) > 1:
            found.append(Discrepancy(day=day, metric="requests", totals=requests))
        credits = {name: sum_credits(each) for name, each in rows.items()}
        if not _agree(list(credits.values()), tolerance=_UNIT * sum(map(len, rows.values()))):
            found.append(Discrepancy(day=day, metric="credits", totals=credits))
    return found


def _agree(totals: list[Decimal | None], tolerance: Decimal) -> bool:
    known = [total for total in totals if total is not None]
    if len(known) < len(totals):
        return not any(known)  # a total of 0 is that of a day without rows
    return max(known) - min(known) <= tolerance


def _rows_by_day(report: UsageReport) -> dict[date, list[UsageRow]]:
    by_day: dict[date, list[UsageRow]] = {}
    for row in report.rows:
        by_day.setdefault(row.date, []).append(row)
    return by_day

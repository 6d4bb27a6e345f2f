"""The pages' figures of datasets at random, compared with what another computation makes of the same usage."""

from __future__ import annotations

import json
import os
import random
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from html.parser import HTMLParser
from typing import Any

import pytest
import time_machine

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.export.storage import open_storage
from reducto_provider.plugins.usage_page.pages import Links, organization_csv, organization_page, overview_page
from reducto_provider.plugins.usage_page.settings import PageDataset
from reducto_provider.plugins.usage_page.source import PageSource
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.wire import decode_report
from tests.plugins.html import Page

ORGS = (
    "org_acme",
    "a/../../b",
    "%2e%2e",
    "<svg onload=alert(1)>",
    '=HYPERLINK("x")',
    "\u202eorg\u0000\n",
    "\u00e9" * 40,
)
GROUPS = ("parse", "extract", "", None, "<b>", "=1+1", "\u202e", *(f"g{number}" for number in range(12)))
DIMENSIONS = ("product", "feature")
ONE = timedelta(days=1)


@dataclass
class Exported:
    """What the last export of a day wrote, and when."""

    groups: dict[str | None, tuple[Fraction, int]]
    is_final: bool
    at: date


@dataclass
class Truth:
    """The days of an organization by a dimension."""

    days: dict[date, Exported] = field(default_factory=dict)

    def total(self, day: date) -> Fraction:
        return sum((credits for credits, _ in self.days[day].groups.values()), Fraction(0))

    def requests(self, day: date) -> int:
        return sum(count for _, count in self.days[day].groups.values())

    def is_final(self, day: date) -> bool:
        return day in self.days and self.days[day].is_final


def span(first: date, last: date) -> list[date]:
    return [first + ONE * back for back in range((last - first).days + 1)]


def month_start(day: date) -> date:
    return day.replace(day=1)


def month_end(day: date) -> date:
    return month_start(month_start(day) + 32 * ONE) - ONE


class World:
    """A dataset at random, and the truth about it."""

    def __init__(self, seed: int, folder: str) -> None:
        self.random = random.Random(seed)
        self.location = folder
        self.today = date(2026, self.random.randint(2, 12), self.random.choice((1, 1, 2, 3, 14, 15, 27, 28)))
        self.truth: dict[tuple[str, str], Truth] = {}
        for org_id in self.random.sample(ORGS, 2):
            for group_by in self.random.sample(DIMENSIONS, self.random.randint(1, 2)):
                self._export(org_id, group_by)
        self.budgets = {org_id: self.random.choice((1, 100, 2000.5, 10**6)) for org_id, _ in self.truth}

    def _export(self, org_id: str, group_by: str) -> None:
        values, truth = self.random, self.truth.setdefault((org_id, group_by), Truth())
        gaps = values.choice((0, 0, 0, 0.03, 0.3))
        first = self.today - ONE * values.choice((2, 5, 20, 45, 75))
        groups = values.sample(GROUPS, values.choice((1, 3, len(GROUPS))))
        for start in span(first, self.today)[:: values.choice((1, 7))]:
            days = [day for day in span(start, min(start + 6 * ONE, self.today)) if day not in truth.days]
            if days and values.random() >= gaps:
                # Most days are exported when they are over; some on the day itself, and some a second time.
                at = days[-1] + ONE * values.choice((0, 1, 1, 1, 1, 1, 2, 9))
                self._publish(org_id, group_by, days, min(at, self.today), groups)
        for day in values.sample(sorted(truth.days), min(2, len(truth.days))):
            self._publish(org_id, group_by, [day], self.today, groups)

    def _publish(self, org_id: str, group_by: str, days: list[date], at: date, groups: list[str | None]) -> None:
        values, truth, data = self.random, self.truth[org_id, group_by], []
        for day in days:
            exported = Exported({}, day < at, at)
            for group in groups if values.random() > 0.15 else ():
                if values.random() < 0.8:
                    credits, count = values.choice((0, 1, 230.1, values.random() * 900)), values.randint(0, 999)
                    credits = round(credits, 9)
                    exported.groups[group] = Fraction(repr(credits)), count
                    data.append({"date": str(day), "group": group, "credits": credits, "requestCount": count})
            truth.days[day] = exported
        query = UsageQuery(start=days[0], end=days[-1], org_id=org_id, group_by=group_by)
        echo = {"orgId": org_id, "startDate": str(days[0]), "endDate": str(days[-1]), "groupBy": group_by}
        report = decode_report(json.dumps({**echo, "data": data}).encode(), query)
        with time_machine.travel(datetime(at.year, at.month, at.day, 12, tzinfo=UTC), tick=False):
            UsageDataset(open_storage(self.location), check_format("jsonl"), {}).publish(report, query, run="d/r/t")


class Table(HTMLParser):
    """The tables of a page, as texts, and the text of each element of a definition list."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tiles: list[str] = []
        self.cards: list[str] = []
        self._into: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._into = self.rows[-1]
        if tag in ("dt", "dd"):
            self.tiles.append("")
            self._into = self.tiles
        if tag == "li" and not attributes:
            self.cards.append("")
            self._into = self.cards

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "dt", "dd", "ul"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data


def number(text: str) -> Fraction:
    found = re.match(r"[\d,]+(\.\d+)?", text)
    assert found, text
    return Fraction(found[0].replace(",", ""))


def mean_of_weekdays(truth: Truth, month: date, since: date) -> dict[int, Fraction] | None:
    """Return the formula's means, from docs/projection.md."""
    history = span(month_start(month) - 28 * ONE, since - ONE)
    with_rows = [day for day in history if day in truth.days and truth.days[day].groups]
    if not with_rows:
        return None
    complete = (since - with_rows[0]).days
    if complete < 3:
        return None
    weeks = min(complete // 7, 4)
    total = {day: truth.total(day) if day in truth.days else Fraction(0) for day in history}
    if weeks < 2:
        taken = history[-complete:]
        return dict.fromkeys(range(7), sum((total[day] for day in taken), Fraction(0)) / complete)
    taken = history[-7 * weeks :]
    return {
        number: sum((total[day] for day in taken if day.weekday() == number), Fraction(0)) / weeks
        for number in range(7)
    }


def projected(truth: Truth, today: date) -> Fraction | None:
    first, last = month_start(today), month_end(today)
    final = [day for day in truth.days if day < today and truth.is_final(day)]
    since = max(first, max(final) + ONE) if final else today
    latest = max([since, *truth.days])
    begin = min(truth.days)
    for day in span(min(first, since - 28 * ONE), latest - ONE):
        if (day >= begin or day >= first) and not truth.is_final(day):
            return None
    means = mean_of_weekdays(truth, today, since)
    if means is None:
        return None
    used = sum((truth.total(day) for day in span(first, since - ONE)), Fraction(0))
    now = max(truth.total(since) if since in truth.days else Fraction(0), means[since.weekday()])
    return used + now + sum((means[day.weekday()] for day in span(since + ONE, last)), Fraction(0))


def missing(truth: Truth, today: date) -> set[date]:
    first = max(min(today - 59 * ONE, month_start(today) - 28 * ONE), min(truth.days))
    return {day for day in span(first, today - ONE) if day not in truth.days}


SEEDS = range(int(os.environ.get("SEEDS", "6")))


@pytest.fixture(params=SEEDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        yield World(request.param, folder)


def test_the_overview(world):
    source = PageSource(PageDataset(name="a", path=world.location, budgets=world.budgets))
    found = source.overview(world.today, 60)
    assert found.unread == 0
    html = overview_page(
        found.info,
        found.summaries,
        datasets=[],
        page=1,
        unread=0,
        unproven=0,
        today=world.today,
        links=Links(dataset=0),
    )
    Page(html).check_harmless()
    cards = [" ".join(card.split()) for card in Table(html).cards]
    orgs = {org_id for org_id, _ in world.truth}
    assert len(cards) == len(found.summaries) == len(orgs)
    used = {}
    for summary, card in zip(found.summaries, cards, strict=True):
        truth = world.truth[summary.org_id, summary.group_by]
        first = month_start(world.today)
        days = [day for day in truth.days if first <= day <= world.today]
        # The dimension that has the most of the month: the others know less.
        known = [
            sum(each.is_final(day) for day in span(min(first, world.today - ONE), world.today - ONE))
            for (org_id, _), each in world.truth.items()
            if org_id == summary.org_id
        ]
        assert max(known) == sum(truth.is_final(day) for day in span(min(first, world.today - ONE), world.today - ONE))
        total = sum((truth.total(day) for day in days), Fraction(0))
        used[summary.org_id] = total
        shown = re.search(r"([\d,.]+) of ([\d,.]+) credits? \(([\d,.]+).%\)", card)
        assert shown
        budget = Fraction(str(world.budgets[summary.org_id]))
        assert number(shown[1]) == total
        assert number(shown[2]) == budget
        assert number(shown[3]) == Fraction(int(total * 1000 / budget), 10)
        expected = projected(truth, world.today)
        if expected is None:
            assert "No projection: " in card
        else:
            assert abs(number(card.partition("Projected for")[2].partition(": ")[2]) - expected) <= Fraction(1, 19)
            assert expected >= total
        assert set().union(*(set(each.days()) for each in summary.gaps)) == missing(truth, world.today)
        assert ("Never exported" in card) == bool(missing(truth, world.today))
        running, exceeded = Fraction(0), None
        for day in sorted(days):
            running += truth.total(day)
            exceeded = exceeded or (day if running > budget else None)
        if exceeded:
            assert f"Over budget since {exceeded.day} {exceeded:%b %Y}" in card
        else:
            assert ("Projected to exceed" in card) == (expected is not None and expected > budget + Fraction(1, 10**9))
    shares = [used[each.org_id] / Fraction(str(world.budgets[each.org_id])) for each in found.summaries]
    assert shares == sorted(shares, reverse=True)


def test_an_organization(world):
    source = PageSource(PageDataset(name="a", path=world.location))
    for (org_id, group_by), truth in world.truth.items():
        for chosen in {month_start(world.today), month_start(month_start(world.today) - ONE)}:
            info, usage, choices = source.organization(org_id, group_by, chosen, world.today)
            html = organization_page(info, usage, choices=choices, links=Links(dataset=0))
            Page(html).check_harmless()
            table = Table(html)
            month = span(chosen, month_end(chosen))
            amounts: dict[str | None, Fraction] = {}
            for day in month:
                for group, (credits, _) in truth.days[day].groups.items() if day in truth.days else ():
                    amounts[group] = amounts.get(group, Fraction(0)) + credits
            total = sum(amounts.values(), Fraction(0))
            assert number(table.tiles[1]) == total
            self_days = [row for row in table.rows if re.match(r"\d+.[A-Z]", row[0])]
            assert len(self_days) == sum(day <= world.today or day in truth.days for day in month) - (
                world.today in month and world.today not in truth.days
            )
            for day, row in zip(month, self_days, strict=False):
                if day in truth.days:
                    assert (number(row[1]), number(row[2])) == (truth.total(day), truth.requests(day))
                    final = "exported" if truth.days[day].groups else "no usage"
                    assert row[3] == (final if truth.is_final(day) else "not final")
                else:
                    assert row[1:4] == ["\u2013", "\u2013", "never exported"]
            compare(usage, truth, chosen, world.today, total)
            if total:
                check_groups(table, amounts, total)
            rows = organization_csv(usage).splitlines()
            assert len(rows) >= 1 + sum(len(truth.days[day].groups) for day in month if day in truth.days)
            assert not re.search(r"(^|,)\"?\s*[=+@]", "\n".join(rows), re.MULTILINE)


def check_groups(table: Table, amounts: dict[str | None, Fraction], total: Fraction) -> None:
    shown = table.rows[1 : 1 + min(len(amounts), 11)]
    ordered = sorted(amounts.values(), reverse=True)
    expected = ordered[:10] + ([sum(ordered[10:], Fraction(0))] if len(ordered) > 10 else [])
    assert [number(row[1]) for row in shown] == expected
    assert [number(row[4]) for row in shown] == [Fraction(int(each * 1000 / total), 10) for each in expected]
    assert sum(number(row[1]) for row in shown) == total


def compare(usage: Any, truth: Truth, chosen: date, today: date, total: Fraction) -> None:
    final = [day for day in span(chosen, month_end(chosen)) if day < today and truth.is_final(day)]
    before = month_start(chosen - ONE)
    if not final:
        assert usage.change is None
        return
    last = final[-1]
    end = chosen - ONE if last == month_end(chosen) else min(chosen - ONE, before + (last - chosen))
    days = [*span(before, end), *span(chosen, last)]
    if not all(truth.is_final(day) for day in days):
        assert (usage.change, usage.compared) == (None, None)
        return
    now = sum((truth.total(day) for day in span(chosen, last)), Fraction(0))
    then = sum((truth.total(day) for day in span(before, end)), Fraction(0))
    if then:
        assert abs(Fraction(usage.change) - (now - then) / then) < Fraction(1, 10**20)
    else:
        assert usage.change is None

"""The charts' geometry."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from reducto_provider.plugins.usage_page import charts


def month(*amounts: str, metric: str = "credits") -> Any:
    """A month with days of these amounts."""
    days = [
        SimpleNamespace(day=date(2026, 11, number), status="exported", amounts=tuple(map(Decimal, each.split())))
        for number, each in enumerate(amounts, 1)
    ]
    return SimpleNamespace(days=days, metric=metric)


@pytest.mark.parametrize(
    ("largest", "lines"),
    [
        ("2967.6", ["3000", "2000", "1000", "0"]),
        ("1000", ["1000", "800", "600", "400", "200", "0"]),
        ("1001", ["1500", "1000", "500", "0"]),
        ("0.000000001", ["0.000000001", "8E-10", "6E-10", "4E-10", "2E-10", "0"]),
        ("0", ["0"]),
    ],
)
def test_the_lines_are_round_and_reach_the_largest_day(largest, lines):
    assert charts.axis(month("1e-12" if largest != "0" else "0", largest)) == [Decimal(line) for line in lines]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 13])
def test_no_line_is_at_a_part_of_a_request(count):
    assert all(line == int(line) for line in charts.axis(month(str(count), metric="requests")))


@pytest.mark.parametrize("exponent", range(-9, 29))
@pytest.mark.parametrize("digits", ["1", "1.000000001", "2.5", "4.999", "5", "9.999999"])
def test_there_are_few_lines_whatever_the_amount(digits, exponent):
    largest = Decimal(digits).scaleb(exponent)
    lines = charts.axis(month(f"{largest:f}"))
    assert 2 <= len(lines) <= 6
    assert lines[1] < largest <= lines[0]


def test_a_day_s_groups_stand_on_each_other():
    first, second = charts.stacked_columns(month("30 10", "0 80"), ["one", "two"], Decimal(100))
    assert [(rect.kind, rect.y, rect.height) for rect in first.rects] == [("g0", 70, 30), ("g1", 60, 10)]
    assert [(rect.kind, rect.y, rect.height) for rect in second.rects] == [("g1", 20, 80)]


def test_before_the_first_export_nothing_is_missing():
    days = [
        (date(2026, 11, number), amount) for number, amount in enumerate((None, Decimal(1), None, Decimal(2), None), 1)
    ]
    found = charts.sparkline(SimpleNamespace(daily=tuple(days), first_exported=date(2026, 11, 2)))
    assert [(rect.kind, int(rect.x)) for rect in found] == [("used", 1), ("gap", 2), ("used", 3)]

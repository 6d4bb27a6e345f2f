"""Figures in words."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from reducto_provider.plugins.usage_page import words
from reducto_provider.usage.days import DayRange


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("1234567.890000000"), "1,234,567.89"),
        (Decimal("1E+3"), "1,000"),
        (Decimal("0.000000001"), "0.000000001"),
        (Decimal("0E-9"), "0"),
        (75, "75"),
        (1000, "1,000"),
        (None, "\N{EN DASH}"),
    ],
)
def test_numbers_are_exact(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [("0.9999", "99.9 %"), ("1", "100 %"), ("4.832", "483.2 %"), ("0", "0 %"), ("0.0005", "0 %")]
)
def test_percentages_are_rounded_down(value, text):
    assert words.percent(Decimal(value)) == text.replace(" ", "\N{NO-BREAK SPACE}")


@pytest.mark.parametrize(
    ("value", "text"), [("0.5", "+50 %"), ("-0.051", "\N{MINUS SIGN}5.1 %"), ("0.0001", "0 %"), ("-0.0001", "0 %")]
)
def test_changes_have_a_sign(value, text):
    assert words.change(Decimal(value)) == text.replace(" ", "\N{NO-BREAK SPACE}")


def test_days():
    assert words.days(DayRange(date(2026, 11, 3), date(2026, 11, 3))) == "3 November 2026"
    assert words.days(DayRange(date(2026, 11, 3), date(2026, 11, 9))) == "3 to 9 November 2026"
    assert words.days(DayRange(date(2025, 11, 3), date(2026, 11, 9))) == "3 November 2025 to 9 November 2026"
    single = [DayRange(date(2026, 11, day), date(2026, 11, day)) for day in (1, 3, 5, 7)]
    assert words.several_days(single[:2]) == "3 November 2026, 1 November 2026"
    assert words.several_days(single).endswith("3 November 2026 and 1 more")
    assert words.ranges([date(2026, 11, 1), date(2026, 11, 2), date(2026, 11, 4)]) == [
        DayRange(date(2026, 11, 1), date(2026, 11, 2)),
        DayRange(date(2026, 11, 4), date(2026, 11, 4)),
    ]


@pytest.mark.parametrize(
    ("name", "count", "text"), [(None, 1, "no API key"), ("", 1, '""'), (None, 4, "4 other groups"), ("a", 1, "a")]
)
def test_groups(name, count, text):
    assert words.group(name, "api_key", count) == text


def test_names():
    assert words.names(["a", "b"]) == "a, b"
    assert words.names([str(number) for number in range(1012)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 1,002 more"


@pytest.mark.parametrize("name", ["key", "\u202ekey", "k\u2069\u202ee\u2066y\u202b", "\u2067key\u2069"])
def test_a_name_reverses_nothing_around_it(name):
    assert words.isolated(name) == "\N{FIRST STRONG ISOLATE}key\N{POP DIRECTIONAL ISOLATE}"


def test_a_column_has_the_same_decimal_places():
    assert words.column([Decimal("1234.5"), None, 7, Decimal("0.125")]) == [
        "1,234.500",
        words.MISSING,
        "7.000",
        "0.125",
    ]
    assert words.column([1000, None]) == ["1,000", words.MISSING]
    assert words.column([]) == []


def test_one_is_singular():
    assert [words.amount(Decimal(value), "credits") for value in ("1", "1.0", "0.1", "2")] == [
        *("1 credit", "1 credit", "0.1 credits", "2 credits")
    ]
    assert words.amount(None, "requests") == f"{words.MISSING} requests"
    assert words.count(1, "organization") == "1 organization"
    assert words.count(1000, "organization is", "organizations are") == "1,000 organizations are"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-11-21T06:05:59+00:00", "21 Nov 2026, 06:05 UTC"),
        ("2026-11-21T01:00:00+02:00", "20 Nov 2026, 23:00 UTC"),
        ("0001-01-01T00:00:00+09:00", "0001-01-01T00:00:00+09:00"),
        ("<b>", "<b>"),
    ],
)
def test_when_a_manifest_was_written(text, shown):
    assert words.written(text).replace("\N{NO-BREAK SPACE}", " ") == shown

"""A report's totals to the last digit, and how its figures are written."""

from __future__ import annotations

from datetime import date
from decimal import Decimal, localcontext

import pytest

from reducto_provider.usage.report import format_decimal, json_number

NINES = "9" * 29


def test_a_total_is_exact(decode, row):
    days = [f'"2026-06-{day:02}"' for day in range(1, 11)]

    assert decode(*[row(date=day, credits="0.1") for day in days]).credits == Decimal(1)


def test_a_total_is_exact_beyond_the_digits_of_one_value(decode, row):
    rows = [row(group=f'"{number}"', credits=f"{NINES}.999999999") for number in range(100)]

    assert decode(*rows, row(credits="0.000000001")).credits == Decimal(f"{NINES}99.999999901")


def test_the_callers_decimal_context_has_no_say(decode, row):
    rows = [row(group=f'"{number}"', credits="123456.123456789") for number in range(3)]

    with localcontext(prec=3):
        report = decode(*rows)
        assert report.credits == Decimal("370368.370370367")
    assert {each.credits for each in report.rows} == {Decimal("123456.123456789")}


@pytest.mark.parametrize(
    ("value", "text", "number"),
    [
        ("0E-9", "0", 0),
        ("230.100000000", "230.1", 230.1),
        ("100.000000000", "100", 100),
        ("1E+3", "1000", 1000),
        ("9007199254740993.000000000", "9007199254740993", 9007199254740993),
        ("0.000000001", "0.000000001", 1e-9),
        ("18446744073709551615", "18446744073709551615", 2**64 - 1),
        ("18446744073709551616", "18446744073709551616", 2.0**64),
        ("1E+28", "1" + "0" * 28, 1e28),
    ],
)
def test_as_people_and_json_write_it(value, text, number):
    assert format_decimal(Decimal(value)) == text
    assert json_number(Decimal(value)) == number
    assert isinstance(json_number(Decimal(value)), type(number))


def test_sums_of_the_same_report_do_not_mix(report):
    usage = report(
        ("parse", "2", 30, "2026-06-01"), ("parse", "3", 50, "2026-06-02"), ("extract", "7", 110, "2026-06-02")
    )
    first, since = date(2026, 6, 1), date(2026, 6, 2)

    for _ in range(2):
        assert usage.amounts("credits", per_group=False) == {None: 12}
        assert usage.amounts("credits", per_group=False, since=since) == {None: 10}
        assert usage.amounts("credits", per_group=True, since=since) == {"parse": 3, "extract": 7}
        assert usage.amounts("requests", per_group=False, since=since) == {None: 160}
        assert usage.daily_amounts("credits", per_group=False) == {None: {first: 2, since: 10}}
        assert usage.daily_amounts("requests", per_group=False) == {None: {first: 30, since: 160}}
        assert usage.daily_amounts("credits", per_group=True)["extract"] == {since: 7}


def test_each_day_has_its_rows_and_sums(report):
    usage = report(
        ("parse", "2", 30, "2026-06-01"),
        ("extract", "3.5", 50, "2026-06-03"),
        ("parse", "null", 110, "2026-06-04"),
        ("parse", "7", 1, "2026-06-03"),
    )
    first, second, third, fourth = (usage.usage_on(date(2026, 6, day)) for day in range(1, 5))

    assert [str(day) for day in usage.days] == ["2026-06-01", "2026-06-03", "2026-06-04"]
    assert first.rows + third.rows + fourth.rows == usage.rows
    assert (first.credits, third.credits, fourth.credits) == (2, Decimal("10.5"), None)
    assert [each.request_count for each in (first, second, third, fourth)] == [30, 0, 51, 110]
    assert (second.rows, second.credits) == ((), 0)
    assert (usage.credits, usage.request_count) == (None, 191)

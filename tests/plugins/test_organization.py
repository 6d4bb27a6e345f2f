"""One organization's month."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from reducto_provider.export.reader import UsageReader
from reducto_provider.export.storage import open_storage
from reducto_provider.plugins.usage_page.organization import months_needed, organization_usage
from reducto_provider.usage.days import DayRange

TODAY = date(2026, 11, 21)
NOVEMBER = DayRange(date(2026, 11, 1), date(2026, 11, 30))
BOTH = DayRange(date(2026, 10, 1), date(2026, 11, 20))


@pytest.fixture
def usage(publish):
    """What an organization's page shows of these amounts by group."""

    def make(amounts, metric="credits", month=NOVEMBER, **fields):
        reader = UsageReader(open_storage(publish(amounts, **{"days": BOTH, **fields})))
        exported = reader.exported_days("org_acme", "product", months_needed(month))
        rows = reader.rows("org_acme", "product", exported.days.values())
        return organization_usage("org_acme", "product", exported, rows, metric, month, TODAY)

    return make


def test_totals_shares_and_changes(usage):
    found = usage(
        {
            date(2026, 10, 3): {"parse": 8, "split": 1},
            date(2026, 10, 25): {"parse": 100},  # after the days that are compared
            date(2026, 11, 1): {"parse": 10, "extract": 2},
            date(2026, 11, 20): {"parse": 2, "extract": 1.1},
        }
    )
    assert (found.total, found.compared, found.before) == (
        Decimal("15.1"),
        DayRange(date(2026, 11, 1), date(2026, 11, 20)),
        DayRange(date(2026, 10, 1), date(2026, 10, 20)),
    )
    assert [(each.name, each.amount, each.request_count, each.change) for each in found.groups] == [
        ("parse", 12, 6, Decimal("0.5")),
        ("extract", Decimal("3.1"), 6, None),
    ]
    assert abs(1 - sum(each.share for each in found.groups)) < Decimal("1e-27")
    assert abs(found.change * 9 - Decimal("6.1")) < Decimal("1e-27")
    assert found.days[0].amounts == (10, 2)


def test_requests(usage):
    found = usage({date(2026, 11, 1): {"parse": 10, "extract": 99}}, metric="requests")
    assert (found.total, [each.amount for each in found.groups]) == (6, [3, 3])


def test_a_month_that_is_over_is_compared_as_a_whole(usage):
    october = DayRange(date(2026, 10, 1), date(2026, 10, 31))
    found = usage(
        {date(2026, 9, 30): {"a": 1}, date(2026, 10, 31): {"a": 3}},
        month=october,
        days=DayRange(date(2026, 9, 1), date(2026, 11, 2)),
    )
    assert (found.compared, found.before, found.change) == (
        october,
        DayRange(date(2026, 9, 1), date(2026, 9, 30)),
        2,
    )


@pytest.mark.parametrize("first", [date(2026, 10, 2), date(2026, 11, 1)])
def test_nothing_is_compared_with_days_that_are_not_exported(usage, first):
    found = usage({date(2026, 11, 5): {"a": 3}}, days=DayRange(first, date(2026, 11, 20)))
    assert (found.compared, found.before, found.change, found.groups[0].change) == (None, None, None, None)


def test_today_is_not_compared(usage):
    found = usage(
        {date(2026, 10, 21): {"a": 50}, date(2026, 10, 2): {"a": 1}, date(2026, 11, 2): {"a": 3}, TODAY: {"a": 9}},
        days=DayRange(date(2026, 10, 1), TODAY),
    )
    assert (found.total, found.compared.last, found.change) == (12, date(2026, 11, 20), 2)
    assert found.days[20].status == "not final"


def test_the_largest_ten_and_the_rest(usage):
    found = usage({date(2026, 11, 1): {**{f"g{number:02}": 100 - number for number in range(13)}, None: 1, "": 2}})
    assert [each.name for each in found.groups] == [*(f"g{number:02}" for number in range(10)), None]
    rest = found.groups[-1]
    assert (rest.count, rest.amount) == (5, 90 + 89 + 88 + 1 + 2)
    assert sum(found.days[0].amounts) == found.total == sum(each.amount for each in found.groups)


def test_no_credits(usage):
    found = usage({date(2026, 11, 1): {"a": None, "b": 1}})
    assert (found.total, found.groups, found.days[0].amount) == (None, (), None)


def test_the_state_of_each_day(usage):
    found = usage({date(2026, 11, 3): {"a": 1}}, days=DayRange(date(2026, 11, 2), TODAY))
    states = {each.day.day: each.status for each in found.days}
    assert [states[day] for day in (1, 2, 3, 20, 21, 22)] == [
        *("never exported", "no usage", "exported", "no usage", "not final", "to come")
    ]


def test_days_written_lately_although_long_over(usage):
    found = usage({date(2026, 11, 3): {"a": 1}}, at="2026-11-19T00:00:00Z", days=DayRange(date(2026, 11, 1), TODAY))
    assert [each.day.day for each in found.days if each.was_restated] == list(range(1, 16))
    found = usage({date(2026, 11, 3): {"a": 1}}, at="2026-11-14T00:00:00Z", folder="other")
    assert not any(each.was_restated for each in found.days)

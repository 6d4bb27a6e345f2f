"""The overview's figures."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

import pytest

from reducto_provider.plugins.usage_page import words
from reducto_provider.plugins.usage_page.overview import Totals, days_needed, sort_summaries, summarize
from reducto_provider.usage.days import DayRange

TODAY = date(2026, 11, 21)
YESTERDAY = date(2026, 11, 20)


def days(first: date, last: date = YESTERDAY) -> list[date]:
    return list(DayRange(first, last).days())


@pytest.fixture
def summary(exported):
    def make(amounts, budget=None, metric="credits", today=TODAY, **fields):
        return summarize("org_acme", "product", exported(amounts, **fields), metric, budget and Decimal(budget), today)

    return make


FULL = dict.fromkeys(days(date(2026, 9, 23)), "10.1")


class TestMonth:
    def test_only_its_days_count(self, summary):
        found = summary(FULL, 400)
        assert (found.used, found.share) == (Decimal("202.0"), Decimal("0.505"))
        assert summary(FULL, metric="requests").used == 140

    def test_today_counts(self, summary):
        assert summary({**FULL, TODAY: "1"}, not_final=(TODAY,)).used == Decimal("203.0")

    def test_no_credits_are_not_zero(self, summary):
        found = summary({**FULL, YESTERDAY: "none"}, 400)
        assert (found.used, found.share, found.projection.total, found.exceeded_on) == (None, None, None, None)
        assert found.projection.reason == "the service sent no credits for some days"
        assert summary({**FULL, YESTERDAY: "none"}, metric="requests").used == 140

    def test_nothing_exported(self, summary):
        found = summary({})
        assert (found.used, found.last_exported, found.gaps) == (Decimal(0), None, ())
        assert found.projection.total is None


class TestProjection:
    def test_it_is_the_rate_of_the_weekdays(self, summary):
        found = summary(FULL)
        assert (found.projection.total, found.projection.since) == (Decimal("303"), TODAY)

    def test_it_begins_after_the_last_complete_day(self, summary):
        found = summary({day: amount for day, amount in FULL.items() if day < date(2026, 11, 16)})
        assert (found.projection.total, found.projection.since) == (Decimal("303"), date(2026, 11, 16))

    def test_a_last_day_that_is_not_complete_is_its_first(self, summary):
        found = summary({**FULL, YESTERDAY: "50"}, not_final=(YESTERDAY,))
        assert (found.projection.total, found.projection.since) == (Decimal("342.9"), YESTERDAY)

    def test_a_gap_forbids_it(self, summary):
        gap = date(2026, 11, 3)
        found = summary({day: amount for day, amount in FULL.items() if day != gap})
        assert (found.projection.total, found.projection.reason) == (
            None,
            "a day it is made of is not completely exported",
        )
        assert found.gaps == (DayRange(gap, gap),)

    def test_a_gap_before_its_weeks_does_not(self, summary):
        gap = date(2026, 10, 1)
        found = summary({day: amount for day, amount in FULL.items() if day != gap})
        assert (found.projection.total, found.gaps) == (Decimal("303"), (DayRange(gap, gap),))

    @pytest.mark.parametrize("how", ["not_final", "unreadable"])
    def test_a_day_that_is_not_complete_forbids_it(self, summary, how):
        day = date(2026, 11, 9)
        amounts = FULL if how == "not_final" else {each: amount for each, amount in FULL.items() if each != day}
        found = summary(amounts, **{how: (day,)})
        assert found.projection.total is None
        assert getattr(found, how) == (day,)
        assert found.gaps == ()

    def test_days_before_the_first_export_of_the_month_are_missing(self, summary):
        found = summary(dict.fromkeys(days(date(2026, 11, 5)), "1"))
        assert found.projection.reason == "4 days it is made of are not completely exported"

    def test_too_few_days(self, summary):
        found = summary(dict.fromkeys(days(date(2026, 11, 1), date(2026, 11, 2)), "1"), today=date(2026, 11, 3))
        assert found.projection.reason == "there are too few complete days"

    def test_exports_that_stopped_before_the_month(self, summary):
        found = summary(dict.fromkeys(days(date(2026, 9, 23), date(2026, 10, 20)), "1"))
        assert found.projection.total is None
        assert found.gaps == (DayRange(date(2026, 10, 21), YESTERDAY),)

    @pytest.mark.parametrize("day", days(date(2026, 10, 1), date(2026, 12, 2)))
    def test_every_day_has_one(self, summary, day):
        amounts = dict.fromkeys(days(day - timedelta(days=70), day - timedelta(days=1)), "1")
        found = summary(amounts, "31.5", today=day)
        assert found.projection.total == found.month.length
        assert found.exceeded_on is None

    def test_it_is_that_of_a_sensor_which_requests_no_earlier_days(self, summary):
        """History begins with the first day with usage: of four weeks before the month, not of sixty days."""
        usage = dict.fromkeys(days(date(2026, 9, 1), date(2026, 10, 31)))
        usage |= dict.fromkeys(days(date(2026, 9, 2), date(2026, 9, 10)), "1")
        usage |= dict.fromkeys(days(date(2026, 10, 15), date(2026, 10, 31)), "1")
        assert summary(usage, today=date(2026, 11, 1)).projection.total == 30

    def test_what_a_later_day_has_is_not_left_out(self, summary):
        """Today has been exported, yesterday has not: the projection would be less than what is used."""
        usage = {day: amount for day, amount in FULL.items() if day < YESTERDAY}
        found = summary({**usage, TODAY: "900"}, not_final=(TODAY,))
        assert found.used == Decimal("1091.9")
        assert found.projection.reason == "a day it is made of is not completely exported"
        found = summary({**FULL, TODAY: "900"}, not_final=(TODAY,))
        assert found.projection.total == Decimal("1192.9")


class TestBudget:
    def test_the_day_it_was_exceeded(self, summary):
        assert summary(FULL, "50.5").exceeded_on == date(2026, 11, 6)
        assert summary(FULL, "50.5").is_exceeded
        assert summary(FULL, "50.4").exceeded_on == date(2026, 11, 5)

    def test_the_day_it_will_be(self, summary):
        found = summary(FULL, "250")
        assert (found.exceeded_on, found.is_exceeded) == (date(2026, 11, 25), False)
        assert summary(FULL, "302.9").exceeded_on == date(2026, 11, 30)

    def test_equal_is_not_exceeded(self, summary):
        assert summary(FULL, "303").exceeded_on is None
        assert summary(FULL, "202").is_exceeded is False
        assert summary(FULL, "202").exceeded_on == TODAY

    def test_of_any_size(self, summary):
        huge, least = "99999999999999999999999999999.999999999", "0.000000001"
        found = summary({**FULL, YESTERDAY: huge}, least)
        assert found.share == Decimal("100000000000000000000000000191899999999")
        assert words.percent(found.share).startswith("10,000,000,000")
        assert words.number(found.used) == "100,000,000,000,000,000,000,000,000,191.899999999"
        assert words.rounded(found.projection.total).startswith("1")


class TestTotals:
    def test_each_organization_counts_once(self, summary):
        gap = {day: amount for day, amount in FULL.items() if day != date(2026, 11, 10)}
        found = Totals.of([summary(FULL, 50), summary(FULL, 250), summary(FULL, 9999), summary(FULL), summary(gap)])
        assert found == Totals(used=Decimal("999.9"), exceeded=1, expected=1, incomplete=1, failed=0)
        assert Totals.of([summary(FULL), summary({**FULL, YESTERDAY: "none"})]).used is None


class TestSparkline:
    def test_a_day_without_usage_is_told_from_a_gap(self, summary):
        amounts = {**FULL, date(2026, 11, 10): None}
        del amounts[date(2026, 11, 11)]
        daily = dict(summary(amounts).daily)
        assert len(daily) == 60
        assert (daily[date(2026, 11, 10)], daily[date(2026, 11, 11)], daily[TODAY]) == (0, None, None)


def test_the_closest_to_its_budget_is_first(summary):
    def of(org_id, amounts, budget):
        found = summary(amounts, budget)
        return found.__class__(**{**vars(found), "org_id": org_id})

    summaries = [
        of("small", {YESTERDAY: "1"}, None),
        of("large", {YESTERDAY: "900"}, None),
        of("half", {YESTERDAY: "50"}, 100),
        of("over", {YESTERDAY: "20"}, 10),
        of("unknown", {YESTERDAY: "none"}, 10),
    ]
    assert [each.org_id for each in sort_summaries(summaries)] == ["over", "half", "large", "small", "unknown"]


def test_what_is_read_is_what_a_projection_and_the_sparkline_need():
    assert days_needed(TODAY) == DayRange(date(2026, 9, 23), TODAY)
    assert days_needed(date(2026, 10, 31)) == DayRange(date(2026, 9, 2), date(2026, 10, 31))
    assert days_needed(date(2026, 12, 31)).first == date(2026, 11, 2)

"""The projected usage of a window: by weekday where there is history, else by the mean of the complete days."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.projection import first_day_of_history, project
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import CreditsUnavailableError, UsageReport, UsageRow
from reducto_provider.usage.threshold import UsageThreshold

FIRST = date(2026, 6, 1)  # a Monday
CREDITS = st.decimals(min_value=0, max_value=10**15, places=9)
WEEKS = st.lists(CREDITS, min_size=7, max_size=7)
GROUPS = st.sampled_from(["parse", "extract", "", None])


def on(offset, first=FIRST):
    """Return a moment of a day of the window; the first day is 0."""
    return datetime.combine(first + timedelta(days=offset), time(12), tzinfo=UTC)


def report(*days, first=FIRST, requests=1):
    """Return a report of each day's credits, or its credits by group; None for a day without a row."""
    by_group = [day if isinstance(day, dict) else {"parse": day} for day in days]
    rows = [
        UsageRow(first + timedelta(days=offset), group, None if credits == "none" else Decimal(credits), requests)
        for offset, groups in enumerate(by_group)
        for group, credits in groups.items()
        if credits is not None
    ]
    last = first + timedelta(days=max(len(days) - 1, 0))
    return UsageReport(org_id="org_acme", start=first, end=last, group_by="product", rows=tuple(rows))


def threshold(length=30, *, first=FIRST, limit="100", metric="credits", **fields):
    query = UsageQuery(start=first, end=first + timedelta(days=length - 1))
    return UsageThreshold(query=query, metric=metric, threshold=Decimal(limit), projected=True, **fields)


def read(usage, offset, length=30, **fields):
    return threshold(length, **fields).read(usage, on(offset))


@st.composite
def moments(draw, max_history=40, least=14):
    """Days before the window with usage, its length, settle_days and a day of it, with ``least`` complete days."""
    before, settle_days = draw(st.integers(0, max_history)), draw(st.integers(0, 5))
    offset = draw(st.integers(max(0, least + settle_days - before), 60))
    return before, draw(st.integers(offset + 1, 400)), settle_days, offset


def weekly(week, first, last):
    """Return the usage of days that repeats from week to week."""
    return [week[day.weekday()] for day in DayRange(first, last).days()]


class TestWeeklyUsage:
    @given(WEEKS, moments(), st.dates(date(2020, 1, 1), date(2090, 1, 1)))
    def test_credits_are_exact(self, week, moment, first):
        before, length, settle_days, offset = moment
        begin, today, last = (first + timedelta(days=days) for days in (-before, offset, length - 1))
        usage = report(*weekly(week, begin, today), first=begin)
        condition = threshold(length, first=first, settle_days=settle_days)

        reading = condition.read(usage, on(offset, first))

        assert reading.projected
        assert reading.value == sum(weekly(week, first, last))
        assert reading.used == sum(weekly(week, first, today))

    @given(WEEKS, moments())
    def test_what_has_been_counted_of_today_does_not_matter(self, week, moment):
        before, length, settle_days, offset = moment
        begin, last = FIRST - timedelta(days=before), FIRST + timedelta(days=length - 1)
        *complete, today = weekly(week, begin, FIRST + timedelta(days=offset))

        for counted in (None, 0, today / 2, today):
            usage = report(*complete, counted, first=begin)
            assert read(usage, offset, length, settle_days=settle_days).value == sum(weekly(week, FIRST, last))

    @given(st.lists(st.integers(0, 10**12), min_size=7, max_size=7), moments())
    def test_requests_are_exact(self, week, moment):
        before, length, settle_days, offset = moment
        begin, last = FIRST - timedelta(days=before), FIRST + timedelta(days=length - 1)
        rows = tuple(
            UsageRow(day, "parse", None, week[day.weekday()])
            for day in DayRange(begin, FIRST + timedelta(days=offset)).days()
        )
        usage = UsageReport(org_id="org_acme", start=begin, end=last, group_by="product", rows=rows)

        reading = read(usage, offset, length, metric="requests", settle_days=settle_days)

        assert reading.value == sum(weekly(week, FIRST, last))

    @given(WEEKS, WEEKS, moments())
    def test_each_group_is_exact(self, one, other, moment):
        before, length, settle_days, offset = moment
        begin, today, last = (FIRST + timedelta(days=days) for days in (-before, offset, length - 1))
        days = [
            {"parse": first, "extract": second}
            for first, second in zip(weekly(one, begin, today), weekly(other, begin, today), strict=True)
        ]

        reading = read(report(*days, first=begin), offset, length, settle_days=settle_days, per_group=True)

        assert reading.value == max(sum(weekly(one, FIRST, last)), sum(weekly(other, FIRST, last)))

    def test_days_without_a_row_are_days_without_usage(self):
        weekdays_only = [*(["10"] * 5 + [None] * 2) * 4]

        reading = read(report(*weekdays_only, "10", first=FIRST - timedelta(days=28)), 0)

        assert reading.value == 220  # 22 of June's days are no weekend's

    def test_a_week_that_falls_out_of_the_last_four_does_not_count(self):
        weeks = ["1000"] * 7 + ["10"] * 28

        assert read(report(*weeks, "10", first=FIRST - timedelta(days=35)), 0).value == 300

    def test_the_mean_of_the_last_four_weeks(self):
        days = ["10"] * 7 + ["20"] * 7 + ["30"] * 7 + ["41"] * 7

        assert read(report(*days, first=FIRST - timedelta(days=28)), 0).value == Decimal("25.25") * 30


def test_conditions_that_share_a_report_do_not_mix():
    """What is computed of a report is kept with it: the conditions of many sensors and gates read the same."""
    days = [{"parse": 10 + day, "extract": 3 * day} for day in range(40)]
    shared = report(*days, first=FIRST - timedelta(days=28), requests=7)
    fields = [
        {"metric": metric, "per_group": per_group, "settle_days": settle_days, "length": length}
        for metric in ("credits", "requests")
        for per_group in (False, True)
        for settle_days in (0, 2)
        for length in (12, 30)
    ]

    values = [(read(shared, offset, **each).value, offset) for each in fields for offset in (10, 11)]

    assert values == [(read(replace(shared), offset, **each).value, offset) for each in fields for offset in (10, 11)]
    assert len(set(values)) > len(fields)


class TestLittleHistory:
    @given(CREDITS, moments(max_history=10, least=3))
    def test_constant_usage_is_exact(self, each_day, moment):
        before, length, settle_days, offset = moment
        usage = report(*[each_day] * (before + offset + 1), first=FIRST - timedelta(days=before))

        reading = read(usage, offset, length, settle_days=settle_days)

        assert reading.projected
        assert reading.value == each_day * length

    @given(st.lists(st.decimals(0, 10**6, places=3), min_size=4, max_size=14))
    def test_below_two_weeks_the_mean_of_all_complete_days(self, days):
        *complete, today = days
        mean = sum(complete) / len(complete)
        expected = sum(complete) + max(today, mean) + mean * (90 - len(days))

        assert read(report(*days), len(complete), 90).value == pytest.approx(expected, abs=Decimal("1e-8"))

    def test_thirds_are_rounded(self):
        assert read(report("0.1", "0.1", "0"), 3).value == 2

    @pytest.mark.parametrize(("used", "mean"), [("2e-9", "0"), ("6e-9", "2e-9"), ("10e-9", "2e-9")])
    def test_half_of_the_ninth_place_is_rounded_to_even(self, used, mean):
        mondays = report(used, *[0] * 27, first=FIRST - timedelta(days=28))

        assert read(mondays, 0, 1).value == Decimal(mean)

    def test_from_two_weeks_on_by_weekday(self):
        days = ["70", *["0"] * 6] * 2

        assert read(report(*days[:13]), 13).value == pytest.approx(140 + Decimal(140) * 17 / 13)
        assert read(report(*days), 14).value == 350, "June has five Mondays"

    def test_from_three_complete_days_on(self):
        usage = report("10", "10", "10", "10")

        assert [read(usage, offset).projected for offset in range(4)] == [False, False, False, True]
        assert [read(usage, offset).value for offset in (2, 3)] == [40, 300]

    def test_history_begins_with_the_first_row(self):
        usage = report(*[None] * 20, "10", "10", "10", first=FIRST - timedelta(days=23))

        assert read(usage, 0).value == 300

    def test_a_window_of_a_day_can_be_projected(self):
        usage = report(*["10"] * 28, "1", first=FIRST - timedelta(days=28))

        assert read(usage, 0, length=1).value == 10


class TestAnyUsage:
    @given(
        st.lists(st.dictionaries(GROUPS, CREDITS, max_size=3), min_size=1, max_size=60),
        st.integers(0, 59),
        st.integers(0, 60),
        st.integers(0, 10),
        st.booleans(),
    )
    def test_never_less_than_what_was_used(self, days, before, to_come, settle_days, per_group):
        before %= len(days)
        usage, today = report(*days, first=FIRST - timedelta(days=before)), len(days) - 1 - before
        window = DayRange(FIRST, FIRST + timedelta(days=today + to_come))

        projected = project(
            usage,
            "credits",
            per_group=per_group,
            window=window,
            today=FIRST + timedelta(days=today),
            settle_days=settle_days,
        )
        used = usage.amounts("credits", per_group=per_group, since=FIRST)

        assert all(amount >= used.get(group, 0) for group, amount in projected.items())
        reading = read(usage, today, window.length, settle_days=settle_days, per_group=per_group)
        assert reading.value >= reading.used
        assert reading.value >= max(used.values(), default=0)

    @given(st.lists(st.dictionaries(GROUPS, CREDITS, max_size=4), min_size=1, max_size=60), st.integers(0, 59))
    def test_a_group_is_projected_as_if_it_were_alone(self, days, before):
        before %= len(days)
        first, today = FIRST - timedelta(days=before), FIRST + timedelta(days=len(days) - 1 - before)
        window = DayRange(FIRST, FIRST + timedelta(days=70))

        together = project(report(*days, first=first), "credits", per_group=True, window=window, today=today)

        for group in {group for day in days for group in day}:
            alone = report(*({group: day.get(group)} for day in days), first=first)
            expected = project(alone, "credits", per_group=False, window=window, today=today)
            assert together.get(group) == expected.get(None)


class TestMoment:
    def test_at_midnight(self):
        midnight = datetime(2026, 6, 4, tzinfo=UTC)
        usage = report("10", "10", "10")

        assert not threshold().read(usage, midnight - timedelta(microseconds=1)).projected
        assert threshold().read(usage, midnight).value == 300

    def test_by_the_day_in_utc(self):
        midnight_in_tokyo = datetime.fromisoformat("2026-06-04T00:00:00+09:00")

        assert not threshold().read(report("10", "10", "10"), midnight_in_tokyo).projected
        assert threshold().read(report("10", "10", "10"), midnight_in_tokyo + timedelta(hours=9)).projected

    def test_on_the_last_day_and_not_after_it(self):
        usage = report(*["10"] * 29, "1")

        assert read(usage, 29).value == 300
        over = read(usage, 30)
        assert (over.projected, over.value, over.used) == (False, 291, 291)

    def test_before_the_window(self):
        assert not read(report(), -5).projected

    def test_days_that_may_be_restated_are_not_complete(self):
        usage = report("10", "10", "10", "90", "90")

        assert not read(usage, 4, settle_days=2).projected
        assert read(usage, 5, settle_days=2).value == 210 + 25 * 10
        assert read(usage, 5, settle_days=1).value == 210 + 25 * 30
        assert read(usage, 5).value == 210 + 25 * 42

    def test_today_counts_as_its_mean_or_as_what_it_has(self):
        assert read(report("10", "10", "10", "0.5"), 3).value == 300
        assert read(report("10", "10", "10", "50"), 3).value == 340


class TestQuery:
    def test_the_history_is_requested_in_the_same_request(self):
        assert threshold().query_at(on(3)) == UsageQuery(start=date(2026, 5, 4), end=date(2026, 6, 4))

    def test_days_that_are_not_settled_do_not_shorten_it(self):
        assert threshold(settle_days=2).query_at(on(0)).start == date(2026, 5, 2)

    def test_a_window_that_is_over_needs_none(self):
        assert threshold().query_at(on(30)) == UsageQuery(start=FIRST, end=date(2026, 6, 30))

    def test_nothing_is_requested_before_the_window(self):
        assert threshold().query_at(on(-1)) is None

    def test_without_projection_there_is_none(self):
        assert replace(threshold(), projected=False).query_at(on(3)).start == FIRST

    def test_the_calendar_s_first_days(self):
        assert first_day_of_history(DayRange(date.min, date.min)) == date.min


class TestRows:
    @pytest.mark.parametrize("per_group", [False, True])
    def test_none(self, per_group):
        reading = read(report(), 10, limit="0", per_group=per_group)

        assert (reading.projected, reading.value, reading.used, reading.group) == (False, 0, 0, None)
        assert not reading.exceeded

    @pytest.mark.parametrize("per_group", [False, True])
    def test_of_today_only(self, per_group):
        reading = read(report(None, None, None, "50"), 3, per_group=per_group)

        assert (reading.projected, reading.value) == (False, 50)

    def test_days_without_a_row_count(self):
        assert read(report("30", None, None), 3).value == 300

    def test_what_was_used_before_the_window_is_not_the_window_s(self):
        reading = read(report("500", "1", "1", first=FIRST - timedelta(days=1)), 1)

        assert (reading.projected, reading.value, reading.used, reading.window.first) == (False, 2, 2, FIRST)

    def test_a_group_s_history_begins_with_its_own_first_row(self):
        usage = report(*[{"parse": "10"}] * 20, *[{"parse": "10", "split": "25"}] * 3, first=FIRST - timedelta(days=20))

        reading = read(usage, 3, per_group=True)

        assert (reading.group, reading.projected, reading.value, reading.used) == ("split", True, 750, 75)

    def test_a_group_with_too_little_history_counts_as_what_it_used(self):
        usage = report({"parse": "10"}, {"parse": "10"}, {"parse": "10"}, {"parse": "10", "edit": "301"})

        reading = read(usage, 3, per_group=True)

        assert (reading.group, reading.projected, reading.value, reading.used) == ("edit", False, 301, 301)

    def test_a_group_that_has_not_used_anything_in_the_window(self):
        usage = report(*[{"parse": "10"}] * 28, {"edit": "1"}, first=FIRST - timedelta(days=28))

        reading = read(usage, 0, per_group=True)

        assert (reading.group, reading.projected, reading.value, reading.used) == ("parse", True, 300, 0)

    def test_the_group_with_the_largest_projection_is_not_the_one_that_used_most(self):
        usage = report({"parse": "20"}, {"parse": "20"}, {"parse": "20"}, {"parse": "0", "edit": "90"})

        reading = read(usage, 3, per_group=True)

        assert (reading.group, reading.value, reading.used) == ("parse", 600, 60)

    @pytest.mark.parametrize("offset", [1, 4])
    def test_credits_that_are_not_there(self, offset):
        usage = report("10", "10", "10", "none")

        with pytest.raises(CreditsUnavailableError, match="metric='requests'"):
            read(usage, offset)
        assert read(usage, 3, metric="requests").value == 30


class TestReading:
    def test_both_numbers_are_shown(self):
        condition = threshold()
        reading = condition.read(report("10", "10", "10", "1"), on(3))

        assert str(reading) == ("org_acme, 2026-06-01 to 2026-06-30: 31 used, 300 projected of 100 credits (300.0%)")
        assert reading.as_json().items() >= {"value": 300, "used": 31, "projected": True, "exceeded": True}.items()

    def test_the_log_says_why_nothing_is_projected_yet(self):
        condition = threshold()
        lines = [
            "projected from 3 complete days on" in condition.describe_wait(condition.read(report("10"), on(offset)))
            for offset in (0, 1, 2, 3, 29, 30, 90)
        ]

        assert lines == [True, True, True, False, False, False, False]
        without = replace(condition, projected=False)
        reading = without.read(report("10"), on(2))
        assert without.describe_wait(reading) == str(reading)

    def test_a_projection_exceeds_and_closes_as_usage_does(self):
        condition = threshold(limit="300")
        constant = report(*["10"] * 30)

        assert condition.outcome(condition.read(constant, on(10))) == "waiting"
        assert threshold(limit="299.999999999").outcome(threshold().read(constant, on(10))) == "exceeded"
        assert condition.outcome(condition.read(constant, on(30))) == "closed"


@pytest.mark.parametrize("window", ["day", "week", "month", "run", 1, "{{ params.window }}"])
def test_any_window_can_be_projected(window):
    assert ReductoUsageThresholdSensor(task_id="wait", threshold=1, projected=True, window=window).projected

"""What a window will come to at the rate so far."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import CreditsUnavailableError, UsageReport, UsageRow
from reducto_provider.usage.threshold import PROJECTED_FROM_DAYS, UsageThreshold
from tests.usage.runs import make_run

FIRST = date(2026, 6, 1)
CREDITS = st.decimals(min_value=0, max_value=10**15, places=9)
REQUESTS = st.integers(min_value=0, max_value=10**12)


def on(offset, first=FIRST):
    """A moment on a day of the window; the first day is 0."""
    return datetime.combine(first + timedelta(days=offset), time(12), tzinfo=UTC)


def report(*days, first=FIRST, requests=1):
    """Of each day in turn its credits, or its credits by group; None for a day without a row."""
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


def project(usage, offset, length=30, **fields):
    return threshold(length, **fields).read(usage, on(offset))


@st.composite
def moments(draw):
    """The length of a window, settle_days, and a day of it on which there is something to project from."""
    settle_days = draw(st.integers(0, 5))
    length = draw(st.integers(PROJECTED_FROM_DAYS + settle_days + 1, 3650))
    return length, settle_days, draw(st.integers(PROJECTED_FROM_DAYS + settle_days, min(length - 1, 60)))


class TestConstantUsage:
    @given(CREDITS, moments())
    def test_credits_come_to_exactly_the_whole(self, each_day, moment):
        length, settle_days, offset = moment

        reading = project(report(*[each_day] * (offset + 1)), offset, length, settle_days=settle_days)

        assert reading.projected
        assert reading.value == each_day * length
        assert reading.used == each_day * (offset + 1)

    @given(REQUESTS, moments())
    def test_requests_come_to_exactly_the_whole(self, each_day, moment):
        length, settle_days, offset = moment
        usage = report(*["none"] * (offset + 1), requests=each_day)

        assert project(usage, offset, length, metric="requests", settle_days=settle_days).value == each_day * length

    @given(CREDITS, moments(), st.datetimes(datetime(2020, 1, 1), datetime(2090, 1, 1)))
    def test_on_any_day_of_any_month(self, each_day, moment, first):
        length, settle_days, offset = moment
        usage = report(*[each_day] * (offset + 1), first=first.date())
        condition = threshold(length, first=first.date(), settle_days=settle_days)

        assert condition.read(usage, on(offset, first.date())).value == each_day * length

    @given(moments(), CREDITS, CREDITS)
    def test_each_group_by_itself(self, moment, one, other):
        length, settle_days, offset = moment
        usage = report(*[{"parse": one, "extract": other}] * (offset + 1))

        reading = project(usage, offset, length, settle_days=settle_days, per_group=True)

        assert reading.value == max(one, other) * length


class TestAnyUsage:
    @given(st.lists(CREDITS, min_size=1, max_size=40), st.integers(41, 400), st.integers(0, 10))
    def test_never_less_than_what_was_used(self, days, length, settle_days):
        reading = project(report(*days), len(days) - 1, length, settle_days=settle_days)

        assert reading.value >= reading.used == sum(days)

    @given(st.lists(st.decimals(0, 10**6, places=3), min_size=4, max_size=40))
    def test_the_days_that_are_complete_say_the_rate(self, days):
        *complete, today = days
        expected = max(sum(complete) * 90 / len(complete), sum(complete) + today)

        assert project(report(*days), len(complete), 90).value == pytest.approx(expected, abs=Decimal("1e-9"))


class TestWhenItIsMade:
    def test_from_three_complete_days_on(self):
        usage = report("10", "10", "10", "10")

        assert [project(usage, offset).projected for offset in range(4)] == [False, False, False, True]
        assert [project(usage, offset).value for offset in (2, 3)] == [40, 300]

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

        assert project(usage, 29).value == 300
        over = project(usage, 30)
        assert (over.projected, over.value, over.used) == (False, 291, 291)

    def test_before_the_window(self):
        assert not project(report(), -5).projected

    def test_days_that_may_be_restated_are_not_complete(self):
        usage = report("10", "10", "10", "90", "90")

        assert not project(usage, 4, settle_days=2).projected
        assert project(usage, 5, settle_days=2).value == 300
        assert project(usage, 5, settle_days=1).value == 900
        assert project(usage, 5).value == pytest.approx(Decimal(210) * 30 / 5)

    def test_today_does_not_lower_the_rate(self):
        assert project(report("10", "10", "10", "0.5"), 3).value == 300

    def test_today_alone_may_be_more_than_the_projection(self):
        reading = project(report("1", "1", "1", "97.1"), 3)

        assert (reading.projected, reading.value, reading.exceeded) == (True, Decimal("100.1"), True)


class TestRows:
    @pytest.mark.parametrize("per_group", [False, True])
    def test_none(self, per_group):
        reading = project(report(), 10, limit="0", per_group=per_group)

        assert (reading.projected, reading.value, reading.used, reading.group) == (True, 0, 0, None)
        assert not reading.exceeded

    @pytest.mark.parametrize("per_group", [False, True])
    def test_of_today_only(self, per_group):
        reading = project(report(None, None, None, "50"), 3, per_group=per_group)

        assert (reading.projected, reading.value) == (True, 50)

    def test_days_without_a_row_count(self):
        assert project(report("30", None, None), 3).value == 300

    def test_a_group_that_was_not_there_from_the_start(self):
        usage = report({"parse": "10"}, {"parse": "10"}, {"parse": "10", "split": "45"}, {"edit": "200"})

        reading = project(usage, 3, per_group=True, limit="449")

        assert (reading.group, reading.value, reading.used, reading.exceeded) == ("split", 450, 45, True)

    def test_the_group_that_comes_to_most_is_not_the_one_that_used_most(self):
        usage = report({"parse": "20"}, {"parse": "20"}, {"parse": "20"}, {"parse": "0", "edit": "90"})

        reading = project(usage, 3, per_group=True)

        assert (reading.group, reading.value, reading.used) == ("parse", 600, 60)

    @pytest.mark.parametrize("offset", [1, 4])
    def test_credits_that_are_not_there(self, offset):
        usage = report("10", "10", "10", "none")

        with pytest.raises(CreditsUnavailableError, match="metric='requests'"):
            project(usage, offset)
        assert project(usage, 3, metric="requests").value == 30

    def test_both_numbers_are_told(self):
        condition = threshold()
        reading = condition.read(report("10", "10", "10", "1"), on(3))

        assert str(reading) == ("org_acme, 2026-06-01 to 2026-06-30: 31 used, 300 projected of 100 credits (300.0%)")
        assert reading.as_json().items() >= {"value": 300, "used": 31, "projected": True, "exceeded": True}.items()

    def test_why_nothing_is_projected_is_told_while_it_may_be_yet(self):
        condition = threshold()
        told = [
            "projected from 3 complete days on" in condition.describe_wait(condition.read(report("10"), on(offset)))
            for offset in (1, 2, 3, 29, 30, 90)
        ]

        assert told == [True, True, False, False, False, False]
        unasked = replace(condition, projected=False)
        reading = unasked.read(report("10"), on(2))
        assert unasked.describe_wait(reading) == str(reading)


class TestThreshold:
    def test_a_projection_exceeds_and_closes_as_usage_does(self):
        condition = threshold(limit="300")
        constant = report(*["10"] * 30)

        assert condition.outcome(condition.read(constant, on(10))) == "waiting"
        assert threshold(limit="299.999999999").outcome(threshold().read(constant, on(10))) == "exceeded"
        assert condition.outcome(condition.read(constant, on(30))) == "closed"

    @pytest.mark.parametrize("settle_days", [0, 1, 10])
    def test_a_window_too_short_is_refused(self, settle_days):
        least = PROJECTED_FROM_DAYS + settle_days + 1

        with pytest.raises(ValueError, match=f"this window has {least - 1}"):
            threshold(least - 1, settle_days=settle_days)
        assert project(report(*["1"] * least), least - 1, least, settle_days=settle_days).projected


class TestSensor:
    @pytest.mark.parametrize(
        "arguments",
        [
            {"window": "day"},
            {"window": 3},
            {"window": "3"},
            {"window": "week", "settle_days": 4},
            {"window": "month", "settle_days": 25},
            {"usage_start_date": "2026-06-01", "usage_end_date": "2026-06-03"},
            {"usage_start_date": date(2026, 6, 1), "usage_end_date": "2026-06-01"},
            {"usage_start_date": "2026-06-01", "usage_end_date": "2026-06-04", "settle_days": 1},
        ],
        ids=str,
    )
    def test_a_window_that_is_literally_too_short_is_refused_when_parsed(self, arguments):
        ReductoUsageThresholdSensor(task_id="wait", threshold=1, **arguments)

        with pytest.raises(ValueError, match="projected needs a window of more than"):
            ReductoUsageThresholdSensor(task_id="wait", threshold=1, projected=True, **arguments)

    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"window": 4},
            {"window": "week", "settle_days": 3},
            {"window": "month", "settle_days": 24},
            {"window": "run"},
            {"window": "{{ params.window }}"},
            {"usage_start_date": "2026-06-01", "usage_end_date": "2026-06-04"},
            {"usage_start_date": "{{ ds }}", "usage_end_date": "2026-06-04"},
            {"usage_start_date": "2026-06-01", "usage_end_date": "{{ ds }}"},
        ],
        ids=str,
    )
    def test_any_other_is_taken(self, arguments):
        ReductoUsageThresholdSensor(task_id="wait", threshold=1, projected=True, **arguments)

    @pytest.mark.parametrize(
        ("window", "days"), [("day", None), ("run", None), (3, None), ("month", ("2026-06-01", "2026-06-03"))]
    )
    def test_one_that_is_rendered_too_short_is_refused_in_the_run(self, window, days):
        moment = datetime(2026, 6, 18, tzinfo=UTC)
        fields = dict.fromkeys(("org_id", "products", "features", "api_keys", "file_types"))
        first, last = days or (None, None)

        with pytest.raises(ValueError, match="projected needs a window of more than 3 days"):
            UsageThreshold.from_run(
                lambda: make_run(None, moment - timedelta(days=1), moment),
                window=window,
                threshold="1",
                metric="credits",
                per_group=False,
                projected=True,
                settle_days=0,
                group_by="product",
                usage_start_date=first,
                usage_end_date=last,
                **fields,
            )

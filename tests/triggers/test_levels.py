"""The level trigger on an event loop: which levels fire, when, and what is remembered."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
import time_machine
from airflow.models.trigger import Trigger

from reducto_provider.airflow_compat import BaseEventTrigger
from reducto_provider.exceptions import ReductoAuthenticationError, ReductoServerError
from reducto_provider.triggers import base, levels
from reducto_provider.triggers.levels import ReductoUsageLevelTrigger
from reducto_provider.triggers.polls import Poll
from reducto_provider.usage.report import UsageReport, UsageRow
from simulator import Reset, html, status
from tests.airflows import gone_in, new_in

JUNE_18 = datetime(2026, 6, 18, 12, tzinfo=UTC)
ANY_DAY = date(2026, 6, 10)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(levels, "_PERSIST_SECONDS", 0)
    monkeypatch.setattr(base, "MIN_INTERVAL", 0.01)


@pytest.fixture
def logged(monkeypatch):
    """What triggers log, with its level."""
    lines = []

    class Log:
        def __getattr__(self, level):
            return lambda text, *args, **kwargs: lines.append(f"{level}: {text % args if args else text}")

    monkeypatch.setattr(ReductoUsageLevelTrigger, "log", Log())
    return lines


class Store:
    """The store of one asset, as far as triggers use it. What it keeps is JSON, as in Airflow's."""

    def __init__(self):
        self.kept, self.error = {}, None

    async def aget(self, key, default=None):
        if self.error:
            raise self.error
        return json.loads(self.kept[key]) if key in self.kept else default

    async def aset(self, key, value):
        if self.error:
            raise self.error
        self.kept[key] = json.dumps(value)


def level_trigger(store=None, **arguments):
    trigger = ReductoUsageLevelTrigger(**{"budget": 100, **arguments})
    trigger.asset_state_store = store
    trigger.poll_immediately = False  # the polls are made by hand
    return trigger


def at(moment, used, *, org_id="org_acme", error=None, requests=1):
    """
    One round of polls: what the service answers at a moment to each question that the trigger asks then.

    ``used`` is credits by day, or those of one day in June.
    """
    days = used if isinstance(used, dict) else {ANY_DAY: used}

    def poll(query):
        if error:
            return Poll(moment, query, error=error)
        rows = tuple(
            UsageRow(day, "parse", None if amount is None else Decimal(amount), requests)
            for day, amount in sorted(days.items())
            if query.start <= day <= query.end
        )
        report = UsageReport(org_id=org_id, start=query.start, end=query.end, group_by="product", rows=rows)
        return Poll(moment, query, report)

    return lambda trigger: [poll(query) for query in trigger._queries(moment)]


def fires(trigger, *rounds):
    """The levels that fire, with the first day of their window."""
    return [(event["level"], event["reading"]["usage_start_date"]) for event in payloads(trigger, *rounds)]


def by_group(moment, used):
    """
    One round of polls of a service that has several groups.

    ``used`` is credits by group, on one day in June or by day.
    """
    days = [
        (day, group, Decimal(amount))
        for group, amounts in used.items()
        for day, amount in (amounts if isinstance(amounts, dict) else {ANY_DAY: amounts}).items()
    ]

    def poll(query):
        rows = tuple(
            UsageRow(day, group, amount, 1)
            for day, group, amount in sorted(days, key=str)
            if query.start <= day <= query.end
        )
        report = UsageReport(org_id="org_acme", start=query.start, end=query.end, group_by=query.group_by, rows=rows)
        return Poll(moment, query, report)

    return lambda trigger: [poll(query) for query in trigger._queries(moment)]


def payloads(trigger, *rounds):
    """The contents of the events."""

    async def stream():
        for polls in rounds:
            for poll in polls(trigger):
                yield poll

    async def collect():
        return [event.payload async for event in trigger.filter_shared_stream(stream())]

    return asyncio.run(collect())


def groups_that_fire(trigger, *rounds):
    """The levels that fire, each with its groups, the largest first."""
    return [
        (event["level"], [reading["group"] for reading in event["readings"]]) for event in payloads(trigger, *rounds)
    ]


def june(*levels):
    return [(level, "2026-06-01") for level in levels]


class TestLevels:
    def test_each_once_as_it_is_passed(self):
        trigger = level_trigger()

        assert fires(trigger, at(JUNE_18, "49")) == []
        assert fires(trigger, at(JUNE_18, "51"), at(JUNE_18, "52")) == june(50)
        assert fires(trigger, at(JUNE_18, "99"), at(JUNE_18, "120"), at(JUNE_18, "500")) == june(80, 100)

    def test_several_at_once_the_lowest_first(self):
        assert fires(level_trigger(levels=[120, 33.3, 80, 100]), at(JUNE_18, "119")) == june(33.3, 80, 100)

    @pytest.mark.parametrize(
        ("budget", "level", "equal", "more"),
        [
            (100, 80, "80", "80.000000001"),
            (1000, 33.3, "333", "333.000000001"),
            (0.3, 10, "0.03", "0.030000001"),
            ("0.000000002", 50, "0.000000001", "0.000000002"),
            ("123456789012345678.123456788", 100, "123456789012345678.123456788", "123456789012345678.123456789"),
            ("9e17", 100, "9e17", "900000000000000000.000000001"),
        ],
    )
    def test_to_equal_is_not_to_pass(self, budget, level, equal, more):
        trigger = level_trigger(budget=budget, levels=[level])

        assert fires(trigger, at(JUNE_18, equal)) == []
        assert fires(trigger, at(JUNE_18, more)) == june(level)

    def test_requests(self):
        trigger = level_trigger(metric="requests", levels=[10, 20])

        assert fires(trigger, at(JUNE_18, None, requests=11)) == june(10)
        assert fires(trigger, at(JUNE_18, "1e9", requests=20)) == []

    def test_each_organization_by_itself(self):
        trigger = level_trigger(levels=[50])

        assert fires(trigger, at(JUNE_18, "60"), at(JUNE_18, "60", org_id="org_other")) == june(50, 50)

    def test_restated_down_and_up_again_it_does_not_fire_twice(self):
        trigger = level_trigger(levels=[50, 80])

        assert fires(trigger, *(at(JUNE_18, used) for used in ("60", "10", "60", "0", "90", "85", "95"))) == june(
            50, 80
        )

    def test_the_event(self):
        async def first():
            return await anext(level_trigger().filter_shared_stream(stream()))

        async def stream():
            for poll in at(JUNE_18, "60.5")(level_trigger()):
                yield poll

        event = asyncio.run(first()).payload
        assert event == json.loads(json.dumps(event))
        assert event["level"] == 50
        assert event["reading"].items() >= {"value": 60.5, "threshold": 100, "usage_end_date": "2026-06-30"}.items()

    def test_the_last_day_is_today_and_never_to_come(self):
        [query] = level_trigger()._queries(JUNE_18)

        assert (query.start, query.end) == (date(2026, 6, 1), date(2026, 6, 18))


class TestWindows:
    @pytest.mark.parametrize(
        ("window", "moments"),
        [
            ("month", ["2026-01-31T23:59:59.999999", "2026-02-28T12:00", "2026-03-01T00:00", "2028-02-29T00:00"]),
            ("month", ["2026-12-31T23:59", "2027-01-01T00:00", "2027-12-01T00:00"]),
            ("week", ["2026-06-14T23:59", "2026-06-15T00:00", "2026-12-28T00:00", "2027-01-04T00:00"]),
            ("day", ["2028-02-28T12:00", "2028-02-29T12:00", "2028-03-01T12:00", "2026-12-31T12:00"]),
        ],
    )
    def test_each_fires_anew(self, window, moments):
        trigger = level_trigger(window=window, levels=[50], settle_days=0)
        instants = [datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in moments]
        rounds = [at(moment, {moment.date(): "60"}) for moment in instants]

        assert [level for level, _ in fires(trigger, *rounds, *rounds)] == [50] * len(moments)

    def test_a_week_may_span_two_years(self):
        trigger = level_trigger(window="week", levels=[50], settle_days=0)
        used = {date(2026, 12, 31): "30", date(2027, 1, 1): "30"}

        assert fires(trigger, at(datetime(2027, 1, 2, tzinfo=UTC), used)) == [(50, "2026-12-28")]
        assert fires(trigger, at(datetime(2027, 1, 4, tzinfo=UTC), used)) == []

    @pytest.mark.parametrize(("settle_days", "late"), [(0, 0), (1, 1), (3, 3), (31, 31)])
    def test_what_is_counted_late_at_a_month_s_end_is_not_lost(self, settle_days, late):
        trigger = level_trigger(levels=[50, 80], settle_days=settle_days)
        last_day, end = date(2026, 6, 30), datetime(2026, 6, 30, 23, 59, tzinfo=UTC)
        assert fires(trigger, at(end, {last_day: "60"})) == june(50)

        more = at(end + timedelta(days=late), {last_day: "81"})
        assert fires(trigger, more, more) == june(80)

    @pytest.mark.parametrize("settle_days", [0, 1, 3])
    def test_then_it_is_over(self, settle_days):
        trigger = level_trigger(levels=[50], settle_days=settle_days)
        after = datetime(2026, 7, 1, tzinfo=UTC) + timedelta(days=settle_days)

        assert fires(trigger, at(after, {date(2026, 6, 30): "60"})) == []

    def test_two_windows_at_once(self):
        trigger = level_trigger(levels=[50, 80])
        used = {date(2026, 6, 30): "90", date(2026, 7, 1): "51"}

        both = at(datetime(2026, 7, 1, 6, tzinfo=UTC), used)
        assert fires(trigger, both, both) == [*june(50, 80), (50, "2026-07-01")]

    @pytest.mark.parametrize(
        ("window", "settle_days", "most"),
        [
            ("month", 0, 1),
            ("month", 1, 2),
            ("month", 31, 3),
            ("week", 1, 2),
            ("week", 31, 6),
            ("day", 1, 2),
            ("day", 31, 32),
        ],
    )
    def test_the_questions_of_a_poll_are_few(self, window, settle_days, most):
        trigger = level_trigger(window=window, settle_days=settle_days)
        counts = []
        for day in range(800):
            moment = datetime(2027, 1, 1, 23, 59, tzinfo=UTC) + timedelta(days=day)
            queries = trigger._queries(moment)
            counts.append(len(queries))
            days = [
                query.start + timedelta(days=n) for query in queries for n in range((query.end - query.start).days + 1)
            ]
            assert len(days) == len(set(days)), "no day is in two windows"
            assert set(days) >= {(moment - timedelta(days=n)).date() for n in range(settle_days + 1)}
        assert max(counts) == most

    def test_a_poll_that_was_asked_before_midnight_is_for_the_window_that_was(self):
        trigger = level_trigger(levels=[50])
        before = at(datetime(2026, 6, 30, 23, 59, 59, tzinfo=UTC), {date(2026, 6, 30): "60", date(2026, 7, 1): "60"})

        assert fires(trigger, before) == june(50)


class TestMemory:
    def test_a_restart_remembers(self):
        store = Store()
        assert fires(level_trigger(store), at(JUNE_18, "60")) == june(50)

        assert fires(level_trigger(store), at(JUNE_18, "70")) == []
        assert fires(level_trigger(store), at(JUNE_18, "90")) == june(80)
        assert fires(level_trigger(store), at(JUNE_18, "101")) == june(100)
        assert fires(level_trigger(store), at(JUNE_18, "500")) == []

    def test_without_a_store_a_restart_fires_again(self):
        assert fires(level_trigger(), at(JUNE_18, "60")) == june(50)
        assert fires(level_trigger(), at(JUNE_18, "60")) == june(50)

    @pytest.mark.parametrize("window", ["month", "week", "day"])
    def test_the_window_that_ended_is_remembered_beside_the_new_one(self, window):
        store, midnight = Store(), datetime(2026, 6, 1, tzinfo=UTC)  # a Monday
        used = {date(2026, 5, 31): "60", date(2026, 6, 1): "60"}
        one, other = at(midnight - timedelta(hours=1), used), at(midnight + timedelta(hours=1), used)

        assert [len(fires(level_trigger(store, window=window), each)) for each in (one, other, other)] == [1, 1, 0]

    def test_what_can_t_be_stored_for_a_while_is_stored_later(self, logged):
        store = Store()
        trigger = level_trigger(store, levels=[50, 80])
        assert fires(trigger, at(JUNE_18, "10")) == []
        store.error = RuntimeError("the API server is gone")
        assert fires(trigger, at(JUNE_18, "60"), at(JUNE_18, "60")) == june(50)
        assert store.kept == {}
        assert any("warning: What has fired is not stored yet" in line for line in logged)

        store.error = None
        assert fires(trigger, at(JUNE_18, "60")) == []
        assert fires(level_trigger(store, levels=[50, 80]), at(JUNE_18, "60")) == []

    @pytest.mark.parametrize(
        "error", [RuntimeError("the API server is gone"), json.JSONDecodeError("Expecting value", "<html>", 0)]
    )
    def test_while_it_can_t_be_read_nothing_fires_and_nothing_is_lost(self, error):
        store = Store()
        assert fires(level_trigger(store), at(JUNE_18, "60")) == june(50)
        trigger = level_trigger(store)
        store.error = error
        assert fires(trigger, at(JUNE_18, "90"), at(JUNE_18, "90")) == []

        store.error = None
        assert fires(trigger, at(JUNE_18, "90")) == june(80)

    @pytest.mark.parametrize(
        "junk", ["junk", [50], 50, {"2026-06-01": "50"}, {"2026-06-01": None}, {"2026-06-01": [None]}], ids=str
    )
    def test_what_somebody_else_wrote_there_makes_a_level_fire_again_rather_than_never(self, junk, logged):
        store = Store()
        assert fires(level_trigger(store), at(JUNE_18, "60")) == june(50)
        [key] = store.kept
        store.kept[key] = json.dumps(junk)

        assert fires(level_trigger(store), at(JUNE_18, "60"), at(JUNE_18, "90")) == june(50, 80)
        assert any(line.startswith("warning: What is stored as reducto_usage_levels_") for line in logged)
        assert json.loads(store.kept[key]) == {"2026-06-01": [50, 80]}

    @new_in(3, 3, "the state store of an asset")
    def test_several_assets_have_no_store_in_common(self, logged):
        from airflow.sdk import Asset
        from airflow.sdk.execution_time.context import AssetStateStoreAccessors

        assets = [Asset("one"), Asset("two")]
        trigger = level_trigger(AssetStateStoreAccessors(inlets=assets))

        assert fires(trigger, at(JUNE_18, "60"), at(JUNE_18, "60")) == june(50)
        assert [line for line in logged if "give each asset a trigger" in line] != []
        assert not any(line.startswith("error") for line in logged)

    def test_what_two_triggers_of_an_asset_store_is_not_lost(self):
        store = Store()
        few, many = (level_trigger(store, levels=levels) for levels in ([50], [60, 70]))
        assert fires(few, at(JUNE_18, "10")) == fires(many, at(JUNE_18, "10")) == []
        assert fires(few, at(JUNE_18, "90")) == june(50)
        assert fires(many, at(JUNE_18, "90")) == june(60, 70)

        assert fires(level_trigger(store, levels=[50, 60, 70, 80]), at(JUNE_18, "90")) == june(80)

    def test_what_another_triggerer_fired_meanwhile_does_not_fire_again(self):
        store = Store()
        suspended, other = level_trigger(store), level_trigger(store)
        assert fires(suspended, at(JUNE_18, "10")) == fires(other, at(JUNE_18, "10")) == []
        assert fires(other, at(JUNE_18, "60")) == june(50)

        assert fires(suspended, at(JUNE_18, "60")) == []
        assert fires(suspended, at(JUNE_18, "90")) == june(80)
        assert fires(other, at(JUNE_18, "101")) == june(100)

    def test_what_they_store_at_the_same_moment_is_not_lost(self):
        class Slow(Store):
            async def aget(self, key, default=None):
                content = await super().aget(key, default)
                await asyncio.sleep(0.01)
                return content

        async def fired(trigger):
            async def stream():
                for _ in range(3):
                    for poll in at(JUNE_18, "90")(trigger):
                        yield poll
                    await asyncio.sleep(0.05)

            return [event.payload["level"] async for event in trigger.filter_shared_stream(stream())]

        async def both():
            return await asyncio.gather(*(fired(level_trigger(store, levels=[level])) for level in (50, 80)))

        store = Slow()
        assert asyncio.run(both()) == [[50], [80]]
        assert fires(level_trigger(store, levels=[50, 80]), at(JUNE_18, "90")) == []

    def test_another_budget_begins_anew_and_another_level_alone(self):
        store = Store()
        assert fires(level_trigger(store, levels=[50, 80]), at(JUNE_18, "90")) == june(50, 80)

        assert fires(level_trigger(store, levels=[50, 60, 80]), at(JUNE_18, "90")) == june(60)
        assert fires(level_trigger(store, levels=[50, 80], budget="100.0"), at(JUNE_18, "90")) == []
        assert fires(level_trigger(store, levels=[50, 80], budget=150), at(JUNE_18, "90")) == june(50)

    @pytest.mark.parametrize("other", [{"metric": "requests"}, {"window": "week"}, {"products": "parse"}])
    def test_what_is_watched_is_told_apart(self, other):
        store = Store()
        assert fires(level_trigger(store, levels=[50]), at(JUNE_18, {JUNE_18.date(): "90"})) == june(50)

        again = at(JUNE_18, {JUNE_18.date(): "90"}, requests=90)
        assert len(fires(level_trigger(store, levels=[50], **other), again)) == 1
        assert fires(level_trigger(store, levels=[50], poke_interval=60, reducto_conn_id="other"), again) == []

    def test_old_windows_are_forgotten(self):
        store, trigger = Store(), None
        for day in range(120):
            moment = JUNE_18 + timedelta(days=day)
            trigger = level_trigger(store, window="day", levels=[50])
            assert len(fires(trigger, at(moment, {moment.date(): "60"}))) == 1
        [kept] = store.kept.values()
        assert 32 < len(json.loads(kept)) <= 33
        assert fires(level_trigger(store, window="day", levels=[50]), at(moment, {moment.date(): "60"})) == []

    def test_an_event_that_was_not_taken_is_not_remembered(self):
        store = Store()

        async def taken():
            async def stream():
                for poll in at(JUNE_18, "90")(level_trigger()):
                    yield poll

            events = level_trigger(store).filter_shared_stream(stream())
            event = await anext(events)
            await events.aclose()
            return event.payload["level"]

        assert asyncio.run(taken()) == 50
        assert store.kept == {}
        assert fires(level_trigger(store), at(JUNE_18, "60")) == june(50)


def group_trigger(store=None, **arguments):
    return level_trigger(store, **{"levels": [50, 80], "per_group": True, "group_by": "api_key", **arguments})


class TestGroups:
    def test_each_by_itself(self):
        trigger = group_trigger()

        assert groups_that_fire(trigger, by_group(JUNE_18, {"a": "49", "b": "50", "c": "1"})) == []
        assert groups_that_fire(trigger, by_group(JUNE_18, {"a": "60", "b": "81", "c": "1"})) == [
            (50, ["b", "a"]),
            (80, ["b"]),
        ]
        assert groups_that_fire(trigger, by_group(JUNE_18, {"a": "90", "b": "99", "c": "51"})) == [
            (50, ["c"]),
            (80, ["a"]),
        ]

    def test_the_event_names_the_groups(self):
        [event] = payloads(group_trigger(levels=[50]), by_group(JUNE_18, {"a": "60.5", "b": "70"}))

        assert event == json.loads(json.dumps(event))
        assert event["level"] == 50
        assert [(each["group_by"], each["group"], each["value"]) for each in event["readings"]] == [
            ("api_key", "b", 70),
            ("api_key", "a", 60.5),
        ]
        assert {each["projected"] for each in event["readings"]} == {False}

    def test_restated_down_and_up_again_none_fires_twice(self):
        trigger = group_trigger(levels=[50])
        rounds = [
            by_group(JUNE_18, {"a": a, "b": b}) for a, b in (("60", "1"), ("10", "1"), ("60", "60"), ("70", "70"))
        ]

        assert groups_that_fire(trigger, *rounds) == [(50, ["a"]), (50, ["b"])]

    def test_a_restart_remembers(self):
        store = Store()
        assert groups_that_fire(group_trigger(store), by_group(JUNE_18, {"a": "60"})) == [(50, ["a"])]

        both = by_group(JUNE_18, {"a": "60", "b": "90"})
        assert groups_that_fire(group_trigger(store), both) == [(50, ["b"]), (80, ["b"])]
        assert groups_that_fire(group_trigger(store), both) == []

    def test_whatever_their_names_are(self):
        store = Store()
        names = [None, "", " ", "a", "A", "\0", "x" * 100_000]

        all_of_them = by_group(JUNE_18, {name: str(60 + n) for n, name in enumerate(names)})
        [(_, fired)] = groups_that_fire(group_trigger(store), all_of_them)
        assert fired == [names[6], "\N{REPLACEMENT CHARACTER}", *reversed(names[:5])]
        assert groups_that_fire(group_trigger(store), all_of_them) == []
        [kept] = store.kept.values()
        assert len(kept) < 1000

    def test_each_window_anew(self):
        trigger = group_trigger(levels=[50])
        both = by_group(datetime(2026, 7, 1, 6, tzinfo=UTC), {"a": {date(2026, 6, 30): "60", date(2026, 7, 1): "60"}})

        events = payloads(trigger, both, both)
        assert [event["readings"][0]["usage_start_date"] for event in events] == ["2026-06-01", "2026-07-01"]

    @pytest.mark.parametrize("other", [{"per_group": False}, {"group_by": "feature"}, {"projected": True}], ids=str)
    def test_what_is_watched_is_told_apart(self, other):
        store, arguments = Store(), {"levels": [50]}
        assert len(payloads(group_trigger(store, **arguments), by_group(JUNE_18, {"a": "60"}))) == 1

        assert len(payloads(group_trigger(store, **arguments, **other), by_group(JUNE_18, {"a": "60"}))) == 1

    def test_only_the_hundred_largest_fire(self, logged):
        store = Store()
        many = {f"key {n}": str(60 + n / 10) for n in range(130)}
        largest = [f"key {n}" for n in range(129, 29, -1)]
        trigger = group_trigger(store)

        assert groups_that_fire(trigger, by_group(JUNE_18, many)) == [(50, largest)]
        assert groups_that_fire(trigger, by_group(JUNE_18, many)) == []
        warnings = [line for line in logged if line.startswith("warning")]
        assert len(warnings) == 1
        assert "more than 100 groups by api_key passed 50 % of the budget" in warnings[0]

        # The others fire nothing at this level, and as everybody at the next.
        assert groups_that_fire(trigger, by_group(JUNE_18, {**many, "key 0": "85"})) == [(80, ["key 0"])]
        assert groups_that_fire(group_trigger(store), by_group(JUNE_18, {**many, "key 1": "85"})) == [(80, ["key 1"])]
        [kept] = store.kept.values()
        assert len(json.loads(kept)) == 102

    def test_what_is_stored_is_bounded(self):
        store = Store()
        for month in range(1, 13):
            moment = datetime(2026, month, 10, tzinfo=UTC)
            for turn in range(3):
                used = {f"{month} {turn} {n}": {moment.date(): "60"} for n in range(90)}
                payloads(group_trigger(store), by_group(moment, used))
        [kept] = store.kept.values()
        assert len(json.loads(kept)) == 4 * 100
        assert len(kept) < 2**15


STEADY = {date(2026, 5, 1) + timedelta(days=n): "10" for n in range(49)}
"""10 a day until noon of June 18, when it has been used already."""


class TestProjected:
    def test_a_level_fires_before_it_is_used(self):
        trigger = level_trigger(budget=330, levels=[50, 90, 91], projected=True)

        events = payloads(trigger, at(JUNE_18, STEADY))
        assert [event["level"] for event in events] == [50, 90]
        assert events[0]["reading"].items() >= {"projected": True, "used": 180, "value": 300, "exceeded": False}.items()

    def test_it_falls_back_and_rises_again(self):
        store = Store()
        trigger = level_trigger(store, budget=330, levels=[90], projected=True)
        less = {**STEADY, **{day: "2" for day in STEADY if day > date(2026, 6, 10)}}

        assert fires(trigger, *(at(JUNE_18, used) for used in (STEADY, less, STEADY))) == june(90)
        assert fires(level_trigger(store, budget=330, levels=[90], projected=True), at(JUNE_18, STEADY)) == []

    def test_when_it_is_used_it_does_not_fire_again(self):
        trigger = level_trigger(budget=330, levels=[90], projected=True)
        month = {date(2026, 5, 1) + timedelta(days=n): "10" for n in range(61)}

        assert fires(trigger, at(JUNE_18, STEADY), at(datetime(2026, 6, 30, 23, tzinfo=UTC), month)) == june(90)

    def test_late_figures_of_the_window_that_ended_are_not_the_new_one_s(self):
        trigger = level_trigger(budget=1000, levels=[50], projected=True)
        month = {date(2026, 5, 1) + timedelta(days=n): "10" for n in range(61)}
        after = datetime(2026, 7, 1, 12, tzinfo=UTC)
        assert fires(trigger, at(after, month)) == []

        late = {**month, date(2026, 6, 30): "900"}
        [event] = payloads(trigger, at(after, late), at(after, late))
        assert event["reading"].items() >= {"usage_start_date": "2026-06-01", "projected": False, "value": 1190}.items()

    def test_groups_each_at_its_own_rate(self):
        trigger = group_trigger(budget=330, levels=[90], projected=True)
        new = {date(2026, 6, 17): "150"}

        [event] = payloads(trigger, by_group(JUNE_18, {"steady": STEADY, "new": new, "small": {ANY_DAY: "5"}}))
        assert [(each["group"], each["projected"]) for each in event["readings"]] == [("steady", True)]

    def test_the_days_before_are_asked_for_with_the_window(self):
        [query] = level_trigger(projected=True)._queries(JUNE_18)

        assert (query.start, query.end) == (date(2026, 5, 3), date(2026, 6, 18))


class TestFailures:
    @pytest.mark.parametrize(
        "error", [ReductoServerError("503"), ReductoAuthenticationError("401"), KeyError("unforeseen")], ids=repr
    )
    def test_no_failed_poll_ends_it(self, error, logged):
        failed = at(JUNE_18, "60", error=error)

        assert fires(level_trigger(), *[failed] * 20, at(JUNE_18, "60"), *[failed] * 20, at(JUNE_18, "90")) == june(
            50, 80
        )
        kind = "warning" if isinstance(error, ReductoServerError) else "error"
        assert sum(line.startswith(kind) for line in logged) == 80 / 2

    def test_an_account_without_credits(self, logged):
        none = at(JUNE_18, None, requests=60)

        assert fires(level_trigger(), none) == []
        [line] = logged
        assert line.startswith("error")
        assert "metric='requests'" in line
        assert fires(level_trigger(metric="requests"), none) == june(50)


def run(trigger, until=lambda events: False, seconds=20.0, during=None):
    """What a trigger that runs by itself fires, until ``until`` says that it is enough."""

    async def collect():
        events = []
        stream = trigger.run()
        try:
            async with asyncio.timeout(seconds):
                async for event in stream:
                    events.append((event.payload["level"], event.payload["reading"]["usage_start_date"]))
                    if during:
                        during(events)
                    if until(events):
                        return events
        except TimeoutError:
            pass
        finally:
            await stream.aclose()
        return events

    return asyncio.run(collect())


class TestService:
    """Against the service over a socket, on a clock of the test's own."""

    @pytest.fixture
    def connected(self, simulator, connect):
        simulator.usage.set_records("org_acme", [])
        connect(host=simulator.url, extra={"max_attempts": 1, "org_id": "org_acme"})
        return simulator

    def test_a_month_goes_by(self, connected):
        last, first = date(2026, 6, 30), date(2026, 7, 1)
        connected.usage.add("org_acme", last, 60, 1)
        with time_machine.travel(datetime(2026, 6, 30, 23, 59, tzinfo=UTC), tick=False) as clock:

            def goes_by(events):
                if len(events) == 1:
                    clock.move_to(datetime(2026, 7, 1, 0, 1, tzinfo=UTC))
                    connected.usage.add("org_acme", last, 30, 1)
                    connected.usage.add("org_acme", first, 55, 1)

            trigger = ReductoUsageLevelTrigger(budget=100, levels=[50, 80], poke_interval=0.01)
            events = run(trigger, lambda events: len(events) == 3, during=goes_by)

        assert events == [(50, "2026-06-01"), (80, "2026-06-01"), (50, "2026-07-01")]
        asked = {
            tuple(dict(request.query)[name] for name in ("startDate", "endDate")) for request in connected.requests
        }
        assert asked == {("2026-06-01", "2026-06-30"), ("2026-07-01", "2026-07-01")}

    def test_filters_reach_the_service(self, connected):
        filters = {"products": ["parse"], "features": "standard", "api_keys": ["a", "b"], "file_types": ["pdf"]}
        day = datetime.now(UTC).date()
        connected.usage.add("org_acme", day, 60, 1, api_key="a")
        connected.usage.add("org_acme", day, 500, 1, api_key="c")
        trigger = ReductoUsageLevelTrigger(budget=100, window="day", poke_interval=0.01, org_id="org_acme", **filters)

        assert [level for level, _ in run(trigger, lambda events: True)] == [50]
        query = [pair for pair in connected.requests[0].query if pair[0] not in ("startDate", "endDate")]
        assert sorted(query) == [
            *(("apiKey", "a"), ("apiKey", "b"), ("feature", "standard"), ("fileType", "pdf")),
            *(("groupBy", "product"), ("orgId", "org_acme"), ("product", "parse")),
        ]

    @pytest.mark.parametrize("fault", [status(401), status(403), status(400), status(503), html(), Reset()], ids=str)
    def test_it_goes_on_after_any_fault(self, connected, fault):
        connected.usage.add("org_acme", datetime.now(UTC).date(), 60, 1)
        connected.faults.add(fault, times=7)

        trigger = ReductoUsageLevelTrigger(budget=100, window="day", settle_days=0, poke_interval=0.01)
        assert [level for level, _ in run(trigger, lambda events: True)] == [50]
        assert len(connected.requests) == 8

    @pytest.mark.parametrize("fault", [None, status(401), status(503), html(), Reset()], ids=str)
    def test_it_never_spins(self, connected, fault):
        if fault:
            connected.faults.add(fault, times=None)

        trigger = ReductoUsageLevelTrigger(budget=100, window="day", settle_days=0, poke_interval=60)
        assert run(trigger, seconds=0.5) == []
        assert len(connected.requests) == 1

    def test_a_connection_that_comes_later(self, connected, connect, logged):
        connected.usage.add("org_acme", datetime.now(UTC).date(), 60, 1)
        trigger = ReductoUsageLevelTrigger(
            budget=100, window="day", poke_interval=0.01, reducto_conn_id="later", org_id="org_acme"
        )

        async def comes_later():
            stream = trigger.run()
            event = asyncio.ensure_future(anext(stream))
            while not any("later" in line for line in logged):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            connect(conn_id="later", host=connected.url)
            level = (await asyncio.wait_for(event, 20)).payload["level"]
            await stream.aclose()
            return level

        assert asyncio.run(comes_later()) == 50

    def test_a_key_that_is_rotated(self, connected, connect):
        today = datetime.now(UTC).date()
        connected.usage.add("org_acme", today, 60, 1)

        def rotates(events):
            if len(events) == 1:
                connected.keys["sim-key-new"] = connected.keys.pop("sim-key-all")
                connect(host=connected.url, password="sim-key-new", extra={"max_attempts": 1, "org_id": "org_acme"})
                connected.usage.add("org_acme", today, 30, 1)

        trigger = ReductoUsageLevelTrigger(budget=100, window="day", settle_days=0, poke_interval=0.01)
        events = run(trigger, lambda events: len(events) == 2, during=rotates)

        assert [level for level, _ in events] == [50, 80]
        assert [request.status for request in connected.requests].count(401) <= 2


ARGUMENTS = {
    "budget": Decimal("1234.567890123"),
    "levels": {80, 33.3, 120},
    "metric": "requests",
    "window": "week",
    "per_group": True,
    "projected": True,
    "group_by": "api_key",
    "settle_days": 3,
    "org_id": "org_acme",
    "products": ("extract", "parse"),
    "features": "standard",
    "api_keys": ["a"],
    "file_types": {"pdf"},
    "reducto_conn_id": "conn",
    "poke_interval": timedelta(minutes=10),
}


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            *(
                ({"budget": value}, "budget")
                for value in (0, -1, "", "None", "a lot", float("nan"), None, True, "1e18")
            ),
            *(({"levels": value}, "levels") for value in ((), [], [0], [-5], [50, 50], [50, 50.0], ["50"], [None])),
            *(
                ({"levels": value}, "levels")
                for value in ([float("nan")], [float("inf")], [True], [10_001], 50, "50", [[50]], None)
            ),
            *(({"window": value}, "window") for value in ("run", "year", 7, "", None, "Month")),
            *(({"settle_days": value}, "settle_days") for value in (-1, 32, 1.0, "1", None, True)),
            *(
                ({"poke_interval": value}, "poke_interval")
                for value in (0, -1, float("nan"), float("inf"), "300", None)
            ),
            ({"metric": "pages"}, "metric"),
            *(({name: value}, name) for name in ("per_group", "projected") for value in ("False", 1, None)),
            *(({"group_by": value}, "group_by") for value in ("", None, "org", "{{ params.group_by }}")),
            ({"org_id": ""}, "org_id"),
            ({"products": [""]}, "products"),
            ({"api_keys": "None"}, "api_keys"),
            ({"api_keys": []}, "api_keys is given but empty"),
            ({"reducto_conn_id": " "}, "reducto_conn_id is given but empty"),
            ({"org_id": "{{ params.org }}"}, "org_id must be final"),
            ({"products": ["parse", "{{ var.value.product }}"]}, "products must be final"),
        ],
        ids=str,
    )
    def test_what_can_t_be_right_is_refused(self, arguments, says):
        with pytest.raises(ValueError, match=says):
            ReductoUsageLevelTrigger(**{"budget": 100, **arguments})

    @pytest.mark.parametrize("arguments", [{"budget": 100}, ARGUMENTS], ids=["few", "all"])
    @new_in(3, 3, "how the trigger of a watcher is stored")
    def test_nothing_is_lost_on_the_way_from_the_dag_to_the_triggerer(self, arguments):
        from airflow.sdk import Asset, AssetWatcher
        from airflow.serialization.decoders import smart_decode_trigger_kwargs
        from airflow.serialization.encoders import encode_asset_like

        trigger = ReductoUsageLevelTrigger(**arguments)
        asset = Asset("usage", watchers=[AssetWatcher(name="levels", trigger=trigger)])

        [watcher] = json.loads(json.dumps(encode_asset_like(asset)))["watchers"]
        parsed = watcher["trigger"]
        stored = Trigger(classpath=parsed["classpath"], kwargs=parsed["kwargs"])

        assert BaseEventTrigger.hash(parsed["classpath"], parsed["kwargs"]) == BaseEventTrigger.hash(
            stored.classpath, stored.kwargs
        ), "otherwise each parse would start the watcher anew"
        kwargs = {name: smart_decode_trigger_kwargs(value) for name, value in stored.kwargs.items()}
        again = ReductoUsageLevelTrigger(**kwargs)
        assert again.serialize() == trigger.serialize()
        assert again.shared_stream_key() == trigger.shared_stream_key()
        assert again._queries(JUNE_18) == trigger._queries(JUNE_18)

    @new_in(3, 0, "watchers, whose triggers are told apart by a hash")
    def test_two_parses_give_the_same(self):
        one, other = (
            ReductoUsageLevelTrigger(budget=100, levels=levels, products=products).serialize()
            for levels, products in (([50, 80], {"parse", "edit"}), ({80, 50}, ["edit", "parse"]))
        )

        assert BaseEventTrigger.hash(*one) == BaseEventTrigger.hash(*other)

    def test_which_polls_are_shared(self):
        key = level_trigger().shared_stream_key()

        assert level_trigger(budget=7, levels=[1], metric="requests", per_group=True).shared_stream_key() == key
        for other in (
            *({"projected": True}, {"group_by": "api_key"}),
            *({"window": "week"}, {"settle_days": 2}, {"org_id": "org_b"}, {"poke_interval": 60}),
            *({"products": "parse"}, {"features": "parse"}, {"api_keys": "parse"}, {"file_types": "parse"}),
            {"reducto_conn_id": "other"},
        ):
            assert level_trigger(**other).shared_stream_key() != key
        hash(key)


@gone_in(3, 4, "watchers without a queue")
def test_a_queue_is_refused_where_watchers_have_none():
    with pytest.raises(ValueError, match=r"queue='billing' needs Airflow 3\.4 or newer: leave it out"):
        ReductoUsageLevelTrigger(budget=100, queue="billing")


@new_in(3, 4, "watchers with a queue")
def test_a_queue_is_no_argument_of_the_trigger():
    trigger = ReductoUsageLevelTrigger(budget=100, queue="billing")
    assert trigger.queue == "billing"
    assert trigger.serialize() == ReductoUsageLevelTrigger(budget=100).serialize()


@pytest.mark.parametrize("queue", ["", " ", 7])
def test_a_queue_that_is_no_name(queue):
    with pytest.raises(ValueError, match="queue must be the name of a triggerer's queue, not "):
        ReductoUsageLevelTrigger(budget=100, queue=queue)

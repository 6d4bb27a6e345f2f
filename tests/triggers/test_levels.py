"""The level trigger on an event loop: which levels fire, and when."""

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
from reducto_provider.triggers.levels import ReductoUsageLevelTrigger
from simulator import Reset, html, status
from tests.airflows import gone_in, new_in
from tests.triggers.rounds import (
    ANY_DAY,
    JUNE_18,
    Store,
    at,
    by_group,
    fires,
    groups_that_fire,
    june,
    manual_trigger,
    payloads,
)

pytestmark = pytest.mark.usefixtures("hardly_any_interval")


class TestLevels:
    def test_each_fires_once_when_it_is_exceeded(self):
        trigger = manual_trigger()

        assert fires(trigger, at(JUNE_18, "49")) == []
        assert fires(trigger, at(JUNE_18, "51"), at(JUNE_18, "52")) == june(50)
        assert fires(trigger, at(JUNE_18, "99"), at(JUNE_18, "120"), at(JUNE_18, "500")) == june(80, 100)

    def test_several_at_once_the_lowest_first(self):
        assert fires(manual_trigger(levels=[120, 33.3, 80, 100]), at(JUNE_18, "119")) == june(33.3, 80, 100)

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
    def test_an_equal_value_does_not_exceed_a_level(self, budget, level, equal, more):
        trigger = manual_trigger(budget=budget, levels=[level])

        assert fires(trigger, at(JUNE_18, equal)) == []
        assert fires(trigger, at(JUNE_18, more)) == june(level)

    def test_requests(self):
        trigger = manual_trigger(metric="requests", levels=[10, 20])

        assert fires(trigger, at(JUNE_18, None, requests=11)) == june(10)
        assert fires(trigger, at(JUNE_18, "1e9", requests=20)) == []

    def test_each_organization_by_itself(self):
        trigger = manual_trigger(levels=[50])

        assert fires(trigger, at(JUNE_18, "60"), at(JUNE_18, "60", org_id="org_other")) == june(50, 50)

    def test_restated_down_and_up_again_it_does_not_fire_twice(self):
        trigger = manual_trigger(levels=[50, 80])

        assert fires(trigger, *(at(JUNE_18, used) for used in ("60", "10", "60", "0", "90", "85", "95"))) == june(
            50, 80
        )

    def test_the_event(self):
        async def first():
            return await anext(manual_trigger().filter_shared_stream(stream()))

        async def stream():
            for poll in at(JUNE_18, "60.5")(manual_trigger()):
                yield poll

        event = asyncio.run(first()).payload
        assert event == json.loads(json.dumps(event))
        assert event["level"] == 50
        assert event["reading"].items() >= {"value": 60.5, "threshold": 100, "usage_end_date": "2026-06-30"}.items()

    def test_the_last_day_is_today_and_never_to_come(self):
        [query] = manual_trigger()._queries(JUNE_18)

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
        trigger = manual_trigger(window=window, levels=[50], settle_days=0)
        instants = [datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in moments]
        rounds = [at(moment, {moment.date(): "60"}) for moment in instants]

        assert [level for level, _ in fires(trigger, *rounds, *rounds)] == [50] * len(moments)

    def test_a_week_may_span_two_years(self):
        trigger = manual_trigger(window="week", levels=[50], settle_days=0)
        used = {date(2026, 12, 31): "30", date(2027, 1, 1): "30"}

        assert fires(trigger, at(datetime(2027, 1, 2, tzinfo=UTC), used)) == [(50, "2026-12-28")]
        assert fires(trigger, at(datetime(2027, 1, 4, tzinfo=UTC), used)) == []

    @pytest.mark.parametrize(("settle_days", "late"), [(0, 0), (1, 1), (3, 3), (31, 31)])
    def test_usage_counted_after_a_month_s_end_is_not_lost(self, settle_days, late):
        trigger = manual_trigger(levels=[50, 80], settle_days=settle_days)
        last_day, end = date(2026, 6, 30), datetime(2026, 6, 30, 23, 59, tzinfo=UTC)
        assert fires(trigger, at(end, {last_day: "60"})) == june(50)

        more = at(end + timedelta(days=late), {last_day: "81"})
        assert fires(trigger, more, more) == june(80)

    @pytest.mark.parametrize("settle_days", [0, 1, 3])
    def test_then_it_is_over(self, settle_days):
        trigger = manual_trigger(levels=[50], settle_days=settle_days)
        after = datetime(2026, 7, 1, tzinfo=UTC) + timedelta(days=settle_days)

        assert fires(trigger, at(after, {date(2026, 6, 30): "60"})) == []

    def test_two_windows_at_once(self):
        trigger = manual_trigger(levels=[50, 80])
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
    def test_the_queries_of_a_poll_are_few(self, window, settle_days, most):
        trigger = manual_trigger(window=window, settle_days=settle_days)
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

    def test_a_poll_before_midnight_is_for_the_old_window(self):
        trigger = manual_trigger(levels=[50])
        before = at(datetime(2026, 6, 30, 23, 59, 59, tzinfo=UTC), {date(2026, 6, 30): "60", date(2026, 7, 1): "60"})

        assert fires(trigger, before) == june(50)


def group_trigger(store=None, **arguments):
    return manual_trigger(store, **{"levels": [50, 80], "per_group": True, "group_by": "api_key", **arguments})


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
        assert "more than 100 groups by api_key exceeded 50 % of the budget" in warnings[0]

        # The others fire nothing at this level, and as everybody at the next.
        assert groups_that_fire(trigger, by_group(JUNE_18, {**many, "key 0": "85"})) == [(80, ["key 0"])]
        assert groups_that_fire(group_trigger(store), by_group(JUNE_18, {**many, "key 1": "85"})) == [(80, ["key 1"])]
        [kept] = store.kept.values()
        assert len(json.loads(kept)) == 102

    def test_each_window_and_level_has_a_warning(self, logged):
        trigger = group_trigger()
        months = [datetime(2026, month, 18, 12, tzinfo=UTC) for month in (6, 7)]
        for moment in months:
            many = by_group(moment, {f"key {n}": {moment.date(): "85"} for n in range(101)})
            groups_that_fire(trigger, many, many)

        warnings = [line for line in logged if line.startswith("warning")]
        assert [(line[9:33], "exceeded 50 %" in line) for line in warnings] == [
            ("2026-06-01 to 2026-06-30", True),
            ("2026-06-01 to 2026-06-30", False),
            ("2026-07-01 to 2026-07-31", True),
            ("2026-07-01 to 2026-07-31", False),
        ]

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
        trigger = manual_trigger(budget=330, levels=[50, 90, 91], projected=True)

        events = payloads(trigger, at(JUNE_18, STEADY))
        assert [event["level"] for event in events] == [50, 90]
        assert events[0]["reading"].items() >= {"projected": True, "used": 180, "value": 300, "exceeded": False}.items()

    def test_it_falls_back_and_rises_again(self):
        store = Store()
        trigger = manual_trigger(store, budget=330, levels=[90], projected=True)
        less = {**STEADY, **{day: "2" for day in STEADY if day > date(2026, 6, 10)}}

        assert fires(trigger, *(at(JUNE_18, used) for used in (STEADY, less, STEADY))) == june(90)
        assert fires(manual_trigger(store, budget=330, levels=[90], projected=True), at(JUNE_18, STEADY)) == []

    def test_when_it_is_used_it_does_not_fire_again(self):
        trigger = manual_trigger(budget=330, levels=[90], projected=True)
        month = {date(2026, 5, 1) + timedelta(days=n): "10" for n in range(61)}

        assert fires(trigger, at(JUNE_18, STEADY), at(datetime(2026, 6, 30, 23, tzinfo=UTC), month)) == june(90)

    def test_late_figures_of_the_window_that_ended_are_not_the_new_one_s(self):
        trigger = manual_trigger(budget=1000, levels=[50], projected=True)
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

    def test_the_days_before_are_requested_with_the_window(self):
        [query] = manual_trigger(projected=True)._queries(JUNE_18)

        assert (query.start, query.end) == (date(2026, 5, 3), date(2026, 6, 18))


class TestFailures:
    @pytest.mark.parametrize(
        "error", [ReductoServerError("503"), ReductoAuthenticationError("401"), KeyError("unforeseen")], ids=repr
    )
    def test_no_failed_poll_ends_it(self, error, logged):
        failed = at(JUNE_18, "60", error=error)

        assert fires(manual_trigger(), *[failed] * 20, at(JUNE_18, "60"), *[failed] * 20, at(JUNE_18, "90")) == june(
            50, 80
        )
        kind = "warning" if isinstance(error, ReductoServerError) else "error"
        assert sum(line.startswith(kind) for line in logged) == 2, "those that fail alike have a line in common"

    def test_two_windows_of_a_night_in_which_nothing_happens(self, logged):
        """Their polls alternate, and the reading of one is no news about the other."""
        trigger, used = manual_trigger(), {date(2026, 6, 30): "40", date(2026, 7, 1): "20"}
        midnight = datetime(2026, 7, 1, tzinfo=UTC)
        with time_machine.travel(midnight, tick=False) as clock:
            for _ in range(100):
                assert fires(trigger, at(datetime.now(UTC), used)) == []
                clock.shift(timedelta(minutes=5))
            assert len(logged) == 2 * 8, "eight hours and a bit"
            assert fires(trigger, at(datetime.now(UTC), {**used, date(2026, 7, 1): "60"})) == [(50, "2026-07-01")]

        assert ["40 of 100" in line for line in logged[:16]] == [True, False] * 8
        assert "60 of 100 credits (60.0%); exceeded 50 %" in logged[16]

    def test_an_account_without_credits(self, logged):
        none = at(JUNE_18, None, requests=60)

        assert fires(manual_trigger(), none) == []
        [line] = logged
        assert line.startswith("error")
        assert "metric='requests'" in line
        assert fires(manual_trigger(metric="requests"), none) == june(50)


def run(trigger, until=lambda events: False, seconds=20.0, during=None):
    """Return what a trigger that polls by itself fires, until ``until`` returns True for it."""

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
        days = {tuple(dict(request.query)[name] for name in ("startDate", "endDate")) for request in connected.requests}
        assert days == {("2026-06-01", "2026-06-30"), ("2026-07-01", "2026-07-01")}

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
        ("arguments", "message"),
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
            ({"org_id": "{{ params.org }}"}, "org_id must be a literal"),
            ({"products": ["parse", "{{ var.value.product }}"]}, "products must be a literal"),
        ],
        ids=str,
    )
    def test_an_invalid_argument_is_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
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

    @new_in(3, 0, "watchers, whose triggers are distinguished by a hash")
    def test_two_parses_give_the_same(self):
        one, other = (
            ReductoUsageLevelTrigger(budget=100, levels=levels, products=products).serialize()
            for levels, products in (([50, 80], {"parse", "edit"}), ({80, 50}, ["edit", "parse"]))
        )

        assert BaseEventTrigger.hash(*one) == BaseEventTrigger.hash(*other)

    def test_which_polls_are_shared(self):
        key = manual_trigger().shared_stream_key()

        assert manual_trigger(budget=7, levels=[1], metric="requests", per_group=True).shared_stream_key() == key
        for other in (
            *({"projected": True}, {"group_by": "api_key"}),
            *({"window": "week"}, {"settle_days": 2}, {"org_id": "org_b"}, {"poke_interval": 60}),
            *({"products": "parse"}, {"features": "parse"}, {"api_keys": "parse"}, {"file_types": "parse"}),
            {"reducto_conn_id": "other"},
        ):
            assert manual_trigger(**other).shared_stream_key() != key
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

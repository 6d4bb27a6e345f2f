"""Levels that have fired are remembered: in a store across restarts, without one while the trigger runs."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, date, datetime, timedelta

import pytest

from reducto_provider.triggers import levels
from reducto_provider.triggers.levels import ReductoUsageLevelTrigger
from tests.airflows import new_in
from tests.triggers.rounds import JUNE_18, Store, at, fires, june, manual_trigger
from tests.triggers.waits import today

pytestmark = pytest.mark.usefixtures("hardly_any_interval")


def test_a_restart_remembers():
    store = Store()
    assert fires(manual_trigger(store), at(JUNE_18, "60")) == june(50)

    assert fires(manual_trigger(store), at(JUNE_18, "70")) == []
    assert fires(manual_trigger(store), at(JUNE_18, "90")) == june(80)
    assert fires(manual_trigger(store), at(JUNE_18, "101")) == june(100)
    assert fires(manual_trigger(store), at(JUNE_18, "500")) == []


def test_without_a_store_a_restart_fires_again():
    assert fires(manual_trigger(), at(JUNE_18, "60")) == june(50)
    assert fires(manual_trigger(), at(JUNE_18, "60")) == june(50)


@pytest.mark.parametrize("window", ["month", "week", "day"])
def test_the_window_that_ended_is_remembered_beside_the_new_one(window):
    store, midnight = Store(), datetime(2026, 6, 1, tzinfo=UTC)  # a Monday
    used = {date(2026, 5, 31): "60", date(2026, 6, 1): "60"}
    one, other = at(midnight - timedelta(hours=1), used), at(midnight + timedelta(hours=1), used)

    assert [len(fires(manual_trigger(store, window=window), each)) for each in (one, other, other)] == [1, 1, 0]


def test_what_the_store_refuses_is_stored_later(logged):
    store = Store()
    trigger = manual_trigger(store, levels=[50, 80])
    assert fires(trigger, at(JUNE_18, "10")) == []
    store.error = RuntimeError("the API server is gone")
    assert fires(trigger, at(JUNE_18, "60"), at(JUNE_18, "60")) == june(50)
    assert store.kept == {}
    assert any("warning: Fired levels could not be stored" in line for line in logged)

    store.error = None
    assert fires(trigger, at(JUNE_18, "60")) == []
    assert fires(manual_trigger(store, levels=[50, 80]), at(JUNE_18, "60")) == []


@pytest.mark.parametrize(
    "error", [RuntimeError("the API server is gone"), json.JSONDecodeError("Expecting value", "<html>", 0)]
)
def test_while_the_store_can_t_be_read_nothing_fires_and_nothing_is_lost(error):
    store = Store()
    assert fires(manual_trigger(store), at(JUNE_18, "60")) == june(50)
    trigger = manual_trigger(store)
    store.error = error
    assert fires(trigger, at(JUNE_18, "90"), at(JUNE_18, "90")) == []

    store.error = None
    assert fires(trigger, at(JUNE_18, "90")) == june(80)


@pytest.mark.parametrize(
    "junk", ["junk", [50], 50, {"2026-06-01": "50"}, {"2026-06-01": None}, {"2026-06-01": [None]}], ids=str
)
def test_an_invalid_entry_makes_a_level_fire_again_rather_than_never(junk, logged):
    store = Store()
    assert fires(manual_trigger(store), at(JUNE_18, "60")) == june(50)
    [key] = store.kept
    store.kept[key] = json.dumps(junk)

    assert fires(manual_trigger(store), at(JUNE_18, "60"), at(JUNE_18, "90")) == june(50, 80)
    assert any(line.startswith("warning: Fired levels stored as reducto_usage_levels_") for line in logged)
    assert json.loads(store.kept[key]) == {"2026-06-01": [50, 80]}


@new_in(3, 3, "the state store of an asset")
def test_several_assets_have_no_store_in_common(logged):
    from airflow.sdk import Asset
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors

    assets = [Asset("one"), Asset("two")]
    trigger = manual_trigger(AssetStateStoreAccessors(inlets=assets))

    assert fires(trigger, at(JUNE_18, "60"), at(JUNE_18, "60")) == june(50)
    assert [line for line in logged if "give each asset a trigger" in line] != []
    assert not any(line.startswith("error") for line in logged)


def test_what_two_triggers_of_an_asset_store_is_not_lost():
    store = Store()
    few, many = (manual_trigger(store, levels=levels) for levels in ([50], [60, 70]))
    assert fires(few, at(JUNE_18, "10")) == fires(many, at(JUNE_18, "10")) == []
    assert fires(few, at(JUNE_18, "90")) == june(50)
    assert fires(many, at(JUNE_18, "90")) == june(60, 70)

    assert fires(manual_trigger(store, levels=[50, 60, 70, 80]), at(JUNE_18, "90")) == june(80)


def test_what_another_triggerer_fired_meanwhile_does_not_fire_again():
    store = Store()
    suspended, other = manual_trigger(store), manual_trigger(store)
    assert fires(suspended, at(JUNE_18, "10")) == fires(other, at(JUNE_18, "10")) == []
    assert fires(other, at(JUNE_18, "60")) == june(50)

    assert fires(suspended, at(JUNE_18, "60")) == []
    assert fires(suspended, at(JUNE_18, "90")) == june(80)
    assert fires(other, at(JUNE_18, "101")) == june(100)


def test_what_two_triggers_store_at_the_same_moment_is_not_lost():
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
        return await asyncio.gather(*(fired(manual_trigger(store, levels=[level])) for level in (50, 80)))

    store = Slow()
    assert asyncio.run(both()) == [[50], [80]]
    assert fires(manual_trigger(store, levels=[50, 80]), at(JUNE_18, "90")) == []


def test_another_budget_begins_anew_and_another_level_alone():
    store = Store()
    assert fires(manual_trigger(store, levels=[50, 80]), at(JUNE_18, "90")) == june(50, 80)

    assert fires(manual_trigger(store, levels=[50, 60, 80]), at(JUNE_18, "90")) == june(60)
    assert fires(manual_trigger(store, levels=[50, 80], budget="100.0"), at(JUNE_18, "90")) == []
    assert fires(manual_trigger(store, levels=[50, 80], budget=150), at(JUNE_18, "90")) == june(50)


@pytest.mark.parametrize("other", [{"metric": "requests"}, {"window": "week"}, {"products": "parse"}])
def test_another_condition_fires_by_itself(other):
    store = Store()
    assert fires(manual_trigger(store, levels=[50]), at(JUNE_18, {JUNE_18.date(): "90"})) == june(50)

    again = at(JUNE_18, {JUNE_18.date(): "90"}, requests=90)
    assert len(fires(manual_trigger(store, levels=[50], **other), again)) == 1
    assert fires(manual_trigger(store, levels=[50], poke_interval=60, reducto_conn_id="other"), again) == []


def test_old_windows_are_forgotten():
    store, trigger = Store(), None
    for day in range(120):
        moment = JUNE_18 + timedelta(days=day)
        trigger = manual_trigger(store, window="day", levels=[50])
        assert len(fires(trigger, at(moment, {moment.date(): "60"}))) == 1
    [kept] = store.kept.values()
    assert 32 < len(json.loads(kept)) <= 33
    assert fires(manual_trigger(store, window="day", levels=[50]), at(moment, {moment.date(): "60"})) == []


def test_an_event_that_nobody_received_is_not_remembered():
    store = Store()

    async def taken():
        async def stream():
            for poll in at(JUNE_18, "90")(manual_trigger()):
                yield poll

        events = manual_trigger(store).filter_shared_stream(stream())
        event = await anext(events)
        await events.aclose()
        return event.payload["level"]

    assert asyncio.run(taken()) == 50
    assert store.kept == {}
    assert fires(manual_trigger(store), at(JUNE_18, "60")) == june(50)


def test_each_level_is_stored_before_the_next_fires(service, monkeypatch, leaves_nothing_open):
    service.usage.set_records("org_acme", [])
    service.usage.add("org_acme", today(), credits=90, requests=1)
    monkeypatch.setattr(levels, "_PERSIST_SECONDS", 15.0)  # unlike any other sleep
    happened = []
    sleep = asyncio.sleep

    async def noted(seconds):
        if seconds == levels._PERSIST_SECONDS:
            happened.append("waited")
            seconds = 0
        await sleep(seconds)

    monkeypatch.setattr(levels.asyncio, "sleep", noted)

    class Noting(Store):
        async def aset(self, key, value):
            await super().aset(key, value)
            [fired] = value.values()
            happened.append(f"stored {fired}")

    async def scenario():
        trigger = ReductoUsageLevelTrigger(budget=100, poke_interval=1)
        trigger.asset_state_store = Noting()
        async with aclosing(trigger.run()) as events, asyncio.timeout(60):
            async for event in events:
                happened.append(f"fired {event.payload['level']}")
                if event.payload["level"] == 80:
                    service.usage.add("org_acme", today(), credits=90, requests=1)
                if event.payload["level"] == 100:
                    return

    asyncio.run(scenario())
    assert happened == [
        "fired 50",
        "waited",
        "stored [50]",
        "fired 80",
        "waited",
        "stored [50, 80]",
        "fired 100",
    ]

"""The threshold trigger against the service, on a clock of the test's own: windows that end while it waits."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
import time_machine

from reducto_provider.triggers import base
from reducto_provider.triggers.threshold import ReductoUsageThresholdTrigger
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.threshold import UsageThreshold

JUNE = (date(2026, 6, 1), date(2026, 6, 30))
LEAP_FEBRUARY = (date(2028, 2, 1), date(2028, 2, 29))
YEAR_S_END = (date(2026, 12, 28), date(2027, 1, 3))
FILTERS = {"products": ("parse",), "features": ("a", "b"), "api_keys": ("k",), "file_types": ("pdf",)}


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(base, "MIN_INTERVAL", 0.01)


@pytest.fixture
def connected(simulator, connect):
    simulator.usage.set_records("org_acme", [])
    connect(host=simulator.url, extra={"max_attempts": 1})
    return simulator


def waiting_for(window, threshold="100", *, metric="credits", query=None, options=None, **fields):
    query = UsageQuery(start=window[0], end=window[1], org_id="org_acme", **(query or {}))
    condition = UsageThreshold(query=query, metric=metric, threshold=Decimal(threshold), **fields)
    return ReductoUsageThresholdTrigger.waiting_for(
        condition, reducto_conn_id="reducto_default", poke_interval=0.01, **(options or {})
    )


def noon(day):
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC)


def event_of(trigger, simulator, clock, *steps):
    """The event that ends the wait; each step, a moment or a change, comes after two more polls."""

    async def wait():
        stream = trigger.run()
        event = asyncio.ensure_future(anext(stream))
        for step in steps:
            asked = len(simulator.requests)
            while len(simulator.requests) < asked + 2 and not event.done():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert not event.done(), f"before {step}: {event.result().payload}"
            step() if callable(step) else clock.move_to(step)
        payload = (await asyncio.wait_for(event, 20)).payload
        await stream.aclose()
        return payload

    return asyncio.run(wait())


@pytest.mark.parametrize("window", [JUNE, LEAP_FEBRUARY, YEAR_S_END, (date(2026, 12, 31),) * 2], ids=str)
@pytest.mark.parametrize("settle_days", [0, 2])
def test_a_window_that_ends_while_it_is_waited_for(connected, window, settle_days):
    last, closed = window[1], window[1] + timedelta(days=settle_days + 1)
    connected.usage.add("org_acme", last, 100, 1)
    connected.usage.add("org_acme", last + timedelta(days=1), 1, 1)
    trigger = waiting_for(window, settle_days=settle_days)
    with time_machine.travel(noon(window[0]), tick=False) as clock:
        moments = [noon(last), noon(closed) - timedelta(hours=12, microseconds=1), noon(closed) - timedelta(hours=12)]
        event = event_of(trigger, connected, clock, *moments)

    assert event["status"] == "closed"
    assert event["reading"]["value"] == 100
    assert {dict(request.query)["startDate"] for request in connected.requests} == {str(window[0])}
    assert {dict(request.query)["endDate"] for request in connected.requests} == {str(window[0]), str(last)}


def test_what_is_counted_late_still_exceeds(connected):
    connected.usage.add("org_acme", JUNE[1], 100, 1)
    trigger = waiting_for(JUNE, settle_days=1)
    with time_machine.travel(noon(JUNE[1]), tick=False) as clock:
        event = event_of(
            trigger,
            connected,
            clock,
            noon(date(2026, 7, 1)),
            lambda: connected.usage.add("org_acme", JUNE[1], "0.5", 1),
        )

    assert (event["status"], event["reading"]["value"]) == ("exceeded", 100.5)


def test_a_window_that_is_waited_for_after_its_end(connected):
    trigger = waiting_for(JUNE, options={"wait_when_closed": True})
    with time_machine.travel(noon(JUNE[1]), tick=False) as clock:
        event = event_of(
            trigger, connected, clock, noon(date(2026, 9, 1)), lambda: connected.usage.add("org_acme", JUNE[1], 101, 1)
        )

    assert (event["status"], event["reading"]["usage_end_date"]) == ("exceeded", "2026-06-30")


def test_a_window_that_has_not_begun_is_not_asked_for(connected):
    connected.usage.add("org_acme", date(2026, 5, 31), 500, 1)
    connected.usage.add("org_acme", JUNE[0], 101, 1)

    async def wait(clock):
        stream = waiting_for(JUNE).run()
        event = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        assert connected.requests == []
        clock.move_to(datetime(2026, 6, 1, tzinfo=UTC))
        payload = (await asyncio.wait_for(event, 20)).payload
        await stream.aclose()
        return payload

    with time_machine.travel(datetime(2026, 5, 31, 23, 59, 59, 999999, tzinfo=UTC), tick=False) as clock:
        event = asyncio.run(wait(clock))
    assert (event["status"], event["reading"]["value"]) == ("exceeded", 101)
    assert {dict(request.query)["endDate"] for request in connected.requests} == {"2026-06-01"}


@pytest.mark.parametrize("metric", ["credits", "requests"])
def test_a_projection_that_comes_to_exceed(connected, metric):
    for day in range(10):
        connected.usage.add("org_acme", JUNE[0] + timedelta(days=day), 10, 10)
    trigger = waiting_for(JUNE, "299", metric=metric, projected=True)
    with time_machine.travel(noon(JUNE[0]), tick=False) as clock:
        event = event_of(trigger, connected, clock, noon(date(2026, 6, 3)), noon(date(2026, 6, 4)))

    assert event["status"] == "exceeded"
    assert event["reading"].items() >= {"value": 300, "used": 40, "projected": True}.items()


def test_a_projection_of_a_window_that_is_over_is_what_was_used(connected):
    for day in range(10):
        connected.usage.add("org_acme", JUNE[0] + timedelta(days=day), 10, 10)
    trigger = waiting_for(JUNE, "300", projected=True)
    with time_machine.travel(noon(date(2026, 6, 8)), tick=False) as clock:
        event = event_of(trigger, connected, clock, noon(date(2026, 7, 1)))

    assert event["status"] == "closed"
    assert event["reading"].items() >= {"value": 100, "used": 100, "projected": False}.items()


def test_a_deadline_that_passes(connected):
    with time_machine.travel(noon(JUNE[0]), tick=False) as clock:
        deadline = (noon(JUNE[0]) + timedelta(hours=5)).timestamp()
        event = event_of(
            waiting_for(JUNE, options={"deadline": deadline}), connected, clock, noon(JUNE[0]) + timedelta(hours=6)
        )

    assert event["status"] == "timeout"


@pytest.mark.parametrize("metric", ["credits", "requests"])
@pytest.mark.parametrize("projected", [False, True])
def test_filters_reach_the_service(connected, metric, projected):
    matching = {"product": "parse", "feature": "a", "api_key": "k", "file_type": "pdf"}
    for day in range(4):
        connected.usage.add("org_acme", JUNE[0] + timedelta(days=day), 30, 30, **matching)
        for name in matching:
            connected.usage.add("org_acme", JUNE[0] + timedelta(days=day), 999, 999, **{**matching, name: "other"})
    trigger = waiting_for(JUNE, metric=metric, projected=projected, query={**FILTERS, "group_by": "api_key"})
    with time_machine.travel(noon(date(2026, 6, 4)), tick=False) as clock:
        event = event_of(trigger, connected, clock)

    assert event["status"] == "exceeded"
    assert event["reading"].items() >= {"value": 900 if projected else 120, "used": 120, "group_by": "api_key"}.items()
    assert [pair for pair in connected.requests[0].query if pair[0] not in ("startDate", "endDate")] == [
        *(("groupBy", "api_key"), ("orgId", "org_acme"), ("product", "parse"), ("feature", "a"), ("feature", "b")),
        *(("apiKey", "k"), ("fileType", "pdf")),
    ]


@pytest.mark.parametrize("shown", ["null", "absent"])
def test_an_account_without_credits(connected, shown):
    connected.usage.add("org_acme", JUNE[0], 500, 101)
    connected.usage.set_credits("org_acme", shown)
    with time_machine.travel(noon(JUNE[0]), tick=False) as clock:
        event = event_of(waiting_for(JUNE), connected, clock)
        requests = event_of(waiting_for(JUNE, metric="requests"), connected, clock)

    assert (event["status"], event["error"]) == ("error", "ReductoCreditsUnavailableError")
    assert "metric='requests'" in event["message"]
    assert (requests["status"], requests["reading"]["value"]) == ("exceeded", 101)

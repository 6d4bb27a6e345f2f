"""Polls at the same moment are one request."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from simulator import Stall
from tests.triggers.waits import first_event, threshold_trigger, today, until


def test_triggers_that_begin_and_end_at_the_same_moment_share_a_poll(service, leaves_nothing_open):
    at_end = 150

    async def statuses_of(seconds):
        """Return None if the machine is too busy for all to begin in this time."""
        deadline = time.time() + seconds
        triggers = [
            threshold_trigger(threshold=str(number), poll_immediately=True, poke_interval=300.0, deadline=deadline)
            for number in range(200)
        ]
        waits = [asyncio.create_task(first_event(trigger)) for trigger in triggers]
        await until(lambda: sum(wait.done() for wait in waits) == 101)
        service.usage.add("org_acme", today(), credits=at_end - 100, requests=1)
        if time.time() >= deadline:
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)
            return None
        assert len(service.requests) == 1
        service.faults.add(Stall(0.3))  # so that one whose timer is a little late still joins
        return [event["status"] for event in await asyncio.gather(*waits)]

    for seconds in (1, 4, 16, 60):
        service.clear()
        service.usage.set_records("org_acme", [])
        service.usage.add("org_acme", today(), credits=100.5, requests=1)
        if statuses := asyncio.run(statuses_of(seconds)):
            break

    assert statuses == ["exceeded"] * (at_end + 1) + ["timeout"] * (199 - at_end)
    assert len(service.requests) == 2


def test_each_event_loop_polls_separately(service, leaves_nothing_open):
    service.faults.add(Stall(0.5), times=2)
    service.usage.add("org_acme", today(), credits=11, requests=1)

    def in_a_loop(_):
        return asyncio.run(first_event(threshold_trigger(poll_immediately=True)))["status"]

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(in_a_loop, range(2))) == ["exceeded"] * 2


def test_other_queries_are_polled_separately(service):
    others = [{"org_id": "org_umbra"}, {"group_by": "feature"}, {"features": ["parse"]}, {"metric": "requests"}, {}]

    async def scenario():
        triggers = [threshold_trigger(deadline=0.0, **other) for other in others]
        await asyncio.gather(*(first_event(trigger) for trigger in triggers))

    asyncio.run(scenario())
    assert len(service.requests) == 4, "both metrics are in the same answer"


def test_a_cancelled_trigger_leaves_the_poll_to_the_others(service, leaves_nothing_open):
    service.faults.add(Stall(1))
    service.usage.add("org_acme", today(), credits=11, requests=1)

    async def scenario():
        first, *others = [asyncio.create_task(first_event(threshold_trigger(poll_immediately=True))) for _ in range(3)]
        await until(lambda: service.journal.in_flight == 1)
        first.cancel()
        assert [event["status"] for event in await asyncio.gather(*others)] == ["exceeded"] * 2
        assert first.cancelled()

        await first_event(threshold_trigger(poll_immediately=True))

    asyncio.run(scenario())
    assert len(service.requests) == 2, "one for the three, one for the later one"


def test_after_the_last_is_cancelled_the_next_polls_again(service, leaves_nothing_open):
    service.faults.add(Stall(60))
    service.usage.add("org_acme", today(), credits=11, requests=1)

    async def scenario():
        gone = [asyncio.create_task(first_event(threshold_trigger(poll_immediately=True))) for _ in range(2)]
        await until(lambda: service.journal.in_flight == 1)
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        event = await first_event(threshold_trigger(poll_immediately=True))
        assert event["status"] == "exceeded"
        await until(lambda: service.journal.in_flight == 0)

    asyncio.run(scenario())
    assert len(service.requests) == 2

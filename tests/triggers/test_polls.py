"""Polls over a real connection: what is kept between them, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta

import pytest
import time_machine

from reducto_provider.exceptions import ReductoServerError
from reducto_provider.hooks import transport
from reducto_provider.triggers import levels
from reducto_provider.triggers.levels import ReductoUsageLevelTrigger
from reducto_provider.triggers.polls import MAX_FAILURE_TIME, MIN_FAILED_POLLS, FailedPolls, Poller
from reducto_provider.triggers.threshold import ReductoUsageThresholdTrigger
from reducto_provider.usage.query import UsageQuery
from simulator import Reset, Stall, redirect, status
from tests.airflows import SHARED_STREAMS


def query(org=None):
    day = datetime.now(UTC).date()
    return UsageQuery(start=day, end=day, org_id=org)


@pytest.fixture
def service(simulator, connect):
    connect(host=simulator.url, extra={"max_attempts": 1})
    return simulator


def ask(*changes):
    """Poll once, and after each of the changes once more: the polls."""

    async def polls():
        async with Poller("reducto_default") as poller:
            found = [await poller.ask(query(), datetime.now(UTC))]
            for change in changes:
                change()
                found.append(await poller.ask(query(), datetime.now(UTC)))
            return found

    return asyncio.run(polls())


@pytest.mark.parametrize("fault", [redirect("https://studio.example/"), status(403), status(503), Reset()])
def test_a_connection_that_was_mended_is_seen(service, connect, fault):
    service.faults.add(fault, times=None, org="org_acme")
    connect(host=service.url, password="sim-key-acme", extra={"max_attempts": 1})

    def mend():
        connect(host=service.url, password="sim-key-globex")

    failed, failed_again, good = ask(lambda: None, mend)
    assert failed.error is not None
    assert type(failed_again.error) is type(failed.error)
    assert good.report.org_id == "org_globex"


def test_a_connection_that_is_not_there_yet_is_seen_when_it_is(service, connect, monkeypatch):
    host = service.url
    monkeypatch.delenv("AIRFLOW_CONN_REDUCTO_DEFAULT")

    missing, good = ask(lambda: connect(host=host))
    assert "reducto_default" in str(missing.error)
    assert good.report is not None


def test_one_tcp_connection_serves_all_polls(service):
    peers = set()
    answer = service.answer

    def note(request):
        peers.add(request.transport.get_extra_info("peername"))
        return answer(request)

    service.answer = note
    try:
        ask(lambda: None, lambda: None)
    finally:
        del service.answer
    assert len(peers) == 1


# -- which failures are tolerated


def failing(*, every, **options):
    """How many polls fail, one each so many seconds, before the wait ends, and what the log says of the last."""
    polls = FailedPolls(MAX_FAILURE_TIME.total_seconds(), **options)
    with time_machine.travel(datetime(2026, 11, 1, tzinfo=UTC), tick=False) as clock:
        while polls.tolerates(ReductoServerError("Reducto failed (503)")):
            clock.shift(every)
            assert polls.count < 1_000
        return polls.count, str(polls)


@pytest.mark.parametrize(
    ("every", "count", "lasted"),
    [
        (timedelta(minutes=5), 73, "6:00:00"),
        (timedelta(hours=1), 7, "6:00:00"),
        (timedelta(hours=5), MIN_FAILED_POLLS, "20:00:00"),
        (timedelta(days=1), MIN_FAILED_POLLS, "4 days, 0:00:00"),
    ],
)
def test_transient_failures_end_a_wait_after_hours_and_polls(every, count, lasted):
    said = f"failure {count}, for {lasted}; 5 failures over 6:00:00 end the wait"
    assert failing(every=every) == (count, said)


def test_an_outage_of_the_evening_is_forgotten_when_a_poll_succeeds():
    polls = FailedPolls(MAX_FAILURE_TIME.total_seconds())
    with time_machine.travel(datetime(2026, 11, 1, tzinfo=UTC), tick=False) as clock:
        for _ in range(30):
            for _ in range(70):
                clock.shift(timedelta(minutes=5))
                assert polls.tolerates(ReductoServerError("Reducto failed (503)"))
            polls.reset()


def test_a_clock_that_is_set_back_ends_no_wait():
    polls = FailedPolls(1.0)
    with time_machine.travel(datetime(2026, 11, 1, tzinfo=UTC), tick=False) as clock:
        for _ in range(2 * MIN_FAILED_POLLS):
            assert polls.tolerates(ReductoServerError("Reducto failed (503)"))
            clock.shift(timedelta(hours=-1))
        assert "for 0:00:00;" in str(polls)


# -- what is left behind


@pytest.fixture
def leaves_nothing_open(caplog):
    """Assert that what ran left no session to the garbage collector, and no task that failed unheard."""
    caplog.set_level(logging.WARNING, logger="asyncio")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert [str(warning.message) for warning in warned if "client" in str(warning.message)] == []
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def threshold_trigger(**arguments):
    days = {"usage_start_date": query().start.isoformat(), "usage_end_date": query().end.isoformat()}
    return ReductoUsageThresholdTrigger(
        **{"reducto_conn_id": "reducto_default", "threshold": "10", "poke_interval": 1.0, **days, **arguments}
    )


def level_trigger():
    return ReductoUsageLevelTrigger(budget=1_000_000, poke_interval=1)


async def until(condition):
    async with asyncio.timeout(30):  # a request that is not given up takes a minute
        while not condition():  # noqa: ASYNC110  # of another thread
            await asyncio.sleep(0.02)


def test_the_session_of_a_poll_that_failed_is_closed_at_once(service, monkeypatch):
    service.faults.add(status(503), times=3)
    opened, open_session = [], transport._open_session

    def noted(settings, verify):
        opened.append(open_session(settings, verify))
        return opened[-1]

    monkeypatch.setattr(transport, "_open_session", noted)

    async def scenario():
        async with Poller("reducto_default") as poller:
            for _ in range(5):
                await poller.ask(query(), datetime.now(UTC))
            assert [session.closed for session in opened] == [True, True, True, False]

    asyncio.run(scenario())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_fork_has_a_log_thread_of_its_own():
    """The parent's is not there, and a line that waits for it would hold up its trigger for ever."""

    async def logs():
        await asyncio.wait_for(asyncio.shield(threshold_trigger()._alog("info", "a line")), 20)

    asyncio.run(logs())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which is what this is about
        child = os.fork()
    if not child:
        with suppress(BaseException):
            asyncio.run(logs())
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


async def first_of(events):
    async with aclosing(events):
        return await anext(events)


@pytest.mark.parametrize(
    "make_trigger", [threshold_trigger, lambda: threshold_trigger(poll_immediately=True), level_trigger]
)
@pytest.mark.parametrize("requests", [0, 1, 2])
def test_a_trigger_that_is_cancelled(service, make_trigger, requests, leaves_nothing_open):
    service.faults.add(status(503))
    service.faults.add(Stall(60), times=None)

    async def cancelled():
        task = asyncio.create_task(first_of(make_trigger().run()))
        await asyncio.sleep(0)
        await until(lambda: len(service.requests) >= requests)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await until(lambda: service.journal.in_flight == 0)

    asyncio.run(cancelled())


def test_a_loop_that_ends(service, leaves_nothing_open):
    service.faults.add(Stall(60), times=None)

    async def ends():
        triggers = [threshold_trigger(poll_immediately=True, poke_interval=float(seconds)) for seconds in (1, 2, 2, 3)]
        tasks = [asyncio.create_task(first_of(trigger.run())) for trigger in triggers]
        await until(lambda: len(service.requests) >= 3)
        return tasks  # which asyncio.run cancels, as a triggerer's shutdown does

    asyncio.run(ends())


# -- at the same moment


def test_who_begins_and_ends_at_the_same_moment_asks_once(service, leaves_nothing_open):
    service.usage.set_records("org_acme", [])
    service.usage.add("org_acme", query().start, credits=100.5, requests=1)
    at_end = 150

    async def scenario():
        deadline = time.time() + 4
        triggers = [
            threshold_trigger(threshold=str(number), poll_immediately=True, poke_interval=300.0, deadline=deadline)
            for number in range(200)
        ]
        waits = [asyncio.create_task(first_of(trigger.run())) for trigger in triggers]
        await until(lambda: sum(wait.done() for wait in waits) == 101)
        assert len(service.requests) == 1
        service.usage.add("org_acme", query().start, credits=at_end - 100, requests=1)
        return [event.payload["status"] for event in await asyncio.gather(*waits)]

    assert asyncio.run(scenario()) == ["exceeded"] * (at_end + 1) + ["timeout"] * (199 - at_end)
    assert len(service.requests) == 2


def test_each_event_loop_asks_by_itself(service, leaves_nothing_open):
    service.faults.add(Stall(0.5), times=2)
    service.usage.add("org_acme", query().start, credits=11, requests=1)

    def in_a_loop(_):
        return asyncio.run(first_of(threshold_trigger(poll_immediately=True).run())).payload["status"]

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(in_a_loop, range(2))) == ["exceeded"] * 2


def test_other_questions_are_asked_by_themselves(service):
    others = [{"org_id": "org_umbra"}, {"group_by": "feature"}, {"features": ["parse"]}, {"metric": "requests"}, {}]

    async def scenario():
        triggers = [threshold_trigger(deadline=0.0, **other) for other in others]
        await asyncio.gather(*(first_of(trigger.run()) for trigger in triggers))

    asyncio.run(scenario())
    assert len(service.requests) == 4, "both metrics are in the same answer"


def test_who_is_cancelled_takes_no_answer_from_the_others(service, leaves_nothing_open):
    service.faults.add(Stall(1))
    service.usage.add("org_acme", query().start, credits=11, requests=1)

    async def scenario():
        first, *others = [
            asyncio.create_task(first_of(threshold_trigger(poll_immediately=True).run())) for _ in range(3)
        ]
        await until(lambda: service.journal.in_flight == 1)
        first.cancel()
        assert [event.payload["status"] for event in await asyncio.gather(*others)] == ["exceeded"] * 2
        assert first.cancelled()

        await first_of(threshold_trigger(poll_immediately=True).run())

    asyncio.run(scenario())
    assert len(service.requests) == 2, "one for the three, one for who came later"


def test_who_comes_when_all_others_have_gone_asks_anew(service, leaves_nothing_open):
    service.faults.add(Stall(60))
    service.usage.add("org_acme", query().start, credits=11, requests=1)

    async def scenario():
        gone = [asyncio.create_task(first_of(threshold_trigger(poll_immediately=True).run())) for _ in range(2)]
        await until(lambda: service.journal.in_flight == 1)
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        event = await first_of(threshold_trigger(poll_immediately=True).run())
        assert event.payload["status"] == "exceeded"
        await until(lambda: service.journal.in_flight == 0)

    asyncio.run(scenario())
    assert len(service.requests) == 2


# -- shared


@pytest.fixture
def shared():
    from airflow.triggers import shared_stream

    class Streams(shared_stream.SharedStreamManager):
        """Waits as the triggerer lets its triggers wait."""

        async def wait(self, number, trigger):
            key = trigger.shared_stream_key()
            stream = self.subscribe(trigger_id=number, trigger=trigger, key=key)
            try:
                return (await anext(trigger.filter_shared_stream(stream))).payload
            finally:
                await self.unsubscribe(number, key)

        def begin(self, number, trigger):
            return asyncio.create_task(self.wait(number, trigger))

    return Streams


@SHARED_STREAMS
def test_who_joins_late_gets_the_next_poll(service, shared, leaves_nothing_open):
    service.usage.set_records("org_acme", [])

    async def scenario():
        streams = shared()
        early = streams.begin(1, threshold_trigger())
        await until(lambda: len(service.requests) >= 2)
        late = streams.begin(2, threshold_trigger(threshold="20"))
        service.usage.add("org_acme", query().start, credits=21, requests=1)
        events = await asyncio.gather(early, late)
        assert [event["reading"]["threshold"] for event in events] == [10, 20]

    asyncio.run(scenario())


@SHARED_STREAMS
def test_the_last_to_leave_ends_the_polls_and_who_comes_then_begins_anew(service, shared, leaves_nothing_open):
    service.usage.set_records("org_acme", [])

    async def scenario():
        streams = shared()
        service.faults.add(Stall(60))
        last = streams.begin(1, threshold_trigger())
        await until(lambda: service.journal.in_flight == 1)
        last.cancel()
        next_one = streams.begin(2, threshold_trigger())  # while the other is still leaving
        with suppress(asyncio.CancelledError):
            await last
        await until(lambda: len(service.requests) >= 3)
        service.usage.add("org_acme", query().start, credits=11, requests=1)
        assert (await next_one)["reading"]["value"] == 11

        asked = len(service.requests)
        await asyncio.sleep(1.5)
        assert len(service.requests) == asked, "nobody waits"

    asyncio.run(scenario())


@SHARED_STREAMS
def test_who_is_slow_loses_nothing(service, shared, leaves_nothing_open):
    service.usage.set_records("org_acme", [])

    async def scenario():
        streams = shared(max_subscriber_queue=100)
        service.faults.add(Stall(3))
        slow = streams.begin(1, threshold_trigger(poll_immediately=True))  # its own question is the one that stalls
        await until(lambda: len(service.requests) >= 1)
        others = [streams.begin(number, threshold_trigger(threshold=str(number))) for number in range(2, 202)]
        await until(lambda: len(service.requests) >= 3)
        service.usage.add("org_acme", query().start, credits=1000, requests=1)
        events = await asyncio.gather(slow, *others)
        assert {event["status"] for event in events} == {"exceeded"}
        assert len(service.requests) < 20

    asyncio.run(scenario())


@SHARED_STREAMS
@pytest.mark.parametrize("renewed", [True, False])
def test_a_key_that_is_rotated_under_many_is_refused_once(service, shared, connect, leaves_nothing_open, renewed):
    service.usage.set_records("org_acme", [])

    async def scenario():
        streams = shared()
        waits = [streams.begin(number, threshold_trigger(threshold=str(number))) for number in range(1, 201)]
        await until(lambda: len(service.requests) >= 2)
        if renewed:
            connect(host=service.url, password="sim-key-new", extra={"max_attempts": 1})
        service.keys["sim-key-new"] = service.keys.pop("sim-key-all")
        service.usage.add("org_acme", query().start, credits=1000, requests=1)
        return await asyncio.gather(*waits)

    events = asyncio.run(scenario())
    if renewed:
        assert {event["status"] for event in events} == {"exceeded"}
    else:
        assert {event["error"] for event in events} == {"ReductoAuthenticationError"}
    assert [request.status for request in service.requests].count(401) == 1


# -- levels


class Store:
    """In the place of Airflow's store, which only a triggerer has; it notes what it is to keep."""

    def __init__(self, happened):
        self.happened = happened
        self.kept = {}

    async def aget(self, key):
        return self.kept.get(key)

    async def aset(self, key, value):
        self.kept[key] = value
        [levels] = value.values()
        self.happened.append(f"stored {levels}")


def test_levels_passed_at_once_are_handed_on_one_by_one(service, monkeypatch, leaves_nothing_open):
    service.usage.set_records("org_acme", [])
    service.usage.add("org_acme", query().start, credits=90, requests=1)
    happened = []
    sleep = asyncio.sleep

    async def noted(seconds):
        if seconds == levels._PERSIST_SECONDS:
            happened.append("waited")
            seconds = 0
        await sleep(seconds)

    monkeypatch.setattr(levels.asyncio, "sleep", noted)

    async def scenario():
        trigger = ReductoUsageLevelTrigger(budget=100, poke_interval=1)
        trigger.asset_state_store = Store(happened)
        async with aclosing(trigger.run()) as events, asyncio.timeout(60):
            async for event in events:
                happened.append(f"fired {event.payload['level']}")
                if event.payload["level"] == 80:
                    service.usage.add("org_acme", query().start, credits=90, requests=1)
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

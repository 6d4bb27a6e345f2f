"""Whatever the service does, a triggerer's event loop is never blocked and the service never flooded."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import threading
import time
import warnings
from contextlib import aclosing, suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from reducto_provider.exceptions import ReductoRequestError
from reducto_provider.hooks import reducto
from reducto_provider.hooks.reducto import ReductoHook
from reducto_provider.triggers.base import BaseUsageTrigger
from reducto_provider.triggers.polls import MAX_RETRY_AFTER, Poll
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport, UsageRow
from reducto_provider.usage.threshold import UsageThreshold
from simulator import (
    CutShort,
    Endless,
    LoggedRequest,
    Organization,
    Reply,
    Reset,
    Simulator,
    Stall,
    Trickle,
    html,
    redirect,
    status,
)
from tests.airflows import SHARED_STREAMS
from tests.triggers.waits import (
    INTERVAL,
    first_event,
    first_shared_event,
    level_trigger,
    threshold_trigger,
    today,
    until,
)

pytestmark = pytest.mark.usefixtures("short_interval")

STALL = 0.05
"""Seconds for which nothing else runs: more is a block. Airflow complains from 0.2 on."""
PAUSE = 0.005
TRIES = 10
"""A real block shows in each of them, a busy machine hardly so."""

ATTEMPTS = 2


# -- never blocked


def seconds_waited():
    """Seconds for which threads of this process wanted to run and others had the processor, where that is known."""
    seconds = 0
    for schedule in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that ended meanwhile
            seconds += int(schedule.read_text().split()[1]) / 1e9
    return seconds


async def watch(stalls):
    """
    Note how long other things of this process kept the loop from its next turn.

    Not by the clock alone: on a busy machine everything is late. What computes shows in the processor's time, what
    sleeps or waits for an answer in the time in which no thread wanted the processor. Looking for the latter is
    not timed itself: with each file that it opens it lets other threads in.
    """
    while True:
        waited = seconds_waited()
        clock, computed = time.monotonic(), time.process_time()
        await asyncio.sleep(PAUSE)
        clock, computed = time.monotonic() - clock, time.process_time() - computed
        stalls.append(max(computed, clock - PAUSE - (seconds_waited() - waited)))


def longest_stall(scenario):
    """Run a scenario in a loop of its own and measure."""

    async def watched():
        stalls = [0.0]
        watchdog = asyncio.create_task(watch(stalls))
        await asyncio.sleep(0)
        await scenario()
        await asyncio.sleep(2 * PAUSE)  # for what held the loop up until now
        watchdog.cancel()
        return max(stalls)

    gc.collect()
    gc.freeze()  # the heap of a whole test suite takes long to look through
    return asyncio.run(watched())


def never_blocks(scenario):
    """Assert that a scenario never holds up the loop that it runs in."""
    stalls = []
    while len(stalls) < TRIES and min(stalls, default=STALL) >= STALL:
        stalls.append(longest_stall(scenario))
    assert min(stalls) < STALL, stalls


def test_the_watchdog_barks():
    async def computes():
        sum(range(20_000_000))

    async def sleeps():
        time.sleep(0.2)  # noqa: ASYNC251

    async def hogs_in_a_thread():
        await asyncio.to_thread(sorted, map(str, range(2_000_000)))  # one call, that lets nobody else in

    for scenario in (computes, sleeps, hogs_in_a_thread):
        assert longest_stall(scenario) > STALL


def large_answer(rows):
    data = [{"date": str(today()), "group": f"key {n}", "credits": n + 0.1, "requestCount": n} for n in range(rows)]
    echo = {"orgId": "org_acme", "startDate": str(today()), "endDate": str(today()), "groupBy": "product"}
    return Reply(200, json.dumps({**echo, "data": data}).encode())


@pytest.mark.parametrize("where", ["headers", "body"])
def test_while_the_service_takes_its_time(service, where):
    service.faults.add(Stall(0.5, where), times=None)
    service.usage.add("org_acme", today(), credits=11, requests=1)

    async def scenario():
        assert (await first_event(threshold_trigger(poll_immediately=True)))["status"] == "exceeded"

    never_blocks(scenario)


@pytest.mark.parametrize("per_group", [False, True])
def test_while_a_large_answer_is_read(service, per_group):
    service.faults.add(large_answer(100_000), times=None)

    async def scenario():
        event = await first_event(threshold_trigger(poll_immediately=True, per_group=per_group))
        assert event["reading"]["value"] == (99_999.1 if per_group else 4_999_960_000)

    never_blocks(scenario)


@SHARED_STREAMS
def test_while_many_read_the_same_answer(service):
    from airflow.triggers import shared_stream

    service.faults.add(large_answer(9_000), times=None)

    async def scenario():
        manager = shared_stream.SharedStreamManager()

        triggers = [threshold_trigger(threshold=str(number)) for number in range(200)]
        events = await asyncio.gather(*(first_shared_event(manager, *each) for each in enumerate(triggers)))
        assert [event["reading"]["threshold"] for event in events] == list(range(200))

    never_blocks(scenario)


@pytest.mark.parametrize("failed", [False, True])
def test_while_thousands_take_up_the_same_poll(failed):
    day = today()
    rows = (UsageRow(day, "parse", Decimal(2001), 1),)
    report = UsageReport(org_id="org_acme", start=day, end=day, group_by="product", rows=rows)
    error = ReductoRequestError("refused") if failed else None

    async def scenario():
        poll = Poll(datetime.now(UTC), report=report, error=error)
        answered = asyncio.Event()

        async def stream():
            await answered.wait()
            yield poll

        async def wait(number):
            return await anext(threshold_trigger(threshold=str(number)).filter_shared_stream(stream()))

        waits = []
        for number in range(2000):
            waits.append(asyncio.create_task(wait(number)))
            await asyncio.sleep(0)
        answered.set()
        assert {event.payload["status"] for event in await asyncio.gather(*waits)} == {
            "error" if failed else "exceeded"
        }

    never_blocks(scenario)


@pytest.mark.parametrize(
    ("connection", "outcome"), [("reducto_default", "exceeded"), ("missing", "error")], ids=["answered", "unforeseen"]
)
def test_while_many_begin_at_the_same_moment(service, connection, outcome):
    service.faults.add(large_answer(9_000), times=None)

    async def stream():
        await asyncio.Event().wait()
        yield

    async def wait():
        trigger = threshold_trigger(reducto_conn_id=connection, poll_immediately=True, per_group=True)
        return await anext(trigger.filter_shared_stream(stream()))

    async def scenario():
        waits = []
        for _ in range(400):
            waits.append(asyncio.create_task(wait()))
            await asyncio.sleep(0)
        assert {event.payload["status"] for event in await asyncio.gather(*waits)} == {outcome}

    never_blocks(scenario)


def test_while_many_project_the_same_answer():
    first, last = date(2026, 6, 1), date(2026, 6, 29)
    rows = tuple(
        UsageRow(day, f"key {n}", Decimal("1.5"), 1) for day in DayRange(first, last).days() for n in range(300)
    )
    query = UsageQuery(start=first, end=date(2026, 6, 30), group_by="api_key")
    condition = [
        UsageThreshold(query=query, metric="credits", threshold=Decimal(n), per_group=True, projected=True)
        for n in range(200)
    ]

    async def scenario():
        report = UsageReport(org_id="org_acme", start=first, end=last, group_by="api_key", rows=rows)
        poll = Poll(datetime(2026, 6, 29, 12, tzinfo=UTC), query, report)
        readings = await asyncio.gather(*map(poll.read, condition))
        assert {reading.value for reading in readings} == {45}

    never_blocks(scenario)


@pytest.mark.parametrize(("rows", "turns"), [(1, 1), (1_000, 30)], ids=["small", "large"])
def test_only_some_readers_of_a_small_answer_wait_for_a_turn(rows, turns):
    day = date(2026, 6, 1)
    query = UsageQuery(start=day, end=day)
    condition = UsageThreshold(query=query, metric="credits", threshold=Decimal(1))
    report = UsageReport(
        org_id="org_acme", start=day, end=day, group_by="product", rows=(UsageRow(day, "key", Decimal(1), 1),) * rows
    )
    poll = Poll(datetime(2026, 6, 1, 12, tzinfo=UTC), query, report)

    async def turns_of_the_loop():
        count = 0
        for _ in range(30):
            reading = asyncio.ensure_future(poll.read(condition))
            await asyncio.sleep(0)
            while not reading.done():
                count += 1
                await asyncio.sleep(0)
        return count

    assert asyncio.run(turns_of_the_loop()) == turns


def test_while_another_answer_is_summed_up_that_is_large():
    day, query = date(2026, 6, 1), UsageQuery(start=date(2026, 6, 1), end=date(2026, 6, 1))
    rows = (UsageRow(day, "key", Decimal("1.5"), 1),) * 3_000_000
    condition = UsageThreshold(query=query, metric="credits", threshold=Decimal(1))

    def poll(rows):
        report = UsageReport(org_id="org_acme", start=day, end=day, group_by="product", rows=rows)
        return Poll(datetime(2026, 6, 1, 12, tzinfo=UTC), query, report)

    async def scenario():
        large = asyncio.gather(*map(poll(rows).read, [condition] * 20))
        while not large.done():
            assert (await poll(rows[:1]).read(condition)).value == Decimal("1.5")
            await asyncio.sleep(0.001)
        assert len(await large) == 20

    never_blocks(scenario)


@pytest.mark.parametrize("make_trigger", [threshold_trigger, level_trigger])
def test_while_the_log_has_no_room(simulator, connect, monkeypatch, make_trigger):
    """The process that makes room there may itself be waiting for this loop."""
    connect(host=simulator.url, extra={"max_attempts": ATTEMPTS})
    simulator.usage.add("org_acme", today(), credits=600_000, requests=1)
    simulator.faults.add(status(503), times=ATTEMPTS + 1)
    lines = []

    async def scenario():
        loop = asyncio.get_running_loop()

        class FullLog:
            """Has room once the loop has turned."""

            def __getattr__(self, level):
                return self.write

            def write(self, *args, **kwargs):
                turned = threading.Event()
                loop.call_soon_threadsafe(turned.set)
                lines.append((args[0], turned.wait(5)))

        for logs in (BaseUsageTrigger, ReductoHook):
            monkeypatch.setattr(logs, "log", FullLog())
        await first_event(make_trigger())

    asyncio.run(scenario())

    assert [text.split()[0] for text, _ in lines[:3]] == ["Attempt", "Poll", "Attempt"]
    assert len(lines) == 4
    assert all(turned for _, turned in lines)


def test_while_the_connection_is_looked_up(service, monkeypatch):
    from airflow.secrets.environment_variables import EnvironmentVariablesBackend

    memo = EnvironmentVariablesBackend.get_conn_value

    def slowly(self, *args, **kwargs):
        time.sleep(0.5)
        return memo(self, *args, **kwargs)

    monkeypatch.setattr(EnvironmentVariablesBackend, "get_conn_value", slowly)
    service.usage.add("org_acme", today(), credits=11, requests=1)

    async def scenario():
        assert (await first_event(threshold_trigger(poll_immediately=True)))["status"] == "exceeded"

    never_blocks(scenario)


# -- never flooded


async def collect(trigger, events):
    async with aclosing(trigger.run()) as stream:
        async for event in stream:
            events.append(event.payload)  # as they come


async def first_poll(trigger):
    async with aclosing(trigger.open_shared_stream(trigger.serialize()[1])) as polls:
        return await anext(polls)


class Troubled(NamedTuple):
    """Events and requests of triggers that each met a fault, by the names of the faults."""

    events: dict[str, list[dict[str, Any]]]
    requests: dict[str, list[LoggedRequest]]

    def assert_bounded(self):
        """Assert that there were no more polls than intervals, and no more requests than attempts in a poll."""
        too_many = {}
        for name, requests in self.requests.items():
            if requests:
                seconds = requests[-1].monotonic - requests[0].monotonic
                if len(requests) > ATTEMPTS * (1 + seconds / INTERVAL):
                    too_many[name] = len(requests), seconds
        assert too_many == {}

    @property
    def polled_again(self):
        return {name for name, requests in self.requests.items() if len(requests) > 1}

    @property
    def ended(self):
        return {name for name, events in self.events.items() if events}


@pytest.fixture
def trouble(connect, monkeypatch):
    """Run triggers, each with its own fault for every request, until all have ended or polled three times."""

    monkeypatch.setattr(reducto, "BACKOFF_INITIAL", 0.01)  # so that only the interval slows a trigger down

    def run(faults, make_trigger, transient, **extra):
        organizations = [Organization(name, records=()) for name in faults]
        with Simulator(organizations) as simulator:
            connect(host=simulator.url, extra={"max_attempts": ATTEMPTS, **extra})
            for name, fault in faults.items():
                simulator.faults.add(fault, times=None, org=name)
            events = {name: [] for name in faults}
            enough = {name: 2 * ATTEMPTS + 1 if name in transient else 3 for name in faults}

            def received():
                by_name = {name: [] for name in faults}
                for request in simulator.requests:
                    by_name[dict(request.query)["orgId"]].append(request)
                return by_name

            async def at_once():
                tasks = [asyncio.create_task(collect(make_trigger(org_id=name), events[name])) for name in faults]
                await until(
                    lambda: all(events[name] or len(requests) >= enough[name] for name, requests in received().items()),
                    seconds=60,
                )
                for task in tasks:
                    task.cancel()
                _, left = await asyncio.wait(tasks, timeout=30)
                assert not left, "a trigger that is cancelled ends"

            asyncio.run(at_once())
            return Troubled(events, received())

    return run


CODES = {str(code): status(code) for code in range(300, 600)}
TRANSIENT_CODES = {"407", "408", "425", "429", *map(str, range(500, 600))}
FAULTS = {
    "cut_short": CutShort(),
    "reset": Reset(),
    "hangs": Stall(60),
    "hangs_halfway": Stall(60, "body"),
    "trickles": Trickle(0.1),
    "endless": Endless(),
    "html": html(),
    "html_503": html(503),
    "no_json": Reply(200, b"\x00\xff"),
    "empty": Reply(200, b""),
    "created": Reply(201, b"{}"),
    "no_content": Reply(204),
    "elsewhere": redirect("http://127.0.0.1:9/"),
    "in_a_circle": redirect("/api/v1/usage/export", 308),
}
# Nor the endless one, which is too long or too slow, whichever comes first.
TRANSIENT_FAULTS = {"cut_short", "reset", "hangs", "hangs_halfway", "trickles", "html", "html_503"}


def test_a_wait_polls_once_per_interval_whatever_the_status(trouble):
    seen = trouble(CODES, threshold_trigger, TRANSIENT_CODES)

    seen.assert_bounded()
    assert seen.polled_again == TRANSIENT_CODES
    assert seen.ended == CODES.keys() - TRANSIENT_CODES
    errors = {name: seen.events[name][0]["error"] for name in seen.ended}
    assert (errors["400"], errors["401"], errors["403"]) == (
        "ReductoRequestError",
        "ReductoAuthenticationError",
        "ReductoPermissionError",
    )
    assert set(errors.values()) == {errors["400"], errors["401"], errors["403"], "ReductoResponseError"}


def test_so_does_a_wait_with_silent_fail(trouble):
    seen = trouble(CODES, partial(threshold_trigger, silent_fail=True), TRANSIENT_CODES)

    seen.assert_bounded()
    permanent = {name for name in CODES if name.startswith("4")} - TRANSIENT_CODES
    assert seen.ended == permanent
    assert seen.polled_again == CODES.keys() - permanent


def test_so_does_a_budget(trouble):
    seen = trouble(CODES, level_trigger, TRANSIENT_CODES)

    seen.assert_bounded()
    assert seen.polled_again == CODES.keys()
    assert seen.ended == set()


@pytest.mark.parametrize("make_trigger", [threshold_trigger, level_trigger])
def test_no_other_answer_makes_it_poll_more_often(trouble, make_trigger):
    seen = trouble(FAULTS, make_trigger, TRANSIENT_FAULTS, timeout=0.5)

    seen.assert_bounded()
    assert seen.polled_again >= TRANSIENT_FAULTS
    if make_trigger is level_trigger:
        assert seen.polled_again == FAULTS.keys()
        assert seen.ended == set()


@pytest.mark.parametrize("make_trigger", [threshold_trigger, level_trigger])
@pytest.mark.parametrize(("fault", "requests"), [(status(502), ATTEMPTS), (Reset(), ATTEMPTS), (status(418), 1)])
def test_a_poll_is_as_many_requests_as_attempts(service, connect, make_trigger, fault, requests):
    connect(host=service.url, extra={"max_attempts": ATTEMPTS})
    service.faults.add(fault, times=None)

    assert asyncio.run(first_poll(make_trigger())).error is not None
    assert len(service.requests) == requests


@pytest.mark.parametrize("make_trigger", [threshold_trigger, level_trigger])
def test_nobody_there(connect, make_trigger):
    connections = []
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and not listened at: connections are refused
        connect(host=f"http://127.0.0.1:{unheard.getsockname()[1]}", extra={"max_attempts": ATTEMPTS})

        async def scenario():
            loop = asyncio.get_running_loop()
            sock_connect = loop.sock_connect

            async def counted(sock, address):
                connections.append(loop.time())
                return await sock_connect(sock, address)

            loop.sock_connect = counted
            task = asyncio.create_task(collect(make_trigger(), []))
            await until(lambda: len(connections) > 2 * ATTEMPTS, seconds=60)
            task.cancel()

        asyncio.run(scenario())
    assert len(connections) <= ATTEMPTS * (1 + (connections[-1] - connections[0]) / INTERVAL)


@pytest.mark.parametrize("retry_after_as", ["seconds", "date"])
@pytest.mark.parametrize("make_trigger", [threshold_trigger, level_trigger])
def test_retry_after_delays_the_next_poll(service, make_trigger, retry_after_as):
    service.faults.add(status(429, retry_after=1, retry_after_as=retry_after_as))

    async def scenario():
        stream = make_trigger().open_shared_stream(make_trigger().serialize()[1])
        async with aclosing(stream):
            refused, answered = await anext(stream), await anext(stream)
        assert 0 < refused.error.retry_after <= 2  # a date is rounded up to the second
        assert refused.next_in == refused.error.retry_after
        assert answered.report is not None

    asyncio.run(scenario())
    [gap] = [later.monotonic - earlier.monotonic for earlier, later in pairwise(service.requests)]
    assert gap > 0.8, "the interval is shorter"


@pytest.mark.parametrize("retry_after_as", ["seconds", "date"])
@pytest.mark.parametrize("make_trigger", [threshold_trigger, level_trigger])
def test_retry_after_is_honoured_for_an_hour_at_most(service, make_trigger, retry_after_as):
    service.faults.add(status(503, retry_after=86_400, retry_after_as=retry_after_as))

    assert asyncio.run(first_poll(make_trigger())).next_in == MAX_RETRY_AFTER


async def first_event_in_a_stream(trigger):
    from airflow.triggers import shared_stream

    return await first_shared_event(shared_stream.SharedStreamManager(), 1, trigger)


@pytest.mark.parametrize(
    "wait", [first_event, pytest.param(first_event_in_a_stream, marks=SHARED_STREAMS)], ids=["alone", "shared"]
)
@pytest.mark.parametrize(
    "trigger",
    # The immediate poll has to be over before the stream's first.
    [threshold_trigger(poll_immediately=True, poke_interval=1.0), level_trigger(budget=10, poke_interval=1.0)],
    ids=["threshold", "level"],
)
def test_retry_after_delays_the_poll_after_an_immediate_one(service, wait, trigger):
    service.faults.add(status(429, retry_after=2))
    service.usage.add("org_acme", today(), credits=1_000, requests=1)

    asyncio.run(wait(trigger))
    [gap] = [later.monotonic - earlier.monotonic for earlier, later in pairwise(service.requests)]
    assert gap > 1.5


def test_the_end_of_a_retry_after_is_forgotten_once_it_is_over(service):
    """A triggerer runs for months, and each new query would add an entry."""
    BaseUsageTrigger._retry_not_before.clear()
    triggers = [threshold_trigger(org_id=org, poll_immediately=True) for org in ("org_acme", "org_globex", "org_umbra")]
    first, second, third = (trigger._stream_key() for trigger in triggers)

    def refused(trigger, seconds):
        service.faults.add(status(429, retry_after=seconds))
        asyncio.run(trigger._poll_now())

    refused(triggers[0], 1)
    refused(triggers[1], 60)
    assert BaseUsageTrigger._retry_not_before.keys() == {first, second}
    time.sleep(1.1)
    refused(triggers[2], 60)
    assert BaseUsageTrigger._retry_not_before.keys() == {second, third}
    BaseUsageTrigger._retry_not_before.clear()


# -- cancelled


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_fork_has_a_log_thread_of_its_own():
    """The parent's does not exist there, and a line that waits for it would block its trigger for ever."""

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
        task = asyncio.create_task(first_event(make_trigger()))
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
        triggers = [threshold_trigger(poll_immediately=True, poke_interval=INTERVAL * times) for times in (1, 2, 2, 3)]
        tasks = [asyncio.create_task(first_event(trigger)) for trigger in triggers]
        await until(lambda: len(service.requests) >= 3)
        return tasks  # which asyncio.run cancels, as a triggerer's shutdown does

    asyncio.run(ends())


# -- shared


@pytest.fixture
def shared():
    from airflow.triggers import shared_stream

    class Streams(shared_stream.SharedStreamManager):
        """Triggers subscribe to them as in a triggerer."""

        def begin(self, number, trigger):
            return asyncio.create_task(first_shared_event(self, number, trigger))

    return Streams


@SHARED_STREAMS
def test_a_late_subscriber_gets_the_next_poll(service, shared, leaves_nothing_open):
    service.usage.set_records("org_acme", [])

    async def scenario():
        streams = shared()
        early = streams.begin(1, threshold_trigger())
        await until(lambda: len(service.requests) >= 2)
        late = streams.begin(2, threshold_trigger(threshold="20"))
        service.usage.add("org_acme", today(), credits=21, requests=1)
        events = await asyncio.gather(early, late)
        assert [event["reading"]["threshold"] for event in events] == [10, 20]

    asyncio.run(scenario())


@SHARED_STREAMS
def test_the_last_subscriber_ends_the_polls_and_the_next_starts_them_again(service, shared, leaves_nothing_open):
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
        service.usage.add("org_acme", today(), credits=11, requests=1)
        assert (await next_one)["reading"]["value"] == 11

        before = len(service.requests)
        await asyncio.sleep(4 * INTERVAL)
        assert len(service.requests) == before, "nobody waits"

    asyncio.run(scenario())


@SHARED_STREAMS
def test_a_slow_subscriber_loses_nothing(service, shared, leaves_nothing_open):
    service.usage.set_records("org_acme", [])

    async def scenario():
        streams = shared(max_subscriber_queue=100)
        service.faults.add(Stall(1))
        slow = streams.begin(1, threshold_trigger(poll_immediately=True))  # its own poll is the one that stalls
        await until(lambda: len(service.requests) >= 1)
        others = [streams.begin(number, threshold_trigger(threshold=str(number))) for number in range(2, 202)]
        await until(lambda: len(service.requests) >= 3)
        service.usage.add("org_acme", today(), credits=1000, requests=1)
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
        service.usage.add("org_acme", today(), credits=1000, requests=1)
        return await asyncio.gather(*waits)

    events = asyncio.run(scenario())
    if renewed:
        assert {event["status"] for event in events} == {"exceeded"}
    else:
        assert {event["error"] for event in events} == {"ReductoAuthenticationError"}
    assert [request.status for request in service.requests].count(401) == 1

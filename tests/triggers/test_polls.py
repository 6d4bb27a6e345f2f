"""Polls over a real connection, how many of them may fail, and which are logged."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import time_machine

from reducto_provider.exceptions import ReductoServerError
from reducto_provider.hooks import transport
from reducto_provider.triggers.polls import (
    MAX_FAILURE_TIME,
    MAX_SILENCE,
    MIN_FAILED_POLLS,
    FailedPolls,
    LineThrottle,
    Poller,
)
from reducto_provider.usage.query import UsageQuery
from simulator import Reset, redirect, status
from tests.triggers.waits import today


def query():
    return UsageQuery(start=today(), end=today())


def polls_around(*changes):
    """Return the results of a first poll and of one after each change."""

    async def polls():
        async with Poller("reducto_default") as poller:
            found = [await poller.poll(query(), datetime.now(UTC))]
            for change in changes:
                change()
                found.append(await poller.poll(query(), datetime.now(UTC)))
            return found

    return asyncio.run(polls())


@pytest.mark.parametrize("fault", [redirect("https://studio.example/"), status(403), status(503), Reset()])
def test_a_connection_that_was_fixed_is_seen(service, connect, fault):
    service.faults.add(fault, times=None, org="org_acme")
    connect(host=service.url, password="sim-key-acme", extra={"max_attempts": 1})

    def fix():
        connect(host=service.url, password="sim-key-globex")

    failed, failed_again, good = polls_around(lambda: None, fix)
    assert failed.error is not None
    assert type(failed_again.error) is type(failed.error)
    assert good.report.org_id == "org_globex"


def test_a_connection_that_is_added_later_is_seen(service, connect, monkeypatch):
    host = service.url
    monkeypatch.delenv("AIRFLOW_CONN_REDUCTO_DEFAULT")

    missing, good = polls_around(lambda: connect(host=host))
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
        polls_around(lambda: None, lambda: None)
    finally:
        del service.answer
    assert len(peers) == 1


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
                await poller.poll(query(), datetime.now(UTC))
            assert [session.closed for session in opened] == [True, True, True, False]

    asyncio.run(scenario())


# -- which failures are tolerated


def failing(*, every, **options):
    """Return how many polls, one each so many seconds, fail before the wait ends, and the log's text of the last."""
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
    text = f"failure {count}, for {lasted}; 5 failures over 6:00:00 end the wait"
    assert failing(every=every) == (count, text)


def test_a_poll_that_succeeds_ends_an_outage():
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


# -- which polls are logged


@pytest.fixture
def clock():
    with time_machine.travel(datetime(2026, 11, 1, tzinfo=UTC), tick=False) as clock:
        yield clock


@pytest.mark.parametrize("interval", [1, 60, 300, 1799, 3599])
def test_a_log_is_silent_while_nothing_happens_but_never_for_more_than_an_hour(clock, interval):
    throttle, lines, night = LineThrottle(), [], 12 * 3600
    for second in range(0, night, interval):
        if throttle.has_news("40 of 100", interval):
            lines.append(second)
        clock.shift(timedelta(seconds=interval))

    gaps = [after - before for before, after in zip(lines, [*lines[1:], night], strict=True)]
    assert lines[0] == 0
    assert max(gaps) <= MAX_SILENCE
    assert len(lines) <= 2 * night / MAX_SILENCE or interval > MAX_SILENCE / 2


def test_polls_an_hour_apart_are_all_logged(clock):
    throttle = LineThrottle()
    for _ in range(5):
        assert throttle.has_news("40 of 100", 3600)
        clock.shift(timedelta(hours=1))


def test_what_changed_is_logged(clock):
    throttle = LineThrottle()
    contents = ["40", "40", "50", "50", "40", None, None, ("Error", "503"), ("Error", "503"), ("Error", "502"), "40"]
    logged = [throttle.has_news(content, 300) for content in contents]
    assert logged == [True, False, True, False, True, True, False, True, False, True, True]
    assert throttle.has_news("40", 0), "there is no further poll"


def test_the_first_poll_is_logged_whatever_it_finds(clock):
    assert LineThrottle().has_news(None, 300)


def test_a_clock_that_is_set_back_silences_nothing(clock):
    throttle = LineThrottle()
    throttle.has_news("40", 300)
    clock.shift(timedelta(days=-1))
    assert throttle.has_news("40", 300)
    assert not throttle.has_news("40", 300)


def test_what_is_no_longer_polled_is_forgotten(clock):
    throttle = LineThrottle()
    for day in range(100):
        assert throttle.has_news("40", 300, subject=day)
        clock.shift(timedelta(days=1))
    assert len(throttle._lines) == 1

"""The trigger of a gate that waits, on a clock of the test's own: it sleeps until the window turns."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from unittest.mock import Mock

import pytest
import time_machine

from reducto_provider.triggers import budget
from reducto_provider.triggers.budget import ReductoBudgetTrigger, turn_of_window
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.threshold import UsageThreshold
from simulator import html, status

NOVEMBER = (date(2026, 11, 1), date(2026, 11, 30))
NOON = datetime(2026, 11, 18, 12, tzinfo=UTC)
TURN = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _awake(monkeypatch):
    """Look at the clock more often than once a minute: the test's does not go by itself."""
    monkeypatch.setattr(budget, "_MAX_SLEEP", 0.01)


@pytest.fixture
def service(simulator, connect):
    simulator.usage.set_records("org_acme", [])
    simulator.usage.add("org_acme", NOVEMBER[1], 101, 7)
    connect(host=simulator.url, extra={"max_attempts": 1})
    return simulator


@pytest.fixture
def clock():
    with time_machine.travel(NOON, tick=False) as clock:
        yield clock


@pytest.fixture
def outcomes(monkeypatch):
    """What the polls have led to: an event, or when to poll again, which depends on the clock."""
    found = []
    decide = ReductoBudgetTrigger._outcome

    async def decided(trigger, poll):
        found.append(await decide(trigger, poll))
        return found[-1]

    monkeypatch.setattr(ReductoBudgetTrigger, "_outcome", decided)
    return found


def condition(days=NOVEMBER, limit="100", *, query=None, metric="credits", **fields):
    requested = UsageQuery(start=days[0], end=days[1], **{"org_id": "org_acme", **(query or {})})
    return UsageThreshold(query=requested, metric=metric, threshold=Decimal(limit), **fields)


def waiting(limit="100", reserve="0", *, window="month", next_poll=None, fields=None, **options):
    what = condition(limit=limit, **(fields or {}))
    first = turn_of_window("reducto_default", what) if next_poll is None else next_poll.timestamp()
    return ReductoBudgetTrigger.waiting_for(
        what, Decimal(reserve), window=window, next_poll=first, reducto_conn_id="reducto_default", **options
    )


def again(trigger):
    """Return the trigger as another triggerer makes it, of what is in the database."""
    path, arguments = trigger.serialize()
    assert path == "reducto_provider.triggers.budget.ReductoBudgetTrigger"
    return ReductoBudgetTrigger(**json.loads(json.dumps(arguments)))


async def until(condition, seconds=60.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def play(trigger, *steps):
    """Return the payload of the event. It comes after all steps, which are calls that may have to be awaited."""

    async def scenario():
        stream = again(trigger).run()
        event = asyncio.ensure_future(anext(stream))
        for step in steps:
            await asyncio.sleep(0.05)
            assert not event.done(), event.result().payload
            if (waited := step()) is not None:
                await waited
        payload = (await asyncio.wait_for(event, 60)).payload
        await stream.aclose()
        return payload

    return asyncio.run(scenario())


def requested(service):
    return [(dict(request.query)["startDate"], dict(request.query)["endDate"]) for request in service.requests]


def test_it_requests_once_when_the_month_has_turned(service, clock):
    def nothing_was_requested():
        assert not service.requests

    event = play(
        waiting(reserve="2.5"),
        nothing_was_requested,
        lambda: clock.move_to(TURN - timedelta(microseconds=1)),
        nothing_was_requested,
        lambda: clock.move_to(TURN + timedelta(seconds=budget.MIN_DELAY, microseconds=-1)),
        nothing_was_requested,
        lambda: clock.move_to(TURN + timedelta(seconds=budget.MAX_JITTER)),
    )

    assert (event["status"], event["reserve"]) == ("within", 2.5)
    assert (
        event["reading"].items()
        >= {
            "value": 0,
            "threshold": 100,
            "usage_start_date": "2026-12-01",
            "usage_end_date": "2026-12-31",
        }.items()
    )
    assert requested(service) == [("2026-12-01", "2026-12-01")]


@pytest.mark.parametrize(
    ("days", "turn"),
    [
        ((NOON.date(), NOON.date()), datetime(2026, 11, 19, tzinfo=UTC)),
        ((date(2026, 11, 16), date(2026, 11, 22)), datetime(2026, 11, 23, tzinfo=UTC)),
        (NOVEMBER, TURN),
        ((date(2026, 12, 1), date(2026, 12, 31)), datetime(2027, 1, 1, tzinfo=UTC)),
        ((date(2028, 2, 1), date(2028, 2, 29)), datetime(2028, 3, 1, tzinfo=UTC)),
    ],
    ids=["day", "week", "month", "year", "leap year"],
)
def test_a_window_turns_at_midnight_in_utc(days, turn):
    moment = turn_of_window("reducto_default", condition(days))

    assert turn.timestamp() + budget.MIN_DELAY <= moment < turn.timestamp() + budget.MAX_JITTER
    assert moment == turn_of_window("reducto_default", condition(days, limit="5")), "one request for both"


def test_queries_that_differ_are_spread():
    conditions = [condition(query={"org_id": f"org_{number}"}) for number in range(200)]
    moments = {turn_of_window("reducto_default", each) for each in conditions}

    assert len(moments) > 40
    assert max(moments) - min(moments) < budget.MAX_JITTER


def test_a_month_without_room_is_slept_through_as_well(service, clock, outcomes):
    service.usage.add("org_acme", date(2026, 12, 1), 100, 1)

    def december_was_requested():
        assert requested(service) == [("2026-12-01", "2026-12-01")]

    event = play(
        waiting(reserve="0.000000001"),
        lambda: clock.move_to(TURN + timedelta(minutes=1)),
        lambda: until(lambda: outcomes),
        lambda: clock.move_to(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)),
        december_was_requested,
        lambda: clock.move_to(datetime(2027, 1, 1, 0, 1, tzinfo=UTC)),
    )

    assert (event["status"], event["reading"]["usage_start_date"]) == ("within", "2027-01-01")
    assert len(service.requests) == 2


def test_the_boundary_is_exact(service, clock):
    service.usage.add("org_acme", date(2026, 12, 1), "99.999999999", 1)
    clock.move_to(TURN + timedelta(minutes=1))

    assert play(waiting(reserve="0.000000001"))["status"] == "within"


def test_a_triggerer_that_starts_after_the_turn_requests_at_once(service, clock):
    clock.move_to(TURN + timedelta(days=3))

    assert play(waiting())["reading"]["usage_end_date"] == "2026-12-31"
    assert requested(service) == [("2026-12-01", "2026-12-04")]


def test_many_share_a_request_whatever_their_budgets(service, clock):
    triggers = [waiting(str(number)) for number in range(100)]

    async def scenario():
        streams = [again(trigger).run() for trigger in triggers]
        events = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await asyncio.sleep(0.05)
        clock.move_to(TURN + timedelta(minutes=1))
        found = await asyncio.wait_for(asyncio.gather(*events), 20)
        for stream in streams:
            await stream.aclose()
        return [event.payload["reading"]["threshold"] for event in found]

    assert asyncio.run(scenario()) == list(range(100))
    assert len(service.requests) == 1


def test_windows_that_differ_share_no_request(service, clock):
    """Both request 1 to 29 November, but a day later for other days."""
    clock.move_to(datetime(2026, 11, 29, 12, tzinfo=UTC))
    month, day = waiting(), waiting(window="day", fields={"projected": True})

    assert month._queries(datetime.now(UTC)) == day._queries(datetime.now(UTC))
    assert month._stream_key() != day._stream_key()


def test_groups_filters_and_projections_reach_the_service(service, clock):
    for day in range(14, 30):
        service.usage.add("org_acme", date(2026, 11, day), 30, 30, api_key="k")
        service.usage.add("org_acme", date(2026, 11, day), 20, 20, api_key="other")
    clock.move_to(TURN + timedelta(minutes=1))
    fields = {
        "query": {"group_by": "api_key", "products": ("parse",)},
        "metric": "requests",
        "per_group": True,
        "projected": True,
    }

    event = play(waiting("1000", fields=fields))

    assert event["reading"].items() >= {"group": "k", "projected": True, "used": 0, "metric": "requests"}.items()
    assert ("product", "parse") in service.requests[0].query
    assert requested(service) == [("2026-11-03", "2026-12-01")]


@pytest.mark.parametrize("fault", [status(503), status(429), html()], ids=["503", "429", "html"])
class TestTransientErrors:
    def test_fail(self, service, clock, fault):
        service.faults.add(fault)
        clock.move_to(TURN + timedelta(minutes=1))

        event = play(waiting(on_unknown="fail"))

        assert (event["status"], event["reserve"]) == ("unknown", 0), "the gate publishes it before it fails"
        assert event["error"] in ("ReductoServerError", "ReductoRateLimitError", "ReductoGatewayError")

    def test_allow(self, service, clock, fault):
        service.faults.add(fault)
        clock.move_to(TURN + timedelta(minutes=1))

        event = play(waiting(on_unknown="allow", reserve="5"))

        assert (event["status"], event["reserve"]) == ("unknown", 5)
        assert event["message"]

    def test_block(self, service, clock, outcomes, fault):
        service.faults.add(fault, times=2)
        clock.move_to(TURN + timedelta(minutes=1))

        event = play(
            waiting(on_unknown="block", poke_interval=90.0),
            lambda: until(lambda: len(outcomes) == 1),
            lambda: clock.shift(timedelta(seconds=91)),
            lambda: until(lambda: len(outcomes) == 2),
            lambda: clock.shift(timedelta(seconds=89)),
            lambda: clock.shift(timedelta(seconds=2)),
        )

        assert event["status"] == "within"
        assert len(service.requests) == 3


def test_an_outage_of_hours_is_a_line_an_hour(service, clock, outcomes, monkeypatch):
    service.faults.add(status(503), times=36)
    clock.move_to(TURN + timedelta(minutes=1))
    lines = []
    monkeypatch.setattr(ReductoBudgetTrigger, "log", Mock(warning=lambda text, *args: lines.append(text % args)))
    ReductoBudgetTrigger.log.isEnabledFor.return_value = False

    def next_poll(number):
        clock.shift(timedelta(seconds=300 if number else 0))
        return until(lambda: len(outcomes) == number + 1)

    play(waiting(on_unknown="block"), *(partial(next_poll, number) for number in range(37)))

    assert len(lines) == 3, "in three hours"
    assert all("next query in 300 s" in line for line in lines)


@pytest.mark.parametrize("on_unknown", ["fail", "allow", "block"])
@pytest.mark.parametrize(
    ("code", "error"),
    [(401, "ReductoAuthenticationError"), (403, "ReductoPermissionError"), (400, "ReductoRequestError")],
)
def test_a_permanent_error_ends_the_wait(service, clock, on_unknown, code, error):
    service.faults.add(status(code), times=None)
    clock.move_to(TURN + timedelta(minutes=1))

    event = play(waiting(on_unknown=on_unknown, reserve="5"))

    assert (event["status"], event["error"], event["reserve"]) == ("error", error, 5)


@pytest.mark.parametrize("on_unknown", ["fail", "allow", "block"])
def test_so_do_rows_without_credits_and_a_connection_that_is_gone(service, clock, monkeypatch, on_unknown):
    service.usage.add("org_acme", date(2026, 12, 1), 1, 1)
    service.usage.set_credits("org_acme", "null")
    clock.move_to(TURN + timedelta(minutes=1))
    assert play(waiting(on_unknown=on_unknown))["error"] == "ReductoCreditsUnavailableError"

    monkeypatch.delenv("AIRFLOW_CONN_REDUCTO_DEFAULT")
    assert play(waiting(on_unknown=on_unknown))["error"] == "ReductoPollError"


def test_the_row_has_no_secret(service, clock):
    assert "sim-key" not in json.dumps(waiting().serialize())

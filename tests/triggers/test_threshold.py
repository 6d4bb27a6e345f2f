"""The threshold trigger: its arguments, which polls it shares, and its events, by hand and against the service."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
import time_machine

from reducto_provider.exceptions import ReductoAuthenticationError, ReductoServerError
from reducto_provider.triggers.polls import MAX_RETRY_AFTER, MIN_FAILED_POLLS, Poll
from reducto_provider.triggers.threshold import ReductoUsageThresholdTrigger
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport, UsageRow
from reducto_provider.usage.threshold import UsageThreshold
from tests.airflows import new_in

DAY = date(2026, 6, 1)
DURING, AFTER = datetime(2026, 6, 1, 12, tzinfo=UTC), datetime(2026, 6, 2, 12, tzinfo=UTC)
QUERY = {"start": DAY, "end": DAY, "org_id": "org_a", "group_by": "api_key", "products": ("parse", "edit")}
JUNE = (date(2026, 6, 1), date(2026, 6, 30))
LEAP_FEBRUARY = (date(2028, 2, 1), date(2028, 2, 29))
YEAR_S_END = (date(2026, 12, 28), date(2027, 1, 3))
FILTERS = {"products": ("parse",), "features": ("a", "b"), "api_keys": ("k",), "file_types": ("pdf",)}


def trigger(query=None, threshold="10.000000001", metric="requests", per_group=True, settle_days=0, **options):
    condition = UsageThreshold(
        query=UsageQuery(**{**QUERY, **(query or {})}),
        metric=metric,
        threshold=Decimal(threshold),
        per_group=per_group,
        settle_days=settle_days,
    )
    return ReductoUsageThresholdTrigger.waiting_for(condition, **{"reducto_conn_id": "conn", **options})


def test_nothing_is_lost_on_the_way_through_the_database():
    failing = {"failed_polls": 2, "failing_since": 1.25, "max_failure_time": 60.0}
    original = trigger(settle_days=3, deadline=1.5, wait_when_closed=True, silent_fail=True, **failing)
    path, arguments = original.serialize()
    again = ReductoUsageThresholdTrigger(**json.loads(json.dumps(arguments)))

    assert path == "reducto_provider.triggers.threshold.ReductoUsageThresholdTrigger"
    assert again.serialize() == original.serialize()
    condition = again._condition()
    assert condition.threshold == Decimal("10.000000001")
    assert (condition.metric, condition.per_group, condition.settle_days) == ("requests", True, 3)
    assert condition.query.filters() == {"products": ["edit", "parse"]}
    assert (condition.query.org_id, condition.query.group_by) == ("org_a", "api_key")


def test_thousands_that_wait_take_little_memory():
    decoded = [json.loads(json.dumps(trigger(threshold=str(number)).serialize()[1])) for number in range(2)]
    first, second = (ReductoUsageThresholdTrigger(**arguments) for arguments in decoded)

    assert not vars(first).keys() & decoded[0].keys(), "a dict of so many attributes shares no keys with others"
    assert first.org_id is second.org_id
    assert first._condition().query is second._condition().query


@pytest.mark.parametrize(
    "same",
    [{"threshold": "99"}, {"metric": "credits"}, {"deadline": 5.0}, {"max_wait": 9.0}, {"max_failure_time": 9.0}],
)
def test_what_a_poll_does_not_depend_on_may_differ_in_a_shared_stream(same):
    assert trigger(**same).shared_stream_key() == trigger().shared_stream_key()


@pytest.mark.parametrize(
    "other",
    [
        {"reducto_conn_id": "other"},
        {"poke_interval": 60.0},
        *({"query": {name: value}} for name, value in (("org_id", "org_b"), ("group_by", "feature"), ("products", ()))),
        {"query": {"end": date(2026, 6, 2)}},
    ],
)
def test_what_a_poll_depends_on_may_not(other):
    assert trigger(**other).shared_stream_key() != trigger().shared_stream_key()


@pytest.mark.parametrize("other", [{"start": date(2026, 5, 4)}, {"start": date(2026, 6, 2), "settle_days": 1}])
def test_a_window_shares_no_stream_with_one_that_begins_like_its_history(other):
    """When they are over, history is left out: the longer one would lack its first days."""

    def of(start, **options):
        query = UsageQuery(**{**QUERY, "start": start, "end": JUNE[1]})
        condition = UsageThreshold(query=query, metric="requests", threshold=Decimal(1), **options)
        return ReductoUsageThresholdTrigger.waiting_for(condition, reducto_conn_id="conn")

    june, other = of(JUNE[0], projected=True), of(**other, projected="settle_days" in other)

    assert june._queries(AFTER) == other._queries(AFTER)
    assert june.shared_stream_key() != other.shared_stream_key()


@pytest.mark.parametrize(
    "empty", [{"products": []}, {"api_keys": ["a", ""]}, {"org_id": ""}, {"usage_start_date": " "}, {"threshold": ""}]
)
def test_what_is_given_but_empty_is_not_left_out(empty):
    arguments = trigger().serialize()[1]
    with pytest.raises(ValueError, match=f"^{next(iter(empty))} is given but .*empty"):
        ReductoUsageThresholdTrigger(**{**arguments, **empty})


def test_intervals():
    assert [trigger(poke_interval=10.0, max_wait=5.0)._interval(n) for n in range(3)] == [10, 10, 10]
    growing = trigger(poke_interval=10.0, exponential_backoff=True, max_wait=35.0)
    assert [growing._interval(n) for n in range(4)] == [10, 20, 35, 35]
    assert growing.shared_stream_key() is None
    assert trigger(poke_interval=0.0)._interval(0) == 1


def test_retry_after_of_the_sensor_s_poll_also_binds_a_triggerer_that_starts_later():
    failed_at = datetime(2026, 6, 1, tzinfo=UTC)
    waiting = trigger(poke_interval=10.0, not_before=failed_at.timestamp() + 60)
    with time_machine.travel(failed_at, tick=False) as clock:
        assert [waiting._interval(n) for n in range(3)] == [60, 10, 10]
        clock.shift(45)
        assert waiting._interval(0) == 15
        clock.shift(timedelta(days=1))
        assert waiting._interval(0) == 10
        clock.shift(timedelta(days=-30))  # a clock that was set
        assert waiting._interval(0) == MAX_RETRY_AFTER


@new_in(3, 3, "arguments of triggers that are templates")
@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{{ params.base }}0", "base"),
        ("{{ macros_of_the_dag() }}", "macros_of_the_dag"),
        ("{{ 5 | dollars }}", "dollars"),
    ],
)
def test_what_a_template_lacks_is_not_left_out(template, named):
    event = event_of_template(template)
    assert (event["error"], named in event["message"]) == ("ReductoConfigurationError", True)


@new_in(3, 3, "arguments of triggers that are templates")
@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{{ params.budget * 1.1 }}", "TypeError"),
        ("{{ 1 / params.zero }}", "ZeroDivisionError: division by zero"),
        ("{{ params.zero.nothing() }}", "UndefinedError"),
        ("{{ 'plenty'.index('z') }}", "ValueError"),
        ("{{ params['a\0b'] }}", "UndefinedError"),
    ],
)
def test_whatever_a_template_raises_becomes_the_event(template, named):
    event = event_of_template(template)
    assert event["error"] == "ReductoConfigurationError"
    assert "a template can't be rendered in the triggerer: " in event["message"]
    assert named in event["message"]
    assert "\0" not in event["message"]


def event_of_template(template):
    begins = ReductoUsageThresholdTrigger(
        reducto_conn_id="conn", threshold=template, window="month", poll_immediately=True
    )
    begins.template_fields = ("threshold",)
    begins.render_template_fields({"params": {"budget": None, "zero": 0}})

    assert begins.shared_stream_key() is None
    return asyncio.run(anext(begins.run())).payload


def used(requests, time=DURING):
    rows = (UsageRow(DAY, "k", None, requests),)
    return Poll(time, report=UsageReport(org_id="org_a", start=DAY, end=DAY, group_by="api_key", rows=rows))


def failed(error=None):
    return Poll(DURING, error=error or ReductoServerError("Reducto failed (503)"))


def event_of(polls, **options):
    async def stream():
        for poll in polls:
            yield poll
        await asyncio.Event().wait()

    async def first():
        async with asyncio.timeout(0.2):
            return await anext(trigger(**options).filter_shared_stream(stream()))

    try:
        return asyncio.run(first()).payload
    except TimeoutError:
        return None


def test_exceeded():
    event = event_of([used(5), used(10), used(11)])
    assert (event["status"], event["reading"]["value"]) == ("exceeded", 11)


def test_a_window_that_is_over():
    assert event_of([used(5, AFTER)])["status"] == "closed"
    assert event_of([used(5, AFTER)], settle_days=1) is None
    assert event_of([used(5, AFTER)], wait_when_closed=True) is None


def test_transient_failures_are_counted_in_a_row():
    most = [failed()] * (MIN_FAILED_POLLS - 1)
    assert event_of([*most, used(5), *most], max_failure_time=0.0) is None
    assert event_of([*most, failed()], max_failure_time=0.0)["error"] == "ReductoServerError"
    assert event_of([*most, failed()], max_failure_time=3600.0) is None
    assert event_of([failed()] * 20, max_failure_time=0.0, silent_fail=True) is None


def test_failures_before_the_trigger_took_over_count():
    most = MIN_FAILED_POLLS - 1
    handed_over = {"failed_polls": most, "failing_since": time.time() - 30}
    assert event_of([failed()], **handed_over, max_failure_time=29.0)["error"] == "ReductoServerError"
    assert event_of([failed()], **handed_over, max_failure_time=3600.0) is None
    assert event_of([used(5)] + [failed()] * most, **handed_over, max_failure_time=0.0) is None


def test_a_restarted_trigger_ignores_earlier_failures():
    """What was handed over to it is as it was when the wait began: polls may have succeeded for weeks since."""
    long_ago = {"failed_polls": MIN_FAILED_POLLS - 1, "failing_since": time.time() - 14 * 86_400}
    assert event_of([failed()], **long_ago, max_failure_time=0.0) is None
    assert event_of([failed()] * 20, **long_ago, max_failure_time=3600.0) is None
    assert event_of([failed()] * MIN_FAILED_POLLS, **long_ago, max_failure_time=0.0)["error"] == "ReductoServerError"


@pytest.mark.parametrize(
    "error", [ReductoServerError("Reducto failed (503: a\0b)"), KeyError("a\0b"), ReductoAuthenticationError("\0")]
)
def test_no_nul_reaches_an_event(error):
    """PostgreSQL keeps none in JSON: the event would end the triggerer."""
    event = event_of([failed(error)] * MIN_FAILED_POLLS, max_failure_time=0.0)
    assert event["status"] == "error"
    assert "\0" not in str(event)
    assert "\N{REPLACEMENT CHARACTER}" in event["message"] or "\\x00" in event["message"]


def test_any_other_failure_ends_the_wait():
    event = event_of([failed(ReductoAuthenticationError("no"))])
    assert event == {"status": "error", "error": "ReductoAuthenticationError", "message": "no"}
    assert event_of([used(5)], metric="credits")["error"] == "ReductoCreditsUnavailableError"


def test_reading_a_failed_poll_does_not_lengthen_its_traceback():
    def frames(poll):
        with pytest.raises(KeyError) as raised:
            asyncio.run(poll.read(trigger()._condition()))
        return len(raised.traceback)

    try:
        raise KeyError("a bug")
    except KeyError as error:
        poll = Poll(DURING, error=error)
    assert len({frames(poll) for _ in range(3)}) == 1


@pytest.fixture
def night():
    """Let a trigger poll for so many hours, every five minutes, and return the lines of its log."""

    def play(waiting, hours, poll, level=logging.INFO):
        lines = []

        class Log:
            def isEnabledFor(self, number):  # noqa: N802  # Airflow's name
                return number >= level

            def __getattr__(self, name):
                return lambda text, *args, **options: lines.append(f"{name}: {text % args}")

        async def stream(clock):
            for number in range(hours * 12):
                yield replace(poll(number), next_in=300.0)
                clock.shift(300)
            raise asyncio.CancelledError

        async def scenario():
            with time_machine.travel(DURING, tick=False) as clock:
                async for _ in waiting.filter_shared_stream(stream(clock)):
                    raise AssertionError("the wait has ended")

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ReductoUsageThresholdTrigger, "log", Log())
            with pytest.raises(asyncio.CancelledError):
                asyncio.run(scenario())
        return lines

    return play


def test_a_night_in_which_nothing_happens_is_a_line_an_hour(night):
    waiting = trigger(poke_interval=300.0)
    lines = night(waiting, 12, lambda number: used(5))
    assert 12 <= len(lines) <= 14
    assert set(lines) == {
        "info: org_a, api_key 'k', 2026-06-01: 5 of 10.000000001 requests (50.0%); next poll in 300 s"
    }
    assert len(night(trigger(), 1, lambda number: used(5))) == 1, "a triggerer that starts logs its first poll"


def test_what_happens_in_a_night_is_logged(night):
    lines = night(trigger(), 1, lambda number: failed() if 4 <= number < 7 else used(5 + number // 8))
    assert [line.partition(":")[0] for line in lines] == ["info", "warning", "info", "info"]
    assert "(failure 1, for 0:00:00;" in lines[1]
    assert [" 5 of" in line or " 6 of" in line for line in lines] == [True, False, True, True]


def test_a_night_s_outage_is_a_line_an_hour(night):
    lines = night(trigger(silent_fail=True), 12, lambda number: failed())
    assert 12 <= len(lines) <= 14
    assert all(line.startswith("warning: Poll of") for line in lines)


def test_the_others_are_there_for_debugging(night):
    lines = night(trigger(), 1, lambda number: used(5), logging.DEBUG)
    assert [line.partition(":")[0] for line in lines] == ["info"] + ["debug"] * 11


def waiting_for(window, threshold="100", *, metric="credits", query=None, options=None, **fields):
    query = UsageQuery(start=window[0], end=window[1], org_id="org_acme", **(query or {}))
    condition = UsageThreshold(query=query, metric=metric, threshold=Decimal(threshold), **fields)
    return ReductoUsageThresholdTrigger.waiting_for(
        condition, reducto_conn_id="reducto_default", poke_interval=0.01, **(options or {})
    )


def noon(day):
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC)


def event_after(trigger, simulator, clock, *steps):
    """Return the event that ends the wait. Each step, a moment or a change, comes after two more polls."""

    async def wait():
        stream = trigger.run()
        event = asyncio.ensure_future(anext(stream))
        for step in steps:
            before = len(simulator.requests)
            while len(simulator.requests) < before + 2 and not event.done():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert not event.done(), f"before {step}: {event.result().payload}"
            step() if callable(step) else clock.move_to(step)
        payload = (await asyncio.wait_for(event, 20)).payload
        await stream.aclose()
        return payload

    return asyncio.run(wait())


class TestService:
    """Against the service over a socket, on a clock of the test's own."""

    @pytest.fixture
    def connected(self, service, hardly_any_interval):
        service.usage.set_records("org_acme", [])
        return service

    @pytest.mark.parametrize("window", [JUNE, LEAP_FEBRUARY, YEAR_S_END, (date(2026, 12, 31),) * 2], ids=str)
    @pytest.mark.parametrize("settle_days", [0, 2])
    def test_a_window_that_ends_during_the_wait(self, connected, window, settle_days):
        last, closed = window[1], window[1] + timedelta(days=settle_days + 1)
        connected.usage.add("org_acme", last, 100, 1)
        connected.usage.add("org_acme", last + timedelta(days=1), 1, 1)
        trigger = waiting_for(window, settle_days=settle_days)
        with time_machine.travel(noon(window[0]), tick=False) as clock:
            moments = [
                noon(last),
                noon(closed) - timedelta(hours=12, microseconds=1),
                noon(closed) - timedelta(hours=12),
            ]
            event = event_after(trigger, connected, clock, *moments)

        assert event["status"] == "closed"
        assert event["reading"]["value"] == 100
        assert {dict(request.query)["startDate"] for request in connected.requests} == {str(window[0])}
        assert {dict(request.query)["endDate"] for request in connected.requests} == {str(window[0]), str(last)}

    def test_usage_counted_late_still_exceeds(self, connected):
        connected.usage.add("org_acme", JUNE[1], 100, 1)
        trigger = waiting_for(JUNE, settle_days=1)
        with time_machine.travel(noon(JUNE[1]), tick=False) as clock:
            event = event_after(
                trigger,
                connected,
                clock,
                noon(date(2026, 7, 1)),
                lambda: connected.usage.add("org_acme", JUNE[1], "0.5", 1),
            )

        assert (event["status"], event["reading"]["value"]) == ("exceeded", 100.5)

    def test_a_wait_after_the_end_of_the_window(self, connected):
        trigger = waiting_for(JUNE, options={"wait_when_closed": True})
        with time_machine.travel(noon(JUNE[1]), tick=False) as clock:
            event = event_after(
                trigger,
                connected,
                clock,
                noon(date(2026, 9, 1)),
                lambda: connected.usage.add("org_acme", JUNE[1], 101, 1),
            )

        assert (event["status"], event["reading"]["usage_end_date"]) == ("exceeded", "2026-06-30")

    def test_no_request_before_the_window_begins(self, connected):
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
    def test_a_projection_that_exceeds(self, connected, metric):
        for day in range(10):
            connected.usage.add("org_acme", JUNE[0] + timedelta(days=day), 10, 10)
        trigger = waiting_for(JUNE, "299", metric=metric, projected=True)
        with time_machine.travel(noon(JUNE[0]), tick=False) as clock:
            event = event_after(trigger, connected, clock, noon(date(2026, 6, 3)), noon(date(2026, 6, 4)))

        assert event["status"] == "exceeded"
        assert event["reading"].items() >= {"value": 300, "used": 40, "projected": True}.items()

    def test_a_projection_of_a_window_that_is_over_is_what_was_used(self, connected):
        for day in range(10):
            connected.usage.add("org_acme", JUNE[0] + timedelta(days=day), 10, 10)
        trigger = waiting_for(JUNE, "300", projected=True)
        with time_machine.travel(noon(date(2026, 6, 8)), tick=False) as clock:
            event = event_after(trigger, connected, clock, noon(date(2026, 7, 1)))

        assert event["status"] == "closed"
        assert event["reading"].items() >= {"value": 100, "used": 100, "projected": False}.items()

    def test_a_deadline_that_is_reached(self, connected):
        with time_machine.travel(noon(JUNE[0]), tick=False) as clock:
            deadline = (noon(JUNE[0]) + timedelta(hours=5)).timestamp()
            event = event_after(
                waiting_for(JUNE, options={"deadline": deadline}), connected, clock, noon(JUNE[0]) + timedelta(hours=6)
            )

        assert event["status"] == "timeout"

    @pytest.mark.parametrize("metric", ["credits", "requests"])
    @pytest.mark.parametrize("projected", [False, True])
    def test_filters_reach_the_service(self, connected, metric, projected):
        matching = {"product": "parse", "feature": "a", "api_key": "k", "file_type": "pdf"}
        for day in range(4):
            connected.usage.add("org_acme", JUNE[0] + timedelta(days=day), 30, 30, **matching)
            for name in matching:
                connected.usage.add("org_acme", JUNE[0] + timedelta(days=day), 999, 999, **{**matching, name: "other"})
        trigger = waiting_for(JUNE, metric=metric, projected=projected, query={**FILTERS, "group_by": "api_key"})
        with time_machine.travel(noon(date(2026, 6, 4)), tick=False) as clock:
            event = event_after(trigger, connected, clock)

        assert event["status"] == "exceeded"
        assert (
            event["reading"].items() >= {"value": 900 if projected else 120, "used": 120, "group_by": "api_key"}.items()
        )
        assert [pair for pair in connected.requests[0].query if pair[0] not in ("startDate", "endDate")] == [
            *(("groupBy", "api_key"), ("orgId", "org_acme"), ("product", "parse"), ("feature", "a"), ("feature", "b")),
            *(("apiKey", "k"), ("fileType", "pdf")),
        ]

    @pytest.mark.parametrize("shown", ["null", "absent"])
    def test_an_account_without_credits(self, connected, shown):
        connected.usage.add("org_acme", JUNE[0], 500, 101)
        connected.usage.set_credits("org_acme", shown)
        with time_machine.travel(noon(JUNE[0]), tick=False) as clock:
            event = event_after(waiting_for(JUNE), connected, clock)
            requests = event_after(waiting_for(JUNE, metric="requests"), connected, clock)

        assert (event["status"], event["error"]) == ("error", "ReductoCreditsUnavailableError")
        assert "metric='requests'" in event["message"]
        assert (requests["status"], requests["reading"]["value"]) == ("exceeded", 101)

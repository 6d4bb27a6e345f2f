"""The threshold trigger by itself: what is handed to it, which polls it shares, and what it makes of them."""

from __future__ import annotations

import asyncio
import json
import time
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


@pytest.mark.parametrize(
    "same",
    [{"threshold": "99"}, {"metric": "credits"}, {"deadline": 5.0}, {"max_wait": 9.0}, {"max_failure_time": 9.0}],
)
def test_what_the_poll_does_not_depend_on_is_shared(same):
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
def test_what_the_poll_depends_on_is_not(other):
    assert trigger(**other).shared_stream_key() != trigger().shared_stream_key()


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


def test_the_service_is_left_alone_until_a_moment_also_by_a_triggerer_that_starts_later():
    asked_at = datetime(2026, 6, 1, tzinfo=UTC)
    waiting = trigger(poke_interval=10.0, not_before=asked_at.timestamp() + 60)
    with time_machine.travel(asked_at, tick=False) as clock:
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


def test_a_trigger_that_is_started_again_knows_nothing_of_failures_before():
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


def test_who_reads_a_poll_that_failed_does_not_lengthen_its_traceback():
    def frames(poll):
        with pytest.raises(KeyError) as raised:
            asyncio.run(poll.read(trigger()._condition()))
        return len(raised.traceback)

    try:
        raise KeyError("a bug")
    except KeyError as error:
        poll = Poll(DURING, error=error)
    assert len({frames(poll) for _ in range(3)}) == 1

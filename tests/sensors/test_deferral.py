"""The trigger that a sensor defers to, the events that end the wait, and its timeouts."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from reducto_provider.exceptions import (
    ReductoConfigurationError,
    ReductoPermissionError,
    ReductoPollError,
    ReductoTriggerEventError,
)
from reducto_provider.hooks.reducto import BACKOFF_INITIAL, RETRY_AFTER_CAP, ReductoHook
from reducto_provider.hooks.settings import DEFAULT_MAX_ATTEMPTS, DEFAULT_TIMEOUT
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
from reducto_provider.triggers.polls import MIN_INTERVAL
from reducto_provider.triggers.threshold import ReductoUsageThresholdTrigger
from reducto_provider.usage.fields import REMEDIES
from simulator import Altered, Stall, status
from tests.airflow_sdk import (
    DAG,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)
from tests.airflows import new_in
from tests.sensors.conftest import INTERVAL

MAY = {"usage_start_date": "2026-05-01", "usage_end_date": "2026-05-31"}


def rescheduled(ago: float) -> dict[str, Any]:
    """The context of a visit to a worker, the first of which was so many seconds ago."""
    first = datetime.now(UTC) - timedelta(seconds=ago)
    return {"ti": SimpleNamespace(get_first_reschedule_date=lambda context: first)}


def deferred(sensor: ReductoUsageThresholdSensor) -> ReductoUsageThresholdTrigger:
    """The trigger that a sensor hands over to, as it comes out of the database."""
    with pytest.raises(TaskDeferred) as deferral:
        sensor.execute({})
    return ReductoUsageThresholdTrigger(**json.loads(json.dumps(deferral.value.trigger.serialize()[1])))


def event_of(trigger: ReductoUsageThresholdTrigger) -> Any:
    """The payload of a trigger's event, which is never far off here."""

    async def first() -> Any:
        async with asyncio.timeout(60):
            return await anext(trigger.run())

    return asyncio.run(first()).payload


def waited(sensor: ReductoUsageThresholdSensor) -> Any:
    """What a sensor returns or raises in the end."""
    if sensor.deferrable:
        return sensor.execute_complete({}, event_of(deferred(sensor)))
    return sensor.execute({})


@pytest.mark.usefixtures("short_interval")
@pytest.mark.parametrize("deferrable", [False, True])
def test_filters_that_match_nothing_are_logged_once(sensor, simulator, after_requests, monkeypatch, deferrable):
    """In a worker, and again in the triggerer, which does not know that it was logged."""
    log = Mock()
    for each in (ReductoUsageThresholdSensor, ReductoUsageThresholdTrigger):
        monkeypatch.setattr(each, "log", log)
    with (
        after_requests(3, lambda: simulator.faults.add(status(403), times=None)),
        pytest.raises(ReductoPermissionError),
    ):
        waited(sensor(products=["pasre"], poke_interval=INTERVAL, timeout=60, deferrable=deferrable))

    lines = [call.args[0] % call.args[1:] for call in log.warning.call_args_list]
    assert sum("matches products=['pasre']: check the names" in text for text in lines) == 1 + deferrable
    assert len(simulator.requests) > 2


def test_the_trigger_gets_every_argument(sensor, simulator):
    simulator.faults.add(status(503, retry_after=600))
    began = time.time()
    with pytest.raises(TaskDeferred) as deferral:
        sensor(
            deferrable=True,
            threshold="10.000000001",
            metric="requests",
            per_group=True,
            projected=True,
            settle_days=3,
            group_by="api_key",
            products=["parse", "edit"],
            features="fields",
            api_keys=["prod"],
            file_types=["pdf"],
            reducto_conn_id="reducto_default",
            poke_interval=timedelta(minutes=1),
            exponential_backoff=True,
            max_wait=timedelta(minutes=5),
            silent_fail=True,
            max_failure_time=timedelta(hours=3),
            timeout=timedelta(hours=2),
            execution_timeout=timedelta(hours=1),
        ).execute({})
    handed_over = json.loads(json.dumps(deferral.value.trigger.serialize()[1]))

    assert began + 3600 <= handed_over.pop("deadline") <= time.time() + 3600
    assert began + 600 <= handed_over.pop("not_before") <= time.time() + 600
    assert began <= handed_over.pop("failing_since") <= time.time()
    assert handed_over == {
        "threshold": "10.000000001",
        "metric": "requests",
        "per_group": True,
        "projected": True,
        "settle_days": 3,
        **MAY,
        "org_id": "org_acme",
        "group_by": "api_key",
        "products": ["edit", "parse"],
        "features": ["fields"],
        "api_keys": ["prod"],
        "file_types": ["pdf"],
        "reducto_conn_id": "reducto_default",
        "poke_interval": 60.0,
        "exponential_backoff": True,
        "max_wait": 300.0,
        "silent_fail": True,
        "wait_when_closed": True,
        "failed_polls": 1,
        "max_failure_time": 10800.0,
        "poll_immediately": False,
        "window": None,
        "grace": None,
    }
    assert deferral.value.method_name == "execute_complete"
    assert deferral.value.timeout > timedelta(hours=1), "the trigger keeps the time, Airflow's own limit is a net"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", -1),
        ("threshold", True),
        ("window", "fortnight"),
        ("window", timedelta(days=7)),
        ("window", 0),
        ("metric", "{{ params.metric }}"),
        ("on_closed_window", "succeed"),
        ("settle_days", -1),
        ("settle_days", "2"),
        ("settle_days", True),
        ("per_group", "{{ params.per_group }}"),
        ("projected", "False"),
        ("usage_end_date", None),
        ("usage_end_date", "run"),
        ("group_by", "key"),
        ("max_failure_time", -1),
        ("max_failure_time", "{{ params.hours }}"),
        ("max_failure_time", True),
        ("max_failure_time", float("inf")),
        ("max_failure_time", None),
        ("api_keys", "prod,ci"),
    ],
)
def test_an_invalid_argument_is_refused_when_parsed(sensor, name, value):
    with pytest.raises(ValueError, match=name):
        sensor(**{name: value})


@pytest.mark.parametrize("name", ["threshold", "org_id", "reducto_conn_id"])
def test_another_task_s_output_is_not_rendered_in_the_triggerer(sensor, name):
    with DAG("wait", schedule=None):
        before = ReductoUsageThresholdSensor(task_id="before", threshold=1)
        with pytest.raises(ValueError, match=f"^{name} can't be another task's output"):
            sensor(start_from_trigger=True, **{name: before.output})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", "{{ ti.xcom_pull('budget') }}"),
        ("products", ["parse", "{{ task_instance.xcom_pull(\n  'products') }}"]),
        ("threshold", "{{ ti.xcom_pull ('a') }}{{ ti.xcom_pull('b', map_indexes=-1) }}"),
        ("usage_start_date", "{{ prev_data_interval_end_success | ds }}"),
        ("usage_start_date", "{{ ti.get_previous_dagrun().logical_date | ds }}"),
    ],
)
def test_what_hangs_in_the_triggerer_is_refused(sensor, name, value):
    sensor(deferrable=True, **{name: value})
    with pytest.raises(ValueError, match=f"^{name} can't be rendered with start_from_trigger"):
        sensor(start_from_trigger=True, **{name: value})


@new_in(3, 3, "waits that begin in the triggerer")
def test_templates_in_a_list_are_left_to_the_triggerer(sensor):
    products = ["parse", "{{ params.product }}", "{{ ti.xcom_pull('product', map_indexes=-1) }}"]

    assert sensor(start_from_trigger=True, products=products).start_trigger_args.trigger_kwargs["products"] == products


@pytest.fixture
def began(sensor) -> Callable[..., ReductoUsageThresholdTrigger]:
    """Begin a wait as Airflow's triggerer does, of a sensor's arguments, in a run of 14 February 2028."""
    moment = datetime(2028, 2, 14, 23, 30, tzinfo=UTC)

    def begin(
        ends: datetime | None = None, begins: datetime = moment, **arguments: Any
    ) -> ReductoUsageThresholdTrigger:
        interval = {"data_interval_start": begins, "data_interval_end": moment}
        run = SimpleNamespace(**interval, run_type="manual", partition_key=None)
        context: Any = {"dag_run": run, "dag": SimpleNamespace(timetable=None), "params": {"budget": 5, "days": 3}}
        no_days = {"usage_start_date": None, "usage_end_date": None}
        start = sensor(start_from_trigger=True, **{**no_days, **arguments}).start_trigger_args
        trigger = ReductoUsageThresholdTrigger(**json.loads(json.dumps(start.trigger_kwargs)))
        trigger.template_fields = tuple(
            name for name in ReductoUsageThresholdSensor.template_fields if name in start.trigger_kwargs
        )
        trigger.timeout_after = ends or datetime.now(UTC) + start.timeout
        trigger.render_template_fields(context)
        return trigger

    return begin


@new_in(3, 3, "waits that begin in the triggerer")
@pytest.mark.parametrize(
    ("arguments", "first", "last"),
    [
        ({}, "2028-02-01", "2028-02-29"),
        ({"window": "week"}, "2028-02-14", "2028-02-20"),
        ({"window": "{{ params.days }}"}, "2028-02-12", "2028-02-14"),
        ({"window": "run"}, "2028-02-13", "2028-02-13"),
        (
            {"usage_start_date": "2028-01-0{{ params.days }}", "usage_end_date": "2028-01-31"},
            "2028-01-03",
            "2028-01-31",
        ),
    ],
)
def test_a_wait_that_begins_in_the_triggerer_has_the_window_of_the_run(began, simulator, arguments, first, last):
    trigger = began(threshold="{{ params.budget }}", **arguments)
    kept = trigger.serialize()[1]

    assert (kept["usage_start_date"], kept["usage_end_date"], kept["threshold"]) == (first, last, "5")
    assert kept["poll_immediately"], "no worker has polled before"


@new_in(3, 3, "waits that begin in the triggerer")
@pytest.mark.parametrize(
    ("arguments", "expected", "message"),
    [
        ({"threshold": "{{ params.days - 9 }}"}, ReductoConfigurationError, "not '-6'"),
        ({"threshold": "{{ params.nothing }}"}, ReductoConfigurationError, "in the triggerer: .*'nothing'"),
        ({"window": "{{ params.days - 9 }}"}, ReductoConfigurationError, "from 1 to 3650, not '-6'"),
        ({"window": "run", "begins": datetime(2028, 2, 14, 0, 30, tzinfo=UTC)}, AirflowSkipException, "no day of UTC"),
    ],
)
def test_an_invalid_wait_ends_without_a_request(sensor, began, simulator, arguments, expected, message):
    event = event_of(began(**arguments))

    with pytest.raises(expected, match=message):
        sensor().execute_complete({}, event)
    assert not simulator.requests


@new_in(3, 3, "waits that begin in the triggerer")
@pytest.mark.parametrize("nothing", ["{{ none }}", "{{ '' }}", " {{ ' ' }} ", "{# all #}"])
@pytest.mark.parametrize("field", ReductoUsageThresholdSensor.template_fields)
def test_an_empty_argument_in_the_triggerer_ends_without_a_request(sensor, began, simulator, field, nothing):
    days = dict.fromkeys(MAY, "2028-02-01") if field in MAY else {}
    event = event_of(began(**{**days, field: nothing}))

    with pytest.raises(ReductoConfigurationError, match=f"^{field} is given but resolved to '") as error:
        sensor().execute_complete({}, event)
    assert REMEDIES[field] in str(error.value)
    assert not simulator.requests


@new_in(3, 3, "waits that begin in the triggerer")
def test_so_does_an_element_of_a_list_but_not_what_is_literal(sensor, began, simulator):
    event = event_of(began(api_keys=["prod", "{{ none }}"]))
    with pytest.raises(ReductoConfigurationError, match="api_keys is given but an element of it resolved to 'None'"):
        sensor().execute_complete({}, event)
    assert not simulator.requests

    names = ["None", "[legacy]", "(ci)", " a ", "a,b", "*", "a line's end\n"]
    kept = began(api_keys=[*names, "{{ params.days }}"], products="{{ '*' }}").serialize()[1]
    assert kept["api_keys"] == sorted([*names, "3"])
    assert (kept["products"], kept["features"], kept["org_id"]) == (None, None, "org_acme")


@new_in(3, 3, "waits that begin in the triggerer")
@pytest.mark.parametrize("days", [dict.fromkeys(MAY, "run"), dict.fromkeys(MAY, "{{ 'run' }}")])
def test_the_days_of_the_run_in_the_triggerer(began, days):
    kept = began(**days).serialize()[1]
    assert (kept["usage_start_date"], kept["usage_end_date"]) == ("2028-02-13", "2028-02-13")


@new_in(3, 3, "waits that begin in the triggerer")
@pytest.mark.parametrize("days", [{}, MAY])
def test_arguments_that_nobody_rendered_are_not_sent(sensor, simulator, days):
    """The DAG lost its start_from_trigger meanwhile, and the triggerer was started anew."""
    no_days = {"usage_start_date": None, "usage_end_date": None}
    start = sensor(start_from_trigger=True, products=["{{ params.product }}"], **{**no_days, **days}).start_trigger_args
    trigger = ReductoUsageThresholdTrigger(**start.trigger_kwargs)

    assert trigger.shared_stream_key() is None
    with pytest.raises(ReductoPollError, match="the DAG changed during the wait"):
        sensor().execute_complete({}, event_of(trigger))
    assert not simulator.requests


@new_in(3, 3, "waits that begin in the triggerer")
def test_start_from_trigger_applies_to_one_sensor(sensor):
    """Set on the class, it would apply to others too, and all instances of a mapped one would send the same query."""
    sensors = [sensor(start_from_trigger=True, threshold=threshold) for threshold in (1, 2)]

    assert [each.start_trigger_args.trigger_kwargs["threshold"] for each in sensors] == [1, 2]
    assert (sensor().start_from_trigger, sensor().start_trigger_args) == (False, None)


@new_in(3, 3, "waits that begin in the triggerer")
def test_attributes_assigned_later_reach_the_triggerer(sensor):
    made = sensor(start_from_trigger=True)
    made.org_id, made.api_keys, made.settle_days = "org_globex", "{{ params.key }}", 2

    for each in (made, copy.deepcopy(made), copy.copy(made)):
        kept = each.start_trigger_args.trigger_kwargs
        assert (kept["org_id"], kept["api_keys"], kept["settle_days"]) == ("org_globex", "{{ params.key }}", 2)
    with pytest.raises(ValueError, match=r"^org_id can't be another task's output"):
        made.org_id = object()
    made.start_from_trigger = False
    made.org_id = "org_acme"
    assert not made.start_from_trigger


def test_a_worker_defers_what_was_to_begin_in_the_triggerer(sensor):
    """As of a mapped sensor, and on an older Airflow."""
    assert deferred(sensor(start_from_trigger=True, timeout=1)).threshold == "10000000"


@new_in(3, 3, "waits that begin in the triggerer")
def test_a_wait_that_begins_in_the_triggerer_has_the_same_time(began):
    began_at = time.time()

    for longer in (None, timedelta(hours=1)):
        trigger = began(timeout=600, execution_timeout=longer)
        assert began_at + 600 <= trigger.deadline <= time.time() + 600
    # Airflow itself ends a wait when its execution_timeout is over.
    ends = datetime.now(UTC) + timedelta(seconds=300)
    assert began(ends, timeout=600, execution_timeout=timedelta(seconds=300)).deadline == ends.timestamp()


def test_airflow_leaves_the_last_poll_time_for_all_its_attempts(sensor):
    """It begins at the timeout. Ended by Airflow's own limit, it could not report its result."""
    waits = (DEFAULT_MAX_ATTEMPTS - 1) * (RETRY_AFTER_CAP + BACKOFF_INITIAL)
    longest = timedelta(seconds=DEFAULT_MAX_ATTEMPTS * DEFAULT_TIMEOUT + waits)
    timeout = timedelta(hours=1)
    with pytest.raises(TaskDeferred) as deferral:
        sensor(deferrable=True, timeout=timeout).execute({})
    assert deferral.value.timeout > timeout + longest

    if starts := sensor(start_from_trigger=True, timeout=timeout).start_trigger_args:
        assert starts.trigger_kwargs["grace"] > longest.total_seconds()
        assert starts.timeout == timeout + timedelta(seconds=starts.trigger_kwargs["grace"])


@pytest.mark.usefixtures("short_interval")
@pytest.mark.parametrize("timeout", [timedelta.max, timedelta(days=365 * 8000)])
def test_a_wait_without_an_end(sensor, simulator, timeout):
    """Airflow adds the timeout to now: its server, or its scheduler for a wait that begins in the triggerer."""
    with pytest.raises(TaskDeferred) as deferral:
        sensor(deferrable=True, timeout=timeout).execute({})
    assert datetime.now(UTC) + deferral.value.timeout > datetime(2100, 1, 1, tzinfo=UTC)
    if starts := sensor(start_from_trigger=True, timeout=timeout).start_trigger_args:
        assert datetime.now(UTC) + starts.timeout > datetime(2100, 1, 1, tzinfo=UTC)

    for deferrable in (False, True):
        simulator.faults.add(Altered({"data": []}))
        assert waited(sensor(threshold=1, poke_interval=INTERVAL, timeout=timeout, deferrable=deferrable))["exceeded"]


def test_a_deferred_sensor_stays_in_its_queue(sensor):
    assert deferred(sensor(deferrable=True)).supports_triggerer_queue


def test_the_first_poll_is_part_of_the_wait(sensor, simulator):
    simulator.faults.add(Stall(0.2))
    deadline = deferred(sensor(deferrable=True, timeout=3600)).deadline

    assert deadline - 3600 <= simulator.requests[0].at.timestamp()


@pytest.mark.parametrize("deferrable", [False, True])
def test_no_time_to_wait_is_enough_for_one_poll(sensor, simulator, deferrable):
    with pytest.raises(AirflowSensorTimeout):
        sensor(timeout=0, deferrable=deferrable).execute({})

    assert len(simulator.requests) == 1


@pytest.mark.parametrize("deferrable", [False, True])
def test_the_last_poll_is_at_the_end_of_the_wait(sensor, simulator, deferrable):
    for timeout in (0.5, 2, 8, 32):  # on a busy machine the first poll may take longer
        simulator.faults.add(Altered({"data": []}))
        before = len(simulator.requests)
        with suppress(AirflowSensorTimeout):
            assert waited(sensor(threshold=1, poke_interval=3600, timeout=timeout, deferrable=deferrable))["exceeded"]
        if (requests := len(simulator.requests) - before) > 1:
            break

    assert requests == 2


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_first_poll_that_outlasts_the_wait_is_the_last(sensor, simulator, connect, deferrable):
    connect(host=simulator.url, extra={"max_attempts": 1, "timeout": 0.5})
    simulator.faults.add(Stall(60))
    with pytest.raises(AirflowSensorTimeout):
        sensor(threshold=1, timeout=0.2, deferrable=deferrable).execute({})

    assert len(simulator.requests) == 1


@pytest.mark.usefixtures("short_interval")
@pytest.mark.parametrize("deferrable", [False, True])
def test_a_connection_that_is_fixed_while_polls_fail_is_seen(sensor, simulator, connect, monkeypatch, deferrable):
    connect(host="http://127.0.0.1:9", extra={"max_attempts": 1})
    get_usage = ReductoHook.get_usage

    def fixed_afterwards(hook, query):
        try:
            return get_usage(hook, query)
        finally:
            connect(host=simulator.url, extra={"max_attempts": 1})

    monkeypatch.setattr(ReductoHook, "get_usage", fixed_afterwards)
    assert waited(sensor(deferrable=deferrable, threshold=0, poke_interval=INTERVAL))["exceeded"]


def test_a_poll_a_second_is_the_most():
    assert MIN_INTERVAL == 1


@pytest.mark.usefixtures("short_interval")
@pytest.mark.parametrize("deferrable", [False, True])
def test_no_interval_makes_it_spin(sensor, simulator, deferrable):
    with pytest.raises(AirflowSensorTimeout):
        waited(sensor(poke_interval=0, timeout=2.5 * INTERVAL, deferrable=deferrable))

    assert len(simulator.requests) <= 4, "at once, after an interval, after two, and at the end"


READING = {
    "metric": "credits",
    "value": 2,
    "used": 2.0,
    "projected": False,
    "threshold": 1,
    "exceeded": True,
    "usage_start_date": "2026-05-01",
    "usage_end_date": "2026-05-31",
    "org_id": "org_acme",
    "group_by": "product",
    "group": None,
    "time": "2026-06-01T00:00:00+00:00",
}


def test_an_event_comes_back_as_it_was_sent(sensor):
    assert sensor().execute_complete({}, {"status": "exceeded", "reading": READING}) == READING


MALFORMED = {
    "nothing": None,
    "text": "exceeded",
    "no status": {"reading": READING},
    "an unknown status": {"status": "done", "reading": READING},
    "a status of another type": {"status": True, "reading": READING},
    "no reading": {"status": "exceeded"},
    "a reading of another type": {"status": "exceeded", "reading": [READING]},
    "a reading that did not exceed": {"status": "exceeded", "reading": {**READING, "exceeded": False}},
    "a closed window with a reading that exceeded": {"status": "closed", "reading": READING},
    "a window closed without a reading": {"status": "closed", "reading": None},
    "an error without its name": {"status": "error", "message": "no"},
    "an error without its message": {"status": "error", "error": "ReductoServerError"},
    "a timeout without its message": {"status": "timeout"},
    "a skip without its message": {"status": "skip", "message": None},
    **{
        f"{name} as error": {"status": "error", "error": name, "message": "no"}
        for name in ("SystemExit", "KeyError", "AirflowFailException", "AirflowSkipException", "annotations", "")
    },
    **{f"no {name}": {"status": "exceeded", "reading": {**READING, name: ...}} for name in READING},
    **{
        f"{status}, {name}={value!r}": {"status": status, "reading": {**READING, "exceeded": exceeded, name: value}}
        for status, exceeded in (("exceeded", True), ("closed", False))
        for name, value in (
            ("metric", "pages"),
            ("value", float("nan")),
            ("value", float("inf")),
            ("value", "2"),
            ("used", None),
            ("projected", "no"),
            ("threshold", True),
            ("exceeded", None),
            ("usage_start_date", "May"),
            ("usage_end_date", None),
            ("org_id", None),
            ("group_by", 1),
            ("group", 1),
            ("time", "2026-06-01T00:00:00"),
        )
    },
}


@pytest.mark.parametrize("event", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_event_is_never_taken_for_an_outcome(sensor, event):
    if isinstance(event, dict) and isinstance(reading := event.get("reading"), dict):
        event = {**event, "reading": {name: value for name, value in reading.items() if value is not ...}}
    with pytest.raises(ReductoTriggerEventError):
        sensor().execute_complete({}, event)


@new_in(3, 0, "a task instance that knows its first start")
def test_a_sensor_that_stays_while_the_service_fails_keeps_its_timeout(sensor, simulator):
    simulator.faults.add(status(500), times=None)
    waiting = sensor(mode="reschedule", timeout=30)
    with pytest.raises(AirflowSensorTimeout):
        waiting.execute(rescheduled(ago=60))

    assert len(simulator.requests) == 1


def test_a_timeout_that_ends_between_two_looks_at_the_clock_is_not_an_execution_timeout(sensor):
    assert sensor(timeout=60)._get_next_poke_interval(0, lambda: 60.001, 1) == 0
    waiting = sensor(timeout=60, execution_timeout=timedelta(seconds=30))
    with pytest.raises(AirflowTaskTimeout):
        waiting._get_next_poke_interval(0, lambda: 30.001, 1)


@new_in(3, 0, "a deferral that distinguishes a timeout from a failure")
@pytest.mark.parametrize("limit", ["timeout", "execution_timeout"])
@pytest.mark.parametrize("option", ["silent_fail", "soft_fail", "never_fail"])
def test_a_trigger_that_is_lost_ends_as_any_other_timeout(sensor, limit, option):
    """Airflow's own limit, the net below the trigger's: nothing was there to send an event."""
    seconds = timedelta(seconds=30)
    limits = {"timeout": seconds} if limit == "timeout" else {"timeout": 60, "execution_timeout": seconds}
    expected = AirflowSensorTimeout if limit == "timeout" else AirflowTaskTimeout
    with pytest.raises(expected if option == "silent_fail" else AirflowSkipException, match="Trigger timeout"):
        sensor(deferrable=True, **limits, **{option: True}).resume_execution(
            "__fail__", {"error": "Trigger timeout"}, {}
        )


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"status": "timeout", "message": "usage did not exceed it; the last poll: 5 of 9"}, "the last poll: 5 of 9"),
        ({"status": "error", "error": "ReductoAuthenticationError", "message": "the key is refused"}, "key is refused"),
    ],
)
@pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
def test_a_skip_after_a_deferral_names_the_reason(sensor, event, message, option):
    """Airflow's own reason would be that soft_fail is set."""
    with pytest.raises(AirflowSkipException, match=f"Skipping due to {option}: .*{message}"):
        sensor(**{option: True}).resume_execution("execute_complete", {"event": event}, {})


@pytest.mark.parametrize("deferrable", [False, True])
@pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
def test_so_does_one_for_a_template_that_renders_to_nonsense(sensor, option, deferrable):
    waiting = sensor(threshold="{{ params.budget }}", deferrable=deferrable, **{option: True})
    waiting.threshold = "plenty"  # as rendered
    with pytest.raises(AirflowSkipException, match=f"Skipping due to {option}: .*not 'plenty'"):
        waiting.execute({})

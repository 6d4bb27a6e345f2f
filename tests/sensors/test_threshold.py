"""
The threshold sensor on real Airflow: in each mode, and while its window ends, its run is retried or its key rotates.

Errors are in test_parity.
"""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
import time_machine

from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
from simulator import Simulator, Stall, status
from tests.airflows import gone_in, new_in

DAG = """
from datetime import datetime, timedelta
from tests.airflow_sdk import DAG
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor

with DAG("wait", schedule=None, params={params!r}):
    ReductoUsageThresholdSensor(task_id="wait", retry_delay=timedelta(seconds=0), {arguments})
"""

MODES = {
    "poke": {"mode": "poke"},
    "reschedule": {"mode": "reschedule"},
    "deferrable": {"deferrable": True},
}
MAY = {"usage_start_date": "2026-05-01", "usage_end_date": "2026-05-31"}
"""A window that is over."""


def today() -> date:
    return datetime.now(UTC).date()


@pytest.fixture(params=MODES)
def wait(request, run_dag) -> Callable[..., Any]:
    """Run a DAG whose one task waits, once in each mode."""

    def run(*, run: dict[str, Any] | None = None, params: dict[str, Any] | None = None, **arguments: Any) -> Any:
        arguments = {"org_id": "org_acme", "poke_interval": 1, "timeout": 60, **MODES[request.param], **arguments}
        written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        run = {"connection": {"extra": {"max_attempts": 1}}, **(run or {})}
        return run_dag(DAG.format(params=params or {}, arguments=written), **run)

    return run


def total(simulator: Simulator, first: date, last: date) -> Decimal:
    return sum((row.credits for row in simulator.truth("org_acme", first, last)), Decimal(0))


def test_exceeded_at_once(wait, simulator):
    truth = simulator.truth("org_acme", date(2026, 5, 1), date(2026, 5, 31))
    result = wait(threshold=100, **MAY).expect()

    reading = result.xcom("wait")
    assert datetime.fromisoformat(reading.pop("time")).tzinfo is not None
    assert reading == {
        "metric": "credits",
        "value": pytest.approx(float(sum(row.credits for row in truth))),
        "used": pytest.approx(float(sum(row.credits for row in truth))),
        "projected": False,
        "threshold": 100,
        "exceeded": True,
        "usage_start_date": "2026-05-01",
        "usage_end_date": "2026-05-31",
        "org_id": "org_acme",
        "group_by": "product",
        "group": None,
    }
    assert len(simulator.requests) == 1


@new_in(3, 0, "links that a worker makes")
@pytest.mark.parametrize("threshold", [100, 10**9])
def test_a_link_leads_to_studio(wait, simulator, threshold):
    result = wait(threshold=threshold, **MAY)

    assert result.xcom("wait", key="_link_ReductoStudioLink") == "https://studio.reducto.ai"


def test_an_equal_value_does_not_exceed(wait, simulator):
    exactly = total(simulator, date(2026, 5, 1), date(2026, 5, 31))

    assert wait(threshold=str(exactly), **MAY).tasks["wait"] == "skipped"
    assert wait(threshold=str(exactly - Decimal("0.000000001")), **MAY).tasks["wait"] == "success"


def test_exceeded_while_waiting(wait, simulator, after_requests):
    window = {"usage_start_date": str(today()), "usage_end_date": str(today() + timedelta(days=30))}

    def use_more() -> None:
        simulator.usage.add("org_acme", today(), credits=5_000_000, requests=1)

    with after_requests(2, use_more):
        result = wait(threshold=1_000_000, **window).expect()

    assert result.xcom("wait")["value"] >= 5_000_000, "the rest of today is nothing just after midnight"
    assert result.xcom("wait")["usage_end_date"] == window["usage_end_date"]
    assert len(simulator.requests) == 3
    ends = {dict(request.query)["endDate"] for request in simulator.requests}
    assert ends <= {str(today()), str(today() - timedelta(days=1))}, "days to come are not requested"


@pytest.mark.parametrize(
    ("visits", "logged"),
    [
        pytest.param(4, 3, marks=new_in(3, 3, "a task's own state, which it has again when it is rescheduled")),
        pytest.param(1, 1, marks=gone_in(3, 3, "a rescheduled task that knows of no failures before")),
    ],
)
def test_a_rescheduled_sensor_leaves_its_worker_while_the_service_fails(run_dag, simulator, visits, logged):
    """Where it can't remember since when, it stays. The first poll of each visit is logged."""
    simulator.faults.add(status(500), times=3)
    arguments = f"org_id='org_acme', threshold=100, mode='reschedule', poke_interval=1, **{MAY!r}"
    result = run_dag(DAG.format(params={}, arguments=arguments), connection={"extra": {"max_attempts": 1}}).expect()

    assert list(dict.fromkeys(re.findall(r"failed \(failure (\d+)", result.log))) == ["1", "2", "3"][:logged]
    assert result.log.count("marking task as UP_FOR_RESCHEDULE") == visits - 1


def test_per_group(run_dag, simulator):
    truth = simulator.truth("org_acme", date(2026, 5, 1), date(2026, 5, 31))
    by_group: dict[str, Decimal] = {}
    for row in truth:
        by_group[row.group] = by_group.get(row.group, Decimal(0)) + row.credits
    largest = max(by_group, key=lambda group: by_group[group])
    arguments = f"org_id='org_acme', threshold='{by_group[largest] - 1}', per_group=True, **{MAY!r}"
    result = run_dag(DAG.format(params={}, arguments=arguments)).expect()

    assert result.xcom("wait")["group"] == largest
    assert result.xcom("wait")["value"] == pytest.approx(float(by_group[largest]))
    arguments = arguments.replace(str(by_group[largest] - 1), str(by_group[largest]))
    assert run_dag(DAG.format(params={}, arguments=arguments)).tasks["wait"] == "skipped"


def test_requests_and_filters(run_dag, simulator):
    truth = simulator.truth("org_acme", date(2026, 5, 1), date(2026, 5, 31), product="parse")
    arguments = f"org_id='org_acme', threshold=0, metric='requests', products='parse', **{MAY!r}"
    result = run_dag(DAG.format(params={}, arguments=arguments)).expect()

    assert result.xcom("wait")["value"] == sum(row.requests for row in truth)


def test_an_account_without_credits(wait, simulator):
    simulator.usage.set_credits("org_acme", "null")
    result = wait(threshold=1, retries=2, **MAY)

    [error] = result.errors
    assert error.type == "ReductoCreditsUnavailableError"
    assert "metric='requests'" in error.message
    assert wait(threshold=1, metric="requests", **MAY).expect().xcom("wait")["metric"] == "requests"


@pytest.mark.parametrize("rendered", ["", "None", "a lot", "-1", "NaN", "Infinity"])
def test_a_threshold_that_renders_to_no_number(wait, simulator, rendered):
    result = wait(threshold="{{ params.budget }}", params={"budget": rendered}, retries=2, **MAY)

    [error] = result.errors
    assert error.type == "ReductoConfigurationError"
    assert "threshold" in error.message
    assert repr(rendered) in error.message
    assert not simulator.requests


def test_the_month_of_the_run_is_the_window(wait, simulator):
    result = wait(threshold=0, run={"logical_date": datetime(2026, 2, 14, 9, tzinfo=UTC), "connection": {}}).expect()

    reading = result.xcom("wait")
    assert (reading["usage_start_date"], reading["usage_end_date"]) == ("2026-02-01", "2026-02-28")


MAPPED = """
from tests.airflow_sdk import DAG, task
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor

with DAG("wait", schedule=None, params={{"days": 7}}):
    budget = task(lambda: 5, task_id="budget")()
    given = {{"org_id": "org_acme", "start_from_trigger": True, **{may!r}}}
    ReductoUsageThresholdSensor.partial(task_id="orgs", **{{**given, "threshold": budget}}).expand(
        products=["parse", ["parse", "edit"]]
    )
    budget >> ReductoUsageThresholdSensor.partial(
        task_id="metrics", threshold="{{{{ ti.xcom_pull('budget') }}}}", **given
    ).expand(metric=["credits", "requests"])
    ReductoUsageThresholdSensor.partial(task_id="windows", org_id="org_acme", threshold=0).expand(
        window=["month", "run", "{{{{ params.days }}}}"]
    )
"""


def test_a_mapped_sensor(run_dag, simulator):
    """It defers from a worker, so that unlike one that begins in the triggerer it may have any argument."""
    moment = datetime(2026, 2, 14, 9, tzinfo=UTC)
    result = run_dag(MAPPED.format(may=MAY), logical_date=moment).expect()

    assert [reading["threshold"] for reading in result.xcom("orgs") + result.xcom("metrics")] == [5] * 4
    assert [reading["metric"] for reading in result.xcom("metrics")] == ["credits", "requests"]
    one, several = (reading["value"] for reading in result.xcom("orgs"))
    assert one < several
    assert [(reading["usage_start_date"], reading["usage_end_date"]) for reading in result.xcom("windows")] == [
        ("2026-02-01", "2026-02-28"),
        ("2026-02-13", "2026-02-13"),
        ("2026-02-08", "2026-02-14"),
    ]


def test_the_key_is_nowhere(wait, simulator, after_requests):
    simulator.keys["sim-key-canary-77aa"] = ("org_acme",)

    def use_more() -> None:
        simulator.usage.add("org_acme", today(), credits=5_000_000, requests=1)

    with after_requests(1, use_more):
        result = wait(
            threshold=1_000_000,
            usage_start_date=str(today()),
            usage_end_date=str(today()),
            on_closed_window="wait",
            run={"connection": {"password": "sim-key-canary-77aa"}},
        ).expect()

    assert not any("canary" in text for text in (result.log, repr(result.xcoms), repr(result.task_instances)))


def test_a_kill_cancels_the_request(simulator, connect):
    """Airflow's signal handler only calls ``on_kill``: without it the poke would wait for the whole timeout."""
    connect(host=simulator.url, extra={"timeout": 300, "max_attempts": 1})
    simulator.faults.add(Stall(300))
    sensor = ReductoUsageThresholdSensor(task_id="wait", org_id="org_acme", threshold=100, soft_fail=True, **MAY)
    kill = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: sensor.on_kill())

    def kill_during_the_request() -> None:
        while not simulator.requests and not kill.wait(0.02):
            pass
        signal.raise_signal(signal.SIGTERM)

    thread = threading.Thread(target=kill_during_the_request)
    thread.start()
    try:
        with pytest.raises(asyncio.CancelledError, match="as when Airflow kills a task"):
            sensor.execute({})
    finally:
        kill.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)
    assert len(simulator.requests) == 1


@pytest.fixture
def polls_of(monkeypatch):
    """Let sensors poll one after the other, every five minutes, and return the level and text of what they log."""

    def polls(*sensors):
        lines = []
        log = SimpleNamespace(
            info=lambda text, *args: lines.append(("info", text % args)),
            warning=lambda text, *args: lines.append(("warning", text % args)),
            debug=lambda text, *args: lines.append(("debug", text % args)),
        )
        monkeypatch.setattr(ReductoUsageThresholdSensor, "log", log)
        with time_machine.travel(datetime(2026, 6, 2, tzinfo=UTC), tick=False) as clock:
            for each in sensors:
                assert each.poke({}) is False
                clock.shift(300)
        return lines

    return polls


def test_a_sensor_that_stays_on_its_worker_logs_what_changed(sensor, simulator, polls_of):
    waiting = sensor(poke_interval=300)

    assert [level for level, _ in polls_of(*[waiting] * 36)] == (["info"] + ["debug"] * 11) * 3
    simulator.faults.add(status(503), times=2)
    assert [level for level, _ in polls_of(*[waiting] * 4)] == ["warning", "debug", "info", "debug"]
    simulator.usage.add("org_acme", date(2026, 5, 31), credits=1, requests=1)
    assert [level for level, _ in polls_of(*[waiting] * 2)] == ["info", "debug"]


def test_a_rescheduled_sensor_logs_each_poll(sensor, polls_of):
    """Each is the first of a process."""
    lines = polls_of(*(sensor(mode="reschedule", poke_interval=300) for _ in range(12)))

    assert {level for level, _ in lines} == {"info"}
    assert lines[0][1].endswith("; next poll in 300 s")


def test_growing_intervals_are_logged(sensor, polls_of):
    waiting = sensor(poke_interval=300, exponential_backoff=True)

    assert [level for level, _ in polls_of(*[waiting] * 3)] == ["info"] * 3


AT_MOMENTS = """
from datetime import datetime, timedelta
import time_machine
from tests.airflow_sdk import DAG
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor


class AtMoments(ReductoUsageThresholdSensor):
    polls = 0

    def poke(self, context):
        self.polls += 1
        with time_machine.travel(datetime.fromisoformat({moments!r}[self.polls - 1]), tick=False):
            return super().poke(context)


with DAG("wait", schedule=None):
    AtMoments(
        task_id="wait", org_id="org_acme", threshold=100, poke_interval=1, timeout=60, retries={retries},
        retry_delay=timedelta(seconds=0), **{arguments!r}
    )
"""


@pytest.fixture
def wait_at(run_dag, simulator):
    """Run the sensor in a DAG run of one moment, and let it poll at others."""
    simulator.usage.set_records("org_acme", [])

    def run(run_of, *moments, retries=0, **arguments):
        return run_dag(
            AT_MOMENTS.format(moments=moments, retries=retries, arguments=arguments),
            logical_date=datetime.fromisoformat(run_of),
            connection={"extra": {"max_attempts": 1}},
        )

    return run


def requested_days(simulator):
    return [(query["startDate"], query["endDate"]) for query in (dict(request.query) for request in simulator.requests)]


@pytest.mark.parametrize(
    ("window", "first", "last"),
    [
        ("month", "2026-06-01", "2026-06-30"),
        ("week", "2026-06-29", "2026-07-05"),
        ("day", "2026-06-30", "2026-06-30"),
        (30, "2026-06-01", "2026-06-30"),
    ],
)
@pytest.mark.parametrize(("on_closed_window", "state"), [("skip", "skipped"), ("fail", "failed")])
def test_a_window_that_ends_during_the_wait(wait_at, simulator, window, first, last, on_closed_window, state):
    simulator.usage.add("org_acme", date.fromisoformat(last), 100, 1)
    simulator.usage.add("org_acme", date(2026, 7, 6), 5000, 1)

    result = wait_at(
        "2026-06-30T09:00:00+00:00",
        f"{last}T23:59:59.999999+00:00",
        f"{date.fromisoformat(last) + timedelta(days=1)}T00:00:00+00:00",
        window=window,
        on_closed_window=on_closed_window,
    )

    assert result.tasks["wait"] == state
    assert [error.type for error in result.errors] == (["ReductoWindowClosedError"] if state == "failed" else [])
    assert requested_days(simulator) == [(first, last)] * 2


def test_usage_of_a_window_s_last_seconds_counts(wait_at, simulator):
    simulator.usage.add("org_acme", date(2028, 2, 29), "100.000000001", 1)

    result = wait_at("2028-02-10T09:00:00+00:00", "2028-02-28T23:59:59+00:00", "2028-02-29T23:59:59+00:00").expect()

    assert result.xcom("wait")["usage_end_date"] == "2028-02-29"
    assert requested_days(simulator) == [("2028-02-01", "2028-02-28"), ("2028-02-01", "2028-02-29")]


def test_a_retry_and_a_cleared_run_send_the_same_query(wait_at, simulator):
    simulator.usage.add("org_acme", date(2026, 12, 31), 101, 1)
    simulator.faults.add(status(500), times=5)

    for day in ("2027-01-01", "2027-01-09"):
        moments = [f"{day}T00:00:00+00:00"] * 5
        result = wait_at("2026-12-31T23:59:59+00:00", *moments, retries=1, max_failure_time=0).expect()
        assert result.xcom("wait")["value"] == 101
    assert result.task_instance("wait").try_number == 1
    assert [request.status for request in simulator.requests] == [500] * 5 + [200] * 2
    assert set(requested_days(simulator)) == {("2026-12-01", "2026-12-31")}


@pytest.mark.parametrize("metric", ["credits", "requests"])
def test_a_projection(wait_at, simulator, metric):
    for day in range(1, 8):
        simulator.usage.add("org_acme", date(2026, 6, day), 10, 10)

    moments = ("2026-06-03T23:59:59+00:00", "2026-06-04T00:00:00+00:00")
    result = wait_at("2026-06-01T09:00:00+00:00", *moments, metric=metric, projected=True).expect()

    assert result.xcom("wait").items() >= {"value": 300, "used": 40, "projected": True, "threshold": 100}.items()
    assert [end for _, end in requested_days(simulator)] == ["2026-06-03", "2026-06-04"]


ROTATED_KEY = """
import json, os
from tests.airflow_sdk import DAG
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor


class Rotates(ReductoUsageThresholdSensor):
    polls = 0

    def poke(self, context):
        self.polls += 1
        if self.polls == 2:
            connection = json.loads(os.environ["AIRFLOW_CONN_REDUCTO_DEFAULT"])
            os.environ["AIRFLOW_CONN_REDUCTO_DEFAULT"] = json.dumps({{**connection, "password": {key!r}}})
        return super().poke(context)


with DAG("wait", schedule=None):
    Rotates(
        task_id="wait", org_id="org_acme", threshold=100, window="day", poke_interval=1, timeout=60, retries=1
    )
"""


@pytest.mark.parametrize("rotated", [True, False])
def test_a_key_that_is_rotated_between_two_polls(run_dag, simulator, after_requests, rotated):
    simulator.usage.set_records("org_acme", [])
    simulator.keys["sim-key-new-3f2a"] = ("org_acme",)
    run_of = datetime.now(UTC)

    def refuse_key():
        """Refuse the old key, and let usage grow, once the first poll was answered."""
        del simulator.keys["sim-key-all"]
        simulator.usage.add("org_acme", run_of.date(), 101, 1)

    with after_requests(1, refuse_key):
        key = "sim-key-new-3f2a" if rotated else "sim-key-all"
        result = run_dag(ROTATED_KEY.format(key=key), logical_date=run_of)

    statuses = [request.status for request in simulator.requests]
    if rotated:
        assert result.expect().xcom("wait")["value"] == 101
        assert statuses == [200, 401, 200]
    else:
        assert [error.type for error in result.errors] == ["ReductoAuthenticationError"], "no retry fixes it"
        assert statuses == [200, 401]
    assert "3f2a" not in result.log

"""The sensor on real Airflow while time goes by: its window ends, its run is tried again, its key is rotated."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

import pytest

from simulator import status

DAG = """
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


@contextmanager
def after_first_request(simulator, change):
    """Make a change to the service once it has answered one request."""
    over = threading.Event()

    def watch():
        while not over.wait(0.02):
            if simulator.requests and simulator.requests[0].status is not None:
                change()
                break

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.fixture
def wait(run_dag, simulator):
    """Run the sensor in a run of a moment, and have it poll at others."""
    simulator.usage.set_records("org_acme", [])

    def run(run_of, *moments, retries=0, **arguments):
        return run_dag(
            DAG.format(moments=moments, retries=retries, arguments=arguments),
            logical_date=datetime.fromisoformat(run_of),
            connection={"extra": {"max_attempts": 1}},
        )

    return run


def asked(simulator):
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
def test_a_window_that_ends_while_it_waits(wait, simulator, window, first, last, on_closed_window, state):
    simulator.usage.add("org_acme", date.fromisoformat(last), 100, 1)
    simulator.usage.add("org_acme", date(2026, 7, 6), 5000, 1)

    result = wait(
        "2026-06-30T09:00:00+00:00",
        f"{last}T23:59:59.999999+00:00",
        f"{date.fromisoformat(last) + timedelta(days=1)}T00:00:00+00:00",
        window=window,
        on_closed_window=on_closed_window,
    )

    assert result.tasks["wait"] == state
    assert [error.type for error in result.errors] == (["ReductoWindowClosedError"] if state == "failed" else [])
    assert asked(simulator) == [(first, last)] * 2


def test_what_is_used_in_its_last_seconds_counts(wait, simulator):
    simulator.usage.add("org_acme", date(2028, 2, 29), "100.000000001", 1)

    result = wait("2028-02-10T09:00:00+00:00", "2028-02-28T23:59:59+00:00", "2028-02-29T23:59:59+00:00").expect()

    assert result.xcom("wait")["usage_end_date"] == "2028-02-29"
    assert asked(simulator) == [("2028-02-01", "2028-02-28"), ("2028-02-01", "2028-02-29")]


def test_a_retry_and_a_run_that_is_cleared_days_later_ask_the_same(wait, simulator):
    simulator.usage.add("org_acme", date(2026, 12, 31), 101, 1)
    simulator.faults.add(status(500), times=5)

    for day in ("2027-01-01", "2027-01-09"):
        moments = [f"{day}T00:00:00+00:00"] * 5
        result = wait("2026-12-31T23:59:59+00:00", *moments, retries=1, max_failure_time=0).expect()
        assert result.xcom("wait")["value"] == 101
    assert result.task_instance("wait").try_number == 1
    assert [request.status for request in simulator.requests] == [500] * 5 + [200] * 2
    assert set(asked(simulator)) == {("2026-12-01", "2026-12-31")}


@pytest.mark.parametrize("metric", ["credits", "requests"])
def test_a_projection(wait, simulator, metric):
    for day in range(1, 8):
        simulator.usage.add("org_acme", date(2026, 6, day), 10, 10)

    moments = ("2026-06-03T23:59:59+00:00", "2026-06-04T00:00:00+00:00")
    result = wait("2026-06-01T09:00:00+00:00", *moments, metric=metric, projected=True).expect()

    assert result.xcom("wait").items() >= {"value": 300, "used": 40, "projected": True, "threshold": 100}.items()
    assert [end for _, end in asked(simulator)] == ["2026-06-03", "2026-06-04"]


ROTATES = """
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
def test_a_key_that_is_rotated_between_two_pokes(run_dag, simulator, rotated):
    simulator.usage.set_records("org_acme", [])
    simulator.keys["sim-key-new-3f2a"] = ("org_acme",)
    run_of = datetime.now(UTC)

    def happens():
        """The first poll is answered, then the old key is no good any more and usage has grown."""
        del simulator.keys["sim-key-all"]
        simulator.usage.add("org_acme", run_of.date(), 101, 1)

    with after_first_request(simulator, happens):
        key = "sim-key-new-3f2a" if rotated else "sim-key-all"
        result = run_dag(ROTATES.format(key=key), logical_date=run_of)

    statuses = [request.status for request in simulator.requests]
    if rotated:
        assert result.expect().xcom("wait")["value"] == 101
        assert statuses == [200, 401, 200]
    else:
        assert [error.type for error in result.errors] == ["ReductoAuthenticationError"], "no retry mends it"
        assert statuses == [200, 401]
    assert "3f2a" not in result.log

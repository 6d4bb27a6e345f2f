"""Failed polls of a rescheduled sensor are kept for its next visit to a worker."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import time_machine

from reducto_provider.exceptions import ReductoServerError
from simulator import status
from tests.airflows import AirflowRescheduleException, new_in

REMEMBERS = new_in(3, 3, "a task's own state, which it has again when it is rescheduled")


class Store:
    """In the place of Airflow's task state store, which only a running task has."""

    def __init__(self):
        self.kept = {}
        self.fails = set()

    def get(self, key, default=None):
        if "get" in self.fails:
            raise OSError("no answer")
        return json.loads(self.kept.get(key, "null")) or default

    def set(self, key, value):
        if "set" in self.fails:
            raise OSError("no room")
        self.kept[key] = json.dumps(value)


@pytest.fixture
def visit(sensor):
    """Execute a sensor anew on a worker until it is rescheduled, and return how many failed polls it knows of."""

    def run(store, number, try_id="first", **arguments):
        waiting = sensor(mode="reschedule", **arguments)
        ti = SimpleNamespace(get_first_reschedule_date=lambda context: None, id=try_id)
        with pytest.raises(AirflowRescheduleException):
            waiting.execute({"ti": ti, "task_state_store": store, "task_reschedule_count": number})
        return waiting._failed_polls.count

    return run


@REMEMBERS
def test_a_rescheduled_sensor_remembers_failed_polls(visit, simulator):
    simulator.faults.add(status(500), times=4)
    store = Store()

    assert [visit(store, number, max_failure_time=0) for number in range(6)] == [1, 2, 3, 4, 0, 0]
    simulator.faults.add(status(500), times=5)
    assert [visit(store, number, max_failure_time=0) for number in range(6, 10)] == [1, 2, 3, 4]
    with pytest.raises(ReductoServerError):
        visit(store, 10, max_failure_time=0)


@REMEMBERS
def test_a_rescheduled_sensor_remembers_since_when_polls_fail(visit, simulator):
    simulator.faults.add(status(500), times=None)
    store = Store()
    with time_machine.travel(datetime(2026, 11, 1, tzinfo=UTC)) as clock:
        for number in range(6):
            assert visit(store, number) == number + 1
            clock.shift(timedelta(hours=1))
        with pytest.raises(ReductoServerError):
            visit(store, 6)


@REMEMBERS
@pytest.mark.parametrize("later", [{"number": 3}, {"number": 0}, {"number": 2, "try_id": "second"}])
def test_an_entry_is_valid_for_the_next_visit_only(visit, simulator, later):
    """A poll in between did not fail, or the try is another one."""
    simulator.faults.add(status(500), times=None)
    store = Store()

    assert [visit(store, number) for number in (0, 1)] == [1, 2]
    assert visit(store, **later) == 1


@REMEMBERS
@pytest.mark.parametrize("stored", [3, [], {}, {"try": "first", "visit": 0, "count": "3", "since": 1.0}])
def test_an_invalid_entry_counts_as_no_failure(visit, simulator, stored):
    simulator.faults.add(status(500))
    store = Store()
    visit(store, 0)
    store.kept = {key: json.dumps(stored) for key in store.kept}

    simulator.faults.add(status(500))
    assert visit(store, 1) == 1


@REMEMBERS
@pytest.mark.parametrize(("broken", "polls"), [("set", 4), ("get", 4)])
def test_a_store_that_fails_keeps_the_sensor_on_its_worker(visit, simulator, broken, polls):
    store = Store()
    store.fails.add(broken)
    simulator.faults.add(status(500), times=3)

    assert visit(store, 1) == 0, "rescheduled by the poll that did not fail"
    assert len(simulator.requests) == polls


@new_in(3, 0, "a task instance that knows its first start")
@pytest.mark.parametrize("silent_fail", [False, True])
def test_without_a_store_it_stays_as_long_as_failures_count(sensor, simulator, silent_fail):
    simulator.faults.add(status(500), times=2)
    waiting = sensor(mode="reschedule", silent_fail=silent_fail)
    with pytest.raises(AirflowRescheduleException):
        waiting.execute({"ti": SimpleNamespace(get_first_reschedule_date=lambda context: None)})

    assert len(simulator.requests) == (1 if silent_fail else 3)

"""Gates that wait, on Airflow's own processes: the triggerer is killed, time runs out, and a task is cleared."""

from __future__ import annotations

import json
import time
from datetime import UTC, date, datetime

import pytest

from simulator import Organization, Simulator, keys_of
from tests.airflows import new_in

pytestmark = new_in(3, 0, "the harness for Airflow's processes")

ORGANIZATIONS = [Organization(f"org_{name}", records=()) for name in ("turning", "bounded", "cleared", "stopped")]

DAGS = """
import time
from datetime import timedelta
from tests.airflow_sdk import DAG, task
from reducto_provider.operators.budget import ReductoBudgetGateOperator


class SoonOperator(ReductoBudgetGateOperator):
    # As if the window turned soon: to wait for a month takes too long here.
    def _next_poll(self, condition, decision):
        return time.time() + 15


@task
def work():
    pass


def gate(name, operator=ReductoBudgetGateOperator, dagrun_timeout=None, **arguments):
    with DAG(name, schedule=None, dagrun_timeout=dagrun_timeout):
        operator(
            task_id="gate", org_id=f"org_{name}", budget=100, reserve=1, on_exceeded="wait", **arguments
        ) >> work()


gate("turning", SoonOperator, retries=2)
gate("bounded", execution_timeout=timedelta(seconds=12))
gate("cleared", execution_timeout=timedelta(days=2))
gate("stopped", dagrun_timeout=timedelta(seconds=25), retries=2)
"""


@pytest.fixture(scope="module")
def service():
    with Simulator(ORGANIZATIONS, keys_of(ORGANIZATIONS)) as simulator:
        for organization in ORGANIZATIONS:
            simulator.usage.add(organization.id, today(), 100, 1)
        yield simulator


@pytest.fixture(scope="module")
def airflow(airflow_factory, service, tmp_path_factory):
    dags = tmp_path_factory.mktemp("dags")
    (dags / "gates.py").write_text(DAGS)
    fields = {"conn_type": "reducto", "host": service.url, "password": "sim-key-all", "extra": {"max_attempts": 1}}
    airflow = airflow_factory(dags, {"AIRFLOW_CONN_REDUCTO_DEFAULT": json.dumps(fields)})
    for name in ("turning", "bounded", "cleared", "stopped"):
        airflow.unpause(name)
    yield airflow
    airflow.stop()


def today() -> date:
    return datetime.now(UTC).date()


def requested(service, org):
    return [request for request in service.requests if ("orgId", org) in request.query]


def start(airflow, dag_id):
    run_id = airflow.trigger(dag_id)["dag_run_id"]
    airflow.wait_for_task(dag_id, run_id, "gate", "deferred", timeout=120)
    return run_id


def decision(airflow, dag_id, run_id):
    found = airflow.xcom(dag_id, run_id, "gate")
    return found["decision"], found["action"], found["reserve"], found["reading"]["value"]


def test_a_wait_survives_the_triggerer(airflow, service):
    run_id = start(airflow, "turning")
    assert decision(airflow, "turning", run_id) == ("exceeded", "wait", 1, 100)
    airflow.kill("triggerer")
    service.usage.set_records("org_turning", [])
    time.sleep(2)
    assert len(requested(service, "org_turning")) == 1, "it does not poll"
    airflow.start_service("triggerer")

    airflow.wait_for_run("turning", run_id, timeout=120, state="success")
    assert airflow.task_states("turning", run_id) == {("gate", -1): "success", ("work", -1): "success"}
    assert decision(airflow, "turning", run_id) == ("within", "continue", 1, 0)
    assert len(requested(service, "org_turning")) == 2
    assert {ti["try_number"] for ti in airflow.task_instances("turning", run_id)} == {1}
    log = airflow.log("turning", run_id, "gate")
    assert "100 of 100 credits (100.0%), and 1 in reserve: over the budget; wait" in log
    assert "within the budget, as the triggerer saw; continue" in log
    assert "sim-key" not in log


def test_a_wait_is_limited_by_execution_timeout(airflow, service):
    run_id = start(airflow, "bounded")

    airflow.wait_for_run("bounded", run_id, timeout=120)
    assert airflow.task_states("bounded", run_id) == {("gate", -1): "failed", ("work", -1): "upstream_failed"}
    assert len(requested(service, "org_bounded")) == 1
    assert decision(airflow, "bounded", run_id) == ("exceeded", "wait", 1, 100)


def test_a_wait_is_limited_by_dagrun_timeout(airflow, service):
    run_id = start(airflow, "stopped")

    airflow.wait_for_run("stopped", run_id, timeout=120, state="failed")
    assert airflow.task_states("stopped", run_id) == {("gate", -1): "skipped", ("work", -1): "skipped"}
    assert len(requested(service, "org_stopped")) == 1


def test_a_task_that_is_cleared_requests_at_once(airflow, service):
    run_id = start(airflow, "cleared")
    # A scheduler of Airflow 3.1 ends with StaleDataError where a task is cleared while it notes that the task deferred.
    time.sleep(3)
    service.usage.set_records("org_cleared", [])
    airflow.clear("cleared", run_id, ["gate"])

    airflow.wait_for_run("cleared", run_id, timeout=120, state="success")
    assert decision(airflow, "cleared", run_id) == ("within", "continue", 1, 0)
    assert len(requested(service, "org_cleared")) == 2

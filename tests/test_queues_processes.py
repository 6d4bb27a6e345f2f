"""
Triggerers with queues, on Airflow's own processes: one started with `--queues` takes what has its queue, and no more.

Which attribute of a trigger Airflow reads for that has another name in 3.4 than in 3.3.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from simulator import Organization, Record, Simulator
from tests.airflows import AIRFLOW, new_in

pytestmark = new_in(3, 2, "triggerers with queues")

DAGS = """
from airflow.sdk import DAG, Asset, AssetWatcher
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
from reducto_provider.triggers.levels import ReductoUsageLevelTrigger

with DAG("sensors", schedule=None):
    for queue in ("billing", "other"):
        ReductoUsageThresholdSensor(
            task_id=queue,
            queue=queue,
            threshold=10,
            window="month",
            org_id="org_acme",
            deferrable=True,
            poke_interval=1,
            timeout=600,
        )
"""

WATCHERS = """
from airflow.sdk import task

# Triggers that differ in their queues alone are one to Airflow.
for queue, budget in {"billing": 10, "other": 9}.items():
    trigger = ReductoUsageLevelTrigger(budget=budget, levels=[50], org_id="org_acme", poke_interval=1, queue=queue)
    with DAG(f"watched_{queue}", schedule=Asset(queue, watchers=[AssetWatcher(name=queue, trigger=trigger)])):
        task(lambda: None, task_id="nothing")()
"""


@pytest.fixture(scope="module")
def service():
    with Simulator([Organization("org_acme", records=())]) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def airflow(airflow_factory, service, tmp_path_factory):
    dags = tmp_path_factory.mktemp("dags")
    (dags / "queues.py").write_text(DAGS + (WATCHERS if AIRFLOW >= (3, 4) else ""))
    connection = {"conn_type": "reducto", "host": service.url, "password": "sim-key-all"}
    env = {
        "AIRFLOW_CONN_REDUCTO_DEFAULT": json.dumps(connection),
        "AIRFLOW__TRIGGERER__QUEUES_ENABLED": "True",
    }
    deployment = airflow_factory(dags, env, triggerer_queues=["billing"])
    yield deployment
    deployment.stop()


@pytest.fixture(scope="module")
def run_id(airflow):
    """A run whose sensors wait."""
    airflow.wait_for_dag("sensors")
    airflow.unpause("sensors")
    run_id = airflow.trigger("sensors")["dag_run_id"]
    for queue in ("billing", "other"):
        airflow.wait_for_task("sensors", run_id, queue, "deferred", timeout=120)
    return run_id


def test_a_triggerer_with_queues_takes_the_sensors_of_its_queue_alone(airflow, service, run_id):
    service.usage.set_records("org_acme", [Record(datetime.now(UTC).date(), 11, 1)])
    airflow.wait_for_task("sensors", run_id, "billing", "success", timeout=120)
    assert airflow.task_states("sensors", run_id)["other", -1] == "deferred"


@new_in(3, 4, "watchers with a queue")
def test_a_triggerer_with_queues_takes_the_watchers_of_its_queue_alone(airflow, run_id):
    for queue in ("billing", "other"):
        airflow.wait_for_dag(f"watched_{queue}")
        airflow.unpause(f"watched_{queue}")
    airflow.wait_for_runs("watched_billing", timeout=120)
    assert airflow.runs("watched_other") == []

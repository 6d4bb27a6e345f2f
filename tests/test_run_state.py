"""What has run can be copied and pickled as if it had not: no session, thread or key goes along."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest

from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator
from reducto_provider.operators.reconciliation import ReductoUsageReconciliationOperator
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
from tests.airflow_sdk import DAG

DAYS = {"usage_start_date": "2026-05-01", "usage_end_date": "2026-05-03"}
TASKS = {
    "an export to XCom": (ReductoUsageExportOperator, {"org_id": "org_acme"}),
    "an export to files": (ReductoUsageExportOperator, {"org_id": "org_acme", "output_path": "FOLDER/usage"}),
    "an export to one file": (
        ReductoUsageExportOperator,
        {"org_id": "org_acme", "output_path": "FOLDER/usage.csv", "output_format": "csv", "partitioned": False},
    ),
    "a fleet": (ReductoUsageFleetExportOperator, {"organizations": ["org_acme"], "output_path": "FOLDER/usage"}),
    "a reconciliation": (ReductoUsageReconciliationOperator, {"org_id": "org_acme"}),
    "a sensor": (ReductoUsageThresholdSensor, {"org_id": "org_acme", "threshold": 0}),
}
COPIES = {
    "a deep copy": copy.deepcopy,
    "a shallow copy": copy.copy,
    "a pickle": lambda task: pickle.loads(pickle.dumps(task)),
}


def context(task):
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id=task.task_id, map_index=-1, try_number=1, max_tries=0)
    return {"ti": ti, "dag_run": SimpleNamespace(clear_number=0), "outlet_events": {}}


def figures(result):
    """What a task returned, but for what a second time tells otherwise."""
    return {name: value for name, value in result.items() if name not in ("time", "files", "organizations")}


@pytest.fixture(params=TASKS)
def task(request, simulator, connect, tmp_path):
    connect(host=simulator.url)
    kind, arguments = TASKS[request.param]
    arguments = {
        name: value.replace("FOLDER", tmp_path.as_uri()) if isinstance(value, str) else value
        for name, value in arguments.items()
    }
    with DAG("d", schedule=None):
        return kind(task_id="task", **DAYS, **arguments)


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_what_has_run_is_copied_as_if_it_had_not(task, make_copy):
    before = vars(copy.deepcopy(task)).keys() | {"_cached_logger", "_log"}  # Airflow's own
    expected = figures(task.execute(context(task)))
    held = {name: value for name, value in vars(task).items() if name not in before}
    assert held, "what a run holds"

    copied = make_copy(task)
    assert not held.keys() & vars(copied).keys()
    assert {name: vars(task)[name] for name in held} == held, "the original keeps it"
    assert copied.task_id == task.task_id
    assert figures(copied.execute(context(copied))) == expected


def test_the_key_is_in_no_pickle(task):
    task.execute(context(task))

    assert b"sim-key-all" not in pickle.dumps(task)


PICKLED_WHERE_STRUCTLOG_LOGS = """
import pickle
import airflow.settings  # configures the logs
from reducto_provider.operators.export import ReductoUsageExportOperator
task = ReductoUsageExportOperator(task_id="task")
task.log.info("used")
print(type(pickle.loads(pickle.dumps(task))).__name__)
"""


def test_a_task_that_has_logged_is_pickled(tmp_path):
    """In a process of its own, without the variables by which Airflow sees pytest and does not configure its logs."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env["AIRFLOW_HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PICKLED_WHERE_STRUCTLOG_LOGS], env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("ReductoUsageExportOperator\n"), done.stderr


def test_a_dag_whose_tasks_have_run_is_copied_with_them(task):
    task.execute(context(task))
    copied = copy.deepcopy(task.dag)

    assert copied.get_task("task") is not task
    assert copied.get_task("task").dag is copied
    assert "hook" not in vars(copied.get_task("task"))

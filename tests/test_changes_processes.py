"""Changes are reported until a task that reported them has succeeded: on real Airflow, whose workers are killed."""

from __future__ import annotations

import json
from datetime import date
from itertools import count

import pytest

from simulator import Simulator, status
from tests.airflows import AIRFLOW, gone_in, new_in
from tests.real_airflow.fixtures import IMPORTABLE
from tests.real_airflow.scheduler import AirflowScheduler

DAGS = """
import json
import os
import signal
from datetime import datetime, timedelta
from pathlib import Path

import httpx
from tests.airflow_sdk import DAG, Asset
from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator

ROOT = Path({root!r})


def end(context, moment):
    "As the test says for the try: succeed, fail, or be killed at a moment, alone or with its supervisor."
    ti = context["ti"]
    ends = json.loads((ROOT / "ends.json").read_text()).get(str(ti.map_index), [])
    end = ends[ti.try_number - 1] if ti.try_number <= len(ends) else "succeed"
    if end == f"fail {{moment}}":
        raise ValueError(end)
    if end == f"be set to failed {{moment}}":
        api = os.environ["AIRFLOW__API__BASE_URL"]
        token = httpx.get(f"{{api}}/auth/token").json()["access_token"]
        instance = f"{{api}}/api/v2/dags/{{ti.dag_id}}/dagRuns/{{ti.run_id}}/taskInstances/{{ti.task_id}}"
        headers = {{"Authorization": f"Bearer {{token}}"}}
        httpx.patch(instance, json={{"new_state": "failed"}}, headers=headers).raise_for_status()
    if end == f"be killed {{moment}}":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == f"be killed with its supervisor {{moment}}":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def before_the_report(context, result):
    end(context, "before the report")


def in_the_callback(context):
    with (ROOT / "author.txt").open("a") as file:
        file.write(f"{{context['ti'].run_id}} {{context['ti'].map_index}}\\n")
    end(context, "in the callback")
    raise ValueError("the author's own callback fails")


COMMON = {{
    "usage_start_date": "2026-05-04",
    "usage_end_date": "2026-05-06",
    "start_date": datetime(2026, 1, 1),
    "retries": 1,
    "retry_delay": timedelta(seconds=0),
    "post_execute": before_the_report,
    "on_success_callback": in_the_callback,
}}

with DAG("one", schedule=None):
    ReductoUsageExportOperator(
        task_id="export", org_id="org_acme", output_path=str(ROOT / "one"), outlets=[Asset("usage-of-one")], **COMMON
    )

with DAG("mapped", schedule=None):
    ReductoUsageExportOperator.partial(
        task_id="export", output_path=str(ROOT / "mapped"), outlets=[Asset("usage-of-each")], **COMMON
    ).expand(org_id=["org_acme", "org_globex"])

with DAG("single", schedule=None):
    ReductoUsageExportOperator(
        task_id="export",
        org_id="org_acme",
        output_path=str(ROOT / "usage.csv"),
        output_format="csv",
        partitioned=False,
        outlets=[Asset("usage-in-one-object")],
        **COMMON,
    )

with DAG("fleet", schedule=None):
    ReductoUsageFleetExportOperator(
        task_id="export",
        organizations=["org_acme", "org_globex"],
        output_path=str(ROOT / "fleet"),
        outlets=[Asset("usage-of-a-fleet")],
        **COMMON,
    )

with DAG("onto_one", schedule=None):
    ReductoUsageExportOperator.partial(
        task_id="export",
        output_path=str(ROOT / "one_for_all.csv"),
        output_format="csv",
        partitioned=False,
        **{{**COMMON, "retries": 0}},
    ).expand(org_id=["org_acme", "org_globex"])
"""

NOTHING: list[str] = []
ALL = ["2026-05-04", "2026-05-05", "2026-05-06"]


@pytest.fixture(scope="module")
def service():
    with Simulator() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def airflow(request, tmp_path_factory, service, root):
    dags = tmp_path_factory.mktemp("dags")
    (dags / "changes.py").write_text(DAGS.format(root=str(root)))
    connection = {"conn_type": "reducto", "host": service.url, "password": "sim-key-all", "extra": {"max_attempts": 1}}
    env = {
        "AIRFLOW_CONN_REDUCTO_DEFAULT": json.dumps(connection),
        # How soon the scheduler misses a worker that was killed.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "10",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    }
    if AIRFLOW < (3,):
        airflow = AirflowScheduler(tmp_path_factory.mktemp("airflow"), dags, {**IMPORTABLE, **env}).start()
    else:
        airflow = request.getfixturevalue("airflow_factory")(dags, env)
    yield airflow
    airflow.stop()


@pytest.fixture
def run(airflow, root):
    """Run a DAG whose tasks end as given, by try; the run's id. When it is cleared after that, they succeed."""

    def run(dag_id, *ends, state="success", of=None):
        (root / "ends.json").write_text(json.dumps(of or {"-1": ends}))
        airflow.unpause(dag_id)
        run_id = airflow.trigger(dag_id)["dag_run_id"]
        airflow.wait_for_run(dag_id, run_id, state=state, timeout=180)
        (root / "ends.json").write_text("{}")
        return run_id

    return run


@pytest.fixture
def again(airflow):
    """Clear a run, and wait until it has ended once more."""

    def again(dag_id, run_id):
        tries = [ti["try_number"] for ti in airflow.task_instances(dag_id, run_id)]
        airflow.clear(dag_id, run_id)

        def done():
            instances = airflow.task_instances(dag_id, run_id)
            return all(ti["state"] == "success" and ti["try_number"] > max(tries) for ti in instances)

        airflow.wait_for(done, 180, "the cleared run to end")
        airflow.wait_for_run(dag_id, run_id, state="success")

    return again


@pytest.fixture
def changed(airflow):
    """The changed days that a run has reported: in XCom, and in the last event of its asset."""

    def changed(dag_id, run_id, map_index=-1):
        files = airflow.xcom(dag_id, run_id, "export", map_index)["files"]
        days = [file["date"] for file in files if file["changed"]]
        events = [
            event["extra"]["changed_days"]
            for event in airflow.asset_events()
            if (event["source_run_id"], event["source_map_index"]) == (run_id, map_index)
        ]
        assert events[-1] == days
        return days

    return changed


factors = count(2)


def restate(service, day, org_id="org_acme"):
    service.usage.restate(org_id, date(2026, 5, day), factor=next(factors))


def test_until_a_task_succeeds_and_never_again(run, again, changed, service):
    first = run("one")
    assert changed("one", first) == ALL
    assert changed("one", run("one")) == NOTHING
    again("one", first)
    assert changed("one", first) == NOTHING

    restate(service, 5)
    failed = run("one", "fail before the report", "fail before the report", state="failed")
    reported = run("one")
    assert changed("one", reported) == ["2026-05-05"]
    for run_id in (reported, failed, first):
        again("one", run_id)
        assert changed("one", run_id) == NOTHING
    assert changed("one", run("one")) == NOTHING


def test_a_retry_reports_what_the_try_before_it_wrote(run, again, changed, service, airflow):
    run("one")
    for end in ("fail before the report", "be killed before the report"):
        restate(service, 4)
        run_id = run("one", end, state=None)
        if airflow.run("one", run_id)["state"] == "failed":
            assert AIRFLOW == (3, 0), "where a task that was killed is not retried"
            again("one", run_id)
        [task] = airflow.task_instances("one", run_id)
        assert task["try_number"] == 2
        assert changed("one", run_id) == ["2026-05-04"]
        again("one", run_id)
        assert changed("one", run_id) == NOTHING


@pytest.mark.parametrize("which", ["be killed", "be killed with its supervisor"])
def test_a_worker_killed_between_the_last_write_and_the_report(run, again, changed, service, which):
    run("one")
    restate(service, 6)
    killed = run("one", *[f"{which} before the report"] * 2, state="failed")
    reported = run("one")
    assert changed("one", reported) == ["2026-05-06"]
    assert changed("one", run("one")) == NOTHING
    again("one", killed)
    assert changed("one", killed) == NOTHING


@new_in(3, 0, "callbacks after the report")
def test_a_worker_killed_between_the_report_and_its_acknowledgement(run, changed, service):
    run("one")
    restate(service, 4)
    assert changed("one", run("one", "be killed in the callback")) == ["2026-05-04"]
    assert changed("one", run("one")) == ["2026-05-04"], "once more"
    assert changed("one", run("one")) == NOTHING


@gone_in(3, 0, "callbacks before the report")
def test_a_worker_killed_between_its_callbacks_and_the_report(run, again, changed, service):
    run("one")
    restate(service, 4)
    killed = run("one", *["be killed in the callback"] * 2, state="failed")
    assert changed("one", run("one")) == ["2026-05-04"]
    again("one", killed)
    assert changed("one", killed) == NOTHING


@new_in(3, 0, "the REST API through which a state is set")
def test_a_report_of_success_that_is_refused(run, changed, service, airflow):
    """Airflow 3.3 calls success callbacks all the same."""
    run("one")
    restate(service, 5)
    refused = run("one", "be set to failed before the report", state="failed")
    [task] = airflow.task_instances("one", refused)
    assert (task["state"], task["try_number"]) == ("failed", 1)
    if AIRFLOW >= (3, 3):
        assert "Airflow has not recorded this task's success" in airflow.log("one", refused, "export")
    assert changed("one", run("one")) == ["2026-05-05"]
    assert changed("one", run("one")) == NOTHING


def test_the_callbacks_of_the_author_run(run, root):
    run_id = run("one")
    assert f"{run_id} -1" in (root / "author.txt").read_text().splitlines()


def test_each_mapped_task_for_itself(run, again, changed, service):
    first = run("mapped")
    assert [changed("mapped", first, index) for index in (0, 1)] == [ALL, ALL]
    for org_id in ("org_acme", "org_globex"):
        restate(service, 5, org_id)
    run("mapped", of={"1": ["fail before the report", "be killed before the report"]}, state="failed")

    reported = run("mapped")
    assert [changed("mapped", reported, index) for index in (0, 1)] == [NOTHING, ["2026-05-05"]]
    again("mapped", reported)
    assert [changed("mapped", reported, index) for index in (0, 1)] == [NOTHING, NOTHING]


def test_one_object(run, again, airflow, service):
    def changed(run_id):
        [file] = airflow.xcom("single", run_id, "export")["files"]
        [*_, event] = [event for event in airflow.asset_events() if event["source_run_id"] == run_id]
        assert event["extra"]["changed"] == file["changed"]
        return file["changed"]

    assert changed(run("single"))
    assert not changed(run("single"))
    restate(service, 4)
    killed = run("single", *["be killed before the report"] * 2, state="failed")
    assert changed(run("single"))
    again("single", killed)
    assert not changed(killed)


def test_a_fleet_of_which_one_organization_is_refused(run, again, airflow, service):
    def changed(run_id):
        return {
            each["org_id"]: each["changed_days"] for each in airflow.xcom("fleet", run_id, "export")["organizations"]
        }

    assert changed(run("fleet")) == {"org_acme": ALL, "org_globex": ALL}
    restate(service, 4, "org_acme")
    service.faults.add(status(403), times=None, org="org_globex")
    refused = run("fleet", state="failed")
    service.faults.clear()
    assert changed(refused) == {"org_acme": ["2026-05-04"], "org_globex": []}

    restate(service, 6, "org_globex")
    run("fleet", *["be killed before the report"] * 2, state="failed")
    retried = run("fleet", "fail before the report")
    assert changed(retried) == {"org_acme": ["2026-05-04"], "org_globex": ["2026-05-06"]}
    again("fleet", retried)
    assert changed(retried) == {"org_acme": NOTHING, "org_globex": NOTHING}
    again("fleet", refused)
    assert changed(refused) == {"org_acme": NOTHING, "org_globex": NOTHING}


def test_mapped_organizations_onto_one_object(run, airflow, root):
    run_id = run("onto_one", state="failed")

    states = airflow.task_states("onto_one", run_id)
    assert sorted(states.values()) == ["failed", "success"]
    [refused] = [index for (_, index), state in states.items() if state == "failed"]
    log = airflow.log("onto_one", run_id, "export", map_index=refused)
    assert "is the object of org_id" in log
    assert "Name in output_path what the exports differ in" in log
    other = ["org_globex", "org_acme"][refused]
    assert f'"{other}"' in (root / "one_for_all.csv").read_text()

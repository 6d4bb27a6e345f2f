"""
Waiting, as only Airflow's own processes can show it: the triggerer and the scheduler are killed and come back, many
wait at the cost of one, waits begin without a worker, budgets start DAGs, and a key is rotated meanwhile.

The tests tell one story on one Airflow, in their order: what is waiting when the processes are killed has to go on.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest

from simulator import Organization, Record, Simulator, keys_of, status
from tests.airflows import new_in
from tests.real_airflow.running import DeploymentError

pytestmark = new_in(3, 3, "shared polls, waits that begin in the triggerer, the state store of an asset")

ORGANIZATIONS = [
    Organization(f"org_{name}", records=())
    for name in (
        *("late", "patient", "many", "daily", "mapped", "first", "second", "both", "rotating", "revoked"),
        *("busy", "gate", "outage", "keys"),
    )
]
MANY = 200
MANY_DAGS = [f"many_{part}" for part in range(10)]
RUN_DAY = date(2026, 10, 15)
"""The day before the logical date of the scheduled run."""

DAGS = """
from datetime import datetime, timedelta
from airflow.sdk import DAG, Asset, AssetWatcher, task
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
from reducto_provider.triggers.levels import ReductoUsageLevelTrigger

WINDOW = %(window)r
OF_RUN = {"window": "{{ params.window }}", "org_id": "{{ params.org }}", "reducto_conn_id": "{{ params.connection }}"}


def wait(task_id, *, mapped_over=None, **arguments):
    arguments = {"task_id": task_id, "poke_interval": 1, "timeout": 900, "retries": 2, **arguments}
    if mapped_over:
        return ReductoUsageThresholdSensor.partial(**arguments).expand(threshold=mapped_over)
    return ReductoUsageThresholdSensor(**arguments)


def watch(asset, **triggers):
    watchers = [AssetWatcher(name=f"{asset}-{name}", trigger=trigger) for name, trigger in triggers.items()]
    return Asset(asset, watchers=watchers)


def budget(org, **arguments):
    return ReductoUsageLevelTrigger(budget=1000, org_id=org, poke_interval=1, **arguments)


with DAG("survives", schedule=None):
    wait("late", org_id="org_late", threshold=10, deferrable=True, **{**WINDOW, "timeout": 40})
    wait("patient", org_id="org_patient", threshold=10, deferrable=True, **WINDOW)

for part in range(10):  # a trigger that starts so takes its whole DAG along: small ones are faster
    with DAG(f"many_{part}", schedule=None):
        for number in range(part, %(many)d, 10):
            wait(
                f"over_{number}",
                org_id="org_many",
                threshold=number,
                start_from_trigger=True,
                **{**WINDOW, "poke_interval": 3},
            )

with DAG(
    "from_trigger",
    schedule="@daily",
    start_date=datetime(2026, 10, 16),
    end_date=datetime(2026, 10, 16, 12),
    catchup=True,
    params={
        "window": "run",
        "org": "org_daily",
        "connection": "reducto_default",
        "threshold": 7,
        "product": "parse",
        "bad": "plenty",
    },
):
    start = {"start_from_trigger": True, "on_closed_window": "wait", **OF_RUN}
    wait("exceeds", threshold="{{ params.threshold }}", **start)
    task(lambda: 7, task_id="budget")() >> wait(
        "pulls", threshold="{{ ti.xcom_pull('budget', map_indexes=-1) }}", products=["{{ params.product }}"], **start
    )
    wait("does_not", threshold="{{ params.threshold + 1 }}", **{**start, "on_closed_window": "skip"})
    wait("waits", threshold="{{ params.threshold + 1 }}", **start)
    wait("times_out", threshold="{{ params.threshold + 1 }}", **{**start, "timeout": 3})
    wait(
        "runs_out",
        threshold="{{ params.threshold + 1 }}",
        **{**start, "execution_timeout": timedelta(seconds=3), "retries": 0},
    )
    wait("bad_threshold", threshold="{{ params.bad }}", **start)
    wait("bad_window", threshold=1, **{**start, "window": "{{ params.bad }}"})
    wait("bad_connection", threshold=1, **{**start, "reducto_conn_id": "{{ params.bad }}", "retries": 0})

with DAG("mapped", schedule=None):
    wait("over", mapped_over=[1, 2.5, 100], org_id="org_mapped", start_from_trigger=True, **WINDOW)

ASSETS = [
    watch("first", credits=budget("org_first")),
    watch("second", credits=budget("org_second")),
    watch("both", credits=budget("org_both"), requests=budget("org_both", metric="requests", levels=[50])),
]
KEYS = watch(
    "keys",
    projected=budget(
        "org_keys", levels=[50], window="day", settle_days=0, projected=True, per_group=True, group_by="api_key"
    ),
)
with DAG("also_watched", schedule=ASSETS[1] | ASSETS[2] | KEYS):
    task(lambda: None, task_id="nothing")()

BUSY = [watch(f"busy_{level}", level=budget("org_busy", levels=[level])) for level in (50, 80, 100)]
with DAG("busy", schedule=BUSY[0] | BUSY[1] | BUSY[2], max_active_runs=1):

    @task
    def heard(*, triggering_asset_events):
        return [event.extra["payload"]["level"] for events in triggering_asset_events.values() for event in events]

    wait("gate", org_id="org_gate", threshold=0, deferrable=True, **WINDOW) >> heard()

with DAG("spends", schedule=ASSETS[0]):

    @task
    def passed(*, triggering_asset_events):
        return [event.extra["payload"]["level"] for events in triggering_asset_events.values() for event in events]

    passed()

with DAG("outage", schedule=None):
    # Airflow takes a task for lost that is queued again before it has heard how the visit before ended.
    wait("rescheduled", org_id="org_outage", threshold=10, mode="reschedule", poke_interval=4, **WINDOW)

with DAG("keys", schedule=None):
    for name in ("rotating", "revoked"):
        wait(name, reducto_conn_id=name, threshold=10, deferrable=True, **WINDOW)
"""


def today() -> date:
    return datetime.now(UTC).date()


def connection(service, key):
    return {"conn_type": "reducto", "host": service.url, "password": key, "extra": {"max_attempts": 1}}


def requested(service, org):
    return [request for request in service.requests if ("orgId", org) in request.query]


def asked_with(service, key, status=None):
    logged = [request for request in service.requests if request.headers["Authorization"] == f"Bearer {key}"]
    return [request for request in logged if status in (None, request.status)]


def task(airflow, dag_id, task_id):
    """The task's instance in the only run of its DAG."""
    [run] = airflow.runs(dag_id)
    [found] = [ti for ti in airflow.task_instances(dag_id, run["dag_run_id"]) if ti["task_id"] == task_id]
    return found


def wait_for_task(airflow, dag_id, task_id, state, **options):
    [run] = airflow.runs(dag_id)
    airflow.wait_for_task(dag_id, run["dag_run_id"], task_id, state, **{"timeout": 300, **options})
    return run["dag_run_id"]


def wait_for_polls(airflow, service, org, count):
    """Wait until an organization is polled so many times more."""
    before = len(requested(service, org))
    airflow.wait_for(lambda: len(requested(service, org)) >= before + count, 300, f"{count} polls for {org}")


def fired(airflow, asset):
    """The payloads of an asset's events by watchers, oldest first."""

    def events():
        with suppress(DeploymentError):  # Airflow 3.3.2 can't show the events of a run that is still queued
            return [airflow.asset_events()]

    [found] = airflow.wait_for(events, 60, "the asset events")
    return [event["extra"]["payload"] for event in found if event["name"] == asset]


def levels(airflow, asset):
    return [(payload["reading"]["metric"], payload["level"]) for payload in fired(airflow, asset)]


def remembered(airflow, asset):
    """The levels that Airflow keeps as fired for an asset, whatever they were of."""
    [found] = [each for each in airflow.request("GET", "/api/v2/assets").json()["assets"] if each["name"] == asset]
    kept = airflow.request("GET", f"/api/v2/assets/{found['id']}/state-store").json()["asset_state_store"]
    return sorted(level for entry in kept for window in entry["value"].values() for level in window)


@pytest.fixture(scope="module")
def service():
    keys = {**keys_of(ORGANIZATIONS), "sim-key-before": ("org_rotating",)}
    with Simulator(ORGANIZATIONS, keys) as simulator:
        simulator.usage.set_records("org_daily", [Record(RUN_DAY, 8, 1)])
        simulator.usage.add("org_first", today(), credits=1200, requests=1)
        simulator.usage.add("org_second", today(), credits=900, requests=1)
        simulator.usage.add("org_both", today(), credits=501, requests=501)
        for days in range(1, 6):
            simulator.usage.add("org_keys", today() - timedelta(days=days), 600, 1, api_key="large")
        yield simulator


@pytest.fixture(scope="module")
def airflow(airflow_factory, service, tmp_path_factory):
    dags = tmp_path_factory.mktemp("dags")
    window = {
        "usage_start_date": str(today() - timedelta(days=1)),
        "usage_end_date": str(today() + timedelta(days=1)),
    }
    (dags / "waiting.py").write_text(DAGS % {"many": MANY, "window": window})
    airflow = airflow_factory(dags, {"AIRFLOW_CONN_REDUCTO_DEFAULT": json.dumps(connection(service, "sim-key-all"))})
    for name, key in (("rotating", "sim-key-before"), ("revoked", "sim-key-revoked")):
        fields = {**connection(service, key), "connection_id": name, "extra": json.dumps({"max_attempts": 1})}
        airflow.request("POST", "/api/v2/connections", json=fields)
    for dag_id in (*MANY_DAGS, "survives", "from_trigger", "mapped", "spends", "also_watched", "busy", "keys"):
        airflow.unpause(dag_id)
    for dag_id in ("mapped", "keys", "busy"):
        airflow.trigger(dag_id)
    yield airflow
    airflow.stop()


@pytest.fixture(scope="module")
def restarted(airflow, service):
    """Triggerer and scheduler are killed and come back, later than one of the waits was to end."""
    airflow.trigger("survives")
    wait_for_task(airflow, "survives", "late", "deferred")
    wait_for_task(airflow, "survives", "patient", "deferred")
    for org in ("org_late", "org_patient"):
        airflow.wait_for(lambda org=org: len(requested(service, org)) >= 3, 300, "polls in the triggerer")
    first_request = requested(service, "org_late")[0].at
    for process in ("triggerer", "scheduler"):
        airflow.kill(process)
    before = len(service.requests)
    service.usage.add("org_patient", today(), credits=11, requests=1)
    time.sleep(max(0.0, (first_request + timedelta(seconds=45) - datetime.now(UTC)).total_seconds()))
    for process in ("scheduler", "triggerer"):
        airflow.start_service(process)
    return before


# -- waits that begin in the triggerer


def waiting(airflow):
    """Which of the many are waiting."""
    states = {}
    for dag_id in MANY_DAGS:
        [run] = airflow.runs(dag_id)
        states |= airflow.task_states(dag_id, run["dag_run_id"])
    return {int(task_id.removeprefix("over_")) for (task_id, _), state in states.items() if state == "deferred"}


def wait_for_shared_polls(airflow, service, since=0):
    """Wait until one poll an interval of three seconds is for all of the many, each of which polls first."""

    def asked_since():
        return [request.monotonic for request in service.requests[since:] if ("orgId", "org_many") in request.query]

    def steady():
        last = asked_since()[-5:]
        return len(last) == 5 and all(later - earlier > 2.9 for earlier, later in pairwise(last))

    airflow.wait_for(steady, 300, "one poll an interval")
    assert len(asked_since()) < MANY // 2, "those that begin at the same moment share a request too"


def test_many_of_the_same_query_cost_one_request_an_interval(airflow, service):
    for dag_id in MANY_DAGS:
        airflow.trigger(dag_id)
    airflow.wait_for(lambda: waiting(airflow) == set(range(MANY)), 300, "all to wait")
    wait_for_shared_polls(airflow, service)
    assert waiting(airflow) == set(range(MANY))

    service.usage.add("org_many", today(), credits="2.5", requests=1)
    for number in range(3):
        run_id = wait_for_task(airflow, f"many_{number}", f"over_{number}", "success")
        assert airflow.xcom(f"many_{number}", run_id, f"over_{number}")["threshold"] == number
    assert waiting(airflow) == set(range(3, MANY))


def test_no_worker_has_a_task_that_waits(airflow, service):
    wait_for_task(airflow, "from_trigger", "waits", "deferred")
    wait_for_polls(airflow, service, "org_daily", 3)
    waits = task(airflow, "from_trigger", "waits")
    assert waits["state"] == "deferred"
    assert not any(waits[trace] for trace in ("queued_when", "hostname", "pid"))

    wait_for_task(airflow, "keys", "rotating", "deferred")
    on_a_worker_first = task(airflow, "keys", "rotating")
    assert all(on_a_worker_first[trace] for trace in ("queued_when", "hostname", "pid")), "else the above says nothing"


def test_templates_are_rendered_for_the_run(airflow):
    run_id = wait_for_task(airflow, "from_trigger", "exceeds", "success")
    reading = airflow.xcom("from_trigger", run_id, "exceeds")
    assert (reading["org_id"], reading["value"], reading["threshold"]) == ("org_daily", 8, 7)
    assert (reading["usage_start_date"], reading["usage_end_date"]) == (str(RUN_DAY), str(RUN_DAY))
    queued = task(airflow, "from_trigger", "exceeds")["queued_when"]
    assert datetime.fromisoformat(reading["time"]) <= datetime.fromisoformat(queued), "a worker had it afterwards only"

    links = f"/api/v2/dags/from_trigger/dagRuns/{run_id}/taskInstances/exceeds/links"
    assert airflow.request("GET", links).json()["extra_links"] == {"Reducto Studio": "https://studio.reducto.ai"}

    wait_for_task(airflow, "from_trigger", "pulls", "success")
    assert airflow.xcom("from_trigger", run_id, "pulls")["threshold"] == 7

    wait_for_task(airflow, "from_trigger", "does_not", "skipped")


@pytest.mark.parametrize(
    ("task_id", "message"),
    [
        ("times_out", "AirflowSensorTimeout: "),
        ("runs_out", "AirflowTaskTimeout: execution_timeout is over"),
        (
            "bad_threshold",
            "ReductoConfigurationError: threshold must be 0 or a number from 1e-9 to less than 1e18, not 'plenty'",
        ),
        ("bad_window", "ReductoConfigurationError: window must be 'month', 'week', 'day', 'run' or a whole number"),
        ("bad_connection", "plenty"),
    ],
    ids=lambda value: value if value.isidentifier() else "",
)
def test_what_ends_such_a_wait_fails_without_a_retry(airflow, task_id, message):
    run_id = wait_for_task(airflow, "from_trigger", task_id, "failed")
    assert task(airflow, "from_trigger", task_id)["try_number"] == 1
    assert message in airflow.log("from_trigger", run_id, task_id)


def test_each_instance_of_a_mapped_sensor_has_its_own_threshold(airflow, service):
    for index in range(3):
        wait_for_task(airflow, "mapped", "over", "deferred", map_index=index)
    service.usage.add("org_mapped", today(), credits=2, requests=1)
    run_id = wait_for_task(airflow, "mapped", "over", "success", map_index=0)
    assert airflow.xcom("mapped", run_id, "over", map_index=0)["threshold"] == 1

    wait_for_polls(airflow, service, "org_mapped", 2)
    states = airflow.task_states("mapped", run_id)
    assert [states["over", index] for index in range(3)] == ["success", "deferred", "deferred"]

    service.usage.add("org_mapped", today(), credits=1, requests=1)
    wait_for_task(airflow, "mapped", "over", "success", map_index=1)
    assert airflow.xcom("mapped", run_id, "over", map_index=1)["threshold"] == 2.5


# -- keys


def test_a_key_that_is_rotated_is_picked_up(airflow, service):
    wait_for_task(airflow, "keys", "rotating", "deferred")
    airflow.wait_for(lambda: len(asked_with(service, "sim-key-before", 200)) >= 3, 300, "polls in the triggerer")

    service.keys["sim-key-after"] = service.keys["sim-key-before"]
    fields = {"connection_id": "rotating", "conn_type": "reducto", "password": "sim-key-after"}
    airflow.request("PATCH", "/api/v2/connections/rotating", params={"update_mask": "password"}, json=fields)
    del service.keys["sim-key-before"]
    airflow.wait_for(lambda: len(asked_with(service, "sim-key-after", 200)) >= 2, 300, "polls with the new key")

    assert len(asked_with(service, "sim-key-before", 401)) == 1
    service.usage.add("org_rotating", today(), credits=11, requests=1)
    wait_for_task(airflow, "keys", "rotating", "success")
    assert task(airflow, "keys", "rotating")["try_number"] == 1


def test_a_key_that_stays_refused_fails_at_once(airflow, service):
    wait_for_task(airflow, "keys", "revoked", "deferred")
    airflow.wait_for(lambda: len(asked_with(service, "sim-key-revoked", 200)) >= 2, 300, "polls in the triggerer")

    del service.keys["sim-key-revoked"]
    run_id = wait_for_task(airflow, "keys", "revoked", "failed")
    assert task(airflow, "keys", "revoked")["try_number"] == 1
    assert "ReductoAuthenticationError" in airflow.log("keys", run_id, "revoked")
    assert len(asked_with(service, "sim-key-revoked", 401)) == 1, "the connection was read again, the key was the same"


# -- outages


def test_a_rescheduled_sensor_leaves_its_worker_and_remembers_that_polls_fail(airflow, service):
    """The API server keeps it, since the sensor's process ends between two polls."""
    service.usage.add("org_outage", today(), credits=11, requests=1)
    service.faults.add(status(503), times=7, org="org_outage")
    airflow.unpause("outage")
    airflow.trigger("outage")
    run_id = wait_for_task(airflow, "outage", "rescheduled", "success")

    assert task(airflow, "outage", "rescheduled")["try_number"] == 1
    log = airflow.log("outage", run_id, "rescheduled")
    assert re.findall(r"failed \(failure (\d+), for", log) == [str(number) for number in range(1, 8)]
    assert log.count("marking task as UP_FOR_RESCHEDULE") == 7


# -- budgets


def wait_for_levels(airflow, asset, expected):
    airflow.wait_for(lambda: len(levels(airflow, asset)) >= len(expected), 300, f"events of {asset}")
    assert sorted(levels(airflow, asset)) == sorted(expected)
    airflow.wait_for(
        lambda: remembered(airflow, asset) == sorted(level for _, level in expected), 300, "levels to be stored"
    )


def test_a_budget_starts_a_dag_at_each_level(airflow, service):
    wait_for_levels(airflow, "first", [("credits", level) for level in (50, 80, 100)])
    events = fired(airflow, "first")
    assert [event["level"] for event in events] == [50, 80, 100]
    assert {(event["reading"]["value"], event["reading"]["threshold"]) for event in events} == {(1200, 1000)}
    assert {event["reading"]["org_id"] for event in events} == {"org_first"}

    def handed_on():
        runs = [run["dag_run_id"] for run in airflow.runs("spends") if run["state"] == "success"]
        return [airflow.xcom("spends", run_id, "passed") for run_id in runs]

    airflow.wait_for(lambda: handed_on() == [[50], [80], [100]], 300, "a run for each level")


def test_each_organization_and_each_watcher_has_levels_of_its_own(airflow, service):
    wait_for_levels(airflow, "second", [("credits", 50), ("credits", 80)])
    wait_for_levels(airflow, "both", [("credits", 50), ("requests", 50)])


def groups(airflow):
    """Which groups each event of the keys' asset names, and whether they are projected."""
    return [
        [(reading["group"], reading["projected"]) for reading in payload["readings"]]
        for payload in fired(airflow, "keys")
    ]


def test_each_group_has_levels_of_its_own(airflow, service):
    airflow.wait_for(lambda: groups(airflow) == [[("large", True)]], 300, "an event of the projected group")
    service.usage.add("org_keys", today(), credits=501, requests=1, api_key="small")
    both = [[("large", True)], [("small", False)]]
    airflow.wait_for(lambda: groups(airflow) == both, 300, "an event of the other group")
    airflow.wait_for(lambda: remembered(airflow, "keys") == [50, 50], 300, "levels to be stored")


def test_no_level_is_lost_while_a_dag_can_have_no_run(airflow, service):
    """With an asset for each level, as in the example: of several events of one asset only the first would count."""

    def events():
        return [level for asset in (50, 80, 100) for _, level in levels(airflow, f"busy_{asset}")]

    wait_for_task(airflow, "busy", "gate", "deferred")
    for credits, expected in ((501, [50]), (300, [50, 80]), (200, [50, 80, 100])):
        service.usage.add("org_busy", today(), credits=credits, requests=1)
        airflow.wait_for(lambda expected=expected: events() == expected, 300, f"the events {expected}")
    assert len(airflow.runs("busy")) == 1, "else there was a run for each"

    service.usage.add("org_gate", today(), credits=1, requests=1)
    _, run = airflow.wait_for_runs("busy", 2, timeout=300)
    assert sorted(airflow.xcom("busy", run["dag_run_id"], "heard")) == [50, 80, 100]


# -- processes that are killed


def test_a_deadline_is_kept_when_the_processes_are_killed(airflow, service, restarted):
    run_id = wait_for_task(airflow, "survives", "late", "failed")
    assert task(airflow, "survives", "late")["try_number"] == 1
    assert "AirflowSensorTimeout" in airflow.log("survives", run_id, "late")
    since = [request for request in service.requests[restarted:] if ("orgId", "org_late") in request.query]
    # A last request of its own, and those of the common poll meanwhile; were its time counted anew, forty.
    assert len(since) < 10, "its time was over when the triggerer came back"


def test_a_wait_goes_on_when_the_processes_were_killed(airflow, restarted):
    run_id = wait_for_task(airflow, "survives", "patient", "success")
    assert task(airflow, "survives", "patient")["try_number"] == 1
    assert airflow.xcom("survives", run_id, "patient")["value"] == 11


def test_many_go_on_at_the_cost_of_one(airflow, service, restarted):
    assert waiting(airflow) == set(range(3, MANY))
    wait_for_shared_polls(airflow, service, restarted)
    service.usage.add("org_many", today(), credits=1, requests=1)
    wait_for_task(airflow, "many_3", "over_3", "success")
    assert waiting(airflow) == set(range(4, MANY))


def test_levels_that_fired_do_not_fire_again(airflow, service, restarted):
    for org in ("org_first", "org_second", "org_both", "org_keys"):
        wait_for_polls(airflow, service, org, 3)
    assert groups(airflow) == [[("large", True)], [("small", False)]]
    assert sorted(levels(airflow, "first")) == [("credits", level) for level in (50, 80, 100)]

    service.usage.add("org_second", today(), credits=200, requests=1)
    wait_for_levels(airflow, "second", [("credits", level) for level in (50, 80, 100)])
    assert sorted(levels(airflow, "both")) == [("credits", 50), ("requests", 50)]


def test_nor_after_an_orderly_restart(airflow, service, restarted):
    before = [levels(airflow, asset) for asset in ("first", "second", "both")]
    airflow.terminate("triggerer")
    airflow.start_service("triggerer")
    for org in ("org_first", "org_second", "org_both"):
        wait_for_polls(airflow, service, org, 3)
    assert [levels(airflow, asset) for asset in ("first", "second", "both")] == before


def test_nothing_is_polled_when_nobody_waits(airflow, service, restarted):
    for dag_id in MANY_DAGS:
        [run] = airflow.runs(dag_id)
        airflow.request("PATCH", f"/api/v2/dags/{dag_id}/dagRuns/{run['dag_run_id']}", json={"state": "failed"})
    assert waiting(airflow) == set()

    def quiet():
        before = len(requested(service, "org_many"))
        wait_for_polls(airflow, service, "org_first", 8)  # of a second, where theirs are of three
        return len(requested(service, "org_many")) == before

    airflow.wait_for(quiet, 300, "an end of the polls")


def test_the_triggerer_has_nothing_to_complain_of(airflow, restarted):
    log = airflow.service_log("triggerer")
    for complaint in ("Unclosed", "never retrieved", "exited with error", "fell behind", "Task was destroyed"):
        assert complaint not in log

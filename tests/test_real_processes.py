"""What only Airflow's own processes can show: schedules, partitions, assets, and waiting in the triggerer."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from simulator import Simulator, status
from tests.airflows import AIRFLOW, PARTITIONS, SHARED_STREAMS, gone_in, new_in

pytestmark = new_in(3, 0, "the REST API that reads the state of real processes")

HEADER = """
from datetime import datetime, timedelta
from airflow.sdk import DAG, Asset
from airflow.timetables.interval import CronDataIntervalTimetable
from airflow.timetables.trigger import CronTriggerTimetable
from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor

FILES = Asset("reducto-usage-files")

def export(**arguments):
    return ReductoUsageExportOperator(task_id="export", org_id="org_initech", **arguments)
"""

SCHEDULED = """
with DAG({dag_id!r}, schedule={schedule}, start_date=datetime({start}), end_date=datetime({end}), catchup=True):
    export()
"""

SCHEDULES = {
    "daily": ("'@daily'", "2026, 10, 16", "2026, 10, 20, 12", [f"2026-10-{day}" for day in range(15, 20)]),
    "weekly": ("'@weekly'", "2026, 10, 18", "2026, 10, 19", ["2026-10-11 2026-10-17"]),
    "monthly": ("'@monthly'", "2026, 9, 1", "2026, 10, 2", ["2026-08-01 2026-08-31", "2026-09-01 2026-09-30"]),
    "hourly": ("'@hourly'", "2026, 10, 20, 5", "2026, 10, 20, 5, 30", ["2026-10-20"]),
    "hourly_at_midnight": ("'@hourly'", "2026, 10, 20", "2026, 10, 20, 0, 30", ["2026-10-19"]),
    "data_interval": (
        "CronDataIntervalTimetable('@daily', 'UTC')",
        "2026, 10, 18",
        "2026, 10, 20, 12",
        ["2026-10-18", "2026-10-19", "2026-10-20"],
    ),
    "in_tokyo": (
        "CronTriggerTimetable('0 6 * * *', timezone='Asia/Tokyo')",
        "2026, 10, 18, 20",
        "2026, 10, 20",
        ["2026-10-17", "2026-10-18"],
    ),
}
PARTITIONED = {
    "partition_of_the_day_before": (
        "CronPartitionTimetable('0 0 * * *', timezone='UTC', run_offset=-1)",
        "2026, 10, 19",
        "2026, 10, 20, 12",
        ["2026-10-18", "2026-10-19"],
    ),
    "partition_in_tokyo": (
        "CronPartitionTimetable('0 0 * * *', timezone='Asia/Tokyo', run_offset=-1, key_format='%d.%m.%Y')",
        "2026, 10, 19, 12",
        "2026, 10, 20",
        ["2026-10-19"],
    ),
    "partition_of_a_month": (
        "CronPartitionTimetable('0 0 1 * *', timezone='UTC', run_offset=-1, key_format='%Y-%m')",
        "2026, 10, 1",
        "2026, 10, 2",
        ["2026-09-01 2026-09-30"],
    ),
}

if AIRFLOW >= (3, 2):
    HEADER += "from airflow.timetables.trigger import CronPartitionTimetable\n"
    SCHEDULES |= PARTITIONED
if AIRFLOW == (3, 2):
    # Keys there are spelled in UTC: this one names the day before.
    SCHEDULES["partition_in_tokyo"] = (*PARTITIONED["partition_in_tokyo"][:3], ["2026-10-18"])

OTHERS = """
with DAG("producer", schedule=None):
    export(outlets=[FILES])

with DAG("consumer", schedule=[FILES]):
    export()

with DAG("by_hand", schedule="@daily", start_date=datetime(2026, 10, 1), catchup=False):
    export()

TODAY = datetime.now().date()
WINDOW = {"usage_start_date": str(TODAY - timedelta(days=1)), "usage_end_date": str(TODAY + timedelta(days=1))}

with DAG("waits", schedule=None, params={"timeout": 60, "soft_fail": False, "org": "org_acme"}):
    for name, timeout, soft_fail in (("waits", 120, False), ("times_out", 15, False), ("times_out_softly", 15, True)):
        ReductoUsageThresholdSensor(
            task_id=name,
            org_id="{{ params.org }}",
            threshold=1_000_000,
            deferrable=True,
            poke_interval=1,
            timeout=timeout,
            soft_fail=soft_fail,
            retries=1,
            **WINDOW,
        )

with DAG("wait_together", schedule=None):
    ReductoUsageThresholdSensor.partial(
        task_id="wait",
        org_id="org_globex",
        deferrable=True,
        poke_interval=2,
        timeout=120,
        map_index_template="over {{ task.threshold }}",
        **WINDOW,
    ).expand(threshold=[1_000_000 + 5_000 * number for number in range(8)])
"""

PARTITION_EVENT = """
with DAG(
    "partition_event",
    schedule=CronPartitionTimetable("0 0 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d"),
    start_date=datetime(2026, 10, 20),
    end_date=datetime(2026, 10, 20, 12),
    catchup=True,
):
    export(outlets=[Asset("reducto-usage-of-a-day")])

with DAG(
    "partition_to_come",
    schedule=CronPartitionTimetable("0 0 * * *", timezone="UTC", run_offset=1),
    start_date=datetime(2026, 10, 20),
    catchup=False,
):
    export(retries=1, retry_delay=timedelta(seconds=0))
"""


@pytest.fixture(scope="module")
def service():
    with Simulator() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def airflow(airflow_factory, service, tmp_path_factory):
    dags = tmp_path_factory.mktemp("dags")
    scheduled = "".join(
        SCHEDULED.format(dag_id=dag_id, schedule=schedule, start=start, end=end)
        for dag_id, (schedule, start, end, _) in SCHEDULES.items()
    )
    (dags / "scheduled.py").write_text(HEADER + scheduled)
    others = OTHERS + (PARTITION_EVENT if AIRFLOW >= (3, 2) else "")
    (dags / "others.py").write_text(HEADER + others)
    connection = {"conn_type": "reducto", "host": service.url, "password": "sim-key-all", "extra": {"max_attempts": 1}}
    airflow = airflow_factory(dags, {"AIRFLOW_CONN_REDUCTO_DEFAULT": json.dumps(connection)})
    for dag_id in SCHEDULES:
        airflow.unpause(dag_id)
    yield airflow
    airflow.stop()


def days_of(xcom):
    days = (xcom["usage_start_date"], xcom["usage_end_date"])
    return days[0] if days[0] == days[1] else " ".join(days)


@pytest.mark.parametrize(
    "dag_id",
    [dag_id for dag_id in SCHEDULES if dag_id not in PARTITIONED]
    + [pytest.param(dag_id, marks=PARTITIONS) for dag_id in PARTITIONED],
)
def test_scheduled_runs_cover_their_days_once(airflow, dag_id):
    expected = SCHEDULES[dag_id][3]
    airflow.wait_for_runs(dag_id, len(expected), timeout=120)

    covered = [
        days_of(airflow.xcom(dag_id, run["dag_run_id"], "export"))
        for run in airflow.runs(dag_id)
        if airflow.task_instances(dag_id, run["dag_run_id"])  # none in a run that begins before the DAG does
        and run["state"] == "success"
    ]
    assert sorted(covered) == expected


def yesterday():
    return str((datetime.now(UTC) - timedelta(days=1)).date())


def test_an_asset_triggered_run_covers_the_day_before(airflow):
    for dag_id in ("producer", "consumer"):
        airflow.unpause(dag_id)
    airflow.trigger("producer")
    [run] = airflow.wait_for_runs("consumer", 1, timeout=90)

    assert run["run_type"] == "asset_triggered"
    assert days_of(airflow.xcom("consumer", run["dag_run_id"], "export")) == yesterday()


@PARTITIONS
def test_the_event_of_a_partitioned_run_carries_the_day(airflow):
    airflow.unpause("partition_event")
    [run] = airflow.wait_for_runs("partition_event", 1, timeout=90)

    [event] = [event for event in airflow.asset_events() if event["name"] == "reducto-usage-of-a-day"]
    assert event["partition_key"] == "2026-10-19"
    assert event["extra"]["usage_start_date"] == event["extra"]["usage_end_date"] == "2026-10-19"
    assert (
        event["extra"]["request_count"] == airflow.xcom("partition_event", run["dag_run_id"], "export")["request_count"]
    )


@PARTITIONS
def test_a_partition_that_is_not_over_is_retried(airflow):
    airflow.unpause("partition_to_come")
    run, *_ = airflow.wait_for_runs("partition_to_come", 1, timeout=90)

    assert run["state"] == "failed"
    [task] = airflow.task_instances("partition_to_come", run["dag_run_id"])
    assert task["try_number"] == 2
    log = airflow.log("partition_to_come", run["dag_run_id"], "export")
    assert "ReductoDayNotOverError" in log
    assert (
        " 00:00 UTC: retry after that. CronPartitionTimetable('0 0 * * *', timezone='UTC', run_offset=1) is due" in log
    )
    assert "give it run_offset=-1" in log


def test_a_manual_run_without_a_logical_date_covers_the_day_before(airflow):
    airflow.unpause("by_hand")
    run = airflow.trigger("by_hand", logical_date=None)
    airflow.wait_for_run("by_hand", run["dag_run_id"], state="success")

    assert run["logical_date"] is None
    assert days_of(airflow.xcom("by_hand", run["dag_run_id"], "export")) == yesterday()


def test_waiting_in_the_triggerer(airflow, service):
    airflow.unpause("waits")
    run_id = airflow.trigger("waits")["dag_run_id"]
    airflow.wait_for_task("waits", run_id, "times_out", "failed", timeout=90)
    airflow.wait_for_task("waits", run_id, "times_out_softly", "skipped", timeout=90)
    [timed_out] = [ti for ti in airflow.task_instances("waits", run_id) if ti["task_id"] == "times_out"]
    assert timed_out["try_number"] == 1, "a timeout is not retried"
    log = airflow.log("waits", run_id, "times_out")
    assert "did not exceed 1000000 credits within the sensor's timeout" in log

    service.usage.add("org_acme", datetime.now(UTC).date(), credits=2_000_000, requests=1)
    airflow.wait_for_task("waits", run_id, "waits", "success", timeout=90)
    assert airflow.xcom("waits", run_id, "waits")["value"] > 2_000_000
    assert "org_acme" in airflow.log("waits", run_id, "waits")


def test_a_key_revoked_while_waiting_fails_at_once(airflow, service):
    airflow.unpause("waits")
    run_id = airflow.trigger("waits", conf={"org": "org_hooli"})["dag_run_id"]
    airflow.wait_for_task("waits", run_id, "waits", "deferred", timeout=90)
    service.faults.add(status(401), times=None, org="org_hooli")
    airflow.wait_for_task("waits", run_id, "waits", "failed", timeout=90)
    service.faults.clear()

    [task] = [ti for ti in airflow.task_instances("waits", run_id) if ti["task_id"] == "waits"]
    assert task["try_number"] == 1
    assert "not the REDUCTO_API_KEY" in airflow.log("waits", run_id, "waits")


@SHARED_STREAMS
def test_equal_queries_share_one_poll(airflow, service):
    airflow.unpause("wait_together")
    run_id = airflow.trigger("wait_together")["dag_run_id"]
    for number in range(8):
        airflow.wait_for_task("wait_together", run_id, "wait", "deferred", map_index=number, timeout=120)

    def requests():
        return [r for r in service.requests if ("orgId", "org_globex") in r.query]

    before = len(requests())
    airflow.wait_for(lambda: len(requests()) >= before + 3, 30, "three polls")
    polls = requests()[before:]
    gaps = [later.monotonic - earlier.monotonic for earlier, later in pairwise(polls)]
    assert all(gap > 1 for gap in gaps), "eight sensors, one request an interval"

    service.usage.add("org_globex", datetime.now(UTC).date(), credits=1_017_500, requests=1)
    used = service.truth("org_globex", *(datetime.now(UTC).date() - timedelta(days=n) for n in (1, 0)))
    total = sum(row.credits for row in used)
    exceeded = [number for number in range(8) if total > 1_000_000 + 5_000 * number]
    assert 0 < len(exceeded) < 8
    for number in exceeded:
        airflow.wait_for_task("wait_together", run_id, "wait", "success", map_index=number, timeout=60)
    states = airflow.task_states("wait_together", run_id)
    assert [number for number in range(8) if states["wait", number] == "success"] == exceeded
    names = {ti["rendered_map_index"] for ti in airflow.task_instances("wait_together", run_id)}
    assert "over 1005000" in names


@gone_in(3, 3, "streams that no two triggers share")
def test_before_streams_are_shared_each_polls_for_itself(airflow, service):
    airflow.unpause("wait_together")
    run_id = airflow.trigger("wait_together")["dag_run_id"]
    for number in range(8):
        airflow.wait_for_task("wait_together", run_id, "wait", "deferred", map_index=number, timeout=120)

    def requests():
        return [r for r in service.requests if ("orgId", "org_globex") in r.query]

    before = len(requests())
    airflow.wait_for(lambda: len(requests()) >= before + 24, 60, "three polls of each")
    service.usage.add("org_globex", datetime.now(UTC).date(), credits=10_000_000, requests=1)
    airflow.wait_for_run("wait_together", run_id, state="success")

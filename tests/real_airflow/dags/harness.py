"""The DAGs of the harness's own tests: one for each way in which a run comes about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.providers.standard.sensors.filesystem import FileSensor
from airflow.sdk import DAG, Asset, task

try:
    from airflow.sdk import CronPartitionTimetable
except ImportError:  # before Airflow 3.2
    CronPartitionTimetable = None

TWO_DAYS = {"start_date": datetime(2024, 1, 1, tzinfo=UTC), "end_date": datetime(2024, 1, 2, tzinfo=UTC)}
DATES = ("logical_date", "data_interval_start", "data_interval_end", "partition_date", "partition_key", "ds")


@task
def what_it_sees(**context: Any) -> dict[str, Any]:
    """What the context says of the run; a key that is absent there is absent here."""
    seen: dict[str, Any] = {name: str(context[name]) for name in DATES if context.get(name) is not None}
    events = context["triggering_asset_events"]
    seen["events"] = {asset.uri: [event.extra for event in events[asset]] for asset in events}
    return seen


with DAG("daily", schedule="@daily", catchup=True, **TWO_DAYS):
    what_it_sees()

if CronPartitionTimetable:
    day_before = CronPartitionTimetable("0 0 * * *", timezone="UTC", run_offset=-1)
    with DAG("partitioned", schedule=day_before, catchup=True, **TWO_DAYS):
        what_it_sees()

reports = Asset(name="reports", uri="s3://bucket/reports")

with DAG("producer", schedule=None):

    @task(outlets=[reports])
    def produce(*, outlet_events: Any) -> None:
        outlet_events[reports].extra = {"rows": 3}

    produce()

with DAG("consumer", schedule=[reports]):
    what_it_sees()

with DAG("manual", schedule=None):
    what_it_sees()

with DAG("mapped", schedule=None):

    @task
    def numbers(dag_run: Any) -> list[int]:
        return dag_run.conf["numbers"]

    @task
    def double(number: int) -> int:
        return 2 * number

    double.expand(number=numbers())

with DAG("deferred", schedule=None):
    FileSensor(task_id="wait", filepath="{{ dag_run.conf.path }}", poke_interval=1, deferrable=True)

with DAG("failing", schedule=None):

    @task
    def fail() -> None:
        raise ValueError("on purpose")

    fail()

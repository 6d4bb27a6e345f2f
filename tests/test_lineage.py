"""The events that OpenLineage's provider sends of the operators' tasks, run by real Airflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reducto_provider.lineage import dataset_name, usage_dataset
from simulator import Organization, status
from tests.object_storage.s3server import S3Server
from tests.real_airflow.dagtest import DagRunner, DagTestResult
from tests.real_airflow.fixtures import IMPORTABLE

DAG = """
from tests.airflow_sdk import DAG, Asset
from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator
from reducto_provider.operators.reconciliation import ReductoUsageReconciliationOperator

DAYS = dict(usage_start_date="2026-05-01", usage_end_date="2026-05-03")

with DAG("lineage", schedule=None):
    {task}
"""
KEY = "sim-key-all"


class Lineage:
    """Runs a task and reads the events of it from the file that OpenLineage's provider writes."""

    def __init__(self, home: Path, url: str) -> None:
        self._file = home / "events.jsonl"
        self._url = url
        transport = {"type": "file", "log_file_path": str(self._file), "append": True}
        # Airflow decides at its start whether it has a listener: the environment of a run would come too late.
        self.runner = DagRunner(
            home / "airflow", {**IMPORTABLE, "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport)}
        )

    def __call__(self, task: str, *, env: dict[str, str] | None = None) -> tuple[DagTestResult, list[dict[str, Any]]]:
        """Of a DAG with this task, named `task`: the result of its run, and the task's events in order."""
        self._file.unlink(missing_ok=True)
        connection = {"conn_type": "reducto", "host": self._url, "password": KEY, "extra": {"max_attempts": 1}}
        environment = {"AIRFLOW_CONN_REDUCTO_DEFAULT": json.dumps(connection), **(env or {})}
        result = self.runner.run(DAG.format(task=task), env=environment)
        self.text = self._file.read_text()
        events = [json.loads(line) for line in self.text.splitlines()]
        return result, [event for event in events if event["job"]["name"] == "lineage.task"]


@pytest.fixture(scope="module")
def _lineage(tmp_path_factory, _simulator) -> Iterator[Lineage]:
    lineage = Lineage(tmp_path_factory.mktemp("lineage"), _simulator.url)
    yield lineage
    lineage.runner.close()


@pytest.fixture
def lineage(_lineage, simulator):
    return _lineage


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


def names(datasets):
    return [(dataset["namespace"], dataset["name"]) for dataset in datasets]


def columns(dataset):
    return {field["name"]: field["type"] for field in dataset["facets"]["schema"]["fields"]}


def statistics(dataset):
    facet = dataset["outputFacets"]["outputStatistics"]
    return {name: value for name, value in facet.items() if not name.startswith("_")}


def usage(simulator, org_id="org_acme", group_by="product"):
    return simulator.url, f"/api/v1/usage/export?orgId={org_id}&groupBy={group_by}"


def test_a_dataset_is_one_folder_and_not_its_files(lineage, simulator, tmp_path):
    task = f"ReductoUsageExportOperator(task_id='task', org_id='org_acme', output_path='{tmp_path}', **DAYS)"
    result, (started, completed) = lineage(task)

    assert (started["eventType"], completed["eventType"]) == ("START", "COMPLETE")
    assert names(completed["inputs"]) == [usage(simulator)]
    assert columns(completed["inputs"][0]) == {
        "date": "string",
        "group": "string",
        "credits": "double",
        "requestCount": "bigint",
    }
    [written] = completed["outputs"]
    assert names([written]) == [("file", f"{tmp_path}/data/org_id=org_acme/group_by=product")]
    assert columns(written) == {
        "date": "date",
        "group": "string",
        "credits": "decimal(38,9)",
        "request_count": "bigint",
    }
    xcom = result.expect().xcom("task")
    size = sum(path.stat().st_size for path in Path(written["name"]).rglob("usage.jsonl"))
    assert size == sum(file["bytes"] for file in xcom["files"]) > 0
    assert statistics(written) == {"rowCount": xcom["row_count"], "size": size, "fileCount": 3}


def test_an_object_in_a_bucket(lineage, simulator, s3):
    bucket = s3.make_bucket()
    task = (
        f"ReductoUsageExportOperator(task_id='task', output_path='s3://lake@{bucket}/usage/may.parquet',"
        " output_format='parquet', partitioned=False, group_by='api_key', **DAYS)"
    )
    result, events = lineage(task, env={"AIRFLOW_CONN_LAKE": s3.connection()})

    org_id = result.expect().xcom("task")["org_id"]
    assert names(events[-1]["inputs"]) == [usage(simulator, org_id, "api_key")], "the key's own organization"
    [written] = events[-1]["outputs"]
    assert names([written]) == [(f"s3://{bucket}", "usage/may.parquet")]
    assert list(columns(written)) == ["org_id", "group_by", "date", "group", "credits", "request_count"]
    assert statistics(written)["fileCount"] == 1


def test_a_fleet_names_what_it_exported(lineage, simulator, tmp_path):
    simulator.faults.add(status(403), times=None, org="org_globex")
    task = (
        "ReductoUsageFleetExportOperator(task_id='task', organizations=['org_acme', 'org_globex'], days_per_request=1,"
        f" group_by=['product', 'api_key'], output_path='{tmp_path}', **DAYS)"
    )
    result, events = lineage(task)

    assert result.state == "failed"
    assert sorted(names(events[-1]["inputs"])) == sorted(
        usage(simulator, "org_acme", by) for by in ("product", "api_key")
    )
    assert sorted(names(events[-1]["outputs"])) == [
        ("file", f"{tmp_path}/data/org_id=org_acme/group_by={by}") for by in ("api_key", "product")
    ]


def test_an_export_to_xcom_writes_nothing(lineage, simulator):
    _, events = lineage("ReductoUsageExportOperator(task_id='task', org_id='org_acme', **DAYS)")

    assert names(events[-1]["inputs"]) == [usage(simulator)]
    assert events[-1]["outputs"] == []


def test_a_focus_object_that_can_not_be_empty_is_not_there(lineage, simulator, tmp_path):
    simulator.usage.organizations["org_idle"] = Organization("org_idle", records=())
    simulator.keys[KEY] = (*simulator.keys[KEY], "org_idle")
    task = (
        f"ReductoUsageExportOperator(task_id='task', org_id='org_idle', output_path='{tmp_path}/focus.csv',"
        " output_format='focus_csv', price_per_credit='0.015', partitioned=False, **DAYS)"
    )
    result, events = lineage(task)

    assert result.expect().xcom("task")["files"][0]["uri"] is None
    assert names(events[-1]["inputs"]) == [usage(simulator, "org_idle")]
    assert events[-1]["outputs"] == []


def test_reconciliation_reads_all_dimensions(lineage, simulator):
    _, events = lineage("ReductoUsageReconciliationOperator(task_id='task', org_id='org_acme', **DAYS)")

    dimensions = ("product", "feature", "api_key", "file_type")
    assert names(events[-1]["inputs"]) == [usage(simulator, group_by=each) for each in dimensions]
    assert events[-1]["outputs"] == []


def test_mapped_tasks_name_their_own(lineage, simulator, tmp_path):
    task = (
        f"ReductoUsageExportOperator.partial(task_id='task', output_path='{tmp_path}', **DAYS)"
        ".expand(org_id=['org_acme', 'org_globex'])"
    )
    _, events = lineage(task)

    completed = [event for event in events if event["eventType"] == "COMPLETE"]
    assert sorted(names(completed[0]["inputs"]) + names(completed[1]["inputs"])) == [
        usage(simulator, "org_acme"),
        usage(simulator, "org_globex"),
    ]
    for event in completed:
        [org_id] = [org for org in ("org_acme", "org_globex") if org in event["inputs"][0]["name"]]
        assert names(event["outputs"]) == [("file", f"{tmp_path}/data/org_id={org_id}/group_by=product")]


def test_a_failed_export_names_what_it_was_about(lineage, simulator, tmp_path):
    blocked = tmp_path / "data/org_id=org_acme/group_by=product"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder must be")
    task = f"ReductoUsageExportOperator(task_id='task', org_id='org_acme', output_path='{tmp_path}', **DAYS)"
    result, events = lineage(task)

    assert result.errors[0].type == "ReductoExportError"
    assert events[-1]["eventType"] == "FAIL"
    assert names(events[-1]["inputs"]) == [usage(simulator)]
    assert names(events[-1]["outputs"]) == [("file", str(blocked))]
    assert "outputStatistics" not in events[-1]["outputs"][0].get("outputFacets", {})


def test_a_refused_request_names_nothing(lineage, simulator, tmp_path):
    simulator.faults.add(status(403))
    task = f"ReductoUsageExportOperator(task_id='task', org_id='org_acme', output_path='{tmp_path}', **DAYS)"
    result, events = lineage(task)

    assert result.errors[0].type == "ReductoPermissionError"
    assert events[-1]["eventType"] == "FAIL"
    assert events[-1]["inputs"] == events[-1]["outputs"] == []


def test_no_secret_is_named(lineage, s3):
    bucket = s3.make_bucket()
    task = f"ReductoUsageExportOperator(task_id='task', output_path='s3://lake@{bucket}/usage', **DAYS)"
    result, _ = lineage(task, env={"AIRFLOW_CONN_LAKE": s3.connection()})

    result.expect()
    for secret in (KEY, "AKIAFORTHETESTS", "a-secret-of-the-tests"):
        assert secret not in lineage.text


@pytest.mark.parametrize(
    ("base_url", "namespace", "path"),
    [
        ("https://studio.reducto.ai", "https://studio.reducto.ai", ""),
        ("https://studio.reducto.ai:443", "https://studio.reducto.ai", ""),
        ("https://studio.reducto.ai:4443", "https://studio.reducto.ai:4443", ""),
        ("http://gateway:80/reducto", "http://gateway", "/reducto"),
    ],
)
def test_names_of_usage(base_url, namespace, path):
    dataset = usage_dataset(base_url, "org a&b", "api_key")
    assert dataset.namespace == namespace
    assert dataset.name == f"{path}/api/v1/usage/export?orgId=org%20a%26b&groupBy=api_key"


@pytest.mark.parametrize(
    ("uri", "account", "expected"),
    [
        ("file:///var/usage/data", None, ("file", "/var/usage/data")),
        ("s3://lake/usage/data", None, ("s3://lake", "usage/data")),
        ("s3a://lake/usage/data", None, ("s3://lake", "usage/data")),
        ("gs://lake/usage/data", None, ("gs://lake", "usage/data")),
        ("gcs://lake/usage/data", None, ("gs://lake", "usage/data")),
        ("abfs://lake/usage/data", "finops", ("abfss://lake@finops.dfs.core.windows.net", "usage/data")),
        ("abfss://lake/usage/data", None, ("abfss://lake", "usage/data")),
    ],
)
def test_names_of_locations(uri, account, expected):
    assert dataset_name(uri, account) == expected

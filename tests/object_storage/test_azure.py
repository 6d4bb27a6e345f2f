"""Exports to Azure Blob Storage, run by real Airflow, against Azurite: `make azure`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from datetime import date
from pathlib import Path

import pytest

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.export.one_object import UsageObject
from reducto_provider.export.storage import open_storage
from tests.object_storage.answers import answer

AZURITE = os.environ.get("AZURITE", "")
"""The program, `azurite-blob` of the npm package azurite."""

pytestmark = pytest.mark.skipif(not AZURITE, reason="AZURITE does not name azurite-blob: make azure")

ACCOUNT = "devstoreaccount1"
# Not a secret: every Azurite has this one.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--disableTelemetry"]
    process = subprocess.Popen(
        [AZURITE, *options, "--silent", "--skipApiVersionCheck"],
        cwd=tmp_path_factory.mktemp("azurite"),
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/{ACCOUNT}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def connection(endpoint):
    """An Airflow connection, by the key given or the right one."""

    def connection(key=KEY):
        text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={endpoint};"
        return json.dumps({"conn_type": "wasb", "extra": {"connection_string": text}})

    return connection


@pytest.fixture
def container(connection, monkeypatch):
    """A new container's name; the connection `lake` leads there."""
    from azure.storage.blob import BlobServiceClient

    monkeypatch.setenv("AIRFLOW_CONN_LAKE", connection())
    text = json.loads(connection())["extra"]["connection_string"]
    name = f"lake-{time.monotonic_ns()}"
    return BlobServiceClient.from_connection_string(text).create_container(name)


def blobs(container) -> dict[str, bytes]:
    return {name: container.download_blob(name).readall() for name in container.list_blob_names()}


def is_usage(name: str) -> bool:
    """Whether a file says the same whoever wrote it and when."""
    return "/metadata/org_id" not in name and not name.rpartition("/")[2].startswith(".")


def local_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("scheme", ["abfs", "abfss"])
def test_export_again_and_restated(export, container, connection, simulator, tmp_path, scheme):
    bucket = container.container_name
    days = {"output_path": f"{scheme}://lake@{bucket}/deep/usage", "output_format": "parquet"}
    one = {"output_path": f"{scheme}://{bucket}/one.csv", "output_conn_id": "lake", "output_format": "csv"}
    tasks = {"days": days, "days_again": days, "one": {**one, "partitioned": False}}
    env = {"AIRFLOW_CONN_LAKE": connection()}

    def expected():
        report, query = answer(simulator.usage, "org_acme", date(2026, 5, 1), date(2026, 5, 3))
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        UsageDataset(open_storage(f"{place}/deep/usage"), check_format("parquet"), {}).publish(report, query)
        UsageObject(open_storage(str(place)), "one.csv", check_format("csv"), {}).publish(report, query)
        return {name: content for name, content in local_files(place).items() if is_usage(name)}

    def found():
        return {name: content for name, content in blobs(container).items() if is_usage(name)}

    first = export(env=env, **tasks).expect()
    assert found() == expected()
    assert [file["changed"] for file in first.xcom("days")["files"]] == [True] * 3
    assert [file["changed"] for file in first.xcom("days_again")["files"]] == [False] * 3
    assert first.xcom("one")["files"][0]["uri"] == f"{scheme}://{bucket}/one.csv"
    assert "lake@" not in repr(first.xcoms)

    simulator.usage.restate("org_acme", date(2026, 5, 2), factor=2)
    simulator.usage.restate("org_acme", date(2026, 5, 3), factor=0)
    second = export(env=env, **tasks).expect()
    assert found() == expected()
    assert [file["changed"] for file in second.xcom("days")["files"]] == [False, True, True]


def test_a_dataset_of_another_format_is_refused(export, container, connection):
    place = {"output_path": f"abfs://lake@{container.container_name}/usage"}
    env = {"AIRFLOW_CONN_LAKE": connection()}

    result = export(env=env, first=place, second={**place, "output_format": "csv"}).expect("failed")

    [error] = result.errors
    assert (error.task_id, error.type) == ("second", "ReductoConfigurationError")


def test_what_it_takes_of_the_store(container):
    storage = open_storage(f"abfs://lake@{container.container_name}/usage")

    assert storage.read("a=%2F/b") is None
    storage.remove("a=%2F/b")
    storage.create("a=%2F/b", b"first")
    with pytest.raises(FileExistsError):
        storage.create("a=%2F/b", b"second")
    assert storage.read("a=%2F/b") == b"first"
    storage.replace("a=%2F/b", b"")
    assert list(storage.names("")) == ["a=%2F/b"]
    assert blobs(container) == {"usage/a=%2F/b": b""}
    assert storage.account == ACCOUNT


def test_refusals_are_clear_errors(export, container, connection):
    wrong = KEY[:-8] + "AAAAAA=="
    tasks = {
        "no_container": {"output_path": "abfs://lake@nowhere/usage"},
        "wrong_key": {"output_path": f"abfs://wrong@{container.container_name}/usage"},
        "unknown_id": {"output_path": f"abfs://nowhere@{container.container_name}/usage"},
    }

    result = export(env={"AIRFLOW_CONN_LAKE": connection(), "AIRFLOW_CONN_WRONG": connection(wrong)}, **tasks)

    errors = {error.task_id: error for error in result.expect("failed").errors}
    assert {name: error.type for name, error in errors.items()} == {
        "no_container": "ReductoExportError",
        "wrong_key": "ReductoExportError",
        "unknown_id": "ReductoConfigurationError",
    }
    assert "abfs://nowhere/usage" in errors["no_container"].message
    assert "The specified container does not exist" in errors["no_container"].message
    assert "Server failed to authenticate the request" in errors["wrong_key"].message
    assert "connection 'nowhere'" in errors["unknown_id"].message
    assert wrong not in result.log + repr(result.errors)
    assert KEY not in result.log
    assert blobs(container) == {}

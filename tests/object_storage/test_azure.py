"""Exports to Azure Blob Storage, run by real Airflow, against Azurite: `make azure`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time

import pytest

from reducto_provider.export.storage import open_storage
from tests.object_storage.exports import check_export_again_and_restated

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


@pytest.mark.parametrize("scheme", ["abfs", "abfss"])
def test_export_again_and_restated(export, container, connection, simulator, tmp_path, scheme):
    root = f"{scheme}://{container.container_name}"
    check_export_again_and_restated(export, simulator, tmp_path, root, connection(), lambda: blobs(container))


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

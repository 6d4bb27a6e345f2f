"""Exports to Google Cloud Storage, run by real Airflow, against an emulator: `make gcs`."""

from __future__ import annotations

import threading
from datetime import date
from functools import partial
from hashlib import md5

import pytest

from reducto_provider.export.dataset import DatasetMismatchError, UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.export.storage import open_storage
from tests.object_storage import answers
from tests.object_storage.exports import check_export_again_and_restated
from tests.threads import call_together

pytest.importorskip("gcp_storage_emulator", reason="gcp-storage-emulator is not installed: make gcs")

from tests.object_storage.gcsserver import GcsServer


@pytest.fixture(scope="module")
def server():
    server = GcsServer()
    yield server
    server.close()


@pytest.fixture
def bucket(server, monkeypatch):
    """An empty bucket; the connection `lake` leads there."""
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", server.connection())
    return server.make_bucket()


@pytest.mark.parametrize("scheme", ["gs", "gcs"])
def test_export_again_and_restated(export, server, bucket, simulator, tmp_path, scheme):
    check_export_again_and_restated(
        export, simulator, tmp_path, f"{scheme}://{bucket}", server.connection(), lambda: server.objects(bucket)
    )


def test_what_it_takes_of_the_store(server, bucket):
    storage = open_storage(f"gs://lake@{bucket}/usage")

    assert storage.read("a=%2F/b") is None
    storage.remove("a=%2F/b")
    storage.create("a=%2F/b", b"first")
    with pytest.raises(FileExistsError):
        storage.create("a=%2F/b", b"second")
    assert storage.read("a=%2F/b") == b"first"
    storage.replace("a=%2F/b", b"replaced")
    assert storage.read("a=%2F/b") == b"replaced"
    storage.replace("a=%2F/c", bytes(range(256)) * 1000)
    assert storage.read("a=%2F/c") == bytes(range(256)) * 1000
    assert list(storage.names("")) == ["a=%2F/b", "a=%2F/c"]
    listed = {name: md5(storage.read(name)).hexdigest() for name in storage.names("")}
    assert storage.md5s("", "a=") == listed
    assert storage.md5s("a=%2F", "c") == {"a=%2F/c": listed["a=%2F/c"]}
    storage.replace("a=%2F/c", b"other")
    assert storage.md5s("a=%2F", "c") == {"a=%2F/c": md5(b"other").hexdigest()}
    storage.remove("a=%2F/c")
    assert list(server.objects(bucket)) == ["usage/a=%2F/b"]
    assert storage.account is None


def test_days_that_have_not_changed_are_proven_by_a_listing(bucket, monkeypatch):
    days = answers.answer(answers.usage(), "org_acme", date(2026, 5, 1), date(2026, 5, 3))
    dataset = UsageDataset(open_storage(f"gs://lake@{bucket}/usage"), check_format("parquet"), {})
    assert all(file.written for file in dataset.publish(*days))

    storage = open_storage(f"gs://lake@{bucket}/usage")
    read, found = storage.read, []
    monkeypatch.setattr(storage, "read", lambda name="": found.append(name.rpartition("/")[2]) or read(name))
    dataset = UsageDataset(storage, check_format("parquet"), {})
    assert not any(file.written for file in dataset.publish(*days))
    assert sorted(found) == [".reported-2026", "dataset.json", "index.json"]


def test_exactly_one_of_two_first_exports_wins(server, bucket):
    days = answers.answer(answers.usage(), "org_acme", date(2026, 5, 1), date(2026, 5, 3))
    both = threading.Barrier(2)

    def export(name):
        storage = open_storage(f"gs://lake@{bucket}/usage")
        create = storage.create

        def create_together(*args):
            both.wait(timeout=30)  # neither may write before both have seen that there is none
            create(*args)

        storage.create = create_together
        try:
            return UsageDataset(storage, check_format(name), {}).publish(*days)
        except Exception as error:
            return error

    formats = ("jsonl", "csv")
    outcomes = dict(zip(formats, call_together(*(partial(export, name) for name in formats)), strict=True))
    [loser] = [name for name, outcome in outcomes.items() if isinstance(outcome, DatasetMismatchError)]
    [winner] = set(outcomes) - {loser}
    assert len(outcomes[winner]) == 3
    assert {name.rpartition(".")[2] for name in server.objects(bucket) if "/data/" in name} == {winner}


def test_refusals_are_clear_errors(export, server, bucket):
    place = {"output_path": f"gs://lake@{bucket}/usage"}
    tasks = {
        "dataset": place,
        "other_format": {**place, "output_format": "csv"},
        "no_bucket": {"output_path": "gs://lake@nowhere/usage"},
        "unknown_id": {"output_path": f"gs://nowhere@{bucket}/usage"},
    }

    result = export(env={"AIRFLOW_CONN_LAKE": server.connection()}, **tasks).expect("failed")

    errors = {error.task_id: error for error in result.errors}
    assert {name: error.type for name, error in errors.items()} == {
        "other_format": "ReductoConfigurationError",
        "no_bucket": "ReductoExportError",
        "unknown_id": "ReductoConfigurationError",
    }
    assert "gs://nowhere/usage" in errors["no_bucket"].message
    assert "connection 'nowhere'" in errors["unknown_id"].message

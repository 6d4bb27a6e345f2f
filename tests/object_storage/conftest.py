"""An S3 server, buckets, and DAGs with export tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from reducto_provider.export.storage import Storage, open_storage
from tests.object_storage import writers
from tests.object_storage.s3server import S3Server

DAG = """
from tests.airflow_sdk import DAG, chain
from reducto_provider.operators.export import ReductoUsageExportOperator

COMMON = {{"org_id": "org_acme", "usage_start_date": "2026-05-01", "usage_end_date": "2026-05-03"}}

with DAG("export", schedule=None):
    tasks = [
        ReductoUsageExportOperator(task_id=task_id, trigger_rule="all_done", **(COMMON | arguments))
        for task_id, arguments in {tasks!r}.items()
    ]
    chain(*tasks)
"""


@pytest.fixture(scope="session")
def _s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server with an empty journal, and the connection `lake` to it."""
    _s3.calls.clear()
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", _s3.connection())
    return _s3


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """An empty bucket."""
    return s3.make_bucket()


@pytest.fixture
def storage(bucket: str) -> Storage:
    """A place in the bucket, through the connection."""
    return open_storage(f"s3://lake@{bucket}/usage")


@pytest.fixture
def export(run_dag: Callable[..., Any], s3: S3Server) -> Callable[..., Any]:
    """Run a DAG whose tasks export one after the other, three days of `org_acme`: ``export(task_id={arguments})``."""

    def run(*, env: dict[str, str] | None = None, **tasks: dict[str, Any]) -> Any:
        return run_dag(DAG.format(tasks=tasks), env={"AIRFLOW_CONN_LAKE": s3.connection(), **(env or {})}, timeout=120)

    return run


@pytest.fixture
def started() -> Iterator[Callable[..., BaseProcess]]:
    """Start a function of `writers` in a process of its own; none outlives the test."""
    processes: list[BaseProcess] = []

    def start(function: Callable[..., Any], *arguments: Any, **options: Any) -> BaseProcess:
        processes.append(writers.started(function, *arguments, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def prepared(started: Callable[..., BaseProcess]) -> Callable[..., list[tuple[BaseProcess, Connection]]]:
    """Start writers that are given a pipe, and wait until they are ready: each begins when it receives something."""

    def prepare(*each: Any, environment: dict[str, str] | None = None) -> list[tuple[BaseProcess, Connection]]:
        waiting = []
        for function, *arguments in each:
            ours, theirs = Pipe()
            waiting.append((started(function, *arguments, theirs, environment=environment), ours))
        for _, ours in waiting:
            ours.recv()
        return waiting

    return prepare


@pytest.fixture
def together(prepared: Callable[..., list[tuple[BaseProcess, Connection]]]) -> Callable[..., None]:
    """Start writers, let them go at once, and wait until all have succeeded."""

    def run(*each: Any, environment: dict[str, str] | None = None) -> None:
        waiting = prepared(*each, environment=environment)
        for _, ours in waiting:
            ours.send("go")
        for writer, _ in waiting:
            writer.join()
        assert [writer.exitcode for writer, _ in waiting] == [0] * len(waiting)

    return run


@pytest.fixture
def clock(tmp_path: Path) -> str:
    """The service of `writers.export_current_usage`."""
    path = tmp_path / "clock"
    path.write_text("0")
    return str(path)

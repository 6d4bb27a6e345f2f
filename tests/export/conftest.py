"""Reports as they come from the service, and places to write them to."""

from __future__ import annotations

import json
import multiprocessing
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from reducto_provider.export.storage import Storage, open_storage
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport
from reducto_provider.usage.wire import decode_report
from tests.airflow_sdk import ObjectStoragePath
from tests.airflows import attach_store


@dataclass(frozen=True)
class Export:
    """A report and its query."""

    query: UsageQuery
    report: UsageReport


@pytest.fixture
def make_export() -> Callable[..., Export]:
    """
    An answer whose rows are ``(day, group, credits, requests)``, credits as JSON text, and maybe a dict of unknown
    keys. The range is that of the rows unless ``start`` and ``end`` say otherwise.
    """

    def make(*usage: Any, org_id: str = "org_abc123", start: str = "", end: str = "", **fields: Any) -> Export:
        days = [day for day, *_ in usage]
        query = UsageQuery(
            start=date.fromisoformat(start or min(days)), end=date.fromisoformat(end or max(days)), **fields
        )
        rows = [
            f'{{"date":"{day}","group":{json.dumps(group)},"credits":{credits},"requestCount":{requests}'
            + "".join(f",{json.dumps(name)}:{json.dumps(value)}" for each in more for name, value in each.items())
            + "}"
            for day, group, credits, requests, *more in usage
        ]
        body = (
            f'{{"orgId":{json.dumps(org_id)},"startDate":"{query.start}","endDate":"{query.end}",'
            f'"groupBy":"{query.group_by}","data":[{",".join(rows)}]}}'
        )
        return Export(query, decode_report(body.encode(), query))

    return make


class Place:
    """A location to write to, and a reader independent of the writer."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def storage(self) -> Storage:
        return open_storage(self.url)

    def files(self) -> dict[str, bytes]:
        """Return all files, by name."""
        root = ObjectStoragePath(self.url)
        base = root.path.rstrip("/")
        return {
            path.removeprefix(f"{base}/"): root.fs.cat_file(path)
            for path in root.fs.find(base)
            if path.startswith(f"{base}/")
        }

    def data(self) -> dict[str, bytes]:
        """Return the files with usage, by name."""
        return {name: content for name, content in self.files().items() if name.startswith("data/")}

    def put(self, name: str, content: bytes) -> None:
        """Write a foreign file."""
        path = ObjectStoragePath(f"{self.url}/{name}")
        path.fs.makedirs(path.path.rpartition("/")[0], exist_ok=True)
        path.fs.pipe_file(path.path, content)


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A local folder, and fsspec's memory in the place of an object store."""
    if request.param == "file":
        return Place(f"file://{tmp_path}/usage")
    attach_store("memory", fs=MemoryFileSystem())
    return Place(f"memory://{uuid4().hex}/usage")


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    """A local folder."""
    return Place(f"file://{tmp_path}/usage")


@pytest.fixture
def small_files() -> Callable[[int], AbstractContextManager[None]]:
    """Limit the size of files, as on a full disk."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def forked() -> Iterator[Callable[..., BaseProcess]]:
    """Call a function in its own process, which will be killed."""
    processes: list[BaseProcess] = []

    def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
        process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()

"""Exports in processes of their own, to be killed or to meet each other.

They are forked from a server that has imported this module, and with it all that is slow, but started no thread.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from fcntl import LOCK_EX, flock
from itertools import count, cycle, islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import deltalake  # noqa: F401
import pyarrow.compute  # noqa: F401
import s3fs  # noqa: F401

from reducto_provider.airflow_compat import BaseHook  # noqa: F401
from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.delta.sink import UsageTable  # noqa: F401
from reducto_provider.export.delta.table import UsageDeltaTable
from reducto_provider.export.delta.upkeep import compact
from reducto_provider.export.formats import check_format
from reducto_provider.export.sink import OutdatedReportError, open_sink
from reducto_provider.export.storage import open_storage
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport
from tests.airflows import has_file_system
from tests.object_storage.answers import decoded

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])

Answers = Sequence[tuple[UsageReport, UsageQuery]]

has_file_system("s3")  # looks for Airflow's file systems, which takes its time


def started(function: Any, *arguments: Any, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """A process that calls a function of this module."""
    process = _FORKS.Process(target=_run, args=(dict(environment or {}), function, arguments))
    process.start()
    return process


def export(url: str, format: str, answers: Answers, times: int = 1) -> None:
    """Publish ``times`` answers, one after the other."""
    dataset = UsageDataset(open_storage(url), check_format(format), {})
    for report, query in islice(cycle(answers), times):
        dataset.publish(report, query)


def export_on_command(url: str, format: str, answers: Answers, connection: Connection) -> None:
    """Prepare, signal readiness, and export on command."""
    storage = open_storage(url)
    storage.read("nothing")  # the first request of a store's client takes its time
    connection.send("ready")
    connection.recv()
    for report, query in answers:
        UsageDataset(storage, check_format(format), {}).publish(report, query)


def export_and_die(url: str, format: str, answers: Answers, step: int) -> None:
    """Publish, and be killed just before operation number ``step`` on a file or folder."""
    steps = iter(range(step))

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.link", "os.remove") and next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    export(url, format, answers, len(answers))


def export_current_usage(
    url: str, org_id: str, days: tuple[date, date], clock: str, times: int, ready: Connection
) -> None:
    """
    Export the current usage ``times`` times into a Delta table, as a task does: request again if others were faster.

    The service is the file ``clock``: each answer's credits are the number of the request.
    """
    query = UsageQuery(start=days[0], end=days[1], org_id=org_id)
    ready.send("ready")
    ready.recv()
    for _ in range(times):
        sink = open_sink(url, None, check_format("delta"), {})
        sink.check(query)
        for request in count():
            try:
                sink.publish(current_answer(query, clock), query, f"run-of-{os.getpid()}")
                break
            except OutdatedReportError:
                assert request < 50


def current_answer(query: UsageQuery, clock: str) -> UsageReport:
    """Return the answer to the next request, which is newer than all others."""
    with Path(clock).open("r+") as file:
        flock(file, LOCK_EX)
        number = int(file.read()) + 1
        file.seek(0)
        file.write(str(number))
    rows = [
        {"date": str(day), "group": f"group-{group}", "credits": number, "requestCount": number}
        for day in DayRange(query.start, query.end).days()
        for group in range(3)
    ]
    return decoded(query, rows)[0]


def compact_again_and_again(url: str, days: tuple[date, date], times: int, ready: Connection) -> None:
    """Compact the same days of a Delta table, while others may replace them."""
    ready.send("ready")
    ready.recv()
    for _ in range(times):
        table = UsageDeltaTable.open(url, {}, url)
        assert table is not None
        compact(table, "product", DayRange(*days))


def export_table_on_command(url: str, answers: Answers, ready: Connection) -> None:
    """Prepare, signal readiness, and export one answer after the other into a Delta table on command."""
    ready.send("ready")
    ready.recv()
    for report, query in answers:
        sink = open_sink(url, None, check_format("delta"), {})
        sink.check(query)
        sink.publish(report, query)


def _run(environment: dict[str, str], function: Any, arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    function(*arguments)

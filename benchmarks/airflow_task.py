"""Measure an export in Airflow end to end: one task of ours, or HttpOperator and a task that writes the file."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.measuring import PROJECT, Rounds, Sample, check_equal
from benchmarks.section import Result, Section, Size, seconds
from simulator import Simulator
from tests.real_airflow.dagtest import DagRunner

ORG: Final = "org_hooli"
FIRST, LAST = date(2025, 1, 1), date(2025, 12, 31)
GROUP_BY: Final = "feature"

OURS: Final = f"""
from datetime import datetime
from airflow.sdk import DAG
from reducto_provider.operators.export import ReductoUsageExportOperator

with DAG("export", schedule=None, start_date=datetime(2026, 1, 1)):
    ReductoUsageExportOperator(
        task_id="export", org_id="{ORG}", usage_start_date="{FIRST}", usage_end_date="{LAST}", group_by="{GROUP_BY}",
        output_path=PATH, output_format="parquet", partitioned=False,
    )
"""
THEIRS: Final = f"""
from datetime import datetime
from airflow.providers.http.operators.http import HttpOperator
from airflow.sdk import DAG, task

with DAG("export", schedule=None, start_date=datetime(2026, 1, 1)):
    @task
    def write(body):
        import json
        import pandas

        answer = json.loads(body)
        frame = pandas.DataFrame(answer["data"]).rename(columns={{"requestCount": "request_count"}})
        frame["date"] = pandas.to_datetime(frame["date"], format="%Y-%m-%d")
        frame.insert(0, "group_by", answer["groupBy"])
        frame.insert(0, "org_id", answer["orgId"])
        frame.to_parquet(PATH, index=False, compression="zstd")

    get = HttpOperator(
        task_id="get", http_conn_id="usage_service", method="GET", endpoint="api/v1/usage/export",
        data={{"orgId": "{ORG}", "startDate": "{FIRST}", "endDate": "{LAST}", "groupBy": "{GROUP_BY}"}},
    )
    write(get.output)
"""

NOTHING: Final = """
from datetime import datetime
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

with DAG("nothing", schedule=None, start_date=datetime(2026, 1, 1)):
    EmptyOperator(task_id="nothing")
"""


HOW: Final = """
`DAG.test` runs a DAG on a real Airflow, in a process that has loaded Airflow, from the parsing of the file to the end
of the run, against the simulator: a year of one organization by feature, {rows:,} rows, into one Parquet file with
zstd. Ours is one `ReductoUsageExportOperator` with `partitioned=False`; theirs an `HttpOperator` and a `@task` that
makes a `pandas.DataFrame` of its XCom and writes it. `DAG.test` runs tasks inline: in real processes theirs would start
a second worker process. Requests are counted in the simulator's log, XComs in the database. Both files are compared
with the simulator's figures.
"""


def section(size: Size) -> Section:
    """Measure one export in Airflow."""
    rounds = compare(size.rounds)
    against = "`HttpOperator` and a `@task` that writes the file"
    what = "one export task end to end in Airflow"

    def count(name: str, what_of_it: str, why: str) -> Result:
        ours, theirs = rounds.our(name), rounds.their(name)
        return Result(
            what=f"{what}: {what_of_it}",
            against=against,
            aim="fewer",
            ours=f"{ours:,.0f}",
            theirs=f"{theirs:,.0f}",
            value=ours,
            limit=theirs - 1,
            unit=f"{ours / theirs:.3g} times",
            why=why,
        )

    return Section(
        title="One export in Airflow",
        how=HOW.format(rows=int(rounds.our("rows"))),
        results=[
            Result(
                what=what,
                against=against,
                aim="no slower",
                ours=f"{seconds(rounds.our('wall'))} (CPU: {seconds(rounds.our('cpu'))})",
                theirs=f"{seconds(rounds.their('wall'))} (CPU: {seconds(rounds.their('cpu'))})",
                value=rounds.ratio("wall"),
                limit=1.0,
                at_least=True,
                unit="{:.2f} times as fast",
            ),
            count("requests", "requests", "Both make one request, which is the minimum."),
            count("xcom", "bytes of XCom", ""),
        ],
    )


@contextmanager
def airflow() -> Iterator[DagRunner]:
    """Yield a process that has loaded Airflow and forks for every DAG run."""
    with tempfile.TemporaryDirectory(prefix="reducto-bench-") as home:
        runner = DagRunner(Path(home), {"PYTHONPATH": str(PROJECT)})
        try:
            runner.run(NOTHING, timeout=120).expect()  # waits until it is ready
            yield runner
        finally:
            runner.close()


def connections(url: str, **extra: Any) -> dict[str, str]:
    """Return both sides' connections to the simulator as environment variables."""
    ours = {"conn_type": "reducto", "host": url, "password": "sim-key-all", "extra": extra}
    theirs = {"conn_type": "http", "host": url, "extra": {"Authorization": "Bearer sim-key-all"}}
    return {
        "AIRFLOW_CONN_REDUCTO_DEFAULT": json.dumps(ours),
        "AIRFLOW_CONN_USAGE_SERVICE": json.dumps(theirs),
    }


def compare(rounds: int) -> Rounds:
    """
    Run both DAGs in turns, and measure time, requests and bytes of XCom.

    :raises WrongOutputError: if a file does not have the simulator's figures.
    """
    with Simulator() as simulator, airflow() as runner:
        truth = simulator.truth(ORG, FIRST, LAST, GROUP_BY)

        def take(source: str, credits_of: type[Decimal] | type[float]) -> Sample:
            with tempfile.TemporaryDirectory(prefix="reducto-bench-") as folder:
                path = Path(folder, "usage.parquet")
                simulator.journal.clear()
                worker = psutil.Process(runner._process.pid)
                cpu, wall = _cpu_of_forks(worker), time.perf_counter()
                dag = source.replace("PATH", repr(str(path)))
                result = runner.run(dag, env=connections(simulator.url), timeout=120).expect()
                wall, cpu = time.perf_counter() - wall, _cpu_of_forks(worker) - cpu
                found = _rows(path)
            expected = [(row.date, row.group, credits_of(row.credits), row.requests) for row in truth]
            if credits_of is float:  # the service's sums have noise
                found = [(day, group, round(credits, 9), count) for day, group, credits, count in found]
            check_equal(found, expected, "the file")
            return {
                "wall": wall,
                "cpu": cpu,
                "requests": len(simulator.requests),
                "xcom": sum(len(json.dumps(value)) for value in result.xcoms.values()),
                "rows": len(truth),
            }

        return Rounds(rounds, lambda: take(OURS, Decimal), lambda: take(THEIRS, float))


def _cpu_of_forks(worker: psutil.Process) -> float:
    """Return the CPU seconds of the worker's finished forks."""
    times = worker.cpu_times()
    return float(times.children_user + times.children_system)


def _rows(path: Path) -> list[tuple[Any, ...]]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    check_equal(
        table.schema.names, ["org_id", "group_by", "date", "group", "credits", "request_count"], "the file's columns"
    )
    days = [getattr(day, "date", lambda day=day: day)() for day in table["date"].to_pylist()]
    columns = [table[name].to_pylist() for name in ("group", "credits", "request_count")]
    return list(zip(days, *columns, strict=True))

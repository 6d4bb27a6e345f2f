"""Measure how close a thousand organizations on a connection of ten requests a second come to that limit."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from benchmarks.airflow_task import airflow, connections
from benchmarks.measuring import Sample, check, check_equal
from benchmarks.section import Result, Section, Size
from simulator import Organization, Simulator, Workload
from tests.real_airflow.dagtest import DagRunner

PER_SECOND: Final = 10
FIRST, LAST = date(2026, 6, 1), date(2026, 6, 7)
LATENESS: Final = 0.5
"""Seconds by which a request may seem early on a busy machine, since the simulator logs others late."""

DAG: Final = f"""
from datetime import datetime
from airflow.sdk import DAG
from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator

with DAG("fleet", schedule=None, start_date=datetime(2026, 1, 1)):
    ReductoUsageFleetExportOperator(
        task_id="export", organizations=ORGANIZATIONS, output_path=PATH,
        usage_start_date="{FIRST}", usage_end_date="{LAST}",
    )
"""


HOW: Final = """
One `ReductoUsageFleetExportOperator` for {organizations:,} organizations, seven days of each, against the simulator,
with `requests_per_second` of the connection at 10 and default settings otherwise; measured once, since the limit
determines the time. The figure is the whole `DAG.test` run. No request may reach the simulator too early, each
organization is queried exactly once, and all files are compared with the simulator's figures.
"""


def section(size: Size) -> Section:
    """Measure a fleet at its limit."""
    sample = run(size.organizations)
    limit = sample["limit"]
    return Section(
        title="A fleet at the limit of its connection",
        how=HOW.format(organizations=size.organizations),
        results=[
            Result(
                what=f"{size.organizations:,} organizations at {PER_SECOND} requests a second",
                against=f"the limit itself, {limit:.0f} s",
                aim="within 5 %",
                ours=f"{sample['wall']:.1f} s (first to last request: {sample['requests wall']:.1f} s)",
                theirs=f"{limit:.1f} s",
                value=sample["wall"] / limit - 1,
                limit=0.05,
                unit="{:+.1%}",
                why="The run's own time in Airflow is in it.",
            )
        ],
    )


def organizations(count: int) -> list[Organization]:
    """Return ``count`` different organizations."""
    return [
        Organization(
            f"org_{number:04}",
            [
                Workload("parse", "standard", "prod", "pdf", 20 + number % 31, 3, Decimal(1)),
                Workload("classify", "label", "prod", "pdf", 5 + number % 7, 1, Decimal("0.1")),
                Workload("classify", "label", "test", "png", 3, 2, Decimal("0.1"), active=0.5),
            ],
            weekend=number % 3 / 2,
        )
        for number in range(count)
    ]


def run(count: int) -> Sample:
    """
    Export ``count`` organizations.

    :raises WrongOutputError: if a file does not have the simulator's figures, or a request came too early.
    """
    fleet = organizations(count)
    with Simulator(fleet) as simulator, airflow() as runner:
        return _take(simulator, runner, [each.id for each in fleet])


def _take(simulator: Simulator, runner: DagRunner, organizations: list[str]) -> Sample:
    simulator.journal.clear()
    with tempfile.TemporaryDirectory(prefix="reducto-bench-") as folder:
        dag = DAG.replace("PATH", repr(folder)).replace("ORGANIZATIONS", repr(organizations))
        env = connections(simulator.url, requests_per_second=PER_SECOND)
        wall = time.perf_counter()
        result = runner.run(dag, env=env, timeout=60 + 3 * len(organizations) / PER_SECOND).expect()
        wall = time.perf_counter() - wall
        found = _rows(Path(folder))
    summary = json.loads(result.xcom("export")) if isinstance(result.xcom("export"), str) else result.xcom("export")
    check_equal((summary["exported"], summary["failed"]), (len(organizations), 0), "exported and failed")
    for org in organizations:
        truth = [(row.date, row.group, row.credits, row.requests) for row in simulator.truth(org, FIRST, LAST)]
        check_equal(found[org], truth, f"the files of {org}")
    arrivals = sorted(request.monotonic for request in simulator.requests)
    check_equal(len(arrivals), len(organizations), "the number of requests")
    early = max((number / PER_SECOND - (at - arrivals[0]) for number, at in enumerate(arrivals)), default=0.0)
    check(early < LATENESS, f"a request came {early:.2f} s before its time")
    return {"wall": wall, "requests wall": arrivals[-1] - arrivals[0], "limit": len(organizations) / PER_SECOND}


def _rows(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of the files by organization, in the order of the days."""
    found = defaultdict(list)
    for path in sorted((folder / "data").glob("org_id=*/group_by=product/dt=*/usage.jsonl")):
        org, day = path.parts[-4].removeprefix("org_id="), date.fromisoformat(path.parts[-2].removeprefix("dt="))
        with path.open() as file:
            for line in file:
                row = json.loads(line, parse_float=Decimal)
                check_equal(row["date"], day.isoformat(), f"the day of a row in {path}")
                found[org].append((day, row["group"], row["credits"], row["request_count"]))
    return found

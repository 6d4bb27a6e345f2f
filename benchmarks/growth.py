"""
Measure how time and memory grow with the rows, the organizations and the days of an export.

Each point is an operator's ``execute`` in a separate process, against the simulator over a socket, after a small
warm-up.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, Final

from aiohttp import web

from benchmarks.airflow_task import connections
from benchmarks.answers import FIRST, ORG, make_answer
from benchmarks.fleet import organizations
from benchmarks.measuring import PROJECT, Sample, check_equal, in_a_process, measured
from simulator import Fault, Reply, Simulator
from simulator.faults import Answer as FaultAnswer

PICTURE: Final = PROJECT / "docs/benchmarks-growth.png"

SIZES: Final[Mapping[str, Sequence[int]]] = {
    "rows": (1_000, 10_000, 100_000, 300_000, 1_000_000),
    "rows in parts": (1_000, 10_000, 100_000, 300_000, 1_000_000),
    "organizations": (1, 10, 100, 1_000),
    "days": (1, 10, 100, 1_000, 3_650),
}
SMALL_SIZES: Final[Mapping[str, Sequence[int]]] = {
    "rows": (100, 1_000),
    "rows in parts": (1_000, 40_000),
    "organizations": (1, 5),
    "days": (1, 10),
}
MAX_ROUNDS: Final = 2
GROUPS_A_DAY: Final = 10
DAYS_OF_ROWS: Final = 100
ROWS_A_DAY: Final = 1_000
DAYS_A_PART: Final = 31
FLEET_DAY: Final = date(2026, 6, 3)

Curve = list[tuple[int, Sample]]
"""Sizes and the medians of their measurements."""


def curves(sizes: Mapping[str, Sequence[int]], rounds: int) -> dict[str, Curve]:
    """
    Return the curve of each axis by its name.

    :raises WrongOutputError: if a file does not have the exact figures.
    """
    found: dict[str, dict[int, list[Sample]]] = {axis: {size: [] for size in of_it} for axis, of_it in sizes.items()}
    for _ in range(rounds):
        for axis, of_it in sizes.items():
            for size in of_it:
                found[axis][size].append(TAKERS[axis](size))
    return {
        axis: [
            (size, {name: median(s[name] for s in samples) for name in samples[0]}) for size, samples in points.items()
        ]
        for axis, points in found.items()
    }


def take_rows(count: int) -> Sample:
    """Export one response with ``count`` rows into one Parquet file."""
    import pyarrow.parquet as pq

    answer = make_answer(min(count, DAYS_OF_ROWS), max(1, count // DAYS_OF_ROWS))
    with Simulator() as simulator, tempfile.TemporaryDirectory(prefix="reducto-bench-") as folder:
        simulator.faults.add(Reply(200, answer.body), times=None)
        path = Path(folder, "usage.parquet")
        last = answer.query.end
        sample = _execute(simulator.url, path, str(answer.query.start), str(last), "parquet", partitioned=False)
        columns = [pq.ParquetFile(path).read([name])[name].to_pylist() for name in ("date", "group", "credits")]
    rows = list(zip(*columns, strict=True))
    check_equal(rows, [row[:3] for row in answer.rows], f"a file of {count} rows")
    return sample


@dataclass(frozen=True)
class Prepared(Fault):
    """Responses by the first day of the query."""

    bodies: Mapping[str, bytes]

    async def play(self, request: web.Request, answer: FaultAnswer) -> web.StreamResponse:
        return web.Response(body=self.bodies[request.query["startDate"]], content_type="application/json")


def take_parts(count: int) -> Sample:
    """Export ``count`` rows of one organization in parts, with a Parquet file and a manifest per day."""
    import pyarrow.parquet as pq

    days = max(1, count // ROWS_A_DAY)
    firsts = [FIRST + timedelta(days=number) for number in range(0, days, DAYS_A_PART)]
    last = FIRST + timedelta(days=days - 1)
    parts = [
        make_answer(min(DAYS_A_PART, (last - first).days + 1), min(count, ROWS_A_DAY), first=first) for first in firsts
    ]
    with Simulator() as simulator, tempfile.TemporaryDirectory(prefix="reducto-bench-") as folder:
        simulator.faults.add(Prepared({str(part.query.start): part.body for part in parts}), times=None)
        options = {"organizations": [ORG], "group_by": "api_key", "days_per_request": DAYS_A_PART}
        sample = _execute(simulator.url, Path(folder), str(FIRST), str(last), "parquet", **options)
        check_equal(len(simulator.requests), len(parts), "the number of requests")
        for part in parts:
            for day, rows in groupby(part.rows, lambda row: row.date):
                path = Path(folder, f"data/org_id={ORG}/group_by=api_key/dt={day}/usage.parquet")
                table = pq.ParquetFile(path).read()
                found = [table[name].to_pylist() for name in ("date", "group", "credits", "request_count")]
                check_equal(list(zip(*found, strict=True)), [row[:4] for row in rows], f"the file of {day}")
    return sample


def take_days(count: int) -> Sample:
    """Export one response with ``count`` days, with a file and a manifest for each."""
    answer = make_answer(count, GROUPS_A_DAY)
    with Simulator() as simulator, tempfile.TemporaryDirectory(prefix="reducto-bench-") as folder:
        simulator.faults.add(Reply(200, answer.body), times=None)
        last = FIRST + timedelta(days=count - 1)
        sample = _execute(simulator.url, Path(folder), str(FIRST), str(last), "jsonl", partitioned=True)
        for number in range(count):
            day = FIRST + timedelta(days=number)
            path = Path(folder, f"data/org_id={ORG}/group_by=api_key/dt={day}/usage.jsonl")
            rows = [json.loads(line, parse_float=str) for line in path.read_text().splitlines()]
            expected = answer.rows[number * GROUPS_A_DAY : (number + 1) * GROUPS_A_DAY]
            check_equal(
                [(row["group"], float(row["credits"]), row["request_count"]) for row in rows],
                [(row.group, float(row.credits), row.request_count) for row in expected],
                f"the file of {day}",
            )
    return sample


def take_organizations(count: int) -> Sample:
    """Export a day of ``count`` organizations with the default concurrency."""
    fleet = organizations(count)
    with Simulator(fleet) as simulator, tempfile.TemporaryDirectory(prefix="reducto-bench-") as folder:
        names = [each.id for each in fleet]
        sample = _execute(simulator.url, Path(folder), str(FLEET_DAY), str(FLEET_DAY), "jsonl", organizations=names)
        for name in names:
            path = Path(folder, f"data/org_id={name}/group_by=product/dt={FLEET_DAY}/usage.jsonl")
            text = path.read_text() if path.exists() else ""  # a day without usage has no file
            rows = [json.loads(line, parse_float=str) for line in text.splitlines()]
            check_equal(
                [(row["group"], float(row["credits"]), row["request_count"]) for row in rows],
                [(r.group, float(r.credits), r.requests) for r in simulator.truth(name, FLEET_DAY, FLEET_DAY)],
                f"the file of {name}",
            )
    return sample


TAKERS: Final = {
    "rows": take_rows,
    "rows in parts": take_parts,
    "organizations": take_organizations,
    "days": take_days,
}


def _execute(url: str, path: Path, first: str, last: str, output_format: str, **options: Any) -> Sample:
    arguments = {
        "output_path": str(path),
        "output_format": output_format,
        "usage_start_date": first,
        "usage_end_date": last,
        **options,
    }
    with tempfile.TemporaryDirectory(prefix="reducto-bench-") as home:
        env = {"AIRFLOW_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR", **connections(url)}
        sample: Sample = in_a_process(__name__, json.dumps(arguments), env=env)
    return sample


def main(arguments: dict[str, Any]) -> None:
    """Execute an operator, and print the measurement."""
    from reducto_provider.operators.export import ReductoUsageExportOperator
    from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator

    ti = SimpleNamespace(dag_id="growth", run_id="run", task_id="export", map_index=-1, max_tries=0, try_number=1)
    context: Any = {"ti": ti, "dag_run": SimpleNamespace(clear_number=0)}

    def operator(**others: Any) -> Any:
        if "organizations" in arguments:
            return ReductoUsageFleetExportOperator(task_id="export", **{**arguments, **others})
        dimension = {"org_id": ORG, "group_by": "api_key", "max_xcom_bytes": 2**30}
        return ReductoUsageExportOperator(task_id="export", **{**dimension, **arguments, **others})

    from reducto_provider.export.formats import check_format

    check_format(arguments["output_format"]).encode([], {})  # loads what it needs
    try_out = operator()
    try_out.hook.settings  # noqa: B018  # likewise
    sample: Sample = {}
    with measured(sample):
        operator().execute(context)
    print("\n" + json.dumps(sample))


def draw(found: Mapping[str, Curve]) -> None:
    """Draw the curves for the documentation."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    mpl.rcParams.update({"grid.alpha": 0.25, "axes.titlesize": 9, "xtick.minor.visible": False})
    from matplotlib import pyplot as plt

    figure, plots = plt.subplots(2, len(found), figsize=(11, 4.4), sharex="col", layout="constrained")
    for column, (axis, curve) in enumerate(found.items()):
        sizes = [size for size, _ in curve]
        above, below = plots[0][column], plots[1][column]
        title, per_second, label = LABELS[axis]
        for name, clock in (("cpu", "processor"), ("wall", "clock")):
            style, color = ("o-", "#5b4fc4") if name == "cpu" else ("o:", "#a79fe0")
            above.plot(sizes, [s[name] / size * per_second for size, s in curve], style, color=color, label=clock, ms=4)
        below.plot(sizes, [s["added"] / 2**20 for _, s in curve], "o-", color="#c4574f", ms=4)
        above.set(title=title, ylabel=label, yscale="log")
        least, most = above.get_ylim()
        above.set_ylim(10 ** math.floor(math.log10(least)), 10 ** math.ceil(math.log10(most)))
        above.yaxis.set_major_formatter("{x:g}")
        below.set(xlabel=axis, ylabel="MiB at the peak", xscale="log")
        below.set_ylim(0, max(LEAST_MIB_SHOWN, below.get_ylim()[1]))
    plots[0][0].legend(frameon=False)
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})
    plt.close(figure)


LABELS: Final = {
    "rows": ("one answer, one Parquet file", 1e6, "µs a row"),
    "rows in parts": ("31 days an answer, a file a day", 1e6, "µs a row"),
    "organizations": ("a fleet, a day of each", 1e3, "ms an organization"),
    "days": ("one answer, a file a day", 1e3, "ms a day"),
}
LEAST_MIB_SHOWN: Final = 100
"""Keeps a MiB more or less from looking like growth."""


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""
Measure how time and memory grow with the rows, the organizations and the days of an export.

Each point is an operator's ``execute`` in a separate process, against the simulator over a socket, after a small
warm-up.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from aiohttp import web

from benchmarks.airflow_task import connections
from benchmarks.answers import FIRST, ORG, Answer, make_answer
from benchmarks.fleet import organizations
from benchmarks.measuring import PROJECT, Sample, check_equal, in_a_process, measured
from benchmarks.places import WARM_UP_NAME, Place, bucket, folder
from simulator import Fault, Reply, Simulator
from simulator.faults import Answer as FaultAnswer

PICTURE: Final = PROJECT / "docs/benchmarks-growth.png"

IN_S3: Final = ", S3"

SIZES: Final[Mapping[str, Sequence[int]]] = {
    "rows": (1_000, 10_000, 100_000, 300_000, 1_000_000),
    "rows in parts": (1_000, 10_000, 100_000, 300_000, 1_000_000),
    "organizations": (1, 10, 100, 1_000),
    "days": (1, 10, 100, 1_000, 3_650),
    f"organizations{IN_S3}": (1, 10, 100, 1_000),
    f"days{IN_S3}": (1, 10, 100, 1_000, 3_650),
}
SMALL_SIZES: Final[Mapping[str, Sequence[int]]] = {
    "rows": (100, 1_000),
    "rows in parts": (1_000, 40_000),
    "organizations": (1, 5),
    "days": (1, 10),
    f"organizations{IN_S3}": (1, 5),
    f"days{IN_S3}": (1, 10),
}
MAX_ROUNDS: Final = 1
GROUPS_A_DAY: Final = 10
DAYS_OF_ROWS: Final = 100
ROWS_A_DAY: Final = 1_000
DAYS_A_PART: Final = 31
FLEET_DAY: Final = date(2026, 6, 3)

FILE: Final = re.compile(r"data/org_id=([^/]+)/group_by=([^/]+)/dt=([^/]+)/usage\.jsonl")

Where = Callable[[], AbstractContextManager[Place]]

Usage = dict[tuple[str, str, date], list[tuple[str | None, Decimal | None, int]]]
"""Groups, credits and requests by organization, dimension and day."""

Curve = list[tuple[int, Sample]]
"""Sizes and the least figures of their measurements."""


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
        axis: [(size, {name: min(s[name] for s in samples) for name in samples[0]}) for size, samples in points.items()]
        for axis, points in found.items()
    }


def take_rows(count: int) -> Sample:
    """Export one response with ``count`` rows into one Parquet file."""
    import pyarrow.parquet as pq

    answer = make_answer(min(count, DAYS_OF_ROWS), max(1, count // DAYS_OF_ROWS))
    with Simulator() as simulator, folder() as place:
        simulator.faults.add(Reply(200, answer.body), times=None)
        path, days = Path(place.location, "usage.parquet"), (answer.query.start, answer.query.end)
        sample = execute(simulator.url, place, days, output_path=str(path), output_format="parquet", partitioned=False)
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
    with Simulator() as simulator, folder() as place:
        simulator.faults.add(Prepared({str(part.query.start): part.body for part in parts}), times=None)
        options = {"organizations": [ORG], "group_by": "api_key", "days_per_request": DAYS_A_PART}
        sample = execute(simulator.url, place, (FIRST, last), output_format="parquet", **options)
        check_equal(len(simulator.requests), len(parts), "the number of requests")
        for part in parts:
            for day, rows in groupby(part.rows, lambda row: row.date):
                path = Path(place.location, f"data/org_id={ORG}/group_by=api_key/dt={day}/usage.parquet")
                table = pq.ParquetFile(path).read()
                found = [table[name].to_pylist() for name in ("date", "group", "credits", "request_count")]
                check_equal(list(zip(*found, strict=True)), [row[:4] for row in rows], f"the file of {day}")
    return sample


def take_days(count: int, where: Where) -> Sample:
    """Export one response with ``count`` days, with a file and a manifest for each."""
    answer = make_answer(count, GROUPS_A_DAY)
    with Simulator() as simulator, where() as place:
        simulator.faults.add(Reply(200, answer.body), times=None)
        sample = execute(simulator.url, place, (FIRST, answer.query.end))
        check_files(place, _by_day(answer))
    return sample


def take_organizations(count: int, where: Where) -> Sample:
    """Export a day of ``count`` organizations with the default concurrency."""
    fleet = organizations(count)
    with Simulator(fleet) as simulator, where() as place:
        names = [each.id for each in fleet]
        sample = execute(simulator.url, place, (FLEET_DAY, FLEET_DAY), organizations=names)
        check_organizations(place, simulator, names, (FLEET_DAY, FLEET_DAY))
    return sample


TAKERS: Final[Mapping[str, Callable[[int], Sample]]] = {
    "rows": take_rows,
    "rows in parts": take_parts,
    "organizations": partial(take_organizations, where=folder),
    "days": partial(take_days, where=folder),
    f"organizations{IN_S3}": partial(take_organizations, where=bucket),
    f"days{IN_S3}": partial(take_days, where=bucket),
}


def check_organizations(place: Place, simulator: Simulator, names: Sequence[str], days: tuple[date, date]) -> None:
    """
    Check that a place has the simulator's figures of these days, each in its file.

    :raises WrongOutputError: if it does not.
    """
    expected: Usage = {}
    for name in names:
        for row in simulator.truth(name, *days):
            expected.setdefault((name, "product", row.date), []).append((row.group, row.credits, row.requests))
    check_files(place, expected)


def check_files(place: Place, expected: Usage) -> None:
    """
    Check the JSON lines of each file, and that there is no other file.

    :raises WrongOutputError: if anything differs.
    """
    found = {}
    for name, content in place.files().items():
        if match := FILE.fullmatch(name):
            rows = [json.loads(line, parse_float=Decimal) for line in content.splitlines()]
            key = match[1], match[2], date.fromisoformat(match[3])
            found[key] = [(row["group"], row["credits"], row["request_count"]) for row in rows]
    check_equal(sorted(found), sorted(expected), f"the files at {place.location}")
    for key, rows in found.items():
        check_equal(rows, expected[key], f"the file of {key}")


def _by_day(answer: Answer) -> Usage:
    return {
        (ORG, "api_key", day): [(row.group, row.credits, row.request_count) for row in rows]
        for day, rows in groupby(answer.rows, lambda row: row.date)
    }


def execute(url: str, place: Place, days: tuple[date, date], **options: Any) -> Sample:
    """
    Execute an operator in a separate process, and count the requests that the place gets.

    :param options: further arguments of the operator, which is a fleet's if one is ``organizations``.
    """
    arguments = {
        "output_path": place.location,
        "output_format": "jsonl",
        "usage_start_date": str(days[0]),
        "usage_end_date": str(days[1]),
        "max_xcom_bytes": 2**30,
        **options,
    }
    place.requests()
    with tempfile.TemporaryDirectory(prefix="reducto-bench-") as home:
        env = {"AIRFLOW_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR", **connections(url), **place.env}
        sample: Sample = in_a_process(__name__, json.dumps(arguments), env=env)
    requests = place.requests()
    sample["requests"] = len(requests)
    sample["writes"] = sum(method == "PUT" for method, _ in requests)
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
        dimension = {"org_id": ORG, "group_by": "api_key"}
        return ReductoUsageExportOperator(task_id="export", **{**dimension, **arguments, **others})

    from reducto_provider.export.formats import check_format
    from reducto_provider.export.storage import open_storage

    # Load what the operator needs, and open the store's first connection.
    check_format(arguments["output_format"]).encode([], {})
    operator().hook.settings  # noqa: B018
    open_storage(arguments["output_path"]).read(WARM_UP_NAME)
    sample: Sample = {}
    with measured(sample):
        task = operator()
        result = task.execute(context)
        while task._changes and task._sink.acknowledge(task._changes):  # as its success callback does
            pass
    if "organizations" in result:
        sample["changed days"] = sum(each["changed_day_count"] for each in result["organizations"])
    print("\n" + json.dumps(sample))


def draw(found: Mapping[str, Curve]) -> None:
    """Draw the curves for the documentation."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    mpl.rcParams.update({"grid.alpha": 0.25, "axes.titlesize": 9, "xtick.minor.visible": False})
    from matplotlib import pyplot as plt

    figure, plots = plt.subplots(2, len(LABELS) + 1, figsize=(13.5, 4.4), sharex="col", layout="constrained")
    for column, (axis, (title, per_second, label)) in enumerate(LABELS.items()):
        above, below = plots[0][column], plots[1][column]
        for name, dark, light in ((axis, "#5b4fc4", "#a79fe0"), (f"{axis}{IN_S3}", "#c47a1f", "#e5bf8c")):
            if (curve := found.get(name)) is None:
                continue
            sizes = [size for size, _ in curve]
            place = " (S3)" if name.endswith(IN_S3) else ""
            for clock, style, color in (("cpu", "o-", dark), ("wall", "o:", light)):
                each = [sample[clock] / size * per_second for size, sample in curve]
                above.plot(sizes, each, style, color=color, label=f"{CLOCKS[clock]}{place}", ms=4)
            below.plot(sizes, [sample["added"] / 2**20 for _, sample in curve], "o-", color=dark, ms=4)
        above.set(title=title, ylabel=label, yscale="log")
        least, most = above.get_ylim()
        above.set_ylim(10 ** math.floor(math.log10(least)), 10 ** math.ceil(math.log10(most)))
        above.yaxis.set_major_formatter("{x:g}")
        below.set(xlabel=axis, ylabel="MiB at the peak", xscale="log")
        below.set_ylim(0, max(LEAST_MIB_SHOWN, below.get_ylim()[1]))
    for place, axis in zip(plots[:, -1], ("organizations", "days"), strict=True):
        curve = found[f"{axis}{IN_S3}"]
        each = [sample["requests"] / size for size, sample in curve]
        place.plot([size for size, _ in curve], each, "o-", color="#c47a1f", ms=4)
        place.set(xlabel=axis, ylabel=f"requests by {axis}", xscale="log", ylim=(0, 1.1 * max(each)))
    plots[0][-1].set(title="requests to S3")
    plots[0][LEGEND_COLUMN].legend(frameon=False, fontsize=7)
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})
    plt.close(figure)


CLOCKS: Final = {"cpu": "processor", "wall": "clock"}
LEGEND_COLUMN: Final = 2
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

"""
Measure how time and memory grow with the rows, the organizations and the days of an export.

Each point is an operator's ``execute`` in a separate process, against the simulator over a socket, after a small
warm-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

from aiohttp import web

from benchmarks.answers import FIRST, ORG, Answer, make_answer
from benchmarks.curves import IN_S3, PICTURE, Curve, draw
from benchmarks.fleet import organizations
from benchmarks.measuring import Sample, check_equal
from benchmarks.operator_run import Usage, check_files, check_organizations, execute
from benchmarks.places import Place, bucket, folder
from benchmarks.section import Section, Size, mib
from reducto_provider.export.reported import MAX_SECONDS
from simulator import Fault, Reply, Simulator
from simulator.faults import Answer as FaultAnswer

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

Where = Callable[[], AbstractContextManager[Place]]

HOW: Final = """
```{{image}} {picture}
:alt: Time and requests per row, organization and day, and peak memory, by their number.
:width: 100%
```

The whole `execute` of an operator, from the query to the files in place, in a separate process against the simulator,
{rounds} rounds. *Rows* are those of one response into one Parquet file, *rows in parts* those of a
`ReductoUsageFleetExportOperator` for one organization with {a_day:,} rows a day, which queries {part} days at a time,
*organizations* those of one with a day of each, and *days* those of one answer with {groups} rows a day. All but the
first write a file and a manifest a day, each synced to disk before the next (`fsync`: most of the wall-clock
time). *S3* is moto's server in another process, which answers one request after the other, and whose time is in the
wall-clock time; requests are those that it gets. The success callback of an operator records what it reported for at
most {seconds:g} s, and is here called until all is recorded: each further call reads again what is recorded already,
some one request an organization. Memory is the peak beyond the resident memory before. All files are
compared with the exact figures. Included is what the operator records after its success.

Per local day the CPU time rises with their number: in a profile the system's `open` takes 0.07 ms each with 3,650 days
and 0.04 with 300, five times a day.

A response is held in memory as a whole, so memory grows with the rows of one response, up to the limit of 128 MiB. It
does not grow with the number of parts, and with the number of organizations only by some 2 KiB for the outcome of each.
"""


def section(size: Size) -> Section:
    """Measure the curves."""
    rounds = min(size.rounds, MAX_ROUNDS)
    found = curves(SMALL_SIZES if size.small else SIZES, rounds)
    if not size.small:
        draw(found)
    lines = [
        "| what | number | CPU time each | wall-clock time each | requests each | peak memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for axis, curve in found.items():
        for count, sample in curve:
            cpu, wall = (f"{sample[name] / count * 1e6:,.1f} µs" for name in ("cpu", "wall"))
            requests = f"{sample['requests'] / count:.2f}" if sample["requests"] else ""
            lines.append(f"| {axis} | {count:,} | {cpu} | {wall} | {requests} | {mib(sample['added'])} |")
    return Section(
        title="Growth",
        how=HOW.format(
            rounds=rounds,
            groups=GROUPS_A_DAY,
            seconds=MAX_SECONDS,
            a_day=ROWS_A_DAY,
            part=DAYS_A_PART,
            picture=PICTURE.name,
        ),
        results=[],
        after="\n".join(lines),
    )


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


def _by_day(answer: Answer) -> Usage:
    return {
        (ORG, "api_key", day): [(row.group, row.credits, row.request_count) for row in rows]
        for day, rows in groupby(answer.rows, lambda row: row.date)
    }

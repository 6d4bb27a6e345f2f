"""``python -m benchmarks``: measure, print the tables, and store them in the documentation."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from benchmarks import (
    airflow_task,
    answer_to_file,
    answers,
    by_day,
    changed_fleet,
    fleet,
    growth,
    imports,
    object_store,
    open_connection,
    tables,
    task_imports,
    waiting,
)
from benchmarks.measuring import MIB, Rounds, WrongOutputError
from benchmarks.page import Part, Result, Section, store, table
from reducto_provider.export.reported import MAX_SECONDS


@dataclass(frozen=True)
class Size:
    """The size of a measurement."""

    rounds: int
    days: int = 365
    groups: int = 1000
    organizations: int = 1000
    sensors: int = 1000
    queries: int = 50
    interval: float = 15.0
    small: bool = False


def small(rounds: int) -> Size:
    """Return a size that shows quickly whether everything works."""
    return Size(rounds, days=5, organizations=20, sensors=40, queries=4, interval=3.0, small=True)


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def mib(value: float) -> str:
    return f"{value / MIB:.0f} MiB" if value >= 10 * MIB else f"{value / MIB:.1f} MiB"


def times(rounds: Rounds, side: Callable[[str], float]) -> str:
    return f"{seconds(side('cpu'))} (clock: {seconds(side('wall'))})"


def faster(what: str, against: str, rounds: Rounds, limit: float, why: str) -> Result:
    return Result(
        what=what,
        against=against,
        aim=f"at least {limit:g} times as fast",
        ours=times(rounds, rounds.our),
        theirs=times(rounds, rounds.their),
        value=rounds.ratio("cpu"),
        limit=limit,
        at_least=True,
        why=why,
    )


def files(size: Size) -> Section:
    """Answers to files."""
    answer = answers.make_answer(size.days, size.groups, answers.DOCUMENTED)
    inexact = answers.make_answer(size.days, size.groups, answers.WITH_TENTHS)
    rows = f"{len(answer.rows):,} rows"
    parquet, exact_parquet, lines, csv, decoding = (
        answer_to_file.compare(name, answer, size.rounds)
        for name in ("parquet", "exact parquet", "jsonl", "csv", "decode")
    )
    inexact_parquet, inexact_decoding = (
        answer_to_file.compare(name, inexact, size.rounds) for name in ("parquet", "decode")
    )
    typed = "each row becomes an object, its date and decimal two more, and each rule of the contract is checked"
    what = f"answer to checked rows to Parquet, {rows}"
    bare, exact = "`requests`, `pandas` `to_parquet`", "the same with decimals and checks"

    def memory(against: str, rounds: Rounds) -> Result:
        return Result(
            what=f"{what}: peak memory",
            against=against,
            aim="at most half",
            ours=f"{mib(rounds.our('added'))} (process: {mib(rounds.our('peak'))})",
            theirs=f"{mib(rounds.their('added'))} (process: {mib(rounds.their('peak'))})",
            value=1 / rounds.ratio("added"),
            limit=0.5,
            why=f"What takes the room: {typed}.",
        )

    def decoded(what: str, rounds: Rounds, why: str) -> Result:
        return Result(
            what=f"decoding and checking alone, {rows}{what}",
            against="`orjson.loads`: no types, no checks",
            aim="at most 1.3 times its time",
            ours=times(rounds, rounds.our),
            theirs=times(rounds, rounds.their),
            value=1 / rounds.ratio("cpu"),
            limit=1.3,
            why=why,
        )

    return Section(
        title="Answers to rows and files",
        how=FILES.format(rows=rows, bytes=mib(len(answer.body))),
        results=[
            faster(what, bare, parquet, 2.5, f"Theirs has binary floats and checks nothing; here {typed}."),
            memory(bare, parquet),
            faster(f"{what}{NOISE}", bare, inexact_parquet, 2.5, "Besides that, decimals have to be rounded."),
            faster(what, exact, exact_parquet, 2.5, f"There as here, {typed}."),
            memory(exact, exact_parquet),
            faster(
                f"answer to JSON lines, {rows}",
                "`json`, `pandas` `to_json`",
                lines,
                4,
                f"More than half of it is the decoding and checking, where {typed}; the rest is one more object for "
                "each line, its text, and putting that on the disk.",
            ),
            faster(f"answer to CSV, {rows}", "`json`, `pandas` `to_csv`", csv, 2, f"As for Parquet, {typed}."),
            decoded("", decoding, f"The floor has neither types nor checks; here {typed}."),
            decoded(NOISE, inexact_decoding, "Besides that, decimals have to be rounded."),
        ],
    )


NOISE: Final = ", credits with noise"

FILES: Final = """
{rows} in {bytes}, as for a thousand API keys in a year, at the prices of the service's documentation. *Credits with
noise* come from a response in which a quarter of the keys has a price of 0.1, so that the service's sums of binary
floats are `230.10000000000002` and have to be rounded. Each run is a separate process that has imported everything and
warmed up on a small response. The measurement starts with the body in memory and ends with the file in place. The ratio
is of CPU time, since wall-clock time includes other work of the machine. Memory is the peak beyond the resident memory
before, without the body.

Ours is what an export does: decode into typed rows with decimals, check them against the contract, sort them, write the
file and replace the old one atomically. Theirs is `pandas.DataFrame(response.json()["data"])`, `pandas.to_datetime` for
Parquet, and `to_parquet`, `to_json` or `to_csv`: binary floats and no checks. *With decimals and checks* it reads
numbers as `Decimal`, checks the echo, the days, duplicates and signs with pandas, sorts, and writes dates and decimals
as such. All files are read back and compared with the exact figures: those with decimals with the exact credits, the
others with the floats that were sent.
"""


def by_days(size: Size) -> Section:
    """The default export."""
    days = min(90, size.days)
    answer = by_day.make(days, 4 * size.groups)
    found = {name: by_day.compare(name, answer, size.rounds) for name in by_day.FORMATS}
    what = f"a file a day, {len(answer.rows):,} rows of {days} days, in a fresh process"
    against = "`requests`, `pandas` `groupby`, a file a day"
    memory = found["parquet"]
    return Section(
        title="A file a day",
        how=BY_DAY.format(rows=f"{len(answer.rows):,}", days=days, bytes=mib(len(answer.body))),
        results=[
            *(
                faster(f"{what}: {name}", against, found[name], limit, BY_DAY_FLOOR)
                for name, limit in (("parquet", 2.5), ("jsonl", 4), ("csv", 2))
            ),
            Result(
                what=f"{what}: parquet, peak memory",
                against=against,
                aim="at most half",
                ours=f"{mib(memory.our('added'))} (process: {mib(memory.our('peak'))})",
                theirs=f"{mib(memory.their('added'))} (process: {mib(memory.their('peak'))})",
                value=1 / memory.ratio("added"),
                limit=0.5,
                why="The response, its rows, and the modules that are loaded.",
            ),
        ],
    )


BY_DAY: Final = """
The default export into a new dataset: one response with {rows} rows of {days} days, {bytes}, from the simulator. Each
run is a separate process that has loaded what a process of Airflow has loaded before it runs a task. Everything after
that is measured, imports included. Ours is the whole `execute` of `ReductoUsageExportOperator`; theirs is
`requests.get`, `pandas.DataFrame(response.json()["data"])`, `groupby("date")`, and `to_parquet`, `to_json` or `to_csv`
for each day. Ours checks the response, has exact decimals, a manifest with a digest for each day, and syncs each file
to disk before it replaces another; theirs does nothing of that. The ratio is of CPU time, and all files are compared
with the exact figures.
"""

BY_DAY_FLOOR: Final = (
    "In the least of three profiles, JSON lines took 1,030 ms of CPU time: 210 for imports (`aiohttp` with the "
    "system's certificates, and `requests`, which Airflow's `HttpHook` loads), 75 to receive the response, 175 to "
    "decode and check it, 165 for the digests of the rows, 110 to encode them, 55 for the checksums of the files, 130 "
    "to write and sync 180 files, 30 for sums. Parquet took 1,360: another 130 to import `pyarrow`, which imports "
    "`numpy`, and 210 more to encode. Without imports, digests, manifests and syncing some 360 ms remain for JSON "
    "lines, which is the floor with decimals and checks. Tried: `pyarrow.array` imported `pandas` in each export, 320 "
    "to 440 ms; columns are now built without it."
)


def airflow(size: Size) -> Section:
    """One export in Airflow."""
    rounds = airflow_task.compare(size.rounds)
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
        how=AIRFLOW.format(rows=int(rounds.our("rows"))),
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


AIRFLOW: Final = """
`DAG.test` runs a DAG on a real Airflow, in a process that has loaded Airflow, from the parsing of the file to the end
of the run, against the simulator: a year of one organization by feature, {rows:,} rows, into one Parquet file with
zstd. Ours is one `ReductoUsageExportOperator` with `partitioned=False`; theirs an `HttpOperator` and a `@task` that
makes a `pandas.DataFrame` of its XCom and writes it. `DAG.test` runs tasks inline: in real processes theirs would start
a second worker process. Requests are counted in the simulator's log, XComs in the database. Both files are compared
with the simulator's figures.
"""


def organizations(size: Size) -> Section:
    """A fleet at its limit."""
    sample = fleet.run(size.organizations)
    limit = sample["limit"]
    return Section(
        title="A fleet at the limit of its connection",
        how=FLEET.format(organizations=size.organizations),
        results=[
            Result(
                what=f"{size.organizations:,} organizations at {fleet.PER_SECOND} requests a second",
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


FLEET: Final = """
One `ReductoUsageFleetExportOperator` for {organizations:,} organizations, seven days of each, against the simulator,
with `requests_per_second` of the connection at 10 and default settings otherwise; measured once, since the limit
determines the time. The figure is the whole `DAG.test` run. No request may reach the simulator too early, each
organization is queried exactly once, and all files are compared with the simulator's figures.
"""


def storing(size: Size) -> Section:
    """A first export to an object store."""
    rounds = object_store.compare(size.days, size.rounds)
    each = f"{object_store.SECONDS_PER_REQUEST * 1000:.0f} ms"
    return Section(
        title="A first export to S3",
        how=STORING.format(days=size.days, each=each),
        results=[
            Result(
                what=f"a file and a manifest for each of {size.days} days, {each} a request",
                against=f"the writes alone, {object_store.WRITES_AT_A_TIME} at a time",
                aim="at most 1.5 times its time",
                ours=f"{seconds(rounds.our('wall'))} ({rounds.our('requests'):,.0f} requests)",
                theirs=f"{seconds(rounds.their('wall'))} ({rounds.their('requests'):,.0f} requests)",
                value=1 / rounds.ratio("wall"),
                limit=1.5,
                why="Here the days are encoded and compared as well, and read back by listings.",
            )
        ],
    )


def changing(size: Size) -> Section:
    """A fleet's second export to an object store."""
    few, many = max(1, size.organizations // 10), size.organizations
    of_few, of_many = changed_fleet.take(few), changed_fleet.take(many)
    each = f"{changed_fleet.SECONDS_PER_REQUEST * 1000:.0f} ms"
    what = f"{many:,} organizations x 3 days exported to S3 again, one day changed, {each} a request"
    return Section(
        title="A fleet's unchanged days in S3",
        how=CHANGING.format(many=many, each=each),
        results=[
            Result(
                what=f"{what}: requests",
                against="",
                aim="at most 5 an organization",
                ours=f"{of_many['requests']:,.0f}, {of_many['writes']:.0f} of them writes, in "
                f"{seconds(of_many['wall'])} (CPU: {seconds(of_many['cpu'])})",
                theirs="",
                value=of_many["requests"] / many,
                limit=5,
                unit="{:.2f}",
                why="Each organization's index, reported changes, and two listings.",
            ),
            Result(
                what=f"{what}: peak memory",
                against=f"{few:,} organizations",
                aim="at most 5 MiB more",
                ours=f"{mib(of_many['added'])} (process: {mib(of_many['peak'])})",
                theirs=f"{mib(of_few['added'])} (process: {mib(of_few['peak'])})",
                value=(of_many["added"] - of_few["added"]) / MIB,
                limit=5,
                unit="{:.1f} MiB more",
            ),
        ],
    )


CHANGING: Final = """
One `ReductoUsageFleetExportOperator` with default settings exports three days of {many:,} organizations to an empty
bucket of moto's S3 server on this machine. Then usage is added to a day of one of them, and the export runs again in a
separate process, with what the operator records after its success: this is measured, once. The server waits {each}
before it answers a request, and answers one after the other. Exactly one day must have changed, and all files are
compared with the simulator's figures.
"""


def delta(size: Size) -> Section:
    """A Delta table beside files."""
    queries = tables.compare_queries(size.organizations, size.rounds)
    fleets = tables.compare_fleets(size.organizations, rounds=1)
    what = f"a day of {size.organizations:,} organizations written to S3"
    ours, theirs = fleets.our("requests"), fleets.their("requests")
    return Section(
        title="A Delta table and files",
        how=DELTA.format(organizations=size.organizations, files=size.organizations * tables.MONTH.length),
        results=[
            faster(
                f"a month of {size.organizations:,} organizations queried with DuckDB",
                "the same usage in files",
                queries,
                20,
                "Opening the table takes a fixed time.",
            ),
            Result(
                what=f"{what}: time",
                against="the same usage in files",
                aim="no slower",
                ours=f"{seconds(fleets.our('wall'))} (CPU: {seconds(fleets.our('cpu'))})",
                theirs=f"{seconds(fleets.their('wall'))} (CPU: {seconds(fleets.their('cpu'))})",
                value=fleets.ratio("wall"),
                limit=1.0,
                at_least=True,
                unit="{:.2f} times as fast",
                why=WHY_DELTA,
            ),
            Result(
                what=f"{what}: requests",
                against="the same usage in files",
                aim="fewer",
                ours=f"{ours:,.0f}",
                theirs=f"{theirs:,.0f}",
                value=ours,
                limit=theirs - 1,
                unit=f"{ours / theirs:.2f} times",
                why=WHY_DELTA,
            ),
        ],
    )


STORING: Final = """
One response with {days} days is published as JSON lines into an empty bucket: from the check of the dataset to its
index. The store is moto's S3 server in another process, which waits {each} before it answers a request. Theirs writes
two objects for each day, of the size of its rows. All files are read back and compared with the exact figures.
"""

WHY_DELTA: Final = (
    "Each organization has a file of its exported days beside the table, which is read and written like a manifest. "
    "Each commit, of up to eight organizations here, also reads the log's end and the table's files that may have "
    "their rows."
)

DELTA: Final = """
The month of {organizations:,} organizations is {files:,} Parquet files, or a table, exported likewise and compacted.
DuckDB sums the credits of each organization in a separate process, which has imported everything: over the files with
Hive partitions, over the table with `deltalake` and a pyarrow dataset. Opening either is part of the time; both are on
a local disk and have just been written. The day is published by eight threads, as a fleet does, to an S3 server on this
machine (moto's, which answers one request after the other), once, since it takes minutes. All credits are compared with
the exact figures.
"""


def waits(size: Size) -> Section:
    """Sensors that wait."""
    nothing, ours, theirs = (
        waiting.run(side, size.sensors, size.queries, size.interval) for side in ("nothing", "ours", "theirs")
    )
    what = f"{size.sensors:,} waiting sensors with {size.queries} queries, one interval"
    against = "`HttpSensor`, deferrable"
    sides = {"nothing": nothing, "ours": ours, "theirs": theirs}
    extra = {name: max(each["cpu"] - each["idle cpu"], 1e-3) for name, each in sides.items()}
    return Section(
        title="Sensors that wait",
        how=WAITING.format(sensors=size.sensors, queries=size.queries, interval=size.interval),
        results=[
            Result(
                what=f"{what}: requests",
                against=against,
                aim=f"{size.queries}, not {size.sensors:,}",
                ours=f"{ours['requests']:,.0f}",
                theirs=f"{theirs['requests']:,.0f}",
                value=ours["requests"],
                limit=size.queries,
                unit="{:,.0f}",
            ),
            Result(
                what=f"{what}: longest stall of the event loop",
                against=against,
                aim="under 50 ms",
                ours=seconds(ours["longest stall"]),
                theirs=seconds(theirs["longest stall"]),
                value=ours["longest stall"] * 1000,
                limit=50,
                unit="{:.0f} ms",
            ),
            Result(
                what=f"{what}: CPU time",
                against=against,
                aim="a tenth",
                ours=seconds(extra["ours"]),
                theirs=seconds(extra["theirs"]),
                value=extra["ours"] / extra["theirs"],
                limit=0.1,
                why=f"Airflow takes {seconds(extra['nothing'])} for as many triggers that only sleep. Of ours, "
                "evaluating a thousand polls takes 15 ms in a profile, fifty requests some 50 ms; the rest is not "
                "in this package: Airflow passes each poll to every trigger that shares it. Tried: a poll in which "
                "nothing changed has no line in the log.",
            ),
            Result(
                what=f"{what}: memory",
                against=against,
                aim="a quarter",
                ours=mib(ours["memory"]),
                theirs=mib(theirs["memory"]),
                value=ours["memory"] / theirs["memory"],
                limit=0.25,
                why=f"As many triggers that do nothing but sleep take {mib(nothing['memory'])} already, which is what "
                "Airflow keeps for each. Further ones take less, as the table below shows, since the HTTP code "
                "(`aiohttp`, `requests` and the HTTP provider, some 18 MiB on either side) is loaded once. A third "
                "of the difference between ours and a sleeping one is the queue through which Airflow passes polls. So "
                "the floor is that of sleeping ones with the HTTP code, about a half of theirs.",
            ),
        ],
        after=MEMORY.format(
            sensors=size.sensors,
            first=" | ".join(mib(each["memory"]) for each in sides.values()),
            further=" | ".join(mib(each["memory of as many more"]) for each in sides.values()),
        ),
    )


MEMORY: Final = """
| memory | sleeping triggers | ours | theirs |
| --- | ---: | ---: | ---: |
| the first {sensors:,}, with code that is loaded once | {first} |
| {sensors:,} more | {further} |
"""


WAITING: Final = """
{sensors:,} triggers of deferred sensors run in the process in which Airflow's triggerer runs triggers. Airflow's own
supervisor feeds it with triggers from memory instead of the database. {queries} organizations are queried, each by as
many sensors, ours with different thresholds, every {interval:g} seconds. Measured once, after one and a half intervals:
CPU time in one interval, beyond that of the same process without the triggers; added memory; requests in the
simulator's log, half of those in two intervals; and stalls in the second interval: the delay of an additional trigger
that repeatedly sleeps for 5 ms, minus the time in which other processes had the CPU.

`HttpSensor` cannot inspect a response while it is deferred: it waits for a status other than 404, so the simulator
answers its requests with 404; ours reads a month of usage each time. Then as many more start to wait, to measure their
additional memory. At the end usage increases (and theirs gets its response): exactly those fire whose threshold is
exceeded, with the simulator's figures.
"""


def requesting(size: Size) -> Section:
    """One request."""
    rounds = open_connection.compare(size.rounds)
    return Section(
        title="One request",
        how=REQUEST.format(requests=open_connection.REQUESTS),
        results=[
            Result(
                what="one synchronous request over a connection that is open",
                against="`aiohttp` alone",
                aim="at most 1.3 times its time",
                ours=f"{rounds.our('cpu') * 1e6:,.0f} µs (clock: {rounds.our('wall') * 1e6:,.0f} µs)",
                theirs=f"{rounds.their('cpu') * 1e6:,.0f} µs (clock: {rounds.their('wall') * 1e6:,.0f} µs)",
                value=1 / rounds.ratio("cpu"),
                limit=1.3,
                why=REQUEST_FLOOR,
            )
        ],
    )


REQUEST: Final = """
`ReductoHook.get_usage` for a month of one organization by product, some 120 rows, {requests} times in a process
after a warm-up, against the simulator, beside `session.get` of `aiohttp` and `response.json()`, run by an event loop of
the same thread. The time is that of all threads of the process, per request. The sum of the credits is compared with
the simulator's.
"""

REQUEST_FLOOR: Final = (
    "In a profile (the least of twelve rounds, in µs of CPU time) `aiohttp` takes some 230 on both sides. Beyond that, "
    "theirs takes 85 for `json`. Ours takes 170 for decoding: of so few rows nearly all have credits of their own, "
    "each of which becomes a decimal and is rounded and checked; 37 to hand the request to the thread of the event "
    "loop and back; 25 for the retries (`tenacity`); 16 for a task that the time limit can cancel; 10 for the rest. So "
    "the floor with decimals and checks is 1.27 times, before retries, a time limit, and the thread, which stay: "
    "Airflow ends a task by an exception in its main thread, which an event loop there could drop. Between two threads "
    "the processor's caches and the interpreter's lock change hands, which costs more while other processes are busy. "
    "Tried: a call into the loop at the end of each request, which woke its thread once more, is gone."
)


def importing(size: Size) -> Section:
    """Parsing a DAG file, and running its task."""
    found = imports.rounds(max(size.rounds, 2 * size.rounds - 1))
    of_task = task_imports.rounds(size.rounds)
    return Section(
        title="Importing",
        how=IMPORTS.format(
            of_task=int(of_task["modules"]),
            modules=int(found["modules"]),
            heavy=", ".join(f"`{name}`" for name in sorted(imports.HEAVY)),
        ),
        results=[
            Result(
                what="importing the operators, sensors and triggers",
                against="importing `airflow.sdk` alone",
                aim="under 3 % more, nothing heavy loaded",
                ours=f"{seconds(found['ours'])} (clock: {seconds(found['ours wall'])})",
                theirs=f"{seconds(found['airflow'])} (clock: {seconds(found['airflow wall'])})",
                value=found["share"],
                limit=0.03,
                unit="{:+.1%}",
                why="",
            ),
            Result(
                what="what an export task loads beside an empty task",
                against="importing `airflow.sdk` alone",
                aim="at most 0.12 times: 120 ms where that takes a second",
                ours=seconds(of_task["ours"]),
                theirs=seconds(of_task["airflow"]),
                value=of_task["share"],
                limit=0.12,
                why=TASK_IMPORTS_FLOOR,
            ),
        ],
    )


TASK_IMPORTS_FLOOR: Final = (
    "In a profile of 225 ms of CPU time `aiohttp` took 116, of which 68 are its TLS contexts with the system's "
    "certificates, and `requests` with `urllib3` and `charset_normalizer` 47: Airflow's `HttpHook`, on which the hook "
    "is based, loads both. The modules of this package took 35, none more than 2.5."
)

IMPORTS: Final = """
The time that `from airflow.sdk import DAG, BaseOperator, BaseSensorOperator` takes in fresh processes, and the
additional time for the modules of operators, sensor and triggers in the same process. They load {modules} further
modules; the benchmark fails if one of these is among them: {heavy}.

An export task loads more when it runs, in a process that is a fork of Airflow's supervisor. Here a fresh process loads
what that has loaded, runs an empty task, and exports a day of one organization to a file twice. What the first export,
with the import of its operator, takes in CPU time beyond the second is what it loads: {of_task} modules.
"""


def growing(size: Size) -> Section:
    """Curves."""
    rounds = min(size.rounds, growth.MAX_ROUNDS)
    found = growth.curves(growth.SMALL_SIZES if size.small else growth.SIZES, rounds)
    if not size.small:
        growth.draw(found)
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
        how=GROWTH.format(
            rounds=rounds,
            groups=growth.GROUPS_A_DAY,
            seconds=MAX_SECONDS,
            a_day=growth.ROWS_A_DAY,
            part=growth.DAYS_A_PART,
            picture=growth.PICTURE.name,
        ),
        results=[],
        after="\n".join(lines),
    )


GROWTH: Final = """
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


PARTS: Final[dict[str, Callable[[Size], Section]]] = {
    "files": files,
    "days": by_days,
    "airflow": airflow,
    "fleet": organizations,
    "storing": storing,
    "changes": changing,
    "delta": delta,
    "waiting": waits,
    "request": requesting,
    "imports": importing,
    "growth": growing,
}


def measure(names: Sequence[str], size: Size) -> None:
    """
    Measure the named parts in order. Print each when it is done, and store it if it has full size.

    :raises WrongOutputError: if an output is wrong.
    """
    for name in names:
        begun = time.monotonic()
        part = Part.measure(partial(PARTS[name], size), size.rounds)
        lines = [*(table(part.lines) if part.lines else []), part.after]
        print(f"\n{part.title} ({time.monotonic() - begun:.0f} s)", *lines, sep="\n", flush=True)
        if not size.small:
            store(name, part, list(PARTS))


def main() -> int:
    """Measure all or some parts."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured (%(default)s)")
    parser.add_argument("--small", action="store_true", help="a quick check; nothing is stored")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; the others stay as stored")
    options = parser.parse_args()
    try:
        measure(options.only or list(PARTS), small(options.rounds) if options.small else Size(options.rounds))
    except WrongOutputError as error:
        print(f"wrong output: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

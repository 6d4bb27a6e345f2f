"""Measure a Delta table beside files: a month's query over many organizations, and a fleet's day written to S3."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from benchmarks.measuring import Rounds, Sample, check_equal, in_a_process, measured
from benchmarks.section import Result, Section, Size, faster, seconds
from reducto_provider.export.delta.upkeep import compact_table
from reducto_provider.export.formats import check_format
from reducto_provider.export.sink import open_sink
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport
from reducto_provider.usage.wire import decode_report
from tests.object_storage.s3server import S3Server

MONTH: Final = DayRange(date(2026, 6, 1), date(2026, 6, 30))
THREADS: Final = 8
"""The default concurrency of a fleet."""

GROUPS: Final = ("classify", "extract", "parse", "split")
FORMATS: Final = {"files": "parquet", "table": "delta"}

QUERY: Final = """
    SELECT org_id, sum(credits)::DECIMAL(38, 9)::VARCHAR
    FROM {usage}
    WHERE group_by = 'product' AND {day} BETWEEN '2026-06-01' AND '2026-06-30'
    GROUP BY org_id
    ORDER BY org_id
"""


COMMITS: Final = (
    "Each organization has a file of its exported days beside the table, which is read and written like a manifest. "
    "Each commit, of up to eight organizations here, also reads the log's end and the table's files that may have "
    "their rows."
)

HOW: Final = """
The month of {organizations:,} organizations is {files:,} Parquet files, or a table, exported likewise and compacted.
DuckDB sums the credits of each organization in a separate process, which has imported everything: over the files with
Hive partitions, over the table with `deltalake` and a pyarrow dataset. Opening either is part of the time; both are on
a local disk and have just been written. The day is published by eight threads, as a fleet does, to an S3 server on this
machine (moto's, which answers one request after the other), once, since it takes minutes. All credits are compared with
the exact figures.
"""


def section(size: Size) -> Section:
    """Measure a Delta table beside files."""
    queries = compare_queries(size.organizations, size.rounds)
    fleets = compare_fleets(size.organizations, rounds=1)
    what = f"a day of {size.organizations:,} organizations written to S3"
    ours, theirs = fleets.our("requests"), fleets.their("requests")
    return Section(
        title="A Delta table and files",
        how=HOW.format(organizations=size.organizations, files=size.organizations * MONTH.length),
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
                why=COMMITS,
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
                why=COMMITS,
            ),
        ],
    )


def usage(count: int, days: DayRange) -> Iterator[tuple[UsageReport, UsageQuery]]:
    """Yield the usage of ``count`` different organizations."""
    for number in range(count):
        org_id = f"org_{number:04}"
        query = UsageQuery(start=days.first, end=days.last, org_id=org_id)
        data = [
            {"date": str(day), "group": group, "credits": number % 37 + day.day + index / 2, "requestCount": index}
            for day in days.days()
            for index, group in enumerate(GROUPS)
        ]
        echo = {"orgId": org_id, "startDate": str(query.start), "endDate": str(query.end), "groupBy": "product"}
        yield decode_report(json.dumps({**echo, "data": data}).encode(), query), query


def credits_of(count: int, days: DayRange) -> list[list[str]]:
    """Return the credits of each organization, exact."""
    return [
        [f"org_{number:04}", f"{sum(Decimal(number % 37 + day.day) * 4 + 3 for day in days.days()):.9f}"]
        for number in range(count)
    ]


def publish(path: str, kind: str, count: int, days: DayRange) -> None:
    """Export the usage as a fleet does, to files or to a table."""
    sink = open_sink(path, None, check_format(FORMATS[kind]), {})
    sink.check()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda each: sink.publish(each[0], each[1], "benchmark"), usage(count, days)))


def query(kind: str, folder: Path) -> tuple[Sample, list[list[str]]]:
    """Query a month with DuckDB, and return the credits of each organization."""
    import duckdb
    import pyarrow.dataset  # noqa: F401  # which deltalake imports when it is used
    from deltalake import DeltaTable

    connection = duckdb.connect()
    connection.sql("SELECT 1").fetchall()
    sample: Sample = {}
    with measured(sample):
        if kind == "files":
            types = "{'org_id': VARCHAR, 'group_by': VARCHAR, 'dt': DATE}"
            found = f"read_parquet('{folder}/data/*/*/*/usage.parquet', hive_partitioning = true, hive_types = {types})"
            rows = connection.sql(QUERY.format(usage=found, day="dt")).fetchall()
        else:
            connection.register("reducto_usage", DeltaTable(folder).to_pyarrow_dataset())
            rows = connection.sql(QUERY.format(usage="reducto_usage", day='"date"')).fetchall()
    return sample, [list(row) for row in rows]


def compare_queries(count: int, rounds: int) -> Rounds:
    """
    Measure a month's query over ``count`` organizations: ours is the table, theirs the files.

    :raises WrongOutputError: if the credits of any organization are not exact.
    """
    expected = credits_of(count, MONTH)
    with tempfile.TemporaryDirectory(prefix="reducto-bench-") as folder:
        with patch.object(os, "fsync"):
            for kind in FORMATS:
                publish(f"{folder}/{kind}", kind, count, MONTH)
        compact_table(f"{folder}/table")

        def take(kind: str) -> Sample:
            sample, rows = in_a_process("benchmarks.tables", "query", kind, f"{folder}/{kind}")
            check_equal(rows, expected, f"the credits in the {kind}")
            return dict(sample)

        return Rounds(rounds, lambda: take("table"), lambda: take("files"))


def compare_fleets(count: int, rounds: int) -> Rounds:
    """
    Measure a fleet's day written to S3: ours is a table, theirs files. ``requests`` are those that the store got.

    :raises WrongOutputError: if the credits of any organization are not exact.
    """
    server = S3Server()
    day = DayRange(MONTH.first, MONTH.first)

    def take(kind: str) -> Sample:
        bucket = server.make_bucket()
        server.calls.clear()
        env = {"AIRFLOW_CONN_LAKE": server.connection()}
        sample = in_a_process("benchmarks.tables", "publish", kind, f"s3://lake@{bucket}/usage", count, env=env)
        requests = len(server.calls)
        with tempfile.TemporaryDirectory(prefix="reducto-bench-") as folder:
            for key, content in server.objects(bucket).items():
                path = Path(folder, key)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            check_equal(query(kind, Path(folder, "usage"))[1], credits_of(count, day), f"the credits in the {kind}")
        return {**sample, "requests": requests}

    try:
        return Rounds(rounds, lambda: take("table"), lambda: take("files"))
    finally:
        server.close()


def main(what: str, kind: str, path: str, count: str = "0") -> Any:
    """Return what a process measured."""
    if what == "query":
        return query(kind, Path(path))
    sample: Sample = {}
    day = DayRange(MONTH.first, MONTH.first)
    open_sink(path, None, check_format(FORMATS[kind]), {}).check()  # imports what the store needs
    with measured(sample):
        publish(path, kind, int(count), day)
    return sample


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))

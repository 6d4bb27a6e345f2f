"""
Measure a first export to S3, where each request takes its time, against the writes alone.

The store is moto's server in this process, and each side runs in a separate one. Ours publishes a report of many days;
theirs writes two objects for each day, as many at a time, which no export of a file and a manifest a day can undercut.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from benchmarks.answers import ORG, make_answer
from benchmarks.measuring import Rounds, Sample, check_equal, in_a_process, measured
from benchmarks.section import Result, Section, Size, seconds

if TYPE_CHECKING:
    from tests.object_storage.s3server import Answer, Call

SECONDS_PER_REQUEST: Final = 0.02
WRITES_AT_A_TIME: Final = 8
GROUPS: Final = 10


HOW: Final = """
One response with {days} days is published as JSON lines into an empty bucket: from the check of the dataset to its
index. The store is moto's S3 server in another process, which waits {each} before it answers a request. Theirs writes
two objects for each day, of the size of its rows. All files are read back and compared with the exact figures.
"""


def section(size: Size) -> Section:
    """Measure a first export to an object store."""
    rounds = compare(size.days, size.rounds)
    each = f"{SECONDS_PER_REQUEST * 1000:.0f} ms"
    return Section(
        title="A first export to S3",
        how=HOW.format(days=size.days, each=each),
        results=[
            Result(
                what=f"a file and a manifest for each of {size.days} days, {each} a request",
                against=f"the writes alone, {WRITES_AT_A_TIME} at a time",
                aim="at most 1.5 times its time",
                ours=f"{seconds(rounds.our('wall'))} ({rounds.our('requests'):,.0f} requests)",
                theirs=f"{seconds(rounds.their('wall'))} ({rounds.their('requests'):,.0f} requests)",
                value=1 / rounds.ratio("wall"),
                limit=1.5,
                why="Here the days are encoded and compared as well, and read back by listings.",
            )
        ],
    )


def compare(days: int, rounds: int) -> Rounds:
    """
    Return samples of both sides: ``wall`` and ``requests``.

    :raises WrongOutputError: if ours has not stored the exact figures.
    """
    from tests.object_storage.s3server import S3Server

    server = S3Server()

    def slow(_: Call, serve: Callable[[], Answer]) -> Answer:
        time.sleep(SECONDS_PER_REQUEST)
        return serve()

    def take(side: str) -> Sample:
        bucket = server.make_bucket()
        with tempfile.TemporaryDirectory(prefix="reducto-bench-") as home:
            env = {"AIRFLOW_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
            env["AIRFLOW_CONN_LAKE"] = server.connection()
            server.calls.clear()
            with server.answering(slow):
                sample: Sample = in_a_process(__name__, side, f"s3://lake@{bucket}/usage", days, env=env)
            sample["requests"] = len(server.calls)
            if side == "ours":
                _check(server.objects(bucket), days)
        return sample

    try:
        return Rounds(rounds, lambda: take("ours"), lambda: take("theirs"))
    finally:
        server.close()


def _check(objects: Mapping[str, bytes], days: int) -> None:
    found = []
    for name, content in sorted(objects.items()):
        if name.startswith(f"usage/data/org_id={ORG}/group_by=api_key/"):
            rows = [json.loads(line, parse_float=Decimal) for line in content.splitlines()]
            found += [(row["date"], row["group"], row["credits"], row["request_count"]) for row in rows]
    expected = [(str(row.date), row.group, row.credits, row.request_count) for row in make_answer(days, GROUPS).rows]
    check_equal(found, expected, f"the files of {days} days in S3")


def main(side: str, location: str, days: int) -> None:
    """Write, and print the measurement."""
    from reducto_provider.export.dataset import UsageDataset
    from reducto_provider.export.formats import check_format
    from reducto_provider.export.storage import open_storage
    from reducto_provider.usage.wire import decode_report

    answer = make_answer(days, GROUPS)
    report = decode_report(answer.body, answer.query)
    storage = open_storage(location)
    storage.read("nothing")  # the first request of a store's client takes its time
    sample: Sample = {}
    if side == "ours":
        dataset = UsageDataset(storage, check_format("jsonl"), {})
        with measured(sample):
            dataset.check(answer.query)
            dataset.publish(report, answer.query)
    else:
        content = answer.body[: len(answer.body) // days]
        names = [f"{number}.json" for number in range(2 * days)]
        with measured(sample), ThreadPoolExecutor(WRITES_AT_A_TIME) as executor:
            list(executor.map(lambda name: storage.replace(name, content), names))
    print("\n" + json.dumps(sample))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

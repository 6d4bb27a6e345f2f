"""Measure synchronous requests over a connection that is open: the hook's, or those of aiohttp alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from typing import Any, Final

from benchmarks.measuring import Rounds, Sample, check_equal, in_a_process, measured
from benchmarks.section import Result, Section, Size

ORG: Final = "org_acme"
FIRST, LAST = date(2026, 6, 1), date(2026, 6, 30)
REQUESTS: Final = 500
WARM_UP: Final = 20

Send = Callable[[], Any]


HOW: Final = """
`ReductoHook.get_usage` for a month of one organization by product, some 120 rows, {requests} times in a process
after a warm-up, against the simulator, beside `session.get` of `aiohttp` and `response.json()`, run by an event loop of
the same thread. The time is that of all threads of the process, per request. The sum of the credits is compared with
the simulator's.
"""

FLOOR: Final = (
    "In a profile on a busy machine (the least of thirty rounds, in µs of CPU time) theirs takes 415, of which 115 are "
    "for `json`. Ours takes 315 to receive and unpack the response within the time limit, of which 55 are for the task "
    "that the limit can cancel and for its timer; 150 for decoding, where nearly all of so few rows have credits of "
    "their own, each of which becomes a decimal and is rounded and checked; 15 for the rest of the hook; and 95 to "
    "hand the request to the thread of the event loop and back, which takes 25 to 40 if nothing is received in "
    "between: the processor's caches and the interpreter's lock change hands, which costs more while other processes "
    "are busy. The time limit and the thread stay: Airflow ends a task by an exception in its main thread, which an "
    "event loop there could drop. `tenacity` takes 30, but only after a failure. Tried: quantizing all decimals of a "
    "response in one loop saves 5, waiting for the time limit without `asyncio.wait` 3."
)


def section(size: Size) -> Section:
    """Measure one request."""
    rounds = compare(size.rounds)
    return Section(
        title="One request",
        how=HOW.format(requests=REQUESTS),
        results=[
            Result(
                what="one synchronous request over a connection that is open",
                against="`aiohttp` alone",
                aim="at most 1.3 times its time",
                ours=f"{rounds.our('cpu') * 1e6:,.0f} µs (clock: {rounds.our('wall') * 1e6:,.0f} µs)",
                theirs=f"{rounds.their('cpu') * 1e6:,.0f} µs (clock: {rounds.their('wall') * 1e6:,.0f} µs)",
                value=1 / rounds.ratio("cpu"),
                limit=1.3,
                why=FLOOR,
            )
        ],
    )


@contextmanager
def hook(url: str) -> Iterator[Send]:
    """Yield ours: a synchronous call of the hook, whose report is checked."""
    from reducto_provider.hooks.reducto import ReductoHook
    from reducto_provider.usage.query import UsageQuery

    reducto, query = ReductoHook("reducto_default"), UsageQuery(start=FIRST, end=LAST, org_id=ORG)
    yield lambda: sum((row.credits for row in reducto.get_usage(query).rows if row.credits is not None), Decimal(0))


@contextmanager
def aiohttp_alone(url: str) -> Iterator[Send]:
    """Yield theirs: a call that runs an event loop until aiohttp has the JSON of the answer."""
    import asyncio

    import aiohttp

    headers = {"Authorization": "Bearer sim-key-all"}
    parameters = {"startDate": str(FIRST), "endDate": str(LAST), "groupBy": "product", "orgId": ORG}

    async def send(session: aiohttp.ClientSession) -> float:
        async with session.get(f"{url}/api/v1/usage/export", params=parameters) as response:
            response.raise_for_status()
            rows = (await response.json())["data"]
            return sum(float(row["credits"]) for row in rows)

    async def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers=headers)

    with asyncio.Runner() as runner:
        session = runner.run(open_session())
        yield lambda: runner.get_loop().run_until_complete(send(session))
        runner.run(session.close())


SIDES: Final = {"ours": hook, "theirs": aiohttp_alone}


def compare(rounds: int) -> Rounds:
    """
    Send requests in turns, and measure the time of each.

    :raises WrongOutputError: if the credits are wrong, or if there was more than one connection.
    """
    from benchmarks.airflow_task import connections
    from simulator import Simulator

    with Simulator() as simulator:
        credits = sum(row.credits for row in simulator.truth(ORG, FIRST, LAST))

        def take(side: str) -> Sample:
            simulator.journal.clear()
            found = in_a_process(__name__, side, simulator.url, env=connections(simulator.url))
            check_equal(round(Decimal(found["credits"]), 6), round(credits, 6), f"{side}: the credits")
            check_equal(len(simulator.requests), REQUESTS + WARM_UP, f"{side}: the number of requests")
            sample: Sample = found["sample"]
            return {name: value / REQUESTS for name, value in sample.items()}

        return Rounds(rounds, lambda: take("ours"), lambda: take("theirs"))


def main(side: str, url: str) -> None:
    """Send many requests, and print the measurement."""
    sample: Sample = {}
    with SIDES[side](url) as send:
        for _ in range(WARM_UP):
            send()
        with measured(sample):
            for _ in range(REQUESTS):
                found = send()
    print(json.dumps({"sample": sample, "credits": str(found)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

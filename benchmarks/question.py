"""Measure synchronous questions over a connection that is open: the hook's, or those of aiohttp alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from typing import Any, Final

from benchmarks.measuring import Rounds, Sample, check_equal, in_a_process, measured

ORG: Final = "org_acme"
FIRST, LAST = date(2026, 6, 1), date(2026, 6, 30)
QUESTIONS: Final = 500
WARM_UP: Final = 20

Ask = Callable[[], Any]


@contextmanager
def hook(url: str) -> Iterator[Ask]:
    """Yield ours: a synchronous call of the hook, whose report is checked."""
    from reducto_provider.hooks.reducto import ReductoHook
    from reducto_provider.usage.query import UsageQuery

    asked, query = ReductoHook("reducto_default"), UsageQuery(start=FIRST, end=LAST, org_id=ORG)
    yield lambda: sum((row.credits for row in asked.get_usage(query).rows if row.credits is not None), Decimal(0))


@contextmanager
def aiohttp_alone(url: str) -> Iterator[Ask]:
    """Yield theirs: a call that runs an event loop until aiohttp has the JSON of the answer."""
    import asyncio

    import aiohttp

    headers = {"Authorization": "Bearer sim-key-all"}
    asked = {"startDate": str(FIRST), "endDate": str(LAST), "groupBy": "product", "orgId": ORG}

    async def ask(session: aiohttp.ClientSession) -> float:
        async with session.get(f"{url}/api/v1/usage/export", params=asked) as response:
            response.raise_for_status()
            rows = (await response.json())["data"]
            return sum(float(row["credits"]) for row in rows)

    async def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers=headers)

    with asyncio.Runner() as runner:
        session = runner.run(open_session())
        yield lambda: runner.get_loop().run_until_complete(ask(session))
        runner.run(session.close())


SIDES: Final = {"ours": hook, "theirs": aiohttp_alone}


def compare(rounds: int) -> Rounds:
    """
    Ask in turns, and measure the time of a question.

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
            check_equal(len(simulator.requests), QUESTIONS + WARM_UP, f"{side}: the number of requests")
            sample: Sample = found["sample"]
            return {name: value / QUESTIONS for name, value in sample.items()}

        return Rounds(rounds, lambda: take("ours"), lambda: take("theirs"))


def main(side: str, url: str) -> None:
    """Ask many times, and print the measurement."""
    sample: Sample = {}
    with SIDES[side](url) as ask:
        for _ in range(WARM_UP):
            ask()
        with measured(sample):
            for _ in range(QUESTIONS):
                found = ask()
    print(json.dumps({"sample": sample, "credits": str(found)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

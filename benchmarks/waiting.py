"""Measure a thousand waits with fifty queries in a triggerer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from benchmarks import triggerer
from benchmarks.measuring import Sample, check_equal, in_a_process
from benchmarks.section import Result, Section, Size, mib, seconds
from benchmarks.triggerer import FIRST, LAST

ADDED: Final = Decimal("10.5")
"""Credits that are added at the end: sensors with a lower threshold fire, those with a higher one do not."""

MAX_ROUNDS: Final = 2
"""How often each side is measured at most: once takes two minutes."""

HOW: Final = """
{sensors:,} triggers of deferred sensors run in the process in which Airflow's triggerer runs triggers. Airflow's own
supervisor feeds it with triggers from memory instead of the database. {queries} organizations are queried, each by as
many sensors, ours with different thresholds, every {interval:g} seconds. Measured after one and a half intervals: CPU
time in one interval, beyond that of the same process without the triggers; added memory; requests in the simulator's
log, half of those in two intervals; and stalls in the second interval: the delay of an additional trigger that
repeatedly sleeps for 5 ms, minus the time in which other processes had the CPU. Rounds: {rounds}, of which the least
CPU time and memory count, and otherwise the largest figures.

`HttpSensor` cannot inspect a response while it is deferred: it waits for a status other than 404, so the simulator
answers its requests with 404; ours reads a month of usage each time. Then as many more start to wait, to measure their
additional memory. At the end usage increases (and theirs gets its response): exactly those fire whose threshold is
exceeded, with the simulator's figures.
"""

MEMORY: Final = """
| memory | sleeping triggers | ours | theirs |
| --- | ---: | ---: | ---: |
| the first {sensors:,}, with code that is loaded once | {first} |
| {sensors:,} more | {further} |
"""


def section(size: Size) -> Section:
    """Measure sensors that wait."""
    rounds = min(size.rounds, MAX_ROUNDS)
    nothing, ours, theirs = (
        least([run(side, size.sensors, size.queries, size.interval) for _ in range(rounds)])
        for side in ("nothing", "ours", "theirs")
    )
    what = f"{size.sensors:,} waiting sensors with {size.queries} queries, one interval"
    against = "`HttpSensor`, deferrable"
    sides = {"nothing": nothing, "ours": ours, "theirs": theirs}
    extra = {name: max(each["cpu"] - each["idle cpu"], 1e-3) for name, each in sides.items()}
    return Section(
        title="Sensors that wait",
        how=HOW.format(sensors=size.sensors, queries=size.queries, interval=size.interval, rounds=rounds),
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
                why=f"Airflow takes {seconds(extra['nothing'])} for as many triggers that only sleep, and fifty "
                "requests some 50 ms. The rest is evaluating a thousand polls, 15 ms in a profile, and not in "
                "this package: Airflow passes each poll to every trigger that shares it. Tried: a poll in which "
                "nothing changed has no line in the log; and of the readers of a small report, only each "
                "twentieth waits for a turn of the event loop, which takes a tenth to a quarter off a poll.",
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
                "is loaded once: `aiohttp`, `requests` and the HTTP provider take 12 MiB, some 18 MiB with what they "
                "touch of libcrypto and others, on either side; the modules of this package 1 MiB. Of what a further "
                "one of ours takes beyond a sleeping one, 3 KiB are four empty deques of the queue through which "
                "Airflow passes polls. So the floor is that of sleeping ones with the HTTP code and the queues, "
                "a half of theirs. Tried: arguments in slots, since a dict of more than thirty attributes takes "
                "1.5 KiB; texts and the query shared between triggers; no generator between Airflow's stream and "
                "the trigger. Together they take 2 to 3 KiB off each.",
            ),
        ],
        after=MEMORY.format(
            sensors=size.sensors,
            first=" | ".join(mib(each["memory"]) for each in sides.values()),
            further=" | ".join(mib(each["memory of as many more"]) for each in sides.values()),
        ),
    )


def least(samples: Sequence[Sample]) -> Sample:
    """Return the least CPU time and memory of some samples, and the largest of their other figures."""
    quickest = min(samples, key=lambda each: each["cpu"] - each["idle cpu"])
    return {
        **{name: max(each[name] for each in samples) for name in samples[0]},
        **{name: quickest[name] for name in ("cpu", "idle cpu")},
        **{name: min(each[name] for each in samples) for name in ("memory", "memory of as many more")},
    }


def queries(count: int) -> list[dict[str, str]]:
    """Return the parameters of ``count`` queries, each for a different organization."""
    days = {"startDate": str(FIRST), "endDate": str(LAST), "groupBy": "product"}
    return [{**days, "orgId": f"org_{number:04}"} for number in range(count)]


def run(side: str, sensors: int, query_count: int, interval: float) -> Sample:
    """
    Let sensors wait, and measure one interval.

    :raises WrongOutputError: unless exactly the right triggers fire, with the right figures.
    """
    from benchmarks.airflow_task import connections
    from benchmarks.fleet import organizations
    from simulator import Simulator, status

    parameters = queries(query_count)
    fleet = organizations(query_count)
    with Simulator(fleet) as simulator, tempfile.TemporaryDirectory(prefix="reducto-bench-") as folder:
        used = [sum(row.credits for row in simulator.truth(each.id, FIRST, LAST)) for each in fleet]
        if side == "theirs":
            simulator.faults.add(status(404), times=None)
        expected = {
            number: used[number % query_count] + ADDED
            for number in range(2 * sensors)
            if side == "theirs" or (side == "ours" and 1 + number // query_count < ADDED)
        }
        extra = [{"org": each.id, "day": str(LAST), "credits": str(ADDED), "requests": 1} for each in fleet]
        then = ("/_simulator/", "DELETE", [{}]) if side == "theirs" else ("/_simulator/usage", "POST", extra)
        options = {
            "side": side,
            "sensors": sensors,
            "interval": interval,
            "folder": folder,
            "url": simulator.url,
            "parameters": parameters,
            "used": [str(value) for value in used],
            "then": then,
            "fire": len(expected),
        }
        env = {"AIRFLOW_HOME": folder, "AIRFLOW__CORE__LOAD_EXAMPLES": "False", **connections(simulator.url)}
        found = in_a_process(triggerer.__name__, json.dumps(options), env=env)
        sample: Sample = found["sample"]
    check_equal(found["failures"], [], f"{side}: triggers that failed")
    check_equal(sample["early events"], 0, f"{side}: events before there was one")
    check_equal(sorted(number for number, _ in found["events"]), sorted(expected), f"{side}: which fired")
    if side == "ours":
        values = {number: Decimal(str(payload["reading"]["value"])) for number, payload in found["events"]}
        check_equal(values, expected, "the figures of those that fired")
    if side != "nothing":
        check_equal(sample["queries"], query_count, f"{side}: the number of different queries")
    return sample

"""
The process in which Airflow's triggerer runs triggers, with waiting ones, measured.

The supervisor is Airflow's own, fed with triggers from memory instead of the database. The process that it starts,
which runs the triggers and is measured, is Airflow's unchanged. One of the triggers only reads the clock, to find
stalls of the loop.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from airflow.triggers.base import BaseTrigger, TriggerEvent

from benchmarks.measuring import memory

FIRST, LAST = date(2026, 6, 1), date(2026, 6, 30)
PAUSE: Final = 0.005
WORTH_NOTING: Final = 0.002
STARTING: Final = 3.0
"""Seconds until the process has finished starting."""


class StallProbe(BaseTrigger):
    """
    Writes stalls of the event loop to a file, once a second file exists.

    Time in which other processes had the CPU does not count.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.folder = folder

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "benchmarks.triggerer.StallProbe", {"folder": self.folder}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        import asyncio

        with Path(self.folder, "stalls").open("a") as file:  # noqa: ASYNC230
            while not Path(self.folder, "go").exists():  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(1)
            while True:
                clock, computed, waited = time.monotonic(), time.process_time(), _seconds_waited()
                await asyncio.sleep(PAUSE)
                idle = time.monotonic() - clock - PAUSE - (_seconds_waited() - waited)
                if (stall := max(time.process_time() - computed, idle)) > WORTH_NOTING:
                    file.write(f"{clock} {stall}\n")
                    file.flush()
        yield TriggerEvent(None)


class Sleeper(BaseTrigger):
    """Only sleeps, to measure what a waiting trigger costs Airflow itself."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "benchmarks.triggerer.Sleeper", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        import asyncio

        await asyncio.sleep(3600)
        yield TriggerEvent(None)  # type: ignore[no-untyped-call]


def _seconds_waited() -> float:
    """Return the seconds for which this thread was runnable while others had the CPU."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def triggers(
    side: str, numbers: range, parameters: list[dict[str, str]], used: list[str], interval: float
) -> list[BaseTrigger]:
    """Return the triggers of deferred sensors, with equally many for each query."""
    if side == "nothing":
        return [Sleeper() for _ in numbers]
    if side == "theirs":
        from airflow.providers.http.triggers.http import HttpSensorTrigger

        return [
            HttpSensorTrigger(
                endpoint="api/v1/usage/export",
                http_conn_id="usage_service",
                data=parameters[number % len(parameters)],
                poke_interval=interval,
            )
            for number in numbers
        ]
    from reducto_provider.triggers.threshold import ReductoUsageThresholdTrigger

    return [
        ReductoUsageThresholdTrigger(
            reducto_conn_id="reducto_default",
            org_id=parameters[number % len(parameters)]["orgId"],
            usage_start_date=str(FIRST),
            usage_end_date=str(LAST),
            threshold=str(Decimal(used[number % len(parameters)]) + 1 + number // len(parameters)),
            wait_when_closed=True,
            poke_interval=interval,
        )
        for number in numbers
    ]


def main(options: dict[str, Any]) -> None:
    """Run one side once, and print the measurement and the events."""
    import psutil
    from airflow.executors.workloads.trigger import RunTrigger
    from airflow.jobs.triggerer_job_runner import TriggerRunnerSupervisor
    from airflow.models.trigger import Trigger

    folder, interval = Path(options["folder"]), float(options["interval"])
    waiting: list[RunTrigger] = []
    events: list[tuple[int, Any]] = []
    failures: list[tuple[int, Any]] = []

    def workload(number: int, trigger: BaseTrigger) -> RunTrigger:
        classpath, kwargs = trigger.serialize()
        return RunTrigger(id=number, classpath=classpath, encrypted_kwargs=Trigger.encrypt_kwargs(kwargs))

    class Supervisor(TriggerRunnerSupervisor):
        def load_triggers(self) -> None:
            self.creating_triggers.extend(waiting)
            waiting.clear()

        def on_trigger_event(self, trigger_id: int, event: TriggerEvent) -> None:
            events.append((trigger_id, event.payload))

        def on_trigger_failure(self, trigger_id: int, exc: list[str] | None) -> None:
            failures.append((trigger_id, exc))

        def heartbeat(self) -> None: ...
        def clean_unused(self) -> None: ...
        def emit_metrics(self) -> None: ...

    supervisor = Supervisor.start(capacity=2 * options["sensors"] + 1)
    runner = psutil.Process(supervisor.pid)

    def serve(seconds: float, enough: int | None = None) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and (enough is None or len(events) < enough):
            supervisor.run_once()

    def cpu() -> float:
        times = runner.cpu_times()
        return float(times.user + times.system)

    waiting.append(workload(1_000_000, StallProbe(str(folder))))
    while not (folder / "stalls").exists():
        supervisor.run_once()
    serve(STARTING)

    def cpu_of_an_interval() -> float:
        before, start = cpu(), time.monotonic()
        serve(interval)
        return (cpu() - before) * interval / (time.monotonic() - start)

    def begin(first: int) -> None:
        numbers = range(first, first + options["sensors"])
        made = triggers(options["side"], numbers, options["parameters"], options["used"], interval)
        waiting.extend(map(workload, numbers, made))
        serve(interval if options["side"] == "nothing" else 1.5 * interval + 3)

    idle = cpu_of_an_interval()
    resident = memory("VmRSS", runner.pid)
    begin(0)

    start = time.monotonic()
    sample = {
        "idle cpu": idle,
        "cpu": cpu_of_an_interval(),
        "memory": memory("VmRSS", runner.pid) - resident,
        "resident": resident,
        "early events": len(events),
    }
    if options["side"] != "nothing":
        (folder / "go").touch()
        serve(2 + interval)
        sample["longest stall"] = max((stall for at, stall in _stalls(folder)), default=0.0)
        with urllib.request.urlopen(options["url"] + "/_simulator/requests") as answer:  # noqa: S310
            requests = json.load(answer)["requests"]
        received = [each["queryString"] for each in requests if start <= each["monotonic"] < start + 2 * interval]
        sample |= {"requests": len(received) / 2, "queries": len(set(received))}
    resident = memory("VmRSS", runner.pid)
    begin(options["sensors"])
    sample["memory of as many more"] = memory("VmRSS", runner.pid) - resident
    if options["side"] != "nothing":
        path, method, bodies = options["then"]
        for body in bodies:
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(  # noqa: S310
                options["url"] + path, json.dumps(body).encode(), headers, method=method
            )
            urllib.request.urlopen(request).close()  # noqa: S310
        serve(10 * interval, options["fire"])  # less where nothing else runs
        serve(2)
    supervisor.kill()
    print(json.dumps({"sample": sample, "events": events, "failures": failures}, default=str))


def _stalls(folder: Path) -> Iterable[tuple[float, float]]:
    for line in (folder / "stalls").read_text().splitlines():
        at, stall = line.split()
        yield float(at), float(stall)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""
Hundreds of runs in processes that live on, and what these hold meanwhile: `make soak`.

An hour of a schedule by the minute is made up for in minutes, for several organizations, against a simulator that gives
a tenth of its answers wrong: once by real Airflow processes, and once by operators, sensors and triggers called over
and over in a single process, where a leak of ours has nowhere to hide. Sampled are memory, files and sockets of every
process that lives from the end of the warm-up to the end. The results are written to docs/soak.md.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import psutil

PAGE = Path(__file__).parents[1] / "docs/soak.md"
ORGANIZATIONS = ("org_acme", "org_globex", "org_initech")
WARM_UP = 1 / 3
"""The share of the runs whose samples do not count: modules are imported, pools and caches filled."""

MEASURES = ("memory in MiB", "open files", "sockets", "threads")
BOUNDS = {"memory in MiB": 2.0, "open files": 1.0, "sockets": 1.0, "threads": 1.0}
"""What a process may grow by in 100 runs."""

DAG = """
from datetime import datetime, timedelta
from airflow.sdk import DAG
from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor

for org_id in {organizations}:
    with DAG(
        f"soak_{{org_id}}",
        schedule="* * * * *",
        start_date=datetime.fromisoformat("{start}"),
        end_date=datetime.fromisoformat("{end}"),
        catchup=True,
        max_active_runs=4,
        default_args={{"retries": 3, "retry_delay": timedelta(seconds=1)}},
    ):
        ReductoUsageExportOperator(
            task_id="export", org_id=org_id, output_path=f"file://{folder}/usage", lookback_days=2
        ) >> ReductoUsageThresholdSensor(
            task_id="wait",
            org_id=org_id,
            threshold=10**9,
            deferrable=True,
            poke_interval=1,
            timeout=4,
            soft_fail=True,
        )
"""


@dataclass(frozen=True)
class Sample:
    """What a process held when so many runs were done."""

    runs: int
    held: tuple[float, ...]


@dataclass(frozen=True)
class Growth:
    """The memory of a process: what it held after the warm-up and at the end, and its growth in 100 runs."""

    process: str
    samples: int
    first: tuple[float, ...]
    last: tuple[float, ...]
    slopes: tuple[float, ...]

    @property
    def too_much(self) -> list[str]:
        return [
            f"{self.process}: {slope:+.2f} {measure} in 100 runs"
            for measure, slope in zip(MEASURES, self.slopes, strict=True)
            if slope > BOUNDS[measure]
        ]


def held_by(process: psutil.Process) -> tuple[float, ...]:
    descriptors = [Path(entry.path) for entry in os.scandir(f"/proc/{process.pid}/fd")]
    targets = []
    for descriptor in descriptors:
        with suppress(OSError):  # closed meanwhile, as that of the listing itself
            targets.append(str(descriptor.readlink()))
    sockets = sum(target.startswith("socket:") for target in targets)
    return process.memory_info().rss / 2**20, float(len(targets)), float(sockets), float(process.num_threads())


def growth_of(name: str, samples: Sequence[Sample]) -> Growth:
    """The median slope between any two samples, which a few odd ones do not sway; first and last are medians too."""
    several = len(samples) // 5 or 1
    columns = list(zip(*(sample.held for sample in samples), strict=True))
    slopes = []
    for column in columns:
        points = list(zip((sample.runs for sample in samples), column, strict=True))
        pairs = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] > a[0]]
        slopes.append(100 * median(pairs) if pairs else 0.0)
    return Growth(
        name,
        len(samples),
        tuple(median(column[:several]) for column in columns),
        tuple(median(column[-several:]) for column in columns),
        tuple(slopes),
    )


@contextmanager
def simulator() -> Iterator[str]:
    """The service in a process of its own, whose memory is not what is looked at."""
    command = [sys.executable, "-m", "simulator", "--port", "0", "--fault-rate", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def connection(url: str) -> str:
    extra = {"timeout": 2, "max_attempts": 5}
    return json.dumps({"conn_type": "reducto", "host": url, "password": "sim-key-all", "extra": extra})


# -- one process


async def wait_over_and_over(organization: str, batch: int) -> None:
    """A batch of waits that end, as a triggerer has them."""
    from reducto_provider.triggers.threshold import ReductoUsageThresholdTrigger

    async def wait(number: int) -> None:
        trigger = ReductoUsageThresholdTrigger(
            reducto_conn_id="reducto_default",
            org_id=organization,
            usage_start_date="2026-06-01",
            usage_end_date="2026-06-30",
            threshold="0" if number % 2 else "1e15",
            poke_interval=1,
            poll_immediately=True,
            deadline=time.time() + 1,
        )
        async for _ in trigger.run():
            break

    await asyncio.gather(*(wait(number) for number in range(batch)))


async def watch() -> None:
    """A watcher, which never ends."""
    from reducto_provider.triggers.levels import ReductoUsageLevelTrigger

    async for _ in ReductoUsageLevelTrigger(org_id="org_acme", budget=10**9, poke_interval=1).run():
        pass


def run_once(number: int, folder: Path) -> None:
    """What a worker does in one run, and more of it than fits into one DAG."""
    from reducto_provider.exceptions import ReductoError
    from reducto_provider.operators.export import ReductoUsageExportOperator
    from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator
    from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor

    organization = ORGANIZATIONS[number % len(ORGANIZATIONS)]
    moment = datetime.now(UTC) - timedelta(days=number % 300)
    run = SimpleNamespace(
        data_interval_end=moment, data_interval_start=moment - timedelta(days=1), run_type="scheduled"
    )
    ti = SimpleNamespace(
        dag_id="soak",
        run_id=str(number),
        task_id="t",
        map_index=-1,
        try_number=1,
        max_tries=0,
        xcom_push=lambda **_: None,
    )
    context: Any = {"ti": ti, "dag_run": run}
    tasks: list[Callable[[], object]] = [
        lambda: ReductoUsageExportOperator(
            task_id="a", org_id=organization, output_path=f"file://{folder}/a", output_format="parquet"
        ).execute(context),
        lambda: ReductoUsageExportOperator(task_id="b", org_id=organization).execute(context),
        lambda: ReductoUsageFleetExportOperator(
            task_id="c", organizations=list(ORGANIZATIONS), output_path=f"file://{folder}/c"
        ).execute(context),
        lambda: ReductoUsageThresholdSensor(
            task_id="d", org_id=organization, threshold=10**9, on_closed_window="wait"
        ).poke(context),
    ]
    for task in tasks:
        with suppress(ReductoError):  # five attempts may all have failed
            task()


async def loop(url: str, runs: int, batch: int) -> list[Sample]:
    os.environ["AIRFLOW_CONN_REDUCTO_DEFAULT"] = connection(url)
    this, samples = psutil.Process(), []
    watching = asyncio.create_task(watch())
    with tempfile.TemporaryDirectory() as folder:
        for done in range(0, runs, batch):
            for number in range(done, done + batch):
                await asyncio.to_thread(run_once, number, Path(folder))
            await wait_over_and_over(ORGANIZATIONS[done // batch % len(ORGANIZATIONS)], batch)
            gc.collect()
            samples.append(Sample(done + batch, held_by(this)))
    watching.cancel()
    return samples


def soak_one_process(runs: int) -> list[Growth]:
    with simulator() as url:
        samples = asyncio.run(loop(url, runs, batch=10))
    return [growth_of("one process of all", [each for each in samples if each.runs > runs * WARM_UP])]


# -- real processes


def soak_airflow(minutes: int, timeout: float) -> tuple[int, list[Growth], list[str]]:
    """How many runs, the growth of scheduler, workers and triggerer meanwhile, and which runs failed."""
    from tests.real_airflow.deployment import AirflowDeployment
    from tests.real_airflow.running import FINISHED

    runs = minutes * len(ORGANIZATIONS)
    start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=minutes + 1)
    end = start + timedelta(minutes=minutes - 1)
    samples: dict[tuple[str, int], list[Sample]] = {}
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, simulator() as url:
        home, dags = Path(folder, "airflow"), Path(folder, "dags")
        home.mkdir()
        dags.mkdir()
        names = {"organizations": ORGANIZATIONS, "start": start.isoformat(), "end": end.isoformat(), "folder": folder}
        (dags / "soak.py").write_text(DAG.format(**names))
        with AirflowDeployment(home, dags, {"AIRFLOW_CONN_REDUCTO_DEFAULT": connection(url)}) as airflow:
            for org_id in ORGANIZATIONS:
                airflow.unpause(f"soak_{org_id}")
            over = time.monotonic() + timeout
            done = 0
            while done < runs and time.monotonic() < over:
                time.sleep(2)
                states = [run["state"] for org_id in ORGANIZATIONS for run in airflow.runs(f"soak_{org_id}")]
                done = sum(state in FINISHED for state in states)
                print(f"\r{done} of {runs} runs", end="", file=sys.stderr, flush=True)
                for service in ("scheduler", "triggerer"):
                    for process in airflow.processes(service):
                        with suppress(psutil.Error, OSError):
                            program, *arguments = process.cmdline() or [process.name()]  # a zombie has none
                            name = " ".join([service + ":", Path(program).name, *arguments][:5]).strip()
                            samples.setdefault((name, process.pid), []).append(Sample(done, held_by(process)))
            assert done, "not one run was finished"
            for org_id in ORGANIZATIONS:
                for run in airflow.runs(f"soak_{org_id}"):
                    failed += [
                        f"{run['dag_run_id']}, {ti['task_id']} of {org_id}, try {ti['try_number']}:\n"
                        + airflow.log(run["dag_id"], run["dag_run_id"], ti["task_id"], ti["try_number"])
                        for ti in airflow.task_instances(run["dag_id"], run["dag_run_id"])
                        if ti["state"] == "failed"
                    ]
    lived = {
        process: [each for each in its if each.runs > done * WARM_UP]
        for process, its in samples.items()
        if its[0].runs <= done * WARM_UP and its[-1].runs == done
    }
    return done, [growth_of(name, its) for (name, _), its in lived.items()], failed


def table(growths: Sequence[Growth]) -> str:
    rows = [
        "| process | samples | " + " | ".join(f"{measure} | in 100 runs" for measure in MEASURES) + " |",
        "| --- | ---: |" + " ---: | ---: |" * len(MEASURES),
    ]
    for each in growths:
        cells = [
            f"{first:.4g} to {last:.4g} | {slope:+.2f}"
            for first, last, slope in zip(each.first, each.last, each.slopes, strict=True)
        ]
        rows.append(f"| {each.process} | {each.samples} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> int:
    """Soak, print the figures, and put them into the page; 1 if anything grows."""
    parser = argparse.ArgumentParser("python -m tests.soak", description=main.__doc__)
    parser.add_argument("--runs", type=int, default=300, help="runs in the one process (%(default)s)")
    parser.add_argument("--minutes", type=int, default=60, help="of schedule that Airflow makes up for (%(default)s)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that Airflow may take (%(default)s)")
    options = parser.parse_args()
    parts: dict[str, str] = {}
    grown: list[Growth] = []
    failed: list[str] = []
    if options.runs:
        growths = soak_one_process(options.runs)
        parts["one process"] = f"{options.runs} runs.\n\n{table(growths)}"
        grown += growths
    if options.minutes:
        done, growths, failed = soak_airflow(options.minutes, options.timeout)
        parts["airflow"] = f"{done} runs, {len(failed)} failed.\n\n{table(growths)}"
        grown += growths
    page = PAGE.read_text()
    for name, text in parts.items():
        print(f"{name}: {text}\n")
        before, start, rest = page.partition(f"<!-- {name} -->\n")
        page = before + start + f"\n{text}\n\n" + rest[rest.index(f"<!-- /{name} -->") :]
    PAGE.write_text(page)
    too_much = [text for each in grown for text in each.too_much]
    print("\n".join(too_much + failed) or "Nothing grows, and no run failed.")
    return 1 if too_much or failed else 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["AIRFLOW_HOME"] = home
        sys.exit(main())

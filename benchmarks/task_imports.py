"""Measure what an export task loads beside an empty one, in a process that has loaded what any task needs."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.measuring import Sample, check_equal, in_a_process

ORG: Final = "org_acme"
DAY: Final = "2026-06-03"


def take(url: str) -> Sample:
    """
    Measure the imports of a task in a fresh process, in CPU seconds: what a first export takes beyond a second one.

    :raises WrongOutputError: if the exports do not write a file each.
    """
    from benchmarks.airflow_task import connections

    with tempfile.TemporaryDirectory(prefix="reducto-bench-") as home:
        found: dict[str, Any] = in_a_process(__name__, home, env={"AIRFLOW_HOME": home, **connections(url)})
    check_equal(found.pop("files"), 2, "the number of files")
    return found


def rounds(count: int) -> dict[str, float]:
    """Return the least figures of ``count`` processes, after one that fills the file cache."""
    from simulator import Simulator

    with Simulator() as simulator:
        take(simulator.url)
        samples = [take(simulator.url) for _ in range(count)]
    least = {name: min(sample[name] for sample in samples) for name in samples[0]}
    least["share"] = least["ours"] / least["airflow"]
    return least


def main(home: str) -> None:
    """Run an empty task and two exports, of which the second loads nothing, and print the measurement."""
    cpu = time.process_time
    moments = [cpu()]
    from airflow.sdk import DAG, BaseOperator, BaseSensorOperator  # noqa: F401  # lazy: named, they are loaded

    moments.append(cpu())
    for name in ("supervisor", "task_runner"):  # of which every task's process is a fork
        importlib.import_module(f"airflow.sdk.execution_time.{name}")
    from airflow.providers.standard.operators.empty import EmptyOperator

    EmptyOperator(task_id="empty").execute({})
    before = set(sys.modules)
    moments.append(cpu())
    from reducto_provider.operators.export import ReductoUsageExportOperator

    def export(name: str) -> None:
        task = ReductoUsageExportOperator(
            task_id=name,
            org_id=ORG,
            usage_start_date=DAY,
            usage_end_date=DAY,
            output_path=f"{home}/{name}",
        )
        ti = type("TaskInstance", (), {"dag_id": "d", "run_id": "r", "task_id": name, "map_index": -1})
        task.execute({"ti": ti, "outlet_events": {}})  # type: ignore[typeddict-item]

    for name in ("first", "second"):
        export(name)
        moments.append(cpu())
    _, airflow, _, first, second = (after - before for before, after in zip([0.0, *moments], moments, strict=False))
    new = set(sys.modules) - before
    print(
        json.dumps(
            {
                "airflow": airflow,
                "ours": first - second,
                "modules": len(new),
                "files": len(list(Path(home).glob("*/data/**/usage.jsonl"))),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])

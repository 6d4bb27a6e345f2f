"""Parsing a DAG file: what importing operators, sensors and triggers costs on top of Airflow's own import."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from statistics import median
from typing import Any, Final

from benchmarks.measuring import Sample, check, in_a_process

MODULES: Final = ("operators.usage", "sensors.usage", "triggers.usage")
HEAVY: Final = {
    *("aiohttp", "requests", "urllib3", "tenacity", "fsspec", "upath", "boto3", "botocore", "pyarrow", "pandas"),
    *("numpy", "duckdb", "airflow.providers.http.hooks", "airflow.io", "airflow.sdk.io"),
}
"""What no DAG file should have to load for us."""


def take() -> Sample:
    """
    The time of both imports in a fresh process, in seconds of its processor and by the clock.

    :raises WrongOutputError: when ours loads something heavy.
    """
    with tempfile.TemporaryDirectory(prefix="reducto-bench-") as home:
        found: dict[str, Any] = in_a_process(__name__, env={"AIRFLOW_HOME": home})
    check(not found["heavy"], f"importing loads {found['heavy']}")
    return {name: value for name, value in found.items() if name != "heavy"}


def rounds(count: int) -> dict[str, float]:
    """The medians of so many processes, after one that fills the cache of files."""
    take()
    samples = [take() for _ in range(count)]
    medians = {name: median(sample[name] for sample in samples) for name in samples[0]}
    medians["share"] = median(sample["ours"] / sample["airflow"] for sample in samples)
    medians["wall share"] = median(sample["ours wall"] / sample["airflow wall"] for sample in samples)
    return medians


def main() -> None:
    """Import, and print what it took."""
    before = time.process_time(), time.perf_counter()
    from airflow.sdk import DAG, BaseOperator, BaseSensorOperator  # noqa: F401  # lazy: named, they are loaded

    between = time.process_time(), time.perf_counter()
    loaded = set(sys.modules)
    import reducto_provider.operators.usage
    import reducto_provider.sensors.usage
    import reducto_provider.triggers.usage  # noqa: F401

    after = time.process_time(), time.perf_counter()
    new = set(sys.modules) - loaded
    sample = {
        "airflow": between[0] - before[0],
        "airflow wall": between[1] - before[1],
        "ours": after[0] - between[0],
        "ours wall": after[1] - between[1],
        "modules": len(new),
        "heavy": sorted(HEAVY & new),
    }
    print(json.dumps(sample))


if __name__ == "__main__":
    main()

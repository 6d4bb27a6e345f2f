"""Measure what importing operators, sensors and triggers adds to Airflow's own import in a DAG file."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any, Final

from benchmarks.measuring import Sample, check, in_a_process

MODULES: Final = (
    *("operators.export", "operators.fleet", "operators.reconciliation"),
    *("sensors.threshold", "triggers.threshold", "triggers.levels"),
)
HEAVY: Final = {
    *("aiohttp", "requests", "urllib3", "tenacity", "fsspec", "upath", "boto3", "botocore", "pyarrow", "pandas"),
    *("numpy", "duckdb", "croniter", "airflow.providers.http.hooks", "airflow.io", "airflow.sdk.io"),
}
"""Modules that this package must not load when a DAG file is parsed."""


def take() -> Sample:
    """
    Measure both imports in a fresh process, in CPU and wall-clock seconds.

    :raises WrongOutputError: if ours loads something heavy.
    """
    with tempfile.TemporaryDirectory(prefix="reducto-bench-") as home:
        found: dict[str, Any] = in_a_process(__name__, env={"AIRFLOW_HOME": home})
    check(not found["heavy"], f"importing loads {found['heavy']}")
    return {name: value for name, value in found.items() if name != "heavy"}


def rounds(count: int) -> dict[str, float]:
    """Return the least figures of ``count`` processes, after one that fills the file cache."""
    take()
    samples = [take() for _ in range(count)]
    least = {name: min(sample[name] for sample in samples) for name in samples[0]}
    least["share"] = least["ours"] / least["airflow"]
    return least


def main() -> None:
    """Import, and print the measurement."""
    before = time.process_time(), time.perf_counter()
    from airflow.sdk import DAG, BaseOperator, BaseSensorOperator  # noqa: F401  # lazy: named, they are loaded

    between = time.process_time(), time.perf_counter()
    loaded = set(sys.modules)
    import reducto_provider.operators.export
    import reducto_provider.operators.fleet
    import reducto_provider.operators.reconciliation
    import reducto_provider.sensors.threshold
    import reducto_provider.triggers.levels
    import reducto_provider.triggers.threshold  # noqa: F401

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

"""Execute an operator in a separate process, and check the files that it writes."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, Final

from benchmarks.airflow_task import connections
from benchmarks.answers import ORG
from benchmarks.measuring import Sample, check_equal, in_a_process, measured
from benchmarks.places import WARM_UP_NAME, Place
from simulator import Simulator

FILE: Final = re.compile(r"data/org_id=([^/]+)/group_by=([^/]+)/dt=([^/]+)/usage\.jsonl")

Usage = dict[tuple[str, str, date], list[tuple[str | None, Decimal | None, int]]]
"""Groups, credits and requests by organization, dimension and day."""


def execute(url: str, place: Place, days: tuple[date, date], **options: Any) -> Sample:
    """
    Execute an operator in a separate process, and count the requests that the place gets.

    :param options: further arguments of the operator, which is a fleet's if one is ``organizations``.
    """
    arguments = {
        "output_path": place.location,
        "output_format": "jsonl",
        "usage_start_date": str(days[0]),
        "usage_end_date": str(days[1]),
        "max_xcom_bytes": 2**30,
        **options,
    }
    place.requests()
    with tempfile.TemporaryDirectory(prefix="reducto-bench-") as home:
        env = {"AIRFLOW_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR", **connections(url), **place.env}
        sample: Sample = in_a_process(__name__, json.dumps(arguments), env=env)
    requests = place.requests()
    sample["requests"] = len(requests)
    sample["writes"] = sum(method == "PUT" for method, _ in requests)
    return sample


def main(arguments: dict[str, Any]) -> None:
    """Execute an operator, and print the measurement."""
    from reducto_provider.operators.export import ReductoUsageExportOperator
    from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator

    ti = SimpleNamespace(dag_id="growth", run_id="run", task_id="export", map_index=-1, max_tries=0, try_number=1)
    context: Any = {"ti": ti, "dag_run": SimpleNamespace(clear_number=0)}

    def operator(**others: Any) -> Any:
        if "organizations" in arguments:
            return ReductoUsageFleetExportOperator(task_id="export", **{**arguments, **others})
        dimension = {"org_id": ORG, "group_by": "api_key"}
        return ReductoUsageExportOperator(task_id="export", **{**dimension, **arguments, **others})

    from reducto_provider.export.formats import check_format
    from reducto_provider.export.storage import open_storage

    # Load what the operator needs, and open the store's first connection.
    check_format(arguments["output_format"]).encode([], {})
    operator().hook.settings  # noqa: B018
    open_storage(arguments["output_path"]).read(WARM_UP_NAME)
    sample: Sample = {}
    with measured(sample):
        task = operator()
        result = task.execute(context)
        while task._changes and task._sink.acknowledge(task._changes):  # as its success callback does
            pass
    if "organizations" in result:
        sample["changed days"] = sum(each["changed_day_count"] for each in result["organizations"])
    else:
        sample["changed days"] = sum(each["changed"] for each in result["files"])
    print("\n" + json.dumps(sample))


def check_organizations(place: Place, simulator: Simulator, names: Sequence[str], days: tuple[date, date]) -> None:
    """
    Check that a place has the simulator's figures of these days, each in its file.

    :raises WrongOutputError: if it does not.
    """
    expected: Usage = {}
    for name in names:
        for row in simulator.truth(name, *days):
            expected.setdefault((name, "product", row.date), []).append((row.group, row.credits, row.requests))
    check_files(place, expected)


def check_files(place: Place, expected: Usage) -> None:
    """
    Check the JSON lines of each file, and that there is no other file.

    :raises WrongOutputError: if anything differs.
    """
    found = {}
    for name, content in place.files().items():
        if match := FILE.fullmatch(name):
            rows = [json.loads(line, parse_float=Decimal) for line in content.splitlines()]
            key = match[1], match[2], date.fromisoformat(match[3])
            found[key] = [(row["group"], row["credits"], row["request_count"]) for row in rows]
    check_equal(sorted(found), sorted(expected), f"the files at {place.location}")
    for key, rows in found.items():
        check_equal(rows, expected[key], f"the file of {key}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

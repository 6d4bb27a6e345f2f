"""
Measure the default export, a file a day, in a fresh process, against what users write with requests and pandas.

Each measurement is a separate process that has loaded what Airflow has loaded before any task runs. Everything after
that is measured: imports, the request to the simulator, and the files. Ours is the whole ``execute`` of the operator.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.answers import DOCUMENTED, ORG, Answer, make_answer
from benchmarks.measuring import Rounds, Sample, in_a_process, measured
from benchmarks.outputs import CHECKS
from benchmarks.section import Result, Section, Size, faster, mib

FORMATS: Final = ("parquet", "jsonl", "csv")


HOW: Final = """
The default export into a new dataset: one response with {rows} rows of {days} days, {bytes}, from the simulator. Each
run is a separate process that has loaded what a process of Airflow has loaded before it runs a task. Everything after
that is measured, imports included. Ours is the whole `execute` of `ReductoUsageExportOperator`; theirs is
`requests.get`, `pandas.DataFrame(response.json()["data"])`, `groupby("date")`, and `to_parquet`, `to_json` or `to_csv`
for each day. Ours checks the response, has exact decimals, a manifest with a digest for each day, and syncs each file
to disk before it replaces another; theirs does nothing of that. The ratio is of CPU time, and all files are compared
with the exact figures.
"""

FLOOR: Final = (
    "In the least of four profiles, JSON lines took some 780 ms of CPU time: 175 for imports (`aiohttp` with the "
    "system's certificates, and `requests`, which Airflow's `HttpHook` loads), 45 to receive the response, 155 to "
    "decode and check it, 75 for the digests of the rows, 105 to encode them, 85 for the checksums of the files, 90 to "
    "write, sync and read back 180 files, 50 for sums and the rest. CSV took 160 to encode, and 35 for checksums; "
    "Parquet another 105 to import `pyarrow`, which imports `numpy`, and 210 to encode. Without imports, digests, "
    "manifests and syncing some 360 ms remain for JSON lines, which is the floor with decimals and checks. Tried: "
    "`pyarrow.array` imported `pandas` in each export, 320 to 440 ms, so columns are built without it; the digest is "
    "that of lines of JSON, which are encoded in 70 ms, where text of the rows took 174; rows in order are neither "
    "sorted nor compared again; a day's sums are made once."
)


def section(size: Size) -> Section:
    """Measure the default export."""
    days = min(90, size.days)
    answer = make(days, 4 * size.groups)
    found = {name: compare(name, answer, size.rounds) for name in FORMATS}
    what = f"a file a day, {len(answer.rows):,} rows of {days} days, in a fresh process"
    against = "`requests`, `pandas` `groupby`, a file a day"
    memory = found["parquet"]
    return Section(
        title="A file a day",
        how=HOW.format(rows=f"{len(answer.rows):,}", days=days, bytes=mib(len(answer.body))),
        results=[
            *(
                faster(f"{what}: {name}", against, found[name], limit, FLOOR)
                for name, limit in (("parquet", 2.5), ("jsonl", 4), ("csv", 2))
            ),
            Result(
                what=f"{what}: parquet, peak memory",
                against=against,
                aim="at most half",
                ours=f"{mib(memory.our('added'))} (process: {mib(memory.our('peak'))})",
                theirs=f"{mib(memory.their('added'))} (process: {mib(memory.their('peak'))})",
                value=1 / memory.ratio("added"),
                limit=0.5,
                why="The response, its rows, and the modules that are loaded.",
            ),
        ],
    )


def export(url: str, days: tuple[str, str], folder: Path, name: str) -> None:
    """Ours: the operator with its defaults."""
    from types import SimpleNamespace

    from reducto_provider.operators.export import ReductoUsageExportOperator

    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="export", map_index=-1, max_tries=0, try_number=1)
    context: Any = {"ti": ti, "dag_run": SimpleNamespace(clear_number=0)}
    ReductoUsageExportOperator(
        task_id="export",
        org_id=ORG,
        group_by="api_key",
        usage_start_date=days[0],
        usage_end_date=days[1],
        output_path=str(folder),
        output_format=name,
    ).execute(context)


def export_by_pandas(url: str, days: tuple[str, str], folder: Path, name: str) -> None:
    """Theirs: binary floats, no checks, and files that are not synced to disk."""
    import pandas
    import requests

    response = requests.get(
        f"{url}/api/v1/usage/export",
        params={"orgId": ORG, "startDate": days[0], "endDate": days[1], "groupBy": "api_key"},
        headers={"Authorization": "Bearer sim-key-all"},
        timeout=60,
    )
    response.raise_for_status()
    frame = pandas.DataFrame(response.json()["data"]).rename(columns={"requestCount": "request_count"})
    if name == "parquet":
        frame["date"] = pandas.to_datetime(frame["date"], format="%Y-%m-%d")
    for day, rows in frame.groupby("date"):
        place = folder / f"data/dt={day!s:.10}"
        place.mkdir(parents=True)
        if name == "parquet":
            rows.to_parquet(place / "usage.parquet", index=False, compression="zstd")
        elif name == "csv":
            rows.to_csv(place / "usage.csv", index=False)
        else:
            rows.to_json(place / "usage.jsonl", orient="records", lines=True)


SIDES: Final[dict[str, Callable[[str, tuple[str, str], Path, str], None]]] = {
    "ours": export,
    "theirs": export_by_pandas,
}


def make(days: int, groups: int) -> Answer:
    """Return the response to export."""
    return make_answer(days, groups, DOCUMENTED)


def compare(name: str, answer: Answer, rounds: int) -> Rounds:
    """
    Measure both sides in turns, and check the files of each.

    :raises WrongOutputError: if they are wrong.
    """
    from benchmarks.airflow_task import connections
    from simulator import Reply, Simulator

    days = str(answer.query.start), str(answer.query.end)

    def take(side: str) -> Sample:
        with tempfile.TemporaryDirectory(prefix="reducto-bench-") as home:
            folder = Path(home, "usage")
            env = {"AIRFLOW_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR", **connections(simulator.url)}
            sample: Sample = in_a_process(__name__, side, simulator.url, *days, folder, name, env=env)
            CHECKS[name][0 if side == "ours" else 1](folder, answer)
        return sample

    with Simulator() as simulator:
        simulator.faults.add(Reply(200, answer.body), times=None)
        return Rounds(rounds, lambda: take("ours"), lambda: take("theirs"))


def main(side: str, url: str, first: str, last: str, folder: str, name: str) -> None:
    """Load what every task's process has loaded, export, and print the measurement."""
    for module in ("supervisor", "task_runner"):
        importlib.import_module(f"airflow.sdk.execution_time.{module}")
    sample: Sample = {}
    with measured(sample):
        SIDES[side](url, (first, last), Path(folder), name)
    print("\n" + json.dumps(sample))


if __name__ == "__main__":
    main(*sys.argv[1:])

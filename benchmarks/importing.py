"""
The part about imports: those of a DAG file, and those of a task.

It is not in the modules that measure them, whose own imports would be taken off the figures.
"""

from __future__ import annotations

from typing import Final

from benchmarks import imports, task_imports
from benchmarks.section import Result, Section, Size, seconds

HOW: Final = """
The time that `from airflow.sdk import DAG, BaseOperator, BaseSensorOperator` takes in fresh processes, and the
additional time for the modules of operators, sensor and triggers in the same process. They load {modules} further
modules; the benchmark fails if one of these is among them: {heavy}.

An export task loads more when it runs, in a process that is a fork of Airflow's supervisor. Here a fresh process loads
what that has loaded, runs an empty task, and exports a day of one organization to a file twice. What the first export,
with the import of its operator, takes in CPU time beyond the second is what it loads: {of_task} modules.
"""

FLOOR: Final = (
    "In a profile of 172 ms (the least of eight, with the time that profiling takes) `aiohttp` took 100, of which 53 "
    "are its TLS contexts with the system's certificates, and `requests` with `urllib3` and `charset_normalizer` 35: "
    "Airflow's `HttpHook`, on which the hook is based, loads both. The modules of this package took 24, none more than "
    "1.5 without the garbage collector, which runs in some of them. A dataclass takes 0.6 to create."
)


def section(size: Size) -> Section:
    """Measure the parsing of a DAG file, and the start of its task."""
    found = imports.rounds(max(size.rounds, 2 * size.rounds - 1))
    of_task = task_imports.rounds(size.rounds)
    return Section(
        title="Importing",
        how=HOW.format(
            of_task=int(of_task["modules"]),
            modules=int(found["modules"]),
            heavy=", ".join(f"`{name}`" for name in sorted(imports.HEAVY)),
        ),
        results=[
            Result(
                what="importing the operators, sensors and triggers",
                against="importing `airflow.sdk` alone",
                aim="under 3 % more, nothing heavy loaded",
                ours=f"{seconds(found['ours'])} (clock: {seconds(found['ours wall'])})",
                theirs=f"{seconds(found['airflow'])} (clock: {seconds(found['airflow wall'])})",
                value=found["share"],
                limit=0.03,
                unit="{:+.1%}",
                why="",
            ),
            Result(
                what="what an export task loads beside an empty task",
                against="importing `airflow.sdk` alone",
                aim="at most 0.12 times: 120 ms where that takes a second",
                ours=seconds(of_task["ours"]),
                theirs=seconds(of_task["airflow"]),
                value=of_task["share"],
                limit=0.12,
                why=FLOOR,
            ),
        ],
    )

"""Tell what `make matrix` came to: in `docs/matrix.md`, and a table of it in the README.

python -m tests.matrix        write both, from the results in .cache/matrix
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from noxfile import PYTHONS

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / ".cache/matrix"
DOCS = PROJECT / "docs/matrix.md"
README = PROJECT / "README.md"

NEW = re.compile(r"new in Airflow (\d+\.\d+): (.*)")
GONE = re.compile(r"gone in Airflow (\d+\.\d+): (.*)")

INTRODUCTION = """\
# The suite on every supported Airflow

What the sessions of `make matrix` came to, which run the suite on each Airflow and Python below, in an environment of
its own; they may have been run one by one, and on different commits, by which the numbers of tests differ. `.ci/run`
runs it on the oldest and the newest whenever something changes. Parts that know nothing of Airflow (the simulator, the
engines' reading of the dataset, the judge of FOCUS files) run with the newest only.

What is installed is pinned in `requirements/`: `airflow-*.in` names the Airflow and what must not be newer with it,
`dev.txt` is the newest's. Airflow's own constraint files name older HTTP and common-compat providers than this package
needs, so that it can't be installed with them.
"""


@dataclass(frozen=True)
class Run:
    """
    What the suite came to on one Airflow and Python.

    Counted are the tests for each thing that is not there yet (`absent`) or no more (`gone`).
    """

    airflow: str
    python: str
    day: str
    passed: int
    failed: tuple[str, ...]
    absent: Counter[str]
    gone: Counter[str]
    skipped: Counter[str]

    @classmethod
    def read(cls, path: Path) -> Run:
        """From pytest's JUnit file, whose suite is named after what it ran on."""
        [suite] = ElementTree.parse(path).getroot().iter("testsuite")
        _, airflow, _, python = suite.attrib["name"].replace(",", "").split()
        failed, absent, gone, skipped = [], Counter[str](), Counter[str](), Counter[str]()
        passed = 0
        for case in suite.iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                failed.append(f"{case.attrib['classname']}::{case.attrib['name']}")
            elif (skip := case.find("skipped")) is not None:
                said = skip.attrib["message"]
                (absent if NEW.fullmatch(said) else gone if GONE.fullmatch(said) else skipped)[said] += 1
            else:
                passed += 1
        return cls(airflow, python, suite.attrib["timestamp"][:10], passed, tuple(failed), absent, gone, skipped)

    @property
    def order(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """By Airflow, then by Python."""
        return _numbers(self.airflow), _numbers(self.python)


def main() -> int:
    runs = sorted((Run.read(path) for path in RESULTS.glob("*.xml")), key=lambda run: run.order)
    if not runs:
        print(f"no results in {RESULTS}", file=sys.stderr)
        return 1
    DOCS.write_text("\n".join(document(runs)) + "\n")
    README.write_text(between("matrix", README.read_text(), readme_table(runs)))
    return 1 if any(run.failed for run in runs) or not_run() else 0


def not_run() -> list[tuple[str, str]]:
    """Airflow and Python of the sessions that left no result: no such interpreter, no environment, or an early end."""
    there = {path.stem for path in RESULTS.glob("*.xml")}
    sessions = ((airflow, python) for airflow, pythons in PYTHONS.items() for python in pythons)
    return [(airflow, python) for airflow, python in sessions if f"airflow-{airflow}-python-{python}" not in there]


def document(runs: list[Run]) -> Iterator[str]:
    """The page, line by line."""
    yield INTRODUCTION
    yield "| Airflow | Python | passed | failed | not there yet | on |"
    yield "| --- | --- | ---: | ---: | ---: | --- |"
    for run in runs:
        numbers = f"{run.passed:,} | {len(run.failed)} | {run.absent.total()}"
        yield f"| {run.airflow} | {run.python} | {numbers} | {run.day} |"

    if missing := [f"- {airflow}, Python {python}" for airflow, python in not_run()]:
        yield from ("", "## What was not run", "", *missing)

    if failed := [f"- {run.airflow}, Python {run.python}: `{name}`" for run in runs for name in run.failed]:
        yield from ("", "## What failed", "", *failed)

    yield from ("", "## What an older Airflow does not have", "")
    yield "And so has no test there, as the tests' names say. What it does instead, where that matters, is tested by"
    yield "that version's own tests."
    yield from ("", "| not in Airflow | before | tests |", "| --- | --- | ---: |")
    for said, count in _most(run.absent for run in runs):
        [(version, what)] = NEW.findall(said)
        yield f"| {what} | {version} | {count} |"

    if gone := _most(run.gone for run in runs):
        yield from ("", "And what a newer one has no more:")
        yield from ("", "| not in Airflow | from | tests |", "| --- | --- | ---: |")
        for said, count in gone:
            [(version, what)] = GONE.findall(said)
            yield f"| {what} | {version} | {count} |"

    if skipped := _most(run.skipped for run in runs):
        yield from ("", "## What else was skipped", "", "For want of something else than Airflow.", "")
        yield from (f"- {said} ({count} tests)" for said, count in skipped)


def readme_table(runs: list[Run]) -> str:
    """A line for each Airflow."""
    lines = ["| Airflow | Python | tests passed | failed |", "| --- | --- | ---: | ---: |"]
    for airflow, group in groupby(runs, key=lambda run: run.airflow):
        of_it = list(group)
        pythons = ", ".join(".".join(run.python.split(".")[:2]) for run in of_it)
        passed = " / ".join(dict.fromkeys(f"{run.passed:,}" for run in of_it))
        lines.append(f"| {airflow} | {pythons} | {passed} | {sum(len(run.failed) for run in of_it)} |")
    return "\n".join(lines)


def between(marker: str, text: str, inserted: str) -> str:
    """The text with what is between two markers replaced."""
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{inserted}\n{end}{after}"


def _most(counters: Iterable[Counter[str]]) -> list[tuple[str, int]]:
    """Each reason with the most tests that one run has for it, in order of the version and the words."""
    most = Counter[str]()
    for counter in counters:
        most |= counter
    return sorted(most.items(), key=lambda item: (_numbers(item[0]), item[0]))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


if __name__ == "__main__":
    sys.exit(main())

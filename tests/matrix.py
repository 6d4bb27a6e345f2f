"""Publish the results of `make matrix`: in `docs/matrix.md`, and a table of it in the README.

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

from noxfile import PRE_RELEASES, ROWS

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / ".cache/matrix"
DOCS = PROJECT / "docs/matrix.md"
README = PROJECT / "README.md"

_PRE_RELEASES = tuple(f"airflow-{airflow}-" for airflow in PRE_RELEASES)

NEW = re.compile(r"new in Airflow (\d+\.\d+): (.*)")
GONE = re.compile(r"gone in Airflow (\d+\.\d+): (.*)")

INTRODUCTION = """\
# The suite on every supported Airflow

`make matrix` runs the suite on each Airflow below, each row in an environment of its own, all on one commit.
`.ci/run` runs it on the oldest as of its day and on the newest for every change. Parts that do not use Airflow (the
simulator, the engines that read the dataset, the validator of FOCUS files) run with the newest only.

Each Airflow has two rows. *Newest* has the newest packages that work with it, pinned in `requirements/airflow-*.txt`
(`dev.txt` for the newest Airflow), on the newest Python. *As of its day* is that Airflow as it was installed around its
release day, and as Airflow's constraint files still have it: the packages are of that day and pinned in
`requirements/day/`. The wheel is installed there with its extras `parquet` and `s3`, which fails if it moves or removes
a package that is there.
"""


@dataclass(frozen=True)
class Run:
    """
    The results of the suite on one Airflow and Python.

    Counted are the tests for each thing that is not there yet (`absent`) or no more (`gone`).
    """

    name: str
    airflow: str
    python: str
    commit: str
    date: str
    passed: int
    failed: tuple[str, ...]
    absent: Counter[str]
    gone: Counter[str]
    skipped: Counter[str]

    @classmethod
    def read(cls, path: Path) -> Run:
        """From pytest's JUnit file, whose suite is named after what it ran on."""
        [suite] = ElementTree.parse(path).getroot().iter("testsuite")
        _, airflow, _, python, _, commit = suite.attrib["name"].replace(",", "").split()
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
        date = suite.attrib["timestamp"][:10]
        return cls(path.stem, airflow, python, commit, date, passed, tuple(failed), absent, gone, skipped)

    @property
    def packages(self) -> str:
        """Which packages are installed with this Airflow."""
        if "-day-" in self.name:
            return "as of its day"
        return "newest, pre-release" if self.name.startswith(_PRE_RELEASES) else "newest"

    @property
    def added(self) -> list[str]:
        """What the wheel has added to an Airflow as of its day."""
        path = RESULTS / f"{self.name}.added"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def order(self) -> tuple[tuple[int, ...], str, tuple[int, ...]]:
        """By Airflow, then by its packages, then by Python."""
        return _numbers(self.airflow), self.packages, _numbers(self.python)


def main() -> int:
    runs = sorted((Run.read(path) for path in RESULTS.glob("*.xml")), key=lambda run: run.order)
    if not runs:
        print(f"no results in {RESULTS}", file=sys.stderr)
        return 1
    DOCS.write_text("\n".join(document(runs)) + "\n")
    README.write_text(between("matrix", README.read_text(), readme_table(runs)))
    if len({run.commit for run in runs}) > 1:
        print("the results are of several commits: run `make matrix`", file=sys.stderr)
        return 1
    return 1 if any(run.failed for run in runs) or not_run() else 0


def not_run() -> list[str]:
    """Return the sessions that left no result: no such interpreter, no environment, or an early end."""
    there = {path.stem for path in RESULTS.glob("*.xml")}
    return [name for name in ROWS if name not in there]


def document(runs: list[Run]) -> Iterator[str]:
    """The page, line by line."""
    yield INTRODUCTION
    yield "| Airflow | packages | Python | passed | failed | not there yet | on | commit |"
    yield "| --- | --- | --- | ---: | ---: | ---: | --- | --- |"
    for run in runs:
        numbers = f"{run.passed:,} | {len(run.failed)} | {run.absent.total()}"
        yield f"| {run.airflow} | {run.packages} | {run.python} | {numbers} | {run.date} | `{run.commit}` |"

    yield from ("", "## What the wheel adds to an Airflow as of its day", "")
    yield "With the extras `parquet` and `s3`, to Airflow and the providers in `requirements/day/providers.in`."
    yield ""
    yield from (f"- {run.airflow}: {', '.join(run.added)}" for run in runs if run.added)

    if missing := [f"- {name}" for name in not_run()]:
        yield from ("", "## What was not run", "", *missing)

    if failed := [f"- {run.name}: `{name}`" for run in runs for name in run.failed]:
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
    """Return two lines for each Airflow, and the commit."""
    lines = ["| Airflow | packages | Python | tests passed | failed |", "| --- | --- | --- | ---: | ---: |"]
    for (airflow, packages), group in groupby(runs, key=lambda run: (run.airflow, run.packages)):
        of_it = list(group)
        pythons = ", ".join(".".join(run.python.split(".")[:2]) for run in of_it)
        passed = " / ".join(dict.fromkeys(f"{run.passed:,}" for run in of_it))
        failed = sum(len(run.failed) for run in of_it)
        lines.append(f"| {airflow} | {packages} | {pythons} | {passed} | {failed} |")
    commits = ", ".join(sorted({f"`{run.commit}`" for run in runs}))
    return "\n".join([*lines, "", f"All at commit {commits}."])


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

"""The figures as a table, on the terminal and as a page of the documentation."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.measuring import PROJECT

PAGE: Final = PROJECT / "docs/benchmarks.md"

PACKAGES: Final = (
    *("airflow-provider-reducto", "apache-airflow", "apache-airflow-providers-http", "aiohttp", "requests"),
    *("msgspec", "orjson", "pandas", "pyarrow"),
)

INTRODUCTION: Final = """\
# Benchmarks

`make bench` writes this page. It measures each line in one run, alternating between this package and what a user would
write or install instead, each time in a separate process. The output is compared with the exact figures in the same
run: a benchmark with wrong output fails, and no page is written.
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """
    A target and the measured value.

    :param ours: our figure as text; likewise ``theirs``.
    :param value: the value compared with ``limit``, an upper or (``at_least``) a lower bound.
    :param unit: the format of the value.
    :param why: the reason why the target is missed, if it is.
    """

    what: str
    against: str
    aim: str
    ours: str
    theirs: str
    value: float
    limit: float
    at_least: bool = False
    unit: str = "{:.2f} times"
    why: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def verdict(self) -> str:
        """Return whether the target is met, or by how much of it it is missed."""
        if self.met:
            return "met"
        return f"short by {abs(self.value - self.limit) / self.limit:.0%}" if self.limit else "short"

    @property
    def measured(self) -> str:
        return self.unit.format(self.value)


@dataclass(frozen=True, kw_only=True)
class Section:
    """The results of a benchmark, and how they were measured."""

    title: str
    how: str
    results: Sequence[Result]
    after: str = ""
    """Further Markdown."""


def table(results: Sequence[Result]) -> list[str]:
    """Return the lines of a table with a row for each target."""
    header = ["what", "against", "aim", "measured", "ours", "theirs", ""]
    rows = [[r.what, r.against, r.aim, r.measured, r.ours, r.theirs, r.verdict] for r in results]
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def machine() -> str:
    """Return a description of the machine."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    kib = int(Path("/proc/meminfo").read_text().split()[1])
    return f"{cpu}, {len(_processors())} cores, {kib / 2**20:.0f} GiB, {platform.system()} {platform.release()}"


def document(sections: Sequence[Section], rounds: int) -> Iterator[str]:
    """Yield the lines of the page."""
    yield INTRODUCTION
    results = [result for section in sections for result in section.results]
    short = [result for result in results if not result.met]
    yield from (*table(results), "")
    yield f"{len(results) - len(short)} of {len(results)} aims are met. Unless said otherwise, figures are the median"
    yield f"of {rounds} rounds, and a ratio is the median of the rounds' ratios."
    yield ""
    if short:
        yield from ("## Missed targets, and why", "")
        yield from (f"- **{each.what}** ({each.aim}): {each.measured}, {each.verdict}. {each.why}" for each in short)
        yield ""
    for section in sections:
        yield from (f"## {section.title}", "", section.how.strip(), "")
        if section.after:
            yield from (section.after.strip(), "")
    yield from ("## Where and when", "", f"- {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", f"- {machine()}")
    yield f"- Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def _processors() -> set[int]:
    return os.sched_getaffinity(0)

"""The figures as a table, on the terminal and as a page of the documentation."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, Self

import msgspec

from benchmarks.measuring import PROJECT
from benchmarks.section import Measure, Result, Size

PAGE: Final = PROJECT / "docs/benchmarks.md"

FIGURES: Final = PROJECT / "benchmarks/figures.json"
"""The parts of the page, so that they can be measured one by one."""

PACKAGES: Final = (
    *("airflow-provider-reducto", "apache-airflow", "apache-airflow-providers-http", "aiohttp", "requests"),
    *("msgspec", "orjson", "pandas", "pyarrow"),
)

INTRODUCTION: Final = """\
# Benchmarks

`make bench` writes this page. It measures each line in one run, alternating between this package and what a user would
write or install instead, each time in a separate process. The output is compared with the exact figures in the same
run: a benchmark with wrong output fails, and its figures are not stored.

Figures are the least of several rounds, and a ratio is that of the least, since other work of the machine only adds to
them; *CPU* is the time of user and system. When each part was measured, and how busy the machine was, is at the end.
"""


class Line(msgspec.Struct):
    """A row of the table of targets, as it is printed."""

    what: str
    against: str
    aim: str
    measured: str
    ours: str
    theirs: str
    verdict: str
    met: bool
    why: str

    @classmethod
    def from_result(cls, result: Result) -> Self:
        """Return what is stored of a result."""
        return cls(
            *(result.what, result.against, result.aim, result.measured, result.ours, result.theirs, result.verdict),
            met=result.met,
            why=result.why,
        )


class Part(msgspec.Struct):
    """
    A measured part of the page.

    :param load: the machine's load average before it, None if it was not recorded.
    """

    title: str
    how: str
    lines: list[Line]
    after: str
    when: str
    rounds: int
    load: float | None
    environment: str

    @classmethod
    def measure(cls, section_of: Measure, size: Size) -> Self:
        """Measure a part now."""
        load, when = os.getloadavg()[0], f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        section = section_of(size)
        return cls(
            title=section.title,
            how=section.how.strip(),
            lines=[Line.from_result(result) for result in section.results],
            after=section.after.strip(),
            when=when,
            rounds=size.rounds,
            load=round(load, 1),
            environment=environment(),
        )


def stored_parts() -> dict[str, Part]:
    """Return the parts that were stored, by name."""
    return msgspec.json.decode(FIGURES.read_bytes(), type=dict[str, Part]) if FIGURES.exists() else {}


def store(name: str, part: Part, order: Sequence[str]) -> None:
    """Store a part, and write the page with all parts that are stored, in order."""
    parts = {**stored_parts(), name: part}
    parts = {each: parts[each] for each in order if each in parts}
    FIGURES.write_bytes(msgspec.json.format(msgspec.json.encode(parts)) + b"\n")
    PAGE.write_text("\n".join(document(list(parts.values()))) + "\n")


def table(lines: Sequence[Line]) -> list[str]:
    """Return the lines of a table with a row for each target."""
    header = ["what", "against", "aim", "measured", "ours", "theirs", ""]
    rows = [[r.what, r.against, r.aim, r.measured, r.ours, r.theirs, r.verdict] for r in lines]
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


def environment() -> str:
    """Return a description of the machine and of the versions of what is measured."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{machine()}; Python {platform.python_version()}, {versions}"


def document(parts: Sequence[Part]) -> Iterator[str]:
    """Yield the lines of the page."""
    yield INTRODUCTION
    lines = [line for part in parts for line in part.lines]
    short = [line for line in lines if not line.met]
    yield from (*table(lines), "", f"{len(lines) - len(short)} of {len(lines)} aims are met.", "")
    if short:
        yield from ("## Missed targets, and why", "")
        yield from (f"- **{each.what}** ({each.aim}): {each.measured}, {each.verdict}. {each.why}" for each in short)
        yield ""
    for part in parts:
        yield from (f"## {part.title}", "", part.how, "")
        if part.after:
            yield from (part.after, "")
    yield from ("## Where and when", "", "| part | when | rounds | load before |", "| --- | --- | ---: | ---: |")
    for part in parts:
        load = "not recorded" if part.load is None else f"{part.load:g}"
        yield f"| {part.title} | {part.when} | {part.rounds} | {load} |"
    yield ""
    for each in dict.fromkeys(part.environment for part in parts):
        yield f"- {', '.join(part.title for part in parts if part.environment == each)}: {each}"


def _processors() -> set[int]:
    return os.sched_getaffinity(0)

"""
What a part of the benchmarks is: a function that measures at a size, and returns a section of the page.

Each part's module has one, ``section``, with its aims, its text and the reasons for what it misses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.measuring import MIB, Rounds


@dataclass(frozen=True)
class Size:
    """The size of a measurement."""

    rounds: int
    days: int = 365
    groups: int = 1000
    organizations: int = 1000
    sensors: int = 1000
    queries: int = 50
    interval: float = 15.0
    small: bool = False


def small(rounds: int) -> Size:
    """Return a size that shows quickly whether everything works."""
    return Size(rounds, days=5, organizations=20, sensors=40, queries=4, interval=3.0, small=True)


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


Measure = Callable[[Size], Section]
"""
Measures a part.

:raises WrongOutputError: if an output is wrong.
"""


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def mib(value: float) -> str:
    return f"{value / MIB:.0f} MiB" if value >= 10 * MIB else f"{value / MIB:.1f} MiB"


def times(rounds: Rounds, side: Callable[[str], float]) -> str:
    return f"{seconds(side('cpu'))} (clock: {seconds(side('wall'))})"


def faster(what: str, against: str, rounds: Rounds, limit: float, why: str) -> Result:
    return Result(
        what=what,
        against=against,
        aim=f"at least {limit:g} times as fast",
        ours=times(rounds, rounds.our),
        theirs=times(rounds, rounds.their),
        value=rounds.ratio("cpu"),
        limit=limit,
        at_least=True,
        why=why,
    )

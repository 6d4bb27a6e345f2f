"""Measure times and peak memory in processes, in rounds that alternate between two sides."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

PROJECT: Final = Path(__file__).parents[1]
MIB: Final = 2**20

Sample = dict[str, float]
"""Figures of one run by name: seconds, bytes, counts."""


class WrongOutputError(Exception):
    """The output of a benchmark is wrong, so its time means nothing."""


def check(condition: bool, what: str) -> None:
    """
    Check an output.

    :raises WrongOutputError: naming what is wrong.
    """
    if not condition:
        raise WrongOutputError(what)


def check_equal(found: Any, expected: Any, what: str) -> None:
    """
    Check exact equality, also of long sequences.

    :raises WrongOutputError: with the first difference.
    """
    if found == expected:
        return
    if isinstance(found, Sequence) and isinstance(expected, Sequence) and len(found) == len(expected):
        index = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        raise WrongOutputError(f"{what}: number {index} is {found[index]!r:.200}, not {expected[index]!r:.200}")
    sizes = f"{len(found)} of {len(expected)}: " if hasattr(found, "__len__") and hasattr(expected, "__len__") else ""
    raise WrongOutputError(f"{what}: {sizes}{found!r:.200}, not {expected!r:.200}")


@contextmanager
def measured(sample: Sample) -> Iterator[None]:
    """
    Add the measurement of the block to ``sample``: ``wall`` and ``cpu`` in seconds, ``peak`` in bytes of this process,
    and ``added``, the peak beyond the resident memory before the block.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the resident memory
    before = memory("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    sample["cpu"], sample["wall"] = time.process_time() - cpu, time.perf_counter() - wall
    sample["peak"] = memory("VmHWM")
    sample["added"] = sample["peak"] - before


def memory(name: str, pid: int | str = "self") -> int:
    """Return the memory of a process in bytes: ``VmRSS`` now, ``VmHWM`` at its peak."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def in_a_process(module: str, *arguments: object, env: Mapping[str, str] | None = None) -> Any:
    """
    Return the last line that ``python -m module arguments`` prints, from JSON.

    :raises WrongOutputError: if it fails, with the end of its errors.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(  # noqa: S603
        command, cwd=PROJECT, env={**inherited, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WrongOutputError(f"{' '.join(command[2:])} gave {done.returncode}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class Rounds:
    """Samples of ours and theirs, taken in turns so that other load of the machine affects both alike."""

    def __init__(self, count: int, ours: Callable[[], Sample], theirs: Callable[[], Sample]) -> None:
        self.ours: list[Sample] = []
        self.theirs: list[Sample] = []
        for number in range(count):
            sides = [(self.ours, ours), (self.theirs, theirs)]
            for samples, take in sides if number % 2 == 0 else reversed(sides):
                samples.append(take())

    def our(self, name: str) -> float:
        """Return the least of one of our figures: other work of the machine only adds to it."""
        return min(sample[name] for sample in self.ours)

    def their(self, name: str) -> float:
        """Return the least of one of theirs."""
        return min(sample[name] for sample in self.theirs)

    def ratio(self, name: str) -> float:
        """Return theirs divided by ours."""
        return self.their(name) / max(self.our(name), 1e-9)

"""``python -m benchmarks``: measure, print the tables, and store them in the documentation."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Final

from benchmarks import (
    airflow_task,
    answer_to_file,
    by_day,
    changed_fleet,
    fleet,
    growth,
    importing,
    object_store,
    open_connection,
    tables,
    unchanged_days,
    waiting,
)
from benchmarks.measuring import WrongOutputError
from benchmarks.page import Part, store, table
from benchmarks.section import Measure, Size, small

PARTS: Final[dict[str, Measure]] = {
    "files": answer_to_file.section,
    "days": by_day.section,
    "airflow": airflow_task.section,
    "fleet": fleet.section,
    "storing": object_store.section,
    "unchanged": unchanged_days.section,
    "changes": changed_fleet.section,
    "delta": tables.section,
    "waiting": waiting.section,
    "request": open_connection.section,
    "imports": importing.section,
    "growth": growth.section,
}
"""All parts, in the order of the page."""


def measure(names: Sequence[str], size: Size) -> None:
    """
    Measure the named parts in order. Print each when it is done, and store it if it has full size.

    :raises WrongOutputError: if an output is wrong.
    """
    for name in names:
        begun = time.monotonic()
        part = Part.measure(PARTS[name], size)
        lines = [*(table(part.lines) if part.lines else []), part.after]
        print(f"\n{part.title} ({time.monotonic() - begun:.0f} s)", *lines, sep="\n", flush=True)
        if not size.small:
            store(name, part, list(PARTS))


def main() -> int:
    """Measure all or some parts."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured (%(default)s)")
    parser.add_argument("--small", action="store_true", help="a quick check; nothing is stored")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; the others stay as stored")
    options = parser.parse_args()
    try:
        measure(options.only or list(PARTS), small(options.rounds) if options.small else Size(options.rounds))
    except WrongOutputError as error:
        print(f"wrong output: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

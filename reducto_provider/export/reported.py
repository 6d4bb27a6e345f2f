"""The changes of usage that successful runs have reported."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from itertools import groupby
from typing import Annotated, Final

import msgspec

from reducto_provider.export.storage import Storage
from reducto_provider.usage.checks import INVALID_JSON

MAX_SECONDS: Final = 10.0
"""
How long after a task's success acknowledgements are still written. Airflow kills a process that runs for longer than
``[core] task_success_overtime`` (20 seconds by default), and its listeners run last.
"""

Change = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
"""The id of a change. A new one is made whenever rows differ from those published before, so that no id recurs."""

_MAX_WRITES = 5
_MAX_THREADS = 32
_DECODER = msgspec.json.Decoder(dict[date, Change])


def new_change() -> str:
    """Return the id of a change."""
    return secrets.token_hex(8)


class ReportedChanges:
    """
    The changes that successful runs have reported of one organization by one dimension: a file per year, stored beside
    the manifests.

    A day counts as changed until its change id is recorded here. An acknowledgement can get lost if a task is killed
    before it writes, or if two tasks write at the same time. The change is then reported again. A stale id does no
    harm: ids are never reused, even if a day's rows return to an earlier state.

    :param folder: the folder of the manifests.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self._folder = folder

    def read(self, days: Iterable[date]) -> dict[date, str]:
        """Return the changes last reported, for the years of ``days``."""
        reported: dict[date, str] = {}
        for year in sorted({day.year for day in days}):
            reported |= self._read(self._name(year))
        return reported

    def add(self, changes: Mapping[date, str]) -> None:
        """Record that a successful run reported ``changes``."""
        for year, of_year in groupby(sorted(changes.items()), key=lambda change: change[0].year):
            name, added = self._name(year), dict(of_year)
            # Read again after each write: another run may have overwritten it without these changes.
            for write in range(_MAX_WRITES):
                found = self._read(name)
                if added.items() <= found.items():
                    break
                time.sleep(write and random.uniform(0, 0.02 * 2**write))  # noqa: S311
                content = msgspec.json.encode(dict(sorted((found | added).items())))
                self._storage.replace(name, msgspec.json.format(content, indent=1) + b"\n")

    def _name(self, year: int) -> str:
        return f"{self._folder}/.reported-{year:04}"

    def _read(self, name: str) -> dict[date, str]:
        content = self._storage.read(name)
        # A file that can't be decoded reports nothing; the next acknowledgement replaces it.
        with suppress(*INVALID_JSON):
            return {} if content is None else _DECODER.decode(content)
        return {}


def acknowledge(storage: Storage, changes: Mapping[str, Mapping[date, str]]) -> int:
    """
    Record that a successful run reported ``changes``, by folder of manifests.

    :return: the number of folders left when time ran out. Their changes are reported again.
    """
    end = time.monotonic() + MAX_SECONDS

    def add(folder: str) -> bool:
        if time.monotonic() > end:
            return False
        ReportedChanges(storage, folder).add(changes[folder])
        return True

    if storage.max_concurrent_writes == 1 or len(changes) <= 1:
        written = [add(folder) for folder in changes]
    else:
        with ThreadPoolExecutor(min(_MAX_THREADS, len(changes))) as executor:
            written = list(executor.map(add, changes))
    return written.count(False)

"""Read a dataset's overview in the background: first from the indexes, then what proves it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Final

from reducto_provider.export.threads import ReadingThread, map_in_threads
from reducto_provider.plugins.usage_page.overview import OrganizationSummary, sort_summaries

if TYPE_CHECKING:
    from reducto_provider.export.reader import UsageReader
    from reducto_provider.plugins.usage_page.pages import DatasetInfo
    from reducto_provider.plugins.usage_page.source import PageSource

FRESH_FOR_TIMES: Final = 20
"""How many times as long as it took to be read an overview is shown. One that is read at once is always the latest."""

MAX_FRESH_SECONDS: Final = 600.0
"""For how long an overview is shown before it is read again, at most."""

# Indexes in an object store are mostly waited for. All else takes turns at the interpreter with the server's requests.
_INDEX_READERS: Final = 16
_READERS: Final = 4
_LOCAL_READERS: Final = 2
_READS_PER_READER: Final = 2

_PROOF_SECONDS: Final = 1.0
"""How long after the start the proof of what the indexes hold is waited for: of a small dataset it is there by then."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """
    The organizations of a dataset, sorted.

    :param unread: the number of those that are still being read, and are not among them.
    :param unproven: the number of those whose figures are what the index holds, and are still being checked.
    """

    info: DatasetInfo
    summaries: list[OrganizationSummary]
    unread: int
    unproven: int


class Refresh:
    """One reading of a dataset's overview, by a few threads."""

    def __init__(self, source: PageSource, today: date) -> None:
        self.today = today
        self._source = source
        self._started = time.monotonic()
        self._fresh_until = self._started
        self._indexes_read = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._unread: set[str] = set()
        self._unproven: dict[str, OrganizationSummary] = {}
        self._proven: dict[str, OrganizationSummary] = {}
        self._info: DatasetInfo | None = None
        self._error: Exception | None = None
        ReadingThread(self._run, "reducto-usage-page").start()

    @property
    def has_ended(self) -> bool:
        """Whether everything has been read."""
        return self._ended.is_set()

    @property
    def has_failed(self) -> bool:
        """Whether it has ended with an error."""
        return self._error is not None

    def is_fresh(self, today: date) -> bool:
        """Return whether it need not be read again."""
        return today == self.today and time.monotonic() < self._fresh_until

    def wait(self, seconds: float) -> None:
        """Wait until everything has been read, or only for so long; less for the proof of what the indexes hold."""
        proof = max(0.0, min(seconds, self._started + _PROOF_SECONDS - time.monotonic()))
        if not self._ended.wait(proof):
            self._indexes_read.wait(seconds - proof)

    def overview(self) -> Overview:
        """
        Return what has been read so far.

        :raises TimeoutError: if the store has not answered yet.
        :raises Exception: the store's error.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._info is None:
                raise TimeoutError("the store has not answered yet: load the page again in a while")
            return Overview(
                info=self._info,
                summaries=sort_summaries([*self._proven.values(), *self._unproven.values()]),
                unread=len(self._unread),
                unproven=len(self._unproven),
            )

    def _run(self) -> None:
        try:
            reader = self._source.open(_READS_PER_READER)
            org_ids = reader.org_ids()
            with self._lock:
                self._info, self._unread = self._source.info(reader, org_ids), set(org_ids)
            is_local = reader.max_concurrent_reads == 1
            count = _LOCAL_READERS if is_local else _INDEX_READERS
            map_in_threads(lambda org_id: self._read_index(reader, org_id), org_ids, count)
            self._indexes_read.set()
            with self._lock:
                # Those first that are not shown at all, and then as they are shown.
                in_order = [*sorted(self._unread), *(each.org_id for each in sort_summaries(self._unproven.values()))]
            count = _LOCAL_READERS if is_local else _READERS
            map_in_threads(lambda org_id: self._read(reader, org_id), in_order, count)
        except Exception as error:  # noqa: BLE001  # raised by overview()
            with self._lock:
                self._error = error
        finally:
            now = time.monotonic()
            self._fresh_until = now + min(MAX_FRESH_SECONDS, FRESH_FOR_TIMES * (now - self._started))
            self._ended.set()
            self._indexes_read.set()

    def _read_index(self, reader: UsageReader, org_id: str) -> None:
        if (summary := self._source.indexed_summary(reader, org_id, self.today)) is not None:
            with self._lock:
                self._unread.discard(org_id)
                self._unproven[org_id] = summary

    def _read(self, reader: UsageReader, org_id: str) -> None:
        summary = self._source.summary(reader, org_id, self.today)
        with self._lock:
            self._unread.discard(org_id)
            self._unproven.pop(org_id, None)
            if summary is not None:
                self._proven[org_id] = summary

"""The counts of a table's commits that are kept in its log, by counter: Delta's transactions of applications."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from reducto_provider.export.storage import Storage
from reducto_provider.usage.checks import INVALID_JSON

if TYPE_CHECKING:
    from reducto_provider.export.delta.table import UsageDeltaTable

_THREADS = 16


class _Transaction(msgspec.Struct, rename="camel"):
    app_id: str
    version: int


class _Action(msgspec.Struct):
    txn: _Transaction | None = None


class _Checkpoint(msgspec.Struct):
    version: int
    parts: int | None = None


_ACTIONS = msgspec.json.Decoder(_Action)

_CHECKPOINT = msgspec.json.Decoder(_Checkpoint)


class _UnknownLogError(Exception):
    """The log does not have the form in which ``deltalake`` writes it."""


class CommitCounts:
    """
    The counts of all counters, read from the log once.

    ``UsageDeltaTable.commit_count`` reads all commits since the last checkpoint for each counter. For a fleet these are
    thousands of requests.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._table_id = ""
        self._version = -1
        self._counts: dict[str, int] = {}

    def find(self, table: UsageDeltaTable, counters: Iterable[str]) -> dict[str, int]:
        """Return the counts at the table's version."""
        try:
            self._read_up_to(table)
        except _UnknownLogError:
            self._table_id = ""
            return {counter: table.commit_count(counter) for counter in counters}
        return {counter: self._counts.get(counter, 0) for counter in counters}

    def _read_up_to(self, table: UsageDeltaTable) -> None:
        if self._table_id != table.id or self._version > table.version:
            self._read_checkpoint()
            self._table_id = table.id
        versions = range(self._version + 1, table.version + 1)
        if self._version > table.version:
            raise _UnknownLogError
        with ThreadPoolExecutor(_THREADS) as threads:
            for content in threads.map(self._storage.read, [f"_delta_log/{each:020}.json" for each in versions]):
                self._add(content)
        self._version = table.version

    def _read_checkpoint(self) -> None:
        self._version, self._counts = -1, {}
        if (hint := self._storage.read("_delta_log/_last_checkpoint")) is None:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            checkpoint = _CHECKPOINT.decode(hint)
            content = self._storage.read(f"_delta_log/{checkpoint.version:020}.checkpoint.parquet")
            if checkpoint.parts or content is None:
                raise _UnknownLogError
            found = pq.read_table(pa.BufferReader(content), columns=["txn"])["txn"].drop_null().to_pylist()
            self._counts = {each["appId"]: each["version"] for each in found}
        except (*INVALID_JSON, pa.ArrowException, KeyError, OSError) as error:
            raise _UnknownLogError from error
        self._version = checkpoint.version

    def _add(self, commit: bytes | None) -> None:
        try:
            for action in _ACTIONS.decode_lines(commit or b""):
                if action.txn:
                    self._counts[action.txn.app_id] = action.txn.version
        except INVALID_JSON as error:
            raise _UnknownLogError from error
        if commit is None:  # removed because of its age, by others
            raise _UnknownLogError

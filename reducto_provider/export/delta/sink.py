"""The dataset as one Delta table: each export is a commit that replaces exactly the rows of its days."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from datetime import date
from threading import Condition, Lock
from typing import TYPE_CHECKING, Final, Self

from reducto_provider.export import reported
from reducto_provider.export.delta.commits import OtherCommits
from reducto_provider.export.delta.counts import CommitCounts
from reducto_provider.export.delta.journal import Journal
from reducto_provider.export.delta.location import (
    TableLocation,
    check_exclusive_creation,
    check_table_location,
    table_location,
)
from reducto_provider.export.delta.publication import Publication
from reducto_provider.export.delta.table import TABLE_COLUMNS, ConflictError, UsageDeltaTable
from reducto_provider.export.delta.upkeep import COMMITS_BETWEEN, compact_oldest
from reducto_provider.export.formats import Format
from reducto_provider.export.manifest import DATASET_FILE
from reducto_provider.export.sink import (
    Changes,
    DatasetMismatchError,
    Filters,
    OutdatedReportError,
    PublishedFile,
    Sink,
    storage_errors,
)
from reducto_provider.usage.days import today
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset

_MAX_COMMITS: Final = 30
_MAX_PAUSE: Final = 2.0

_BATCH_SECONDS: Final = 0.25
"""How long a commit waits for more reports, if several threads publish: fewer commits are fewer files and requests."""


class UsageTable(Sink):
    """
    Usage at one location as one Delta table, and beside it, hidden from engines::

        _reducto/org_id=<org>/group_by=<dimension>/YYYY.json
        _reducto/org_id=<org>/group_by=<dimension>/.reported-YYYY

    A commit replaces the rows of the days that have changed. What several threads publish at the same time becomes one
    commit. The year's file is written after the commit and lists the days that were exported, see
    :class:`~reducto_provider.export.delta.journal.Journal`.

    A report is refused as outdated if others have replaced the same days since this sink was checked, which is before
    the report was requested: an old answer never replaces a newer one that was committed. A newer one that equals the
    table makes no commit, so it does not make others outdated.
    """

    def __init__(self, place: TableLocation, format: Format, filters: Filters) -> None:
        self._storage = place.storage
        self._table_uri = place.uri
        self._options = place.options
        self._format = format
        self._filters = filters
        self._waiting: list[Publication] = []
        self._turn = Condition()
        self._is_committing = False
        self._is_shared = False
        self._lock = Lock()  # of the table and all that follows
        self._table: UsageDeltaTable | None = None
        self._used_options: Mapping[str, str] = {}
        self._commits = OtherCommits(self._storage)
        self._counts = CommitCounts(self._storage)
        self._is_upkeep_due = False

    @classmethod
    def check_location(cls, output_path: object) -> str:
        return check_table_location(output_path)

    @classmethod
    def open(cls, output_path: str, conn_id: str | None, format: Format, filters: Filters) -> Self:
        return cls(table_location(output_path, conn_id), format, filters)

    @property
    def location(self) -> str:
        return self._storage.location()

    @property
    def uri(self) -> str:
        return self._storage.uri()

    def check(self, query: UsageQuery | None = None, run: str | None = None) -> None:
        with self._lock:
            table = self._newest()
            if table is None:
                check_exclusive_creation(self._storage)
            self._commits = OtherCommits(self._storage, -1 if table is None else table.version)

    def publish(
        self, report: UsageReport, query: UsageQuery, run: str | None = None, requested_on: date | None = None
    ) -> list[PublishedFile]:
        """
        Replace the rows of the report's days, all of them or, after an error, none.

        :raises OutdatedReportError: others have replaced some of these days since the report was requested.
        """
        publication = Publication(
            report, query, run, requested_on or today(), format=self._format, storage=self._storage
        )
        what = f"could not publish usage of {report.org_id} at {self.location}; the export can be run again"
        with storage_errors(what):
            publication.load()
        self._publish_with_others(publication)
        with storage_errors(what):
            if publication.error:
                raise publication.error
            recorded = publication.record()
            # Read last: what another run published and reported meanwhile may just have been replaced.
            reported_changes = reported.ReportedChanges(self._storage, publication.journal.folder).read(recorded)
        self._compact_if_due()
        return [
            PublishedFile(
                uri=self.uri if known.row_count else None,
                day=day,
                row_count=known.row_count,
                size=None,
                changed=known.change != reported_changes.get(day),
                change=known.change,
                written=publication.replaces(day),
            )
            for day, known in recorded.items()
        ]

    def acknowledge(self, changes: Changes) -> int:
        by_folder = {
            Journal(self._storage, *partition).folder: {day: change for day, change in of_partition if day}
            for partition, of_partition in changes.items()
        }
        return reported.acknowledge(self._storage, by_folder)

    def output(self, org_id: str, group_by: str, files: Sequence[PublishedFile] | None) -> OutputDataset:
        from reducto_provider.lineage import table_dataset

        return table_dataset(self._storage, TABLE_COLUMNS, files)

    def describe(self, files: Sequence[PublishedFile]) -> str:
        rows, empty = sum(file.row_count for file in files), sum(file.uri is None for file in files)
        return f"Published {len(files)} days with {rows} rows at {self.location}" + (
            f", {empty} of them without usage" if empty else ""
        )

    def _compact_if_due(self) -> None:
        """Compact a part of the table if this sink has made the commit after which that is due."""
        with self._lock:
            is_due, self._is_upkeep_due = self._is_upkeep_due, False
        if is_due:  # with a table of its own, so that the other threads go on
            compact_oldest(lambda: UsageDeltaTable.open(self._table_uri, self._options(), self.location))

    def _newest(self) -> UsageDeltaTable | None:
        """Return the newest version of the table, checked. None if there is none, and an export may create it."""
        options = self._options()
        with storage_errors(f"could not read {self.location}"):
            if self._table is None or options != self._used_options:
                self._table = UsageDeltaTable.open(self._table_uri, options, self.location)
                self._used_options = options
            else:
                self._table.update()
            if self._table is None and self._storage.read(DATASET_FILE) is not None:
                raise DatasetMismatchError(
                    f"the dataset at {self.location} holds files, not a Delta table. Export to another output_path, or "
                    "remove the dataset first"
                )
        if self._table is not None:
            self._table.check(self._filters)
        return self._table

    def _publish_with_others(self, publication: Publication) -> None:
        """Publish what is waiting in one thread, and wait for it in the others."""
        with self._turn:
            self._waiting.append(publication)
            while self._is_committing and not publication.is_done:
                self._is_shared = True
                self._turn.wait()
            if publication.is_done:
                return
            self._is_committing = True
        try:
            while not publication.is_done:
                time.sleep(_BATCH_SECONDS * self._is_shared)
                with self._turn:
                    batch = self._next_batch()
                with self._lock:
                    self._publish(batch)
        finally:
            with self._turn:
                self._is_committing = False
                self._turn.notify_all()

    def _next_batch(self) -> list[Publication]:
        """Return what is waiting, at most one publication of each organization and dimension."""
        batch: dict[tuple[str, str], Publication] = {}
        for publication in self._waiting:
            batch.setdefault(publication.partition, publication)
        self._waiting = [each for each in self._waiting if batch[each.partition] is not each]
        return list(batch.values())

    def _publish(self, batch: Sequence[Publication]) -> None:
        """Publish together, and leave an error in each that failed."""
        try:
            self._commit(batch)
        except BaseException as error:  # noqa: BLE001  # raised by the thread of each
            for publication in batch:
                publication.error = publication.error or error
        finally:
            for publication in batch:
                publication.is_done = True

    def _commit(self, batch: Sequence[Publication]) -> None:
        for number in range(_MAX_COMMITS):
            # Jitter: in lockstep, exports would keep conflicting.
            time.sleep(number and random.uniform(0, min(_MAX_PAUSE, 0.02 * 2**number)))  # noqa: S311
            try:
                return self._try_to_commit(batch)
            except ConflictError as error:
                conflict = error
                for publication in batch:
                    publication.load()
        raise TimeoutError(f"{_MAX_COMMITS} commits in a row have conflicted with others: {conflict}")

    def _try_to_commit(self, batch: Sequence[Publication]) -> None:
        table = self._newest()
        if table is None:
            table = self._table = UsageDeltaTable.create(
                self._table_uri, self._used_options, self.location, self._filters
            )
        self._commits.read_up_to(table.version)
        for publication in batch:
            if outdated_by := self._commits.find_newer(publication.days):
                publication.error = OutdatedReportError(
                    f"usage of {publication.report.org_id} is outdated: version {outdated_by.version} of "
                    f"{self.location} has replaced some of its days since it was requested. Run the export again"
                )
        current = [publication for publication in batch if publication.error is None]
        rows = table.read_rows([publication.days for publication in current]) if current else {}
        counts = self._counts.find(table, [counter for each in current for counter in each.counters.values()])
        for publication in current:
            publication.compare(table.id, counts, rows.get(publication.partition, {}))
        changed = [publication for publication in current if publication.export_record]
        if changed:
            table.replace(
                [publication.arrow_table() for publication in changed],
                [publication.export_record for publication in changed if publication.export_record],
                {counter: count for publication in changed for counter, count in publication.new_counts.items()},
            )
            self._commits.own.add(table.version)
            self._is_upkeep_due = table.version % COMMITS_BETWEEN == 0

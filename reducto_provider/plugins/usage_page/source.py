"""Read what the pages show from a dataset, with bounded memory and threads, and keep it for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Final

from reducto_provider.export.reader import ExportedDays, RowCache, UsageReader, open_reader
from reducto_provider.export.sink import short
from reducto_provider.plugins.usage_page.organization import OrganizationUsage, months_needed, organization_usage
from reducto_provider.plugins.usage_page.overview import (
    OrganizationSummary,
    days_needed,
    sort_summaries,
    summarize,
)
from reducto_provider.plugins.usage_page.pages import Choices, DatasetInfo
from reducto_provider.plugins.usage_page.redaction import without_credentials
from reducto_provider.plugins.usage_page.settings import PageDataset
from reducto_provider.usage.days import DayRange, month_of
from reducto_provider.usage.query import DIMENSIONS

MAX_FRESH_SECONDS: Final = 60.0
"""For how long an overview is shown before it is read again, at most."""

FRESH_FOR_TIMES: Final = 20
"""How many times as long as it took to be read an overview is shown. One that is read at once is always the latest."""

MAX_ROWS: Final = 500_000
"""How many rows of two months a page is made of, at most: with more of them a few readers would fill the memory."""

_READERS: Final = 4
_READS_PER_READER: Final = 8
_MAX_CACHED_ROWS: Final = 200_000
_MAX_MONTHS: Final = 36
_ONE_DAY: Final = timedelta(days=1)


class NotExportedError(LookupError):
    """The dataset does not have what was requested."""


class TooManyRowsError(LookupError):
    """An organization has more rows than a page is made of."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """
    The organizations of a dataset, sorted.

    :param unread: the number of those that are still being read, and are not among them.
    """

    info: DatasetInfo
    summaries: list[OrganizationSummary]
    unread: int


class PageSource:
    """
    One dataset of the page. Every method may be called in several threads at once.

    The overview is read in the background: a store that hangs holds up only its own few threads.
    """

    def __init__(self, dataset: PageDataset) -> None:
        self._dataset = dataset
        self._cache = RowCache(_MAX_CACHED_ROWS)
        self._lock = threading.Lock()
        self._refresh: _Refresh | None = None
        self._latest: _Refresh | None = None

    def overview(self, today: date, seconds: float) -> Overview:
        """
        Return the overview, read within the last :data:`MAX_FRESH_SECONDS` if the store is fast enough.

        :param seconds: how long to wait for what has not been read. Then what was read before is returned, or what has
            been read by then.
        :raises UsageReadError: if there is no dataset that can be read.
        :raises OSError: if the store can't be read, or has not answered in time.
        """
        with self._lock:
            latest = self._latest
            if latest is not None and latest.is_fresh(today):
                return latest.overview()
            if self._refresh is None or self._refresh.has_ended:
                self._refresh = _Refresh(self, today)
            refresh = self._refresh
        refresh.wait(seconds)
        if refresh.has_ended:
            found = refresh.overview()
            with self._lock:
                self._latest = refresh
            return found
        return latest.overview() if latest is not None and latest.today == today else refresh.overview()

    def organization(
        self, org_id: str, group_by: str | None, month: date | None, today: date
    ) -> tuple[DatasetInfo, OrganizationUsage, Choices]:
        """
        Return an organization's month.

        :param group_by: None for the dimension that the overview is made of.
        :param month: its first day; None for the current month, or the last that was exported.
        :raises NotExportedError: if nothing of the organization by the dimension was exported.
        :raises TooManyRowsError: if there are more than :data:`MAX_ROWS`.
        :raises UsageReadError: if a file is missing or damaged.
        :raises OSError: if the store can't be read.
        """
        reader = self.open()
        dimensions = self._dimensions(reader, org_id)
        if group_by is not None and group_by not in dimensions:
            raise NotExportedError(f"{short(org_id)} has not been exported by {short(group_by)}")
        dimension, found = (
            (group_by, reader.exported_days(org_id, group_by, DayRange(today, today)))
            if group_by
            else best_dimension(reader, org_id, dimensions, DayRange(_month_so_far(today).first, today))
        )
        if found.span is None:
            raise NotExportedError(f"no day of {short(org_id)} has been exported by {dimension}")
        last = max(found.span.first, min(found.span.last, today))
        chosen = month_of(month or last)
        days = months_needed(chosen)
        exported = reader.exported_days(org_id, dimension, days)
        if (count := sum(day.row_count for day in exported.days.values())) > MAX_ROWS:
            raise TooManyRowsError(
                f"{short(org_id)} has {count:,} rows by {dimension} from {days.first} to {days.last}: "
                f"the page shows at most {MAX_ROWS:,}"
            )
        rows = reader.rows(org_id, dimension, exported.days.values())
        usage = organization_usage(org_id, dimension, exported, rows, self._dataset.metric, chosen, today)
        choices = Choices(dimensions=dimensions, months=_months(DayRange(found.span.first, last), chosen.first))
        return self.info(reader), usage, choices

    def manifest(self, org_id: str, group_by: str, day: date) -> bytes:
        """
        Return the content of a day's manifest.

        :raises NotExportedError: if there is none.
        :raises OSError: if the store can't be read.
        """
        reader = self.open()
        if group_by not in self._dimensions(reader, org_id):
            raise NotExportedError(f"{short(org_id)} has not been exported by {short(group_by)}")
        content = reader.manifest(org_id, group_by, day)
        if content is None:
            raise NotExportedError(f"{day} of {short(org_id)} has not been exported by {group_by}")
        return content

    def open(self) -> UsageReader:
        """
        Return a reader of the dataset.

        :raises UsageReadError: if there is no dataset that can be read.
        :raises OSError: if the store can't be read.
        """
        return open_reader(self._dataset.path, self._dataset.conn_id, self._cache, _READS_PER_READER)

    def info(self, reader: UsageReader) -> DatasetInfo:
        """Return what the pages say of the dataset."""
        return DatasetInfo(
            name=self._dataset.name,
            location=reader.location,
            filters=dict(reader.filters),
            read_at=datetime.now(UTC),
        )

    def summary(
        self, reader: UsageReader, org_id: str, dimensions: tuple[str, ...], today: date
    ) -> OrganizationSummary:
        """Return an organization's summary. An error becomes part of it, so that it hides no other organization."""
        dimension = dimensions[0]
        budget = self._dataset.budgets.get(org_id)
        try:
            dimension, exported = best_dimension(reader, org_id, dimensions, days_needed(today))
            return summarize(org_id, dimension, exported, self._dataset.metric, budget, today)
        except Exception as error:  # noqa: BLE001  # whatever it is, the other organizations are shown
            return OrganizationSummary(
                org_id=org_id,
                group_by=dimension,
                metric=self._dataset.metric,
                month=month_of(today),
                budget=budget,
                error=short(without_credentials(str(error))),
            )

    def _dimensions(self, reader: UsageReader, org_id: str) -> tuple[str, ...]:
        dimensions = reader.dimensions(org_id)
        if not dimensions:
            raise NotExportedError(f"{short(org_id)} has not been exported to {short(self._dataset.name)}")
        return dimensions


class _Refresh:
    """One reading of a dataset's overview, by a few threads. They are daemons: a store that hangs holds up no exit."""

    def __init__(self, source: PageSource, today: date) -> None:
        self.today = today
        self._source = source
        self._started = time.monotonic()
        self._fresh_until = self._started
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._summaries: list[OrganizationSummary] = []
        self._total = 0
        self._info: DatasetInfo | None = None
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="reducto-usage-page", daemon=True).start()

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def is_fresh(self, today: date) -> bool:
        return today == self.today and time.monotonic() < self._fresh_until

    def wait(self, seconds: float) -> None:
        self._ended.wait(seconds)

    def overview(self) -> Overview:
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._info is None:
                raise TimeoutError("the store has not answered yet: load the page again in a while")
            summaries = sort_summaries(self._summaries)
            return Overview(info=self._info, summaries=summaries, unread=self._total - len(summaries))

    def _run(self) -> None:
        try:
            reader = self._source.open()
            organizations = reader.organizations()
            with self._lock:
                self._info, self._total = self._source.info(reader), len(organizations)
            self._summarize(reader, organizations)
        except Exception as error:  # noqa: BLE001  # raised by overview()
            with self._lock:
                self._error = error
        finally:
            now = time.monotonic()
            self._fresh_until = now + min(MAX_FRESH_SECONDS, FRESH_FOR_TIMES * (now - self._started))
            self._ended.set()

    def _summarize(self, reader: UsageReader, organizations: Mapping[str, tuple[str, ...]]) -> None:
        waiting: SimpleQueue[tuple[str, tuple[str, ...]]] = SimpleQueue()
        for each in organizations.items():
            waiting.put(each)

        def work() -> None:
            while True:
                try:
                    org_id, dimensions = waiting.get_nowait()
                except Empty:
                    return
                summary = self._source.summary(reader, org_id, dimensions, self.today)
                with self._lock:
                    self._summaries.append(summary)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(_READERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def best_dimension(
    reader: UsageReader, org_id: str, dimensions: tuple[str, ...], days: DayRange
) -> tuple[str, ExportedDays]:
    """
    Return the dimension that has the most of the month's days, and then the latest ones, with the days it has. All have
    the same totals, so the first one that has the whole month until yesterday will do.

    :param days: those to return, until today; at least :func:`_month_so_far`.
    """
    so_far = _month_so_far(days.last)
    best: tuple[tuple[int, int, date], str, ExportedDays] | None = None
    for dimension in sorted(dimensions, key=DIMENSIONS.index):
        found = reader.exported_days(org_id, dimension, days)
        of_month = [each for day, each in found.days.items() if day >= so_far.first]
        final = sum(each.is_final for each in of_month)
        completeness = final, len(of_month), found.span.last if found.span else date.min
        if best is None or completeness > best[0]:
            best = completeness, dimension, found
        if final >= so_far.length:
            break
    if best is None:
        raise NotExportedError(f"{short(org_id)} has not been exported")
    return best[1:]


def _month_so_far(today: date) -> DayRange:
    """Return the days of the month until yesterday, at least yesterday."""
    yesterday = today - _ONE_DAY
    return DayRange(min(month_of(today).first, yesterday), yesterday)


def _months(days: DayRange, chosen: date) -> list[date]:
    """Return the first days of the months to choose from, the latest first."""
    months = {chosen}
    month = days.last.replace(day=1)
    while month >= days.first.replace(day=1) and len(months) <= _MAX_MONTHS:
        months.add(month)
        month = (month - _ONE_DAY).replace(day=1)
    return sorted(months, reverse=True)

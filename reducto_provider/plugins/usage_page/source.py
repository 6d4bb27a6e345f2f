"""Read what the pages show from a dataset, with bounded memory and threads, and keep it for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Final

from reducto_provider.export.exported_days import ExportedDays
from reducto_provider.export.reader import RowCache, UsageReader, open_reader
from reducto_provider.export.sink import short
from reducto_provider.plugins.usage_page.organization import OrganizationUsage, months_needed, organization_usage
from reducto_provider.plugins.usage_page.overview import OrganizationSummary, days_needed, summarize
from reducto_provider.plugins.usage_page.pages import Choices, DatasetInfo
from reducto_provider.plugins.usage_page.redaction import without_credentials
from reducto_provider.plugins.usage_page.refresh import Overview, Refresh
from reducto_provider.plugins.usage_page.settings import PageDataset
from reducto_provider.usage.days import DayRange, month_of
from reducto_provider.usage.query import DIMENSIONS

MAX_ROWS: Final = 500_000
"""How many rows of two months a page is made of, at most: with more of them a few readers would fill the memory."""

_READS_OF_A_PAGE: Final = 8
_MAX_CACHED_ROWS: Final = 200_000
_MAX_MONTHS: Final = 36
_ONE_DAY: Final = timedelta(days=1)


class NotExportedError(LookupError):
    """The dataset does not have what was requested."""


class TooManyRowsError(LookupError):
    """An organization has more rows than a page is made of."""


class PageSource:
    """
    One dataset of the page. Every method may be called in several threads at once.

    The overview is read in the background: a store that hangs holds up only its own few threads.
    """

    def __init__(self, dataset: PageDataset) -> None:
        self._dataset = dataset
        self._cache = RowCache(_MAX_CACHED_ROWS)
        self._lock = threading.Lock()
        self._refresh: Refresh | None = None
        self._latest: Refresh | None = None

    def overview(self, today: date, seconds: float) -> Overview:
        """
        Return the overview: what was read before, if it is fresh or until it has been read again.

        :param seconds: how long to wait for what has not been read. Then what has been read by then is returned, if
            nothing was before.
        :raises UsageReadError: if there is no dataset that can be read.
        :raises OSError: if the store can't be read, or has not answered in time.
        """
        with self._lock:
            # It may have ended after the last request had waited long enough.
            if self._refresh is not None and self._refresh.has_ended:
                if not self._refresh.has_failed:
                    self._latest = self._refresh
                self._refresh = None
            latest = self._latest
            if latest is not None and latest.is_fresh(today):
                return latest.overview()
            if self._refresh is None:
                self._refresh = Refresh(self, today)
            refresh = self._refresh
        refresh.wait(seconds)
        if latest is not None and latest.today == today and not refresh.has_ended:
            return latest.overview()
        return refresh.overview()

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
        so_far = DayRange(_month_so_far(today).first, today)
        dimension, found = best_dimension(
            lambda dimension: reader.exported_days(org_id, dimension, so_far),
            (group_by,) if group_by else dimensions,
            today,
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

    def open(self, max_concurrent_reads: int = _READS_OF_A_PAGE) -> UsageReader:
        """
        Return a reader of the dataset.

        :raises UsageReadError: if there is no dataset that can be read.
        :raises OSError: if the store can't be read.
        """
        return open_reader(self._dataset.path, self._dataset.conn_id, self._cache, max_concurrent_reads)

    def info(self, reader: UsageReader, org_ids: Iterable[str] | None = None) -> DatasetInfo:
        """
        Return what the pages say of the dataset.

        :param org_ids: all organizations that it has; None if that does not matter.
        """
        budgets = self._dataset.budgets.keys()
        return DatasetInfo(
            name=self._dataset.name,
            location=reader.location,
            filters=dict(reader.filters),
            read_at=datetime.now(UTC),
            unused_budgets=() if org_ids is None else sorted(budgets - set(org_ids)),
        )

    def summary(self, reader: UsageReader, org_id: str, today: date) -> OrganizationSummary | None:
        """
        Return an organization's summary, None if it has not been exported.

        An error becomes part of it, so that it hides no other organization.
        """
        days = days_needed(today)
        try:
            if not (dimensions := reader.dimensions(org_id)):
                return None
            dimension, exported = best_dimension(
                lambda dimension: reader.exported_days(org_id, dimension, days), dimensions, today
            )
            return self._summarize(org_id, dimension, exported, today)
        except Exception as error:  # noqa: BLE001  # whatever it is, the other organizations are shown
            return OrganizationSummary(
                org_id=org_id,
                group_by=DIMENSIONS[0],
                metric=self._dataset.metric,
                month=month_of(today),
                budget=self._dataset.budgets.get(org_id),
                error=short(without_credentials(str(error))),
            )

    def indexed_summary(self, reader: UsageReader, org_id: str, today: date) -> OrganizationSummary | None:
        """Return an organization's summary by what its indexes hold, which nothing proves; None without an index."""
        days = days_needed(today)
        try:
            dimension, exported = best_dimension(
                lambda dimension: reader.indexed_days(org_id, dimension, days), DIMENSIONS, today
            )
            return self._summarize(org_id, dimension, exported, today)
        except Exception:  # noqa: BLE001  # the summary by the manifests will say what is wrong
            return None

    def _summarize(self, org_id: str, dimension: str, exported: ExportedDays, today: date) -> OrganizationSummary:
        budget = self._dataset.budgets.get(org_id)
        return summarize(org_id, dimension, exported, self._dataset.metric, budget, today)

    def _dimensions(self, reader: UsageReader, org_id: str) -> tuple[str, ...]:
        dimensions = reader.dimensions(org_id)
        if not dimensions:
            raise NotExportedError(f"{short(org_id)} has not been exported to {short(self._dataset.name)}")
        return dimensions


def best_dimension(
    read: Callable[[str], ExportedDays | None], dimensions: Iterable[str], today: date
) -> tuple[str, ExportedDays]:
    """
    Return the dimension that has the most of the month's days, and then the latest ones, with the days it has. All have
    the same totals, so the first one that has the whole month until yesterday will do.

    :param read: returns the days of a dimension until today, at least those of :func:`_month_so_far`.
    """
    so_far = _month_so_far(today)
    best: tuple[tuple[int, int, date], str, ExportedDays] | None = None
    for dimension in sorted(dimensions, key=DIMENSIONS.index):
        if (found := read(dimension)) is None:
            continue
        of_month = [each for day, each in found.days.items() if day >= so_far.first]
        final = sum(each.is_final for each in of_month)
        completeness = final, len(of_month), found.span.last if found.span else date.min
        if best is None or completeness > best[0]:
            best = completeness, dimension, found
        if final >= so_far.length:
            break
    if best is None:
        raise NotExportedError("no dimension has been exported")
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

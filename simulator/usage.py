"""The usage of organizations: figures that are the same for every query.

The unit is a `Record`: what one API key used in one day of one product, feature and file type. Every answer is a
sum of records, so the four dimensions of the service are four views of the same usage and always add up. A hash of a
record's names and day determines its figures, whatever the query and its time.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, timedelta
from decimal import Decimal
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Literal, NamedTuple, TypeVar

DIMENSIONS = ("product", "feature", "api_key", "file_type")
OPENED = dt.date(2024, 1, 1)
"""The first day with usage of any organization."""

CreditsShown = Literal["number", "null", "absent"]
"""How rows show credits: accounts on newer pricing may get none, as a null or without the key."""

Number = TypeVar("Number", Decimal, float)


class Record(NamedTuple):
    """The usage of one day at one point of the four dimensions, in exact figures."""

    date: dt.date
    credits: Decimal
    requests: int
    product: str | None = "parse"
    feature: str | None = "standard"
    api_key: str | None = "backfill"
    file_type: str | None = "pdf"

    def scaled(self, factor: Decimal) -> Record:
        """Return the record times a factor, with requests rounded to whole ones."""
        return self._replace(credits=self.credits * factor, requests=round(self.requests * factor))


class Row(NamedTuple):
    """The exact figures behind one row of an answer."""

    date: dt.date
    group: str | None
    credits: Decimal
    requests: int


@dataclass(frozen=True)
class Workload:
    """What one API key does each day: requests on a weekday, the pages of each, and the price of a page.

    `active` is the share of days on which it runs.
    """

    product: str
    feature: str
    api_key: str
    file_type: str
    requests: int
    pages: int
    price: Decimal
    active: float = 1.0


@dataclass(frozen=True, eq=False)
class Organization:
    """A customer: its workloads, the share of a weekday that it uses on a day of the weekend, and its growth.

    A growth of 0.5 adds half of the usage on the first day, `OPENED`, every year. Records, if given, are all of its
    usage, instead of the workloads.
    """

    id: str
    workloads: Sequence[Workload] = ()
    weekend: float = 1.0
    growth: float = 0.0
    credits: CreditsShown = "number"
    records: Sequence[Record] | None = None

    def day(self, day: dt.date, elapsed: float = 1.0) -> Iterator[Record]:
        """Yield the records of a day of which the given share has passed. Figures only grow as it passes."""
        level = (self.weekend if day.weekday() >= 5 else 1.0) * (1 + self.growth * (day - OPENED).days / 365)
        for work in self.workloads:
            names = (self.id, day.isoformat(), work.product, work.feature, work.api_key, work.file_type)
            digest = blake2b("\x1f".join(names).encode(), digest_size=8).digest()
            if work.active < 1 and int.from_bytes(digest[:2], "big") >= work.active * 65536:
                continue
            requests = round(work.requests * level * (0.7 + digest[2] / 425))
            pages = round(requests * work.pages * (0.8 + digest[3] / 637)) + digest[4] % 10
            if requests_so_far := int(requests * elapsed):
                credits = work.price * int(pages * elapsed)
                yield Record(day, credits, requests_so_far, *names[2:])


@dataclass(frozen=True)
class _Changes:
    """Changes to an organization. They are replaced, never altered, since other threads read them."""

    credits: CreditsShown | None = None
    records: Sequence[Record] | None = None
    rows: Sequence[Mapping[str, Any]] | None = None
    restated: Mapping[dt.date, Decimal] = field(default_factory=dict)
    added: Sequence[Record] = ()


class Usage:
    """The usage of all organizations, and the ways to change it."""

    def __init__(self, organizations: Iterable[Organization], clock: Callable[[], dt.datetime]) -> None:
        self._at_first = {organization.id: organization for organization in organizations}
        self.organizations = dict(self._at_first)
        self._clock = clock
        self._changes: dict[str, _Changes] = {}
        self._lock = threading.Lock()

    def today(self) -> dt.date:
        """Return the current UTC day."""
        return self._clock().astimezone(UTC).date()

    def add(
        self,
        org: str,
        day: dt.date,
        credits: Decimal | float | str,
        requests: int,
        *,
        product: str | None = "parse",
        feature: str | None = "standard",
        api_key: str | None = "backfill",
        file_type: str | None = "pdf",
    ) -> None:
        """Add usage to a day in all four dimensions, for instance until a threshold is exceeded."""
        extra = Record(day, Decimal(str(credits)), int(requests), product, feature, api_key, file_type)
        self._change(org, lambda changes: replace(changes, added=(*changes.added, extra)))

    def restate(self, org: str, day: dt.date, factor: Decimal | float | str) -> None:
        """Multiply all figures of a day by a factor; 0 leaves the day empty."""
        times = Decimal(str(factor))

        def restated(changes: _Changes) -> _Changes:
            return replace(
                changes,
                restated={**changes.restated, day: changes.restated.get(day, 1) * times},
                added=tuple(extra.scaled(times) if extra.date == day else extra for extra in changes.added),
            )

        self._change(org, restated)

    def set_records(self, org: str, records: Iterable[Record]) -> None:
        """Replace all usage of the organization by these records. Ranges, groupings and filters apply."""
        table = tuple(records)
        self._change(org, lambda changes: _Changes(changes.credits, records=table))

    def set_rows(self, org: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Answer every query of the organization with these rows as they are, right or wrong."""
        table = tuple(rows)
        self._change(org, lambda changes: replace(changes, rows=table))

    def set_credits(self, org: str, shown: CreditsShown) -> None:
        """Set how the organization's rows show credits."""
        self._change(org, lambda changes: replace(changes, credits=shown))

    def reset(self) -> None:
        """Remove all changes, and organizations added later."""
        with self._lock:
            self._changes.clear()
            self.organizations = dict(self._at_first)

    def truth(
        self, org: str, start: dt.date, end: dt.date, group_by: str = "product", **filters: str | Collection[str]
    ) -> list[Row]:
        """Return the exact figures of an answer, filtered by dimension: `truth(..., api_key=["a", "b"])`.

        They are those of the records: neither `set_rows` nor hidden credits change them.
        """
        wanted = {name: {value} if isinstance(value, str) else set(value) for name, value in filters.items()}
        return [Row(*figures) for figures in self._grouped(org, start, end, group_by, wanted, Decimal)]

    def rows(
        self, org: str, start: dt.date, end: dt.date, group_by: str, filters: Mapping[str, Collection[str]]
    ) -> list[dict[str, Any]]:
        """Return the rows as the service sends them: sums of binary floats, such as 230.10000000000002."""
        changes = self._changes.get(org, _Changes())
        if changes.rows is not None:
            return [dict(row) for row in changes.rows]
        shown = changes.credits or self.organizations[org].credits
        rows = []
        for day, group, credits, requests in self._grouped(org, start, end, group_by, filters, float):
            row: dict[str, Any] = {"date": day.isoformat(), "group": group}
            if shown != "absent":
                row["credits"] = credits if shown == "number" else None
            row["requestCount"] = requests
            rows.append(row)
        return rows

    def records(self, org: str, start: dt.date, end: dt.date) -> Iterator[Record]:
        """Yield the records of a range of days, both included."""
        changes, organization = self._changes.get(org, _Changes()), self.organizations[org]
        given = organization.records if changes.records is None else changes.records
        for record in self._generated(organization, start, end) if given is None else given:
            if start <= record.date <= end:
                yield record.scaled(changes.restated[record.date]) if record.date in changes.restated else record
        yield from (extra for extra in changes.added if start <= extra.date <= end)

    def _generated(self, organization: Organization, start: dt.date, end: dt.date) -> Iterator[Record]:
        now = self._clock().astimezone(UTC)
        passed = (now - now.replace(hour=0, minute=0, second=0, microsecond=0)) / timedelta(days=1)
        first, last = max(start, OPENED), min(end, now.date())
        for offset in range((last - first).days + 1):
            day = first + timedelta(days=offset)
            yield from organization.day(day, passed if day == now.date() else 1.0)

    def _grouped(
        self,
        org: str,
        start: dt.date,
        end: dt.date,
        group_by: str,
        filters: Mapping[str, Collection[str]],
        number: Callable[[Decimal], Number],
    ) -> list[tuple[dt.date, str | None, Number, int]]:
        group_of = attrgetter(group_by)
        tests = [(attrgetter(name), wanted) for name, wanted in filters.items() if wanted]
        sums: dict[tuple[dt.date, str | None], tuple[Number, int]] = {}
        nothing: tuple[Number, int] = (number(Decimal(0)), 0)
        for record in self.records(org, start, end):
            if all(value_of(record) in wanted for value_of, wanted in tests):
                key = (record.date, group_of(record))
                credits, requests = sums.get(key, nothing)
                sums[key] = credits + number(record.credits), requests + record.requests
        used = [
            (day, group, credits, requests) for (day, group), (credits, requests) in sums.items() if credits or requests
        ]
        return sorted(used, key=lambda row: (row[0], row[1] or "", row[1] is not None))

    def _change(self, org: str, change: Callable[[_Changes], _Changes]) -> None:
        if org not in self.organizations:
            raise LookupError(f"no organization {org!r}, there are {sorted(self.organizations)}")
        with self._lock:
            self._changes[org] = change(self._changes.get(org, _Changes()))

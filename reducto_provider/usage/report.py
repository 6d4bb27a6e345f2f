"""Reports of the Usage Export API: typed rows and their exact sums."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import msgspec

Metric = Literal["credits", "requests"]

Computed = TypeVar("Computed")

CREDITS_SCALE: Final = 9
"""Decimal places of credits. A service that sums binary floats sends 230.10000000000002."""

CREDITS_UNIT = Decimal(1).scaleb(-CREDITS_SCALE)

_ZERO = Decimal(0)

MAX_REQUEST_COUNT = 2**63 - 1

_WHOLE_END = 2**64  # Airflow's processes can't exchange larger integers: one in an event ends the triggerer

EXACT: Final = Context(prec=80, rounding=ROUND_HALF_EVEN)
"""Wide enough that no sum of as many values as fit into memory is ever rounded."""


class UsageContractError(ValueError):
    """The response violates the service's contract: it is for another query, or is not valid data."""


class CreditsUnavailableError(ValueError):
    """Credits are required, but the service sends none for this account, as on Reducto's newer pricing."""


class UsageRow(msgspec.Struct, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """
    The usage of one UTC day by one value of the report's dimension.

    ``group`` is kept as it was sent, including None and empty text. ``credits`` are exact and have nine decimal places,
    or are None if the service sent none, which does not mean 0.
    """

    date: date
    group: str | None
    if TYPE_CHECKING:
        credits: Decimal | None
    else:
        credits: Any  # until it is checked, any JSON value; typed as Decimal, msgspec would also accept text
    request_count: Annotated[int, msgspec.Meta(ge=0, le=MAX_REQUEST_COUNT)]


class DailyUsage(msgspec.Struct, frozen=True, dict=True):
    """The rows of one day of a report, and their sums."""

    rows: tuple[UsageRow, ...] = ()

    @cached_property
    def credits(self) -> Decimal | None:
        """The exact sum of the rows' credits: None if any row has none, 0 without rows."""
        return sum_credits(self.rows)

    @cached_property
    def request_count(self) -> int:
        """The sum of the rows' requests."""
        return sum([row.request_count for row in self.rows])


@dataclass(frozen=True, kw_only=True)
class UsageReport:
    """
    The checked response to a query.

    ``rows`` are sorted by day and group. A day or a group without usage has no row. ``start`` and ``end`` are UTC days,
    both included.
    """

    org_id: str
    start: date
    end: date
    group_by: str
    rows: tuple[UsageRow, ...]
    body: bytes = field(default=b"", repr=False, compare=False)
    _computed: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def days(self) -> Mapping[date, DailyUsage]:
        """The usage of each day that has rows, in order."""
        return {day: DailyUsage(tuple(rows)) for day, rows in rows_by_day(self.rows)}

    def usage_on(self, day: date) -> DailyUsage:
        """Return the usage of a day, also of one without rows."""
        return self.days.get(day) or DailyUsage()

    @cached_property
    def credits(self) -> Decimal | None:
        """The exact sum of the rows' credits: None if any row has none, 0 without rows."""
        return sum_amounts([day.credits for day in self.days.values()])

    @cached_property
    def request_count(self) -> int:
        """The sum of the rows' requests."""
        return sum([day.request_count for day in self.days.values()])

    def amounts(self, metric: Metric, *, per_group: bool, since: date | None = None) -> dict[str | None, Decimal]:
        """
        Return the exact sums of a metric by group, or of all rows under the group None; empty without rows.

        They are cached, since a report may be shared by many sensors.

        :param since: the first day to include; None for all days.
        :raises CreditsUnavailableError: for credits, if any row has none.
        """

        def compute() -> dict[str | None, Decimal]:
            amounts: dict[str | None, Decimal] = {}
            with localcontext(EXACT):
                for day, group, amount in self._amounts_of_rows(metric, per_group):
                    if since is None or day >= since:
                        amounts[group] = amounts.get(group, _ZERO) + amount
            return amounts

        return self.remember(("amounts", metric, per_group, since), compute)

    def daily_amounts(self, metric: Metric, *, per_group: bool) -> dict[str | None, dict[date, Decimal]]:
        """
        Return :meth:`amounts` by group and day, in the order of the days; a day without a row is not among them.

        :raises CreditsUnavailableError: for credits, when the service sent none for some row.
        """

        def compute() -> dict[str | None, dict[date, Decimal]]:
            amounts: dict[str | None, dict[date, Decimal]] = {}
            with localcontext(EXACT):
                for day, group, amount in self._amounts_of_rows(metric, per_group):
                    days = amounts.setdefault(group, {})
                    days[day] = days.get(day, _ZERO) + amount
            return amounts

        return self.remember(("daily_amounts", metric, per_group), compute)

    def remember(self, key: Hashable, compute: Callable[[], Computed]) -> Computed:
        """Return what ``compute`` returned for this report when ``key`` first came up."""
        if key not in self._computed:
            self._computed[key] = compute()
        found: Computed = self._computed[key]
        return found

    def _amounts_of_rows(self, metric: Metric, per_group: bool) -> Iterator[tuple[date, str | None, Decimal]]:
        for row in self.rows:
            amount = row.credits if metric == "credits" else Decimal(row.request_count)
            if amount is None:
                raise CreditsUnavailableError(
                    f"Reducto sends no credits for organization {self.org_id}, as for accounts on its newer "
                    "pricing: use metric='requests' instead"
                )
            yield row.date, row.group if per_group else None, amount


def rows_by_day(rows: Sequence[UsageRow]) -> Iterator[tuple[date, Sequence[UsageRow]]]:
    """Yield each day and its rows, from rows that are sorted by day."""
    start = 0
    while start < len(rows):
        day = rows[start].date
        end = bisect_right(rows, day, start, key=attrgetter("date"))
        yield day, rows[start:end]
        start = end


def sum_credits(rows: Iterable[UsageRow]) -> Decimal | None:
    """Return the exact sum of the credits of ``rows``, or None if any row has none."""
    return sum_amounts([row.credits for row in rows])


def sum_amounts(amounts: Iterable[Decimal | None]) -> Decimal | None:
    """Return the exact sum of credits or requests, or None if any amount is None."""
    with localcontext(EXACT):
        try:
            return sum(amounts, _ZERO)  # type: ignore[type-var]
        except TypeError:  # None can't be added
            return None


def format_decimal(value: Decimal) -> str:
    """Return a decimal as people write it: fixed-point, exact, without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def json_number(value: Decimal) -> int | float:
    """Return a decimal as a JSON number: an int if it is whole and has at most 64 bits, else the nearest float."""
    return int(value) if value < _WHOLE_END and value == value.to_integral_value() else float(value)

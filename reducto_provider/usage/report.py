"""What the Usage Export API answered: typed rows and their exact sums."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import msgspec

Metric = Literal["credits", "requests"]

Computed = TypeVar("Computed")

CREDITS_SCALE: Final = 9
"""Decimal places that credits are kept to. A service that sums binary floats sends 230.10000000000002."""

CREDITS_UNIT = Decimal(1).scaleb(-CREDITS_SCALE)

_ZERO = Decimal(0)

MAX_REQUEST_COUNT = 2**63 - 1

_WHOLE_END = 2**64  # Airflow's processes send each other no larger integers: one in an event ends the triggerer

EXACT: Final = Context(prec=80, rounding=ROUND_HALF_EVEN)
"""Wide enough that no sum of as many values as fit into memory is ever rounded."""


class UsageContractError(ValueError):
    """The answer breaks the service's contract: it is for another question, or it can't be trusted as data."""


class CreditsUnavailableError(ValueError):
    """Credits are needed, but the service sends none for this account, as on Reducto's newer pricing."""


class UsageRow(msgspec.Struct, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """
    The usage of one UTC day by one value of the dimension that its report is grouped by.

    ``group`` is kept as sent, None and empty included. ``credits`` are exact to nine decimal places, or None
    where the service sent no figure, which is never the same as 0.
    """

    date: date
    group: str | None
    if TYPE_CHECKING:
        credits: Decimal | None
    else:
        credits: Any  # before its checks an int, a Decimal or an offence; a Decimal may be decoded from text as well
    request_count: Annotated[int, msgspec.Meta(ge=0, le=MAX_REQUEST_COUNT)]


@dataclass(frozen=True, kw_only=True)
class UsageReport:
    """
    The checked answer to one question.

    ``rows`` are in the order of day and group, whatever order they were sent in. A day or a group without
    usage has no row. ``start`` and ``end`` are UTC days, both included.
    """

    org_id: str
    start: date
    end: date
    group_by: str
    rows: tuple[UsageRow, ...]
    body: bytes = field(default=b"", repr=False, compare=False)
    _computed: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def credits(self) -> Decimal | None:
        """The exact sum of the rows' credits: None when any row has none, 0 when there are no rows."""
        return sum_credits(self.rows)

    @cached_property
    def request_count(self) -> int:
        """The sum of the rows' requests."""
        return sum(row.request_count for row in self.rows)

    def amounts(self, metric: Metric, *, per_group: bool, since: date | None = None) -> dict[str | None, Decimal]:
        """
        Return the exact sums of a metric by group, or of all rows under the group None; empty without rows.

        They are computed once, however many ask: a report may be shared by all who wait for the same usage.

        :param since: the first day that counts; all days when it is None.
        :raises CreditsUnavailableError: for credits, when the service sent none for some row.
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


def sum_credits(rows: Iterable[UsageRow]) -> Decimal | None:
    """The exact sum of the credits of ``rows``: None when any row has none."""
    return add_credits(row.credits for row in rows)


def add_credits(amounts: Iterable[Decimal | None]) -> Decimal | None:
    """The exact sum of amounts of credits: None when any of them is."""
    total = Decimal(0)
    with localcontext(EXACT):
        for amount in amounts:
            if amount is None:
                return None
            total += amount
    return total


def format_decimal(value: Decimal) -> str:
    """A decimal as people write it: fixed-point, exact, without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def json_number(value: Decimal) -> int | float:
    """A decimal as a JSON number: whole ones of up to 64 bits exact, others as the nearest binary float."""
    return int(value) if value < _WHOLE_END and value == value.to_integral_value() else float(value)

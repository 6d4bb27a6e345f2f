"""Queries to the Usage Export API, validated before they are sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

from reducto_provider.usage.checks import check_choice, check_name, check_single_name

DIMENSIONS: Final = ("product", "feature", "api_key", "file_type")
"""
What usage can be grouped by. All are views of the same usage: never add one to another.

A new dimension is added here, and as a keyword wherever filters are written out, for the sake of signatures:
:class:`UsageQuery`, the operators, the sensor and the triggers. A test finds each place that lacks it or does not
keep it.
"""

FILTER_PARAMETERS: Final = {
    f"{dimension}s": re.sub("_([a-z])", lambda letter: letter[1].upper(), dimension) for dimension in DIMENSIONS
}
"""Each filter of a query and its query parameter. The API spells dimensions in snake, filters in camel case."""

ALL: Final = "*"
"""The explicit value of a filter for "no filter"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageQuery:
    """
    A query to the Usage Export API: whole days by one dimension.

    A filter is one text or several, and becomes a tuple without duplicates. The single text ``"*"`` means no filter. In
    a list, any text that is not blank is a name, including those that are refused as a single text.

    :param start: first day, in UTC.
    :param end: last day, included.
    :param group_by: one of :data:`DIMENSIONS`.
    :param org_id: the organization; None for the key's own, which the service then selects.
    :param products: only these products; empty or ``"*"`` for all. Likewise the other three filters.
    :raises ValueError: for a value that the service does not accept, naming the field, the value and what is allowed.
    """

    start: date
    end: date
    group_by: str = "product"
    org_id: str | None = None
    products: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    file_types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("start", "end"):
            value = getattr(self, field)
            if not isinstance(value, date) or isinstance(value, datetime):
                raise ValueError(f"{field} must be a day (datetime.date), not {value!r}")
        if self.start > self.end:
            raise ValueError(f"the first day {self.start} is after the last day {self.end}: swap or correct them")
        check_choice("group_by", self.group_by, DIMENSIONS)
        if self.org_id is not None:
            check_single_name("org_id", self.org_id)
        for field in FILTER_PARAMETERS:
            object.__setattr__(self, field, _filter_values(field, getattr(self, field)))

    def __str__(self) -> str:
        """Return the organization, the days and the dimension, in one line for the log."""
        days = f"{self.start}" if self.start == self.end else f"{self.start} to {self.end}"
        return f"{printable(self.org_id or 'the default organization')}, {days}, by {self.group_by}"

    def params(self) -> list[tuple[str, str]]:
        """Return the query parameters in a fixed order, repeatable ones once for each value."""
        params = [
            ("startDate", self.start.isoformat()),
            ("endDate", self.end.isoformat()),
            ("groupBy", self.group_by),
        ]
        if self.org_id is not None:
            params.append(("orgId", self.org_id))
        for field, parameter in FILTER_PARAMETERS.items():
            params.extend((parameter, value) for value in getattr(self, field))
        return params

    def filters(self) -> dict[str, list[str]]:
        """Return the filters that are set, by field, with their values sorted."""
        return {field: sorted(values) for field in FILTER_PARAMETERS if (values := getattr(self, field))}


def unmatched_filters(query: UsageQuery, row_count: int) -> str | None:
    """Return a warning if a query with filters found nothing: a name in them may be misspelled."""
    if row_count or not (filters := query.filters()):
        return None
    named = ", ".join(f"{field}={values}" for field, values in filters.items())
    return f"No usage of {query} matches {named}: check the names if there should be some"


def printable(text: str) -> str:
    """Return foreign text for a log, escaped if it has characters that break lines or move a terminal's cursor."""
    return text if text.isprintable() else repr(text)


def _filter_values(field: str, values: object) -> tuple[str, ...]:
    if values == ALL:
        return ()
    if isinstance(values, str):
        text = check_single_name(field, values)
        if "," in text or text != text.strip():
            names = [name for part in text.split(",") if (name := part.strip())]
            raise ValueError(
                f"{field} is one text with a comma in it or blanks around it, which matches nothing, {text!r}: give a "
                f"list, such as {names}; in a list both are taken for part of a name"
            )
        return (text,)
    if isinstance(values, int | float):
        values = (values,)  # _check_name refuses numbers
    if not isinstance(values, Iterable) or isinstance(values, Mapping):  # iterates over its keys
        raise ValueError(f"{field} must be one text or several, not {values!r}")
    names = [check_name(field, value) for value in values]
    return tuple(dict.fromkeys(sorted(names) if isinstance(values, set | frozenset) else names))

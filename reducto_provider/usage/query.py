"""What to ask the Usage Export API, validated before it is sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

DIMENSIONS: Final = ("product", "feature", "api_key", "file_type")
"""What usage can be grouped by. The four are four views of the same usage: never add one to another."""

FILTER_PARAMETERS: Final = {
    "products": "product",
    "features": "feature",
    "api_keys": "apiKey",
    "file_types": "fileType",
}
"""Each filter of a query and its query parameter. The API spells dimensions in snake, filters in camel case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageQuery:
    """
    One question to the Usage Export API: whole days, both included, by one dimension.

    A filter may be given as one string or several; it is kept as a tuple without repetitions.

    :param start: first day, a UTC day.
    :param end: last day, included.
    :param group_by: one of :data:`DIMENSIONS`.
    :param org_id: the organization; None leaves the choice to the service, which takes the key's own.
    :param products: only these products; nothing means all. Likewise the other three filters.
    :raises ValueError: for anything that the service could not answer, naming the field, the value and what
        is allowed.
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
        if self.group_by not in DIMENSIONS:
            raise ValueError(f"group_by must be one of {', '.join(DIMENSIONS)}, not {self.group_by!r}")
        if self.org_id is not None:
            check_text("org_id", self.org_id)
        for field in FILTER_PARAMETERS:
            object.__setattr__(self, field, _filter_values(field, getattr(self, field)))

    def __str__(self) -> str:
        """Whose usage, of which days and by which dimension, in one line for the log."""
        days = f"{self.start}" if self.start == self.end else f"{self.start} to {self.end}"
        return f"{shown(self.org_id or 'the default organization')}, {days}, by {self.group_by}"

    def params(self) -> list[tuple[str, str]]:
        """The query parameters in a fixed order, a repeatable one once for each of its values."""
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
        """The filters that are set, by field, in an order that does not depend on how they were given."""
        return {field: sorted(values) for field in FILTER_PARAMETERS if (values := getattr(self, field))}


def shown(text: str) -> str:
    """Foreign text as it can be logged: what would break a line, or move a terminal's cursor, is escaped."""
    return text if text.isprintable() else repr(text)


def check_text(field: str, value: object) -> str:
    """
    Text that can be meant, and sent: not empty, not a template's None or list, encodable.

    :raises ValueError: naming ``field``, the value and the remedy.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field} must be text that is not empty, not {value!r}; leave it out to set no {field}")
    # Sent as they are, these would match nothing, and nothing would be taken for the usage.
    if value.strip() == "None":
        raise ValueError(f"{field} is the text {value!r}: a template rendered None; leave it out to set no {field}")
    if (value.strip()[0], value.strip()[-1]) in (("[", "]"), ("(", ")"), ("{", "}")):
        raise ValueError(
            f"{field} is a list written as text, {value!r}: give the list itself, or set "
            "render_template_as_native_obj=True on the DAG"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} must be valid Unicode text, not {value!r}") from error
    return value


def _filter_values(field: str, values: object) -> tuple[str, ...]:
    if isinstance(values, str):
        values = (values,)
    if not isinstance(values, Iterable):
        raise ValueError(f"{field} must be one text or several, not {values!r}")
    texts = [check_text(field, value) for value in values]
    return tuple(dict.fromkeys(sorted(texts) if isinstance(values, set | frozenset) else texts))

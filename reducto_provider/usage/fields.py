"""The fields of a query as DAG authors write them: literal or templated, days as text, a filter as one text.

What is literal is checked when the DAG is parsed, everything again once templates are rendered.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from reducto_provider.usage.query import UsageQuery

QUERY_FIELDS: Final = (
    "org_id",
    "usage_start_date",
    "usage_end_date",
    "group_by",
    "products",
    "features",
    "api_keys",
    "file_types",
)
"""The arguments that operator and sensor share, all of them templated."""


def is_literal(value: object) -> bool:
    """Whether a DAG author's value is final, not a template or another task's result."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    if isinstance(value, list | tuple | set):
        return all(map(is_literal, value))
    return value is None or isinstance(value, int | float | Decimal | date | timedelta)


def parse_query(
    *,
    usage_start_date: object,
    usage_end_date: object,
    group_by: object,
    org_id: object,
    **filters: object,
) -> UsageQuery:
    """
    A query from rendered fields.

    :raises ValueError: naming the field, the value and the remedy.
    """
    return UsageQuery(
        start=parse_day("usage_start_date", usage_start_date),
        end=parse_day("usage_end_date", usage_end_date),
        group_by=group_by,  # type: ignore[arg-type]  # UsageQuery checks what comes
        org_id=org_id,  # type: ignore[arg-type]
        **{name: () if values is None else values for name, values in filters.items()},  # type: ignore[arg-type]
    )


def check_both_days(fields: dict[str, Any]) -> None:
    """
    See that both days are given or neither, before the run's own days stand in for them.

    :raises ValueError: naming them.
    """
    if (fields["usage_start_date"] is None) != (fields["usage_end_date"] is None):
        raise ValueError("usage_start_date and usage_end_date go together: give both, or neither for the run's days")


def check_literals(fields: dict[str, Any]) -> None:
    """
    Check those of :data:`QUERY_FIELDS` that are literal, as early as a DAG is parsed.

    :raises ValueError: naming the field, the value and the remedy.
    """
    check_both_days(fields)
    anything = {"usage_start_date": date.min, "usage_end_date": date.max, "group_by": "product"}
    parse_query(
        **{
            name: anything.get(name) if not is_literal(value) or (value is None and name != "group_by") else value
            for name, value in fields.items()
        }
    )


def parse_day(field: str, value: object) -> date:
    """
    A day from what a DAG author or a template gives: a ``date``, or text as ``yyyy-mm-dd``.

    A moment is refused: which day it belongs to depends on a time zone that only its author knows.

    :raises ValueError: naming ``field``, the value and the remedy.
    """
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value, re.ASCII):
        with suppress(ValueError):
            return date.fromisoformat(value)
    raise ValueError(
        f"{field} must be a day as yyyy-mm-dd, not {value!r}: leave both days out for the run's own, or take the day "
        "of a moment with the filter ds"
    )

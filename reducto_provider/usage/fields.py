"""Arguments as DAG authors give them: literal or templated, days as text, a filter as one text.

Literals are checked when the DAG is parsed, and all arguments once templates are rendered. An argument that is given
never counts as left out: a template or another task's output that resolves to None or to nothing is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set, Sized
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final

from reducto_provider.usage.checks import check_single_name
from reducto_provider.usage.query import FILTER_PARAMETERS, UsageQuery

RUN_DAYS: Final = "run"
"""The value of both ``usage_start_date`` and ``usage_end_date`` for the days that the run covers."""

QUERY_FIELDS: Final = (
    "org_id",
    "usage_start_date",
    "usage_end_date",
    "group_by",
    *FILTER_PARAMETERS,
)
"""The templated arguments that operators and sensor share."""

_DAYS_REMEDY = "give a day as yyyy-mm-dd, or 'run' as both days for those that the run covers, or leave both out"
_FILTER_REMEDY = "give the names to filter by, or '*' for all, or leave the argument out"

REMEDIES: Final[Mapping[str, str]] = {
    "org_id": "name the organization, or leave the argument out for the connection's or the key's own",
    "organizations": "name at least one, and each of them",
    "usage_start_date": _DAYS_REMEDY,
    "usage_end_date": _DAYS_REMEDY,
    "group_by": "name a dimension such as 'product', the default",
    **dict.fromkeys(FILTER_PARAMETERS, _FILTER_REMEDY),
    "threshold": "give a number, 0 or more",
    "budget": "give a number, 0 or more; a task without a budget needs no gate",
    "reserve": "give a number, 0 or more, or leave the argument out for 0",
    "window": "give 'month', the default, or another window",
    "output_path": "give a URL or an absolute path; only an export to XCom leaves the argument out",
    "output_conn_id": "name a connection, or leave the argument out",
    "output_format": "name a format such as 'jsonl', the default",
    "compression": "give 'gzip' or 'zstd', or leave the argument out",
    "price_per_credit": "give a price, or leave the argument out for a format other than FOCUS",
    "contracted_price_per_credit": "give a price, that of price_per_credit if no other was agreed on, or leave the "
    "argument out",
    "billing_currency": "give three letters such as 'USD', the default",
    "billing_account_name": "give a name, the organization's id if it has no other, or leave the argument out",
    "reducto_conn_id": "name a connection, 'reducto_default' by default",
}
"""What an author can do about each templated argument that is empty."""


class _Given(Enum):
    GIVEN = "given"

    def __repr__(self) -> str:
        return self.name


GIVEN: Final = _Given.GIVEN
"""The placeholder in an :func:`outline` for a value that is known only when a task runs."""


def is_literal(value: object) -> bool:
    """Return whether a DAG author's value is final: neither a template nor another task's output."""
    if isinstance(value, str):
        return not any(begin in value for begin in ("{{", "{%", "{#"))
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
    Return the query of rendered fields.

    :raises ValueError: naming the field, the value and the remedy.
    """
    return UsageQuery(
        start=parse_day("usage_start_date", usage_start_date),
        end=parse_day("usage_end_date", usage_end_date),
        group_by=group_by,  # type: ignore[arg-type]  # UsageQuery checks it
        org_id=org_id,  # type: ignore[arg-type]
        **{name: () if values is None else values for name, values in filters.items()},  # type: ignore[arg-type]
    )


def outline(value: object) -> object:
    """Return a value with :data:`GIVEN` in place of each template and each output of another task."""
    if is_literal(value):
        return value
    if isinstance(value, Mapping):
        return {key: outline(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [outline(each) for each in value]
    return GIVEN


def restore_literals(outlined: object, rendered: object) -> object:
    """
    Return a rendered value with its literal parts as they were written.

    With ``render_template_as_native_obj``, Airflow turns ``"12345"`` into a number and ``"None"`` into None, even where
    they are literal.
    """
    if outlined is GIVEN:
        return rendered
    if isinstance(outlined, list) and isinstance(rendered, list | tuple) and not is_literal(outlined):
        return [restore_literals(*each) for each in zip(outlined, rendered, strict=True)]
    if isinstance(outlined, dict) and isinstance(rendered, Mapping):
        return {key: restore_literals(each, rendered[key]) for key, each in outlined.items()}
    return outlined


def check_given(name: str, outlined: object, value: object) -> None:
    """
    Check that no part of an argument that was given resolved to None or to nothing.

    Refused are None, blank text, an empty collection and the text "None". The latter is also refused as an element of
    a list that was rendered as a whole, where it may be a template's None. As a literal element it is a name.

    :param outlined: the argument's :func:`outline`, from before it was rendered.
    :raises ValueError: naming the argument, the value and the remedy.
    """
    if empty := list(_resolved_to_nothing(outlined, value)):
        part = "" if empty[0] is value else "an element of it "
        raise ValueError(f"{name} is given but {part}resolved to {empty[0]!r}: {REMEDIES[name]}")
    for outlined_part, text in zip(_parts(outlined), _parts(value), strict=False):
        if outlined_part is GIVEN and isinstance(text, str):
            check_single_name(name, text)  # a template of a list's element may have rendered a list, as text


def is_run_days(fields: Mapping[str, Any]) -> bool:
    """
    Return whether both days are those of the run.

    :raises ValueError: if only one is.
    """
    days = [fields["usage_start_date"], fields["usage_end_date"]]
    if RUN_DAYS in days and days != [RUN_DAYS, RUN_DAYS] and all(map(is_literal, days)):
        raise ValueError(
            f"usage_start_date and usage_end_date are 'run' together or not at all, not {days[0]!r} and {days[1]!r}"
        )
    return days == [RUN_DAYS, RUN_DAYS]


def check_both_days(fields: Mapping[str, Any]) -> None:
    """
    Check that both days are given or neither, before those of the run or of a window replace them.

    :raises ValueError: naming them.
    """
    if (fields["usage_start_date"] is None) != (fields["usage_end_date"] is None):
        raise ValueError("usage_start_date and usage_end_date go together: give both, or neither")


def check_not_empty(fields: Mapping[str, object]) -> None:
    """
    Check that no literal argument is empty. One that is None or not named is left out.

    :raises ValueError: naming the argument, the value and the remedy.
    """
    for name, value in fields.items():
        if value is not None and _has_empty(value):
            part = "an element of it is " if any(map(_has_empty, _parts(value))) else ""
            raise ValueError(f"{name} is given but {part}empty, {value!r:.200}: {REMEDIES[name]}")


def check_literals(fields: Mapping[str, Any]) -> None:
    """
    Check the literal ones of :data:`QUERY_FIELDS` when a DAG is parsed.

    :raises ValueError: naming the field, the value and the remedy.
    """
    check_both_days(fields)
    is_run_days(fields)
    days = {"usage_start_date": date.min, "usage_end_date": date.max}
    anything = {**days, "group_by": "product"}
    parse_query(
        **{
            name: anything.get(name) if not is_literal(value) or (name in days and value in (None, RUN_DAYS)) else value
            for name, value in fields.items()
        }
    )


def parse_day(field: str, value: object) -> date:
    """
    Return the day that a DAG author or a template gives: a ``date``, or text as ``yyyy-mm-dd``.

    A moment is refused: its day depends on a time zone that only its author knows.

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


def _is_empty(value: object) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Sized) and not len(value))


def _has_empty(value: object) -> bool:
    return (is_literal(value) and _is_empty(value)) or any(map(_has_empty, _parts(value)))


def _resolved_to_nothing(outlined: object, value: object) -> Iterator[object]:
    """Yield the parts of a value that are None or empty where a template or another task's output was given."""
    if outlined is not GIVEN and value is None:  # a pre_execute hook may have removed it
        yield value
    elif outlined is not GIVEN:
        for pair in zip(_parts(outlined), _parts(value), strict=False):
            yield from _resolved_to_nothing(*pair)
    elif _is_nothing(value):
        yield value
    else:
        for part in _parts(value):
            yield from _resolved_to_nothing(GIVEN, part)


def _is_nothing(value: object) -> bool:
    if isinstance(value, str) and value.strip() == "None":
        return True
    try:
        return _is_empty(value)
    except Exception:  # noqa: BLE001  # a native template may return Jinja's StrictUndefined, which has no length
        return True


def _parts(value: object) -> Iterator[object]:
    """Yield the elements of a collection or the values of a mapping; nothing for text or any other single value."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        yield from value

"""Decode the bytes of a response into a report, and check them against the service's contract."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date
from decimal import ROUND_HALF_EVEN, Context, Decimal, DecimalException, InvalidOperation
from itertools import chain, groupby
from operator import attrgetter
from typing import Annotated, Any

import msgspec
from msgspec.structs import force_setattr

from reducto_provider.usage.checks import INVALID_JSON
from reducto_provider.usage.memo import Memo
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import (
    CREDITS_SCALE,
    CREDITS_UNIT,
    MAX_REQUEST_COUNT,
    UsageContractError,
    UsageReport,
    UsageRow,
)

log = logging.getLogger(__name__)

_DECIMAL128 = Context(prec=38, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])

_quantize = _DECIMAL128.quantize

_SLICE_BYTES = 2**16


def decode_report(body: bytes, query: UsageQuery) -> UsageReport:
    """
    Decode the response to ``query`` and check it against the contract.

    Credits are rounded half-even to nine places, only here. They are never a binary float.

    :raises UsageContractError: naming the first violation.
    """
    answer, in_order = _decode_good(body) or (_decode_any(body), False)
    _check_echo(answer, query)
    rows = _with_exact_credits(answer.data) if isinstance(answer, _BareAnswer) else answer.data
    ordered = rows if in_order else _sorted(rows, query)
    if ordered and not (query.start <= ordered[0].date and ordered[-1].date <= query.end):
        raise _row_error(rows, query)
    return UsageReport(
        org_id=answer.org_id,
        start=query.start,
        end=query.end,
        group_by=query.group_by,
        rows=tuple(ordered),
        body=body,
    )


def sent_rows(report: UsageReport) -> list[bytes]:
    """Return each row of a report, in its order, as the JSON text that the service sent, including unknown keys."""
    sent = [bytes(text) for text in _SENT_DECODER.decode(report.body).data]
    return sorted(sent, key=lambda text: row_order(_KEY_DECODER.decode(text)))


def decode_rows(content: bytes) -> list[UsageRow]:
    """
    Return the rows of a JSON array of rows as the service sent them.

    :raises ValueError: naming the first violation.
    """
    try:
        rows = _ROWS_DECODER.decode(content)
    except INVALID_JSON as error:
        raise ValueError(f"it can't be read as rows in JSON: {error}") from error
    return _with_exact_credits(rows)


class _Answer(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    org_id: str
    start_date: date
    end_date: date
    group_by: str
    data: list[UsageRow]


class _BareRow(msgspec.Struct, rename="camel", gc=False, forbid_unknown_fields=True):
    date: date
    group: str | None
    request_count: Annotated[int, msgspec.Meta(ge=0, le=MAX_REQUEST_COUNT)]
    credits: Any = None

    def __post_init__(self) -> None:
        """Release the GIL: a million rows decoded without running Python would block an event loop."""


class _BareAnswer(_Answer, rename="camel", forbid_unknown_fields=True):
    data: list[_BareRow]  # type: ignore[assignment]  # a UsageRow has its credits


class _WiderRow(_BareRow, rename="camel", gc=False, forbid_unknown_fields=False):
    pass


class _WiderAnswer(_BareAnswer, rename="camel", forbid_unknown_fields=False):
    data: list[_WiderRow]  # type: ignore[assignment]


class _RowKey(msgspec.Struct):
    date: date
    group: str | None


class _SentAnswer(msgspec.Struct):
    data: list[msgspec.Raw]


class _ScalarRow(msgspec.Struct):
    credits: float | int | str | bool | None = None


class _ScalarAnswer(msgspec.Struct):
    data: list[_ScalarRow]


_DECODER = msgspec.json.Decoder(_Answer)

# float_hook takes the text of the literal, so no value passes through a binary float.
_BARE_DECODER = msgspec.json.Decoder(_BareAnswer, float_hook=Decimal)

_WIDER_DECODER = msgspec.json.Decoder(_WiderAnswer, float_hook=Decimal)

_ROWS_DECODER = msgspec.json.Decoder(list[_WiderRow], float_hook=Decimal)

_KEY_DECODER = msgspec.json.Decoder(_RowKey)

_SENT_DECODER = msgspec.json.Decoder(_SentAnswer)

_SCALAR_DECODER = msgspec.json.Decoder(_ScalarAnswer)

_NAMES_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])

_MAX_NAMES = 50

_LARGE = 2**20  # bytes of JSON, which may take many times as much memory once decoded

_logged_names: set[str] = set()


def _decode_good(body: bytes) -> tuple[_Answer, bool] | None:
    """
    Return the response with its credits rounded, and whether its rows are strictly in order: then no day has a group
    twice. Return None unless it is exactly as documented.

    Rows are decoded in slices: a million at once would hold the GIL for too long for an event loop.
    """
    # If the text without the content of the outermost brackets is a response, they are those of its rows.
    start, end = body.find(b"[") + 1, body.rfind(b"]")
    if not 0 < start <= end:
        return None
    memo = Memo(_read_credits)
    groups: dict[str | None, str | None] = {}
    kept = groups.setdefault
    day: date | None = None
    group: str | None = None
    in_order = True
    try:
        answer = _DECODER.decode(body[:start] + body[end:])
        while start < end:
            # The end of a row, or a place within one: then the slice before it can't be decoded.
            row_end = body.find(b"},", start + _SLICE_BYTES, end) + 1 or end
            if row_end - start > _LARGE:  # not a documented row, and of unknown size in memory
                return None
            # In a response of one slice few rows have the same credits.
            read = memo.function() if answer.data or row_end < end else _read_credits
            rows = msgspec.json.Decoder(list[UsageRow], float_hook=read).decode(b"[%b]" % body[start:row_end])
            if answer.data and not rows:
                return None
            for row in rows:
                amount: object = row.credits
                if type(amount) is not Decimal and amount is not None:
                    if type(amount) is not int:
                        return None
                    force_setattr(row, "credits", read(amount))  # a service may write 150.0 as 150
                # Share equal days and groups among rows, to save memory.
                last, group = group, kept(row.group, row.group)
                force_setattr(row, "group", group)
                if row.date == day:
                    force_setattr(row, "date", day)
                    if group is None or (last is not None and group <= last):
                        in_order = False
                else:
                    if day is not None and row.date < day:
                        in_order = False
                    day = row.date
            answer.data += rows
            start = row_end + 1
            if start == end:  # after a comma without a row
                return None
    except (*INVALID_JSON, DecimalException):
        return None
    return answer, in_order


def _decode_any(body: bytes) -> _BareAnswer:
    """
    Return the response with its credits as they were sent.

    :raises UsageContractError: naming the first violation.
    """
    try:
        body.decode()  # msgspec does not check the text of keys that it skips
        if len(body) > _LARGE and _may_nest(body):
            _SCALAR_DECODER.decode(body)
        with suppress(msgspec.ValidationError):
            return _BARE_DECODER.decode(body)
        answer = _WIDER_DECODER.decode(body)
        _log_unknown_names(body)
        return answer
    except msgspec.ValidationError as error:
        raise UsageContractError(f"the answer does not have the documented form: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageContractError(f"the answer is not JSON, or it was cut short: {error}") from error
    except (DecimalException, RecursionError, ValueError) as error:
        # An exponent out of range, endless nesting, an integer of thousands of digits.
        raise UsageContractError(f"the answer holds a value out of all bounds: {error!r}") from error


def _may_nest(body: bytes) -> bool:
    """Return whether arrays or objects may be nested in rows: as values of credits they would be kept in memory."""
    text = body.translate(None, b" \t\r\n")
    return text.count(b":[") > 1 or b":{" in text


def _log_unknown_names(body: bytes) -> None:
    """Log each unknown key once, up to a limit: a service might send new names every day."""
    rows = [memoryview(row) for row in _SENT_DECODER.decode(body).data]
    places: list[tuple[str, type[msgspec.Struct], Iterable[bytes | memoryview]]] = [
        ("rows", UsageRow, (row for row in rows if len(row) < _LARGE)),
        ("answers", _Answer, [body] if len(body) - sum(map(len, rows)) < _LARGE else ()),
    ]
    new = []
    for place, known, texts in places:
        for text in texts:
            for name in _NAMES_DECODER.decode(text).keys() - known.__struct_encode_fields__:
                entry = f"{place}: {_short(name)[1:-1] if name.isprintable() else _short(name)}"
                if entry not in _logged_names and len(_logged_names) < _MAX_NAMES:
                    _logged_names.add(entry)
                    new.append(entry)
    if new:
        log.warning("The service sends keys that this package does not know, left out of %s", ", ".join(sorted(new)))


def _check_echo(answer: _Answer, query: UsageQuery) -> None:
    for name, requested, echoed in (
        ("orgId", query.org_id, answer.org_id),
        ("startDate", query.start, answer.start_date),
        ("endDate", query.end, answer.end_date),
        ("groupBy", query.group_by, answer.group_by),
    ):
        if requested is not None and requested != echoed:
            text = f"the answer is for {name} {_short(echoed)}, not for {_short(requested)} as requested"
            raise UsageContractError(text)
    if not answer.org_id.strip():
        raise UsageContractError("the answer names no organization: its orgId is empty")


def _with_exact_credits(rows: Sequence[_BareRow]) -> list[UsageRow]:
    return [
        UsageRow(row.date, row.group, _credits(row.credits, index), row.request_count) for index, row in enumerate(rows)
    ]


def _credits(value: object, index: int) -> Decimal | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(value)
    if not isinstance(value, Decimal):
        raise UsageContractError(f"row {index}: credits must be a number, not {_short(value)}")
    try:
        return exact_credits(value)
    except ValueError as error:
        raise UsageContractError(f"row {index}: {error}") from None


def _read_credits(literal: str | int) -> Decimal:
    """Return the number of a literal as :func:`exact_credits` does, with fewer calls: there may be a million."""
    credits = _quantize(Decimal(literal), CREDITS_UNIT)
    return exact_credits(Decimal(literal)) if credits.is_signed() else credits


def exact_credits(credits: Decimal) -> Decimal:
    """
    Return credits rounded half-even to nine places.

    :raises ValueError: for a number that is negative or does not fit into decimal128(38, 9).
    """
    if credits.is_signed() and credits:  # -0.0 is 0
        raise ValueError(f"credits must not be negative: {_short(credits)}")
    try:
        rounded = _DECIMAL128.quantize(credits, CREDITS_UNIT)  # refuses 1E+9999999999 without expanding it
    except InvalidOperation:
        raise ValueError(f"credits are beyond decimal128(38, {CREDITS_SCALE}): {_short(credits)}") from None
    return rounded.copy_abs()


def _sorted(rows: list[UsageRow], query: UsageQuery) -> list[UsageRow]:
    """
    Return rows by day and group. Sorting them day by day is faster, and never holds the GIL for long.

    :raises UsageContractError: if a day has a group twice.
    """
    days: dict[date, list[UsageRow]] = {}
    for day, together in groupby(rows, attrgetter("date")):
        days.setdefault(day, []).extend(together)
    for rows_of_day in days.values():
        groups = {row.group for row in rows_of_day}
        if len(groups) < len(rows_of_day):
            raise _row_error(rows, query)
        rows_of_day.sort(key=row_order if None in groups else attrgetter("group"))
    return list(chain.from_iterable(days[day] for day in sorted(days)))


def _row_error(rows: list[UsageRow], query: UsageQuery) -> UsageContractError:
    """Return the error for the first invalid row. There must be one."""
    seen: set[tuple[date, str | None]] = set()
    for index, row in enumerate(rows):
        if not query.start <= row.date <= query.end:
            return UsageContractError(f"row {index}: {row.date} is outside {query.start} to {query.end}")
        if (row.date, row.group) in seen:
            return UsageContractError(f"row {index}: {row.date} has the group {_short(row.group)} twice")
        seen.add((row.date, row.group))
    raise AssertionError


def row_order(row: UsageRow | _RowKey) -> tuple[date, bool, str]:
    return row.date, row.group is not None, row.group or ""


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

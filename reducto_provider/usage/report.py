"""What the Usage Export API answered: decoded into typed rows and held against the contract."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal, DecimalException, InvalidOperation, localcontext
from functools import cached_property
from itertools import chain, groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec.structs import force_setattr

from reducto_provider.usage.query import UsageQuery

log = logging.getLogger(__name__)

Metric = Literal["credits", "requests"]
K = TypeVar("K")
V = TypeVar("V")

CREDITS_SCALE: Final = 9
"""Decimal places that credits are kept to. A service that sums binary floats sends 230.10000000000002."""

_CREDITS_UNIT = Decimal(1).scaleb(-CREDITS_SCALE)
_DECIMAL128 = Context(prec=38, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])
_ZERO = Decimal(0)
_CREDITS_TYPES = {Decimal, int, type(None)}
_REQUEST_COUNT_MAX = 2**63 - 1
_WHOLE_END = 2**64  # Airflow's processes send each other no larger integers: one in an event ends the triggerer
_SLICE_BYTES = 2**16
_MOST_REMEMBERED = 2**14
# Wide enough that no sum of as many values as fit into memory is ever rounded.
_EXACT = Context(prec=80, rounding=ROUND_HALF_EVEN)


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
    request_count: Annotated[int, msgspec.Meta(ge=0, le=_REQUEST_COUNT_MAX)]


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
    _amounts: dict[tuple[Any, ...], dict[str | None, Decimal]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def decode(cls, body: bytes, query: UsageQuery) -> UsageReport:
        """
        Decode the answer to ``query`` and check all that the contract lets a client check.

        Credits are rounded half-even to nine places, once, here; they never are a binary float.

        :raises UsageContractError: naming the first offence.
        """
        answer = _decode_good(body) or _decode_any(body)
        _check_echo(answer, query)
        rows = _with_exact_credits(answer.data) if isinstance(answer, _BareAnswer) else answer.data
        days = _by_day(rows)
        if days and not (query.start <= days[0][0].date and days[-1][0].date <= query.end):
            raise _row_error(rows, query)
        for day in days:
            groups = {row.group for row in day}
            if len(groups) < len(day):
                raise _row_error(rows, query)
            day.sort(key=_row_order if None in groups else attrgetter("group"))
        return cls(
            org_id=answer.org_id,
            start=query.start,
            end=query.end,
            group_by=query.group_by,
            rows=tuple(chain.from_iterable(days)),
            body=body,
        )

    @cached_property
    def credits(self) -> Decimal | None:
        """The exact sum of the rows' credits: None when any row has none, 0 when there are no rows."""
        return sum_credits(self.rows)

    @cached_property
    def request_count(self) -> int:
        """The sum of the rows' requests."""
        return sum(row.request_count for row in self.rows)

    def amounts(self, metric: Metric, *, per_group: bool, until: date | None = None) -> dict[str | None, Decimal]:
        """
        The exact sums of a metric by group, or of all rows under the group None; empty without rows.

        Summed up once, however many ask: a report may be shared by all who wait for the same usage.

        :param until: the last day that counts; all days when it is None.
        :raises CreditsUnavailableError: for credits, when the service sent none for some row.
        """
        key = (metric, per_group, until)
        if key not in self._amounts:
            self._amounts[key] = self._sum_up(metric, per_group, until or self.end)
        return self._amounts[key]

    def projections(self, metric: Metric, *, per_group: bool, days: int, of_days: int) -> dict[str | None, Decimal]:
        """
        What :meth:`amounts` come to in ``of_days`` days at the rate of the first ``days``, but never less than they
        are; likewise worked out once.

        :raises CreditsUnavailableError: for credits, when the service sent none for some row.
        """
        used = self.amounts(metric, per_group=per_group)
        rates = self.amounts(metric, per_group=per_group, until=self.start + timedelta(days=days - 1))
        key = (metric, per_group, days, of_days)
        if key not in self._amounts:
            self._amounts[key] = {
                group: max(amount, extrapolate(rates.get(group, _ZERO), days, of_days))
                for group, amount in used.items()
            }
        return self._amounts[key]

    def _sum_up(self, metric: Metric, per_group: bool, until: date) -> dict[str | None, Decimal]:
        amounts: dict[str | None, Decimal] = {}
        with localcontext(_EXACT):
            for row in self.rows:
                if row.date > until:
                    break
                amount = row.credits if metric == "credits" else Decimal(row.request_count)
                if amount is None:
                    raise CreditsUnavailableError(
                        f"Reducto sends no credits for organization {self.org_id}, as for accounts on its newer "
                        "pricing: use metric='requests' instead"
                    )
                group = row.group if per_group else None
                amounts[group] = amounts.get(group, _ZERO) + amount
        return amounts

    def sent_rows(self) -> list[bytes]:
        """Each of ``rows``, in their order, as the JSON text that the service sent: unknown keys included."""
        sent = [bytes(text) for text in _SENT_DECODER.decode(self.body).data]
        return sorted(sent, key=lambda text: _row_order(_KEY_DECODER.decode(text)))


class Remembered(dict[K, V]):
    """What a function makes of figures of usage, which repeat themselves in most reports."""

    def __init__(self, function: Callable[[K], V]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, argument: K) -> V:
        result = self[argument] = self._function(argument)
        return result

    def look_up(self) -> Callable[[K], V]:
        """What to call for the next figures: the function itself if there were too many different ones to look up."""
        return self.__getitem__ if len(self) < _MOST_REMEMBERED else self._function


def sum_credits(rows: Iterable[UsageRow]) -> Decimal | None:
    """The exact sum of the credits of ``rows``: None when any row has none."""
    return add_credits(row.credits for row in rows)


def add_credits(amounts: Iterable[Decimal | None]) -> Decimal | None:
    """The exact sum of amounts of credits: None when any of them is."""
    total = Decimal(0)
    with localcontext(_EXACT):
        for amount in amounts:
            if amount is None:
                return None
            total += amount
    return total


def extrapolate(amount: Decimal, days: int, of_days: int) -> Decimal:
    """What ``amount`` in ``days`` days comes to in ``of_days``, half-even to nine places: exact for a constant rate."""
    with localcontext(_EXACT):
        return (amount * of_days / days).quantize(_CREDITS_UNIT)


def plain(value: Decimal) -> str:
    """A decimal as people write it: fixed-point, exact, without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def json_number(value: Decimal) -> int | float:
    """A decimal as a JSON number: whole ones of up to 64 bits exact, others as the nearest binary float."""
    return int(value) if value < _WHOLE_END and value == value.to_integral_value() else float(value)


class _Answer(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    org_id: str
    start_date: date
    end_date: date
    group_by: str
    data: list[UsageRow]


class _BareRow(msgspec.Struct, rename="camel", gc=False, forbid_unknown_fields=True):
    date: date
    group: str | None
    request_count: Annotated[int, msgspec.Meta(ge=0, le=_REQUEST_COUNT_MAX)]
    credits: Any = None

    def __post_init__(self) -> None:
        """Let other threads have the GIL: a million rows without a line of Python would hold up an event loop."""


class _BareAnswer(_Answer, rename="camel", forbid_unknown_fields=True):
    data: list[_BareRow]  # type: ignore[assignment]  # what lacks its credits is no UsageRow yet


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
# float_hook hands over the literal's own text: no binary float on the way to Decimal.
_BARE_DECODER = msgspec.json.Decoder(_BareAnswer, float_hook=Decimal)
_WIDER_DECODER = msgspec.json.Decoder(_WiderAnswer, float_hook=Decimal)
_KEY_DECODER = msgspec.json.Decoder(_RowKey)
_SENT_DECODER = msgspec.json.Decoder(_SentAnswer)
_SCALAR_DECODER = msgspec.json.Decoder(_ScalarAnswer)
_NAMES_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MOST_NAMES = 50
_LARGE = 2**20  # bytes of text that could become many times as much in memory
_logged_names: set[str] = set()


def _decode_good(body: bytes) -> _Answer | None:
    """
    The answer, its credits checked and rounded, if it is just as documented; None if it takes a closer look.

    Some rows at a time: to decode a million in one go would keep the GIL from an event loop for too long.
    """
    # If what is left without all between the outermost brackets is an answer, they are those of its rows.
    start, end = body.find(b"[") + 1, body.rfind(b"]")
    if not 0 < start <= end:
        return None
    credits = Remembered(_read_credits)
    groups: dict[str | None, str | None] = {}
    kept = groups.setdefault
    day = None
    try:
        answer = _DECODER.decode(body[:start] + body[end:])
        while start < end:
            # Either the end of a row, or inside of one, and then what comes before can't be decoded.
            row_end = body.find(b"},", start + _SLICE_BYTES, end) + 1 or end
            if row_end - start > _LARGE:  # no row is: what would become of it in memory is not known
                return None
            read = credits.look_up()
            rows = msgspec.json.Decoder(list[UsageRow], float_hook=read).decode(b"[%b]" % body[start:row_end])
            types: set[type] = {type(row.credits) for row in rows}
            if not types <= _CREDITS_TYPES or (answer.data and not rows):
                return None
            if int in types:  # from a service that writes 150.0 as 150
                for row in rows:
                    if isinstance(row.credits, int):
                        force_setattr(row, "credits", read(row.credits))
            for row in rows:  # days, which most services send together, and groups: kept once, not once a row
                if row.date == day:
                    force_setattr(row, "date", day)
                else:
                    day = row.date
                group = row.group
                force_setattr(row, "group", kept(group, group))
            answer.data += rows
            start = row_end + 1
    except (msgspec.DecodeError, DecimalException, RecursionError, ValueError):
        return None
    return answer


def _decode_any(body: bytes) -> _BareAnswer:
    """
    The answer with its credits as they came, if there is anything in it that can be taken for one.

    :raises UsageContractError: naming the first offence.
    """
    try:
        body.decode()  # msgspec does not look into the text of keys that it skips
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
        # A literal with an exponent past any number, nesting without end, an integer of thousands of digits.
        raise UsageContractError(f"the answer holds a value out of all bounds: {error!r}") from error


def _may_nest(body: bytes) -> bool:
    """Whether values may lie where the documented form has none: those of credits would all be kept in memory."""
    text = body.translate(None, b" \t\r\n")
    return text.count(b":[") > 1 or b":{" in text


def _log_unknown_names(body: bytes) -> None:
    """Once each, and no more of them than a person reads: a service might send other names every day."""
    rows = [memoryview(row) for row in _SENT_DECODER.decode(body).data]
    places: list[tuple[str, type[msgspec.Struct], Iterable[bytes | memoryview]]] = [
        ("rows", UsageRow, (row for row in rows if len(row) < _LARGE)),
        ("answers", _Answer, [body] if len(body) - sum(map(len, rows)) < _LARGE else ()),
    ]
    new = []
    for place, known, texts in places:
        for text in texts:
            for name in _NAMES_DECODER.decode(text).keys() - known.__struct_encode_fields__:
                told = f"{place}: {_short(name)[1:-1] if name.isprintable() else _short(name)}"
                if told not in _logged_names and len(_logged_names) < _MOST_NAMES:
                    _logged_names.add(told)
                    new.append(told)
    if new:
        log.warning("The service sends keys that this package does not know, left out of %s", ", ".join(sorted(new)))


def _check_echo(answer: _Answer, query: UsageQuery) -> None:
    for name, asked, echoed in (
        ("orgId", query.org_id, answer.org_id),
        ("startDate", query.start, answer.start_date),
        ("endDate", query.end, answer.end_date),
        ("groupBy", query.group_by, answer.group_by),
    ):
        if asked is not None and asked != echoed:
            raise UsageContractError(f"the answer is for {name} {_short(echoed)}, not for {_short(asked)} as asked")
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
        return _exact(value)
    except ValueError as error:
        raise UsageContractError(f"row {index}: {error}") from None


def _read_credits(literal: str | int) -> Decimal:
    return _exact(Decimal(literal))


def _exact(credits: Decimal) -> Decimal:
    if credits.is_signed() and credits:  # -0.0 is 0
        raise ValueError(f"credits must not be negative: {_short(credits)}")
    try:
        rounded = _DECIMAL128.quantize(credits, _CREDITS_UNIT)  # refuses 1E+9999999999 without expanding it
    except InvalidOperation:
        raise ValueError(f"credits are beyond decimal128(38, {CREDITS_SCALE}): {_short(credits)}") from None
    return rounded.copy_abs()


def _by_day(rows: list[UsageRow]) -> list[list[UsageRow]]:
    """The rows of each day, in the order of days. To go on by day is faster, and never holds the GIL for long."""
    days: dict[date, list[UsageRow]] = {}
    for day, some in groupby(rows, attrgetter("date")):  # most services send a day's rows together
        days.setdefault(day, []).extend(some)
    return [days[day] for day in sorted(days)]


def _row_error(rows: list[UsageRow], query: UsageQuery) -> UsageContractError:
    """The first row that can't be, of which there is one."""
    seen: set[tuple[date, str | None]] = set()
    for index, row in enumerate(rows):
        if not query.start <= row.date <= query.end:
            return UsageContractError(f"row {index}: {row.date} lies outside {query.start} to {query.end}")
        if (row.date, row.group) in seen:
            return UsageContractError(f"row {index}: {row.date} has the group {_short(row.group)} twice")
        seen.add((row.date, row.group))
    raise AssertionError


def _row_order(row: UsageRow | _RowKey) -> tuple[date, bool, str]:
    return row.date, row.group is not None, row.group or ""


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

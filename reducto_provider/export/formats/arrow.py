"""
Build Arrow arrays from Python values.

``pyarrow.array`` imports pandas where it is installed, to find out whether the values are of it. That takes longer than
exporting a month, and 60 MiB. Arrays that are built from their buffers take no import.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from datetime import date
from decimal import Context, Decimal
from functools import lru_cache
from itertools import accumulate, repeat
from types import NoneType
from typing import Any, Final

import pyarrow as pa

from reducto_provider.export.formats.base import MAX_NUMBERS

_EPOCH: Final = date(1970, 1, 1).toordinal()
_EXACT: Final = Context(prec=80)
_DECIMAL_BYTES: Final = 16
_DECIMAL_END: Final = 10**38


def strings(values: Sequence[str | None]) -> Any:
    """Return an array of text."""
    texts = ["" if value is None else value for value in values]
    content = "".join(texts)
    lengths = map(len, texts) if content.isascii() else (len(text.encode()) for text in texts)
    ends = array("i", list(accumulate(lengths, initial=0)))  # not from an iterator, which takes twice as long
    return _array(pa.string(), values, pa.py_buffer(ends), pa.py_buffer(content.encode()))


def dates(values: Sequence[date | None]) -> Any:
    """Return an array of days."""
    days: dict[date | None, int] = {day: 0 if day is None else day.toordinal() - _EPOCH for day in set(values)}
    if len(days) == 1:  # as in the file of a day
        numbers = array("i", days.values()) * len(values)
    else:
        numbers = array("i", [days[value] for value in values])
    return _array(pa.date32(), values, pa.py_buffer(numbers))


def integers(values: Sequence[int | None]) -> Any:
    """Return an array of integers of 64 bits."""
    return _array(pa.int64(), values, pa.py_buffer(array("q", [value or 0 for value in values])))


def decimals(values: Sequence[Decimal | None], scale: int) -> Any:
    """
    Return an array of decimals of up to 38 digits.

    :raises ValueError: for a number that has more digits, or more decimal places than ``scale``.
    """
    content = b"".join(map(_decimal_bytes, values, repeat(scale)))
    return _array(pa.decimal128(38, scale), values, pa.py_buffer(content))


@lru_cache(MAX_NUMBERS)
def _decimal_bytes(value: Decimal | None, scale: int) -> bytes:
    scaled = Decimal(0) if value is None else value.scaleb(scale, _EXACT)
    whole = int(scaled)
    if whole != scaled or abs(whole) >= _DECIMAL_END:
        raise ValueError(f"{value} does not fit into decimal128(38, {scale})")
    return whole.to_bytes(_DECIMAL_BYTES, "little", signed=True)


def _array(kind: Any, values: Sequence[Any], *buffers: Any) -> Any:
    return pa.Array.from_buffers(kind, len(values), [_validity(values), *buffers])


def _validity(values: Sequence[Any]) -> Any:
    """Return a bit for each value, set unless it is None, the first one the lowest; None if all would be set."""
    if NoneType not in set(map(type, values)):
        return None
    bits = "".join("0" if value is None else "1" for value in reversed(values))
    return pa.py_buffer(int(bits, 2).to_bytes(-(-len(values) // 8), "little"))

"""
Build Arrow arrays from Python values.

``pyarrow.array`` imports pandas where it is installed, to find out whether the values are of it. That takes longer than
exporting a month, and 60 MiB. Arrays that are built from their buffers take no import.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Context, Decimal
from functools import lru_cache
from itertools import accumulate, repeat
from types import NoneType
from typing import Any, Final, cast

import pyarrow as pa

from reducto_provider.export.formats.base import MAX_NUMBERS

_EPOCH: Final = date(1970, 1, 1).toordinal()
_EXACT: Final = Context(prec=80)
_DECIMAL_BYTES: Final = 16
_DECIMAL_END: Final = 10**38


def strings(values: Sequence[str | None]) -> Any:
    """Return an array of text."""
    validity = _validity(values)
    texts = cast("Sequence[str]", values) if validity is None else [value or "" for value in values]
    content = "".join(texts)
    lengths = map(len, texts) if content.isascii() else (len(text.encode()) for text in texts)
    ends = _packed("i", accumulate(lengths, initial=0))
    return pa.Array.from_buffers(pa.string(), len(values), [validity, ends, pa.py_buffer(content.encode())])


def dates(values: Sequence[date | None]) -> Any:
    """Return an array of days."""
    days = {
        day: (0 if day is None else day.toordinal() - _EPOCH).to_bytes(4, "little", signed=True) for day in set(values)
    }
    content = b"".join(map(days.__getitem__, values))
    return pa.Array.from_buffers(pa.date32(), len(values), [_validity(values), pa.py_buffer(content)])


def integers(values: Sequence[int | None]) -> Any:
    """Return an array of integers of 64 bits."""
    validity = _validity(values)
    numbers = cast("Sequence[int]", values) if validity is None else [value or 0 for value in values]
    return pa.Array.from_buffers(pa.int64(), len(values), [validity, _packed("q", numbers)])


def decimals(values: Sequence[Decimal | None], scale: int) -> Any:
    """
    Return an array of decimals of up to 38 digits.

    :raises ValueError: for a number that has more digits, or more decimal places than ``scale``.
    """
    content = b"".join(map(_decimal_bytes, values, repeat(scale)))
    return pa.Array.from_buffers(pa.decimal128(38, scale), len(values), [_validity(values), pa.py_buffer(content)])


@lru_cache(MAX_NUMBERS)
def _decimal_bytes(value: Decimal | None, scale: int) -> bytes:
    scaled = Decimal(0) if value is None else value.scaleb(scale, _EXACT)
    whole = int(scaled)
    if whole != scaled or abs(whole) >= _DECIMAL_END:
        raise ValueError(f"{value} does not fit into decimal128(38, {scale})")
    return whole.to_bytes(_DECIMAL_BYTES, "little", signed=True)


def _packed(code: str, numbers: Iterable[int]) -> Any:
    """Return a buffer of numbers of a type of the ``struct`` module, little-endian."""
    packed = tuple(numbers)
    return pa.py_buffer(struct.pack(f"<{len(packed)}{code}", *packed))


def _validity(values: Sequence[Any]) -> Any:
    """Return a bit for each value, set unless it is None, the first one the lowest; None if all would be set."""
    if NoneType not in set(map(type, values)):
        return None
    bits = "".join("0" if value is None else "1" for value in reversed(values))
    return pa.py_buffer(int(bits, 2).to_bytes(-(-len(values) // 8), "little"))

"""Encode rows as JSON, one object per line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from functools import lru_cache, partial
from io import BytesIO
from typing import Any

import msgspec

from reducto_provider.export.formats.base import (
    COLUMNS,
    MAX_NUMBERS,
    ROWS_PER_BATCH,
    Format,
    number_text,
    usage_row,
)
from reducto_provider.usage.checks import INVALID_JSON, excerpt
from reducto_provider.usage.report import UsageRow

_JSON = msgspec.json.Encoder()


class JsonLinesFormat(Format):
    """One JSON object per line. Credits are exact numbers with a decimal point."""

    name = "jsonl"
    extension = "jsonl"

    def encode(self, rows: Sequence[UsageRow], keys: Mapping[str, str]) -> bytes:
        line = partial(_line_type(*keys), *(msgspec.Raw(msgspec.json.encode(value)) for value in keys.values()))
        content = BytesIO()
        for start in range(0, len(rows), ROWS_PER_BATCH):
            lines = [
                line(row.date, row.group, _raw_number(row.credits), row.request_count)
                for row in rows[start : start + ROWS_PER_BATCH]
            ]
            content.write(_JSON.encode_lines(lines))
        return content.getvalue()

    def decode(self, content: bytes) -> list[UsageRow]:
        try:
            lines = _LINES.decode_lines(content)
        except INVALID_JSON as error:
            raise ValueError(f"it can't be read as JSON lines: {error}") from error
        return [usage_row(line.date, line.group, _number(line.credits), line.request_count) for line in lines]


class _Line(msgspec.Struct, gc=False):
    date: date
    group: str | None
    credits: Any
    request_count: int


_LINES = msgspec.json.Decoder(_Line, float_hook=Decimal)


def _number(value: object) -> Decimal | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    if not isinstance(value, Decimal | None):
        raise ValueError(f"credits must be a number, not {excerpt(value)}")
    return value


@lru_cache
def _line_type(*keys: str) -> type[msgspec.Struct]:
    """Return the struct of a line of JSON, its fields in order."""
    return msgspec.defstruct("Line", (*keys, *COLUMNS), gc=False)


@lru_cache(MAX_NUMBERS)
def _raw_number(credits: Decimal | None) -> msgspec.Raw:
    return msgspec.Raw(number_text(credits, missing="null").encode())

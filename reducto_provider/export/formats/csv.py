"""Encode rows as CSV."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from io import BytesIO

from reducto_provider.export.formats.base import COLUMNS, MAX_NUMBERS, Format, number_text, usage_row
from reducto_provider.usage.checks import excerpt
from reducto_provider.usage.report import UsageRow, rows_by_day


class CsvFormat(Format):
    """
    RFC 4180 with a header and line feeds. Text is always quoted, to distinguish an empty group (``""``) from no group
    (nothing between the commas).
    """

    name = "csv"
    extension = "csv"

    def encode(self, rows: Sequence[UsageRow], keys: Mapping[str, str]) -> bytes:
        prefix = "".join(f"{quoted(value)}," for value in keys.values())
        content = BytesIO()
        content.write((",".join((*keys, *COLUMNS)) + "\n").encode())
        for day, day_rows in rows_by_day(rows):
            start = f"{prefix}{day},"
            lines = [f"{start}{quoted(row.group)},{_number(row.credits)},{row.request_count}\n" for row in day_rows]
            content.write("".join(lines).encode())
        return content.getvalue()

    def decode(self, content: bytes) -> list[UsageRow]:
        return [
            usage_row(date.fromisoformat(day or ""), group, read_number(credits), int(requests or ""))
            for day, group, credits, requests in csv_rows(content, *COLUMNS)
        ]


_FIELD = r'(?:"((?:[^"]|"")*)"|([^",\n]*))(,|\n)'


def csv_rows(content: bytes, *columns: str) -> Iterator[tuple[str | None, ...]]:
    """
    Yield the values of these columns, line by line; None for an empty field without quotes.

    The standard library's reader can't distinguish it from empty text before Python 3.12.

    :raises ValueError: if the content has no such lines.
    """
    lines = _lines(content.decode())
    header = next(lines, [])
    try:
        places = [header.index(name) for name in columns]
        for line in lines:
            if len(line) != len(header):
                raise ValueError(f"a line has {len(line)} fields, not {len(header)}")
            yield tuple(line[place] for place in places)
    except ValueError as error:
        raise ValueError(f"it can't be read as CSV: {error}") from error


def _lines(text: str) -> Iterator[list[str | None]]:
    pattern = re.compile(_FIELD)  # here, since most processes read no file
    line: list[str | None] = []
    position = 0
    while position < len(text):
        if (field := pattern.match(text, position)) is None:
            raise ValueError(f"character {position} begins no field")
        quoted_text, bare, end = field.groups()
        line.append((bare or None) if quoted_text is None else quoted_text.replace('""', '"'))
        position = field.end()
        if end == "\n":
            yield line
            line = []
    if line:
        raise ValueError("the last line is incomplete")


def read_number(text: str | None) -> Decimal | None:
    """
    Return a number as :func:`~reducto_provider.export.formats.base.number_text` writes it.

    :raises ValueError: if the text is no number.
    """
    try:
        number = None if text is None else Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{excerpt(text)} is not a number") from None
    if number is not None and not number.is_finite():
        raise ValueError(f"{excerpt(text)} is not a number")
    return number


@lru_cache(MAX_NUMBERS)
def _number(credits: Decimal | None) -> str:
    return number_text(credits, missing="")


def quoted(text: str | None) -> str:
    if text is None:
        return ""
    return f'"{text}"' if '"' not in text else '"' + text.replace('"', '""') + '"'  # mostly the first, which is quicker

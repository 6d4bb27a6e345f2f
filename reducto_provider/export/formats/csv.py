"""Encode rows as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from io import BytesIO
from itertools import groupby
from operator import attrgetter

from reducto_provider.export.formats.base import COLUMNS, MAX_NUMBERS, Format, number_text
from reducto_provider.usage.report import UsageRow


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
        for day, day_rows in groupby(rows, attrgetter("date")):
            start = f"{prefix}{day},"
            lines = [f"{start}{quoted(row.group)},{_number(row.credits)},{row.request_count}\n" for row in day_rows]
            content.write("".join(lines).encode())
        return content.getvalue()


@lru_cache(MAX_NUMBERS)
def _number(credits: Decimal | None) -> str:
    return number_text(credits, missing="")


def quoted(text: str | None) -> str:
    return "" if text is None else '"' + text.replace('"', '""') + '"'

"""Rows to bytes. The same rows give the same bytes, whatever the order in which they were sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, ClassVar, Final

import msgspec

from reducto_provider.usage.report import UsageReport, UsageRow, plain

COLUMNS: Final = ("date", "group", "credits", "request_count")


class Format(ABC):
    """
    A file format: which rows of a report it takes, and how it writes them.

    ``keys`` are columns with one value for the whole file (organization and dimension), written first; a
    partitioned dataset has them in its folders' names instead and passes none.
    """

    name: ClassVar[str]
    extension: ClassVar[str]

    def rows(self, report: UsageReport) -> Sequence[Any]:
        """What :meth:`encode` takes, one for each of ``report.rows`` and in their order."""
        return report.rows

    @abstractmethod
    def encode(self, rows: Sequence[Any], keys: Mapping[str, str]) -> bytes:
        """The content of one file."""


class JsonFormat(Format):
    """One JSON array with every row as the service sent it, keys that this package does not know included."""

    name = "json"
    extension = "json"

    def rows(self, report: UsageReport) -> Sequence[bytes]:
        return report.sent_rows()

    def encode(self, rows: Sequence[bytes], keys: Mapping[str, str]) -> bytes:
        prefix = b"{" + b"".join(_json(name) + b":" + _json(value) + b"," for name, value in keys.items())
        return b"[\n" + b",\n".join(prefix + row.removeprefix(b"{") for row in rows) + b"\n]\n"


class JsonLinesFormat(Format):
    """One JSON object a line; credits as a number with a decimal point, exact."""

    name = "jsonl"
    extension = "jsonl"

    def encode(self, rows: Sequence[UsageRow], keys: Mapping[str, str]) -> bytes:
        prefix = "{" + "".join(f"{_json(name).decode()}:{_json(value).decode()}," for name, value in keys.items())
        lines = [
            f'{prefix}"date":"{row.date}","group":{_json(row.group).decode()},'
            f'"credits":{_number(row.credits, missing="null")},"request_count":{row.request_count}}}\n'
            for row in rows
        ]
        return "".join(lines).encode()


class CsvFormat(Format):
    """
    RFC 4180 with a header and line feeds. Text is always quoted, so that an empty group (``""``) and none at all
    (nothing between the commas) stay apart.
    """

    name = "csv"
    extension = "csv"

    def encode(self, rows: Sequence[UsageRow], keys: Mapping[str, str]) -> bytes:
        prefix = "".join(f"{_quoted(value)}," for value in keys.values())
        lines = [",".join((*keys, *COLUMNS)) + "\n"]
        lines += [
            f"{prefix}{row.date},{_quoted(row.group)},{_number(row.credits, missing='')},{row.request_count}\n"
            for row in rows
        ]
        return "".join(lines).encode()


FORMATS: Final[Mapping[str, Format]] = {each.name: each for each in (JsonFormat(), JsonLinesFormat(), CsvFormat())}


def check_format(name: str) -> Format:
    """
    The format of that name.

    :raises ValueError: naming the value and what is allowed.
    """
    if name not in FORMATS:
        raise ValueError(f"output_format must be one of {', '.join(FORMATS)}, not {name!r}")
    return FORMATS[name]


def _json(value: str | None) -> bytes:
    return msgspec.json.encode(value)


def _number(credits: Decimal | None, *, missing: str) -> str:
    """Always with a decimal point: engines take a column of whole numbers for integers, file by file."""
    if credits is None:
        return missing
    text = plain(credits)
    return text if "." in text else f"{text}.0"


def _quoted(text: str | None) -> str:
    return "" if text is None else '"' + text.replace('"', '""') + '"'

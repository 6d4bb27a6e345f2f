"""Encode rows as a JSON array, as the service sent them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from reducto_provider.export.formats.base import Format
from reducto_provider.usage.report import UsageReport, UsageRow
from reducto_provider.usage.wire import decode_rows, sent_rows

SENT_COLUMNS: Final = {"date": "string", "group": "string", "credits": "double", "requestCount": "bigint"}
"""The columns that the service sends, and their types."""

_SENT_ROW = msgspec.json.Decoder(dict[str, msgspec.Raw])


class JsonFormat(Format):
    """One JSON array with every row as the service sent it, including unknown keys."""

    name = "json"
    extension = "json"

    def rows(self, report: UsageReport) -> Sequence[bytes]:
        return sent_rows(report)

    def columns(self, *keys: str) -> Mapping[str, str]:
        return {**dict.fromkeys(keys, "string"), **SENT_COLUMNS}

    def encode(self, rows: Sequence[bytes], keys: Mapping[str, str]) -> bytes:
        prefix = b"{" + b"".join(
            msgspec.json.encode(name) + b":" + msgspec.json.encode(value) + b"," for name, value in keys.items()
        )
        return b"[\n" + b",\n".join(prefix + row.removeprefix(b"{") for row in rows) + b"\n]\n"

    def decode(self, content: bytes) -> list[UsageRow]:
        return decode_rows(content)

    def _more_content(self, rows: Sequence[bytes]) -> Sequence[bytes]:
        return [self._unknown_content(row) for row in rows]

    def _unknown_content(self, row: bytes) -> bytes:
        unknown = sorted(
            (name, bytes(value)) for name, value in _SENT_ROW.decode(row).items() if name not in SENT_COLUMNS
        )
        return msgspec.json.encode([(name, msgspec.Raw(value)) for name, value in unknown]) if unknown else b""

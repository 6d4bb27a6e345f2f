"""Compress text formats."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Final

from reducto_provider.export.formats.base import Format
from reducto_provider.usage.report import UsageReport, UsageRow

COMPRESSIONS: Final = {"gzip": "gz", "zstd": "zst"}
"""The compressions of text formats, and their file extensions."""


MAX_BYTES: Final = 2**28
"""The maximum size of a decompressed file that is read: twice that of a response, since text is wider than JSON."""


class Compressed(Format):
    """A compressed text format. The same content gives the same bytes: no timestamp is written."""

    def __init__(self, plain_format: Format, compression: str) -> None:
        self._plain = plain_format
        self.name = plain_format.name  # type: ignore[misc]
        self.extension = f"{plain_format.extension}.{COMPRESSIONS[compression]}"  # type: ignore[misc]
        self.compression = compression
        self.allows_empty_file = plain_format.allows_empty_file  # type: ignore[misc]

    def identity(self) -> dict[str, Any]:
        return {**self._plain.identity(), "compression": self.compression}

    def rows(self, report: UsageReport) -> Sequence[Any]:
        return self._plain.rows(report)

    def columns(self, *keys: str) -> Mapping[str, str]:
        return self._plain.columns(*keys)

    def digest(self, report_rows: Sequence[UsageRow], rows: Sequence[Any]) -> str | None:
        return self._plain.digest(report_rows, rows)

    def encode(self, rows: Sequence[Any], keys: Mapping[str, str]) -> bytes:
        content = self._plain.encode(rows, keys)
        if self.compression == "gzip":
            return gzip.compress(content, mtime=0)
        import pyarrow as pa

        compressed: bytes = pa.Codec("zstd").compress(content, asbytes=True)
        return compressed

    def decode(self, content: bytes) -> list[UsageRow]:
        return self._plain.decode(_decompress(content, self.compression))


def _decompress(content: bytes, compression: str | None) -> bytes:
    """
    Return the content of a compressed file.

    :raises ValueError: if it is damaged, or larger than :data:`MAX_BYTES`.
    """
    try:
        if compression == "gzip":
            with gzip.open(BytesIO(content)) as file:
                plain = file.read(MAX_BYTES + 1)
        else:
            import pyarrow as pa

            with pa.input_stream(pa.BufferReader(content), compression=compression) as stream:
                plain = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"it can't be decompressed with {compression}: {error}") from error
    if len(plain) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes when decompressed")
    return plain

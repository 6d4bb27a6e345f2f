"""Encode rows as Parquet. pyarrow is imported only when a file is encoded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import count
from typing import Any

from reducto_provider.export.formats.base import COLUMNS, Format, usage_row
from reducto_provider.usage.report import CREDITS_SCALE, UsageRow

_ROWS_PER_CHUNK = 2**16  # small, so that as many distinct amounts take little memory


class ParquetFormat(Format):
    """
    Parquet with ``date`` as date32, ``group`` as string, ``credits`` as decimal128(38, 9) and ``request_count`` as
    int64, compressed with zstd.
    """

    name = "parquet"
    extension = "parquet"
    compression = "zstd"

    def encode(self, rows: Sequence[UsageRow], keys: Mapping[str, str]) -> bytes:
        return parquet_bytes(arrow_table(rows, keys))

    def decode(self, content: bytes) -> list[UsageRow]:
        return [usage_row(*row) for row in parquet_rows(content, *COLUMNS)]


def arrow_table(rows: Sequence[UsageRow], keys: Mapping[str, str]) -> Any:
    """Return rows as a ``pyarrow.Table``, with a column for each of ``keys`` first."""
    import pyarrow as pa

    columns = {name: pa.array([value] * len(rows), pa.string()) for name, value in keys.items()}
    columns |= {
        "date": pa.array([row.date for row in rows], pa.date32()),
        "group": pa.array([row.group for row in rows], pa.string()),
        "credits": _credits_column(rows),
        "request_count": pa.array([row.request_count for row in rows], pa.int64()),
    }
    return pa.table(columns)


def parquet_bytes(table: Any) -> bytes:
    """Return a ``pyarrow.Table`` as a Parquet file. The same table gives the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def parquet_rows(content: bytes, *columns: str) -> Iterator[tuple[Any, ...]]:
    """
    Yield the values of these columns, row by row.

    :raises ValueError: if the content is no Parquet file with these columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content), columns=list(columns), use_threads=False)
        values = [table.column(name).to_pylist() for name in columns]
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(f"it can't be read as Parquet: {error}") from error
    return zip(*values, strict=True)


def _credits_column(rows: Sequence[UsageRow]) -> Any:
    """Convert each distinct amount to Arrow's decimal once. Amounts repeat, and conversion is the slowest part."""
    import pyarrow as pa

    credits_type = pa.decimal128(38, CREDITS_SCALE)
    chunks = []
    for start in range(0, len(rows), _ROWS_PER_CHUNK):
        places: defaultdict[Decimal | None, int] = defaultdict(count().__next__)
        taken = [places[row.credits] for row in rows[start : start + _ROWS_PER_CHUNK]]
        chunks.append(pa.array(places, credits_type).take(pa.array(taken, pa.int32())))
    return pa.chunked_array(chunks, credits_type)

"""Encode rows as Parquet. pyarrow is imported only when a file is encoded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from reducto_provider.export.formats.base import COLUMNS, Format, usage_row
from reducto_provider.usage.report import CREDITS_SCALE, UsageRow

_ROWS_PER_CHUNK = 2**16  # small, so that what is made of a chunk on the way takes little memory


class ParquetFormat(Format):
    """
    Parquet with ``date`` as date32, ``group`` as string, ``credits`` as decimal128(38, 9) and ``request_count`` as
    int64, compressed with zstd.
    """

    name = "parquet"
    extension = "parquet"
    compression = "zstd"

    def encode(self, rows: Sequence[UsageRow], keys: Mapping[str, str]) -> bytes:
        # On a day no group is repeated: a dictionary would only make the file larger.
        is_of_a_day = bool(rows) and rows[0].date == rows[-1].date
        return parquet_bytes(arrow_table(rows, keys), distinct=("group",) if is_of_a_day else ())

    def decode(self, content: bytes) -> list[UsageRow]:
        return [usage_row(*row) for row in parquet_rows(content, *COLUMNS)]


def arrow_table(rows: Sequence[UsageRow], keys: Mapping[str, str]) -> Any:
    """Return rows as a ``pyarrow.Table``, with a column for each of ``keys`` first."""
    import pyarrow as pa

    starts = range(0, len(rows) or 1, _ROWS_PER_CHUNK)
    return pa.concat_tables([_chunk(rows[start : start + _ROWS_PER_CHUNK], keys) for start in starts])


def _chunk(rows: Sequence[UsageRow], keys: Mapping[str, str]) -> Any:
    import pyarrow as pa

    from reducto_provider.export.formats import arrow

    columns = {name: arrow.strings([value] * len(rows)) for name, value in keys.items()}
    columns |= {
        "date": arrow.dates([row.date for row in rows]),
        "group": arrow.strings([row.group for row in rows]),
        "credits": arrow.decimals([row.credits for row in rows], CREDITS_SCALE),
        "request_count": arrow.integers([row.request_count for row in rows]),
    }
    return pa.table(columns)


def parquet_bytes(table: Any, distinct: Collection[str] = ()) -> bytes:
    """
    Return a ``pyarrow.Table`` as a Parquet file. The same table gives the same bytes.

    :param distinct: columns whose values are not repeated. They are written without a dictionary.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    repetitive = [name for name in table.column_names if name not in distinct]
    pq.write_table(table, sink, compression="zstd", use_dictionary=repetitive)
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

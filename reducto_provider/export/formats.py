"""Encode rows as bytes. The same rows give the same bytes, whatever order they were sent in."""

from __future__ import annotations

import gzip
import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from functools import lru_cache, partial
from importlib.util import find_spec
from io import BytesIO
from itertools import count, groupby
from operator import attrgetter
from typing import Any, ClassVar, Final

import msgspec

from reducto_provider.export import focus
from reducto_provider.usage.memo import Memo
from reducto_provider.usage.report import CREDITS_SCALE, UsageReport, UsageRow, format_decimal
from reducto_provider.usage.wire import sent_rows

_JSON = msgspec.json.Encoder()
_SENT_ROW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ROWS_PER_BATCH = 1000  # small, so that other threads get the GIL in between
_ROWS_PER_CHUNK = 2**16  # small, so that as many distinct amounts take little memory
_CREDITS_TYPE = f"decimal(38,{CREDITS_SCALE})"
_FOCUS_TYPES = {
    "text": "string",
    "moment": "timestamp",
    "credits": _CREDITS_TYPE,
    "money": f"decimal(38,{focus.COST_SCALE})",
    "count": "bigint",
}

SENT_COLUMNS: Final = {"date": "string", "group": "string", "credits": "double", "requestCount": "bigint"}
"""The columns that the service sends, and their types."""

COLUMNS: Final = {"date": "date", "group": "string", "credits": _CREDITS_TYPE, "request_count": "bigint"}
"""The columns of files in order, and their types as SQL engines name them."""

COMPRESSIONS: Final = {"gzip": "gz", "zstd": "zst"}
"""The compressions of text formats, and their file extensions."""


class Format(ABC):
    """
    A file format: which rows of a report it accepts, and how it encodes them.

    ``keys`` are columns with one value for the whole file (organization and dimension), written first. A
    partitioned dataset has them in its folder names instead and passes none.
    """

    name: ClassVar[str]
    extension: ClassVar[str]
    compression: str | None = None
    allows_empty_file: ClassVar[bool] = True
    """Whether a file may have no rows. If not, no file is written for a report without rows."""

    def identity(self) -> dict[str, Any]:
        """Return what all files of a dataset must have in common to be read as one."""
        return {"format": self.name, "compression": self.compression}

    def check_installed(self) -> None:
        """
        See that what the format needs is there, before a request is spent on it.

        :raises ImportError: naming the extra to install.
        """
        if self.compression == "zstd" and find_spec("pyarrow") is None:
            raise ImportError(
                f"output_format={self.name!r} with zstd needs pyarrow: pip install 'airflow-provider-reducto[parquet]'"
            )

    def rows(self, report: UsageReport) -> Sequence[Any]:
        """
        Return the rows for :meth:`encode`, one for each of ``report.rows`` in the same order.

        :raises ValueError: if the format can't represent the report. Nothing has been written by then.
        """
        return report.rows

    def columns(self, *keys: str) -> Mapping[str, str]:
        """Return the columns of a file, ``keys`` first, and their types."""
        return {**dict.fromkeys(keys, "string"), **COLUMNS}

    def digest(self, report_rows: Sequence[UsageRow], rows: Sequence[Any]) -> str | None:
        """
        Return a digest of the content of these rows, None if there are none.

        It does not depend on how the content is written: not on the version of this package or of pyarrow (Parquet
        names its writer), not on the compression, and not on the last binary digit of a number.

        :param rows: the result of :meth:`rows` for them.
        """
        if not report_rows:
            return None
        digest = hashlib.sha256(self._terms_content())
        number = Memo(partial(_number, missing="-"))
        for start in range(0, len(rows), _ROWS_PER_BATCH):
            credits = number.function()
            for row, given in zip(
                report_rows[start : start + _ROWS_PER_BATCH], rows[start : start + _ROWS_PER_BATCH], strict=True
            ):
                group = "-" if row.group is None else f"{len(row.group)}:{row.group}"
                digest.update(f"{row.date} {credits(row.credits)} {row.request_count} {group}".encode())
                digest.update(self._more_content(given))
        return digest.hexdigest()

    def _terms_content(self) -> bytes:
        """Return the content that applies to all rows of a file."""
        return b""

    def _more_content(self, row: Any) -> bytes:
        """Return the content of a row other than day, group, credits and requests."""
        return b""

    @abstractmethod
    def encode(self, rows: Sequence[Any], keys: Mapping[str, str]) -> bytes:
        """Return the content of one file."""


class JsonFormat(Format):
    """One JSON array with every row as the service sent it, including unknown keys."""

    name = "json"
    extension = "json"

    def rows(self, report: UsageReport) -> Sequence[bytes]:
        return sent_rows(report)

    def columns(self, *keys: str) -> Mapping[str, str]:
        return {**dict.fromkeys(keys, "string"), **SENT_COLUMNS}

    def encode(self, rows: Sequence[bytes], keys: Mapping[str, str]) -> bytes:
        prefix = b"{" + b"".join(_json(name) + b":" + _json(value) + b"," for name, value in keys.items())
        return b"[\n" + b",\n".join(prefix + row.removeprefix(b"{") for row in rows) + b"\n]\n"

    def _more_content(self, row: bytes) -> bytes:
        unknown = sorted(
            (name, bytes(value)) for name, value in _SENT_ROW.decode(row).items() if name not in SENT_COLUMNS
        )
        return _JSON.encode([(name, msgspec.Raw(value)) for name, value in unknown]) if unknown else b""


class JsonLinesFormat(Format):
    """One JSON object per line. Credits are exact numbers with a decimal point."""

    name = "jsonl"
    extension = "jsonl"

    def encode(self, rows: Sequence[UsageRow], keys: Mapping[str, str]) -> bytes:
        line = partial(_line_type(*keys), *(msgspec.Raw(_json(value)) for value in keys.values()))
        numbers = Memo(_raw_number)
        content = BytesIO()
        for start in range(0, len(rows), _ROWS_PER_BATCH):
            number = numbers.function()
            lines = [
                line(row.date, row.group, number(row.credits), row.request_count)
                for row in rows[start : start + _ROWS_PER_BATCH]
            ]
            content.write(_JSON.encode_lines(lines))
        return content.getvalue()


class CsvFormat(Format):
    """
    RFC 4180 with a header and line feeds. Text is always quoted, to distinguish an empty group (``""``) from no group
    (nothing between the commas).
    """

    name = "csv"
    extension = "csv"

    def encode(self, rows: Sequence[UsageRow], keys: Mapping[str, str]) -> bytes:
        prefix = "".join(f"{_quoted(value)}," for value in keys.values())
        numbers = Memo(partial(_number, missing=""))
        content = BytesIO()
        content.write((",".join((*keys, *COLUMNS)) + "\n").encode())
        for day, day_rows in groupby(rows, attrgetter("date")):
            start = f"{prefix}{day},"
            number = numbers.function()
            lines = [f"{start}{_quoted(row.group)},{number(row.credits)},{row.request_count}\n" for row in day_rows]
            content.write("".join(lines).encode())
        return content.getvalue()


class ParquetFormat(Format):
    """
    Parquet with ``date`` as date32, ``group`` as string, ``credits`` as decimal128(38, 9) and ``request_count`` as
    int64, compressed with zstd.
    """

    name = "parquet"
    extension = "parquet"
    compression = "zstd"

    def encode(self, rows: Sequence[UsageRow], keys: Mapping[str, str]) -> bytes:
        import pyarrow as pa

        columns = {name: pa.array([value] * len(rows), pa.string()) for name, value in keys.items()}
        columns |= {
            "date": pa.array([row.date for row in rows], pa.date32()),
            "group": pa.array([row.group for row in rows], pa.string()),
            "credits": _credits_column(rows),
            "request_count": pa.array([row.request_count for row in rows], pa.int64()),
        }
        return parquet_bytes(pa.table(columns))


class FocusFormat(Format):
    """
    FOCUS 1.2, see :mod:`reducto_provider.export.focus`. It has columns for organization and dimension, so ``keys``
    are ignored. FOCUS allows no file without rows.

    :param group_by: the only dimension of the dataset. The four restate the same costs, which a tool would add up.
    """

    allows_empty_file = False

    def __init__(self, terms: focus.BillingTerms, group_by: str) -> None:
        self._terms = terms
        self._group_by = group_by

    def identity(self) -> dict[str, Any]:
        # Costs in two currencies, or by two dimensions, can't be summed. Prices and prepayment may differ from row to
        # row: that is how a new price takes effect within a dataset.
        return {
            **super().identity(),
            "focus_version": focus.FOCUS_VERSION,
            "group_by": self._group_by,
            "billing_currency": self._terms.billing_currency,
        }

    def _terms_content(self) -> bytes:
        # All content other than usage follows from these, except wording that another version may change.
        terms = self._terms
        prices = (format_decimal(terms.price_per_credit), format_decimal(terms.contracted_price))
        return _JSON.encode((*prices, terms.billing_currency, terms.prepaid, terms.billing_account_name))

    def rows(self, report: UsageReport) -> Sequence[tuple[focus.Value, ...]]:
        return [tuple(record.values()) for record in focus.focus_records(report, self._terms)]

    def columns(self, *keys: str) -> Mapping[str, str]:
        return {name: _FOCUS_TYPES[kind] for name, kind in focus.COLUMNS.items()}


class FocusCsvFormat(FocusFormat):
    """FOCUS as CSV, in the dialect of :class:`CsvFormat`."""

    name = "focus_csv"
    extension = "csv"

    def encode(self, rows: Sequence[tuple[focus.Value, ...]], keys: Mapping[str, str]) -> bytes:
        lines = [",".join(focus.COLUMNS) + "\n"]
        lines += [",".join(map(_csv_value, row)) + "\n" for row in rows]
        return "".join(lines).encode()


class FocusParquetFormat(FocusFormat):
    """
    FOCUS as Parquet with zstd: moments as timestamps in UTC, quantities as decimal128(38, 9), prices and costs as
    decimal128(38, 21), ``x_RequestCount`` as int64.
    """

    name = "focus_parquet"
    extension = "parquet"
    compression = "zstd"

    def encode(self, rows: Sequence[tuple[focus.Value, ...]], keys: Mapping[str, str]) -> bytes:
        import pyarrow as pa

        types = {
            "text": pa.string(),
            "moment": pa.date32(),
            "credits": pa.decimal128(38, CREDITS_SCALE),
            "money": pa.decimal128(38, focus.COST_SCALE),
            "count": pa.int64(),
        }
        columns = {}
        for (name, kind), values in zip(focus.COLUMNS.items(), zip(*rows, strict=True), strict=True):
            column = pa.array(values, types[kind])
            columns[name] = column.cast(pa.timestamp("us", tz="UTC")) if kind == "moment" else column
        return parquet_bytes(pa.table(columns))


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


FORMATS: Final[Mapping[str, Format]] = {
    each.name: each for each in (JsonFormat(), JsonLinesFormat(), CsvFormat(), ParquetFormat())
}
_FOCUS_FORMATS: Final[Mapping[str, type[FocusFormat]]] = {
    each.name: each for each in (FocusCsvFormat, FocusParquetFormat)
}


def check_format(
    name: str,
    compression: str | None = None,
    terms: focus.BillingTerms | None = None,
    group_by: str = "product",
) -> Format:
    """
    Return the format of that name, compressed if requested.

    :param terms: required for FOCUS.
    :param group_by: the dimension of a FOCUS dataset.
    :raises ValueError: naming the field, the value and what is allowed.
    """
    if name not in (*FORMATS, *_FOCUS_FORMATS):
        raise ValueError(f"output_format must be one of {', '.join((*FORMATS, *_FOCUS_FORMATS))}, not {name!r}")
    if name in FORMATS:
        plain_format = FORMATS[name]
    elif terms is None:
        raise ValueError(f"price_per_credit must be given for output_format={name!r}")
    else:
        plain_format = _FOCUS_FORMATS[name](terms, group_by)
    if compression in (None, plain_format.compression):
        return plain_format
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression must be one of {', '.join(COMPRESSIONS)}, or None, not {compression!r}")
    if plain_format.compression:
        raise ValueError(f"compression must be left out for {name}, which always has {plain_format.compression}")
    return Compressed(plain_format, compression)


def parquet_bytes(table: Any) -> bytes:
    """Return a ``pyarrow.Table`` as a Parquet file. The same table gives the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


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


def _json(value: str | None) -> bytes:
    return _JSON.encode(value)


@lru_cache
def _line_type(*keys: str) -> type[msgspec.Struct]:
    """Return the struct of a line of JSON, its fields in order."""
    return msgspec.defstruct("Line", (*keys, *COLUMNS), gc=False)


def _raw_number(credits: Decimal | None) -> msgspec.Raw:
    return msgspec.Raw(_number(credits, missing="null").encode())


def _number(credits: Decimal | None, *, missing: str) -> str:
    """Return a number with a decimal point: engines infer integers for a file with only whole numbers."""
    if credits is None:
        return missing
    text = format_decimal(credits)
    return text if "." in text else f"{text}.0"


def _csv_value(value: focus.Value) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Decimal):
        return _number(value, missing="")
    if isinstance(value, date):
        return f"{value}T00:00:00Z"
    return "" if value is None else str(value)


def _quoted(text: str | None) -> str:
    return "" if text is None else '"' + text.replace('"', '""') + '"'

"""Rows to bytes. The same rows give the same bytes, whatever the order in which they were sent."""

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
from reducto_provider.usage.report import CREDITS_SCALE, Remembered, UsageReport, UsageRow, plain

_JSON = msgspec.json.Encoder()
_SENT_ROW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ROWS_AT_ONCE = 1000  # few enough that other threads need not wait for the GIL
_ROWS_A_CHUNK = 2**16  # few enough that different amounts for each of them take no memory to speak of
_CREDITS_TYPE = f"decimal(38,{CREDITS_SCALE})"
_FOCUS_TYPES = {
    "text": "string",
    "moment": "timestamp",
    "credits": _CREDITS_TYPE,
    "money": f"decimal(38,{focus.COST_SCALE})",
    "count": "bigint",
}

SENT_COLUMNS: Final = {"date": "string", "group": "string", "credits": "double", "requestCount": "bigint"}
"""What the service sends, and with which types."""

COLUMNS: Final = {"date": "date", "group": "string", "credits": _CREDITS_TYPE, "request_count": "bigint"}
"""What files hold, in their order, and with which types, as SQL engines name them."""

COMPRESSIONS: Final = {"gzip": "gz", "zstd": "zst"}
"""How text formats can be compressed, and what that adds to a file's ending."""


class Format(ABC):
    """
    A file format: which rows of a report it takes, and how it writes them.

    ``keys`` are columns with one value for the whole file (organization and dimension), written first. A
    partitioned dataset has them in its folders' names instead, and passes none.
    """

    name: ClassVar[str]
    extension: ClassVar[str]
    compression: str | None = None
    without_rows: ClassVar[bool] = True
    """Whether a file may be without rows. Where it may not, there is no file then."""

    def identity(self) -> dict[str, Any]:
        """What a dataset must agree on, so that its files can be read as one."""
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
        What :meth:`encode` takes, one for each of ``report.rows`` and in their order.

        :raises ValueError: when the format can't hold the report. Nothing has been written by then.
        """
        return report.rows

    def columns(self, *keys: str) -> Mapping[str, str]:
        """The columns of a file that has ``keys`` as columns, and their types."""
        return {**dict.fromkeys(keys, "string"), **COLUMNS}

    def digest(self, report_rows: Sequence[UsageRow], rows: Sequence[Any]) -> str | None:
        """
        Return a digest of what a file of these rows says, None for one without rows.

        It is the same for all that is written differently and says the same: by another version of this package or of
        pyarrow (Parquet names its writer), with another compression, or as a number with another last binary digit.

        :param rows: what :meth:`rows` made of them.
        """
        if not report_rows:
            return None
        digest = hashlib.sha256(self._terms_content())
        number = Remembered(partial(_number, missing="-"))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            credits = number.look_up()
            for row, given in zip(
                report_rows[start : start + _ROWS_AT_ONCE], rows[start : start + _ROWS_AT_ONCE], strict=True
            ):
                group = "-" if row.group is None else f"{len(row.group)}:{row.group}"
                digest.update(f"{row.date} {credits(row.credits)} {row.request_count} {group}".encode())
                digest.update(self._more_content(given))
        return digest.hexdigest()

    def _terms_content(self) -> bytes:
        """Return what a file says of all its rows."""
        return b""

    def _more_content(self, row: Any) -> bytes:
        """Return what a file says of a row beside day, group, credits and requests."""
        return b""

    @abstractmethod
    def encode(self, rows: Sequence[Any], keys: Mapping[str, str]) -> bytes:
        """The content of one file."""


class JsonFormat(Format):
    """One JSON array with every row as the service sent it, keys that this package does not know included."""

    name = "json"
    extension = "json"

    def rows(self, report: UsageReport) -> Sequence[bytes]:
        return report.sent_rows()

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
    """One JSON object a line; credits as a number with a decimal point, exact."""

    name = "jsonl"
    extension = "jsonl"

    def encode(self, rows: Sequence[UsageRow], keys: Mapping[str, str]) -> bytes:
        line = partial(_line_type(*keys), *(msgspec.Raw(_json(value)) for value in keys.values()))
        numbers = Remembered(_raw_number)
        content = BytesIO()
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            number = numbers.look_up()
            lines = [
                line(row.date, row.group, number(row.credits), row.request_count)
                for row in rows[start : start + _ROWS_AT_ONCE]
            ]
            content.write(_JSON.encode_lines(lines))
        return content.getvalue()


class CsvFormat(Format):
    """
    RFC 4180 with a header and line feeds. Text is always quoted, so that an empty group (``""``) and none at all
    (nothing between the commas) stay apart.
    """

    name = "csv"
    extension = "csv"

    def encode(self, rows: Sequence[UsageRow], keys: Mapping[str, str]) -> bytes:
        prefix = "".join(f"{_quoted(value)}," for value in keys.values())
        numbers = Remembered(partial(_number, missing=""))
        content = BytesIO()
        content.write((",".join((*keys, *COLUMNS)) + "\n").encode())
        for day, day_rows in groupby(rows, attrgetter("date")):
            start = f"{prefix}{day},"
            number = numbers.look_up()
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
    FOCUS 1.2, see :mod:`reducto_provider.export.focus`. Its columns name organization and dimension: keys are
    left out, and FOCUS allows no file without rows.

    :param group_by: the one dimension of the dataset: the four restate the same costs, and a tool would add them up.
    """

    without_rows = False

    def __init__(self, terms: focus.BillingTerms, group_by: str) -> None:
        self._terms = terms
        self._group_by = group_by

    def identity(self) -> dict[str, Any]:
        # Costs in two currencies, or by two dimensions, can't be summed. Prices and whether credits were prepaid can
        # differ: each row has its own, which is how a new price takes effect from a day on in the same dataset.
        return {
            **super().identity(),
            "focus_version": focus.FOCUS_VERSION,
            "group_by": self._group_by,
            "billing_currency": self._terms.billing_currency,
        }

    def _terms_content(self) -> bytes:
        # What the records say beside usage follows from these, but for words that another version may choose otherwise.
        terms = self._terms
        prices = (plain(terms.price_per_credit), plain(terms.contracted_price))
        return _JSON.encode((*prices, terms.billing_currency, terms.prepaid, terms.billing_account_name))

    def rows(self, report: UsageReport) -> Sequence[tuple[focus.Value, ...]]:
        return [tuple(record.values()) for record in focus.focus_records(report, self._terms)]

    def columns(self, *keys: str) -> Mapping[str, str]:
        return {name: _FOCUS_TYPES[kind] for name, kind in focus.COLUMNS.items()}


class FocusCsvFormat(FocusFormat):
    """FOCUS as CSV, written as :class:`CsvFormat` is."""

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
    """A text format's files, compressed. The same content gives the same bytes: no time is written into them."""

    def __init__(self, plain_format: Format, compression: str) -> None:
        self._plain = plain_format
        self.name = plain_format.name  # type: ignore[misc]
        self.extension = f"{plain_format.extension}.{COMPRESSIONS[compression]}"  # type: ignore[misc]
        self.compression = compression
        self.without_rows = plain_format.without_rows  # type: ignore[misc]

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
    The format of that name, its files compressed if asked for.

    :param terms: for FOCUS, which needs them. Likewise ``group_by``, the dimension of the dataset.
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
    """A ``pyarrow.Table`` as a Parquet file, the same bytes for the same table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _credits_column(rows: Sequence[UsageRow]) -> Any:
    """Amounts repeat themselves: each is made Arrow's decimal once, which takes longer than all else of its row."""
    import pyarrow as pa

    credits_type = pa.decimal128(38, CREDITS_SCALE)
    chunks = []
    for start in range(0, len(rows), _ROWS_A_CHUNK):
        places: defaultdict[Decimal | None, int] = defaultdict(count().__next__)
        taken = [places[row.credits] for row in rows[start : start + _ROWS_A_CHUNK]]
        chunks.append(pa.array(places, credits_type).take(pa.array(taken, pa.int32())))
    return pa.chunked_array(chunks, credits_type)


def _json(value: str | None) -> bytes:
    return _JSON.encode(value)


@lru_cache
def _line_type(*keys: str) -> type[msgspec.Struct]:
    """What a line of JSON says, in its order."""
    return msgspec.defstruct("Line", (*keys, *COLUMNS), gc=False)


def _raw_number(credits: Decimal | None) -> msgspec.Raw:
    return msgspec.Raw(_number(credits, missing="null").encode())


def _number(credits: Decimal | None, *, missing: str) -> str:
    """Always with a decimal point: engines take a column of whole numbers for integers, file by file."""
    if credits is None:
        return missing
    text = plain(credits)
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

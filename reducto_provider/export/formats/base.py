"""Define a file format. The same rows give the same bytes, whatever order they were sent in."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal, localcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from reducto_provider.export.threads import import_pyarrow
from reducto_provider.usage.checks import excerpt, is_whole_number
from reducto_provider.usage.report import (
    CREDITS_SCALE,
    EXACT,
    MAX_REQUEST_COUNT,
    UsageReport,
    UsageRow,
    format_decimal,
)
from reducto_provider.usage.wire import exact_credits

if TYPE_CHECKING:
    from reducto_provider.export.focus import BillingTerms

ROWS_PER_BATCH: Final = 1000
"""Rows encoded at a time: few, so that other threads get the GIL in between."""

MAX_NUMBERS: Final = 2**14
"""Texts of amounts to keep: most reports have the same amounts many times, on each of their days."""

CREDITS_TYPE: Final = f"decimal(38,{CREDITS_SCALE})"

COLUMNS: Final = {"date": "date", "group": "string", "credits": CREDITS_TYPE, "request_count": "bigint"}
"""The columns of files in order, and their types as SQL engines name them."""


_JSON: Final = msgspec.json.Encoder()


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

    def with_terms(self, terms: BillingTerms | None, group_by: str) -> Format:
        """
        Return the format for a dataset. ``terms`` and ``group_by`` are for FOCUS.

        :raises ValueError: naming the field that is missing.
        """
        return self

    def load(self) -> None:
        """
        Import the package that the format needs: before a request is spent, and before several threads use it.

        :raises ImportError: naming the extra to install.
        """
        if self.compression == "zstd":
            if find_spec("pyarrow") is None:
                raise ImportError(
                    f"output_format={self.name!r} with zstd needs pyarrow: "
                    "pip install 'airflow-provider-reducto[parquet]'"
                )
            import_pyarrow()

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
        names its writer), not on the compression, and not on the last binary digit of a number. It is the SHA-256 of
        the rows as lines of JSON, with the service's keys, and with credits as text as :class:`~decimal.Decimal` has
        them: nine decimal places, with an exponent below a millionth.

        :param rows: the result of :meth:`rows` for them.
        """
        if not report_rows:
            return None
        digest = hashlib.sha256(self._terms_content())
        with localcontext(EXACT):  # the caller's may write decimals otherwise
            for start in range(0, len(rows), ROWS_PER_BATCH):
                lines = _JSON.encode_lines(report_rows[start : start + ROWS_PER_BATCH])
                more = self._more_content(rows[start : start + ROWS_PER_BATCH])
                if more is not None:
                    lines = b"".join(line + given for line, given in zip(lines.splitlines(True), more, strict=True))
                digest.update(lines)
        return digest.hexdigest()

    def _terms_content(self) -> bytes:
        """Return the content that applies to all rows of a file."""
        return b""

    def _more_content(self, rows: Sequence[Any]) -> Sequence[bytes] | None:
        """Return the content of each row other than day, group, credits and requests. None if there is none."""
        return None

    @abstractmethod
    def encode(self, rows: Sequence[Any], keys: Mapping[str, str]) -> bytes:
        """Return the content of one file."""

    @abstractmethod
    def decode(self, content: bytes) -> list[UsageRow]:
        """
        Return the rows of a file that :meth:`encode` wrote, with exact credits. ``keys`` are left out.

        :raises ValueError: if the content is not such a file.
        """


def usage_row(day: date, group: object, credits: Decimal | None, request_count: object) -> UsageRow:
    """
    Return a row that was read from a file.

    :raises ValueError: for a value that no export writes.
    """
    if not isinstance(group, str | None) or not is_whole_number(request_count, 0, MAX_REQUEST_COUNT):
        raise ValueError(f"a row of {day} has the group {excerpt(group)} and {excerpt(request_count)} requests")
    return UsageRow(day, group, None if credits is None else exact_credits(credits), request_count)


def number_text(credits: Decimal | None, *, missing: str) -> str:
    """Return a number with a decimal point: engines infer integers for a file with only whole numbers."""
    if credits is None:
        return missing
    text = format_decimal(credits)
    return text if "." in text else f"{text}.0"

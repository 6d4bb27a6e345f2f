"""Encode rows as bytes. A new format is a module with a subclass of :class:`Format`, and its line in ``FORMATS``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from reducto_provider.export.formats.base import COLUMNS, Format
from reducto_provider.export.formats.compressed import COMPRESSIONS, Compressed
from reducto_provider.export.formats.csv import CsvFormat
from reducto_provider.export.formats.delta import DeltaFormat
from reducto_provider.export.formats.focus import FocusCsvFormat, FocusParquetFormat
from reducto_provider.export.formats.json import SENT_COLUMNS, JsonFormat
from reducto_provider.export.formats.jsonl import JsonLinesFormat
from reducto_provider.export.formats.parquet import ParquetFormat
from reducto_provider.usage.checks import check_choice

if TYPE_CHECKING:
    from reducto_provider.export.focus import BillingTerms

__all__ = ["COLUMNS", "COMPRESSIONS", "FORMATS", "SENT_COLUMNS", "TABLE_FORMAT", "Format", "check_format"]

FORMATS: Final[Mapping[str, Format]] = {
    each.name: each
    for each in (
        JsonFormat(),
        JsonLinesFormat(),
        CsvFormat(),
        ParquetFormat(),
        FocusCsvFormat(),
        FocusParquetFormat(),
        DeltaFormat(),
    )
}
"""The formats by name. Those of FOCUS are used :meth:`Format.with_terms`."""

TABLE_FORMAT: Final = DeltaFormat.name
"""The format that is a table."""


def check_format(
    name: str,
    compression: str | None = None,
    terms: BillingTerms | None = None,
    group_by: str = "product",
) -> Format:
    """
    Return the format of that name, compressed if requested.

    :param terms: required for FOCUS.
    :param group_by: the dimension of a FOCUS dataset.
    :raises ValueError: naming the field, the value and what is allowed.
    """
    check_choice("output_format", name, tuple(FORMATS))
    plain_format = FORMATS[name].with_terms(terms, group_by)
    if compression in (None, plain_format.compression):
        return plain_format
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression must be one of {', '.join(COMPRESSIONS)}, or None, not {compression!r}")
    if plain_format.compression:
        raise ValueError(f"compression must be left out for {name}, which always has {plain_format.compression}")
    return Compressed(plain_format, compression)

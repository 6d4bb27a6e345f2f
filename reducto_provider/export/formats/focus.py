"""Encode FOCUS records as CSV and Parquet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec

from reducto_provider.export import focus
from reducto_provider.export.formats.base import CREDITS_TYPE, Format, number_text, usage_row
from reducto_provider.export.formats.csv import csv_rows, quoted, read_number
from reducto_provider.export.formats.parquet import parquet_bytes, parquet_rows
from reducto_provider.usage.report import CREDITS_SCALE, UsageReport, UsageRow, format_decimal

_FOCUS_TYPES = {
    "text": "string",
    "moment": "timestamp",
    "credits": CREDITS_TYPE,
    "money": f"decimal(38,{focus.COST_SCALE})",
    "count": "bigint",
}


_USAGE_COLUMNS = ("ChargePeriodStart", "x_Group", "PricingQuantity", "x_RequestCount")
"""The columns that a row of usage became."""


class FocusFormat(Format):
    """
    FOCUS 1.2, see :mod:`reducto_provider.export.focus`. It has columns for organization and dimension, so ``keys``
    are ignored. FOCUS allows no file without rows.

    A dataset has only one dimension: each restates the same costs, which a tool would add up.
    """

    allows_empty_file = False

    _terms: focus.BillingTerms
    _group_by: str

    def with_terms(self, terms: focus.BillingTerms | None, group_by: str) -> Format:
        if terms is None:
            raise ValueError(f"price_per_credit must be given for output_format={self.name!r}")
        bound = copy(self)
        bound._terms, bound._group_by = terms, group_by
        return bound

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
        return msgspec.json.encode((*prices, terms.billing_currency, terms.prepaid, terms.billing_account_name))

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

    def decode(self, content: bytes) -> list[UsageRow]:
        return [
            usage_row(date.fromisoformat((day or "")[:10]), group, read_number(credits), int(requests or ""))
            for day, group, credits, requests in csv_rows(content, *_USAGE_COLUMNS)
        ]


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

        from reducto_provider.export.formats import arrow

        array_of: Mapping[str, Callable[..., Any]] = {
            "text": arrow.strings,
            "moment": lambda values: arrow.dates(values).cast(pa.timestamp("us", tz="UTC")),
            "credits": partial(arrow.decimals, scale=CREDITS_SCALE),
            "money": partial(arrow.decimals, scale=focus.COST_SCALE),
            "count": arrow.integers,
        }
        columns = {
            name: array_of[kind](values)
            for (name, kind), values in zip(focus.COLUMNS.items(), zip(*rows, strict=True), strict=True)
        }
        return parquet_bytes(pa.table(columns))

    def decode(self, content: bytes) -> list[UsageRow]:
        return [
            usage_row(moment.date(), group, credits, requests)
            for moment, group, credits, requests in parquet_rows(content, *_USAGE_COLUMNS)
        ]


def _csv_value(value: focus.Value) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Decimal):
        return number_text(value, missing="")
    if isinstance(value, date):
        return f"{value}T00:00:00Z"
    return "" if value is None else str(value)

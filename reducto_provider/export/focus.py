"""
Convert usage rows to records of FOCUS 1.2, the FinOps Open Cost and Usage Specification, which FinOps tools ingest.

https://focus.finops.org/focus-specification/v1-2/ defines each column.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import date, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec

from reducto_provider.usage.checks import check_bool, check_number, check_single_name
from reducto_provider.usage.fields import is_literal
from reducto_provider.usage.report import CREDITS_SCALE, CreditsUnavailableError, UsageReport, UsageRow, format_decimal

FOCUS_VERSION: Final = "1.2"
FOCUS_FORMATS: Final = ("focus_csv", "focus_parquet")

PRICE_SCALE: Final = 12
"""Maximum decimal places of a price."""

COST_SCALE: Final = CREDITS_SCALE + PRICE_SCALE
"""Decimal places of a cost. No product of credits and a price has more, so costs are never rounded."""

_PRICE_LIMIT = Decimal(10) ** 9
_PRICE_UNIT = Decimal(1).scaleb(-PRICE_SCALE)
_COST_LIMIT = Decimal(10) ** (38 - COST_SCALE)  # the limit of decimal128(38, 21), the widest type that engines read
_SAFE = "".join(map(chr, range(32, 127))).replace("%", "")  # characters left unescaped in an id
_EXACT = Context(prec=80, traps=[Inexact, InvalidOperation])  # raises instead of rounding

Kind = Literal["text", "moment", "credits", "money", "count"]

Value = str | date | Decimal | int | None
"""A ``date`` is the start of that day in UTC: usage is by whole days."""

Record = dict[str, Value]
"""The values of :data:`COLUMNS`, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BillingTerms:
    """
    The values of a FOCUS record that usage does not have.

    Prices are text, ``int``, ``Decimal`` or ``float``. A ``float`` has the value of its ``repr``.

    :param price_per_credit: the list price of one credit. It has no default: a wrong price would look right.
    :param contracted_price_per_credit: the agreed price; None for the list price.
    :param billing_currency: the currency of prices and invoices: three capital letters, as in ISO 4217.
    :param prepaid: whether the credits were bought in advance, so that their use is billed with 0.
    :param billing_account_name: None for the organization's id.
    :raises ValueError: naming the field, the value and the remedy.
    """

    price_per_credit: Decimal
    contracted_price_per_credit: Decimal | None = None
    billing_currency: str = "USD"
    prepaid: bool = False
    billing_account_name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "price_per_credit", _price("price_per_credit", self.price_per_credit))
        if self.contracted_price_per_credit is not None:
            contracted = _price("contracted_price_per_credit", self.contracted_price_per_credit)
            object.__setattr__(self, "contracted_price_per_credit", contracted)
        if not isinstance(self.billing_currency, str) or not re.fullmatch("[A-Z]{3}", self.billing_currency):
            raise ValueError(
                f"billing_currency must be three capital letters as in ISO 4217, for instance 'USD', not "
                f"{self.billing_currency!r}"
            )
        check_bool("prepaid", self.prepaid)
        if self.billing_account_name is not None:
            check_single_name("billing_account_name", self.billing_account_name)

    @property
    def contracted_price(self) -> Decimal:
        """The price of one credit for this customer."""
        if self.contracted_price_per_credit is None:
            return self.price_per_credit
        return self.contracted_price_per_credit


class _Charge:
    """A row, its price, and what several columns have in common."""

    __slots__ = ("cost", "credits", "list_cost", "month", "report", "row", "sku", "terms")

    def __init__(self, row: UsageRow, credits: Decimal, report: UsageReport, terms: BillingTerms) -> None:
        self.row = row
        self.credits = credits
        self.report = report
        self.terms = terms
        self.month = row.date.replace(day=1)
        self.list_cost = _cost(credits, terms.price_per_credit, row.date)
        self.cost = _cost(credits, terms.contracted_price, row.date)
        self.sku = _sku(report.group_by, row.group)


PRICE_OPTIONS: Final = tuple(field.name for field in fields(BillingTerms))
"""The arguments of the export operator that make up the terms."""


def parse_terms(output_format: object, options: Mapping[str, Any]) -> BillingTerms | None:
    """
    Return the terms for a FOCUS format, from rendered :data:`PRICE_OPTIONS`; None for other formats.

    :raises ValueError: naming the field, the value and the remedy; also for options that the format does not accept.
    """
    if output_format in FOCUS_FORMATS:
        if options["price_per_credit"] is None:
            raise ValueError(
                f"price_per_credit must be given for output_format={output_format!r}, and has no default: the list "
                "price of one credit in billing_currency, for instance '0.015'"
            )
        return BillingTerms(**options)
    given = [name for name, value in options.items() if value is not None and value != _DEFAULTS[name]]
    if given:
        raise ValueError(
            f"{', '.join(given)} must be left out for output_format={output_format!r}: prices are for "
            f"{' and '.join(FOCUS_FORMATS)} alone"
        )
    return None


def parse_literal_terms(output_format: object, options: Mapping[str, Any]) -> BillingTerms | None:
    """
    Return the terms when a DAG is parsed, as :func:`parse_terms`. Arguments that are not literal count as valid.

    :raises ValueError: as :func:`parse_terms`.
    """
    literal = {name: value if is_literal(value) else _VALID[name] for name, value in options.items()}
    if not is_literal(output_format):  # it may render to FOCUS: validate the given options
        return BillingTerms(**{**_VALID, **{name: value for name, value in literal.items() if value is not None}})
    return parse_terms(output_format, literal if output_format in FOCUS_FORMATS else options)


def focus_records(report: UsageReport, terms: BillingTerms) -> Iterator[Record]:
    """
    Yield a record for each row of the report. Costs are exact.

    :raises CreditsUnavailableError: if any row has no credits.
    :raises ValueError: if a cost is too large for a file.
    """
    for row in report.rows:
        if row.credits is None:
            raise CreditsUnavailableError(
                f"Reducto sends no credits for organization {report.org_id}, as for accounts on its newer pricing, so "
                "its usage has no price: export it in another output_format than FOCUS"
            )
        charge = _Charge(row, row.credits, report, terms)
        yield {**_CONSTANTS, **{name: value(charge) for name, value in _COMPUTED}}


def _cost(credits: Decimal, price: Decimal, day: date) -> Decimal:
    cost = _EXACT.multiply(credits, price)
    if cost >= _COST_LIMIT:
        raise ValueError(
            f"{format_decimal(credits)} credits on {day} at {format_decimal(price)} each cost {_COST_LIMIT:.0e} or "
            "more, which is too large for FOCUS files: is the price right?"
        )
    return cost


def _sku(group_by: str, group: str | None) -> str:
    """
    Return an id for each group. No group and an empty group have different ids.

    It is ASCII, since the specification's validator requires that of ids and descriptions, though the specification
    allows all of Unicode. ``Tags`` and ``x_Group`` have the group unchanged.
    """
    return f"reducto:{group_by}" if group is None else f"reducto:{group_by}:{quote(group, safe=_SAFE)}"


def _description(group_by: str, group: str | None) -> str:
    dimension = group_by.replace("_", " ")
    user = f"no {dimension}" if group is None else f"{dimension} {json.dumps(group)}"
    return f"Reducto credits consumed by {user}."


def _price(field: str, value: object) -> Decimal:
    """Return an exact price."""
    price = check_number(
        field,
        value,
        lambda number: 0 <= number < _PRICE_LIMIT,
        f"a price, a number from 0 to below {_PRICE_LIMIT} such as '0.015'",
        "does its template render to one?",
    )
    try:
        return _EXACT.quantize(price, _PRICE_UNIT)
    except Inexact as error:
        raise ValueError(
            f"{field} must have at most {PRICE_SCALE} decimal places, not {value!r}: round it, and write it as text, "
            "for instance '0.015'"
        ) from error


_COLUMNS: Final[tuple[tuple[str, Kind, Value | Callable[[_Charge], Value]], ...]] = (
    ("BillingAccountId", "text", lambda charge: charge.report.org_id),
    ("BillingAccountName", "text", lambda charge: charge.terms.billing_account_name or charge.report.org_id),
    ("BillingAccountType", "text", "Organization"),
    ("BillingCurrency", "text", lambda charge: charge.terms.billing_currency),
    ("PricingCurrency", "text", "Credits"),
    ("BillingPeriodStart", "moment", lambda charge: charge.month),
    ("BillingPeriodEnd", "moment", lambda charge: (charge.month + timedelta(days=31)).replace(day=1)),
    ("ChargePeriodStart", "moment", lambda charge: charge.row.date),
    ("ChargePeriodEnd", "moment", lambda charge: charge.row.date + timedelta(days=1)),
    ("ChargeCategory", "text", "Usage"),
    ("ChargeClass", "text", None),
    ("ChargeFrequency", "text", "Usage-Based"),
    ("ChargeDescription", "text", lambda charge: _description(charge.report.group_by, charge.row.group)),
    ("PricingQuantity", "credits", lambda charge: charge.credits),
    ("PricingUnit", "text", "Credits"),
    ("PricingCategory", "text", "Standard"),
    ("ConsumedQuantity", "credits", lambda charge: Decimal(charge.row.request_count)),
    ("ConsumedUnit", "text", "Requests"),
    ("ListUnitPrice", "money", lambda charge: charge.terms.price_per_credit),
    ("ContractedUnitPrice", "money", lambda charge: charge.terms.contracted_price),
    ("ListCost", "money", lambda charge: charge.list_cost),
    ("ContractedCost", "money", lambda charge: charge.cost),
    ("EffectiveCost", "money", lambda charge: charge.cost),
    ("BilledCost", "money", lambda charge: Decimal(0) if charge.terms.prepaid else charge.cost),
    ("PricingCurrencyListUnitPrice", "credits", Decimal(1)),
    ("PricingCurrencyContractedUnitPrice", "credits", Decimal(1)),
    ("PricingCurrencyEffectiveCost", "credits", lambda charge: charge.credits),
    ("ProviderName", "text", "Reducto"),
    ("PublisherName", "text", "Reducto"),
    ("InvoiceIssuerName", "text", "Reducto"),
    ("ServiceCategory", "text", "AI and Machine Learning"),
    ("ServiceSubcategory", "text", "Other (AI and Machine Learning)"),
    ("ServiceName", "text", "Reducto"),
    ("SkuId", "text", lambda charge: charge.sku),
    ("SkuPriceId", "text", lambda charge: charge.sku),
    ("SkuMeter", "text", "Credits consumed"),
    ("SkuPriceDetails", "text", None),
    (
        "Tags",
        "text",
        lambda charge: msgspec.json.encode({f"reducto/{charge.report.group_by}": charge.row.group}).decode(),
    ),
    ("InvoiceId", "text", None),
    ("CommitmentDiscountStatus", "text", None),
    ("SubAccountId", "text", None),
    ("SubAccountName", "text", None),
    ("SubAccountType", "text", None),
    ("x_GroupBy", "text", lambda charge: charge.report.group_by),
    ("x_Group", "text", lambda charge: charge.row.group),
    ("x_RequestCount", "count", lambda charge: charge.row.request_count),
)
"""
Each column's name, kind and value: a constant, or computed from a charge. FOCUS requires custom columns, prefixed with
``x_``, to come last.
"""

COLUMNS: Final[Mapping[str, Kind]] = {name: kind for name, kind, _ in _COLUMNS}
"""The columns in order, and their kinds."""

_CONSTANTS: Final[Record] = {name: None if callable(value) else value for name, _, value in _COLUMNS}
_COMPUTED: Final = tuple((name, value) for name, _, value in _COLUMNS if callable(value))

_DEFAULTS: Final = {field.name: None if field.default is MISSING else field.default for field in fields(BillingTerms)}
_VALID: Final[Mapping[str, Any]] = {**_DEFAULTS, "price_per_credit": Decimal(0)}

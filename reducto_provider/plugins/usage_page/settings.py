"""The datasets that the page shows, as Airflow's configuration lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, get_args

import msgspec

from reducto_provider.export.locations import check_output_path
from reducto_provider.usage.checks import check_choice, check_number, check_single_name, excerpt
from reducto_provider.usage.report import CREDITS_UNIT, Metric

OPTION: Final = "[reducto] usage_page"

_MAX_BUDGET: Final = Decimal(10) ** 29  # the end of decimal128(38, 9)
_FIELDS: Final = ("name", "path", "conn_id", "metric", "budgets", "dag_id")

_DECODER: Final = msgspec.json.Decoder(list[dict[str, Any]], float_hook=Decimal)


@dataclass(frozen=True, kw_only=True)
class PageDataset:
    """
    A dataset of the page.

    :param name: for people.
    :param path: the ``output_path`` of its exports.
    :param conn_id: the Airflow connection for an object store.
    :param metric: ``"credits"`` or ``"requests"``.
    :param budgets: by organization, what a calendar month may use.
    :param dag_id: a DAG whose readers alone may see the dataset; None for everybody who may see the page.
    :raises ValueError: naming the field, the value and what is allowed.
    """

    name: str
    path: str
    conn_id: str | None = None
    metric: Metric = "credits"
    budgets: Mapping[str, Decimal] = field(default_factory=dict)
    dag_id: str | None = None

    def __post_init__(self) -> None:
        check_single_name("name", self.name)
        check_output_path(self.path)
        for name in ("conn_id", "dag_id"):
            if (value := getattr(self, name)) is not None:
                check_single_name(name, value)
        check_choice("metric", self.metric, get_args(Metric))
        if not isinstance(self.budgets, Mapping):
            raise ValueError(f"budgets must be an object of numbers by organization, not {excerpt(self.budgets)}")
        budgets = {org_id: check_budget(f"budgets[{org_id!r}]", value) for org_id, value in self.budgets.items()}
        object.__setattr__(self, "budgets", budgets)


def check_budget(field: str, value: object) -> Decimal:
    """
    Return a budget. Its range is that of credits, so that every number on the page is short.

    :raises ValueError: naming the field, the value and what is allowed.
    """
    return check_number(
        field,
        value,
        lambda number: CREDITS_UNIT <= number < _MAX_BUDGET,
        "a number above 0 (from 0.000000001 to 1e29)",
        "leave it out to set no budget",
    )


def parse_datasets(text: str) -> tuple[PageDataset, ...]:
    """
    Return the datasets in a JSON list.

    :raises ValueError: naming the option, the field, the value and what is allowed.
    """
    if not text.strip():
        return ()
    try:
        found = _DECODER.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"{OPTION} must be a JSON list of objects with name and path: {error}") from error
    datasets = tuple(_dataset(number, fields) for number, fields in enumerate(found, 1))
    names = [dataset.name for dataset in datasets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{OPTION} has two datasets of the name {excerpt(twice[0])}: give each its own")
    return datasets


def _dataset(number: int, fields: dict[str, Any]) -> PageDataset:
    unknown = sorted(fields.keys() - set(_FIELDS))
    missing = [name for name in ("name", "path") if name not in fields]
    try:
        if unknown:
            raise ValueError(f"{excerpt(unknown[0])} is not one of {', '.join(_FIELDS)}")
        if missing:
            raise ValueError(f"{missing[0]} must be given")
        return PageDataset(**fields)
    except ValueError as error:
        raise ValueError(f"dataset {number} of {OPTION}: {error}") from error

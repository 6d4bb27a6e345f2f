"""The dimensions compared with each other."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from reducto_provider.usage.query import DIMENSIONS
from reducto_provider.usage.reconciliation import reconcile
from reducto_provider.usage.report import UsageReport, UsageRow

FIRST, SECOND = date(2026, 6, 1), date(2026, 6, 2)


def report(dimension, *rows, org_id="org_abc123"):
    rows = tuple(
        UsageRow(day, group, None if credits is None else Decimal(credits), requests)
        for day, group, credits, requests in rows
    )
    return UsageReport(org_id=org_id, start=FIRST, end=SECOND, group_by=dimension, rows=rows)


def test_dimensions_that_agree():
    by_product = report("product", (FIRST, "parse", "1.5", 3), (FIRST, "edit", "2", 4), (SECOND, "parse", "1", 1))
    by_key = report("api_key", (FIRST, "k", "3.5", 7), (SECOND, "k", "0.4", 0), (SECOND, "l", "0.6", 1))

    assert reconcile({"product": by_product, "api_key": by_key}) == []


def test_the_noise_of_rounding_is_no_difference():
    by_product = report("product", (FIRST, "parse", "0.333333333", 3))
    by_key = report("api_key", *((FIRST, f"k{number}", "0.111111111333", 1) for number in range(3)))

    assert reconcile({"product": by_product, "api_key": by_key}) == []


def test_a_difference_names_day_dimensions_and_amount():
    by_product = report("product", (FIRST, "parse", "1.5", 3), (SECOND, "parse", "1", 1))
    by_key = report("api_key", (FIRST, "k", "1.4", 3), (SECOND, "k", "1", 2))
    found = reconcile({"product": by_product, "api_key": by_key})

    assert [str(each) for each in found] == [
        "2026-06-01: credits by product 1.5, by api_key 1.4 (difference 0.1)",
        "2026-06-02: requests by product 1, by api_key 2 (difference 1)",
    ]


def test_a_day_that_one_dimension_lacks():
    found = reconcile({"product": report("product", (FIRST, "parse", "1", 1)), "api_key": report("api_key")})

    assert {(each.day, each.metric) for each in found} == {(FIRST, "credits"), (FIRST, "requests")}


def test_accounts_without_credits_are_compared_by_requests():
    reports = {name: report(name, (FIRST, "x", None, 5)) for name in DIMENSIONS}
    assert reconcile(reports) == []

    reports["feature"] = report("feature", (FIRST, "x", "1", 5))
    [found] = reconcile(reports)
    assert "credits by product no figure" in str(found)


def test_other_queries_are_refused():
    with pytest.raises(ValueError, match="one organization"):
        reconcile({"product": report("product"), "api_key": report("api_key", org_id="org_other")})

"""DataFusion reads what was exported, by the definitions in the guide."""

from __future__ import annotations

from datetime import date

import pytest

from tests.engines.cases import ENORMOUS, rows_of
from tests.engines.guide import defined

pytest.importorskip("datafusion", reason="make engines installs datafusion")

TABLE = 'SELECT org_id, group_by, "date", "group", credits, request_count FROM reducto_usage'


def test_every_row(tree, answers):
    context = defined("datafusion", "parquet", tree("parquet", None, ENORMOUS))["context"]

    rows = sorted((tuple(row.values()) for row in context.sql(TABLE).to_pylist()), key=repr)

    assert rows == rows_of(*[report for report, _ in [*answers, ENORMOUS]])


def test_a_month_opens_only_its_files(year):
    root, reports = year
    names = defined("datafusion", "query", root, defined("datafusion", "parquet", root))

    assert {row["org_id"]: row["credits"] for row in names["credits"].to_pylist()} == {
        report.org_id: sum(row.credits for row in report.rows if date(2026, 3, 1) <= row.date <= date(2026, 3, 31))
        for report in reports
        if report.group_by == "product"
    }
    plan = str(names["context"].sql("EXPLAIN " + names["month"]).to_pylist())
    assert "dt=2026-03-31/usage.parquet" in plan
    assert "dt=2026-04" not in plan
    assert "group_by=api_key" not in plan

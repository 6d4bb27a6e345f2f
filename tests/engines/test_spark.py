"""Spark reads what was exported, by the definitions in the guide: `make spark`."""

from __future__ import annotations

import shutil
from datetime import date

import pytest

from tests.engines.cases import ENORMOUS, ODD_ID, rows_of
from tests.engines.guide import blocks, defined

sql = pytest.importorskip("pyspark.sql", reason="make spark installs pyspark")

pytestmark = [
    pytest.mark.skipif(not shutil.which("java"), reason="Spark needs a Java runtime"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:PySpark does not yet fully support"),
]

COLUMNS = ("org_id", "group_by", "date", "group", "credits", "request_count")


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    builder = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
    session = builder.config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse"))).getOrCreate()
    yield session
    session.stop()


def rows(frame):
    return sorted((tuple(row[name] for name in COLUMNS) for row in frame.select(*COLUMNS).collect()), key=repr)


def test_every_row(spark, tree, answers):
    names = defined("spark", "parquet", tree("parquet", None, ENORMOUS), {"spark": spark})
    garbled = ODD_ID.encode().decode("latin-1")

    assert garbled in {row.org_id for row in names["usage"].select("org_id").distinct().collect()}
    names = defined("spark", "decode", tree("parquet"), names)
    assert rows(names["usage"]) == rows_of(*[report for report, _ in [*answers, ENORMOUS]])


def test_a_month(spark, year):
    root, reports = year
    names = defined("spark", "query", root, defined("spark", "parquet", root, {"spark": spark}))

    assert {row["org_id"]: row["sum(credits)"] for row in names["credits"].collect()} == {
        report.org_id: sum(row.credits for row in report.rows if date(2026, 3, 1) <= row.date <= date(2026, 3, 31))
        for report in reports
        if report.group_by == "product"
    }
    plan = names["credits"]._jdf.queryExecution().executedPlan().toString()
    assert "PartitionFilters: [isnotnull(group_by" in plan


def test_as_a_table(spark, tree, answers):
    create, repair = (part for part in blocks("spark", "table", tree("parquet"))[0].split(";") if part.strip())

    spark.sql(create)
    spark.sql(repair)

    found = [(row[0].encode("latin-1").decode(), *row[1:]) for row in rows(spark.table("reducto_usage"))]
    assert sorted(found, key=repr) == rows_of(*[report for report, _ in answers])
    spark.sql("DROP TABLE reducto_usage")

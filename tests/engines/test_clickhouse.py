"""ClickHouse reads what was exported, by the definitions in the guide."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal

import pytest

from tests.engines.cases import ENORMOUS, NUMBER_ID, ODD_ID, rows_of
from tests.engines.guide import blocks, definition

session = pytest.importorskip("chdb.session", reason="make engines installs chdb")

TABLE = "SELECT org_id, group_by, `date`, `group`, credits, request_count FROM reducto_usage"


@pytest.fixture(scope="module")
def clickhouse():
    with session.Session() as found:
        yield found


@pytest.fixture
def define(clickhouse):
    """Define the guide's view on a local dataset: the function `file` has the arguments of `s3` but for the URL."""

    def define(root, kind):
        clickhouse.query("DROP VIEW IF EXISTS reducto_usage")
        clickhouse.query(definition("clickhouse", kind, root).replace("FROM s3(", "FROM file("))
        return clickhouse

    return define


def found(clickhouse, query):
    """Return the rows of a query. Numbers are text in the answer, so that none becomes a float."""
    settings = "SETTINGS output_format_json_quote_decimals = 1, output_format_json_quote_64bit_integers = 1"
    answer = json.loads(str(clickhouse.query(f"{query.strip().rstrip(';')} {settings}", "JSONCompact")))
    kinds = {"Date32": date.fromisoformat, "Nullable(Decimal(38, 9))": Decimal, "Int64": int}
    convert = [kinds.get(column["type"], str) for column in answer["meta"]]
    return sorted(
        (
            tuple(None if value is None else to(value) for to, value in zip(convert, row, strict=True))
            for row in answer["data"]
        ),
        key=repr,
    )


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_every_row(define, tree, answers, kind):
    clickhouse = define(tree(kind, None, ENORMOUS), kind)

    rows = [(*row[:4], None if row[4] is None else row[4].normalize(), row[5]) for row in found(clickhouse, TABLE)]

    expected = [
        (*row[:4], None if row[4] is None else row[4].normalize(), row[5])
        for row in rows_of(*[report for report, _ in [*answers, ENORMOUS]])
    ]
    assert sorted(rows, key=repr) == sorted(expected, key=repr)


def test_organizations_are_decoded(define, tree):
    clickhouse = define(tree("parquet"), "parquet")

    ids = {org_id for (org_id,) in found(clickhouse, "SELECT DISTINCT org_id FROM reducto_usage")}

    assert {ODD_ID, NUMBER_ID} < ids
    assert found(clickhouse, f"SELECT count() FROM reducto_usage WHERE org_id = '{ODD_ID}'") == [("12",)]


def test_a_month_opens_only_its_files(define, year, tmp_path):
    root, reports = year
    [query] = blocks("clickhouse", "query", root)
    (tmp_path / "data").mkdir()
    for folder in (root / "data").iterdir():
        (tmp_path / "data" / folder.name).symlink_to(folder)
    broken = tmp_path / "data/org_id=org_broken/group_by=product/dt=2026-04-01/usage.parquet"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a Parquet file")
    clickhouse = define(tmp_path, "parquet")

    credits = dict(found(clickhouse, query))

    assert credits == {
        report.org_id: sum(row.credits for row in report.rows if date(2026, 3, 1) <= row.date <= date(2026, 3, 31))
        for report in reports
        if report.group_by == "product"
    }
    with pytest.raises(Exception, match="org_broken"):
        found(clickhouse, "SELECT sum(credits) FROM reducto_usage")


def test_over_s3(clickhouse, answers, s3, monkeypatch):
    from reducto_provider.export.dataset import UsageDataset
    from reducto_provider.export.formats import check_format
    from reducto_provider.export.storage import open_storage

    bucket = s3.make_bucket()
    monkeypatch.setenv("AIRFLOW_CONN_ENGINES_LAKE", s3.connection())
    dataset = UsageDataset(open_storage(f"s3://engines_lake@{bucket}/reducto"), check_format("parquet"), {})
    for report, query in answers:
        dataset.publish(report, query)
    clickhouse.query("DROP VIEW IF EXISTS reducto_usage")
    text = definition("clickhouse", "parquet", f"{s3.url}/{bucket}/reducto")
    clickhouse.query(text.replace("usage.parquet',", "usage.parquet', 'reader', 'secret',"))

    rows = found(clickhouse, TABLE)

    assert len(rows) == sum(len(report.rows) for report, _ in answers)
    assert ODD_ID in {row[0] for row in rows}

"""pyarrow, and what builds on it, read what was exported, by the definitions in the guide."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import S3FileSystem

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.export.storage import open_storage
from tests.engines.cases import ENORMOUS, rows_of
from tests.engines.guide import defined
from tests.object_storage.answers import answer, usage
from tests.object_storage.s3server import REGION

MONTH = (ds.field("dt") >= date(2026, 3, 1)) & (ds.field("dt") <= date(2026, 3, 31))
SCHEMA = {
    "date": pa.date32(),
    "group": pa.string(),
    "credits": pa.decimal128(38, 9),
    "request_count": pa.int64(),
    "org_id": pa.string(),
    "group_by": pa.string(),
    "dt": pa.date32(),
}


def rows(table, day="date"):
    columns = ("org_id", "group_by", day, "group", "credits", "request_count")
    return sorted(zip(*[table[name].to_pylist() for name in columns], strict=True), key=repr)


def credits_of(reports, first=date(2026, 3, 1), last=date(2026, 3, 31)):
    """By organization, of one dimension in a month."""
    return {
        report.org_id: sum(row.credits for row in report.rows if first <= row.date <= last)
        for report in reports
        if report.group_by == "product"
    }


class TestPyarrow:
    def test_a_year(self, year):
        root, reports = year
        dataset = defined("pyarrow", "parquet", root)["usage"]

        assert dict(zip(dataset.schema.names, dataset.schema.types, strict=True)) == SCHEMA
        assert rows(dataset.to_table()) == rows_of(*reports)

    def test_what_is_in_the_path_is_not_in_the_files(self, year):
        """BigQuery refuses it, and others would have to choose."""
        for path in year[0].glob("data/*/*/dt=2026-03-0?/usage.parquet"):
            assert pq.read_schema(path).names == ["date", "group", "credits", "request_count"]

    def test_a_month_opens_only_its_files(self, year):
        root, reports = year
        names = defined("pyarrow", "query", root, defined("pyarrow", "parquet", root))
        dataset = names["usage"]

        fragments = [fragment.path for fragment in dataset.get_fragments(filter=names["month"])]
        everything = list(dataset.get_fragments())

        expected = {
            f"{root}/data/org_id={report.org_id}/group_by=product/dt={row.date}/usage.parquet"
            for report in reports
            for row in report.rows
            if report.group_by == "product" and (row.date.year, row.date.month) == (2026, 3)
        }
        assert sorted(fragments) == sorted(expected)
        assert len(everything) == len(list(root.glob("data/*/*/*/usage.parquet"))) > 10 * len(fragments)
        assert dict(zip(*names["credits"].to_pydict().values(), strict=True)) == credits_of(reports)

    @pytest.mark.parametrize(
        ("name", "compression"),
        [("parquet", None), ("csv", None), ("csv", "gzip"), ("jsonl", None), ("jsonl", "gzip")],
        ids=lambda value: value or "plain",
    )
    def test_every_format(self, tree, answers, name, compression):
        dataset = defined("pyarrow", name, tree(name, compression, ENORMOUS))["usage"]
        table = dataset.to_table()

        kinds = dict(zip(table.schema.names, table.schema.types, strict=True))
        assert kinds == SCHEMA | ({"date": pa.string()} if name == "jsonl" else {})
        assert rows(table, day="dt") == rows_of(*[report for report, _ in [*answers, ENORMOUS]])
        assert len(list(dataset.get_fragments(filter=ds.field("org_id") == "007"))) == 1

    def test_over_s3_a_month_gets_only_its_objects(self, s3, monkeypatch):
        bucket = s3.make_bucket()
        monkeypatch.setenv("AIRFLOW_CONN_ENGINES_LAKE", s3.connection())
        report, query = answer(usage(), "org_acme", date(2026, 2, 20), date(2026, 4, 10))
        storage = open_storage(f"s3://engines_lake@{bucket}/reducto")
        UsageDataset(storage, check_format("parquet"), {}).publish(report, query)
        dataset = ds.dataset(
            f"{bucket}/reducto/data",
            format="parquet",
            partitioning=ds.partitioning(
                pa.schema([("org_id", pa.string()), ("group_by", pa.string()), ("dt", pa.date32())]), flavor="hive"
            ),
            filesystem=S3FileSystem(
                access_key="a", secret_key="b", endpoint_override=s3.url, region=REGION, allow_bucket_creation=False
            ),
        )
        s3.calls.clear()

        table = dataset.to_table(filter=MONTH)

        assert {name for call in s3.calls for name in [call.key.split("dt=")[1][:7]]} == {"2026-03"}
        assert len({call.key for call in s3.calls}) == 31
        assert sum(table["credits"].to_pylist(), Decimal(0)) == credits_of([report])["org_acme"]


def test_pandas(year):
    pytest.importorskip("pandas")
    root, reports = year

    names = defined("pandas", "parquet", root)

    assert {name: str(kind) for name, kind in names["usage"].dtypes.items()}["credits"] == "decimal128(38, 9)[pyarrow]"
    assert dict(names["credits"]) == credits_of(reports)


def test_polars(year, tree, answers):
    pl = pytest.importorskip("polars")
    root, expected = year

    names = defined("polars", "parquet", root)

    assert names["usage"].collect_schema()["credits"] == pl.Decimal(38, 9)
    assert names["usage"].collect_schema()["dt"] == pl.Date
    assert dict(names["credits"].rows()) == credits_of(expected)
    found = defined("polars", "parquet", tree("parquet"))["usage"].select("org_id").unique().collect()
    assert set(found["org_id"]) == {report.org_id for report, _ in answers}

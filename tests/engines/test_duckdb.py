"""DuckDB reads what was exported, by the definitions in the guide."""

from __future__ import annotations

import re
import shutil
from datetime import date
from itertools import product

import pytest

from reducto_provider.export.formats import COMPRESSIONS, check_format
from reducto_provider.export.one_object import UsageObject
from reducto_provider.export.storage import LocalStorage
from tests.engines.cases import ENORMOUS, GROUPS, NUMBER_ID, ODD_ID, rows_of
from tests.engines.guide import GUIDE, blocks, definition
from tests.object_storage.answers import answer, usage

duckdb = pytest.importorskip("duckdb")
VERSION = tuple(int(part) for part in duckdb.__version__.split(".")[:3])

TABLE = 'SELECT org_id, group_by, "date", "group", credits, request_count FROM reducto_usage'
MONTH = "dt BETWEEN '2026-03-01' AND '2026-03-31'"
TEXT_FORMATS = list(product(("json", "jsonl", "csv"), (None, *COMPRESSIONS)))


@pytest.fixture
def connect():
    """A connection with the guide's view on a dataset."""

    def connect(root, name, compression=None):
        connection = duckdb.connect()
        connection.execute(definition("duckdb", name, root, check_format(name, compression).extension))
        return connection

    return connect


def profile(connection, query):
    """Return what DuckDB says of the files that a query read: (read, there are)."""
    [[_, text]] = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}").fetchall()
    found = re.search(r'"Scanning Files": "(\d+)/(\d+)"', text)
    assert found
    read = re.findall(r'"Total Files Read": "(\d+)"', text)
    assert read == [found[1]] or VERSION < (1, 4)  # which does not say it
    return int(found[1]), int(found[2])


class TestYear:
    def test_types(self, year, connect):
        found = connect(year[0], "parquet").execute("DESCRIBE reducto_usage").fetchall()

        assert {name: kind for name, kind, *_ in found} == {
            "date": "DATE",
            "group": "VARCHAR",
            "credits": "DECIMAL(38,9)",
            "request_count": "BIGINT",
            "org_id": "VARCHAR",
            "group_by": "VARCHAR",
            "dt": "DATE",
        }

    def test_totals_to_the_last_digit(self, year, connect):
        root, reports = year

        found = connect(root, "parquet").execute(
            "SELECT org_id, group_by, sum(credits), sum(request_count), count(*), min(dt), max(dt) "
            "FROM reducto_usage GROUP BY ALL"
        )

        assert sorted(found.fetchall()) == sorted(
            (
                report.org_id,
                report.group_by,
                report.credits,
                report.request_count,
                len(report.rows),
                report.rows[0].date,
                report.rows[-1].date,
            )
            for report in reports
        )
        assert any(report.credits.as_tuple().digits[-1] for report in reports), "there are nine places to get wrong"

    def test_every_row(self, year, connect):
        root, reports = year
        connection = connect(root, "parquet")

        assert sorted(connection.execute(TABLE).fetchall(), key=repr) == rows_of(*reports)
        assert connection.execute('SELECT count(*) FROM reducto_usage WHERE "date" <> dt').fetchone() == (0,)

    @pytest.mark.parametrize(
        ("where", "org_ids", "dimensions"),
        [
            ("", ("org_acme", "org_globex"), ("product", "api_key")),
            (" AND group_by = 'product'", ("org_acme", "org_globex"), ("product",)),
            (" AND group_by = 'product' AND org_id = 'org_globex'", ("org_globex",), ("product",)),
        ],
        ids=["a month", "of a dimension", "of an organization"],
    )
    def test_a_month_opens_only_its_files(self, year, connect, where, org_ids, dimensions):
        root, reports = year
        chosen = [report for report in reports if report.org_id in org_ids and report.group_by in dimensions]
        files = {(report.org_id, report.group_by, row.date) for report in chosen for row in report.rows}

        read, there = profile(connect(root, "parquet"), f"SELECT sum(credits) FROM reducto_usage WHERE {MONTH}{where}")

        assert there == len(list(root.glob("data/*/*/*/usage.parquet")))
        assert read == len([file for file in files if (file[-1].year, file[-1].month) == (2026, 3)])
        assert 0 < read < there / 10

    def test_the_guide_says_what_the_plan_says(self, year, connect):
        query = blocks("duckdb", "query", year[0])[0].rstrip().rstrip(";")

        read, there = profile(connect(year[0], "parquet"), query)

        assert f"`Scanning Files: {read}/{there}`, the {read} days" in GUIDE.replace("\n", " ")

    def test_files_of_other_months_need_not_even_be_readable(self, year, connect, tmp_path):
        root, reports = year
        shutil.copytree(root / "data/org_id=org_globex", tmp_path / "data/org_id=org_globex")
        # DuckDB learns the columns from the first file that there is.
        _, *others = sorted(tmp_path.glob("data/*/*/dt=*/usage.parquet"))
        for path in others:
            if not path.parent.name.startswith("dt=2026-03"):
                path.write_bytes(b"not a Parquet file")
        connection = connect(tmp_path, "parquet")

        [found] = connection.execute(
            f"SELECT sum(credits) FROM reducto_usage WHERE group_by = 'product' AND {MONTH}"
        ).fetchall()

        [report] = [each for each in reports if (each.org_id, each.group_by) == ("org_globex", "product")]
        assert found == (sum(row.credits for row in report.rows if date(2026, 3, 1) <= row.date <= date(2026, 3, 31)),)
        with pytest.raises(duckdb.Error):
            connection.execute("SELECT sum(credits) FROM reducto_usage").fetchall()


@pytest.mark.parametrize(
    ("name", "compression"), [*TEXT_FORMATS, ("parquet", None)], ids=lambda value: value or "plain"
)
class TestEveryFormat:
    @pytest.fixture
    def connection(self, tree, connect, name, compression):
        return connect(tree(name, compression), name, compression)

    def test_types(self, connection):
        found = connection.execute("DESCRIBE reducto_usage").fetchall()

        assert {column: kind for column, kind, *_ in found} == {
            "date": "DATE",
            "group": "VARCHAR",
            "credits": "DECIMAL(38,9)",
            "request_count": "BIGINT",
            "org_id": "VARCHAR",
            "group_by": "VARCHAR",
            "dt": "DATE",
        }

    def test_every_row(self, connection, answers):
        found = sorted(connection.execute(TABLE).fetchall(), key=repr)

        assert found == rows_of(*[report for report, _ in answers])

    def test_what_is_foreign_comes_back_as_it_was(self, connection):
        ids = connection.execute("SELECT DISTINCT org_id FROM reducto_usage").fetchall()
        assert {ODD_ID, NUMBER_ID} < {org_id for (org_id,) in ids}

        found = connection.execute('SELECT "group" FROM reducto_usage WHERE org_id = ?', [ODD_ID]).fetchall()
        assert sorted([group for (group,) in found], key=repr) == sorted(GROUPS, key=repr)
        assert {None, ""} < {group for (group,) in found}

    def test_the_queries_of_the_guide(self, connection, tmp_path, answers):
        month, totals, _ = blocks("duckdb", "query", tmp_path)
        [acme] = [report for report, _ in answers if report.org_id == "org_acme"]

        found = connection.execute(month.replace("2026-03", "2026-05")).fetchall()
        by_product = {(org_id, group): credits for org_id, group, credits, _ in found}
        assert by_product["org_acme", "parse"] == sum(row.credits for row in acme.rows if row.group == "parse")

        found = dict(connection.execute(totals).fetchall())
        assert found == {report.org_id: report.credits for report, _ in answers}
        assert found["org_umbrella"] is None


@pytest.mark.parametrize(
    ("name", "compression"), [*TEXT_FORMATS, ("parquet", None)], ids=lambda value: value or "plain"
)
def test_more_digits_than_a_float_has(tree, connect, name, compression):
    """The guide says in which formats they are exact, from which version on."""
    connection = connect(tree(name, compression, ENORMOUS), name, compression)

    found = connection.execute(f"{TABLE} WHERE org_id = 'org_enormous'").fetchall()

    assert (sorted(found, key=repr) == rows_of(ENORMOUS[0])) == (name in ("csv", "parquet") or VERSION >= (2, 0, 1))


def test_the_manifests_tell_of_days_without_usage(year, connect):
    root, reports = year
    connection = connect(root, "parquet")
    [*_, query] = blocks("duckdb", "query", root)

    found = connection.execute(query).fetchall()

    used = {row.date for report in reports if report.org_id == "org_globex" for row in report.rows}
    for group_by in ("api_key", "product"):
        empty = {row[2] for row in found if row[:2] == ("org_globex", group_by)}
        assert len(empty) + len(used) == 365
        assert not empty & used
    everything = connection.execute(query.replace("WHERE row_count = 0", "")).fetchall()
    assert sum(row[4] for row in everything if row[0] == "org_acme") == 2 * reports[0].credits


def test_an_export_that_is_one_object(tmp_path):
    """Organization and dimension are columns then."""
    report, query = answer(usage(), "org_acme", date(2026, 5, 1), date(2026, 5, 31))
    UsageObject(LocalStorage(tmp_path), "usage.parquet", check_format("parquet"), {}).publish(report, query)

    found = duckdb.sql(TABLE.replace("reducto_usage", f"'{tmp_path}/usage.parquet'")).fetchall()

    assert sorted(found, key=repr) == rows_of(report)

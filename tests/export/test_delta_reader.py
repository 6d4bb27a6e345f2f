"""A Delta table read back: the same rows as from files, and which days were exported."""

from __future__ import annotations

import json
import threading
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
import time_machine
from deltalake import DeltaTable, write_deltalake

from reducto_provider.export.delta.journal import Journal
from reducto_provider.export.formats import FORMATS
from reducto_provider.export.reader import RowCache, UsageReadError, open_reader, read_usage
from reducto_provider.export.sink import PublishError, open_sink
from reducto_provider.usage.days import DayRange
from tests.airflows import DELTA
from tests.export.test_reader import HOSTILE, JUNE, USAGE

pytestmark = DELTA

DAYS = {"start": date(2026, 6, 17), "end": date(2026, 6, 19)}
OTHER_GROUPS = [("2026-06-17", "parse", "1", 1), ("2026-06-19", "parse", "2", 2)]


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "table"


@pytest.fixture
def publish(root, make_export):
    def publish(*usage, **fields):
        export = make_export(*usage, **fields)
        sink = open_sink(str(root), None, FORMATS["delta"], export.query.filters())
        sink.check()
        sink.publish(export.report, export.query, "dag/run/task")
        return export.report

    return publish


@pytest.fixture
def killed(publish, mocker):
    """Publish, and be killed after the commit."""

    def killed(*usage):
        stopped = mocker.patch.object(Journal, "record", side_effect=OSError("killed"))
        with pytest.raises(PublishError):
            publish(*usage)
        mocker.stop(stopped)

    return killed


def days_of(root, days=JUNE, org_id="org_abc123"):
    return open_reader(str(root)).exported_days(org_id, "product", days)


def test_rows_are_as_they_were_exported(root, publish):
    report = publish(*USAGE)
    publish(*OTHER_GROUPS, group_by="feature")
    publish(*OTHER_GROUPS, org_id="org_other")

    assert read_usage(str(root), org_id="org_abc123", **DAYS) == list(report.rows)
    assert len(read_usage(f"file://{root}", org_id="org_abc123", group_by="feature", **DAYS)) == 2


@pytest.mark.parametrize("org_id", HOSTILE)
def test_any_organization_comes_back(root, publish, org_id):
    report = publish(*USAGE, org_id=org_id)
    publish(*USAGE, org_id="org_b", group_by="feature")

    assert open_reader(str(root)).organizations() == dict(sorted({org_id: ("product",), "org_b": ("feature",)}.items()))
    assert read_usage(str(root), org_id=org_id, **DAYS) == list(report.rows)


class TestDays:
    def test_empty_days_are_told_from_missing_ones(self, root, publish):
        with time_machine.travel("2026-06-19T23:00:00Z", tick=False):
            publish(*USAGE)
        found = days_of(root)

        assert [(day.day, each.row_count, each.credits, each.is_final) for day, each in found.days.items()] == [
            (17, 2, Decimal("310.1"), True),
            (18, 0, Decimal(0), True),
            (19, 1, Decimal("0.000000001"), False),
        ]
        assert {each.exported_at for each in found.days.values()} == {"2026-06-19T23:00:00+00:00"}
        assert found.missing(JUNE)[0] == DayRange(date(2026, 6, 1), date(2026, 6, 16))
        assert found.span == DayRange(date(2026, 6, 17), date(2026, 6, 19))

    def test_only_those_of_the_range_but_the_whole_span(self, root, publish):
        publish(*[(day, "parse", "1", 1) for day in ("2025-12-31", "2026-01-01")])
        found = days_of(root, DayRange(date(2026, 1, 1), date(2026, 6, 30)))

        assert list(found.days) == [date(2026, 1, 1)]
        assert found.span == DayRange(date(2025, 12, 31), date(2026, 1, 1))
        assert days_of(root, org_id="org_unknown").span is None

    def test_days_that_were_never_exported_are_an_error(self, root, publish):
        publish(*USAGE)
        with pytest.raises(UsageReadError, match="of 2026-06-16, of org_abc123 by product: export these days"):
            read_usage(str(root), org_id="org_abc123", start=date(2026, 6, 16), end=date(2026, 6, 19))

    def test_a_record_is_what_the_page_shows_as_manifest(self, root, publish):
        publish(*USAGE)
        reader = open_reader(str(root))
        shown = json.loads(reader.manifest("org_abc123", "product", date(2026, 6, 17)))

        assert {name: shown[name] for name in ("date", "row_count", "credits", "final")} == {
            "date": "2026-06-17",
            "row_count": 2,
            "credits": "310.1",
            "final": True,
        }
        assert reader.manifest("org_abc123", "product", date(2026, 6, 16)) is None


class TestAKilledExport:
    """It has committed rows, and has not recorded them."""

    def test_its_days_have_the_totals_of_the_rows_and_are_not_final(self, root, publish, killed):
        publish(*USAGE)
        killed(*OTHER_GROUPS, ("2026-06-20", "parse", "7", 7))
        found = days_of(root)

        assert [(day.day, each.credits, each.is_final) for day, each in found.days.items()] == [
            (17, Decimal(1), False),
            (18, Decimal(0), True),
            (19, Decimal(2), False),
            (20, Decimal(7), False),
        ]
        rows = read_usage(str(root), org_id="org_abc123", start=date(2026, 6, 17), end=date(2026, 6, 20))
        assert [row.credits for row in rows] == [1, 2, 7]

    def test_the_first_one(self, root, publish, killed):
        killed(*OTHER_GROUPS)

        assert list(days_of(root).days) == [date(2026, 6, 17), date(2026, 6, 19)], "an empty day was not recorded"
        publish(*OTHER_GROUPS)
        assert [each.is_final for each in days_of(root).days.values()] == [True] * 3


class TestOtherWriters:
    def test_altered_rows_are_an_error_and_no_smaller_sum(self, root, publish, monkeypatch):
        monkeypatch.setattr("reducto_provider.export.delta.reader.time.sleep", lambda _: None)
        publish(*USAGE)
        DeltaTable(root).delete("\"group\" = 'parse'")

        with pytest.raises(
            UsageReadError, match=r"the rows of 2026-06-17 of org_abc123 by product at .* export the day"
        ):
            read_usage(str(root), org_id="org_abc123", **DAYS)

    def test_a_reader_that_is_older_than_an_export_sees_it(self, root, publish):
        publish(*USAGE)
        reader = open_reader(str(root))
        before = reader.exported_days("org_abc123", "product", JUNE)
        report = publish(*OTHER_GROUPS)

        assert reader.exported_days("org_abc123", "product", JUNE).days[date(2026, 6, 17)].credits == 1
        assert reader.rows("org_abc123", "product", before.days.values()) == list(report.rows)

    def test_a_day_that_became_empty(self, root, publish):
        publish(*USAGE)
        before = days_of(root)
        publish(start="2026-06-17", end="2026-06-19")

        assert open_reader(str(root)).rows("org_abc123", "product", before.days.values()) == []

    def test_a_table_that_was_made_anew_has_none_of_the_old_days(self, root, publish):
        publish(*USAGE)
        for path in root.glob("_delta_log/*"):
            path.unlink()
        publish(*OTHER_GROUPS, org_id="org_other")

        assert days_of(root).days == {}
        assert days_of(root).span is None

    def test_an_export_at_the_same_time_is_read_before_or_after_it(self, root, publish):
        versions = [publish(("2026-06-17", "parse", str(index), index)) for index in range(2)]
        done = threading.Event()

        def keep_publishing():
            try:
                for index in range(20):
                    publish(("2026-06-17", "parse", str(index % 2), index % 2))
            finally:
                done.set()

        thread = threading.Thread(target=keep_publishing)
        thread.start()
        try:
            while not done.is_set():
                rows = read_usage(str(root), org_id="org_abc123", start=date(2026, 6, 17), end=date(2026, 6, 17))
                assert rows in [list(report.rows) for report in versions]
        finally:
            thread.join()


def test_a_day_is_read_once_until_it_changes(root, publish, mocker):
    publish(*USAGE)
    reader = open_reader(str(root), cache=RowCache(100))

    def rows():
        return reader.rows("org_abc123", "product", reader.exported_days("org_abc123", "product", JUNE).days.values())

    first = rows()
    scans = mocker.spy(type(reader._table), "read_rows")
    assert rows() == first
    assert scans.call_count == 0
    report = publish(*OTHER_GROUPS)
    assert rows() == list(report.rows)


def test_filters_are_named(root, publish):
    publish(*USAGE, products=("parse", "extract"))
    assert open_reader(str(root)).filters == {"products": ["extract", "parse"]}


def test_what_is_no_table_of_usage(root):
    write_deltalake(root, pa.table({"a": [1]}))
    with pytest.raises(UsageReadError, match="was made by something else"):
        open_reader(str(root))


def test_a_newer_layout(root, publish):
    publish(*USAGE)
    DeltaTable(root).alter.set_table_properties({"reducto.layout_version": "2"}, raise_if_not_exists=False)
    with pytest.raises(UsageReadError, match=r"has layout '2' and filters '\{\}', which this version"):
        open_reader(str(root))


def test_the_page_shows_a_table(root, publish):
    from reducto_provider.plugins.usage_page.settings import PageDataset
    from reducto_provider.plugins.usage_page.source import PageSource

    today = date(2026, 6, 20)
    publish(*USAGE)
    publish(*USAGE, org_id="org_b", group_by="feature")
    source = PageSource(PageDataset(name="Table", path=str(root)))
    overview = source.overview(today, seconds=10)
    _, usage, choices = source.organization("org_abc123", None, None, today)

    assert [each.org_id for each in overview.summaries] == ["org_abc123", "org_b"]
    assert {each.error for each in overview.summaries} == {""}
    assert sum(day.amount or 0 for day in usage.days) == Decimal("310.100000001")
    assert choices.dimensions == ("product",)
    assert b'"credits"' in source.manifest("org_b", "feature", today - timedelta(days=1))

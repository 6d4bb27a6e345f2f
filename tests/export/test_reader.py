"""A dataset read back: the same rows, and which days are there."""

from __future__ import annotations

import json
import threading
import time
from datetime import date
from decimal import Decimal

import pytest
import time_machine

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.focus import FOCUS_FORMATS, BillingTerms
from reducto_provider.export.formats import COMPRESSIONS, FORMATS, check_format
from reducto_provider.export.reader import RowCache, UsageReader, UsageReadError, read_usage
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.report import UsageRow

ENCODINGS = [
    *((name, None) for name in FORMATS),
    *((name, how) for name, each in FORMATS.items() if not each.compression for how in COMPRESSIONS),
]
JUNE = DayRange(date(2026, 6, 1), date(2026, 6, 30))
USAGE = [
    ("2026-06-17", "parse", "230.10000000000002", 75),
    ("2026-06-17", "extract", "80", 20),
    ("2026-06-19", "", "0.000000001", 0),
]
HOSTILE = (
    "../../etc",
    "a/b",
    "a b&c",
    "%2e%2e",
    "org\u00e9\N{SNOWMAN}",
    "=1+1",
    "<script>alert(1)</script>",
    ".",
    "..",
)


@pytest.fixture
def publish(make_export):
    """Publish rows at a place."""

    def publish(place, *usage, format="jsonl", compression=None, **fields):
        terms = BillingTerms(price_per_credit="0.015") if format in FOCUS_FORMATS else None
        export = make_export(*usage, **fields)
        dataset = UsageDataset(place.storage, check_format(format, compression, terms), export.query.filters())
        dataset.publish(export.report, export.query, run="dag/run/task")
        return export.report

    return publish


def test_a_dataset_of_every_format_is_read(place, publish):
    for name, compression in ENCODINGS:
        at = type(place)(f"{place.url}/{name}-{compression}")
        report = publish(at, *USAGE, format=name, compression=compression)
        rows = read_usage(at.url, org_id="org_abc123", start=date(2026, 6, 17), end=date(2026, 6, 19))
        assert rows == list(report.rows), name
        assert rows[0].credits == Decimal("80")


class TestDays:
    def test_empty_days_are_told_from_missing_ones(self, place, publish):
        publish(place, *USAGE)
        found = UsageReader(place.storage).exported_days("org_abc123", "product", JUNE)

        assert [(day, each.row_count, each.credits, each.request_count) for day, each in found.days.items()] == [
            (date(2026, 6, 17), 2, Decimal("310.1"), 95),
            (date(2026, 6, 18), 0, Decimal(0), 0),
            (date(2026, 6, 19), 1, Decimal("0.000000001"), 0),
        ]
        assert found.missing(JUNE) == [
            DayRange(date(2026, 6, 1), date(2026, 6, 16)),
            DayRange(date(2026, 6, 20), date(2026, 6, 30)),
        ]
        assert found.days[date(2026, 6, 17)].run == "dag/run/task"

    def test_a_day_is_final_once_it_is_exported_after_its_end(self, folder, publish):
        with time_machine.travel("2026-06-19T23:00:00Z", tick=False):
            publish(folder, *USAGE)
        reader = UsageReader(folder.storage)
        days = reader.exported_days("org_abc123", "product", JUNE).days
        assert [each.is_final for each in days.values()] == [True, True, False]

        with time_machine.travel("2026-06-20T00:00:00Z", tick=False):
            publish(folder, *USAGE)
        assert reader.exported_days("org_abc123", "product", JUNE).days[date(2026, 6, 19)].is_final

    def test_only_those_of_the_range(self, folder, publish):
        publish(folder, *USAGE)
        days = DayRange(date(2026, 6, 18), date(2026, 6, 18))
        found = UsageReader(folder.storage).exported_days("org_abc123", "product", days)
        assert list(found.days) == [days.first]
        assert found.span == DayRange(date(2026, 6, 17), date(2026, 6, 19))
        assert UsageReader(folder.storage).exported_days("org_other", "product", days).span is None

    @pytest.mark.parametrize(
        "content",
        [b"", b"{}", b"[" * 9999, b"\xff", None],
        ids=["empty", "no fields", "deep", "not text", "of another day"],
    )
    def test_a_manifest_that_is_no_manifest_is_unreadable(self, folder, publish, content):
        publish(folder, *USAGE)
        name = "metadata/org_id=org_abc123/group_by=product/dt=2026-06-18.json"
        folder.put(name, content or folder.files()[name.replace("18", "17")])
        found = UsageReader(folder.storage).exported_days("org_abc123", "product", JUNE)

        assert found.unreadable == (date(2026, 6, 18),)
        assert date(2026, 6, 18) not in found.days
        assert all(date(2026, 6, 18) not in missing.days() for missing in found.missing(JUNE))
        with pytest.raises(UsageReadError, match="no manifest that can be read of 2026-06-18, of org_abc123"):
            read_usage(folder.url, org_id="org_abc123", start=date(2026, 6, 17), end=date(2026, 6, 19))


class TestOrganizations:
    def test_ids_and_dimensions(self, place, publish):
        publish(place, *USAGE, org_id="org_b", group_by="feature")
        publish(place, *USAGE, org_id="org_b")
        publish(place, *USAGE, org_id="org_a")
        assert UsageReader(place.storage).organizations() == {"org_a": ("product",), "org_b": ("product", "feature")}

    @pytest.mark.parametrize("org_id", HOSTILE)
    def test_any_id_comes_back(self, folder, publish, org_id):
        report = publish(folder, *USAGE, org_id=org_id)
        assert UsageReader(folder.storage).organizations() == {org_id: ("product",)}
        rows = read_usage(folder.url, org_id=org_id, start=date(2026, 6, 17), end=date(2026, 6, 19))
        assert rows == list(report.rows)

    @pytest.mark.parametrize(
        "name", ["org_id=a b", "org_id=%2E", "org_id=", "org_id=%ff", "other", "org_id=a%2fb", "org_id=%zz"]
    )
    def test_a_folder_that_no_export_makes_is_ignored(self, folder, publish, name):
        publish(folder, *USAGE)
        folder.put(f"metadata/{name}/group_by=product/dt=2026-06-17.json", b"{}")
        folder.put("metadata/org_id=org_abc123/group_by=other/dt=2026-06-17.json", b"{}")
        assert UsageReader(folder.storage).organizations() == {"org_abc123": ("product",)}


class TestDamage:
    @pytest.mark.parametrize(("damage", "said"), [(b"{}", "is not what its manifest describes"), (None, "is missing")])
    def test_a_file_that_is_not_the_manifest_s(self, folder, publish, monkeypatch, damage, said):
        monkeypatch.setattr("reducto_provider.export.reader.time.sleep", lambda _: None)
        publish(folder, *USAGE)
        name = "data/org_id=org_abc123/group_by=product/dt=2026-06-17/usage.jsonl"
        if damage is None:
            folder.storage.remove(name)
        else:
            folder.put(name, damage)
        with pytest.raises(UsageReadError, match=f"usage.jsonl {said}: export the day again"):
            read_usage(folder.url, org_id="org_abc123", start=date(2026, 6, 17), end=date(2026, 6, 19))

    def test_rows_of_another_day_are_an_error(self, folder, publish):
        publish(folder, *USAGE)
        partition = "org_id=org_abc123/group_by=product/dt=2026-06-17"
        manifest = json.loads(folder.files()[f"metadata/{partition}.json"])
        other = json.loads(folder.files()[f"metadata/{partition[:-2]}19.json"])
        folder.put(f"data/{partition}/usage.jsonl", folder.data()[f"data/{partition[:-2]}19/usage.jsonl"])
        folder.put(f"metadata/{partition}.json", json.dumps({**manifest, "sha256": other["sha256"]}).encode())
        with pytest.raises(UsageReadError, match="does not have the 2 rows of 2026-06-17 alone"):
            read_usage(folder.url, org_id="org_abc123", start=date(2026, 6, 17), end=date(2026, 6, 17))

    def test_a_file_that_a_manifest_names_is_not_opened(self, folder, publish):
        publish(folder, *USAGE)
        name = "metadata/org_id=org_abc123/group_by=product/dt=2026-06-17.json"
        manifest = json.loads(folder.files()[name])
        folder.put(name, json.dumps({**manifest, "file": "/etc/passwd"}).encode())
        assert len(read_usage(folder.url, org_id="org_abc123", start=date(2026, 6, 17), end=date(2026, 6, 17))) == 2

    @pytest.mark.parametrize(
        ("identity", "said"),
        [
            (b"", "can't be decoded"),
            (b"[]", "can't be decoded"),
            (b'{"layout_version":2,"format":"csv","compression":null,"filters":{}}', "has layout 2 and format 'csv'"),
            (b'{"layout_version":1,"format":"x","compression":null,"filters":{}}', "has layout 1 and format 'x'"),
            (b'{"layout_version":1,"format":"csv","compression":"lzma","filters":{}}', "has compression 'lzma'"),
            (b'{"layout_version":1,"format":"parquet","compression":"gzip","filters":{}}', "has compression 'gzip'"),
        ],
    )
    def test_a_dataset_that_can_t_be_read(self, folder, identity, said):
        folder.put("metadata/dataset.json", identity)
        with pytest.raises(UsageReadError, match=said):
            UsageReader(folder.storage)

    def test_no_dataset(self, folder):
        with pytest.raises(UsageReadError, match=r"there is no metadata/dataset.json at .*has an export"):
            UsageReader(folder.storage)


def test_days_that_were_never_exported_are_an_error(folder, publish):
    publish(folder, *USAGE)
    with pytest.raises(UsageReadError, match="of 2026-06-15 to 2026-06-16, 2026-06-20, of org_abc123 by product"):
        read_usage(folder.url, org_id="org_abc123", start=date(2026, 6, 15), end=date(2026, 6, 20))


class TestCache:
    def test_a_file_is_read_once_until_it_changes(self, folder, publish):
        publish(folder, *USAGE)
        reader = UsageReader(folder.storage, RowCache(100))

        def rows():
            return reader.rows(
                "org_abc123", "product", reader.exported_days("org_abc123", "product", JUNE).days.values()
            )

        first = rows()
        kept = dict(folder.data())
        for name in kept:
            folder.put(name, b"not read")
        assert rows() == first
        report = publish(folder, ("2026-06-17", "parse", "1", 1), ("2026-06-19", "parse", "2", 2))
        assert rows() == list(report.rows)

    def test_it_is_bounded(self):
        cache, rows = RowCache(5), [UsageRow(date(2026, 6, 17), "a", Decimal(1), 1)] * 2
        for name in "ab":
            cache.add(name, "1", rows)
        assert cache.find("a", "1") == rows
        cache.add("c", "1", rows)
        assert [name for name in "abc" if cache.find(name, "1")] == ["a", "c"]
        cache.add("d", "1", rows * 3)
        assert [name for name in "abcd" if cache.find(name, "1")] == []


def test_filters_are_named(folder, publish):
    publish(folder, *USAGE, products=("parse", "extract"))
    assert UsageReader(folder.storage).filters == {"products": ["extract", "parse"]}


def test_an_export_at_the_same_time_is_read_before_or_after_it(folder, publish):
    versions = [publish(folder, ("2026-06-17", "parse", str(index), index)) for index in range(2)]
    done = threading.Event()

    def keep_publishing():
        for index in range(60):
            publish(folder, ("2026-06-17", "parse", str(index % 2), index % 2))
            time.sleep(0.02)
        done.set()

    thread = threading.Thread(target=keep_publishing)
    thread.start()
    try:
        while not done.is_set():
            rows = read_usage(folder.url, org_id="org_abc123", start=date(2026, 6, 17), end=date(2026, 6, 17))
            assert rows in [list(report.rows) for report in versions]
    finally:
        thread.join()

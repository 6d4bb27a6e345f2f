"""What an export leaves behind: each day exactly the rows of its last export, and nothing else."""

from __future__ import annotations

import hashlib
import json
import random
import re
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from urllib.parse import unquote
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from reducto_provider import __version__
from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.focus import FOCUS_FORMATS
from reducto_provider.export.formats import FORMATS, TABLE_FORMAT
from reducto_provider.export.manifest import metadata_folder
from reducto_provider.export.reported import acknowledge
from reducto_provider.export.sink import DatasetMismatchError, PublishError
from reducto_provider.export.storage import LocalStorage, ObjectStorage
from tests.airflow_sdk import ObjectStoragePath
from tests.export.conftest import Place
from tests.threads import call_together

PLAIN_FORMATS = [name for name in FORMATS if name not in (*FOCUS_FORMATS, TABLE_FORMAT)]

ROOT = "org_id=org_abc123/group_by=product"
THREE_DAYS = [
    ("2026-06-16", "parse", "150.0", 75),
    ("2026-06-16", "extract", "80.5", 20),
    ("2026-06-17", "parse", "230.10000000000002", 75),
    ("2026-06-18", None, "7", 1),
]


@pytest.fixture
def publish():
    """Publish an export at a place."""

    def publish(place, export, format="jsonl"):
        dataset = UsageDataset(place.storage, FORMATS[format], export.query.filters())
        return dataset.publish(export.report, export.query)

    return publish


@pytest.fixture
def succeed(publish):
    """Publish an export by a successful task, which acknowledges the changes it reported."""

    def succeed(place, export, format="jsonl"):
        published = publish(place, export, format)
        acknowledge_changes(place.storage, export.report, published)
        return published

    return succeed


def acknowledge_changes(storage, report, published):
    folder = metadata_folder(report.org_id, report.group_by)
    acknowledge(storage, {folder: {file.day: file.change for file in published if file.changed}})


def manifest(place, day, root=ROOT):
    return json.loads(place.files()[f"metadata/{root}/dt={day}.json"])


class TestLayout:
    @pytest.mark.parametrize("format", PLAIN_FORMATS)
    def test_a_file_and_a_manifest_for_each_day(self, place, make_export, publish, format):
        published = publish(place, make_export(*THREE_DAYS), format)

        days = ["2026-06-16", "2026-06-17", "2026-06-18"]
        assert set(place.files()) == {
            "metadata/dataset.json",
            f"metadata/{ROOT}/index.json",
            *[f"data/{ROOT}/dt={day}/usage.{format}" for day in days],
            *[f"metadata/{ROOT}/dt={day}.json" for day in days],
        }
        assert [str(file.day) for file in published] == days
        assert [file.row_count for file in published] == [2, 1, 1]
        assert [file.size for file in published] == [len(content) for _, content in sorted(place.data().items())]
        assert all(file.changed for file in published)

    def test_the_bytes_of_a_day(self, place, make_export, publish):
        publish(place, make_export(*THREE_DAYS))

        assert [content.decode() for _, content in sorted(place.data().items())] == [
            (
                '{"date":"2026-06-16","group":"extract","credits":80.5,"request_count":20}\n'
                '{"date":"2026-06-16","group":"parse","credits":150.0,"request_count":75}\n'
            ),
            '{"date":"2026-06-17","group":"parse","credits":230.1,"request_count":75}\n',
            '{"date":"2026-06-18","group":null,"credits":7.0,"request_count":1}\n',
        ]

    @pytest.mark.parametrize("format", PLAIN_FORMATS)
    def test_the_uri_of_a_day_leads_to_its_file(self, place, make_export, publish, format):
        published = publish(place, make_export(*THREE_DAYS, org_id="a/b c%d"), format)

        assert [ObjectStoragePath(unquote(file.uri)).read_bytes() for file in published] == [
            content for _, content in sorted(place.data().items())
        ]
        assert all("/org_id=a%252Fb%2520c%2525d/group_by=product/dt=" in file.uri for file in published)

    def test_a_uri_opens_in_what_takes_it_for_one(self, tmp_path, make_export, publish):
        place = Place(f"file://{tmp_path}/a b #?%20\u00fc/usage")
        [file] = publish(place, make_export(THREE_DAYS[2], org_id="org \u00fc"), "parquet")

        [row] = pq.read_table(file.uri, partitioning=None).to_pylist()
        assert row["credits"] == Decimal("230.1")
        with urlopen(file.uri) as opened:
            assert (
                opened.read() == place.data()["data/org_id=org%20%C3%BC/group_by=product/dt=2026-06-17/usage.parquet"]
            )

    def test_what_the_dataset_says_of_itself(self, place, make_export, publish):
        publish(place, make_export(*THREE_DAYS, products=["parse", "extract"]), "csv")

        assert json.loads(place.files()["metadata/dataset.json"]) == {
            "layout_version": 1,
            "format": "csv",
            "compression": None,
            "filters": {"products": ["extract", "parse"]},
        }

    def test_what_a_day_says_of_itself(self, place, make_export, publish):
        publish(place, make_export(*THREE_DAYS, api_keys=["k2", "k1"]))

        content = place.data()[f"data/{ROOT}/dt=2026-06-16/usage.jsonl"]
        found = manifest(place, "2026-06-16")
        exported_at = datetime.fromisoformat(found.pop("exported_at"))
        assert exported_at.utcoffset() == timedelta(0)
        assert re.fullmatch("[0-9a-f]{64}", found.pop("rows_sha256"))
        assert found.pop("md5") == hashlib.md5(content).hexdigest()
        assert re.fullmatch("[0-9a-f]{16}", found.pop("change"))
        assert found == {
            "date": "2026-06-16",
            "file": f"data/{ROOT}/dt=2026-06-16/usage.jsonl",
            "row_count": 2,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "credits": "230.5",
            "request_count": 95,
            "final": True,
            "query": [
                ["startDate", "2026-06-16"],
                ["endDate", "2026-06-18"],
                ["groupBy", "product"],
                ["orgId", "org_abc123"],
                ["apiKey", "k1"],
                ["apiKey", "k2"],
            ],
            "run": None,
            "package_version": __version__,
        }

    def test_a_day_without_credits(self, place, make_export, publish):
        publish(place, make_export(("2026-06-18", "parse", "null", 5), ("2026-06-18", "extract", "1", 5)))

        assert manifest(place, "2026-06-18")["credits"] is None
        assert manifest(place, "2026-06-18")["request_count"] == 10

    def test_a_day_without_usage_has_a_manifest_and_no_file(self, place, make_export, publish):
        published = publish(place, make_export(THREE_DAYS[0], start="2026-06-15", end="2026-06-16"))

        assert list(place.data()) == [f"data/{ROOT}/dt=2026-06-16/usage.jsonl"]
        found = manifest(place, "2026-06-15")
        names = ("file", "row_count", "bytes", "sha256", "credits", "request_count")
        assert {name: found[name] for name in names} == dict(zip(names, (None, 0, 0, None, "0", 0), strict=True))
        assert published[0].as_json() == {
            "uri": None,
            "date": "2026-06-15",
            "row_count": 0,
            "bytes": 0,
            "changed": True,
        }

    def test_organizations_and_dimensions_lie_apart(self, place, make_export, publish):
        row = ("2026-06-18", "x", "1", 1)
        for org_id in ("one", "two"):
            for dimension in ("product", "feature", "api_key", "file_type"):
                publish(place, make_export(row, org_id=org_id, group_by=dimension))

        assert set(place.data()) == {
            f"data/org_id={org_id}/group_by={dimension}/dt=2026-06-18/usage.jsonl"
            for org_id in ("one", "two")
            for dimension in ("product", "feature", "api_key", "file_type")
        }

    def test_several_months(self, place, make_export, publish):
        first = date(2023, 12, 30)
        days = [first + timedelta(days=offset) for offset in range(64)]
        export = make_export(*[(str(day), "parse", f"{day.day}.5", 1) for day in days if day.day % 7])

        published = publish(place, export)

        assert [file.day for file in published] == days
        assert set(place.data()) == {f"data/{ROOT}/dt={day}/usage.jsonl" for day in days if day.day % 7}
        assert f"data/{ROOT}/dt=2024-02-29/usage.jsonl" in place.data()
        credits = [json.loads(line)["credits"] for text in place.data().values() for line in text.splitlines()]
        assert sum(credits) == float(export.report.credits)


class TestAgain:
    @pytest.mark.parametrize("format", PLAIN_FORMATS)
    def test_the_same_answer_gives_the_same_bytes(self, place, make_export, succeed, format):
        succeed(place, make_export(*THREE_DAYS), format)
        before = place.data()

        for seed in range(3):
            shuffled = random.Random(seed).sample(THREE_DAYS, len(THREE_DAYS))
            published = succeed(place, make_export(*shuffled), format)
            assert place.data() == before
            assert [file.changed for file in published] == [False, False, False]

    def test_a_restated_day_is_replaced(self, place, make_export, succeed):
        succeed(place, make_export(*THREE_DAYS))
        before = place.data()
        restated = [*THREE_DAYS[:2], ("2026-06-17", "split", "230.2", 76), THREE_DAYS[3]]

        published = succeed(place, make_export(*restated))

        assert [file.changed for file in published] == [False, True, False]
        name = f"data/{ROOT}/dt=2026-06-17/usage.jsonl"
        assert place.data() == before | {
            name: b'{"date":"2026-06-17","group":"split","credits":230.2,"request_count":76}\n'
        }
        assert manifest(place, "2026-06-17")["sha256"] == hashlib.sha256(place.data()[name]).hexdigest()

    def test_an_emptied_day_loses_its_file(self, place, make_export, succeed):
        succeed(place, make_export(*THREE_DAYS))
        rest = [*THREE_DAYS[:2], THREE_DAYS[3]]

        emptied = succeed(place, make_export(*rest))
        again = succeed(place, make_export(*rest))

        assert [file.changed for file in emptied] == [False, True, False]
        assert [file.changed for file in again] == [False, False, False]
        assert [file.uri is None for file in emptied] == [False, True, False]
        assert set(place.data()) == {f"data/{ROOT}/dt={day}/usage.jsonl" for day in ("2026-06-16", "2026-06-18")}
        assert manifest(place, "2026-06-17")["file"] is None

    def test_a_day_comes_back(self, place, make_export, succeed):
        succeed(place, make_export(*THREE_DAYS))
        before = place.data()
        succeed(place, make_export(start="2026-06-16", end="2026-06-18"))
        assert place.data() == {}

        published = succeed(place, make_export(*THREE_DAYS))

        assert all(file.changed for file in published)
        assert place.data() == before

    def test_days_outside_the_range_stay(self, place, make_export, succeed):
        succeed(place, make_export(*THREE_DAYS))
        before = place.data()

        succeed(place, make_export(start="2026-06-17", end="2026-06-17"))

        assert set(before) - set(place.data()) == {f"data/{ROOT}/dt=2026-06-17/usage.jsonl"}
        assert manifest(place, "2026-06-16")["row_count"] == 2

    def test_a_day_whose_manifest_was_lost_counts_as_changed(self, place, make_export, succeed):
        succeed(place, make_export(*THREE_DAYS))
        place.storage.remove(f"metadata/{ROOT}/dt=2026-06-17.json")

        assert [file.changed for file in succeed(place, make_export(*THREE_DAYS))] == [False, True, False]

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"sha256": "\xff"}', b'{"sha256": 5}', b"{}", b"[" * 100_000],
        ids=lambda content: repr(content[:20]),
    )
    def test_a_broken_manifest_is_written_anew(self, place, make_export, succeed, content):
        succeed(place, make_export(*THREE_DAYS))
        place.put(f"metadata/{ROOT}/dt=2026-06-17.json", content)

        published = succeed(place, make_export(*THREE_DAYS))

        assert [file.changed for file in published] == [False, True, False]
        assert manifest(place, "2026-06-17")["row_count"] == 1

    def test_an_emptied_day_with_a_broken_manifest_counts_as_changed(self, place, make_export, succeed):
        succeed(place, make_export(*THREE_DAYS))
        place.put(f"metadata/{ROOT}/dt=2026-06-17.json", b"{")

        published = succeed(place, make_export(start="2026-06-17", end="2026-06-17"))

        assert [file.changed for file in published] == [True]

    def test_a_file_that_was_lost_or_spoilt_is_written_anew(self, place, make_export, succeed):
        succeed(place, make_export(*THREE_DAYS))
        before = place.data()
        place.storage.remove(f"data/{ROOT}/dt=2026-06-16/usage.jsonl")
        place.put(f"data/{ROOT}/dt=2026-06-17/usage.jsonl", b"spoilt")

        succeed(place, make_export(*THREE_DAYS))

        assert place.data() == before


class TestMismatch:
    @pytest.mark.parametrize(
        ("fields", "format", "said"),
        [
            ({}, "csv", ["format is 'jsonl', this export's 'csv'"]),
            ({"products": ["parse"]}, "jsonl", ["filters is {}", "'products': ['parse']"]),
            ({"api_keys": ["k"]}, "json", ["format is 'jsonl'", "filters is {}"]),
        ],
        ids=["format", "filters", "both"],
    )
    def test_another_kind_of_export_is_refused(self, place, make_export, publish, fields, format, said):
        publish(place, make_export(*THREE_DAYS))
        before = place.files()
        export = make_export(("2026-06-18", "parse", "9", 9), **fields)

        with pytest.raises(DatasetMismatchError) as error:
            publish(place, export, format)

        text = str(error.value)
        assert [each for each in [place.storage.uri(), "another output_path", *said] if each not in text] == []
        assert place.files() == before

    def test_no_filters_is_another_kind_than_some(self, place, make_export, publish):
        publish(place, make_export(*THREE_DAYS, file_types=["pdf"]))
        before = place.files()

        with pytest.raises(DatasetMismatchError, match="filters"):
            publish(place, make_export(*THREE_DAYS))

        assert place.files() == before

    @pytest.mark.parametrize("day", ["2026-06-18", "2027-01-01"])
    @pytest.mark.parametrize("org_id", ["org_abc123", "org_other"])
    def test_also_for_days_and_organizations_that_are_not_there_yet(self, place, make_export, publish, day, org_id):
        publish(place, make_export(*THREE_DAYS))

        with pytest.raises(DatasetMismatchError):
            publish(place, make_export((day, "parse", "1", 1), org_id=org_id), "csv")

    def test_the_same_filters_in_another_order_belong_together(self, place, make_export, succeed):
        succeed(place, make_export(*THREE_DAYS, products=["b", "a"], features="x"))

        published = succeed(place, make_export(*THREE_DAYS, features=["x"], products=["a", "b", "a"]))

        assert not any(file.changed for file in published)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff\xfe{}",
            b'{"format": "\xff"}',
            b"{}",
            b'{"format": "jsonl", "filters": {}}',
            b'{"layout_version": 2, "format": "jsonl", "compression": null, "filters": {}}',
            b'{"layout_version": 1, "format": "jsonl", "compression": "gzip", "filters": {}}',
            b'{"layout_version": 1, "format": "jsonl", "compression": null}',
            b"[" * 100_000,
            b'{"layout_version": ' + b"[" * 100_000,
        ],
        ids=lambda content: repr(content[:40]),
    )
    def test_a_dataset_that_can_not_be_told_is_refused(self, place, make_export, publish, content):
        publish(place, make_export(*THREE_DAYS))
        place.put("metadata/dataset.json", content)
        before = place.files()

        with pytest.raises(DatasetMismatchError):
            publish(place, make_export(("2026-06-18", "parse", "9", 9)))

        assert place.files() == before

    def test_a_refusal_is_short_whatever_somebody_wrote_there(self, place, make_export, publish):
        publish(place, make_export(*THREE_DAYS))
        harm = {"format": "x\n" * 10_000, **{f"\x1b[2K{number}" * 1_000: number for number in range(100)}}
        place.put("metadata/dataset.json", json.dumps(harm).encode())

        with pytest.raises(DatasetMismatchError, match="holds something else") as refused:
            publish(place, make_export(*THREE_DAYS))

        assert len(str(refused.value)) < 5_000
        assert str(refused.value).isprintable()

    def test_check_alone_writes_nothing(self, place, make_export, publish):
        dataset = UsageDataset(place.storage, FORMATS["jsonl"], {})

        dataset.check()
        assert place.files() == {}

        publish(place, make_export(*THREE_DAYS))
        before = place.files()
        dataset.check()
        assert place.files() == before


HOSTILE_ORGS = [
    "../../etc",
    "..",
    ".",
    "/etc/passwd",
    "a/../../../../b",
    "a\\..\\b",
    "a%2F..%2Fb",
    "%2e%2e",
    "a b",
    "a=b",
    "dt=2026-06-18",
    "a*b?c[d]",
    "~root",
    "$HOME",
    "{{ ds }}",
    "nul\0byte",
    "new\nline",
    "a:b@c#d",
    "caf\u00e9",
    "\N{GRINNING FACE}",
    "\u202egnp.exe",
    "__HIVE_DEFAULT_PARTITION__",
    ".hidden",
    "x" * 240,
]


class TestForeignText:
    @pytest.mark.parametrize("org_id", HOSTILE_ORGS, ids=lambda org_id: repr(org_id[:30]))
    def test_an_organization_stays_inside(self, place, make_export, publish, org_id):
        publish(place, make_export(*THREE_DAYS, org_id=org_id))

        names = [name.split("/") for name in place.files() if name != "metadata/dataset.json"]
        assert len(names) == 7
        assert {(len(parts), parts[0]) for parts in names} == {(5, "data"), (4, "metadata")}
        assert {unquote(parts[1].removeprefix("org_id=")) for parts in names} == {org_id}
        assert {parts[2] for parts in names} == {"group_by=product"}

    def test_nothing_is_written_beside_it(self, tmp_path, make_export, publish, folder):
        for org_id in HOSTILE_ORGS:
            publish(folder, make_export(*THREE_DAYS, org_id=org_id))

        assert [path.name for path in tmp_path.iterdir()] == ["usage"]
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1 + 7 * len(HOSTILE_ORGS)

    def test_no_two_organizations_share_a_file(self, place, make_export, publish):
        orgs = ["a/b", "a%2Fb", "a%252Fb", "a b", "a+b", "a%20b", "A/B", "a/b ", "a\u0301", "\u00e1"]
        for number, org_id in enumerate(orgs):
            publish(place, make_export(("2026-06-18", "parse", str(number), number), org_id=org_id))

        assert len(place.data()) == len(orgs)

    @pytest.mark.parametrize("org_id", ["x" * 300, "\N{GRINNING FACE}" * 30, "/" * 100])
    def test_an_organization_too_long_for_a_folder_is_refused(self, place, make_export, publish, org_id):
        with pytest.raises(ValueError, match="too long") as error:
            publish(place, make_export(*THREE_DAYS, org_id=org_id))

        assert len(str(error.value)) < 300
        assert place.files() == {}

    @pytest.mark.parametrize("group", ["../../etc", "a/b", "x" * 10_000, "nul\0", "\N{GRINNING FACE}", "", None])
    @pytest.mark.parametrize("format", PLAIN_FORMATS)
    def test_a_group_is_only_content(self, place, make_export, publish, format, group):
        publish(place, make_export(("2026-06-18", group, "1", 1)), format)

        assert set(place.files()) == {
            "metadata/dataset.json",
            f"metadata/{ROOT}/index.json",
            f"metadata/{ROOT}/dt=2026-06-18.json",
            f"data/{ROOT}/dt=2026-06-18/usage.{format}",
        }


class TestFailure:
    def test_a_full_disk(self, folder, make_export, publish, small_files):
        publish(folder, make_export(*THREE_DAYS))
        before = folder.data()
        big = [("2026-06-17", f"group-{number}", "1", 1) for number in range(5_000)]
        changed = [("2026-06-16", "parse", "1", 1), *big, ("2026-06-18", "parse", "1", 1)]

        with small_files(100_000), pytest.raises(PublishError) as error:
            publish(folder, make_export(*changed))

        # The day before the failure is new, that of the failure and the one after it are as they were.
        assert "could not publish 2026-06-17" in str(error.value)
        assert "1 of 3 days are published" in str(error.value)
        assert "org_abc123" in str(error.value)
        first, *rest = sorted(before)
        assert {name: folder.data()[name] for name in rest} == {name: before[name] for name in rest}
        assert folder.data()[first] == b'{"date":"2026-06-16","group":"parse","credits":1.0,"request_count":1}\n'
        assert set(folder.data()) == set(before)

        published = publish(folder, make_export(*changed))
        assert [file.changed for file in published] == [True, True, True], "the first was not reported"
        assert len(folder.data()[rest[0]].splitlines()) == 5_000

    @pytest.mark.parametrize("blocked", ["", "data", "metadata", f"data/{ROOT}", f"metadata/{ROOT}"])
    def test_a_file_where_a_folder_should_be(self, tmp_path, folder, make_export, publish, blocked):
        file = tmp_path / "usage" / blocked
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"somebody else's")

        with pytest.raises(PublishError) as error:
            publish(folder, make_export(*THREE_DAYS))

        assert folder.url in str(error.value)
        assert file.read_bytes() == b"somebody else's"
        assert list(tmp_path.rglob("*.writing")) == []

    @pytest.mark.parametrize(
        "blocked", [f"data/{ROOT}/dt=2026-06-17/usage.jsonl", f"metadata/{ROOT}/dt=2026-06-17.json"]
    )
    def test_a_folder_where_a_file_should_be(self, tmp_path, folder, make_export, publish, blocked):
        (tmp_path / "usage" / blocked).mkdir(parents=True)

        with pytest.raises(PublishError) as error:
            publish(folder, make_export(*THREE_DAYS))

        assert "1 of 3 days are published" in str(error.value)
        assert f"data/{ROOT}/dt=2026-06-18/usage.jsonl" not in folder.data()
        assert list(tmp_path.rglob("*.writing")) == []

    @pytest.mark.parametrize(
        "error", [OSError("no"), PermissionError("no"), RuntimeError("no"), ValueError("no")], ids=repr
    )
    def test_an_object_store_that_refuses(self, place, make_export, publish, mocker, error):
        if place.url.startswith("file"):
            mocker.patch("os.fsync", side_effect=[None, None, None, error])
        else:
            pipe_file = MemoryFileSystem.pipe_file
            written = iter([None, None, None, error])

            def refuse(self, path, value, **kwargs):
                if refused := next(written):
                    raise refused
                pipe_file(self, path, value, **kwargs)

            mocker.patch.object(MemoryFileSystem, "pipe_file", refuse)
            mocker.patch.object(ObjectStorage, "max_concurrent_writes", 1)

        with pytest.raises(PublishError) as caught:
            publish(place, make_export(*THREE_DAYS))

        assert f"{type(error).__name__}: no" in str(caught.value)
        assert caught.value.__cause__ is error
        assert "1 of 3 days are published" in str(caught.value)
        assert list(place.data()) == [f"data/{ROOT}/dt=2026-06-16/usage.jsonl"]

    def test_a_store_that_can_not_be_read(self, place, make_export, publish, mocker):
        for storage in (LocalStorage, ObjectStorage):
            mocker.patch.object(storage, "read", side_effect=PermissionError("no"))

        with pytest.raises(PublishError, match="could not read"):
            publish(place, make_export(*THREE_DAYS))

        assert place.files() == {}

    def test_a_killed_export_leaves_whole_days_and_can_be_run_again(self, folder, make_export, publish, forked):
        days = [str(date(2026, 1, 1) + timedelta(days=offset)) for offset in range(20)]
        exports = [
            make_export(*[(day, f"group-{number}", f"{amount}.5", 1) for day in days for number in range(500)])
            for amount in (1, 2)
        ]
        publish(folder, exports[0])
        old = folder.data()
        publish(folder, exports[1])
        new = folder.data()

        for attempt in range(6):
            writer = forked(publish, folder, exports[attempt % 2])
            writer.join(0.01 + 0.004 * attempt)
            writer.kill()
            writer.join()
            seen = {name: content for name, content in folder.data().items() if name in old}
            assert set(seen) == set(old)
            assert [name for name, content in seen.items() if content not in (old[name], new[name])] == []

        publish(folder, exports[0])

        assert {name: content for name, content in folder.data().items() if "/." not in name} == old
        for day in days:
            content = old[f"data/{ROOT}/dt={day}/usage.jsonl"]
            assert manifest(folder, day)["sha256"] == hashlib.sha256(content).hexdigest()

    def test_two_exports_at_the_same_time_leave_whole_days(self, folder, make_export, publish):
        exports = [
            make_export(
                *[(f"2026-06-{day}", f"group-{number}", str(amount), 1) for day in (16, 17) for number in range(900)]
            )
            for amount in (1, 2, 3)
        ]
        wholes = []
        for export in exports:
            publish(folder, export)
            wholes.append(folder.data())
        call_together(*(partial(publish, folder, export) for export in exports))

        assert all(content in [whole[name] for whole in wholes] for name, content in folder.data().items())
        assert set(folder.data()) == set(wholes[0])


class TestChanges:
    """Each task that covers a change reports it, until one of them succeeds."""

    DAY = date(2026, 6, 17)

    @pytest.fixture
    def export_day(self, place, make_export):
        """Export the day with these credits. Return whether it was reported as changed."""

        def export_day(credits, *, succeeds, format="jsonl", **fields):
            export = make_export((str(self.DAY), "parse", credits, 1), **fields)
            dataset = UsageDataset(place.storage, FORMATS[format], {})
            [file] = dataset.publish(export.report, export.query)
            if succeeds:
                acknowledge_changes(place.storage, export.report, [file])
            return file.changed

        return export_day

    @pytest.fixture
    def refuse(self, place, monkeypatch):
        """Make the store reject files whose name contains a text, after the first ones."""

        @contextmanager
        def refuse(text, after=0, error=OSError):
            storage, left = type(place.storage), iter(range(after))
            replace_file = storage.replace

            def replace_some(self, name, content):
                if text in name and next(left, None) is None:
                    raise error("no")
                replace_file(self, name, content)

            with monkeypatch.context() as patched:
                patched.setattr(storage, "replace", replace_some)
                patched.setattr(storage, "max_concurrent_writes", 1)
                yield

        return refuse

    def test_until_a_task_succeeds(self, export_day):
        assert [export_day("1", succeeds=succeeds) for succeeds in (False, False, True)] == [True, True, True]
        assert [export_day("1", succeeds=succeeds) for succeeds in (False, True, True)] == [False, False, False]
        assert [export_day("2", succeeds=succeeds) for succeeds in (False, True)] == [True, True]
        assert not export_day("2", succeeds=True)

    def test_what_a_failed_task_published_is_reported_by_those_that_cover_it(
        self, place, make_export, publish, succeed, refuse
    ):
        """The store refuses the last of two days that were restated, and no retry is left."""
        succeed(place, make_export(*THREE_DAYS[:3]))
        restated = [("2026-06-16", "parse", "15", 1), THREE_DAYS[2], THREE_DAYS[3]]
        with refuse("dt=2026-06-18/usage"), pytest.raises(PublishError):
            publish(place, make_export(*restated))

        later = [*restated, ("2026-06-19", "parse", "3", 1)]
        assert [file.changed for file in publish(place, make_export(*later))] == [True, False, True, True]
        assert [file.changed for file in succeed(place, make_export(*restated))] == [True, False, True]
        assert [file.changed for file in publish(place, make_export(*later))] == [False, False, False, True]

    def test_an_acknowledgement_that_was_lost_is_no_change_that_was_lost(self, place, export_day):
        """The second task reported 2 and was killed before it acknowledged that."""
        export_day("1", succeeds=True)
        export_day("2", succeeds=False)

        assert export_day("1", succeeds=False), "the change from 2 back to 1 is reported"
        assert export_day("1", succeeds=True)
        assert not export_day("1", succeeds=True)

    def test_an_acknowledgement_of_the_past_hides_nothing(self, place, export_day):
        """A slow task acknowledges after another task has reported more."""
        export_day("1", succeeds=True)
        name = f"metadata/{ROOT}/.reported-2026"
        before = place.files()[name]
        export_day("2", succeeds=True)
        place.put(name, before)

        assert export_day("1", succeeds=False)
        assert export_day("2", succeeds=True)
        assert not export_day("2", succeeds=True)

    @pytest.mark.parametrize("before", ["1", "0"], ids=["the answer was there", "the answer is written"])
    def test_an_older_answer_that_replaces_one_that_was_reported(self, place, export_day, monkeypatch, before):
        """Another task publishes and reports 2 while this one, which was answered 1 before, looks what is there."""
        export_day("1", succeeds=True)
        export_day(before, succeeds=True)
        storage = type(place.storage)
        read = storage.read

        def meanwhile(self, name=""):
            content = read(self, name)
            if name.endswith("dt=2026-06-17.json"):
                monkeypatch.setattr(storage, "read", read)
                assert export_day("2", succeeds=True)
            return content

        monkeypatch.setattr(storage, "read", meanwhile)
        assert export_day("1", succeeds=True)
        [content] = place.data().values()
        assert b'"credits":1.0' in content
        assert not export_day("1", succeeds=True)

    def test_a_day_whose_file_was_written_without_its_manifest(self, place, export_day):
        export_day("1", succeeds=True)
        place.put(f"data/{ROOT}/dt=2026-06-17/usage.jsonl", b'{"date":"2026-06-17"}\n')

        assert not export_day("1", succeeds=True), "what was there was never reported"
        place.put(f"data/{ROOT}/dt=2026-06-17/usage.jsonl", b'{"date":"2026-06-17"}\n')
        assert export_day("2", succeeds=True)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff",
            b'{"2026-06-17": 5}',
            b'{"17": "x"}',
            b'{"2026-06-17": "x"}',
            b"[" * 100_000,
        ],
        ids=lambda content: repr(content[:20]),
    )
    def test_acknowledgements_that_can_not_be_read_acknowledge_nothing(self, place, export_day, content):
        export_day("1", succeeds=True)
        place.put(f"metadata/{ROOT}/.reported-2026", content)

        assert export_day("1", succeeds=True)
        assert not export_day("1", succeeds=True)

    def test_organizations_and_dimensions_are_told_apart(self, export_day):
        export_day("1", succeeds=True)

        assert export_day("1", succeeds=True, org_id="other")
        assert export_day("1", succeeds=True, group_by="feature")
        assert not export_day("1", succeeds=True)

    def test_another_version_of_pyarrow_restates_nothing(self, place, export_day, mocker):
        """Parquet's footer names its writer."""
        export_day("1", succeeds=True, format="parquet")
        before = place.data()
        write_table = pq.write_table

        def write_otherwise(table, sink, **options):
            write_table(table.replace_schema_metadata({"writer": "another"}), sink, **options)

        mocker.patch("pyarrow.parquet.write_table", write_otherwise)

        assert not export_day("1", succeeds=True, format="parquet")
        assert place.data() == before, "the same rows are not written again"

    @pytest.mark.parametrize("writes", range(7))
    def test_a_task_that_is_killed_after_any_write(self, place, make_export, succeed, publish, refuse, writes):
        """Whatever it wrote or reported, the next task reports all changes."""
        succeed(place, make_export(*THREE_DAYS))
        restated = make_export(*[(day, group, "9", 9) for day, group, *_ in THREE_DAYS])
        with refuse("", after=writes, error=KeyboardInterrupt), suppress(KeyboardInterrupt):
            publish(place, restated)

        assert [file.changed for file in succeed(place, restated)] == [True] * 3
        assert [file.changed for file in succeed(place, restated)] == [False] * 3

"""Days that are exported again to S3: what is there already is proven, and not written again."""

from __future__ import annotations

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from hashlib import md5

import pytest

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.export.reader import UsageReader
from reducto_provider.export.storage import ObjectStorage, open_storage
from reducto_provider.export.verify import verify_dataset
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.query import UsageQuery
from tests.object_storage import answers
from tests.object_storage.s3server import refusal

ROOT = "org_id=org_acme/group_by=product"
FIRST, LAST = date(2026, 5, 18), date(2026, 5, 22)
LONG_AGO = date(2026, 4, 18)  # 35 days before
DAY = date(2026, 5, 20)
FILE = f"data/{ROOT}/dt={DAY}/usage.parquet"
MANIFEST = f"metadata/{ROOT}/dt={DAY}.json"
INDEX = f"metadata/{ROOT}/index.json"


UNDECODABLE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff",
    b'{"x": 1}',
    b'{"2026-05-20": 1}',
    b'{"2026-05-20": {}}',
    b"[" * 100_000,
    b'{"2026-05-20": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
]
"""Indexes that can't be decoded."""

WRONG = [
    {"digest": "0" * 64},
    {"digest": None, "sha256": None, "version": None, "rows": 0},
    {"credits": "NaN"},
    {"credits": "1" * 5000},
    {"credits": None},
    {"requests": -1},
    {"requests": 2**70},
    {"final": False},
    {"size": 1},
    {"version": "0" * 32},
    {"change": "0123456789abcdef"},
    {"change": "../../etc"},
    {"query_days": ["2026-05-20", "2026-05-20"]},
    {"run": "x" * 100_000},
    {"run": "\ud800"},
    {"exported_at": ""},
    {"package_version": "0"},
    {"query_days": ["", ""]},
    {"rows": True},
]
"""What an index may hold of a day, and its manifest does not."""


@pytest.fixture
def usage():
    return answers.usage()


@pytest.fixture
def export(s3, bucket, usage):
    """Export as a task does that succeeds: check, publish, acknowledge. Return the files; the calls are those of it."""

    def export(first=FIRST, last=LAST, *, succeeds=True, **options):
        storage = open_storage(f"s3://lake@{bucket}/usage")
        s3.calls.clear()
        dataset = UsageDataset(storage, check_format("parquet"), {})
        dataset.check()
        files = dataset.publish(*answers.answer(usage, "org_acme", first, last), **options)
        changes = [(file.day, file.change) for file in files if file.changed]
        if succeeds and changes:
            dataset.acknowledge({("org_acme", "product"): changes})
        return files

    return export


@pytest.fixture
def put(s3, bucket):
    """Write an object as somebody else."""

    def put(name, content):
        s3.bystander.put_object(Bucket=bucket, Key=f"usage/{name}", Body=content)

    return put


@pytest.fixture
def files(s3, bucket):
    """Return all objects, by name."""
    return lambda: {name.removeprefix("usage/"): content for name, content in s3.objects(bucket).items()}


def writes(s3):
    return [call.key.removeprefix("usage/") for call in s3.calls if call.method in ("PUT", "DELETE", "POST")]


def changed(files):
    return [file.day for file in files if file.changed]


class TestRequests:
    def test_of_35_days_that_have_not_changed(self, s3, export, files):
        assert len(changed(export(LONG_AGO))) == 35
        before = files()

        unchanged = export(LONG_AGO)

        assert changed(unchanged) == []
        assert not any(file.written for file in unchanged)
        assert [(call.method, call.key or call.prefix) for call in s3.calls] == [
            ("GET", "usage/metadata/dataset.json"),
            ("GET", f"usage/{INDEX}"),
            ("GET", f"usage/metadata/{ROOT}/dt=2026-0"),
            ("GET", f"usage/data/{ROOT}/dt=2026-0"),
            ("GET", f"usage/metadata/{ROOT}/.reported-2026"),
        ]
        assert files() == before

    def test_of_one_day_that_has_changed(self, s3, export, usage):
        export(LONG_AGO)
        export(LONG_AGO)
        unchanged = len(s3.calls)
        usage.restate("org_acme", DAY, factor=2)

        assert changed(export(LONG_AGO)) == [DAY]

        assert len(s3.calls) <= unchanged + 8
        assert writes(s3) == [FILE, MANIFEST, INDEX, f"metadata/{ROOT}/.reported-2026"]

    def test_of_a_first_export_two_writes_a_day(self, s3, export):
        export(LONG_AGO, succeeds=False)

        counted = Counter(call.method for call in s3.calls)
        assert counted["PUT"] == 2 * 35 + 2  # and description and index
        assert counted["GET"] <= 14

    def test_days_are_found_among_those_of_their_month_or_years(self, s3, export):
        export(date(2025, 12, 1), date(2026, 2, 3))
        answered = []

        def note(call, serve):
            answer = serve()
            if call.prefix:
                answered.append((call.prefix.rpartition("/")[2], answer.body.count(b"<Key>")))
            return answer

        with s3.answering(note):
            export(date(2026, 1, 31), date(2026, 1, 31))
        assert answered == [("dt=2026-01", 31)] * 2

        answered.clear()
        with s3.answering(note):
            export(date(2025, 12, 30), date(2026, 1, 2))
        assert answered == [("dt=202", 65)] * 2

    def test_of_35_days_across_new_year(self, s3, export, usage):
        days = date(2025, 12, 5), date(2026, 1, 8)
        assert len(export(*days)) == 35

        assert changed(export(*days)) == []
        assert writes(s3) == []
        unchanged = len(s3.calls)
        assert unchanged == 6

        usage.restate("org_acme", date(2026, 1, 1), factor=2)
        assert changed(export(*days)) == [date(2026, 1, 1)]
        assert len(s3.calls) <= unchanged + 8

    def test_of_ten_years_only_the_months_concerned_are_listed(self, s3, export, files, put):
        """By the number of days in the index: one listing of all would take more requests than one for each year."""
        export(date(2025, 12, 30), date(2026, 1, 2))
        line, days = next(iter(json.loads(files()[INDEX]).values())), {}
        for number in range(3650):
            days[str(date(2026, 1, 2) - timedelta(days=number))] = line
        put(INDEX, json.dumps(days | json.loads(files()[INDEX])).encode())

        def listed(*days):
            assert not any(file.written for file in export(*days))
            return [call.prefix.rpartition("/")[2] for call in s3.calls if call.prefix]

        assert listed(date(2026, 1, 2), date(2026, 1, 2)) == ["dt=2026-01"] * 2
        assert listed(date(2025, 12, 30), date(2025, 12, 31)) == ["dt=2025-12"] * 2
        assert listed(date(2025, 12, 30), date(2026, 1, 2)) == ["dt=2025-12", "dt=2026-01"] * 2

    def test_of_a_fleet_of_which_one_organization_has_changed(self, s3, bucket, usage):
        """Three days of each organization, as one sink for all of them publishes."""
        organizations = [f"org_{number:03}" for number in range(20)]

        def export(number):
            dataset = UsageDataset(open_storage(f"s3://lake@{bucket}/usage"), check_format("parquet"), {})
            s3.calls.clear()
            dataset.check()
            with ThreadPoolExecutor(8) as executor:
                published = list(
                    executor.map(
                        lambda org_id: dataset.publish(
                            *answers.large_answer(FIRST, date(2026, 5, 20), number(org_id), org_id=org_id)
                        ),
                        organizations,
                    )
                )
            changes = {
                (org_id, "product"): [(file.day, file.change) for file in files if file.changed]
                for org_id, files in zip(organizations, published, strict=True)
            }
            dataset.acknowledge({each: found for each, found in changes.items() if found})
            return [org_id for (org_id, _), found in changes.items() if found]

        assert export(lambda _: "1") == organizations
        assert export(lambda _: "1") == []
        assert writes(s3) == []
        assert len(s3.calls) == 1 + 4 * len(organizations)

        assert export(lambda org_id: "2" if org_id == "org_007" else "1") == ["org_007"]
        assert len(s3.calls) == 1 + 4 * len(organizations) + 12
        assert len(s3.calls) <= 5 * len(organizations)

    @pytest.mark.parametrize("org_id", ["../../etc", "a b&c%2F+", "org\u00e9\N{SNOWMAN}", "<Key>\n*?[a]{}"])
    def test_of_an_organization_with_a_strange_id(self, s3, bucket, org_id):
        def export():
            dataset = UsageDataset(open_storage(f"s3://lake@{bucket}/usage"), check_format("csv"), {})
            s3.calls.clear()
            dataset.check()
            return dataset.publish(*answers.large_answer(FIRST, DAY, "1", DAY, org_id=org_id))

        export()
        assert not any(file.written for file in export())
        assert len(s3.calls) == 5

    def test_a_query_that_says_the_same_in_another_way(self, s3, bucket, usage):
        """The organization is the key's own, and filters are in another order."""

        def export(**fields):
            report, _ = answers.answer(usage, "org_acme", FIRST, LAST)
            query = UsageQuery(start=FIRST, end=LAST, **fields)
            dataset = UsageDataset(open_storage(f"s3://lake@{bucket}/usage"), check_format("csv"), query.filters())
            s3.calls.clear()
            dataset.check()
            return dataset.publish(report, query)

        export(org_id="org_acme", products=("parse", "extract"))
        assert not any(file.written for file in export(products=("extract", "parse")))
        assert len(s3.calls) == 5


class TestHealed:
    """A day that is not as it was published is written again."""

    @pytest.fixture
    def before(self, export, usage, files):
        usage.restate("org_acme", DAY + timedelta(days=1), factor=0)  # a day without usage
        export()
        return files()

    @pytest.mark.parametrize("name", [FILE, MANIFEST])
    def test_a_removed_file(self, s3, export, files, bucket, before, name):
        s3.bystander.delete_object(Bucket=bucket, Key=f"usage/{name}")

        found = export()

        assert [file.day for file in found if file.written] == [DAY]
        assert files().keys() == before.keys()
        assert files()[FILE] == before[FILE]
        assert verify_dataset(open_storage(f"s3://lake@{bucket}/usage")).problems == ()
        assert changed(found) == ([DAY] if name == MANIFEST else [])

    def test_a_file_that_was_uploaded_in_parts_is_read(self, s3, export, files, bucket, before):
        """Its ETag is no MD5. Its content is the same."""
        key = {"Bucket": bucket, "Key": f"usage/{FILE}"}
        upload = s3.bystander.create_multipart_upload(**key)["UploadId"]
        part = s3.bystander.upload_part(**key, UploadId=upload, PartNumber=1, Body=before[FILE])
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        s3.bystander.complete_multipart_upload(**key, UploadId=upload, MultipartUpload=parts)
        assert s3.bystander.head_object(**key)["ETag"].endswith('-1"')

        found = export()

        assert not any(file.written for file in found)
        assert sum(call.key == f"usage/{FILE}" for call in s3.calls) == 1

    def test_a_damaged_file_of_the_same_size(self, export, files, put, before):
        put(FILE, before[FILE][:-1] + bytes([before[FILE][-1] ^ 1]))

        found = export()

        assert [file.day for file in found if file.written] == [DAY]
        assert files()[FILE] == before[FILE]
        assert changed(found) == []

    @pytest.mark.parametrize("figure", ["request_count", "bytes", "sha256", "change", "run", "date", "final"])
    def test_a_damaged_manifest(self, export, files, put, before, bucket, figure):
        manifest = json.loads(before[MANIFEST])
        other = {
            "sha256": "0" * 64,
            "change": "0" * 16,
            "run": "foreign",
            "date": "2026-05-21",
            "final": False,
        }
        put(MANIFEST, json.dumps(manifest | {figure: other.get(figure, 1)}).encode())

        found = export()

        # A change id or run that somebody else has written there can't be told from a right one.
        assert [file.day for file in found if file.written] == ([] if figure in ("change", "run") else [DAY])
        assert files()[FILE] == before[FILE]
        assert changed(found) == ([DAY] if figure in ("change", "date") else [])
        assert verify_dataset(open_storage(f"s3://lake@{bucket}/usage")).problems == ()

    def test_a_file_on_a_day_without_usage(self, export, files, put, before):
        put(FILE.replace(str(DAY), "2026-05-21"), before[FILE])

        found = export()

        assert [file.day for file in found if file.written] == [date(2026, 5, 21)]
        assert files().keys() == before.keys()

    @pytest.mark.parametrize("method", ["PUT", "DELETE"])
    def test_a_writer_killed_between_file_and_manifest(self, s3, export, usage, files, bucket, before, method):
        usage.restate("org_acme", DAY, factor=3 if method == "PUT" else 0)

        def kill(call, serve):
            if call.method == "PUT" and call.key.endswith(f"dt={DAY}.json"):
                return refusal("403 Forbidden", "AccessDenied", "the writer is gone")
            return serve()

        with s3.answering(kill), pytest.raises(OSError, match="the writer is gone"):
            export()
        assert files().get(FILE) != before[FILE]

        assert changed(export()) == [DAY]
        assert verify_dataset(open_storage(f"s3://lake@{bucket}/usage")).problems == ()
        assert changed(export()) == []
        assert writes(s3) == []

    def test_a_day_that_was_not_over(self, s3, export, files, before):
        """It becomes final by an export after, which changes nothing else."""
        assert changed(export(requested_on=DAY)) == []
        assert json.loads(files()[MANIFEST])["final"], "it does not become less final"

        export(date(2026, 6, 5), date(2026, 6, 5), requested_on=date(2026, 6, 5))
        name = f"metadata/{ROOT}/dt=2026-06-05.json"
        assert not json.loads(files()[name])["final"]
        assert not json.loads(files()[INDEX])["2026-06-05"]["final"]

        [file] = export(date(2026, 6, 5), date(2026, 6, 5))
        assert (file.changed, file.written) == (False, True)
        assert json.loads(files()[name])["final"]
        assert json.loads(files()[INDEX])["2026-06-05"]["final"]


def other_versions(call, serve):
    """Answer listings as S3 does for objects encrypted by KMS: their ETags are no MD5s."""
    answer = serve()
    if not call.prefix:
        return answer
    body = re.sub(
        rb"<ETag>(.*?)</ETag>", lambda tag: b"<ETag>" + md5(tag[1]).hexdigest().encode() + b"</ETag>", answer.body
    )
    return replace(answer, body=body, headers=[each for each in answer.headers if each[0].lower() != "content-length"])


@pytest.fixture(params=["SSE-KMS", "no MD5s"])
def no_digests(s3, request, monkeypatch):
    """A store whose versions are no digests, like S3 with SSE-KMS or Azure."""
    if request.param == "SSE-KMS":
        with s3.answering(other_versions):
            yield
    else:
        monkeypatch.setattr(ObjectStorage, "md5s", lambda *_: None)
        yield


@pytest.mark.usefixtures("no_digests")
class TestWithoutDigests:
    """What can't be proven by a listing is read."""

    def test_days_that_have_not_changed_are_read(self, s3, export, files):
        export()
        before = files()

        assert changed(export()) == []

        assert writes(s3) == []
        read = Counter(call.key.removeprefix("usage/") for call in s3.calls)
        assert read[FILE] == read[MANIFEST] == 1
        assert files() == before

    def test_what_is_damaged_or_has_changed_is_written(self, export, files, put, usage):
        export()
        before = files()
        put(FILE, before[FILE][:-1] + b"\0")
        usage.restate("org_acme", LAST, factor=2)

        found = export()

        assert [file.day for file in found if file.written] == [DAY, LAST]
        assert changed(found) == [LAST]
        assert files()[FILE] == before[FILE]


class TestIndex:
    """The index is a cache: whatever it holds, an export does the same."""

    @pytest.fixture
    def right(self, export, files):
        export()
        return files()[INDEX]

    def test_what_it_holds_of_a_day(self, files, right):
        manifest = json.loads(files()[MANIFEST])
        day = json.loads(right)[str(DAY)]

        assert {name: day[name] for name in ("digest", "credits", "requests", "final", "size", "version")} == {
            "digest": manifest["rows_sha256"],
            "credits": manifest["credits"],
            "requests": manifest["request_count"],
            "final": True,
            "size": len(files()[FILE]),
            "version": md5(files()[FILE]).hexdigest(),
        }
        assert len(json.loads(right)) == 5 == right.count(b"\n") - 2

    def test_a_missing_one_is_made_of_the_manifests(self, s3, export, files, bucket, right):
        s3.bystander.delete_object(Bucket=bucket, Key=f"usage/{INDEX}")

        assert changed(export()) == []

        assert writes(s3) == [INDEX]
        assert files()[INDEX] == right
        export()
        assert len(s3.calls) == 5

    @pytest.mark.parametrize("content", UNDECODABLE, ids=lambda content: repr(content[:20]))
    def test_one_that_can_not_be_decoded_is_replaced(self, s3, export, files, put, right, content):
        put(INDEX, content)

        assert changed(export()) == []

        assert writes(s3) == [INDEX]
        assert files()[INDEX] == right

    @pytest.mark.parametrize("lie", WRONG, ids=lambda lie: repr(lie)[:60])
    def test_one_that_is_wrong_is_no_proof(self, s3, export, files, put, right, lie):
        days = json.loads(right)
        put(INDEX, json.dumps({day: found | lie for day, found in days.items()}).encode())
        before = {name: content for name, content in files().items() if name != INDEX}

        assert changed(export()) == []

        assert writes(s3) == [INDEX]
        assert files() == before | {INDEX: right}

    def test_of_another_day_s_figures(self, export, files, put, right, usage):
        """The index says that the restated day is there; file and manifest are those of before."""
        old = files()
        usage.restate("org_acme", DAY, factor=2)
        export()
        new = files()
        put(FILE, old[FILE])
        put(MANIFEST, old[MANIFEST])

        assert changed(export()) == [DAY]
        assert files()[FILE] == new[FILE]

    def test_a_change_that_it_denies_is_reported(self, export, files, put, right, usage):
        """It has the id of the change that was reported, the manifest that of another."""
        usage.restate("org_acme", DAY, factor=2)
        export(succeeds=False)
        days = json.loads(files()[INDEX])
        days[str(DAY)]["change"] = json.loads(right)[str(DAY)]["change"]
        put(INDEX, json.dumps(days).encode())

        assert changed(export()) == [DAY]

    def test_it_keeps_the_days_of_other_exports(self, export, files, right):
        export(date(2026, 7, 1), date(2026, 7, 2))

        assert json.loads(files()[INDEX]).items() >= json.loads(right).items()
        assert len(json.loads(files()[INDEX])) == 7

    def test_it_is_written_after_the_manifests(self, s3, export):
        export(succeeds=False)

        assert writes(s3)[-1] == INDEX


class TestOlderManifests:
    """Of versions of this package that knew neither the MD5 nor whether the day was over, and no index."""

    @pytest.fixture
    def before(self, s3, export, files, put, bucket):
        export()
        for name, content in files().items():
            if name.startswith(f"metadata/{ROOT}/dt="):
                manifest = json.loads(content)
                del manifest["md5"], manifest["final"]
                put(name, json.dumps(manifest | {"attempt": {"number": 1, "fingerprint": "0"}}).encode())
        return files()

    @pytest.mark.parametrize("index", ["of a later version", "none"])
    def test_they_are_written_again_and_nothing_has_changed(self, s3, export, files, bucket, before, index):
        if index == "none":
            s3.bystander.delete_object(Bucket=bucket, Key=f"usage/{INDEX}")

        found = export()

        assert changed(found) == []
        assert all(file.written for file in found)
        assert {json.loads(files()[MANIFEST])[name] for name in ("md5", "final")} == {
            md5(before[FILE]).hexdigest(),
            True,
        }
        export()
        assert len(s3.calls) == 5

    @pytest.mark.usefixtures("before")
    def test_they_are_read_as_not_final(self, export, bucket):
        reader = UsageReader(open_storage(f"s3://lake@{bucket}/usage"))
        assert {day.is_final for day in days_of(reader).values()} == {False}
        export()
        assert {day.is_final for day in days_of(reader).values()} == {True}


def days_of(reader, first=FIRST, last=LAST):
    found = reader.exported_days("org_acme", "product", DayRange(first, last))
    assert found.unreadable == ()
    return found.days


class TestReader:
    """A reader uses the index as an export does: it saves reading the manifests that a listing proves."""

    @pytest.fixture
    def reader(self, export, bucket):
        export()
        return UsageReader(open_storage(f"s3://lake@{bucket}/usage"))

    @pytest.fixture
    def truth(self, monkeypatch, reader):
        """Return what the manifests themselves say."""

        def truth(first=FIRST):
            with monkeypatch.context() as patch:
                patch.setattr(ObjectStorage, "md5s", lambda *_: None)
                return days_of(reader, first)

        return truth

    def test_of_35_days_it_reads_the_index(self, s3, export, reader, truth):
        export(LONG_AGO)
        s3.calls.clear()
        found = days_of(reader, LONG_AGO)
        assert [(call.method, call.key or call.prefix) for call in s3.calls] == [
            ("GET", f"usage/metadata/{ROOT}/dt="),
            ("GET", f"usage/{INDEX}"),
        ]
        assert found == truth(LONG_AGO)
        assert len(found) == 35

        s3.calls.clear()
        days_of(reader, DAY, DAY)
        assert [call.key or call.prefix for call in s3.calls] == [
            f"usage/metadata/{ROOT}/dt=",
            f"usage/{MANIFEST}",
        ]

    def test_a_manifest_that_was_removed_is_missing(self, s3, bucket, reader):
        s3.bystander.delete_object(Bucket=bucket, Key=f"usage/{MANIFEST}")
        found = days_of(reader)
        assert DAY not in found
        assert len(found) == 4

    def test_a_manifest_that_was_altered_counts_whatever_the_index_holds(self, reader, files, put):
        put(MANIFEST, json.dumps(json.loads(files()[MANIFEST]) | {"request_count": 7, "run": "foreign"}).encode())
        found = days_of(reader)[DAY]
        assert (found.request_count, found.run) == (7, "foreign")

    def test_a_manifest_that_is_none_is_unreadable_whatever_the_index_holds(self, reader, put):
        put(MANIFEST, b"{}")
        found = reader.exported_days("org_acme", "product", DayRange(FIRST, LAST))
        assert found.unreadable == (DAY,)

    @pytest.mark.parametrize("lie", WRONG, ids=lambda lie: repr(lie)[:60])
    def test_an_index_that_is_wrong_is_no_proof(self, reader, files, put, truth, lie):
        days = json.loads(files()[INDEX])
        put(INDEX, json.dumps({day: found | lie for day, found in days.items()}).encode())
        assert days_of(reader) == truth()

    @pytest.mark.parametrize("content", [None, *UNDECODABLE], ids=lambda content: repr(content)[:20])
    def test_an_index_that_is_missing_or_can_not_be_decoded(self, s3, bucket, reader, put, truth, content):
        if content is None:
            s3.bystander.delete_object(Bucket=bucket, Key=f"usage/{INDEX}")
        else:
            put(INDEX, content)
        assert days_of(reader) == truth()

    def test_an_index_of_before_a_restatement(self, reader, export, files, put, usage, truth):
        old = files()[INDEX]
        usage.restate("org_acme", DAY, factor=2)
        export()
        put(INDEX, old)
        assert days_of(reader) == truth()

    def test_an_index_with_the_lines_of_other_days(self, reader, files, put, truth):
        days = json.loads(files()[INDEX])
        put(INDEX, json.dumps(dict(zip(days, reversed(days.values()), strict=True))).encode())
        assert days_of(reader) == truth()

    @pytest.mark.usefixtures("no_digests")
    def test_where_versions_are_no_digests_it_reads_the_manifests(self, reader, truth):
        assert days_of(reader) == truth()

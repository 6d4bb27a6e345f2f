"""One object that holds a whole range: what is there, beside it, and whose it is."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest

from reducto_provider.export.focus import FOCUS_FORMATS
from reducto_provider.export.formats import FORMATS, TABLE_FORMAT
from reducto_provider.export.one_object import UsageObject
from reducto_provider.export.sink import DatasetMismatchError, PublishError
from tests.airflow_sdk import ObjectStoragePath
from tests.export.test_dataset import HOSTILE_ORGS, THREE_DAYS
from tests.threads import call_together

PLAIN_FORMATS = [name for name in FORMATS if name not in (*FOCUS_FORMATS, TABLE_FORMAT)]

NAME = "usage.jsonl"
RUN = "dag/run/task/-1"


@pytest.fixture
def publish_one():
    """Publish an export as one object at a place, by a task that succeeds by default."""

    def publish_one(place, export, format="jsonl", *, run=RUN, succeeds=True, name=NAME):
        target = UsageObject(place.storage, name, FORMATS[format], export.query.filters())
        [published] = target.publish(export.report, export.query, run)
        if succeeds:
            target.acknowledge({(export.report.org_id, export.query.group_by): [(None, published.change)]})
        return published

    return publish_one


def test_lies_exactly_there(place, make_export, publish_one):
    published = publish_one(place, make_export(*THREE_DAYS))

    content = ObjectStoragePath(f"{place.url}/{NAME}").read_bytes()
    assert content.decode() == (
        '{"org_id":"org_abc123","group_by":"product","date":"2026-06-16","group":"extract","credits":80.5,"request_count":20}\n'
        '{"org_id":"org_abc123","group_by":"product","date":"2026-06-16","group":"parse","credits":150.0,"request_count":75}\n'
        '{"org_id":"org_abc123","group_by":"product","date":"2026-06-17","group":"parse","credits":230.1,"request_count":75}\n'
        '{"org_id":"org_abc123","group_by":"product","date":"2026-06-18","group":null,"credits":7.0,"request_count":1}\n'
    )
    assert published.as_json() == {
        "uri": place.storage.uri(NAME),
        "date": None,
        "row_count": 4,
        "bytes": len(content),
        "changed": True,
    }
    assert place.files().keys() == {NAME, f".{NAME}.reducto", f".{NAME}.reported"}


@pytest.mark.parametrize("format", PLAIN_FORMATS)
def test_has_changed_until_a_task_that_reported_it_succeeds(place, make_export, publish_one, format):
    export, other = make_export(*THREE_DAYS), make_export(*THREE_DAYS[1:])

    def changed(export, *, succeeds):
        return publish_one(place, export, format, succeeds=succeeds).changed

    assert [changed(export, succeeds=succeeds) for succeeds in (False, True, False)] == [True, True, False]
    assert [changed(other, succeeds=succeeds) for succeeds in (False, True, True)] == [True, True, False]
    assert changed(export, succeeds=False)
    assert changed(other, succeeds=False), "that the first one is back may not have been reported"


def test_another_format_is_a_change(place, make_export, publish_one):
    publish_one(place, make_export(*THREE_DAYS))

    assert publish_one(place, make_export(*THREE_DAYS), "csv").changed


def test_a_lost_object_is_written_anew(place, make_export, publish_one):
    publish_one(place, make_export(*THREE_DAYS))
    before = place.files()[NAME]
    place.storage.remove(NAME)

    assert not publish_one(place, make_export(*THREE_DAYS)).changed
    assert place.files()[NAME] == before


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"org_id": "org_other"}, ["org_id 'org_abc123'", "org_id 'org_other'"]),
        ({"group_by": "feature"}, ["group_by 'product'", "group_by 'feature'"]),
        ({"products": ["parse"]}, ["filters {}", "filters {'products': ['parse']}"]),
    ],
    ids=["organization", "dimension", "filters"],
)
def test_what_belongs_to_another_is_not_replaced(place, make_export, publish_one, fields, said):
    publish_one(place, make_export(*THREE_DAYS))
    before = place.files()
    export = make_export(*THREE_DAYS, **fields)

    with pytest.raises(DatasetMismatchError) as error:
        publish_one(place, export)

    text = str(error.value)
    assert [
        each for each in [place.storage.location(NAME), f".{NAME}.reducto", "output_path", *said] if each not in text
    ] == []
    assert place.files() == before
    with pytest.raises(DatasetMismatchError):  # before a request is spent on it, as far as it can be known
        UsageObject(place.storage, NAME, FORMATS["jsonl"], export.query.filters()).check(
            replace(export.query, org_id=export.report.org_id)
        )


def test_without_an_organization_only_the_rest_can_be_checked_before(place, make_export, publish_one):
    export = make_export(*THREE_DAYS)
    publish_one(place, export)

    UsageObject(place.storage, NAME, FORMATS["jsonl"], {}).check(export.query)


def test_another_map_index_of_the_same_run_is_refused(place, make_export, publish_one):
    export = make_export(*THREE_DAYS)
    publish_one(place, export, run="dag/run 1/task/0")
    before = place.files()

    with pytest.raises(DatasetMismatchError, match=r"dag/run 1/task/0.*dag/run 1/task/1.*output_path"):
        publish_one(place, export, run="dag/run 1/task/1")

    assert place.files() == before
    publish_one(place, export, run="dag/run 1/task/0")
    publish_one(place, export, run="dag/run 2/task/1")
    publish_one(place, export, run="dag/run 2/another/0")


def test_organizations_that_come_at_the_same_time(place, make_export, publish_one):
    """Mapped over organizations, with an output_path that does not name them."""
    exports = [make_export(*THREE_DAYS, org_id=f"org_{number}") for number in range(6)]
    refused = []

    def run(number):
        try:
            publish_one(place, exports[number], run=f"dag/run/task/{number}")
        except DatasetMismatchError:
            refused.append(number)

    call_together(*(partial(run, number) for number in range(len(exports))))

    [winner] = {0, 1, 2, 3, 4, 5} - set(refused)
    [org_id] = {json.loads(line)["org_id"] for line in place.files()[NAME].splitlines()}
    assert org_id == f"org_{winner}"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b"[" * 100_000], ids=lambda c: repr(c[:9])
)
def test_what_can_not_be_told_is_refused(place, make_export, publish_one, content):
    publish_one(place, make_export(*THREE_DAYS))
    place.put(f".{NAME}.reducto", content)
    before = place.files()

    with pytest.raises(DatasetMismatchError, match="can't be decoded"):
        publish_one(place, make_export(*THREE_DAYS))

    assert place.files() == before


@pytest.mark.parametrize("org_id", HOSTILE_ORGS, ids=lambda org_id: repr(org_id[:30]))
def test_an_organization_is_only_content(folder, make_export, publish_one, org_id):
    publish_one(folder, make_export(("2026-06-18", "parse", "1", 1), org_id=org_id))

    assert folder.files().keys() == {NAME, f".{NAME}.reducto", f".{NAME}.reported"}
    assert json.loads(folder.files()[NAME])["org_id"] == org_id


def test_a_full_disk_leaves_the_old_one(folder, make_export, publish_one, small_files):
    publish_one(folder, make_export(*THREE_DAYS))
    before = folder.files()
    big = make_export(*[("2026-06-18", f"group-{number}", "1", 1) for number in range(5_000)])

    with small_files(100_000), pytest.raises(PublishError, match="what was there is untouched"):
        publish_one(folder, big)

    assert folder.files() == before


def test_a_folder_in_its_place(tmp_path, folder, make_export, publish_one):
    (tmp_path / "usage" / NAME).mkdir(parents=True)

    with pytest.raises(PublishError):
        publish_one(folder, make_export(*THREE_DAYS))

    assert list(tmp_path.rglob("*.writing")) == []

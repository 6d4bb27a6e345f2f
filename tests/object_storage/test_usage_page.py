"""The usage page of a dataset in S3, through an Airflow connection that may only read and list."""

from __future__ import annotations

import json
from collections import Counter
from datetime import date, timedelta

import pytest

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.plugins.usage_page.settings import PageDataset
from reducto_provider.plugins.usage_page.source import PageSource
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.wire import decode_report
from tests.object_storage.s3server import ACCESS_DENIED

TODAY = date(2026, 11, 21)
DAYS = [TODAY - timedelta(days=back) for back in range(20, 0, -1)]
ORGS = ("a/../b", "org \u00e9&<b>")


@pytest.fixture
def publish(storage):
    """Publish an organization's days, each with the same credits."""

    def publish(org_id, days, credits):
        query = UsageQuery(start=days[0], end=days[-1], org_id=org_id)
        echo = {"orgId": org_id, "startDate": str(days[0]), "endDate": str(days[-1]), "groupBy": "product"}
        data = [{"date": str(day), "group": "parse", "credits": credits, "requestCount": 3} for day in days]
        report = decode_report(json.dumps({**echo, "data": data}).encode(), query)
        UsageDataset(storage, check_format("jsonl"), {}).publish(report, query, run="dag/run/task")

    return publish


@pytest.fixture
def source(s3, bucket, publish, monkeypatch):
    for org_id in ORGS:
        publish(org_id, DAYS, 1.5)
    statements = [{"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}]
    monkeypatch.setenv("AIRFLOW_CONN_READER", s3.user({"Version": "2012-10-17", "Statement": statements}))
    return PageSource(PageDataset(name="a", path=f"s3://{bucket}/usage", conn_id="reader"))


def shown(source):
    found = source.overview(TODAY, 60)
    source._refresh._ended.wait(60)
    found = source.overview(TODAY, 60)
    assert (found.unread, found.unproven) == (0, 0)
    return {each.org_id: each.used for each in found.summaries}


def test_it_is_read_and_nothing_is_written(s3, source):
    s3.calls.clear()
    with s3.authorizing():
        assert shown(source) == dict.fromkeys(ORGS, 30)
        assert source.organization(ORGS[0], None, None, TODAY)[1].total == 30
    assert {call.method for call in s3.calls} == {"GET"}


def test_manifests_are_not_read_one_by_one(s3, source):
    """For an organization: its index twice, its dimensions, and its manifests' names."""
    s3.calls.clear()
    shown(source)
    kinds = Counter(call.key.rpartition("/")[2] or "a listing" for call in s3.calls)
    assert kinds == {"dataset.json": 1, "index.json": 2 * len(ORGS), "a listing": 1 + 2 * len(ORGS)}


def test_a_day_that_is_exported_again_is_shown_at_once(source, publish, monkeypatch):
    assert source.organization(ORGS[0], None, None, TODAY)[1].total == 30
    publish(ORGS[0], [DAYS[-1]], 100)
    assert source.organization(ORGS[0], None, None, TODAY)[1].total == 30 - 1.5 + 100


def test_files_that_have_not_changed_are_read_once(s3, source):
    source.organization(ORGS[0], None, None, TODAY)
    s3.calls.clear()
    source.organization(ORGS[0], None, None, TODAY)
    assert not [call.key for call in s3.calls if call.key.endswith("usage.jsonl")]


def test_what_may_not_be_read_is_said_without_the_key(s3, source):
    with (
        s3.answering(lambda call, answer: ACCESS_DENIED),
        pytest.raises(OSError, match="check the connection") as found,
    ):
        source.overview(TODAY, 60)
    assert "AKIA" not in str(found.value)

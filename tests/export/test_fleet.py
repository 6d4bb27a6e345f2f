"""The entries of a fleet, the split of its queries, and the result."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest

from reducto_provider.export.fleet import (
    MAX_MESSAGE_LENGTH,
    FleetEntry,
    FleetOutcome,
    describe_failures,
    fleet_result,
    parse_fleet,
    split_query,
)
from reducto_provider.export.sink import PublishedFile
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport, UsageRow

QUERY = UsageQuery(start=date(2026, 5, 1), end=date(2026, 5, 31), products=("parse",))


def published(credits="1.5", request_count=7, changed=()):
    """A report of three rows, and its files."""
    rows = [(None if credits is None else Decimal(credits), request_count), (Decimal(0), 0), (Decimal(0), 0)]
    report = UsageReport(
        org_id="org",
        start=QUERY.start,
        end=QUERY.end,
        group_by="product",
        rows=tuple(UsageRow(QUERY.start, str(number), *row) for number, row in enumerate(rows)),
    )
    files = [
        PublishedFile(uri=None, day=day, row_count=0, size=0, changed=day in changed, change=dict(changed).get(day, ""))
        for day in (*changed, date(2020, 1, 1))
    ]
    return report, files


def outcome(org_id, error=None, **figures):
    made = FleetOutcome(FleetEntry(org_id, "product", "reducto_default"))
    made.add(*published(**figures))
    if error:
        made.fail(error, permanent=False)
    return made


def test_each_organization_by_each_dimension():
    given = ["org_a", {"org_id": "org_b", "reducto_conn_id": "own"}, {"org_id": "org_c"}]
    expected = [
        FleetEntry(org_id, dimension, conn_id)
        for org_id, conn_id in (("org_a", "usual"), ("org_b", "own"), ("org_c", "usual"))
        for dimension in ("product", "api_key")
    ]
    assert parse_fleet(given, ["product", "api_key"], "usual") == expected
    assert parse_fleet(json.dumps(given), '["product", "api_key"]', "usual") == expected
    assert parse_fleet(iter(given), ("product", "api_key"), "usual") == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"org_id": "org_a"}, ["organizations", "must be a list"]),
        (b"[]", ["organizations", "must be a list"]),
        (None, ["organizations", "must be a list"]),
        ("{}", ["organizations", "must be a list"]),
        ("3", ["organizations", "must be a list"]),
        ("['org_a']", ["organizations", "tojson"]),
        ("[" * 100_000, ["organizations", "tojson"]),
        ([3], ["org_id", "3"]),
        (["None"], ["org_id", "None"]),
        ([{"org_id": "org_a", "conn": "b"}], ["reducto_conn_id", "'conn'"]),
        ([{"org_id": "org_a", "reducto_conn_id": ""}], ["reducto_conn_id", "not empty"]),
        (["o" * 300], ["too long"]),
    ],
)
def test_what_can_not_be_meant_is_refused(given, words):
    with pytest.raises(ValueError) as error:
        parse_fleet(given, "product", "usual")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("days", [1, 7, 30, 31, 32, 10_000])
def test_the_parts_of_a_query_are_the_query(days):
    parts = list(split_query(QUERY, days))
    assert [parts[0].start, parts[-1].end] == [QUERY.start, QUERY.end]
    assert all(later.start == earlier.end + timedelta(days=1) for earlier, later in pairwise(parts))
    assert all((part.end - part.start).days + 1 == days for part in parts[:-1])
    assert {replace(part, start=QUERY.start, end=QUERY.end) for part in parts} == {QUERY}


def test_parts_add_up_exactly():
    made = outcome("org_a", credits="0.1")
    made.add(*published(credits="0.2", request_count=2, changed={QUERY.start: "1"}))
    assert made.as_json() == {
        "org_id": "org_a",
        "reducto_conn_id": "reducto_default",
        "group_by": "product",
        "status": "exported",
        "row_count": 6,
        "credits": 0.3,
        "request_count": 9,
        "changed_day_count": 1,
        "changed_days": ["2026-05-01"],
        "error": None,
    }
    made.add(*published(credits=None))
    assert made.as_json()["credits"] is None
    assert "an unknown number of credits" in str(made)


def test_a_result_is_bounded_and_tells_of_failures_first():
    days = {QUERY.start + timedelta(days=number): str(number) for number in range(500)}
    outcomes = [
        outcome(f"org_{number}", "why" * 1000 if number % 50 == 0 else None, changed=days) for number in range(200)
    ]
    result = fleet_result(QUERY, outcomes, 10_000)

    assert len(json.dumps(result, separators=(",", ":"))) <= 10_000
    assert (result["exported"], result["failed"]) == (196, 4)
    assert [each["org_id"] for each in result["organizations"][:6]] == [
        *("org_0", "org_50", "org_100", "org_150"),
        *("org_1", "org_2"),
    ]
    assert result["organizations_left_out"] == 200 - len(result["organizations"])
    first = result["organizations"][0]
    assert len(first["error"]) == MAX_MESSAGE_LENGTH
    assert (first["row_count"], first["credits"], first["request_count"]) == (None, None, None)
    assert (first["changed_day_count"], len(first["changed_days"])) == (500, 31)
    assert first["changed_days"][-1] == str(max(days))
    assert fleet_result(QUERY, outcomes, 1)["organizations_left_out"] == 200


def test_failures_are_named_and_bounded():
    text = describe_failures([outcome(f"org_{number}", f"Error: {number}" * 300) for number in range(30)])
    assert text.startswith("30 of 30 could not be exported: org_0 by product (Error: 0")
    assert text.endswith("and 20 more")
    assert len(text) < 3000

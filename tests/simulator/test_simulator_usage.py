"""The figures: the same for every query, exact, and changeable."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import requests

from simulator import ORGANIZATIONS, Organization, Record, Simulator, many_keys

Get = Callable[..., requests.Response]

DIMENSIONS = ("product", "feature", "api_key", "file_type")
START, END = date(2026, 5, 19), date(2026, 6, 18)
DAY = date(2026, 6, 10)


def totals(sim: Simulator, org: str, start: date, end: date) -> list[tuple[Decimal, int]]:
    """The totals of a range, by each dimension."""
    answers = [sim.truth(org, start, end, dimension) for dimension in DIMENSIONS]
    return [(sum((r.credits for r in rows), Decimal(0)), sum(r.requests for r in rows)) for rows in answers]


def rows_of(get: Get, **query: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = get(**query).json()["data"]
    return rows


@pytest.mark.parametrize("org", [organization.id for organization in ORGANIZATIONS])
def test_the_four_dimensions_add_up_exactly_every_day(sim: Simulator, org: str) -> None:
    for day in (START + timedelta(days=offset) for offset in range(31)):
        assert len(set(totals(sim, org, day, day))) == 1


def test_an_answer_is_the_truth_up_to_binary_rounding(sim: Simulator, get: Get) -> None:
    for dimension in DIMENSIONS:
        rows = rows_of(get, orgId="org_hooli", groupBy=dimension)
        truth = sim.truth("org_hooli", START, END, dimension)
        assert [(row["date"], row["group"], row["requestCount"]) for row in rows] == [
            (exact.date.isoformat(), exact.group, exact.requests) for exact in truth
        ]
        assert [row["credits"] for row in rows] == pytest.approx([float(exact.credits) for exact in truth])


def test_truth_takes_filters(sim: Simulator) -> None:
    rows = sim.truth("org_acme", START, END, "feature", product="classify", api_key=["mailroom", "box"])
    assert {row.group for row in rows} == {"label"}
    assert sum(row.requests for row in rows) == sum(
        row.requests for row in sim.truth("org_acme", START, END, product="classify", api_key="mailroom")
    )


def test_sums_show_the_noise_of_binary_floats(get: Get) -> None:
    credits = [row["credits"] for row in rows_of(get, orgId="org_hooli")]
    assert any(value != round(value, 6) for value in credits)
    assert any(value % 1 == 0.5 for value in credits)


def test_figures_depend_on_nothing_but_the_day(sim: Simulator, get: Get) -> None:
    month = rows_of(get, groupBy="api_key")
    day = rows_of(get, groupBy="api_key", startDate="2026-06-10", endDate="2026-06-10")
    assert day
    assert day == [row for row in month if row["date"] == "2026-06-10"]
    with Simulator(clock=lambda: datetime(2026, 9, 1, tzinfo=UTC)) as later:
        assert later.truth("org_acme", START, DAY) == sim.truth("org_acme", START, DAY)


def test_organizations_differ(sim: Simulator) -> None:
    size = {org.id: totals(sim, org.id, START, END)[0][0] for org in ORGANIZATIONS}
    assert size["org_hooli"] > size["org_acme"] > size["org_globex"] > 20 * size["org_initech"] > 0


def test_the_tiny_organization_has_mostly_empty_days(sim: Simulator) -> None:
    assert 0 < len({row.date for row in sim.truth("org_initech", START, END)}) < 15


def test_weekends(sim: Simulator) -> None:
    assert {row.date.weekday() for row in sim.truth("org_globex", START, END)} == {0, 1, 2, 3, 4}
    monday = totals(sim, "org_acme", date(2026, 6, 8), date(2026, 6, 8))[0]
    sunday = totals(sim, "org_acme", date(2026, 6, 7), date(2026, 6, 7))[0]
    assert monday > sunday > (Decimal(0), 0)


def test_growth(sim: Simulator) -> None:
    june_before, june = (totals(sim, "org_hooli", date(year, 6, 1), date(year, 6, 14))[0] for year in (2025, 2026))
    assert june > june_before


def test_no_usage_before_the_first_day_nor_in_the_future(get: Get) -> None:
    assert rows_of(get, startDate="0001-01-01", endDate="2023-12-31") == []
    assert rows_of(get, startDate="2026-06-19", endDate="9999-12-31") == []


def test_today_grows(sim: Simulator, clock: Any) -> None:
    seen = []
    for hour in (0, 6, 12, 18, 23):
        clock.now = datetime(2026, 6, 18, hour, tzinfo=UTC)
        seen.append(totals(sim, "org_hooli", END, END)[0])
    clock.now = datetime(2026, 6, 19, tzinfo=UTC)
    seen.append(totals(sim, "org_hooli", END, END)[0])
    assert seen[0] == (Decimal(0), 0)
    assert seen == sorted(set(seen))


def test_today_is_the_utc_day(get: Get, clock: Any) -> None:
    clock.now = datetime.fromisoformat("2026-06-18T23:30:00-04:00")
    assert get().json()["endDate"] == "2026-06-19"


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_added_usage_is_seen_in_every_dimension(sim: Simulator, get: Get, dimension: str) -> None:
    before = totals(sim, "org_acme", DAY, DAY)[0]
    sim.usage.add("org_acme", DAY, "5000.5", 100, api_key="new-key")
    assert set(totals(sim, "org_acme", DAY, DAY)) == {(before[0] + Decimal("5000.5"), before[1] + 100)}
    rows = rows_of(get, groupBy=dimension, apiKey="new-key")
    assert [(row["date"], row["credits"], row["requestCount"]) for row in rows] == [("2026-06-10", 5000.5, 100)]


def test_a_day_is_restated_from_now_on(sim: Simulator) -> None:
    sim.usage.add("org_acme", DAY, 300, 30)
    neighbours = totals(sim, "org_acme", START, DAY - timedelta(days=1))
    credits, requests_before = totals(sim, "org_acme", DAY, DAY)[0]
    sim.usage.restate("org_acme", DAY, "0.5")
    restated = totals(sim, "org_acme", DAY, DAY)
    assert len(set(restated)) == 1
    assert restated[0][0] == credits / 2
    assert restated[0][1] == pytest.approx(requests_before / 2, abs=10)
    sim.usage.add("org_acme", DAY, 7, 1)
    assert totals(sim, "org_acme", DAY, DAY)[0][0] == credits / 2 + 7
    assert totals(sim, "org_acme", START, DAY - timedelta(days=1)) == neighbours


def test_a_day_is_restated_to_nothing(sim: Simulator, get: Get) -> None:
    sim.usage.add("org_acme", DAY, 300, 30)
    sim.usage.restate("org_acme", DAY, 0)
    assert rows_of(get, startDate="2026-06-10", endDate="2026-06-10") == []
    sim.clear()
    assert rows_of(get, startDate="2026-06-10", endDate="2026-06-10")


def test_given_records_are_all_there_is(sim: Simulator, get: Get) -> None:
    sim.usage.set_records(
        "org_acme",
        [
            Record(DAY, Decimal("1.5"), 3, "parse", "text", "a", "pdf"),
            Record(DAY, Decimal("2.25"), 1, "extract", "fields", "a", "png"),
            Record(date(2026, 6, 11), Decimal(4), 2, "parse", "standard", "b", "pdf"),
        ],
    )
    assert rows_of(get, groupBy="api_key", endDate="2026-06-10") == [
        {"date": "2026-06-10", "group": "a", "credits": 3.75, "requestCount": 4}
    ]
    assert [row["group"] for row in rows_of(get, fileType="pdf")] == ["parse", "parse"]
    assert len(set(totals(sim, "org_acme", START, END))) == 1


def test_an_organization_may_come_with_its_records(sim: Simulator, get: Get) -> None:
    sim.usage.organizations["org_new"] = Organization("org_new", records=[Record(DAY, Decimal("2.5"), 1, "split")])
    sim.keys["new"] = ("org_new",)
    assert get("new").json()["data"] == [{"date": "2026-06-10", "group": "split", "credits": 2.5, "requestCount": 1}]
    sim.clear()
    assert get("new").status_code == 401
    assert "org_new" not in sim.usage.organizations


def test_hostile_group_names_arrive_as_they_are(sim: Simulator, get: Get) -> None:
    names = [
        None,
        "",
        "../../etc/passwd",
        'a "quoted", one',
        "two\nlines",
        "\x00",
        "naïve 📄",
        "a/b\\c",
        "=1+1",
    ]
    sim.usage.set_records("org_acme", [Record(DAY, Decimal(1), 1, api_key=name) for name in names])
    assert [row["group"] for row in rows_of(get, groupBy="api_key")] == sorted(
        names, key=lambda name: (name or "", name is not None)
    )


def test_given_rows_are_sent_as_they_are(sim: Simulator, get: Get) -> None:
    rows = [
        {"date": "1999-01-01", "group": {"not": "text"}, "credits": "12", "extra": True},
        {"date": "1999-01-01", "group": {"not": "text"}, "credits": -1e300, "requestCount": -1},
    ]
    sim.usage.set_rows("org_acme", rows)
    assert rows_of(get, groupBy="feature", product="parse") == rows


def test_credits_can_be_null_or_absent(sim: Simulator, get: Get) -> None:
    assert {row["credits"] for row in rows_of(get, orgId="org_umbrella")} == {None}
    sim.usage.set_credits("org_umbrella", "absent")
    assert all("credits" not in row and row["requestCount"] for row in rows_of(get, orgId="org_umbrella"))
    sim.usage.set_credits("org_umbrella", "number")
    assert all(row["credits"] > 0 for row in rows_of(get, orgId="org_umbrella"))


def test_an_answer_as_large_as_wanted(clock: Any) -> None:
    with Simulator([many_keys("org_large", 1000)], clock=clock) as sim:
        rows = requests.get(
            f"{sim.url}/api/v1/usage/export",
            params={"groupBy": "api_key", "endDate": "2026-06-17"},
            headers={"Authorization": "Bearer sim-key-large"},
            timeout=30,
        ).json()["data"]
    assert len(rows) == 30 * 1000


def test_organizations_and_keys_of_ones_own(clock: Any) -> None:
    two = [Organization("org_one"), Organization("org_two")]
    with Simulator(two, {"both": ["org_two", "org_one"]}, clock=clock) as sim:
        url, headers = f"{sim.url}/api/v1/usage/export", {"Authorization": "Bearer both"}
        assert requests.get(url, headers=headers, timeout=10).json()["orgId"] == "org_two"
        assert requests.get(f"{url}?orgId=org_one", headers=headers, timeout=10).json()["data"] == []
        assert requests.get(url, headers={"Authorization": "Bearer sim-key-all"}, timeout=10).status_code == 401


def test_an_unknown_organization_can_not_be_changed(sim: Simulator) -> None:
    with pytest.raises(LookupError, match="org_unheard_of"):
        sim.usage.add("org_unheard_of", DAY, 1, 1)

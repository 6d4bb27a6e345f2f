"""The service as documented: parameters, defaults, echo, rows and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import requests

from simulator import Organization, Simulator

Get = Callable[..., requests.Response]

EXAMPLE: dict[str, Any] = {
    "orgId": "org_abc123",
    "startDate": "2026-05-19",
    "endDate": "2026-06-18",
    "groupBy": "product",
    "data": [
        {"date": "2026-05-19", "group": "parse", "credits": 150.0, "requestCount": 75},
        {"date": "2026-05-19", "group": "extract", "credits": 80.0, "requestCount": 20},
    ],
}


def groups(response: requests.Response) -> set[str]:
    return {row["group"] for row in response.json()["data"]}


def total(response: requests.Response) -> int:
    return sum(row["requestCount"] for row in response.json()["data"])


def test_the_documented_example(sim: Simulator, get: Get) -> None:
    sim.usage.organizations["org_abc123"] = Organization("org_abc123")
    sim.keys["mine"] = ("org_abc123",)
    sim.usage.set_rows("org_abc123", EXAMPLE["data"])
    response = get("mine")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("application/json")
    assert response.json() == EXAMPLE


def test_defaults_are_thirty_days_by_product_of_the_own_organization(get: Get) -> None:
    answer = get("sim-key-globex").json()
    assert list(answer) == ["orgId", "startDate", "endDate", "groupBy", "data"]
    assert answer["orgId"] == "org_globex"
    assert (answer["startDate"], answer["endDate"]) == ("2026-05-19", "2026-06-18")
    assert answer["groupBy"] == "product"
    assert {row["group"] for row in answer["data"]} == {"parse", "extract", "classify"}


def test_a_member_of_several_organizations_selects_one(get: Get) -> None:
    assert get().json()["orgId"] == "org_acme"
    assert get(orgId="org_hooli").json()["orgId"] == "org_hooli"


def test_the_range_is_inclusive_and_echoed(get: Get) -> None:
    answer = get(startDate="2026-06-01", endDate="2026-06-03").json()
    assert (answer["startDate"], answer["endDate"]) == ("2026-06-01", "2026-06-03")
    assert {row["date"] for row in answer["data"]} == {"2026-06-01", "2026-06-02", "2026-06-03"}
    assert {row["date"] for row in get(startDate="2026-06-02", endDate="2026-06-02").json()["data"]} == {"2026-06-02"}


@pytest.mark.parametrize(
    ("dimension", "group"),
    [("product", "parse"), ("feature", "citations"), ("api_key", "invoices-prod"), ("file_type", "pdf")],
)
def test_each_dimension(get: Get, dimension: str, group: str) -> None:
    response = get(groupBy=dimension)
    assert response.json()["groupBy"] == dimension
    assert group in groups(response)


def test_rows_are_sorted_unique_and_of_the_documented_types(get: Get) -> None:
    rows = get(groupBy="feature").json()["data"]
    places = [(row["date"], row["group"]) for row in rows]
    assert places == sorted(set(places))
    for row in rows:
        assert list(row) == ["date", "group", "credits", "requestCount"]
        assert isinstance(row["credits"], float)
        assert isinstance(row["requestCount"], int)
        assert row["requestCount"] > 0


@pytest.mark.parametrize(
    ("parameter", "dimension", "values"),
    [
        ("product", "product", ["parse", "extract"]),
        ("feature", "feature", ["standard", "label"]),
        ("apiKey", "api_key", ["mailroom", "invoices-prod"]),
        ("fileType", "file_type", ["pdf", "tiff"]),
    ],
)
def test_a_repeated_filter_takes_any_of_its_values(get: Get, parameter: str, dimension: str, values: list[str]) -> None:
    assert groups(get(groupBy=dimension, **{parameter: values})) == set(values)
    assert groups(get(groupBy=dimension, **{parameter: values[0]})) == {values[0]}


def test_filters_work_whatever_the_grouping(get: Get) -> None:
    by_dimension = [
        get(groupBy=dimension, apiKey="mailroom") for dimension in ("product", "feature", "api_key", "file_type")
    ]
    assert len({total(response) for response in by_dimension}) == 1
    assert groups(by_dimension[0]) == {"split", "classify"}
    assert groups(by_dimension[2]) == {"mailroom"}


def test_different_filters_all_apply(get: Get) -> None:
    response = get(groupBy="api_key", product=["classify", "split"], fileType="tiff")
    assert groups(response) == {"back-office", "mailroom"}
    assert groups(get(product="parse", feature="label")) == set()


def test_a_filter_that_nothing_matches_leaves_no_rows(get: Get) -> None:
    assert get(product="unheard-of").json()["data"] == []


def test_a_misspelt_filter_is_ignored(get: Get) -> None:
    assert total(get(api_key="mailroom", file_type="tiff")) == total(get()) > total(get(apiKey="mailroom"))


@pytest.mark.parametrize("dimension", ["apiKey", "fileType", "Product", "", "day"])
def test_an_invalid_grouping(get: Get, dimension: str) -> None:
    response = get(groupBy=dimension)
    assert response.status_code == 400
    assert "groupBy" in response.json()["error"]


@pytest.mark.parametrize("name", ["startDate", "endDate"])
@pytest.mark.parametrize(
    "value",
    [
        "",
        "yesterday",
        "20260601",
        "2026-6-1",
        "2026-W23-1",
        "2026-02-30",
        "2026-06-01T00:00:00",
        "01/06/2026",
    ],
)
def test_an_invalid_date(get: Get, name: str, value: str) -> None:
    response = get(**{name: value})
    assert response.status_code == 400
    assert name in response.json()["error"]


def test_a_start_after_the_end(get: Get) -> None:
    assert get(startDate="2026-06-02", endDate="2026-06-01").status_code == 400


@pytest.mark.parametrize("name", ["startDate", "endDate", "groupBy", "orgId"])
def test_only_filters_may_be_repeated(get: Get, name: str) -> None:
    assert get(**{name: ["2026-06-01", "2026-06-02"]}).status_code == 400


@pytest.mark.parametrize("authorization", [None, "Bearer nobody", "Bearer ", "Basic sim-key-all", "sim-key-all"])
def test_a_key_missing_or_invalid(sim: Simulator, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    response = requests.get(f"{sim.url}/api/v1/usage/export", headers=headers, timeout=10)
    assert response.status_code == 401
    assert set(response.json()) == {"error"}


@pytest.mark.parametrize("org", ["org_acme", "org_unheard_of", ""])
def test_not_a_member(get: Get, org: str) -> None:
    response = get("sim-key-globex", orgId=org)
    assert response.status_code == 403
    assert set(response.json()) == {"error"}


def test_no_other_method_and_no_other_path(sim: Simulator) -> None:
    assert requests.post(f"{sim.url}/api/v1/usage/export", timeout=10).status_code == 405
    assert requests.get(f"{sim.url}/api/v1/usage", timeout=10).status_code == 404

"""The page's configuration."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from reducto_provider.plugins.usage_page.settings import PageDataset, parse_datasets


def test_a_dataset_with_everything():
    fields = {
        "name": "Production",
        "path": "s3://lake/reducto",
        "conn_id": "lake",
        "metric": "requests",
        "budgets": {"org_acme": 30000.5, "org_globex": 7},
        "dag_id": "reducto_usage",
    }
    [found] = parse_datasets(json.dumps([fields]))
    assert found == PageDataset(**{**fields, "budgets": {"org_acme": Decimal("30000.5"), "org_globex": Decimal(7)}})


def test_the_least():
    [found] = parse_datasets('[{"name": "a", "path": "/usage"}]')
    assert (found.metric, found.budgets, found.conn_id, found.dag_id) == ("credits", {}, None, None)


@pytest.mark.parametrize("text", ["", " ", "[]"])
def test_nothing(text):
    assert parse_datasets(text) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"\[reducto\] usage_page must be a JSON list of objects with name and path"),
        ("{}", "must be a JSON list"),
        ("[1]", "must be a JSON list"),
        ("[" * 9999, "must be a JSON list"),
        ('[{"name": "a"}]', r"dataset 1 of \[reducto\] usage_page: path must be given"),
        ('[{"path": "/a"}]', "name must be given"),
        ('[{"name": "a", "path": "/a", "budget": 1}]', "'budget' is not one of name, path, conn_id"),
        ('[{"name": "a", "path": "a"}]', "output_path must be a URL"),
        ('[{"name": "a", "path": "/a/../b"}]', "must not contain"),
        ('[{"name": "a", "path": 1}]', "output_path must be a URL"),
        ('[{"name": " ", "path": "/a"}]', "name must be text that is not empty"),
        ('[{"name": "a", "path": "/a", "metric": "x"}]', "metric must be one of credits, requests, not 'x'"),
        ('[{"name": "a", "path": "/a", "conn_id": ""}]', "conn_id must be text"),
        ('[{"name": "a", "path": "/a", "dag_id": 1}]', "dag_id must be text"),
        ('[{"name": "a", "path": "/a", "budgets": []}]', "budgets must be an object"),
        (
            '[{"name": "a", "path": "/a", "budgets": {"o": 0}}]',
            r"budgets\['o'\] must be a number above 0 .*, not 0; leave it out",
        ),
        ('[{"name": "a", "path": "/a", "budgets": {"o": -1}}]', "must be a number above 0"),
        ('[{"name": "a", "path": "/a", "budgets": {"o": null}}]', "must be a number above 0"),
        ('[{"name": "a", "path": "/a", "budgets": {"o": NaN}}]', "must be a JSON list"),
        ('[{"name": "a", "path": "/a", "budgets": {"o": "Infinity"}}]', "must be a number above 0"),
        ('[{"name": "a", "path": "/a", "budgets": {"o": 1e999999999}}]', "must be a number above 0"),
        ('[{"name": "a", "path": "/a", "budgets": {"o": 1e-999999999}}]', "must be a number above 0"),
        ('[{"name": "a", "path": "/a", "budgets": {"o": "x"}}]', r"budgets\['o'\] must be a number above 0"),
        ('[{"name": "a", "path": "/a"}, {"name": "a", "path": "/b"}]', "two datasets of the name 'a'"),
    ],
)
def test_what_is_wrong_is_named(text, said):
    with pytest.raises(ValueError, match=said):
        parse_datasets(text)

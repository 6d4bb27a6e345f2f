"""A query as DAG authors write it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import pytest

from reducto_provider.usage.fields import QUERY_FIELDS, check_literals, is_literal, parse_day, parse_query
from reducto_provider.usage.query import UsageQuery

DAY = date(2026, 6, 18)
OTHER_TASK = SimpleNamespace(task_id="other")
NOTHING = dict.fromkeys(QUERY_FIELDS) | {"group_by": "product"}


@pytest.mark.parametrize(
    ("value", "day"),
    [
        (DAY, DAY),
        ("2026-06-18", DAY),
        ("2028-02-29", date(2028, 2, 29)),
        ("0001-01-01", date(1, 1, 1)),
    ],
)
def test_a_day(value, day):
    assert parse_day("usage_start_date", value) == day


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 6, 18, tzinfo=UTC),
        "2026-06-18T00:00:00",
        "2026-06-18 00:00",
        "20260618",
        "2026-6-18",
        "2026-02-29",
        "18.06.2026",
        "2026-06-18 ",
        "2026-W25-4",
        "\uff12026-06-18",
        "today",
        "None",
        "",
        None,
        20260618,
        ["2026-06-18"],
    ],
    ids=repr,
)
def test_what_is_no_day_is_refused(value):
    with pytest.raises(ValueError) as error:
        parse_day("usage_end_date", value)

    said = str(error.value)
    assert "usage_end_date" in said
    assert repr(value) in said
    assert "yyyy-mm-dd" in said
    assert "leave both days out for the run's own" in said
    assert "data_interval_start" not in said, "the day that begins, under Airflow 3's @daily"


def test_a_query_from_rendered_fields():
    query = parse_query(
        usage_start_date="2026-06-01",
        usage_end_date=DAY,
        group_by="file_type",
        org_id="org_abc123",
        products="parse",
        features=None,
        api_keys=["a", "b"],
        file_types=(),
    )

    assert query == UsageQuery(
        start=date(2026, 6, 1),
        end=DAY,
        group_by="file_type",
        org_id="org_abc123",
        products=("parse",),
        api_keys=("a", "b"),
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("usage_start_date", "{{ ds }}"),
        ("usage_end_date", None),
        ("group_by", "apikey"),
        ("org_id", ""),
        ("products", ""),
        ("file_types", "['pdf']"),
    ],
)
def test_a_field_that_renders_to_nonsense_is_named(field, value):
    fields = {**NOTHING, "usage_start_date": DAY, "usage_end_date": DAY, field: value}

    with pytest.raises(ValueError, match=field):
        parse_query(**fields)


@pytest.mark.parametrize(
    "value",
    [
        "parse",
        "",
        "{ ds }",
        "}}",
        None,
        DAY,
        timedelta(7),
        5,
        0.5,
        Decimal(1),
        True,
        ["a", "b"],
        (),
        {"a"},
        [["a"], "b"],
    ],
    ids=repr,
)
def test_literals(value):
    assert is_literal(value)


@pytest.mark.parametrize(
    "value",
    [
        "{{ ds }}",
        "org_{{ params.org }}",
        "{% if params.all %}a{% endif %}",
        ["a", "{{ b }}"],
        ("a", ["{{ b }}"]),
        {"{{ a }}"},
        OTHER_TASK,
        [OTHER_TASK],
        {"a": 1},
    ],
    ids=str,
)
def test_templates_and_other_tasks_results_are_no_literals(value):
    assert not is_literal(value)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"usage_start_date": DAY, "usage_end_date": DAY},
        {"usage_start_date": "2026-06-01", "usage_end_date": "2026-06-18"},
        {"usage_start_date": "{{ ds }}", "usage_end_date": "2026-06-18"},
        {"usage_start_date": "2026-06-18", "usage_end_date": "{{ ds }}"},
        {"usage_start_date": "{{ ds }}", "usage_end_date": OTHER_TASK},
        {"group_by": "{{ params.group_by }}"},
        {"org_id": "{{ params.org }}", "products": "{{ params.products }}"},
        {"products": ["parse", "{{ params.other }}"]},
        {"api_keys": []},
        {"org_id": OTHER_TASK},
    ],
    ids=str,
)
def test_what_may_be_right_passes_when_the_dag_is_parsed(fields):
    check_literals({**NOTHING, **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"usage_start_date": DAY}, "usage_start_date and usage_end_date go together", id="start alone"),
        pytest.param({"usage_end_date": "{{ ds }}"}, "usage_start_date and usage_end_date go together", id="end alone"),
        pytest.param({"usage_start_date": "2026-06-19", "usage_end_date": DAY}, "2026-06-19 is after", id="swapped"),
        pytest.param({"usage_start_date": "yesterday", "usage_end_date": "{{ ds }}"}, "usage_start_date", id="no day"),
        pytest.param(
            {"usage_start_date": "{{ ds }}", "usage_end_date": "2026-06-31"}, "usage_end_date", id="no such day"
        ),
        pytest.param({"group_by": "day"}, "group_by must be one of", id="dimension"),
        pytest.param({"group_by": None}, "group_by must be one of", id="no dimension"),
        pytest.param({"org_id": " "}, "org_id", id="blank organization"),
        pytest.param({"products": ["parse", ""]}, "products", id="empty product"),
        pytest.param({"features": "['ocr']"}, "features", id="list as text"),
        pytest.param({"api_keys": 7}, "api_keys", id="number for a filter"),
    ],
)
def test_what_can_not_be_right_is_refused_when_the_dag_is_parsed(fields, said):
    with pytest.raises(ValueError, match=said):
        check_literals({**NOTHING, **fields})

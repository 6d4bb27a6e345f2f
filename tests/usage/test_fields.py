"""A query as DAG authors write it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import pytest

from reducto_provider.usage.fields import (
    GIVEN,
    QUERY_FIELDS,
    REMEDIES,
    check_given,
    check_literals,
    check_not_empty,
    is_literal,
    is_run_days,
    outline,
    parse_day,
    parse_query,
    restore_literals,
)
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
        "{# all of them #}",
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
        {"org_id": OTHER_TASK},
        {"usage_start_date": "run", "usage_end_date": "run"},
        {"usage_start_date": "run", "usage_end_date": "{{ params.end }}"},
        {"api_keys": ["[legacy]", "(ci)", "None", " a ", "a,b", "*"]},
        {"products": "*"},
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
        pytest.param({"api_keys": "prod, ci"}, "give a list, such as \\['prod', 'ci'\\]", id="a comma"),
        pytest.param({"usage_start_date": "run", "usage_end_date": DAY}, "'run' together", id="start of the run"),
        pytest.param({"usage_start_date": DAY, "usage_end_date": "run"}, "'run' together", id="end of the run"),
    ],
)
def test_what_can_not_be_right_is_refused_when_the_dag_is_parsed(fields, said):
    with pytest.raises(ValueError, match=said):
        check_literals({**NOTHING, **fields})


NAMES = ["[legacy]", "None", "7"]


@pytest.mark.parametrize(
    ("written", "outlined"),
    [
        ("parse", "parse"),
        ("{{ ds }}", GIVEN),
        (OTHER_TASK, GIVEN),
        (NAMES, NAMES),
        (["parse", "{{ ds }}"], ["parse", GIVEN]),
        (("{{ ds }}", ["a", OTHER_TASK]), [GIVEN, ["a", GIVEN]]),
        ({"{{ ds }}"}, GIVEN),
        ([{"org_id": "a", "reducto_conn_id": OTHER_TASK}], [{"org_id": "a", "reducto_conn_id": GIVEN}]),
        (None, None),
        (DAY, DAY),
    ],
    ids=str,
)
def test_an_outline_has_what_is_literal(written, outlined):
    assert outline(written) == outlined


@pytest.mark.parametrize(
    ("written", "rendered", "restored"),
    [
        ("7", 7, "7"),
        ("a\n", "a", "a\n"),
        (NAMES, ["[legacy]", None, 7], NAMES),
        ([*NAMES, "{{ x }}"], ["[legacy]", None, 7, 8], [*NAMES, 8]),
        (("7", OTHER_TASK), (7, [1]), ["7", [1]]),
        ("{{ x }}", [7], [7]),
        (
            [{"org_id": "7", "reducto_conn_id": "{{ x }}"}],
            [{"org_id": 7, "reducto_conn_id": "c"}],
            [{"org_id": "7", "reducto_conn_id": "c"}],
        ),
        ({"7", "8"}, {7, 8}, {"7", "8"}),
        (DAY, DAY, DAY),
    ],
)
def test_rendering_changes_nothing_literal(written, rendered, restored):
    assert restore_literals(outline(written), rendered) == restored


@pytest.mark.parametrize("lost", [None, "", " \n", "None", " None ", [], (), {}, set()], ids=repr)
def test_what_was_given_and_is_lost_is_named_with_a_remedy(lost):
    for name, remedy in REMEDIES.items():
        with pytest.raises(ValueError) as error:
            check_given(name, GIVEN, lost)
        assert str(error.value) == f"{name} is given but resolved to {lost!r}: {remedy}"
    for outlined, value in [(GIVEN, ["a", lost]), (["a", GIVEN], ["a", lost]), ([{"b": GIVEN}], [{"b": lost}])]:
        with pytest.raises(ValueError) as error:
            check_given("organizations", outlined, value)
        assert "organizations is given but an element of it resolved to " + repr(lost) in str(error.value)


@pytest.mark.parametrize(
    ("outlined", "value"),
    [
        (None, "assigned"),
        ("a", "a"),
        (NAMES, NAMES),
        ([*NAMES, GIVEN], [*NAMES, "a"]),
        (GIVEN, 0),
        (GIVEN, False),
        (GIVEN, ["[legacy]", "a,b"]),
        (GIVEN, DAY),
        (GIVEN, "none"),
        (["a", GIVEN], "assigned"),
    ],
    ids=str,
)
def test_what_is_literal_or_came_out_as_something_is_not_lost(outlined, value):
    check_given("api_keys", outlined, value)


def test_a_list_that_an_element_of_a_list_renders_to_as_text_is_no_name():
    with pytest.raises(ValueError, match="api_keys is a list written as text"):
        check_given("api_keys", ["a", GIVEN], ["a", "['b', 'c']"])


@pytest.mark.parametrize(
    ("said", "empty"),
    [
        *(("empty, ", value) for value in ("", " \n", [], (), set())),
        *(
            ("an element of it is empty, ", value)
            for value in (["a", ""], ["{{ x }}", " "], ["a", None], [["a"], []], [{"org_id": ""}])
        ),
    ],
    ids=str,
)
def test_a_literal_that_is_empty_is_not_left_out(said, empty):
    with pytest.raises(ValueError) as error:
        check_not_empty({"org_id": None, "products": empty})
    assert str(error.value) == f"products is given but {said}{empty!r}: {REMEDIES['products']}"


def test_whose_days_are_those_of_the_run():
    assert is_run_days({"usage_start_date": "run", "usage_end_date": "run"})
    assert not is_run_days({"usage_start_date": DAY, "usage_end_date": DAY})
    assert not is_run_days({"usage_start_date": None, "usage_end_date": None})

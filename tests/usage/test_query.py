"""What is requested: its parameters, and what is refused before it is sent."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import UTC, date, datetime
from importlib import import_module
from inspect import signature

import pytest

from reducto_provider.usage.fields import QUERY_FIELDS, REMEDIES
from reducto_provider.usage.query import DIMENSIONS, FILTER_PARAMETERS, UsageQuery, unmatched_filters

DAY = date(2026, 6, 18)


def test_only_what_is_set_is_sent():
    assert UsageQuery(start=date(2026, 5, 19), end=DAY).params() == [
        ("startDate", "2026-05-19"),
        ("endDate", "2026-06-18"),
        ("groupBy", "product"),
    ]


def test_parameters_come_in_a_fixed_order_and_repeat():
    query = UsageQuery(
        file_types=["pdf", "docx"],
        api_keys=["key-1", "key-2"],
        features=("ocr", "agentic"),
        products=["parse", "extract"],
        org_id="org_abc123",
        group_by="api_key",
        end=DAY,
        start=DAY,
    )

    assert query.params() == [
        ("startDate", "2026-06-18"),
        ("endDate", "2026-06-18"),
        ("groupBy", "api_key"),
        ("orgId", "org_abc123"),
        ("product", "parse"),
        ("product", "extract"),
        ("feature", "ocr"),
        ("feature", "agentic"),
        ("apiKey", "key-1"),
        ("apiKey", "key-2"),
        ("fileType", "pdf"),
        ("fileType", "docx"),
    ]


@pytest.mark.parametrize("dimension", ["product", "feature", "api_key", "file_type"])
def test_dimensions_are_spelled_in_snake_case(dimension):
    assert ("groupBy", dimension) in UsageQuery(start=DAY, end=DAY, group_by=dimension).params()
    assert dimension in DIMENSIONS


@pytest.mark.parametrize(
    ("field", "parameter"),
    [("products", "product"), ("features", "feature"), ("api_keys", "apiKey"), ("file_types", "fileType")],
)
def test_filters_are_spelled_in_camel_case(field, parameter):
    assert UsageQuery(start=DAY, end=DAY, **{field: "x"}).params()[3:] == [(parameter, "x")]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        pytest.param("parse", ("parse",), id="one text"),
        pytest.param(["parse", "extract"], ("parse", "extract"), id="in the order given"),
        pytest.param(["b", "a", "b", "a", "c"], ("b", "a", "c"), id="without repetitions"),
        pytest.param(("parse", "split"), ("parse", "split"), id="a tuple"),
        pytest.param({"parse"}, ("parse",), id="a set"),
        pytest.param([], (), id="none"),
        pytest.param("*", (), id="all"),
        pytest.param(["*"], ("*",), id="a star among several is a name"),
        pytest.param(
            ["[legacy]", "(ci)", "None", "['a', 'b']"], ("[legacy]", "(ci)", "None", "['a', 'b']"), id="names in a list"
        ),
        pytest.param([" a ", "a,b"], (" a ", "a,b"), id="blanks and commas in a list"),
        pytest.param("[draft", ("[draft",), id="a bracket is no list"),
        pytest.param(["Parse", "parse"], ("Parse", "parse"), id="upper and lower case are two"),
        pytest.param("a b/c&d=e\N{SNOWMAN}", ("a b/c&d=e\N{SNOWMAN}",), id="whatever the text"),
    ],
)
@pytest.mark.parametrize("field", list(FILTER_PARAMETERS))
def test_a_filter_is_one_text_or_several(field, values, kept):
    assert getattr(UsageQuery(start=DAY, end=DAY, **{field: values}), field) == kept


def test_a_generator_is_kept():
    assert UsageQuery(start=DAY, end=DAY, products=(each for each in "ab")).products == ("a", "b")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"start": date(2026, 6, 19)}, ["2026-06-19", "2026-06-18", "swap"], id="days swapped"),
        pytest.param({"start": datetime(2026, 6, 18, tzinfo=UTC)}, ["start", "datetime.datetime"], id="a moment"),
        pytest.param(
            {"end": datetime(2026, 6, 18, tzinfo=UTC)}, ["end", "datetime.datetime"], id="a moment at the end"
        ),
        pytest.param({"start": "2026-06-18"}, ["start", "'2026-06-18'", "datetime.date"], id="a day as text"),
        pytest.param({"end": None}, ["end", "None", "datetime.date"], id="no day"),
        pytest.param(
            {"group_by": "apiKey"}, ["group_by", "'apiKey'", "product, feature, api_key, file_type"], id="camel case"
        ),
        pytest.param({"group_by": "Product"}, ["group_by", "'Product'", "product"], id="upper case"),
        pytest.param({"group_by": ""}, ["group_by", "''", "product"], id="no dimension"),
        pytest.param({"group_by": None}, ["group_by", "None", "product"], id="None for a dimension"),
        pytest.param({"group_by": ["product"]}, ["group_by", "['product']"], id="a list of dimensions"),
        pytest.param({"products": {"parse": 1}}, ["products", "{'parse': 1}", "text or several"], id="a dict"),
        pytest.param({"org_id": ""}, ["org_id", "''", "leave it out"], id="empty organization"),
        pytest.param({"org_id": " \n"}, ["org_id", "' \\n'", "leave it out"], id="blank organization"),
        pytest.param({"org_id": 5}, ["org_id", "5"], id="a number for an organization"),
        pytest.param({"org_id": "\ud800"}, ["org_id", "Unicode"], id="organization that can't be encoded"),
    ],
)
def test_what_can_not_be_requested_is_refused(fields, said):
    with pytest.raises(ValueError) as error:
        UsageQuery(**{"start": DAY, "end": DAY, **fields})

    assert [text for text in said if text not in str(error.value)] == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param("", ["''", "leave it out"], id="empty"),
        pytest.param(["parse", ""], ["''", "leave it out"], id="one of them empty"),
        pytest.param(["parse", "  "], ["'  '", "leave it out"], id="one of them blank"),
        pytest.param([None], ["None"], id="None among them"),
        pytest.param([["parse"]], ["['parse']"], id="a list in a list"),
        pytest.param(5, ["text, not 5", "'{{ params.name }}'"], id="a number"),
        pytest.param(["parse", 5.0], ["text, not 5.0", "'{{ params.name }}'"], id="a number among them"),
        pytest.param(" parse", ["' parse'", "['parse']"], id="a blank before"),
        pytest.param("parse\n", ["'parse\\n'", "['parse']"], id="a line's end behind"),
        pytest.param("parse, edit,", ["'parse, edit,'", "['parse', 'edit']"], id="several as one text"),
        pytest.param("None", ["'None'", "a template rendered None"], id="the text None"),
        pytest.param(None, ["None"], id="None"),
        pytest.param(["\udfff"], ["Unicode"], id="not encodable"),
        pytest.param(
            "['parse', 'extract']", ["list written as text", "render_template_as_native_obj"], id="list as text"
        ),
        pytest.param('["parse"]', ["list written as text"], id="JSON list as text"),
        pytest.param("[]", ["list written as text"], id="empty list as text"),
        pytest.param(" ['parse']\n", ["list written as text"], id="list as text among blanks"),
    ],
)
@pytest.mark.parametrize("field", list(FILTER_PARAMETERS))
def test_a_filter_that_can_not_be_meant_is_refused(field, values, said):
    with pytest.raises(ValueError) as error:
        UsageQuery(start=DAY, end=DAY, **{field: values})

    assert [text for text in [field, *said] if text not in str(error.value)] == []


def test_a_query_does_not_change():
    query = UsageQuery(start=DAY, end=DAY, products=["parse"])

    with pytest.raises(FrozenInstanceError):
        query.org_id = "other"
    assert hash(query) == hash(UsageQuery(start=DAY, end=DAY, products="parse"))


def test_filters_do_not_depend_on_how_they_were_given():
    one = UsageQuery(start=DAY, end=DAY, products=["b", "a", "b"], file_types="pdf")
    other = UsageQuery(start=DAY, end=DAY, file_types=["pdf"], products=("a", "b"))

    assert one.filters() == other.filters() == {"products": ["a", "b"], "file_types": ["pdf"]}
    assert UsageQuery(start=DAY, end=DAY).filters() == {}


def test_an_answer_without_any_row_is_told_with_the_filters_that_nothing_matches():
    query = UsageQuery(start=DAY, end=DAY, org_id="org_a", products="pasre", api_keys=["b\n", "a"])

    warning = unmatched_filters(query, 0)
    assert "org_a, 2026-06-18" in warning
    assert "products=['pasre'], api_keys=['a', 'b\\n']: check the names" in warning
    assert unmatched_filters(query, 1) is None
    assert unmatched_filters(UsageQuery(start=DAY, end=DAY), 0) is None


def test_early_years_keep_four_digits():
    assert UsageQuery(start=date(1, 1, 1), end=date(1, 1, 2)).params()[0] == ("startDate", "0001-01-01")


def test_each_dimension_has_a_filter_with_the_name_that_the_service_knows():
    assert FILTER_PARAMETERS == {
        "products": "product",
        "features": "feature",
        "api_keys": "apiKey",
        "file_types": "fileType",
    }
    assert set(FILTER_PARAMETERS) < set(QUERY_FIELDS)
    assert set(FILTER_PARAMETERS) < set(REMEDIES)


@pytest.mark.parametrize(
    ("path", "required"),
    [
        ("usage.query.UsageQuery", {"start": date(2026, 6, 1), "end": date(2026, 6, 1)}),
        ("operators.base.BaseQueryOperator", {"task_id": "export"}),
        ("sensors.threshold.ReductoUsageThresholdSensor", {"task_id": "wait", "threshold": 1}),
        ("triggers.threshold.ReductoUsageThresholdTrigger", {"reducto_conn_id": "conn", "threshold": "1"}),
        ("triggers.levels.ReductoUsageLevelTrigger", {"budget": 1}),
    ],
)
def test_each_signature_has_all_filters_and_each_is_kept(path, required):
    module, _, name = path.rpartition(".")
    described = getattr(import_module(f"reducto_provider.{module}"), name)

    assert [each for each in signature(described).parameters if each in FILTER_PARAMETERS] == list(FILTER_PARAMETERS)
    made = described(**required, **{field: [f"a {field}"] for field in FILTER_PARAMETERS})
    assert {field: list(getattr(made, field)) for field in FILTER_PARAMETERS} == {
        field: [f"a {field}"] for field in FILTER_PARAMETERS
    }


@pytest.mark.parametrize(
    "path",
    [
        "operators.export.ReductoUsageExportOperator",
        "operators.fleet.ReductoUsageFleetExportOperator",
        "sensors.threshold.ReductoUsageThresholdSensor",
    ],
)
def test_each_docstring_names_all_dimensions(path):
    module, _, name = path.rpartition(".")
    text = getattr(import_module(f"reducto_provider.{module}"), name).__doc__

    assert [each for each in DIMENSIONS if f"``{each}``" not in text] == []

"""Queries made of anything: refused by name, or sent so that the service reads what was meant."""

from __future__ import annotations

from datetime import date
from urllib.parse import parse_qsl, urlsplit

from hypothesis import given
from hypothesis import strategies as st

from reducto_provider.hooks.reducto import ENDPOINT
from reducto_provider.hooks.settings import ReductoSettings
from reducto_provider.hooks.transport import url_of
from reducto_provider.usage.fields import check_literals, parse_query
from reducto_provider.usage.query import DIMENSIONS, FILTER_PARAMETERS, UsageQuery

ODD = st.sampled_from(
    [
        "*",
        "a,b",
        "[a]",
        "&orgId=other",
        "a=b",
        "%26",
        "+",
        " a ",
        "#",
        "?",
        "/../",
        "\r\nHost: other",
        "é",
        "\ud800",
        "None",
    ]
)
TEXT = st.one_of(ODD, st.text(max_size=8))
DATES = st.dates()
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.binary(max_size=4),
    TEXT,
    DATES,
    st.datetimes(),
    st.sampled_from(
        ["2026-06-01", "2026-6-1", "2026-02-30", "\u0662\u0660\u0662\u0666-06-01", "{{ ds }}", "[]", "product"]
    ),
    st.lists(TEXT, max_size=3),
    st.dictionaries(TEXT, TEXT, max_size=2),
)
FILTERS = st.one_of(TEXT, st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=4).map(tuple))
SETTINGS = ReductoSettings(base_url="https://studio.reducto.ai/prefix", key="key")


@given(
    days=st.tuples(DATES, DATES),
    group_by=st.sampled_from(DIMENSIONS),
    org_id=st.one_of(st.none(), TEXT),
    filters=st.fixed_dictionaries({}, optional=dict.fromkeys(FILTER_PARAMETERS, FILTERS)),
)
def test_the_service_reads_what_was_meant(days, group_by, org_id, filters):
    try:
        query = UsageQuery(start=min(days), end=max(days), group_by=group_by, org_id=org_id, **filters)
    except ValueError:
        assert (
            not (org_id is None or can_be_meant(org_id))
            or any(isinstance(given, str) and not can_be_one(given) for given in filters.values())
            or any(not is_name(text) for given in filters.values() for text in given if not isinstance(given, str))
        )
        return
    url = urlsplit(url_of(SETTINGS, ENDPOINT, query.params()))

    assert (url.scheme, url.netloc, url.path, url.fragment) == ("https", "studio.reducto.ai", f"/prefix{ENDPOINT}", "")
    assert url.query.isascii()
    sent = parse_qsl(url.query, keep_blank_values=True, strict_parsing=True)
    expected = [("startDate", str(min(days))), ("endDate", str(max(days))), ("groupBy", group_by)]
    expected += [("orgId", org_id)] if org_id is not None else []
    for name, values in sorted(filters.items(), key=lambda pair: list(FILTER_PARAMETERS).index(pair[0])):
        texts = {"*": []}.get(values, [values]) if isinstance(values, str) else values
        expected += [(FILTER_PARAMETERS[name], text) for text in dict.fromkeys(texts)]
    assert sent == expected


def is_name(text):
    return bool(text.strip()) and not any("\ud800" <= each <= "\udfff" for each in text)


def can_be_meant(text):
    bare = text.strip()
    return is_name(text) and bare != "None" and bare[0] + bare[-1] not in ("[]", "()", "{}")


def can_be_one(text):
    return can_be_meant(text) and "," not in text and text == text.strip()


@given(
    st.fixed_dictionaries(dict.fromkeys(["usage_start_date", "usage_end_date", "group_by", "org_id"], ANYTHING)),
    ANYTHING,
)
def test_whatever_is_given_is_taken_or_refused_by_name(fields, products):
    everything = {**fields, "products": products, "features": None, "api_keys": None, "file_types": None}
    refusal, query = "", None
    try:
        query = parse_query(**everything)
    except ValueError as error:
        refusal = str(error)
    if query is None:
        assert any(name in refusal for name in (*everything, "first day"))
        assert refusal.isprintable()
    else:
        assert query.start <= query.end
        assert type(query.start) is type(query.end) is date
        assert query.params()
        assert str(query).isprintable()
    try:
        check_literals(everything)
    except ValueError:
        return


@given(st.lists(TEXT.filter(can_be_meant), max_size=5), st.randoms())
def test_the_filters_of_a_dataset_do_not_depend_on_their_order(values, random):
    shuffled = values * 2
    random.shuffle(shuffled)
    queries = [UsageQuery(start=date(2026, 1, 1), end=date(2026, 1, 1), products=each) for each in (values, shuffled)]

    assert queries[0].filters() == queries[1].filters()

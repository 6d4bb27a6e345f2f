"""Answers that were tampered with: a typed error, or exactly what they say. Never a crash, never a wrong total."""

from __future__ import annotations

import json
from datetime import date, timedelta
from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reducto_provider.usage import wire
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageContractError
from reducto_provider.usage.wire import decode_report

FIRST, LAST = date(2026, 5, 19), date(2026, 6, 18)
QUERY = UsageQuery(start=FIRST, end=LAST, org_id="org_abc123")

GOOD = st.one_of(
    st.decimals(min_value=0, max_value=10**6, places=2).map(str),
    st.decimals(min_value=0, max_value=10, places=12).map(str),
    st.floats(min_value=0, max_value=1e9).map(repr),
    st.integers(min_value=0, max_value=10**6).map(str),
    st.sampled_from(["0", "-0", "-0.0", "1e2", "1E-3", "230.10000000000002", "1e-400", "1e28"]),
)
LITERALS = st.one_of(
    GOOD, st.sampled_from(["null", "-1", "NaN", "1e29", "1e400", "1e99999999999", '"5"', "true", "[]", "{}"])
)
GROUPS = st.one_of(
    st.none(), st.sampled_from(["parse", "extract", "", "é", '"', "\\", "},", "[", "]", "}]"]), st.text(max_size=3)
)


@pytest.fixture(scope="module", autouse=True)
def small_slices():
    """Answers of a few rows are decoded in slices, as large ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_SLICE_BYTES", 100)
        yield


IN_RANGE = st.integers(0, 30)


def rows_of(literals, days=IN_RANGE, **options):
    day = days.map(lambda number: str(FIRST + timedelta(days=number)))
    return st.lists(st.tuples(day, GROUPS, literals, st.integers(0, 2**63 - 1).map(str)), max_size=6, **options)


ROWS = st.one_of(rows_of(LITERALS), rows_of(GOOD), rows_of(GOOD, st.integers(-1, 31)))


def body_of(rows, extra=""):
    data = ", ".join(
        f'{{"date": "{day}", "group": {json.dumps(group)}, "credits": {credits}, "requestCount": {count}{extra}}}'
        for day, group, credits, count in rows
    )
    echo = f'"orgId": "org_abc123", "startDate": "{FIRST}", "endDate": "{LAST}", "groupBy": "product"'
    return f'{{{echo}, "data": [{data}]}}'.encode()


def check(body):
    """Decode it and, if it is taken for data, hold it against the standard library's reading of the same bytes."""
    try:
        report = decode_report(body, QUERY)
    except UsageContractError:
        return None
    answer = json.loads(body, parse_float=Decimal)
    echo = (answer["orgId"], answer["startDate"], answer["endDate"], answer["groupBy"])
    assert echo == ("org_abc123", str(FIRST), str(LAST), "product")
    with localcontext(prec=1000):
        said = {}
        for row in answer["data"]:
            credits = row.get("credits")
            key = (row["date"], row["group"])
            assert key not in said
            assert FIRST <= date.fromisoformat(row["date"]) <= LAST
            said[key] = (
                None if credits is None else Decimal(credits).quantize(Decimal("1e-9")),
                row["requestCount"],
            )
        assert {(str(row.date), row.group): (row.credits, row.request_count) for row in report.rows} == said
        credits = [credits for credits, _ in said.values()]
        assert report.credits == (None if None in credits else sum(credits, Decimal(0)))
        assert report.request_count == sum(count for _, count in said.values())
        assert all(row.credits is None or isinstance(row.credits, Decimal) for row in report.rows)
    return report


@given(rows=rows_of(GOOD, unique_by=lambda row: row[:2]))
def test_good_rows(rows):
    assert check(body_of(rows)) is not None


@given(rows=ROWS, extra=st.sampled_from(["", ', "pages": 5', ', "credits": 1', ', "credits": null']))
def test_any_rows(rows, extra):
    check(body_of(rows, extra))


@given(data=st.data(), rows=ROWS)
def test_tampered_bytes(data, rows):
    body = bytearray(body_of(rows))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(body) - 1))
        end = data.draw(st.integers(start, min(len(body), start + 20)))
        body[start:end] = data.draw(
            st.one_of(
                st.binary(max_size=3),
                st.sampled_from(
                    [b"", b'"', b"}", b"]", b",", b"[", b"},", b"0", b"-", b"e9", b"null", b"9" * 30, b"\\u0000", b" "]
                ),
                st.just(bytes(body[start:end]) * 2),
            )
        )
        if not body:
            break
    check(bytes(body))


@given(rows=ROWS, cut=st.integers(0, 400))
def test_cut_anywhere(rows, cut):
    body = body_of(rows)
    if cut < len(body):
        try:
            decode_report(body[:cut], QUERY)
        except UsageContractError:
            return
        raise AssertionError("taken for data")


@given(body=st.binary(max_size=300))
def test_any_bytes(body):
    check(body)

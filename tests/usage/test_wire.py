"""What is decoded: rows to the last digit, or a contract error. Never data that can't be trusted."""

from __future__ import annotations

import json
import logging
import random
from datetime import date
from decimal import Decimal
from uuid import uuid4

import pytest

from reducto_provider.usage import wire
from reducto_provider.usage.report import UsageContractError, UsageReport, UsageRow
from reducto_provider.usage.wire import decode_report, sent_rows

DOCUMENTED = b"""{"orgId": "org_abc123", "startDate": "2026-05-19", "endDate": "2026-06-18", "groupBy": "product",
 "data": [{"date": "2026-05-19", "group": "parse", "credits": 150.0, "requestCount": 75},
          {"date": "2026-05-19", "group": "extract", "credits": 80.0, "requestCount": 20}]}"""
NINES = "9" * 29


class TestRows:
    def test_the_documented_example(self, query):
        report = decode_report(DOCUMENTED, query(org_id="org_abc123"))

        assert report == UsageReport(
            org_id="org_abc123",
            start=date(2026, 5, 19),
            end=date(2026, 6, 18),
            group_by="product",
            rows=(
                UsageRow(date(2026, 5, 19), "extract", Decimal(80), 20),
                UsageRow(date(2026, 5, 19), "parse", Decimal(150), 75),
            ),
        )
        assert report.credits == Decimal(230)
        assert report.request_count == 95

    def test_no_usage(self, decode):
        report = decode()

        assert report.rows == ()
        assert report.credits == 0
        assert report.request_count == 0

    @pytest.mark.parametrize("dimension", ["product", "feature", "api_key", "file_type"])
    def test_each_dimension(self, body, row, query, dimension):
        report = decode_report(body(row(), groupBy=f'"{dimension}"'), query(group_by=dimension))

        assert report.group_by == dimension
        assert len(report.rows) == 1

    def test_the_service_chooses_the_organization_when_none_is_given(self, body, query):
        assert decode_report(body(orgId='"org_other"'), query(org_id=None)).org_id == "org_other"

    def test_the_first_and_the_last_day_belong_to_the_range(self, decode, row):
        report = decode(row(date='"2026-06-18"'), row(date='"2026-05-19"'))

        assert [each.date for each in report.rows] == [date(2026, 5, 19), date(2026, 6, 18)]

    def test_rows_are_ordered_by_day_and_group(self, decode, row):
        report = decode(
            row(date='"2026-06-01"', group='"b"'),
            row(date='"2026-05-20"', group='"z"'),
            row(date='"2026-06-01"', group='""'),
            row(date='"2026-06-01"', group='"B"'),
            row(date='"2026-06-01"', group="null"),
        )

        assert [(str(each.date), each.group) for each in report.rows] == [
            ("2026-05-20", "z"),
            ("2026-06-01", None),
            ("2026-06-01", ""),
            ("2026-06-01", "B"),
            ("2026-06-01", "b"),
        ]

    def test_no_group_and_an_empty_one_are_kept_apart(self, decode, row):
        assert {each.group for each in decode(row(group="null"), row(group='""')).rows} == {None, ""}

    @pytest.mark.parametrize(
        ("sent", "group"),
        [
            (r'"a\u0000b"', "a\0b"),
            (r'"\ud83d\ude00"', "\N{GRINNING FACE}"),
            ('"\N{GRINNING FACE}"', "\N{GRINNING FACE}"),
            (r'"a\/b\n\"c\""', 'a/b\n"c"'),
            ('" parse "', " parse "),
            (f'"{"x" * 10_000}"', "x" * 10_000),
        ],
        ids=["NUL", "escaped emoji", "emoji", "escapes", "blanks", "long"],
    )
    def test_groups_are_kept_as_they_are(self, decode, row, sent, group):
        assert decode(row(group=sent)).rows[0].group == group

    def test_any_order_gives_an_equal_report(self, decode, row):
        rows = [
            row(date=f'"2026-06-{day:02}"', group=group, credits=f"{day}.{number}", requestCount=str(number))
            for day in range(1, 19)
            for number, group in enumerate(['"parse"', '"extract"', '""', "null"])
        ]
        expected = decode(*rows)

        for seed in range(5):
            shuffled = random.Random(seed).sample(rows, len(rows))
            assert decode(*shuffled) == expected
            assert sent_rows(decode(*shuffled)) == sent_rows(expected)


class TestLargeAnswers:
    """Of many rows, which are not decoded in one go."""

    ROWS = 5_000

    @pytest.fixture
    def rows(self, row):
        return [row(group=f'"key {number}"', credits=f"{number}.5") for number in range(self.ROWS)]

    @pytest.mark.parametrize("name", ["key {}", "}},{{{}", "}}, {}", "[{}]", "}}],{}", "{}\\"])
    def test_every_row_is_there(self, decode, row, name):
        usage = {name.format(number): Decimal(f"{number}.5") for number in range(self.ROWS)}
        usage |= {None: Decimal(7), "": None}
        rows = [
            row(group=json.dumps(group), credits=str(credits or "null"), requestCount=str(number))
            for number, (group, credits) in enumerate(usage.items())
        ]

        for seed in range(3):
            report = decode(*random.Random(seed).sample(rows, len(rows)))
            assert {each.group: each.credits for each in report.rows} == usage
            assert len(report.rows) == len(usage)
            assert report.request_count == sum(range(len(usage)))

    @pytest.mark.parametrize(
        ("separator", "count"), [(",", ROWS), (" ,\n", ROWS), (",,", None), ("", None), (", [],", None)]
    )
    def test_between_rows(self, query, body, rows, separator, count):
        answer = body(data=f"[{separator.join(rows)}]")

        if count:
            assert len(decode_report(answer, query()).rows) == count
        else:
            with pytest.raises(UsageContractError):
                decode_report(answer, query())

    @pytest.mark.parametrize("comma", [",", ", ", " ,\n"])
    def test_nothing_follows_the_last_comma(self, query, body, rows, monkeypatch, comma):
        monkeypatch.setattr(wire, "_SLICE_BYTES", 1)  # so that each row is decoded for itself

        assert len(decode_report(body(*rows[:3]), query()).rows) == 3
        with pytest.raises(UsageContractError, match="trailing comma"):
            decode_report(body(data=f"[{', '.join(rows[:3])}{comma}]"), query())

    @pytest.mark.parametrize("index", [0, 1, 2_500, ROWS - 1])
    @pytest.mark.parametrize(
        ("literals", "said"),
        [
            ({"credits": "-1.5"}, "row {}: credits must not be negative: -1.5"),
            ({"credits": "-2"}, "row {}: credits must not be negative: -2"),
            ({"credits": "true"}, "row {}: credits must be a number, not True"),
            ({"credits": '"5"'}, "row {}: credits must be a number, not '5'"),
            ({"credits": "1e29"}, "row {}: credits are beyond"),
            ({"requestCount": "-1"}, "`$.data[{}].requestCount`"),
            ({"date": '"2026-06-19"'}, "row {}: 2026-06-19 is outside"),
        ],
        ids=str,
    )
    def test_the_first_offence_is_named(self, decode, row, rows, index, literals, said):
        rows[index] = row(group='"x"', **literals)

        with pytest.raises(UsageContractError) as error:
            decode(*rows, row(group='"y"', **literals))

        assert said.format(index) in str(error.value)


class TestCredits:
    @pytest.mark.parametrize(
        ("sent", "kept"),
        [
            ("230.10000000000002", "230.1"),
            ("0.30000000000000004", "0.3"),
            ("150.0", "150"),
            ("150", "150"),
            ("1e2", "100"),
            ("1.5E-3", "0.0015"),
            ("0", "0"),
            ("-0.0", "0"),
            ("-0", "0"),
            ("0.123456789", "0.123456789"),
            # Half-even, at the tenth place.
            ("0.0000000005", "0"),
            ("0.0000000015", "0.000000002"),
            ("0.0000000025", "0.000000002"),
            ("0.00000000250000000000000000000001", "0.000000003"),
            ("0.00000000249999999999999999999999", "0.000000002"),
            ("1e-9999999999", "0"),
            # Above what a binary float tells apart, or an int64 holds.
            ("9007199254740993.000000001", "9007199254740993.000000001"),
            ("18446744073709551616", "18446744073709551616"),
            (f"{NINES}.999999999", f"{NINES}.999999999"),
            (f"{NINES}.9999999994", f"{NINES}.999999999"),
            (f"0.1{'0' * 50_000}1", "0.1"),
        ],
        ids=lambda text: text[:40],
    )
    def test_to_nine_places(self, decode, row, sent, kept):
        (decoded,) = decode(row(credits=sent)).rows

        assert decoded.credits == Decimal(kept)
        assert decoded.credits.as_tuple().exponent >= -9
        assert not decoded.credits.is_signed()

    def test_values_are_rounded_before_they_are_added(self, decode, row):
        # Each is 0.1; their sum, rounded once at the end, would be 0.200000001.
        rows = [row(group='"a"', credits="0.1000000004"), row(group='"b"', credits="0.1000000004")]

        assert decode(*rows).credits == Decimal("0.2")

    @pytest.mark.parametrize("sent", [None, "null"], ids=["missing", "null"])
    def test_no_figure_is_not_zero(self, decode, row, sent):
        report = decode(row(credits=sent), row(group='"extract"', credits="80.0", requestCount="20"))

        assert [each.credits for each in report.rows] == [Decimal(80), None]
        assert report.credits is None
        assert report.request_count == 22


class TestUnknownKeys:
    def test_are_left_out_and_logged_once(self, decode, row, caplog):
        caplog.set_level(logging.INFO)
        name = f"pages{uuid4().hex}"
        extended = row(**{name: '{"of": [1, 2]}'})

        reports = [decode(extended), decode(extended), decode(row(group='"b"'), extended)]

        assert [len(report.rows) for report in reports] == [1, 1, 2]
        assert reports[0] == decode(row())
        assert [name in record.getMessage() for record in caplog.records].count(True) == 1

    def test_known_keys_are_not_logged(self, decode, row, caplog):
        caplog.set_level(logging.INFO)

        decode(row(), row(group="null", credits=None))

        assert caplog.records == []

    def test_around_the_rows_do_no_harm(self, body, row, query):
        assert len(decode_report(body(row(), generatedAt='"2026-06-18"', plan="null"), query()).rows) == 1


class TestSentRows:
    def test_are_as_sent_in_the_order_of_the_rows(self, decode, row):
        later = row(date='"2026-06-01"', credits="230.10000000000002", unit='"page"')
        none = row(group="null", credits=None)
        empty = '{ "requestCount":1,\n"group" : "", "date":"2026-05-19","credits":1E0 }'
        last = row(group=r'"caf\u00e9"', credits="null")

        report = decode(later, last, empty, none)

        assert sent_rows(report) == [text.encode() for text in (none, empty, last, later)]
        assert [each.group for each in report.rows] == [None, "", "caf\u00e9", "parse"]

    def test_of_no_usage(self, decode):
        assert sent_rows(decode()) == []


class TestContract:
    """Whatever is wrong with an answer, it is this error, and it says what is wrong."""

    @pytest.mark.parametrize(
        ("literals", "said"),
        [
            ({"orgId": '"org_other"'}, ["orgId", "'org_other'", "'org_abc123'"]),
            ({"orgId": '"ORG_ABC123"'}, ["orgId", "'ORG_ABC123'"]),
            ({"startDate": '"2026-05-20"'}, ["startDate", "2026-05-20", "2026-05-19"]),
            ({"endDate": '"2026-06-17"'}, ["endDate", "2026-06-17", "2026-06-18"]),
            ({"groupBy": '"feature"'}, ["groupBy", "'feature'", "'product'"]),
        ],
        ids=["organization", "organization in upper case", "first day", "last day", "dimension"],
    )
    def test_an_answer_to_another_query(self, body, row, query, literals, said):
        with pytest.raises(UsageContractError) as error:
            decode_report(body(row(), **literals), query(org_id="org_abc123"))

        assert [text for text in said if text not in str(error.value)] == []

    @pytest.mark.parametrize("org_id", ['""', '" "'])
    def test_an_answer_for_no_organization(self, body, row, query, org_id):
        with pytest.raises(UsageContractError, match="orgId is empty"):
            decode_report(body(row(), orgId=org_id), query())

    @pytest.mark.parametrize("day", ["2026-05-18", "2026-06-19", "2025-06-01", "0001-01-01", "9999-12-31"])
    def test_a_day_outside_the_range(self, decode, row, day):
        with pytest.raises(UsageContractError, match=f"row 1: {day} is outside 2026-05-19 to 2026-06-18"):
            decode(row(), row(date=f'"{day}"', group='"extract"'))

    @pytest.mark.parametrize("group", ['"parse"', '""', "null", r'"\u0070arse"'])
    def test_the_same_day_and_group_twice(self, decode, row, group):
        rows = [row(group='"other"'), row(group=group), row(group='"last"'), row(group=group, credits="9")]

        with pytest.raises(UsageContractError, match=r"row 3: 2026-05-19 has the group .* twice"):
            decode(*rows)

    def test_the_first_offence_is_named(self, decode, row):
        with pytest.raises(UsageContractError, match=r"row 1: credits must not be negative: -1\.5"):
            decode(row(), row(group='"b"', credits="-1.5"), row(group='"c"', credits="-2.5"))

    @pytest.mark.parametrize(
        "literal",
        [
            "NaN",
            "nan",
            "Infinity",
            "-Infinity",
            "-1",
            "-0.000000001",
            "-1e-30",
            "-99999999999999999999999999",
            "-1e9999999999",
            "1e29",
            "1e400",
            "1e9999999999",
            "1e99999999999999999999",
            "1e-99999999999999999999",
            "100000000000000000000000000000",
            f"{NINES}.9999999995",
            "9" * 40,
            "9" * 5000,
            '"150.0"',
            '""',
            "true",
            "false",
            "[]",
            "[150]",
            "{}",
            "0x10",
            "01",
            "1.",
            ".5",
            "+1",
            "1_000",
            "1,5",
        ],
        ids=lambda text: text[:30],
    )
    def test_credits_that_are_none(self, decode, row, literal):
        with pytest.raises(UsageContractError):
            decode(row(), row(group='"extract"', credits=literal))

    @pytest.mark.parametrize(
        "literal",
        [
            None,
            "null",
            "-1",
            "0.5",
            "NaN",
            "Infinity",
            "9223372036854775808",
            "18446744073709551616",
            "1e400",
            "1e9999999999",
            "9" * 5000,
            '"75"',
            "true",
            "[]",
        ],
        ids=lambda text: str(text)[:30],
    )
    def test_request_counts_that_are_none(self, decode, row, literal):
        with pytest.raises(UsageContractError):
            decode(row(), row(group='"extract"', requestCount=literal))

    def test_the_largest_request_count(self, decode, row):
        report = decode(row(requestCount=str(2**63 - 1)), row(group='"b"', requestCount=str(2**63 - 1)))

        assert report.request_count == 2**64 - 2

    @pytest.mark.parametrize(
        ("field", "literal"),
        [
            ("date", None),
            ("date", "null"),
            ("date", '""'),
            ("date", "20260519"),
            ("date", '"2026-5-19"'),
            ("date", '"2026-05-19T00:00:00Z"'),
            ("date", '"2026-05-32"'),
            ("date", '"19.05.2026"'),
            ("group", None),
            ("group", "5"),
            ("group", "true"),
            ("group", '["parse"]'),
            ("group", "{}"),
        ],
    )
    def test_days_and_groups_of_another_type(self, decode, row, field, literal):
        with pytest.raises(UsageContractError, match=r"data\[1\]|missing required field"):
            decode(row(), row(**{field: literal}))

    @pytest.mark.parametrize(
        "literals",
        [
            {"data": None},
            {"data": "null"},
            {"data": "{}"},
            {"data": '"[]"'},
            {"data": "[null]"},
            {"data": "[[]]"},
            {"data": '["parse"]'},
            {"orgId": None},
            {"orgId": "null"},
            {"orgId": "5"},
            {"startDate": None},
            {"startDate": '"19/05/2026"'},
            {"endDate": "20260618"},
            {"groupBy": None},
            {"groupBy": "null"},
        ],
        ids=str,
    )
    def test_an_answer_of_another_form(self, body, query, literals):
        with pytest.raises(UsageContractError, match="does not have the documented form"):
            decode_report(body(**literals), query())

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b" \n", id="blank"),
            pytest.param(b"<!doctype html><title>Sign in</title>", id="HTML"),
            pytest.param(b"\xef\xbb\xbf" + DOCUMENTED, id="byte order mark"),
            pytest.param(DOCUMENTED.decode().encode("utf-16"), id="UTF-16"),
            pytest.param(DOCUMENTED.replace(b"parse", b"p\xe4rse"), id="Latin-1 in a group"),
            pytest.param(DOCUMENTED.replace(b"parse", b"\xed\xa0\x80"), id="surrogate in UTF-8"),
            pytest.param(DOCUMENTED.replace(b"parse", b"\xc0\xaf"), id="overlong UTF-8"),
            pytest.param(DOCUMENTED.replace(b"75}", b'75, "note": "\xff"}'), id="not UTF-8 in an unknown key"),
            pytest.param(DOCUMENTED.replace(b"parse", rb"\ud800"), id="lone surrogate"),
            pytest.param(DOCUMENTED.replace(b"parse", rb"\udc00\ud800"), id="surrogates swapped"),
            pytest.param(DOCUMENTED.replace(b"75}", rb'75, "note": "\ud800"}'), id="lone surrogate in an unknown key"),
            pytest.param(DOCUMENTED.replace(b"parse", b"pa\nrse"), id="control character"),
            pytest.param(DOCUMENTED.replace(b"parse", rb"\x70arse"), id="unknown escape"),
            pytest.param(DOCUMENTED.replace(b"75}", b'75, "note": NaN}'), id="NaN in an unknown key"),
            pytest.param(DOCUMENTED.replace(b'"', b"'"), id="single quotes"),
            pytest.param(DOCUMENTED + b"}", id="something behind it"),
            pytest.param(DOCUMENTED + DOCUMENTED, id="twice"),
            pytest.param(b"null", id="null"),
            pytest.param(b"[]", id="a list"),
            pytest.param(b'"' + b"x" * 1000 + b'"', id="a text"),
            pytest.param(b"[" * 200_000, id="lists in lists"),
            pytest.param(b'{"data":' * 200_000, id="objects in objects"),
            pytest.param(
                DOCUMENTED.replace(b"75}", b'75, "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
                id="an unknown key nested without end",
            ),
            pytest.param(
                DOCUMENTED.replace(b'"data"', b'"x": ' + b'{"x":' * 200_000 + b"1" + b"}" * 200_000 + b', "data"'),
                id="nested without end around the rows",
            ),
        ],
    )
    def test_an_answer_that_is_not_one(self, query, content):
        with pytest.raises(UsageContractError):
            decode_report(content, query())

    def test_an_answer_cut_short_anywhere(self, query):
        for length in range(len(DOCUMENTED)):
            with pytest.raises(UsageContractError):
                decode_report(DOCUMENTED[:length], query())

    @pytest.mark.parametrize(
        ("field", "literal"),
        [("group", f'"{"x" * 100_000}"'), ("credits", f'"{"9" * 100_000}"'), ("credits", f"-0.{'9' * 100_000}")],
        ids=["group", "credits as text", "digits"],
    )
    def test_the_error_stays_short(self, decode, row, field, literal):
        with pytest.raises(UsageContractError) as error:
            decode(row(**{field: literal}), row(**{field: literal}))

        assert len(str(error.value)) < 300


def test_a_big_answer(query, body):
    days = [f"2026-06-{day:02}" for day in range(1, 19)] + ["2026-05-30", "2026-05-31"]
    rows = [
        f'{{"date":"{day}","group":"key-{number}","credits":230.10000000000002,"requestCount":{number}}}'
        for day in days
        for number in range(15_000)
    ]
    random.Random(1).shuffle(rows)

    report = decode_report(body(*rows, groupBy='"api_key"'), query(group_by="api_key"))

    assert len(report.rows) == 300_000
    assert report.credits == Decimal("230.1") * 300_000
    assert report.request_count == 20 * sum(range(15_000))
    assert report.rows[0] == UsageRow(date(2026, 5, 30), "key-0", Decimal("230.1"), 0)

"""Rows to bytes, and back again with what others read them with."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from decimal import Decimal, localcontext
from hashlib import sha256
from pathlib import Path

import pytest

from reducto_provider.export.focus import FOCUS_FORMATS, PRICE_OPTIONS, BillingTerms, parse_terms
from reducto_provider.export.formats import COMPRESSIONS, FORMATS, Format, check_format, compressed, jsonl, parquet
from reducto_provider.export.formats.focus import FocusFormat
from reducto_provider.operators.export import ReductoUsageExportOperator

PLAIN_FORMATS = [name for name in FORMATS if name not in FOCUS_FORMATS]

USAGE = [
    ("2026-06-17", "parse", "230.10000000000002", 75),
    ("2026-06-17", "extract", "80", 20),
    ("2026-06-18", None, "0.0", 0),
    ("2026-06-18", "", "null", 1),
    ("2026-06-18", "caf\u00e9", "0.000000001", 9223372036854775807),
]
KEYS = {"org_id": "org_abc123", "group_by": "product"}
HOSTILE = [
    "a/b\\c",
    "../../etc/passwd",
    'say "hi"',
    '"',
    "'single'",
    "two\nlines",
    "carriage\r\nreturn",
    "comma,semicolon;tab\t",
    "\N{GRINNING FACE}\N{SNOWMAN}",
    "nul\0byte",
    "\u2028\u2029\ufeff",
    " blanks ",
    "null",
    "=1+1",
    "x" * 10_000,
    "",
]


@pytest.fixture
def encode(make_export):
    """The bytes of these rows in a format."""

    def encode(name, usage, keys=None, **fields):
        output = check_format(name)
        return output.encode(output.rows(make_export(*usage, **fields).report), keys or {})

    return encode


class TestBytes:
    def test_json(self, encode):
        assert encode("json", USAGE).decode() == (
            "[\n"
            '{"date":"2026-06-17","group":"extract","credits":80,"requestCount":20},\n'
            '{"date":"2026-06-17","group":"parse","credits":230.10000000000002,"requestCount":75},\n'
            '{"date":"2026-06-18","group":null,"credits":0.0,"requestCount":0},\n'
            '{"date":"2026-06-18","group":"","credits":null,"requestCount":1},\n'
            '{"date":"2026-06-18","group":"caf\\u00e9","credits":0.000000001,"requestCount":9223372036854775807}\n'
            "]\n"
        )

    def test_jsonl(self, encode):
        assert encode("jsonl", USAGE).decode() == (
            '{"date":"2026-06-17","group":"extract","credits":80.0,"request_count":20}\n'
            '{"date":"2026-06-17","group":"parse","credits":230.1,"request_count":75}\n'
            '{"date":"2026-06-18","group":null,"credits":0.0,"request_count":0}\n'
            '{"date":"2026-06-18","group":"","credits":null,"request_count":1}\n'
            '{"date":"2026-06-18","group":"caf\u00e9","credits":0.000000001,"request_count":9223372036854775807}\n'
        )

    @pytest.mark.parametrize("name", ["jsonl", "parquet"])
    @pytest.mark.parametrize("keys", [{}, KEYS], ids=["without keys", "with keys"])
    def test_some_rows_at_a_time(self, encode, monkeypatch, name, keys):
        whole = encode(name, USAGE, keys)
        monkeypatch.setattr(jsonl, "ROWS_PER_BATCH", 2)
        monkeypatch.setattr(parquet, "_ROWS_PER_CHUNK", 2)
        assert encode(name, USAGE, keys) == whole

    def test_csv(self, encode):
        assert encode("csv", USAGE).decode() == (
            "date,group,credits,request_count\n"
            '2026-06-17,"extract",80.0,20\n'
            '2026-06-17,"parse",230.1,75\n'
            "2026-06-18,,0.0,0\n"
            '2026-06-18,"",,1\n'
            '2026-06-18,"caf\u00e9",0.000000001,9223372036854775807\n'
        )

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            (
                "json",
                '[\n{"org_id":"\\"a\\"","group_by":"b","date":"2026-06-18","group":null,"credits":1,"requestCount":2}\n]\n',
            ),
            (
                "jsonl",
                '{"org_id":"\\"a\\"","group_by":"b","date":"2026-06-18","group":null,"credits":1.0,"request_count":2}\n',
            ),
            ("csv", 'org_id,group_by,date,group,credits,request_count\n"""a""","b",2026-06-18,,1.0,2\n'),
        ],
        ids=["json", "jsonl", "csv"],
    )
    def test_with_the_keys_as_columns(self, encode, name, expected):
        keys = {"org_id": '"a"', "group_by": "b"}

        assert encode(name, [("2026-06-18", None, "1", 2)], keys).decode() == expected

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("json", "[\n\n]\n"), ("jsonl", ""), ("csv", "org_id,group_by,date,group,credits,request_count\n")],
    )
    def test_without_rows(self, encode, name, expected):
        assert encode(name, [], KEYS, start="2026-06-18", end="2026-06-18").decode() == expected

    def test_parquet_has_a_dictionary_of_what_is_repeated(self, encode):
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        def columns(usage, keys):
            group = ParquetFile(pa.BufferReader(encode("parquet", usage, keys))).metadata.row_group(0)
            found = [group.column(number) for number in range(group.num_columns)]
            return {column.path_in_schema for column in found if column.has_dictionary_page}

        assert columns(USAGE[:2], KEYS) == {"org_id", "group_by", "date", "credits", "request_count"}
        assert columns(USAGE, {}) == {"date", "group", "credits", "request_count"}

    @pytest.mark.parametrize("name", PLAIN_FORMATS)
    def test_the_same_rows_in_any_order_give_the_same_bytes(self, encode, name):
        expected = encode(name, USAGE)

        for seed in range(5):
            assert encode(name, random.Random(seed).sample(USAGE, len(USAGE))) == expected

    @pytest.mark.parametrize(
        ("sent", "written"),
        [
            ("0", "0.0"),
            ("-0.0", "0.0"),
            ("150", "150.0"),
            ("150.0", "150.0"),
            ("1e3", "1000.0"),
            ("1E28", f"1{'0' * 28}.0"),
            ("0.30000000000000004", "0.3"),
            ("1e-9", "0.000000001"),
            ("1e-10", "0.0"),
            (f"{'9' * 29}.999999999", f"{'9' * 29}.999999999"),
            ("9007199254740993", "9007199254740993.0"),
        ],
    )
    def test_credits_are_exact_and_have_a_decimal_point(self, encode, sent, written):
        usage = [("2026-06-18", "parse", sent, 1)]

        assert f'"credits":{written},' in encode("jsonl", usage).decode()
        assert f'"parse",{written},1\n' in encode("csv", usage).decode()


class TestReadBack:
    @pytest.fixture
    def usage(self):
        return [("2026-06-18", group, f"{number}.5", number) for number, group in enumerate(HOSTILE)]

    @pytest.fixture
    def expected(self, usage):
        return sorted((group, Decimal(credits), requests) for _, group, credits, requests in usage)

    @pytest.mark.parametrize("keys", [{}, KEYS], ids=["rows", "with keys"])
    def test_jsonl(self, encode, usage, expected, keys):
        lines = encode("jsonl", usage, keys).decode().split("\n")

        assert lines.pop() == ""
        rows = [json.loads(line, parse_float=Decimal) for line in lines]
        assert sorted((row["group"], row["credits"], row["request_count"]) for row in rows) == expected
        assert {tuple(row) for row in rows} == {(*keys, "date", "group", "credits", "request_count")}

    @pytest.mark.parametrize("keys", [{}, KEYS], ids=["rows", "with keys"])
    def test_json(self, encode, usage, expected, keys):
        rows = json.loads(encode("json", usage, keys), parse_float=Decimal)

        assert sorted((row["group"], row["credits"], row["requestCount"]) for row in rows) == expected
        assert all(keys.items() <= row.items() for row in rows)

    @pytest.mark.parametrize("keys", [{}, KEYS], ids=["rows", "with keys"])
    def test_csv(self, encode, usage, expected, keys):
        rows = list(csv.DictReader(io.StringIO(encode("csv", usage, keys).decode(), newline="")))

        assert sorted((row["group"], Decimal(row["credits"]), int(row["request_count"])) for row in rows) == expected
        assert all(keys.items() <= row.items() for row in rows)

    def test_json_keeps_unknown_keys_and_digits(self, encode):
        usage = [
            ("2026-06-18", "b", "1.0000000000000000001", 1, {"unit": "page", "n": [1, {"x": None}]}),
            ("2026-06-18", "a", "2", 2, {}),
        ]

        first, second = json.loads(encode("json", usage, KEYS), parse_float=Decimal)

        assert first == {**KEYS, "date": "2026-06-18", "group": "a", "credits": 2, "requestCount": 2}
        assert second["credits"] == Decimal("1.0000000000000000001")
        assert (second["unit"], second["n"]) == ("page", [1, {"x": None}])


@pytest.mark.parametrize("name", ["json", "jsonl", "csv"])
def test_formats_by_name(name):
    assert check_format(name).name == check_format(name).extension == name


@pytest.mark.parametrize("name", ["JSON", "xml", "", None, "json "])
def test_other_formats_are_refused(name):
    with pytest.raises(ValueError, match="output_format must be one of json, jsonl, csv") as error:
        check_format(name)

    assert repr(name) in str(error.value)


class TestDigest:
    """What counts as a change of a day, and what does not."""

    @pytest.fixture
    def digest(self, make_export):
        def digest(*usage, output="jsonl", compression=None, terms=None, **fields):
            output = check_format(output, compression, terms)
            report = make_export(*usage, **fields).report
            return output.digest(report.rows, output.rows(report))

        return digest

    def test_stays_the_same_over_versions_of_this_package(self, digest):
        """A different digest would restate every day of every dataset."""
        lines = """\
{"date":"2026-06-17","group":"extract","credits":"80.000000000","requestCount":20}
{"date":"2026-06-17","group":"parse","credits":"230.100000000","requestCount":75}
{"date":"2026-06-18","group":null,"credits":"0E-9","requestCount":0}
{"date":"2026-06-18","group":"","credits":null,"requestCount":1}
{"date":"2026-06-18","group":"a/\\"\\\\\\n\\u0000\u2028","credits":"0.000001000","requestCount":2}
{"date":"2026-06-18","group":"caf\u00e9","credits":"1E-9","requestCount":9223372036854775807}
"""
        assert digest(*USAGE, ("2026-06-18", 'a/"\\\n\0\u2028', "0.000001", 2)) == sha256(lines.encode()).hexdigest()

    @pytest.mark.parametrize("name", PLAIN_FORMATS)
    def test_is_of_the_rows_whatever_the_format(self, digest, name):
        assert digest(*random.Random(1).sample(USAGE, len(USAGE)), output=name) == digest(*USAGE)

    @pytest.mark.parametrize("compression", ["gzip", "zstd"])
    def test_is_of_the_rows_whatever_the_compression(self, digest, compression):
        assert digest(*USAGE, compression=compression) == digest(*USAGE)

    @pytest.mark.parametrize("name", PLAIN_FORMATS)
    def test_of_no_rows_there_is_none(self, digest, name):
        assert digest(output=name, start="2026-06-17", end="2026-06-18") is None

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (("2026-06-17", "parse", "1", 1), ("2026-06-18", "parse", "1", 1)),
            (("2026-06-17", "parse", "1", 1), ("2026-06-17", "parse", "1.000000001", 1)),
            (("2026-06-17", "parse", "1", 1), ("2026-06-17", "parse", "1", 2)),
            (("2026-06-17", "parse", "0", 1), ("2026-06-17", "parse", "null", 1)),
            (("2026-06-17", "", "1", 1), ("2026-06-17", None, "1", 1)),
            (("2026-06-17", "-", "1", 1), ("2026-06-17", None, "1", 1)),
            (("2026-06-17", "a", "1", 1), ("2026-06-17", "A", "1", 1)),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("name", PLAIN_FORMATS)
    def test_of_other_rows_is_another_one(self, digest, name, one, other):
        assert digest(one, output=name) != digest(other, output=name)

    def test_no_group_can_be_taken_for_another_row(self, digest):
        day = "2026-06-17"
        forged = (day, f"a{day} 2.0 2 1:b", "1", 1)
        assert digest((day, "a", "1", 1), (day, "b", "2", 2)) != digest(forged)

    def test_a_last_binary_digit_is_no_change(self, digest):
        sums = [("2026-06-17", "parse", credits, 1) for credits in ("230.1", "230.10000000000002", "2.301e2")]
        for name in PLAIN_FORMATS:
            assert len({digest(row, output=name) for row in sums}) == 1

    def test_the_callers_decimal_context_has_no_say(self, digest):
        with localcontext(prec=3, capitals=0):
            in_context = digest(*USAGE)

        assert in_context == digest(*USAGE)

    def test_keys_that_are_not_known_are_content_of_json_alone(self, digest):
        row = ("2026-06-17", "parse", "1", 1)
        known = digest(row, output="json")
        some = [digest((*row, more), output="json") for more in ({"pages": 1}, {"pages": 2}, {"sheets": 1})]
        assert len({known, *some}) == 4
        both = [digest((*row, more), output="json") for more in ({"a": 1, "b": [2]}, {"b": [2], "a": 1})]
        assert both[0] == both[1] != known
        assert digest((*row, {"pages": 1})) == digest(row) == known

    def test_prices_are_content_of_costs(self, digest):
        row = ("2026-06-17", "parse", "1", 1)
        terms = {"price_per_credit": "0.010", "billing_account_name": "Acme"}
        one = digest(row, output="focus_csv", terms=BillingTerms(**terms))
        same = {**terms, "price_per_credit": "0.01", "contracted_price_per_credit": 0.01}
        assert digest(row, output="focus_parquet", terms=BillingTerms(**same)) == one
        for change in (
            {"price_per_credit": "0.02"},
            {"contracted_price_per_credit": "0.009"},
            {"prepaid": True},
            {"billing_currency": "EUR"},
            {"billing_account_name": "Acme Inc."},
        ):
            assert digest(row, output="focus_csv", terms=BillingTerms(**{**terms, **change})) != one


TERMS = BillingTerms(price_per_credit="0.015")
ENCODINGS = [
    *((name, None) for name in FORMATS),
    *((name, how) for name, each in FORMATS.items() if not each.compression for how in COMPRESSIONS),
]


class TestDecoding:
    @pytest.mark.parametrize(("name", "compression"), ENCODINGS)
    def test_the_rows_come_back_exact(self, make_export, name, compression):
        usage = [("2026-06-19", group, f"{index}.123456789", index) for index, group in enumerate(HOSTILE)]
        usage += USAGE if name not in FOCUS_FORMATS else [row for row in USAGE if row[2] != "null"]
        usage = [row for row in usage if "\0" not in str(row[1]) or name != "parquet"]
        report = make_export(*usage).report
        output = check_format(name, compression, TERMS if name in FOCUS_FORMATS else None)
        content = output.encode(output.rows(report), {})

        assert output.decode(content) == list(report.rows)

    @pytest.mark.parametrize("name", PLAIN_FORMATS)
    def test_keys_are_left_out(self, make_export, name):
        report, output = make_export(*USAGE).report, check_format(name)
        assert output.decode(output.encode(output.rows(report), KEYS)) == list(report.rows)

    @pytest.mark.parametrize(("name", "compression"), ENCODINGS)
    @pytest.mark.parametrize("cut", [0.3, 0.9])
    def test_what_is_cut_short_is_an_error(self, make_export, name, compression, cut):
        report = make_export(*USAGE[:3]).report
        output = check_format(name, compression, TERMS if name in FOCUS_FORMATS else None)
        content = output.encode(output.rows(report), {})
        with pytest.raises(ValueError):
            output.decode(content[: int(len(content) * cut)])

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            *(("jsonl", line) for line in ('{"date":"2026-06-17"}', "[]", "[" * 9999, '"\\ud800"')),
            *(
                (name, text % value)
                for name, text in (
                    ("jsonl", '{"date":"2026-06-17","group":"a","credits":%s,"request_count":1}\n'),
                    ("json", '[{"date":"2026-06-17","group":"a","credits":%s,"requestCount":1}]'),
                    ("csv", 'date,group,credits,request_count\n2026-06-17,"a",%s,1\n'),
                )
                for value in ("-1", "1e400", "NaN", '"1"x', "1e99999999999", "true", "{}", "9" * 40)
            ),
            *(
                ("csv", f"date,group,credits,request_count\n{line}\n")
                for line in ("2026-06-17,a,1.0", "2026-13-17,a,1.0,1", "2026-06-17,a,1.0,-1", "x,a,1.0,1", '"', "")
            ),
            ("csv", "date,credits,request_count\n"),
            ("csv", ""),
            ("parquet", "PAR1PAR1"),
        ],
    )
    def test_damaged_content_is_an_error(self, name, content):
        with pytest.raises(ValueError):
            FORMATS[name].decode(content.encode())

    @pytest.mark.parametrize("compression", COMPRESSIONS)
    def test_a_file_that_is_too_large_is_an_error(self, monkeypatch, compression):
        output = check_format("csv", compression)
        content = output.encode([], {})
        monkeypatch.setattr(compressed, "MAX_BYTES", 3)
        with pytest.raises(ValueError, match="more than 3 bytes when decompressed"):
            output.decode(content)


class TabSeparated(Format):
    """A format that this package does not have."""

    name = "tsv"
    extension = "tsv"

    def encode(self, rows, keys):
        return "".join(f"{row.date}\t{row.group}\t{row.credits}\t{row.request_count}\n" for row in rows).encode()

    def decode(self, content):
        raise NotImplementedError


class TestAnotherFormat:
    """A new format is a class and its line in the registry. Nothing else knows the formats by name."""

    @pytest.fixture(autouse=True)
    def _registered(self, monkeypatch):
        monkeypatch.setitem(FORMATS, "tsv", TabSeparated())

    def test_it_is_found_and_compressed(self, make_export):
        report = make_export(*USAGE[:1]).report

        assert check_format("tsv").encode(report.rows, {}) == b"2026-06-17\tparse\t230.100000000\t75\n"
        assert check_format("tsv", "gzip").extension == "tsv.gz"

    def test_messages_name_it(self):
        with pytest.raises(ValueError, match=r"must be one of json, jsonl, csv, .*, tsv, not 'xml'"):
            check_format("xml")

    def test_it_takes_no_prices(self):
        with pytest.raises(ValueError, match="price_per_credit must be left out for output_format='tsv'"):
            parse_terms("tsv", {**dict.fromkeys(PRICE_OPTIONS), "price_per_credit": 1})


def test_the_formats_with_prices_are_those_of_focus():
    assert tuple(name for name, each in FORMATS.items() if isinstance(each, FocusFormat)) == FOCUS_FORMATS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("page", ["README.md", "docs/export.md"])
def test_each_format_is_documented(name, page):
    assert re.search(rf"\b{name}\b", (Path(__file__).parents[2] / page).read_text())


def test_the_operator_documents_each_format():
    assert [name for name in FORMATS if f"``{name}``" not in (ReductoUsageExportOperator.__doc__ or "")] == []

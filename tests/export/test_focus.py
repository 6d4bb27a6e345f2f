"""FOCUS records: what each column holds, that costs are exact, and what prices are taken for."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal, localcontext

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.focus import (
    COLUMNS,
    FOCUS_FORMATS,
    PRICE_OPTIONS,
    BillingTerms,
    focus_records,
    parse_literal_terms,
    parse_terms,
)
from reducto_provider.export.formats import check_format
from reducto_provider.export.one_object import UsageObject
from reducto_provider.export.sink import DatasetMismatchError
from reducto_provider.usage.report import CreditsUnavailableError

USAGE = [
    ("2026-02-28", "parse", "230.10000000000002", 75),
    ("2026-02-28", "extract", "80", 20),
    ("2026-03-01", "classify", "0.000000001", 1),
    ("2026-03-01", "split", "0", 3),
    ("2026-03-01", "edit", "123456.789012345", 9223372036854775807),
    ("2026-03-02", None, "7.25", 2),
    ("2026-03-02", "", "1e3", 4),
]
HOSTILE = [
    'say "hi"',
    "'single'; DROP TABLE",
    "two\nlines",
    "carriage\r\nreturn",
    "comma,semicolon;tab\t",
    "\N{GRINNING FACE}\N{SNOWMAN} caf\u00e9",
    "%F0%9F%98%80",
    "\u2028\u2029\ufeff",
    "nul\0byte",
    " blanks ",
    "null",
    "None",
    "=1+1",
    ":",
    "a/b\\c{}[]",
    "x" * 10_000,
    "",
    None,
]
PRICES = {
    "metered": {"price_per_credit": "0.015"},
    "prepaid": {"price_per_credit": "0.015", "prepaid": True},
    "contracted": {"price_per_credit": "0.015", "contracted_price_per_credit": "0.0123456789"},
    "longest": {"price_per_credit": "999999999.999999999999", "contracted_price_per_credit": "0.000000000001"},
    "free": {"price_per_credit": 0, "prepaid": True},
}


@pytest.fixture
def records(make_export):
    """The records of these rows."""

    def records(*usage, terms=PRICES["metered"], **fields):
        return list(focus_records(make_export(*usage, **fields).report, BillingTerms(**terms)))

    return records


@pytest.fixture
def encode(make_export):
    """The bytes of these rows in a FOCUS format."""

    def encode(name, usage, terms=PRICES["metered"], compression=None, **fields):
        output = check_format(name, compression, BillingTerms(**terms))
        return output.encode(output.rows(make_export(*usage, **fields).report), {})

    return encode


def read_csv(content):
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def read_parquet(content):
    return pq.read_table(pa.BufferReader(content)).to_pylist()


def decimals(row):
    """A row's decimal columns, exactly as they are in the file."""
    return {name: Decimal(row[name]) for name, kind in COLUMNS.items() if kind in ("credits", "money")}


class TestRecord:
    def test_the_mapping(self, records):
        [record] = records(
            ("2026-06-17", "parse", "230.5", 75),
            org_id="org_acme",
            terms={
                "price_per_credit": "0.015",
                "contracted_price_per_credit": "0.01",
                "billing_currency": "EUR",
                "billing_account_name": "Acme, Inc.",
            },
        )

        assert record == {
            "BillingAccountId": "org_acme",
            "BillingAccountName": "Acme, Inc.",
            "BillingAccountType": "Organization",
            "BillingCurrency": "EUR",
            "PricingCurrency": "Credits",
            "BillingPeriodStart": date(2026, 6, 1),
            "BillingPeriodEnd": date(2026, 7, 1),
            "ChargePeriodStart": date(2026, 6, 17),
            "ChargePeriodEnd": date(2026, 6, 18),
            "ChargeCategory": "Usage",
            "ChargeClass": None,
            "ChargeFrequency": "Usage-Based",
            "ChargeDescription": 'Reducto credits consumed by product "parse".',
            "PricingQuantity": Decimal("230.5"),
            "PricingUnit": "Credits",
            "PricingCategory": "Standard",
            "ConsumedQuantity": Decimal(75),
            "ConsumedUnit": "Requests",
            "ListUnitPrice": Decimal("0.015"),
            "ContractedUnitPrice": Decimal("0.01"),
            "ListCost": Decimal("3.4575"),
            "ContractedCost": Decimal("2.305"),
            "EffectiveCost": Decimal("2.305"),
            "BilledCost": Decimal("2.305"),
            "PricingCurrencyListUnitPrice": Decimal(1),
            "PricingCurrencyContractedUnitPrice": Decimal(1),
            "PricingCurrencyEffectiveCost": Decimal("230.5"),
            "ProviderName": "Reducto",
            "PublisherName": "Reducto",
            "InvoiceIssuerName": "Reducto",
            "ServiceCategory": "AI and Machine Learning",
            "ServiceSubcategory": "Other (AI and Machine Learning)",
            "ServiceName": "Reducto",
            "SkuId": "reducto:product:parse",
            "SkuPriceId": "reducto:product:parse",
            "SkuMeter": "Credits consumed",
            "SkuPriceDetails": None,
            "Tags": '{"reducto/product":"parse"}',
            "InvoiceId": None,
            "CommitmentDiscountStatus": None,
            "SubAccountId": None,
            "SubAccountName": None,
            "SubAccountType": None,
            "x_GroupBy": "product",
            "x_Group": "parse",
            "x_RequestCount": 75,
        }
        assert list(record) == list(COLUMNS)
        assert [name.startswith("x_") for name in COLUMNS] == sorted(name.startswith("x_") for name in COLUMNS)

    def test_what_is_not_given(self, records):
        [record] = records(("2026-06-17", "parse", "2", 1), org_id="org_acme")

        assert record["BillingAccountName"] == "org_acme"
        assert record["BillingCurrency"] == "USD"
        assert record["ContractedUnitPrice"] == record["ListUnitPrice"] == Decimal("0.015")

    def test_prepaid_credits_are_billed_with_nothing(self, records):
        [metered] = records(("2026-06-17", "parse", "2", 1), terms=PRICES["metered"])
        [prepaid] = records(("2026-06-17", "parse", "2", 1), terms=PRICES["prepaid"])

        assert metered["BilledCost"] == metered["ContractedCost"]
        assert prepaid == {**metered, "BilledCost": 0}

    @pytest.mark.parametrize(
        ("day", "start", "end"),
        [
            ("2026-01-01", date(2026, 1, 1), date(2026, 2, 1)),
            ("2026-01-31", date(2026, 1, 1), date(2026, 2, 1)),
            ("2026-02-28", date(2026, 2, 1), date(2026, 3, 1)),
            ("2028-02-29", date(2028, 2, 1), date(2028, 3, 1)),
            ("2026-12-31", date(2026, 12, 1), date(2027, 1, 1)),
        ],
    )
    def test_a_billing_period_is_a_month(self, records, day, start, end):
        [record] = records((day, "parse", "2", 1))

        assert (record["BillingPeriodStart"], record["BillingPeriodEnd"]) == (start, end)
        assert record["ChargePeriodEnd"] - record["ChargePeriodStart"] == timedelta(days=1)

    @pytest.mark.parametrize("dimension", ["product", "feature", "api_key", "file_type"])
    def test_each_dimension_names_itself(self, records, dimension):
        [record] = records(("2026-06-17", "x", "2", 1), group_by=dimension)

        assert record["SkuId"] == record["SkuPriceId"] == f"reducto:{dimension}:x"
        assert json.loads(record["Tags"]) == {f"reducto/{dimension}": "x"}
        assert record["x_GroupBy"] == dimension
        assert dimension.replace("_", " ") in record["ChargeDescription"]

    def test_groups_of_any_kind(self, records):
        found = records(*[("2026-06-17", group, "2", 1) for group in HOSTILE])

        assert {record["x_Group"] for record in found} == set(HOSTILE)
        assert len({record["SkuId"] for record in found}) == len(HOSTILE), "an id for each"
        for record in found:
            assert json.loads(record["Tags"]) == {"reducto/product": record["x_Group"]}
            assert record["SkuId"].startswith("reducto:product")
            assert record["SkuId"].isprintable()
            for name in ("SkuId", "SkuPriceId", "ChargeDescription"):
                assert record[name].isascii(), "all that the validator takes"
                assert record[name].strip()

    def test_no_group_and_an_empty_one_stay_apart(self, records):
        nothing, empty = records(("2026-06-17", None, "2", 1), ("2026-06-17", "", "2", 1), group_by="api_key")

        assert (nothing["SkuId"], empty["SkuId"]) == ("reducto:api_key", "reducto:api_key:")
        assert (nothing["Tags"], empty["Tags"]) == ('{"reducto/api_key":null}', '{"reducto/api_key":""}')
        assert nothing["ChargeDescription"] == "Reducto credits consumed by no api key."
        assert empty["ChargeDescription"] == 'Reducto credits consumed by api key "".'

    def test_rows_without_credits_have_no_price(self, records):
        with pytest.raises(CreditsUnavailableError, match=r"org_acme.*another output_format"):
            records(("2026-06-17", "parse", "2", 1), ("2026-06-18", "parse", "null", 1), org_id="org_acme")

    def test_a_cost_that_no_file_holds(self, records):
        with pytest.raises(ValueError, match=r"1{28} credits on 2026-06-17 at 999999999 .*is the price right"):
            records(("2026-06-17", "parse", "1" * 28, 1), terms={"price_per_credit": 999_999_999})

    def test_no_rows_make_no_records(self, records):
        assert records(start="2026-06-17", end="2026-06-18") == []


class TestFiles:
    def test_the_bytes_of_a_csv_file(self, encode):
        content = encode("focus_csv", [("2026-06-17", "parse", "75", 5), ("2026-06-17", None, "0.5", 0)]).decode()

        account = '"org_abc123","org_abc123","Organization","USD","Credits"'
        periods = "2026-06-01T00:00:00Z,2026-07-01T00:00:00Z,2026-06-17T00:00:00Z,2026-06-18T00:00:00Z"
        names = '"Reducto","Reducto","Reducto","AI and Machine Learning","Other (AI and Machine Learning)","Reducto"'
        nothing, parse = "Reducto credits consumed by no product.", 'Reducto credits consumed by product ""parse"".'
        assert content == (
            ",".join(COLUMNS) + "\n"
            f'{account},{periods},"Usage",,"Usage-Based","{nothing}",0.5,"Credits","Standard",0.0,"Requests",'
            f"0.015,0.015,0.0075,0.0075,0.0075,0.0075,1.0,1.0,0.5,{names},"
            '"reducto:product","reducto:product","Credits consumed",,"{""reducto/product"":null}",,,,,,"product",,0\n'
            f'{account},{periods},"Usage",,"Usage-Based","{parse}",75.0,"Credits","Standard",5.0,"Requests",'
            f"0.015,0.015,1.125,1.125,1.125,1.125,1.0,1.0,75.0,{names},"
            '"reducto:product:parse","reducto:product:parse","Credits consumed",,"{""reducto/product"":""parse""}",'
            ',,,,,"product","parse",5\n'
        )

    def test_the_types_of_a_parquet_file(self, encode):
        file = pq.ParquetFile(pa.BufferReader(encode("focus_parquet", USAGE)))

        types = {
            "text": pa.string(),
            "moment": pa.timestamp("us", tz="UTC"),
            "credits": pa.decimal128(38, 9),
            "money": pa.decimal128(38, 21),
            "count": pa.int64(),
        }
        assert {field.name: field.type for field in file.schema_arrow} == {
            name: types[kind] for name, kind in COLUMNS.items()
        }
        assert file.schema_arrow.names == list(COLUMNS)
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"

    def test_moments_of_a_parquet_file(self, encode):
        [row] = read_parquet(encode("focus_parquet", [("2026-12-31", "parse", "2", 1)]))

        assert row["BillingPeriodStart"] == datetime(2026, 12, 1, tzinfo=UTC)
        assert row["BillingPeriodEnd"] == row["ChargePeriodEnd"] == datetime(2027, 1, 1, tzinfo=UTC)
        assert row["ChargePeriodStart"] == datetime(2026, 12, 31, tzinfo=UTC)

    @pytest.mark.parametrize("terms", PRICES.values(), ids=PRICES)
    @pytest.mark.parametrize(("name", "read"), [("focus_csv", read_csv), ("focus_parquet", read_parquet)])
    def test_cost_is_quantity_times_price_in_every_row(self, encode, make_export, name, read, terms):
        found = read(encode(name, USAGE, terms))

        report = make_export(*USAGE).report
        assert [Decimal(row["PricingQuantity"]) for row in found] == [row.credits for row in report.rows]
        assert [int(row["x_RequestCount"]) for row in found] == [row.request_count for row in report.rows]
        listed = Decimal(terms["price_per_credit"])
        contracted = Decimal(terms.get("contracted_price_per_credit", listed))
        for row in found:
            value = decimals(row)
            with localcontext(prec=100):
                assert value["ListCost"] == value["PricingQuantity"] * value["ListUnitPrice"]
                assert value["ContractedCost"] == value["PricingQuantity"] * value["ContractedUnitPrice"]
            assert (value["ListUnitPrice"], value["ContractedUnitPrice"]) == (listed, contracted)
            assert value["EffectiveCost"] == value["ContractedCost"]
            assert value["BilledCost"] == (0 if terms.get("prepaid") else value["ContractedCost"])
            assert value["PricingCurrencyEffectiveCost"] == value["PricingQuantity"]
            assert value["ConsumedQuantity"] == int(row["x_RequestCount"])

    def test_both_formats_tell_the_same(self, encode):
        by_csv = read_csv(encode("focus_csv", USAGE, PRICES["contracted"]))
        by_parquet = read_parquet(encode("focus_parquet", USAGE, PRICES["contracted"]))

        for text, typed in zip(by_csv, by_parquet, strict=True):
            assert decimals(text) == decimals(typed)
            for name, kind in COLUMNS.items():
                if kind == "moment":
                    assert text[name] == typed[name].strftime("%Y-%m-%dT%H:%M:%SZ")
                elif kind in ("text", "count"):
                    assert text[name] == ("" if typed[name] is None else str(typed[name]))

    def test_decimal_columns_always_have_a_point(self, encode):
        whole = [("2026-06-17", f"group {number}", str(number * 25), number) for number in range(4)]
        found = read_csv(encode("focus_csv", whole, {"price_per_credit": 2, "contracted_price_per_credit": "1E+1"}))

        for row in found:
            for name in decimals(row):
                assert row[name].count(".") == 1, f"{name} is {row[name]}"
                assert set(row[name]) <= set("0123456789.")
            assert row["x_RequestCount"].isdecimal()

    @pytest.mark.parametrize(("name", "read"), [("focus_csv", read_csv), ("focus_parquet", read_parquet)])
    def test_hostile_groups_can_be_read_back(self, encode, name, read):
        usage = [("2026-06-18", group, f"{number}.5", number) for number, group in enumerate(HOSTILE)]

        found = {int(row["x_RequestCount"]): row for row in read(encode(name, usage, PRICES["contracted"]))}

        assert len(found) == len(HOSTILE)
        for number, group in enumerate(HOSTILE):
            assert (found[number]["x_Group"] or None) == (group or None)
            assert json.loads(found[number]["Tags"]) == {"reducto/product": group}
            assert None not in found[number], "no more values than columns"

    @pytest.mark.parametrize(
        ("name", "reader"),
        [("focus_csv", "read_csv('{}', all_varchar = true)"), ("focus_parquet", "read_parquet('{}')")],
    )
    def test_an_engine_sums_it_exactly(self, encode, tmp_path, name, reader):
        file = tmp_path / "usage"
        file.write_bytes(encode(name, USAGE, PRICES["contracted"]))
        with duckdb.connect() as engine:
            [sums] = engine.sql(
                "SELECT sum(PricingQuantity::DECIMAL(38, 9)), sum(ListCost::DECIMAL(38, 21)), "
                f"sum(BilledCost::DECIMAL(38, 21)), sum(x_RequestCount::HUGEINT) FROM {reader.format(file)}"
            ).fetchall()

        credits = Decimal("230.1") + 80 + Decimal("0.000000001") + Decimal("123456.789012345") + Decimal("1007.25")
        requests = 75 + 20 + 1 + 3 + 9223372036854775807 + 2 + 4
        assert sums == (credits, credits * Decimal("0.015"), credits * Decimal("0.0123456789"), requests)

    @pytest.mark.parametrize("name", FOCUS_FORMATS)
    def test_the_same_rows_in_any_order_give_the_same_bytes(self, encode, name):
        expected = encode(name, USAGE)

        for seed in range(5):
            assert encode(name, random.Random(seed).sample(USAGE, len(USAGE))) == expected

    @pytest.mark.parametrize("name", FOCUS_FORMATS)
    def test_the_callers_precision_changes_nothing(self, encode, name):
        expected = encode(name, USAGE, PRICES["longest"])

        with localcontext(Context(prec=3)):
            assert encode(name, USAGE, PRICES["longest"]) == expected

    def test_compressed(self, encode):
        packed = encode("focus_csv", USAGE, compression="gzip")

        assert gzip.decompress(packed) == encode("focus_csv", USAGE)
        terms = BillingTerms(price_per_credit=1)
        assert check_format("focus_csv", "gzip", terms).extension == "csv.gz"
        with pytest.raises(ValueError, match="compression must be left out for focus_parquet"):
            check_format("focus_parquet", "gzip", terms)


class TestPrices:
    @pytest.mark.parametrize(
        ("given", "price"),
        [
            ("0.015", "0.015"),
            (" 0.0150000000000000000000 ", "0.015"),
            (".5", "0.5"),
            ("3.", "3"),
            ("1e-5", "0.00001"),
            (0.015, "0.015"),
            (0.1, "0.1"),
            (1e-7, "0.0000001"),
            (2, "2"),
            (0, "0"),
            (Decimal("0.000000000001"), "0.000000000001"),
            (Decimal("999999999.999999999999"), "999999999.999999999999"),
            (Decimal("1E+3"), "1000"),
        ],
    )
    def test_a_price(self, given, price):
        terms = BillingTerms(price_per_credit=given, contracted_price_per_credit=given)

        assert terms.price_per_credit == terms.contracted_price == Decimal(price)

    @pytest.mark.parametrize(
        "given",
        [
            *(
                "",
                "None",
                "free",
                "0,015",
                "$0.015",
                "0.015 USD",
                "1_0",
                "-1",
                "+1",
                "nan",
                "inf",
                "1e9",
                "1e999999999",
            ),
            *("\u0661", "0x1", "{{ price }}", -1, 10**9, 1e400, float("nan"), Decimal("NaN"), Decimal("-0.1")),
            *(Decimal("1E+1000000000"), True, None, ["0.015"], {"price": 1}, b"0.015"),
        ],
        ids=str,
    )
    def test_what_is_none(self, given):
        with pytest.raises(ValueError, match="price_per_credit must be a price") as error:
            BillingTerms(price_per_credit=given)

        assert repr(given) in str(error.value)

    @pytest.mark.parametrize("given", ["0.0000000000001", 0.1 + 0.2, Decimal(1) / 3, "1e-999999", Decimal("1E-13")])
    def test_too_many_places_are_never_rounded(self, given):
        with pytest.raises(
            ValueError, match="contracted_price_per_credit must have at most 12 decimal places"
        ) as error:
            BillingTerms(price_per_credit=1, contracted_price_per_credit=given)

        assert repr(given) in str(error.value)
        assert "round it" in str(error.value)

    @pytest.mark.parametrize("given", ["usd", "US", "USDX", "U$D", "", "USD ", "\u00dcSD", None, 840, ["USD"]])
    def test_what_is_no_currency(self, given):
        with pytest.raises(ValueError, match="billing_currency must be three capital letters") as error:
            BillingTerms(price_per_credit=1, billing_currency=given)

        assert repr(given) in str(error.value)

    @pytest.mark.parametrize("given", ["False", "", 0, 1, None])
    def test_prepaid_or_not(self, given):
        with pytest.raises(ValueError, match="prepaid must be True or False"):
            BillingTerms(price_per_credit=1, prepaid=given)

    @pytest.mark.parametrize("given", ["", " ", "None", 7])
    def test_what_is_no_name(self, given):
        with pytest.raises(ValueError, match="billing_account_name"):
            BillingTerms(price_per_credit=1, billing_account_name=given)


NO_OPTIONS = {
    "price_per_credit": None,
    "contracted_price_per_credit": None,
    "billing_currency": "USD",
    "prepaid": False,
    "billing_account_name": None,
}
ALL_OPTIONS = {
    "price_per_credit": "1",
    "contracted_price_per_credit": "1",
    "billing_currency": "EUR",
    "prepaid": True,
    "billing_account_name": "Acme",
}


class TestOptions:
    def test_their_names(self):
        assert tuple(NO_OPTIONS) == tuple(ALL_OPTIONS) == PRICE_OPTIONS

    @pytest.mark.parametrize("parse", [parse_terms, parse_literal_terms])
    @pytest.mark.parametrize("name", FOCUS_FORMATS)
    def test_focus_needs_a_price(self, parse, name):
        assert parse(name, ALL_OPTIONS) == BillingTerms(**ALL_OPTIONS)
        with pytest.raises(ValueError, match=f"price_per_credit must be given for output_format='{name}'"):
            parse(name, {**ALL_OPTIONS, "price_per_credit": None})

    @pytest.mark.parametrize("parse", [parse_terms, parse_literal_terms])
    @pytest.mark.parametrize("name", ["csv", "parquet", "focus", None])
    def test_other_formats_take_none(self, parse, name):
        assert parse(name, NO_OPTIONS) is None
        for option, value in ALL_OPTIONS.items():
            with pytest.raises(ValueError, match=f"^{option} must be left out for output_format={name!r}.*focus_csv"):
                parse(name, {**NO_OPTIONS, option: value})

    def test_templates_are_taken_for_right_until_they_are_rendered(self):
        template = dict.fromkeys(PRICE_OPTIONS, "{{ x }}") | {"prepaid": True}

        assert parse_literal_terms("focus_csv", template).prepaid
        parse_literal_terms("{{ x }}", NO_OPTIONS)
        parse_literal_terms("{{ x }}", template)
        with pytest.raises(ValueError, match=r"price_per_credit, .* must be left out"):
            parse_literal_terms("csv", template)

    @pytest.mark.parametrize("name", [*FOCUS_FORMATS, "{{ x }}"])
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("price_per_credit", "free"),
            ("contracted_price_per_credit", -1),
            ("billing_currency", "euro"),
            ("prepaid", "yes"),
            ("billing_account_name", ""),
        ],
    )
    def test_literals_are_checked_beside_templates(self, name, option, value):
        template = dict.fromkeys(PRICE_OPTIONS, "{{ x }}") | {"prepaid": False}

        with pytest.raises(ValueError, match=option):
            parse_literal_terms(name, {**template, option: value})


class TestDataset:
    @pytest.fixture
    def publish(self):
        def publish(place, export, name="focus_csv", **terms):
            output = check_format(
                name, None, BillingTerms(**{"price_per_credit": "0.015", **terms}), export.query.group_by
            )
            dataset = UsageDataset(place.storage, output, export.query.filters())
            return dataset.publish(export.report, export.query)

        return publish

    @pytest.mark.parametrize("name", FOCUS_FORMATS)
    def test_a_file_a_day_and_none_for_an_empty_day(self, place, make_export, publish, name):
        published = publish(place, make_export(*USAGE, start="2026-02-27"), name)

        root = "data/org_id=org_abc123/group_by=product"
        ending = name.removeprefix("focus_")
        days = ("2026-02-28", "2026-03-01", "2026-03-02")
        assert list(place.data()) == [f"{root}/dt={day}/usage.{ending}" for day in days]
        assert (published[0].uri, published[0].row_count) == (None, 0)
        read = {"csv": read_csv, "parquet": read_parquet}[ending]
        for day, content in zip(days, place.data().values(), strict=True):
            assert {str(row["ChargePeriodStart"])[:10] for row in read(content)} == {day}

    def test_what_the_dataset_says_of_itself(self, place, make_export, publish):
        publish(place, make_export(USAGE[0], group_by="api_key"), billing_currency="EUR")

        assert json.loads(place.files()["metadata/dataset.json"]) == {
            "layout_version": 1,
            "format": "focus_csv",
            "compression": None,
            "focus_version": "1.2",
            "group_by": "api_key",
            "billing_currency": "EUR",
            "filters": {},
        }

    @pytest.mark.parametrize(
        ("fields", "terms", "words"),
        [
            ({"group_by": "feature"}, {}, "group_by is 'product', this export's 'feature'"),
            ({}, {"billing_currency": "EUR"}, "billing_currency is 'USD', this export's 'EUR'"),
            ({}, {"name": "focus_parquet"}, "format is 'focus_csv', this export's 'focus_parquet'"),
        ],
    )
    def test_what_can_not_be_summed_is_kept_out(self, place, make_export, publish, fields, terms, words):
        publish(place, make_export(USAGE[0]))
        before = place.files()

        with pytest.raises(DatasetMismatchError, match=words):
            publish(place, make_export(USAGE[0], **fields), **terms)

        assert place.files() == before

    def test_plain_usage_and_costs_are_kept_apart(self, place, make_export, publish):
        export = make_export(USAGE[0])
        UsageDataset(place.storage, check_format("csv"), {}).publish(export.report, export.query)

        with pytest.raises(DatasetMismatchError, match="format is 'csv'"):
            publish(place, export)

    def test_a_new_price_from_a_day_on(self, place, make_export, publish):
        publish(place, make_export(("2026-06-30", "parse", "2", 1)))
        [file] = publish(
            place, make_export(("2026-07-01", "parse", "2", 1)), price_per_credit="0.02", billing_account_name="Acme"
        )
        [again] = publish(place, make_export(("2026-07-01", "parse", "2", 1)), price_per_credit="0.02", prepaid=True)

        assert file.changed
        assert again.changed
        rows = [row for content in place.data().values() for row in read_csv(content)]
        assert [(row["ListUnitPrice"], row["ListCost"], row["BilledCost"]) for row in rows] == [
            ("0.015", "0.03", "0.03"),
            ("0.02", "0.04", "0.0"),
        ]

    def test_without_credits_nothing_is_written(self, place, make_export, publish):
        with pytest.raises(CreditsUnavailableError):
            publish(place, make_export(USAGE[0], ("2026-02-28", "split", "null", 5)))

        assert place.files() == {}


class TestOneObject:
    @pytest.fixture
    def publish_one(self, place):
        """Publish an export as the object "one", by a task that succeeds."""

        def publish_one(output, export):
            target = UsageObject(place.storage, "one", output, {})
            [published] = target.publish(export.report, export.query)
            target.acknowledge({(export.report.org_id, export.report.group_by): [(None, published.change)]})
            return published

        return publish_one

    @pytest.mark.parametrize("name", FOCUS_FORMATS)
    def test_the_whole_range(self, place, make_export, publish_one, name):
        output = check_format(name, None, BillingTerms(price_per_credit="0.015"))
        file = publish_one(output, make_export(*USAGE))

        read = read_csv if name == "focus_csv" else read_parquet
        rows = read(place.storage.read("one"))
        assert list(rows[0]) == list(COLUMNS), "organization and dimension are among them"
        assert len(rows) == file.row_count == len(USAGE)
        assert {(row["BillingAccountId"], row["x_GroupBy"]) for row in rows} == {("org_abc123", "product")}

    @pytest.mark.parametrize(
        ("name", "compression"), [("focus_csv", None), ("focus_csv", "gzip"), ("focus_parquet", None)]
    )
    def test_without_rows_there_is_none(self, place, make_export, publish_one, name, compression):
        output = check_format(name, compression, BillingTerms(price_per_credit="0.015"))
        nothing = make_export(start="2026-06-17", end="2026-06-18")
        publish_one(output, make_export(*USAGE))

        emptied = publish_one(output, nothing)
        again = publish_one(output, nothing)

        assert place.storage.read("one") is None
        assert emptied.as_json() == {"uri": None, "date": None, "row_count": 0, "bytes": 0, "changed": True}
        assert not again.changed

    def test_without_credits_what_was_there_is_untouched(self, place, make_export, publish_one):
        output = check_format("focus_csv", None, BillingTerms(price_per_credit="0.015"))
        publish_one(output, make_export(*USAGE))
        before = place.storage.read("one")

        with pytest.raises(CreditsUnavailableError):
            publish_one(output, make_export(("2026-06-18", "split", "null", 5)))

        assert place.storage.read("one") == before


def test_focus_formats_need_terms():
    for name in FOCUS_FORMATS:
        with pytest.raises(ValueError, match="price_per_credit must be given"):
            check_format(name)
    with pytest.raises(ValueError, match="focus_csv, focus_parquet, delta, not 'focus'"):
        check_format("focus")

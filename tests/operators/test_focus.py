"""
FOCUS through the operator on real Airflow, and what the official validator says of the files.

The validator has an environment of its own, which `make focus-validator` sets up.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import subprocess
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from simulator import Organization, Record
from tests.real_airflow.dagtest import DagTestError

PROJECT = Path(__file__).parents[2]
RANGE = {"usage_start_date": "2026-02-26", "usage_end_date": "2026-03-03"}
"""Days of two billing periods."""

HOSTILE_GROUPS = ['say "hi"', "two\r\nlines", "a,b;c\t", "\N{FOX FACE} \u00fcn\u00ef", "=1+1", "{{ x }}", "", None]


@pytest.fixture
def hostile(simulator):
    """An organization with fractional, whole and no credits, of groups that try to break files."""
    records = [
        Record(date(2026, 2, 27 + number % 2), Decimal("0.37") * number * 25, number, product=group)
        for number, group in enumerate(HOSTILE_GROUPS, start=1)
    ]
    records.append(Record(date(2026, 3, 1), Decimal(0), 7))
    records.append(Record(date(2026, 3, 2), Decimal("75"), 7))
    simulator.usage.organizations["org_hostile"] = Organization("org_hostile", records=records)
    simulator.keys["sim-key-all"] = (*simulator.keys["sim-key-all"], "org_hostile")
    return records


def rows_of(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".parquet":
        # As a file by itself: the folders of a dataset would become columns.
        with path.open("rb") as file:
            return pq.read_table(file).to_pylist()
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def truth(simulator, org_id="org_acme", start=date(2026, 2, 26), end=date(2026, 3, 3), group_by="product"):
    return simulator.truth(org_id, start, end, group_by)


@pytest.mark.parametrize("output_format", ["focus_csv", "focus_parquet"])
@pytest.mark.parametrize("prepaid", [False, True], ids=["metered", "prepaid"])
def test_a_dataset(export, simulator, tmp_path, output_format, prepaid):
    result = export(
        org_id="org_acme",
        output_path=str(tmp_path),
        output_format=output_format,
        price_per_credit=0.015,
        contracted_price_per_credit="0.01275",
        billing_currency="EUR",
        billing_account_name="Acme, Inc.",
        prepaid=prepaid,
        **RANGE,
    ).expect()

    files = [Path(file["uri"].removeprefix("file://")) for file in result.xcom("export")["files"]]
    assert len(files) == 6
    rows = [row for file in files for row in rows_of(file)]
    usage = truth(simulator)
    assert [(str(row["ChargePeriodStart"])[:10], row["x_Group"]) for row in rows] == [
        (str(row.date), row.group) for row in usage
    ]
    assert [int(row["x_RequestCount"]) for row in rows] == [row.requests for row in usage]
    for row, (_, _, credits, _) in zip(rows, usage, strict=True):
        assert Decimal(row["PricingQuantity"]) == Decimal(credits)
        assert Decimal(row["ListUnitPrice"]) == Decimal("0.015")
        assert Decimal(row["ListCost"]) == Decimal(row["PricingQuantity"]) * Decimal(row["ListUnitPrice"])
        cost = Decimal(row["PricingQuantity"]) * Decimal("0.01275")
        assert Decimal(row["ContractedCost"]) == Decimal(row["EffectiveCost"]) == cost
        assert Decimal(row["BilledCost"]) == (0 if prepaid else cost)
    assert {(row["BillingAccountId"], row["BillingAccountName"], row["BillingCurrency"]) for row in rows} == {
        ("org_acme", "Acme, Inc.", "EUR")
    }


def test_one_object(export, simulator, tmp_path):
    target = tmp_path / "usage.csv"
    arguments = {
        "org_id": "org_globex",
        "group_by": "api_key",
        "output_path": str(target),
        "output_format": "focus_csv",
        "price_per_credit": "0.015",
        "partitioned": False,
    }
    result = export(**arguments, **RANGE).expect()

    [file] = result.xcom("export")["files"]
    usage = truth(simulator, "org_globex", group_by="api_key")
    assert (file["uri"], file["row_count"]) == (f"file://{target}", len(usage))
    rows = rows_of(target)
    assert {row["x_GroupBy"] for row in rows} == {"api_key"}
    assert sum(Decimal(row["BilledCost"]) for row in rows) == sum(Decimal(row.credits) for row in usage) * Decimal(
        "0.015"
    )

    sunday = {"usage_start_date": "2026-03-01", "usage_end_date": "2026-03-01"}
    result = export(**arguments, **sunday).expect()

    [file] = result.xcom("export")["files"]
    assert file == {"uri": None, "date": None, "row_count": 0, "bytes": 0, "changed": True}
    assert not target.exists(), "no usage, and no file without rows"


def test_templates(export, tmp_path):
    export(
        params={"price": 0.015, "discount": 2, "currency": "CHF", "name": "Globex", "format": "focus_csv"},
        org_id="org_globex",
        output_path=str(tmp_path),
        output_format="{{ params.format }}",
        price_per_credit="{{ params.price }}",
        contracted_price_per_credit="{{ params.price / params.discount }}",
        billing_currency="{{ params.currency }}",
        billing_account_name="{{ params.name }}",
        **RANGE,
    ).expect()

    row = rows_of(next(tmp_path.glob("data/**/*.csv")))[0]
    assert (row["ListUnitPrice"], row["ContractedUnitPrice"]) == ("0.015", "0.0075")
    assert (row["BillingCurrency"], row["BillingAccountName"]) == ("CHF", "Globex")


def test_prices_as_numbers(export, tmp_path):
    export(
        org_id="org_globex",
        output_path=str(tmp_path),
        output_format="focus_csv",
        price_per_credit=Decimal("0.123456789012"),
        contracted_price_per_credit=1,
        imports="from decimal import Decimal",
        **RANGE,
    ).expect()

    row = rows_of(next(tmp_path.glob("data/**/*.csv")))[0]
    assert (row["ListUnitPrice"], row["ContractedUnitPrice"]) == ("0.123456789012", "1.0")


FOCUS = {"output_format": "focus_csv", "output_path": "/nowhere", "price_per_credit": "0.015"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({**FOCUS, "price_per_credit": None}, ["price_per_credit", "focus_csv", "no default"]),
        ({**FOCUS, "price_per_credit": "free"}, ["price_per_credit", "'free'", "0.015"]),
        ({**FOCUS, "contracted_price_per_credit": -1}, ["contracted_price_per_credit", "-1"]),
        ({**FOCUS, "contracted_price_per_credit": 0.1 + 0.2}, ["contracted_price_per_credit", "12", "round"]),
        ({**FOCUS, "billing_currency": "Euro"}, ["billing_currency", "'Euro'", "USD"]),
        ({**FOCUS, "prepaid": "no"}, ["prepaid", "'no'"]),
        ({**FOCUS, "billing_account_name": " "}, ["billing_account_name", "empty, ' '"]),
        ({**FOCUS, "output_path": None}, ["output_path", "focus_csv"]),
        ({**FOCUS, "output_format": "csv"}, ["price_per_credit", "'csv'", "focus_csv"]),
        ({"billing_currency": "EUR"}, ["billing_currency", "'jsonl'", "left out"]),
        ({"output_path": "/nowhere", "prepaid": True}, ["prepaid", "'jsonl'", "left out"]),
        ({**FOCUS, "output_format": "{{ x }}", "price_per_credit": "free"}, ["price_per_credit", "'free'"]),
        ({**FOCUS, "compression": "{{ x }}", "price_per_credit": "free"}, ["price_per_credit", "'free'"]),
    ],
)
def test_bad_literals_are_errors_of_the_dag_file(export, simulator, arguments, words):
    with pytest.raises(DagTestError) as error:
        export(org_id="org_acme", **arguments)

    for word in words:
        assert word in str(error.value)
    assert not simulator.requests


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({**FOCUS, "price_per_credit": "{{ 'free' }}"}, ["price_per_credit", "'free'", "template"]),
        ({**FOCUS, "price_per_credit": "{{ none }}"}, ["price_per_credit", "'None'"]),
        ({**FOCUS, "contracted_price_per_credit": "{{ 1 / 3 }}"}, ["contracted_price_per_credit", "0.333", "round"]),
        ({**FOCUS, "billing_currency": "{{ '' }}"}, ["billing_currency", "''", "USD"]),
        ({**FOCUS, "billing_account_name": "{{ '' }}"}, ["billing_account_name", "resolved to ''"]),
        ({**FOCUS, "output_format": "{{ 'csv' }}"}, ["price_per_credit", "'csv'", "focus_csv"]),
        ({**FOCUS, "output_format": "{{ 'focus_csv' }}", "price_per_credit": None}, ["price_per_credit", "no default"]),
        ({**FOCUS, "output_format": "{{ 'focus_csv' }}", "output_path": None}, ["output_path", "focus_csv"]),
        ({**FOCUS, "output_format": "{{ 'focus' }}"}, ["output_format", "'focus'", "focus_csv"]),
    ],
)
def test_bad_rendered_input_fails_at_once_without_a_request(export, simulator, arguments, words):
    result = export(org_id="org_acme", retries=2, **arguments).expect("failed")

    [error] = result.errors
    assert error.type == "ReductoConfigurationError"
    for word in words:
        assert word in error.message
    assert not simulator.requests


@pytest.mark.parametrize("partitioned", [True, False])
def test_an_account_without_credits(export, simulator, tmp_path, partitioned):
    result = export(
        org_id="org_umbrella",
        **{**FOCUS, "output_path": str(tmp_path / "usage")},
        partitioned=partitioned,
        retries=2,
        **RANGE,
    ).expect("failed")

    [error] = result.errors
    assert error.type == "ReductoCreditsUnavailableError"
    assert "org_umbrella" in error.message
    assert "another output_format" in error.message
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_one_dimension_and_one_currency_only(export, simulator, tmp_path):
    arguments = {**FOCUS, "org_id": "org_globex", "output_path": str(tmp_path), **RANGE}
    export(**arguments).expect()
    before = files_of(tmp_path)
    simulator.clear()

    for different in ({"group_by": "feature"}, {"billing_currency": "EUR"}, {"output_format": "focus_parquet"}):
        result = export(**{**arguments, **different}).expect("failed")
        assert next(iter(different)).removeprefix("output_") in result.errors[0].message
        assert "another output_path" in result.errors[0].message
    assert files_of(tmp_path) == before
    assert not simulator.requests

    result = export(**{**arguments, "price_per_credit": "0.02", "prepaid": True}).expect()
    assert {file["changed"] for file in result.xcom("export")["files"] if file["uri"]} == {True}


class Verdict(dict[str, str]):
    """The rules that failed, and what the validator says of each."""


@pytest.fixture(scope="module")
def validate() -> Callable[[Path], Verdict]:
    """
    Let the official validator judge a file.

    It exits with 0 even when rules fail, and opens its rules relative to the working directory.
    """
    (PROJECT / ".cache").mkdir(exist_ok=True)
    with (PROJECT / ".cache/focus-validator.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(["make", "focus-validator"], cwd=PROJECT, capture_output=True, text=True, check=False)
    if "Python 3.12 is needed" in made.stderr:
        pytest.skip(made.stderr)
    assert made.returncode == 0, made.stderr
    version = re.search(r"^focus-validator==(\S+)$", (PROJECT / "requirements/focus-validator.txt").read_text(), re.M)
    home = PROJECT / f".cache/focus-validator-{version[1]}"
    [packages] = home.glob("lib/python3.*/site-packages")
    criteria = (
        "ACCOUNT_NAMING_SUPPORTED,USAGE_MEASUREMENT_SUPPORTED,UNIT_PRICING_SUPPORTED,PUBLIC_PRICE_LIST_SUPPORTED,"
        "NEGOTIATED_PRICING_SUPPORTED,TAGGING_SUPPORTED,SUB_ACCOUNT_SUPPORTED"
    )

    def validate(file: Path) -> Verdict:
        command = [str(home / "bin/focus-validator"), "--data-file", str(file), "--validate-version", "1.2"]
        done = subprocess.run(
            [*command, "--block-download", "--applicability-criteria", criteria],
            cwd=packages,
            env={**os.environ, "PYTHONUTF8": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        total = re.search(r"^Total: \d+ \| Pass: (\d+) \| Fail: (\d+) ", done.stdout, re.M)
        results = done.stdout.partition("--- Failures ---")[0]
        verdict = Verdict(re.findall(r"^\S+ (\S+): FAIL +\((.*)\)$", results, re.M))
        assert len(verdict) == int(total[2]), done.stdout
        assert int(total[1]) > 200, "rules were applied to the file at all"
        return verdict

    return validate


WHAT_NO_DATA_CAN_MEET = {"InvoiceId-C-005-C"}
"""It wants an InvoiceId in every row, where C-004 wants none in rows that are not on an invoice yet."""


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize(
    ("output_format", "prepaid", "contracted"),
    [
        pytest.param("focus_csv", False, None, id="csv, metered"),
        pytest.param("focus_csv", True, "0.0123456789", id="csv, prepaid"),
        pytest.param("focus_parquet", False, "0.0123456789", id="parquet, metered"),
        pytest.param("focus_parquet", True, 0, id="parquet, prepaid"),
    ],
)
def test_the_official_validator(export, simulator, tmp_path, validate, output_format, prepaid, contracted):
    target = tmp_path / f"usage.{output_format.removeprefix('focus_')}"
    export(
        org_id="org_hostile",
        output_path=str(target),
        output_format=output_format,
        partitioned=False,
        price_per_credit="0.015",
        contracted_price_per_credit=contracted,
        prepaid=prepaid,
        **RANGE,
    ).expect()

    verdict = validate(target)

    assert verdict.keys() == WHAT_NO_DATA_CAN_MEET
    rows = rows_of(target)
    assert len(rows) == len(truth(simulator, "org_hostile")) == 10
    assert f"violations={len(rows)}," in verdict["InvoiceId-C-005-C"], "all rows were judged"
    assert {json.loads(row["Tags"])["reducto/product"] for row in rows} == {*HOSTILE_GROUPS, "parse"}


def test_the_official_validator_on_a_day_of_whole_credits(export, simulator, tmp_path, validate):
    simulator.usage.set_records("org_acme", [Record(date(2026, 3, 2), Decimal(75), 7)])
    result = export(
        org_id="org_acme", output_path=str(tmp_path), output_format="focus_csv", price_per_credit=2, **RANGE
    ).expect()

    [uri] = [file["uri"] for file in result.xcom("export")["files"] if file["uri"]]
    file = Path(uri.removeprefix("file://"))
    assert validate(file).keys() == WHAT_NO_DATA_CAN_MEET

    spoiled = tmp_path / "spoiled.csv"
    spoiled.write_text(file.read_text().replace("75.0", "75"))
    assert validate(spoiled).keys() > WHAT_NO_DATA_CAN_MEET, "the validator can tell"

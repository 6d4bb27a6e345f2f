"""Arrow arrays that are built without pandas: they are what ``pyarrow.array`` makes of the same values."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from decimal import Decimal

import pytest

pa = pytest.importorskip("pyarrow")

from reducto_provider.export.formats import arrow  # noqa: E402

CASES = {
    "strings": (arrow.strings, pa.string(), ["", "a", "ü€", "x" * 300, "a\0b"]),
    "dates": (arrow.dates, pa.date32(), [date.min, date(1969, 12, 31), date(1970, 1, 1), date(2026, 6, 3), date.max]),
    "integers": (arrow.integers, pa.int64(), [0, 1, -1, 2**63 - 1, -(2**63)]),
    "decimals": (
        lambda values: arrow.decimals(values, 9),
        pa.decimal128(38, 9),
        [Decimal("0E-9"), Decimal("1.5"), Decimal("-0.000000001"), Decimal("9" * 29 + "." + "9" * 9), Decimal("1E+20")],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
@pytest.mark.parametrize("missing", [0, 3, 1], ids=["none", "each third", "all"])
def test_arrays_are_those_of_pyarrow(name, count, missing):
    build, kind, values = CASES[name]
    values = [None if missing and i % missing == 0 else values[i % len(values)] for i in range(count)]
    found, expected = build(values), pa.array(values, kind)
    found.validate(full=True)
    assert found.type == expected.type
    assert found.null_count == expected.null_count
    assert found.equals(expected)


@pytest.mark.parametrize("number", ["1E-10", "1E+29", "-1E+29"])
def test_a_number_that_does_not_fit_is_refused(number):
    with pytest.raises(ValueError, match=r"does not fit into decimal128\(38, 9\)"):
        arrow.decimals([Decimal(number)], 9)


def test_a_parquet_file_is_encoded_without_pandas():
    pytest.importorskip("pandas")
    code = """
import sys
from datetime import date
from decimal import Decimal
from reducto_provider.export.formats import check_format
from reducto_provider.usage.report import UsageRow

rows = [UsageRow(date(2026, 6, 3), group, Decimal(1), 1) for group in ("a", None)]
assert check_format("parquet").encode(rows, {"org_id": "org_acme"})[:4] == b"PAR1"
sys.exit("pandas" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)

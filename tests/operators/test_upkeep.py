"""The operator that compacts and vacuums a Delta table, run by real Airflow."""

from __future__ import annotations

from datetime import date

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from reducto_provider.export.delta import upkeep
from reducto_provider.export.formats import FORMATS
from reducto_provider.export.sink import open_sink
from reducto_provider.operators.upkeep import ReductoUsageTableUpkeepOperator
from tests.airflows import DELTA
from tests.object_storage.answers import answer, usage

pytestmark = DELTA

DAG = """
from tests.airflow_sdk import DAG
from reducto_provider.operators.upkeep import ReductoUsageTableUpkeepOperator

with DAG("upkeep", schedule=None):
    ReductoUsageTableUpkeepOperator(task_id="upkeep", {arguments})
"""


@pytest.fixture
def table(tmp_path):
    """Twelve days of March, each exported by itself."""
    for day in range(1, 13):
        report, query = answer(usage(), "org_acme", date(2026, 3, day), date(2026, 3, day))
        open_sink(str(tmp_path / "table"), None, FORMATS["delta"], {}).publish(report, query)
    return tmp_path / "table"


def rows(path):
    return sorted(map(str, pa.table(DeltaTable(path).scan()).to_pylist()))


def test_it_compacts_and_removes_nothing(run_dag, table):
    before = rows(table)
    result = run_dag(DAG.format(arguments=f"output_path={str(table)!r}")).expect()

    assert result.xcom("upkeep") == {"compacted_files": 11, "removed_files": 0, "months_left": []}
    assert len(DeltaTable(table).file_uris()) == 1
    assert rows(table) == before
    assert pa.table(DeltaTable(table, version=5).scan()).num_rows


def test_what_it_could_not_compact_is_in_the_xcom(mocker):
    left = (("api_key", date(2026, 1, 1)), ("product", date(2025, 12, 1)))
    mocker.patch.object(upkeep, "compact_table", return_value=upkeep.Compaction(3, left))
    operator = ReductoUsageTableUpkeepOperator(task_id="upkeep", output_path="/lake")

    assert operator.execute({}) == {
        "compacted_files": 3,
        "removed_files": 0,
        "months_left": [{"group_by": "api_key", "month": "2026-01"}, {"group_by": "product", "month": "2025-12"}],
    }


def test_a_place_without_a_table_is_a_clear_error(run_dag, tmp_path):
    [error] = run_dag(DAG.format(arguments=f"output_path={str(tmp_path)!r}")).expect("failed").errors

    assert error.type == "ReductoExportError"
    assert f"there is no Delta table at file://{tmp_path}" in error.message


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"output_path": "gs://lake/table"}, "output_path must be a local path or one of"),
        ({"output_path": "/lake", "vacuum_keep_days": 0}, "vacuum_keep_days must be"),
    ],
)
def test_invalid_arguments_are_refused_at_once(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        ReductoUsageTableUpkeepOperator(task_id="upkeep", **arguments)

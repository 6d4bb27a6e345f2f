"""DAGs with one export task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

DAG = """
from datetime import datetime, timedelta
from tests.airflow_sdk import DAG
from reducto_provider.operators.export import ReductoUsageExportOperator
{imports}

with DAG("export", schedule={schedule}, start_date=datetime(2026, 1, 1), catchup=False, params={params!r}):
    ReductoUsageExportOperator(task_id="export", retry_delay=timedelta(seconds=0), {arguments})
"""


@pytest.fixture
def export(run_dag: Callable[..., Any]) -> Callable[..., Any]:
    """Run a DAG whose one task exports, with these arguments; an argument's value is taken for what it is."""

    def run(
        *,
        schedule: str = "None",
        imports: str = "",
        params: dict[str, Any] | None = None,
        run: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> Any:
        written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        source = DAG.format(schedule=schedule, imports=imports, params=params or {}, arguments=written)
        return run_dag(source, **(run or {}))

    return run

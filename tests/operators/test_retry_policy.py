"""What Airflow's retry policies make of the errors of this package, as docs/troubleshooting.md shows."""

from __future__ import annotations

import re
from pathlib import Path

from simulator import status
from tests.airflows import new_in

SHOWN = Path(__file__).parents[2] / "docs/troubleshooting.md"

DAG = """
from datetime import timedelta
from airflow.sdk import DAG
from reducto_provider.operators.export import ReductoUsageExportOperator
{policy}
with DAG("export", schedule=None):
    ReductoUsageExportOperator(
        task_id="export",
        org_id="org_acme",
        usage_start_date="2026-06-01",
        usage_end_date="2026-06-02",
        retries=0,
        retry_policy=ExceptionRetryPolicy(rules=[LATER]),
    )
"""


@new_in(3, 4, "tasks that a retry policy runs again without using up a retry")
def test_a_rate_limit_uses_up_no_retry(simulator, run_dag):
    [policy] = re.findall(
        r"```python\n(from airflow.sdk import ExceptionRetryPolicy.*?)\nReducto", SHOWN.read_text(), re.S
    )
    simulator.faults.add(status(429), times=1)
    source = DAG.format(policy=policy.replace("timedelta(minutes=10)", "timedelta(seconds=1)"))
    result = run_dag(source, connection={"extra": {"max_attempts": 1}})
    assert result.expect().tasks == {"export": "success"}
    assert [request.status for request in simulator.requests] == [429, 200]

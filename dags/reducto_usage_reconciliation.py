"""
# Do the figures agree?

Once a week, for every organization: the four dimensions are views of the same usage, so each day's credits and requests
must be equal by product, feature, API key and file type. A failed task names the days and the figures that do not
agree. Do not bill on those days before the reason is known.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow import DAG
from reducto_organizations import ORGANIZATIONS

from reducto_provider.operators.reconciliation import ReductoUsageReconciliationOperator

with DAG(
    dag_id="reducto_usage_reconciliation",
    schedule="@weekly",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args={"retries": 1, "retry_delay": timedelta(hours=6)},
    doc_md=__doc__,
    tags=["reducto", "example"],
):
    ReductoUsageReconciliationOperator.partial(
        task_id="reconcile",
        map_index_template="{{ task.org_id }}",
    ).expand_kwargs([{"org_id": each["id"], "reducto_conn_id": each["connection"]} for each in ORGANIZATIONS])

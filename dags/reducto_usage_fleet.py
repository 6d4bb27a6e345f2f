"""
# A fleet's usage, every day

One task exports the day that ended for every organization, by all four dimensions, into one partitioned dataset. It
also exports the two days before, in case they were restated. For hundreds of organizations it needs fewer resources
than a mapped task for each.

Needs the connections that `reducto_organizations.yaml` names. A failed organization does not affect the others: the
task's log has the outcome of each, and a retry exports only those that failed. Clear the task to export all of them
again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow import DAG
from reducto_organizations import ORGANIZATIONS, OUTPUT_PATH

from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator

with DAG(
    dag_id="reducto_usage_fleet",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    doc_md=__doc__,
    tags=["reducto", "example"],
):
    ReductoUsageFleetExportOperator(
        task_id="export_usage",
        organizations=[{"org_id": each["id"], "reducto_conn_id": each["connection"]} for each in ORGANIZATIONS],
        group_by=["product", "feature", "api_key", "file_type"],
        lookback_days=2,
        output_path=f"{OUTPUT_PATH}_fleet",
    )

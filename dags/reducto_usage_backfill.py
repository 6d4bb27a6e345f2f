"""
# Export a range of days again

Trigger it with a first and a last day (both included, UTC) to fill a dataset from the start, or to update restated
days. Each organization is one request and one task, however long the range. Days that were exported before are
replaced.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from reducto_organizations import ORGANIZATIONS, OUTPUT_PATH

from reducto_provider.operators.export import ReductoUsageExportOperator

try:
    from airflow.sdk import DAG, Param
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.models.param import Param

with DAG(
    dag_id="reducto_usage_backfill",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    params={
        "start": Param(type="string", format="date", title="First day"),
        "end": Param(type="string", format="date", title="Last day", description="Included."),
        "group_by": Param(
            "product",
            type="string",
            enum=["product", "feature", "api_key", "file_type"],
            title="Dimension",
            description="The four are views of the same usage, stored separately in the dataset.",
        ),
    },
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    doc_md=__doc__,
    tags=["reducto", "example"],
):
    ReductoUsageExportOperator.partial(
        task_id="export_usage",
        usage_start_date="{{ params.start }}",
        usage_end_date="{{ params.end }}",
        group_by="{{ params.group_by }}",
        output_path=OUTPUT_PATH,
        map_index_template="{{ task.org_id }}",
    ).expand_kwargs([{"org_id": each["id"], "reducto_conn_id": each["connection"]} for each in ORGANIZATIONS])

"""
# A DAG for each organization: its month, and its budget

For every entry of `reducto_organizations.yaml` there is a DAG `reducto_usage_<id>`. On the first of a month it exports
the month that ended as one CSV file, and starts to watch the budget of the month that begins. The sensor waits in the
triggerer, without a worker slot, until the month's usage exceeds the budget; its owners are then notified once. If the
month ends within its budget, the sensor is skipped, and so is the message.

To act on an exceeded budget, replace `tell_owners`, for instance by a notifier of the Slack or SMTP provider.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from reducto_organizations import ORGANIZATIONS, OUTPUT_PATH

from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task


@task
def tell_owners(reading: dict, owners: list[str]) -> str:
    """Print which organization used how much. The reading is the sensor's XCom."""
    message = (
        f"{reading['org_id']} used {reading['value']:,} {reading['metric']} from {reading['usage_start_date']} to "
        f"{reading['usage_end_date']}, more than its budget of {reading['threshold']:,}."
    )
    print(f"To {', '.join(owners)}: {message}")
    return message


for organization in ORGANIZATIONS:
    with DAG(
        dag_id=f"reducto_usage_{organization['id']}",
        schedule="@monthly",
        start_date=datetime(2026, 1, 1),
        catchup=False,
        default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
        doc_md=__doc__,
        tags=["reducto", "example"],
    ):
        export_month = ReductoUsageExportOperator(
            task_id="export_month",
            org_id=organization["id"],
            reducto_conn_id=organization["connection"],
            group_by="api_key",
            output_path=f"{OUTPUT_PATH}_monthly/{organization['id']}/"
            "{{ (data_interval_end | default(dag_run.run_after)).strftime('%Y-%m-%d') }}.csv",
            output_format="csv",
            partitioned=False,
        )

        budget_exceeded = ReductoUsageThresholdSensor(
            task_id="budget_exceeded",
            org_id=organization["id"],
            reducto_conn_id=organization["connection"],
            threshold=organization["budget"],
            metric=organization["metric"],
            window="month",
            deferrable=True,
            poke_interval=timedelta(hours=1),
            timeout=timedelta(days=32),
            trigger_rule="all_done",  # watch the budget even if the export fails
        )

        export_month >> budget_exceeded
        tell_owners(budget_exceeded.output, organization["owners"])

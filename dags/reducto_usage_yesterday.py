"""
# Yesterday's usage, in XCom

The smallest DAG of this provider: it needs the connection `reducto_default` and nothing else. It exports the
usage of the key's own organization on the day before, and shows it in the log.
"""

from __future__ import annotations

from datetime import datetime

from reducto_provider.operators.export import ReductoUsageExportOperator

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task


@task
def show(usage: dict) -> None:
    """Log the usage of each group of the day, and the totals."""
    for row in usage["rows"]:
        print(f"{row['group']!s:<16}{row['credits']!s:>10} credits{row['request_count']:>8} requests")
    print(f"{usage['org_id']}: {usage['credits']} credits, {usage['request_count']} requests")


with DAG(
    dag_id="reducto_usage_yesterday",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    doc_md=__doc__,
    tags=["reducto", "example"],
):
    show(ReductoUsageExportOperator(task_id="export_usage").output)

"""
# Every organization's usage, every day

One mapped task per organization exports the day that ended, as JSON lines, into one partitioned dataset. It also
exports the two days before, in case they were restated. The grid shows the organization's id instead of a number.

Needs the connections that `reducto_organizations.yaml` names. A failed organization does not affect the others; clear
its task to export it again, which replaces its files.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from reducto_organizations import ORGANIZATIONS, OUTPUT_PATH

from reducto_provider.operators.export import ReductoUsageExportOperator

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task

with DAG(
    dag_id="reducto_usage_all_organizations",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    doc_md=__doc__,
    tags=["reducto", "example"],
):
    export_usage = ReductoUsageExportOperator.partial(
        task_id="export_usage",
        lookback_days=2,
        output_path=OUTPUT_PATH,
        map_index_template="{{ task.org_id }}",
    ).expand_kwargs([{"org_id": each["id"], "reducto_conn_id": each["connection"]} for each in ORGANIZATIONS])

    @task(trigger_rule="all_done")
    def summarize(exports: list[dict]) -> dict[str, int]:
        """Log what each organization used, and return its number of requests; fail if one was not exported."""
        requests = {}
        for export in exports:
            credits = "-" if export["credits"] is None else f"{export['credits']:,.1f}"
            changed = [file["date"] for file in export["files"] if file["changed"]]
            print(
                f"{export['org_id']:<16} {export['usage_start_date']} to {export['usage_end_date']}: "
                f"{credits} credits, {export['request_count']:,} requests; changed: {', '.join(changed) or 'nothing'}"
            )
            requests[export["org_id"]] = export["request_count"]
        # This task runs even if exports fail, and the run's state is that of its last task.
        if missing := [each["id"] for each in ORGANIZATIONS if each["id"] not in requests]:
            raise RuntimeError(f"not exported: {', '.join(missing)}")
        return requests

    summarize(export_usage.output)

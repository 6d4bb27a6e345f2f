"""
# Batches of documents within a budget

A run works on batches of documents while the organization's month has room for them:

- below 80 % of the budget, `parse_now` works on each batch at once, in a mapped task;
- from there on, `queue_batches` leaves them to a cheaper lane, such as the batch queue of the service;
- over the budget the gate is skipped, and on Airflow 3.1 or newer a person is asked: the approved batches are queued.

The gate and the branch stand before the mapped task: each sends one request, however many batches there are. Both add
what the documents of the run need to what was used, since usage is counted some time after the work.

Replace `parse_now` and `queue_batches`, which only print what they would do, and trigger the DAG with your documents,
or schedule it. To try out a budget, begin with `on_exceeded="warn"`: the gate then only logs what it would have
stopped.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from inspect import signature
from typing import Any

from reducto_organizations import ORGANIZATIONS

from reducto_provider.operators.budget import ReductoBudgetBranchOperator, ReductoBudgetGateOperator

try:
    from airflow.sdk import DAG, Param, task
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task
    from airflow.models.param import Param

try:
    from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
except Exception:  # noqa: BLE001  # before Airflow 3.1 the import raises an error of Airflow's own, or an ImportError
    ApprovalOperator = None
else:
    # Older versions of the provider take the time limit of the task for the response.
    known = "response_timeout" in signature(HITLOperator.__init__).parameters
    RESPONSE_TIMEOUT = "response_timeout" if known else "execution_timeout"

BATCH_SIZE = 2
NEEDED = "{{ 25 * params.documents | length }}"  # what the run's documents will use: look at what yours did
ORGANIZATION = ORGANIZATIONS[0]
USAGE = {
    "org_id": ORGANIZATION["id"],
    "reducto_conn_id": ORGANIZATION["connection"],
    "metric": ORGANIZATION["metric"],
    "reserve": NEEDED,
}


@task
def find_batches(*, params: dict) -> list[list[str]]:
    """Return the documents of the run in batches."""
    documents = params["documents"]
    return [documents[first : first + BATCH_SIZE] for first in range(0, len(documents), BATCH_SIZE)]


@task
def parse_now(batch: list[str]) -> None:
    """Print what would be parsed at once."""
    print(f"would parse {', '.join(batch)}")


# Not all_success, since it follows either the branch or the approval. It takes the batches from XCom rather than as an
# argument: with find_batches upstream, one success there would do.
@task(trigger_rule="none_failed_min_one_success")
def queue_batches(*, ti: Any) -> None:
    """Print what would be left to the batch queue."""
    for batch in ti.xcom_pull(task_ids="find_batches"):
        print(f"would queue {', '.join(batch)}")


with DAG(
    dag_id="reducto_usage_budget_gate",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    params={
        "documents": Param([f"s3://documents/{number}.pdf" for number in range(1, 6)], type="array", title="Documents"),
        "budget": Param(ORGANIZATION["budget"], type="number", minimum=0, title="Budget of the month"),
    },
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    doc_md=__doc__,
    tags=["reducto", "example"],
):
    batches = find_batches()
    within_budget = ReductoBudgetGateOperator(
        task_id="within_budget", budget="{{ params.budget }}", on_exceeded="skip", **USAGE
    )
    choose_lane = ReductoBudgetBranchOperator(
        task_id="choose_lane",
        budget="{{ 0.8 * params.budget }}",
        follow_task_ids_if_within="parse_now",
        follow_task_ids_if_exceeded="queue_batches",
        **USAGE,
    )
    queued = queue_batches()
    batches >> within_budget >> choose_lane >> [parse_now.expand(batch=batches), queued]

    if ApprovalOperator is not None:
        approve = ApprovalOperator(
            task_id="approve",
            subject="Queue documents of {{ dag_run.run_id }} over the budget?",
            body=(
                "{% set gate = ti.xcom_pull(task_ids='within_budget') %}"
                "{{ gate.reading.org_id }} has used {{ gate.reading.value }} of {{ gate.reading.threshold }} "
                "{{ gate.reading.metric }}, and the documents need about {{ gate.reserve }}."
            ),
            defaults="Reject",
            **{RESPONSE_TIMEOUT: timedelta(days=2)},
            trigger_rule="all_skipped",  # only if the gate is skipped
        )
        within_budget >> approve >> queued

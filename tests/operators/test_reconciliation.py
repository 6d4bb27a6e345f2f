"""The reconciliation operator on real Airflow."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from reducto_provider.export.reader import read_usage
from reducto_provider.usage.query import DIMENSIONS
from simulator import Altered
from tests.airflows import DELTA

DAG = """
from datetime import timedelta
from tests.airflow_sdk import DAG
from reducto_provider.operators.reconciliation import ReductoUsageReconciliationOperator

with DAG("reconcile", schedule=None):
    ReductoUsageReconciliationOperator(
        task_id="reconcile", retry_delay=timedelta(seconds=0), {arguments}
    )
"""


@pytest.fixture
def reconcile(run_dag):
    def run(**arguments):
        days = {"usage_start_date": "2026-05-01", "usage_end_date": "2026-05-31"}
        arguments = {"org_id": "org_acme", **days, **arguments}
        return run_dag(DAG.format(arguments=", ".join(f"{name}={value!r}" for name, value in arguments.items())))

    return run


def test_what_agrees(reconcile, simulator):
    result = reconcile().expect()

    truth = simulator.truth("org_acme", date(2026, 5, 1), date(2026, 5, 31))
    assert result.xcom("reconcile") == {
        "org_id": "org_acme",
        "usage_start_date": "2026-05-01",
        "usage_end_date": "2026-05-31",
        "credits": float(sum(row.credits for row in truth)),
        "request_count": sum(row.requests for row in truth),
    }
    dimensions = [dict(request.query)["groupBy"] for request in simulator.requests]
    assert dimensions == ["product", "feature", "api_key", "file_type"]


AFTER_EXPORT = """
from datetime import timedelta
from tests.airflow_sdk import DAG
from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator
from reducto_provider.operators.reconciliation import ReductoUsageReconciliationOperator

DAYS = {{"usage_start_date": "2026-05-01", "usage_end_date": "2026-05-31"}}
DIMENSIONS = ["product", "feature", "api_key", "file_type"]

with DAG("export_and_reconcile", schedule=None):
    ReductoUsageFleetExportOperator(
        task_id="export", organizations=["org_acme"], group_by=DIMENSIONS, output_path={path!r},
        output_format="delta", **DAYS
    ) >> ReductoUsageReconciliationOperator(
        task_id="reconcile", org_id="org_acme", retry_delay=timedelta(seconds=0), **DAYS
    )
"""


@DELTA
def test_after_an_export_to_a_table_both_have_the_same_totals(run_dag, tmp_path):
    result = run_dag(AFTER_EXPORT.format(path=str(tmp_path / "table"))).expect()

    reconciled = result.xcom("reconcile")
    for group_by in DIMENSIONS:
        rows = read_usage(
            str(tmp_path / "table"),
            org_id="org_acme",
            group_by=group_by,
            start=date(2026, 5, 1),
            end=date(2026, 5, 31),
        )
        assert float(sum(row.credits for row in rows)) == reconciled["credits"] > 0, group_by
        assert sum(row.request_count for row in rows) == reconciled["request_count"], group_by


def test_filters_that_nothing_matches_are_warned_of(reconcile):
    result = reconcile(api_keys=["porduction"]).expect()

    warned = result.log.count("matches api_keys=['porduction']: check the names")
    assert warned == result.log.count("All dimensions agree") > 0, "once, as often as any line is in this log"


def test_what_differs(reconcile, simulator):
    row = {"date": "2026-05-03", "group": "parse", "credits": 1.5, "requestCount": 1}
    simulator.faults.add(Altered({"data": [row]}))
    result = reconcile(usage_start_date="2026-05-03", usage_end_date="2026-05-03").expect("failed")

    [error] = result.errors
    assert error.type == "ReductoReconciliationError"
    assert "2026-05-03: credits by product 1.5, by feature" in error.message
    assert "2026-05-03: requests by product 1, by feature" in error.message
    assert "difference" in error.message


def test_a_day_that_is_not_over_is_left_out(reconcile, simulator):
    today = datetime.now(UTC).date()
    result = reconcile(usage_start_date=str(today - timedelta(days=2)), usage_end_date=str(today)).expect()
    assert result.xcom("reconcile")["usage_end_date"] == str(today - timedelta(days=1))

    simulator.clear()
    result = reconcile(usage_start_date=str(today), usage_end_date=str(today))
    assert result.tasks["reconcile"] == "skipped"
    assert not simulator.requests


def test_a_key_that_is_replaced_in_between_is_no_discrepancy(reconcile, simulator):
    """The answers are of two organizations. A retry requests one."""
    simulator.faults.add(Altered({"orgId": "org_before"}))
    result = reconcile(org_id=None, retries=1)

    [error] = result.errors
    assert error.type == "ReductoResponseError"
    assert "not of one organization and the same days, but of 'org_acme' on " in error.message
    assert "'org_before' on 2026-05-01 to 2026-05-31" in error.message
    assert result.tasks["reconcile"] == "success"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"usage_start_date": "{{ 'May' }}"}, "reconcile: usage_start_date"),
        ({"lookback_days": 10**6}, "reconcile: "),
    ],
)
def test_what_can_t_be_requested_is_one_of_this_package_s_errors(reconcile, simulator, arguments, said):
    [error] = reconcile(retries=1, **arguments).errors

    assert error.type == "ReductoConfigurationError"
    assert error.message.startswith(said)
    assert not simulator.requests

"""What a run under faults has to show besides: that they happened, and that the revoked key failed at once."""

from __future__ import annotations

from datetime import datetime

import pytest

from tests.e2e.story import ALL, BACKFILL, FLEET, MAIL, MONTHLY, ORGS, RECONCILIATION, REVOKED

CAUSE = f"Reducto refused the API key of connection 'reducto_{REVOKED}'"


@pytest.fixture(scope="module")
def refused(story):
    """The task instances of the organization whose key was revoked, that began after that."""
    found = []
    mapped = {ALL: "export_usage", BACKFILL: "export_usage", RECONCILIATION: "reconcile"}
    for dag_id in (*mapped, MONTHLY[REVOKED], MAIL):
        for run in story.airflow.runs(dag_id):
            for instance in story.airflow.task_instances(dag_id, run["dag_run_id"]):
                of_it = dag_id == MONTHLY[REVOKED] or (
                    instance["map_index"] == ORGS.index(REVOKED) or instance["task_id"] == f"projected_{REVOKED}"
                )
                started = instance["start_date"] and datetime.fromisoformat(instance["start_date"])
                if of_it and instance["task_id"] != "tell_owners" and started and started > story.trouble.revoked_at:
                    found.append(instance)
    return found


def log_of(story, instance, attempt):
    return story.airflow.log(
        instance["dag_id"], instance["dag_run_id"], instance["task_id"], attempt, instance["map_index"]
    )


def lost_tries(story):
    """The tries whose worker no longer sent heartbeats."""
    timeouts = "select dag_id, run_id, task_id, map_index, try_number from log where event = 'heartbeat timeout'"
    return {tuple(row) for row in story.postgres.query(timeouts)}


def test_requests_met_every_kind_of_fault(story):
    met = story.trouble.met()
    assert {"500", "502", "503", "429", "Reset", "CutShort"} <= met.keys()
    assert 0.05 < met.total() / len(story.simulator.requests) < 0.2


def test_the_workers_lost_tasks_and_others_did_them_again(story):
    killed = story.postgres.query(
        "select count(*) from task_instance_history where state in ('failed', 'up_for_retry')"
    )
    assert int(killed[0][0]) > 0


def test_the_revoked_key_fails_at_once_and_the_message_names_the_cause(story, refused):
    assert refused
    for instance in refused:
        name = (instance["dag_id"], instance["dag_run_id"], instance["task_id"])
        assert instance["state"] == "failed", name
        log = log_of(story, instance, instance["try_number"])
        assert "ReductoAuthenticationError" in log, name
        assert CAUSE in log, name
        # No other try came after the first that was refused, unless its worker was lost before it could say so.
        for attempt in range(1, instance["try_number"]):
            lost = (*name, str(instance["map_index"]), str(attempt)) in lost_tries(story)
            assert lost or CAUSE not in log_of(story, instance, attempt), name


def test_a_fleet_names_the_one_that_failed_and_exports_the_others(story):
    for run in story.airflow.runs(FLEET):
        [instance] = story.airflow.task_instances(FLEET, run["dag_run_id"])
        assert instance["state"] in ("success", "failed")
        if instance["state"] == "failed":
            outcomes = story.airflow.xcom(FLEET, run["dag_run_id"], "export_usage")["organizations"]
            failed = [each for each in outcomes if each["status"] == "failed"]
            assert {each["org_id"] for each in failed} == {REVOKED}
            assert all(CAUSE in each["error"] for each in failed)

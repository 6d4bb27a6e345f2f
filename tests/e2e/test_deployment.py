"""The outcome: every state, file, figure, event and mail is exactly as it has to be."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from datetime import date, datetime, timedelta
from decimal import Decimal
from urllib.parse import quote

import pytest
from cryptography.fernet import Fernet

from tests.e2e.deployment import SERVICES
from tests.e2e.secret import forms_of
from tests.e2e.story import (
    ALL,
    BACKFILL,
    BUCKET,
    DAGS,
    DIMENSIONS,
    FLEET,
    LEVELS,
    MAIL,
    METRIC,
    MONTHLY,
    ORGS,
    RECONCILIATION,
    REVOKED,
    YESTERDAY,
    month_before,
)

FIRST_TASKS = {ALL: "export_usage", BACKFILL: "export_usage", RECONCILIATION: "reconcile"}
"""The mapped tasks, each with an organization for a map index."""


@pytest.fixture(scope="module")
def right(story):
    """The organizations whose data has to be exactly right."""
    return [org for org in ORGS if not (story.faults and org == REVOKED)]


@pytest.fixture(scope="module")
def objects(story):
    """All that is in the storage, by key."""
    return story.s3.objects(BUCKET)


def truth_of(story, org, day, group_by):
    rows = story.simulator.usage.truth(org, day, day, group_by)
    return [(row.group, None if org == "org_umbrella" else row.credits, row.requests) for row in rows]


def rows_of(content):
    rows = [json.loads(line, parse_float=Decimal, parse_int=Decimal) for line in content.decode().splitlines()]
    return [(row["group"], row["credits"], int(row["request_count"])) for row in rows]


def days_exported(story):
    """The days of each dataset and dimension that the runs exported."""
    daily = {day for run in story.airflow.runs(ALL) for day in story.days_of(run)}
    fleet = {day for run in story.airflow.runs(FLEET) for day in story.days_of(run)}
    ranges = {story.first + timedelta(days=n) for n in range((story.last - story.first).days + 1)}
    assert ranges <= daily
    assert ranges <= fleet
    by_dimension = {(f"reducto_fleet/data/org_id={{org}}/group_by={group_by}"): fleet for group_by in DIMENSIONS}
    for group_by in DIMENSIONS:
        by_dimension[f"reducto/data/org_id={{org}}/group_by={group_by}"] = ranges | (
            daily if group_by == "product" else set()
        )
    return by_dimension


def credits_of(org, rows):
    return None if org == "org_umbrella" else float(sum((row.credits for row in rows), Decimal(0)))


def runs_by_month(story, dag_id):
    return {
        datetime.fromisoformat(run["logical_date"]).date(): run
        for run in story.airflow.runs(dag_id)
        if run["logical_date"]
    }


# -- what ran


def test_every_run_ended_but_those_that_wait(story):
    states = {dag_id: Counter(run["state"] for run in story.airflow.runs(dag_id)) for dag_id in DAGS}

    days = (story.last - story.first).days + 1
    assert sum(states[ALL].values()) >= days
    assert sum(states[FLEET].values()) >= days
    assert sum(states[YESTERDAY].values()) >= days
    assert sum(states[BACKFILL].values()) == len(DIMENSIONS)
    assert states[YESTERDAY].keys() == {"success"}
    for dag_id in DAGS:
        waiting = [run for run in story.airflow.runs(dag_id) if story.waits(dag_id, run)]
        assert states[dag_id]["running"] == len(waiting)
        if not story.faults:
            assert states[dag_id]["failed"] == 0


def test_each_mapped_task_came_to_its_end(story, right):
    for dag_id, task_id in FIRST_TASKS.items():
        for run in story.airflow.runs(dag_id):
            states = story.airflow.task_states(dag_id, run["dag_run_id"])
            assert {states[task_id, ORGS.index(org)] for org in right} == {"success"}, run["dag_run_id"]


def test_both_workers_worked(story):
    for worker in ("worker-1", "worker-2"):
        assert story.airflow.service_log(worker).count("succeeded in") > 0


def test_every_service_is_healthy_by_its_own_check(story):
    for service in SERVICES:
        story.airflow.check_health(service)


# -- what was exported


def test_the_files_are_the_services_figures_and_no_others(story, right, objects):
    expected, found = {}, {}
    for folder, days in days_exported(story).items():
        group_by = folder.rpartition("=")[2]
        for org in right:
            for day in days:
                if rows := truth_of(story, org, day, group_by):
                    expected[f"{folder.format(org=org)}/dt={day}/usage.jsonl"] = rows
    for key, content in objects.items():
        if "/data/" in key and not (story.faults and f"org_id={REVOKED}/" in key):
            found[key] = rows_of(content)

    assert found.keys() == expected.keys()
    for key, rows in expected.items():
        assert sorted(found[key], key=str) == sorted(rows, key=str), key
        assert len(set(found[key])) == len(found[key])


def test_what_was_exported_before_a_key_was_revoked_is_right_too(story, objects):
    for key, content in objects.items():
        if f"/data/org_id={REVOKED}/" in key:
            _, _, _, group_by, day, _ = key.split("/")
            truth = truth_of(story, REVOKED, date.fromisoformat(day[3:]), group_by.partition("=")[2])
            assert sorted(rows_of(content), key=str) == sorted(truth, key=str), key


def test_every_day_has_a_manifest_and_every_file_is_whole(story, right, objects):
    for folder, days in days_exported(story).items():
        for org in right:
            manifests = folder.format(org=org).replace("/data/", "/metadata/", 1)
            found = {key for key in objects if key.startswith(f"{manifests}/")}
            reported = {f"{manifests}/.reported-{day:%Y}" for day in days}
            assert found - reported == {
                f"{manifests}/{name}.json" for name in ("index", *(f"dt={day}" for day in days))
            }
            assert story.faults or reported <= found, "the changes that tasks which succeeded have reported"
    for dataset in ("reducto", "reducto_fleet"):
        verify = [sys.executable, "-m", "reducto_provider.export.verify", f"s3://lake@{BUCKET}/{dataset}"]
        env = {**os.environ, "AIRFLOW_CONN_LAKE": story.s3.connection()}
        done = subprocess.run(verify, env=env, cwd=story.home, capture_output=True, text=True, check=False)
        *problems, last = [line for line in done.stdout.splitlines() if "[airflow." not in line]
        # Days of the organization whose key was revoked were exported by some runs and not by those between them.
        missing = f"missing: metadata/org_id={REVOKED}/"
        assert [line for line in problems if not (story.faults and line.startswith(missing))] == []
        assert last.endswith(f" {len(problems)} problems"), done.stdout + done.stderr


def test_each_month_is_one_file_with_its_figures(story, right, objects):
    for org in right:
        for month in runs_by_month(story, MONTHLY[org]):
            start, end = month_before(month), month - timedelta(days=1)
            rows = csv.DictReader(io.StringIO(objects[f"reducto_monthly/{org}/{month}.csv"].decode()))
            exported = [(row["date"], row["group"], row["credits"], int(row["request_count"])) for row in rows]
            truth = story.simulator.usage.truth(org, start, end, "api_key")
            assert [(day, group, requests) for day, group, _, requests in exported] == [
                (row.date.isoformat(), row.group, row.requests) for row in truth
            ]
            if org == "org_umbrella":
                assert {credits for _, _, credits, _ in exported} == {""}
            else:
                assert [Decimal(credits) for _, _, credits, _ in exported] == [row.credits for row in truth]


def test_the_xcoms_have_the_totals(story, right):
    airflow, usage = story.airflow, story.simulator.usage
    for run in airflow.runs(ALL):
        days = story.days_of(run)
        for org in right:
            xcom = airflow.xcom(ALL, run["dag_run_id"], "export_usage", ORGS.index(org))
            rows = usage.truth(org, days[0], days[-1])
            assert xcom["request_count"] == sum(row.requests for row in rows)
            assert xcom["credits"] == credits_of(org, rows)
            assert xcom["row_count"] == len(rows)
    for run in airflow.runs(YESTERDAY):
        xcom = airflow.xcom(YESTERDAY, run["dag_run_id"], "export_usage")
        day = story.days_of(run)[-1]
        truth = [(row.group, float(row.credits), row.requests) for row in usage.truth(ORGS[0], day, day)]
        assert [(row["group"], row["credits"], row["request_count"]) for row in xcom["rows"]] == truth


def test_the_usage_page_shows_every_organization(story, right):
    answer = story.airflow.answer("/reducto-usage/")
    assert answer.status_code == 200
    for org in right:
        assert f">{org}</a>" in answer.text


def test_a_restart_of_an_export_counts_nothing_twice(story):
    """Each task instance has one XCom of a kind, and each run one task instance of a kind."""
    twice = story.postgres.query(
        "select dag_id, run_id, task_id, map_index, key, count(*) from xcom group by 1, 2, 3, 4, 5 having count(*) > 1"
    )
    assert twice == []


# -- what waited


def sensor_states(story, month):
    found = {}
    for org in ORGS:
        run = runs_by_month(story, MONTHLY[org])[month]
        states = story.airflow.task_states(MONTHLY[org], run["dag_run_id"])
        found[org] = (states["budget_exceeded", -1], states["tell_owners", -1])
    return found


def test_last_months_budgets_are_decided(story):
    exceeded, kept = ("success", "success"), ("skipped", "skipped")
    expected = {org: exceeded if org in ("org_hooli", "org_umbrella") else kept for org in ORGS}
    if story.faults:
        expected[REVOKED] = sensor_states(story, story.last_month)[REVOKED]  # its request may have come before or after
        assert expected[REVOKED] in (kept, ("failed", "upstream_failed"))
    assert sensor_states(story, story.last_month) == expected


def test_this_months_budgets_are_decided_or_waited_for(story):
    waiting = ("deferred", None)
    assert sensor_states(story, story.this_month) == {
        "org_acme": ("success", "success"),
        "org_hooli": ("success", "success"),
        "org_umbrella": ("success", "success"),
        "org_initech": waiting,
        "org_globex": ("failed", "upstream_failed") if story.faults else waiting,
    }


def test_the_readings_are_what_was_used(story, right):
    airflow, usage = story.airflow, story.simulator.usage
    for org in ("org_hooli", "org_umbrella"):
        run = runs_by_month(story, MONTHLY[org])[story.last_month]
        reading = airflow.xcom(MONTHLY[org], run["dag_run_id"], "budget_exceeded")
        rows = usage.truth(org, story.last_month, story.this_month - timedelta(days=1))
        used = sum(row.credits if METRIC[org] == "credits" else row.requests for row in rows)
        assert reading["value"] == float(used)
        assert reading["threshold"] == story.budgets[org]
        assert reading["org_id"] == org


def test_each_level_fired_once(story):
    events = [payload for payload in story.payloads() if "reading" in payload]
    fired = Counter((event["reading"]["org_id"], event["level"]) for event in events)
    transient = [org for org, levels in story.expected_levels.items() if levels]
    assert fired == {(org, level): 1 for org in transient for level in (50, 80, 100)}
    messages = [
        message
        for run in story.airflow.runs(LEVELS)
        for message in story.airflow.xcom(LEVELS, run["dag_run_id"], "act")
    ]
    assert len(messages) == len(set(messages)) == len(fired)


def test_each_owner_got_one_mail_for_each_month(story):
    mails = Counter((mail["To"], mail["Subject"]) for mail in story.mailbox.mails)
    both_months = {(f"finops@{org}.example", subject(org)): 2 for org in ("org_hooli", "org_umbrella")}
    later = {("finops@org_acme.example", subject("org_acme")): 1} if story.faults else {}
    assert mails == {**both_months, **later}
    states = story.airflow.task_states(MAIL, runs_by_month(story, MAIL)[story.this_month]["dag_run_id"])
    assert states["projected_org_initech", -1] == "deferred"


def subject(org):
    return f"Reducto: {org} is on its way past its budget"


# -- the secret


def test_the_key_lies_encrypted_in_the_connections_and_nowhere_else(story):
    rows = story.postgres.query("select conn_id, password, is_encrypted from connection where conn_type = 'reducto'")
    assert len(rows) == len(ORGS) + 1
    fernet = Fernet(story.env["FERNET_KEY"])
    for conn_id, password, is_encrypted in rows:
        assert is_encrypted == "t"
        assert fernet.decrypt(password).decode() == story.keys[conn_id.removeprefix("reducto_")]
    assert story.places_of_the_key() == []


def test_the_search_for_the_key_finds_it(story):
    """In each way to write it, so that the test above can fail."""
    key = story.keys["default"]
    forms = forms_of(story.canary)
    for prefix in ("", "x", "xx", "Bearer "):
        encoded = base64.b64encode(f"{prefix}{key}".encode())
        assert any(form in encoded for form in forms)
        assert any(form in base64.urlsafe_b64encode(f":{prefix}{key}".encode()) for form in forms)
    assert any(form in quote(key, safe="").encode() for form in forms)
    assert any(form in json.dumps({"password": key}).encode() for form in forms)

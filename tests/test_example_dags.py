"""The example DAGs: parsed without a network, a database or a Variable; run by the demo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]

PARSE = """
import socket, sqlite3, sys
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.sdk import Connection, Variable

def refuse(*args, **kwargs):
    raise AssertionError(f"parsing reached out: {args}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
sqlite3.connect = sqlite3.dbapi2.connect = refuse
Variable.get = Connection.get = refuse

folder = sys.argv[1]
sys.path.insert(0, folder)
bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags")
assert not bag.import_errors, bag.import_errors
for dag_id, dag in sorted(bag.dags.items()):
    assert dag.doc_md and dag.doc_md.strip().startswith("# "), dag_id
    print(dag_id)
"""


def test_parsing_touches_nothing():
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(PROJECT / "dags")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("reducto_")] == [
        "reducto_usage_all_organizations",
        "reducto_usage_backfill",
        "reducto_usage_fleet",
        "reducto_usage_org_acme",
        "reducto_usage_org_globex",
        "reducto_usage_org_initech",
    ]


def test_the_demo_runs_them_all_twice(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "REDUCTO_API_KEY_STUDIO"}
    command = [sys.executable, "-m", "demo", str(tmp_path)]
    first = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, check=False)
    second = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, check=False)

    for done in (first, second):
        assert done.returncode == 0, done.stdout + done.stderr
        screen = done.stdout
        for organization in ("org_acme", "org_globex", "org_initech"):
            assert screen.count(organization) >= 3
        assert "exceeded: " in screen
        assert "kept: sensor skipped" in screen
        assert "usage.jsonl" in screen
        assert "Traceback" not in screen
    assert "sim-key" not in (tmp_path / "demo.log").read_text()


def test_the_demo_says_what_went_wrong(tmp_path):
    env = {**os.environ, "REDUCTO_API_KEY_STUDIO": "not a key"}
    done = subprocess.run(
        [sys.executable, "-m", "demo", str(tmp_path)], cwd=PROJECT, env=env, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "failed: connection 'reducto_default': password" in done.stdout
    assert "demo.log" in done.stdout

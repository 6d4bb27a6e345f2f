"""The example DAGs, run by the demo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.airflows import new_in

PROJECT = Path(__file__).parents[1]

# `make demo` runs on the newest Airflow alone.
pytestmark = new_in(3, 3, "the demo, which brings its own Airflow")


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

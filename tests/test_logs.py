"""What a person on call reads: the stories in docs/logs.md are what real tasks and triggers log, line by line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator import Reply, Simulator, status
from tests.airflows import new_in

PAGE = (Path(__file__).parents[1] / "docs/logs.md").read_text()

EXPORT = """
from datetime import datetime
from tests.airflow_sdk import DAG
from reducto_provider.operators.export import ReductoUsageExportOperator

with DAG("story", schedule=None, start_date=datetime(2026, 1, 1)):
    ReductoUsageExportOperator(
        task_id="export_usage",
        org_id="org_acme",
        usage_start_date="2026-10-29",
        usage_end_date="2026-10-31",
        output_path="file://FOLDER/reducto",
    )
"""

WAIT = """
from datetime import datetime
from tests.airflow_sdk import DAG
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor

with DAG("story", schedule=None, start_date=datetime(2026, 1, 1)):
    ReductoUsageThresholdSensor(
        task_id="budget_exceeded",
        org_id="org_acme",
        threshold=30_000,
        usage_start_date="2026-10-01",
        usage_end_date="2026-10-31",
        on_closed_window="wait",
        deferrable=True,
        poke_interval=1,
    )
"""

GATE = """
from datetime import datetime
from tests.airflow_sdk import DAG
from reducto_provider.operators.budget import ReductoBudgetGateOperator

with DAG("story", schedule=None, start_date=datetime(2026, 1, 1)):
    ReductoBudgetGateOperator(
        task_id="within_budget",
        org_id="org_acme",
        budget=60_000,
        reserve=1000,
        usage_start_date="2026-10-01",
        usage_end_date="2026-10-31",
        ARGUMENTS
    )
"""

Run = Callable[..., Any]


def documented(story: str) -> list[str]:
    """The lines that the page tells a story in."""
    [block] = re.findall(rf"<!-- story: {story} -->\n+```text\n(.*?)```", PAGE, re.DOTALL)
    return [alike(line) for line in block.splitlines()]


def logged(result: Any) -> list[str]:
    """What this package logged, and the message of what was raised."""
    line = re.compile(r"^\S+ \[(\w+) *\] (.*?) +\[\S*reducto_provider\S*\]", re.MULTILINE)
    found = [f"{level.upper():7} {text}" for level, text in line.findall(result.log)]
    return [alike(each) for each in found + [f"ERROR   {each.type}: {each.message}" for each in result.errors]]


def alike(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"file:///\S+?(?=[;,])", "file:///", line)
    line = re.sub(r"in \d+\.\d s", "in 0.0 s", line)
    line = re.sub(r"for \d+:\d\d:\d\d;", "for 0:00:00;", line)
    return re.sub(r"until \S+ \S+ UTC", "until then", line)


def lower_usage() -> Reply:
    """An answer of the month before it was over."""
    row = {"date": "2026-10-14", "group": "parse", "credits": 28750.5, "requestCount": 9150}
    echo = {"orgId": "org_acme", "startDate": "2026-10-01", "endDate": "2026-10-31", "groupBy": "product"}
    return Reply(200, json.dumps({**echo, "data": [row]}))


@new_in(3, 3, "these very lines of Airflow's own around them")
class TestStories:
    def test_an_export(self, run_dag: Run, tmp_path: Path) -> None:
        source = EXPORT.replace("FOLDER", str(tmp_path))

        assert logged(run_dag(source).expect()) == documented("an export")
        assert logged(run_dag(source).expect()) == documented("the same export again")

    def test_a_wait(self, run_dag: Run, simulator: Simulator) -> None:
        simulator.faults.add(lower_usage())
        simulator.faults.add(status(503))

        assert logged(run_dag(WAIT).expect()) == documented("a wait")

    def test_a_wait_in_which_nothing_happens_for_a_while(self, run_dag: Run, simulator: Simulator) -> None:
        simulator.faults.add(lower_usage(), times=4)

        found = run_dag(WAIT).expect()
        assert logged(found) == documented("a wait in which nothing happens for a while")
        assert len(simulator.requests) == 5

    def test_a_wait_while_the_service_fails(self, run_dag: Run, simulator: Simulator) -> None:
        simulator.faults.add(lower_usage())
        simulator.faults.add(status(503), times=2)

        found = run_dag(WAIT, connection={"extra": {"max_attempts": 1}}).expect()
        assert logged(found) == documented("a wait while the service fails")

    def test_a_wait_that_is_too_short(self, run_dag: Run, simulator: Simulator) -> None:
        simulator.faults.add(lower_usage(), times=2)

        found = run_dag(WAIT.replace("poke_interval=1", "poke_interval=60, timeout=2"))
        assert logged(found.expect("failed")) == documented("a wait that is too short")

    def test_a_gate(self, run_dag: Run, simulator: Simulator) -> None:
        skipped = run_dag(GATE.replace("ARGUMENTS", "on_exceeded='skip'")).expect()
        assert logged(skipped) == documented("a gate that is over its budget")
        assert logged(run_dag(GATE.replace("ARGUMENTS", "on_exceeded='warn'")).expect()) == documented(
            "a gate on trial"
        )

        simulator.faults.add(status(503))
        found = run_dag(GATE.replace("ARGUMENTS", "on_unknown='allow'"), connection={"extra": {"max_attempts": 1}})
        assert logged(found.expect()) == documented("a gate while the service fails")

    def test_a_failure_that_passes(self, run_dag: Run, simulator: Simulator, tmp_path: Path) -> None:
        for _ in range(3):
            simulator.faults.add(status(503))
        source = EXPORT.replace("FOLDER", str(tmp_path))

        found = run_dag(source, connection={"extra": {"max_attempts": 3}}).expect("failed")
        assert logged(found) == documented("a failure that passes")

    def test_a_failure_that_needs_somebody(self, run_dag: Run, tmp_path: Path) -> None:
        source = EXPORT.replace("FOLDER", str(tmp_path))

        found = run_dag(source, connection={"password": "revoked-key"}).expect("failed")
        assert logged(found) == documented("a failure that needs somebody")
        assert "revoked-key" not in found.log


@pytest.mark.parametrize("block", re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL))
def test_no_story_is_longer_than_five_lines(block: str) -> None:
    assert len(block.splitlines()) <= 5

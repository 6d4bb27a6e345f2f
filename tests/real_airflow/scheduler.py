"""A scheduler of Airflow 2 and the tasks that it starts, as processes. Read by commands and by its database.

What :class:`~tests.real_airflow.deployment.AirflowDeployment` is for Airflow 3, as far as tests of both need it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from .running import RunningAirflow

QUICK: Mapping[str, str] = {
    # One task after the other: SQLite has one writer.
    "AIRFLOW__CORE__EXECUTOR": "SequentialExecutor",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__LOCAL_TASK_JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__ZOMBIE_DETECTION_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "10",
}


class AirflowScheduler(RunningAirflow):
    """The scheduler of an Airflow 2, and the tasks that it starts."""

    def __init__(self, home: Path, dags_folder: Path, env: Mapping[str, str] | None = None) -> None:
        super().__init__(home, dags_folder, {**QUICK, **(env or {})})
        # The executor starts tasks by this name.
        self._env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), self._env["PATH"]])

    def unpause(self, dag_id: str) -> None:
        """Unpause a DAG."""
        self.command("dags", "unpause", dag_id, "--yes")

    def trigger(self, dag_id: str) -> dict[str, Any]:
        """Trigger a run."""
        [run] = json.loads(self.command("dags", "trigger", dag_id, "--output", "json").splitlines()[-1])
        return {"dag_run_id": run["dag_run_id"]}

    def clear(self, dag_id: str, run_id: str) -> None:
        """Clear all task instances of a run."""
        [(moment,)] = self._select("SELECT execution_date FROM dag_run WHERE dag_id = ? AND run_id = ?", dag_id, run_id)
        day = f"{moment.replace(' ', 'T')}+00:00"
        self.command("tasks", "clear", dag_id, "--yes", "--start-date", day, "--end-date", day)

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One run."""
        [(state,)] = self._select("SELECT state FROM dag_run WHERE dag_id = ? AND run_id = ?", dag_id, run_id)
        return {"state": state}

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run."""
        names = ("task_id", "map_index", "state", "try_number")
        found = self._select(
            f"SELECT {', '.join(names)} FROM task_instance WHERE dag_id = ? AND run_id = ?", dag_id, run_id
        )
        return [dict(zip(names, each, strict=True)) for each in found]

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> Any:
        """What a task instance returned."""
        [(value,)] = self._select(
            "SELECT value FROM xcom WHERE dag_id = ? AND run_id = ? AND task_id = ? AND map_index = ? "
            "AND key = 'return_value'",
            *(dag_id, run_id, task_id, map_index),
        )
        return json.loads(value)

    def asset_events(self) -> list[dict[str, Any]]:
        """All asset events, oldest first."""
        found = self._select("SELECT source_run_id, source_map_index, extra FROM dataset_event ORDER BY id")
        return [
            {"source_run_id": run_id, "source_map_index": map_index, "extra": json.loads(extra)}
            for run_id, map_index, extra in found
        ]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """The log of one try of a task instance."""
        mapped = f"/map_index={map_index}" if map_index >= 0 else ""
        name = f"dag_id={dag_id}/run_id={run_id}/task_id={task_id}{mapped}/attempt={try_number}.log"
        return (self.home / "logs" / name).read_text(errors="replace")

    def _start_processes(self) -> None:
        """Start the scheduler, without waiting for it."""
        self.command("dags", "reserialize")
        self._start_process("scheduler", [sys.executable, "-m", "airflow", "scheduler", "--skip-serve-logs"])

    def _select(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.home / "airflow.db", timeout=30)) as connection:
            return connection.execute(query, arguments).fetchall()

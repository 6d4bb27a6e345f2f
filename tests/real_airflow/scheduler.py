"""A scheduler of Airflow 2 and the tasks that it starts, as processes. Asked by commands and by its database.

What :class:`~tests.real_airflow.deployment.AirflowDeployment` is for Airflow 3, as far as tests of both need it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Self, TypeVar

from .environment import airflow_environment, copy_database, migrated_database, tail
from .processes import Guard

T = TypeVar("T")

QUICK: Mapping[str, str] = {
    # One task after the other: SQLite has one writer.
    "AIRFLOW__CORE__EXECUTOR": "SequentialExecutor",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__LOCAL_TASK_JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__ZOMBIE_DETECTION_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "10",
}


class SchedulerError(Exception):
    """Airflow did not do what was asked."""


class AirflowScheduler:
    """The scheduler in a home folder, from `start` to `stop`, or inside a `with`."""

    def __init__(self, home: Path, dags_folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.home = home.resolve()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        dags = {"AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder.resolve())}
        self._env = airflow_environment(self.home, {**QUICK, **dags, **(env or {})})
        # The executor starts tasks by this name.
        self._env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), self._env["PATH"]])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the scheduler, without waiting for it."""
        self._guard = Guard(self.home)
        try:
            copy_database(migrated_database(), self.home / "airflow.db")
            self.command("dags", "reserialize")
            with (self.home / "scheduler.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "airflow", "scheduler", "--skip-serve-logs"],
                    env=self._env,
                    cwd=self.home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the scheduler and its tasks."""
        if self._guard:
            self._guard.close()
            self._guard = None
        if self._process:
            self._process.wait()
            self._process = None

    def command(self, *arguments: str) -> str:
        """What an `airflow` command prints."""
        command = [sys.executable, "-m", "airflow", *arguments]
        done = subprocess.run(command, env=self._env, cwd=self.home, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SchedulerError(f"airflow {' '.join(arguments)} gave {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def unpause(self, dag_id: str) -> None:
        """Unpause a DAG."""
        self.command("dags", "unpause", dag_id, "--yes")

    def trigger(self, dag_id: str) -> dict[str, Any]:
        """Trigger a run."""
        [run] = json.loads(self.command("dags", "trigger", dag_id, "--output", "json").splitlines()[-1])
        return {"dag_run_id": run["dag_run_id"]}

    def clear(self, dag_id: str, run_id: str) -> None:
        """Clear all task instances of a run."""
        [(moment,)] = self._ask("SELECT execution_date FROM dag_run WHERE dag_id = ? AND run_id = ?", dag_id, run_id)
        day = f"{moment.replace(' ', 'T')}+00:00"
        self.command("tasks", "clear", dag_id, "--yes", "--start-date", day, "--end-date", day)

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One run."""
        [(state,)] = self._ask("SELECT state FROM dag_run WHERE dag_id = ? AND run_id = ?", dag_id, run_id)
        return {"state": state}

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run."""
        names = ("task_id", "map_index", "state", "try_number")
        found = self._ask(
            f"SELECT {', '.join(names)} FROM task_instance WHERE dag_id = ? AND run_id = ?", dag_id, run_id
        )
        return [dict(zip(names, each, strict=True)) for each in found]

    def task_states(self, dag_id: str, run_id: str) -> dict[tuple[str, int], str | None]:
        """The state of each task instance of a run, by task and map index."""
        return {(ti["task_id"], ti["map_index"]): ti["state"] for ti in self.task_instances(dag_id, run_id)}

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> Any:
        """What a task instance returned."""
        [(value,)] = self._ask(
            "SELECT value FROM xcom WHERE dag_id = ? AND run_id = ? AND task_id = ? AND map_index = ? "
            "AND key = 'return_value'",
            *(dag_id, run_id, task_id, map_index),
        )
        return json.loads(value)

    def asset_events(self) -> list[dict[str, Any]]:
        """All asset events, oldest first."""
        found = self._ask("SELECT source_run_id, source_map_index, extra FROM dataset_event ORDER BY id")
        return [
            {"source_run_id": run_id, "source_map_index": map_index, "extra": json.loads(extra)}
            for run_id, map_index, extra in found
        ]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """The log of one try of a task instance."""
        mapped = f"/map_index={map_index}" if map_index >= 0 else ""
        name = f"dag_id={dag_id}/run_id={run_id}/task_id={task_id}{mapped}/attempt={try_number}.log"
        return (self.home / "logs" / name).read_text(errors="replace")

    def wait_for(self, probe: Callable[[], T | None], timeout: float, what: str) -> T:
        """Call `probe` until what it returns is true, and return that."""
        deadline = time.monotonic() + timeout
        while not (value := probe()):
            if time.monotonic() > deadline or (self._process and self._process.poll() is not None):
                raise SchedulerError(f"waited for {what}:\n{tail(self.home / 'scheduler.log')}")
            time.sleep(0.2)
        return value

    def wait_for_run(self, dag_id: str, run_id: str, *, timeout: float = 60, state: str | None = None) -> None:
        """Wait for a run to end, in this state."""
        found = self.wait_for(
            lambda: (found := self.run(dag_id, run_id)["state"]) in ("success", "failed") and found,
            timeout,
            f"the end of {run_id!r} of {dag_id!r}",
        )
        if state and found != state:
            logs = [path.read_text(errors="replace")[-3000:] for path in self.home.glob(f"logs/*/run_id={run_id}/*/*")]
            raise SchedulerError(f"{run_id!r} of {dag_id!r} ended as {found}:\n{logs}")

    def _ask(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.home / "airflow.db", timeout=30)) as connection:
            return connection.execute(query, arguments).fetchall()

"""What an Airflow of processes is, whatever its version: a home, an environment, and waiting for what happens there."""

from __future__ import annotations

import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from .environment import airflow_environment, copy_database, migrated_database, tail
from .processes import Guard

T = TypeVar("T")

FINISHED = ("success", "failed")
"""The states in which a run stays."""


class DeploymentError(Exception):
    """Airflow did not do what it should. The message has the ends of its logs where they help."""


class DeploymentTimeoutError(DeploymentError, TimeoutError):
    """What was waited for did not happen."""


class RunningAirflow(ABC):
    """Airflow in a home folder, from `start` to `stop`, or inside a `with`.

    `env` is added to the environment of all processes: connections as `AIRFLOW_CONN_...`, settings as
    `AIRFLOW__...`, a `PYTHONPATH`.
    """

    passing_errors: ClassVar[tuple[type[Exception], ...]] = ()
    """What a probe may raise while a server is starting."""

    def __init__(
        self, home: Path, dags_folder: Path, env: Mapping[str, str] | None = None, *, cache_dir: Path | None = None
    ) -> None:
        self.home = home.resolve()
        self._cache_dir = cache_dir
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: Guard | None = None
        dags = {"AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder.resolve())}
        self._env = airflow_environment(self.home, {**dags, **(env or {})})

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start all processes, on a new database."""
        self._guard = Guard(self.home)
        try:
            copy_database(migrated_database(self._cache_dir), self.home / "airflow.db")
            self._start_processes()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all processes, theirs included. Nothing of them is left when this returns."""
        # In its home nothing is worth a slow farewell.
        try:
            if self._guard:
                self._guard.close()
        finally:
            self._guard = None
            for process in self._processes.values():
                process.kill()
                process.wait()
            self._processes.clear()

    def service_log(self, service: str) -> str:
        """What a process has written so far, in all its lives."""
        return (self.home / f"{service}.log").read_text(errors="replace")

    def command(self, *arguments: str) -> str:
        """What an `airflow` command prints, run beside the processes."""
        command = [sys.executable, "-m", "airflow", *arguments]
        done = subprocess.run(command, env=self._env, cwd=self.home, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DeploymentError(f"airflow {' '.join(arguments)} gave {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    # -- what a user sees

    @abstractmethod
    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One run."""

    @abstractmethod
    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run, each with `task_id`, `map_index`, `state` and `try_number`."""

    @abstractmethod
    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """The log of one try of a task instance."""

    def task_states(self, dag_id: str, run_id: str) -> dict[tuple[str, int], str | None]:
        """The state of each task instance of a run, by task and map index."""
        instances = self.task_instances(dag_id, run_id)
        return {(ti["task_id"], ti["map_index"]): ti["state"] for ti in instances}

    # -- waiting

    def wait_for(self, probe: Callable[[], T | None], timeout: float, what: str) -> T:
        """Call `probe` until what it returns is true, and return that.

        Errors in it are final, but for `passing_errors`.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                if value := probe():
                    return value
            except self.passing_errors:
                pass
            for service, process in self._processes.items():
                if process.poll() is not None:
                    log = self._log_tails(service)
                    raise DeploymentError(f"{service} ended with {process.returncode}:{log}")
            if time.monotonic() > deadline:
                raise DeploymentTimeoutError(f"waited {timeout} s for {what}{self._log_tails(*self._processes)}")
            time.sleep(0.1)

    def wait_for_run(
        self,
        dag_id: str,
        run_id: str,
        *,
        timeout: float = 60,
        state: str | None = None,
    ) -> dict[str, Any]:
        """A run, as soon as it is finished.

        With a `state`, any other end is an error with the logs of what failed.
        """

        def finished() -> dict[str, Any] | None:
            run = self.run(dag_id, run_id)
            return run if run["state"] in FINISHED else None

        try:
            run = self.wait_for(finished, timeout, f"the end of {dag_id!r}, {run_id!r}")
        except DeploymentTimeoutError as error:
            states = self.task_states(dag_id, run_id)
            raise DeploymentTimeoutError(f"{error}\n\nits tasks: {states}") from None
        if state and run["state"] != state:
            raise DeploymentError(f"{dag_id!r} ended as {run['state']}{self._task_logs(dag_id, run_id)}")
        return run

    # -- inside

    @abstractmethod
    def _start_processes(self) -> None: ...

    def _start_process(
        self,
        service: str,
        command: list[str],
        *,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        executable: str | None = None,
    ) -> None:
        with (self.home / f"{service}.log").open("ab") as log:
            self._processes[service] = subprocess.Popen(
                command,
                executable=executable,
                env=env or self._env,
                cwd=folder or self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _log_tails(self, *services: str) -> str:
        logs = {service: tail(self.home / f"{service}.log") for service in services}
        return "".join(f"\n\n--- {service}:\n{log}" for service, log in logs.items())

    def _task_logs(self, dag_id: str, run_id: str) -> str:
        return "".join(
            f"\n\n--- {ti['task_id']} [{ti['map_index']}], try {ti['try_number']}:\n"
            + self.log(dag_id, run_id, ti["task_id"], ti["try_number"], ti["map_index"])
            for ti in self.task_instances(dag_id, run_id)
            if ti["state"] == "failed"
        )

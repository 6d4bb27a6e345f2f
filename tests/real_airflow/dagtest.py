"""One run of a DAG on real Airflow by `DAG.test`: the tasks and triggers run in line, without a scheduler.

Right for everything that an operator, sensor or trigger does inside a run. What needs Airflow's own processes
(schedules, assets that start a DAG, partitions, the timeout of a deferral, restarts) is for `deployment`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Literal

from . import dagtest_worker
from .environment import airflow_environment, copy_database, migrated_database, tail
from .processes import Guard, kill_processes_in


class DagTestError(Exception):
    """The run did not come about: the file can't be imported, has no such DAG, or the process died."""


class DagTestTimeoutError(DagTestError, TimeoutError):
    """The run took too long and was killed."""


@dataclass(frozen=True)
class TaskInstance:
    """The outcome of a task instance. `map_index` is -1 for a task that is not mapped."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    rendered_fields: Mapping[str, Any]


@dataclass(frozen=True)
class TaskError:
    """What one try of a task raised. `state` is that of the try: `failed` or `up_for_retry`."""

    task_id: str
    map_index: int
    try_number: int
    state: str
    type: str
    message: str
    traceback: str


@dataclass(frozen=True)
class DagTestResult:
    """A finished run."""

    dag_id: str
    run_id: str
    state: str
    task_instances: tuple[TaskInstance, ...]
    xcoms: Mapping[tuple[str, int, str], Any]
    """By task, map index and key. The values are as in the database: JSON, encoded where need be."""
    asset_events: tuple[Mapping[str, Any], ...]
    errors: tuple[TaskError, ...]
    log: str
    """All that was logged and printed, by Airflow, the tasks and the triggers."""
    folder: Path
    """The run's own folder, with its DAG file. It is the working directory of the tasks."""

    @cached_property
    def tasks(self) -> Mapping[str, str | list[str]]:
        """The state of each task; of a mapped one the list of its states."""
        states: dict[str, Any] = {}
        for (task_id, map_index), state in self.task_states().items():
            if map_index < 0:
                states[task_id] = state
            else:
                states.setdefault(task_id, []).append(state)
        return states

    def task_states(self) -> Mapping[tuple[str, int], str | None]:
        """The state of each task instance, by task and map index."""
        return {(instance.task_id, instance.map_index): instance.state for instance in self.task_instances}

    def task_instance(self, task_id: str, map_index: int = -1) -> TaskInstance:
        """One task instance."""
        instances = {(instance.task_id, instance.map_index): instance for instance in self.task_instances}
        return instances[task_id, map_index]

    def xcom(self, task_id: str, map_index: int | None = None, key: str = "return_value") -> Any:
        """What a task pushed. Of a mapped task without a map index the list of what its instances pushed."""
        found = {xcom[1]: value for xcom, value in self.xcoms.items() if xcom[::2] == (task_id, key)}
        if map_index is None and found and -1 not in found:
            return [found[index] for index in sorted(found)]
        wanted = -1 if map_index is None else map_index
        if wanted not in found:
            raise LookupError(f"no XCom of {(task_id, wanted, key)}; there are {list(self.xcoms)}")
        return found[wanted]

    def expect(self, state: str = "success") -> DagTestResult:
        """Itself, if the run ended in this state; otherwise an error that tells what happened."""
        if self.state != state:
            causes = "\n".join(error.traceback for error in self.errors) or self.log[-4000:]
            raise AssertionError(f"{self.dag_id} is {self.state}, not {state}: {self.tasks}\n{causes}")
        return self


class DagRunner:
    """Runs DAG after DAG, each in a fork of a process that has Airflow loaded, with a new database.

    Nothing passes from one run to the next. One run at a time.
    """

    def __init__(
        self,
        home: Path,
        env: Mapping[str, str] | None = None,
        *,
        cache_dir: Path | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        """Start the process; the first run waits until it is ready.

        `env` is for every run, and for what Airflow reads only once, at its import. The modules of `preload` are
        imported once, instead of in every run; none may start a thread of Python's.
        """
        self.home = home.resolve()
        self._env = airflow_environment(self.home, env)
        self._pristine = migrated_database(cache_dir)
        self._preload = preload
        self._runs = 0
        self._guard = Guard(self.home)
        self._start()

    def run(
        self,
        dag: str | Path,
        *,
        dag_id: str | None = None,
        logical_date: datetime | Literal["now"] | None = "now",
        run_after: datetime | None = None,
        conf: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> DagTestResult:
        """Run a DAG, given as source text or as a file, which is copied.

        `dag_id` may be left out where the file holds one DAG. A `logical_date` of `None` is a run without
        one. `env` is for this run alone: connections as `AIRFLOW_CONN_...`, settings as `AIRFLOW__...`.
        A failed run is a result, not an error. Retries happen in line, after their delay: let it be nothing.
        """
        self._runs += 1
        folder = self.home / f"run_{self._runs:03}"
        temporary = folder / "tmp"
        (folder / "dags").mkdir(parents=True)
        temporary.mkdir()
        if isinstance(dag, Path):
            shutil.copy(dag, folder / "dags")
        else:
            (folder / "dags/dag.py").write_text(textwrap.dedent(dag))

        request: dict[str, Any] = {
            "folder": str(folder),
            "dag_id": dag_id,
            "conf": dict(conf or {}),
            "env": {"TMPDIR": str(temporary), **(env or {})},
        }
        if logical_date != "now":
            request["logical_date"] = logical_date
        if run_after is not None:
            request["run_after"] = run_after
        self._serve(request, folder, timeout)
        return self._result(folder)

    def close(self) -> None:
        """End the process and everything that runs left behind."""
        with ExitStack() as stack:
            stack.callback(self._process.wait)
            stack.callback(self._connection.close)  # with which the process ends, were it still there
            stack.callback(self._guard.close)

    def _start(self) -> None:
        copy_database(self._pristine, self.home / "airflow.db")
        self._ready = False
        self._connection, theirs = Pipe()
        # -P: the worker's folder must not become a place to import from.
        command = [sys.executable, "-P", dagtest_worker.__file__, str(self.home), str(theirs.fileno()), *self._preload]
        with theirs:
            self._process = subprocess.Popen(
                command,
                env=self._env,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def _restart(self) -> None:
        with self._connection:
            kill_processes_in(self.home)
            self._process.wait()
        self._start()

    def _serve(self, request: dict[str, Any], folder: Path, timeout: float) -> None:
        """Have the worker serve a request. Whatever happens, the next request finds a worker."""
        try:
            if not self._ready:
                if not self._connection.poll(120):
                    raise EOFError
                self._connection.recv()
                self._ready = True
            copy_database(self._pristine, self.home / "airflow.db")
            self._connection.send(request)
            timed_out = not self._connection.poll(timeout)
            if timed_out:
                kill_processes_in(folder)
                if not self._connection.poll(5):
                    raise EOFError
            status = self._connection.recv()
        except BaseException as error:
            # Also for an interrupted test: its answer must not be the next one's.
            log = tail(self.home / "worker.log")
            self._restart()
            if isinstance(error, EOFError | OSError):
                raise DagTestError(f"Airflow did not start or has died; the log's end:\n{log}") from error
            raise
        # What a signal ends logs where each of its threads was.
        log = tail(folder / "log.txt", 400 if status < 0 else 40)
        if timed_out:
            raise DagTestTimeoutError(f"killed after {timeout} seconds; the log's end:\n{log}")
        if status:
            raise DagTestError(f"the run died with status {status}; the log's end:\n{log}")

    def _result(self, folder: Path) -> DagTestResult:
        found = json.loads((folder / "result.json").read_text())
        if "error" in found:
            raise DagTestError(found["error"])
        instances = sorted(found["task_instances"], key=lambda ti: (ti["task_id"], ti["map_index"]))
        return DagTestResult(
            dag_id=found["dag_id"],
            run_id=found["run_id"],
            state=found["state"],
            task_instances=tuple(TaskInstance(**instance) for instance in instances),
            xcoms={(x["task_id"], x["map_index"], x["key"]): x["value"] for x in found["xcoms"]},
            asset_events=tuple(found["asset_events"]),
            errors=tuple(TaskError(**error) for error in found["errors"]),
            log=(folder / "log.txt").read_text(errors="replace"),
            folder=folder,
        )

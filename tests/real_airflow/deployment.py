"""A complete Airflow of its own: API servers, scheduler, DAG processor and triggerer, as separate processes.

Everything a user would do goes through the public REST API. It listens on the loopback interface only.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import httpx
import psutil

from .environment import airflow_environment, copy_database, migrated_database, tail
from .processes import Guard

T = TypeVar("T")
Service = Literal["api-server", "execution-api", "scheduler", "dag-processor", "triggerer"]

SERVICES: Mapping[Service, tuple[str, ...]] = {
    # The users' API writes its audit log on the event loop, the tasks' API in threads that need the loop to
    # commit. SQLite has one writer: in one process the two block each other until "database is locked".
    "api-server": ("api-server", "--apps", "core"),
    "execution-api": ("api-server", "--apps", "execution"),
    # Logs are read from the common folder: no need for their servers, which listen on fixed ports.
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
"""Airflow's processes and the command line of each."""

QUICK: Mapping[str, str] = {
    "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
    "AIRFLOW__CORE__PARALLELISM": "4",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "AIRFLOW__CORE__KILLED_TASK_CLEANUP_TIME": "5",
    "AIRFLOW__API__WORKERS": "1",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "1",
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "1",
    "AIRFLOW__SCHEDULER__PARSING_CLEANUP_INTERVAL": "5",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    # How long a dead triggerer keeps its triggers from the next one.
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
}
"""Airflow's own settings, turned down to the waiting times of a test."""

FINISHED = ("success", "failed")
"""The states in which a run stays."""


class DeploymentError(Exception):
    """Airflow did not do what was asked. The message has the ends of its logs where they help."""


class DeploymentTimeoutError(DeploymentError, TimeoutError):
    """What was waited for did not happen."""


class AirflowDeployment:
    """Airflow in a home folder, from `start` to `stop`, or inside a `with`.

    `env` is added to the environment of all processes: connections as `AIRFLOW_CONN_...`, settings as
    `AIRFLOW__...`, a `PYTHONPATH`. `services` are the processes to start, the `api-server` among them, and
    `triggerer_queues` those of a triggerer that has queues. DAGs are paused until `unpause`, as Airflow has it.
    """

    def __init__(
        self,
        home: Path,
        dags_folder: Path,
        env: Mapping[str, str] | None = None,
        *,
        services: Sequence[Service] = tuple(SERVICES),
        triggerer_queues: Sequence[str] = (),
        cache_dir: Path | None = None,
        start_timeout: float = 120,
    ) -> None:
        self.home = home.resolve()
        self._services = services
        self._triggerer_queues = triggerer_queues
        port, execution_port = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        self._execution_url = f"http://127.0.0.1:{execution_port}/execution/"
        self._cache_dir = cache_dir
        self._start_timeout = start_timeout
        self._ports: dict[Service, int] = {"api-server": port, "execution-api": execution_port}
        self._processes: dict[Service, subprocess.Popen[bytes]] = {}
        self._guard: Guard | None = None
        self._client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        self._env = airflow_environment(
            self.home,
            {
                **QUICK,
                "AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder.resolve()),
                "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": self._execution_url,
                "AIRFLOW__API__BASE_URL": self.url,
                "AIRFLOW__API__HOST": "127.0.0.1",
                **(env or {}),
            },
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- the processes

    def start(self) -> Self:
        """Start all processes and wait until Airflow calls each of them healthy."""
        self._guard = Guard(self.home)
        try:
            copy_database(migrated_database(self._cache_dir), self.home / "airflow.db")
            for service in self._services:
                self.start_service(service)
            self.wait_for(self._is_healthy, self._start_timeout, "a healthy start")
            token = self.request("GET", "/auth/token").json()["access_token"]
            self._client.headers["Authorization"] = f"Bearer {token}"
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all processes, theirs included. Nothing of them is left when this returns."""
        # In its home nothing is worth a slow farewell.
        if self._guard:
            self._guard.close()
            self._guard = None
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        self._client.close()

    def start_service(self, service: Service) -> None:
        """Start one process, without waiting for it."""
        command = [sys.executable, "-m", "airflow", *SERVICES[service]]
        if service in self._ports:
            command += ["--port", str(self._ports[service])]
        if service == "triggerer" and self._triggerer_queues:
            command += ["--queues", ",".join(self._triggerer_queues)]
        with (self.home / f"{service}.log").open("ab") as log:
            self._processes[service] = subprocess.Popen(
                command,
                env=self._env,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, service: Service) -> None:
        """End a process and its children at once by SIGKILL, as a lost machine would."""
        process = self._processes.pop(service)
        for member in psutil.process_iter():
            # Of a process that has just ended, or is somebody else's, there is nothing to know.
            with suppress(OSError, psutil.Error):
                if os.getsid(member.pid) == process.pid:
                    member.kill()
        process.wait()

    def terminate(self, service: Service, *, timeout: float = 60) -> None:
        """End a process by SIGTERM, as an orderly restart does, and wait for it."""
        process = self._processes.pop(service)
        process.terminate()
        process.wait(timeout)

    def processes(self, service: Service) -> list[psutil.Process]:
        """A process and all that descend from it, as they are now."""
        parent = psutil.Process(self._processes[service].pid)
        return [parent, *parent.children(recursive=True)]

    def service_log(self, service: Service) -> str:
        """What a process has written so far, in all its lives."""
        return (self.home / f"{service}.log").read_text(errors="replace")

    # -- what a user does

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Call the REST API. Anything but a success is an error with the server's words."""
        response = self._client.request(method, path, **options)
        if not response.is_success:
            raise DeploymentError(f"{method} {path} gave {response.status_code}: {response.text[:2000]}")
        return response

    def unpause(self, dag_id: str, *, timeout: float = 60) -> None:
        """Unpause a DAG, as soon as it is parsed."""
        self.wait_for_dag(dag_id, timeout=timeout)
        self.request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": False})

    def pause(self, dag_id: str) -> None:
        """Pause a DAG: no new runs, and no new tasks in its running ones."""
        self.request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": True})

    def trigger(
        self,
        dag_id: str,
        *,
        conf: Mapping[str, Any] | None = None,
        logical_date: datetime | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Trigger a run, without a logical date unless one is given. `fields` are others of the REST API."""
        date = logical_date.isoformat() if logical_date else None
        body = {"conf": dict(conf or {}), "logical_date": date, **fields}
        run: dict[str, Any] = self.request("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body).json()
        return run

    def clear(self, dag_id: str, run_id: str, task_ids: Sequence[str] | None = None, **fields: Any) -> None:
        """Clear task instances of a run, all by default, in whatever state they are."""
        body = {"dag_run_id": run_id, "task_ids": task_ids, "dry_run": False, "only_failed": False, **fields}
        self.request("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", json=body)

    # -- what a user sees

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """All runs of a DAG, in the order of the moments after which they were due."""
        return self._all(f"/api/v2/dags/{dag_id}/dagRuns", "dag_runs", order_by="run_after")

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One run."""
        found: dict[str, Any] = self.request("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}").json()
        return found

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run, each with `state`, `try_number`, `rendered_fields` and much more."""
        return self._all(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances", "task_instances")

    def task_states(self, dag_id: str, run_id: str) -> dict[tuple[str, int], str | None]:
        """The state of each task instance of a run, by task and map index."""
        instances = self.task_instances(dag_id, run_id)
        return {(ti["task_id"], ti["map_index"]): ti["state"] for ti in instances}

    def xcom(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        map_index: int = -1,
        key: str = "return_value",
    ) -> Any:
        """What a task instance pushed: the plain JSON that lies in the database."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        query = {"map_index": map_index, "deserialize": False, "stringify": False}
        return self.request("GET", path, params=query).json()["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """The log of one try of a task instance: a line per event with all its fields, and tracebacks."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        query = {"map_index": map_index, "full_content": True}
        answer = self.request("GET", path, params=query, headers={"Accept": "application/json"})
        return "\n".join(_log_lines(answer.json()["content"]))

    def command(self, *arguments: str) -> str:
        """What an `airflow` command prints, run beside the processes."""
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=self._env,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DeploymentError(f"airflow {' '.join(arguments)} gave {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def asset_events(self) -> list[dict[str, Any]]:
        """All asset events, oldest first."""
        return self._all("/api/v2/assets/events", "asset_events", order_by="timestamp")

    def import_errors(self) -> dict[str, str]:
        """The traceback of each DAG file that can't be imported, by its name."""
        errors = self._all("/api/v2/importErrors", "import_errors")
        return {error["filename"]: error["stack_trace"] for error in errors}

    # -- waiting

    def wait_for(self, probe: Callable[[], T | None], timeout: float, what: str) -> T:
        """Call `probe` until what it returns is true, and return that.

        Errors in it are final, but for a server that can't be reached: it may be starting.
        """
        deadline = time.monotonic() + timeout
        while True:
            with suppress(httpx.TransportError):
                if value := probe():
                    return value
            for service, process in self._processes.items():
                if process.poll() is not None:
                    log = self._log_tails(service)
                    raise DeploymentError(f"{service} ended with {process.returncode}:{log}")
            if time.monotonic() > deadline:
                raise DeploymentTimeoutError(f"waited {timeout} s for {what}{self._log_tails(*self._services)}")
            time.sleep(0.1)

    def wait_for_dag(self, dag_id: str, *, timeout: float = 60) -> dict[str, Any]:
        """A DAG, as soon as it is parsed. Any import error meanwhile is an error here."""

        def parsed() -> dict[str, Any] | None:
            if errors := self.import_errors():
                raise DeploymentError("\n".join(f"{name}:\n{trace}" for name, trace in errors.items()))
            return next((dag for dag in self._all("/api/v2/dags", "dags") if dag["dag_id"] == dag_id), None)

        return self.wait_for(parsed, timeout, f"the DAG {dag_id!r} to be parsed")

    def wait_for_runs(self, dag_id: str, count: int = 1, *, timeout: float = 60) -> list[dict[str, Any]]:
        """The runs of a DAG, as soon as at least so many are finished."""

        def finished() -> list[dict[str, Any]] | None:
            runs = [run for run in self.runs(dag_id) if run["state"] in FINISHED]
            return runs if len(runs) >= count else None

        return self.wait_for(finished, timeout, f"{count} finished runs of {dag_id!r}")

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

    def wait_for_task(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        state: str,
        *,
        map_index: int = -1,
        timeout: float = 60,
    ) -> None:
        """Wait until a task instance is seen in a state."""
        self.wait_for(
            lambda: self.task_states(dag_id, run_id).get((task_id, map_index)) == state,
            timeout,
            f"{task_id!r} of {dag_id!r}, {run_id!r}, to be {state}",
        )

    # -- inside

    def _all(self, path: str, collection: str, **query: Any) -> list[dict[str, Any]]:
        """All entries of a collection that the REST API gives in pages."""
        entries: list[dict[str, Any]] = []
        while True:
            page = self.request("GET", path, params={**query, "limit": 100, "offset": len(entries)}).json()
            entries += page[collection]
            if len(entries) >= page["total_entries"] or not page[collection]:
                return entries

    def _is_healthy(self) -> bool:
        if "execution-api" in self._services:
            # The tasks' API builds itself at its first call, for seconds: better now than while a task waits.
            self.request("GET", f"{self._execution_url}health")
        health = self.request("GET", "/api/v2/monitor/health").json()
        asked = ("metadatabase", *(service.replace("-", "_") for service in self._services))
        return all(part["status"] == "healthy" for name, part in health.items() if name in asked)

    def _log_tails(self, *services: Service) -> str:
        logs = {service: tail(self.home / f"{service}.log") for service in services}
        return "".join(f"\n\n--- {service}:\n{log}" for service, log in logs.items())

    def _task_logs(self, dag_id: str, run_id: str) -> str:
        return "".join(
            f"\n\n--- {ti['task_id']} [{ti['map_index']}], try {ti['try_number']}:\n"
            + self.log(dag_id, run_id, ti["task_id"], ti["try_number"], ti["map_index"])
            for ti in self.task_instances(dag_id, run_id)
            if ti["state"] == "failed"
        )


def _log_lines(events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for event in events:
        fields = dict(event)
        errors = fields.pop("error_detail", None) or ()
        words = [fields.pop(name) or "" for name in ("timestamp", "level", "event") if name in fields]
        yield " ".join([*words, json.dumps(fields) if fields else ""]).strip()
        for error in errors:
            for frame in error.get("frames", ()):
                yield f'  File "{frame["filename"]}", line {frame["lineno"]}, in {frame["name"]}'
            yield f"{error['exc_type']}: {error['exc_value']}"


def free_ports(count: int) -> list[int]:
    """Free ports of the loopback interface, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]

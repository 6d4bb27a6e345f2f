"""A complete Airflow of its own: API servers, scheduler, DAG processor and triggerer, as separate processes.

Everything a user would do goes through the public REST API. It listens on the loopback interface only.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil

from .running import FINISHED, DeploymentError, RunningAirflow

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


class AirflowDeployment(RunningAirflow):
    """An Airflow 3. `services` are the processes to start, the `api-server` among them.

    `triggerer_queues` are those of a triggerer that has queues. DAGs are paused until `unpause`, as Airflow has it.
    """

    passing_errors = (httpx.TransportError,)

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
        port, execution_port = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        self._execution_url = f"http://127.0.0.1:{execution_port}/execution/"
        own = {
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": self._execution_url,
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
        }
        super().__init__(home, dags_folder, {**QUICK, **own, **(env or {})}, cache_dir=cache_dir)
        self._services = services
        self._triggerer_queues = triggerer_queues
        self._start_timeout = start_timeout
        self._ports: dict[Service, int] = {"api-server": port, "execution-api": execution_port}
        self._client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    # -- the processes

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            self._client.close()

    def start_service(self, service: Service) -> None:
        """Start one process, without waiting for it."""
        command = [sys.executable, "-m", "airflow", *SERVICES[service]]
        if service in self._ports:
            command += ["--port", str(self._ports[service])]
        if service == "triggerer" and self._triggerer_queues:
            command += ["--queues", ",".join(self._triggerer_queues)]
        self._start_process(service, command)

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

    def xcom(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        map_index: int = -1,
        key: str = "return_value",
    ) -> Any:
        """What a task instance pushed: the plain JSON in the database."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        query = {"map_index": map_index, "deserialize": False, "stringify": False}
        return self.request("GET", path, params=query).json()["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """The log of one try of a task instance: a line per event with all its fields, and tracebacks."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        query = {"map_index": map_index, "full_content": True}
        answer = self.request("GET", path, params=query, headers={"Accept": "application/json"})
        return "\n".join(_log_lines(answer.json()["content"]))

    def asset_events(self) -> list[dict[str, Any]]:
        """All asset events, oldest first."""
        return self._all("/api/v2/assets/events", "asset_events", order_by="timestamp")

    def import_errors(self) -> dict[str, str]:
        """The traceback of each DAG file that can't be imported, by its name."""
        errors = self._all("/api/v2/importErrors", "import_errors")
        return {error["filename"]: error["stack_trace"] for error in errors}

    # -- waiting

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

    def _start_processes(self) -> None:
        """Start all processes and wait until Airflow calls each of them healthy."""
        for service in self._services:
            self.start_service(service)
        self.wait_for(self._is_healthy, self._start_timeout, "a healthy start")
        token = self.request("GET", "/auth/token").json()["access_token"]
        self._client.headers["Authorization"] = f"Bearer {token}"

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
        named = ("metadatabase", *(service.replace("-", "_") for service in self._services))
        return all(part["status"] == "healthy" for name, part in health.items() if name in named)


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

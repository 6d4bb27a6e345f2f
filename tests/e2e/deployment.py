"""The Airflow of docker-compose.yaml as processes of this machine.

Commands and environments are those of the file. What containers give is made up for: hosts become ports of the loopback
interface, the image the environment in `.cache/e2e`, which is made of the same pins, volumes a folder.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.backing import run
from tests.e2e.compose import Compose
from tests.real_airflow.deployment import AirflowDeployment
from tests.real_airflow.environment import PROJECT_ROOT
from tests.real_airflow.processes import kill_processes_in
from tests.real_airflow.running import DeploymentError

IMAGE = PROJECT_ROOT / ".cache/e2e/bin"
HEALTH_CHECK_INTERVAL = 5.0  # seconds; compose waits longer
SERVICES = ("api-server", "scheduler", "dag-processor", "triggerer", "worker-1", "worker-2")

NATIVE: Mapping[str, str] = {
    # Containers have names of their own; here the default would look up the host's.
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
    "AIRFLOW__API__HOST": "127.0.0.1",
    "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
    "LC_ALL": "C.UTF-8",
}

QUICK: Mapping[str, str] = {
    "AIRFLOW__CORE__PARALLELISM": "10",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "5",
    # How long what was lost with a process stays unnoticed: by default up to ten minutes.
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "90",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
}
"""Airflow's own settings, turned down to the waiting times of a test."""

POLICY = '''
from datetime import timedelta


def task_policy(task):
    """Retries after two seconds; a sensor that its worker hands over polls every other second."""
    mapped = getattr(task, "partial_kwargs", None)
    if mapped is not None:
        mapped["retry_delay"] = timedelta(seconds=2)
        return
    task.retry_delay = timedelta(seconds=2)
    if task.task_type == "ReductoUsageThresholdSensor" and not task.start_from_trigger:
        task.poke_interval = 2.0
'''
"""A cluster policy: the example DAGs stay as they are, and wait less."""


class ComposedAirflow(AirflowDeployment):
    """The Airflow services, in a home folder. `hosts` are those of the others, as `name:port` of the file to ours."""

    def __init__(self, home: Path, dags: Path, compose: Compose, hosts: Mapping[str, str]) -> None:
        super().__init__(home, dags, services=SERVICES)  # type: ignore[arg-type]
        self._compose = compose
        address = self.url.removeprefix("http://")
        self._hosts = {**hosts, "api-server:8080": address, "127.0.0.1:8080": address}
        config = home / "config"
        config.mkdir()
        (config / "airflow_local_settings.py").write_text(POLICY)
        self._natively = {
            **{name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TZ", "USER")},
            **NATIVE,
            **QUICK,
            "PATH": f"{IMAGE}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__API__PORT": address.rpartition(":")[2],
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def environment(self, service: str) -> dict[str, str]:
        """The environment of a service's processes."""
        given = self._compose.services[service]["environment"]
        temporary = self._folder(service) / "tmp"
        temporary.mkdir(exist_ok=True)
        return {
            **{name: self._local(value) for name, value in given.items()},
            **self._natively,
            "TMPDIR": str(temporary),
        }

    def initialize(self) -> str:
        """Run the init step, which ends by itself, and return what it printed."""
        return self._run("init", self._compose.command("init"))

    def start_service(self, service: str) -> None:  # type: ignore[override]
        """Start one service, without waiting for it."""
        words = [self._local(word) for word in self._compose.command(service)]
        self._start_process(
            service,
            ["airflow", *words],
            env=self.environment(service),
            folder=self._folder(service),
            executable=str(IMAGE / "airflow"),
        )

    def kill(self, service: str) -> None:  # type: ignore[override]
        """End a service with all its processes by SIGKILL, as a lost machine would."""
        process = self._processes.pop(service)
        kill_processes_in(self._folder(service))
        process.wait()

    def check_health(self, service: str) -> str:
        """Run a service's health check, and return what it printed. An error tells why it is not healthy.

        It gets as many tries as the file gives it, some seconds apart: a heartbeat may be late on a busy machine.
        """
        for _ in range(self._compose.services[service]["healthcheck"]["retries"] - 1):
            with suppress(RuntimeError):
                return self._run(service, self._compose.healthcheck(service))
            time.sleep(HEALTH_CHECK_INTERVAL)
        return self._run(service, self._compose.healthcheck(service))

    def command(self, *arguments: str) -> str:
        """What an `airflow` command prints, run beside the services."""
        return self._run("scheduler", ["airflow", *arguments])

    def log_in(self, password: str, *, timeout: float = 120) -> None:
        """Become the user that the init step made, as soon as the API server is there."""

        def token() -> str | None:
            answer = self._client.post("/auth/token", json={"username": "admin", "password": password})
            if answer.status_code not in (200, 201):
                raise DeploymentError(f"no token: {answer.status_code} {answer.text[:2000]}")
            return str(answer.json()["access_token"])

        granted = self.wait_for(token, timeout, "a token")
        self._client.headers["Authorization"] = f"Bearer {granted}"

    def wait_for_health(self, *, timeout: float = 120) -> None:
        """Wait until Airflow calls all its parts healthy, workers included."""
        self.wait_for(self._is_healthy, timeout, "a healthy start")
        for worker in ("worker-1", "worker-2"):
            self.wait_for(lambda name=worker: "ready." in self.service_log(name), timeout, f"{worker} to be ready")

    def add_connection(self, conn_id: str, **fields: Any) -> None:
        """Make a connection, through the REST API."""
        self.request("POST", "/api/v2/connections", json={"connection_id": conn_id, **fields})

    def answer(self, path: str) -> httpx.Response:
        """An answer of the REST API, whatever its status."""
        return self._client.get(path)

    def _is_healthy(self) -> bool:
        health = self.request("GET", "/api/v2/monitor/health").json()
        return all(part["status"] == "healthy" for part in health.values())

    def _folder(self, service: str) -> Path:
        folder = self.home / "run" / service
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _local(self, text: str) -> str:
        for host, here in self._hosts.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?!\d)", here, text)
        return text

    def _run(self, service: str, command: Sequence[str]) -> str:
        words = [self._local(word) for word in command]
        return run(words, env=self.environment(service), cwd=self._folder(service), executable=_found(words[0]))


def _found(program: str) -> str:
    ours = IMAGE / program
    return str(ours) if ours.exists() else program

"""What Airflow stands on in docker-compose.yaml, from Debian's packages: PostgreSQL and Redis, on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

USER = DATABASE = "airflow"


class MissingPackageError(Exception):
    """A program is not installed on this machine."""


def program(name: str) -> str:
    """Where a program is. Debian keeps those of PostgreSQL off the path."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    found = shutil.which(name) or next(map(str, beside), None)
    if not found:
        raise MissingPackageError(f"{name} is not there: apt-get install postgresql redis-server")
    return found


def run(command: Sequence[str], **options: Any) -> str:
    """What a command prints. An error has its words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} gave {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def wait_until(ready: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what}")
        time.sleep(0.1)


class Postgres:
    """A PostgreSQL with an empty database, in a folder."""

    def __init__(self, home: Path, port: int, password: str) -> None:
        self.home, self.port = home, port
        self._env = {"PGPASSWORD": password, "LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
        # It refuses to be root's.
        self._as: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            self._as = {"user": "postgres", "group": "postgres", "extra_groups": []}

    def start(self) -> None:
        self.home.mkdir()
        if self._as:
            shutil.chown(self.home, "postgres", "postgres")
        options: dict[str, Any] = {"cwd": self.home, "env": self._env, **self._as}
        password = ["/bin/sh", "-c", 'printf %s "$PGPASSWORD" >password']
        run(password, **options)
        initdb = [program("initdb"), "--pgdata=data", f"--username={USER}", "--auth=scram-sha-256", "--no-sync"]
        run([*initdb, "--pwfile=password", "--encoding=UTF8"], **options)
        (self.home / "password").unlink()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",  # the machine's end would lose it all, and what ends here are processes
            "max_connections": "300",
        }
        server = [program("postgres"), "-D", "data", *(f"--{name}={value}" for name, value in settings.items())]
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                server, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **options
            )
        isready = [program("pg_isready"), *self._server, "--dbname=postgres"]
        wait_until(lambda: not subprocess.run(isready, env=self._env, capture_output=True).returncode, 60, "PostgreSQL")
        run([program("createdb"), *self._server, DATABASE], env=self._env)

    def stop(self) -> None:
        """End it."""
        _end(self._process)

    def query(self, sql: str) -> list[list[str]]:
        """The rows of an answer, as text."""
        command = [program("psql"), *self._server, DATABASE, "--no-align", "--tuples-only", "--field-separator=\t"]
        return [line.split("\t") for line in run([*command, "--command", sql], env=self._env).splitlines()]

    def dump(self) -> bytes:
        """The whole database as SQL."""
        return run([program("pg_dump"), *self._server, DATABASE], env=self._env).encode()

    @property
    def _server(self) -> list[str]:
        return ["--host=127.0.0.1", f"--port={self.port}", f"--username={USER}"]


class Redis:
    """A Redis in a folder, started by the command that docker-compose.yaml has for it."""

    def __init__(self, home: Path, port: int, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.home = home
        self._command = [program(command[0]), *command[1:], "--port", str(port), "--bind", "127.0.0.1"]
        self._ping = [program("redis-cli"), "-p", str(port), "ping"]
        self._env = {**os.environ, **env}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.home.mkdir(exist_ok=True)
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self.home, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._answers, 30, "Redis")

    def restart(self) -> None:
        """An orderly restart, as of its container: what it holds is read from its files again."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """End it."""
        _end(self._process)

    def _answers(self) -> bool:
        done = subprocess.run(self._ping, env=self._env, capture_output=True, check=False)
        return done.stdout.strip() == b"PONG"


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process:
        process.terminate()
        process.wait(30)

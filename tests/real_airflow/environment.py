"""What every process of real Airflow in the tests gets: a clean environment and a migrated database."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
"""The folder of the project."""

SETTINGS: Mapping[str, str] = {
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    # The default looks up the host's full name.
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
    # A changed DAG is a new version at once, instead of the one that was stored less than 30 seconds ago.
    "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
    "AIRFLOW__CORE__FERNET_KEY": "cmVhbC1haXJmbG93LWluLXRoZS10ZXN0cy0tLS0tLTA=",
    "AIRFLOW__DATABASE__CHECK_MIGRATIONS": "False",
    "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
    "AIRFLOW__API__SECRET_KEY": "the-tests-api-secret-key",
    "AIRFLOW__API_AUTH__JWT_SECRET": "the-tests-own-jwt-secret-of-as-many-as-sixty-four-bytes-for-hs512",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
}
"""Settings common to all: quicker or quieter than Airflow's defaults, but not another behaviour."""


def airflow_environment(home: Path, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process of the Airflow in this home; `env` is added last and wins.

    Nothing of an Airflow around the tests gets through, and no proxy: all there is to reach is this machine.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.lstrip("_").startswith("AIRFLOW_")
        and not name.lower().endswith("_proxy")
        # Without byte code every process would compile Airflow anew.
        and name != "PYTHONDONTWRITEBYTECODE"
    }
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / "tmp"
    temporary.mkdir(exist_ok=True)
    # An existing file keeps the processes from writing one each, at the same time, with different secrets.
    (home / "airflow.cfg").touch()
    return {
        **inherited,
        **SETTINGS,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "TMPDIR": str(temporary),
        **(env or {}),
    }


def migrated_database(cache_dir: Path | None = None) -> Path:
    """A migrated SQLite database of the installed Airflow, to be copied. Made by the first caller."""
    version = metadata.version("apache-airflow")
    name = f"airflow-{version}-py{sys.version_info.major}.{sys.version_info.minor}"
    cache = (cache_dir or PROJECT_ROOT / ".cache").resolve() / name
    database = cache / "airflow.db"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        if not database.exists():
            with tempfile.TemporaryDirectory(dir=cache) as home:
                _migrate(Path(home))
                # Only a finished database ever has this name.
                (Path(home) / "airflow.db").replace(database)
    return database


def copy_database(pristine: Path, database: Path) -> None:
    """Put a copy of a database in the place of another one, whose journals must not outlive it."""
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(pristine.read_bytes())


def tail(log: Path, lines: int = 40) -> str:
    """The last lines of a log file, for error messages."""
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _migrate(home: Path) -> None:
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    env = airflow_environment(home)
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    with closing(sqlite3.connect(home / "airflow.db")) as connection:
        # Into one file again: what is still in the journal would not be copied.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process that holds it."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

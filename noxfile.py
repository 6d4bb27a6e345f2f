"""Run the suite, and example DAGs with the built wheel, on every supported Airflow, each in a separate environment.

``make matrix`` and ``make plain`` run all sessions, ``nox -l`` lists them. Each Airflow has two rows: with the newest
packages that it works with, which ``requirements/airflow-*.in`` names (``dev.txt`` is the newest Airflow's), and as it
was around its release day, with the packages of that day, in ``requirements/day/``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nox

PYTHONS = {"2.11": "3.12", "3.0": "3.12", "3.1": "3.13", "3.2": "3.13", "3.3": "3.13", "3.4": "3.13"}
"""The supported versions of Airflow, with the newest Python that each supports."""

PRE_RELEASES = ("3.4",)
NEWEST = [airflow for airflow in PYTHONS if airflow not in PRE_RELEASES][-1]

DAYS = ("2.11.0", "2.11.2", "3.0.6", "3.1.8", "3.2.2", "3.3.2")
"""The Airflows that are there as they were on their release days, each with the oldest supported Python:"""
DAY_PYTHON = "3.11"

ROWS = {
    **{f"airflow-{airflow}-day-python-{DAY_PYTHON}": (DAY_PYTHON, f"day/{airflow}") for airflow in DAYS},
    **{
        f"airflow-{airflow}-python-{python}": (python, f"airflow-{airflow}" if airflow != NEWEST else "dev")
        for airflow, python in PYTHONS.items()
    },
}
"""By name of the session: its Python, and its pins in ``requirements/``."""

RESULTS = Path(".cache/matrix").absolute()

# Tests that do not depend on the version of Airflow, which `make test` runs, and those that need the newest, which
# `make test-airflow` runs.
ELSEWHERE = (
    "tests/simulator",
    "tests/e2e",
    "tests/engines",
    "tests/real_airflow/test_harness.py",
    "tests/test_benchmarks.py",
    "tests/test_changes_processes.py",
    "tests/test_waiting_processes.py",
)

TITLE = """
import platform, importlib.metadata
print(f"Airflow {importlib.metadata.version('apache-airflow')}, Python {platform.python_version()}")
"""

INSTALLED = """
import importlib.metadata, json
print(json.dumps({dist.name.lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()}))
"""

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv"
nox.options.envdir = ".cache/nox"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False


def interpreter(version: str) -> str:
    """Return a Python of this version, from PATH or from the folder next to this one, as version managers have it."""
    beside = sorted(Path(sys.base_prefix).parent.glob(f"{version}*/bin/python"), reverse=True)
    for candidate in (shutil.which(f"python{version}"), sys.executable, *map(str, beside)):
        if candidate and _version(candidate) == version:
            return candidate
    return version


def _version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip()


@nox.session(reuse_venv=False, venv_params=["--seed"])  # the suite uses pip
@nox.parametrize(
    ("python", "pins"),
    [
        nox.param(interpreter(python), pins, id=name, tags=[name.partition("-python")[0]])
        for name, (python, pins) in ROWS.items()
    ],
)
def suite(session: nox.Session, pins: str) -> None:
    """Run the suite. Arguments after ``--`` go to pytest."""
    name = session.name.removeprefix("suite(").removesuffix(")")
    RESULTS.mkdir(parents=True, exist_ok=True)
    session.install("-r", f"requirements/{pins}.txt")
    if pins.startswith("day/"):
        added = add_without_moving(
            session, f"{build_wheel(session)}[parquet,s3]", "-c", f"requirements/{pins}-suite.txt"
        )
        (RESULTS / f"{name}.added").write_text("\n".join(f"{package} {version}" for package, version in added.items()))
        add_without_moving(session, "-r", f"requirements/{pins}-suite.txt")
    session.install("--no-deps", "--no-build-isolation", "-e", ".")
    title = str(session.run("python", "-W", "ignore", "-c", TITLE, silent=True)).strip()
    commit = session.run("git", "describe", "--always", "--dirty", "--exclude", "*", silent=True, external=True)
    session.run(
        *("python", "-m", "pytest", "-n", "4", "--dist", "loadscope", "-q", "-k", "not official_validator"),
        *(f"--ignore={path}" for path in ELSEWHERE),
        *(f"--junit-xml={RESULTS / name}.xml", "-o", f"junit_suite_name={title}, commit {str(commit).strip()}"),
        *session.posargs,
        # nox's own TMPDIR is inside the project, where the source distribution would find what tests leave.
        env={"PYTHONDONTWRITEBYTECODE": "", "TMPDIR": tempfile.gettempdir()},
    )


def add_without_moving(session: nox.Session, *arguments: str) -> dict[str, str]:
    """Install something, and return what that has added. An error if it has moved or removed what was there."""
    before = _installed(session)
    session.install(*arguments)
    after = _installed(session)
    if moved := {name: (version, after.get(name)) for name, version in before.items() if after.get(name) != version}:
        session.error(f"{' '.join(arguments)} has moved packages that were there: {moved}")
    return {name: after[name] for name in sorted(after.keys() - before.keys())}


def _installed(session: nox.Session) -> dict[str, str]:
    lines = str(session.run("python", "-c", INSTALLED, silent=True)).splitlines()
    versions: dict[str, str] = json.loads(lines[-1])
    return versions


def build_wheel(session: nox.Session) -> Path:
    """Build the wheel, with the newest tools: in an environment of its own, none of them lands in the session's."""
    wheels = Path(session.create_tmp()).absolute() / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels))
    session.run(*command, silent=True, external=True)
    [wheel] = wheels.glob("*.whl")
    return wheel


@nox.session
@nox.parametrize(
    ("python", "airflow"),
    [
        nox.param(interpreter(python), airflow, id=f"airflow-{airflow}-python-{python}")
        for airflow, python in PYTHONS.items()
    ],
)
def plain(session: nox.Session, airflow: str) -> None:
    """Install the wheel into an environment with only Airflow, and run example DAGs there."""
    pins = "dev" if airflow == NEWEST else f"airflow-{airflow}"
    session.install("-c", f"requirements/{pins}.txt", "apache-airflow", str(build_wheel(session)))
    session.run("python", "-P", "tests/plain.py", env={"PYTHONDONTWRITEBYTECODE": ""})

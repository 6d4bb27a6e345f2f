"""Run the suite, and example DAGs with the built wheel, on every supported Airflow, each in a separate environment.

``make matrix`` and ``make plain`` run all sessions, ``nox -l`` lists them. ``requirements/airflow-*.in`` has the pinned
versions for an Airflow and the reasons; the newest Airflow uses ``dev.txt``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nox

PYTHONS = {
    "2.11": ("3.11", "3.12"),
    "3.0": ("3.11", "3.12"),
    "3.1": ("3.11", "3.12", "3.13"),
    "3.2": ("3.11", "3.12", "3.13"),
    "3.3": ("3.11", "3.12", "3.13"),
}
"""The supported versions of Airflow, and the Pythons that each supports."""

NEWEST = list(PYTHONS)[-1]
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

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv|venv"
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


@nox.session
@nox.parametrize(
    ("python", "airflow"),
    [
        nox.param(interpreter(python), airflow, id=f"airflow-{airflow}-python-{python}", tags=[f"airflow-{airflow}"])
        for airflow, pythons in PYTHONS.items()
        for python in pythons
    ],
)
def suite(session: nox.Session, airflow: str) -> None:
    """Run the suite. Arguments after ``--`` go to pytest."""
    pins = "dev" if airflow == NEWEST else f"airflow-{airflow}"
    session.install("-r", f"requirements/{pins}.txt")
    session.install("--no-deps", "--no-build-isolation", "-e", ".")
    title = session.run("python", "-W", "ignore", "-c", TITLE, silent=True)
    name = session.name.removeprefix("suite(").removesuffix(")")
    session.run(
        *("python", "-m", "pytest", "-n", "2", "--dist", "loadscope", "-q", "-k", "not official_validator"),
        *(f"--ignore={path}" for path in ELSEWHERE),
        *(f"--junit-xml={RESULTS / name}.xml", "-o", f"junit_suite_name={str(title).strip()}"),
        *session.posargs,
        env={"PYTHONDONTWRITEBYTECODE": ""},
    )


@nox.session
@nox.parametrize(
    ("python", "airflow"),
    [
        nox.param(interpreter(pythons[-1]), airflow, id=f"airflow-{airflow}-python-{pythons[-1]}")
        for airflow, pythons in PYTHONS.items()
    ],
)
def plain(session: nox.Session, airflow: str) -> None:
    """Install the wheel into an environment with only Airflow, and run example DAGs there."""
    pins = "dev" if airflow == NEWEST else f"airflow-{airflow}"
    wheels = Path(session.create_tmp()).absolute() / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(wheels), silent=True)
    [wheel] = wheels.glob("*.whl")
    session.install("-c", f"requirements/{pins}.txt", "apache-airflow", str(wheel))
    session.run("python", "-P", "tests/plain.py", env={"PYTHONDONTWRITEBYTECODE": ""})

"""What all tests share: an Airflow home of their own, the simulator, and connections to it."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Before anything imports Airflow, which reads its configuration once: no home, setting or connection of the machine
# takes part in a test.
for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[name]
_HOME = tempfile.TemporaryDirectory(prefix="airflow-home-")
os.environ["AIRFLOW_HOME"] = _HOME.name
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
    os.environ.pop(name, None)
    os.environ.pop(name.upper(), None)

# The same examples on every run, and however slow the machine; `make fuzz` looks for others.
hypothesis.settings.register_profile("test", derandomize=True, deadline=None, database=None, max_examples=50)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=20_000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

pytest_plugins = ["tests.loopback", "tests.real_airflow.fixtures"]

PROJECT = Path(__file__).parents[1]


_LONGEST = (
    ("tests/sensors/test_parity.py", "tests/test_real_processes.py", "tests/test_example_dags.py", "tests/browser/"),
    ("tests/test_budget_processes.py", "tests/test_queues_processes.py", "tests/plugins/test_app.py"),
    ("tests/object_storage/", "tests/triggers/", "tests/sensors/", "tests/operators/"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist, where it would put the files with the most tests first, keep the order below."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest tests begin first, so that no worker is left with them alone at the end."""

    def place(item: pytest.Item) -> int:
        places = (place for place, longest in enumerate(_LONGEST) if item.nodeid.startswith(longest))
        return next(places, len(_LONGEST))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Spare the garbage collector, which many tests call, the modules and tests: they stay until the end."""
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have the name of a test say that this Airflow lacks what it is about."""
    from tests.airflows import reason_for_skip

    if reason := reason_for_skip(metafunc.definition):
        metafunc.parametrize((), [pytest.param(id=reason)])


@pytest.fixture(scope="session")
def _simulator() -> Iterator[Any]:
    from simulator import Simulator

    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def simulator(_simulator: Any) -> Iterator[Any]:
    """The service on loopback, as new for each test."""
    _simulator.clear()
    yield _simulator
    _simulator.clear()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Define a connection in the environment: ``connect(host=..., password=..., extra={...}, conn_id=...)``."""

    def define(conn_id: str = "reducto_default", **fields: Any) -> str:
        connection = {"conn_type": "reducto", "password": "sim-key-all", **fields}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))
        return conn_id

    return define


@pytest.fixture
def run_dag(dag_runner: Any, simulator: Any) -> Callable[..., Any]:
    """
    Run a DAG on real Airflow, with ``reducto_default`` leading to the simulator.

    ``connection`` overrides the connection's fields; the rest is passed on to ``DagRunner.run``.
    """

    def run(
        source: str, *, connection: dict[str, Any] | None = None, env: dict[str, str] | None = None, **options: Any
    ):
        fields = {"conn_type": "reducto", "host": simulator.url, "password": "sim-key-all", **(connection or {})}
        return dag_runner.run(
            source, env={"AIRFLOW_CONN_REDUCTO_DEFAULT": json.dumps(fields), **(env or {})}, **options
        )

    return run

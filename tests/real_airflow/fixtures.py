"""Fixtures of real Airflow, for `pytest_plugins = ["tests.real_airflow.fixtures"]` in a `conftest.py`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .dagtest import DagRunner
from .deployment import AirflowDeployment
from .environment import PROJECT_ROOT

_PYTHONPATH = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH")]))
IMPORTABLE = {"PYTHONPATH": _PYTHONPATH}
"""With it, DAGs find the project's packages whether it is installed or not."""

PRELOAD = (
    *("reducto_provider.operators.export", "reducto_provider.hooks.reducto", "reducto_provider.sensors.threshold"),
    *("reducto_provider.triggers.threshold", "reducto_provider.export.dataset", "reducto_provider.export.one_object"),
    *("pyarrow.parquet", "s3fs"),
)
"""What most runs import, which takes as long as the rest of a short run."""


@pytest.fixture(scope="session")
def dag_runner_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], DagRunner]]:
    """Starts processes with Airflow loaded, for runs at the same time. They last until the session's end."""
    with ExitStack() as stack:

        def start() -> DagRunner:
            runner = DagRunner(tmp_path_factory.mktemp("dagtest"), IMPORTABLE, preload=PRELOAD)
            stack.callback(runner.close)
            return runner

        yield start


@pytest.fixture(scope="session")
def dag_runner(dag_runner_factory: Callable[[], DagRunner]) -> DagRunner:
    """One process with Airflow loaded, for all tests that run a DAG by `DAG.test`."""
    return dag_runner_factory()


@pytest.fixture(scope="session")
def airflow_factory(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., AirflowDeployment]]:
    """Starts Airflows, complete by default, given a folder of DAGs and additions to the environment.

    They last until the session's end; whoever is done with one earlier calls its `stop`.
    """
    with ExitStack() as stack:

        def start(dags_folder: Path, env: Mapping[str, str] | None = None, **options: Any) -> AirflowDeployment:
            home = tmp_path_factory.mktemp("airflow")
            return stack.enter_context(AirflowDeployment(home, dags_folder, {**IMPORTABLE, **(env or {})}, **options))

        yield start

"""For tests of triggers: a connection to the simulator, their log, and nothing left open."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator

import pytest

from reducto_provider.triggers import base, levels
from reducto_provider.triggers.levels import ReductoUsageLevelTrigger
from simulator import Simulator
from tests.triggers.waits import INTERVAL


@pytest.fixture
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow five polls a second."""
    monkeypatch.setattr(base, "MIN_INTERVAL", INTERVAL)


@pytest.fixture
def service(simulator: Simulator, connect: Callable[..., str]) -> Simulator:
    """The simulator, and a connection to it with one attempt per poll."""
    connect(host=simulator.url, extra={"max_attempts": 1})
    return simulator


@pytest.fixture
def hardly_any_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow a hundred polls a second, and levels that fire one right after the other."""
    monkeypatch.setattr(levels, "_PERSIST_SECONDS", 0)
    monkeypatch.setattr(base, "MIN_INTERVAL", 0.01)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What level triggers log, with its level."""
    lines: list[str] = []

    class Log:
        def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # Airflow's name
            return level >= logging.INFO

        def __getattr__(self, level: str) -> Callable[..., None]:
            return lambda text, *args, **kwargs: lines.append(f"{level}: {text % args if args else text}")

    monkeypatch.setattr(ReductoUsageLevelTrigger, "log", Log())
    return lines


@pytest.fixture
def leaves_nothing_open(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Assert that what ran left no session to the garbage collector, and no failed task whose error nobody read."""
    caplog.set_level(logging.WARNING, logger="asyncio")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert [str(warning.message) for warning in warned if "client" in str(warning.message)] == []
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []

"""For tests of the sensor: sensors made by hand, and a service that changes while they wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from reducto_provider.sensors import threshold
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
from reducto_provider.triggers import base
from simulator import Simulator

INTERVAL = 0.1
"""Seconds between polls. The fixture ``short_interval`` allows it; real ones are a second at least."""

MAY = {"usage_start_date": "2026-05-01", "usage_end_date": "2026-05-31"}


@pytest.fixture
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow ten polls a second, of a sensor and of the trigger it defers to."""
    for module in (threshold, base):
        monkeypatch.setattr(module, "MIN_INTERVAL", INTERVAL)


@pytest.fixture
def sensor(simulator: Simulator, connect: Callable[..., str]) -> Callable[..., ReductoUsageThresholdSensor]:
    """Make a sensor of a window that is over, with a threshold that is not exceeded."""
    connect(host=simulator.url, extra={"max_attempts": 1})

    def make(**arguments: Any) -> ReductoUsageThresholdSensor:
        given = {"org_id": "org_acme", "threshold": 10_000_000, "on_closed_window": "wait", "poke_interval": 1, **MAY}
        return ReductoUsageThresholdSensor(task_id="wait", **{**given, **arguments})

    return make


@pytest.fixture
def after_requests(simulator: Simulator) -> Callable[..., AbstractContextManager[None]]:
    """Make a change to the service once it has answered so many requests."""

    @contextmanager
    def changed_after(count: int, change: Callable[[], None]) -> Iterator[None]:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.02):
                if len(simulator.requests) >= count and simulator.requests[count - 1].status is not None:
                    change()
                    return

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    return changed_after

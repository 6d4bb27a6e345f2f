"""The threshold sensor by itself: what it hands over to its trigger, what it takes back, and how long it waits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout

from reducto_provider.sensors.usage import ReductoUsageThresholdSensor
from simulator import status

MAY = {"usage_start_date": "2026-05-01", "usage_end_date": "2026-05-31"}


@pytest.fixture
def sensor(simulator: Any, connect: Callable[..., str]) -> Callable[..., ReductoUsageThresholdSensor]:
    """Make a sensor of a window that is over, with a threshold that is not exceeded."""
    connect(host=simulator.url, extra={"max_attempts": 1})

    def make(**arguments: Any) -> ReductoUsageThresholdSensor:
        given = {"org_id": "org_acme", "threshold": 10_000_000, "on_closed_window": "wait", "poke_interval": 1, **MAY}
        return ReductoUsageThresholdSensor(task_id="wait", **{**given, **arguments})

    return make


def rescheduled(ago: float) -> dict[str, Any]:
    """The context of a visit to a worker, the first of which was so many seconds ago."""
    first = datetime.now(UTC) - timedelta(seconds=ago)
    return {"ti": SimpleNamespace(get_first_reschedule_date=lambda context: first)}


def test_a_sensor_that_stays_while_the_service_fails_keeps_its_timeout(sensor, simulator):
    simulator.faults.add(status(500), times=None)
    waiting = sensor(mode="reschedule", timeout=30, silent_fail=True)
    with pytest.raises(AirflowSensorTimeout):
        waiting.execute(rescheduled(ago=60))

    assert len(simulator.requests) == 1

"""Hand a sensor's wait to its trigger, and read the event that ends it."""

from __future__ import annotations

import re
from datetime import date, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from reducto_provider.airflow_compat import (
    STARTS_FROM_TRIGGER,
    AirflowSensorTimeout,
    AirflowSkipException,
    has_other_delimiters,
)
from reducto_provider.exceptions import ReductoTriggerEventError, error_by_name
from reducto_provider.usage.fields import QUERY_FIELDS, is_literal
from reducto_provider.usage.threshold import Reading

if TYPE_CHECKING:
    from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
    from reducto_provider.triggers.polls import FailedPolls
    from reducto_provider.triggers.threshold import ReductoUsageThresholdTrigger
    from reducto_provider.usage.threshold import UsageThreshold

# From the trigger's deadline to Airflow's own timeout. The last poll begins at the trigger's deadline, and takes
# thirteen minutes if all attempts of a connection with default settings fail.
_GRACE = timedelta(minutes=15)

# Airflow 3.3 never answers these in its triggerer: the trigger would hang until the timeout.
_UNANSWERED = re.compile(
    r"\bxcom_pull\s*\((?![^}]*\bmap_indexes\b)|\bprev_\w+_success\b|\bget_previous_(dagrun|start_date)\b"
)


def timeout(max_seconds: float) -> timedelta:
    """Return Airflow's own timeout of a deferral, the safety net for a triggerer that is gone."""
    return timedelta(seconds=max_seconds) + _GRACE


def make_trigger(
    sensor: ReductoUsageThresholdSensor,
    condition: UsageThreshold,
    *,
    deadline: float,
    failed_polls: FailedPolls,
    not_before: float,
) -> ReductoUsageThresholdTrigger:
    """Return the trigger that continues a sensor's wait for ``condition``."""
    from reducto_provider.triggers.threshold import ReductoUsageThresholdTrigger

    return ReductoUsageThresholdTrigger.waiting_for(
        condition,
        deadline=deadline,
        failed_polls=failed_polls.count,
        failing_since=failed_polls.since,
        not_before=not_before,
        **_trigger_options(sensor),
    )


def start_from_trigger(sensor: ReductoUsageThresholdSensor, max_seconds: float) -> None:
    """
    Have Airflow make the trigger from the arguments as written: it renders them in the triggerer.

    On the instance only: set on the class, all instances of a mapped sensor would get the same arguments.

    :raises ValueError: for an argument that can't be rendered in the triggerer.
    """
    arguments = {name: getattr(sensor, name) for name in ("threshold", "window", *QUERY_FIELDS, "reducto_conn_id")}
    for name, value in arguments.items():
        _check_renderable(name, value)
    if has_other_delimiters(sensor):
        raise ValueError(
            "start_from_trigger can't be used in a DAG whose jinja_environment_kwargs set delimiters, which "
            "Airflow's triggerer does not know: use deferrable=True instead"
        )
    if not STARTS_FROM_TRIGGER:
        return
    from airflow.triggers.base import StartTriggerArgs

    ends_after = min(timeout(max_seconds), sensor.execution_timeout or timeout(max_seconds))  # as Airflow does
    sensor.start_from_trigger = True
    sensor.start_trigger_args = StartTriggerArgs(
        trigger_cls="reducto_provider.triggers.threshold.ReductoUsageThresholdTrigger",
        trigger_kwargs={
            **{name: _as_trigger_argument(value) for name, value in arguments.items()},
            "metric": sensor.metric,
            "per_group": sensor.per_group,
            "projected": sensor.projected,
            "settle_days": sensor.settle_days,
            "poll_immediately": True,
            "grace": ends_after.total_seconds() - max_seconds,
            **_trigger_options(sensor),
        },
        next_method="execute_complete",
        timeout=timeout(max_seconds),
    )


def reading_of_event(event: Any) -> dict[str, Any]:
    """
    Return the reading of an event, as it was sent.

    :raises AirflowSkipException: if the run covers no day.
    :raises AirflowSensorTimeout: if the wait timed out.
    :raises ReductoError: the error that ended the wait, or the one of an event that is not valid.
    """
    match event:
        case {"status": "exceeded", "reading": {"exceeded": True} as sent} | {
            "status": "closed",
            "reading": {"exceeded": False} as sent,
        }:
            try:
                Reading.from_json(sent)
            except ValueError as error:
                raise ReductoTriggerEventError(f"the trigger's event can't be read: {error}") from error
            return dict(sent)
        case {"status": "skip", "message": str(message)}:
            raise AirflowSkipException(message)
        case {"status": "timeout", "message": str(message)}:
            raise AirflowSensorTimeout(message)
        case {"status": "error", "error": str(name), "message": str(message)}:
            raise error_by_name(name, message)
    raise ReductoTriggerEventError(f"the trigger's event is invalid: {event!r:.200}")


def _check_renderable(name: str, value: Any) -> None:
    parts = value if isinstance(value, list | tuple | set) else [value]
    if not all(isinstance(part, str) or is_literal(part) for part in parts):
        raise ValueError(
            f"{name} can't be another task's output with start_from_trigger, which renders templates only: "
            f"use '{{{{ ti.xcom_pull(..., map_indexes=-1) }}}}', or deferrable=True instead"
        )
    if any(isinstance(part, str) and _UNANSWERED.search(part) for part in parts):
        raise ValueError(
            f"{name} can't be rendered with start_from_trigger: Airflow's triggerer never gets a value for {value!r}; "
            "give xcom_pull its map_indexes, -1 for a task that is not mapped, or use deferrable=True"
        )


def _trigger_options(sensor: ReductoUsageThresholdSensor) -> dict[str, Any]:
    return {
        "reducto_conn_id": sensor.reducto_conn_id,
        "poke_interval": sensor.poke_interval,
        "exponential_backoff": sensor.exponential_backoff,
        "max_wait": sensor.max_wait.total_seconds() if sensor.max_wait else None,
        "wait_when_closed": sensor.on_closed_window == "wait",
        "silent_fail": sensor.silent_fail,
        "max_failure_time": sensor.max_failure_time,
    }


def _as_trigger_argument(value: Any) -> Any:
    """Return an argument as a plain JSON value."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, tuple | set):
        return sorted(value)
    return str(value) if isinstance(value, Decimal | float) else value

"""The Airflow that the suite runs on, and what differs among the supported ones."""

from __future__ import annotations

from importlib.metadata import distributions, version
from types import SimpleNamespace
from typing import Any

import pytest

from reducto_provider.export.formats import delta
from tests.airflow_sdk import find

AIRFLOW = tuple(int(number) for number in version("apache-airflow").split(".")[:2])
"""Its version, as in ``AIRFLOW >= (3, 1)``."""


def new_in(major: int, minor: int, what: str) -> pytest.MarkDecorator:
    """
    Mark what an older Airflow does not have. Where it does something else instead, a test of its own says so.

    There its name says so, and the matrix lists these words.
    """
    return pytest.mark.skipif((major, minor) > AIRFLOW, reason=f"new in Airflow {major}.{minor}: {what}")


def gone_in(major: int, minor: int, what: str) -> pytest.MarkDecorator:
    """Mark what only an older Airflow does, which is named in the same way."""
    return pytest.mark.skipif((major, minor) <= AIRFLOW, reason=f"gone in Airflow {major}.{minor}: {what}")


_deltalake = next((package.version for package in distributions(name="deltalake")), "of no version")
DELTA = pytest.mark.skipif(
    delta.numbers(_deltalake) < delta.numbers(delta.MIN_DELTALAKE),
    reason=f"deltalake {_deltalake} is installed, Delta tables need {delta.MIN_DELTALAKE} or newer",
)
"""Tests that write or read a Delta table."""

PARTITIONS = new_in(3, 2, "runs by partition")
SHARED_STREAMS = new_in(3, 3, "triggers that share a stream")


def reason_for_skip(item: pytest.Item) -> str | None:
    """Return what of `new_in` and `gone_in` keeps a test from running on this Airflow."""
    reasons = (mark.kwargs["reason"] for mark in item.iter_markers("skipif") if mark.args[0])
    return next((reason for reason in reasons if reason.startswith(("new in Airflow", "gone in Airflow"))), None)


def _asset_or_time_schedule() -> Any:
    if AIRFLOW >= (3,):
        return find("AssetOrTimeSchedule", "airflow.sdk", "airflow.timetables.assets")
    from airflow.timetables.datasets import DatasetOrTimeSchedule

    return lambda *, assets, timetable: DatasetOrTimeSchedule(datasets=assets, timetable=timetable)


dag_author = SimpleNamespace(
    **{
        name: find(name, "airflow.sdk", f"airflow.timetables.{module}")
        for name, module in {
            "CronDataIntervalTimetable": "interval",
            "CronPartitionTimetable": "trigger",
            "CronTriggerTimetable": "trigger",
            "DeltaDataIntervalTimetable": "interval",
            "DeltaTriggerTimetable": "trigger",
            "MultipleCronTriggerTimetable": "trigger",
        }.items()
    },
    AssetOrTimeSchedule=_asset_or_time_schedule(),
)
"""The timetables that a DAG's author imports: the task SDK's from Airflow 3.2 on, before that the scheduler's own."""

ResolveMixin = find("ResolveMixin", "airflow.sdk.definitions._internal.mixins", "airflow.utils.mixins")
"""What Airflow resolves when it renders, as it does another task's output."""

AirflowRescheduleException = find("AirflowRescheduleException", "airflow.sdk.exceptions", "airflow.exceptions")
attach_store = find("attach", "airflow.sdk.io", "airflow.io.store")
has_file_system = find("has_fs", "airflow.sdk.io.fs", "airflow.io")


def for_this_airflow(source: str) -> str:
    """Return code that the docs show, which is Airflow 3's, with the imports of the Airflow that the suite runs on."""
    return source if AIRFLOW >= (3,) else source.replace("from airflow.sdk import", "from tests.airflow_sdk import")

"""Which intervals each Airflow's scheduler gives a DAG's runs, and which days they therefore cover."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.timetables.base import TimeRestriction

from reducto_provider.usage.window import DayRange, days_of_run
from tests.airflow_sdk import DAG
from tests.airflows import AIRFLOW, dag_author

START, END = datetime(2026, 10, 5, tzinfo=UTC), datetime(2026, 10, 26, tzinfo=UTC)


def scheduled_by(dag: Any) -> Any:
    """The timetable that the scheduler reads for a DAG: what comes of serializing it."""
    if AIRFLOW < (3,):
        return dag.timetable
    if AIRFLOW >= (3, 2):
        from airflow.serialization.serialized_objects import DagSerialization as Serialization
    else:
        from airflow.serialization.serialized_objects import SerializedDAG as Serialization
    return Serialization.deserialize_dag(Serialization.serialize_dag(dag)).timetable


def runs(schedule: Any) -> Iterator[tuple[datetime, datetime, DayRange]]:
    """The interval and the days of each run that the scheduler makes."""
    dag = DAG("scheduled", schedule=schedule, start_date=START, end_date=END, catchup=True)
    timetable = scheduled_by(dag)
    restriction = TimeRestriction(dag.start_date, dag.end_date, catchup=True)
    interval = None
    while info := timetable.next_dagrun_info(last_automated_data_interval=interval, restriction=restriction):
        interval = info.data_interval
        run = {
            "data_interval_start": interval.start,
            "data_interval_end": interval.end,
            "run_type": "scheduled",
            "partition_key": None,
        }
        days = days_of_run({"dag_run": SimpleNamespace(**run), "dag": SimpleNamespace(timetable=dag.timetable)})
        yield interval.start, interval.end, days


PRESETS = [
    pytest.param("@daily", timedelta(days=1), id="daily"),
    pytest.param("30 6 * * *", timedelta(days=1), id="cron"),
    pytest.param("@weekly", timedelta(days=7), id="weekly"),
    pytest.param(timedelta(days=1), timedelta(days=1), id="delta"),
]


@pytest.mark.parametrize(("schedule", "period"), PRESETS)
def test_the_intervals_of_a_schedule(schedule, period):
    """
    On Airflow 2.11 a run of a preset, a cron or a delta has the period that ends when it is due, on Airflow 3 the
    moment alone.
    """
    lengths = {(end - start).total_seconds() for start, end, _ in runs(schedule)}

    assert lengths == {period.total_seconds() if AIRFLOW < (3,) else 0}


@pytest.mark.parametrize(("schedule", "period"), PRESETS)
def test_its_runs_cover_each_day_once(schedule, period):
    covered = [days for _, _, days in runs(schedule)]

    assert len(covered) >= 3
    assert all(len(list(days.days())) == period.days for days in covered)
    assert all(later.first == earlier.last + timedelta(days=1) for earlier, later in pairwise(covered))


def test_the_first_day_that_is_covered():
    """Airflow 2.11 covers the day that a DAG starts on, Airflow 3 the one before, which its first run is due after."""
    first = str(next(runs("@daily"))[2])

    assert first == ("2026-10-05" if AIRFLOW < (3,) else "2026-10-04")


@pytest.mark.parametrize("schedule", [dag_author.CronDataIntervalTimetable("@daily", timezone="UTC")], ids=["daily"])
def test_a_timetable_of_data_intervals_is_the_same_everywhere(schedule):
    start, end, days = next(runs(schedule))

    assert (start, end) == (START, START + timedelta(days=1))
    assert str(days) == "2026-10-05"


@pytest.mark.parametrize(
    "schedule", [dag_author.CronTriggerTimetable("0 6 * * *", timezone="UTC")], ids=["daily at six"]
)
def test_so_is_one_of_moments(schedule):
    start, end, days = next(runs(schedule))

    assert start == end == START.replace(hour=6)
    assert str(days) == "2026-10-04"

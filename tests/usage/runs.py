"""Runs as Airflow's scheduler makes them, and the days that they cover."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import date, timedelta
from itertools import islice, pairwise
from types import SimpleNamespace
from typing import Any

import pendulum
from airflow.timetables import trigger as core_trigger
from airflow.timetables.base import TimeRestriction

from reducto_provider.airflow_compat import run_from_context
from reducto_provider.usage.days import DayRange, NoDayEndedError
from reducto_provider.usage.run import Run
from reducto_provider.usage.window import days_of_run
from tests.airflows import AIRFLOW, dag_author


def utc(text: str) -> pendulum.DateTime:
    moment = pendulum.parse(text, tz="UTC")
    assert isinstance(moment, pendulum.DateTime)
    return moment


def days(first: str, last: str | None = None) -> DayRange:
    return DayRange(date.fromisoformat(first), date.fromisoformat(last or first))


def cron(expression: str, zone: str = "UTC") -> Any:
    return dag_author.CronTriggerTimetable(expression, timezone=zone)


def make_run(*arguments: Any, **fields: Any) -> Run:
    """Return the run of :func:`run_context`."""
    return run_from_context(run_context(*arguments, **fields))


def run_context(
    timetable: Any, start: Any, end: Any = None, *, partition_date: Any = None, **fields: Any
) -> dict[str, Any]:
    """As much of a task's context as the days are read from. Without ``end``, the interval has no length."""
    run = {
        "data_interval_start": start,
        "data_interval_end": end or start,
        "logical_date": start,
        "run_after": end or start,
        "run_type": "scheduled",
        "partition_key": None,
        **fields,
    }
    return {
        "dag_run": SimpleNamespace(**run),
        "dag": SimpleNamespace(timetable=timetable),
        "partition_date": partition_date,
    }


def partition_runs(*arguments: Any, limit: int | None = None, **fields: Any) -> list[tuple[Any, Run]]:
    """Return the runs of :func:`partition_contexts`, or the first of them."""
    contexts = islice(partition_contexts(*arguments, **fields), limit)
    return [(due, run_from_context(context)) for due, context in contexts]


def partition_contexts(expression: str, start: Any, end: Any, **arguments: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield when each run is due that a partition timetable makes one after the other, and its tasks' context."""
    scheduler = core_trigger.CronPartitionTimetable(expression, **arguments)
    timetable = dag_author.CronPartitionTimetable(expression, **arguments)
    restriction = TimeRestriction(start, end, catchup=True)
    info = None
    while info := scheduler.next_dagrun_info_v2(last_dagrun_info=info, restriction=restriction):
        context = run_context(
            timetable,
            None,
            partition_key=info.partition_key,
            partition_date=info.partition_date if AIRFLOW >= (3, 3) else None,  # which a task does not get before
            run_after=info.run_after,
        )
        yield info.run_after, context


def covered_by(
    scheduler: Any, timetable: Any, start: str, end: str, limit: int | None = None
) -> list[tuple[pendulum.DateTime, DayRange]]:
    """Return when the runs came that Airflow's scheduler makes one after the other, and which days each covered."""
    restriction = TimeRestriction(utc(start), utc(end), catchup=True)
    covered: list[tuple[pendulum.DateTime, DayRange]] = []
    interval = None
    while len(covered) != limit and (
        info := scheduler.next_dagrun_info(last_automated_data_interval=interval, restriction=restriction)
    ):
        interval = info.data_interval
        with suppress(NoDayEndedError):
            covered.append((interval.end, days_of_run(make_run(timetable, interval.start, interval.end))))
    return covered


def breaks(covered: list[tuple[pendulum.DateTime, DayRange]]) -> list[str]:
    """Where the days of a run don't follow those of the run before."""
    return [
        f"{one}, then {another}"
        for (_, one), (_, another) in pairwise(covered)
        if another.first != one.last + timedelta(days=1)
    ]


def too_early(covered: list[tuple[pendulum.DateTime, DayRange]]) -> list[str]:
    """Runs that covered a day which was not over."""
    return [f"{days} at {end}" for end, days in covered if days.last >= end.in_timezone("UTC").date()]

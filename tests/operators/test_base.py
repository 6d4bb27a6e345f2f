"""Which days a run covers, on real Airflow, by the operator's XCom."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import time_machine
from airflow.timetables import interval as core_interval
from airflow.timetables import trigger as core_trigger
from airflow.timetables.base import TimeRestriction
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reducto_provider.exceptions import ReductoDayNotOverError
from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator
from reducto_provider.operators.reconciliation import ReductoUsageReconciliationOperator
from reducto_provider.usage.days import DayRange
from tests.airflow_sdk import AirflowFailException, AirflowSkipException
from tests.airflows import AIRFLOW, PARTITIONS, dag_author, for_this_airflow, new_in
from tests.usage.runs import partition_contexts, run_context, utc
from tests.usage.test_fuzz_window import CRONS, FIXED_DELTAS, STARTS, ZONES, no_time_is_left_out

DAYS_PAGE = (Path(__file__).parents[2] / "docs/days.md").read_text()
NO_LOGICAL_DATE = new_in(3, 0, "runs without a logical date")
NOON = datetime(2026, 10, 22, 12, 30, tzinfo=UTC)
MIDNIGHT = datetime(2026, 10, 22, tzinfo=UTC)
MAX_RUNS = 12


@pytest.mark.parametrize(
    ("schedule", "logical_date", "days"),
    [
        pytest.param("'@daily'", MIDNIGHT, ("2026-10-21", "2026-10-21"), id="daily"),
        pytest.param("'@daily'", NOON, ("2026-10-21", "2026-10-21"), id="daily, by hand in the middle of a day"),
        pytest.param("'0 6 * * *'", MIDNIGHT.replace(hour=6), ("2026-10-21", "2026-10-21"), id="daily at six"),
        pytest.param(
            "'@weekly'", datetime(2026, 10, 18, tzinfo=UTC), ("2026-10-11", "2026-10-17"), id="weekly, from Sunday"
        ),
        pytest.param("'@weekly'", NOON, ("2026-10-11", "2026-10-17"), id="weekly, by hand in the middle of a week"),
        pytest.param("'@monthly'", datetime(2026, 10, 1, tzinfo=UTC), ("2026-09-01", "2026-09-30"), id="monthly"),
        pytest.param("'@hourly'", NOON, ("2026-10-22", "2026-10-22"), id="hourly"),
        pytest.param("'@hourly'", MIDNIGHT, ("2026-10-21", "2026-10-21"), id="hourly, the last hour of a day"),
        pytest.param("timedelta(days=1)", MIDNIGHT, ("2026-10-21", "2026-10-21"), id="delta of a day"),
        pytest.param("timedelta(days=3)", MIDNIGHT, ("2026-10-19", "2026-10-21"), id="delta of three days"),
        pytest.param(
            "CronDataIntervalTimetable('@daily', 'UTC')", NOON, ("2026-10-21", "2026-10-21"), id="daily data interval"
        ),
        pytest.param(
            "CronDataIntervalTimetable('@hourly', 'UTC')", NOON, ("2026-10-22", "2026-10-22"), id="hourly data interval"
        ),
        pytest.param(
            "CronTriggerTimetable('0 6 * * *', timezone='UTC', interval=timedelta(days=1))",
            MIDNIGHT.replace(hour=6),
            ("2026-10-21", "2026-10-21"),
            id="cron with an interval",
        ),
        pytest.param(
            "MultipleCronTriggerTimetable('0 6 * * *', '0 18 * * *', timezone='UTC')",
            MIDNIGHT.replace(hour=6),
            ("2026-10-21", "2026-10-21"),
            id="several crons",
            marks=new_in(3, 0, "timetables of several crons"),
        ),
        pytest.param("None", MIDNIGHT, ("2026-10-21", "2026-10-21"), id="no schedule, with a logical date"),
        pytest.param("'@daily'", None, ("2026-10-21", "2026-10-21"), id="no logical date", marks=NO_LOGICAL_DATE),
        pytest.param(
            "None", None, ("2026-10-21", "2026-10-21"), id="no schedule, no logical date", marks=NO_LOGICAL_DATE
        ),
    ],
)
def test_the_days_of_a_run(export, schedule, logical_date, days):
    result = export(
        schedule=schedule,
        imports="from airflow.timetables.interval import CronDataIntervalTimetable\n"
        "from airflow.timetables.trigger import CronTriggerTimetable\n"
        + ("from airflow.timetables.trigger import MultipleCronTriggerTimetable" if "Multiple" in schedule else ""),
        org_id="org_acme",
        run={"logical_date": logical_date, "run_after": NOON},
    ).expect()

    xcom = result.xcom("export")
    assert (xcom["usage_start_date"], xcom["usage_end_date"]) == days


def operator(kind: type, **arguments: Any) -> Any:
    if kind is ReductoUsageFleetExportOperator:
        arguments = {"organizations": ["org_acme"], "output_path": "/usage", **arguments}
    return kind(task_id="export", **arguments)


OPERATORS = pytest.mark.parametrize(
    "kind", [ReductoUsageExportOperator, ReductoUsageFleetExportOperator, ReductoUsageReconciliationOperator]
)
EXPLICIT = {"usage_start_date": "2026-11-01", "usage_end_date": "2026-11-30"}


def requested(task: Any, context: dict[str, Any] | None = None) -> DayRange:
    query = task._query_of_run(context or run_context(None, utc("2026-11-21")))
    return DayRange(query.start, query.end)


@pytest.fixture
def logged(mocker) -> list[str]:
    """The lines that a task logs, which go to pytest on Airflow 2 alone."""
    lines: list[str] = []
    log = mocker.patch("reducto_provider.operators.base.BaseUsageOperator.log")
    log.info = log.warning = lambda line, *values: lines.append(line % values)
    log.log = lambda level, *line: log.warning(*line)
    return lines


@OPERATORS
class TestSettleDays:
    @pytest.mark.parametrize("lookback_days", [0, 1, 2])
    def test_no_day_may_be_left_out_by_every_run(self, kind, lookback_days):
        with pytest.raises(ValueError, match=rf"^lookback_days must be at least settle_days=3, not {lookback_days}: "):
            operator(kind, settle_days=3, lookback_days=lookback_days)

    @pytest.mark.parametrize(
        "arguments", [EXPLICIT, {"usage_start_date": "{{ params.first }}", "usage_end_date": "{{ params.last }}"}]
    )
    def test_days_that_are_given_need_no_later_run(self, kind, arguments):
        operator(kind, settle_days=3, **arguments)

    @time_machine.travel(datetime(2026, 11, 21, 12, tzinfo=UTC), tick=False)
    def test_days_that_are_given_are_trimmed_to_what_has_settled(self, kind, logged):
        task = operator(kind, settle_days=3, **EXPLICIT)

        assert requested(task) == DayRange(date(2026, 11, 1), date(2026, 11, 17))
        assert "The days after 2026-11-17 are left out: with settle_days=3 they have not settled" in "\n".join(logged)


@OPERATORS
class TestDaysToCome:
    """They have no usage, and a service may answer for a shorter range than requested."""

    @pytest.fixture(autouse=True)
    def now(self):
        with time_machine.travel(datetime(2026, 11, 21, 12, tzinfo=UTC), tick=False):
            yield

    def test_they_are_left_out(self, kind, logged):
        assert requested(operator(kind, **EXPLICIT)) == DayRange(date(2026, 11, 1), date(2026, 11, 21))
        assert "The days after 2026-11-21 are left out: they are in the future" in "\n".join(logged)

    def test_today_is_not_one_of_them(self, kind, logged):
        task = operator(kind, usage_start_date="2026-11-21", usage_end_date="2026-11-21")

        assert requested(task) == DayRange(date(2026, 11, 21), date(2026, 11, 21))
        assert "left out" not in "\n".join(logged)

    @pytest.mark.parametrize("settle_days", [0, 2])
    def test_nothing_but_them_is_an_error_that_a_retry_may_cure(self, kind, settle_days):
        task = operator(kind, usage_start_date="2026-11-22", usage_end_date="2026-11-30", settle_days=settle_days)
        with pytest.raises(ReductoDayNotOverError) as error:
            requested(task)

        assert not isinstance(error.value, AirflowFailException)
        assert str(error.value) == (
            "export: 2026-11-22 to 2026-11-30 is in the future: there is no usage before 2026-11-22 00:00 UTC, "
            "retry after that"
        )

    def test_lookback_days_may_reach_what_has_begun(self, kind):
        task = operator(kind, usage_start_date="2026-11-22", usage_end_date="2026-11-30", lookback_days=2)

        assert requested(task) == DayRange(date(2026, 11, 20), date(2026, 11, 21))


@OPERATORS
@PARTITIONS
class TestPartitions:
    @staticmethod
    def run(due, **arguments):
        [(_, context)] = partition_contexts("0 0 * * *", utc(due), utc(due), run_offset=-1, **arguments)
        return context

    @new_in(3, 3, "partition keys spelled in the zone of their timetable")
    def test_a_day_that_is_not_over_is_requested_by_a_retry(self, kind):
        task, context = operator(kind), self.run("2026-11-21T15:00", timezone="Asia/Tokyo")
        with (
            time_machine.travel(utc("2026-11-21T23:59:59"), tick=False),
            pytest.raises(
                ReductoDayNotOverError, match=r"^export: .*2026-11-21, is not over before 2026-11-22 00:00 UTC"
            ),
        ):
            requested(task, context)
        with time_machine.travel(utc("2026-11-22T00:00"), tick=False):
            assert requested(task, context) == DayRange(date(2026, 11, 21), date(2026, 11, 21))

    def test_one_that_has_not_settled_neither_skips_nor_trims(self, kind):
        task, context = operator(kind, settle_days=2, lookback_days=2), self.run("2026-11-22", timezone="UTC")
        for moment in ("2026-11-22", "2026-11-23T23:59:59"):
            with time_machine.travel(utc(moment), tick=False), pytest.raises(ReductoDayNotOverError):
                requested(task, context)
        with time_machine.travel(utc("2026-11-24"), tick=False):
            assert requested(task, context) == DayRange(date(2026, 11, 19), date(2026, 11, 21))

    @new_in(3, 3, "partition keys spelled in the zone of their timetable")
    def test_a_schedule_that_a_change_of_the_clock_will_make_early_warns_in_each_run(self, kind, logged):
        for due in ("2026-11-21", "2026-11-22"):
            logged.clear()
            with time_machine.travel(utc(due), tick=False):
                requested(operator(kind), self.run(due, timezone="Europe/London"))
            assert re.search(
                r"'0 0 \* \* \*', timezone='Europe/London'.* too early at 2027-03-28 23:00 UTC", "\n".join(logged)
            )


def runs_when_due(name: str, schedule: Any, zone: str, start: datetime) -> list[tuple[Any, dict[str, Any]]]:
    """Runs one after another under a timetable, each with the moment when it is due."""
    begin = utc(str(start))
    for days in (45, 400, 4000):
        if name == "CronPartitionTimetable":
            contexts = partition_contexts(schedule, begin, begin.add(days=days), timezone=zone, run_offset=-1)
            runs = list(islice(contexts, MAX_RUNS))
        else:
            arguments = {} if name.startswith("Delta") else {"timezone": zone}
            module = core_interval if "Interval" in name else core_trigger
            scheduler = getattr(module, name)(schedule, **arguments)
            timetable = getattr(dag_author, name)(schedule, **arguments)
            restriction = TimeRestriction(begin, begin.add(days=days), catchup=True)
            runs, interval = [], None
            while len(runs) < MAX_RUNS and (
                info := scheduler.next_dagrun_info(last_automated_data_interval=interval, restriction=restriction)
            ):
                interval = info.data_interval
                runs.append((info.run_after, run_context(timetable, interval.start, interval.end)))
        if len(runs) > 3:
            break
    return runs


TIMETABLES = st.one_of(
    st.tuples(
        st.sampled_from(
            ["CronTriggerTimetable", "CronDataIntervalTimetable", *["CronPartitionTimetable"] * (AIRFLOW >= (3, 2))]
        ),
        CRONS,
    ),
    st.tuples(st.sampled_from(["DeltaTriggerTimetable", "DeltaDataIntervalTimetable"]), FIXED_DELTAS),
)


@settings(max_examples=60)
@given(timetable=TIMETABLES, zone=ZONES, start=STARTS, settle_days=st.integers(0, 5), lookback_days=st.integers(0, 5))
def test_every_day_is_exported_and_has_settled(timetable, zone, start, settle_days, lookback_days):
    lookback_days = max(settle_days, lookback_days)
    task = ReductoUsageExportOperator(task_id="export", settle_days=settle_days, lookback_days=lookback_days)
    runs = runs_when_due(*timetable, zone, start)
    keys = [context["dag_run"].partition_key for _, context in runs]
    assume(timetable[0] != "CronPartitionTimetable" or no_time_is_left_out(keys))
    exported = []
    for due, context in runs:
        with time_machine.travel(due, tick=False) as clock:
            try:
                days = requested(task, context)
            except AirflowSkipException:  # the next run has its days
                continue
            except ReductoDayNotOverError as error:  # as a retry does that comes after
                clock.move_to(utc(re.search(r"before (\S+ \S+) UTC", str(error))[1]))
                days = requested(task, context)
            assert days.last < datetime.now(UTC).date() - timedelta(days=settle_days), "not settled"
        exported += days.days()

    assert set(exported) == set(DayRange(min(exported), max(exported)).days())
    if not lookback_days:
        assert len(exported) == len(set(exported))


def test_days_to_come_are_left_out_of_what_is_exported(export, tmp_path):
    today = datetime.now(UTC).date()
    days = {"usage_start_date": str(today - timedelta(days=1)), "usage_end_date": str(today + timedelta(days=9))}
    result = export(org_id="org_acme", output_path=str(tmp_path), **days).expect()

    xcom = result.xcom("export")
    assert xcom["usage_end_date"] == xcom["files"][-1]["date"] == str(today)
    assert f"The days after {today} are left out" in result.log
    assert f"Usage from {today} on is not final" in result.log


@pytest.mark.parametrize("native", [False, True])
def test_the_macro_that_the_docs_show(run_dag, tmp_path, native):
    [source] = re.findall(r"```python\n((?:(?!```).)*?usage_days.*?)```", DAYS_PAGE, re.DOTALL)
    source = (
        for_this_airflow(source)
        .replace('"/usage/', f'"{tmp_path}/')
        .replace("catchup=False,", f"catchup=False, render_template_as_native_obj={native},")
    )
    result = run_dag(source, logical_date=datetime(2026, 10, 18, tzinfo=UTC)).expect()

    assert [path.name for path in tmp_path.glob("[!.]*")] == ["2026-10-11_2026-10-17.jsonl"]
    assert "exported 2026-10-11 to 2026-10-17" in result.log

"""Which days a run covers, on real Airflow: the operator's XCom tells."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.airflows import new_in

NO_LOGICAL_DATE = new_in(3, 0, "runs without a logical date")
NOON = datetime(2026, 10, 22, 12, 30, tzinfo=UTC)
MIDNIGHT = datetime(2026, 10, 22, tzinfo=UTC)


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

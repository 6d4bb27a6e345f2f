"""The periods of the timetables that Airflow has, and the days of the runs that its scheduler makes by them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from airflow.timetables import interval as core_interval
from airflow.timetables import trigger as core_trigger
from airflow.timetables.base import TimeRestriction
from dateutil.relativedelta import relativedelta

from reducto_provider.usage.days import DayRange
from reducto_provider.usage.window import days_of_run
from tests.airflow_sdk import DAG, Asset
from tests.airflows import AIRFLOW, PARTITIONS, dag_author, new_in
from tests.usage.runs import breaks, covered_by, cron, days, make_run, too_early, utc

ASSET = Asset("usage")
SEVERAL_CRONS = new_in(3, 0, "timetables of several crons")


class TestLastPeriod:
    """A run whose interval has no length covers the last complete period of its schedule."""

    @pytest.mark.parametrize(
        ("expression", "moment", "expected"),
        [
            ("@daily", "2026-06-18T00:00", days("2026-06-17")),
            ("@daily", "2026-06-18T12:30", days("2026-06-17")),
            ("@daily", "2026-06-18T23:59:59.999999", days("2026-06-17")),
            ("@daily", "2026-06-17T23:59:59.999999", days("2026-06-16")),
            ("@daily", "2026-06-18T00:00:00.000001", days("2026-06-17")),
            ("@daily", "2028-03-01T00:00", days("2028-02-29")),
            ("0 6 * * *", "2026-06-18T06:00", days("2026-06-17")),
            ("0 6 * * *", "2026-06-18T05:59:59", days("2026-06-16")),
            ("30 23 * * *", "2026-06-18T23:30", days("2026-06-17")),
            ("@weekly", "2026-06-14T00:00", days("2026-06-07", "2026-06-13")),
            ("@weekly", "2026-06-18T12:30", days("2026-06-07", "2026-06-13")),
            ("0 0 * * 1-5", "2026-06-15T00:00", days("2026-06-12", "2026-06-14")),
            ("0 0 * * 1-5", "2026-06-16T00:00", days("2026-06-15")),
            ("@monthly", "2026-06-01T00:00", days("2026-05-01", "2026-05-31")),
            ("@monthly", "2028-03-01T00:00", days("2028-02-01", "2028-02-29")),
            ("@monthly", "2026-06-18T12:30", days("2026-05-01", "2026-05-31")),
            ("0 0 1,15 * *", "2026-06-15T00:00", days("2026-06-01", "2026-06-14")),
            ("0 0 L * *", "2026-06-30T00:00", days("2026-05-31", "2026-06-29")),
            ("@quarterly", "2026-07-01T00:00", days("2026-04-01", "2026-06-30")),
            ("@yearly", "2026-01-01T00:00", days("2025-01-01", "2025-12-31")),
            ("0 0 29 2 *", "2028-02-29T00:00", days("2024-02-29", "2028-02-28")),
            ("@hourly", "2026-06-18T00:00", days("2026-06-17")),
            ("@hourly", "2026-06-18T01:00", days("2026-06-18")),
            ("@hourly", "2026-06-18T13:30", days("2026-06-18")),
            ("*/15 * * * *", "2026-06-18T00:15", days("2026-06-18")),
            ("0 */12 * * *", "2026-06-18T12:00", days("2026-06-18")),
            ("0 */12 * * *", "2026-06-18T00:00", days("2026-06-17")),
        ],
    )
    def test_under_cron_a_moment_stands_for_the_last_complete_period(self, expression, moment, expected):
        assert days_of_run(make_run(cron(expression), utc(moment))) == expected

    @pytest.mark.parametrize(
        ("zone", "expression", "moment", "expected"),
        [
            # Midnight there is 22:00 or 23:00 UTC of the day before, 04:00 or 05:00 UTC, 15:00 UTC of the day before.
            ("Europe/Berlin", "@daily", "2026-06-17T22:00", days("2026-06-16")),
            ("Europe/Berlin", "@daily", "2026-01-17T23:00", days("2026-01-16")),
            ("America/New_York", "@daily", "2026-06-18T04:00", days("2026-06-17")),
            ("America/New_York", "@daily", "2026-01-18T05:00", days("2026-01-17")),
            ("Asia/Tokyo", "@daily", "2026-06-17T15:00", days("2026-06-16")),
            ("Asia/Kathmandu", "@daily", "2026-06-17T18:15", days("2026-06-16")),
            ("Pacific/Kiritimati", "@daily", "2026-06-17T10:00", days("2026-06-16")),
            ("Pacific/Pago_Pago", "@daily", "2026-06-18T11:00", days("2026-06-17")),
            # A Monday there begins on UTC's Sunday.
            ("Europe/Berlin", "0 0 * * 1", "2026-06-14T22:00", days("2026-06-07", "2026-06-13")),
            ("America/New_York", "0 0 * * 1", "2026-06-15T04:00", days("2026-06-08", "2026-06-14")),
            # Months with a change of the clock in them.
            ("Europe/Berlin", "@monthly", "2026-03-31T22:00", days("2026-02-28", "2026-03-30")),
            ("Europe/Berlin", "@monthly", "2026-10-31T23:00", days("2026-09-30", "2026-10-30")),
            ("America/New_York", "@monthly", "2026-04-01T04:00", days("2026-03-01", "2026-03-31")),
            # Days of 23 and of 25 hours.
            ("Europe/Berlin", "@daily", "2026-03-29T22:00", days("2026-03-28")),
            ("Europe/Berlin", "@daily", "2026-10-25T23:00", days("2026-10-24")),
            ("America/New_York", "@daily", "2026-03-09T04:00", days("2026-03-08")),
            ("America/New_York", "@daily", "2026-11-02T05:00", days("2026-11-01")),
            # A time that the change leaves out, and one that it brings twice.
            ("Europe/Berlin", "30 2 * * *", "2026-03-29T01:30", days("2026-03-28")),
            ("Europe/Berlin", "30 2 * * *", "2026-03-30T00:30", days("2026-03-29")),
            ("Europe/Berlin", "30 2 * * *", "2026-10-25T01:30", days("2026-10-24")),
            ("Europe/Berlin", "30 2 * * *", "2026-10-26T01:30", days("2026-10-25")),
        ],
    )
    def test_cron_keeps_its_zone_and_days_stay_those_of_utc(self, zone, expression, moment, expected):
        assert days_of_run(make_run(cron(expression, zone), utc(moment))) == expected

    @pytest.mark.parametrize("hour", range(24))
    def test_each_hour_belongs_to_its_day_when_the_clock_is_put_back(self, hour):
        end = utc("2026-10-25T00:00").add(hours=hour + 1)

        assert days_of_run(make_run(cron("@hourly", "Europe/London"), end)) == days("2026-10-25")

    @pytest.mark.parametrize(
        ("delta", "moment", "expected"),
        [
            (timedelta(days=1), "2026-06-18T00:00", days("2026-06-17")),
            (timedelta(days=1), "2026-06-18T09:17", days("2026-06-17")),
            (timedelta(days=7), "2026-06-15T00:00", days("2026-06-08", "2026-06-14")),
            (timedelta(hours=1), "2026-06-18T13:00", days("2026-06-18")),
            (timedelta(hours=36), "2026-06-18T12:00", days("2026-06-17")),
            (timedelta(hours=36), "2026-06-20T00:00", days("2026-06-18", "2026-06-19")),
            (relativedelta(days=1), "2026-06-18T00:00", days("2026-06-17")),
            (relativedelta(weeks=1), "2026-06-15T00:00", days("2026-06-08", "2026-06-14")),
            (relativedelta(months=1), "2026-06-01T00:00", days("2026-05-01", "2026-05-31")),
            (relativedelta(months=1), "2028-03-01T00:00", days("2028-02-01", "2028-02-29")),
            (relativedelta(months=3), "2026-07-01T00:00", days("2026-04-01", "2026-06-30")),
            (relativedelta(years=1), "2026-01-01T00:00", days("2025-01-01", "2025-12-31")),
        ],
        ids=str,
    )
    def test_under_a_delta_a_moment_stands_for_what_led_up_to_it(self, delta, moment, expected):
        assert days_of_run(make_run(dag_author.DeltaTriggerTimetable(delta), utc(moment))) == expected

    @SEVERAL_CRONS
    @pytest.mark.parametrize(
        ("moment", "expected"),
        [
            ("2026-06-15T00:00", days("2026-06-11", "2026-06-14")),
            ("2026-06-18T00:00", days("2026-06-15", "2026-06-17")),
            ("2026-06-17T12:00", days("2026-06-11", "2026-06-14")),
        ],
    )
    def test_several_crons_take_turns(self, moment, expected):
        timetable = dag_author.MultipleCronTriggerTimetable("0 0 * * 1", "0 0 * * 4", timezone="UTC")

        assert days_of_run(make_run(timetable, utc(moment))) == expected

    @pytest.mark.parametrize(
        ("timetable", "expected"),
        [
            pytest.param(lambda: cron("0 0 * * 1"), days("2026-06-08", "2026-06-14"), id="cron"),
            pytest.param(
                lambda: dag_author.MultipleCronTriggerTimetable("0 0 * * 1", "0 0 * * 4", timezone="UTC"),
                days("2026-06-11", "2026-06-14"),
                id="several crons",
                marks=SEVERAL_CRONS,
            ),
            pytest.param(
                lambda: dag_author.DeltaTriggerTimetable(timedelta(days=7)),
                days("2026-06-08", "2026-06-14"),
                id="delta",
            ),
            pytest.param(
                lambda: dag_author.DeltaTriggerTimetable(relativedelta(months=1)),
                days("2026-05-15", "2026-06-14"),
                id="relative delta",
            ),
        ],
    )
    class TestByTimeOrByAssets:
        def test_a_run_by_time_follows_the_schedule(self, timetable, expected):
            either = dag_author.AssetOrTimeSchedule(assets=[ASSET], timetable=timetable())

            assert days_of_run(make_run(either, utc("2026-06-15T00:00"))) == expected

        @pytest.mark.parametrize("run_type", ["asset_triggered", "dataset_triggered"])
        def test_a_run_by_assets_takes_the_day_before(self, timetable, expected, run_type):
            either = dag_author.AssetOrTimeSchedule(assets=[ASSET], timetable=timetable())
            run = make_run(either, utc("2026-06-15T00:00"), run_type=run_type)

            assert days_of_run(run) == days("2026-06-14")

    @pytest.mark.parametrize(
        ("name", "arguments", "expected"),
        [
            ("CronTriggerTimetable", ("0 0 * * 1",), days("2026-06-08", "2026-06-14")),
            pytest.param(
                "MultipleCronTriggerTimetable",
                ("0 0 * * 1", "0 0 * * 4"),
                days("2026-06-11", "2026-06-14"),
                marks=SEVERAL_CRONS,
            ),
            ("DeltaTriggerTimetable", (timedelta(days=7),), days("2026-06-08", "2026-06-14")),
        ],
    )
    def test_timetables_may_keep_their_schedule_private(self, name, arguments, expected):
        zone = {} if name.startswith("Delta") else {"timezone": "UTC"}
        timetable = getattr(core_trigger, name)(*arguments, **zone)

        assert not hasattr(timetable, "expression")
        assert days_of_run(make_run(timetable, utc("2026-06-15T00:00"))) == expected

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("CronDataIntervalTimetable", ("0 0 * * 1",)),
            ("DeltaDataIntervalTimetable", (timedelta(days=7),)),
            pytest.param("CronPartitionTimetable", ("0 0 * * 1",), marks=PARTITIONS),
        ],
    )
    def test_other_timetables_by_cron_or_delta(self, name, arguments):
        zone = {} if name.startswith("Delta") else {"timezone": "UTC"}
        timetable = getattr(dag_author, name)(*arguments, **zone)
        assert days_of_run(make_run(timetable, utc("2026-06-15T00:00"))) == days("2026-06-08", "2026-06-14")


SCHEDULES = [
    # In UTC, at any time of the day.
    *[(expression, "UTC") for expression in ("@daily", "1 0 * * *", "30 6 * * *", "59 23 * * *")],
    # Always on the same side of UTC's midnight, whatever the clock there.
    ("@daily", "Europe/Berlin"),
    ("30 2 * * *", "Europe/Berlin"),
    ("0 3 * * *", "Europe/Berlin"),
    ("@daily", "America/New_York"),
    ("30 1 * * *", "America/New_York"),
    ("0 2 * * *", "America/New_York"),
    ("0 9 * * *", "Asia/Tokyo"),
    ("45 5 * * *", "Asia/Kathmandu"),
    ("@daily", "Pacific/Auckland"),
    ("0 2 * * *", "Australia/Lord_Howe"),
    ("@daily", "Pacific/Kiritimati"),
    ("@daily", "Africa/Cairo"),
    ("@daily", "America/Havana"),
    # Longer than a day.
    ("@weekly", "UTC"),
    ("0 2 * * 0", "Europe/Berlin"),
    ("0 19 * * 1-5", "America/New_York"),
    ("0 0 1,15 * *", "Europe/London"),
    ("@monthly", "UTC"),
    ("0 1 1 * *", "Europe/Berlin"),
    ("30 19 L * *", "America/New_York"),
    ("@quarterly", "Asia/Tokyo"),
    ("@yearly", "UTC"),
]


class TestConsecutiveRuns:
    """When they come is up to Airflow's own scheduling; together they cover every day once, when it is over."""

    @pytest.mark.parametrize(("expression", "zone"), SCHEDULES)
    def test_by_cron(self, expression, zone):
        end = "2026-11-15" if expression == "@daily" or expression.endswith(("* * *", "1-5")) else "2031-11-15"
        scheduler = core_trigger.CronTriggerTimetable(expression, timezone=zone)
        timetable = dag_author.CronTriggerTimetable(expression, timezone=zone)

        covered = covered_by(scheduler, timetable, "2026-02-01", end)

        assert len(covered) > 3
        assert breaks(covered) == []
        assert too_early(covered) == []

    @pytest.mark.parametrize(
        ("expression", "zone"), [("30 2 * * *", "Europe/Berlin"), ("@daily", "America/New_York"), ("@weekly", "UTC")]
    )
    @pytest.mark.parametrize(
        "timetable_class", [core_trigger.CronTriggerTimetable, core_interval.CronDataIntervalTimetable]
    )
    def test_by_cron_as_in_airflow_2(self, timetable_class, expression, zone):
        timetable = timetable_class(expression, timezone=zone)

        covered = covered_by(timetable, timetable, "2026-02-01", "2026-11-15")

        assert len(covered) > 30
        assert breaks(covered) == []
        assert too_early(covered) == []

    @pytest.mark.parametrize(
        ("expression", "zone"),
        [("@daily", "Europe/London"), ("30 1 * * *", "Europe/Berlin"), ("30 19 * * *", "America/New_York")],
    )
    class TestWhenTheClockMovesThemAcrossMidnight:
        """In spring two of these runs come on the same UTC day, 23 hours apart."""

        @pytest.fixture
        def covered(self, expression, zone):
            scheduler = core_trigger.CronTriggerTimetable(expression, timezone=zone)
            timetable = dag_author.CronTriggerTimetable(expression, timezone=zone)
            return covered_by(scheduler, timetable, "2026-03-01", "2026-11-15")

        def test_no_day_is_left_out(self, covered):
            everything = {day for _, days in covered for day in days.days()}

            assert everything == set(DayRange(min(everything), max(everything)).days())

        def test_no_day_is_covered_before_it_is_over(self, covered):
            assert too_early(covered) == []

        def test_no_day_is_covered_twice(self, covered):
            assert breaks(covered) == []

    @SEVERAL_CRONS
    def test_by_several_crons(self):
        crons = ("0 4 * * 1-5", "30 7 * * 6", "0 12 * * 0")
        scheduler = core_trigger.MultipleCronTriggerTimetable(*crons, timezone="Europe/Berlin")
        timetable = dag_author.MultipleCronTriggerTimetable(*crons, timezone="Europe/Berlin")

        covered = covered_by(scheduler, timetable, "2026-03-02T03:00", "2026-04-20")

        assert len(covered) > 30
        assert breaks(covered) == []
        assert too_early(covered) == []

    @pytest.mark.parametrize(
        "delta",
        [timedelta(days=1), timedelta(days=3), timedelta(hours=36), relativedelta(weeks=1), relativedelta(months=1)],
        ids=str,
    )
    @pytest.mark.parametrize("start", ["2026-02-01T00:00", "2026-02-28T17:45"])
    def test_by_a_delta(self, delta, start):
        scheduler = core_trigger.DeltaTriggerTimetable(delta)

        covered = covered_by(scheduler, dag_author.DeltaTriggerTimetable(delta), start, "2026-12-31")

        assert len(covered) > 3
        assert breaks(covered) == []
        assert too_early(covered) == []


START, END = datetime(2026, 10, 5, tzinfo=UTC), datetime(2026, 10, 26, tzinfo=UTC)


def scheduled_by(dag: Any) -> Any:
    """The timetable that the scheduler reads for a DAG: once it was serialized."""
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
        yield interval.start, interval.end, days_of_run(make_run(dag.timetable, interval.start, interval.end))


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

"""Which days: of runs under the timetables that Airflow has, and of windows."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pendulum
import pytest
import time_machine
from airflow.timetables import interval as core_interval
from airflow.timetables import trigger as core_trigger
from dateutil.relativedelta import relativedelta
from hypothesis import given
from hypothesis import strategies as st

from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
from reducto_provider.usage.fields import QUERY_FIELDS
from reducto_provider.usage.threshold import UsageThreshold
from reducto_provider.usage.window import (
    DayNotOverError,
    DayRange,
    check_days_over,
    check_window,
    days_of_run,
    days_of_window,
    moment_of_run,
    today,
    warn_of_early_run,
)
from tests.airflow_sdk import Asset
from tests.airflows import PARTITIONS, dag_author, new_in
from tests.usage.runs import breaks, covered_by, partition_runs, run_context, too_early, utc

ASSET = Asset("usage")
ZONED_KEYS = new_in(3, 3, "partition keys spelled in the zone of their timetable")
SEVERAL_CRONS = new_in(3, 0, "timetables of several crons")


def days(first: str, last: str | None = None) -> DayRange:
    return DayRange(date.fromisoformat(first), date.fromisoformat(last or first))


def cron(expression: str, zone: str = "UTC") -> Any:
    return dag_author.CronTriggerTimetable(expression, timezone=zone)


class TestDaysOfRun:
    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            pytest.param("2026-06-17T00:00", "2026-06-18T00:00", days("2026-06-17"), id="a day"),
            pytest.param("2026-06-17T06:00", "2026-06-18T06:00", days("2026-06-17"), id="a day from six to six"),
            pytest.param("2026-06-11T00:00", "2026-06-18T00:00", days("2026-06-11", "2026-06-17"), id="a week"),
            pytest.param("2026-05-01T00:00", "2026-06-01T00:00", days("2026-05-01", "2026-05-31"), id="a month"),
            pytest.param(
                "2028-02-01T00:00", "2028-03-01T00:00", days("2028-02-01", "2028-02-29"), id="a leap February"
            ),
            pytest.param("2025-12-31T00:00", "2026-01-01T00:00", days("2025-12-31"), id="the last day of a year"),
            pytest.param("2026-06-17T22:00", "2026-06-18T02:00", days("2026-06-17"), id="hours around midnight"),
            pytest.param("2026-06-17T23:00", "2026-06-18T00:00", days("2026-06-17"), id="the last hour of a day"),
            pytest.param("2026-06-17T00:00", "2026-06-17T01:00", days("2026-06-17"), id="the first hour of a day"),
            pytest.param("2026-06-17T11:00", "2026-06-17T12:00", days("2026-06-17"), id="an hour at noon"),
        ],
    )
    @pytest.mark.parametrize(
        "timetable",
        [None, cron("@weekly"), dag_author.DeltaTriggerTimetable(timedelta(days=3))],
        ids=["no timetable", "cron", "delta"],
    )
    def test_an_interval_stands_for_itself(self, timetable, start, end, expected):
        assert days_of_run(run_context(timetable, utc(start), utc(end))) == expected

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
        assert days_of_run(run_context(cron(expression), utc(moment))) == expected

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
        assert days_of_run(run_context(cron(expression, zone), utc(moment))) == expected

    @pytest.mark.parametrize("hour", range(24))
    def test_each_hour_belongs_to_its_day_when_the_clock_is_put_back(self, hour):
        end = utc("2026-10-25T00:00").add(hours=hour + 1)

        assert days_of_run(run_context(cron("@hourly", "Europe/London"), end)) == days("2026-10-25")

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
        assert days_of_run(run_context(dag_author.DeltaTriggerTimetable(delta), utc(moment))) == expected

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

        assert days_of_run(run_context(timetable, utc(moment))) == expected

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

            assert days_of_run(run_context(either, utc("2026-06-15T00:00"))) == expected

        @pytest.mark.parametrize("run_type", ["asset_triggered", "dataset_triggered"])
        def test_a_run_by_assets_takes_the_day_before(self, timetable, expected, run_type):
            either = dag_author.AssetOrTimeSchedule(assets=[ASSET], timetable=timetable())
            context = run_context(either, utc("2026-06-15T00:00"), run_type=run_type)

            assert days_of_run(context) == days("2026-06-14")

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
        assert days_of_run(run_context(timetable, utc("2026-06-15T00:00"))) == expected

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
        assert days_of_run(run_context(timetable, utc("2026-06-15T00:00"))) == days("2026-06-08", "2026-06-14")

    @pytest.mark.parametrize("moment", ["2026-06-18T00:00", "2026-06-18T12:30", "2026-06-18T23:59:59"])
    def test_without_a_schedule_the_day_before(self, moment):
        assert days_of_run(run_context(object(), utc(moment), run_type="manual")) == days("2026-06-17")

    @pytest.mark.parametrize(
        ("moment", "expected"),
        [("2026-06-18T12:30", days("2026-06-17")), ("2026-03-01T00:00", days("2026-02-28"))],
    )
    @pytest.mark.parametrize("run_type", ["manual", "asset_triggered"])
    def test_without_an_interval_the_day_before_the_run(self, moment, expected, run_type):
        context = run_context(
            cron("@weekly"),
            None,
            run_type=run_type,
            run_after=utc(moment),
        )

        assert days_of_run(context) == expected

    @pytest.mark.parametrize(
        ("timezone", "expected"),
        [("UTC", days("2026-06-17")), ("Asia/Tokyo", days("2026-06-17")), ("America/New_York", days("2026-06-16"))],
    )
    def test_days_of_another_zone(self, timezone, expected):
        context = run_context(None, utc("2026-06-17T00:00"), utc("2026-06-18T00:00"))

        assert days_of_run(context, timezone) == expected

    def test_plain_datetimes_do(self):
        zone = pendulum.timezone("Europe/Berlin")
        context = run_context(None, datetime(2026, 6, 17, 2, tzinfo=zone), datetime(2026, 6, 18, 2, tzinfo=zone))

        assert days_of_run(context) == days("2026-06-17")


class TestPartitions:
    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            ("2026-06-18", days("2026-06-18")),
            ("2026-06-18T00:00:00", days("2026-06-18")),
            ("2028-02-29", days("2028-02-29")),
            ("2026-06", days("2026-06-01", "2026-06-30")),
            ("2026-12", days("2026-12-01", "2026-12-31")),
            ("2026-02", days("2026-02-01", "2026-02-28")),
            ("2028-02", days("2028-02-01", "2028-02-29")),
        ],
    )
    @pytest.mark.parametrize("partition_date", [None, utc("2026-01-01T00:00")])
    @pytest.mark.parametrize(
        "interval", [(None, None), (utc("2026-03-01"), utc("2026-03-02"))], ids=["none", "interval"]
    )
    def test_the_key_names_the_days(self, key, expected, partition_date, interval):
        start, end = interval
        context = run_context(
            cron("@daily"),
            start,
            end,
            partition_key=key,
            partition_date=partition_date,
            run_after=utc("2026-06-19"),
        )

        assert days_of_run(context) == expected

    @pytest.mark.parametrize("key", ["2026-06-18T23:59:59", "2026-06-18 13:00", "2026-06-18T13", "2026-06-18T00"])
    @pytest.mark.parametrize(
        ("moment", "expected"),
        [
            (None, days("2026-06-18")),
            ("2026-06-18T04:00", days("2026-06-18")),
            ("2026-06-17T22:00", days("2026-06-17")),
        ],
    )
    def test_an_hour_s_key_names_the_day_in_utc_that_the_hour_lies_in(self, key, moment, expected):
        context = run_context(object(), None, partition_key=key, partition_date=moment and utc(moment))

        assert days_of_run(context) == expected

    @pytest.mark.parametrize("key", ["eu-west", "", "2026-6-18", "06/18/2026", "us|2026-06-18", "2026-06-18\n"])
    def test_the_date_steps_in_for_a_key_that_names_none(self, key):
        context = run_context(cron("@daily"), None, partition_key=key, partition_date=utc("2026-06-18T00:00"))

        assert days_of_run(context) == days("2026-06-18")

    def test_the_date_is_of_the_zone_asked_for_where_its_timetable_has_none(self):
        context = run_context(object(), None, partition_key="eu-west", partition_date=utc("2026-06-17T20:00"))

        assert days_of_run(context, "Asia/Tokyo") == days("2026-06-18")

    @pytest.mark.parametrize(
        "key",
        ["eu-west", "", "2026-6-18", "26-06-18", "2026-06-18x", "2026-02-30", "2026-13", "2026-00", "0000-01-01"],
    )
    def test_a_key_that_names_no_day_is_refused(self, key):
        with pytest.raises(ValueError) as error:
            days_of_run(run_context(cron("@daily"), None, partition_key=key))

        assert f"partition key {key!r}" in str(error.value)
        assert "usage_start_date and usage_end_date" in str(error.value)

    @pytest.mark.parametrize(
        ("key", "date_of_key", "length"),
        [
            ("2026-W25", "2026-06-15", 7),
            ("2026-06-15 (W25)", "2026-06-15", 7),
            ("2026-Q2", "2026-04-01", 91),
            ("2026", "2026-01-01", 365),
        ],
        ids=["week", "Airflow's key of a week", "Airflow's key of a quarter", "Airflow's key of a year"],
    )
    def test_a_longer_period_is_covered_whole_or_refused(self, key, date_of_key, length):
        context = run_context(cron("@daily"), None, partition_key=key, partition_date=utc(date_of_key))

        try:
            covered = list(days_of_run(context).days())
        except ValueError:
            return
        assert len(covered) == length

    @PARTITIONS
    @pytest.mark.parametrize("key_format", ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d", "%Y%m%d", "%d.%m.%Y"])
    @pytest.mark.parametrize(
        "zone", ["UTC", *(pytest.param(zone, marks=ZONED_KEYS) for zone in ("Asia/Taipei", "America/New_York"))]
    )
    def test_a_day_is_the_one_that_the_key_spells(self, zone, key_format):
        context = self.scheduled("0 0 * * *", timezone=zone, key_format=key_format)

        assert format(days_of_run(context).first, key_format) == context["dag_run"].partition_key

    def test_a_day_on_which_no_period_begins_is_that_day(self):
        assert days_of_run(run_context(cron("0 0 * * 1"), None, partition_key="2026-06-17")) == days("2026-06-17")

    @ZONED_KEYS  # before that a task is told the key alone, and refuses it
    def test_a_coarse_key_is_covered_whole_where_its_timetable_spells_it(self):
        context = self.scheduled("0 0 * * 1", timezone="UTC", key_format="%Y-W%W")

        assert len(list(days_of_run(context).days())) == 7

    @PARTITIONS
    @pytest.mark.parametrize(("expression", "length"), [("0 0 * * 1", 7), ("0 6 * * 1", 7), ("@monthly", 30)])
    @pytest.mark.parametrize("key_format", ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d", "%d.%m.%Y"])
    def test_partitions_longer_than_a_day_are_covered_whole_or_refused(self, expression, length, key_format):
        context = self.scheduled(expression, timezone="UTC", key_format=key_format)

        try:
            covered = list(days_of_run(context).days())
        except ValueError:
            return
        assert len(covered) == length

    @PARTITIONS
    @pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
    @pytest.mark.parametrize("key_format", ["%Y-%m-%d", "%d.%m.%Y"])
    def test_a_week_that_is_run_by_hand_is_covered_whole(self, zone, key_format):
        timetable = dag_author.CronPartitionTimetable("0 6 * * 1", timezone=zone, key_format=key_format)
        # Airflow reads the key, which has no time of day; before 3.3 the task is told the key alone.
        midnight = pendulum.datetime(2026, 6, 15, tz=zone)
        for moment in (None, midnight):
            key = midnight.strftime(key_format)
            context = run_context(timetable, None, partition_key=key, partition_date=moment)
            assert days_of_run(context) == days("2026-06-15", "2026-06-21")

    @PARTITIONS
    @pytest.mark.parametrize(
        ("expression", "zone", "start"),
        [
            ("0 0 * * 5", "Africa/Cairo", "2026-04-10"),  # a midnight that a change of the clock leaves out
            ("30 2 * * 0", "Europe/Berlin", "2026-03-15"),
            ("30 2 * * 0", "Europe/Berlin", "2026-10-11"),  # a time that it brings twice
        ],
    )
    def test_weeks_that_begin_when_the_clock_changes(self, expression, zone, start):
        begin = utc(start)
        runs = partition_runs(expression, begin, begin.add(weeks=5), timezone=zone)

        covered = [(due, days_of_run(context)) for due, context in runs]
        assert len(covered) == 5
        assert breaks(covered) == []
        assert all(week.length == 7 for _, week in covered)

    @PARTITIONS
    @pytest.mark.parametrize(
        ("expression", "zone", "key", "expected"),
        [
            ("0 0 * * *", "Asia/Tokyo", "2026-11-20T15:00:00", days("2026-11-20")),
            ("0 0 * * 1", "Asia/Tokyo", "2026-11-22T15:00:00", days("2026-11-22", "2026-11-28")),
            ("0 6 * * 1", "UTC", "2026-11-23T06:00:00", days("2026-11-23", "2026-11-29")),
            ("0 0 * * *", "Europe/London", "2026-10-24T23:00:00", days("2026-10-24", "2026-10-25")),
        ],
    )
    def test_without_its_date_a_key_is_spelled_in_utc(self, expression, zone, key, expected):
        timetable = dag_author.CronPartitionTimetable(expression, timezone=zone, run_offset=-1)

        assert days_of_run(run_context(timetable, None, partition_key=key)) == expected

    @PARTITIONS
    @pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Tokyo", "America/New_York", "Asia/Kathmandu"])
    def test_hours_cover_every_day_of_utc_to_its_end(self, zone):
        runs = partition_runs("0 * * * *", utc("2026-06-01"), utc("2026-06-05"), timezone=zone, run_offset=-1)

        last_of = {days_of_run(context): due for due, context in runs}
        assert all(covered.length == 1 for covered in last_of)
        assert {covered.first.isoformat() for covered in last_of} >= {"2026-06-01", "2026-06-02", "2026-06-03"}
        for covered in list(last_of)[:-1]:
            assert last_of[covered] >= utc(str(covered.last + timedelta(days=1)))

    @staticmethod
    def scheduled(expression, **arguments):
        """The first run after 18 June 2026 for the partition that ended then."""
        [(_, context), *_] = partition_runs(
            expression, utc("2026-06-18T20:00"), utc("2026-08-18"), run_offset=-1, **arguments
        )
        return context


@PARTITIONS
class TestPartitionsThatAreNotOver:
    """A partition of a day or longer is asked for once its last UTC day is over, and has settled."""

    @staticmethod
    def run(expression, zone, due, **arguments):
        """The run that is due then, for the partition before."""
        [(_, context)] = partition_runs(
            expression, utc(due), utc(due), timezone=zone, **{"run_offset": -1, **arguments}
        )
        return context

    @ZONED_KEYS
    @pytest.mark.parametrize(
        ("expression", "zone", "due", "last", "remedy"),
        [
            ("0 0 * * *", "Europe/Berlin", "2026-11-21T23:00", "2026-11-21", "a time of day such as 03:00"),
            ("0 0 * * *", "Europe/Berlin", "2026-06-21T22:00", "2026-06-21", "a time of day such as 03:00"),
            ("0 0 * * *", "Europe/London", "2026-06-21T23:00", "2026-06-21", "a time of day such as 02:00"),
            ("0 0 * * *", "Asia/Tokyo", "2026-11-21T15:00", "2026-11-21", "a time of day such as 09:00"),
            ("0 6 * * *", "Asia/Tokyo", "2026-11-21T21:00", "2026-11-21", "a time of day such as 09:00"),
            ("30 5 * * *", "Asia/Kathmandu", "2026-11-21T23:45", "2026-11-21", "a time of day such as 05:45"),
            ("0 0 * * 1", "Asia/Tokyo", "2026-11-22T15:00", "2026-11-22", "a time of day such as 09:00"),
            ("0 0 1 * *", "Asia/Tokyo", "2026-10-31T15:00", "2026-10-31", "a time of day such as 09:00"),
        ],
    )
    @pytest.mark.parametrize("key_format", ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d", "%d.%m.%Y", "month"])
    def test_east_of_utc(self, expression, zone, due, last, remedy, key_format):
        if key_format == "month":
            key_format = "%Y-%m" if expression == "0 0 1 * *" else "%Y-%m-%d"
        context = self.run(expression, zone, due, key_format=key_format)
        assert str(days_of_run(context).last) == last

        with pytest.raises(DayNotOverError) as error:
            check_days_over(context, utc(due).date())

        over = date.fromisoformat(last) + timedelta(days=1)
        assert str(error.value) == (
            f"the last day of the run's partition, {last}, is not over before {over} 00:00 UTC: retry after that. "
            f"CronPartitionTimetable({expression!r}, timezone={zone!r}, run_offset=-1) is due too early: give it "
            f"either timezone='UTC' or {remedy}"
        )
        check_days_over(context, over)

    @ZONED_KEYS
    @pytest.mark.parametrize(
        ("expression", "zone", "due"),
        [
            ("0 0 * * *", "UTC", "2026-11-22T00:00"),
            ("0 3 * * *", "Europe/Berlin", "2026-06-22T01:00"),
            ("0 9 * * *", "Asia/Tokyo", "2026-11-22T00:00"),
            ("0 0 * * *", "America/New_York", "2026-11-22T05:00"),
            ("0 9 1 * *", "Asia/Tokyo", "2026-11-01T00:00"),
        ],
    )
    def test_what_is_due_later_is_over(self, expression, zone, due):
        context = self.run(expression, zone, due)

        check_days_over(context, utc(due).date())
        assert warn_of_early_run(context, utc(due).date()) is None

    def test_the_day_that_begins(self):
        context = self.run("0 0 * * *", "UTC", "2026-11-21T00:00", run_offset=0)

        with pytest.raises(DayNotOverError, match=r"2026-11-22 00:00 UTC.* give it run_offset=-1$"):
            check_days_over(context, date(2026, 11, 21))

    @pytest.mark.parametrize(
        ("expression", "offset"), [("0 0 * * *", -4), ("0 0 * * 1", -2), ("0 0 1 * *", -2), ("0 0 * * 1-5", -4)]
    )
    def test_until_it_has_settled(self, expression, offset):
        context = self.run(expression, "UTC", "2026-06-01T00:00")
        with pytest.raises(DayNotOverError) as error:
            check_days_over(context, date(2026, 6, 3), settle_days=3)

        assert "2026-05-31, is not settled before 2026-06-04 00:00 UTC, with settle_days=3: retry" in str(error.value)
        assert f"give it run_offset={offset}" in str(error.value)
        check_days_over(context, date(2026, 6, 4), settle_days=3)
        later = self.run(expression, "UTC", "2026-06-01T00:00", run_offset=offset)
        check_days_over(later, date(2026, 6, 1), settle_days=3)
        assert warn_of_early_run(later, date(2026, 6, 1), settle_days=3) is None

    @ZONED_KEYS
    def test_a_change_of_the_clock_that_will_make_it_early_is_told_before(self):
        context = self.run("0 0 * * *", "Europe/London", "2026-11-21T00:00")

        check_days_over(context, date(2026, 11, 21))
        assert warn_of_early_run(context, date(2026, 11, 21)) == (
            "CronPartitionTimetable('0 0 * * *', timezone='Europe/London', run_offset=-1) will be due too early at "
            "2027-03-28 23:00 UTC, and that run will fail, since 2027-03-28 will not be over then: give it either "
            "timezone='UTC' or a time of day such as 02:00"
        )

    @ZONED_KEYS
    def test_the_next_run_that_will_be_too_early_is_the_first_one_told(self):
        context = self.run("0 0 * * *", "Europe/Berlin", "2026-11-20T23:00")

        warning = warn_of_early_run(context, date(2026, 11, 21))
        assert "too early at 2026-11-21 23:00 UTC, and that run will fail, since 2026-11-21 will not be over" in warning

    @ZONED_KEYS
    @pytest.mark.parametrize("offset", [-1, -2, -3])
    def test_a_time_that_a_change_of_the_clock_leaves_out(self, offset):
        """Airflow does not get back beyond it: the runs from then on are for the partition that begins, not before."""
        begin = utc("2026-03-28T01:30")
        runs = partition_runs("30 2 * * *", begin, begin.add(days=4), timezone="Europe/Berlin", run_offset=offset)
        too_early = [due for due, context in runs if due.date() <= days_of_run(context).last]

        assert too_early == [utc("2026-03-29T01:30")]
        warning = warn_of_early_run(runs[0][1], date(2026, 3, 28))
        assert "will be due too early at 2026-03-29 01:30 UTC, and that run will fail, since 2026-03-29" in warning
        assert warning.endswith("give it either timezone='UTC' or a time of day such as 03:00")
        with pytest.raises(DayNotOverError, match="2026-03-29, is not over before 2026-03-30 00:00 UTC"):
            check_days_over(runs[1][1], date(2026, 3, 29))

    def test_a_month_s_key_is_over_with_the_month(self):
        context = self.run("0 0 15 * *", "Asia/Tokyo", "2026-07-14T15:00", key_format="%Y-%m")

        assert warn_of_early_run(context, date(2026, 7, 14)) is None
        check_days_over(context, date(2026, 7, 14))

    def test_hours_are_never_too_early(self):
        context = self.run("0 * * * *", "UTC", "2026-11-21T05:00")

        check_days_over(context, date(2026, 11, 21))
        assert warn_of_early_run(context, date(2026, 11, 21), settle_days=2) is None

    @pytest.mark.parametrize(
        ("key", "last"),
        [("2026-11-21", "2026-11-21"), ("2026-11-21T00:00:00", "2026-11-21"), ("2026-11", "2026-11-30")],
    )
    def test_the_key_of_another_dag_s_partition(self, key, last):
        context = run_context(object(), None, partition_key=key)
        over = date.fromisoformat(last) + timedelta(days=1)

        with pytest.raises(DayNotOverError, match=f"{last}, is not over before {over} 00:00 UTC: retry after that$"):
            check_days_over(context, date.fromisoformat(last))
        check_days_over(context, over)
        assert warn_of_early_run(context, over) is None

    @pytest.mark.parametrize("key", ["2026-11-21T05:00:00", "2026-11-21T00", "2026-11-21 23"])
    def test_the_key_of_another_dag_s_hour(self, key):
        check_days_over(run_context(object(), None, partition_key=key), date(2026, 11, 21))

    def test_runs_by_interval_are_not_looked_at(self):
        context = run_context(cron("@daily"), utc("2026-11-21"))

        check_days_over(context, date(2026, 11, 1), settle_days=9)
        assert warn_of_early_run(context, date(2026, 11, 1), settle_days=9) is None


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


class TestDaysOfWindow:
    @pytest.mark.parametrize(
        ("window", "moment", "expected"),
        [
            ("month", "2026-06-18T12:30", days("2026-06-01", "2026-06-30")),
            ("month", "2026-06-01T00:00", days("2026-06-01", "2026-06-30")),
            ("month", "2026-05-31T23:59:59", days("2026-05-01", "2026-05-31")),
            ("month", "2026-02-14T00:00", days("2026-02-01", "2026-02-28")),
            ("month", "2028-02-29T12:00", days("2028-02-01", "2028-02-29")),
            ("month", "2026-12-31T12:00", days("2026-12-01", "2026-12-31")),
            ("week", "2026-06-15T00:00", days("2026-06-15", "2026-06-21")),
            ("week", "2026-06-21T23:59:59", days("2026-06-15", "2026-06-21")),
            ("week", "2026-06-14T23:59:59", days("2026-06-08", "2026-06-14")),
            ("week", "2026-01-01T00:00", days("2025-12-29", "2026-01-04")),
            ("day", "2026-06-18T00:00", days("2026-06-18")),
            ("day", "2026-06-17T23:59:59.999999", days("2026-06-17")),
            (1, "2026-06-18T12:00", days("2026-06-18")),
            (7, "2026-06-18T12:00", days("2026-06-12", "2026-06-18")),
            (30, "2026-03-01T00:00", days("2026-01-31", "2026-03-01")),
            (365, "2028-12-31T00:00", days("2028-01-02", "2028-12-31")),
            ("7", "2026-06-18T12:00", days("2026-06-12", "2026-06-18")),
            (" 7\n", "2026-06-18T12:00", days("2026-06-12", "2026-06-18")),
            ("run", "2026-06-18T00:00", days("2026-06-17")),
        ],
    )
    def test_the_window_holds_the_runs_moment(self, window, moment, expected):
        assert days_of_window(window, run_context(cron("@daily"), utc(moment))) == expected

    @pytest.mark.parametrize(
        ("window", "expected"),
        [("month", days("2026-07-01", "2026-07-31")), ("day", days("2026-07-01")), ("run", days("2026-06-30"))],
    )
    def test_the_moment_is_the_end_of_the_interval(self, window, expected):
        context = run_context(None, utc("2026-06-30T00:00"), utc("2026-07-01T00:00"), run_after=utc("2026-09-09"))

        assert days_of_window(window, context) == expected

    @PARTITIONS
    @pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Tokyo", "America/New_York"])
    @pytest.mark.parametrize("window", ["month", "week", "day", 7, "run"])
    def test_a_partition_s_moment_is_its_last_day_scheduled_or_backfilled(self, window, zone):
        for due, context in partition_runs(
            "0 0 * * *", utc("2026-10-29"), utc("2026-11-04"), timezone=zone, run_offset=-1
        ):
            scheduled = days_of_window(window, context)
            # A backfill's run is not due after its partition, but when that begins.
            context["dag_run"].run_after = context["partition_date"] or due.subtract(days=1)
            assert days_of_window(window, context) == scheduled
            assert scheduled.first <= days_of_run(context).last <= scheduled.last

    @pytest.mark.parametrize(
        ("key", "expected"),
        [("2026-05-31", days("2026-05-01", "2026-05-31")), ("2026-04", days("2026-04-01", "2026-04-30"))],
    )
    def test_the_key_of_another_dag_s_partition_too(self, key, expected):
        context = run_context(object(), None, partition_key=key, run_after=utc("2026-06-01"))

        assert days_of_window("month", context) == expected

    def test_a_key_that_names_no_day_leaves_the_moment_to_run_after(self):
        context = run_context(object(), None, partition_key="eu-west", run_after=utc("2026-06-01"))

        assert days_of_window("month", context) == days("2026-06-01", "2026-06-30")

    def test_without_an_interval_the_moment_is_run_after(self):
        context = run_context(None, None, run_after=utc("2026-06-18T12:30"))

        assert moment_of_run(context) == utc("2026-06-18T12:30")
        assert days_of_window("day", context) == days("2026-06-18")

    def test_without_run_after_the_moment_is_the_logical_date(self):
        context = run_context(None, None, logical_date=utc("2026-06-18T12:30"))
        del context["dag_run"].run_after

        assert moment_of_run(context) == utc("2026-06-18T12:30")

    @pytest.mark.parametrize(
        ("timezone", "expected"),
        [("UTC", days("2026-06-30")), ("Asia/Tokyo", days("2026-07-01")), ("America/New_York", days("2026-06-30"))],
    )
    def test_days_of_another_zone(self, timezone, expected):
        assert days_of_window("day", run_context(None, utc("2026-06-30T20:00")), timezone) == expected

    @pytest.mark.parametrize("window", ["month", "week", "day", "run", 1, 3650])
    def test_good_windows(self, window):
        assert check_window(window) == window

    def test_a_number_may_come_as_text(self):
        assert check_window("30") == 30

    @pytest.mark.parametrize(
        "window",
        ["year", "Month", "", "{{ x }}", 0, -7, 3651, "0", "-7", "3651", "7.0", 7.0, 7.5, True, None, [7], "7 days"],
        ids=repr,
    )
    def test_other_windows_are_refused(self, window):
        with pytest.raises(ValueError) as error:
            days_of_window(window, run_context(None, utc("2026-06-18")))

        said = str(error.value)
        assert "'month', 'week', 'day', 'run' or a whole number of days from 1 to 3650" in said


THRESHOLD = {"threshold": "1", "metric": "credits", "per_group": False, "projected": False, "settle_days": 0}
QUESTION = {**dict.fromkeys(QUERY_FIELDS), "group_by": "product"}


class TestWindowOfARun:
    """What a sensor asks for depends on its run alone, and not on when it is asked."""

    @staticmethod
    def condition(context, window="month", **fields):
        return UsageThreshold.from_context(context, window=window, **THRESHOLD, **{**QUESTION, **fields})

    @pytest.mark.parametrize(
        ("window", "moment", "expected"),
        [
            ("month", "2026-01-31T23:59:59", days("2026-01-01", "2026-01-31")),
            ("month", "2026-02-01T00:00", days("2026-02-01", "2026-02-28")),
            ("month", "2028-02-29T12:00", days("2028-02-01", "2028-02-29")),
            ("month", "2100-02-28T12:00", days("2100-02-01", "2100-02-28")),
            ("month", "2026-12-31T23:59:59", days("2026-12-01", "2026-12-31")),
            ("month", "2027-01-01T00:00", days("2027-01-01", "2027-01-31")),
            ("week", "2026-12-31T12:00", days("2026-12-28", "2027-01-03")),
            ("week", "2028-02-29T12:00", days("2028-02-28", "2028-03-05")),
            ("week", "2026-06-14T23:59:59", days("2026-06-08", "2026-06-14")),
            ("week", "2026-06-15T00:00", days("2026-06-15", "2026-06-21")),
            ("day", "2028-02-29T23:59:59", days("2028-02-29")),
            ("day", "2027-01-01T00:00", days("2027-01-01")),
            (1, "2028-03-01T00:00", days("2028-03-01")),
            (2, "2028-03-01T00:00", days("2028-02-29", "2028-03-01")),
            (30, "2027-01-01T12:00", days("2026-12-03", "2027-01-01")),
            (366, "2028-12-31T12:00", days("2028-01-01", "2028-12-31")),
            ("7", "2026-03-01T00:00", days("2026-02-23", "2026-03-01")),
            ("run", "2027-01-01T00:00", days("2026-12-31")),
            ("run", "2028-03-01T06:00", days("2028-02-29")),
        ],
    )
    def test_a_retry_and_a_clear_ask_the_same(self, window, moment, expected):
        context = run_context(cron("@daily"), utc(moment))
        seen = []
        for later in (timedelta(0), timedelta(minutes=5), timedelta(days=3), timedelta(days=40), timedelta(days=800)):
            with time_machine.travel(utc(moment) + later, tick=False):
                condition = self.condition(context, window)
                seen.append(condition)
        assert seen == [seen[0]] * 5
        assert seen[0].window == expected

        over = utc(str(expected.last)) + timedelta(days=1)
        assert {condition.query_at(over + timedelta(days=n)) for condition in seen for n in (0, 1, 900)} == {
            seen[0].query
        }, "what is asked once the window is over"

    @pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo", "Pacific/Kiritimati"])
    @pytest.mark.parametrize("window", ["month", "week", "day", 7])
    def test_the_zone_of_the_moment_does_not_matter(self, window, zone):
        for moment in ("2026-06-30T23:59:59", "2026-07-01T00:00", "2026-03-08T07:00", "2026-11-01T06:30"):
            context = run_context(None, utc(moment).in_timezone(zone))
            assert self.condition(context, window) == self.condition(run_context(None, utc(moment)), window)

    def test_the_moment_is_the_end_of_the_interval_or_run_after(self):
        interval = run_context(None, utc("2026-05-31T00:00"), utc("2026-06-01T00:00"), run_after=utc("2026-08-08"))
        triggered = run_context(None, None, run_after=utc("2026-06-01T00:00"), logical_date=None)

        assert self.condition(interval).window == self.condition(triggered).window == days("2026-06-01", "2026-06-30")

    @pytest.mark.parametrize("first", [date(2026, 5, 1), "2026-05-01"])
    def test_explicit_days(self, first):
        context = run_context(None, utc("2026-06-18T12:30"))

        explicit = self.condition(context, usage_start_date=first, usage_end_date="2026-05-31")
        assert explicit.window == days("2026-05-01", "2026-05-31")

    @pytest.mark.parametrize("window", ["week", "day", "run", 7, "7", "Month"])
    def test_explicit_days_beside_another_window_are_refused(self, window):
        with pytest.raises(ValueError, match="are two windows: give one of them"):
            self.condition(
                run_context(None, utc("2026-06-18")), window, usage_start_date="2026-05-01", usage_end_date="2026-05-31"
            )
        if window != "Month":
            with pytest.raises(ValueError, match="are two windows: give one of them"):
                ReductoUsageThresholdSensor(
                    task_id="wait",
                    threshold=1,
                    window=window,
                    usage_start_date="2026-05-01",
                    usage_end_date="{{ ds }}",
                )

    @pytest.mark.parametrize("given", ["usage_start_date", "usage_end_date"])
    def test_half_a_range_is_refused(self, given):
        with pytest.raises(ValueError, match="go together"):
            self.condition(run_context(None, utc("2026-06-18")), **{given: "2026-06-01"})

    @given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), st.sampled_from(["month", "week", "day", 1, 30]))
    def test_it_holds_the_moment_and_windows_join_up(self, moment, window):
        context = run_context(None, moment.replace(tzinfo=UTC))
        found = self.condition(context, window).window

        assert found.first <= moment.date() <= found.last
        after = run_context(None, datetime.combine(found.last + timedelta(days=1), moment.time(), tzinfo=UTC))
        if isinstance(window, str):
            assert self.condition(after, window).window.first == found.last + timedelta(days=1)
        else:
            assert (found.length, found.last) == (window, moment.date())


class TestDayRange:
    @pytest.mark.parametrize(
        ("covered", "count", "text"),
        [
            (days("2026-06-18"), 1, "2026-06-18"),
            (days("2026-06-01", "2026-06-30"), 30, "2026-06-01 to 2026-06-30"),
            (days("2028-01-01", "2028-12-31"), 366, "2028-01-01 to 2028-12-31"),
        ],
    )
    def test_days(self, covered, count, text):
        each = list(covered.days())

        assert len(each) == len(set(each)) == count
        assert each == sorted(each)
        assert (each[0], each[-1]) == covered
        assert str(covered) == text

    @pytest.mark.parametrize(
        ("timezone", "day"), [("UTC", "2026-06-30"), ("Asia/Tokyo", "2026-07-01"), ("America/New_York", "2026-06-30")]
    )
    def test_today_is_that_of_the_zone(self, mocker, timezone, day):
        mocker.patch("pendulum.now", side_effect=utc("2026-06-30T20:00").in_timezone)

        assert str(today(timezone)) == day

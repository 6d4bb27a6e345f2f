"""The days of partitions, and runs that are due before these are over."""

from __future__ import annotations

from datetime import date, timedelta

import pendulum
import pytest

from reducto_provider.usage.partition import DayNotOverError, check_days_over, warn_of_early_run
from reducto_provider.usage.window import days_of_run
from tests.airflows import PARTITIONS, dag_author, gone_in, new_in
from tests.usage.runs import breaks, cron, days, make_run, partition_runs, utc

ZONED_KEYS = new_in(3, 3, "partition keys spelled in the zone of their timetable")


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
        run = make_run(
            cron("@daily"),
            start,
            end,
            partition_key=key,
            partition_date=partition_date,
            run_after=utc("2026-06-19"),
        )

        assert days_of_run(run) == expected

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
        run = make_run(object(), None, partition_key=key, partition_date=moment and utc(moment))

        assert days_of_run(run) == expected

    @pytest.mark.parametrize("key", ["eu-west", "", "2026-6-18", "06/18/2026", "us|2026-06-18", "2026-06-18\n"])
    def test_the_date_steps_in_for_a_key_that_names_none(self, key):
        run = make_run(cron("@daily"), None, partition_key=key, partition_date=utc("2026-06-18T00:00"))

        assert days_of_run(run) == days("2026-06-18")

    def test_the_date_is_of_the_given_zone_where_its_timetable_has_none(self):
        run = make_run(object(), None, partition_key="eu-west", partition_date=utc("2026-06-17T20:00"))

        assert days_of_run(run, "Asia/Tokyo") == days("2026-06-18")

    @pytest.mark.parametrize(
        "key",
        ["eu-west", "", "2026-6-18", "26-06-18", "2026-06-18x", "2026-02-30", "2026-13", "2026-00", "0000-01-01"],
    )
    def test_a_key_that_names_no_day_is_refused(self, key):
        with pytest.raises(ValueError) as error:
            days_of_run(make_run(cron("@daily"), None, partition_key=key))

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
        run = make_run(cron("@daily"), None, partition_key=key, partition_date=utc(date_of_key))

        try:
            covered = list(days_of_run(run).days())
        except ValueError:
            return
        assert len(covered) == length

    @PARTITIONS
    @pytest.mark.parametrize("key_format", ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d", "%Y%m%d", "%d.%m.%Y"])
    @pytest.mark.parametrize(
        "zone", ["UTC", *(pytest.param(zone, marks=ZONED_KEYS) for zone in ("Asia/Taipei", "America/New_York"))]
    )
    def test_a_day_is_the_one_that_the_key_spells(self, zone, key_format):
        run = self.scheduled("0 0 * * *", timezone=zone, key_format=key_format)

        assert format(days_of_run(run).first, key_format) == run.partition_key

    def test_a_day_on_which_no_period_begins_is_that_day(self):
        assert days_of_run(make_run(cron("0 0 * * 1"), None, partition_key="2026-06-17")) == days("2026-06-17")

    @ZONED_KEYS  # before that a task gets the key alone, and refuses it
    def test_a_coarse_key_is_covered_whole_where_its_timetable_spells_it(self):
        run = self.scheduled("0 0 * * 1", timezone="UTC", key_format="%Y-W%W")

        assert len(list(days_of_run(run).days())) == 7

    @PARTITIONS
    @pytest.mark.parametrize(("expression", "length"), [("0 0 * * 1", 7), ("0 6 * * 1", 7), ("@monthly", 30)])
    @pytest.mark.parametrize("key_format", ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d", "%d.%m.%Y"])
    def test_partitions_longer_than_a_day_are_covered_whole_or_refused(self, expression, length, key_format):
        run = self.scheduled(expression, timezone="UTC", key_format=key_format)

        try:
            covered = list(days_of_run(run).days())
        except ValueError:
            return
        assert len(covered) == length

    @PARTITIONS
    @pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
    @pytest.mark.parametrize("key_format", ["%Y-%m-%d", "%d.%m.%Y"])
    def test_a_week_that_is_run_by_hand_is_covered_whole(self, zone, key_format):
        timetable = dag_author.CronPartitionTimetable("0 6 * * 1", timezone=zone, key_format=key_format)
        # Airflow reads the key, which has no time of day; before 3.3 the task gets the key alone.
        midnight = pendulum.datetime(2026, 6, 15, tz=zone)
        for moment in (None, midnight):
            key = midnight.strftime(key_format)
            run = make_run(timetable, None, partition_key=key, partition_date=moment)
            assert days_of_run(run) == days("2026-06-15", "2026-06-21")

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

        covered = [(due, days_of_run(run)) for due, run in runs]
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

        assert days_of_run(make_run(timetable, None, partition_key=key)) == expected

    @PARTITIONS
    @pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Tokyo", "America/New_York", "Asia/Kathmandu"])
    def test_hours_cover_every_day_of_utc_to_its_end(self, zone):
        runs = partition_runs("0 * * * *", utc("2026-06-01"), utc("2026-06-05"), timezone=zone, run_offset=-1)

        last_of = {days_of_run(run): due for due, run in runs}
        assert all(covered.length == 1 for covered in last_of)
        assert {covered.first.isoformat() for covered in last_of} >= {"2026-06-01", "2026-06-02", "2026-06-03"}
        for covered in list(last_of)[:-1]:
            assert last_of[covered] >= utc(str(covered.last + timedelta(days=1)))

    @staticmethod
    def scheduled(expression, **arguments):
        """The first run after 18 June 2026 for the partition that ended then."""
        [(_, run), *_] = partition_runs(
            expression, utc("2026-06-18T20:00"), utc("2026-08-18"), run_offset=-1, **arguments
        )
        return run


@PARTITIONS
class TestPartitionsThatAreNotOver:
    """A partition of a day or longer is requested once its last UTC day is over, and has settled."""

    @staticmethod
    def run(expression, zone, due, **arguments):
        """The run that is due then, for the partition before."""
        [(_, run)] = partition_runs(expression, utc(due), utc(due), timezone=zone, **{"run_offset": -1, **arguments})
        return run

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
        run = self.run(expression, zone, due, key_format=key_format)
        assert str(days_of_run(run).last) == last

        with pytest.raises(DayNotOverError) as error:
            check_days_over(run, utc(due).date())

        over = date.fromisoformat(last) + timedelta(days=1)
        assert str(error.value) == (
            f"the last day of the run's partition, {last}, is not over before {over} 00:00 UTC: retry after that. "
            f"CronPartitionTimetable({expression!r}, timezone={zone!r}, run_offset=-1) is due too early: give it "
            f"either timezone='UTC' or {remedy}"
        )
        check_days_over(run, over)

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
        run = self.run(expression, zone, due)

        check_days_over(run, utc(due).date())
        assert warn_of_early_run(run, utc(due).date()) is None

    def test_the_day_that_begins(self):
        run = self.run("0 0 * * *", "UTC", "2026-11-21T00:00", run_offset=0)

        with pytest.raises(DayNotOverError, match=r"2026-11-22 00:00 UTC.* give it run_offset=-1$"):
            check_days_over(run, date(2026, 11, 21))

    @pytest.mark.parametrize(
        ("expression", "offset"), [("0 0 * * *", -4), ("0 0 * * 1", -2), ("0 0 1 * *", -2), ("0 0 * * 1-5", -4)]
    )
    def test_until_it_has_settled(self, expression, offset):
        run = self.run(expression, "UTC", "2026-06-01T00:00")
        with pytest.raises(DayNotOverError) as error:
            check_days_over(run, date(2026, 6, 3), settle_days=3)

        assert "2026-05-31, is not settled before 2026-06-04 00:00 UTC, with settle_days=3: retry" in str(error.value)
        assert f"give it run_offset={offset}" in str(error.value)
        check_days_over(run, date(2026, 6, 4), settle_days=3)
        later = self.run(expression, "UTC", "2026-06-01T00:00", run_offset=offset)
        check_days_over(later, date(2026, 6, 1), settle_days=3)
        assert warn_of_early_run(later, date(2026, 6, 1), settle_days=3) is None

    @ZONED_KEYS
    def test_a_change_of_the_clock_that_will_make_it_early_is_told_before(self):
        run = self.run("0 0 * * *", "Europe/London", "2026-11-21T00:00")

        check_days_over(run, date(2026, 11, 21))
        assert warn_of_early_run(run, date(2026, 11, 21)) == (
            "CronPartitionTimetable('0 0 * * *', timezone='Europe/London', run_offset=-1) will be due too early at "
            "2027-03-28 23:00 UTC, and that run will fail, since 2027-03-28 will not be over then: give it either "
            "timezone='UTC' or a time of day such as 02:00"
        )

    @ZONED_KEYS
    def test_the_next_run_that_will_be_too_early_is_the_first_one_named(self):
        run = self.run("0 0 * * *", "Europe/Berlin", "2026-11-20T23:00")

        warning = warn_of_early_run(run, date(2026, 11, 21))
        assert "too early at 2026-11-21 23:00 UTC, and that run will fail, since 2026-11-21 will not be over" in warning

    @new_in(3, 4, "partitions found beyond a time that a change of the clock leaves out")
    @pytest.mark.parametrize("offset", [-1, -2, -3])
    def test_a_time_that_a_change_of_the_clock_leaves_out_makes_no_run_too_early(self, offset):
        begin = utc("2026-03-28T01:30")
        runs = partition_runs("30 2 * * *", begin, begin.add(days=4), timezone="Europe/Berlin", run_offset=offset)

        assert all(due.date() > days_of_run(run).last for due, run in runs)
        assert warn_of_early_run(runs[0][1], date(2026, 3, 28)) is None

    @gone_in(3, 4, "partitions not found beyond a time that a change of the clock leaves out")
    @ZONED_KEYS
    @pytest.mark.parametrize("offset", [-1, -2, -3])
    def test_a_time_that_a_change_of_the_clock_leaves_out(self, offset):
        """Airflow does not get back beyond it: the runs from then on are for the partition that begins, not before."""
        begin = utc("2026-03-28T01:30")
        runs = partition_runs("30 2 * * *", begin, begin.add(days=4), timezone="Europe/Berlin", run_offset=offset)
        too_early = [due for due, run in runs if due.date() <= days_of_run(run).last]

        assert too_early == [utc("2026-03-29T01:30")]
        warning = warn_of_early_run(runs[0][1], date(2026, 3, 28))
        assert "will be due too early at 2026-03-29 01:30 UTC, and that run will fail, since 2026-03-29" in warning
        assert warning.endswith("give it either timezone='UTC' or a time of day such as 03:00")
        with pytest.raises(DayNotOverError, match="2026-03-29, is not over before 2026-03-30 00:00 UTC"):
            check_days_over(runs[1][1], date(2026, 3, 29))

    def test_a_month_s_key_is_over_with_the_month(self):
        run = self.run("0 0 15 * *", "Asia/Tokyo", "2026-07-14T15:00", key_format="%Y-%m")

        assert warn_of_early_run(run, date(2026, 7, 14)) is None
        check_days_over(run, date(2026, 7, 14))

    def test_hours_are_never_too_early(self):
        run = self.run("0 * * * *", "UTC", "2026-11-21T05:00")

        check_days_over(run, date(2026, 11, 21))
        assert warn_of_early_run(run, date(2026, 11, 21), settle_days=2) is None

    @pytest.mark.parametrize(
        ("key", "last"),
        [("2026-11-21", "2026-11-21"), ("2026-11-21T00:00:00", "2026-11-21"), ("2026-11", "2026-11-30")],
    )
    def test_the_key_of_another_dag_s_partition(self, key, last):
        run = make_run(object(), None, partition_key=key)
        over = date.fromisoformat(last) + timedelta(days=1)

        with pytest.raises(DayNotOverError, match=f"{last}, is not over before {over} 00:00 UTC: retry after that$"):
            check_days_over(run, date.fromisoformat(last))
        check_days_over(run, over)
        assert warn_of_early_run(run, over) is None

    @pytest.mark.parametrize("key", ["2026-11-21T05:00:00", "2026-11-21T00", "2026-11-21 23"])
    def test_the_key_of_another_dag_s_hour(self, key):
        check_days_over(make_run(object(), None, partition_key=key), date(2026, 11, 21))

    def test_runs_by_interval_are_not_looked_at(self):
        run = make_run(cron("@daily"), utc("2026-11-21"))

        check_days_over(run, date(2026, 11, 1), settle_days=9)
        assert warn_of_early_run(run, date(2026, 11, 1), settle_days=9) is None

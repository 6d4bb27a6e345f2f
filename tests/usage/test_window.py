"""Which days: of runs, and of windows."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pendulum
import pytest
import time_machine
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
from reducto_provider.usage.fields import QUERY_FIELDS
from reducto_provider.usage.threshold import UsageThreshold
from reducto_provider.usage.window import check_window, days_of_run, days_of_window, moment_of_run
from tests.airflows import PARTITIONS, dag_author
from tests.usage.runs import cron, days, make_run, partition_runs, utc


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
        assert days_of_run(make_run(timetable, utc(start), utc(end))) == expected

    @pytest.mark.parametrize("moment", ["2026-06-18T00:00", "2026-06-18T12:30", "2026-06-18T23:59:59"])
    def test_without_a_schedule_the_day_before(self, moment):
        assert days_of_run(make_run(object(), utc(moment), run_type="manual")) == days("2026-06-17")

    @pytest.mark.parametrize(
        ("moment", "expected"),
        [("2026-06-18T12:30", days("2026-06-17")), ("2026-03-01T00:00", days("2026-02-28"))],
    )
    @pytest.mark.parametrize("run_type", ["manual", "asset_triggered"])
    def test_without_an_interval_the_day_before_the_run(self, moment, expected, run_type):
        run = make_run(
            cron("@weekly"),
            None,
            run_type=run_type,
            run_after=utc(moment),
        )

        assert days_of_run(run) == expected

    @pytest.mark.parametrize(
        ("timezone", "expected"),
        [("UTC", days("2026-06-17")), ("Asia/Tokyo", days("2026-06-17")), ("America/New_York", days("2026-06-16"))],
    )
    def test_days_of_another_zone(self, timezone, expected):
        run = make_run(None, utc("2026-06-17T00:00"), utc("2026-06-18T00:00"))

        assert days_of_run(run, timezone) == expected

    def test_plain_datetimes_do(self):
        zone = pendulum.timezone("Europe/Berlin")
        run = make_run(None, datetime(2026, 6, 17, 2, tzinfo=zone), datetime(2026, 6, 18, 2, tzinfo=zone))

        assert days_of_run(run) == days("2026-06-17")


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
        assert days_of_window(window, make_run(cron("@daily"), utc(moment))) == expected

    @pytest.mark.parametrize(
        ("window", "expected"),
        [("month", days("2026-07-01", "2026-07-31")), ("day", days("2026-07-01")), ("run", days("2026-06-30"))],
    )
    def test_the_moment_is_the_end_of_the_interval(self, window, expected):
        run = make_run(None, utc("2026-06-30T00:00"), utc("2026-07-01T00:00"), run_after=utc("2026-09-09"))

        assert days_of_window(window, run) == expected

    @PARTITIONS
    @pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Tokyo", "America/New_York"])
    @pytest.mark.parametrize("window", ["month", "week", "day", 7, "run"])
    def test_a_partition_s_moment_is_its_last_day_scheduled_or_backfilled(self, window, zone):
        for due, run in partition_runs("0 0 * * *", utc("2026-10-29"), utc("2026-11-04"), timezone=zone, run_offset=-1):
            scheduled = days_of_window(window, run)
            # A backfill's run is not due after its partition, but when that begins.
            backfilled = replace(run, moment=run.partition_date or due.subtract(days=1))
            assert days_of_window(window, backfilled) == scheduled
            assert scheduled.first <= days_of_run(run).last <= scheduled.last

    @pytest.mark.parametrize(
        ("key", "expected"),
        [("2026-05-31", days("2026-05-01", "2026-05-31")), ("2026-04", days("2026-04-01", "2026-04-30"))],
    )
    def test_the_key_of_another_dag_s_partition_too(self, key, expected):
        run = make_run(object(), None, partition_key=key, run_after=utc("2026-06-01"))

        assert days_of_window("month", run) == expected

    def test_a_key_that_names_no_day_leaves_the_moment_to_run_after(self):
        run = make_run(object(), None, partition_key="eu-west", run_after=utc("2026-06-01"))

        assert days_of_window("month", run) == days("2026-06-01", "2026-06-30")

    def test_without_an_interval_the_moment_is_run_after(self):
        run = make_run(None, None, run_after=utc("2026-06-18T12:30"))

        assert moment_of_run(run) == utc("2026-06-18T12:30")
        assert days_of_window("day", run) == days("2026-06-18")

    @pytest.mark.parametrize(
        ("timezone", "expected"),
        [("UTC", days("2026-06-30")), ("Asia/Tokyo", days("2026-07-01")), ("America/New_York", days("2026-06-30"))],
    )
    def test_days_of_another_zone(self, timezone, expected):
        assert days_of_window("day", make_run(None, utc("2026-06-30T20:00")), timezone) == expected

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
            days_of_window(window, make_run(None, utc("2026-06-18")))

        said = str(error.value)
        assert "'month', 'week', 'day', 'run' or a whole number of days from 1 to 3650" in said


THRESHOLD = {"threshold": "1", "metric": "credits", "per_group": False, "projected": False, "settle_days": 0}
QUESTION = {**dict.fromkeys(QUERY_FIELDS), "group_by": "product"}


class TestWindowOfARun:
    """What a sensor requests depends on its run alone, and not on the moment of the request."""

    @staticmethod
    def condition(run, window="month", **fields):
        return UsageThreshold.from_run(lambda: run, window=window, **THRESHOLD, **{**QUESTION, **fields})

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
    def test_a_retry_and_a_clear_request_the_same(self, window, moment, expected):
        run = make_run(cron("@daily"), utc(moment))
        seen = []
        for later in (timedelta(0), timedelta(minutes=5), timedelta(days=3), timedelta(days=40), timedelta(days=800)):
            with time_machine.travel(utc(moment) + later, tick=False):
                condition = self.condition(run, window)
                seen.append(condition)
        assert seen == [seen[0]] * 5
        assert seen[0].window == expected

        over = utc(str(expected.last)) + timedelta(days=1)
        assert {condition.query_at(over + timedelta(days=n)) for condition in seen for n in (0, 1, 900)} == {
            seen[0].query
        }, "what is requested once the window is over"

    @pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo", "Pacific/Kiritimati"])
    @pytest.mark.parametrize("window", ["month", "week", "day", 7])
    def test_the_zone_of_the_moment_does_not_matter(self, window, zone):
        for moment in ("2026-06-30T23:59:59", "2026-07-01T00:00", "2026-03-08T07:00", "2026-11-01T06:30"):
            run = make_run(None, utc(moment).in_timezone(zone))
            assert self.condition(run, window) == self.condition(make_run(None, utc(moment)), window)

    def test_the_moment_is_the_end_of_the_interval_or_run_after(self):
        interval = make_run(None, utc("2026-05-31T00:00"), utc("2026-06-01T00:00"), run_after=utc("2026-08-08"))
        triggered = make_run(None, None, run_after=utc("2026-06-01T00:00"), logical_date=None)

        assert self.condition(interval).window == self.condition(triggered).window == days("2026-06-01", "2026-06-30")

    @pytest.mark.parametrize("first", [date(2026, 5, 1), "2026-05-01"])
    def test_explicit_days(self, first):
        run = make_run(None, utc("2026-06-18T12:30"))

        explicit = self.condition(run, usage_start_date=first, usage_end_date="2026-05-31")
        assert explicit.window == days("2026-05-01", "2026-05-31")

    @pytest.mark.parametrize("window", ["week", "day", "run", 7, "7", "Month"])
    def test_explicit_days_beside_another_window_are_refused(self, window):
        with pytest.raises(ValueError, match="are two windows: give one of them"):
            self.condition(
                make_run(None, utc("2026-06-18")), window, usage_start_date="2026-05-01", usage_end_date="2026-05-31"
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
            self.condition(make_run(None, utc("2026-06-18")), **{given: "2026-06-01"})

    @given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), st.sampled_from(["month", "week", "day", 1, 30]))
    def test_it_holds_the_moment_and_windows_join_up(self, moment, window):
        run = make_run(None, moment.replace(tzinfo=UTC))
        found = self.condition(run, window).window

        assert found.first <= moment.date() <= found.last
        after = make_run(None, datetime.combine(found.last + timedelta(days=1), moment.time(), tzinfo=UTC))
        if isinstance(window, str):
            assert self.condition(after, window).window.first == found.last + timedelta(days=1)
        else:
            assert (found.length, found.last) == (window, moment.date())

"""Schedules, zones and moments that nobody chose: consecutive runs cover every day once, when it is over."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from itertools import chain

import pendulum
import pytest
from airflow.timetables import interval as core_interval
from airflow.timetables import trigger as core_trigger
from dateutil.relativedelta import relativedelta
from hypothesis import assume, given
from hypothesis import strategies as st

from reducto_provider.usage.days import DayRange, NoDayEndedError
from reducto_provider.usage.partition import DayNotOverError, check_days_over, warn_of_early_run
from reducto_provider.usage.window import CALENDAR_WINDOWS, calendar_window, days_of_run, days_of_window
from tests.airflows import PARTITIONS, dag_author, new_in
from tests.usage.runs import breaks, covered_by, make_run, partition_runs, too_early

MAX_RUNS = 25


def several(strategy):
    return st.lists(strategy, min_size=1, max_size=4, unique=True).map(lambda values: ",".join(map(str, values)))


DAYS_OF_MONTH = st.one_of(several(st.integers(1, 28)), st.just("L"))
DAYS_AND_MONTHS = st.one_of(
    st.just("* * *"),
    several(st.integers(0, 6)).map("* * {}".format),
    DAYS_OF_MONTH.map("{} * *".format),
    st.tuples(DAYS_OF_MONTH, several(st.integers(1, 12))).map(lambda pair: f"{pair[0]} {pair[1]} *"),
)
TIMES = st.one_of(
    st.tuples(st.integers(0, 59), st.integers(0, 23)),
    st.tuples(st.sampled_from([0, 1, 30, 59]), st.sampled_from([0, 1, 2, 3, 22, 23])),  # where the clock changes
)
CRONS = st.tuples(TIMES, DAYS_AND_MONTHS).map(lambda parts: f"{parts[0][0]} {parts[0][1]} {parts[1]}")
ZONES = st.sampled_from([zone for zone in sorted(pendulum.timezones()) if "/" in zone or zone == "UTC"])
KEY_FORMATS = st.sampled_from(["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d", "%Y%m%d", "%d.%m.%Y"])
STARTS = st.datetimes(datetime(2000, 1, 1), datetime(2035, 1, 1))
FIXED_DELTAS = st.integers(24 * 60, 40 * 24 * 60).map(lambda minutes: timedelta(minutes=minutes))
MONTHS_AND_DAYS = st.builds(
    relativedelta, years=st.integers(0, 1), months=st.integers(0, 6), weeks=st.integers(0, 3), days=st.integers(1, 9)
)


def covered_from(scheduler, timetable, start):
    """The first runs after ``start``, of some weeks or, under a schedule with long periods, of years."""
    for length in (45, 400, 4000):
        covered = covered_by(scheduler, timetable, str(start), str(start + timedelta(days=length)), MAX_RUNS)
        if len(covered) > 3:
            break
    return covered


def runs_by_partition(expression, start, limit=MAX_RUNS, **arguments):
    """As `covered_from`, of a partition timetable."""
    for length in (45, 400, 4000):
        runs = partition_runs(
            expression,
            pendulum.instance(start, tz="UTC"),
            pendulum.instance(start, tz="UTC").add(days=length),
            limit=limit,
            **arguments,
        )
        if len(runs) == limit or len(runs) > 3:
            break
    return runs


def no_time_is_left_out(keys):
    """Whether each run has a partition of its own: else two share a key, which the runs before warned of."""
    return len(keys) == len(set(keys))


def assert_every_day_once(covered):
    assert covered
    assert breaks(covered) == []
    assert too_early(covered) == []
    days = list(chain.from_iterable(days.days() for _, days in covered))
    assert len(days) == len(set(days)) == (days[-1] - days[0]).days + 1


class TestConsecutiveRuns:
    @given(expression=CRONS, zone=ZONES, start=STARTS)
    def test_by_cron(self, expression, zone, start):
        scheduler = core_trigger.CronTriggerTimetable(expression, timezone=zone)
        timetable = dag_author.CronTriggerTimetable(expression, timezone=zone)

        assert_every_day_once(covered_from(scheduler, timetable, start))

    @given(expression=CRONS, zone=ZONES, start=STARTS)
    def test_by_cron_with_intervals(self, expression, zone, start):
        timetable = core_interval.CronDataIntervalTimetable(expression, timezone=zone)

        assert_every_day_once(covered_from(timetable, timetable, start))

    @new_in(3, 0, "timetables of several crons")
    @given(expressions=st.lists(CRONS, min_size=2, max_size=3, unique=True), start=STARTS)
    def test_by_several_crons_no_day_is_left_out(self, expressions, start):
        scheduler = core_trigger.MultipleCronTriggerTimetable(*expressions, timezone="UTC")
        timetable = dag_author.MultipleCronTriggerTimetable(*expressions, timezone="UTC")
        # Two within a day cover it twice, as those by the hour do.
        last_of = {day: end for end, days in covered_from(scheduler, timetable, start) for day in days.days()}

        *over, last = sorted(last_of)
        assert [*over, last] == list(DayRange(min(last_of), last).days())
        assert all(last_of[day].in_timezone("UTC").date() > day for day in over)

    @given(delta=FIXED_DELTAS, start=STARTS)
    def test_by_a_delta(self, delta, start):
        scheduler = core_trigger.DeltaTriggerTimetable(delta)

        assert_every_day_once(covered_from(scheduler, dag_author.DeltaTriggerTimetable(delta), start))

    @given(delta=MONTHS_AND_DAYS, start=STARTS)
    def test_by_months_and_days_no_day_is_left_out(self, delta, start):
        scheduler = core_trigger.DeltaTriggerTimetable(delta)
        covered = covered_from(scheduler, dag_author.DeltaTriggerTimetable(delta), start)

        # A month after the 29th, 30th and 31st of January is the same day, of which nobody can tell what led to it.
        days = [day for _, days in covered for day in days.days()]
        assert set(days) == set(DayRange(min(days), max(days)).days())
        assert len(days) - len(set(days)) <= 3 * len(covered)
        assert too_early(covered) == []

    @given(minute=st.integers(0, 59), zone=ZONES, start=STARTS)
    def test_by_the_hour_every_day_is_covered_to_its_end(self, minute, zone, start):
        expression = f"{minute} * * * *"
        scheduler = core_trigger.CronTriggerTimetable(expression, timezone=zone)
        timetable = dag_author.CronTriggerTimetable(expression, timezone=zone)
        covered = covered_by(scheduler, timetable, str(start), str(start + timedelta(days=2)))

        days = [days.first for _, days in covered]
        assert days == sorted(days)
        assert all(days.length == 1 for _, days in covered)
        assert set(days) == set(DayRange(days[0], days[-1]).days())
        last_of = {days.first: end for end, days in covered}
        for day in sorted(last_of)[:-1]:
            assert last_of[day].in_timezone("UTC").date() > day, "a run came after the day was over"


@PARTITIONS
class TestPartitions:
    @given(expression=CRONS, zone=ZONES, start=STARTS, key_format=KEY_FORMATS)
    def test_every_day_is_covered_once(self, expression, zone, start, key_format):
        runs = runs_by_partition(expression, start, timezone=zone, run_offset=-1, key_format=key_format)
        assume(no_time_is_left_out([run.partition_key for _, run in runs]))
        covered = []
        for _, run in runs:
            with suppress(NoDayEndedError):  # before Airflow 3.3, which spells keys in UTC
                covered.append((run, days_of_run(run)))

        assert breaks(covered) == []
        for run, days in covered[:3]:
            assert days_of_window("day", run) == DayRange(days.last, days.last)
            check_days_over(run, days.last + timedelta(days=1))
            with pytest.raises(DayNotOverError):
                check_days_over(run, days.last)

    @given(expression=CRONS, zone=ZONES, start=STARTS, offset=st.integers(-3, 1), settle_days=st.integers(0, 9))
    def test_what_is_advised_is_never_too_early(self, expression, zone, start, offset, settle_days):
        arguments = {"timezone": zone, "run_offset": offset}
        [(due, run)] = runs_by_partition(expression, start, limit=1, **arguments)
        advice = warn_of_early_run(run, due.date(), settle_days)
        if advice is None:
            return self.assert_never_too_early(expression, start, settle_days, **arguments)

        if found := re.search(r"run_offset=(-\d+)(?: and|$)", advice):
            arguments["run_offset"] = int(found[1])
        if found := re.search(r"a time of day such as 0?(\d+):0?(\d+)", advice):
            hour, minute = found.groups()
            self.assert_never_too_early(expression, start, settle_days, **{**arguments, "timezone": "UTC"})
            expression = " ".join([minute, hour, *expression.split()[2:]])
        return self.assert_never_too_early(expression, start, settle_days, **arguments)

    @staticmethod
    def assert_never_too_early(expression, start, settle_days, **arguments):
        [(first, run), *_] = runs = runs_by_partition(expression, start, limit=10, **arguments)
        assert warn_of_early_run(run, first.date(), settle_days) is None
        for due, each in runs:
            if due < first.add(years=1):  # as far as it is foreseen
                check_days_over(each, due.date(), settle_days)


class TestWindows:
    @given(moment=STARTS, window=st.one_of(st.sampled_from(CALENDAR_WINDOWS), st.integers(1, 3650)), zone=ZONES)
    def test_fixed_by_the_run_and_of_days_enough(self, moment, window, zone):
        moment = pendulum.instance(moment.replace(tzinfo=UTC))
        run = make_run(None, moment)
        found = days_of_window(window, run)

        assert found == days_of_window(window, make_run(None, moment.in_timezone(zone)))
        assert found == days_of_window(str(window), run)
        assert found.first <= moment.date() <= found.last
        assert found.length == len(list(found.days()))

    @given(day=st.dates(date(1, 2, 1), date(9999, 11, 30)), window=st.sampled_from(CALENDAR_WINDOWS))
    def test_the_calendar_is_cut_without_gaps(self, day, window):
        found = calendar_window(window, day)

        assert found.first <= day <= found.last
        assert all(calendar_window(window, each) == found for each in (found.first, found.last))
        assert calendar_window(window, found.last + timedelta(days=1)).first == found.last + timedelta(days=1)
        assert calendar_window(window, found.first - timedelta(days=1)).last == found.first - timedelta(days=1)


@given(
    key=st.one_of(st.text(max_size=25), st.from_regex(r"\d{4}-\d{2}(-\d{2})?([T ][0-9:.]+)?", fullmatch=True)),
    moment=st.one_of(st.none(), STARTS),
    expression=CRONS,
)
def test_any_partition_key_names_days_or_is_refused(key, moment, expression):
    timetable = dag_author.CronTriggerTimetable(expression, timezone="UTC")
    partition_date = moment and pendulum.instance(moment.replace(tzinfo=UTC))
    run = make_run(timetable, None, partition_key=key, partition_date=partition_date)
    try:
        found = days_of_run(run)
    except ValueError:
        return
    assert found.first <= found.last

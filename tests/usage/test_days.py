"""Ranges of days, and the current day."""

from __future__ import annotations

import pytest

from reducto_provider.usage.days import today
from tests.usage.runs import days, utc


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

"""Which changes tasks that succeeded have reported, and that none of them gets lost."""

from __future__ import annotations

from datetime import date, timedelta
from functools import partial

from reducto_provider.export.reported import ReportedChanges, acknowledge
from tests.threads import call_together

ROOT = "org_id=org_abc123/group_by=product"


def test_many_years(place):
    days = [date(2016, 1, 1) + timedelta(days=offset) for offset in range(3653)]
    folder = "metadata/" + ROOT

    acknowledge(place.storage, {folder: dict.fromkeys(days, "0123456789abcdef")})

    names = [name for name in place.files() if "/.reported-" in name]
    assert names == [f"{folder}/.reported-{year}" for year in range(2016, 2026)]
    assert max(len(place.files()[name]) for name in names) < 13_000
    assert ReportedChanges(place.storage, folder).read(days[360:370]).keys() >= set(days[360:370])


def test_tasks_that_acknowledge_at_the_same_time_lose_no_change(place):
    """Of some an acknowledgement may get lost, whose days then have still changed; of others there is none."""
    days = [date(2026, 6, 1) + timedelta(days=offset) for offset in range(24)]
    folder = "metadata/" + ROOT

    def run(own):
        for day in own:
            acknowledge(place.storage, {folder: {day: f"{day.day:016x}"}})

    call_together(*(partial(run, days[number::8]) for number in range(8)))

    found = ReportedChanges(place.storage, folder).read(days)
    assert found.items() <= {day: f"{day.day:016x}" for day in days}.items()
    assert found

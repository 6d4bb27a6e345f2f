"""
Measure the requests of days that are exported to S3 again: all unchanged, and one changed.

The operator runs in a separate process, against the simulator and moto's S3 server in this one.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Final

from benchmarks.fleet import organizations
from benchmarks.measuring import Sample, check_equal
from benchmarks.operator_run import check_organizations, execute
from benchmarks.places import bucket
from benchmarks.section import Result, Section, Size
from simulator import Simulator

LAST: Final = date(2026, 6, 30)
DAYS: Final = 35

HOW: Final = """
One `ReductoUsageExportOperator` exports {days} days of an organization to an empty bucket of moto's S3 server on this
machine; then again, in a separate process, when nothing has changed; and once more after usage was added to one day.
The last two are measured, once, with what the operator records after its success. Exactly the days with new usage must
be reported as changed, and all files are compared with the simulator's figures.
"""


def section(size: Size) -> Section:
    """Measure exports of days that are there already."""
    days = min(DAYS, size.days)
    unchanged, changed = take(days)
    what = f"{days} days exported to S3 again"
    return Section(
        title="Unchanged days in S3",
        how=HOW.format(days=days),
        results=[
            Result(
                what=f"{what}, none changed: requests",
                against="",
                aim="at most 6",
                ours=f"{unchanged['requests']:.0f}",
                theirs="",
                value=unchanged["requests"],
                limit=6,
                unit="{:.0f}",
                why="The description of the dataset, the index, the reported changes, and two listings.",
            ),
            Result(
                what=f"{what}, none changed: writes",
                against="",
                aim="none",
                ours=f"{unchanged['writes']:.0f}",
                theirs="",
                value=unchanged["writes"],
                limit=0,
                unit="{:.0f}",
            ),
            Result(
                what=f"{what}, one changed: requests",
                against="none changed",
                aim="at most 8 more",
                ours=f"{changed['requests']:.0f}, {changed['writes']:.0f} of them writes",
                theirs=f"{unchanged['requests']:.0f}",
                value=changed["requests"] - unchanged["requests"],
                limit=8,
                unit="{:.0f} more",
                why="The day's file and manifest, two listings that prove them, the index, and the reported changes.",
            ),
        ],
    )


def take(days: int) -> tuple[Sample, Sample]:
    """
    Export ``days`` days three times, and return the figures of the second export and of the third, of a changed day.

    :raises WrongOutputError: if a file does not have the simulator's figures, or other days changed.
    """
    fleet = organizations(1)
    name = fleet[0].id
    exported = (LAST - timedelta(days=days - 1), LAST)
    with Simulator(fleet) as simulator, bucket() as place:

        def export(changed_days: int) -> Sample:
            sample = execute(simulator.url, place, exported, org_id=name, group_by="product")
            check_equal(sample["changed days"], changed_days, "the number of changed days")
            check_organizations(place, simulator, [name], exported)
            return sample

        export(days)
        unchanged = export(0)
        simulator.usage.add(name, LAST, "10.5", 1)
        return unchanged, export(1)

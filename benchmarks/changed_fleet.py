"""
Measure a fleet that is exported to S3 again after one day of one organization has changed.

The operator runs in a separate process, against the simulator and moto's S3 server in this one.
"""

from __future__ import annotations

from datetime import date
from typing import Final

from benchmarks.fleet import organizations
from benchmarks.measuring import MIB, Sample, check_equal
from benchmarks.operator_run import check_organizations, execute
from benchmarks.places import bucket
from benchmarks.section import Result, Section, Size, mib, seconds
from simulator import Simulator

DAYS: Final = (date(2026, 6, 1), date(2026, 6, 3))
SECONDS_PER_REQUEST: Final = 0.02


HOW: Final = """
One `ReductoUsageFleetExportOperator` with default settings exports three days of {many:,} organizations to an empty
bucket of moto's S3 server on this machine. Then usage is added to a day of one of them, and the export runs again in a
separate process, with what the operator records after its success: this is measured, once. The server waits {each}
before it answers a request, and answers one after the other. Exactly one day must have changed, and all files are
compared with the simulator's figures.
"""


def section(size: Size) -> Section:
    """Measure a fleet's second export to an object store."""
    few, many = max(1, size.organizations // 10), size.organizations
    of_few, of_many = take(few), take(many)
    each = f"{SECONDS_PER_REQUEST * 1000:.0f} ms"
    what = f"{many:,} organizations x 3 days exported to S3 again, one day changed, {each} a request"
    return Section(
        title="A fleet's unchanged days in S3",
        how=HOW.format(many=many, each=each),
        results=[
            Result(
                what=f"{what}: requests",
                against="",
                aim="at most 5 an organization",
                ours=f"{of_many['requests']:,.0f}, {of_many['writes']:.0f} of them writes, in "
                f"{seconds(of_many['wall'])} (CPU: {seconds(of_many['cpu'])})",
                theirs="",
                value=of_many["requests"] / many,
                limit=5,
                unit="{:.2f}",
                why="Each organization's index, reported changes, and two listings.",
            ),
            Result(
                what=f"{what}: peak memory",
                against=f"{few:,} organizations",
                aim="at most 5 MiB more",
                ours=f"{mib(of_many['added'])} (process: {mib(of_many['peak'])})",
                theirs=f"{mib(of_few['added'])} (process: {mib(of_few['peak'])})",
                value=(of_many["added"] - of_few["added"]) / MIB,
                limit=5,
                unit="{:.1f} MiB more",
            ),
        ],
    )


def take(count: int) -> Sample:
    """
    Export three days of ``count`` organizations, change a day of one, and measure the second export.

    :raises WrongOutputError: if a file does not have the simulator's figures, or other days changed.
    """
    fleet = organizations(count)
    names = [each.id for each in fleet]
    with Simulator(fleet) as simulator, bucket() as place:
        first = execute(simulator.url, place, DAYS, organizations=names)
        check_equal(first["changed days"], count * 3, "the number of new days")
        simulator.usage.add(names[-1], DAYS[1], "10.5", 1)
        with place.delay(SECONDS_PER_REQUEST):
            sample = execute(simulator.url, place, DAYS, organizations=names)
        check_equal(sample["changed days"], 1, "the number of changed days")
        check_organizations(place, simulator, names, DAYS)
    return sample

"""
Measure a fleet that is exported to S3 again after one day of one organization has changed.

The operator runs in a separate process, against the simulator and moto's S3 server in this one.
"""

from __future__ import annotations

from datetime import date
from typing import Final

from benchmarks.fleet import organizations
from benchmarks.growth import check_organizations, execute
from benchmarks.measuring import Sample, check_equal
from benchmarks.places import bucket
from simulator import Simulator

DAYS: Final = (date(2026, 6, 1), date(2026, 6, 3))
SECONDS_PER_REQUEST: Final = 0.02


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

"""The threshold sensor has the same outcome in all its modes, in every case and with every option.

Real Airflow runs a DAG for each mode, with a sensor for each case and option. The outcomes are the table of
`docs/waiting.md`. To rewrite it::

    REWRITE_DOCS=1 make test ARGS=tests/sensors/test_parity.py
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web

from simulator import Altered, Fault, Organization, Record, Reply, Reset, Simulator, html, status
from simulator.faults import Answer
from tests.airflows import AIRFLOW, new_in

pytestmark = new_in(3, 0, "DAG.test that outlives a task whose time is over: the table is measured with it")

# A retry in DAG.test of Airflow 3.0 goes on where the try before was deferred, and so polls less.
FORGETS_NO_DEFERRAL = AIRFLOW == (3, 0)

DOCUMENT = Path(__file__).parents[2] / "docs/waiting.md"
BEGIN, END = "<!-- outcomes, written by tests/sensors/test_parity.py -->\n", "<!-- end of outcomes -->\n"

MODES: dict[str, dict[str, Any]] = {
    "poke": {"mode": "poke"},
    "reschedule": {"mode": "reschedule"},
    "deferrable": {"deferrable": True},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "`soft_fail`": {"soft_fail": True},
    "`never_fail`": {"never_fail": True},
    "`silent_fail`": {"silent_fail": True},
    "`retries=1`": {"retries": 1},
    "`execution_timeout`": {"execution_timeout": 600},
}

DAG = """
from datetime import datetime, timedelta
from tests.airflow_sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable
from reducto_provider.sensors import threshold as sensors
from reducto_provider.triggers import base
from reducto_provider.triggers import threshold as triggers
from reducto_provider.usage.threshold import UsageThreshold

# What can't be caused from outside.
read, event_of = UsageThreshold.read, triggers.ReductoUsageThresholdTrigger._event_of

def read_otherwise(self, report, time):
    if report.rows and report.org_id.startswith("bug"):
        raise KeyError("a bug")
    if report.rows and report.org_id.startswith("over"):
        time += timedelta(days=90)
    return read(self, report, time)

async def other_event_of(self, *args):
    return {{"status": "done"}} if self.org_id.startswith("event") else await event_of(self, *args)

UsageThreshold.read = read_otherwise
triggers.ReductoUsageThresholdTrigger._event_of = other_event_of
base.MIN_INTERVAL = sensors.MIN_INTERVAL = 0.05

LONDON = CronDataIntervalTimetable("@daily", timezone="Europe/London")

with DAG("wait", schedule=LONDON, start_date=datetime(2026, 1, 1)):
    for org_id, arguments in {sensors!r}.items():
        if seconds := arguments.pop("execution_timeout", None):
            arguments["execution_timeout"] = timedelta(seconds=seconds)
        sensors.ReductoUsageThresholdSensor(
            task_id=org_id, org_id=org_id, poke_interval=0.05, retry_delay=timedelta(0), **arguments
        )
"""
# The clock was put forward in London on that day: an interval of 23 hours, inside one day of UTC.
NO_DAY_ENDED = datetime(2026, 3, 29, 23, tzinfo=UTC)

USED = Decimal(100)
EXCEEDED, NOT_EXCEEDED = {"threshold": 50}, {"threshold": 1000}
FIVE_END_IT = {**NOT_EXCEEDED, "max_failure_time": 0}
TODAY = datetime.now(UTC).date()
RUNNING = {"usage_start_date": str(TODAY - timedelta(days=3)), "usage_end_date": str(TODAY + timedelta(days=30))}
NOT_BEGUN = {"usage_start_date": str(TODAY + timedelta(days=9)), "usage_end_date": str(TODAY + timedelta(days=30))}
OF_THE_RUN = {"window": "run", "usage_start_date": None, "usage_end_date": None}

SHORT, LONG = 0.6, 900
"""Seconds for a wait that only its timeout ends, and for others: longer than the whole run, as sensors take turns."""
AT_A_TIME = 40
"""Sensors of one DAG: with more of them each takes Airflow longer."""

ALWAYS, IF_SILENT = tuple(OPTIONS), ("`silent_fail`",)
FIRST, LATER = "first", "later"


@dataclass(frozen=True, eq=False)
class Case:
    """
    Something that happens to a sensor at its first poll, or later: after one that found no usage at all.

    `faults` meet the polls in turn, the last one for ever if it `stays`. `lasts` are the options with which only the
    timeout ends the wait. `kind` begins the organization's id: the DAG or the service act on it. `counted` is whether
    the number of polls is the same in every mode, and does not depend on the time.
    """

    what: str
    arguments: dict[str, Any] = field(default_factory=lambda: NOT_EXCEEDED)
    faults: tuple[Fault, ...] = ()
    stays: bool = True
    lasts: tuple[str, ...] = ()
    kind: str = "any"
    when: tuple[str, ...] = (FIRST, LATER)
    modes: tuple[str, ...] = tuple(MODES)
    counted: bool = True


CASES = (
    Case("the threshold is exceeded", EXCEEDED),
    Case("`timeout` is over", {**NOT_EXCEEDED, "timeout": SHORT}, lasts=ALWAYS, when=(FIRST,)),
    Case(
        "`execution_timeout` is over",
        {**NOT_EXCEEDED, "timeout": LONG, "execution_timeout": SHORT},
        lasts=ALWAYS,
        when=(FIRST,),
    ),
    Case("the window has not begun", {**EXCEEDED, **NOT_BEGUN}, lasts=ALWAYS, when=(FIRST,)),
    Case("the run covers no day", {**EXCEEDED, **OF_THE_RUN}, when=(FIRST,)),
    Case("the window is over, `on_closed_window='skip'`", kind="over"),
    Case("the window is over, `on_closed_window='fail'`", {**NOT_EXCEEDED, "on_closed_window": "fail"}, kind="over"),
    Case(
        "the window is over, `on_closed_window='wait'`",
        {**NOT_EXCEEDED, "on_closed_window": "wait"},
        kind="over",
        lasts=ALWAYS,
        when=(FIRST,),
    ),
    Case("the key is refused (401)", faults=(status(401),)),
    Case("the key is refused (401), the connection has a new one", EXCEEDED, kind="rotated"),
    Case("the organization is refused (403)", faults=(status(403),), when=(FIRST,)),
    Case("the request is refused (400)", faults=(status(400),), when=(LATER,)),
    Case("rows without credits", kind="uncounted"),
    Case("a response for another organization", faults=(Altered({"orgId": "org_other"}),), lasts=IF_SILENT),
    Case("HTML pages, `max_failure_time=0`", FIVE_END_IT, faults=(html(),), lasts=IF_SILENT),
    Case("an incomplete response", faults=(Reply(200, '{"orgId": '),), lasts=IF_SILENT, when=(FIRST,)),
    Case(
        "four transient errors, `max_failure_time=0`",
        {**EXCEEDED, "max_failure_time": 0},
        faults=(status(503), status(429), Reset(), status(500)),
        stays=False,
    ),
    Case("five transient errors, `max_failure_time=0`", FIVE_END_IT, faults=(status(500),), lasts=IF_SILENT),
    Case("nine transient errors, within `max_failure_time`", EXCEEDED, faults=(status(503),) * 9, stays=False),
    Case(
        "an outage longer than `max_failure_time`",
        {**NOT_EXCEEDED, "max_failure_time": SHORT},
        faults=(status(503),),
        lasts=IF_SILENT,
        counted=False,
    ),
    Case("an outage longer than `timeout`", faults=(status(503),), lasts=ALWAYS, when=(LATER,)),
    Case("an unexpected exception", kind="bug", lasts=IF_SILENT),
    Case("the connection is missing", {**EXCEEDED, "reducto_conn_id": "missing"}, lasts=IF_SILENT, when=(FIRST,)),
    Case("the trigger's event is malformed (deferrable only)", kind="event", when=(LATER,), modes=("deferrable",)),
)


class Key(NamedTuple):
    """What a sensor tests."""

    case: Case
    when: str
    option: str


class Outcome(NamedTuple):
    """The outcome of a sensor: with the XCom without its time, and the polls (None if they depend on the time)."""

    state: Any
    tries: int
    errors: tuple[str, ...]
    xcom: Any
    polls: int | None

    def __str__(self) -> str:
        """Return the outcome as the document has it."""
        if self.state != "failed":
            return str(self.state)
        return f"failed{' twice' if self.tries == 2 else ''}, `{self.errors[-1]}`"


class World:
    """The sensors of a mode, and the service that each polls for its own organization."""

    def __init__(self, mode: str, folder: Path) -> None:
        self.simulator = Simulator([], {})
        self.what: dict[str, Key] = {}
        self.sensors: dict[str, dict[str, Any]] = {}
        self._connections = folder / mode
        self._connections.mkdir()
        for case in CASES:
            for when in case.when if mode in case.modes else ():
                for option in OPTIONS:
                    self._add(Key(case, when, option), MODES[mode])

    def run(self, runner: Any) -> dict[str, Outcome]:
        """Run all sensors, and return the outcomes by organization."""
        secrets = {
            "AIRFLOW__SECRETS__BACKEND": "tests.real_airflow.connections.ConnectionFiles",
            "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps({"folder": str(self._connections)}),
        }
        outcomes = {}
        with self.simulator:
            for org in self.sensors:
                self._connect(org, f"key-{org}")
            orgs = list(self.sensors)
            for some in (orgs[first : first + AT_A_TIME] for first in range(0, len(orgs), AT_A_TIME)):
                dag = DAG.format(sensors={org: self.sensors[org] for org in some})
                result = runner.run(dag, logical_date=NO_DAY_ENDED, run_after=NO_DAY_ENDED, env=secrets, timeout=600)
                outcomes |= {org: self._outcome(org, result) for org in some}
        return outcomes

    def rotate(self, org: str) -> None:
        """Refuse the key of an organization's connection, and replace it by a new one."""
        del self.simulator.keys[f"key-{org}"]
        self._connect(org, f"new-key-{org}")

    def _add(self, key: Key, mode: dict[str, Any]) -> None:
        case = key.case
        org = f"{case.kind}_{CASES.index(case):02}_{key.when}_{tuple(OPTIONS).index(key.option)}"
        self.what[org] = key
        option, end = OPTIONS[key.option], {}
        if key.option in case.lasts:
            end = {"execution_timeout": SHORT} if "execution_timeout" in OPTIONS[key.option] else {"timeout": SHORT}
        if "timeout" in case.arguments:
            end = {}
        given = {"reducto_conn_id": org, "timeout": LONG, **RUNNING}
        self.sensors[org] = {**given, **mode, **option, **end, **case.arguments}
        record = Record(TODAY - timedelta(days=2), USED, 1)
        credits = "null" if case.kind == "uncounted" else "number"
        self.simulator.usage.organizations[org] = Organization(org, records=[record], credits=credits)
        if key.when == LATER:
            self.simulator.faults.add(Altered({"data": []}), org=org)
        if case.kind == "rotated":
            self.simulator.faults.add(Rotation(self, org), org=org)
        for fault in case.faults[:-1] if case.stays else case.faults:
            self.simulator.faults.add(fault, org=org)
        if case.stays and case.faults:
            self.simulator.faults.add(case.faults[-1], times=None, org=org)

    def _outcome(self, org: str, result: Any) -> Outcome:
        key = self.what[org]
        xcom = result.xcoms.get((org, -1, "return_value"))
        if xcom is not None:
            assert datetime.fromisoformat(xcom.pop("time")).tzinfo is not None
        polls = sum(dict(request.query)["orgId"] == org for request in self.simulator.requests)
        return Outcome(
            result.tasks[org],
            result.task_instance(org).try_number,
            tuple(error.type for error in result.errors if error.task_id == org),
            xcom,
            polls if key.case.counted and key.option not in key.case.lasts and not FORGETS_NO_DEFERRAL else None,
        )

    def _connect(self, org: str, key: str) -> None:
        self.simulator.keys[key] = (org,)
        connection = {
            "conn_type": "reducto",
            "host": self.simulator.url,
            "password": key,
            "extra": {"max_attempts": 1},
        }
        written = self._connections / f"{org}.new"
        written.write_text(json.dumps(connection))
        written.replace(self._connections / f"{org}.json")


@dataclass(frozen=True)
class Rotation(Fault):
    """The key is no longer valid when the request comes."""

    world: World
    org: str

    async def play(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        self.world.rotate(self.org)
        return await answer()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    folder = tmp_path_factory.mktemp("parity")
    return {mode: World(mode, folder) for mode in MODES}


@pytest.fixture(scope="module")
def measured(worlds: dict[str, World], dag_runner: Any, dag_runner_factory: Any) -> dict[str, dict[str, Outcome]]:
    """The outcome of each sensor, by mode and organization."""
    runners = [dag_runner, dag_runner_factory(), dag_runner_factory()]
    with ThreadPoolExecutor() as pool:
        outcomes = pool.map(lambda world, runner: world.run(runner), worlds.values(), runners)
        return dict(zip(worlds, outcomes, strict=True))


def test_the_modes_agree(measured: dict[str, dict[str, Outcome]], worlds: dict[str, World]) -> None:
    everywhere = [org for org, key in worlds["poke"].what.items() if key.case.modes == tuple(MODES)]
    differ = {
        org: {mode: measured[mode][org] for mode in MODES}
        for org in everywhere
        if len({repr(measured[mode][org]) for mode in MODES}) > 1
    }
    assert not differ, "\n".join(
        f"{worlds['poke'].what[org].case.what}, {org}, {mode}: {tuple(outcome)}"
        for org, modes in differ.items()
        for mode, outcome in modes.items()
    )


def test_success_alone_has_an_xcom(measured: dict[str, dict[str, Outcome]], worlds: dict[str, World]) -> None:
    for mode, outcomes in measured.items():
        for org, outcome in outcomes.items():
            expected = {
                "metric": "credits",
                "value": 100,
                "used": 100,
                "projected": False,
                "threshold": 50,
                "exceeded": True,
                **RUNNING,
                "org_id": org,
                "group_by": "product",
                "group": None,
            }
            assert outcome.xcom == (expected if outcome.state == "success" else None), (mode, org)


def test_the_document_has_what_was_measured(measured: dict[str, dict[str, Outcome]], worlds: dict[str, World]) -> None:
    table = markdown(worlds["deferrable"].what, measured["deferrable"])
    before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
    documented, end, after = rest.partition(END)
    if os.environ.get("REWRITE_DOCS"):
        DOCUMENT.write_text(before + begin + table + end + after)
    else:
        assert documented == table


def markdown(what: dict[str, Key], outcomes: dict[str, Outcome]) -> str:
    """Return a row for each case, or two if first and later polls differ. An error is named once per row."""
    cells: dict[tuple[Case, str], list[str]] = {}
    for org, key in what.items():
        cells.setdefault((key.case, key.when), []).append(str(outcomes[org]))
    lines = [["", *OPTIONS], ["---"] * (len(OPTIONS) + 1)]
    for case in CASES:
        first, *other = [cells[case, when] for when in case.when]
        if other in ([], [first]):
            lines.append([case.what, *first])
        else:
            lines += [[f"{case.what}, at the {when} poll", *cells[case, when]] for when in case.when]
    for line in lines:
        _, _, error = line[1].partition(", ")
        line[2:] = [cell.removesuffix(f", {error}") if error else cell for cell in line[2:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)

"""The fleet export, run by real Airflow against the simulator."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import date
from pathlib import Path
from textwrap import indent

import pyarrow
import pytest
from deltalake import DeltaTable

from simulator import Altered, Organization, Record, Stall, status
from tests.airflows import DELTA, new_in
from tests.operators.test_export import RANGE, content_of, days_of
from tests.real_airflow.dagtest import DagTestError

DAG = """
from datetime import datetime, timedelta
from tests.airflow_sdk import DAG, Asset, task
from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator
{before}

with DAG("fleet", schedule=None, params={params!r}, render_template_as_native_obj={native}):
    {tasks}
    ReductoUsageFleetExportOperator(
        task_id="export",
        retry_delay=timedelta(seconds=0),
        {arguments}
    )
"""
SMALL = ["org_acme", "org_globex", "org_initech"]


class Code(str):
    """An argument that is written into the DAG's file as it is."""

    __repr__ = str.__str__


@pytest.fixture
def fleet(run_dag, tmp_path):
    """Run a DAG whose one task exports a fleet, into ``tmp_path``, with these arguments."""

    def run(*, before="", tasks="", params=None, native=False, run=None, **arguments):
        arguments = {"organizations": SMALL, "output_path": str(tmp_path), **RANGE, **arguments}
        written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        if before:  # a DAG's file is executed anew for each try
            before = "import sys\nif not hasattr(sys, 'patched'):\n    sys.patched = True\n" + indent(before, "    ")
        source = DAG.format(before=before, tasks=tasks, params=params or {}, native=native, arguments=written)
        return run_dag(source, **(run or {}))

    return run


def test_filters_that_nothing_matches_are_warned_of(fleet):
    result = fleet(file_types=["fpd"], days_per_request=7).expect()

    for org_id in SMALL:
        warned = result.log.count(f"No usage of {org_id}, 2026-05-01 to 2026-05-31, by product matches")
        assert warned == result.log.count(f"{org_id} by product exported: ") > 0, "once, as any line is in this log"


def asked_of(simulator):
    """Return the number of requests for each organization."""
    return Counter(dict(request.query)["orgId"] for request in simulator.requests)


def of(result, **wanted):
    """The one entry of a result that has these values."""
    [entry] = [
        entry for entry in result["organizations"] if all(entry[name] == value for name, value in wanted.items())
    ]
    return entry


def add_organizations(simulator, count):
    """More organizations, each with three requests on a day."""
    ids = [f"org_{number:03}" for number in range(count)]
    for org_id in ids:
        records = [Record(date(2026, 5, 1), 1 + ids.index(org_id), 3)]
        simulator.usage.organizations[org_id] = Organization(org_id, records=records)
    simulator.keys["sim-key-all"] = (*simulator.keys["sim-key-all"], *ids)
    return ids


@pytest.mark.parametrize(
    ("organizations", "dimensions", "arguments"),
    [
        ([*SMALL, "org_umbrella"], ["product", "api_key"], {"output_format": "json"}),
        ([*SMALL, "org_umbrella"], ["feature", "file_type"], {"output_format": "parquet"}),
        (SMALL, ["product"], {"output_format": "focus_csv", "price_per_credit": "0.015"}),
    ],
    ids=["json", "parquet", "focus"],
)
def test_it_is_as_if_each_was_exported_alone(fleet, simulator, tmp_path, organizations, dimensions, arguments):
    written = ", ".join(f"{name}={value!r}" for name, value in {**RANGE, **arguments}.items())
    pairs = [{"org_id": org_id, "group_by": dimension} for org_id in organizations for dimension in dimensions]
    result = fleet(
        tasks=f"""
    ReductoUsageExportOperator.partial(
        task_id="alone", output_path={str(tmp_path / "alone")!r}, {written}
    ).expand_kwargs({pairs})
    ReductoUsageFleetExportOperator(
        task_id="in_parts",
        organizations={organizations},
        group_by={dimensions},
        output_path={str(tmp_path / "in_parts")!r},
        days_per_request=7,
        {written},
    )""",
        organizations=organizations,
        group_by=dimensions,
        output_path=str(tmp_path / "fleet"),
        **arguments,
    ).expect()

    alone = content_of(tmp_path / "alone")
    files = {name for name in alone if name.startswith("data/") or name == "metadata/dataset.json"}
    assert len(files) > 20 * len(organizations) * len(dimensions) - 60
    for folder in ("fleet", "in_parts"):
        content = content_of(tmp_path / folder)
        assert content.keys() == alone.keys()
        assert {name: content[name] for name in files} == {name: alone[name] for name in files}
    for task_id in ("export", "in_parts"):
        xcom = result.xcom(task_id)
        assert (xcom["exported"], xcom["failed"]) == (len(pairs), 0)
        for entry, single in zip(xcom["organizations"], result.xcom("alone"), strict=True):
            for name in ("org_id", "group_by", "row_count", "credits", "request_count"):
                assert entry[name] == single[name]
            assert entry["changed_days"] == [file["date"] for file in single["files"] if file["changed"]]
            assert entry["status"] == "exported"
    windows = Counter(tuple(dict(request.query)[n] for n in ("startDate", "endDate")) for request in simulator.requests)
    assert windows["2026-05-29", "2026-05-31"] == len(pairs)
    assert windows["2026-05-01", "2026-05-31"] == 2 * len(pairs)


def test_one_failure_stops_no_other(fleet, simulator, tmp_path):
    simulator.faults.add(status(500), times=None, org="org_globex")
    simulator.faults.add(Altered({"orgId": "org_other"}), times=None, org="org_initech")
    result = fleet(
        organizations=["org_nobody", *SMALL, {"org_id": "org_hooli", "reducto_conn_id": "reducto_none"}],
        run={"connection": {"extra": {"max_attempts": 2}}},
    ).expect("failed")

    [error] = result.errors
    assert error.type == "ReductoFleetError"
    for word in ("4 of 5", "org_nobody", "ReductoPermissionError", "org_globex", "500", "org_initech", "org_hooli"):
        assert word in error.message
    xcom = result.xcom("export")
    assert (xcom["exported"], xcom["failed"], xcom["organizations_left_out"]) == (1, 4, 0)
    assert [(entry["org_id"], (entry["error"] or "").split(":")[0]) for entry in xcom["organizations"]] == [
        ("org_nobody", "ReductoPermissionError"),
        ("org_globex", "ReductoServerError"),
        ("org_initech", "ReductoResponseError"),
        ("org_hooli", "AirflowNotFoundException"),
        ("org_acme", ""),
    ]
    assert len(days_of(tmp_path)) == 31
    assert of(xcom, org_id="org_globex")["credits"] is None
    assert re.search(r"\d of 5: org_acme by product exported: [\d.]+ credits in \d+ requests", result.log)
    assert "of 5: org_nobody by product failed: ReductoPermissionError" in result.log
    assert "Exported 1 of 5 at" in result.log


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"organizations": ["org_acme", "org_nobody"]}, "ReductoPermissionError"),
        (
            {
                "organizations": ["org_acme", "org_umbrella"],
                "output_format": "focus_csv",
                "price_per_credit": "{{ 0.015 }}",
            },
            "ReductoCreditsUnavailableError",
        ),
    ],
)
def test_what_no_retry_mends_spends_none(fleet, tmp_path, arguments, cause):
    result = fleet(retries=2, **arguments).expect("failed")

    [error] = result.errors
    assert (error.type, error.state) == ("ReductoFleetFailError", "failed")
    assert cause in error.message
    assert len(days_of(tmp_path)) == 31


def test_a_key_that_is_refused_is_not_tried_on_every_organization(fleet, simulator):
    result = fleet(concurrency=1, run={"connection": {"password": "sim-key-none"}}).expect("failed")

    assert len(simulator.requests) == 1
    assert result.errors[0].message.count("ReductoAuthenticationError") == 3


def test_a_retry_requests_again_and_writes_only_what_failed(fleet, simulator, tmp_path):
    simulator.faults.add(status(500), times=2, org="org_globex")
    connection = {"extra": {"max_attempts": 2}}
    result = fleet(retries=1, concurrency=1, group_by=["product"], run={"connection": connection}).expect()

    assert [(error.type, error.state) for error in result.errors] == [("ReductoFleetError", "up_for_retry")]
    assert asked_of(simulator) == {"org_acme": 2, "org_globex": 3, "org_initech": 2}
    written = {
        org_id: [path.stat().st_mtime_ns for path in tmp_path.glob(f"*/org_id={org_id}/**/*2026-05*")]
        for org_id in asked_of(simulator)
    }
    assert max(written["org_acme"]) < min(written["org_initech"]), "by the first try, one after the other"
    assert max(written["org_initech"]) < min(written["org_globex"])
    xcom = result.xcom("export")
    assert (xcom["exported"], xcom["failed"]) == (3, 0)
    truth = simulator.truth("org_acme", date(2026, 5, 1), date(2026, 5, 31))
    acme = of(xcom, org_id="org_acme")
    assert acme["status"] == "exported"
    assert acme["credits"] == float(sum(row.credits for row in truth))
    assert acme["request_count"] == sum(row.requests for row in truth)
    assert acme["row_count"] == len(truth)
    assert len(acme["changed_days"]) == 31
    assert of(xcom, org_id="org_globex")["status"] == "exported"


FAIL_IN_THE_MIDDLE = """
from reducto_provider.export.dataset import UsageDataset
publish, calls = UsageDataset.publish, []

def fails_once(*args, **kwargs):
    calls.append(args)
    if len(calls) == 3:
        raise OSError("the store went away")
    return publish(*args, **kwargs)

UsageDataset.publish = fails_once
"""


def test_a_retry_asks_for_a_long_range_again(fleet, simulator, tmp_path):
    result = fleet(
        before=FAIL_IN_THE_MIDDLE, organizations=["org_acme"], days_per_request=7, retries=1, concurrency=1
    ).expect()

    starts = [dict(request.query)["startDate"][-2:] for request in simulator.requests]
    assert starts == ["01", "08", "15", "01", "08", "15", "22", "29"]
    truth = simulator.truth("org_acme", date(2026, 5, 1), date(2026, 5, 31))
    acme = of(result.xcom("export"), org_id="org_acme")
    assert (acme["status"], acme["row_count"], len(acme["changed_days"])) == ("exported", len(truth), 31)
    assert acme["credits"] == float(sum(row.credits for row in truth))
    assert len(days_of(tmp_path)) == 31


NOTE_THREADS = """
import threading
from reducto_provider.hooks.reducto import ReductoHook
from reducto_provider.operators import fleet
original = fleet.FleetExport.__init__

def noted(what, function):
    def noting(*args, **kwargs):
        print(f"{what} IN {threading.current_thread().name}\\n", end="")
        return function(*args, **kwargs)
    return noting

def init(self, *args, **kwargs):
    original(self, *args, **kwargs)
    self._log = noted("LOG", self._log)

ReductoHook.get_connection = staticmethod(noted("LOOK-UP", ReductoHook.get_connection))
fleet.FleetExport.__init__ = init
"""


def test_airflow_is_talked_to_in_the_task_s_own_thread_alone(fleet, simulator):
    simulator.faults.add(status(401))
    result = fleet(before=NOTE_THREADS, organizations=[*SMALL, {"org_id": "org_hooli", "reducto_conn_id": "gone"}])

    threads = re.findall(r"(LOG|LOOK-UP) IN (\w+)", result.log)
    assert {what for what, _ in threads} == {"LOG", "LOOK-UP"}
    assert len([what for what, _ in threads if what == "LOOK-UP"]) == 3, "again after the refused key"
    assert {thread for _, thread in threads} == {"MainThread"}


START_OF_PACE = """
import time
from reducto_provider.hooks import reducto
reserve, begun = reducto._Pace.reserve, set()

def noted(pace, per_second):
    if per_second not in begun:
        begun.add(per_second)
        print(f"PACE {per_second} FROM {time.monotonic()}\\n", end="")
    return reserve(pace, per_second)

reducto._Pace.reserve = noted
"""


def test_a_connections_rate_is_kept_by_all_of_its_organizations(fleet, simulator):
    ids = add_organizations(simulator, 15)
    simulator.faults.at_rate(0.3, status(500), seed=1)
    simulator.keys["sim-key-slow"] = simulator.keys["sim-key-all"]
    slow = {"conn_type": "reducto", "host": simulator.url, "password": "sim-key-slow"}
    slow["extra"] = {"requests_per_second": 8, "max_attempts": 10}
    organizations = [
        {"org_id": org_id, "reducto_conn_id": "reducto_slow"} if place % 3 == 0 else org_id
        for place, org_id in enumerate(ids)
    ]
    result = fleet(
        before=START_OF_PACE,
        organizations=organizations,
        concurrency=15,
        run={
            "connection": {"extra": {"requests_per_second": 20, "max_attempts": 10}},
            "env": {"AIRFLOW_CONN_REDUCTO_SLOW": json.dumps(slow)},
        },
    ).expect()

    assert {request.status for request in simulator.requests} == {200, 500}
    for key, rate in (("sim-key-slow", 8.0), ("sim-key-all", 20.0)):
        [begun] = re.findall(rf"PACE {rate} FROM ([\d.]+)", result.log)
        arrived = [r.monotonic for r in simulator.requests if r.headers["Authorization"] == f"Bearer {key}"]
        assert len(arrived) >= 5
        # A request may be late, but never is the next one's.
        assert all(at >= float(begun) + number / rate for number, at in enumerate(sorted(arrived)))


def test_no_more_at_a_time_than_allowed(fleet, simulator):
    simulator.faults.add(Stall(0.3), times=None)
    fleet(organizations=add_organizations(simulator, 9), concurrency=3).expect()

    assert simulator.journal.max_in_flight == 3
    assert len(simulator.requests) == 9


COUNT_REPORTS = """
import weakref
from reducto_provider.export.dataset import UsageDataset
from reducto_provider.hooks import reducto
decode, publish, ids, most = reducto.decode_report, UsageDataset.publish, set(), [0]

def counted(body, query):
    report = decode(body, query)
    ids.add(id(report))
    weakref.finalize(report, ids.discard, id(report))
    most[0] = max(most[0], len(ids))
    print(f"REPORTS ALIVE {most[0]}\\n", end="")  # at once: lines are logged in another thread
    return report

def failing(self, report, *arguments):
    if report.org_id.endswith("7"):
        raise OSError("no space left")
    return publish(self, report, *arguments)

reducto.decode_report = counted
UsageDataset.publish = failing
"""


def test_memory_holds_no_more_reports_than_requests(fleet, simulator):
    result = fleet(before=COUNT_REPORTS, organizations=add_organizations(simulator, 40), concurrency=4).expect("failed")

    assert result.xcom("export")["failed"] == 4
    counts = [int(count) for count in re.findall(r"REPORTS ALIVE (\d+)", result.log)]
    assert len(counts) == 40
    assert 1 <= max(counts) <= 2 * 4  # of 40; one that is done may live for a moment in the frames of its request


def test_two_hundred_organizations(fleet, simulator, tmp_path):
    ids = add_organizations(simulator, 200)
    result = fleet(organizations=ids, usage_end_date="2026-05-01", concurrency=16).expect()

    xcom = result.xcom("export")
    assert (xcom["exported"], xcom["failed"]) == (200, 0)
    assert len(json.dumps(xcom, separators=(",", ":"))) <= 48 * 1024
    assert len(xcom["organizations"]) + xcom["organizations_left_out"] == 200
    assert [each["org_id"] for each in xcom["organizations"]] == ids[: len(xcom["organizations"])]
    assert len(list(tmp_path.glob("data/*/*/dt=2026-05-01/usage.jsonl"))) == 200
    assert "200 of 200: org_" in result.log


@pytest.mark.parametrize(
    "arguments",
    [
        {"organizations": "{{ params.organizations | tojson }}", "group_by": "{{ params.by | tojson }}"},
        {"organizations": "{{ params.organizations }}", "group_by": "{{ params.by }}", "native": True},
        {
            "organizations": Code("listed()"),
            "group_by": ["{{ params.by[0] }}", "api_key"],
            "tasks": "@task\n    def listed(params):\n        return params['organizations']\n",
        },
    ],
    ids=["JSON", "native", "XComArg"],
)
def test_organizations_by_template(fleet, simulator, arguments):
    simulator.keys["sim-key-globex"] = ("org_globex",)
    own = {"conn_type": "reducto", "host": simulator.url, "password": "sim-key-globex"}
    organizations = ["org_acme", {"org_id": "org_globex", "reducto_conn_id": "reducto_own"}]
    result = fleet(
        params={"organizations": organizations, "by": ["product", "api_key"]},
        run={"env": {"AIRFLOW_CONN_REDUCTO_OWN": json.dumps(own)}},
        **arguments,
    ).expect()

    assert [
        (entry["org_id"], entry["group_by"], entry["reducto_conn_id"])
        for entry in result.xcom("export")["organizations"]
    ] == [
        ("org_acme", "product", "reducto_default"),
        ("org_acme", "api_key", "reducto_default"),
        ("org_globex", "product", "reducto_own"),
        ("org_globex", "api_key", "reducto_own"),
    ]
    keys = {(dict(r.query)["orgId"], r.headers["Authorization"]) for r in simulator.requests}
    assert keys == {("org_acme", "Bearer sim-key-all"), ("org_globex", "Bearer sim-key-globex")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"organizations": ["org_a", "org_b", "org_a"]}, ["duplicates", "org_a by product"]),
        (
            {"organizations": ["org_a", {"org_id": "org_a", "reducto_conn_id": "other"}]},
            ["duplicates", "org_a by product"],
        ),
        ({"group_by": ["product", "feature", "product"]}, ["duplicates", "org_acme by product"]),
        ({"organizations": []}, ["organizations", "empty"]),
        ({"organizations": "org_a"}, ["organizations", "org_a", "tojson"]),
        ({"organizations": [{"id": "org_a"}]}, ["organizations", "org_id", "'id'"]),
        ({"organizations": ["org_a", ""]}, ["organizations", "an element of it is empty"]),
        ({"group_by": ["product", "pages"]}, ["group_by", "pages", "api_key"]),
        ({"group_by": ["product", "feature"], "output_format": "focus_csv", "price_per_credit": "1"}, ["group_by"]),
        ({"concurrency": 0}, ["concurrency", "1 to 64"]),
        ({"concurrency": 65}, ["concurrency", "1 to 64"]),
        ({"days_per_request": 0}, ["days_per_request"]),
        ({"org_id": "org_a"}, ["org_id", "organizations"]),
        ({"output_path": "usage"}, ["output_path", "absolute"]),
    ],
)
def test_bad_literals_are_errors_of_the_dag_file(fleet, simulator, arguments, words):
    with pytest.raises(DagTestError) as error:
        fleet(**arguments)

    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"organizations": "{{ ['org_a'] }}"}, ["organizations", "tojson"]),
        ({"organizations": "{{ [] | tojson }}"}, ["organizations", "empty"]),
        ({"organizations": ["org_a", "{{ 'org_a' }}"]}, ["duplicates", "org_a by product"]),
        ({"group_by": "{{ 'pages' }}"}, ["group_by", "pages"]),
    ],
)
def test_bad_rendered_input_fails_at_once_without_a_request(fleet, simulator, arguments, words):
    result = fleet(retries=2, **arguments).expect("failed")

    [error] = result.errors
    assert error.type == "ReductoConfigurationError"
    for word in words:
        assert word in error.message
    assert not simulator.requests


def test_another_format_is_refused_before_any_request(fleet, simulator):
    fleet().expect()
    simulator.clear()
    result = fleet(output_format="csv").expect("failed")

    assert "another output_path" in result.errors[0].message
    assert not simulator.requests


TELL_A_SECRET = """
from tests.airflow_sdk import mask_secret
from reducto_provider.export.dataset import UsageDataset

def fails(*args, **kwargs):
    mask_secret("swordfish-canary")
    raise OSError("https://store.example/?sig=swordfish-canary: Forbidden")

UsageDataset.publish = fails
"""


def test_what_airflow_masks_is_masked_in_the_result(fleet):
    result = fleet(before=TELL_A_SECRET).expect("failed")

    assert result.xcom("export")["organizations"][0]["error"].endswith("?sig=***: Forbidden")
    assert "canary" not in result.errors[0].message


TERMINATE_WHEN_PUBLISHED = """
import os, signal
from reducto_provider.export.dataset import UsageDataset
publish, terminated = UsageDataset.publish, []

def terminates(self, report, *args, **kwargs):
    files = publish(self, report, *args, **kwargs)
    if report.org_id == "org_acme" and not terminated:
        terminated.append(True)
        os.kill(os.getpid(), signal.SIGTERM)
    return files

UsageDataset.publish = terminates
"""


@new_in(3, 0, "DAG.test that outlives a task that is stopped")
@pytest.mark.parametrize(
    ("arguments", "error_type"),
    [
        ({"before": TERMINATE_WHEN_PUBLISHED}, "ReductoExportError"),
        ({"execution_timeout": Code("timedelta(seconds=5)")}, "AirflowTaskTimeout"),
    ],
    ids=["SIGTERM", "execution_timeout"],
)
def test_stopped_it_goes_on_with_the_next_try(fleet, simulator, tmp_path, arguments, error_type):
    simulator.faults.add(Stall(60), times=1, org="org_globex")
    result = fleet(organizations=["org_acme", "org_globex"], retries=1, run={"timeout": 50}, **arguments).expect()

    [error] = result.errors
    assert (error.type, error.state) == (error_type, "up_for_retry")
    assert asked_of(simulator) == {"org_acme": 2, "org_globex": 2}
    assert of(result.xcom("export"), org_id="org_acme")["changed_day_count"] == 31
    assert len(days_of(tmp_path)) == 31


def test_the_event_of_an_asset_carries_the_result(fleet, tmp_path):
    result = fleet(outlets=Code("[Asset('s3://lake/reducto')]")).expect()

    [event] = result.asset_events
    assert event["extra"] == {**result.xcom("export"), "uri": f"file://{Path(tmp_path)}"}


@DELTA
class TestDelta:
    def rows(self, folder):
        return Counter((row["org_id"], row["group_by"]) for row in pyarrow.table(DeltaTable(folder).scan()).to_pylist())

    def test_organizations_and_dimensions_in_one_table(self, fleet, simulator, tmp_path):
        arguments = {"output_format": "delta", "group_by": ["product", "api_key"], "days_per_request": 10}
        result = fleet(**arguments).expect().xcom("export")

        assert (result["exported"], result["failed"]) == (6, 0)
        listed = {(each["org_id"], each["group_by"]): each["row_count"] for each in result["organizations"]}
        assert self.rows(tmp_path) == listed
        truth = {org_id: len(simulator.truth(org_id, date(2026, 5, 1), date(2026, 5, 31))) for org_id in SMALL}
        assert {org_id: listed[org_id, "product"] for org_id in SMALL} == truth
        commits = DeltaTable(tmp_path).version()
        assert commits < 24, "parts that were ready at the same time share a commit"

        again = fleet(**arguments).expect().xcom("export")
        assert DeltaTable(tmp_path).version() == commits
        assert {each["changed_day_count"] for each in again["organizations"]} == {0}

    def test_a_retry_requests_again_and_commits_only_what_failed(self, fleet, simulator, tmp_path):
        simulator.faults.add(status(500), times=2, org="org_globex")
        run = {"connection": {"extra": {"max_attempts": 2}}}
        result = fleet(output_format="delta", retries=1, group_by=["product"], run=run).expect()

        assert asked_of(simulator) == {"org_acme": 2, "org_globex": 3, "org_initech": 2}
        replaced = [
            export["org_id"]
            for commit in DeltaTable(tmp_path).history()
            for export in json.loads(commit.get("userMetadata", '{"exports": []}'))["exports"]
        ]
        assert sorted(replaced) == ["org_acme", "org_globex", "org_initech"]
        listed = {each["org_id"]: each for each in result.xcom("export")["organizations"]}
        assert {each["status"] for each in listed.values()} == {"exported"}
        assert {each["changed_day_count"] for each in listed.values()} == {31}
        assert self.rows(tmp_path) == {(org_id, "product"): each["row_count"] for org_id, each in listed.items()}

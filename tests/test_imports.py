"""What it costs, and touches, to import the package and to parse a DAG file: next to nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.airflows import AIRFLOW, DELTA

PROJECT = Path(__file__).parents[1]
SOURCES = sorted([*PROJECT.glob("reducto_provider/**/*.py"), *PROJECT.glob("dags/*.py")])
MODULES = [
    ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCES
    if path.is_relative_to(PROJECT / "reducto_provider") and (AIRFLOW >= (3, 1) or path.name != "app.py")
]
"""All modules, but for that of the usage page's app on an Airflow that has no place for it."""

REFUSING_BACKEND = """
from airflow.secrets import BaseSecretsBackend

class Refused(BaseException):  # which Airflow catches nowhere
    pass

class Refusing(BaseSecretsBackend):
    def get_conn_value(self, *args, **kwargs):
        raise Refused(f"called the secrets backend with {args} {kwargs}")

    get_connection = get_variable = get_config = get_conn_value
"""

REFUSE = """
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "sqlite3.connect"):
        raise Refused(f"reached out: {event} {args}")

def refuse(*args, **kwargs):
    raise Refused(f"opened a session: {args} {kwargs}")

import airflow
from refusing_backend import Refused
from airflow import settings

sys.addaudithook(hook)
settings.Session = refuse
"""

WATCH_WARNINGS = """
import warnings

warned = []

def note(warning):
    warned.append([warning.category.__name__, warning.filename, str(warning.message)])

warnings.simplefilter("always")
warnings._showwarnmsg = note  # Airflow replaces warnings.showwarning when it is imported
"""

PARSE = """
def parse(folder):
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # before Airflow 3.2
        from airflow.models.dagbag import DagBag
    sys.path.insert(0, folder)
    bag = DagBag(dag_folder=folder)
    assert not bag.import_errors, bag.import_errors
    return bag.dags
"""


IN_FORKS = """
import json, os, sys, traceback

def outcome_of(code):
    try:
        exec(code, globals())
        return {"result": globals().get("result")}
    except BaseException:
        return {"error": traceback.format_exc()}

def in_a_fork(code):
    reader, writer = os.pipe()
    if not os.fork():
        with os.fdopen(writer, "w") as stream:
            stream.write(json.dumps(outcome_of(code)))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        return json.load(stream)
"""
"""Starting Airflow takes seconds and a fork none: what several tests run begins alike, in forks of one process."""


@pytest.fixture(scope="module")
def in_forks(tmp_path_factory):
    """
    Run pieces of code, each in its own fork of a new process that has run ``first``: by name what each left in
    ``result``, or its traceback.

    The process has a home of its own, whose secrets backend refuses every call.
    """

    def start(first: str, pieces: dict[str, str]) -> dict[str, Outcome]:
        home = tmp_path_factory.mktemp("home")
        (home / "refusing_backend.py").write_text(REFUSING_BACKEND)
        env = {
            **os.environ,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__SECRETS__BACKEND": "refusing_backend.Refusing",
            "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
            "PYTHONPATH": os.pathsep.join([str(home), str(PROJECT)]),
        }
        last = "print('\\n' + json.dumps({name: in_a_fork(code) for name, code in json.loads(sys.argv[1]).items()}))"
        command = [sys.executable, "-c", f"{IN_FORKS}{first}\n{last}", json.dumps(pieces)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return {name: Outcome(**outcome) for name, outcome in json.loads(done.stdout.splitlines()[-1]).items()}

    return start


class Outcome(NamedTuple):
    """What a piece of code left, or raised."""

    result: Any = None
    error: str | None = None

    def get(self) -> Any:
        assert self.error is None, self.error
        return self.result


ATTEMPTS = {
    "a socket": ("import socket; socket.create_connection(('127.0.0.1', 9))", "reached out: socket."),
    "a database": ("import sqlite3; sqlite3.connect(':memory:')", "reached out: sqlite3.connect"),
    "a session": (
        "from airflow.utils.session import create_session\nwith create_session(): pass",
        "opened a session",
    ),
    "a connection": (
        "from reducto_provider.airflow_compat import BaseHook; BaseHook.get_connection('x')",
        "called the secrets",
    ),
    "a variable": ("from airflow.models.variable import Variable; Variable.get('x')", "called the secrets"),
}
IMPORT_ALL = f"import importlib\nresult = [importlib.import_module(module).__name__ for module in {MODULES!r}]"
PARSE_ALL = f"""
{PARSE}
dags = parse({str(PROJECT / "dags")!r})
result = {{dag_id: dag.doc_md.strip().startswith("# ") for dag_id, dag in dags.items()}}
"""


@pytest.fixture(scope="module")
def refused(in_forks):
    """The outcome of each attempt, of importing everything and of parsing the example DAGs where all is refused."""
    attempts = {name: code for name, (code, _) in ATTEMPTS.items()}
    return in_forks(REFUSE, {**attempts, "importing": IMPORT_ALL, "parsing": PARSE_ALL})


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_what_is_refused_here_fails_loudly(refused, attempt):
    assert f"Refused: {ATTEMPTS[attempt][1]}" in (refused[attempt].error or "")


def test_importing_any_module_touches_nothing(refused):
    assert refused["importing"].get() == MODULES


def test_parsing_the_example_dags_touches_nothing(refused):
    assert refused["parsing"].get() == {
        "reducto_usage_all_organizations": True,
        "reducto_usage_backfill": True,
        "reducto_usage_budget_gate": True,
        # Airflow 2 has no watchers
        **({f"reducto_usage_budget_{name}": True for name in ("keys", "levels")} if AIRFLOW >= (3,) else {}),
        "reducto_usage_budget_mail": True,
        "reducto_usage_fleet": True,
        "reducto_usage_org_acme": True,
        "reducto_usage_org_globex": True,
        "reducto_usage_org_initech": True,
        "reducto_usage_reconciliation": True,
        "reducto_usage_yesterday": True,
    }


def test_nothing_deprecated_is_used(in_forks):
    code = f"{IMPORT_ALL}\n{PARSE_ALL}\nresult = warned"
    warned = in_forks(WATCH_WARNINGS, {"all": code})["all"].get()
    ours = [PROJECT / folder for folder in ("reducto_provider", "dags")]
    assert [warning for warning in warned if any(map(Path(warning[1]).is_relative_to, ours))] == []


AIRFLOW_MODULES = {
    "airflow.providers.common.compat.openlineage.facet",
    "airflow.providers.http.hooks.http",
    "airflow.triggers.base",
}
"""What every supported Airflow has by these names, none of them deprecated."""

OF_OTHERS = {
    # What only some versions have, or keep for themselves; imported where that version runs.
    "airflow_compat": {
        *("airflow", "airflow.models.taskinstance", "airflow.plugins_manager", "airflow.providers.common.compat.sdk"),
        *("airflow.sdk.exceptions", "airflow.sdk.execution_time", "airflow.sdk.execution_time.comms"),
    },
    "app.py": {"airflow.api_fastapi.auth.managers.models.resource_details", "airflow.api_fastapi.core_api.security"},
    "lineage.py": {"airflow.providers.openlineage.extractors"},
    "location.py": {"airflow.providers.amazon.aws.hooks.s3"},
    "base.py": {"airflow.providers.openlineage.extractors"},
    "reducto_usage_budget_gate.py": {"airflow.providers.standard.operators.hitl"},
    "reducto_usage_budget_mail.py": {"airflow.providers.smtp.notifications.smtp"},
}
"""What a file or folder needs of another provider, or of newer Airflows alone."""

OF_DAG_AUTHORS = {"airflow", "airflow.decorators", "airflow.models.param", "airflow.sdk"}
"""What an example DAG imports, from the SDK, or from the modules of Airflow 2 where there is none."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_airflows_names_come_from_where_every_airflow_has_them(path):
    tree = ast.walk(ast.parse(path.read_text()))
    imports = [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in imports if isinstance(node, ast.Import) for name in node.names}
    airflow = {module for module in modules if module.split(".")[0] == "airflow"}
    of_others = OF_OTHERS.get(path.name, OF_OTHERS.get(path.parent.name, set()))
    of_authors = OF_DAG_AUTHORS if path.parent.name == "dags" else set()
    assert airflow <= AIRFLOW_MODULES | of_others | of_authors


HEAVY = {
    *("aiohttp", "requests", "urllib3", "tenacity", "fsspec", "upath", "boto3", "botocore", "pyarrow", "pandas"),
    *("deltalake", "numpy", "duckdb", "airflow.providers.http.hooks", "airflow.io", "airflow.sdk.io"),
}
FOR_DAG_FILES = (
    *("operators.export", "operators.fleet", "operators.reconciliation", "operators.upkeep", "sensors.threshold"),
    *("triggers.threshold", "triggers.levels", "links.studio", "provider_info", "plugins.usage_page.plugin"),
)
DAGS = [path.stem for path in SOURCES if path.name.startswith("reducto_usage_")]


@pytest.fixture(scope="module")
def loaded(in_forks):
    """The modules that are loaded by what a DAG file imports of this package, and by each example DAG."""
    first = "from tests.airflow_sdk import DAG, BaseOperator, BaseSensorOperator, Param, task"
    code = "before = set(sys.modules)\n{}\nresult = sorted(set(sys.modules) - before)"
    package = "\n".join(f"import reducto_provider.{module}" for module in FOR_DAG_FILES)
    dags = {dag: code.format(f"sys.path.insert(0, {str(PROJECT / 'dags')!r})\nimport {dag}") for dag in DAGS}
    return in_forks(first, {"the package": code.format(package), **dags})


def test_what_a_dag_file_imports_loads_nothing_heavy(loaded):
    modules = loaded["the package"].get()
    assert "reducto_provider.sensors.threshold" in modules
    assert HEAVY & set(modules) == set()


@pytest.mark.parametrize("dag", DAGS)
def test_an_example_dag_loads_nothing_heavy(loaded, dag):
    modules = loaded[dag].get()
    assert any(module.startswith("reducto_provider.") for module in modules)
    assert HEAVY & set(modules) == set()


DOMAIN = [module for module in MODULES if module.startswith("reducto_provider.usage")]
LOADED = "result = sorted({name.split('.')[0] for name in sys.modules})"


@pytest.fixture(scope="module")
def loaded_alone(in_forks):
    """The packages that are loaded by each module of the domain, and by what Airflow reads of every provider."""
    info = "from reducto_provider.provider_info import get_provider_info\nget_provider_info()"
    pieces = {module: f"import {module}" for module in DOMAIN} | {"provider_info": info}
    return in_forks("", {name: f"{code}\n{LOADED}" for name, code in pieces.items()})


@pytest.mark.parametrize("module", DOMAIN)
def test_the_domain_imports_neither_airflow_nor_http(loaded_alone, module):
    packages = loaded_alone[module].get()
    assert "reducto_provider" in packages
    assert {"airflow", "requests", "aiohttp", "http"} & set(packages) == set()


def test_the_provider_info_costs_no_import(loaded_alone):
    packages = loaded_alone["provider_info"].get()
    assert "reducto_provider" in packages
    assert {"airflow", "msgspec", "pendulum"} & set(packages) == set()


WATCH_STRUCTS = f"""
import threading

{IMPORT_ALL}
looked_at = []

def note(frame, event, argument):
    if event == "call" and frame.f_code.co_name == "get_class_annotations":  # msgspec's, once for each type
        looked_at.append(frame.f_locals["obj"].__name__)

threading.setprofile(note)
sys.setprofile(note)
"""
DECODE_LATE = """
import msgspec

class Late(msgspec.Struct):
    name: str

msgspec.json.decode(b'{"name": "x"}', type=Late)
result = looked_at
"""
EXPORT_AND_READ = """
import tempfile
from datetime import UTC, date, datetime
from decimal import Decimal
from reducto_provider.export.formats import FORMATS
from reducto_provider.export.reader import read_usage
from reducto_provider.export.sink import open_sink
from reducto_provider.export.storage import open_storage
from reducto_provider.export.verify import verify_dataset
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.threshold import Reading, UsageThreshold
from reducto_provider.usage.wire import decode_report

query = UsageQuery(start=date(2026, 6, 1), end=date(2026, 6, 2), org_id="org_a")
row = b'{{"date": "2026-06-0%d", "group": "parse", "credits": 1.5, "requestCount": 1}}'
body = b'{{"orgId": "org_a", "startDate": "2026-06-01", "endDate": "2026-06-02", "groupBy": "product", "data": [%b]}}'
report = decode_report(body % b",".join(row % day for day in (1, 2)), query)
threshold = UsageThreshold(query=query, metric="credits", threshold=Decimal(2))
read = threshold.read(report, datetime(2026, 6, 3, tzinfo=UTC))
assert Reading.from_json(read.as_json()) == read
with tempfile.TemporaryDirectory() as folder:
    for partitioned in {partitioned}:
        for time in range(3):
            path = folder if partitioned else folder + "/usage.json"
            sink = open_sink(path, None, FORMATS[{format!r}], query.filters(), partitioned=partitioned)
            sink.check(query, "run")
            changes = {{file.day: file.change for file in sink.publish(report, query, "run")}}
            sink.acknowledge({{("org_a", "product"): changes.items()}})
        if partitioned:
            assert read_usage(folder, org_id="org_a", start=query.start, end=query.end) == list(report.rows)
            verify_dataset(open_storage(folder))
result = looked_at
"""


@pytest.fixture(scope="module")
def structs(in_forks):
    """The types that msgspec looks at after all modules have been imported."""
    files = EXPORT_AND_READ.format(format="json", partitioned=(True, False))
    table = EXPORT_AND_READ.format(format="delta", partitioned=(True,))
    return in_forks(WATCH_STRUCTS, {"late": DECODE_LATE, "files": files, "table": table})


@pytest.mark.parametrize("output", ["files", pytest.param("table", marks=DELTA)])
def test_types_of_json_are_known_once_imported(structs, output):
    """If two threads are the first to decode a type, msgspec 0.22.0 uses what is unfinished, and the process dies."""
    assert structs["late"].get() == ["Late"]
    assert structs[output].get() == []

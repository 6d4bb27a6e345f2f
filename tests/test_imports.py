"""What it costs, and touches, to import the package and to parse a DAG file: next to nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.airflows import AIRFLOW

PROJECT = Path(__file__).parents[1]
SOURCES = sorted([*PROJECT.glob("reducto_provider/**/*.py"), *PROJECT.glob("dags/*.py")])
MODULES = [
    ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCES
    if path.is_relative_to(PROJECT / "reducto_provider")
]

REFUSING_BACKEND = """
from airflow.secrets import BaseSecretsBackend

class Refused(BaseException):  # which Airflow catches nowhere
    pass

class Refusing(BaseSecretsBackend):
    def get_conn_value(self, *args, **kwargs):
        raise Refused(f"asked the secrets backend for {args} {kwargs}")

    get_connection = get_variable = get_config = get_conn_value
"""

REFUSE = """
import sys

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
import json, warnings

warned = []

def note(message, category, filename, lineno, *_):
    warned.append([category.__name__, filename, str(message)])

warnings.simplefilter("always")
warnings.showwarning = note
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


@pytest.fixture
def run(tmp_path):
    """Run code in a new process, in a home of its own whose secrets backend refuses to be asked."""
    (tmp_path / "refusing_backend.py").write_text(REFUSING_BACKEND)

    def start(code: str, *arguments: str) -> list[str]:
        env = {
            **os.environ,
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__SECRETS__BACKEND": "refusing_backend.Refusing",
            "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PROJECT)]),
        }
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return start


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "reached out: socket."),
        ("import sqlite3; sqlite3.connect(':memory:')", "reached out: sqlite3.connect"),
        ("from airflow.utils.session import create_session\nwith create_session(): pass", "opened a session"),
        ("from reducto_provider.airflow_compat import BaseHook; BaseHook.get_connection('x')", "asked the secrets"),
        ("from airflow.models.variable import Variable; Variable.get('x')", "asked the secrets"),
    ],
)
def test_what_is_refused_here_fails_loudly(run, attempt, refusal):
    with pytest.raises(AssertionError, match=f"Refused: {refusal}"):
        run(REFUSE + attempt)


def test_importing_any_module_touches_nothing(run):
    code = "import importlib, json\nprint(json.dumps([importlib.import_module(m).__name__ for m in sys.argv[1:]]))"
    assert run(REFUSE + code, *MODULES) == MODULES


def test_parsing_the_example_dags_touches_nothing(run):
    code = (
        "import json\ndags = parse(sys.argv[1])\n"
        "print(json.dumps({dag_id: dag.doc_md.strip().startswith('# ') for dag_id, dag in dags.items()}))"
    )
    assert run(REFUSE + PARSE + code, str(PROJECT / "dags")) == {
        "reducto_usage_all_organizations": True,
        "reducto_usage_backfill": True,
        **({"reducto_usage_budget_levels": True} if AIRFLOW >= (3,) else {}),  # Airflow 2 has no watchers
        "reducto_usage_budget_mail": True,
        "reducto_usage_fleet": True,
        "reducto_usage_org_acme": True,
        "reducto_usage_org_globex": True,
        "reducto_usage_org_initech": True,
        "reducto_usage_reconciliation": True,
        "reducto_usage_yesterday": True,
    }


def test_nothing_deprecated_is_used(run):
    code = (
        "import importlib, sys\nfor module in sys.argv[2:]: importlib.import_module(module)\n"
        "parse(sys.argv[1])\nprint('\\n' + json.dumps(warned))"
    )
    warned = run(WATCH_WARNINGS + PARSE + code, str(PROJECT / "dags"), *MODULES)
    assert [warning for warning in warned if Path(warning[1]).is_relative_to(PROJECT) and ".py" in warning[1]] == []


AIRFLOW_MODULES = {
    "airflow.providers.common.compat.openlineage.facet",
    "airflow.providers.http.hooks.http",
    "airflow.triggers.base",
}
"""What every supported Airflow has by these names, none of them deprecated."""

OF_OTHERS = {
    # What only some versions have, or keep for themselves; imported where that version runs.
    "airflow_compat.py": {
        *("airflow", "airflow.models.taskinstance", "airflow.providers.common.compat.sdk"),
        *("airflow.sdk.execution_time", "airflow.sdk.execution_time.comms"),
    },
    "lineage.py": {"airflow.providers.openlineage.extractors"},
    "base.py": {"airflow.providers.openlineage.extractors"},
    "reducto_usage_budget_mail.py": {"airflow.providers.smtp.notifications.smtp"},
}
"""What a file needs of another provider, or of newer Airflows alone."""

OF_DAG_AUTHORS = {"airflow", "airflow.decorators", "airflow.models.param", "airflow.sdk"}
"""What an example DAG imports, from the SDK, or from the modules of Airflow 2 where there is none."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_airflows_names_come_from_where_every_airflow_has_them(path):
    tree = ast.walk(ast.parse(path.read_text()))
    imports = [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in imports if isinstance(node, ast.Import) for name in node.names}
    airflow = {module for module in modules if module.split(".")[0] == "airflow"}
    of_authors = OF_DAG_AUTHORS if path.parent.name == "dags" else set()
    assert airflow <= AIRFLOW_MODULES | OF_OTHERS.get(path.name, set()) | of_authors


HEAVY = {
    *("aiohttp", "requests", "urllib3", "tenacity", "fsspec", "upath", "boto3", "botocore", "pyarrow", "pandas"),
    *("numpy", "duckdb", "airflow.providers.http.hooks", "airflow.io", "airflow.sdk.io"),
}
HEAVY_CODE = """
import json, sys
from tests.airflow_sdk import DAG, BaseOperator, BaseSensorOperator, Param, task
before = set(sys.modules)
{}
print("\\n" + json.dumps(sorted(set(sys.modules) - before)))
"""


def test_what_a_dag_file_imports_loads_nothing_heavy(run):
    modules = (
        *("operators.export", "operators.fleet", "operators.reconciliation", "sensors.threshold", "triggers.threshold"),
        *("triggers.levels", "links.studio", "provider_info"),
    )
    loaded = run(HEAVY_CODE.format("\n".join(f"import reducto_provider.{module}" for module in modules)))
    assert "reducto_provider.sensors.threshold" in loaded
    assert HEAVY & set(loaded) == set()


@pytest.mark.parametrize("dag", [path.name for path in SOURCES if path.name.startswith("reducto_usage_")])
def test_an_example_dag_loads_nothing_heavy(run, dag):
    code = f"sys.path.insert(0, {str(PROJECT / 'dags')!r})\nimport {dag.removesuffix('.py')}"
    loaded = run(HEAVY_CODE.format(code))
    assert any(module.startswith("reducto_provider.") for module in loaded)
    assert HEAVY & set(loaded) == set()

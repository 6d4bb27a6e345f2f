"""The package as others get it: wheel and source, what Airflow discovers, what importing it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import reducto_provider
from tests.airflows import AIRFLOW
from tests.real_airflow.environment import airflow_environment, copy_database, migrated_database

PROJECT = Path(__file__).parents[1]


def build(kind: str, folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(folder), str(PROJECT)],
        check=True,
        capture_output=True,
    )
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source distribution, unpacked elsewhere."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(build("sdist", tmp_path_factory.mktemp("sdist"))) as archive:
        archive.extractall(folder, filter="data")
    [root] = folder.iterdir()
    return root


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    modules = {str(path.relative_to(PROJECT)) for path in (PROJECT / "reducto_provider").rglob("*.py")}
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == modules | {"reducto_provider/py.typed"}


def test_the_wheels_metadata(wheel):
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = message_from_bytes(wheel.read(name))
    assert metadata["Name"] == "airflow-provider-reducto"
    assert metadata["Version"] == reducto_provider.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"s3", "gcs", "azure", "openlineage"} <= set(metadata.get_all("Provides-Extra"))
    for license_file in ("LICENSE", "NOTICE"):
        assert name.replace("METADATA", f"licenses/{license_file}") in wheel.namelist()
    entry_points = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "[apache_airflow_provider]" in entry_points
    assert "reducto_provider.provider_info:get_provider_info" in entry_points


def test_the_wheel_can_be_installed_and_imported(wheel, tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--target", str(tmp_path), wheel.filename], check=True)
    names = ", ".join(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in wheel.namelist()
        if name.endswith(".py")
    )
    output = in_a_new_process(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {names}; print(reducto_provider)"
    )
    assert str(tmp_path) in output


def test_the_source_is_whole(source):
    folders = (
        *(".ci", "benchmarks", "dags", "demo", "deployment", "docs", "reducto_provider", "requirements", "simulator"),
        "tests",
    )
    files = {
        path.relative_to(PROJECT)
        for folder in folders
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    unpacked = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert files <= unpacked
    assert {str(path) for path in unpacked - files} == {
        *(
            ".airflow-registry.yaml",
            ".env.example",
            ".gitignore",
            "CHANGELOG.md",
            "LICENSE",
            "Makefile",
            "NOTICE",
            "PKG-INFO",
            "README.md",
        ),
        *("docker-compose.yaml", "noxfile.py", "pyproject.toml"),
    }


def test_the_source_passes_its_own_tests(source):
    tests = "tests/usage tests/export/test_formats.py tests/simulator/test_simulator_usage.py tests/test_docs.py"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "AIRFLOW", "MAKE"))}
    # Without those that try thousands of examples: what they need is there, if the others find it.
    arguments = f"-n 0 -p no:cacheprovider -k 'not fuzz' {tests}"
    # In the environment of this suite, since making another takes minutes.
    done = subprocess.run(
        ["make", "test", "READY=", f"BIN={Path(sys.executable).parent}", f"ARGS={arguments}"],
        cwd=source,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert f"rootdir: {source}" in done.stdout


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """Run an ``airflow`` command in a home of its own."""
    home = tmp_path_factory.mktemp("home")
    copy_database(migrated_database(), home / "airflow.db")
    env = airflow_environment(home)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def json_of(output: str) -> list[dict[str, str]]:
    start = output.index("[{") if "[{" in output else output.index("[]")
    return json.loads(output[start : output.rindex("]") + 1])


COMMANDS = """
import contextlib, io, json, logging, sys, warnings
from airflow.cli import cli_parser

said = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger().addHandler(handler)
logging.getLogger("airflow.providers_manager").addHandler(handler)
warnings.showwarning = lambda message, *_: said.append(str(message))

parser, outputs = cli_parser.get_parser(), {}
for command in sys.argv[1:]:
    arguments = parser.parse_args(["providers", *command.split(), "-o", "json"])
    with contextlib.redirect_stdout(io.StringIO()) as output:
        arguments.func(arguments)
    outputs[command] = output.getvalue()
print("\\n" + json.dumps([outputs, said]))
"""


@pytest.fixture(scope="module")
def providers(tmp_path_factory):
    """What `airflow providers` says about this provider, and what was said to the log."""
    commands = ["list", "get airflow-provider-reducto --full", "hooks", "links", "triggers", "behaviours"]
    env = airflow_environment(tmp_path_factory.mktemp("home"))
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *commands], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    outputs, said = json.loads(done.stdout.splitlines()[-1])
    return {command.split()[0]: json_of(output) for command, output in outputs.items()}, said


def test_airflow_lists_the_provider(providers):
    listed, _ = providers
    [provider] = [provider for provider in listed["list"] if "reducto" in provider["package_name"]]
    assert provider["version"] == reducto_provider.__version__
    [provider] = listed["get"]
    assert provider["name"] == "Reducto"
    assert provider["package-name"] == "airflow-provider-reducto"


def test_airflow_lists_what_the_provider_has(providers):
    listed, _ = providers
    [hook] = [hook for hook in listed["hooks"] if hook["connection_type"] == "reducto"]
    assert (hook["class"], hook["hook_name"]) == ("reducto_provider.hooks.reducto.ReductoHook", "Reducto")
    assert {"extra_link_class_name": "reducto_provider.links.studio.ReductoStudioLink"} in listed["links"]
    triggers = str([trigger for trigger in listed["triggers"] if "reducto" in str(trigger)])
    assert "reducto_provider.triggers.threshold" in triggers
    assert "reducto_provider.triggers.levels" in triggers
    # Airflow 3.1 lists none of any provider where the FAB provider is not installed.
    assert {"field_behaviours": "reducto"} in listed["behaviours"] or (AIRFLOW == (3, 1) and not listed["behaviours"])


def test_airflow_has_nothing_to_say_against_it(providers):
    _, said = providers
    assert [message for message in said if "reducto" in message.lower()] == []


def test_a_connection_is_added_from_the_command_line(airflow):
    extra = '{"org_id": "org_acme", "timeout": 30}'
    added = ("connections", "add", "reducto_cli", "--conn-type", "reducto", "--conn-password", "cli-key-0815")
    airflow(*added, "--conn-extra", extra)

    [connection] = json_of(airflow("connections", "get", "reducto_cli", "-o", "json"))
    assert connection["conn_type"] == "reducto"
    assert "org_acme" in str(connection["extra_dejson"])


def in_a_new_process(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:reducto_provider", "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_provider_info_is_valid_and_costs_no_import():
    output = in_a_new_process(
        "import sys; from reducto_provider.provider_info import get_provider_info as g; g();"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('airflow', 'msgspec', 'pendulum')))"
    )
    assert output.strip() == ""

    in_a_new_process(
        "import json, importlib.resources as r, jsonschema, airflow;"
        "from reducto_provider.provider_info import get_provider_info;"
        "schema = json.loads((r.files('airflow') / 'provider_info.schema.json').read_text());"
        "jsonschema.validate(get_provider_info(), schema)"
    )


def test_what_provider_info_names_exists():
    from reducto_provider.provider_info import get_provider_info

    info = get_provider_info()
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                import_module(module)
    paths = [each["hook-class-name"] for each in info["connection-types"]] + info["extra-links"]
    for path in paths:
        module, _, name = path.rpartition(".")
        assert hasattr(import_module(module), name)


def test_the_registry_s_file_says_the_same():
    from reducto_provider.provider_info import get_provider_info

    info, registry = get_provider_info(), yaml.safe_load((PROJECT / ".airflow-registry.yaml").read_text())
    assert (registry["package-name"], registry["display-name"]) == (info["package-name"], info["name"])
    assert registry["description"] == info["description"]
    for kind in ("hooks", "operators", "sensors", "triggers"):
        modules = [import_module(module) for entry in info[kind] for module in entry["python-modules"]]
        assert {each["module"] for each in registry[kind]} == {
            f"{module.__name__}.{name}"
            for module in modules
            for name, value in vars(module).items()
            if name.startswith("Reducto") and value.__module__ == module.__name__
        }


def test_the_connection_form_has_every_extra_that_the_hook_knows():
    from reducto_provider.hooks import settings
    from reducto_provider.provider_info import get_provider_info

    [connection_type] = get_provider_info()["connection-types"]
    assert connection_type["conn-fields"].keys() == settings.EXTRAS.keys()


@pytest.mark.parametrize(
    "module",
    [
        str(path.relative_to(PROJECT).with_suffix("")).replace("/", ".")
        for path in PROJECT.glob("reducto_provider/usage/*.py")
    ],
)
def test_the_domain_imports_neither_airflow_nor_http(module):
    output = in_a_new_process(
        f"import sys, {module}\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules} & {'airflow', 'requests', 'aiohttp', 'http'}))"
    )
    assert output.strip() == ""

"""What Airflow discovers about the package: hooks, operators, sensors, triggers, links and the connection's form."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.resources import files

import jsonschema
import pytest
import yaml

import reducto_provider
from reducto_provider.provider_info import get_provider_info
from tests.airflows import AIRFLOW
from tests.real_airflow.environment import PROJECT_ROOT, airflow_environment, copy_database, migrated_database


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

parser, outputs = cli_parser.get_parser(), []
for command in json.loads(sys.argv[1]):
    arguments = parser.parse_args(command)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        arguments.func(arguments)
    outputs.append(output.getvalue())
print("\\n" + json.dumps([outputs, said]))
"""


def run_commands(home, *commands: list[str]) -> tuple[list[str], list[str]]:
    """Run ``airflow`` commands, all in one process that starts once: what each prints, and what was logged."""
    copy_database(migrated_database(), home / "airflow.db")
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        env=airflow_environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs, said = json.loads(done.stdout.splitlines()[-1])
    return outputs, said


@pytest.fixture(scope="module")
def providers(tmp_path_factory):
    """What `airflow providers` says about this provider, and what was said to the log."""
    commands = ["list", "get airflow-provider-reducto --full", "hooks", "links", "triggers", "behaviours"]
    full = [["providers", *command.split(), "-o", "json"] for command in commands]
    outputs, said = run_commands(tmp_path_factory.mktemp("home"), *full)
    return {command.split()[0]: json_of(output) for command, output in zip(commands, outputs, strict=True)}, said


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


def test_it_is_valid():
    schema = json.loads((files("airflow") / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_what_provider_info_names_exists():
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
    info, registry = get_provider_info(), yaml.safe_load((PROJECT_ROOT / ".airflow-registry.yaml").read_text())
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

    [connection_type] = get_provider_info()["connection-types"]
    assert connection_type["conn-fields"].keys() == settings.EXTRAS.keys()


def test_a_connection_is_added_from_the_command_line(tmp_path):
    extra = '{"org_id": "org_acme", "timeout": 30}'
    add = ["connections", "add", "reducto_cli", "--conn-type", "reducto", "--conn-password", "cli-key-0815"]
    show = ["connections", "get", "reducto_cli", "-o", "json"]
    (_, shown), _ = run_commands(tmp_path, [*add, "--conn-extra", extra], show)

    [connection] = json_of(shown)
    assert connection["conn_type"] == "reducto"
    assert "org_acme" in str(connection["extra_dejson"])

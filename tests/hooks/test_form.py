"""The form of a connection, as each Airflow shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from reducto_provider.provider_info import get_provider_info
from tests.airflows import AIRFLOW

[CONNECTION_TYPE] = get_provider_info()["connection-types"]
BEHAVIOUR = CONNECTION_TYPE["ui-field-behaviour"]
FIELDS = CONNECTION_TYPE["conn-fields"]

PREPARE = """
import json, logging, sys, warnings
warnings.simplefilter("ignore")
import airflow

said = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger().addHandler(handler)
logging.getLogger("airflow.providers_manager").addHandler(handler)
"""

AIRFLOW_2 = """
from airflow.providers_manager import ProvidersManager

manager = ProvidersManager()
assert manager.hooks["reducto"].hook_name == "Reducto"
behaviour = manager.field_behaviours["reducto"]
fields = {}
for name, info in manager.connection_form_widgets.items():
    if name.startswith("extra__reducto__"):
        [label] = info.field.args
        fields[info.field_name] = [label, info.field.kwargs["description"], info.is_sensitive]
shown = {
    "hidden": sorted(behaviour["hidden_fields"]),
    "labels": behaviour["relabeling"],
    "placeholders": behaviour["placeholders"],
    "fields": fields,
}
"""

AIRFLOW_3 = """
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

[form] = [each for each in HookMetaService.hook_meta_data() if each.connection_type == "reducto"]
assert form.hook_name == "Reducto"
standard = form.standard_fields.model_dump(exclude_none=True)
standard = {name.removeprefix("url_"): each for name, each in standard.items()}

fields = {}
for name, field in form.extra_fields.items():
    schema = field["schema"]
    label, help = schema.get("title"), field.get("description")
    fields[name] = [label, help, schema.get("format") == "password"]
    assert "null" in schema["type"], "an empty field is left alone"
shown = {
    "hidden": sorted(name for name, each in standard.items() if each.get("hidden")),
    "labels": {name: each["title"] for name, each in standard.items() if "title" in each},
    "placeholders": {name: each["placeholder"] for name, each in standard.items() if "placeholder" in each},
    "fields": fields,
}
"""


@pytest.fixture(scope="module")
def form() -> dict[str, Any]:
    """What there is to show, and what was said to the log while it was put together."""
    code = PREPARE + (AIRFLOW_3 if AIRFLOW >= (3,) else AIRFLOW_2) + "print('\\n' + json.dumps([shown, said]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown, said = json.loads(done.stdout.splitlines()[-1])
    return {**shown, "said": said}


def test_airflows_own_fields(form):
    assert form["hidden"] == sorted(BEHAVIOUR["hidden-fields"])
    assert form["labels"] == BEHAVIOUR["relabeling"]
    assert form["placeholders"] == BEHAVIOUR["placeholders"]


def test_the_fields_of_the_extras(form):
    assert form["fields"] == {
        name: [field["label"], field["description"], field["schema"].get("format") == "password"]
        for name, field in FIELDS.items()
    }
    masked = [name for name, (_, _, is_masked) in form["fields"].items() if is_masked]
    assert masked == ["proxy"], "which may hold a password"


def test_nothing_of_it_is_said_to_the_log(form):
    assert [message for message in form["said"] if "reducto" in message.lower()] == []

"""The documentation, as far as it can be compared with the code without building it (`make docs` does that)."""

from __future__ import annotations

import ast
import json
import re
from inspect import getmembers, isclass
from pathlib import Path

import pytest

from reducto_provider import exceptions
from reducto_provider.hooks.reducto import ReductoHook
from tests.airflows import PARTITIONS, for_this_airflow

PROJECT = Path(__file__).parents[1]
TROUBLESHOOTING = (PROJECT / "docs/troubleshooting.md").read_text()
CONNECTION = (PROJECT / "docs/connection.md").read_text()


def errors() -> list[str]:
    return [name for name, each in getmembers(exceptions, isclass) if each.__module__ == exceptions.__name__]


def texts_of_the_package() -> list[str]:
    """Every text in the code, with a NUL where a value is put in."""
    texts = []
    for path in (PROJECT / "reducto_provider").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
    return texts


@pytest.mark.parametrize("name", errors())
def test_every_error_has_an_entry(name):
    assert f"\n## {name}\n" in TROUBLESHOOTING


def is_said(text: str, texts: list[str]) -> bool:
    """
    Whether the code has this text, or the parts of it.

    A colon joins messages that are put into messages; "must be" and "not" join the parts of those of usage/checks.py.
    """
    if any(text in each for each in texts):
        return True
    return any(
        is_said(text[: joint.start()], texts) and is_said(text[joint.end() :], texts)
        for joint in re.finditer("(?:: )|(?:^| )must be |, not$", text)
    )


def test_every_message_is_one_that_the_code_has():
    texts = texts_of_the_package()
    cells = re.findall(r"^\| (`.*?`)(?: with [a-z' ]+)? \| ", TROUBLESHOOTING, re.MULTILINE)
    messages = [message.replace("\\|", "|") for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 50
    parts = [part.strip(" :;.") for message in messages for part in message.split("…")]
    assert not [part for part in parts if not is_said(part, texts)]


PAGES = (
    "README.md",
    pytest.param("docs/days.md", marks=PARTITIONS),
    *(
        f"docs/{name}.md"
        for name in ("cost", "dataset", "delta", "export", "focus", "object-storage", "reference", "sensor")
    ),
)


@pytest.mark.parametrize("page", PAGES)
def test_the_python_that_is_shown_can_be_parsed_by_airflow(page):
    names = {}
    exec("from reducto_provider.operators.export import ReductoUsageExportOperator", names)
    blocks = re.findall(r"^```python\n(.*?)^```", (PROJECT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(for_this_airflow(block), names)


def test_every_field_of_the_connection_is_described():
    from reducto_provider.hooks.settings import EXTRAS

    for name in EXTRAS:
        assert f"\n| extra `{name}` |" in CONNECTION


def connections() -> list[str]:
    return re.findall(r"^export AIRFLOW_CONN_REDUCTO_DEFAULT='(.*?)'$", CONNECTION, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", connections())
def test_the_connections_that_are_shown_can_be_used(monkeypatch, text):
    monkeypatch.setenv("AIRFLOW_CONN_REDUCTO_DEFAULT", text)
    settings = ReductoHook().settings
    assert settings.key == "sk-studio-example"
    assert settings.org_id == "org_acme"


def test_the_connections_in_text_and_as_a_uri_are_the_same(monkeypatch):
    as_json, as_uri, *_ = connections()
    assert json.loads(as_json)["conn_type"] == "reducto"
    found = []
    for text in (as_json, as_uri):
        monkeypatch.setenv("AIRFLOW_CONN_REDUCTO_DEFAULT", text)
        found.append(ReductoHook().settings)
    assert found[0] == found[1]
    assert found[0].requests_per_second == 2

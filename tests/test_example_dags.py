"""The example DAGs, run by the demo."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from aiosmtpd.controller import Controller

from tests.airflows import gone_in, new_in

PROJECT = Path(__file__).parents[1]

DEMO = new_in(3, 3, "the demo, which brings its own Airflow")


def run_demo(home: Path, key: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the demo in a folder, against the simulator or with a key."""
    env = {name: value for name, value in os.environ.items() if name != "REDUCTO_API_KEY_STUDIO"}
    if key:
        env["REDUCTO_API_KEY_STUDIO"] = key
    command = [sys.executable, "-m", "demo", str(home)]
    return subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def demo_home(tmp_path_factory):
    """A folder for the demo, which makes Airflow's database at its first run."""
    return tmp_path_factory.mktemp("demo")


@DEMO
def test_the_demo_runs_them_all_twice(demo_home):
    for done in (run_demo(demo_home), run_demo(demo_home)):
        assert done.returncode == 0, done.stdout + done.stderr
        screen = done.stdout
        for organization in ("org_acme", "org_globex", "org_initech"):
            assert screen.count(organization) >= 3
        assert "exceeded: " in screen
        assert "kept: sensor skipped" in screen
        assert "the same for 3 of 3 organizations" in screen
        assert re.findall(r"^ +(within_budget .*)$", screen, re.MULTILINE) == [
            "within_budget success, parse_now success, approve skipped, queue_batches skipped",
            "within_budget success, parse_now skipped, approve skipped, queue_batches success",
            "within_budget skipped, parse_now skipped, approve success, queue_batches success",
        ]
        assert "usage.jsonl" in screen
        assert "Traceback" not in screen
    assert "sim-key" not in (demo_home / "demo.log").read_text()


@DEMO
def test_the_demo_says_what_went_wrong(demo_home):
    done = run_demo(demo_home, key="not a key")

    assert done.returncode == 1
    assert "failed: connection 'reducto_default': password" in done.stdout
    assert "demo.log" in done.stdout


class Mailbox:
    """What an SMTP server on loopback was given."""

    def __init__(self):
        self.mails = []

    async def handle_DATA(self, server, session, envelope):  # noqa: N802  # aiosmtpd's name
        self.mails.append((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=default)))
        return "250 OK"


class Server(Controller):
    """On whatever port is free, which the original can't."""

    def _trigger_server(self):
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


def test_the_mail_is_filled_from_the_reading(run_dag, simulator):
    mailbox = Mailbox()
    server = Server(mailbox, hostname="127.0.0.1", port=0)
    server.start()
    try:
        extra = {"disable_ssl": True, "disable_tls": True}
        smtp = {"conn_type": "smtp", "host": "127.0.0.1", "port": server.port, "extra": extra}
        importable = f"import sys; sys.path.insert(0, {str(PROJECT / 'dags')!r})\n"
        source = (PROJECT / "dags/reducto_usage_budget_mail.py").read_text()
        result = run_dag(
            source.replace("from datetime", importable + "from datetime", 1),
            env={"AIRFLOW_CONN_SMTP_DEFAULT": json.dumps(smtp)},
            logical_date=datetime(2026, 10, 14, tzinfo=UTC),
        )
    finally:
        server.stop()

    states = {name: result.tasks[f"projected_{name}"] for name in ("org_acme", "org_globex", "org_initech")}
    assert states == {"org_acme": "success", "org_globex": "success", "org_initech": "skipped"}
    mails = {mail["Subject"]: (to, mail) for to, mail in mailbox.mails}
    assert len(mailbox.mails) == len(mails) == 2
    to, mail = mails["Reducto: org_globex is on its way past its budget"]
    assert to == ["finops@globex.example", "data@globex.example"]
    text = mail.get_body(("html",)).get_content().strip()
    reading = result.xcom("projected_org_globex")
    assert text == (f"org_globex used {reading['used']:,.0f} credits since 2026-10-01. Its budget is 10,000.")


def test_foreign_text_is_escaped_in_the_mail(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "dags")
    example = importlib.import_module("reducto_usage_budget_mail")
    reading = {"org_id": "<b>org</b> & {{ 7 * 7 }}", "metric": "credits", "used": 2, "value": 2, "threshold": 1}
    ti = SimpleNamespace(task_id="any", xcom_pull=lambda task_ids: {**reading, "usage_start_date": "2026-11-01"})

    text = jinja2.Environment().from_string(example.MESSAGE).render(ti=ti)
    assert text.startswith("&lt;b&gt;org&lt;/b&gt; &amp; {{ 7 * 7 }} used 2 credits since 2026-11-01. ")


@pytest.fixture
def gate(run_dag, simulator):
    """Run the example of a gate with a budget, when 800 of it have been used, and return the states of its tasks."""
    simulator.usage.set_records("org_acme", [])
    simulator.usage.add("org_acme", datetime.now(UTC).date(), 800, 1)
    source = (PROJECT / "dags/reducto_usage_budget_gate.py").read_text()
    importable = f"import sys; sys.path.insert(0, {str(PROJECT / 'dags')!r})\n"

    def run(budget):
        result = run_dag(
            source.replace("from datetime", importable + "from datetime", 1), conf={"budget": budget}, logical_date=None
        )
        assert result.tasks["find_batches"] == "success"
        return [result.tasks[name] for name in ("within_budget", "choose_lane", "parse_now", "queue_batches")]

    return run


@pytest.mark.parametrize(
    ("budget", "states"),
    [
        # The documents need 125.
        (1157, ["success", "success", ["success"] * 3, "skipped"]),
        (1156, ["success", "success", "skipped", "success"]),
        (925, ["success", "success", "skipped", "success"]),
    ],
)
def test_batches_take_the_lane_of_their_budget(gate, budget, states):
    assert gate(budget) == states


@gone_in(3, 1, "a gate where nobody can approve")
def test_over_the_budget_nothing_runs_if_nobody_can_approve(gate):
    assert gate(924) == ["skipped"] * 4


@new_in(3, 0, "watchers, which an example has")
@pytest.mark.parametrize(("name", "percents"), [("levels", (50, 80, 100)), ("keys", (80, 100))])
def test_each_level_of_a_budget_has_an_asset_of_its_own(monkeypatch, name, percents):
    """Of several events of one asset that come before a run is made, Airflow hands all but the first to a later one."""
    monkeypatch.syspath_prepend(PROJECT / "dags")
    example = importlib.import_module(f"reducto_usage_budget_{name}")

    watched = [(asset.name, watcher) for asset in example.exceeded for watcher in asset.watchers]
    levels = [(watcher.trigger.org_id, *watcher.trigger.levels) for _, watcher in watched]
    assert len({name for name, _ in watched}) == len(watched)
    assert sorted(levels) == [(org, level) for org in ("org_acme", "org_globex", "org_initech") for level in percents]

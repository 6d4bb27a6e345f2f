"""The example DAGs: parsed without a network, a database or a Variable; run by the demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default
from pathlib import Path

from aiosmtpd.controller import Controller

PROJECT = Path(__file__).parents[1]

PARSE = """
import socket, sqlite3, sys
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.sdk import Connection, Variable

def refuse(*args, **kwargs):
    raise AssertionError(f"parsing reached out: {args}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
sqlite3.connect = sqlite3.dbapi2.connect = refuse
Variable.get = Connection.get = refuse

folder = sys.argv[1]
sys.path.insert(0, folder)
bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags")
assert not bag.import_errors, bag.import_errors
for dag_id, dag in sorted(bag.dags.items()):
    assert dag.doc_md and dag.doc_md.strip().startswith("# "), dag_id
    print(dag_id)
"""


def test_parsing_touches_nothing():
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(PROJECT / "dags")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("reducto_")] == [
        "reducto_usage_all_organizations",
        "reducto_usage_backfill",
        "reducto_usage_budget_levels",
        "reducto_usage_budget_mail",
        "reducto_usage_org_acme",
        "reducto_usage_org_globex",
        "reducto_usage_org_initech",
        "reducto_usage_reconciliation",
        "reducto_usage_yesterday",
    ]


def test_the_demo_runs_them_all_twice(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "REDUCTO_API_KEY_STUDIO"}
    command = [sys.executable, "-m", "demo", str(tmp_path)]
    first = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, check=False)
    second = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, check=False)

    for done in (first, second):
        assert done.returncode == 0, done.stdout + done.stderr
        screen = done.stdout
        for organization in ("org_acme", "org_globex", "org_initech"):
            assert screen.count(organization) >= 3
        assert "exceeded: " in screen
        assert "kept: sensor skipped" in screen
        assert "the same for 3 of 3 organizations" in screen
        assert "usage.jsonl" in screen
        assert "Traceback" not in screen
    assert "sim-key" not in (tmp_path / "demo.log").read_text()


def test_the_demo_says_what_went_wrong(tmp_path):
    env = {**os.environ, "REDUCTO_API_KEY_STUDIO": "not a key"}
    done = subprocess.run(
        [sys.executable, "-m", "demo", str(tmp_path)], cwd=PROJECT, env=env, capture_output=True, text=True, check=False
    )

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

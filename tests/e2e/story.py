"""What happens in `make e2e`: every example DAG on a distributed Airflow, for five organizations, day after day.

Each organization has a connection and a key of its own, made through the REST API, and a budget whose fate is known:

    org_hooli, org_umbrella   exceeded last month, and this month before anybody looks
    org_acme                  kept last month; exceeded this month, while its sensor waits
    org_globex, org_initech   kept; this month's sensors wait to the end, but for org_globex under faults: its key is
                              revoked
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import yaml
from aiosmtpd.controller import Controller
from cryptography.fernet import Fernet

from deployment.env import EXAMPLE, fill
from simulator import ORGANIZATIONS, Simulator
from tests.e2e.backing import Postgres, Redis
from tests.e2e.compose import Compose, read_env
from tests.e2e.deployment import SERVICES, ComposedAirflow
from tests.e2e.faults import Faults
from tests.e2e.secret import files_in, found_in
from tests.object_storage.s3server import S3Server
from tests.real_airflow.deployment import free_ports
from tests.real_airflow.environment import PROJECT_ROOT
from tests.real_airflow.processes import Guard
from tests.real_airflow.running import FINISHED

ORGS = [organization.id for organization in ORGANIZATIONS]
ALL = "reducto_usage_all_organizations"
BACKFILL = "reducto_usage_backfill"
FLEET = "reducto_usage_fleet"
GATE = "reducto_usage_budget_gate"
KEYS = "reducto_usage_budget_keys"
LEVELS = "reducto_usage_budget_levels"
MAIL = "reducto_usage_budget_mail"
RECONCILIATION = "reducto_usage_reconciliation"
YESTERDAY = "reducto_usage_yesterday"
MONTHLY = {org: f"reducto_usage_{org}" for org in ORGS}
DAGS = [ALL, BACKFILL, FLEET, GATE, KEYS, LEVELS, MAIL, RECONCILIATION, YESTERDAY, *MONTHLY.values()]
DIMENSIONS = ("product", "feature", "api_key", "file_type")
METRIC = {org: "requests" if org == "org_umbrella" else "credits" for org in ORGS}
REVOKED = "org_globex"
BUCKET = "usage"
ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")
"""The states in which a task instance stays."""


def month_before(day: date) -> date:
    """The first of the month before a day's."""
    return (day.replace(day=1) - timedelta(days=1)).replace(day=1)


def midnight(day: date) -> datetime:
    """The moment at which a day begins."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


class Mailbox:
    """What an SMTP server on loopback was given."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802  # aiosmtpd's name
        self.mails.append(BytesParser(_class=EmailMessage, policy=default).parsebytes(envelope.content))
        return "250 OK"


class Story:
    """The services, from the `with` block's beginning to its end, and what happened on them."""

    def __init__(self, *, days: int, faults: bool, keep: Path | None = None) -> None:
        self.faults = faults
        self.canary = secrets.token_hex(16)
        self.keys = {org: f"{self.canary}+{org}/{secrets.token_hex(4)}==" for org in [*ORGS, "default"]}
        self.last = datetime.now(UTC).date() - timedelta(days=1)
        self.first = self.last - timedelta(days=days - 1)
        self.this_month = (self.last + timedelta(days=1)).replace(day=1)
        self.last_month = month_before(self.this_month)
        self.times: dict[str, float] = {}
        self.trouble = Faults(self)
        self._keep = keep
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.home = Path(tempfile.mkdtemp(prefix="reducto-e2e-")).resolve()
            self.home.chmod(0o711)  # PostgreSQL runs as a user of its own
            stack.callback(shutil.rmtree, self.home, ignore_errors=True)
            if self._keep:
                stack.callback(lambda: shutil.copytree(self.home, str(self._keep), dirs_exist_ok=True))
            self._stand_up(stack)
            stack.callback(self._reap)
            stack.callback(Guard(self.home, remove=True).close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- what stands there before Airflow does

    def _stand_up(self, stack: ExitStack) -> None:
        self.env = {
            **read_env(fill(EXAMPLE.read_text())),
            "REDUCTO_API_KEY_STUDIO": self.keys["default"],
            "WORKER_CONCURRENCY": "2",
        }
        compose = Compose.read(PROJECT_ROOT / "docker-compose.yaml", self.env)
        keys = {self.keys["default"]: tuple(ORGS), **{self.keys[org]: (org,) for org in ORGS}}
        self.simulator = stack.enter_context(Simulator(keys=keys))
        self.s3 = S3Server()
        stack.callback(self.s3.close)
        self.mailbox = Mailbox()
        [smtp] = free_ports(1)
        mail_server = Controller(self.mailbox, hostname="127.0.0.1", port=smtp)
        mail_server.start()
        stack.callback(mail_server.stop)
        self.smtp = smtp

        postgres, redis = free_ports(2)
        self.postgres = Postgres(self.home / "postgres", postgres, self.env["POSTGRES_PASSWORD"])
        command, given = compose.command("redis"), compose.services["redis"]["environment"]
        self.redis = Redis(self.home / "redis", redis, command, given)
        self.hosts = {
            "postgres:5432": f"127.0.0.1:{postgres}",
            "redis:6379": f"127.0.0.1:{redis}",
            "storage:8333": self.s3.url.removeprefix("http://"),
            "simulator:8085": self.simulator.url.removeprefix("http://"),
        }
        self.airflow = ComposedAirflow(self.home / "airflow", self.home / "dags", compose, self.hosts)

    def _reap(self) -> None:
        """Take note of the ends of all processes, which have been killed."""
        self.airflow.stop()
        self.postgres.stop()
        self.redis.stop()

    def _write_dags(self) -> None:
        """The example DAGs as they are, with organizations of ours."""
        dags = self.home / "dags"
        shutil.copytree(PROJECT_ROOT / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
        organizations = [
            {
                "id": org,
                "connection": f"reducto_{org}",
                "budget": self.budgets[org],
                "metric": METRIC[org],
                "owners": [f"finops@{org}.example"],
            }
            for org in ORGS
        ]
        (dags / "reducto_organizations.yaml").write_text(yaml.safe_dump({"organizations": organizations}))

    def _set_budgets(self) -> None:
        usage = self.simulator.usage
        end = self.this_month - timedelta(days=1)
        self.budgets: dict[str, int] = {}
        for org in ORGS:
            rows = usage.truth(org, self.last_month, end)
            used = int(sum(row.credits if METRIC[org] == "credits" else row.requests for row in rows))
            self.budgets[org] = {"org_hooli": used // 2, "org_umbrella": used // 2}.get(org, 3 * used + 1_000_000)
        for org in ("org_hooli", "org_umbrella"):
            self.spend(org)

    def spend(self, org: str) -> None:
        """Use more today than the month's budget."""
        more = self.budgets[org] + 1
        self.simulator.usage.add(org, datetime.now(UTC).date(), more, more)

    # -- what happens

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Say what is done, and how long it took."""
        start = time.monotonic()
        yield
        self.times[what] = time.monotonic() - start
        print(f"  {what} ".ljust(70, "."), f"{self.times[what]:6.1f} s", flush=True)

    def happen(self) -> None:
        """All of it."""
        print()
        self.began = datetime.now(UTC)
        with self.step("everything"):
            self._set_budgets()
            self._write_dags()
            if self.faults:
                self.trouble.begin()
            with self.step("PostgreSQL and Redis"):
                self.postgres.start()
                self.redis.start()
            with self.step("the init step"):
                self.initialized = self.airflow.initialize()
            with self.step("Airflow and its connections"):
                self._start_airflow()
            with self.step("the DAGs are parsed"):
                for dag_id in DAGS:
                    self.airflow.wait_for_dag(dag_id, timeout=180)
                    # Listed a moment before it can be triggered.
                    details = f"/api/v2/dags/{dag_id}/details"
                    self.airflow.wait_for(lambda path=details: self.airflow.answer(path).is_success, 60, details)
            self._trigger()
            if self.faults:
                self.trouble.happen()
            else:
                self._let_acme_spend()
            with self.step("the rest of the runs"):
                self.airflow.wait_for(self._ended, 300 + 60 * (self.last - self.first).days, "the end of all runs")

    def _start_airflow(self) -> None:
        airflow = self.airflow
        airflow.start_service("api-server")
        airflow.log_in(self.env["ADMIN_PASSWORD"])
        for org in ORGS:
            airflow.add_connection(
                f"reducto_{org}", conn_type="reducto", host=self.simulator.url, password=self.keys[org]
            )
        extra = '{"disable_ssl": true, "disable_tls": true}'
        airflow.add_connection("smtp_default", conn_type="smtp", host="127.0.0.1", port=self.smtp, extra=extra)
        for service in SERVICES[1:]:
            airflow.start_service(service)
        airflow.wait_for_health()

    def _trigger(self) -> None:
        """A run for each day, week and month. Those of the last ones are scheduled by Airflow itself."""
        airflow = self.airflow
        moments = [midnight(self.first) + timedelta(days=n) for n in range(1, (self.last - self.first).days + 1)]
        for moment in moments:
            airflow.trigger(ALL, logical_date=moment)
            airflow.trigger(YESTERDAY, logical_date=moment)
            if moment.isoweekday() == 7 and (self.last - moment.date()).days > 7:
                airflow.trigger(RECONCILIATION, logical_date=moment)
        for group_by in DIMENSIONS:
            conf = {"start": self.first.isoformat(), "end": self.last.isoformat(), "group_by": group_by}
            airflow.trigger(BACKFILL, conf=conf)
        for dag_id in (MAIL, *MONTHLY.values()):
            airflow.trigger(dag_id, logical_date=midnight(self.last_month))
        if moments:
            body = {"from_date": moments[0].isoformat(), "to_date": moments[-1].isoformat()}
            airflow.request("POST", "/api/v2/backfills", json={"dag_id": FLEET, **body, "max_active_runs": 4})

    def _let_acme_spend(self) -> None:
        """Use more than the budget while its sensor waits."""
        with self.step("a sensor waits, and its budget is exceeded"):
            dag_id = MONTHLY["org_acme"]
            run_id = self.scheduled_run(dag_id)["dag_run_id"]
            self.airflow.wait_for_task(dag_id, run_id, "budget_exceeded", "deferred", timeout=600)
            self.spend("org_acme")
            self.airflow.wait_for_run(dag_id, run_id, state="success", timeout=600)

    # -- what there is to see

    def scheduled_run(self, dag_id: str) -> dict[str, Any]:
        """The one run that the schedule made of a weekly or monthly DAG."""

        def scheduled() -> dict[str, Any] | None:
            return next((run for run in self.airflow.runs(dag_id) if run["run_type"] == "scheduled"), None)

        return self.airflow.wait_for(scheduled, 60, f"the scheduled run of {dag_id}")

    def waits(self, dag_id: str, run: Mapping[str, Any]) -> set[str]:
        """The tasks of a run that wait to the end of this."""
        if not run["logical_date"] or datetime.fromisoformat(run["logical_date"]) != midnight(self.this_month):
            return set()
        kept = {"org_initech"} | ({REVOKED} if not self.faults else set())
        if dag_id == MAIL:
            # Its sensors poll every six hours, and when the triggerer comes back.
            return {f"projected_{org}" for org in (kept if self.faults else kept | {"org_acme"})}
        return {"budget_exceeded"} if dag_id in {MONTHLY[org] for org in kept} else set()

    def _ended(self) -> bool:
        for dag_id in DAGS:
            for run in self.airflow.runs(dag_id):
                if run["state"] in FINISHED:
                    continue
                waiting = self.waits(dag_id, run)
                states = self.airflow.task_states(dag_id, run["dag_run_id"])
                open_ones = {task: state for (task, _), state in states.items() if state not in ENDED}
                if not waiting or any(open_ones.get(task) != "deferred" for task in waiting):
                    return False
                if any(task not in waiting and task != "tell_owners" for task in open_ones):
                    return False
        return all(count >= self.expected_levels[org] for org, count in self.level_events().items())

    @property
    def expected_levels(self) -> dict[str, int]:
        """How many levels of its budget each organization passes."""
        transient = {"org_hooli", "org_umbrella"} | ({"org_acme"} if self.faults else set())
        return {org: 3 if org in transient else 0 for org in ORGS}

    def level_events(self) -> dict[str, int]:
        """How many events there were of each organization's budget."""
        counted = Counter(payload["reading"]["org_id"] for payload in self.payloads() if "reading" in payload)
        return {org: counted[org] for org in ORGS}

    def payloads(self) -> list[dict[str, Any]]:
        """The contents of all watchers' events."""
        return [event["extra"]["payload"] for event in self.airflow.asset_events() if "payload" in event["extra"]]

    def days_of(self, run: Mapping[str, Any]) -> list[date]:
        """The day before a daily run, and the two before that, which the example DAGs take along."""
        day = datetime.fromisoformat(run["logical_date"]).date()
        return [day - timedelta(days=n) for n in (3, 2, 1)]

    def places_of_the_key(self) -> list[str]:
        """Wherever any of the keys can be found, but in the memory of who needs it."""
        return found_in(self._places(), self.canary)

    def _places(self) -> Iterator[tuple[str, bytes]]:
        yield from files_in(self.home)  # all logs, Airflow's and the others'; what the databases have written
        yield "the metadata database", self.postgres.dump()
        fernet = Fernet(self.env["FERNET_KEY"])
        for trigger, kwargs in self.postgres.query("select id, kwargs from trigger"):
            # Airflow encrypts those of some triggers.
            plain = kwargs.encode() if kwargs.startswith("{") else fernet.decrypt(kwargs)
            yield f"the arguments of trigger {trigger}", plain
        yield "what the init step printed", self.initialized.encode()
        for key, content in self.s3.objects(BUCKET).items():
            yield f"s3://{BUCKET}/{key}", content
        for number, mail in enumerate(self.mailbox.mails):
            yield f"mail {number}", mail.as_bytes()
        for path in self._paths():
            answer = self.airflow.answer(path)
            assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:500]}"
            yield f"GET {path}", answer.content

    def _paths(self) -> Iterator[str]:
        """What there is to read of the REST API: lists whole, and each task instance's own."""
        for collection in ("connections", "variables", "eventLogs", "importErrors", "jobs", "dags", "assets", "pools"):
            yield f"/api/v2/{collection}?limit=1000"
        yield "/api/v2/assets/events?limit=1000"
        for org in [*ORGS, "default"]:
            yield f"/api/v2/connections/reducto_{org}"
        for dag_id in DAGS:
            yield f"/api/v2/dags/{dag_id}/details"
            yield f"/api/v2/dagSources/{dag_id}"
            for run in self.airflow.runs(dag_id):
                from_context = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run['dag_run_id'])}"
                yield f"{from_context}/taskInstances?limit=1000"
                yield f"{from_context}/taskInstances/~/xcomEntries?limit=1000"
                for instance in self.airflow.task_instances(dag_id, run["dag_run_id"]):
                    of_instance = f"{from_context}/taskInstances/{instance['task_id']}"
                    index = instance["map_index"]
                    # As Airflow lists them: a number below the last need not have a log.
                    tries = f"{of_instance}/{index}/tries"
                    yield tries
                    for attempt in self.airflow.answer(tries).json()["task_instances"]:
                        if number := attempt["try_number"]:
                            yield f"{of_instance}/logs/{number}?map_index={index}&full_content=true"

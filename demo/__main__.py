"""Run the example DAGs on an embedded Airflow and show the results.

Airflow's files are in `.demo/`, or the folder given as argument, with an SQLite database. Nothing outside of that
folder is changed, and no process remains. Without a key the service is the simulator, on loopback; with a key it is
Reducto's own:

    REDUCTO_API_KEY_STUDIO   the personal key from the API Keys page of Reducto Studio
    REDUCTO_ORG_IDS          organizations to export, separated by commas; by default the key's own
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import yaml

PROJECT = Path(__file__).parents[1]
HOME = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else PROJECT / ".demo"
DAGS = HOME / "dags"
USAGE = HOME / "reducto_usage"
PAGE = HOME / "usage.html"
LOG = HOME / "demo.log"
MARKER = HOME / ".reducto-demo"

# Every other DAG is for one organization. The demo has no watchers, and no mail server.
OF_ALL = (
    "reducto_usage_all_organizations",
    "reducto_usage_backfill",
    "reducto_usage_budget_gate",
    "reducto_usage_budget_keys",
    "reducto_usage_budget_levels",
    "reducto_usage_budget_mail",
    "reducto_usage_fleet",
    "reducto_usage_reconciliation",
    "reducto_usage_yesterday",
)
BACKFILL_DAYS = 30
LIVE_BUDGET = 1000


def main() -> int:
    HOME.mkdir(parents=True, exist_ok=True)
    with screen_and_log() as screen:
        try:
            demo(screen)
        except Exception as error:  # noqa: BLE001  # shown on the screen, with the path of the log
            traceback.print_exc()
            print(f"\nfailed: {error}\nSee {shown(LOG)}", file=screen)
            return 1
    return 0


def demo(screen: TextIO) -> None:
    key = os.environ.get("REDUCTO_API_KEY_STUDIO")
    prepare_environment()
    with live_service() if key else simulated_service() as host:
        os.environ["AIRFLOW_CONN_REDUCTO_DEFAULT"] = json.dumps(
            {"conn_type": "reducto", "host": host, "password": key or "sim-key-all"}
        )
        service = "the live service" if key else "a simulator; set REDUCTO_API_KEY_STUDIO to use the live service"
        print(f"Service   {host}, {service}", file=screen)
        print(f"Airflow   {airflow_version()}, in {shown(HOME)}; log: {shown(LOG)}\n", file=screen)
        steps = Steps(screen)

        with steps("airflow db migrate"):
            migrate_database()
        organizations = live_organizations() if key else None
        provide_dags(organizations)
        bag = load_dags()

        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        first, last = today - timedelta(days=BACKFILL_DAYS), today - timedelta(days=1)
        last_month = (today.replace(day=1) - timedelta(days=1)).replace(day=1)
        with steps(f"reducto_usage_yesterday, as scheduled {today:%Y-%m-%d}"):
            run_dag(bag["reducto_usage_yesterday"], logical_date=today)
        with steps(f"reducto_usage_backfill, {first:%Y-%m-%d} to {last:%Y-%m-%d}"):
            backfill = run_dag(
                bag["reducto_usage_backfill"], conf={"start": f"{first:%Y-%m-%d}", "end": f"{last:%Y-%m-%d}"}
            )
        with steps(f"reducto_usage_all_organizations, as scheduled {today:%Y-%m-%d}"):
            daily = run_dag(bag["reducto_usage_all_organizations"], logical_date=today)
        with steps(f"reducto_usage_fleet, as scheduled {today:%Y-%m-%d}"):
            [fleet] = run_dag(bag["reducto_usage_fleet"], logical_date=today).xcoms["export_usage"]
        with steps(f"reducto_usage_reconciliation, as scheduled {today:%Y-%m-%d}"):
            reconciled = run_dag(bag["reducto_usage_reconciliation"], logical_date=today, may_fail=True)
        gates = {}
        with steps("reducto_usage_budget_gate, with room in the budget"):
            gates["with room"] = run_dag(bag["reducto_usage_budget_gate"], conf={"budget": 10**9})
        decision = gates["with room"].xcoms["within_budget"][0]
        used, reserve = decision["reading"]["value"], decision["reserve"]
        with steps("reducto_usage_budget_gate, with 80 % of the budget used"):
            conf = {"budget": math.ceil(1.1 * (used + reserve))}
            gates["from 80 %"] = run_dag(bag["reducto_usage_budget_gate"], conf=conf)
        with steps("reducto_usage_budget_gate, with all of the budget used"):
            # The approval of a person is simulated: the run would wait for it.
            gates["over it"] = run_dag(bag["reducto_usage_budget_gate"], conf={"budget": used}, approved="approve")
        monthly = {}
        for dag_id, dag in sorted(bag.items()):
            if dag_id not in OF_ALL:
                with steps(f"{dag_id}, as scheduled {last_month:%Y-%m-%d}"):
                    monthly[dag_id] = run_dag(dag, logical_date=last_month)

    print("\nExported", file=screen)
    show_exports(screen, backfill.xcoms["export_usage"])
    changed = sum(file["changed"] for export in daily.xcoms["export_usage"] for file in export["files"])
    print(f"  the daily run exported its three days again: {changed} files changed", file=screen)
    print(f"  the fleet run exported {fleet['exported']} views of it, each organization by each dimension", file=screen)
    agreeing = len(reconciled.xcoms.get("reconcile", []))
    print(
        f"  last week, by product, feature, API key and file type: the same for {agreeing} of "
        f"{len(daily.xcoms['export_usage'])} organizations",
        file=screen,
    )
    print(f"\nBudgets of {last_month:%B %Y}, as the sensors saw them", file=screen)
    show_budgets(screen, monthly)
    print("\nThe gate before a batch of documents", file=screen)
    show_gates(screen, gates)
    print("\nFiles", file=screen)
    show_files(screen)
    print(f"\nUsage page\n  {shown(write_page())}: open it in a browser", file=screen)


class Steps:
    """Prints each step, and its duration when it is done."""

    def __init__(self, screen: TextIO) -> None:
        self._screen = screen

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        print(f"  {what} ".ljust(70, "."), end="", flush=True, file=self._screen)
        start = time.monotonic()
        yield
        print(f" {time.monotonic() - start:4.1f} s", file=self._screen)


class Run:
    """The result of a DAG run: the states of its tasks and their XComs, in the order of map indexes."""

    def __init__(self, dag_run: Any) -> None:
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            self.states = {ti.task_id: str(ti.state) for ti in dag_run.get_task_instances(session=session)}
            values = session.scalars(
                select(XComModel)
                .where(XComModel.run_id == dag_run.run_id, XComModel.dag_id == dag_run.dag_id)
                .where(XComModel.key == "return_value")
                .order_by(XComModel.map_index)
            )
            self.xcoms: dict[str, list[Any]] = {}
            for xcom in values:
                self.xcoms.setdefault(xcom.task_id, []).append(XComModel.deserialize_value(xcom))


def run_dag(
    dag: Any,
    *,
    logical_date: datetime | None = None,
    conf: dict[str, Any] | None = None,
    may_fail: bool = False,
    approved: str | None = None,
) -> Run:
    dag_run = dag.test(logical_date=logical_date, run_conf=conf, mark_success_pattern=approved)
    run = Run(dag_run)
    failed = sorted(task for task, state in run.states.items() if state not in ("success", "skipped"))
    if dag_run.state != "success" and not may_fail:
        raise RuntimeError(f"{dag.dag_id} ended as {dag_run.state}: {', '.join(failed)}")
    return run


def show_exports(screen: TextIO, exports: list[dict[str, Any]]) -> None:
    print(
        f"  {'organization':<16}{'days':<26}{'credits':>12}{'requests':>12}{'files':>8}{'empty days':>12}", file=screen
    )
    for export in exports:
        days = f"{export['usage_start_date']} to {export['usage_end_date']}"
        credits = "-" if export["credits"] is None else f"{export['credits']:,.1f}"
        files = [file["uri"] for file in export["files"] if file["uri"]]
        empty = len(export["files"]) - len(files)
        print(
            f"  {export['org_id']:<16}{days:<26}{credits:>12}{export['request_count']:>12,}{len(files):>8}{empty:>12}",
            file=screen,
        )


def show_budgets(screen: TextIO, runs: dict[str, Run]) -> None:
    for dag_id, run in runs.items():
        org_id = dag_id.removeprefix("reducto_usage_")
        if readings := run.xcoms.get("budget_exceeded"):
            reading = readings[0]
            print(
                f"  {org_id:<16}exceeded: {reading['value']:,} of {reading['threshold']:,} {reading['metric']}; "
                "owners notified",
                file=screen,
            )
        else:
            print(f"  {org_id:<16}kept: sensor {run.states['budget_exceeded']}, nobody notified", file=screen)


def show_gates(screen: TextIO, runs: dict[str, Run]) -> None:
    for case, run in runs.items():
        decision = run.xcoms["within_budget"][0]
        reading = decision["reading"]
        print(
            f"  {case:<16}{decision['decision']}: {reading['value']:,} of {reading['threshold']:,} "
            f"{reading['metric']}, and {decision['reserve']:,} in reserve",
            file=screen,
        )
        tasks = ("within_budget", "parse_now", "approve", "queue_batches")
        print(f"  {'':<16}{', '.join(f'{task} {run.states[task]}' for task in tasks)}", file=screen)


def show_files(screen: TextIO) -> None:
    days = sorted((USAGE / "data").glob("*/*/*/*"))
    months = sorted(HOME.glob("reducto_usage_monthly/*/[!.]*"))
    print(f"  {shown(USAGE)}: {len(days)} daily files, {len(months)} monthly files next to it", file=screen)
    if days:
        print(f"  {shown(days[-1])}:", file=screen)
        for line in days[-1].read_text().splitlines()[:3]:
            print(f"    {line}", file=screen)


def write_page() -> Path:
    """Write the usage page of what was exported, with the organizations' budgets, and return the file."""
    from reducto_provider.plugins.usage_page.__main__ import render_file
    from reducto_provider.plugins.usage_page.settings import PageDataset
    from reducto_provider.usage.days import today

    organizations = yaml.safe_load((DAGS / "reducto_organizations.yaml").read_text())["organizations"]
    budgets = {each["id"]: each["budget"] for each in organizations if each["metric"] == "credits"}
    dataset = PageDataset(name="Reducto usage", path=str(USAGE), budgets=budgets)
    PAGE.write_text(render_file(dataset, today()), encoding="utf-8")
    return PAGE


def prepare_environment() -> None:
    """Set the environment variables that Airflow reads on import, and remove the machine's own."""
    if not MARKER.exists() and any(path != LOG for path in HOME.iterdir()):
        raise RuntimeError(f"{shown(HOME)} is not the folder of a demo: give an empty folder")
    MARKER.touch()
    for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
        del os.environ[name]
    shutil.rmtree(DAGS, ignore_errors=True)
    for results in (USAGE, HOME / "reducto_usage_monthly"):
        shutil.rmtree(results, ignore_errors=True)
    os.environ.update(
        AIRFLOW_HOME=str(HOME),
        AIRFLOW__CORE__DAGS_FOLDER=str(DAGS),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__CORE__FERNET_KEY="",
        AIRFLOW__API_AUTH__JWT_SECRET=secrets.token_urlsafe(32),
        AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
        REDUCTO_USAGE_PATH=str(USAGE),
    )


@contextmanager
def simulated_service() -> Iterator[str]:
    from simulator import Simulator

    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
    with Simulator() as simulator:
        yield simulator.url


def live_service() -> Any:
    return nullcontext("https://studio.reducto.ai")


def live_organizations() -> list[dict[str, Any]]:
    """Return the organizations to export, with an arbitrary budget."""
    from reducto_provider.hooks.reducto import ReductoHook
    from reducto_provider.usage.days import today
    from reducto_provider.usage.query import UsageQuery

    yesterday = today() - timedelta(days=1)
    hook = ReductoHook()
    organizations = []
    for org_id in os.environ.get("REDUCTO_ORG_IDS", "").split(","):
        report = hook.get_usage(UsageQuery(start=yesterday, end=yesterday, org_id=org_id.strip() or None))
        organizations.append(
            {
                "id": report.org_id,
                "connection": "reducto_default",
                "budget": LIVE_BUDGET,
                "metric": "requests" if report.credits is None else "credits",
                "owners": ["you"],
            }
        )
    return organizations


def provide_dags(organizations: list[dict[str, Any]] | None) -> None:
    """Copy the example DAGs, for the live service with its own organizations."""
    shutil.copytree(PROJECT / "dags", DAGS, ignore=shutil.ignore_patterns("__pycache__"))
    if organizations:
        (DAGS / "reducto_organizations.yaml").write_text(yaml.safe_dump({"organizations": organizations}))
    sys.path.insert(0, str(DAGS))


def migrate_database() -> None:
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True)


def load_dags() -> dict[str, Any]:
    from airflow.dag_processing.dagbag import BundleDagBag
    from airflow.sdk import BaseOperator

    bag = BundleDagBag(dag_folder=DAGS, bundle_path=DAGS, bundle_name="dags-folder")
    if bag.import_errors:
        raise RuntimeError("\n".join(bag.import_errors.values()))
    for dag in bag.dags.values():
        for task in dag.tasks:  # show a failure now, not after the delays of retries
            if isinstance(task, BaseOperator):
                task.retries = 0
            else:
                task.partial_kwargs["retries"] = 0
    return dict(bag.dags)


def airflow_version() -> str:
    from importlib.metadata import version

    return version("apache-airflow")


@contextmanager
def screen_and_log() -> Iterator[TextIO]:
    """Yield the screen for the demo's own output. All other output goes to the log."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as screen, LOG.open("w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        yield screen


def shown(path: Path) -> str:
    return str(path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path)


if __name__ == "__main__":
    sys.exit(main())

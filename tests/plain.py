"""Run example DAGs as users have them: with the package installed, and nothing of this checkout to import.

python -P tests/plain.py       in an environment that has Airflow and the wheel; see `plain` in noxfile.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

PROJECT = Path(__file__).parents[1]
NEEDS_ANOTHER_PROVIDER = ("reducto_usage_budget_mail.py",)
DAGS = {
    "reducto_usage_yesterday": [],
    "reducto_usage_all_organizations": [],
    "reducto_usage_budget_gate": ["--conf", json.dumps({"budget": 10**9})],
    "reducto_usage_fleet": [],
    "reducto_usage_org_acme": ["2026-10-01"],
    "reducto_usage_backfill": ["--conf", json.dumps({"start": "2026-10-01", "end": "2026-10-07"})],
}
"""What is run, and with which arguments of ``airflow dags test``."""


def main() -> int:
    spec = find_spec("reducto_provider")
    assert spec is not None
    assert Path(str(spec.origin)).parent != PROJECT / "reducto_provider", "this is the checkout, not the wheel"
    assert find_spec("simulator") is None
    with tempfile.TemporaryDirectory(prefix="reducto-plain-") as folder:
        home = Path(folder)
        shutil.copytree(
            PROJECT / "dags", home / "dags", ignore=shutil.ignore_patterns("__pycache__", *NEEDS_ANOTHER_PROVIDER)
        )
        simulator = subprocess.Popen(
            [sys.executable, "-m", "simulator", "--port", "0"], cwd=PROJECT, stdout=subprocess.PIPE, text=True
        )
        try:
            assert simulator.stdout is not None
            run_dags(home, simulator.stdout.readline().split()[-1])
        finally:
            simulator.terminate()
            simulator.wait()
    print(f"Airflow {version('apache-airflow')}: {len(DAGS)} example DAGs ran on the wheel")
    return 0


def run_dags(home: Path, url: str) -> None:
    """Run each of them, and see the files that they leave."""
    connection = {"conn_type": "reducto", "host": url, "password": "sim-key-all"}
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(home),
        # Where the DAG processor always looks, and the commands of Airflow 3.0 do not.
        "PYTHONPATH": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_REDUCTO_DEFAULT": json.dumps(connection),
        "REDUCTO_USAGE_PATH": str(home / "usage"),
    }

    def airflow(*arguments: str) -> str:
        command = [sys.executable, "-P", "-m", "airflow", *arguments]
        done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"airflow {' '.join(arguments)}:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
        return done.stdout

    airflow("db", "migrate")
    assert "airflow-provider-reducto" in airflow("providers", "list")
    airflow("dags", "reserialize")
    assert "Traceback" not in (errors := airflow("dags", "list-import-errors")), errors
    for dag_id, arguments in DAGS.items():
        print(dag_id, flush=True)
        airflow("dags", "test", dag_id, *arguments)
    partition = "usage/data/org_id=org_acme/group_by=product/dt={}/usage.jsonl"
    for day in range(1, 8):
        assert (home / partition.format(f"2026-10-{day:02}")).stat().st_size
    assert list(home.glob("usage_monthly/org_acme/*.csv"))


if __name__ == "__main__":
    sys.exit(main())

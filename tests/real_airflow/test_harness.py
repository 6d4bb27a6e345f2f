"""The harness for real Airflow proves itself, on tiny DAGs of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.airflows import new_in
from tests.real_airflow.dagtest import DagRunner, DagTestError, DagTestTimeoutError
from tests.real_airflow.deployment import AirflowDeployment
from tests.real_airflow.environment import PROJECT_ROOT
from tests.real_airflow.processes import kill_processes_in, processes_in
from tests.real_airflow.running import DeploymentError, DeploymentTimeoutError

pytest_plugins = ["tests.real_airflow.fixtures"]

DAG = """
from datetime import datetime, timedelta, timezone
from tests.airflow_sdk import DAG, Asset, BaseHook, task

with DAG("tiny"):
    @task
"""
"""The head of a DAG file whose one task the test writes."""


class TestDagTest:
    def test_a_plain_task(self, dag_runner: DagRunner) -> None:
        result = dag_runner.run(
            DAG + "    def plain(ds, dag_run): return {'ds': ds, 'conf': dag_run.conf}\n    plain()",
            logical_date=datetime(2024, 5, 1, tzinfo=UTC),
            run_after=datetime(2024, 5, 2, tzinfo=UTC),
            conf={"answer": 42},
        )
        assert result.expect("success").tasks == {"plain": "success"}
        assert result.xcom("plain") == {"ds": "2024-05-01", "conf": {"answer": 42}}
        assert "Returned value was: {'ds': '2024-05-01'" in result.log
        with pytest.raises(LookupError, match="no XCom of"):
            result.xcom("plain", key="other")

    def test_a_run_without_logical_date(self, dag_runner: DagRunner) -> None:
        result = dag_runner.run(
            DAG + "    def t(**context): return 'logical_date' in context\n    t()",
            logical_date=None,
            run_after=datetime(2024, 5, 2, tzinfo=UTC),
        )
        assert result.expect().xcom("t") is False
        assert "2024-05-02" in result.run_id

    def test_mapped_tasks(self, dag_runner: DagRunner) -> None:
        result = dag_runner.run(DAG + "    def double(n): return 2 * n\n    double.expand(n=[1, 2])").expect()
        assert result.tasks == {"double": ["success", "success"]}
        assert result.task_states() == {("double", 0): "success", ("double", 1): "success"}
        assert result.xcom("double") == [2, 4]
        assert result.xcom("double", map_index=1) == 4
        assert result.task_instance("double", 1).rendered_fields["op_kwargs"] == {"n": 2}

    def test_triggers_run_in_line(self, dag_runner: DagRunner) -> None:
        result = dag_runner.run("""
            from datetime import timedelta
            from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
            from tests.airflow_sdk import DAG

            with DAG("tiny"):
                TimeDeltaSensor(task_id="wait", delta=timedelta(seconds=2), deferrable=True)
        """)
        assert result.expect().tasks == {"wait": "success"}
        assert "Trigger completed" in result.log

    def test_failures_and_retries(self, dag_runner: DagRunner) -> None:
        source = DAG + "    def fail(): raise ValueError('on purpose')\n"
        result = dag_runner.run(source + "    fail.override(retries=1, retry_delay=timedelta(0))()")
        assert result.state == "failed"
        assert result.task_instance("fail").try_number == 2
        assert [(error.state, error.type) for error in result.errors] == [
            ("up_for_retry", "ValueError"),
            ("failed", "ValueError"),
        ]
        assert "raise ValueError('on purpose')" in result.errors[1].traceback
        with pytest.raises(AssertionError, match="ValueError: on purpose"):
            result.expect("success")

    def test_skipped_tasks(self, dag_runner: DagRunner) -> None:
        compat = "from tests.airflow_sdk import AirflowSkipException"
        skip = f"{compat}; raise AirflowSkipException"
        assert dag_runner.run(DAG + f"    def skip(): {skip}\n    skip()").tasks == {"skip": "skipped"}

    def test_asset_events(self, dag_runner: DagRunner) -> None:
        outlets = "outlets=[Asset('s3://bucket/key')]"
        result = dag_runner.run(DAG + f"    def t(): pass\n    t.override({outlets})()")
        event = {"uri": "s3://bucket/key", "extra": {}, "source_task_id": "t"}
        assert result.expect().asset_events == (event,)

    def test_one_dag_of_several(self, dag_runner: DagRunner, tmp_path: Path) -> None:
        file = tmp_path / "several.py"
        file.write_text(DAG + "    def t(): pass\n    t()\nwith DAG('other'):\n    t()")
        assert dag_runner.run(file, dag_id="other").expect().dag_id == "other"
        with pytest.raises(DagTestError, match=r"the file holds \['other', 'tiny'\]"):
            dag_runner.run(file)

    def test_a_connection_for_one_run(self, dag_runner: DagRunner) -> None:
        source = DAG + "    def host(): return BaseHook.get_connection('there').host\n    host()"
        connection = {"AIRFLOW_CONN_THERE": "http://user:password@example.org"}
        assert dag_runner.run(source, env=connection).expect().xcom("host") == "example.org"
        assert dag_runner.run(source).errors[0].type == "AirflowNotFoundException"

    def test_a_file_that_fails_to_import(self, dag_runner: DagRunner) -> None:
        with pytest.raises(DagTestError, match="ZeroDivisionError"):
            dag_runner.run("1 / 0  # airflow DAG")

    def test_a_run_that_hangs_or_dies(self, dag_runner: DagRunner) -> None:
        daughter = "__import__('subprocess').Popen(['sleep', '60'], start_new_session=True)"
        with pytest.raises(DagTestTimeoutError, match="killed after 2 seconds"):
            dag_runner.run(DAG + f"    def hang(): {daughter}.wait()\n    hang()", timeout=2)
        with pytest.raises(DagTestError, match="died with status 3"):
            dag_runner.run(DAG + "    def die(): import os; os._exit(3)\n    die()")
        crash = "    def crash(): import os; os.kill(os.getpid(), 11)\n    crash()"
        with pytest.raises(
            DagTestError, match=r'(?s)died with status -11.*Segmentation fault.*dag.py", line \d+ in crash'
        ):
            dag_runner.run(DAG + crash)
        # The worker is the same and goes on; of the hanging run not even its daughter is left.
        assert dag_runner.run(DAG + "    def t(): pass\n    t()").expect()
        assert "sleep" not in [process.name() for process in processes_in(dag_runner.home)]


@pytest.fixture(scope="module")
def airflow(airflow_factory: Callable[..., AirflowDeployment]) -> Iterator[AirflowDeployment]:
    deployment = airflow_factory(Path(__file__).parent / "dags", {"AIRFLOW_CONN_FS_DEFAULT": "fs://"})
    yield deployment
    deployment.stop()
    assert processes_in(deployment.home) == []


class TestDeployment:
    def test_a_dag_that_is_not_there(self, airflow: AirflowDeployment) -> None:
        airflow.wait_for_dag("daily")
        with pytest.raises(DeploymentTimeoutError, match="the DAG 'nowhere' to be parsed"):
            airflow.wait_for_dag("nowhere", timeout=1)

    def test_a_schedule(self, airflow: AirflowDeployment) -> None:
        airflow.unpause("daily")
        runs = airflow.wait_for_runs("daily", 2)
        assert [(run["run_type"], run["run_after"]) for run in runs] == [
            ("scheduled", "2024-01-01T00:00:00Z"),
            ("scheduled", "2024-01-02T00:00:00Z"),
        ]
        # The interval of a preset has no length: on the 2nd it requests nothing of the 1st.
        moment = "2024-01-02 00:00:00+00:00"
        assert airflow.xcom("daily", runs[1]["dag_run_id"], "what_it_sees") == {
            "logical_date": moment,
            "data_interval_start": moment,
            "data_interval_end": moment,
            "ds": "2024-01-02",
            "events": {},
        }

    @new_in(3, 3, "partitions in the context")
    def test_partitions(self, airflow: AirflowDeployment) -> None:
        airflow.unpause("partitioned")
        runs = airflow.wait_for_runs("partitioned", 2)
        assert [run["partition_key"] for run in runs] == ["2023-12-31T00:00:00", "2024-01-01T00:00:00"]
        assert airflow.xcom("partitioned", runs[1]["dag_run_id"], "what_it_sees") == {
            "partition_key": "2024-01-01T00:00:00",
            "partition_date": "2024-01-01 00:00:00+00:00",
            "events": {},
        }

    def test_an_asset_starts_a_dag(self, airflow: AirflowDeployment) -> None:
        airflow.unpause("consumer")
        airflow.unpause("producer")
        airflow.trigger("producer")
        (run,) = airflow.wait_for_runs("consumer")
        assert run["run_type"] == "asset_triggered"
        seen = airflow.xcom("consumer", run["dag_run_id"], "what_it_sees")
        assert seen == {"events": {"s3://bucket/reports": [{"rows": 3}]}}
        assert [event["extra"] for event in airflow.asset_events()] == [{"rows": 3}]

    def test_a_manual_run(self, airflow: AirflowDeployment) -> None:
        airflow.unpause("manual")
        run_id = airflow.trigger("manual")["dag_run_id"]
        airflow.wait_for_run("manual", run_id, state="success")
        assert airflow.xcom("manual", run_id, "what_it_sees") == {"events": {}}
        assert "Returned value was: {'events': {}}" in airflow.log("manual", run_id, "what_it_sees")

        airflow.clear("manual", run_id)
        airflow.wait_for_run("manual", run_id, state="success")
        (instance,) = airflow.task_instances("manual", run_id)
        assert instance["try_number"] == 2

    def test_mapped_tasks(self, airflow: AirflowDeployment) -> None:
        airflow.unpause("mapped")
        run_id = airflow.trigger("mapped", conf={"numbers": [3, 4]})["dag_run_id"]
        airflow.wait_for_run("mapped", run_id, state="success")
        assert airflow.task_states("mapped", run_id)["double", 1] == "success"
        assert airflow.xcom("mapped", run_id, "double", map_index=1) == 8

    def test_a_triggerer_that_is_killed(self, airflow: AirflowDeployment, tmp_path: Path) -> None:
        file = tmp_path / "there"
        airflow.unpause("deferred")
        run_id = airflow.trigger("deferred", conf={"path": str(file)})["dag_run_id"]
        airflow.wait_for_task("deferred", run_id, "wait", "deferred")
        airflow.kill("triggerer")
        file.touch()
        time.sleep(2)  # in which a triggerer would look twice
        assert airflow.task_states("deferred", run_id) == {("wait", -1): "deferred"}
        airflow.start_service("triggerer")
        airflow.wait_for_run("deferred", run_id, state="success")

    def test_a_failure_is_told_with_its_log(self, airflow: AirflowDeployment) -> None:
        airflow.unpause("failing")
        run_id = airflow.trigger("failing")["dag_run_id"]
        with pytest.raises(DeploymentError, match=r"(?s)'failing' ended as failed.*ValueError: on purpose"):
            airflow.wait_for_run("failing", run_id, state="success")


class TestProcesses:
    def test_a_failed_start_is_told_and_leaves_nothing(self, tmp_path: Path) -> None:
        settings = {"AIRFLOW__CORE__EXECUTOR": "NoSuchExecutor"}
        airflow = AirflowDeployment(tmp_path / "home", tmp_path, settings)
        with pytest.raises(DeploymentError, match=r"(?s)scheduler ended with 1:.*NoSuchExecutor"):
            airflow.start()
        assert processes_in(airflow.home) == []

    def test_a_closed_runner_leaves_nothing(self, tmp_path: Path) -> None:
        runner = DagRunner(tmp_path)
        assert processes_in(tmp_path)
        runner.close()
        assert processes_in(tmp_path) == []

    @pytest.mark.parametrize("remove", [False, True])
    def test_killed_tests_leave_nothing(self, tmp_path: Path, remove: bool) -> None:
        home = tmp_path / "home"
        home.mkdir()
        script = (
            "import subprocess, sys, time; from pathlib import Path;"
            "from tests.real_airflow.processes import Guard;"
            f"guard = Guard(Path(sys.argv[1]), remove={remove});"
            "subprocess.Popen(['sleep', '60'], cwd=sys.argv[1]).wait()"
        )
        tests = subprocess.Popen([sys.executable, "-c", script, str(home)], cwd=PROJECT_ROOT)
        try:
            _eventually(lambda: processes_in(home) != [])
            os.kill(tests.pid, signal.SIGKILL)
            _eventually(lambda: processes_in(home) == [])
            _eventually(lambda: home.exists() != remove)
        finally:
            tests.kill()
            tests.wait()
            kill_processes_in(home)


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

"""The process behind `dagtest`: Airflow, loaded and warmed up once, which forks for every run.

A fork costs milliseconds and isolates completely: the environment, the imported modules, Airflow's caches,
the threads that `DAG.test` leaves behind and a run that hangs all end with it.

Started as a script with the folder of its Airflow, the descriptor of its end of a `multiprocessing` pipe and the names
of modules to import once, before the forks.
Says "ready", then answers each request (a dict) with the exit status of its fork. The outcome of the run is
in its own folder: `result.json` and `log.txt`.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

AIRFLOW = tuple(map(int, version("apache-airflow").split(".")[:2]))

WARM_UP = """
from datetime import datetime
from tests.airflow_sdk import DAG, task

with DAG("warm_up", schedule=None, start_date=datetime(2026, 1, 1)):
    @task
    def numbers():
        return [1]

    @task
    def number(value, **context):
        return value

    number.expand(value=numbers()) >> number.override(task_id="templated")(value="{{ run_id }}")
"""


def main(home: Path, connection: Connection, preload: Sequence[str]) -> None:
    """Serve requests until the other end is closed."""
    _log_to(home / "worker.log")
    folder = home / "warm_up"
    folder.mkdir(exist_ok=True)
    (folder / "dag.py").write_text(WARM_UP)
    _warm_up(folder, preload)
    connection.send("ready")
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        pid = os.fork()
        if pid == 0:
            connection.close()
            _serve(request)
            # Neither the loop nor the exit handlers of the worker are the fork's to run.
            os._exit(0)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _warm_up(folder: Path, preload: Sequence[str]) -> None:
    """Do what is slow before the forks: imports, the execution API's application, SQLAlchemy's statements."""
    from airflow import settings
    from sqlalchemy import event

    # Nobody reads the database of a machine that lost its power: no commit waits for the disk.
    event.listen(settings.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    if AIRFLOW >= (3,):
        from airflow.sdk.execution_time import supervisor

        if AIRFLOW < (3, 3):  # which would make the application anew for every task, for seconds
            supervisor.in_process_api_server = cache(supervisor.in_process_api_server)
        if AIRFLOW == (3, 0):
            # In line a rescheduled sensor would get the date as text, which real processes read back from JSON;
            # and what is said between task and supervisor would be logged, with the secrets to mask in it.
            import structlog
            from airflow.sdk.execution_time.comms import TaskRescheduleStartDate

            TaskRescheduleStartDate.model_construct = TaskRescheduleStartDate
            structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    _run_dag(folder, {})
    for name in preload:
        import_module(name)
    # Threads and database connections must not cross a fork. The transport to the application has the
    # former: its next use makes a new one, while the application, which took the time, stays.
    if AIRFLOW >= (3,):
        with suppress(AttributeError):
            del supervisor.in_process_api_server().transport
    settings.Session.remove()
    settings.engine.dispose()
    # The transport's end waits for its thread. In a fork, which has no such thread, a collection would make a task five
    # seconds late, at whatever moment one falls into it.
    gc.collect()
    gc.freeze()


def _serve(request: dict[str, Any]) -> None:
    """Run one request in the fork."""
    folder = Path(request["folder"])
    os.chdir(folder)
    _log_to(folder / "log.txt")
    os.environ.update(request["env"])
    tempfile.tempdir = None  # may be set in the environment, and was looked up before
    try:
        result = _run_dag(folder / "dags", request)
    except BaseException:
        result = {"error": traceback.format_exc()}
    (folder / "result.json").write_text(json.dumps(result, default=str))
    sys.stdout.flush()
    sys.stderr.flush()


def _run_dag(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """`DAG.test` the DAG that the request names, or else the only one in the folder."""
    os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(folder)

    from airflow import settings

    settings.configure_vars()  # reads the DAGs folder again
    bag = _parse(folder)
    if bag.import_errors:
        raise ImportError("\n".join(bag.import_errors.values()))
    dag_id = request.get("dag_id") or (next(iter(bag.dags)) if len(bag.dags) == 1 else None)
    if dag_id not in bag.dags:
        raise LookupError(f"no DAG with dag_id={dag_id!r}; the file holds {sorted(bag.dags)}")

    errors = _collect_errors()
    # The dates are there only when given: DAG.test takes a logical date of None for a run without one.
    dates = {name: request[name] for name in ("logical_date", "run_after") if name in request}
    if AIRFLOW < (3,):
        # It has no run_after, and every run of it has a logical date.
        dates = {"execution_date": dates.get("logical_date")}
    run = bag.dags[dag_id].test(run_conf=request.get("conf"), **dates)
    return {**_outcome(run), "errors": errors}


def _parse(folder: Path) -> Any:
    """The folder's DAGs, in the database as well where `DAG.test` does not see to it."""
    if AIRFLOW >= (3, 1):
        try:
            from airflow.dag_processing.dagbag import BundleDagBag
        except ImportError:  # Airflow 3.1
            from airflow.models.dagbag import BundleDagBag

        return BundleDagBag(dag_folder=folder, bundle_path=folder)

    from airflow.models.dagbag import DagBag

    sys.path.insert(0, str(folder))
    bag = DagBag(dag_folder=folder, include_examples=False)
    # Only an asset that is in the database takes events.
    if AIRFLOW >= (3,):
        from airflow.dag_processing.bundles.manager import DagBundlesManager

        DagBundlesManager().sync_bundles_to_db()
        bag.sync_to_db("dags-folder", None)
    else:
        bag.sync_to_db()
    return bag


def _collect_errors() -> list[dict[str, Any]]:
    """A list that fills with the errors of the tasks' tries: `DAG.test` itself only logs them."""
    from airflow.listeners import hookimpl

    try:
        from airflow.sdk.execution_time.task_runner import get_listener_manager  # wherever Airflow 3 has it
    except ImportError:
        from airflow.listeners.listener import get_listener_manager

    seen: list[dict[str, Any]] = []

    class Listener:
        @hookimpl
        def on_task_instance_running(self) -> None:
            # A crash is to log where, and to end the run. Airflow 3 has parsed the file, and for that taken the signal:
            # its handler returns to the very instruction that crashes, for ever.
            faulthandler.disable()
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            faulthandler.enable()

        @hookimpl
        def on_task_instance_failed(self, previous_state: Any, task_instance: Any, error: Any) -> None:
            seen.append(
                {
                    "task_id": task_instance.task_id,
                    "map_index": task_instance.map_index,
                    "try_number": task_instance.try_number,
                    "state": task_instance.state,
                    "type": type(error).__name__,
                    "message": str(error),
                    "traceback": "".join(traceback.format_exception(error)),
                }
            )

    get_listener_manager().add_listener(Listener())
    return seen


def _rendered_fields() -> Any:
    """Select task, map index and rendered fields of each task instance."""
    from airflow.models.renderedtifields import RenderedTaskInstanceFields as Rendered
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    if AIRFLOW < (3, 4):
        return select(Rendered.task_id, Rendered.map_index, Rendered.rendered_fields)
    # The primary key has become that of the task instance.
    query = select(TaskInstance.task_id, TaskInstance.map_index, Rendered.rendered_fields)
    return query.join(TaskInstance, TaskInstance.id == Rendered.task_instance_id)


def _outcome(run: Any) -> dict[str, Any]:
    """What the run left in the database."""
    from airflow.utils.session import create_session
    from sqlalchemy import select

    if AIRFLOW >= (3,):
        from airflow.models.asset import AssetEvent
        from airflow.models.xcom import XComModel
    else:
        from airflow.models.dataset import DatasetEvent as AssetEvent
        from airflow.models.xcom import XCom as XComModel

    with create_session() as session:
        rendered = {(task_id, map_index): fields for task_id, map_index, fields in session.execute(_rendered_fields())}
        return {
            "dag_id": run.dag_id,
            "run_id": run.run_id,
            "state": run.state,
            "task_instances": [
                {
                    "task_id": instance.task_id,
                    "map_index": instance.map_index,
                    "state": instance.state,
                    "try_number": instance.try_number,
                    "rendered_fields": rendered.get((instance.task_id, instance.map_index), {}),
                }
                for instance in run.get_task_instances(session=session)
            ],
            "xcoms": [
                {"task_id": row.task_id, "map_index": row.map_index, "key": row.key, "value": row.value}
                for row in session.scalars(select(XComModel))
            ],
            "asset_events": [
                {"uri": event.uri, "extra": event.extra, "source_task_id": event.source_task_id}
                for event in session.scalars(select(AssetEvent))
            ],
        }


def _log_to(path: Path) -> None:
    """Send the output of this process to a file, also that of loggers which hold the old streams."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Connection(int(sys.argv[2])), sys.argv[3:])

"""Act once Airflow has recorded that a task succeeded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from reducto_provider.airflow_compat import AIRFLOW_VERSION

if TYPE_CHECKING:
    from reducto_provider.airflow_compat import BaseOperator, Context

log = logging.getLogger(__name__)


def call_after_success(operator: BaseOperator, function: Callable[[], None]) -> None:
    """
    Call ``function`` once Airflow has recorded the success of the try that executes ``operator``.

    It is added after the author's own success callbacks. It is not called if the record can't be confirmed. Its errors
    are logged and do not fail the task.
    """
    given = operator.on_success_callback
    callbacks = [given] if callable(given) else list(given or ())
    operator.on_success_callback = [*callbacks, partial(_on_success, function)]


def _on_success(function: Callable[[], None], context: Context) -> None:
    try:
        if AIRFLOW_VERSION < (3, 0):
            _call_when_committed(context["ti"], function)
        elif _is_recorded(context["ti"]):
            function()
        else:
            log.warning("Airflow has not recorded this task's success: its changes are reported again")
    except Exception:  # noqa: BLE001  # the task has succeeded
        _log_failure()


def _is_recorded(ti: Any) -> bool:
    """
    Return whether Airflow 3 has recorded the success of this try.

    Airflow 3 calls success callbacks after the task has reported its success, 3.3 also when the report was refused. The
    state is that of the latest try, which is a different one if Airflow considered this one dead. Airflow refuses the
    second request for the id of any other try. Call this on the main thread.
    """
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ValidateInletsAndOutlets

    found = ti.get_task_states(ti.dag_id, map_index=ti.map_index, task_ids=[ti.task_id], run_ids=[ti.run_id])
    if list(found.get(ti.run_id, {}).values()) != ["success"]:
        return False
    task_runner.SUPERVISOR_COMMS.send(ValidateInletsAndOutlets(ti_id=ti.id))
    return True


def _call_when_committed(ti: Any, function: Callable[[], None]) -> None:
    """Call ``function`` after the commit: Airflow 2.11 calls success callbacks before it, and also after a skip."""
    from airflow import settings
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import event, select
    from sqlalchemy.orm import Session

    if ti.state != "success":
        return
    engine: Any = settings.engine
    query = select(TaskInstance.state).where(
        TaskInstance.dag_id == ti.dag_id,
        TaskInstance.run_id == ti.run_id,
        TaskInstance.task_id == ti.task_id,
        TaskInstance.map_index == ti.map_index,
        TaskInstance.try_number == ti.try_number,
    )
    called = False

    def after_commit(session: Session) -> None:
        nonlocal called
        if called:  # a listener can't be removed while it runs
            return
        try:
            # The session can't be used at this moment. The commit may have been a different one.
            with engine.connect() as connection:
                if connection.scalar(query) != "success":
                    return
            called = True
            function()
        except Exception:  # noqa: BLE001
            _log_failure()

    event.listen(Session, "after_commit", after_commit)


def _log_failure() -> None:
    log.warning("The changes that this task reported could not be recorded: they are reported again", exc_info=True)

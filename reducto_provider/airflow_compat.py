"""The one module that knows what differs among Airflow's versions, and their private corners."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, Context

log = logging.getLogger(__name__)


def call_after_success(operator: BaseOperator, function: Callable[[], None]) -> None:
    """
    Call ``function`` as soon as Airflow has recorded that the try which executes ``operator`` succeeded.

    It becomes the last of the operator's success callbacks, after those that its author has given it. It is not called
    where it can't be known that the success is recorded. An error in it is logged, and is no error of the task.
    """
    given = operator.on_success_callback
    callbacks = [given] if callable(given) else list(given or ())
    operator.on_success_callback = [*callbacks, partial(_on_success, function)]


def _on_success(function: Callable[[], None], context: Context) -> None:
    try:
        if not AIRFLOW_V_3_0_PLUS:
            _call_when_committed(context["ti"], function)
        elif _is_recorded(context["ti"]):
            function()
        else:
            log.warning("Airflow has not recorded this task's success: what it has reported is reported again")
    except Exception:  # noqa: BLE001  # the task has succeeded
        _log_failure()


def _is_recorded(ti: Any) -> bool:
    """
    Ask Airflow 3, which calls success callbacks after the task reported its success, in 3.3 also when that was refused.

    Two questions, since the state is that of the task instance's latest try, which is another one after this one was
    given up for dead. The second is refused for the id of a try that is not the latest. To be asked on the main thread.
    """
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ValidateInletsAndOutlets

    found = ti.get_task_states(ti.dag_id, map_index=ti.map_index, task_ids=[ti.task_id], run_ids=[ti.run_id])
    if list(found.get(ti.run_id, {}).values()) != ["success"]:
        return False
    task_runner.SUPERVISOR_COMMS.send(ValidateInletsAndOutlets(ti_id=ti.id))
    return True


def _call_when_committed(ti: Any, function: Callable[[], None]) -> None:
    """Wait for the commit: Airflow 2.11 calls success callbacks before it, and after a skip too."""
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
        if called:  # a listener can't be removed while it is called
            return
        try:
            # Not by the session, which can't be used at this moment. The commit may have been another one.
            with engine.connect() as connection:
                if connection.scalar(query) != "success":
                    return
            called = True
            function()
        except Exception:  # noqa: BLE001
            _log_failure()

    event.listen(Session, "after_commit", after_commit)


def _log_failure() -> None:
    log.warning("It could not be noted what this task has reported, which is therefore reported again", exc_info=True)

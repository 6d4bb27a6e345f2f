"""Differences between Airflow's versions, and uses of its private attributes. No other module knows them."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from airflow.providers.common.compat.sdk import BaseOperator
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from reducto_provider.usage.fields import GIVEN, REMEDIES, check_given, check_not_empty, outline, restore_literals
from reducto_provider.usage.run import Run
from reducto_provider.usage.schedule import Schedule

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

CACHED_LOGGER: Final = "_cached_logger"
"""
The attribute in which operators of Airflow 3 cache their logger.

Airflow 2.11 leaves its own ``_log`` out of pickles. Airflow 3 does not, and structlog's logger of a task process can't
be pickled.
"""

_DELIMITERS = {
    "block_start_string",
    "variable_start_string",
    "comment_start_string",
    "line_statement_prefix",
    "line_comment_prefix",
}


_ASSET_RUN_TYPES = ("asset_triggered", "dataset_triggered")  # the latter in Airflow 2.11

_PRESETS = {"@quarterly": "0 0 1 */3 *"}
"""Presets unknown to croniter, which some versions of Airflow, such as 3.2, pass on as their author wrote them."""


def run_from_context(context: Mapping[str, Any]) -> Run:
    """Return what the days of a task's DAG run depend on. ``dag_run``, ``dag`` and ``partition_date`` are read."""
    run = context["dag_run"]
    return Run(
        interval_start=run.data_interval_start,
        interval_end=run.data_interval_end,
        # run_after came with Airflow 3.0. In 2.11 a run without an interval has a logical date.
        moment=run.data_interval_end or getattr(run, "run_after", None) or run.logical_date,
        by_assets=run.run_type in _ASSET_RUN_TYPES,
        partition_key=getattr(run, "partition_key", None),  # from Airflow 3.2
        partition_date=context.get("partition_date"),  # from Airflow 3.3
        schedule=_schedule_of(context["dag"].timetable),
    )


def _schedule_of(timetable: Any) -> Schedule:
    """
    Read a timetable's schedule from its attributes: Airflow's timetables have no common method for it.

    They are private in Airflow before 3.2, and from then on in the timetables that the scheduler and the triggerer use.
    """

    def attribute(name: str) -> Any:
        return getattr(timetable, name, getattr(timetable, f"_{name}", None))

    expression = attribute("expression")
    by_time = attribute("timetable")  # of AssetOrTimeSchedule
    return Schedule(
        timetable=type(timetable).__name__,
        expression=_PRESETS.get(expression, expression),
        timezone=attribute("timezone"),
        delta=attribute("delta"),
        key_format=attribute("key_format"),
        run_offset=attribute("run_offset") or 0,
        parts=tuple(map(_schedule_of, attribute("timetables") or () if by_time is None else (by_time,))),
    )


class GivenArguments(BaseOperator):
    """
    An operator that distinguishes arguments that were given from those that were left out.

    The arguments are those of :data:`REMEDIES`, whether or not a subclass templates them. Others of a subclass are not
    checked.

    Airflow replaces templates in the attributes themselves. After that, None may be an argument that was left out or
    the result of a template. The attributes are therefore recorded when the DAG is parsed, and again before they are
    rendered, since an author may assign them. Rendering does not change literals.
    """

    __signature__: ClassVar[Signature]

    _named: frozenset[str] = frozenset()
    """The arguments that were named when the operator was created."""

    _outlines: Mapping[str, object] = {}
    """The outline of each argument that was given, from before it was rendered."""

    _is_rendered = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Otherwise help() and other inspection would show the arguments of __new__.
        init = signature(cls.__init__)
        cls.__signature__ = init.replace(parameters=list(init.parameters.values())[1:])

    def __new__(cls, *_: Any, **arguments: Any) -> Self:
        """Record the names of the arguments: ``__init__`` can't distinguish None from an argument that was left out."""
        operator = super().__new__(cls)
        # Airflow 2.11 copies attributes in order, and can copy none before this one of its own exists.
        vars(operator).update(_BaseOperator__init_kwargs={}, _named=frozenset(arguments))
        return operator

    def parse_arguments(self) -> None:
        """
        Record the arguments and check literals, as the last step of ``__init__``.

        An instance of a mapped operator is created when a task runs. Its literals can't be recognized, so
        :meth:`check_arguments` checks it.

        :raises ValueError: naming the argument, the value and the remedy.
        """
        if not is_from_mapped(self):
            self._record_arguments()
            if not has_other_delimiters(self):
                self._check_all_literals()

    def _arguments(self) -> list[str]:
        return [name for name in REMEDIES if hasattr(self, name)]

    def _record_arguments(self) -> None:
        """Record what was given, and set the default of what was left out."""
        self._outlines = {}
        for name in self._arguments():
            value = getattr(self, name)
            if is_mapped_argument(self, name):
                # An element may come from another task, so its literals can't be recognized.
                self._outlines[name] = GIVEN
            elif value is not None:
                self._outlines[name] = GIVEN if has_other_delimiters(self) else outline(value)
            elif name in (defaults := _defaults(type(self))):
                setattr(self, name, defaults[name])

    def check_arguments(self) -> None:
        """
        Check, in a task, that no argument that was given resolved to nothing.

        :raises ValueError: naming the argument, the value and the remedy.
        """
        for name, outlined in self._outlines.items():
            check_given(name, outlined, getattr(self, name))
        if is_from_mapped(self) or has_other_delimiters(self):
            self._check_all_literals()

    def _check_all_literals(self) -> None:
        check_not_empty({name: getattr(self, name) for name in self._arguments()})
        self._check_literals()

    @abstractmethod
    def _check_literals(self) -> None:
        """
        Check the literal arguments. None of them is empty.

        :raises ValueError: naming the argument, the value and the remedy.
        """

    def _do_render_template_fields(
        self, parent: Any, template_fields: Iterable[str], context: Context, jinja_env: Any, seen_oids: set[int]
    ) -> None:
        # Airflow 2.11 to 3.3 call this for operators and for instances of mapped ones, but render_template_fields only
        # for the former. They call it again for attributes that have template fields of their own.
        if parent is not self or self._is_rendered:
            super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)
            return
        self._record_arguments()
        written = {name: outline(getattr(self, name)) for name in self._arguments()}
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)
        if not has_other_delimiters(self):
            for name, outlined in written.items():
                setattr(self, name, restore_literals(outlined, getattr(self, name)))
        self._is_rendered = True


def is_from_mapped(operator: BaseOperator) -> bool:
    """Return whether this is an instance of a mapped operator, created in a worker. Airflow has no public sign."""
    return bool(getattr(operator, "_BaseOperator__from_mapped", False))


def has_other_delimiters(operator: BaseOperator) -> bool:
    """Return whether the DAG sets other delimiters than Jinja's default ``{{``, so that any text may be a template."""
    dag = operator.get_dag()
    return dag is not None and not _DELIMITERS.isdisjoint(getattr(dag, "jinja_environment_kwargs", None) or ())


def is_executed(operator: BaseOperator) -> bool:
    """Return whether this is the copy that a worker of Airflow 3 executes, with attributes changed by Airflow."""
    return bool(getattr(operator, "_lock_for_execution", False))


def is_mapped_argument(operator: GivenArguments, name: str) -> bool:
    """
    Return whether a mapped element gives this argument, rather than ``partial()``.

    Airflow creates the instance from both alike. With ``expand_kwargs(strict=False)`` an element may replace an
    argument of ``partial()``. If None may come from either, it counts as the element's.
    """
    if not is_from_mapped(operator) or name not in operator._named:
        return False
    mapped: Any = operator.dag.get_task(operator.task_id)
    given = mapped.partial_kwargs
    if name not in given or given[name] is not getattr(operator, name):
        return True
    is_expand = isinstance(mapped.expand_input.value, Mapping)  # else expand_kwargs
    return given[name] is None and not is_expand and not mapped._disallow_kwargs_override


@cache
def _defaults(operator_class: type[BaseOperator]) -> dict[str, Any]:
    """Return the arguments of an operator that have a default, and the defaults."""
    found: dict[str, Any] = {}
    for base in operator_class.__mro__:
        init = vars(base).get("__init__")
        for parameter in signature(init).parameters.values() if init else ():
            if parameter.default is not Parameter.empty and parameter.name in REMEDIES:
                found.setdefault(parameter.name, parameter.default)
    return found


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
        if not AIRFLOW_V_3_0_PLUS:
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

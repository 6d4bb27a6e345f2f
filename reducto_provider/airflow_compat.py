"""The one module that knows what differs among Airflow's versions, and their private corners."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from airflow.providers.common.compat.sdk import BaseOperator, BranchMixIn
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS, AIRFLOW_V_3_2_PLUS

from reducto_provider.usage.fields import GIVEN, REMEDIES, check_given, check_not_empty, outline, restore_literals

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

CACHED_LOGGER: Final = "_cached_logger"
"""
The attribute in which operators of Airflow 3 keep the logger they have used. Unlike Airflow 2.11, which leaves its own
``_log`` out of pickles, they pickle it along, and structlog's logger of a task process can't be pickled.
"""

_DELIMITERS = {
    "block_start_string",
    "variable_start_string",
    "comment_start_string",
    "line_statement_prefix",
    "line_comment_prefix",
}


class GivenArguments(BaseOperator):
    """
    An operator that knows which of its arguments were given, and sees that none of them got lost.

    They are those of :data:`REMEDIES`, whichever of them a subclass has templated, and none that it has of its own.

    Airflow replaces templates in the attributes themselves, after which None may be an argument that was left out or
    what came of a template. So this looks at them when the DAG is parsed, and again just before they are rendered,
    since an author may assign attributes. What is literal is not changed by rendering.
    """

    __signature__: ClassVar[Signature]

    _named: frozenset[str] = frozenset()
    """The arguments that were named when the operator was made."""

    _outlines: Mapping[str, object] = {}
    """By argument that was given, what it was before it was rendered."""

    _is_rendered = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Or help(), and what else inspects a class, would show the arguments of __new__.
        init = signature(cls.__init__)
        cls.__signature__ = init.replace(parameters=list(init.parameters.values())[1:])

    def __new__(cls, *_: Any, **arguments: Any) -> Self:
        """Note the arguments' names. ``__init__`` can't tell None that was given from one that was left out."""
        operator = super().__new__(cls)
        # Airflow 2.11 copies attributes in their order, and can copy none before this one of its own is there.
        vars(operator).update(_BaseOperator__init_kwargs={}, _named=frozenset(arguments))
        return operator

    def parse_arguments(self) -> None:
        """
        Note what was given, and check what is literal: the last step of ``__init__``.

        Of one instance of a mapped operator, which is made when a task runs, and where it can't be told what is
        literal, :meth:`check_arguments` does.

        :raises ValueError: naming the argument, the value and the remedy.
        """
        if not is_from_mapped(self):
            self._remember_arguments()
            if not has_other_delimiters(self):
                self._check_all_literals()

    def _arguments(self) -> list[str]:
        return [name for name in REMEDIES if hasattr(self, name)]

    def _remember_arguments(self) -> None:
        """Note what was given, and put the default for what was left out."""
        self._outlines = {}
        for name in self._arguments():
            value = getattr(self, name)
            if is_mapped_argument(self, name):
                # Of an element that another task made nobody knows what is literal.
                self._outlines[name] = GIVEN
            elif value is not None:
                self._outlines[name] = GIVEN if has_other_delimiters(self) else outline(value)
            elif name in (defaults := _defaults(type(self))):
                setattr(self, name, defaults[name])

    def check_arguments(self) -> None:
        """
        See, in a task, that nothing that was given came out as nothing.

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
        Check the arguments that are literal, none of which is empty.

        :raises ValueError: naming the argument, the value and the remedy.
        """

    def _do_render_template_fields(
        self, parent: Any, template_fields: Iterable[str], context: Context, jinja_env: Any, seen_oids: set[int]
    ) -> None:
        # Airflow 2.11 to 3.3 call this for an operator and for the instance of a mapped one, render_template_fields for
        # the former alone. They call it again for attributes that have template fields of their own.
        if parent is not self or self._is_rendered:
            super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)
            return
        self._remember_arguments()
        written = {name: outline(getattr(self, name)) for name in self._arguments()}
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)
        if not has_other_delimiters(self):
            for name, outlined in written.items():
                setattr(self, name, restore_literals(outlined, getattr(self, name)))
        self._is_rendered = True


class SkippingBranchMixIn(BranchMixIn):
    """
    Airflow's branch mixin, which skips in a mapped task group as well.

    There Airflow leaves it to the scheduler to skip. From 3.2 on its scheduler looks for what a branch followed under
    the index of a branch that is not mapped, finds nothing, and runs all branches. The instances are there by then:
    those of a mapped task group are made together.
    """

    if AIRFLOW_V_3_2_PLUS:

        @staticmethod
        def _set_state_to_skipped(tasks: Sequence[str | tuple[str, int]], map_index: int | None) -> None:
            from airflow.providers.common.compat.sdk import DownstreamTasksSkipped

            if tasks:
                raise DownstreamTasksSkipped(tasks=tasks)  # type: ignore[no-untyped-call]


def is_from_mapped(operator: BaseOperator) -> bool:
    """Whether this is one instance of a mapped operator, which Airflow makes in a worker. It has no public sign."""
    return bool(getattr(operator, "_BaseOperator__from_mapped", False))


def has_other_delimiters(operator: BaseOperator) -> bool:
    """Whether the author's templates begin by something else than Jinja's usual ``{{``, so that any text may be one."""
    dag = operator.get_dag()
    return dag is not None and not _DELIMITERS.isdisjoint(getattr(dag, "jinja_environment_kwargs", None) or ())


def is_executed(operator: BaseOperator) -> bool:
    """Whether this is the copy that a worker of Airflow 3 executes, whose attributes are no longer its author's."""
    return bool(getattr(operator, "_lock_for_execution", False))


def is_mapped_argument(operator: GivenArguments, name: str) -> bool:
    """
    Whether an element of what a mapped operator is expanded over has given this argument, rather than ``partial()``.

    Airflow makes the instance of both alike. ``expand_kwargs(strict=False)`` lets an element give anew what
    ``partial()`` has given; where both may be the source of None, it counts as the element's.
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
    """The arguments of an operator that have a default, with that."""
    found: dict[str, Any] = {}
    for base in operator_class.__mro__:
        init = vars(base).get("__init__")
        for parameter in signature(init).parameters.values() if init else ():
            if parameter.default is not Parameter.empty and parameter.name in REMEDIES:
                found.setdefault(parameter.name, parameter.default)
    return found


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

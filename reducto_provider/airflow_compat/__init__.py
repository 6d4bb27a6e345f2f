"""
Differences between Airflow's versions, and uses of its private attributes. No other package knows them.

Names that have moved between versions of Airflow are imported from here. They are found when they are first used, so
that importing this module costs no more than an operator's base class.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from airflow import __version__

from reducto_provider.usage.fields import GIVEN, REMEDIES, check_given, check_not_empty, outline, restore_literals
from reducto_provider.usage.run import Run
from reducto_provider.usage.schedule import Schedule

AIRFLOW_VERSION: Final = tuple(int(number) for number in __version__.split(".")[:2])
"""Airflow's version, as in ``AIRFLOW_VERSION >= (3, 1)``."""

PLUGINS_HAVE_VIEWS: Final = AIRFLOW_VERSION >= (3, 1)
"""Whether a plugin can add apps and places in the navigation, which 3.0 has not and 2.11 has for Flask alone."""

STARTS_FROM_TRIGGER: Final = AIRFLOW_VERSION >= (3, 3)
"""Whether a wait can begin in the triggerer: before, Airflow renders none of the trigger's arguments, or ignores it."""

WATCHERS_HAVE_QUEUES: Final = AIRFLOW_VERSION >= (3, 4)
"""Whether the trigger of a watcher can name the queue of its triggerer."""

BRANCHES_SKIP_MAPPED_TASKS: Final = AIRFLOW_VERSION >= (3, 2)
"""
Whether a branch skips mapped tasks whose instances are made with the run. Before, the scheduler looks for what the
branch followed under the index of each instance, finds nothing, and runs them all.
"""

_EARLIER_LOCATIONS: Final = {
    "AirflowException": ["airflow.exceptions:AirflowException"],
    "AirflowFailException": ["airflow.exceptions:AirflowFailException"],
    "AirflowNotFoundException": ["airflow.exceptions:AirflowNotFoundException"],
    "AirflowSensorTimeout": ["airflow.exceptions:AirflowSensorTimeout"],
    "AirflowSkipException": ["airflow.exceptions:AirflowSkipException"],
    "AirflowTaskTimeout": ["airflow.exceptions:AirflowTaskTimeout"],
    "AirflowPlugin": ["airflow.plugins_manager:AirflowPlugin"],
    "Asset": ["airflow.datasets:Dataset"],
    "BaseHook": ["airflow.hooks.base:BaseHook"],
    "BaseOperator": ["airflow.models.baseoperator:BaseOperator"],
    "BaseOperatorLink": ["airflow.models.baseoperatorlink:BaseOperatorLink"],
    "BaseSensorOperator": ["airflow.sensors.base:BaseSensorOperator"],
    "BranchMixIn": [
        "airflow.providers.standard.operators.branch:BranchMixIn",
        "airflow.operators.branch:BranchMixIn",
    ],
    "Connection": ["airflow.models.connection:Connection"],
    "ObjectStoragePath": ["airflow.io.path:ObjectStoragePath"],
    "PokeReturnValue": ["airflow.sensors.base:PokeReturnValue"],
    "conf": ["airflow.configuration:conf"],
    "redact": ["airflow.sdk.execution_time.secrets_masker:redact", "airflow.utils.log.secrets_masker:redact"],
}
"""
Where Airflow 2.11 and 3.0 have what ``airflow.sdk`` or ``common.compat.sdk`` has later.

The latter is new in common-compat 1.8: the releases before October 2025 came with older ones.
"""

if TYPE_CHECKING:
    from airflow.plugins_manager import AirflowPlugin as AirflowPlugin
    from airflow.providers.common.compat.sdk import AirflowException as AirflowException
    from airflow.providers.common.compat.sdk import AirflowFailException as AirflowFailException
    from airflow.providers.common.compat.sdk import AirflowNotFoundException as AirflowNotFoundException
    from airflow.providers.common.compat.sdk import AirflowSensorTimeout as AirflowSensorTimeout
    from airflow.providers.common.compat.sdk import AirflowSkipException as AirflowSkipException
    from airflow.providers.common.compat.sdk import AirflowTaskTimeout as AirflowTaskTimeout
    from airflow.providers.common.compat.sdk import Asset as Asset
    from airflow.providers.common.compat.sdk import BaseHook as BaseHook
    from airflow.providers.common.compat.sdk import BaseOperator as BaseOperator
    from airflow.providers.common.compat.sdk import BaseOperatorLink as BaseOperatorLink
    from airflow.providers.common.compat.sdk import BaseSensorOperator as BaseSensorOperator
    from airflow.providers.common.compat.sdk import BranchMixIn as BranchMixIn
    from airflow.providers.common.compat.sdk import Connection as Connection
    from airflow.providers.common.compat.sdk import Context as Context
    from airflow.providers.common.compat.sdk import ObjectStoragePath as ObjectStoragePath
    from airflow.providers.common.compat.sdk import PokeReturnValue as PokeReturnValue
    from airflow.providers.common.compat.sdk import TaskInstanceKey as TaskInstanceKey
    from airflow.providers.common.compat.sdk import XComArg as XComArg
    from airflow.providers.common.compat.sdk import conf as conf
    from airflow.providers.common.compat.sdk import redact as redact
    from airflow.triggers.base import BaseEventTrigger as BaseEventTrigger
else:

    def __getattr__(name: str) -> Any:
        """
        Return one of Airflow's names, from wherever this version has it.

        :raises AttributeError: it has none of this name.
        """
        for location in _locations(name):
            module, _, attribute = location.partition(":")
            try:
                found = getattr(import_module(module), attribute)
            except (ImportError, AttributeError):
                continue
            globals()[name] = found
            return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def _locations(name: str) -> list[str]:
        if name == "BaseEventTrigger":  # new in Airflow 3.0; before, all triggers are for tasks alone
            return ["airflow.triggers.base:BaseEventTrigger", "airflow.triggers.base:BaseTrigger"]
        if name not in _EARLIER_LOCATIONS:
            return []
        return [
            f"airflow.providers.common.compat.sdk:{name}",
            f"airflow.sdk:{name}",
            *_EARLIER_LOCATIONS[name],
        ]

    BaseOperator = __getattr__("BaseOperator")

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
    An author's own timetable may have attributes of the same names and of other types: they are ignored.
    """

    def attribute(name: str) -> Any:
        return getattr(timetable, name, getattr(timetable, f"_{name}", None))

    expression = attribute("expression")
    parts = attribute("timetables")
    by_time = attribute("timetable")  # of AssetOrTimeSchedule
    if by_time is not None:
        parts = [by_time]
    return Schedule(
        timetable=type(timetable).__name__,
        expression=_PRESETS.get(expression, expression) if isinstance(expression, str) else None,
        timezone=attribute("timezone"),
        delta=attribute("delta"),
        key_format=attribute("key_format"),
        run_offset=attribute("run_offset") or 0,
        # Corrected in Airflow 3.4.
        offset_stops_at_skipped_times=bool(attribute("run_offset")) and AIRFLOW_VERSION < (3, 4),
        parts=tuple(map(_schedule_of, parts)) if isinstance(parts, list | tuple) else (),
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


def mapped_task_group_of(task: Any) -> Any:
    """Return the mapped task group that a task is in, or None. Airflow's method for it is private."""
    return task.get_closest_mapped_task_group()


def has_instances_from_the_start(task: Any) -> bool:
    """Return whether a task's instances are made with the run: it, or its group, is mapped over literals alone."""
    try:
        return bool(task.get_parse_time_mapped_ti_count())
    except Exception:  # noqa: BLE001  # NotMapped and NotFullyPopulated, whose modules differ between versions
        return False


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


async def get_async_connection(hook: BaseHook, conn_id: str) -> Connection:
    """
    Look a connection up through its hook, without blocking the event loop.

    Before Airflow 3.3.2 ``aget_connection`` masks secrets with a synchronous call to the supervisor, which fails while
    another call is in flight. There the synchronous look-up runs in asgiref's one thread.
    """
    if _has_async_masking():
        connection: Connection = await hook.aget_connection(conn_id)
        return connection
    from asgiref.sync import sync_to_async

    return await sync_to_async(hook.get_connection)(conn_id)


async def get_async_extra_dejson(connection: Connection) -> dict[str, Any]:
    """Return a connection's extra. Reading it masks secrets, for which :func:`get_async_connection` has the reason."""
    if _has_async_masking():
        extra: dict[str, Any] = await connection.aextra_dejson()
        return extra
    from asgiref.sync import sync_to_async

    return await sync_to_async(lambda: connection.extra_dejson)()


@cache
def _has_async_masking() -> bool:
    from reducto_provider.airflow_compat import Connection

    return hasattr(Connection, "aextra_dejson")

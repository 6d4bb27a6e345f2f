"""Wait until usage exceeds a threshold."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, get_args

from airflow.providers.common.compat.sdk import (
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_3_PLUS

from reducto_provider.airflow_compat import GivenArguments, has_other_delimiters, is_executed, is_from_mapped
from reducto_provider.exceptions import (
    ReductoConfigurationError,
    ReductoCreditsUnavailableError,
    ReductoTriggerEventError,
    ReductoWindowClosedError,
    error_by_name,
)
from reducto_provider.links.studio import ReductoStudioLink
from reducto_provider.run_state import DropsRunState
from reducto_provider.sensors.failure_store import FailureStore
from reducto_provider.triggers.polls import (
    MAX_FAILURE_TIME,
    MIN_INTERVAL,
    FailedPolls,
    as_reducto_error,
    retry_after_of,
    utc_minute,
)
from reducto_provider.usage.fields import QUERY_FIELDS, check_literals, is_literal
from reducto_provider.usage.query import unmatched_filters
from reducto_provider.usage.report import CreditsUnavailableError, Metric
from reducto_provider.usage.threshold import (
    METRICS,
    RUN_FIELDS,
    Reading,
    UsageThreshold,
    check_one_window,
    parse_threshold,
)
from reducto_provider.usage.window import NoDayEndedError, check_window

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from reducto_provider.hooks.reducto import ReductoHook
    from reducto_provider.usage.query import UsageQuery

ClosedWindowAction = Literal["skip", "fail", "wait"]

CLOSED_WINDOW_ACTIONS: Final = get_args(ClosedWindowAction)

# The last poll begins when the time is over, and takes thirteen minutes if a connection's default attempts all fail.
_DEFERRAL_GRACE = timedelta(minutes=15)

_MAX_WAIT = timedelta(days=36_500)  # Airflow adds the time of a deferral to now: timedelta.max is too much

# What Airflow 3.3 has no answer for when its triggerer renders it: the trigger would hang until the timeout.
_UNANSWERED = re.compile(
    r"\bxcom_pull\s*\((?![^}]*\bmap_indexes\b)|\bprev_\w+_success\b|\bget_previous_(dagrun|start_date)\b"
)


class ReductoUsageThresholdSensor(DropsRunState, GivenArguments, BaseSensorOperator):
    """
    Wait until the usage of a window exceeds a threshold; to equal it is not to exceed it.

    The XCom is the reading: ``metric``, ``value``, ``used``, ``projected``, ``threshold``, ``exceeded``,
    ``usage_start_date`` and ``usage_end_date`` of the window, ``org_id``, ``group_by``, ``group`` and ``time``.

    The window is fixed by the DAG run: retries, clears and backfills ask the same question. When it is over and
    the threshold was not exceeded, ``on_closed_window`` decides. The outcome is the same in the modes ``poke`` and
    ``reschedule`` and when ``deferrable``:

    =========================================  ====================  ==============================
    what happens                               task                  ``soft_fail`` or ``never_fail``
    =========================================  ====================  ==============================
    exceeded                                   success               success
    ``timeout`` is over                        failed, no retry      skipped
    ``execution_timeout`` is over              failed                skipped
    window over: ``skip``                      skipped               skipped
    window over: ``fail``                      failed, no retry      skipped
    401, 403, 400, no credits                  failed, no retry      skipped
    an answer against the contract             failed                skipped
    transient errors                           goes on waiting       goes on waiting
    the same, beyond ``max_failure_time``      failed                skipped
    an exception that nobody foresaw           failed                skipped
    =========================================  ====================  ==============================

    An argument that is not named, or is None when the DAG is parsed, is left out and has its default. Any other is
    given: coming out as nothing, it fails the task at once. :class:`ReductoUsageExportOperator` says more.

    Transient errors (408, 425, 429, 5xx, an HTML page, no whole answer) end the wait when they have lasted
    ``max_failure_time`` and at least five polls in a row have failed. ``silent_fail`` tolerates without end whatever a
    retry might fix. ``execution_timeout`` bounds the whole wait in every mode. When the key is refused (401), the
    connection is read once more before the task fails.

    :param threshold: 0 or more, less than 1e18; templated.
    :param metric: ``credits`` or ``requests``.
    :param window: ``month`` (the default), ``week`` (from Monday), ``day``: the calendar period, in UTC days, that
        holds the run's moment; a whole number N: the N days that end with that moment's; ``run``: the days that
        the run covers.
    :param usage_start_date: first day of an explicit window, instead of ``window``; ``"run"`` as both days for those
        that the run covers.
    :param usage_end_date: its last day, included.
    :param per_group: hold each group of ``group_by`` against the threshold by itself, instead of their sum.
    :param projected: compare the projected usage of the whole window with the threshold: what was used, and for each
        day to come the mean of its weekday over up to four complete weeks before, which may have begun before the
        window. With less than two weeks the mean of all complete days; with less than three complete days, what was
        used. A day is complete when it has been over for more than ``settle_days``.
    :param on_closed_window: ``skip``, ``fail``, or ``wait`` for restatements until the timeout.
    :param settle_days: days after its end in which a window still counts as open, for restatements.
    :param org_id: the organization; by default the one of the connection's extra ``org_id``, else the key's own.
    :param group_by: ``product``, ``feature``, ``api_key`` or ``file_type``.
    :param products: only these; one text or several, ``"*"`` for all. Likewise ``features``, ``api_keys`` and
        ``file_types``.
    :param reducto_conn_id: the Airflow connection of type ``reducto``.
    :param deferrable: wait in the triggerer, holding no worker slot.
    :param start_from_trigger: on Airflow 3.3 and later begin the wait in the triggerer, so that a worker has the task
        only once it is over. Elsewhere, and when the sensor is mapped, it defers from a worker as with
        ``deferrable``, which this implies.
    :param poke_interval: seconds between polls, one at the least. The last poll is when ``timeout`` is over.
    :param max_failure_time: how long transient errors must have lasted before they end the wait, as ``timedelta`` or
        seconds; 0 for five failed polls in a row, however close.
    :raises ValueError: when the DAG is parsed, for a literal argument that can't be right.
    """

    run_state = ("hook", "_failure_store")
    _failure_store: FailureStore | None = None

    template_fields: Sequence[str] = ("threshold", "window", *QUERY_FIELDS, "reducto_conn_id")
    operator_extra_links = (ReductoStudioLink(),)
    ui_color = "#e4e0f5"

    def __init__(
        self,
        *,
        threshold: float | Decimal | str,
        metric: Metric = "credits",
        window: str | int = "month",
        usage_start_date: date | str | None = None,
        usage_end_date: date | str | None = None,
        per_group: bool = False,
        projected: bool = False,
        on_closed_window: ClosedWindowAction = "skip",
        settle_days: int = 0,
        org_id: str | None = None,
        group_by: str = "product",
        products: str | Sequence[str] | None = None,
        features: str | Sequence[str] | None = None,
        api_keys: str | Sequence[str] | None = None,
        file_types: str | Sequence[str] | None = None,
        reducto_conn_id: str = "reducto_default",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        start_from_trigger: bool = False,
        poke_interval: timedelta | float = 300,
        max_failure_time: timedelta | float = MAX_FAILURE_TIME,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.threshold = threshold
        self.metric = metric
        self.window = window
        self.usage_start_date = usage_start_date
        self.usage_end_date = usage_end_date
        self.per_group = per_group
        self.projected = projected
        self.on_closed_window = on_closed_window
        self.settle_days = settle_days
        self.org_id = org_id
        self.group_by = group_by
        self.products = products
        self.features = features
        self.api_keys = api_keys
        self.file_types = file_types
        self.reducto_conn_id = reducto_conn_id
        self.deferrable = deferrable or start_from_trigger
        self.max_failure_time = _parse_seconds("max_failure_time", max_failure_time)
        self._failed_polls = FailedPolls(self.max_failure_time, silent_fail=self.silent_fail)
        self._retry_after = 0.0
        self._started_at = 0.0
        self._warned = False
        self.parse_arguments()
        # Of a mapped sensor this is one that a worker has made, which defers.
        if start_from_trigger and not is_from_mapped(self):
            self._start_from_trigger()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # An author, or a subclass, may assign attributes: the trigger is to ask for what they say.
        made = self.start_from_trigger and "start_trigger_args" in vars(self) and not is_executed(self)
        if made and name not in ("start_from_trigger", "start_trigger_args"):
            self._start_from_trigger()

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Wait, and return the reading."""
        self._failed_polls.reset()
        self._failure_store = None
        if self.mode == "reschedule" and not self.deferrable and "task_state_store" in context:  # from Airflow 3.3 on
            self._failure_store = FailureStore(context)
            self._failure_store.load(self._failed_polls)
        self._started_at = time.time()
        try:
            reading: dict[str, Any] | None = super().execute(context)
        except (AirflowSensorTimeout, AirflowTaskTimeout) as error:
            self._fail(error)
        return reading

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Ask once and decide; when deferrable and there is to wait, hand over to the trigger."""
        condition = self._condition(context)
        self._retry_after = 0.0
        done: bool | PokeReturnValue = False
        try:
            done = self._poll(condition)
        except AirflowSkipException:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it means the same in every mode
            self._tolerate(error, condition.query)
        else:
            self._failed_polls.reset()
        if self.deferrable and not done and time.time() < self._ends_at:
            self._defer(condition)
        return done

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Make of the trigger's event what :meth:`execute` would have returned or raised."""
        try:
            match event:
                case {"status": "exceeded", "reading": {"exceeded": True} as sent}:
                    # As it was sent it is what poke returns.
                    self.log.info("%s: exceeded, as the triggerer saw", Reading.from_json(sent))
                    return dict(sent)
                case {"status": "closed", "reading": {"exceeded": False} as sent}:
                    self._give_up(Reading.from_json(sent))
                case {"status": "skip", "message": str(message)}:
                    raise AirflowSkipException(message)
                case {"status": "timeout", "message": str(message)}:
                    raise AirflowSensorTimeout(message)
                case {"status": "error", "error": str(name), "message": str(message)}:
                    raise error_by_name(name, message)
        except ValueError as error:
            raise ReductoTriggerEventError(f"the trigger's event can't be read: {error}") from error
        raise ReductoTriggerEventError(f"the trigger's event has no meaning here: {event!r:.200}")

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """:meth:`execute_complete`, with what ``soft_fail`` and ``never_fail`` make of an error."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSkipException as skip:
            if isinstance(skip.__cause__, Exception) and self._skips_errors:
                self._fail(skip.__cause__)  # Airflow's own words for it don't say why
            raise
        except Exception as error:  # noqa: BLE001  # as in poke
            self._fail(error)

    @property
    def reschedule(self) -> bool:
        """Not while polls fail and nothing remembers it: rescheduled, the task would forget since when they do."""
        # Airflow 2 asks before anything of this class is there.
        failed_polls: FailedPolls | None = getattr(self, "_failed_polls", None)
        if self.mode != "reschedule" or failed_polls is None or not failed_polls.count or self.silent_fail:
            return self.mode == "reschedule"
        return self._failure_store is not None and self._failure_store.is_current

    @cached_property
    def hook(self) -> ReductoHook:
        """The hook of ``reducto_conn_id``."""
        from reducto_provider.hooks.reducto import ReductoHook

        return ReductoHook(self.reducto_conn_id)

    def _check_literals(self) -> None:
        check_literals({name: getattr(self, name) for name in QUERY_FIELDS})
        if is_literal(self.threshold):
            parse_threshold(self.threshold)
        if is_literal(self.window):
            check_one_window(check_window(self.window), self.usage_start_date)
        for name, allowed in (("metric", METRICS), ("on_closed_window", CLOSED_WINDOW_ACTIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name in ("per_group", "projected"):
            if not isinstance(getattr(self, name), bool):  # no template: any text would be taken for True
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if not isinstance(self.settle_days, int) or isinstance(self.settle_days, bool) or self.settle_days < 0:
            raise ValueError(f"settle_days must be a whole number, 0 or more, not {self.settle_days!r}")

    def _condition(self, context: Context) -> UsageThreshold:
        try:
            self.check_arguments()
            return UsageThreshold.from_context(context, **{name: getattr(self, name) for name in RUN_FIELDS})
        except NoDayEndedError as error:
            raise AirflowSkipException(str(error)) from error
        except (ValueError, OverflowError) as error:
            self._fail(ReductoConfigurationError(f"{self.task_id}: {error}"))

    def _poll(self, condition: UsageThreshold) -> PokeReturnValue | Literal[False]:
        moment = datetime.now(UTC)
        query = condition.query_at(moment)
        reading = None
        if query is not None:
            try:
                report = self.hook.get_usage(query)
                self._warn_if_unmatched(query, len(report.rows))
                reading = condition.read(report, moment)
            except CreditsUnavailableError as error:
                raise ReductoCreditsUnavailableError(str(error)) from error
            match condition.outcome(reading):
                case "exceeded":
                    self.log.info("%s: exceeded", reading)
                    return PokeReturnValue(is_done=True, xcom_value=reading.as_json())
                case "closed" if self.on_closed_window != "wait":
                    self._give_up(reading)
        self.log.info("%s; %s", condition.describe_wait(reading), self._next_poll)
        return False

    def _warn_if_unmatched(self, query: UsageQuery, row_count: int) -> None:
        # Once a wait; a rescheduled one says it on each visit to a worker, since it remembers none.
        if not self._warned and (warning := unmatched_filters(query, row_count)):
            self._warned = True
            self.log.warning("%s", warning)

    def _tolerate(self, error: Exception, query: UsageQuery) -> None:
        """Go on after a poll that failed, or fail."""
        if not self._failed_polls.tolerates(error):
            self._fail(as_reducto_error(error))
        if self._failure_store:
            self._failure_store.save(self._failed_polls)
        vars(self).pop("hook", None)  # as in the triggerer, the next poll begins with the connection as it is by then
        self._retry_after = retry_after_of(error)
        self.log.warning("Poll of %s failed (%s): %s; %s", query, self._failed_polls, error, self._next_poll)

    def _fail(self, error: BaseException) -> NoReturn:
        """Raise an error, or skip if that is what the author wants of errors."""
        if isinstance(error, AirflowSensorTimeout) and self._limit < self.timeout:
            error = AirflowTaskTimeout(f"execution_timeout is over: {error}")
        if self._skips_errors:
            because = "soft_fail" if self.soft_fail else "never_fail"
            raise AirflowSkipException(f"Skipping due to {because}: {error}") from error
        raise error

    @property
    def _skips_errors(self) -> bool:
        return bool(self.soft_fail or self.never_fail)

    def _give_up(self, reading: Reading) -> NoReturn:
        message = f"{reading}: the window is over and the threshold was not exceeded"
        if self.on_closed_window == "fail":
            raise ReductoWindowClosedError(message)
        raise AirflowSkipException(message)

    @property
    def _limit(self) -> float:
        """Seconds that the wait may take."""
        return min(self.timeout, *(limit.total_seconds() for limit in (self.execution_timeout, _MAX_WAIT) if limit))

    @property
    def _ends_at(self) -> float:
        """When that is over, in seconds since the epoch: with another visit to a worker, counted from that."""
        return self._started_at + self._limit

    @property
    def _next_poll(self) -> str:
        if self.exponential_backoff:
            return "next poll after a growing interval"
        interval = f"next poll in {max(self.poke_interval, self._retry_after, MIN_INTERVAL):g} s"
        if self.mode == "reschedule" and not self.deferrable:
            return interval  # when the wait began is Airflow's to know
        return f"{interval}, until {utc_minute(self._ends_at)}"

    def _get_next_poke_interval(self, started_at: Any, run_duration: Callable[[], float], poke_count: int) -> float:
        # Airflow itself bounds each visit to a worker by execution_timeout, and so not the wait of a sensor that is
        # rescheduled; and it would sleep beyond the end of the wait.
        left = max(0.0, self._limit - run_duration())
        if not left and self._limit < self.timeout:
            raise AirflowTaskTimeout(f"execution_timeout of {self._limit:g} s is over")
        interval: float = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        return min(max(interval, self._retry_after, MIN_INTERVAL), left)

    def _defer(self, condition: UsageThreshold) -> NoReturn:
        from reducto_provider.triggers.threshold import ReductoUsageThresholdTrigger

        trigger = ReductoUsageThresholdTrigger.waiting_for(
            condition,
            deadline=self._ends_at,
            failed_polls=self._failed_polls.count,
            failing_since=self._failed_polls.since,
            not_before=time.time() + self._retry_after,
            **self._trigger_options,
        )
        # The trigger keeps the time; Airflow's own limit is the net below it, for a triggerer that is gone.
        self.defer(
            trigger=trigger,
            method_name="execute_complete",
            timeout=timedelta(seconds=self._limit) + _DEFERRAL_GRACE,
        )

    def _start_from_trigger(self) -> None:
        """
        Have Airflow make the trigger, of the arguments as they are written: it renders them in the triggerer.

        On the instance only: set on the class, all instances of a mapped sensor would get the same arguments. Before
        3.3 nothing is rendered, or none of this is looked at.
        """
        arguments = {name: getattr(self, name) for name in ("threshold", "window", *QUERY_FIELDS, "reducto_conn_id")}
        for name, value in arguments.items():
            parts = value if isinstance(value, list | tuple | set) else [value]
            if not all(isinstance(part, str) or is_literal(part) for part in parts):
                raise ValueError(
                    f"{name} can't be another task's output with start_from_trigger, which renders templates only: "
                    f"use '{{{{ ti.xcom_pull(..., map_indexes=-1) }}}}', or deferrable=True instead"
                )
            if any(isinstance(part, str) and _UNANSWERED.search(part) for part in parts):
                raise ValueError(
                    f"{name} can't be rendered with start_from_trigger: to {value!r} the triggerer never gets an "
                    "answer; give xcom_pull its map_indexes, -1 for a task that is not mapped, or use deferrable=True"
                )
        if has_other_delimiters(self):
            raise ValueError(
                "start_from_trigger can't be used in a DAG whose jinja_environment_kwargs set delimiters, which "
                "Airflow's triggerer does not know: use deferrable=True instead"
            )
        if not AIRFLOW_V_3_3_PLUS:
            return
        from airflow.triggers.base import StartTriggerArgs

        timeout = timedelta(seconds=self._limit) + _DEFERRAL_GRACE
        ends_after = min(timeout, self.execution_timeout or timeout)  # Airflow takes the lesser of the two
        self.start_from_trigger = True
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls="reducto_provider.triggers.threshold.ReductoUsageThresholdTrigger",
            trigger_kwargs={
                **{name: _as_json(value) for name, value in arguments.items()},
                "metric": self.metric,
                "per_group": self.per_group,
                "projected": self.projected,
                "settle_days": self.settle_days,
                "poll_immediately": True,
                "grace": ends_after.total_seconds() - self._limit,
                **self._trigger_options,
            },
            next_method="execute_complete",
            timeout=timeout,
        )

    @property
    def _trigger_options(self) -> dict[str, Any]:
        return {
            "reducto_conn_id": self.reducto_conn_id,
            "poke_interval": self.poke_interval,
            "exponential_backoff": self.exponential_backoff,
            "max_wait": self.max_wait.total_seconds() if self.max_wait else None,
            "wait_when_closed": self.on_closed_window == "wait",
            "silent_fail": self.silent_fail,
            "max_failure_time": self.max_failure_time,
        }


def _parse_seconds(name: str, value: object) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < float("inf"):
        return float(seconds)
    raise ValueError(f"{name} must be a number of seconds, 0 or more, or a timedelta, not {value!r}")


def _as_json(value: Any) -> Any:
    """An argument as triggers take them."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, tuple | set):
        return sorted(value)
    return str(value) if isinstance(value, Decimal | float) else value

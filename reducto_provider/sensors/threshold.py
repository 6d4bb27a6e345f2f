"""Wait until usage exceeds a threshold."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, get_args

from reducto_provider.airflow_compat import (
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseSensorOperator,
    GivenArguments,
    PokeReturnValue,
    conf,
    is_executed,
    is_from_mapped,
    run_from_context,
)
from reducto_provider.exceptions import (
    ReductoConfigurationError,
    ReductoCreditsUnavailableError,
    ReductoWindowClosedError,
)
from reducto_provider.hooks import event_loop
from reducto_provider.links.studio import ReductoStudioLink
from reducto_provider.run_state import DropsRunState
from reducto_provider.sensors import deferral
from reducto_provider.sensors.failure_store import FailureStore
from reducto_provider.triggers.polls import (
    MAX_FAILURE_TIME,
    MIN_INTERVAL,
    FailedPolls,
    LineThrottle,
    as_reducto_error,
    error_text,
    figures_of,
    retry_after_of,
    utc_minute,
)
from reducto_provider.usage.checks import check_bool, check_choice, check_seconds, check_whole_number
from reducto_provider.usage.days import NoDayEndedError
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
from reducto_provider.usage.window import check_window

if TYPE_CHECKING:
    from reducto_provider.airflow_compat import Context
    from reducto_provider.hooks.reducto import ReductoHook
    from reducto_provider.usage.query import UsageQuery

ClosedWindowAction = Literal["skip", "fail", "wait"]

CLOSED_WINDOW_ACTIONS: Final = get_args(ClosedWindowAction)

_MAX_WAIT = timedelta(days=36_500)  # Airflow adds the time of a deferral to now: timedelta.max is too much


class ReductoUsageThresholdSensor(DropsRunState, GivenArguments, BaseSensorOperator):
    """
    Wait until the usage of a window exceeds a threshold. A value equal to the threshold does not exceed it.

    The XCom is the reading: ``metric``, ``value``, ``used``, ``projected``, ``threshold``, ``exceeded``,
    ``usage_start_date`` and ``usage_end_date`` of the window, ``org_id``, ``group_by``, ``group`` and ``time``.

    The DAG run fixes the window: retries, clears and backfills send the same query. When the window is over and the
    threshold was not exceeded, ``on_closed_window`` decides. All modes have the same outcomes:

    =========================================  ====================  ==============================
    what happens                               task                  ``soft_fail`` or ``never_fail``
    =========================================  ====================  ==============================
    exceeded                                   success               success
    ``timeout`` is over                        failed, no retry      skipped
    ``execution_timeout`` is over              failed                skipped
    window over: ``skip``                      skipped               skipped
    window over: ``fail``                      failed, no retry      skipped
    401, 403, 400, no credits                  failed, no retry      skipped
    a response against the API contract        failed                skipped
    transient errors                           waits on              waits on
    the same, beyond ``max_failure_time``      failed                skipped
    an unexpected exception                    failed                skipped
    =========================================  ====================  ==============================

    An argument that is omitted, or is None when the DAG is parsed, has its default. Any other argument that renders to
    nothing fails the task at once, see :class:`ReductoUsageExportOperator`.

    Transient errors (408, 425, 429, 5xx, an HTML page, an incomplete response) end the wait when they have lasted
    ``max_failure_time`` and at least five polls in a row have failed. ``silent_fail`` tolerates without end what a
    retry might fix. ``execution_timeout`` limits the whole wait in every mode. When the key is refused (401), the
    sensor reads the connection once more before it fails.

    :param threshold: 0 or more, less than 1e18; templated.
    :param metric: ``credits`` or ``requests``.
    :param window: ``month`` (the default), ``week`` (from Monday) or ``day``: the calendar period, in UTC days, that
        contains the run's moment; a whole number N: the N days up to that moment's day; ``run``: the days that the run
        covers.
    :param usage_start_date: first day of an explicit window, instead of ``window``; ``"run"`` in both for the run.
    :param usage_end_date: its last day, included.
    :param per_group: compare each group of ``group_by`` with the threshold, instead of their sum.
    :param projected: compare the projected usage of the whole window with the threshold: what was used, and for each
        day to come the mean of its weekday over up to four complete weeks before, which may have begun before the
        window. With less than two weeks the mean of all complete days; with less than three complete days, what was
        used. A day is complete when it has been over for more than ``settle_days``.
    :param on_closed_window: ``skip``, ``fail``, or ``wait`` for restatements until the timeout.
    :param settle_days: days after its end in which a window still counts as open, for restatements.
    :param org_id: the organization; by default the connection's extra ``org_id``, else the key's own.
    :param group_by: ``product``, ``feature``, ``api_key`` or ``file_type``.
    :param products: only these; one text or several, ``"*"`` for all. Likewise ``features``, ``api_keys`` and
        ``file_types``.
    :param reducto_conn_id: the Airflow connection of type ``reducto``.
    :param deferrable: wait in the triggerer, without a worker slot.
    :param start_from_trigger: on Airflow 3.3 and later begin the wait in the triggerer; a worker runs the task only
        when the wait is over. Elsewhere, and when mapped, the sensor defers from a worker as with ``deferrable``,
        which this implies.
    :param poke_interval: seconds between polls, at least one. The last poll is at the ``timeout``.
    :param max_failure_time: how long transient errors must have lasted before they end the wait, as ``timedelta`` or
        seconds; 0 for five failed polls in a row, however close.
    :raises ValueError: when the DAG is parsed, for an invalid literal argument.
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
        self.max_failure_time = check_seconds("max_failure_time", max_failure_time)
        self._failed_polls = FailedPolls(self.max_failure_time, silent_fail=self.silent_fail)
        self._throttle = LineThrottle()
        self._retry_after = 0.0
        self._started_at = 0.0
        self._warned = False
        self.parse_arguments()
        if start_from_trigger and not is_from_mapped(self):  # which is made in a worker, and defers from there
            deferral.start_from_trigger(self, self._limit)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # An author, or a subclass, may assign attributes later: the trigger must get them.
        made = self.start_from_trigger and "start_trigger_args" in vars(self) and not is_executed(self)
        if made and name not in ("start_from_trigger", "start_trigger_args"):
            deferral.start_from_trigger(self, self._limit)

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Wait, and return the reading."""
        self._failed_polls.reset()
        self._throttle = LineThrottle()
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
        """Poll once and decide; if deferrable and the wait continues, defer to the trigger."""
        condition = self._condition(context)
        self._retry_after = 0.0
        done: bool | PokeReturnValue = False
        try:
            done = self._poll(condition)
        except AirflowSkipException:
            raise
        except Exception as error:  # noqa: BLE001  # any error has the same outcome in every mode
            self._tolerate(error, condition.query)
        else:
            self._failed_polls.reset()
        if self.deferrable and not done and time.time() < self._ends_at:
            self._defer(condition)
        return done

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Return or raise for the trigger's event what :meth:`execute` would have returned or raised."""
        sent = deferral.reading_of_event(event)
        reading = Reading.from_json(sent)
        if not sent["exceeded"]:
            self._give_up(reading)
        self.log.info("%s: exceeded, reported by the trigger", reading)
        return sent

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Run :meth:`execute_complete`, and apply ``soft_fail`` and ``never_fail`` to its errors."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSkipException as skip:
            if isinstance(skip.__cause__, Exception) and self._skips_errors:
                self._fail(skip.__cause__)  # Airflow's own message lacks the cause
            raise
        except Exception as error:  # noqa: BLE001  # as in poke
            self._fail(error)

    @property
    def reschedule(self) -> bool:
        """Return False while polls fail and no store keeps since when: a rescheduled task would lose it."""
        # Airflow 2 reads this before this class has set its attributes.
        failed_polls: FailedPolls | None = getattr(self, "_failed_polls", None)
        if self.mode != "reschedule" or failed_polls is None or not failed_polls.count or self.silent_fail:
            return self.mode == "reschedule"
        return self._failure_store is not None and self._failure_store.is_current

    def on_kill(self) -> None:
        """Cancel requests in flight."""
        event_loop.cancel()

    @cached_property
    def hook(self) -> ReductoHook:
        """Return the hook of ``reducto_conn_id``."""
        from reducto_provider.hooks.reducto import ReductoHook

        return ReductoHook(self.reducto_conn_id)

    def _check_literals(self) -> None:
        check_literals({name: getattr(self, name) for name in QUERY_FIELDS})
        if is_literal(self.threshold):
            parse_threshold(self.threshold)
        if is_literal(self.window):
            check_one_window(check_window(self.window), self.usage_start_date)
        for name, allowed in (("metric", METRICS), ("on_closed_window", CLOSED_WINDOW_ACTIONS)):
            check_choice(name, getattr(self, name), allowed)
        for name in ("per_group", "projected"):
            check_bool(name, getattr(self, name))
        check_whole_number("settle_days", self.settle_days, 0)

    def _condition(self, context: Context) -> UsageThreshold:
        try:
            self.check_arguments()
            return UsageThreshold.from_run(
                lambda: run_from_context(context), **{name: getattr(self, name) for name in RUN_FIELDS}
            )
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
        log = self.log.info if self._has_news(figures_of(reading)) else self.log.debug
        log("%s; %s", condition.describe_wait(reading), self._next_poll)
        return False

    def _warn_if_unmatched(self, query: UsageQuery, row_count: int) -> None:
        # Once a wait; a rescheduled sensor, which keeps no state, warns at each reschedule.
        if not self._warned and (warning := unmatched_filters(query, row_count)):
            self._warned = True
            self.log.warning("%s", warning)

    def _tolerate(self, error: Exception, query: UsageQuery) -> None:
        """Log a failed poll, or fail if it ends the wait."""
        if not self._failed_polls.tolerates(error):
            self._fail(as_reducto_error(error))
        if self._failure_store:
            self._failure_store.save(self._failed_polls)
        vars(self).pop("hook", None)  # as in the triggerer, the next poll reads the connection again
        self._retry_after = retry_after_of(error)
        log = self.log.warning if self._has_news(error_text(error)) else self.log.debug
        log("Poll of %s failed (%s): %s; %s", query, self._failed_polls, error, self._next_poll)

    def _fail(self, error: BaseException) -> NoReturn:
        """Raise an error, or skip if the sensor has ``soft_fail`` or ``never_fail``."""
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
        """Return the maximum seconds of the wait."""
        return min(self.timeout, *(limit.total_seconds() for limit in (self.execution_timeout, _MAX_WAIT) if limit))

    @property
    def _ends_at(self) -> float:
        """Return when the wait times out, in seconds since the epoch. A rescheduled sensor counts from each visit."""
        return self._started_at + self._limit

    def _has_news(self, content: Hashable) -> bool:
        # The first poll of a process has: a rescheduled sensor, which is a process for each poll, logs them all.
        return self._throttle.has_news(content, inf if self.exponential_backoff else self._interval)

    @property
    def _interval(self) -> float:
        return max(self.poke_interval, self._retry_after, MIN_INTERVAL)

    @property
    def _next_poll(self) -> str:
        if self.exponential_backoff:
            return "next poll after a growing interval"
        interval = f"next poll in {self._interval:g} s"
        if self.mode == "reschedule" and not self.deferrable:
            return interval  # only Airflow knows when the wait began
        return f"{interval}, until {utc_minute(self._ends_at)}"

    def _get_next_poke_interval(self, started_at: Any, run_duration: Callable[[], float], poke_count: int) -> float:
        # Airflow applies execution_timeout to each visit of a rescheduled sensor, not to its whole wait, and would
        # sleep beyond the end of the wait.
        left = max(0.0, self._limit - run_duration())
        if not left and self._limit < self.timeout:
            raise AirflowTaskTimeout(f"execution_timeout of {self._limit:g} s is over")
        interval: float = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        return min(max(interval, self._retry_after, MIN_INTERVAL), left)

    def _defer(self, condition: UsageThreshold) -> NoReturn:
        trigger = deferral.make_trigger(
            self,
            condition,
            deadline=self._ends_at,
            failed_polls=self._failed_polls,
            not_before=time.time() + self._retry_after,
        )
        self.defer(trigger=trigger, method_name="execute_complete", timeout=deferral.timeout(self._limit))

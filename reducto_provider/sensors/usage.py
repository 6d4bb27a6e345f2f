"""Waits until usage exceeds a threshold."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from reducto_provider import exceptions
from reducto_provider.exceptions import (
    ReductoConfigurationError,
    ReductoCreditsUnavailableError,
    ReductoError,
    ReductoTriggerEventError,
    ReductoWindowClosedError,
)
from reducto_provider.links.studio import ReductoStudioLink
from reducto_provider.usage.fields import QUERY_FIELDS, check_both_days, check_literals, is_literal, parse_query
from reducto_provider.usage.report import CreditsUnavailableError
from reducto_provider.usage.threshold import MAX_FAILED_POLLS, METRICS, Metric, Reading, UsageThreshold, parse_threshold
from reducto_provider.usage.window import NoDayEndedError, check_window, days_of_window

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from reducto_provider.hooks.reducto import ReductoHook

CLOSED_WINDOW_ACTIONS: Final = ("skip", "fail", "wait")

_DEFERRAL_GRACE = timedelta(seconds=60)


class ReductoUsageThresholdSensor(BaseSensorOperator):
    """
    Wait until the usage of a window exceeds a threshold; to equal it is not to exceed it.

    The XCom is the reading: ``metric``, ``value``, ``threshold``, ``exceeded``, ``usage_start_date`` and
    ``usage_end_date`` of the window, ``org_id``, ``group_by``, ``group`` and ``time``.

    The window is fixed by the DAG run: retries, clears and backfills ask the same question. When it is over and
    the threshold was not exceeded, ``on_closed_window`` decides. The outcome is the same in the modes ``poke`` and
    ``reschedule`` and when ``deferrable``:

    =========================================  ====================  ==================
    what happens                               task                  with ``soft_fail``
    =========================================  ====================  ==================
    exceeded                                   success               success
    timeout                                    failed, no retry      skipped
    window over: ``skip``                      skipped               skipped
    window over: ``fail``                      failed, no retry      skipped
    401, 403, 400, no credits                  failed, no retry      skipped
    an answer against the contract             failed                skipped
    passing faults, fewer than five in a row   goes on waiting       goes on waiting
    passing faults, five polls in a row        failed                skipped
    =========================================  ====================  ==================

    :param threshold: 0 or more; templated.
    :param metric: ``credits`` or ``requests``.
    :param window: ``month`` (the default), ``week`` (from Monday), ``day``: the calendar period, in UTC days, that
        holds the run's moment; a whole number N: the N days that end with that moment's; ``run``: the days that
        the run covers.
    :param usage_start_date: first day of an explicit window, instead of ``window``.
    :param usage_end_date: its last day, included.
    :param per_group: hold each group of ``group_by`` against the threshold by itself, instead of their sum.
    :param on_closed_window: ``skip``, ``fail``, or ``wait`` for restatements until the timeout.
    :param settle_days: days after its end in which a window still counts as open, for restatements.
    :param org_id: the organization; by default the one of the connection's extra ``org_id``, else the key's own.
    :param group_by: ``product``, ``feature``, ``api_key`` or ``file_type``.
    :param products: only these; one text or several. Likewise ``features``, ``api_keys`` and ``file_types``.
    :param reducto_conn_id: the Airflow connection of type ``reducto``.
    :param deferrable: wait in the triggerer, holding no worker slot.
    :param poke_interval: seconds between polls.
    :raises ValueError: when the DAG is parsed, for a literal argument that can't be right.
    """

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
        on_closed_window: Literal["skip", "fail", "wait"] = "skip",
        settle_days: int = 0,
        org_id: str | None = None,
        group_by: str = "product",
        products: str | Sequence[str] | None = None,
        features: str | Sequence[str] | None = None,
        api_keys: str | Sequence[str] | None = None,
        file_types: str | Sequence[str] | None = None,
        reducto_conn_id: str = "reducto_default",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: timedelta | float = 300,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.threshold = threshold
        self.metric = metric
        self.window = window
        self.usage_start_date = usage_start_date
        self.usage_end_date = usage_end_date
        self.per_group = per_group
        self.on_closed_window = on_closed_window
        self.settle_days = settle_days
        self.org_id = org_id
        self.group_by = group_by
        self.products = products
        self.features = features
        self.api_keys = api_keys
        self.file_types = file_types
        self.reducto_conn_id = reducto_conn_id
        self.deferrable = deferrable
        self._failed_polls = 0
        self._check_literals()

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Wait, and return the reading."""
        reading: dict[str, Any] | None = super().execute(context)
        return reading

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """
        Ask once and decide; when deferrable and there is to wait, hand over to the trigger.

        Deferring from here leaves it to Airflow's own ``execute`` what ``soft_fail``, ``never_fail`` and
        ``silent_fail`` do to an error, in all modes alike.
        """
        waited_for = self._waited_for(context)
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                done = self._poll(waited_for)
            except ReductoError as error:
                self._tolerate(error)
                done = False
            else:
                self._failed_polls = 0
            if done:
                return done
            if self.deferrable and self.timeout > 0:
                self._defer(waited_for)
            if not (self.reschedule and self._failed_polls) or time.monotonic() > deadline:
                return False
            # Rescheduled, the task would forget how often it failed: it stays while the service fails.
            time.sleep(self.poke_interval)

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Make of the trigger's event what :meth:`execute` would have returned or raised."""
        try:
            match event:
                case {"status": "exceeded", "reading": sent}:
                    Reading.from_json(sent)  # to see that it is one; as it was sent it is what poke returns
                    return dict(sent)
                case {"status": "closed", "reading": sent}:
                    self._give_up(Reading.from_json(sent))
                case {"status": "timeout", "message": str(message)}:
                    raise AirflowSensorTimeout(message)
                case {"status": "error", "error": str(name), "message": str(message)}:
                    raise _error_by_name(name, message)
        except ValueError as error:
            raise ReductoTriggerEventError(f"the trigger's event can't be read: {error}") from error
        raise ReductoTriggerEventError(f"the trigger's event has no meaning here: {event!r:.200}")

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
            check_window(self.window)
        for name, allowed in (("metric", METRICS), ("on_closed_window", CLOSED_WINDOW_ACTIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not isinstance(self.settle_days, int) or isinstance(self.settle_days, bool) or self.settle_days < 0:
            raise ValueError(f"settle_days must be a whole number, 0 or more, not {self.settle_days!r}")

    def _waited_for(self, context: Context) -> UsageThreshold:
        try:
            fields = {name: getattr(self, name) for name in QUERY_FIELDS}
            check_both_days(fields)
            if fields["usage_start_date"] is None:
                days = days_of_window(self.window, context)
                fields["usage_start_date"], fields["usage_end_date"] = days.first, days.last
            return UsageThreshold(
                query=parse_query(**fields),
                metric=self.metric,
                threshold=parse_threshold(self.threshold),
                per_group=self.per_group,
                settle_days=self.settle_days,
            )
        except NoDayEndedError as error:
            raise AirflowSkipException(str(error)) from error
        except ValueError as error:
            raise ReductoConfigurationError(f"{self.task_id}: {error}") from error

    def _poll(self, waited_for: UsageThreshold) -> PokeReturnValue | Literal[False]:
        moment = datetime.now(UTC)
        report = self.hook.get_usage(waited_for.query_at(moment))
        try:
            reading = waited_for.read(report, moment)
        except CreditsUnavailableError as error:
            raise ReductoCreditsUnavailableError(str(error)) from error
        match waited_for.outcome(reading):
            case "exceeded":
                self.log.info("%s: exceeded", reading)
                return PokeReturnValue(is_done=True, xcom_value=reading.as_json())
            case "closed" if self.on_closed_window != "wait":
                self._give_up(reading)
        self.log.info("%s; next poll in %g s", reading, self.poke_interval)
        return False

    def _tolerate(self, error: ReductoError) -> None:
        """Count a passing failure, raise any other."""
        self._failed_polls += 1
        if error.passing and (self._failed_polls < MAX_FAILED_POLLS or self.silent_fail):
            self.log.warning(
                "Poll failed (%d in a row, %d end the wait): %s", self._failed_polls, MAX_FAILED_POLLS, error
            )
            return
        if self.soft_fail:
            # Airflow itself skips for such an error after a deferral only.
            raise AirflowSkipException(f"Skipping due to soft_fail: {error}") from error
        raise error

    def _give_up(self, reading: Reading) -> NoReturn:
        message = f"{reading}: the window is over and the threshold was not exceeded"
        if self.on_closed_window == "fail":
            raise ReductoWindowClosedError(message)
        raise AirflowSkipException(message)

    def _defer(self, waited_for: UsageThreshold) -> NoReturn:
        from reducto_provider.triggers.usage import ReductoUsageThresholdTrigger

        trigger = ReductoUsageThresholdTrigger.waiting_for(
            waited_for,
            reducto_conn_id=self.reducto_conn_id,
            poke_interval=self.poke_interval,
            exponential_backoff=self.exponential_backoff,
            max_wait=self.max_wait.total_seconds() if self.max_wait else None,
            deadline=time.time() + self.timeout,
            wait_when_closed=self.on_closed_window == "wait",
            failed_polls=self._failed_polls,
            endless=self.silent_fail,
        )
        # The trigger keeps the time; Airflow's own limit is the net below it, for a triggerer that is gone.
        self.defer(
            trigger=trigger,
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout) + _DEFERRAL_GRACE,
        )


def _error_by_name(name: str, message: str) -> ReductoError:
    error = getattr(exceptions, name, None)
    if isinstance(error, type) and issubclass(error, ReductoError):
        return error(message)
    return ReductoTriggerEventError(f"the trigger failed: {name}: {message}")

"""Wait in the triggerer until usage exceeds a threshold."""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Hashable
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent
from jinja2 import StrictUndefined

from reducto_provider.airflow_compat import run_from_context
from reducto_provider.exceptions import ReductoConfigurationError, ReductoError, ReductoPollError
from reducto_provider.triggers.base import BaseStreamTrigger, make_event
from reducto_provider.triggers.polls import (
    MAX_FAILURE_TIME,
    FailedPolls,
    Poll,
    as_reducto_error,
    error_text,
    figures_of,
    utc_minute,
)
from reducto_provider.usage.days import NoDayEndedError
from reducto_provider.usage.fields import (
    QUERY_FIELDS,
    check_given,
    check_not_empty,
    outline,
    parse_query,
    restore_literals,
)
from reducto_provider.usage.query import FILTER_PARAMETERS, UsageQuery
from reducto_provider.usage.report import Metric, format_decimal
from reducto_provider.usage.threshold import RUN_FIELDS, Reading, UsageThreshold

if TYPE_CHECKING:
    from reducto_provider.airflow_compat import Context

_HAND_OVER_SECONDS = 60.0  # within which a triggerer takes up what a sensor has handed over

_UNRENDERED = (
    "the DAG changed during the wait: its sensor no longer has start_from_trigger, so Airflow restarted the trigger "
    "without rendering its arguments; a retry starts the wait again"
)


class ReductoUsageThresholdTrigger(BaseStreamTrigger):
    """
    Poll until usage exceeds a threshold, and fire one event.

    On Airflow 3.3 all triggers with the same query and interval share one poll, each with its own
    threshold; on older versions each polls separately. Between polls lie ``poke_interval`` seconds whatever the
    service answers, or more if it sends ``Retry-After``. Transient failures end the wait when they have
    lasted ``max_failure_time`` seconds and at least five polls in a row have failed, any other failure ends it at once.

    The parameters that are not named here are those of the sensor.

    :param reducto_conn_id: the Airflow connection of type ``reducto``.
    :param usage_start_date: first day of the window, as ``yyyy-mm-dd``; likewise ``usage_end_date``, the last.
    :param threshold: a number as text, so that no digit is lost.
    :param poke_interval: seconds between polls.
    :param exponential_backoff: double that time from poll to poll, up to ``max_wait`` seconds if given.
    :param deadline: when to give up, in seconds since the epoch: it holds in whichever triggerer this runs. None
        for never.
    :param wait_when_closed: keep waiting when the window is over and the threshold not exceeded.
    :param max_failure_time: seconds that transient failures must have lasted before they end the wait.
    :param failed_polls: polls in a row that failed before this trigger took over.
    :param failing_since: when the first of them failed, in seconds since the epoch. A trigger that starts more than a
        minute later ignores both: it was restarted, and polls in between may have succeeded.
    :param not_before: when ``Retry-After`` of that failure allows the next poll, in seconds since the epoch.
    :param silent_fail: tolerate without end whatever a retry might fix, as sensors with ``silent_fail`` do.
    :param poll_immediately: poll once at the start; otherwise the first poll comes after one interval, since a sensor
        that defers has polled before.
    :param window: for a wait that begins in the triggerer (``start_from_trigger``): which days, if none are given.
    :param grace: likewise: how many seconds before Airflow's own timeout the deadline is.
    """

    def __init__(
        self,
        *,
        reducto_conn_id: str,
        threshold: str,
        usage_start_date: str | None = None,
        usage_end_date: str | None = None,
        metric: Metric = "credits",
        per_group: bool = False,
        projected: bool = False,
        settle_days: int = 0,
        org_id: str | None = None,
        group_by: str = "product",
        products: list[str] | None = None,
        features: list[str] | None = None,
        api_keys: list[str] | None = None,
        file_types: list[str] | None = None,
        poke_interval: float = 300.0,
        exponential_backoff: bool = False,
        max_wait: float | None = None,
        deadline: float | None = None,
        wait_when_closed: bool = False,
        max_failure_time: float = MAX_FAILURE_TIME.total_seconds(),
        failed_polls: int = 0,
        failing_since: float | None = None,
        not_before: float = 0.0,
        silent_fail: bool = False,
        poll_immediately: bool = False,
        window: str | int | None = None,
        grace: float | None = None,
    ) -> None:
        super().__init__()
        self.reducto_conn_id = reducto_conn_id
        self.threshold = threshold
        self.usage_start_date = usage_start_date
        self.usage_end_date = usage_end_date
        self.metric = metric
        self.per_group = per_group
        self.projected = projected
        self.settle_days = settle_days
        self.org_id = org_id
        self.group_by = group_by
        self.products = products
        self.features = features
        self.api_keys = api_keys
        self.file_types = file_types
        self.poke_interval = poke_interval
        self.exponential_backoff = exponential_backoff
        self.max_wait = max_wait
        self.deadline = deadline
        self.wait_when_closed = wait_when_closed
        self.max_failure_time = max_failure_time
        self.failed_polls = failed_polls
        self.failing_since = failing_since
        self.not_before = not_before
        self.silent_fail = silent_fail
        self.poll_immediately = poll_immediately
        self.window = window
        self.grace = grace
        # Templates that were not rendered must not be sent as names.
        self._early_event = None if window is None else error_event(ReductoPollError(_UNRENDERED))
        self._reading: Reading | None = None
        """Of the last poll, if that did not fail."""
        for name in ("reducto_conn_id", "metric", *QUERY_FIELDS):
            if type(value := getattr(self, name)) is str:
                setattr(self, name, sys.intern(value))  # decoded anew for each of the triggers with the same query
        check_not_empty(
            {name: getattr(self, name) for name in (*QUERY_FIELDS, "threshold", "window", "reducto_conn_id")}
        )

    # The arguments, here since they are those of the method above. With more than thirty attributes in it, an
    # instance's dict shares no keys with others, and takes 1.5 KiB.
    __slots__ = tuple(inspect.signature(__init__).parameters)[1:]

    @classmethod
    def waiting_for(cls, threshold: UsageThreshold, **options: Any) -> ReductoUsageThresholdTrigger:
        """Return the trigger that waits for ``threshold``; ``options`` are its other arguments."""
        return cls(**{**_arguments_of(threshold), **options})

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """
        Begin a wait that no task has prepared: Airflow 3.3 calls this for a sensor with ``start_from_trigger``, with
        the DAG run's context. What can't be right becomes the wait's event, for the task to raise.
        """
        jinja_env = jinja_env or self.get_template_env()
        jinja_env.undefined = StrictUndefined  # as of DAGs; Airflow's own here leaves out what is not defined
        outlines = {name: outline(value) for name in self.template_fields if (value := getattr(self, name)) is not None}
        try:
            super().render_template_fields(context, jinja_env)
        except Exception as error:  # noqa: BLE001  # a template runs code, which may raise anything
            message = f"a template can't be rendered in the triggerer: {type(error).__name__}: {error}"
            self._early_event = error_event(ReductoConfigurationError(message))
            return
        for name, outlined in outlines.items():
            setattr(self, name, restore_literals(outlined, getattr(self, name)))
        if self.grace is not None and (timeout_after := getattr(self, "timeout_after", None)) is not None:
            self.deadline = timeout_after.replace(tzinfo=timeout_after.tzinfo or UTC).timestamp() - self.grace
        if self.window is None:
            return
        try:
            for name, outlined in outlines.items():
                check_given(name, outlined, getattr(self, name))
            condition = UsageThreshold.from_run(
                lambda: run_from_context(context), **{name: getattr(self, name) for name in RUN_FIELDS}
            )
        except NoDayEndedError as error:
            self._early_event = {"status": "skip", "message": str(error)}
        except (ValueError, OverflowError) as error:
            self._early_event = error_event(ReductoConfigurationError(str(error)))
        else:
            for name, value in _arguments_of(condition).items():
                setattr(self, name, value)
            self.window = None
            self._early_event = None

    def shared_stream_key(self) -> Hashable | None:
        """
        Return all that a poll depends on. None, for a stream of its own, when the interval grows poll by poll, and when
        there is nothing to poll for.
        """
        return None if self.exponential_backoff or self._early_event else self._stream_key()

    def _stream_key(self) -> Hashable:
        condition = self._condition()
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            self.reducto_conn_id,
            condition.window,  # when it is over, its history is left out
            *condition.query_with_history.params(),
            self.poke_interval,
        )

    def _queries(self, moment: datetime) -> list[UsageQuery]:
        query = self._condition().query_at(moment)
        return [] if query is None else [query]

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Poll]) -> AsyncGenerator[TriggerEvent, None]:
        """Yield at most one event, the end of the wait."""
        if self._early_event:
            yield make_event(self._early_event)
            return
        condition = self._condition()
        failed_polls = self._failed_polls()
        async with self._polls(shared_stream) as polls:
            while True:
                try:
                    async with asyncio.timeout(self._seconds_left()):
                        event = await self._event_of(await anext(polls), condition, failed_polls)
                except TimeoutError:
                    [last] = await self._poll_now()  # as a sensor in a worker polls at its timeout
                    event = await self._event_of(last, condition, failed_polls)
                    event = event or timeout_event(condition, self._reading)
                if event is not None:
                    yield make_event(event)
                    return

    def _condition(self) -> UsageThreshold:
        return UsageThreshold(
            query=_share(parse_query(**{name: getattr(self, name) for name in QUERY_FIELDS})),
            metric=self.metric,
            threshold=Decimal(self.threshold),
            per_group=self.per_group,
            projected=self.projected,
            settle_days=self.settle_days,
        )

    def _failed_polls(self) -> FailedPolls:
        """Return the failures so far: those handed over, unless this is a later start, of which they say nothing."""
        count, since = self.failed_polls, self.failing_since
        if since is None or abs(time.time() - since) > _HAND_OVER_SECONDS:
            count, since = 0, None
        return FailedPolls(self.max_failure_time, silent_fail=self.silent_fail, count=count, since=since)

    def _seconds_left(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.time())

    async def _event_of(
        self, poll: Poll, condition: UsageThreshold, failed_polls: FailedPolls
    ) -> dict[str, Any] | None:
        """Return the event of a poll, None if the wait continues."""
        self._reading = None
        try:
            self._reading = reading = await poll.read(condition)
        except Exception as error:  # noqa: BLE001  # any error must reach the waiting task
            unforeseen = None if isinstance(error, ReductoError) else error
            if not failed_polls.tolerates(error):
                await self._alog(
                    "error", "Poll of %s failed, and ends the wait: %s", poll.query, error, exc_info=unforeseen
                )
                return error_event(as_reducto_error(error))
            if level := self._level_of(poll, "warning", error_text(error)):
                await self._alog(
                    level,
                    "Poll of %s failed (%s): %s; %s",
                    poll.query,
                    failed_polls,
                    error,
                    self._next_poll(poll),
                    exc_info=unforeseen,
                )
            return None
        failed_polls.reset()
        await self._warn_if_unmatched(poll)
        if reading is not None:
            outcome = condition.outcome(reading)
            if outcome == "exceeded" or (outcome == "closed" and not self.wait_when_closed):
                await self._alog("info", "%s: %s", reading, outcome)
                return {"status": outcome, "reading": reading.as_json()}
        if level := self._level_of(poll, "info", figures_of(reading)):
            await self._alog(level, "%s; %s", condition.describe_wait(reading), self._next_poll(poll))
        return None

    def _next_poll(self, poll: Poll) -> str:
        if not poll.next_in:
            return "no further poll, the timeout is over"
        until = "" if self.deadline is None else f", until {utc_minute(self.deadline)}"
        return f"next poll in {poll.next_in:g} s{until}"


@lru_cache(maxsize=1024)
def _share(query: UsageQuery) -> UsageQuery:
    """Return one object for all triggers with an equal query."""
    return query


def error_event(error: ReductoError) -> dict[str, Any]:
    """Return the event of an error that ends the wait, with its class by name for the sensor to raise."""
    return {"status": "error", "error": type(error).__name__, "message": str(error)}


def timeout_event(condition: UsageThreshold, reading: Reading | None) -> dict[str, Any]:
    """Return the event of a timeout, with the last reading if there is one."""
    reached = f"; the last poll: {reading}" if reading else ""
    return {
        "status": "timeout",
        "message": f"usage on {condition.window} did not exceed {format_decimal(condition.threshold)} "
        f"{condition.metric} within the sensor's timeout{reached}",
    }


def _arguments_of(condition: UsageThreshold) -> dict[str, Any]:
    """Return the arguments of a trigger that waits for ``condition``."""
    query = condition.query
    return {
        "usage_start_date": query.start.isoformat(),
        "usage_end_date": query.end.isoformat(),
        "threshold": format_decimal(condition.threshold),
        "metric": condition.metric,
        "per_group": condition.per_group,
        "projected": condition.projected,
        "settle_days": condition.settle_days,
        "org_id": query.org_id,
        "group_by": query.group_by,
        **dict.fromkeys(FILTER_PARAMETERS),
        **query.filters(),
    }

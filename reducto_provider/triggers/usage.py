"""Waits in the triggerer until usage exceeds a threshold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Hashable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from airflow.providers.common.compat.triggers import BaseEventTrigger
from airflow.triggers.base import TriggerEvent

from reducto_provider.exceptions import ReductoCreditsUnavailableError, ReductoError
from reducto_provider.usage.fields import QUERY_FIELDS, parse_query
from reducto_provider.usage.report import CreditsUnavailableError, UsageReport, plain
from reducto_provider.usage.threshold import MAX_FAILED_POLLS, Metric, UsageThreshold

SHORTEST_INTERVAL: Final = 1.0
"""Seconds between two polls at the least, whatever ``poke_interval`` says: a triggerer has no use for a spin."""


@dataclass(frozen=True)
class Poll:
    """What came of asking once: a report or an error, and when it was asked."""

    time: datetime
    report: UsageReport | None = None
    error: Exception | None = None


class ReductoUsageThresholdTrigger(BaseEventTrigger):
    """
    Poll until usage exceeds a threshold, and fire one event.

    On Airflow 3.3 all triggers that ask the same question at the same interval share one poll, each with its own
    threshold; on older versions each polls for itself. Between polls lie ``poke_interval`` seconds whatever the
    service answers. A poll that fails for a passing reason is tolerated :data:`MAX_FAILED_POLLS` - 1 times in a
    row, any other failure ends the wait. The first poll comes after one interval: who defers has asked before.

    The arguments are plain JSON values, since Airflow stores them unencrypted: no secret is among them.

    :param reducto_conn_id: the Airflow connection of type ``reducto``.
    :param usage_start_date: first day of the window, as ``yyyy-mm-dd``; likewise ``usage_end_date``, the last.
    :param threshold: a number as text, so that no digit is lost.
    :param poke_interval: seconds between polls.
    :param exponential_backoff: double that time from poll to poll, up to ``max_wait`` seconds if given.
    :param deadline: when to give up, in seconds since the epoch: it holds in whichever triggerer this runs. None
        for never.
    :param wait_when_closed: go on when the window is over and the threshold not exceeded.
    :param failed_polls: polls that failed in a row before this trigger took over.
    :param endless: tolerate passing failures without end (a sensor's ``silent_fail``).
    """

    # A deferred sensor stays in its task's queue; event triggers as such leave it.
    supports_triggerer_queue = True

    def __init__(
        self,
        *,
        reducto_conn_id: str,
        usage_start_date: str,
        usage_end_date: str,
        threshold: str,
        metric: Metric = "credits",
        per_group: bool = False,
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
        failed_polls: int = 0,
        endless: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reducto_conn_id = reducto_conn_id
        self.usage_start_date = usage_start_date
        self.usage_end_date = usage_end_date
        self.threshold = threshold
        self.metric = metric
        self.per_group = per_group
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
        self.failed_polls = failed_polls
        self.endless = endless

    @classmethod
    def waiting_for(cls, threshold: UsageThreshold, **options: Any) -> ReductoUsageThresholdTrigger:
        """The trigger that waits for ``threshold``; ``options`` are its other arguments."""
        query = threshold.query
        return cls(
            usage_start_date=query.start.isoformat(),
            usage_end_date=query.end.isoformat(),
            threshold=plain(threshold.threshold),
            metric=threshold.metric,
            per_group=threshold.per_group,
            settle_days=threshold.settle_days,
            org_id=query.org_id,
            group_by=query.group_by,
            **{**query.filters(), **options},
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, plain JSON values."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "reducto_conn_id": self.reducto_conn_id,
                "usage_start_date": self.usage_start_date,
                "usage_end_date": self.usage_end_date,
                "threshold": self.threshold,
                "metric": self.metric,
                "per_group": self.per_group,
                "settle_days": self.settle_days,
                "org_id": self.org_id,
                "group_by": self.group_by,
                "products": self.products,
                "features": self.features,
                "api_keys": self.api_keys,
                "file_types": self.file_types,
                "poke_interval": self.poke_interval,
                "exponential_backoff": self.exponential_backoff,
                "max_wait": self.max_wait,
                "deadline": self.deadline,
                "wait_when_closed": self.wait_when_closed,
                "failed_polls": self.failed_polls,
                "endless": self.endless,
            },
        )

    def shared_stream_key(self) -> Hashable | None:
        """All that the poll depends on; None, for a poll of its own, when the interval grows poll by poll."""
        if self.exponential_backoff:
            return None
        query = self._waited_for().query
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            self.reducto_conn_id,
            *query.params(),
            self.poke_interval,
        )

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncGenerator[Poll, None]:
        """Poll without end. Failures are yielded, not raised: raised, they would end every subscriber's wait."""
        from reducto_provider.hooks.reducto import ReductoHook

        trigger = cls(**kwargs)
        waited_for = trigger._waited_for()
        count = 0
        async with AsyncExitStack() as stack:
            hook: ReductoHook | None = None
            while True:
                await asyncio.sleep(trigger._interval(count))
                count += 1
                moment = datetime.now(UTC)
                try:
                    if hook is None:
                        hook = await stack.enter_async_context(ReductoHook(trigger.reducto_conn_id))
                    poll = Poll(moment, report=await hook.aget_usage(waited_for.query_at(moment)))
                except Exception as error:  # noqa: BLE001  # see above; who waits decides what it means
                    poll = Poll(moment, error=error)
                yield poll

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Poll]) -> AsyncIterator[TriggerEvent]:
        """Make this trigger's one event of the polls."""
        waited_for = self._waited_for()
        while True:
            try:
                async with asyncio.timeout(self._seconds_left()):
                    poll = await anext(shared_stream)
            except TimeoutError:
                yield TriggerEvent(timeout_event(waited_for))  # type: ignore[no-untyped-call]
                return
            if (event := self._event_of(poll, waited_for)) is not None:
                yield TriggerEvent(event)  # type: ignore[no-untyped-call]
                return

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """The same over a stream of its own, where Airflow shares none."""
        async with aclosing(self.open_shared_stream(self.serialize()[1])) as polls:
            async for event in self.filter_shared_stream(polls):
                yield event

    def _waited_for(self) -> UsageThreshold:
        return UsageThreshold(
            query=parse_query(**{name: getattr(self, name) for name in QUERY_FIELDS}),
            metric=self.metric,
            threshold=Decimal(self.threshold),
            per_group=self.per_group,
            settle_days=self.settle_days,
        )

    def _interval(self, count: int) -> float:
        """Seconds before the next poll, after ``count`` of them."""
        interval = self.poke_interval
        if self.exponential_backoff:
            interval *= 2.0 ** min(count, 32)
            if self.max_wait is not None:
                interval = min(interval, self.max_wait)
        return max(interval, SHORTEST_INTERVAL)

    def _seconds_left(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.time())

    def _event_of(self, poll: Poll, waited_for: UsageThreshold) -> dict[str, Any] | None:
        """The event that a poll leads to, None while there is to wait."""
        try:
            if poll.report is None:
                raise poll.error or AssertionError
            reading = waited_for.read(poll.report, poll.time)
        except CreditsUnavailableError as error:
            return error_event(ReductoCreditsUnavailableError(str(error)))
        except Exception as error:  # whatever it is, the task that waits must hear of it
            passing = isinstance(error, ReductoError) and error.passing
            if not passing:
                if not isinstance(error, ReductoError):
                    self.log.error("Poll failed in a way that nobody foresaw", exc_info=error)
                return error_event(error)
            self.failed_polls += 1
            if self.failed_polls >= MAX_FAILED_POLLS and not self.endless:
                return error_event(error)
            self.log.warning(
                "Poll failed (%d in a row, %d end the wait): %s", self.failed_polls, MAX_FAILED_POLLS, error
            )
            return None
        self.failed_polls = 0
        outcome = waited_for.outcome(reading)
        if outcome == "waiting" or (outcome == "closed" and self.wait_when_closed):
            self.log.info("%s; next poll in %g s", reading, self.poke_interval)
            return None
        self.log.info("%s: %s", reading, outcome)
        return {"status": outcome, "reading": reading.as_json()}


def error_event(error: Exception) -> dict[str, Any]:
    """The event for an error that ends the wait: its class by name, for the sensor to raise it again."""
    return {"status": "error", "error": type(error).__name__, "message": str(error)}


def timeout_event(waited_for: UsageThreshold) -> dict[str, Any]:
    """The event for a deadline that passed."""
    return {
        "status": "timeout",
        "message": f"usage on {waited_for.window} did not exceed {plain(waited_for.threshold)} {waited_for.metric} "
        "within the sensor's timeout",
    }

"""Poll in the triggerer, alone or in a stream shared by triggers with the same query."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from reducto_provider.airflow_compat import BaseEventTrigger
from reducto_provider.triggers.polls import (
    MAX_RETRY_AFTER,
    MIN_INTERVAL,
    LineThrottle,
    Poll,
    Poller,
    retry_after_of,
)
from reducto_provider.triggers.single_flight import SingleFlight
from reducto_provider.usage.query import UsageQuery, unmatched_filters
from reducto_provider.usage.threshold import without_nul


@cache
def _log_thread() -> ThreadPoolExecutor:
    """Return a thread for logs alone: asyncio's threads would all wait for one log, and leave the loop little time."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="reducto-log")


# No thread survives a fork: the executor would queue lines for a thread that is gone.
os.register_at_fork(after_in_child=_log_thread.cache_clear)


class BaseUsageTrigger(BaseTrigger):
    """
    Poll the service. Triggers that send the same query at the same moment share a request.

    A subclass defines the queries (:meth:`_queries`) and which triggers share a request (:meth:`_stream_key`). Its
    arguments are plain JSON values without secrets, since a serialized DAG may hold them in clear. Each is kept in an
    attribute of its name.
    """

    reducto_conn_id: str
    _warned = False
    """Whether it has warned that nothing matches its filters."""

    _first_polls: ClassVar[SingleFlight[list[Poll]]] = SingleFlight()
    """Polls outside of a stream, for all triggers that begin or end at the same moment, by stream key."""
    _retry_not_before: ClassVar[dict[Hashable, float]] = {}
    """By stream key: the loop time before which ``Retry-After`` forbids the next poll."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._throttle = LineThrottle()

    @property
    def log(self) -> Any:
        """Return one logger for all triggers of a class: Airflow makes one for each of thousands."""
        return self.logger()

    async def _alog(self, level: str, text: str, *args: Any, **options: Any) -> None:
        """
        Log, in a thread.

        A triggerer writes each line to a pipe. Waiting for room in it would block the event loop, and for ever if the
        process at the other end waits for that loop. With hundreds of triggers each poll is hundreds of lines.
        """
        line = partial(copy_context().run, getattr(self.log, level), text, *args, **options)
        await asyncio.get_running_loop().run_in_executor(_log_thread(), line)

    def _level_of(self, poll: Poll, level: str, content: Hashable) -> str | None:
        """
        Return the level at which to log a poll: ``level`` if there is news, else ``debug``, or None if that is off.

        :param content: what can change in the line from poll to poll.
        """
        if self._throttle.has_news(content, poll.next_in, poll.query):
            return level
        return "debug" if self.log.isEnabledFor(logging.DEBUG) else None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments, as plain JSON values. Airflow stores the queue in a column of its own."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if name != "queue"},
        )

    @abstractmethod
    def _stream_key(self) -> Hashable:
        """Return all that a poll depends on."""

    @abstractmethod
    def _queries(self, moment: datetime) -> list[UsageQuery]:
        """Return the queries of a poll at a moment; none before the window begins."""

    async def _poll_now(self) -> list[Poll]:
        key = self._stream_key()
        return await self._first_polls.run(key, lambda: self._poll_for_all(key))

    async def _poll_for_all(self, key: Hashable) -> list[Poll]:
        async with Poller(self.reducto_conn_id) as poller:
            polls = await self._poll(poller)
        if seconds := max(retry_after_of(poll.error) for poll in polls):
            now = asyncio.get_running_loop().time()
            for over in [other for other, until in self._retry_not_before.items() if until <= now]:
                del self._retry_not_before[over]
            self._retry_not_before[key] = now + seconds
        return polls

    async def _poll(self, poller: Poller) -> list[Poll]:
        moment = datetime.now(UTC)
        queries = self._queries(moment)
        return [await poller.poll(query, moment) for query in queries] or [Poll(moment)]

    async def _warn_if_unmatched(self, poll: Poll) -> None:
        if self._warned or poll.query is None or poll.report is None:
            return
        if warning := unmatched_filters(poll.query, len(poll.report.rows)):
            self._warned = True
            await self._alog("warning", "%s", warning)


class BaseStreamTrigger(BaseUsageTrigger, BaseEventTrigger):
    """
    Poll at an interval, alone or, on Airflow 3.3, in a stream shared by triggers with the same query.

    A subclass also defines the events (:meth:`filter_shared_stream`).
    """

    # A deferred sensor keeps its task's queue, which event triggers do not by default.
    supports_triggerer_queue = True  # the name in Airflow 3.2 and 3.3
    trigger_queue_inherited_from_task = True  # the name from Airflow 3.4 on

    poke_interval: float
    exponential_backoff: bool = False
    max_wait: float | None = None
    not_before: float = 0.0
    poll_immediately: bool = False
    """Poll once at the start: a late subscriber of a shared stream would wait for its next poll."""

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncGenerator[Poll, None]:
        """Poll without end. Yield failures: raised, they would end every subscriber's wait."""
        trigger = cls(**kwargs)
        key, count, interval = trigger._stream_key(), 0, trigger._interval(0)
        async with Poller(trigger.reducto_conn_id) as poller:
            while True:
                await asyncio.sleep(interval)
                await asyncio.sleep(cls._retry_not_before.get(key, 0.0) - asyncio.get_running_loop().time())
                count += 1
                polls = await trigger._poll(poller)
                interval = trigger._interval(count, polls)
                for poll in polls:
                    yield replace(poll, next_in=interval)

    @abstractmethod
    def filter_shared_stream(self, shared_stream: AsyncIterator[Poll]) -> AsyncGenerator[TriggerEvent, None]:
        """Yield this trigger's events for the polls."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the same events from a stream of its own, where Airflow shares none."""
        async with (
            aclosing(self.open_shared_stream(self.serialize()[1])) as polls,
            aclosing(self.filter_shared_stream(polls)) as events,
        ):
            async for event in events:
                yield event

    def shared_stream_key(self) -> Hashable | None:
        """Return all that a poll depends on."""
        return self._stream_key()

    def _polls(self, shared_stream: AsyncIterator[Poll]) -> AbstractAsyncContextManager[AsyncIterator[Poll]]:
        """Return the polls of the stream, preceded by one outside of it with ``poll_immediately``, as a context."""
        if self.poll_immediately:
            return aclosing(self._polls_after_one_now(shared_stream))
        return nullcontext(shared_stream)  # thousands wait without a generator of their own

    async def _polls_after_one_now(self, shared_stream: AsyncIterator[Poll]) -> AsyncGenerator[Poll, None]:
        polls = await self._poll_now()
        interval = self._interval(0, polls)
        for poll in polls:
            yield replace(poll, next_in=interval)
        async for poll in shared_stream:
            yield poll

    def _interval(self, count: int, polls: Iterable[Poll] = ()) -> float:
        """Return the seconds before the next poll, after ``count`` polls with ``polls`` as the last."""
        interval = self.poke_interval
        if self.exponential_backoff:
            interval *= 2.0 ** min(count, 32)
            if self.max_wait is not None:
                interval = min(interval, self.max_wait)
        retry_after = [retry_after_of(poll.error) for poll in polls]
        if count == 0:
            retry_after.append(min(self.not_before - time.time(), MAX_RETRY_AFTER))
        return max(interval, MIN_INTERVAL, *retry_after)


def make_event(payload: dict[str, Any]) -> TriggerEvent:
    storable = {name: without_nul(value) if isinstance(value, str) else value for name, value in payload.items()}
    return TriggerEvent(storable)  # type: ignore[no-untyped-call]

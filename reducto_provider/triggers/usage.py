"""Wait in the triggerer: until usage exceeds a threshold, or for each level of a budget that it passes."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import os
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from airflow.providers.common.compat.triggers import BaseEventTrigger
from airflow.triggers.base import TriggerEvent
from jinja2 import StrictUndefined

from reducto_provider.exceptions import ReductoConfigurationError, ReductoError, ReductoPollError
from reducto_provider.triggers.polls import (
    LONGEST_RETRY_AFTER,
    MAX_FAILURE_TIME,
    SHORTEST_INTERVAL,
    FailedPolls,
    Poll,
    Poller,
    as_reducto_error,
    retry_after_of,
    utc_minute,
)
from reducto_provider.usage.fields import (
    QUERY_FIELDS,
    check_given,
    check_not_empty,
    is_literal,
    outline,
    parse_query,
    restore_literals,
)
from reducto_provider.usage.query import FILTER_PARAMETERS, UsageQuery, unmatched_filters
from reducto_provider.usage.report import Metric, plain
from reducto_provider.usage.threshold import RUN_FIELDS, Reading, UsageThreshold, parse_threshold, without_nul
from reducto_provider.usage.window import CALENDAR_WINDOWS, DayRange, NoDayEndedError, calendar_window

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

# Until an event has reached the database, where the triggerer puts it once a second, and the scheduler has made a run
# of it. One of the same asset that comes sooner starts no run of its own: it is left to the run of the next event.
_PERSIST_SECONDS = 15.0
_WINDOWS_REMEMBERED = 50  # more than are ever watched at the same time

_HAND_OVER_SECONDS = 60.0  # within which a triggerer takes up what a sensor has handed over

_NOT_BEGUN = (
    "the DAG has changed while this waited: its sensor no longer has start_from_trigger, and so Airflow, which started "
    "the trigger anew, did not render its arguments; a retry begins the wait again"
)


@cache
def _log_thread() -> ThreadPoolExecutor:
    """Return a thread for logs alone: those of asyncio would all wait for one log, and leave the loop little time."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="reducto-log")


# No thread survives a fork, but the executor would believe that its own is there, and each line would wait for ever.
os.register_at_fork(after_in_child=_log_thread.cache_clear)


@dataclass
class _Asking:
    """A question on its way, and how many wait for what comes of it."""

    task: asyncio.Task[list[Poll]]
    waiting: int = 0


class _UsageTrigger(BaseEventTrigger):
    """
    Polls the service, by itself or, on Airflow 3.3, together with all triggers that ask the same question.

    A subclass says what to ask (:meth:`_queries`), when two ask the same (:meth:`_question`) and what the
    answers mean (:meth:`filter_shared_stream`). Its arguments are plain JSON values. No secret is among them, since a
    serialized DAG may hold them in clear. Each lies in an attribute of its name.
    """

    # A deferred sensor stays in its task's queue; event triggers as such leave it.
    supports_triggerer_queue = True

    reducto_conn_id: str
    poke_interval: float
    exponential_backoff: bool = False
    max_wait: float | None = None
    not_before: float = 0.0
    _warned = False
    """Whether it has said that nothing matches its filters."""
    asks_first: bool = False
    """Ask once without waiting: who comes to a shared stream late would wait for its next poll."""

    _asking: ClassVar[dict[Hashable, _Asking]] = {}
    """By event loop and question: what is being asked outside of a stream, for all triggers that begin or end at the
    same moment."""
    _put_off: ClassVar[dict[Hashable, float]] = {}
    """By question: until when, in loop time, the service wants to be left alone, since it was asked so."""

    @property
    def log(self) -> Any:
        """One for all triggers of a class, since Airflow's own would be one more for each of thousands."""
        return self.logger()

    async def _alog(self, level: str, text: str, *args: Any, **options: Any) -> None:
        """
        Log, in a thread.

        In a triggerer each line goes down a pipe. To wait for room in it would hold up the event loop, and for ever
        when the process at the other end is itself waiting for that loop. Of hundreds who wait, each poll is hundreds
        of lines.
        """
        line = partial(copy_context().run, getattr(self.log, level), text, *args, **options)
        await asyncio.get_running_loop().run_in_executor(_log_thread(), line)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, plain JSON values."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {name: getattr(self, name) for name in inspect.signature(type(self)).parameters},
        )

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncGenerator[Poll, None]:
        """Poll without end. Failures are yielded, not raised: raised, they would end every subscriber's wait."""
        trigger = cls(**kwargs)
        question, count, interval = trigger._question(), 0, trigger._interval(0)
        async with Poller(trigger.reducto_conn_id) as poller:
            while True:
                await asyncio.sleep(interval)
                await asyncio.sleep(cls._put_off.get(question, 0.0) - asyncio.get_running_loop().time())
                count += 1
                polls = await trigger._ask(poller)
                interval = trigger._interval(count, polls)
                for poll in polls:
                    yield replace(poll, next_in=interval)

    @abstractmethod
    def filter_shared_stream(self, shared_stream: AsyncIterator[Poll]) -> AsyncGenerator[TriggerEvent, None]:
        """Make this trigger's events of the polls."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """The same over a stream of its own, where Airflow shares none."""
        async with (
            aclosing(self.open_shared_stream(self.serialize()[1])) as polls,
            aclosing(self.filter_shared_stream(polls)) as events,
        ):
            async for event in events:
                yield event

    def shared_stream_key(self) -> Hashable | None:
        """All that the poll depends on."""
        return self._question()

    @abstractmethod
    def _question(self) -> Hashable:
        """All that the poll depends on."""

    @abstractmethod
    def _queries(self, moment: datetime) -> list[UsageQuery]:
        """What to ask at a moment; nothing while there is nothing to ask yet."""

    async def _polls(self, shared_stream: AsyncIterator[Poll]) -> AsyncGenerator[Poll, None]:
        """The polls of the stream, before them one outside of it if nobody has asked yet."""
        if self.asks_first:
            polls = await self._ask_now()
            interval = self._interval(0, polls)
            for poll in polls:
                yield replace(poll, next_in=interval)
        async for poll in shared_stream:
            yield poll

    async def _ask_now(self) -> list[Poll]:
        question = self._question()
        key = asyncio.get_running_loop(), question
        if (asking := self._asking.get(key)) is None:
            asking = self._asking[key] = _Asking(asyncio.create_task(self._ask_for_all(question)))
        asking.waiting += 1
        try:
            return await asyncio.shield(asking.task)  # who is cancelled does not take it from the others
        finally:
            asking.waiting -= 1
            if not asking.waiting:
                asking.task.cancel()
                del self._asking[key]

    async def _ask_for_all(self, question: Hashable) -> list[Poll]:
        async with Poller(self.reducto_conn_id) as poller:
            polls = await self._ask(poller)
        if seconds := max(retry_after_of(poll.error) for poll in polls):
            now = asyncio.get_running_loop().time()
            for over in [other for other, until in self._put_off.items() if until <= now]:
                del self._put_off[over]
            self._put_off[question] = now + seconds
        return polls

    async def _ask(self, poller: Poller) -> list[Poll]:
        moment = datetime.now(UTC)
        queries = self._queries(moment)
        return [await poller.ask(query, moment) for query in queries] or [Poll(moment)]

    async def _warn_if_unmatched(self, poll: Poll) -> None:
        if self._warned or poll.query is None or poll.report is None:
            return
        if warning := unmatched_filters(poll.query, len(poll.report.rows)):
            self._warned = True
            await self._alog("warning", "%s", warning)

    def _interval(self, count: int, polls: Iterable[Poll] = ()) -> float:
        """Seconds before the next poll, after ``count`` of them, of which the last came to ``polls``."""
        interval = self.poke_interval
        if self.exponential_backoff:
            interval *= 2.0 ** min(count, 32)
            if self.max_wait is not None:
                interval = min(interval, self.max_wait)
        asked_for = [retry_after_of(poll.error) for poll in polls]
        if count == 0:
            asked_for.append(min(self.not_before - time.time(), LONGEST_RETRY_AFTER))
        return max(interval, SHORTEST_INTERVAL, *asked_for)


class ReductoUsageThresholdTrigger(_UsageTrigger):
    """
    Poll until usage exceeds a threshold, and fire one event.

    On Airflow 3.3 all triggers that ask the same question at the same interval share one poll, each with its own
    threshold; on older versions each polls for itself. Between polls lie ``poke_interval`` seconds whatever the
    service answers, or more if it asks for that by ``Retry-After``. Transient failures end the wait when they have
    lasted ``max_failure_time`` seconds and at least five polls in a row have failed, any other failure ends it at once.

    The parameters that are not named here are those of the sensor.

    :param reducto_conn_id: the Airflow connection of type ``reducto``.
    :param usage_start_date: first day of the window, as ``yyyy-mm-dd``; likewise ``usage_end_date``, the last.
    :param threshold: a number as text, so that no digit is lost.
    :param poke_interval: seconds between polls.
    :param exponential_backoff: double that time from poll to poll, up to ``max_wait`` seconds if given.
    :param deadline: when to give up, in seconds since the epoch: it holds in whichever triggerer this runs. None
        for never.
    :param wait_when_closed: go on when the window is over and the threshold not exceeded.
    :param max_failure_time: seconds that transient failures must have lasted before they end the wait.
    :param failed_polls: polls in a row that failed before this trigger took over.
    :param failing_since: when the first of them failed, in seconds since the epoch. A trigger that starts more than a
        minute later leaves both out of account: it was started again, and polls in between may have succeeded.
    :param not_before: until when the service asked to be left alone when it failed then, in seconds since the epoch.
    :param silent_fail: tolerate without end whatever a retry might mend, as sensors with ``silent_fail`` do.
    :param asks_first: poll once at the start; otherwise the first poll comes after one interval, since a sensor that
        defers has asked before.
    :param window: for a wait that begins in the triggerer (``start_from_trigger``): which days, if none are given.
    :param grace: likewise: how many seconds before Airflow's own timeout the deadline lies.
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
        asks_first: bool = False,
        window: str | int | None = None,
        grace: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
        self.asks_first = asks_first
        self.window = window
        self.grace = grace
        # Templates that nobody has rendered must not be asked for as if they were names.
        self._refusal = None if window is None else error_event(ReductoPollError(_NOT_BEGUN))
        self._reading: Reading | None = None
        """Of the last poll, if that did not fail."""
        check_not_empty(
            {name: getattr(self, name) for name in (*QUERY_FIELDS, "threshold", "window", "reducto_conn_id")}
        )

    @classmethod
    def waiting_for(cls, threshold: UsageThreshold, **options: Any) -> ReductoUsageThresholdTrigger:
        """The trigger that waits for ``threshold``; ``options`` are its other arguments."""
        return cls(**{**_arguments_of(threshold), **options})

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """
        Begin a wait that no task has prepared: Airflow 3.3 calls this for a sensor with ``start_from_trigger``, with
        the DAG run's context. What can't be right becomes the wait's event, for the task to raise.
        """
        jinja_env = jinja_env or self.get_template_env()
        jinja_env.undefined = StrictUndefined  # as of DAGs; Airflow's own here leaves out what is not defined
        # None of these is one that was left out.
        outlines = {name: outline(value) for name in self.template_fields if (value := getattr(self, name)) is not None}
        try:
            super().render_template_fields(context, jinja_env)
        except Exception as error:  # noqa: BLE001  # a template runs code, which may raise anything
            message = f"a template can't be rendered in the triggerer: {type(error).__name__}: {error}"
            self._refusal = error_event(ReductoConfigurationError(message))
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
            waited_for = UsageThreshold.of_run(context, **{name: getattr(self, name) for name in RUN_FIELDS})
        except NoDayEndedError as error:
            self._refusal = {"status": "skip", "message": str(error)}
        except (ValueError, OverflowError) as error:
            self._refusal = error_event(ReductoConfigurationError(str(error)))
        else:
            for name, value in _arguments_of(waited_for).items():
                setattr(self, name, value)
            self.window = None
            self._refusal = None

    def shared_stream_key(self) -> Hashable | None:
        """
        All that the poll depends on. None, for a poll of its own, when the interval grows poll by poll, and when
        there is nothing to poll for.
        """
        return None if self.exponential_backoff or self._refusal else self._question()

    def _question(self) -> Hashable:
        query = self._waited_for().query
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            self.reducto_conn_id,
            *query.params(),
            self.poke_interval,
        )

    def _queries(self, moment: datetime) -> list[UsageQuery]:
        query = self._waited_for().query_at(moment)
        return [] if query is None else [query]

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Poll]) -> AsyncGenerator[TriggerEvent, None]:
        """One event at the most, the end of the wait."""
        if self._refusal:
            yield _event(self._refusal)
            return
        waited_for = self._waited_for()
        failed_polls = self._failed_polls()
        async with aclosing(self._polls(shared_stream)) as polls:
            while True:
                try:
                    async with asyncio.timeout(self._seconds_left()):
                        event = await self._event_of(await anext(polls), waited_for, failed_polls)
                except TimeoutError:
                    [last] = await self._ask_now()  # as a sensor in a worker asks when its time is over
                    event = await self._event_of(last, waited_for, failed_polls)
                    event = event or timeout_event(waited_for, self._reading)
                if event is not None:
                    yield _event(event)
                    return

    def _waited_for(self) -> UsageThreshold:
        return UsageThreshold(
            query=parse_query(**{name: getattr(self, name) for name in QUERY_FIELDS}),
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
        self, poll: Poll, waited_for: UsageThreshold, failed_polls: FailedPolls
    ) -> dict[str, Any] | None:
        """The event that a poll leads to, None while there is to wait."""
        self._reading = None
        try:
            self._reading = reading = await poll.read(waited_for)
        except Exception as error:  # noqa: BLE001  # whatever it is, the task that waits must hear of it
            unforeseen = None if isinstance(error, ReductoError) else error
            if not failed_polls.tolerates(error):
                await self._alog(
                    "error", "Poll of %s failed, and ends the wait: %s", poll.query, error, exc_info=unforeseen
                )
                return error_event(as_reducto_error(error))
            next_poll = self._next_poll(poll)
            await self._alog(
                "warning",
                "Poll of %s failed (%s): %s; %s",
                poll.query,
                failed_polls,
                error,
                next_poll,
                exc_info=unforeseen,
            )
            return None
        failed_polls.reset()
        await self._warn_if_unmatched(poll)
        if reading is not None:
            outcome = waited_for.outcome(reading)
            if outcome == "exceeded" or (outcome == "closed" and not self.wait_when_closed):
                await self._alog("info", "%s: %s", reading, outcome)
                return {"status": outcome, "reading": reading.as_json()}
        await self._alog("info", "%s; %s", waited_for.waits_on(reading), self._next_poll(poll))
        return None

    def _next_poll(self, poll: Poll) -> str:
        if not poll.next_in:
            return "the time to wait is over"
        until = "" if self.deadline is None else f", until {utc_minute(self.deadline)}"
        return f"next poll in {poll.next_in:g} s{until}"


class ReductoUsageLevelTrigger(_UsageTrigger):
    """
    Fire an event for each level of a budget that usage passes, for an ``AssetWatcher`` to start DAGs by.

    Each level fires once per window and organization, and again in the next window; to equal a level is not to pass
    it. Several levels passed at once fire one after the other, the lowest first. An event is
    ``{"level": 80, "reading": {...}}``, the reading being that of the threshold sensor with the budget for its
    threshold. Unlike a sensor's, the window moves with the clock: it is the calendar period, in UTC days, of the
    moment of the poll. For ``settle_days`` after its end a window is still watched beside the one that follows, since
    its last hours are counted only then.

    What has fired is remembered in the asset's state store, which Airflow has from 3.3 on, some seconds after
    the event: a triggerer that stops in between fires again, rather than not at all. On Airflow 3.0 to 3.2, and for
    an asset that has not this trigger alone, it is remembered while the trigger runs: after a restart of the
    triggerer, a pause of the DAGs that the asset starts, or a change of the arguments, the levels that are passed
    already fire once more. Airflow 2 has no watchers.

    A watcher can't fail: a poll that does is logged, and the next one comes after ``poke_interval`` seconds.

    :param budget: what 100 % are; from 1e-9 to less than 1e18.
    :param levels: in percent of the budget, each more than 0 and up to 10,000.
    :param metric: ``credits`` or ``requests``.
    :param window: ``month``, ``week`` (from Monday) or ``day``.
    :param settle_days: days after a window's end in which it is still watched.
    :param org_id: the organization; by default the one of the connection's extra ``org_id``, else the key's own.
    :param products: only these; one text or several, ``"*"`` for all. Likewise ``features``, ``api_keys`` and
        ``file_types``.
    :param reducto_conn_id: the Airflow connection of type ``reducto``.
    :param poke_interval: seconds between polls.
    :raises ValueError: for an argument that can't be right, and for a template, which nobody renders here.
    """

    asks_first = True

    def __init__(
        self,
        *,
        budget: float | Decimal | str,
        levels: Sequence[float] = (50, 80, 100),
        metric: Metric = "credits",
        window: str = "month",
        settle_days: int = 1,
        org_id: str | None = None,
        products: str | Sequence[str] | None = None,
        features: str | Sequence[str] | None = None,
        api_keys: str | Sequence[str] | None = None,
        file_types: str | Sequence[str] | None = None,
        reducto_conn_id: str = "reducto_default",
        poke_interval: float | timedelta = 300.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        filters = {"products": products, "features": features, "api_keys": api_keys, "file_types": file_types}
        _check_final({"org_id": org_id, **filters, "reducto_conn_id": reducto_conn_id})
        self.budget = _parse_budget(budget)
        self.levels = _parse_levels(levels)
        self.metric = metric
        self.window = window
        self.settle_days = settle_days
        self.org_id = org_id
        self.reducto_conn_id = reducto_conn_id
        self.poke_interval = _parse_interval(poke_interval)
        if window not in CALENDAR_WINDOWS:
            raise ValueError(f"window must be one of {', '.join(CALENDAR_WINDOWS)}, not {window!r}")
        if not isinstance(settle_days, int) or isinstance(settle_days, bool) or not 0 <= settle_days <= 31:
            raise ValueError(f"settle_days must be a whole number from 0 to 31, not {settle_days!r}")
        today = datetime.now(UTC).date()
        self._today = UsageThreshold(
            query=parse_query(
                usage_start_date=today,
                usage_end_date=today,
                group_by="product",
                org_id=org_id,
                **filters,
            ),
            metric=metric,
            threshold=Decimal(self.budget),
        )
        names = self._today.query.filters()
        self.products, self.features = names.get("products"), names.get("features")
        self.api_keys, self.file_types = names.get("api_keys"), names.get("file_types")
        self._memory = _Memory()

    def _question(self) -> Hashable:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            self.reducto_conn_id,
            self.window,
            self.settle_days,
            self.org_id,
            *((name, *values) for name, values in self._today.query.filters().items()),
            self.poke_interval,
        )

    def _queries(self, moment: datetime) -> list[UsageQuery]:
        windows = [calendar_window(self.window, moment.date())]
        while (before := windows[0].first - timedelta(days=1)) >= moment.date() - timedelta(days=self.settle_days):
            windows.insert(0, calendar_window(self.window, before))
        queries = (self._watched(window).query_at(moment) for window in windows)
        return [query for query in queries if query is not None]

    def _watched(self, window: DayRange) -> UsageThreshold:
        return replace(self._today, query=replace(self._today.query, start=window.first, end=window.last))

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Poll]) -> AsyncGenerator[TriggerEvent, None]:
        """An event for each level that a poll finds newly passed."""
        async with aclosing(self._polls(shared_stream)) as polls:
            async for poll in polls:
                try:
                    passed = await self._newly_passed(poll)
                except Exception as error:  # noqa: BLE001  # a watcher must not end: Airflow would start it anew at once
                    await self._log_failure(error, poll)
                    continue
                await self._store_memory()
                for level, reading in passed:
                    yield _event({"level": level, "reading": reading.as_json()})
                    self._memory.add(self, level, reading)
                    await asyncio.sleep(_PERSIST_SECONDS)
                    await self._store_memory()

    async def _newly_passed(self, poll: Poll) -> list[tuple[float, Reading]]:
        """The levels that a poll finds passed and that have not fired in its window, with the reading."""
        day = poll.query.start if poll.query else poll.time.date()
        reading = await poll.read(self._watched(calendar_window(self.window, day)))
        if reading is None:
            return []
        await self._warn_if_unmatched(poll)
        # Fractions, since decimals of many digits would be rounded.
        percent = Fraction(reading.value) * 100 / Fraction(reading.threshold)
        passed = [level for level in self.levels if percent > Fraction(str(level))]
        new = await self._memory.new(self, reading, passed)
        told = f"; passed {', '.join(f'{level:g} %' for level in new)}" if new else ""
        await self._alog("info", "%s%s; next poll in %g s", reading, told, poll.next_in)
        return [(level, reading) for level in new]

    async def _log_failure(self, error: Exception, poll: Poll) -> None:
        if isinstance(error, ReductoError) and error.passing:
            await self._alog("warning", "Poll of %s failed: %s; next poll in %g s", poll.query, error, poll.next_in)
        else:
            unforeseen = None if isinstance(error, ReductoError) else error
            await self._alog(
                "error",
                "Poll of %s failed, and will until that is mended: %s; next poll in %g s",
                poll.query,
                error,
                poll.next_in,
                exc_info=unforeseen,
            )

    async def _store_memory(self) -> None:
        try:
            await self._memory.store(self)
        except Exception as error:  # noqa: BLE001  # as above
            text = "What has fired is not stored yet, and a restart would fire it again"
            await self._alog("warning", text, exc_info=error)


class _Memory:
    """Which levels have fired, by window: in Airflow's asset state store where there is one, else for now."""

    def __init__(self) -> None:
        self._fired: dict[str, dict[str, list[float]]] = {}
        self._to_store: set[str] = set()
        self._stored = True

    async def new(self, trigger: ReductoUsageLevelTrigger, reading: Reading, passed: list[float]) -> list[float]:
        """Those of the levels passed that have not fired yet in the window of the reading."""
        key, window = _memory_key(trigger, reading), reading.window.first.isoformat()
        if key not in self._fired:
            self._fired[key] = await self._load(trigger, key)
        elif not {*passed} <= {*self._fired[key].get(window, [])}:
            # While this triggerer was taken for dead, another one may have fired them. If that can't be learned they
            # fire: again, rather than not at all; that the store fails is logged when they are to be stored.
            with suppress(Exception):
                self._fired[key] = _union(await self._load(trigger, key), self._fired[key])
        return [level for level in passed if level not in self._fired[key].get(window, [])]

    def add(self, trigger: ReductoUsageLevelTrigger, level: float, reading: Reading) -> None:
        key, window = _memory_key(trigger, reading), reading.window.first.isoformat()
        windows = self._fired.setdefault(key, {})
        windows[window] = [*windows.get(window, []), level]
        self._to_store.add(key)

    async def store(self, trigger: ReductoUsageLevelTrigger) -> None:
        """
        Hand on what has been added, and see the next time that it is there: else that failed, or another trigger of
        the asset, which did the same at the same moment, has written over it.
        """
        if not self._stored or (store := _store_of(trigger)) is None:
            return
        for key in list(self._to_store):
            stored = await self._load(trigger, key)
            windows = dict(list(_union(stored, self._fired[key]).items())[-_WINDOWS_REMEMBERED:])
            if windows == stored:
                self._to_store.discard(key)
            else:
                await store.aset(key, windows)

    async def _load(self, trigger: ReductoUsageLevelTrigger, key: str) -> dict[str, list[float]]:
        if not self._stored or (store := _store_of(trigger)) is None:
            return {}
        try:
            stored = await store.aget(key)
        except ValueError as error:
            if type(error) is not ValueError:  # what can't be decoded: a store that fails for now, as any other error
                raise
            # Several assets are watched by the same trigger: whose store?
            self._stored = False
            await trigger._alog(
                "warning",
                "Levels that have fired are forgotten when the triggerer restarts or the DAG is paused: give each "
                "asset a trigger with arguments of its own (%s)",
                error,
            )
            return {}
        if stored is None:
            return {}
        try:
            return msgspec.convert(stored, dict[str, list[int | float]])
        except msgspec.ValidationError as error:  # somebody else wrote it: better that a level fires again than never
            await trigger._alog(
                "warning", "What is stored as %s of the levels that have fired can't be read: %s", key, error
            )
            return {}


def _union(windows: dict[str, list[float]], others: dict[str, list[float]]) -> dict[str, list[float]]:
    """The levels of both, by window, the oldest first."""
    return {
        window: sorted({*windows.get(window, []), *others.get(window, [])})
        for window in sorted(windows.keys() | others.keys())
    }


def _store_of(trigger: ReductoUsageLevelTrigger) -> Any:
    return getattr(trigger, "asset_state_store", None)  # there is none before Airflow 3.3


def _memory_key(trigger: ReductoUsageLevelTrigger, reading: Reading) -> str:
    """One for each thing that is watched, however often, and over whichever connection."""
    watched = {
        "org_id": reading.org_id,
        "window": trigger.window,
        "metric": trigger.metric,
        "budget": trigger.budget,
        "filters": trigger._watched(reading.window).query.filters(),
    }
    digest = hashlib.sha256(json.dumps(watched, sort_keys=True).encode()).hexdigest()
    return f"reducto_usage_levels_{digest[:32]}"


def error_event(error: ReductoError) -> dict[str, Any]:
    """The event for an error that ends the wait: its class by name, for the sensor to raise it again."""
    return {"status": "error", "error": type(error).__name__, "message": str(error)}


def timeout_event(waited_for: UsageThreshold, reading: Reading | None) -> dict[str, Any]:
    """The event for a deadline that passed, with the last reading if there is one."""
    reached = f"; the last poll: {reading}" if reading else ""
    return {
        "status": "timeout",
        "message": f"usage on {waited_for.window} did not exceed {plain(waited_for.threshold)} {waited_for.metric} "
        f"within the sensor's timeout{reached}",
    }


def _event(payload: dict[str, Any]) -> TriggerEvent:
    storable = {name: without_nul(value) if isinstance(value, str) else value for name, value in payload.items()}
    return TriggerEvent(storable)  # type: ignore[no-untyped-call]


def _arguments_of(waited_for: UsageThreshold) -> dict[str, Any]:
    """The arguments of a trigger that waits for it."""
    query = waited_for.query
    return {
        "usage_start_date": query.start.isoformat(),
        "usage_end_date": query.end.isoformat(),
        "threshold": plain(waited_for.threshold),
        "metric": waited_for.metric,
        "per_group": waited_for.per_group,
        "projected": waited_for.projected,
        "settle_days": waited_for.settle_days,
        "org_id": query.org_id,
        "group_by": query.group_by,
        **dict.fromkeys(FILTER_PARAMETERS),
        **query.filters(),
    }


def _check_final(fields: dict[str, Any]) -> None:
    check_not_empty(fields)
    for name, value in fields.items():
        if not is_literal(value):
            raise ValueError(f"{name} must be final, not {value!r}: what a watcher asks is not rendered")


def _parse_budget(budget: object) -> str:
    try:
        if number := parse_threshold(budget):
            return plain(number)
    except ValueError:
        pass
    raise ValueError(f"budget must be a number from 1e-9 to less than 1e18, not {budget!r}")


def _parse_interval(interval: object) -> float:
    seconds = interval.total_seconds() if isinstance(interval, timedelta) else interval
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < float("inf"):
        return float(seconds)
    raise ValueError(f"poke_interval must be a number of seconds, more than 0, or a timedelta, not {interval!r}")


def _parse_levels(levels: object) -> list[float]:
    if isinstance(levels, list | tuple | set) and levels:
        numbers = [level for level in levels if isinstance(level, int | float) and not isinstance(level, bool)]
        if len(set(numbers)) == len(levels) and all(0 < level <= 10_000 for level in numbers):
            return sorted(numbers)
    raise ValueError(f"levels must be different numbers of percent, more than 0 and up to 10000, not {levels!r}")

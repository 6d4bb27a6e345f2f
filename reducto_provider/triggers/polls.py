"""Poll the service: the result of a poll, how many polls may fail, and which are logged."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeVar

from reducto_provider.airflow_compat import AirflowFailException
from reducto_provider.exceptions import ReductoCreditsUnavailableError, ReductoError, ReductoPollError
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import CreditsUnavailableError, UsageReport
from reducto_provider.usage.threshold import Reading, UsageThreshold

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from reducto_provider.hooks.reducto import ReductoHook

MIN_INTERVAL: Final = 1.0
"""Minimum seconds between two polls, whatever ``poke_interval`` is."""

MAX_RETRY_AFTER: Final = 3600.0
"""Maximum seconds by which ``Retry-After`` delays the next poll."""

MIN_FAILED_POLLS: Final = 5
"""Polls in a row that must have failed before transient failures end a wait; the hook's attempts within one don't
count."""

MAX_FAILURE_TIME: Final = timedelta(hours=6)
"""How long transient failures must have lasted before they end a wait, by default."""

MAX_SILENCE: Final = 3600.0
"""Maximum seconds between two lines of a wait whose polls are no further apart."""

Result = TypeVar("Result")

_LAST_MOMENT = datetime.max.replace(tzinfo=UTC).timestamp() // 1 - 1
_ASIDE_ROWS = 10_000  # from here on, summing a report up would hold up an event loop
_FEW_ROWS = 200  # up to here, reading a report takes less time than a turn of the event loop
_READERS_PER_TURN = 20  # of so few rows: together they take less than a millisecond


@dataclass(frozen=True)
class Poll:
    """The result of a poll: a report, an error, or neither before the window begins."""

    time: datetime
    query: UsageQuery | None = None
    report: UsageReport | None = None
    error: Exception | None = None
    traceback: TracebackType | None = field(default=None, repr=False)
    """The error's own, from before it was raised again: it would grow with each of hundreds of readers, and logging it
    would then block the event loop."""
    next_in: float = 0.0
    """Seconds until the next poll."""
    turns: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)
    """Thousands may read it, one after the other: other tasks have turns in between, and only the first reader sums a
    large report up."""
    readers: Iterator[int] = field(default_factory=partial(itertools.count, 1), repr=False, compare=False)
    """Numbers the readers of a small report or of an error: only some wait for a turn, which takes longer than to
    read."""

    async def read(self, condition: UsageThreshold) -> Reading | None:
        """
        Return the reading of a condition, None before the window begins.

        :raises Exception: the error of the poll.
        """
        return await self.evaluate(condition.read)

    async def evaluate(self, function: Callable[[UsageReport, datetime], Result]) -> Result | None:
        """
        Return what a function makes of the report and the time of the poll, None before the window begins.

        :raises Exception: the error of the poll.
        """
        async with self.turns:
            is_small = self.report is None or len(self.report.rows) <= _FEW_ROWS
            if not is_small or next(self.readers) % _READERS_PER_TURN == 0:
                await asyncio.sleep(0)
            if self.error is not None:
                raise self.error.with_traceback(self.traceback)
            if self.report is None:
                return None
            try:
                if len(self.report.rows) < _ASIDE_ROWS:
                    return function(self.report, self.time)
                return await asyncio.to_thread(function, self.report, self.time)
            except CreditsUnavailableError as error:
                raise ReductoCreditsUnavailableError(str(error)) from error


class Poller:
    """
    Poll through one hook, kept open between polls. Return errors in the poll: nothing is raised.

    After a failed poll the next one begins with a new hook, and so reads the connection again: a wait of months must
    see that it was fixed.
    """

    def __init__(self, reducto_conn_id: str) -> None:
        self._conn_id = reducto_conn_id
        self._hook: ReductoHook | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def poll(self, query: UsageQuery, moment: datetime) -> Poll:
        """Poll once, including the hook's own attempts."""
        try:
            if self._hook is None:
                # The first import takes a second, which is too long for an event loop.
                hooks = await asyncio.to_thread(import_module, "reducto_provider.hooks.reducto")
                hook: ReductoHook = hooks.ReductoHook(self._conn_id)
                self._hook = await self._stack.enter_async_context(hook)
            return Poll(moment, query, report=await self._hook.aget_usage(query))
        except Exception as error:  # noqa: BLE001  # the subscriber decides what it means
            self._hook = None
            await self._stack.aclose()
            return Poll(moment, query, error=error, traceback=error.__traceback__)


class FailedPolls:
    """
    Count the polls that failed in a row, and decide which failures a wait tolerates.

    Transient failures end it when at least :data:`MIN_FAILED_POLLS` polls in a row have failed and the first of them
    did so ``max_failure_time`` seconds ago: neither a few polls far apart nor many within an outage of an hour are
    enough. Any other failure ends it at once. With ``silent_fail`` only a failure that no retry can fix ends it.

    :param count: polls in a row that have failed so far.
    :param since: when the first of them failed, in seconds since the epoch: it may have been in another process.
    """

    __slots__ = ("_max_failure_time", "_silent_fail", "count", "since")

    def __init__(
        self, max_failure_time: float, *, silent_fail: bool = False, count: int = 0, since: float | None = None
    ) -> None:
        self._max_failure_time = max_failure_time
        self._silent_fail = silent_fail
        self.count = count
        self.since = since

    def reset(self) -> None:
        """Note that a poll did not fail."""
        self.count, self.since = 0, None

    def tolerates(self, error: Exception) -> bool:
        """Count one more poll that failed, with ``error``, and return whether the wait continues."""
        self.count += 1
        if self.since is None:
            self.since = time.time()
        if self._silent_fail:
            return not isinstance(error, AirflowFailException)
        lasting = self.count >= MIN_FAILED_POLLS and self._seconds() >= self._max_failure_time
        return isinstance(error, ReductoError) and error.transient and not lasting

    def _seconds(self) -> float:
        return 0.0 if self.since is None else max(0.0, time.time() - self.since)  # clocks are set

    def __str__(self) -> str:
        if self._silent_fail:
            return "tolerated by silent_fail"
        lasted, limit = (timedelta(seconds=int(seconds)) for seconds in (self._seconds(), self._max_failure_time))
        return f"failure {self.count}, for {lasted}; {MIN_FAILED_POLLS} failures over {limit} end the wait"


class LineThrottle:
    """
    Decide which polls of a wait have a line at the usual level; the lines of the others are for debugging.

    A thousand sensors that wait for a night would otherwise log half a million lines, nearly all of which repeat the
    one before. The memory is that of the process: after a restart the first poll has its line.
    """

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[Hashable, tuple[Hashable, float]] = {}

    def has_news(self, content: Hashable, next_in: float, subject: Hashable = None) -> bool:
        """
        Return whether to log a poll: the first of its subject, one whose content differs from that of the poll before,
        and one after which the next would come more than :data:`MAX_SILENCE` seconds after the last line.

        :param next_in: seconds until the next poll, 0 if there is none.
        """
        content, now = (content, bool(next_in)), time.time()
        last, at = self._lines.get(subject, (None, 0.0))
        if content == last and at <= now <= at + MAX_SILENCE - next_in:  # clocks are set
            return False
        self._lines = {each: line for each, line in self._lines.items() if line[1] > now - MAX_SILENCE}
        self._lines[subject] = content, now
        return True


def as_reducto_error(error: Exception) -> ReductoError:
    """Return the error that ends a wait, the same in every mode: a foreign class does not cross the database."""
    return error if isinstance(error, ReductoError) else ReductoPollError(f"{type(error).__name__}: {error}")


def figures_of(reading: Reading | None) -> Hashable:
    """Return what can change from poll to poll in the line of a reading."""
    return reading and (reading.value, reading.used, reading.projected, reading.group)


def error_text(error: Exception) -> Hashable:
    """Return what can change from poll to poll in the line of an error."""
    return type(error).__name__, str(error)


def utc_minute(seconds: float) -> str:
    """Return a moment, in seconds since the epoch, as text for the log."""
    return f"{datetime.fromtimestamp(min(seconds, _LAST_MOMENT), UTC):%Y-%m-%d %H:%M} UTC"


def delay_after(error: Exception, poke_interval: float) -> float:
    """Return the seconds from a failed poll to the next."""
    return max(poke_interval, MIN_INTERVAL, retry_after_of(error))


def retry_after_of(error: Exception | None) -> float:
    """Return the seconds of ``Retry-After``, at most :data:`MAX_RETRY_AFTER`."""
    return min(getattr(error, "retry_after", None) or 0.0, MAX_RETRY_AFTER)

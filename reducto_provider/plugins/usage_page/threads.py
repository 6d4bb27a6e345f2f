"""Run blocking work for an event loop: in a few threads, and only for so long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from reducto_provider.export.threads import ReadingThread

Result = TypeVar("Result")


class BusyError(RuntimeError):
    """All threads are in use."""


class BoundedThreads:
    """
    At most ``count`` threads at a time.

    The event loop's own pool is not used: work that hangs there would hold up other requests of the server.
    """

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)

    async def run(self, work: Callable[[], Result], *, wait: float, seconds: float) -> Result:
        """
        Return the result of ``work``, which goes on in its thread if it takes longer than ``seconds``.

        :param wait: for how many seconds a free thread is waited for.
        :raises BusyError: if no thread becomes free.
        :raises TimeoutError: if the work takes longer.
        """
        try:
            async with asyncio.timeout(wait):
                await self._free.acquire()
        except TimeoutError:
            raise BusyError("all threads of the usage page are in use") from None
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def settle(result: Result | None, error: Exception | None) -> None:
            self._free.release()
            if future.done():  # nobody waits any more
                return
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]  # work may return None
            else:
                future.set_exception(error)

        def call() -> None:
            result, error = None, None
            try:
                result = work()
            except Exception as raised:  # noqa: BLE001  # raised where it is awaited
                error = raised
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(settle, result, error)

        try:
            ReadingThread(call, "reducto-usage-page").start()
        except RuntimeError:  # no more threads can be started
            self._free.release()
            raise
        async with asyncio.timeout(seconds):
            return await future

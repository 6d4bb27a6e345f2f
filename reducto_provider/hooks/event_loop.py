"""The process's one event-loop thread, on which synchronous code runs coroutines.

Airflow ends a task with an exception that a signal handler raises in the main thread. Inside an event loop, that
exception may be treated as one of a callback: logged and dropped. A thread that only waits is interrupted at once.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any, Final, Generic, TypeVar

Result = TypeVar("Result")

CANCEL_GRACE: Final = 5.0
"""Seconds that an interrupted caller waits for the cancelled coroutine to end."""

_STOP_GRACE = 2.0
_SIGNAL_CHECK = 0.5  # seconds: a signal just before a wait begins, or in another thread, does not interrupt it
_CANCELLED = "cancelled from outside, as when Airflow kills a task"


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """
    Run a coroutine on the loop's thread, and return its result or raise its exception.

    The calling thread waits, and runs the functions that the coroutine passes to :func:`run_aside`. An exception in the
    calling thread, as from a signal handler, cancels the coroutine. The thread may be running another event loop.

    :raises asyncio.CancelledError: if :func:`cancel` cancelled the coroutine.
    :raises RuntimeError: in the loop's own thread, which can't wait for itself.
    """
    try:
        loop = _get_thread().loop
        if _running_loop() is loop:
            raise RuntimeError("run() can't be called in its own event loop: await the coroutine instead")
        call = _Call(loop, coroutine)
    except BaseException:  # also an interrupt
        coroutine.close()
        raise
    return call.result()


def cancel() -> None:
    """Cancel all coroutines of :func:`run`. Signal handlers may call this, as for ``on_kill``."""
    for call in tuple(_calls):
        call.cancel()


def has_caller() -> bool:
    """Return whether a thread waits in :func:`run` for the current task."""
    return _current_call() is not None


async def run_aside(function: Callable[..., Result], *arguments: Any) -> Result:
    """
    Run a function that would block the event loop.

    The thread that waits in :func:`run` runs it: only a task's own thread may use Airflow's channel to the supervisor.
    On other event loops, one of asyncio's threads does.
    """
    if call := _current_call():
        result: Result = await call.run_aside(function, *arguments)
        return result
    return await asyncio.to_thread(function, *arguments)


async def run_detached(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function that may hang, in a thread that neither cancellation nor the end of the process waits for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def work() -> None:
        with suppress(RuntimeError):  # the loop is closed
            _settle(loop, future, function, *arguments)

    threading.Thread(target=work, name="reducto-detached", daemon=True).start()
    return await future


def is_running_here() -> bool:
    """Return whether this is the loop's own thread."""
    return _thread is not None and _running_loop() is _thread.loop


def close_with(owner: object, close: Callable[[], Awaitable[None]]) -> None:
    """Await ``close`` once ``owner`` is garbage-collected or the process ends. To be called in the loop's thread."""
    thread, gone = _get_thread(), asyncio.Event()

    async def close_later() -> None:
        try:
            await gone.wait()
        finally:
            await close()

    nothing = Context()  # the current one would keep the running call alive
    task = thread.loop.create_task(close_later(), context=nothing)
    thread.background.add(task)  # a loop keeps only weak references to its tasks
    task.add_done_callback(thread.background.discard, context=nothing)
    weakref.finalize(owner, thread.call_soon, gone.set).atexit = False  # by then the loop has stopped


class _Call(Generic[Result]):
    """A coroutine on the loop's thread, with the thread that waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Result]) -> None:
        self.loop = loop
        self._coroutine = coroutine
        self._context = copy_context()
        self._context.run(_call.set, self)
        self._task: asyncio.Task[Result] | None = None
        self._begun = False
        self._cancelled = False
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._futures: set[asyncio.Future[Any]] | None = set()

    def result(self) -> Result:
        _calls.add(self)
        try:
            self.loop.call_soon_threadsafe(self._begin)
            self._serve()
        except BaseException:
            self.cancel()
            self.loop.call_soon_threadsafe(self._begin)  # the interrupt may have come before the first call
            if self._task is None or not self._task.done():
                with suppress(queue.Empty):
                    self._serve(CANCEL_GRACE)
            self.loop.call_soon_threadsafe(self._close)
            raise
        finally:
            _calls.discard(self)
        # A connection keeps its context alive, and so this call. Not by a call into the loop, which wakes its thread.
        task, self._task = self._task, None
        assert task is not None  # noqa: S101  # for mypy
        return task.result()

    def cancel(self) -> None:
        self._cancelled = True
        self.loop.call_soon_threadsafe(self._cancel)

    async def run_aside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._futures is None:
            raise asyncio.CancelledError(_CANCELLED)  # no thread waits any more
        future: asyncio.Future[Any] = self.loop.create_future()
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        self._jobs.put(partial(_settle, self.loop, future, function, *arguments))
        return await future

    def _serve(self, timeout: float | None = None) -> None:
        while (job := self._next_job(timeout)) is not None:
            if not self._cancelled:  # the interrupt may have left a message half-way in Airflow's channel
                job()

    def _next_job(self, timeout: float | None) -> Callable[[], object] | None:
        while timeout is None:
            with suppress(queue.Empty):
                return self._jobs.get(timeout=_SIGNAL_CHECK)
        return self._jobs.get(timeout=timeout)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._task = self.loop.create_task(self._coroutine, context=self._context)
            # The context refers to this call: the garbage collector would have to break the cycle.
            del self._context, self._coroutine
            self._task.add_done_callback(self._end)
            if self._cancelled:
                self._task.cancel(_CANCELLED)

    def _cancel(self) -> None:
        self._cancel_jobs()
        if self._task is not None:
            self._task.cancel(_CANCELLED)

    def _end(self, task: asyncio.Task[Result]) -> None:
        if not task.cancelled():
            task.exception()  # an interrupted caller does not retrieve it, and asyncio would log that
        self._cancel_jobs()
        self._jobs.put(None)

    def _close(self) -> None:
        self._task = None
        self._cancel_jobs()

    def _cancel_jobs(self) -> None:
        futures, self._futures = self._futures or set(), None
        for future in tuple(futures):
            future.cancel(_CANCELLED)


class _LoopThread(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="reducto-loop", daemon=True)
        self.loop = asyncio.new_event_loop()
        self.background: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:  # cancels all tasks at the end
            runner.run(self._stopped.wait())

    def call_soon(self, callback: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(callback)

    def stop(self) -> None:
        self.call_soon(self._stopped.set)
        self.join(_STOP_GRACE)


_call: ContextVar[_Call[Any] | None] = ContextVar("reducto_call", default=None)
_calls: set[_Call[Any]] = set()
_lock = threading.Lock()
_thread: _LoopThread | None = None


def _get_thread() -> _LoopThread:
    global _thread
    with _lock:
        if _thread is None or not _thread.is_alive():
            _thread = _LoopThread()
            _thread.start()
        return _thread


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _current_call() -> _Call[Any] | None:
    call = _call.get()
    return call if call is not None and call.loop is _running_loop() else None  # a context may be copied elsewhere


def _settle(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], function: Callable[..., Any], *arguments: Any
) -> None:
    """Run a function outside the loop and set its outcome on a future of the loop, unless that was cancelled."""
    if future.cancelled():
        return
    try:
        outcome = partial(future.set_result, function(*arguments))
    except Exception as error:  # noqa: BLE001  # raised where it is awaited; other exceptions end the thread's own wait
        outcome = partial(future.set_exception, error)
    loop.call_soon_threadsafe(lambda: None if future.done() else outcome())


def _stop() -> None:
    if _thread is not None:
        _thread.stop()


def _reset_after_fork() -> None:
    """
    Reset the state in a forked process, which has no threads but perhaps a lock that one of them held.

    The objects of the parent's loop are never collected here, since the stack of its thread still refers to them.
    Otherwise aiohttp would close connections and remove their sockets from the epoll that both processes share.
    """
    global _lock, _thread
    _lock = threading.Lock()
    _thread = None
    _calls.clear()


atexit.register(_stop)
os.register_at_fork(after_in_child=_reset_after_fork)

"""The event-loop thread: who runs what where, how a wait for it ends, forks, and the end of the process."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from reducto_provider.hooks import event_loop
from reducto_provider.hooks.event_loop import run, run_aside, run_detached

PROJECT = Path(__file__).parents[2]
LOOP = "reducto-loop"


class Killed(BaseException):
    """As Airflow's for a task whose time is over: nothing catches it by the way."""


@contextmanager
def alarm(handler: Callable[[], object], begun: threading.Event | None = None) -> Iterator[None]:
    """Have a signal call something in this thread while it waits: soon after what it waits for has begun."""
    here = threading.get_ident()

    def ring() -> None:
        assert begun is None or begun.wait(60)
        time.sleep(0.1)  # for the wait to begin
        signal.pthread_kill(here, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    ringing = threading.Thread(target=ring)
    ringing.start()
    try:
        yield
    finally:
        ringing.join()
        signal.signal(signal.SIGALRM, before)


def kill() -> None:
    raise Killed


async def name() -> str:
    return threading.current_thread().name


class Sleeper:
    """A coroutine that does not end by itself for long, and notes how it ends."""

    def __init__(self, seconds: float = 60) -> None:
        self.seconds = seconds
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def sleep(self) -> None:
        self.begun.set()
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


# Where things run


def test_all_coroutines_run_in_one_thread() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert {run(name()), *pool.map(lambda _: run(name()), range(8))} == {LOOP}
    assert [thread.daemon for thread in threading.enumerate() if thread.name == LOOP] == [True]


def test_what_a_coroutine_raises_is_raised() -> None:
    async def fail() -> None:
        raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        run(fail())


def test_within_another_event_loop() -> None:
    async def outer() -> str:
        return run(name())

    assert asyncio.run(outer()) == LOOP


def test_within_itself() -> None:
    async def outer() -> None:
        run(name())

    with pytest.raises(RuntimeError, match="await the coroutine"):
        run(outer())


def test_the_calling_thread_runs_what_is_aside() -> None:
    note: ContextVar[str] = ContextVar("note")

    async def look() -> tuple[str, str, bool]:
        here = await run_aside(lambda: threading.current_thread().name)
        return here, await run_aside(note.get), event_loop.has_caller()

    def call(text: str) -> tuple[str, str, bool]:
        note.set(text)
        return run(look())

    with ThreadPoolExecutor(4, "caller") as pool:
        found = list(pool.map(call, "abcd"))
    assert [text for _, text, _ in found] == list("abcd")
    assert {where.rstrip("_0123456789") for where, _, _ in found} == {"caller"}
    assert all(has_caller for _, _, has_caller in found)


def test_tasks_of_a_coroutine_use_the_same_thread() -> None:
    async def many() -> list[int]:
        return await asyncio.gather(*(run_aside(threading.get_ident) for _ in range(20)))

    assert set(run(many())) == {threading.get_ident()}


def test_what_is_aside_may_raise_and_may_itself_run_something() -> None:
    async def fail() -> None:
        with pytest.raises(LookupError, match="here"):
            await run_aside(lambda: {}["here"])

    async def nested() -> str:
        return await run_aside(lambda: run(name()))

    run(fail())
    assert run(nested()) == LOOP


def test_without_a_thread_that_waits_a_thread_of_asyncio_s_is_used() -> None:
    async def look() -> tuple[int, bool]:
        return await run_aside(threading.get_ident), event_loop.has_caller()

    thread, has_caller = asyncio.run(look())
    assert (thread != threading.get_ident(), has_caller) == (True, False)


def test_a_context_that_was_copied_to_another_loop_has_no_caller() -> None:
    async def elsewhere() -> bool:
        return await asyncio.to_thread(lambda: asyncio.run(inner()))

    async def inner() -> bool:
        await run_aside(list)
        return event_loop.has_caller()

    assert run(elsewhere()) is False


# How a wait ends


def test_a_signal_s_exception_ends_the_wait_and_cancels_the_coroutine() -> None:
    sleeper = Sleeper()
    with alarm(kill, sleeper.begun), pytest.raises(Killed):
        run(sleeper.sleep())
    assert sleeper.cancelled.is_set()


def test_a_signal_that_another_thread_takes_ends_the_wait_too() -> None:
    def signal_myself() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.2, signal_myself)
        await sleeper.sleep()

    sleeper = Sleeper(5)
    before = signal.signal(signal.SIGUSR1, lambda *_: kill())
    try:
        with pytest.raises(Killed):
            run(work())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sleeper.cancelled.is_set()


def test_who_is_killed_as_the_coroutine_has_ended_does_not_wait_for_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    serve, waits = event_loop._Call._serve, []

    def serve_and_be_killed(call: Any, timeout: float | None = None) -> None:
        waits.append(timeout)
        serve(call, timeout)
        kill()

    monkeypatch.setattr(event_loop._Call, "_serve", serve_and_be_killed)
    with pytest.raises(Killed):
        run(name())
    assert waits == [None]


def test_a_signal_s_exception_while_something_runs_aside() -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def memo() -> None:
        begun.set()
        try:
            await run_aside(time.sleep, 60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with alarm(kill, begun), pytest.raises(Killed):
        run(memo())
    assert cancelled.is_set()


def test_what_else_waits_to_run_aside_is_not_run_once_the_wait_was_interrupted() -> None:
    """A second look-up of a connection: it might hang as the first one did, or be given the first one's answer."""
    looked_up: list[int] = []
    begun = threading.Event()

    def memo(number: int) -> None:
        looked_up.append(number)
        begun.set()
        time.sleep(60)

    async def look_up_all() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(run_aside(memo, number))

    for _ in range(5):
        with alarm(kill, begun), pytest.raises(Killed):
            run(look_up_all())
        assert looked_up == [0]
        looked_up.clear()
        begun.clear()


def test_a_coroutine_that_goes_on_does_not_hold_up_who_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_loop, "CANCEL_GRACE", 0.1)
    begun, ended, may_end = threading.Event(), threading.Event(), threading.Event()

    async def stubborn() -> None:
        begun.set()
        while not may_end.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
        with pytest.raises(asyncio.CancelledError):  # nobody is there to run it
            await run_aside(list)
        ended.set()

    with alarm(kill, begun), pytest.raises(Killed):
        run(stubborn())
    assert not ended.is_set()
    may_end.set()
    assert ended.wait(10)


def test_cancel_ends_the_waits_of_all_threads() -> None:
    sleepers = [Sleeper() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(run, sleeper.sleep()) for sleeper in sleepers]
        assert all(sleeper.begun.wait(10) for sleeper in sleepers)
        event_loop.cancel()
        for wait in waits:
            assert isinstance(wait.exception(10), asyncio.CancelledError)
    assert all(sleeper.cancelled.is_set() for sleeper in sleepers)
    assert run(name()) == LOOP, "what comes later is not cancelled"


def test_cancel_by_a_signal_handler_as_for_on_kill() -> None:
    sleeper = Sleeper()
    said = "as when Airflow kills a task"
    with alarm(event_loop.cancel, sleeper.begun), pytest.raises(asyncio.CancelledError, match=said):
        run(sleeper.sleep())
    assert sleeper.cancelled.is_set()


def test_cancel_while_something_runs_aside_says_why_too() -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def memo() -> None:
        begun.set()
        await run_aside(cancelled.wait, 60)
        await run_aside(list)

    def cancel() -> None:
        event_loop.cancel()
        cancelled.set()

    with alarm(cancel, begun), pytest.raises(asyncio.CancelledError, match="as when Airflow kills a task"):
        run(memo())


def test_a_coroutine_that_is_cancelled_before_it_begins() -> None:
    sleeper = Sleeper()
    call = event_loop._Call(event_loop._get_thread().loop, sleeper.sleep())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        call.result()
    assert not sleeper.begun.is_set()


def test_a_caller_that_is_killed_before_the_coroutine_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = Sleeper()
    coroutine = sleeper.sleep()
    call = event_loop._Call(event_loop._get_thread().loop, coroutine)
    monkeypatch.setattr(call, "_begin", list)
    with alarm(lambda: (monkeypatch.undo(), kill())), pytest.raises(Killed):
        call.result()
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert not sleeper.begun.is_set()


def test_an_error_that_nobody_takes_leaves_no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    begun = threading.Event()

    async def fail() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise LookupError

    with alarm(kill, begun), pytest.raises(Killed):
        run(fail())
    run(name())
    gc.collect()
    assert caplog.text == ""


def test_a_call_is_freed_without_the_garbage_collector() -> None:
    async def this_call() -> weakref.ref[Any]:
        call = event_loop._current_call()
        assert call is not None
        return weakref.ref(call)

    gc.disable()
    try:
        call = run(this_call())
        run(name())  # the loop has left the first call behind
        assert call() is None
    finally:
        gc.enable()


# What may hang


def test_what_is_detached_holds_nobody_up() -> None:
    may_end = threading.Event()

    async def hang() -> None:
        async with asyncio.timeout(0.1):
            await run_detached(may_end.wait, 60)

    try:
        for way in (run, asyncio.run):
            with pytest.raises(TimeoutError):
                way(hang())
        assert not may_end.is_set()
    finally:
        may_end.set()


def test_what_is_detached_returns_and_raises() -> None:
    async def look() -> int:
        with pytest.raises(LookupError):
            await run_detached(lambda: {}["here"])
        return await run_detached(int, "7")

    assert run(look()) == 7


def script(text: str, **environment: str) -> str:
    """Run Python in a process of its own, where a socket or loop that is left open is an error; return what it says."""
    arguments = [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", text]
    done = subprocess.run(
        arguments, cwd=PROJECT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_process_ends_while_something_hangs() -> None:
    text = """
import asyncio, time
from reducto_provider.hooks.event_loop import run, run_detached

async def hang():
    async with asyncio.timeout(0.1):
        await run_detached(time.sleep, 3600)

for way in (run, asyncio.run):
    try:
        way(hang())
    except TimeoutError:
        print("in time")
"""
    assert script(text) == "in time\nin time\n"


# When things are closed


class Owner:
    pass


def test_what_is_closed_with_its_owner() -> None:
    closed = threading.Event()

    async def close() -> None:
        assert event_loop.is_running_here()
        closed.set()

    async def begin() -> Owner:
        owner = Owner()
        event_loop.close_with(owner, close)
        return owner

    owner = run(begin())
    assert not event_loop.is_running_here()
    gc.collect()
    run(name())
    assert not closed.is_set()
    del owner
    gc.collect()
    assert closed.wait(10)


def test_what_is_closed_at_the_end_of_the_process() -> None:
    text = """
from reducto_provider.hooks import event_loop

class Owner:
    pass

async def close():
    print("closed")

async def begin():
    event_loop.close_with(owner, close)

owner = Owner()
event_loop.run(begin())
print("the end")
"""
    assert script(text) == "the end\nclosed\n"


# Forks


def in_a_fork(function: Callable[[], bool]) -> bool:
    """Whether a function returns True in a child process, which ends right after it."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if function() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_has_a_thread_of_its_own() -> None:
    assert run(name()) == LOOP
    here = threading.get_ident()

    async def look() -> bool:
        return await run_aside(threading.get_ident) == here

    assert in_a_fork(lambda: run(look()))
    assert run(look())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_the_thread_is_started() -> None:
    with event_loop._lock:
        assert in_a_fork(lambda: run(name()) == LOOP)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_closes_nothing_of_its_parent_s() -> None:
    closed = threading.Event()

    async def close() -> None:
        closed.set()

    async def begin(owner: Any) -> None:
        event_loop.close_with(owner, close)

    owners = [Owner()]
    run(begin(owners[0]))

    def collect() -> bool:
        owners.clear()
        gc.collect()
        event_loop.cancel()
        return run(name()) == LOOP and not closed.is_set()

    assert in_a_fork(collect)
    run(name())
    assert not closed.is_set()

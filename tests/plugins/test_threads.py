"""Blocking work for an event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from reducto_provider.plugins.usage_page.threads import BoundedThreads, BusyError


def test_results_and_errors():
    async def run():
        threads = BoundedThreads(1)
        assert await threads.run(lambda: 7, wait=0.01, seconds=30) == 7
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 / 0, wait=0.01, seconds=30)
        assert await threads.run(lambda: None, wait=0.01, seconds=30) is None

    asyncio.run(run())


def test_what_hangs_takes_its_own_threads_alone_and_the_loop_goes_on():
    released = threading.Event()

    async def run():
        threads = BoundedThreads(2)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await threads.run(released.wait, wait=0.01, seconds=0.01)
        for _ in range(5):
            with pytest.raises(BusyError):
                await threads.run(lambda: 1, wait=0.01, seconds=30)
        assert await asyncio.to_thread(lambda: 1) == 1
        released.set()
        while True:
            try:
                assert await threads.run(lambda: 1, wait=0.01, seconds=30) == 1
                return
            except BusyError:
                await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_thread_that_becomes_free_is_taken():
    released = threading.Event()

    async def run():
        threads = BoundedThreads(1)
        first = asyncio.create_task(threads.run(released.wait, wait=30, seconds=30))
        others = [asyncio.create_task(threads.run(lambda: 7, wait=30, seconds=30)) for _ in range(5)]
        await asyncio.sleep(0)
        released.set()
        assert await first
        assert [await other for other in others] == [7] * 5

    asyncio.run(run())


def test_an_ended_loop_is_no_error():
    released, ended = threading.Event(), threading.Event()

    def work():
        released.wait()
        ended.set()

    async def run():
        with pytest.raises(TimeoutError):
            await BoundedThreads(1).run(work, wait=0.01, seconds=0.01)

    asyncio.run(run())
    released.set()
    assert ended.wait(30)

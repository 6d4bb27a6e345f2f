"""Blocking work for an event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from datetime import date, timedelta
from pathlib import Path

import pytest

from reducto_provider.plugins.usage_page.threads import BoundedThreads, BusyError
from tests.airflows import DELTA

SERVER = """
import asyncio, sys
from datetime import date
from reducto_provider.plugins.usage_page.settings import PageDataset
from reducto_provider.plugins.usage_page.source import PageSource
from reducto_provider.plugins.usage_page.threads import BoundedThreads

TODAY = date(2026, 11, 21)
source = PageSource(PageDataset(name="a", path=sys.argv[1]))

def pages():
    source.overview(TODAY, 4)
    source.organization("org_0", None, None, TODAY)

async def serve():
    threads = BoundedThreads(4)

    async def request():
        while True:
            await threads.run(pages, wait=60, seconds=60)

    requests = [asyncio.create_task(request()) for _ in range(4)]
    await asyncio.sleep(1)
    assert not any(each.done() for each in requests), requests
    for each in requests:
        each.cancel()
    await asyncio.gather(*requests, return_exceptions=True)

asyncio.run(serve())
print("the end")
"""


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


@DELTA
def test_a_server_that_ends_while_a_table_is_read_ends_well(publish):
    """A daemon that is within deltalake when Python has ended crashes the process: seven times in ten, before."""
    days = [date(2026, 11, 1) + timedelta(day) for day in range(20)]
    for number in range(6):
        location = publish({day: {"a": 1, "b": 2} for day in days}, org_id=f"org_{number}", output_format="delta")
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", SERVER, location],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr

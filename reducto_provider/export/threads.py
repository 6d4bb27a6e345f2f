"""Read several files of an object store at a time, and import what other threads then use."""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_EXIT_SECONDS: Final = 5.0

_is_exiting = threading.Event()


class ReadingThread(threading.Thread):
    """
    A thread that reads an object store. Python's exit waits for what it has begun, for up to five seconds.

    It is a daemon, unlike the threads of an executor, which Python waits for however long: a store that hangs does not
    hold up the exit. But a daemon that is within deltalake or pyarrow when Python has ended crashes the process.
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)


@atexit.register
def _wait_for_threads() -> None:
    _is_exiting.set()
    deadline = time.monotonic() + _EXIT_SECONDS
    for thread in threading.enumerate():
        if isinstance(thread, ReadingThread):
            thread.join(max(0.0, deadline - time.monotonic()))


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], count: int) -> list[Result]:
    """
    Return the results for all items, in order, computed by up to ``count`` threads.

    :raises Exception: an error of ``function``, or that Python exits. Items that were not begun before are left out.
    """

    def call(item: Item) -> Result:
        if _is_exiting.is_set():
            raise RuntimeError("the process is ending")
        return function(item)

    if count == 1 or len(items) <= 1:
        return [call(item) for item in items]
    waiting: SimpleQueue[tuple[int, Item]] = SimpleQueue()
    for numbered in enumerate(items):
        waiting.put(numbered)
    results: dict[int, Result] = {}
    errors: list[BaseException] = []
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            try:
                place, item = waiting.get_nowait()
            except Empty:
                return
            try:
                results[place] = call(item)
            except BaseException as error:  # noqa: BLE001  # raised where the results are awaited
                errors.append(error)
                is_over.set()

    threads = [ReadingThread(work, "reducto-read") for _ in range(min(count, len(items)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:  # also if the caller is interrupted
        is_over.set()
    if errors:
        raise errors[0]
    return [results[place] for place in range(len(items))]


def import_pyarrow() -> None:
    """
    Import pyarrow in a thread that lasts as long as the process, unless it has been imported.

    If the thread that has imported pyarrow 25.0.0 ends, the next one that uses it crashes the process
    (apache/arrow#50471). A web server's threads end.

    :raises ImportError: if it is not installed.
    """
    if "pyarrow" in sys.modules or threading.current_thread() is threading.main_thread():
        import_module("pyarrow")
        return
    imported: Future[object] = Future()

    def work() -> None:
        try:
            imported.set_result(import_module("pyarrow"))
        except BaseException as error:  # noqa: BLE001  # raised where it is awaited
            imported.set_exception(error)
        else:
            threading.Event().wait()

    threading.Thread(target=work, name="reducto-pyarrow", daemon=True).start()
    imported.result()

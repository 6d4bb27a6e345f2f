"""Read several files of an object store at a time, and import what other threads then use."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], count: int) -> list[Result]:
    """
    Return the results for all items, in order, computed by up to ``count`` threads.

    The threads are daemons, unlike those of an executor, which Python waits for when it exits: a store that hangs holds
    up no exit.

    :raises Exception: an error of ``function``. Items that were not begun before are left out.
    """
    if count == 1 or len(items) <= 1:
        return [function(item) for item in items]
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
                results[place] = function(item)
            except BaseException as error:  # noqa: BLE001  # raised where the results are awaited
                errors.append(error)
                is_over.set()

    threads = [threading.Thread(target=work, name="reducto-read", daemon=True) for _ in range(min(count, len(items)))]
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
    is_over = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            import_module("pyarrow")
        except BaseException as error:  # noqa: BLE001  # raised where it is awaited
            errors.append(error)
        is_over.set()
        if not errors:
            threading.Event().wait()

    threading.Thread(target=work, name="reducto-pyarrow", daemon=True).start()
    is_over.wait()
    if errors:
        raise errors[0]

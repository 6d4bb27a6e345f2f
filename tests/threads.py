"""Threads that begin at the same moment."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

Result = TypeVar("Result")


def call_together(*functions: Callable[[], Result]) -> list[Result]:
    """Call functions at the same moment, each in a thread of its own. Return what they return, or raise an error."""
    together = Barrier(len(functions))

    def call(function: Callable[[], Result]) -> Result:
        together.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as threads:
        return list(threads.map(call, functions))

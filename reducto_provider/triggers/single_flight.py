"""Run one coroutine for all callers that need its result at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


@dataclass
class _Flight(Generic[Result]):
    """A coroutine that runs, and how many await it."""

    task: asyncio.Task[Result]
    waiting: int = 0


class SingleFlight(Generic[Result]):
    """Run one coroutine for all that await the same key in the same event loop at the same time."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[Result]] = {}

    async def run(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """
        Return what the coroutine under ``key`` returns, started by ``start`` unless it runs already.

        It is cancelled when the last that awaits it is.
        """
        key = asyncio.get_running_loop(), key
        if (flight := self._flights.get(key)) is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(start()))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)  # one that is cancelled does not take it from the others
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                flight.task.cancel()
                del self._flights[key]

    def __len__(self) -> int:
        return len(self._flights)

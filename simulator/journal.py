"""What the service was asked: every request, and how many were under way at once."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from multidict import CIMultiDictProxy

KEPT = 100_000
"""How many requests are remembered, so that a simulator left running doesn't grow for ever."""


@dataclass
class LoggedRequest:
    """One request as it arrived, the status of its answer (None as long as there is none), and the fault it met."""

    method: str
    path: str
    query: list[tuple[str, str]]
    query_string: str
    headers: CIMultiDictProxy[str]
    status: int | None = None
    fault: str | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    monotonic: float = field(default_factory=time.monotonic)

    def as_json(self) -> dict[str, Any]:
        """The entry in plain JSON values."""
        return {
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "queryString": self.query_string,
            "headers": list(self.headers.items()),
            "status": self.status,
            "fault": self.fault,
            "at": self.at.isoformat(),
            "monotonic": self.monotonic,
        }


class Journal:
    """The log of requests, how many are under way, and the most that were at once."""

    def __init__(self) -> None:
        self._entries: deque[LoggedRequest] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self.in_flight = 0
        self.max_in_flight = 0

    def arrived(self, request: web.Request) -> LoggedRequest:
        """Log a request that is now under way."""
        query_string = request.raw_path.partition("?")[2]
        query = list(request.query.items())
        entry = LoggedRequest(request.method, request.path, query, query_string, request.headers)
        with self._lock:
            self._entries.append(entry)
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
        return entry

    def left(self) -> None:
        """Count one request less under way: it was answered, or its client went away."""
        with self._lock:
            self.in_flight -= 1

    def entries(self) -> list[LoggedRequest]:
        """The requests so far, oldest first."""
        with self._lock:
            return list(self._entries)

    def clear(self) -> None:
        """Forget the requests so far; those still under way count on."""
        with self._lock:
            self._entries.clear()
            self.max_in_flight = self.in_flight

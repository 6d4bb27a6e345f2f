"""The log of requests, and how many were in flight at once."""

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
"""How many requests are kept, so that the memory of a simulator left running is bounded."""


@dataclass
class LoggedRequest:
    """One request as it arrived, the status of its answer (None until there is one), and the fault it met."""

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
        """Return the entry as JSON values."""
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
    """The log of requests, how many are in flight, and the maximum so far."""

    def __init__(self) -> None:
        self._entries: deque[LoggedRequest] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self.in_flight = 0
        self.max_in_flight = 0

    def arrived(self, request: web.Request) -> LoggedRequest:
        """Log a request that is now in flight."""
        query_string = request.raw_path.partition("?")[2]
        query = list(request.query.items())
        entry = LoggedRequest(request.method, request.path, query, query_string, request.headers)
        with self._lock:
            self._entries.append(entry)
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
        return entry

    def left(self) -> None:
        """Count one request less in flight: it was answered, or its client disconnected."""
        with self._lock:
            self.in_flight -= 1

    def entries(self) -> list[LoggedRequest]:
        """Return the requests so far, oldest first."""
        with self._lock:
            return list(self._entries)

    def clear(self) -> None:
        """Remove all entries. Requests still in flight are counted further."""
        with self._lock:
            self._entries.clear()
            self.max_in_flight = self.in_flight

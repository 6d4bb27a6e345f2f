"""What tests of the hook query, and what they compare the answer with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport
from simulator import Fault, Simulator

KEY = "sim-key-all"
PATH = "/api/v1/usage/export"
FIRST, LAST = date(2026, 6, 1), date(2026, 6, 7)
QUERY = UsageQuery(start=FIRST, end=LAST, org_id="org_acme")
ATTEMPTS = 3

Connect = Callable[..., str]


def figures(report: UsageReport) -> list[tuple[Any, ...]]:
    return [(row.date, row.group, row.credits, row.request_count) for row in report.rows]


def truth(simulator: Simulator, query: UsageQuery) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in simulator.truth(query.org_id or "org_acme", query.start, query.end, query.group_by)]


@dataclass(frozen=True)
class Noted(Fault):
    """Notes something about each request, then answers properly or with another fault."""

    note: Callable[[Any], None]
    fault: Fault | None = None

    async def play(self, request: Any, answer: Callable[[], Awaitable[Any]]) -> Any:
        self.note(request)
        return await (self.fault.play(request, answer) if self.fault else answer())


def chunked(head: bytes) -> bytes:
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    return b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""])

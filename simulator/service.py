"""The Usage Export API itself: one endpoint, `GET /api/v1/usage/export`.

Where its documentation says nothing, this service is strict about known parameters (a date is `yyyy-mm-dd` only;
only filters may be repeated) and ignores unknown ones, as web services do. So a misspelt filter has no effect: the
filters are `apiKey` and `fileType`, while the values of `groupBy` are `api_key` and `file_type`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from simulator.faults import FaultPlan
from simulator.journal import Journal, LoggedRequest
from simulator.population import ORGANIZATIONS, keys_of
from simulator.usage import DIMENSIONS, Organization, Row, Usage

EXPORT = "/api/v1/usage/export"
HEALTH = "/healthz"
ADMIN = "/_simulator/"
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
FILTERS = {"product": "product", "feature": "feature", "apiKey": "api_key", "fileType": "file_type"}
"""The dimension of each filter."""
IN_FLIGHT: ContextVar[LoggedRequest | None] = ContextVar("IN_FLIGHT", default=None)
"""The journal's entry of the request that the current task handles; aiohttp has one task per request."""


def utc_now() -> datetime:
    """Return the time of the real clock."""
    return datetime.now(UTC)


class Rejected(Exception):  # noqa: N818 - an answer like any other, not an error of this code
    """A request that the service rejects."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Query:
    """The parameters of a request, with defaults filled in."""

    org: str
    start: date
    end: date
    group_by: str
    filters: Mapping[str, Collection[str]]


class Service:
    """The service's state and its answers, as an aiohttp application.

    `keys` has the organizations that each key is a member of, its own one first; by default those of `keys_of`. `clock`
    returns the time as an aware datetime: which day it is, and how much of it has passed. Both `keys` and
    `usage.organizations` may be changed while the service runs.
    """

    def __init__(
        self,
        organizations: Iterable[Organization] = ORGANIZATIONS,
        keys: Mapping[str, Collection[str]] | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.usage = Usage(organizations, clock)
        given = keys_of(self.usage.organizations.values()) if keys is None else keys
        self._keys_at_first = {key: tuple(members) for key, members in given.items()}
        self.keys = dict(self._keys_at_first)
        self.faults = FaultPlan()
        self.journal = Journal()

    @property
    def requests(self) -> list[LoggedRequest]:
        """Return the requests so far, oldest first."""
        return self.journal.entries()

    def truth(
        self, org: str, start: date, end: date, group_by: str = "product", **filters: str | Collection[str]
    ) -> list[Row]:
        """Return the exact figures behind an answer, see `Usage.truth`."""
        return self.usage.truth(org, start, end, group_by, **filters)

    def clear(self) -> None:
        """Remove all logged requests, all faults, and all changes to usage, organizations and keys."""
        self.journal.clear()
        self.faults.clear()
        self.usage.reset()
        self.keys = dict(self._keys_at_first)

    def application(self) -> web.Application:
        """Return the service as an application."""
        app = web.Application(middlewares=[self._keep_journal], client_max_size=2**28)
        app.router.add_get(EXPORT, self._export)
        app.router.add_get(HEALTH, self._health)
        app.on_response_prepare.append(self._note_status)
        return app

    def member_of(self, request: web.Request) -> tuple[str, ...]:
        """Return the organizations of the request's key: none if the key is missing or unknown."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        return self.keys.get(key.strip(), ()) if scheme.lower() == "bearer" else ()

    def parse(self, request: web.Request) -> Query:
        """Return the query of a request.

        :raises Rejected: if the service rejects it.
        """
        organizations = self.member_of(request)
        if not organizations:
            raise Rejected(401, "Missing or invalid API key")
        today = self.usage.today()
        start = day(request, "startDate", today - timedelta(days=30))
        end = day(request, "endDate", today)
        if start > end:
            raise Rejected(400, "startDate is after endDate")
        group_by = single(request, "groupBy", "product")
        if group_by not in DIMENSIONS:
            raise Rejected(400, f"Invalid groupBy: must be one of {', '.join(DIMENSIONS)}")
        org = single(request, "orgId", organizations[0])
        if org not in organizations:
            raise Rejected(403, "Not a member of this organization")
        filters = {dimension: set(request.query.getall(name, ())) for name, dimension in FILTERS.items()}
        return Query(org, start, end, group_by, filters)

    def answer(self, request: web.Request) -> web.Response:
        """Return the proper answer to a request."""
        try:
            query = self.parse(request)
        except Rejected as rejected:
            return respond({"error": str(rejected)}, rejected.status)
        return respond(
            {
                "orgId": query.org,
                "startDate": query.start.isoformat(),
                "endDate": query.end.isoformat(),
                "groupBy": query.group_by,
                "data": self.usage.rows(query.org, query.start, query.end, query.group_by, query.filters),
            }
        )

    async def _export(self, request: web.Request) -> web.StreamResponse:
        own = next(iter(self.member_of(request)), None)
        fault = self.faults.next_for(request.query.get("orgId", own))
        if fault and (logged := IN_FLIGHT.get()):
            logged.fault = type(fault).__name__

        async def answer() -> web.Response:
            # In another thread: a large answer takes a while, and would delay those to other clients.
            return await asyncio.to_thread(self.answer, request)

        return await (fault.play(request, answer) if fault else answer())

    async def _health(self, request: web.Request) -> web.Response:
        return respond({"status": "ok"})

    @web.middleware
    async def _keep_journal(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == HEALTH or request.path.startswith(ADMIN):
            IN_FLIGHT.set(None)
            return await handler(request)
        IN_FLIGHT.set(self.journal.arrived(request))
        try:
            return await handler(request)
        finally:
            self.journal.left()

    async def _note_status(self, request: web.Request, response: web.StreamResponse) -> None:
        # Just before the head is sent: once the client has seen the status, so has the journal.
        if logged := IN_FLIGHT.get():
            logged.status = response.status


def respond(content: Mapping[str, Any], status: int = 200) -> web.Response:
    """Return a JSON answer, in UTF-8 rather than in escapes."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return web.Response(status=status, body=body, content_type="application/json")


def single(request: web.Request, name: str, default: str) -> str:
    """Return the value of a parameter that may be given once."""
    values = request.query.getall(name, [default])
    if len(values) > 1:
        raise Rejected(400, f"{name} is given more than once")
    return values[0]


def day(request: web.Request, name: str, default: date) -> date:
    """Return the value of a parameter that is a day."""
    text = single(request, name, default.isoformat())
    try:
        # The pattern first: fromisoformat also accepts week dates and dates without hyphens.
        if DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise Rejected(400, f"Invalid {name}: must be a date as yyyy-mm-dd")

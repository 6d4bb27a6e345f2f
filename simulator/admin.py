"""The admin API under `/_simulator/`: the Python API of a simulator for other processes.

    POST /_simulator/faults    {"kind": "status", "code": 503, "retry_after": 1, "times": 2, "org": ...}
                               {"kind": "transient", "rate": 0.1, "seed": 7}
    POST /_simulator/usage     {"org": "org_acme", "day": "2026-06-18", "credits": 5000, "requests": 100}
    POST /_simulator/restate   {"org": "org_acme", "day": "2026-06-17", "factor": 0.5}
    POST /_simulator/records   {"org": "org_acme", "records": [{"date", "credits", "requests", "product"...}]}
    POST /_simulator/rows      {"org": "org_acme", "rows": [{"date", "group", "credits", "requestCount"}]}
    POST /_simulator/credits   {"org": "org_acme", "shown": "number", "null" or "absent"}
    GET /_simulator/requests   the requests so far
    DELETE /_simulator/        reset everything

The members of a body are the arguments of the corresponding Python call. `KINDS` in `faults.py` has the kinds of
faults.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal, DecimalException
from typing import Any

from aiohttp import web

from simulator.faults import KINDS, TRANSIENT
from simulator.service import ADMIN, Service, respond
from simulator.usage import Record


def admin_routes(service: Service) -> list[web.RouteDef]:
    """Return the routes of the admin API of a service."""
    usage = service.usage

    def add_fault(
        kind: str,
        times: int | None = 1,
        org: str | None = None,
        rate: float | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        faults = TRANSIENT if kind == "transient" else (KINDS[kind](**options),)
        if rate is None:
            service.faults.add(*faults, times=times, org=org)
        else:
            service.faults.at_rate(rate, *faults, seed=seed, org=org)

    def add_usage(org: str, day: str, **figures: Any) -> None:
        usage.add(org, dt.date.fromisoformat(day), **figures)

    def restate(org: str, day: str, factor: float) -> None:
        usage.restate(org, dt.date.fromisoformat(day), factor)

    def set_records(org: str, records: list[dict[str, Any]]) -> None:
        usage.set_records(org, [record_of(**record) for record in records])

    async def requests(_: web.Request) -> web.Response:
        journal = service.journal
        return respond(
            {
                "requests": [entry.as_json() for entry in journal.entries()],
                "inFlight": journal.in_flight,
                "maxInFlight": journal.max_in_flight,
            }
        )

    async def reset(_: web.Request) -> web.Response:
        service.clear()
        return respond({})

    return [
        web.post(f"{ADMIN}faults", calling(add_fault)),
        web.post(f"{ADMIN}usage", calling(add_usage)),
        web.post(f"{ADMIN}restate", calling(restate)),
        web.post(f"{ADMIN}records", calling(set_records)),
        web.post(f"{ADMIN}rows", calling(usage.set_rows)),
        web.post(f"{ADMIN}credits", calling(usage.set_credits)),
        web.get(f"{ADMIN}requests", requests),
        web.delete(ADMIN, reset),
    ]


def calling(function: Callable[..., None]) -> Callable[[web.Request], Any]:
    """Return a handler that calls a function with the members of the request's JSON object."""

    async def handler(request: web.Request) -> web.Response:
        try:
            function(**await request.json())
        except (ValueError, TypeError, LookupError, DecimalException) as error:
            return respond({"error": f"{type(error).__name__}: {error}"}, 400)
        return respond({})

    return handler


def record_of(date: str, credits: float | str, requests: int, **names: str | None) -> Record:
    """Return a record from JSON values."""
    return Record(dt.date.fromisoformat(date), Decimal(str(credits)), requests, **names)

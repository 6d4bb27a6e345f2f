"""What can go wrong between a client and any HTTPS service, on request.

A fault delays, alters or replaces the proper answer to a request. A `FaultPlan` determines which requests meet
which fault.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import random
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.client import responses
from typing import Any, Literal, NoReturn

from aiohttp import web
from multidict import CIMultiDict

Answer = Callable[[], Awaitable[web.Response]]
"""Makes the proper answer, if the fault uses it."""


class Fault(ABC):
    """One way for a request to go wrong."""

    @abstractmethod
    async def play(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        """Send the answer that the fault stands for."""


@dataclass(frozen=True)
class Reply(Fault):
    """Any status with any body and headers.

    `retry_after`, in seconds, is sent as such or as the HTTP date that is so far from now by the real clock.
    """

    status: int = 200
    body: str | bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    retry_after_as: Literal["seconds", "date"] = "seconds"

    async def play(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        headers = CIMultiDict({"Content-Type": "application/json"})
        headers.update(self.headers)
        if self.retry_after is not None:
            as_date = formatdate(math.ceil(time.time() + self.retry_after), usegmt=True)
            headers["Retry-After"] = as_date if self.retry_after_as == "date" else f"{self.retry_after:g}"
        body = self.body.encode() if isinstance(self.body, str) else self.body
        return web.Response(status=self.status, body=body, headers=headers)


def status(code: int, **options: Any) -> Reply:
    """Return an error in the form of the service's own: `status(429, retry_after=2)`. Options are those of `Reply`."""
    return Reply(code, **{"body": json.dumps({"error": responses.get(code, "Error")}), **options})


def html(code: int = 200) -> Reply:
    """Return the page of a proxy in between, by default with status 200."""
    page = "<!doctype html><html><body><h1>Please sign in to the network</h1></body></html>"
    return Reply(code, page, {"Content-Type": "text/html; charset=utf-8"})


def redirect(location: str, code: int = 302) -> Reply:
    """Return a redirect, for instance to another host, which must not receive the key."""
    return Reply(code, headers={"Location": location})


@dataclass(frozen=True)
class Altered(Fault):
    """The proper answer with other values: `Altered({"orgId": "org_other"})` is a wrong echo."""

    fields: Mapping[str, Any]

    async def play(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        proper = await answer()
        if proper.status != 200:
            return proper
        return web.json_response({**json.loads(bytes_of(proper)), **self.fields})


@dataclass(frozen=True)
class Gzip(Fault):
    """The proper answer in gzip encoding, accepted or not, with or without the header that declares it."""

    declared: bool = True

    async def play(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        proper = await answer()
        proper.body = gzip.compress(bytes_of(proper))
        if self.declared:
            proper.headers["Content-Encoding"] = "gzip"
        return proper


@dataclass(frozen=True)
class Stall(Fault):
    """The proper answer, after a silence: before its headers or in the middle of its body."""

    seconds: float
    where: Literal["headers", "body"] = "headers"

    async def play(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        if self.where == "headers":
            await asyncio.sleep(self.seconds)
            return await answer()
        response, body = await begin(request, await answer())
        half = len(body) // 2
        await response.write(body[:half])
        await asyncio.sleep(self.seconds)
        await response.write(body[half:])
        return response


@dataclass(frozen=True)
class Trickle(Fault):
    """The proper answer, one byte at a time: each read is quick, the whole is not."""

    seconds: float

    async def play(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        response, body = await begin(request, await answer())
        for byte in body:
            await response.write(bytes([byte]))
            await asyncio.sleep(self.seconds)
        return response


@dataclass(frozen=True)
class CutShort(Fault):
    """Half of the proper answer, then the connection closes, short of Content-Length or of the last chunk."""

    chunked: bool = False

    async def play(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        response, body = await begin(request, await answer(), chunked=self.chunked)
        await response.write(body[: len(body) // 2])
        if request.transport is not None:
            request.transport.close()
        await disconnected()


@dataclass(frozen=True)
class Reset(Fault):
    """The connection is reset before any answer."""

    async def play(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        if request.transport is not None:
            # Closing a socket that lingers for no time sends a reset instead of an orderly end.
            linger = struct.pack("ii", 1, 0)
            request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            request.transport.abort()
        await disconnected()


@dataclass(frozen=True)
class Endless(Fault):
    """A body that never ends: the start of the proper answer, then white space until the client disconnects."""

    block: int = 65536

    async def play(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        response, body = await begin(request, await answer(), chunked=True)
        with suppress(ConnectionError):
            await response.write(body.rstrip(b"]}"))
            while True:
                await response.write(b" " * self.block)
                # A client that reads as fast as this writes would leave no time for other requests.
                await asyncio.sleep(0)
        return response


TRANSIENT: tuple[Fault, ...] = (
    status(500),
    status(502, body="<html>bad gateway</html>", headers={"Content-Type": "text/html"}),
    status(503, retry_after=1),
    status(429, retry_after=1),
    Reset(),
    CutShort(),
)
"""Faults that a client should survive by retrying."""

KINDS: Mapping[str, Callable[..., Fault]] = {
    "reply": Reply,
    "status": status,
    "html": html,
    "redirect": redirect,
    "altered": Altered,
    "gzip": Gzip,
    "stall": Stall,
    "trickle": Trickle,
    "cut_short": CutShort,
    "reset": Reset,
    "endless": Endless,
}
"""The faults by their names in the admin API."""


@dataclass(eq=False)
class _Rule:
    faults: tuple[Fault, ...]
    org: str | None
    times: int | None = None
    rate: float = 1.0
    chance: random.Random = field(default_factory=lambda: random.Random(0))


class FaultPlan:
    """Which requests meet which fault. A request meets the first fault added that applies to it."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def add(self, *faults: Fault, times: int | None = 1, org: str | None = None) -> None:
        """Apply each fault in turn to the next `times` requests (None: to all), or only to those of `org`."""
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, not {times}")
        with self._lock:
            self._rules += [_Rule((fault,), org, times) for fault in faults]

    def at_rate(self, rate: float, *faults: Fault, seed: int = 0, org: str | None = None) -> None:
        """Apply one of these faults, by default of `TRANSIENT`, to this share of requests. The same seed repeats it."""
        with self._lock:
            self._rules.append(_Rule(faults or TRANSIENT, org, rate=rate, chance=random.Random(seed)))

    def next_for(self, org: str | None) -> Fault | None:
        """Return the fault for a request that arrives now."""
        with self._lock:
            for rule in self._rules:
                if rule.org not in (None, org) or rule.chance.random() >= rule.rate:
                    continue
                if rule.times is not None:
                    rule.times -= 1
                    if not rule.times:
                        self._rules.remove(rule)
                return rule.chance.choice(rule.faults)
        return None

    def clear(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._rules.clear()


def bytes_of(response: web.Response) -> bytes:
    """Return the body of a proper answer, which always is bytes."""
    assert isinstance(response.body, bytes)
    return response.body


async def begin(request: web.Request, proper: web.Response, chunked: bool = False) -> tuple[web.StreamResponse, bytes]:
    """Send the head of the proper answer, and return its body for the fault to send."""
    body = bytes_of(proper)
    response = web.StreamResponse(status=proper.status, headers={"Content-Type": proper.content_type})
    if chunked:
        response.enable_chunked_encoding()
    else:
        response.content_length = len(body)
    await response.prepare(request)
    return response, body


async def disconnected() -> NoReturn:
    """Wait until the connection ends, which cancels the handler: returning would start an answer."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets the event")

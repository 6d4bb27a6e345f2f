"""One GET of the service within a deadline, over aiohttp. Knows none of the service's endpoints."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import zlib
from collections.abc import Coroutine, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiohttp
import certifi
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from requests.utils import get_environ_proxies, select_proxy

from reducto_provider import __version__
from reducto_provider.exceptions import (
    ReductoConfigurationError,
    ReductoError,
    ReductoResponseError,
    ReductoTransportError,
)
from reducto_provider.hooks import event_loop
from reducto_provider.hooks.answers import Answer, Parameters, content_encoding, printable, raise_for_status
from reducto_provider.hooks.settings import ReductoSettings, proxy_url

MAX_RESPONSE_BYTES: Final = 128 * 1024 * 1024
"""An answer longer than this, unpacked, is refused: some 1.5 million rows."""

MAX_HEADER_BYTES: Final = 64 * 1024
"""How long a header may be, as with the standard library. A content security policy takes more than aiohttp's 8 KiB."""

HEADERS: Final = {"User-Agent": f"airflow-provider-reducto/{__version__}", "Accept-Encoding": "gzip"}

_ERROR_BODY_BYTES = 64 * 1024
_PIECE_BYTES = 256 * 1024
_GZIP = 16 + zlib.MAX_WBITS
_NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV


class Sessions:
    """The open sessions of one event loop, one for each settings, while somebody uses them."""

    def __init__(self) -> None:
        self.users = 0
        self._sessions: dict[ReductoSettings, aiohttp.ClientSession] = {}

    async def open(self, settings: ReductoSettings) -> aiohttp.ClientSession:
        """Return the session for ``settings``. Those of settings that were replaced stay open for who uses them."""
        if settings not in self._sessions:
            verify: bool | ssl.SSLContext = True
            if settings.origin[0] == "https":
                verify = await event_loop.run_aside(_ssl_context, settings)
            if settings not in self._sessions:  # no other task was faster
                self._sessions[settings] = _open_session(settings, verify)
        return self._sessions[settings]

    async def close(self) -> None:
        """Close them all."""
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.close()


async def get(session: aiohttp.ClientSession, settings: ReductoSettings, path: str, parameters: Parameters) -> bytes:
    """
    Make one request, and return the body of a 200.

    :raises ReductoError: one class per cause.
    """
    parameters = list(parameters)
    try:
        answer = await within(settings.timeout, _receive(session, settings, url_of(settings, path, parameters)))
    except TimeoutError:
        failure: ReductoError = timeout_error(settings)
    except (aiohttp.ClientError, zlib.error, ValueError) as error:
        failure = transport_error(_cause(error), settings)
    else:
        raise_for_status(answer, settings, parameters)
        return answer.body
    # Raised out here, without what led to it: that may hold the request, and so the key or a proxy's password.
    raise failure


def url_of(settings: ReductoSettings, path: str, parameters: Parameters) -> str:
    """Return the URL to ask, each name and value percent-encoded."""
    return f"{settings.base_url}{path}?{urlencode(list(parameters), quote_via=quote)}"


async def within(seconds: float, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """
    Return what a coroutine returns, or cancel it after ``seconds``.

    It runs in a task of its own, which is cancelled until it has ended: aiohttp and what it connects by lose a
    cancellation that comes in the same turn of the loop as something else. Lost would be that of a time limit, or the
    caller's.

    :raises TimeoutError: when the time is over.
    """
    task = asyncio.create_task(coroutine)
    task.add_done_callback(retrieve_exception)
    try:
        if await _is_done(task, seconds):
            return task.result()
        raise TimeoutError
    finally:
        while not task.done():
            task.cancel()
            await _is_done(task, 1)


def retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Take note of how a task ended: asyncio complains of an error that nobody awaits any more."""
    if not task.cancelled():
        task.exception()


def proxy_for(settings: ReductoSettings) -> str | None:
    """Return the proxy to use. What the environment names without a scheme is one by http, as everywhere."""
    if settings.proxy:
        return settings.proxy
    proxy = select_proxy(settings.base_url, get_environ_proxies(settings.base_url))
    if not proxy:
        return None
    try:
        return proxy_url("the environment's proxy", proxy if "://" in proxy else f"http://{proxy}")
    except ValueError as error:
        scheme = proxy.partition("://")[0] if "://" in proxy else "http"
        raise ReductoConfigurationError(
            f"{error}, not a {scheme} one: set no_proxy, or extra 'proxy' of the connection"
        ) from None


def verify_for(settings: ReductoSettings) -> bool | str:
    """Return whether to check the service's certificate, or the CA bundle to check it with."""
    if settings.verify is not True:
        return settings.verify
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def bundle_error(error: OSError, settings: ReductoSettings) -> ReductoConfigurationError:
    """Return the error to raise for a CA bundle that can't be read."""
    return ReductoConfigurationError(
        f"the CA bundle {verify_for(settings)!r} can't be used ({type(error).__name__}): correct the connection's "
        "extra 'verify', or REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE in the environment"
    )


def timeout_error(settings: ReductoSettings) -> ReductoTransportError:
    """Return the error to raise when the time of an attempt is over."""
    return transport_error(f"no whole answer within {settings.timeout:g} s", settings)


def transport_error(cause: str, settings: ReductoSettings) -> ReductoTransportError:
    """Return the error to raise when no whole answer came."""
    return ReductoTransportError(f"no answer from {settings.base_url}: {printable(cause, settings, 500)}")


class _Body:
    """Gathers a body within bounds: a good one may not exceed them, of any other the beginning is enough."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self._good = status == HTTPStatus.OK
        self._limit = MAX_RESPONSE_BYTES if self._good else _ERROR_BODY_BYTES
        self._content = bytearray()  # not a list: of many small pieces, each would take the room of fifty bytes
        self._gzip = _Gunzip() if content_encoding(headers) in ("gzip", "x-gzip") else None

    @property
    def full(self) -> bool:
        return len(self._content) > self._limit

    def add(self, chunk: bytes) -> Iterator[None]:
        """Take in what came, unpacked, piece by piece: in between, others have their turn."""
        for piece in self._gzip.unpack(chunk) if self._gzip else (chunk,):
            self._content += piece
            yield
            if self.full:
                return

    def content(self) -> bytes:
        if self.full and self._good:
            raise ReductoResponseError(
                f"Reducto's answer is longer than {self._limit / 2**20:g} MiB: ask for fewer days at a time"
            )
        if self._gzip and not self.full:
            self._gzip.check_complete()
        return bytes(memoryview(self._content)[: self._limit])


class _Gunzip:
    """
    Unpacks gzip in pieces of a bounded size, as the gzip module does: several members, with zeros after each.

    Versions of aiohttp differ in what they take for gzip, and in how much of it they unpack at once.
    """

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP)
        self._begun = False

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """:raises zlib.error: where it is no gzip."""
        while data:
            if self._member.eof:
                if not (data := data.lstrip(b"\0")):
                    return
                self._member = zlib.decompressobj(_GZIP)
            self._begun = True
            yield self._member.decompress(data, _PIECE_BYTES)
            data = self._member.unconsumed_tail or self._member.unused_data

    def check_complete(self) -> None:
        """:raises zlib.error: where the end is missing."""
        if self._begun and not self._member.eof:
            raise zlib.error("the gzip of the answer was cut short")


class _Resolver(AbstractResolver):
    """Looks names up as aiohttp's own does, but in threads that nobody waits for: a look-up can't be cancelled."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return await event_loop.run_detached(_look_up, host, port, family)

    async def close(self) -> None:
        """There is nothing to close."""


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [
        ResolveResult(
            hostname=host,
            host=socket.getnameinfo(address, _NUMERIC)[0],  # with the zone that an IPv6 address may need
            port=port,
            family=of_family,
            proto=protocol,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for of_family, _, protocol, _, address in found
    ]


def _open_session(settings: ReductoSettings, verify: bool | ssl.SSLContext) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=verify, resolver=_Resolver()),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=HEADERS,
        auto_decompress=False,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        proxy=proxy_for(settings),
        trust_env=False,  # or a netrc entry would replace the key
        middlewares=(_no_transport_retry,),
    )


async def _no_transport_retry(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """One attempt is one request: after these errors aiohttp would ask again by itself, unpaced and uncounted."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except aiohttp.ServerDisconnectedError:  # which may quote what it has received
        raise aiohttp.ClientConnectionError("the connection was closed before the answer") from None
    except aiohttp.ClientOSError as error:
        raise aiohttp.ClientConnectionError(str(error)) from error


def _ssl_context(settings: ReductoSettings) -> ssl.SSLContext | bool:
    verify = verify_for(settings)
    if verify is False:
        return False
    bundle = Path(certifi.where() if verify is True else verify)
    try:
        if bundle.is_dir():
            return ssl.create_default_context(capath=bundle)
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:  # an SSLError is one
        raise bundle_error(error, settings) from None


async def _is_done(task: asyncio.Task[Any], seconds: float) -> bool:
    done, _ = await asyncio.wait([task], timeout=seconds)
    return bool(done)


async def _receive(session: aiohttp.ClientSession, settings: ReductoSettings, url: str) -> Answer:
    async with session.get(
        yarl.URL(url, encoded=True),
        headers={"Authorization": f"Bearer {settings.key}"},
        timeout=aiohttp.ClientTimeout(total=None),
        allow_redirects=False,
    ) as response:
        body = _Body(response.status, response.headers)
        async for chunk in response.content.iter_any():
            for _ in body.add(chunk):
                await asyncio.sleep(0)  # others' turn, and that of a time limit
            if body.full:
                break
        return Answer(response.status, response.headers, body.content())


def _cause(error: Exception) -> str:
    """Say what went wrong, in words of our own where the error's may quote what was received."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy refused to connect ({error.status})"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"what came is not HTTP, or has a header of more than {MAX_HEADER_BYTES // 1024} KiB"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer was cut short, or is not HTTP"
    return str(error) or type(error).__name__

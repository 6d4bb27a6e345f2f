"""Send one GET request within a deadline, over aiohttp. This module knows none of the service's endpoints."""

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
from weakref import WeakValueDictionary

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
from reducto_provider.hooks.bounded_protocol import limit_headers
from reducto_provider.hooks.settings import ReductoSettings, proxy_url

MAX_RESPONSE_BYTES: Final = 128 * 1024 * 1024
"""Maximum size of a decompressed response: about 1.5 million rows."""

MAX_HEADER_BYTES: Final = 64 * 1024
"""Maximum size of a header, as in the standard library. Content security policies exceed aiohttp's 8 KiB."""

HEADERS: Final = {"User-Agent": f"airflow-provider-reducto/{__version__}", "Accept-Encoding": "gzip"}

_ERROR_BODY_BYTES = 64 * 1024
_PIECE_BYTES = 256 * 1024
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # within() has the time limit
_GZIP = 16 + zlib.MAX_WBITS
_NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV

_ssl_contexts: WeakValueDictionary[tuple[Path, int, int, int], ssl.SSLContext] = WeakValueDictionary()
"""
Contexts in use, by the version of the bundle: each takes 0.7 MiB and 25 ms, and a triggerer has many sessions.
"""


class Sessions:
    """The open sessions of one event loop, one for each settings, while they are in use."""

    def __init__(self) -> None:
        self.users = 0
        self._sessions: dict[ReductoSettings, aiohttp.ClientSession] = {}

    async def open(self, settings: ReductoSettings) -> aiohttp.ClientSession:
        """Return the session for ``settings``. Sessions of replaced settings stay open for the calls that use them."""
        if settings not in self._sessions:
            verify: bool | ssl.SSLContext = True
            if settings.origin[0] == "https":
                verify = await event_loop.run_aside(_ssl_context, settings)
            if settings not in self._sessions:  # another task may have opened it meanwhile
                self._sessions[settings] = _open_session(settings, verify)
        return self._sessions[settings]

    async def close(self) -> None:
        """Close all sessions."""
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.close()


async def get(session: aiohttp.ClientSession, settings: ReductoSettings, path: str, parameters: Parameters) -> bytes:
    """
    Send one request, and return the body of a 200.

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
    # Raised without its cause, which may hold the request, and so the key or a proxy's password.
    raise failure


def url_of(settings: ReductoSettings, path: str, parameters: Parameters) -> str:
    """Return the URL of a request, with each name and value percent-encoded."""
    return f"{settings.base_url}{path}?{urlencode(list(parameters), quote_via=quote)}"


async def within(seconds: float, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """
    Return the result of a coroutine, or cancel it after ``seconds``.

    It runs in a task of its own, which is cancelled repeatedly until it has ended: aiohttp and its connector drop a
    cancellation that arrives in the same iteration of the loop as another event. That could be the cancellation by this
    time limit, or by the caller.

    :raises TimeoutError: after ``seconds``.
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
    """Retrieve a task's exception: asyncio logs one that is never retrieved."""
    if not task.cancelled():
        task.exception()


def proxy_for(settings: ReductoSettings) -> str | None:
    """Return the proxy to use. One that the environment names without a scheme is an http proxy, by convention."""
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
    """Return the error for a CA bundle that can't be read."""
    return ReductoConfigurationError(
        f"the CA bundle {verify_for(settings)!r} can't be used ({type(error).__name__}): correct the connection's "
        "extra 'verify', or REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE in the environment"
    )


def timeout_error(settings: ReductoSettings) -> ReductoTransportError:
    """Return the error for an attempt that exceeded its time limit."""
    return transport_error(f"no whole answer within {settings.timeout:g} s", settings)


def transport_error(cause: str, settings: ReductoSettings) -> ReductoTransportError:
    """Return the error for an attempt without a complete response."""
    return ReductoTransportError(f"no answer from {settings.base_url}: {printable(cause, settings, 500)}")


class _Body:
    """Collect a body up to a limit: a good body may not exceed it, the beginning of any other is enough."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self._good = status == HTTPStatus.OK
        self._limit = MAX_RESPONSE_BYTES if self._good else _ERROR_BODY_BYTES
        self._content = bytearray()  # not a list, in which each of many small chunks takes fifty bytes more
        self._gzip = _Gunzip() if content_encoding(headers) in ("gzip", "x-gzip") else None

    @property
    def full(self) -> bool:
        return len(self._content) > self._limit

    def add(self, chunk: bytes) -> Iterator[None]:
        """Add a chunk, decompressed in pieces. Yield between them, so that the event loop is not blocked."""
        for number, piece in enumerate(self._gzip.unpack(chunk) if self._gzip else (chunk,)):
            if number:
                yield
            self._content += piece
            if self.full:
                return

    def content(self) -> bytes:
        if self.full and self._good:
            raise ReductoResponseError(
                f"Reducto's answer is longer than {self._limit / 2**20:g} MiB: request fewer days at a time"
            )
        if self._gzip and not self.full:
            self._gzip.check_complete()
        return bytes(memoryview(self._content)[: self._limit])


class _Gunzip:
    """
    Decompress gzip in pieces of a bounded size. As in the gzip module, there may be several members, padded by zeros.

    Versions of aiohttp differ in what they accept as gzip, and in how much they decompress at once.
    """

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP)
        self._begun = False

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """
        Yield the decompressed pieces of ``data``.

        :raises zlib.error: if it is not gzip.
        """
        while data:
            if self._member.eof:
                if not (data := data.lstrip(b"\0")):
                    return
                self._member = zlib.decompressobj(_GZIP)
            self._begun = True
            yield self._member.decompress(data, _PIECE_BYTES)
            data = self._member.unconsumed_tail or self._member.unused_data

    def check_complete(self) -> None:
        """
        Check that the last member is complete.

        :raises zlib.error: if its end is missing.
        """
        if self._begun and not self._member.eof:
            raise zlib.error("the gzip of the answer was cut short")


class _Resolver(AbstractResolver):
    """Resolve names as aiohttp does, but in detached threads: a look-up can't be cancelled."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return await event_loop.run_detached(_look_up, host, port, family)

    async def close(self) -> None:
        """Do nothing: no resource is open."""


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
    connector = aiohttp.TCPConnector(ssl=verify, resolver=_Resolver())
    limit_headers(connector)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=HEADERS,
        auto_decompress=False,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        proxy=proxy_for(settings),
        trust_env=False,  # a netrc entry would replace the key
        middlewares=(_no_transport_retry,),
    )


async def _no_transport_retry(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Prevent aiohttp's own retries after connection errors, which are neither paced nor counted as attempts."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except aiohttp.ServerDisconnectedError:  # its message may quote the response
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
        file = bundle.stat()
        version = bundle, file.st_ino, file.st_size, file.st_mtime_ns
        if (context := _ssl_contexts.get(version)) is None:
            context = _ssl_contexts.setdefault(version, ssl.create_default_context(cafile=bundle))
        return context
    except OSError as error:  # an SSLError is one
        raise bundle_error(error, settings) from None


async def _is_done(task: asyncio.Task[Any], seconds: float) -> bool:
    done, _ = await asyncio.wait([task], timeout=seconds)
    return bool(done)


async def _receive(session: aiohttp.ClientSession, settings: ReductoSettings, url: str) -> Answer:
    async with session.get(
        yarl.URL(url, encoded=True),
        headers={"Authorization": f"Bearer {settings.key}"},
        timeout=_NO_TIMEOUT,
        allow_redirects=False,
    ) as response:
        body = _Body(response.status, response.headers)
        async for chunk in response.content.iter_any():  # all that was received: the loop has a turn before the next
            for _ in body.add(chunk):
                await asyncio.sleep(0)  # lets other tasks and the time limit run
            if body.full:
                break
        return Answer(response.status, response.headers, body.content())


def _cause(error: Exception) -> str:
    """Return what went wrong, without an error's own text where that may quote the response."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy refused to connect ({error.status})"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"the response is not HTTP, or has a header of more than {MAX_HEADER_BYTES // 1024} KiB"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer was cut short, or is not HTTP"
    return str(error) or type(error).__name__

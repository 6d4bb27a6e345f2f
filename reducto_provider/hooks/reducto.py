"""The hook: an Airflow connection's key, requests to the Usage Export API, retries and errors."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import re
import ssl
import threading
import time
import zlib
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import certifi
import msgspec
import requests
import tenacity
import urllib3
import yarl
from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.providers.http.hooks.http import HttpHook
from asgiref.sync import sync_to_async
from requests.auth import AuthBase
from requests.utils import get_environ_proxies, select_proxy

from reducto_provider import __version__
from reducto_provider.exceptions import (
    ReductoAuthenticationError,
    ReductoConfigurationError,
    ReductoError,
    ReductoGatewayError,
    ReductoPermissionError,
    ReductoRateLimitError,
    ReductoRequestError,
    ReductoResponseError,
    ReductoServerError,
    ReductoTransportError,
)
from reducto_provider.hooks.settings import KEY_HINT, ReductoSettings, origin_of, proxy_url
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageContractError, UsageReport
from reducto_provider.usage.window import today

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from airflow.providers.common.compat.sdk import Connection
    from requests.adapters import HTTPAdapter

ENDPOINT: Final = "/api/v1/usage/export"

MAX_RESPONSE_BYTES: Final = 128 * 1024 * 1024
"""An answer longer than this, unpacked, is refused: some 1.5 million rows."""

RETRY_AFTER_CAP: Final = 120.0
"""Seconds that the service may have us wait between two attempts."""

BACKOFF_INITIAL: Final = 0.5
BACKOFF_MAX: Final = 30.0
TEST_CONNECTION_TIMEOUT: Final = 15.0

_CHUNK_BYTES = 256 * 1024
_ERROR_BODY_BYTES = 64 * 1024
_HEADER_BYTES = 64 * 1024
"""How long a header may be, as with the standard library. A content security policy takes more than aiohttp's 8 KiB."""
_REASON_FIELDS = ("error", "message", "detail", "errors", "msg", "title", "error_description", "description", "reason")
_TITLE = re.compile(r"<title[^>]*>([^<]+)", re.IGNORECASE)
_GZIP = 16 + zlib.MAX_WBITS
_DECODE_ASIDE_BYTES = 256 * 1024  # from here on, decoding would hold up an event loop
_USER_AGENT = f"airflow-provider-reducto/{__version__}"


class ReductoHook(HttpHook):
    """
    Ask Reducto's Usage Export API.

    The key goes to the connection's own host and to no other: not along a redirect, not through a session that
    :meth:`get_conn` handed out. It can't be replaced by a netrc entry, and extras never become headers.

    A question is asked up to ``max_attempts`` times (an extra of the connection) while the service answers 429 or
    5xx or the transport fails, with jittered exponential waits, or as long as ``Retry-After`` says, at most
    :data:`RETRY_AFTER_CAP` seconds. Every other failure is raised at once, but for a refused key (401): the connection
    is read once more, and if it has changed the question is asked with what it says now. Sync and async behave alike.

    As an async context manager the hook keeps one session open for all that is asked meanwhile.

    :param reducto_conn_id: the Airflow connection, of type ``reducto``.
    :param adapter: mounted for the sync session, instead of the one that keeps TCP alive.
    :param keep_alive: ``tcp_keep_alive`` and what goes with it, as of Airflow's ``HttpHook``.
    """

    conn_name_attr = "reducto_conn_id"
    default_conn_name = "reducto_default"
    conn_type = "reducto"
    hook_name = "Reducto"

    def __init__(
        self,
        reducto_conn_id: str = default_conn_name,
        *,
        adapter: HTTPAdapter | None = None,
        **keep_alive: Any,
    ) -> None:
        super().__init__(method="GET", http_conn_id=reducto_conn_id, adapter=adapter, **keep_alive)
        self.reducto_conn_id = reducto_conn_id
        self._session_options = {"adapter": adapter, **keep_alive}
        self._settings: ReductoSettings | None = None
        self._session: requests.Session | None = None
        self._async_sessions: dict[ReductoSettings, aiohttp.ClientSession] = {}
        self._contexts = 0
        self._pace = _Pace()

    def __reduce__(self) -> tuple[partial[Self], tuple[()]]:
        """Copies and pickles begin as new: without sessions, and without the key."""
        return partial(type(self), self.reducto_conn_id, **self._session_options), ()

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's fields for the extras. Asked for by Airflow before 3.2; later ones read provider info."""
        from reducto_provider.hooks import form

        return form.widgets()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """What the form makes of Airflow's own fields, likewise."""
        from reducto_provider.hooks import form

        return form.field_behaviour()

    @property
    def settings(self) -> ReductoSettings:
        """
        What the connection says, read once, and again when its key is refused.

        :raises ReductoConfigurationError: naming the connection's field that can't be used.
        """
        settings = self._settings
        if settings is None:
            connection = self.get_connection(self.reducto_conn_id)
            self._settings = settings = ReductoSettings.of(connection, connection.extra_dejson)
        return settings  # another thread may have forgotten it meanwhile

    async def aget_settings(self) -> ReductoSettings:
        """:attr:`settings` for an event loop, which looking a connection up must not block."""
        if self._settings is None:
            # Cancelled half-way, the look-up would leave an answer of Airflow's to the next one who asks it something:
            # on Airflow 3.0 and 3.1 that ends the whole triggerer.
            look_up = asyncio.create_task(self._alook_up())
            look_up.add_done_callback(_hear)
            self._settings = await asyncio.shield(look_up)
        return self._settings

    async def _alook_up(self) -> ReductoSettings:
        try:
            connection = await get_async_connection(self.reducto_conn_id, hook=self)
        except AirflowNotFoundException:
            # Under dag.test() on Airflow 3.3 the async look-up can't see the connections of the database.
            connection = await sync_to_async(self.get_connection)(self.reducto_conn_id)
        return ReductoSettings.of(connection, await get_async_extra_dejson(connection))

    def get_usage(self, query: UsageQuery) -> UsageReport:
        """
        Ask and return the checked answer.

        When the key is refused, the connection is read once more: it may have been rotated since it was read.

        :raises ReductoError: one class per cause, see :mod:`reducto_provider.exceptions`.
        """
        settings = self.settings
        try:
            return self._get_usage(query, settings)
        except ReductoAuthenticationError:
            self._settings = None
            if self.settings == settings:
                raise
        self._log_rotation()
        return self._get_usage(query, self.settings)

    async def aget_usage(self, query: UsageQuery) -> UsageReport:
        """:meth:`get_usage` for an event loop."""
        settings = await self.aget_settings()
        try:
            return await self._aget_usage(query, settings)
        except ReductoAuthenticationError:
            if self._settings is settings:  # else another task has read them again meanwhile
                self._settings = None
            renewed = await self.aget_settings()
            if renewed == settings:
                raise
        await asyncio.to_thread(self._log_rotation)
        return await self._aget_usage(query, renewed)

    async def _aget_usage(self, query: UsageQuery, settings: ReductoSettings) -> UsageReport:
        query = _with_organization(query, settings)
        policy = self._retry_policy(settings)
        # In a triggerer a log may have no room for a while, which an event loop must not wait for.
        policy["before_sleep"] = partial(asyncio.to_thread, policy["before_sleep"])
        retrying = tenacity.AsyncRetrying(**policy)
        body: bytes
        if self._contexts:
            body = await retrying(self._afetch, query, settings, await self._async_session_of(settings))
        else:
            async with await _open_async_session(settings) as session:
                body = await retrying(self._afetch, query, settings, session)
        if len(body) < _DECODE_ASIDE_BYTES:
            return self._decode(body, query, settings)
        return await asyncio.to_thread(self._decode, body, query, settings)

    async def __aenter__(self) -> Self:
        await self._async_session_of(await self.aget_settings())
        self._contexts += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._contexts -= 1
        if self._contexts == 0:
            sessions, self._async_sessions = self._async_sessions, {}
            for session in sessions.values():
                await session.close()

    async def _async_session_of(self, settings: ReductoSettings) -> aiohttp.ClientSession:
        """The context's session for ``settings``. Those of settings that were replaced stay open for who uses them."""
        if settings not in self._async_sessions:
            session = await _open_async_session(settings)
            if self._async_sessions.setdefault(settings, session) is not session:  # another task was faster
                await session.close()
        return self._async_sessions[settings]

    def test_connection(self) -> tuple[bool, str]:
        """Ask for yesterday's usage, once and briefly; say what came of it in words that a person can act on."""
        yesterday = today() - timedelta(days=1)
        try:
            timeout = min(self.settings.timeout, TEST_CONNECTION_TIMEOUT)
            settings = replace(self.settings, timeout=timeout, max_attempts=1)
            report = self._get_usage(UsageQuery(start=yesterday, end=yesterday), settings)
        except (ReductoError, AirflowNotFoundException) as error:
            return False, str(error)
        used = f"{report.request_count} requests" if report.rows else "no usage"
        connected = f"Connected to {settings.base_url}. Organization {report.org_id}: {used} on {yesterday}."
        return True, settings.hide(connected)

    def get_conn(
        self, headers: dict[Any, Any] | None = None, extra_options: dict[str, Any] | None = None
    ) -> requests.Session:
        """
        The session that requests are made with. It carries the key to the connection's own host only, follows no
        redirect, and ignores netrc; the environment's proxies and CA bundle apply.

        :raises ReductoConfigurationError: if headers or options are given: they come from the connection alone.
        """
        if headers or extra_options:
            raise ReductoConfigurationError(
                "ReductoHook.get_conn() takes neither headers nor extra_options: use the connection's extras"
            )
        return self._session_of(self.settings)

    def _session_of(self, settings: ReductoSettings) -> requests.Session:
        auth = _BearerAuth(settings)
        session = self._session
        if session is None or session.auth != auth:
            self._set_base_url(None)
            session = self._configure_session_from_mount_adapters(_Session())
            session.trust_env = False  # or netrc and the proxies of other URLs would be mixed in
            session.auth = auth
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            session.headers.update({"User-Agent": _USER_AGENT, "Accept-Encoding": "gzip"})
            session.verify = _verify(settings)
            if proxy := _proxy(settings):
                session.proxies = {settings.origin[0]: proxy}
            self._session = session
        return session

    def url_from_endpoint(self, endpoint: str | None) -> str:
        """The connection's base URL and ``endpoint``, joined by one slash."""
        return f"{self.settings.base_url}/{(endpoint or '').lstrip('/')}"

    def run(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: requests are made by :meth:`get_usage` and :meth:`aget_usage` only."""
        _refuse("run")

    def run_and_check(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused, like :meth:`run`."""
        _refuse("run_and_check")

    def check_response(self, response: requests.Response) -> NoReturn:
        """Refused, like :meth:`run`: the inherited one logs whole bodies."""
        _refuse("check_response")

    def run_with_advanced_retry(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused, like :meth:`run`: attempts are a matter of the connection's ``max_attempts``."""
        _refuse("run_with_advanced_retry")

    def _set_base_url(self, connection: Connection | None) -> None:
        # The inherited one takes a host without a scheme for http and would send the key in clear.
        self.base_url = self.settings.base_url
        self._base_url_initialized = True

    def _get_usage(self, query: UsageQuery, settings: ReductoSettings) -> UsageReport:
        query = _with_organization(query, settings)
        body: bytes = tenacity.Retrying(**self._retry_policy(settings))(self._fetch, query, settings)
        return self._decode(body, query, settings)

    def _fetch(self, query: UsageQuery, settings: ReductoSettings) -> bytes:
        """One attempt: the body of a good answer."""
        time.sleep(self._reserve(settings))
        session = self._session_of(settings)
        try:
            answer = _call_within(settings.timeout, partial(_read_answer, session, _url(query, settings), settings))
        except (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError):
            self._session = None  # its connection may still be read from
            failure: ReductoError = _timeout_error(settings)
        except (requests.RequestException, urllib3.exceptions.HTTPError, zlib.error, ValueError) as error:
            failure = _transport_error(error, settings)
        except OSError as error:  # requests' own, for a bundle that is not there
            failure = _bundle_error(error, settings)
        else:
            return _body_of(answer, query, settings, self.reducto_conn_id)
        # Raised out here, without what led to it: that may hold the request, and so the key or a proxy's password.
        raise failure

    async def _afetch(self, query: UsageQuery, settings: ReductoSettings, session: aiohttp.ClientSession) -> bytes:
        """One attempt: the body of a good answer."""
        await asyncio.sleep(self._reserve(settings))
        try:
            answer = await _acall_within(settings.timeout, _aread_answer(session, _url(query, settings), settings))
        except TimeoutError:
            failure = _timeout_error(settings)
        except (aiohttp.ClientError, zlib.error, ValueError) as error:
            failure = _transport_error(error, settings)
        else:
            return _body_of(answer, query, settings, self.reducto_conn_id)
        raise failure  # as above

    def _log_rotation(self) -> None:
        self.log.info(
            "The key of connection %r was refused, and the connection has changed since it was read: asking again",
            self.reducto_conn_id,
        )

    def _decode(self, body: bytes, query: UsageQuery, settings: ReductoSettings) -> UsageReport:
        try:
            return UsageReport.decode(body, query)
        except UsageContractError as error:
            failure = ReductoResponseError(settings.hide(f"Reducto's answer can't be used: {error}"))
        raise failure  # as above

    def _retry_policy(self, settings: ReductoSettings) -> dict[str, Any]:
        """One policy for tenacity's sync and async callers."""

        def log_attempt(state: tenacity.RetryCallState) -> None:
            self.log.warning(
                "Attempt %d of %d failed: %s; the next in %.1f s (%s)",
                state.attempt_number,
                settings.max_attempts,
                _error_of(state),
                state.upcoming_sleep,
                state.args[0],
            )

        return {
            "stop": tenacity.stop_after_attempt(settings.max_attempts),
            "wait": _wait,
            "retry": tenacity.retry_if_exception(lambda error: isinstance(error, ReductoError) and error.passing),
            "before_sleep": log_attempt,
            "reraise": True,
        }

    def _reserve(self, settings: ReductoSettings) -> float:
        """Seconds to wait until the connection's ``requests_per_second`` allow the next request."""
        return self._pace.reserve(settings.requests_per_second)


class _Session(requests.Session):
    """Takes a redirect for an answer, whatever its caller says: following it could take the key along."""

    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return iter(())


@dataclass(frozen=True)
class _BearerAuth(AuthBase):
    """The key as a bearer token, for the connection's own host only."""

    settings: ReductoSettings

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if origin_of(request.url or "") != self.settings.origin:
            raise ReductoConfigurationError(
                f"the Reducto key is for {self.settings.base_url}: it is not sent to another host"
            )
        request.headers["Authorization"] = f"Bearer {self.settings.key}"
        return request


class _Pace:
    """Spaces requests evenly: ``reserve`` takes the next slot and says how many seconds it is away."""

    def __init__(self) -> None:
        self._next = 0.0
        self._lock = threading.Lock()

    def reserve(self, per_second: float | None) -> float:
        with self._lock:
            now = time.monotonic()
            slot = max(now, self._next)
            self._next = slot + (1 / per_second if per_second else 0.0)
            return slot - now


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class _Body:
    """Gathers a body within bounds: a good one may not exceed them, of any other the beginning is enough."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self._good = status == HTTPStatus.OK
        self._limit = MAX_RESPONSE_BYTES if self._good else _ERROR_BODY_BYTES
        self._content = bytearray()  # not a list: of many small pieces, each would take the room of fifty bytes
        self._gzip = _Gunzip() if _encoding(headers) in ("gzip", "x-gzip") else None

    @property
    def full(self) -> bool:
        return len(self._content) > self._limit

    def add(self, chunk: bytes) -> Iterator[None]:
        """Take in what came, unpacked, piece by piece: a caller who is out of time can stop in between."""
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

    HTTP clients differ in what they take for gzip, and in how much of it they unpack at once.
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
            yield self._member.decompress(data, _CHUNK_BYTES)
            data = self._member.unconsumed_tail or self._member.unused_data

    def check_complete(self) -> None:
        """:raises zlib.error: where the end is missing."""
        if self._begun and not self._member.eof:
            raise zlib.error("the gzip of the answer was cut short")


def _encoding(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Encoding", "").strip().lower()


def _with_organization(query: UsageQuery, settings: ReductoSettings) -> UsageQuery:
    return query if query.org_id or not settings.org_id else replace(query, org_id=settings.org_id)


def _url(query: UsageQuery, settings: ReductoSettings) -> str:
    return f"{settings.base_url}{ENDPOINT}?{urlencode(query.params(), quote_via=quote)}"


def _proxy(settings: ReductoSettings) -> str | None:
    """The proxy to use. What the environment names without a scheme is one by http, as everywhere."""
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


def _verify(settings: ReductoSettings) -> bool | str:
    if settings.verify is not True:
        return settings.verify
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


async def _open_async_session(settings: ReductoSettings) -> aiohttp.ClientSession:
    verify: bool | ssl.SSLContext = True
    if settings.origin[0] == "https":
        # Reading the CA bundle takes long enough to hold up an event loop.
        verify = await asyncio.to_thread(_ssl_context, settings)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=verify),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": _USER_AGENT, "Accept-Encoding": "gzip"},
        auto_decompress=False,
        max_line_size=_HEADER_BYTES,
        max_field_size=_HEADER_BYTES,
        proxy=_proxy(settings),
        trust_env=False,  # or a netrc entry would replace the key
        middlewares=(_once,),
    )


async def _once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """One attempt is one request: after these errors aiohttp would ask again by itself, unpaced and uncounted."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except aiohttp.ServerDisconnectedError:  # which may quote what it has received
        raise aiohttp.ClientConnectionError("the connection was closed before the answer") from None
    except aiohttp.ClientOSError as error:
        raise aiohttp.ClientConnectionError(str(error)) from error


def _hear(task: asyncio.Task[Any]) -> None:
    """Take note of how a task ended: asyncio complains of an error that nobody awaits any more."""
    if not task.cancelled():
        task.exception()


def _ssl_context(settings: ReductoSettings) -> ssl.SSLContext | bool:
    verify = _verify(settings)
    if verify is False:
        return False
    bundle = Path(certifi.where() if verify is True else verify)
    try:
        if bundle.is_dir():
            return ssl.create_default_context(capath=bundle)
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:  # an SSLError is one
        raise _bundle_error(error, settings) from None


def _bundle_error(error: OSError, settings: ReductoSettings) -> ReductoConfigurationError:
    return ReductoConfigurationError(
        f"the CA bundle {_verify(settings)!r} can't be used ({type(error).__name__}): correct the connection's extra "
        "'verify', or REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE in the environment"
    )


def _call_within(seconds: float, function: Callable[[], _Answer]) -> _Answer:
    """
    What a function returns or raises, if it does so in time; otherwise its thread is told to end.

    The time limits of requests are for each wait for a byte: a server that trickles could stretch them for ever, and
    one that sends interim answers or trailers without end would keep the thread busy as long as the process lives.

    :raises TimeoutError: when the time is over.
    """
    outcome: Future[_Answer] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001  # for the caller
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="reducto-request", daemon=True)
    thread.start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        if not outcome.done():  # else it is the function's own
            # It reads in loops of the standard library's, which nothing else can get at. One that waits for a byte ends
            # by its socket's own limit.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TimeoutError)
            )
        raise


def _read_answer(session: requests.Session, url: str, settings: ReductoSettings) -> _Answer:
    deadline = time.monotonic() + settings.timeout
    with session.get(url, timeout=settings.timeout, stream=True, allow_redirects=False) as response:
        body = _Body(response.status_code, response.headers)
        # read1 returns what is there, so that the thread ends soon after the deadline.
        while not body.full and (chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False)):
            for _ in body.add(chunk):
                if time.monotonic() > deadline:
                    raise TimeoutError
        return _Answer(response.status_code, response.headers, body.content())


async def _acall_within(seconds: float, coroutine: Coroutine[Any, Any, _Answer]) -> _Answer:
    """
    :func:`_call_within` for an event loop.

    In a task of its own, which is told to end until it has: aiohttp and what it connects by lose a cancellation that
    comes in the same turn of the loop as something else. Lost would be that of a time limit, or of who asks.
    """
    task = asyncio.create_task(coroutine)
    task.add_done_callback(_hear)
    try:
        if await _is_done(task, seconds):
            return task.result()
        raise TimeoutError
    finally:
        while not task.done():
            task.cancel()
            await _is_done(task, 1)


async def _is_done(task: asyncio.Task[Any], seconds: float) -> bool:
    done, _ = await asyncio.wait([task], timeout=seconds)
    return bool(done)


async def _aread_answer(session: aiohttp.ClientSession, url: str, settings: ReductoSettings) -> _Answer:
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
        return _Answer(response.status, response.headers, body.content())


def _body_of(answer: _Answer, query: UsageQuery, settings: ReductoSettings, conn_id: str) -> bytes:
    """Return the body of a 200, or raise the error that the status stands for."""
    status = answer.status
    if _is_html(answer) or status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        raise ReductoGatewayError(_describe_page(answer, settings), retry_after=_retry_after(answer))
    if status == HTTPStatus.OK:
        if (encoding := _encoding(answer.headers)) not in ("", "identity", "gzip", "x-gzip"):
            raise ReductoResponseError(f"Reducto's answer is packed as {_short(encoding, settings)}, not as gzip")
        return answer.body
    what = f"({status}{_error_detail(answer, settings)})"
    if status == HTTPStatus.UNAUTHORIZED:
        raise ReductoAuthenticationError(f"Reducto refused the API key of connection {conn_id!r} {what}: {KEY_HINT}")
    if status == HTTPStatus.FORBIDDEN:
        whose = f"organization {query.org_id!r}" if query.org_id else "the key's own organization"
        raise ReductoPermissionError(
            f"Reducto refused {whose} to the API key of connection {conn_id!r} {what}: the key's owner must be a "
            "member of the organization"
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise ReductoRateLimitError(
            f"Reducto's rate limit is exceeded {what}: lower requests_per_second of connection {conn_id!r}, or "
            "ask less often",
            retry_after=_retry_after(answer),
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY):
        raise ReductoServerError(f"Reducto failed {what}", retry_after=_retry_after(answer))
    if status >= HTTPStatus.BAD_REQUEST:
        raise ReductoRequestError(f"Reducto refused the request {what}: {urlencode(query.params())}")
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        raise ReductoResponseError(
            f"{settings.base_url} redirects to {_target(answer, settings)} {what}: not followed, the key is for its "
            f"own host only; correct the host of connection {conn_id!r}"
        )
    raise ReductoResponseError(f"Reducto answered with a status that it does not document {what}")


def _is_html(answer: _Answer) -> bool:
    """Whether the body is HTML (or XML), which Reducto never sends. It may be labelled as anything; so may JSON."""
    beginning = answer.body.lstrip(b" \t\r\n\xef\xbb\xbf")[:1]
    is_labelled = "html" in answer.headers.get("Content-Type", "").lower()
    return beginning == b"<" or (is_labelled and beginning not in (b"", b"{", b"["))


def _describe_page(answer: _Answer, settings: ReductoSettings) -> str:
    if not _is_html(answer):
        return (
            f"a proxy on the way to {settings.base_url} asks for a login ({answer.status}): correct extra 'proxy' of "
            "the connection, or the environment's"
        )
    page = "an HTML page"
    if title := _TITLE.search(answer.body.decode(errors="replace")):
        page += f" ({_short(title[1], settings)})"
    if "Location" in answer.headers:
        page += f" and a redirect to {_target(answer, settings)}"
    return (
        f"{page} came with status {answer.status} from {settings.base_url}: a proxy, a firewall or a login page "
        "answered instead of Reducto"
    )


def _target(answer: _Answer, settings: ReductoSettings) -> str:
    return _short(_host_of(answer.headers.get("Location", "")), settings)


def _host_of(location: str) -> str:
    with suppress(ValueError):
        if host := urlsplit(location).netloc.rpartition("@")[2]:
            return host
    return "another page"


def _error_detail(answer: _Answer, settings: ReductoSettings) -> str:
    """Return the service's own reason, in whatever form it is given: never the whole body, never a secret."""
    text = ""
    try:
        text = "; ".join(dict.fromkeys(_reasons_in(msgspec.json.decode(answer.body))))
    except (ValueError, RecursionError):
        if answer.headers.get("Content-Type", "text/").startswith("text/"):
            text = answer.body.decode(errors="replace")
    return f": {text}" if (text := _short(text, settings)) else ""


def _reasons_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _reasons_in(each)
    elif isinstance(value, dict):
        for name in _REASON_FIELDS:
            yield from _reasons_in(value.get(name))


def _short(text: str, settings: ReductoSettings, length: int = 200) -> str:
    """Make foreign text fit for an error: on one line, without secrets."""
    line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return settings.hide(line)[:length]


def _timeout_error(settings: ReductoSettings) -> ReductoTransportError:
    return ReductoTransportError(f"no answer from {settings.base_url}: no whole answer within {settings.timeout:g} s")


def _transport_error(error: Exception, settings: ReductoSettings) -> ReductoTransportError:
    return ReductoTransportError(f"no answer from {settings.base_url}: {_short(_cause(error), settings, 500)}")


def _cause(error: Exception) -> str:
    """Say what went wrong, in words of our own where the error's may quote what was received."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy refused to connect ({error.status})"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"what came is not HTTP, or has a header of more than {_HEADER_BYTES // 1024} KiB"
    causes = (error, *error.args)
    if any(isinstance(each, aiohttp.ClientPayloadError | urllib3.exceptions.ProtocolError) for each in causes):
        return "the answer was cut short, or is not HTTP"
    return str(error) or type(error).__name__


def _retry_after(answer: _Answer) -> float | None:
    """Seconds from now that ``Retry-After`` asks for, given as seconds or as an HTTP date."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds to the next attempt: what the service asked for, else a jittered exponential."""
    error = _error_of(state)
    if isinstance(error, ReductoError) and error.retry_after is not None:
        # Never earlier than asked, and not all callers at the same moment.
        return min(error.retry_after, RETRY_AFTER_CAP) + random.uniform(0, BACKOFF_INITIAL)  # noqa: S311
    exponential: float = min(BACKOFF_INITIAL * 2 ** (state.attempt_number - 1), BACKOFF_MAX)
    return exponential * random.uniform(0.5, 1.0)  # noqa: S311


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _refuse(method: str) -> NoReturn:
    raise ReductoConfigurationError(
        f"ReductoHook.{method}() is not available: it would go around the provider's checks; use get_usage()"
    )

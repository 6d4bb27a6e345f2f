"""The hook: query the Usage Export API with the key of an Airflow connection, with retries."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qsl, urlsplit

import tenacity
from airflow.providers.http.hooks.http import HttpHook

from reducto_provider.airflow_compat import AirflowNotFoundException, get_async_connection, get_async_extra_dejson
from reducto_provider.exceptions import (
    ReductoAuthenticationError,
    ReductoConfigurationError,
    ReductoError,
    ReductoResponseError,
)
from reducto_provider.hooks import event_loop, transport
from reducto_provider.hooks.answers import Answer, Parameters, is_html, raise_for_status
from reducto_provider.hooks.settings import ReductoSettings
from reducto_provider.usage.days import today
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageContractError, UsageReport
from reducto_provider.usage.wire import decode_report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    import requests

    from reducto_provider.airflow_compat import Connection

Result = TypeVar("Result")

ENDPOINT: Final = "/api/v1/usage/export"

RETRY_AFTER_CAP: Final = 120.0
"""Maximum delay in seconds between two attempts that ``Retry-After`` can set."""

BACKOFF_INITIAL: Final = 0.5
BACKOFF_MAX: Final = 30.0
TEST_CONNECTION_TIMEOUT: Final = 15.0

_DECODE_ASIDE_BYTES = 256 * 1024  # decoding a larger body would block an event loop


class ReductoHook(HttpHook):
    """
    Query Reducto's Usage Export API.

    The key is sent to the connection's own host only: not to the target of a redirect, and not to other hosts through a
    session of :meth:`get_conn`. A netrc entry can't replace it, and extras never become headers.

    A request is sent up to ``max_attempts`` times (an extra of the connection) if the service answers 408, 425, 429 or
    5xx, if something in between answers in its place, or if the transport fails. The delays grow exponentially with
    jitter, or are those of ``Retry-After``, up to :data:`RETRY_AFTER_CAP` seconds. All other errors are raised at once,
    except for a refused key (401): the connection is then read again, and if it has changed the request is repeated.

    All requests run in an event loop: that of the caller (:meth:`aget_usage`), or the process's own, for which
    synchronous callers wait (:meth:`get_usage`). As an async context manager the hook keeps one session open until it
    exits. Synchronous callers share a session as long as the hook exists.

    The methods of :class:`~airflow.providers.http.hooks.http.HttpHook` work too, for other endpoints of the service:
    ``run``, ``run_and_check``, ``check_response``, ``get_conn``. Their requests protect the key in the same way, and
    each wait for the service has the connection's ``timeout``. They have no total deadline, are not paced by
    ``requests_per_second``, and are not retried.

    :param reducto_conn_id: the Airflow connection, of type ``reducto``.
    :param options: ``method``, ``adapter`` and the ``tcp_keep_alive`` options of Airflow's ``HttpHook``, for the
        inherited methods.
    """

    conn_name_attr = "reducto_conn_id"
    default_conn_name = "reducto_default"
    conn_type = "reducto"
    hook_name = "Reducto"

    def __init__(self, reducto_conn_id: str = default_conn_name, **options: Any) -> None:
        super().__init__(**{"method": "GET", **options}, http_conn_id=reducto_conn_id)
        if self._auth_type is not None:
            raise ReductoConfigurationError("auth_type must be left out: ReductoHook sends the connection's key")
        self.reducto_conn_id = reducto_conn_id
        self._options = options
        self._settings: ReductoSettings | None = None
        self._sessions: dict[asyncio.AbstractEventLoop, transport.Sessions] = {}
        self._pace = _Pace()

    def __reduce__(self) -> tuple[partial[Self], tuple[()]]:
        """Copy and pickle the hook without its sessions and without the key."""
        return partial(type(self), self.reducto_conn_id, **self._options), ()

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form's fields for the extras, for Airflow before 3.2. Later versions read provider info."""
        from reducto_provider.hooks import form

        return form.widgets()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return how the form shows Airflow's own fields, likewise."""
        from reducto_provider.hooks import form

        return form.field_behaviour()

    @property
    def settings(self) -> ReductoSettings:
        """
        The settings of the connection, read once, and again if its key is refused.

        :raises ReductoConfigurationError: naming the invalid field of the connection.
        """
        settings = self._settings
        if settings is None:
            connection = self.get_connection(self.reducto_conn_id)
            self._settings = settings = ReductoSettings.from_connection(connection, connection.extra_dejson)
        return settings  # another thread may have reset self._settings meanwhile

    async def aget_settings(self) -> ReductoSettings:
        """Return :attr:`settings` without blocking the event loop while the connection is looked up."""
        settings = self._settings
        if settings is None and event_loop.has_caller():
            settings = await event_loop.run_aside(lambda: self.settings)
        elif settings is None:
            # If it were cancelled half-way, the next request to Airflow would get the answer to this one: on Airflow
            # 3.0 and 3.1 that ends the whole triggerer.
            look_up = asyncio.create_task(self._alook_up())
            look_up.add_done_callback(transport.retrieve_exception)
            self._settings = settings = await asyncio.shield(look_up)
        return settings

    async def _alook_up(self) -> ReductoSettings:
        try:
            connection = await get_async_connection(self, self.reducto_conn_id)
        except AirflowNotFoundException:
            # Under dag.test() on Airflow 3.3 the async look-up can't see the connections of the database.
            from asgiref.sync import sync_to_async

            connection = await sync_to_async(self.get_connection)(self.reducto_conn_id)
        return ReductoSettings.from_connection(connection, await get_async_extra_dejson(connection))

    def get_usage(self, query: UsageQuery) -> UsageReport:
        """
        Send a query and return the checked report.

        The request runs in the process's event-loop thread. The connection is looked up in the calling thread, and an
        exception there, as when Airflow ends the task, cancels the request at once.

        :raises ReductoError: one class per cause, see :mod:`reducto_provider.exceptions`.
        """
        return event_loop.run(self.aget_usage(query))

    async def aget_usage(self, query: UsageQuery) -> UsageReport:
        """Send a query from an event loop, as :meth:`get_usage` does for synchronous code."""
        return await self._with_key(partial(self._get_usage, query))

    def test_connection(self) -> tuple[bool, str]:
        """Query yesterday's usage in one short attempt. Return whether it succeeded, and a message for the user."""
        yesterday = today() - timedelta(days=1)
        try:
            timeout = min(self.settings.timeout, TEST_CONNECTION_TIMEOUT)
            settings = replace(self.settings, timeout=timeout, max_attempts=1)
            report = event_loop.run(self._get_usage(UsageQuery(start=yesterday, end=yesterday), settings))
        except (ReductoError, AirflowNotFoundException) as error:
            return False, str(error)
        used = f"{report.request_count} requests" if report.rows else "no usage"
        connected = f"Connected to {settings.base_url}. Organization {report.org_id}: {used} on {yesterday}."
        return True, settings.redact(connected)

    async def __aenter__(self) -> Self:
        sessions = self._acquire_sessions()
        try:
            await sessions.open(await self.aget_settings())
        except BaseException:
            await self._release_sessions()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._release_sessions()

    def get_conn(
        self, headers: dict[Any, Any] | None = None, extra_options: dict[str, Any] | None = None
    ) -> requests.Session:
        """
        Return a session that sends the key to the connection's own host only.

        :param headers: additional headers of all its requests.
        :param extra_options: ``stream``, ``verify``, ``cert`` and ``proxies`` of the session.
        """
        from reducto_provider.hooks.session import KeyedSession

        settings = self.settings
        options = extra_options or {}
        self._set_base_url(None)
        self.merged_extra = options  # for the inherited run()
        session = KeyedSession(settings)
        for name in options.keys() & {"stream", "verify", "cert", "proxies"}:
            setattr(session, name, options[name])
        session.headers.update(headers or {})
        return self._configure_session_from_mount_adapters(session)

    def url_from_endpoint(self, endpoint: str | None) -> str:
        """Return the connection's base URL and ``endpoint``, joined by one slash."""
        return f"{self.settings.base_url}/{(endpoint or '').lstrip('/')}"

    def check_response(self, response: requests.Response) -> None:
        """
        Return if the status of a response is 2xx and its body is not HTML.

        :raises ReductoError: one class per cause.
        """
        is_ok = HTTPStatus.OK <= response.status_code < HTTPStatus.MULTIPLE_CHOICES
        if is_ok and "html" not in response.headers.get("Content-Type", "").lower():
            return  # the body may be a stream and not read yet
        answer = Answer(response.status_code, response.headers, response.content)
        if not is_ok or is_html(answer):
            raise_for_status(answer, self.settings, parse_qsl(urlsplit(response.url).query))

    def _set_base_url(self, connection: Connection | None) -> None:
        # The inherited method would use http for a host without a scheme, and so send the key in clear text.
        self.base_url = self.settings.base_url
        self._base_url_initialized = True

    async def _with_key(self, request: Callable[[ReductoSettings], Awaitable[Result]]) -> Result:
        """Send a request, and repeat it with a new key if the connection has one after the key was refused."""
        settings = await self.aget_settings()
        try:
            return await request(settings)
        except ReductoAuthenticationError:
            if self._settings is settings:  # another task may have read them again meanwhile
                self._settings = None
            renewed = await self.aget_settings()
            if renewed == settings:
                raise
        await event_loop.run_aside(
            self.log.info,
            "The key of connection %r was refused, and the connection has changed since it was read: retrying with it",
            self.reducto_conn_id,
        )
        return await request(renewed)

    async def _get_usage(self, query: UsageQuery, settings: ReductoSettings) -> UsageReport:
        if settings.org_id and not query.org_id:
            query = replace(query, org_id=settings.org_id)
        body = await self._get(ENDPOINT, query.params(), settings, what=query)
        if len(body) < _DECODE_ASIDE_BYTES:
            return _decode(body, query, settings)
        return await event_loop.run_aside(_decode, body, query, settings)

    async def _get(self, path: str, parameters: Parameters, settings: ReductoSettings, what: object) -> bytes:
        """Return the body of a 200, after up to as many attempts as the connection allows."""
        failures: list[ReductoError] = []

        async def attempt() -> bytes:
            if failures:
                raise failures.pop()
            if delay := self._pace.reserve(settings.requests_per_second):
                await asyncio.sleep(delay)
            return await transport.get(await sessions.open(settings), settings, path, parameters)

        sessions = self._acquire_sessions()
        if sessions.users == 1 and event_loop.is_running_here():
            sessions.users += 1  # the hook counts too, so that its synchronous callers share a connection
            event_loop.close_with(self, sessions.close)
        try:
            try:
                return await attempt()
            except ReductoError as error:
                if not error.transient or settings.max_attempts == 1:
                    raise
                failures.append(error)
            # Requests that succeed go without tenacity, which takes 30 µs of CPU time.
            return await self._retrying(settings, what)(attempt)  # its first attempt is the one that has failed
        finally:
            await self._release_sessions()

    def _retrying(self, settings: ReductoSettings, what: object) -> tenacity.AsyncRetrying:
        async def log_attempt(state: tenacity.RetryCallState) -> None:
            # In a triggerer logging may block for a while, which must not block the event loop.
            await event_loop.run_aside(
                self.log.warning,
                "Attempt %d of %d failed: %s; the next in %.1f s (%s)",
                state.attempt_number,
                settings.max_attempts,
                _error_of(state),
                state.upcoming_sleep,
                what,
            )

        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(settings.max_attempts),
            wait=_backoff,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, ReductoError) and error.transient),
            before_sleep=log_attempt,
            reraise=True,
        )

    def _acquire_sessions(self) -> transport.Sessions:
        """Return the sessions of the running event loop, which stay open until each user has released them."""
        sessions = self._sessions.setdefault(asyncio.get_running_loop(), transport.Sessions())
        sessions.users += 1
        return sessions

    async def _release_sessions(self) -> None:
        sessions = self._sessions[asyncio.get_running_loop()]
        sessions.users -= 1
        if sessions.users == 0:
            del self._sessions[asyncio.get_running_loop()]
            await sessions.close()


class _Pace:
    """Space requests evenly: ``reserve`` takes the next slot and returns the seconds until then."""

    def __init__(self) -> None:
        self._next = 0.0
        self._lock = threading.Lock()

    def reserve(self, per_second: float | None) -> float:
        with self._lock:
            now = time.monotonic()
            slot = max(now, self._next)
            self._next = slot + (1 / per_second if per_second else 0.0)
            return slot - now


def _decode(body: bytes, query: UsageQuery, settings: ReductoSettings) -> UsageReport:
    try:
        return decode_report(body, query)
    except UsageContractError as error:
        failure = ReductoResponseError(settings.redact(f"Reducto's answer can't be used: {error}"))
    raise failure  # without its cause, which may quote the body


def _backoff(state: tenacity.RetryCallState) -> float:
    """Return the seconds until the next attempt: those of Retry-After, else an exponential with jitter."""
    error = _error_of(state)
    if isinstance(error, ReductoError) and error.retry_after is not None:
        # Never before Retry-After, and not all callers at the same moment.
        return min(error.retry_after, RETRY_AFTER_CAP) + random.uniform(0, BACKOFF_INITIAL)  # noqa: S311
    exponential: float = min(BACKOFF_INITIAL * 2 ** (state.attempt_number - 1), BACKOFF_MAX)
    return exponential * random.uniform(0.5, 1.0)  # noqa: S311


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None

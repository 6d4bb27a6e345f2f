"""The hook on loopback: what it requests, how often, with which key, and what it never gives away."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from itertools import pairwise
from typing import Any

import pytest

from reducto_provider.exceptions import (
    ReductoAuthenticationError,
    ReductoConfigurationError,
    ReductoError,
    ReductoPermissionError,
    ReductoRateLimitError,
    ReductoRequestError,
    ReductoServerError,
    ReductoTransportError,
)
from reducto_provider.hooks import event_loop, reducto, transport
from reducto_provider.hooks.reducto import ReductoHook
from reducto_provider.hooks.settings import ReductoSettings
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport
from simulator import Altered, CutShort, Endless, Fault, Reset, Simulator, Stall, html, redirect, status
from tests.airflow_sdk import AirflowNotFoundException
from tests.hooks.queries import (
    ATTEMPTS,
    FIRST,
    KEY,
    LAST,
    PATH,
    QUERY,
    Connect,
    Noted,
    chunked,
    figures,
    truth,
)
from tests.threads import call_together

# What is requested


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        pytest.param({}, "startDate=2026-06-01&endDate=2026-06-07&groupBy=product", id="no organization"),
        pytest.param(
            {"org_id": "org_acme", "group_by": "feature"},
            "startDate=2026-06-01&endDate=2026-06-07&groupBy=feature&orgId=org_acme",
            id="feature",
        ),
        pytest.param({"group_by": "api_key"}, "startDate=2026-06-01&endDate=2026-06-07&groupBy=api_key", id="api key"),
        pytest.param(
            {"group_by": "file_type"}, "startDate=2026-06-01&endDate=2026-06-07&groupBy=file_type", id="file type"
        ),
        pytest.param(
            {"end": FIRST, "products": "parse"},
            "startDate=2026-06-01&endDate=2026-06-01&groupBy=product&product=parse",
            id="one day, one product",
        ),
        pytest.param(
            {"products": ["parse", "extract", "parse"]},
            "startDate=2026-06-01&endDate=2026-06-07&groupBy=product&product=parse&product=extract",
            id="repeated",
        ),
        pytest.param(
            {
                "org_id": "org_acme",
                "products": ["parse"],
                "features": ["standard", "complex"],
                "api_keys": ["invoices-prod"],
                "file_types": ["pdf", "png"],
            },
            "startDate=2026-06-01&endDate=2026-06-07&groupBy=product&orgId=org_acme&product=parse&feature=standard"
            "&feature=complex&apiKey=invoices-prod&fileType=pdf&fileType=png",
            id="everything",
        ),
        pytest.param(
            {"api_keys": ["a b", "c&d=e", "100%", "x+y", "p/q?r#s", "ü~日本", "%41", "[x]y", "\r\nHost: other"]},
            "startDate=2026-06-01&endDate=2026-06-07&groupBy=product&apiKey=a%20b&apiKey=c%26d%3De&apiKey=100%25"
            "&apiKey=x%2By&apiKey=p%2Fq%3Fr%23s&apiKey=%C3%BC~%E6%97%A5%E6%9C%AC&apiKey=%2541&apiKey=%5Bx%5Dy"
            "&apiKey=%0D%0AHost%3A%20other",
            id="odd characters",
        ),
    ],
)
def test_the_query_string(simulator: Simulator, connect: Connect, given: dict[str, Any], sent: str) -> None:
    connect(host=simulator.url)
    query = UsageQuery(**{"start": FIRST, "end": LAST, **given})
    report = ReductoHook().get_usage(query)
    (request,) = simulator.requests
    assert (request.method, request.path, request.query_string) == ("GET", PATH, sent)
    assert (report.org_id, report.start, report.end, report.group_by) == ("org_acme", FIRST, query.end, query.group_by)


def test_an_odd_organization_is_sent_as_it_is(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url)
    with pytest.raises(ReductoPermissionError, match=r"'org a/b&orgId=c\+é'"):
        ReductoHook().get_usage(UsageQuery(start=FIRST, end=FIRST, org_id="org a/b&orgId=c+é"))
    assert simulator.requests[0].query_string.endswith("&orgId=org%20a%2Fb%26orgId%3Dc%2B%C3%A9")


def test_the_connection_s_organization_fills_in(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url, extra={"org_id": "org_globex"})
    hook = ReductoHook()
    assert hook.get_usage(UsageQuery(start=FIRST, end=LAST)).org_id == "org_globex"
    assert hook.get_usage(QUERY).org_id == "org_acme"


def test_the_headers(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url)
    ReductoHook().get_usage(QUERY)
    (request,) = simulator.requests
    assert request.headers.getall("Authorization") == [f"Bearer {KEY}"]
    assert request.headers["User-Agent"].startswith("airflow-provider-reducto/")
    assert set(request.headers) <= {"Host", "Authorization", "User-Agent", "Accept", "Accept-Encoding", "Connection"}


# How long it waits, and how often it tries


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(
    simulator: Simulator, connect: Connect, clock: Any, logged: Any, code: int, form: Any
) -> None:
    simulator.faults.add(status(code, retry_after=70, retry_after_as=form))
    connect(host=simulator.url)
    ReductoHook().get_usage(QUERY)
    (wait,) = clock.waits
    # A date has whole seconds, and it passes meanwhile.
    assert 70 - (form == "date") * 10 <= wait <= 71 + reducto.BACKOFF_INITIAL
    assert len(simulator.requests) == 2
    (retry,) = logged.retries
    assert retry.startswith("Attempt 1 of 5 failed: ")
    assert retry.endswith(f"the next in {wait:.1f} s (org_acme, 2026-06-01 to 2026-06-07, by product)")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_capped(simulator: Simulator, connect: Connect, clock: Any, form: Any) -> None:
    simulator.faults.add(status(429, retry_after=86_400, retry_after_as=form), times=None)
    connect(host=simulator.url, extra={"max_attempts": ATTEMPTS})
    with pytest.raises(ReductoRateLimitError) as caught:
        ReductoHook().get_usage(QUERY)
    assert caught.value.retry_after == pytest.approx(86_400, abs=60)
    cap = reducto.RETRY_AFTER_CAP
    assert [cap <= wait <= cap + reducto.BACKOFF_INITIAL for wait in clock.waits] == [True, True]


def test_not_all_callers_come_back_at_the_moment_that_retry_after_names(
    simulator: Simulator, connect: Connect, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reducto, "BACKOFF_INITIAL", 1.0)
    simulator.faults.add(status(503, retry_after=7), times=None)
    connect(host=simulator.url, extra={"max_attempts": 8})
    with pytest.raises(ReductoServerError):
        ReductoHook().get_usage(QUERY)
    assert all(7 <= wait <= 8 for wait in clock.waits)
    assert len(set(clock.waits)) == 7


@pytest.mark.parametrize(
    "text",
    [
        "soon",
        "",
        "-5",
        "1.5",
        "1e3",
        "0x10",
        "Mon, 31 Feb 2026 00:00:00 GMT",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Thu, 01 Jan 1970 00:00:00",
        "Mon, 99999999999 Jan 2026 00:00:00 GMT",
        "Mon, 01 Jan 2026 99999999999999999999:00:00 GMT",
        "Mon, 01 Jan 2026 00:00:00 +99999999999999999999",
        "Mon, 01 Jan " + "9" * 5000 + " 00:00:00 GMT",
    ],
)
def test_retry_after_that_makes_no_sense_is_as_good_as_none(
    simulator: Simulator, connect: Connect, clock: Any, text: str
) -> None:
    simulator.faults.add(status(503, headers={"Retry-After": text}))
    connect(host=simulator.url)
    assert ReductoHook().get_usage(QUERY).rows
    assert sum(clock.waits) <= reducto.BACKOFF_INITIAL


def test_waits_grow_with_jitter_up_to_a_limit(
    simulator: Simulator, connect: Connect, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reducto, "BACKOFF_INITIAL", 1.0)
    monkeypatch.setattr(reducto, "BACKOFF_MAX", 5.0)
    simulator.faults.add(status(500), times=None)
    connect(host=simulator.url, extra={"max_attempts": 7})
    with pytest.raises(ReductoServerError):
        ReductoHook().get_usage(QUERY)
    assert len(simulator.requests) == 7
    assert all(top / 2 <= wait <= top for wait, top in zip(clock.waits, [1, 2, 4, 5, 5, 5], strict=True))
    assert len({wait % 1 for wait in clock.waits}) > 1


def test_one_attempt_is_one_request(simulator: Simulator, connect: Connect, logged: Any, clock: Any) -> None:
    simulator.faults.add(status(503, retry_after=5), times=None)
    connect(host=simulator.url, extra={"max_attempts": 1})
    with pytest.raises(ReductoServerError) as caught:
        ReductoHook().get_usage(QUERY)
    assert (len(simulator.requests), caught.value.retry_after) == (1, 5)
    assert (logged.retries, clock.waits) == ([], [])


@pytest.mark.parametrize("fault", [None, status(503), Reset()], ids=["proper", "503", "reset"])
def test_requests_per_second_with_retries(
    simulator: Simulator, connect: Connect, clock: Any, fault: Fault | None
) -> None:
    arrived: list[float] = []
    noted = Noted(lambda _: arrived.append(clock.now))
    if fault:
        simulator.faults.add(Noted(noted.note, fault), times=2)
    simulator.faults.add(noted, times=None)
    connect(host=simulator.url, extra={"requests_per_second": 0.25, "max_attempts": ATTEMPTS})
    hook = ReductoHook()
    for _ in range(3):
        hook.get_usage(QUERY)
    assert len(arrived) == (5 if fault else 3)
    gaps = [later - earlier for earlier, later in pairwise(arrived)]
    assert gaps == pytest.approx([4.0] * len(gaps))


def test_a_slot_that_was_not_used_is_not_saved_up(simulator: Simulator, connect: Connect, clock: Any) -> None:
    connect(host=simulator.url, extra={"requests_per_second": 2})
    hook = ReductoHook()
    for pause in (0, 100, 0.3, 0):
        clock.now += pause
        hook.get_usage(QUERY)
    assert clock.waits == pytest.approx([0.2, 0.5])


def test_requests_per_second_among_concurrent_requests(simulator: Simulator, connect: Connect, clock: Any) -> None:
    connect(host=simulator.url, extra={"requests_per_second": 4})
    clock.stands_still = True

    async def request_at_once() -> None:
        async with ReductoHook() as hook:
            await asyncio.gather(*(hook.aget_usage(QUERY) for _ in range(5)))

    asyncio.run(request_at_once())
    assert clock.waits == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_requests_per_second_when_a_key_is_rotated_under_many(
    simulator: Simulator, connect: Connect, clock: Any
) -> None:
    fields = {"host": simulator.url, "extra": {"requests_per_second": 4}}
    connect(password="sim-key-of-yesterday", **fields)
    clock.stands_still = True

    async def request_at_once() -> None:
        async with ReductoHook() as hook:
            connect(**fields)
            await asyncio.gather(*(hook.aget_usage(QUERY) for _ in range(3)))

    asyncio.run(request_at_once())
    assert sorted(clock.waits) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.25])


def test_requests_per_second_among_threads() -> None:
    pace = reducto._Pace()
    clock = type("Clock", (), {"monotonic": staticmethod(lambda: 50.0)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reducto, "time", clock)
        pace.reserve(4)
        waits = call_together(*[lambda: pace.reserve(4)] * 8)
    assert sorted(waits) == pytest.approx([0.25 * slot for slot in range(1, 9)])


def test_extras_never_become_headers(
    simulator: Simulator, connect: Connect, logged: Any, conceals: Callable[..., None]
) -> None:
    unknown = {"X-Team": "team-value", "Authorization": "auth-value", "retries": 81729, "headers": {"X-A": "a-value"}}
    connect(host=simulator.url, extra={**unknown, "timeout": 10})
    ReductoHook().get_usage(QUERY)
    (request,) = simulator.requests
    values = ("team-value", "auth-value", "81729", "a-value")
    assert [value for value in values if value in str(request.headers)] == []
    (warning,) = [text for text in logged.warnings if "extras" in text]
    assert [name for name in ("reducto_default", *unknown) if name not in warning] == []
    assert "timeout" in warning.split("It knows")[1]
    conceals(None, *values, KEY)


def test_the_hook_s_repr_holds_no_key(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url, extra={"proxy": "http://me:proxy-password@127.0.0.1:1"})
    hook = ReductoHook()
    session = hook.get_conn()
    for thing in (hook, hook.settings, session, session.auth, [hook.settings], vars(hook)):
        assert KEY not in f"{thing}{thing!r}"
        assert "proxy-password" not in f"{thing}{thing!r}"


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda hook: pickle.loads(pickle.dumps(hook))])
def test_a_used_hook_can_be_copied(
    simulator: Simulator, connect: Connect, how: Callable[[ReductoHook], ReductoHook]
) -> None:
    connect(host=simulator.url, conn_id="another")
    hook = ReductoHook("another", tcp_keep_alive_idle=7)
    hook.log.debug("used")
    report = hook.get_usage(QUERY)
    assert asyncio.run(hook.aget_usage(QUERY)) == report
    copied = how(hook)
    assert KEY.encode() not in pickle.dumps(hook)
    assert KEY not in str(vars(copied))
    assert copied.reducto_conn_id == "another"
    assert copied.keep_alive_adapter.socket_options == hook.keep_alive_adapter.socket_options
    assert copied.get_usage(QUERY) == report
    assert asyncio.run(copied.aget_usage(QUERY)) == report


# Testing a connection


def test_a_connection_that_works(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url)
    worked, message = ReductoHook().test_connection()
    assert worked
    assert [words for words in (simulator.url, "org_acme", "requests on 20") if words not in message] == []
    assert len(simulator.requests) == 1
    assert len(dict(simulator.requests[0].query)) == 3


def test_a_connection_that_works_without_usage(simulator: Simulator, connect: Connect) -> None:
    simulator.usage.set_records("org_globex", [])
    connect(host=simulator.url, extra={"org_id": "org_globex", "max_attempts": 20})
    worked, message = ReductoHook().test_connection()
    assert worked
    assert "org_globex: no usage" in message


@pytest.mark.parametrize(
    ("fault", "connection", "says"),
    [
        pytest.param(None, {"password": "sim-key-wrong"}, ["401", "Reducto Studio", "REDUCTO_API_KEY"], id="401"),
        pytest.param(None, {"extra": {"org_id": "org_other"}}, ["403", "'org_other'"], id="403"),
        pytest.param(status(503, retry_after=60), {}, ["503"], id="503"),
        pytest.param(Reset(), {}, ["no answer from http://127.0.0.1"], id="reset"),
        pytest.param(Stall(30), {"extra": {"timeout": 0.2}}, ["no answer from http://127.0.0.1"], id="stall"),
        pytest.param(html(), {}, ["HTML", "200", "proxy"], id="html"),
        pytest.param(redirect("http://[oops/"), {}, ["302"], id="redirect"),
    ],
)
def test_a_connection_that_fails(
    simulator: Simulator,
    connect: Connect,
    conceals: Callable[..., None],
    fault: Fault | None,
    connection: dict[str, Any],
    says: list[str],
) -> None:
    if fault:
        simulator.faults.add(fault, times=None)
    connect(**{"host": simulator.url, **connection})
    worked, message = ReductoHook().test_connection()
    assert not worked
    assert [words for words in says if words not in message] == []
    assert len(simulator.requests) == 1
    assert KEY not in message
    assert "sim-key-wrong" not in message
    conceals(None, KEY, "sim-key-wrong")


@pytest.mark.parametrize(
    ("connection", "says"),
    [
        pytest.param({"host": "http://127.0.0.1:1"}, "no answer from http://127.0.0.1:1", id="refused"),
        pytest.param({"password": ""}, "'reducto_default': password is empty", id="no key"),
        pytest.param({"extra": {"timeout": "long"}}, "extra 'timeout'", id="bad extra"),
        pytest.param({"conn_id": "other"}, "reducto_default", id="no connection"),
    ],
)
def test_a_connection_that_never_comes_to_a_request(connect: Connect, connection: dict[str, Any], says: str) -> None:
    connect(**connection)
    worked, message = ReductoHook().test_connection()
    assert not worked
    assert says in message
    assert KEY not in message


def test_testing_a_connection_has_a_timeout_of_its_own(
    simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reducto, "TEST_CONNECTION_TIMEOUT", 0.2)
    simulator.faults.add(Stall(30), times=None)
    connect(host=simulator.url)
    hook = ReductoHook()
    worked, message = hook.test_connection()
    assert (worked, "no answer" in message, len(simulator.requests)) == (False, True, 1)
    assert (hook.settings.timeout, hook.settings.max_attempts) == (60, 5)


def test_testing_a_connection_shows_no_key_that_the_service_sends(simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(Altered({"orgId": KEY}))
    connect(host=simulator.url)
    assert KEY not in ReductoHook().test_connection()[1]


def test_testing_a_connection_does_not_raise_for_an_unusable_bundle(
    listen: Callable[..., Any], connect: Connect, certificate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/bundle.pem")
    connect(host=listen(tls=certificate.tls).url)
    worked, message = ReductoHook().test_connection()
    assert (worked, "/nowhere/bundle.pem" in message) == (False, True)


# In an event loop


def test_a_hook_serves_both_ways_in_turn(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url)
    hook = ReductoHook()
    reports = [
        hook.get_usage(QUERY),
        asyncio.run(hook.aget_usage(QUERY)),
        hook.get_usage(QUERY),
        asyncio.run(hook.aget_usage(QUERY)),
    ]
    assert all(report == reports[0] for report in reports)


def test_synchronous_requests_of_one_hook_share_a_connection(simulator: Simulator, connect: Connect) -> None:
    ports: list[int] = []
    simulator.faults.add(
        Noted(lambda request: ports.append(request.transport.get_extra_info("peername")[1])), times=None
    )
    connect(host=simulator.url)
    hook = ReductoHook()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            hook.get_usage(QUERY)
            pool.submit(hook.get_usage, QUERY).result(20)
    ReductoHook().get_usage(QUERY)
    assert len(ports) == 5
    assert len(set(ports[:4])) == 1
    assert len(set(ports)) == 2


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
def test_a_hook_that_is_gone_leaves_nothing_open(
    listen: Callable[..., Any],
    connect: Connect,
    certificate: Any,
    monkeypatch: pytest.MonkeyPatch,
    all_is_closed: Callable[[], None],
    tls: bool,
) -> None:
    sessions = []

    def noted(*args: Any) -> Any:
        sessions.append(open_session(*args))
        return sessions[-1]

    open_session = transport._open_session
    monkeypatch.setattr(transport, "_open_session", noted)

    def proper(request: bytes, proper: bytes) -> list[bytes]:
        return [proper.replace(b"Connection: close", b"Connection: keep-alive")]

    connect(host=listen(proper, certificate.tls if tls else None).url, extra={"verify": str(certificate.bundle)})
    hook = ReductoHook()
    report = hook.get_usage(QUERY)
    (session,) = sessions
    assert not session.closed
    del hook
    gc.collect()
    deadline = time.monotonic() + 10
    while not session.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert session.closed
    assert report.rows == ()
    del session, sessions[:]
    all_is_closed()


def test_a_process_that_ends_leaves_nothing_open(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url)
    script = """
import datetime as dt
from reducto_provider.hooks.reducto import ReductoHook
from reducto_provider.hooks.settings import ReductoSettings
from reducto_provider.usage.query import UsageQuery

hook = ReductoHook()
rows = hook.get_usage(UsageQuery(start=dt.date(2026, 6, 1), end=dt.date(2026, 6, 1), org_id="org_acme")).rows
print(len(rows) > 0)
"""
    arguments = [sys.executable, "-W", "always::ResourceWarning", "-c", script]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert "True" in done.stdout.splitlines()  # among lines that some versions of Airflow log
    assert [line for line in done.stderr.splitlines() if "nclosed" in line or "destroyed" in line] == []


def test_a_report_is_not_kept_with_the_connection(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url)
    hook = ReductoHook()
    report = weakref.ref(hook.get_usage(QUERY))
    event_loop.run(asyncio.sleep(0))
    gc.collect()
    assert report() is None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("child", ["requests", "forgets the hook"])
def test_a_used_hook_in_a_fork(simulator: Simulator, connect: Connect, child: str) -> None:
    ports: list[int] = []
    simulator.faults.add(
        Noted(lambda request: ports.append(request.transport.get_extra_info("peername")[1])), times=None
    )
    connect(host=simulator.url, extra={"timeout": 5, "max_attempts": 1})
    hooks = [ReductoHook()]
    report = hooks[0].get_usage(QUERY)

    def in_the_child() -> bool:
        if child == "requests":
            return hooks[0].get_usage(QUERY) == report
        hooks.clear()
        return gc.collect() >= 0

    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if in_the_child() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert hooks[0].get_usage(QUERY) == report
    assert ports[0] == ports[-1], "the parent's connection is still there"
    assert len(set(ports)) == (2 if child == "requests" else 1)


def test_a_task_that_is_killed_requests_no_more(simulator: Simulator, connect: Connect) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    main = threading.main_thread().ident
    simulator.faults.add(Noted(lambda _: signal.pthread_kill(main, signal.SIGALRM), Stall(60)))
    connect(host=simulator.url)
    before = signal.signal(signal.SIGALRM, kill)
    try:
        with pytest.raises(Killed):
            ReductoHook().get_usage(QUERY)
    finally:
        signal.signal(signal.SIGALRM, before)
    deadline = time.monotonic() + 10
    while simulator.journal.in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (simulator.journal.in_flight, len(simulator.requests)) == (0, 1)


def test_connections_are_looked_up_and_lines_logged_in_the_calling_thread_alone(
    simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow's channel to the supervisor is not for several threads."""
    threads: dict[str, set[str]] = {}

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            threads.setdefault(name, set()).add(threading.current_thread().name)
            return function(*args, **kwargs)

        return noted

    monkeypatch.setattr(ReductoHook, "get_connection", staticmethod(noting("look-up", ReductoHook.get_connection)))
    monkeypatch.setattr(reducto, "get_async_connection", None)
    monkeypatch.setattr(ReductoSettings, "from_connection", noting("reading", ReductoSettings.from_connection))
    hook = ReductoHook()
    log = type("Log", (), {"info": noting("info", print), "warning": noting("warning", print)})
    monkeypatch.setattr(ReductoHook, "log", log)
    connect(host=simulator.url)
    _ = hook.settings
    rotate(simulator)
    connect(host=simulator.url, password=ROTATED, extra={"unknown": "x"})
    simulator.faults.add(status(503))
    with ThreadPoolExecutor(1, "caller") as pool:
        pool.submit(hook.get_usage, QUERY).result(20)
    here = threading.current_thread().name
    assert threads == {
        "look-up": {here, "caller_0"},
        "reading": {here, "caller_0"},
        "info": {"caller_0"},
        "warning": {"caller_0"},
    }


def test_a_context_keeps_one_session(simulator: Simulator, connect: Connect, all_is_closed: Callable[[], None]) -> None:
    ports: list[int] = []
    simulator.faults.add(
        Noted(lambda request: ports.append(request.transport.get_extra_info("peername")[1])), times=None
    )
    connect(host=simulator.url)

    async def request_within_and_after() -> None:
        hook = ReductoHook()
        async with hook as entered:
            assert entered is hook
            for _ in range(3):
                await hook.aget_usage(QUERY)
        for _ in range(2):
            await hook.aget_usage(QUERY)

    asyncio.run(request_within_and_after())
    assert len(ports) == 5
    assert len(set(ports[:3])) == 1
    assert len(set(ports)) == 3
    all_is_closed()


def test_a_context_closes_its_session_when_it_ends_in_an_error(
    simulator: Simulator, connect: Connect, all_is_closed: Callable[[], None]
) -> None:
    connect(host=simulator.url)

    async def fail() -> None:
        async with ReductoHook() as hook:
            await hook.aget_usage(QUERY)
            raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(fail())
    all_is_closed()


@pytest.mark.parametrize("fault", [None, status(401), Stall(30), Reset(), Endless()], ids=lambda fault: str(fault)[:9])
def test_a_request_without_a_context_closes_its_session(
    simulator: Simulator,
    connect: Connect,
    all_is_closed: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault | None,
) -> None:
    monkeypatch.setattr(transport, "MAX_RESPONSE_BYTES", 2**18)
    if fault:
        simulator.faults.add(fault, times=None)
    connect(host=simulator.url, extra={"max_attempts": 2, "timeout": 0.3})

    async def request() -> str:
        try:
            await ReductoHook().aget_usage(QUERY)
        except ReductoError as error:
            return type(error).__name__
        return "proper"

    assert (asyncio.run(request()) == "proper") == (fault is None)
    all_is_closed()


@pytest.mark.parametrize("half", ["get_async_connection", "get_async_extra_dejson"])
def test_a_look_up_that_is_cancelled_goes_on_to_its_end(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    connect()
    memo = getattr(reducto, half)

    async def cancel() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def slow(*arguments: Any, **options: Any) -> Any:
            begun.set()
            await asyncio.sleep(0.05)
            found = await memo(*arguments, **options)
            ended.set()
            return found

        monkeypatch.setattr(reducto, half, slow)
        task = asyncio.create_task(ReductoHook().aget_settings())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 10)

    asyncio.run(cancel())


def test_a_look_up_that_is_cancelled_and_fails_leaves_no_complaint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def cancel() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def fails(*_: Any, **__: Any) -> Any:
            begun.set()
            await asyncio.sleep(0.05)
            ended.set()
            raise OSError("the database is gone")

        monkeypatch.setattr(reducto, "get_async_connection", fails)
        task = asyncio.create_task(ReductoHook().aget_settings())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 10)
        await asyncio.sleep(0)

    asyncio.run(cancel())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_context_within_a_context(simulator: Simulator, connect: Connect, all_is_closed: Callable[[], None]) -> None:
    connect(host=simulator.url)

    async def nest() -> None:
        hook = ReductoHook()
        async with hook:
            async with hook:
                await hook.aget_usage(QUERY)
            await hook.aget_usage(QUERY)

    asyncio.run(nest())
    all_is_closed()


def test_tasks_that_share_a_hook(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url)
    hook = ReductoHook()

    async def share() -> list[UsageReport]:
        second_is_in, first_is_out = asyncio.Event(), asyncio.Event()

        async def first() -> UsageReport:
            async with hook:
                await second_is_in.wait()
                report = await hook.aget_usage(QUERY)
            first_is_out.set()
            return report

        async def second() -> UsageReport:
            async with hook:
                second_is_in.set()
                simulator.faults.add(Stall(0.1))
                report = asyncio.create_task(hook.aget_usage(QUERY))
                await first_is_out.wait()
                return await report

        return await asyncio.gather(first(), second())

    one, two = asyncio.run(share())
    assert one == two


def test_the_event_loop_is_not_held_up(
    listen: Callable[..., Any], connect: Connect, certificate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes long runs in other threads: looking the connection up, reading the CA bundle, a long decoding."""
    here = threading.get_ident()
    elsewhere: dict[str, bool] = {}

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            elsewhere[name] = threading.get_ident() != here
            return function(*args, **kwargs)

        return noted

    def long(request: bytes, proper: bytes) -> list[bytes]:
        head, _ = chunked(proper.split(b"\r\n\r\n")[0]).split(b"Transfer")
        return [head + b"\r\n", proper.split(b"\r\n\r\n")[1], b" " * 2**20]

    monkeypatch.setattr(transport, "_ssl_context", noting("bundle", transport._ssl_context))
    monkeypatch.setattr(reducto, "_decode", noting("decoding", reducto._decode))
    monkeypatch.setattr(ReductoHook, "get_connection", staticmethod(noting("connection", ReductoHook.get_connection)))
    connect(host=listen(long, certificate.tls).url, extra={"verify": str(certificate.bundle)})
    asyncio.run(ReductoHook().aget_usage(QUERY))
    elsewhere.setdefault("connection", True)  # Airflow has an asynchronous look-up since 3.1
    assert elsewhere == {"bundle": True, "decoding": True, "connection": True}


def test_a_connection_that_the_asynchronous_look_up_can_t_see(
    simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def blind(conn_id: str, hook: Any = None) -> Any:
        raise AirflowNotFoundException(conn_id)

    monkeypatch.setattr(reducto, "get_async_connection", blind)
    connect(host=simulator.url)
    assert asyncio.run(ReductoHook().aget_usage(QUERY)).rows


def test_requests_of_one_context_run_at_once(simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(Stall(0.1), times=None)
    connect(host=simulator.url)

    async def request_at_once() -> list[UsageReport]:
        async with ReductoHook() as hook:
            return await asyncio.gather(*(hook.aget_usage(QUERY) for _ in range(4)))

    assert len(asyncio.run(request_at_once())) == 4
    assert simulator.journal.max_in_flight == 4


# The connection itself


def test_a_connection_that_does_not_exist() -> None:
    with pytest.raises(AirflowNotFoundException, match="nowhere"):
        ReductoHook("nowhere").get_usage(QUERY)


def test_the_connection_is_looked_up_once_and_late(
    simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = ReductoHook("late")
    connect(host=simulator.url, conn_id="late")
    hook.get_usage(QUERY)
    monkeypatch.delenv("AIRFLOW_CONN_LATE")
    hook.get_usage(QUERY)
    assert len(simulator.requests) == 2


def test_a_retry_sends_the_very_same(simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(status(503), Reset(), CutShort(), status(429))
    connect(host=simulator.url)
    ReductoHook().get_usage(UsageQuery(start=FIRST, end=LAST, products=["b", "a"], org_id="org_acme"))
    sent = {(request.method, request.path, request.query_string) for request in simulator.requests}
    assert len(sent) == 1
    assert len(simulator.requests) == 5


def test_mostly_failing_service(simulator: Simulator, connect: Connect, clock: Any) -> None:
    simulator.faults.at_rate(0.4, seed=random.Random(1).randrange(100))
    connect(host=simulator.url, extra={"max_attempts": 20})
    hook = ReductoHook()
    for _ in range(10):
        assert figures(hook.get_usage(QUERY)) == truth(simulator, QUERY)
    assert len(simulator.requests) > 10


# A key that was rotated while the hook lived

ROTATED = "sim-key-rotated-5d1e"


@pytest.fixture(params=["sync", "async", "context"])
def request_again(request: pytest.FixtureRequest) -> Iterator[Callable[[], UsageReport]]:
    """One hook, kept: used in the three ways, again and again. It is open from its first request on."""
    hook = ReductoHook()
    if request.param == "sync":
        yield lambda: hook.get_usage(QUERY)
        return
    with asyncio.Runner() as runner, ExitStack() as stack:

        def request_once() -> UsageReport:
            if request.param == "context" and not hook._sessions:
                runner.run(hook.__aenter__())
                stack.callback(lambda: runner.run(hook.__aexit__(None, None, None)))
            return runner.run(hook.aget_usage(QUERY))

        yield request_once


def rotate(simulator: Simulator) -> None:
    simulator.keys[ROTATED] = simulator.keys.pop(KEY)


def statuses(simulator: Simulator) -> list[int | None]:
    return [request.status for request in simulator.requests]


def test_a_key_that_was_rotated(
    request_again: Callable[[], UsageReport], simulator: Simulator, connect: Connect, conceals: Callable[..., None]
) -> None:
    connect(host=simulator.url)
    before = request_again()
    rotate(simulator)
    connect(host=simulator.url, password=ROTATED)

    assert request_again() == before
    assert statuses(simulator) == [200, 401, 200]
    assert request_again() == before
    assert statuses(simulator) == [200, 401, 200, 200], "the new key is kept"
    conceals(None, KEY, ROTATED)


def test_a_rotation_is_logged(simulator: Simulator, connect: Connect, logged: Any) -> None:
    connect(host=simulator.url)
    hook = ReductoHook()
    hook.get_usage(QUERY)
    rotate(simulator)
    connect(host=simulator.url, password=ROTATED)
    hook.get_usage(QUERY)
    assert sum("has changed since it was read" in text for text in logged.everything[::2]) == 1


def test_a_refused_key_that_was_not_rotated_is_sent_once(
    request_again: Callable[[], UsageReport], simulator: Simulator, connect: Connect, conceals: Callable[..., None]
) -> None:
    connect(host=simulator.url, password="sim-key-wrong-77")
    for count in (1, 2):
        with pytest.raises(ReductoAuthenticationError, match="'reducto_default'") as caught:
            request_again()
        assert statuses(simulator) == [401] * count
    conceals(caught.value, "sim-key-wrong-77")


def test_a_rotated_key_that_is_refused_too(
    request_again: Callable[[], UsageReport], simulator: Simulator, connect: Connect, conceals: Callable[..., None]
) -> None:
    connect(host=simulator.url)
    request_again()
    rotate(simulator)
    connect(host=simulator.url, password="sim-key-wrong-77")
    with pytest.raises(ReductoAuthenticationError) as caught:
        request_again()
    assert statuses(simulator) == [200, 401, 401]
    conceals(caught.value, KEY, "sim-key-wrong-77")
    connect(host=simulator.url, password=ROTATED)
    request_again()
    assert statuses(simulator) == [200, 401, 401, 401, 200]


def test_only_a_401_reads_the_connection_again(
    request_again: Callable[[], UsageReport], simulator: Simulator, connect: Connect
) -> None:
    connect(host=simulator.url)
    request_again()
    connect(host=simulator.url, password=ROTATED)
    simulator.faults.add(status(403), status(400))
    for error in (ReductoPermissionError, ReductoRequestError):
        with pytest.raises(error):
            request_again()
    request_again()
    assert statuses(simulator) == [200, 403, 400, 200]


def test_a_connection_that_moved(
    request_again: Callable[[], UsageReport],
    simulator: Simulator,
    connect: Connect,
    listen: Callable[..., Any],
    certificate: Any,
) -> None:
    connect(host=simulator.url, password="sim-key-wrong")
    with pytest.raises(ReductoAuthenticationError):
        request_again()
    moved = listen(tls=certificate.tls)
    connect(host=moved.url, password=ROTATED, extra={"verify": str(certificate.bundle)})

    assert request_again().rows == ()
    assert moved.headers("Authorization") == [f"Bearer {ROTATED}"]
    assert statuses(simulator) == [401, 401]


def refuse(request: bytes, proper: bytes) -> list[bytes]:
    return [b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]


@pytest.mark.filterwarnings("ignore:Unverified HTTPS")
def test_a_certificate_is_checked_from_then_on(
    request_again: Callable[[], UsageReport], connect: Connect, listen: Callable[..., Any], certificate: Any
) -> None:
    server = listen(refuse, tls=certificate.tls)
    connect(host=server.url, extra={"verify": False, "max_attempts": 1})
    with pytest.raises(ReductoAuthenticationError):
        request_again()
    connect(host=server.url, password=ROTATED, extra={"verify": True, "max_attempts": 1})
    for _ in range(2):
        with pytest.raises(ReductoTransportError, match=r"(?i)certificate"):
            request_again()
    assert f"Bearer {ROTATED}" not in server.headers("Authorization")


@pytest.mark.parametrize("rate", [4, 2])
def test_the_pace_is_kept(
    request_again: Callable[[], UsageReport], simulator: Simulator, connect: Connect, clock: Any, rate: float
) -> None:
    connect(host=simulator.url, extra={"requests_per_second": 4})
    request_again()
    rotate(simulator)
    connect(host=simulator.url, password=ROTATED, extra={"requests_per_second": rate})
    request_again()
    request_again()
    assert statuses(simulator) == [200, 401, 200, 200]
    assert clock.waits == pytest.approx([1 / 4, 1 / 4, 1 / rate])


def test_a_connection_that_is_gone_and_comes_back(
    request_again: Callable[[], UsageReport], simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(host=simulator.url)
    before = request_again()
    rotate(simulator)
    monkeypatch.delenv("AIRFLOW_CONN_REDUCTO_DEFAULT")
    with pytest.raises(AirflowNotFoundException, match="reducto_default"):
        request_again()
    with pytest.raises(AirflowNotFoundException, match="reducto_default"):
        request_again()
    connect(host=simulator.url, password=ROTATED)
    assert request_again() == before
    assert statuses(simulator) == [200, 401, 200]


def test_a_connection_that_can_t_be_used_any_more(
    request_again: Callable[[], UsageReport], simulator: Simulator, connect: Connect
) -> None:
    connect(host=simulator.url)
    request_again()
    rotate(simulator)
    connect(host=simulator.url, password="")
    with pytest.raises(ReductoConfigurationError, match="password is empty"):
        request_again()


@pytest.mark.parametrize("within", [True, False], ids=["within a context", "each by itself"])
def test_tasks_whose_key_was_rotated(
    within: bool,
    connect: Connect,
    listen: Callable[..., Any],
    certificate: Any,
    conceals: Callable[..., None],
    all_is_closed: Callable[[], None],
) -> None:
    arrived = threading.Barrier(5)

    def answer(request: bytes, proper: bytes) -> list[bytes]:
        if ROTATED.encode() in request:
            return [proper]
        arrived.wait(10)  # all are refused at once
        return refuse(request, proper)

    server = listen(answer, tls=certificate.tls)
    extra = {"verify": str(certificate.bundle), "max_attempts": 1}
    connect(host=server.url, extra=extra)

    async def request_at_once() -> list[UsageReport]:
        hook = ReductoHook()
        async with hook if within else nullcontext():
            await hook.aget_settings()
            connect(host=server.url, password=ROTATED, extra=extra)
            return await asyncio.gather(*(hook.aget_usage(QUERY) for _ in range(5)))

    assert len(asyncio.run(request_at_once())) == 5
    assert server.headers("Authorization") == [f"Bearer {KEY}"] * 5 + [f"Bearer {ROTATED}"] * 5
    conceals(None, KEY, ROTATED)
    all_is_closed()


def test_threads_whose_key_was_rotated(connect: Connect, listen: Callable[..., Any]) -> None:
    arrived = threading.Barrier(5)

    def answer(request: bytes, proper: bytes) -> list[bytes]:
        if ROTATED.encode() in request:
            return [proper]
        arrived.wait(10)
        return refuse(request, proper)

    server, moved = listen(answer), listen(answer)
    connect(host=server.url)
    hook = ReductoHook()
    assert hook.settings.key == KEY
    connect(host=moved.url, password=ROTATED)
    with ThreadPoolExecutor(5) as pool:
        reports = [pool.submit(hook.get_usage, QUERY) for _ in range(5)]
        assert all(report.result(20).rows == () for report in reports)
    assert server.headers("Authorization") == [f"Bearer {KEY}"] * 5
    assert moved.headers("Authorization") == [f"Bearer {ROTATED}"] * 5

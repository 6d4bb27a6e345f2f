"""Whom a process of ours ever talks to: the connection's host, or its proxy, and nobody else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from reducto_provider.exceptions import ReductoError
from reducto_provider.hooks.reducto import ReductoHook
from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
from reducto_provider.triggers.threshold import ReductoUsageThresholdTrigger
from reducto_provider.usage.query import UsageQuery

DAYS = {"usage_start_date": "2026-06-01", "usage_end_date": "2026-06-02"}
QUERY = UsageQuery(start=date(2026, 6, 1), end=date(2026, 6, 2), org_id="org_acme")
ELSEWHERE = "elsewhere.invalid"

_noting: list[tuple[str, int]] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    # A hook of the interpreter's can't be taken off again.
    if _noting is None:
        return
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        _noting.append(arguments[1][:2])
    elif event == "socket.getaddrinfo":
        _noting.append((str(arguments[0]), int(arguments[1] or 0)))
    elif event in ("socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto"):
        _noting.append((str(arguments[-1]), 0))


@pytest.fixture(scope="module", autouse=True)
def _hook() -> None:
    sys.addaudithook(_note)


@contextmanager
def noted() -> Iterator[list[tuple[str, int]]]:
    """All hosts that are looked up or connected to meanwhile."""
    global _noting
    _noting = found = []
    try:
        yield found
    finally:
        _noting = None


def export(output_path: str | None) -> None:
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1)
    ReductoUsageExportOperator(task_id="export", org_id="org_acme", output_path=output_path, **DAYS).execute({"ti": ti})


def poke() -> None:
    run = SimpleNamespace(data_interval_end=datetime(2026, 6, 3, tzinfo=UTC))
    ReductoUsageThresholdSensor(task_id="wait", org_id="org_acme", threshold=1e9, on_closed_window="wait", **DAYS).poke(
        {"dag_run": run}
    )


def trigger() -> None:
    async def first_event() -> None:
        waiting = ReductoUsageThresholdTrigger(
            reducto_conn_id="reducto_default",
            org_id="org_acme",
            threshold="0",
            poke_interval=1,
            poll_immediately=True,
            max_failure_time=0,
            **DAYS,
        )
        async for _ in waiting.run():
            break

    asyncio.run(first_event())


WAYS: dict[str, Callable[[Any], None]] = {
    "get_usage": lambda _: ReductoHook().get_usage(QUERY),
    "aget_usage": lambda _: asyncio.run(ReductoHook().aget_usage(QUERY)),
    "test_connection": lambda _: ReductoHook().test_connection(),
    "an export to XCom": lambda _: export(None),
    "an export to files": lambda folder: export(f"file://{folder}/usage"),
    "a sensor": lambda _: poke(),
    "a trigger": lambda _: trigger(),
}

ANSWERS: dict[str, Callable[[bytes], bytes]] = {
    "proper": lambda proper: proper,
    **{
        f"a {status} to another host": lambda _, status=status: (
            f"HTTP/1.1 {status} Moved\r\nLocation: http://{ELSEWHERE}/\r\nContent-Length: 0\r\n"
            f"Refresh: 0; url=http://{ELSEWHERE}/\r\nConnection: close\r\n\r\n"
        ).encode()
        for status in (301, 302, 303, 307, 308)
    },
    "headers that name other hosts": lambda proper: proper.replace(
        b"Connection: close",
        f'Alt-Svc: h2="{ELSEWHERE}:443"\r\nLink: <http://{ELSEWHERE}/>; rel=preload\r\n'
        f"Set-Cookie: a=b; Domain={ELSEWHERE}\r\nProxy-Authenticate: Basic\r\nConnection: close".encode(),
    ),
    "a use of another proxy": lambda _: (
        f"HTTP/1.1 305 Use Proxy\r\nLocation: http://{ELSEWHERE}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ).encode(),
    "an answer that is none": lambda _: b"SSH-2.0-OpenSSH\r\n",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_connection_s_host_and_no_other(
    way: str, answer: str, listen: Callable[..., Any], connect: Callable[..., str], tmp_path: Any
) -> None:
    listener = listen(lambda request, proper: [ANSWERS[answer](proper)])
    connect(host=listener.url, extra={"max_attempts": 2})

    with noted() as hosts, suppress(ReductoError):
        WAYS[way](tmp_path)

    assert listener.requests
    assert set(hosts) == {("127.0.0.1", listener.port)}


@pytest.mark.parametrize("way", WAYS)
def test_the_proxy_and_no_other(
    way: str, listen: Callable[..., Any], connect: Callable[..., str], tmp_path: Any
) -> None:
    proxy = listen(lambda request, proper: [proper])
    connect(host=f"http://{ELSEWHERE}", extra={"max_attempts": 1, "proxy": proxy.url})

    with noted() as hosts, suppress(ReductoError):
        WAYS[way](tmp_path)

    assert proxy.requests
    assert set(hosts) == {("127.0.0.1", proxy.port)}, "the service's name is for the proxy to look up"


def test_others_are_noted(listen: Callable[..., Any]) -> None:
    """The tests above can fail."""
    import requests

    listener = listen()
    with noted() as hosts:
        requests.get(listener.url, timeout=5)
        with suppress(requests.RequestException):
            requests.get(f"http://{ELSEWHERE}/", timeout=5)

    assert {host for host, _ in hosts} == {"127.0.0.1", ELSEWHERE}

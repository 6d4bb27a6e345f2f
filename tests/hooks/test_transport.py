"""One request on loopback: what the hook makes of every answer, and how long it takes at the most."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from reducto_provider.exceptions import (
    ReductoError,
    ReductoGatewayError,
    ReductoResponseError,
    ReductoServerError,
    ReductoTransportError,
)
from reducto_provider.hooks import transport
from reducto_provider.hooks.reducto import ReductoHook
from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.usage.query import UsageQuery
from simulator import (
    Reply,
    Simulator,
    Stall,
    redirect,
    status,
)
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
)

# How answers are packed

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "two members": lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:]),
    "zeros at the end": lambda body: gzip.compress(body) + bytes(600),
    "zeros between": lambda body: gzip.compress(body[:9]) + bytes(3) + gzip.compress(body[9:]) + bytes(1),
    "an empty member": lambda body: gzip.compress(b"") + gzip.compress(body) + gzip.compress(b""),
    "thousands of members": lambda body: b"".join(gzip.compress(body[at : at + 1]) for at in range(len(body))),
    "hardly smaller": lambda body: gzip.compress(body, 0),
    "as much as one piece": lambda body: gzip.compress(body + b" " * (transport._PIECE_BYTES - len(body))),
    "as much as two pieces": lambda body: gzip.compress(body + b" " * (2 * transport._PIECE_BYTES - len(body))),
}
BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda body: gzip.compress(body)[:-1],
    "cut short in its head": lambda body: gzip.compress(body)[:5],
    "cut short in the second member": lambda body: gzip.compress(body) + gzip.compress(b" ")[:-3],
    "with something else behind": lambda body: gzip.compress(body) + b"more",
    "altered": lambda body: gzip.compress(body, 0).replace(b"org_acme", b"org_none"),
}


def packed(pack: Callable[[bytes], bytes], name: str, piece: int) -> Callable[[bytes, bytes], Iterator[bytes]]:
    def answer(request: bytes, proper: bytes) -> Iterator[bytes]:
        body = pack(proper.split(b"\r\n\r\n", 1)[1])
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {name}\r\nContent-Length: {len(body)}\r\nConnection: close"
        yield f"{head}\r\n\r\n".encode()
        for at in range(0, len(body), piece):
            yield body[at : at + piece]

    return answer


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "GZip"])
@pytest.mark.parametrize("piece", [2**20, 7])
@pytest.mark.parametrize("how", PACKED)
def test_gzip(listen: Callable[..., Any], connect: Connect, how: str, piece: int, name: str) -> None:
    connect(host=listen(packed(PACKED[how], name, piece)).url, extra={"max_attempts": 1})
    assert ReductoHook().get_usage(QUERY).rows == ()


@pytest.mark.parametrize("how", BROKEN)
def test_gzip_that_is_broken(listen: Callable[..., Any], connect: Connect, how: str) -> None:
    listener = listen(packed(BROKEN[how], "gzip", 2**20))
    connect(host=listener.url, extra={"max_attempts": 2})
    with pytest.raises(ReductoTransportError, match="no answer from"):
        ReductoHook().get_usage(QUERY)
    assert len(listener.requests) == 2


@pytest.mark.parametrize(("pieces", "turns"), [(1, 0), (2, 1), (5, 4)])
def test_the_event_loop_has_a_turn_between_the_pieces_of_a_chunk(pieces: int, turns: int) -> None:
    body = transport._Body(200, {"Content-Encoding": "gzip"})
    content = bytes(pieces * transport._PIECE_BYTES - 1)
    assert len(list(body.add(gzip.compress(content)))) == turns
    assert body.content() == content


# What comes before the body


@pytest.mark.parametrize("length", [9_000, 65_000])
def test_a_long_header(listen: Callable[..., Any], connect: Connect, length: int) -> None:
    more = b"\r\nContent-Security-Policy: " + b"a" * length + b"\r\n\r\n"
    connect(host=listen(lambda request, proper: [proper.replace(b"\r\n\r\n", more)]).url, extra={"max_attempts": 1})
    assert ReductoHook().get_usage(QUERY).rows == ()


def test_refused_connections(connect: Connect, logged: Any, conceals: Callable[..., None]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and doesn't listen
        connect(host=f"http://127.0.0.1:{taken.getsockname()[1]}", extra={"max_attempts": ATTEMPTS})
        with pytest.raises(ReductoTransportError, match=r"no answer from http://127\.0\.0\.1") as caught:
            ReductoHook().get_usage(QUERY)
    assert [text.split(":")[0] for text in logged.retries] == ["Attempt 1 of 3 failed", "Attempt 2 of 3 failed"]
    conceals(caught.value, KEY)


def test_a_host_that_is_not_found(connect: Connect, logged: Any, mocker: Any) -> None:
    mocker.patch("socket.getaddrinfo", side_effect=socket.gaierror(-2, "Name or service not known"))
    connect(host="studio.example", extra={"max_attempts": 2})
    with pytest.raises(ReductoTransportError, match=r"no answer from https://studio\.example"):
        ReductoHook().get_usage(QUERY)
    assert len(logged.retries) == 1


def test_a_connection_that_closes_without_an_answer(listen: Callable[..., Any], connect: Connect, logged: Any) -> None:
    listener = listen(lambda request, proper: [])
    connect(host=listener.url, extra={"max_attempts": ATTEMPTS})
    with pytest.raises(ReductoTransportError):
        ReductoHook().get_usage(QUERY)
    assert (len(listener.requests), len(logged.retries)) == (ATTEMPTS, ATTEMPTS - 1)


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 2x0 OK\r\n\r\n", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"],
    ids=["a bad status", "no HTTP", "a long header"],
)
def test_an_answer_that_is_not_http(
    listen: Callable[..., Any],
    connect: Connect,
    conceals: Callable[..., None],
    head: bytes,
) -> None:
    listener = listen(lambda request, proper: [head])
    connect(host=listener.url, extra={"max_attempts": ATTEMPTS})
    with pytest.raises(ReductoTransportError) as caught:
        ReductoHook().get_usage(QUERY)
    assert len(listener.requests) == ATTEMPTS
    conceals(caught.value, KEY)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(
    simulator: Simulator, connect: Connect, conceals: Callable[..., None], code: int
) -> None:
    with Simulator() as other:
        simulator.faults.add(redirect(f"{other.url}{PATH}", code))
        connect(host=simulator.url)
        with pytest.raises(ReductoResponseError, match=rf"redirects to 127\.0\.0\.1:{other.port} \({code}") as caught:
            ReductoHook().get_usage(QUERY)
        assert other.requests == []
    assert len(simulator.requests) == 1
    conceals(caught.value, KEY)


def test_300_000_rows(simulator: Simulator, connect: Connect) -> None:
    rows = ",".join(
        f'{{"date":"2026-06-0{day}","group":"key-{number:05}","credits":0.1,"requestCount":2}}'
        for day in range(1, 7)
        for number in range(50_000)
    )
    echo = '"orgId":"org_acme","startDate":"2026-06-01","endDate":"2026-06-07","groupBy":"api_key"'
    simulator.faults.add(Reply(200, f'{{{echo},"data":[{rows}]}}'))
    connect(host=simulator.url)
    report = ReductoHook().get_usage(UsageQuery(start=FIRST, end=LAST, group_by="api_key"))
    assert (len(report.rows), report.credits, report.request_count) == (300_000, 30_000, 600_000)


@pytest.mark.parametrize("code", [200, 500])
def test_a_gzip_bomb_is_not_unpacked(
    simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(transport, "MAX_RESPONSE_BYTES", 2**16)
    unpacked = 2**26
    bomb = gzip.compress(b" " * unpacked)
    simulator.faults.add(Reply(code, bomb, {"Content-Encoding": "gzip"}))
    connect(host=simulator.url, extra={"max_attempts": 1})
    tracemalloc.start()
    try:
        with pytest.raises(ReductoResponseError if code == 200 else ReductoServerError):
            ReductoHook().get_usage(QUERY)
        assert tracemalloc.get_traced_memory()[1] < unpacked / 8
    finally:
        tracemalloc.stop()


def test_an_answer_of_exactly_the_limit(
    simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(host=simulator.url)
    length = len(ReductoHook().get_usage(QUERY).body)
    monkeypatch.setattr(transport, "MAX_RESPONSE_BYTES", length)
    assert len(ReductoHook().get_usage(QUERY).body) == length
    monkeypatch.setattr(transport, "MAX_RESPONSE_BYTES", length - 1)
    with pytest.raises(ReductoResponseError, match="longer than"):
        ReductoHook().get_usage(QUERY)


def test_an_endless_error_page(listen: Callable[..., Any], connect: Connect) -> None:
    def page(request: bytes, proper: bytes) -> Iterator[bytes]:
        yield b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n"
        while True:
            yield b"<p>" * 20_000

    listener = listen(page)
    connect(host=listener.url, extra={"max_attempts": 1})
    with pytest.raises(ReductoGatewayError, match="400"):
        ReductoHook().get_usage(QUERY)
    assert len(listener.requests) == 1


def test_a_redirect_to_the_same_host_is_not_followed_either(simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(redirect(PATH))
    connect(host=simulator.url)
    with pytest.raises(ReductoResponseError, match="not followed"):
        ReductoHook().get_usage(QUERY)
    assert len(simulator.requests) == 1


def test_cookies_are_not_sent_back(simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(status(503, headers={"Set-Cookie": "session=1; Path=/"}))
    connect(host=simulator.url)
    ReductoHook().get_usage(QUERY)
    assert ["Cookie" in request.headers for request in simulator.requests] == [False, False]


# How long an attempt may take: each of these answers is proper in the end, but comes too late


def in_the_status_line(head: bytes, body: bytes) -> tuple[bytes, bytes, bytes]:
    return b"HTTP/1.1 200 ", b"O", head.removeprefix(b"HTTP/1.1 200 ") + b"\r\n\r\n" + body


def in_a_header(head: bytes, body: bytes) -> tuple[bytes, bytes, bytes]:
    return head + b"\r\nX-Slow: ", b"x", b"\r\n\r\n" + body


def in_interim_answers(head: bytes, body: bytes) -> tuple[bytes, bytes, bytes]:
    return b"", b"HTTP/1.1 100 Continue\r\n\r\n", head + b"\r\n\r\n" + body


def in_a_chunk_s_size(head: bytes, body: bytes) -> tuple[bytes, bytes, bytes]:
    return chunked(head) + b"%x;" % len(body), b"x", b"\r\n" + body + b"\r\n0\r\n\r\n"


def in_the_trailer(head: bytes, body: bytes) -> tuple[bytes, bytes, bytes]:
    return chunked(head) + b"%x\r\n%s\r\n0\r\n" % (len(body), body), b"X-Slow: x\r\n", b"\r\n"


def in_empty_blocks_of_gzip(head: bytes, body: bytes) -> tuple[bytes, bytes, bytes]:
    packed = gzip.compress(body, mtime=0)
    head = chunked(head).replace(b"Transfer-Encoding: chunked", b"Content-Encoding: gzip")
    return head + packed[:10], b"\x00\x00\x00\xff\xff", packed[10:]


@pytest.mark.parametrize(
    "slow",
    [
        in_the_status_line,
        in_a_header,
        in_interim_answers,
        in_a_chunk_s_size,
        in_the_trailer,
        in_empty_blocks_of_gzip,
    ],
)
@pytest.mark.parametrize("timeout", [10, 0.2])
def test_a_trickle_anywhere_is_bounded(
    listen: Callable[..., Any], connect: Connect, slow: Callable[..., Any], timeout: float
) -> None:
    sent_to_its_end = []

    def answer(request: bytes, proper: bytes) -> Iterator[bytes]:
        before, piece, after = slow(*proper.split(b"\r\n\r\n", 1))
        yield before
        for _ in range(16 if timeout > 1 else 400):
            time.sleep(0.05 if timeout < 1 else 0)
            yield piece
        sent_to_its_end.append(request)
        yield after

    listener = listen(answer)
    connect(host=listener.url, extra={"max_attempts": 1, "timeout": timeout})
    if timeout > 1:  # the answer is a proper one
        assert ReductoHook().get_usage(QUERY).rows == ()
    else:
        with pytest.raises(ReductoTransportError):
            ReductoHook().get_usage(QUERY)
        assert not sent_to_its_end  # by then the hook had given up
    assert len(listener.requests) == 1


def test_the_timeout_is_for_the_whole_attempt(listen: Callable[..., Any], connect: Connect) -> None:
    def answer(request: bytes, proper: bytes) -> Iterator[bytes]:
        head, body = proper.split(b"\r\n\r\n", 1)
        yield head + b"\r\n\r\n"
        for number in body:  # dozens of pieces, none of which is late by itself
            time.sleep(0.3)
            yield bytes([number])

    connect(host=listen(answer).url, extra={"max_attempts": 1, "timeout": 0.45})
    with pytest.raises(ReductoTransportError, match=r"0\.45"):
        ReductoHook().get_usage(QUERY)


# Proxies and certificates


@pytest.mark.parametrize("lower", [True, False], ids=["http_proxy", "HTTP_PROXY"])
def test_the_environment_s_proxy_is_used(
    simulator: Simulator,
    listen: Callable[..., Any],
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    lower: bool,
) -> None:
    proxy = listen()
    monkeypatch.setenv("http_proxy" if lower else "HTTP_PROXY", proxy.url)
    connect(host=simulator.url)
    ReductoHook().get_usage(QUERY)
    assert simulator.requests == []
    assert [text.split(b"?")[0] for text in proxy.requests] == [f"GET {simulator.url}{PATH}".encode()]


def test_a_proxy_without_a_scheme(
    simulator: Simulator, listen: Callable[..., Any], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = listen()
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
    connect(host=simulator.url)
    ReductoHook().get_usage(QUERY)
    assert (len(proxy.requests), simulator.requests) == (1, [])


def test_no_proxy_is_honoured(
    simulator: Simulator, listen: Callable[..., Any], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = listen()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "example.com,127.0.0.1")
    connect(host=simulator.url)
    ReductoHook().get_usage(QUERY)
    assert (proxy.requests, len(simulator.requests)) == ([], 1)


def test_the_connection_s_proxy_comes_first(
    simulator: Simulator, listen: Callable[..., Any], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, other = listen(), listen()
    monkeypatch.setenv("http_proxy", other.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    connect(host=simulator.url, extra={"proxy": proxy.url.replace("//", "//me:pass%40word@")})
    ReductoHook().get_usage(QUERY)
    assert (len(proxy.requests), other.requests, simulator.requests) == (1, [], [])
    assert proxy.headers("Proxy-Authorization") == ["Basic bWU6cGFzc0B3b3Jk"]


def test_a_proxy_of_another_kind_is_not_taken_for_an_http_proxy(
    simulator: Simulator, listen: Callable[..., Any], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = listen()
    monkeypatch.setenv("all_proxy", f"socks5://127.0.0.1:{proxy.port}")
    connect(host=simulator.url, extra={"max_attempts": 1})
    with pytest.raises(ReductoError, match=r"(?i)socks"):
        ReductoHook().get_usage(QUERY)
    assert (proxy.requests, simulator.requests) == ([], [])


@pytest.mark.parametrize("address", ["[bad:1", "127.0.0.1:99999", "127.0.0.1:port"])
def test_a_proxy_that_is_no_url(
    simulator: Simulator,
    connect: Connect,
    conceals: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:proxy-password@{address}")
    connect(host=simulator.url, extra={"max_attempts": 1})
    with pytest.raises(ReductoError) as caught:
        ReductoHook().get_usage(QUERY)
    assert simulator.requests == []
    conceals(caught.value, "proxy-password", KEY)


@pytest.mark.parametrize("where", ["environment", "connection"])
def test_a_proxy_learns_neither_the_key_nor_tells_its_password(
    listen: Callable[..., Any],
    connect: Connect,
    conceals: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    proxy = listen(lambda request, proper: [b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"])
    url = proxy.url.replace("//", "//me:proxy-pass%40word@")
    if where == "environment":
        monkeypatch.setenv("https_proxy", url)
    connect(host="https://studio.example", extra={"max_attempts": 1, "proxy": url if where == "connection" else ""})
    with pytest.raises(ReductoTransportError, match="407") as caught:
        ReductoHook().get_usage(QUERY)
    (request,) = proxy.requests
    assert request.startswith(b"CONNECT studio.example:443 ")
    assert KEY.encode() not in request
    conceals(caught.value, KEY, "proxy-pass", "bWU6cHJveHktcGFzc0B3b3Jk")


def test_an_unknown_certificate_is_refused_before_the_key_is_sent(
    listen: Callable[..., Any], connect: Connect, certificate: Any, logged: Any, conceals: Callable[..., None]
) -> None:
    listener = listen(tls=certificate.tls)
    connect(host=listener.url, extra={"max_attempts": 2})
    with pytest.raises(ReductoTransportError, match=r"(?i)certificate") as caught:
        ReductoHook().get_usage(QUERY)
    assert listener.requests == []
    conceals(caught.value, KEY)


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@pytest.mark.parametrize("trust", ["a bundle", "a folder", "anyone", "as text", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_certificate_that_is_trusted(
    listen: Callable[..., Any],
    connect: Connect,
    certificate: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    trust: str,
) -> None:
    extra: dict[str, Any] = {"max_attempts": 1}
    if trust == "a bundle":
        extra["verify"] = str(certificate.bundle)
    elif trust == "a folder":
        # OpenSSL looks names up by the hash of the issuer.
        import subprocess

        hashed = subprocess.check_output(["openssl", "x509", "-hash", "-noout", "-in", certificate.bundle], text=True)
        (tmp_path / f"{hashed.strip()}.0").write_bytes(certificate.bundle.read_bytes())
        extra["verify"] = str(tmp_path)
    elif trust == "anyone":
        extra["verify"] = False
    elif trust == "as text":
        extra["verify"] = "False"
    else:
        monkeypatch.setenv(trust, str(certificate.bundle))
    listener = listen(tls=certificate.tls)
    connect(host=listener.url, extra=extra)
    ReductoHook().get_usage(QUERY)
    assert listener.headers("Authorization") == [f"Bearer {KEY}"]


def test_verify_comes_before_the_environment(
    listen: Callable[..., Any],
    connect: Connect,
    certificate: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    connect(host=listen(tls=certificate.tls).url, extra={"verify": str(certificate.bundle)})
    ReductoHook().get_usage(QUERY)


@pytest.mark.parametrize("bundle", ["absent", "no certificate"])
@pytest.mark.parametrize("where", ["environment", "connection"])
def test_a_bundle_that_can_t_be_used(
    listen: Callable[..., Any],
    connect: Connect,
    certificate: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    bundle: str,
    where: str,
) -> None:
    path = tmp_path / "bundle.pem"
    if bundle == "no certificate":
        path.write_text("nothing of the kind")
    if where == "environment":
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    listener = listen(tls=certificate.tls)
    connect(host=listener.url, extra={"max_attempts": 1, "verify": str(path) if where == "connection" else None})
    with pytest.raises(ReductoError):
        ReductoHook().get_usage(QUERY)
    assert listener.requests == []


def test_sessions_share_the_certificates_of_a_bundle_until_it_is_replaced(
    connect: Connect, certificate: Any, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(certificate.bundle.read_bytes())
    connect(host="https://studio.example", extra={"verify": str(bundle)})

    async def context_of(hook: ReductoHook) -> ssl.SSLContext:
        async with hook:
            session = await hook._sessions[asyncio.get_running_loop()].open(hook.settings)
            context = session.connector._ssl  # type: ignore[union-attr]
            assert isinstance(context, ssl.SSLContext)
            return context

    first = asyncio.run(context_of(ReductoHook()))
    assert asyncio.run(context_of(ReductoHook())) is first
    bundle.write_bytes(certificate.bundle.read_bytes() * 2)
    assert asyncio.run(context_of(ReductoHook())) is not first


# Hosts


@pytest.mark.parametrize("prefix", ["/reducto", "/pä th", "/a%20b"])
def test_a_path_in_the_host(listen: Callable[..., Any], connect: Connect, prefix: str) -> None:
    listener = listen()
    connect(host=f"{listener.url}{prefix}/")
    ReductoHook().get_usage(QUERY)
    sent = {"/reducto": "/reducto", "/pä th": "/p%C3%A4%20th", "/a%20b": "/a%20b"}[prefix]
    assert [text.split(b"?")[0] for text in listener.requests] == [f"GET {sent}{PATH}".encode()]


# What is never given away


def test_netrc_does_not_replace_the_key(
    simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\ndefault login me password mine\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    connect(host=simulator.url)
    ReductoHook().get_usage(QUERY)
    assert [request.headers.getall("Authorization") for request in simulator.requests] == [[f"Bearer {KEY}"]]


# Cancellations that aiohttp loses


def test_a_request_that_is_cancelled_closes_its_session(
    simulator: Simulator, connect: Connect, all_is_closed: Callable[[], None]
) -> None:
    arrived = threading.Event()
    simulator.faults.add(Noted(lambda _: arrived.set(), Stall(30)))
    connect(host=simulator.url)

    async def cancel() -> None:
        task = asyncio.create_task(ReductoHook().aget_usage(QUERY))
        assert await asyncio.to_thread(arrived.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    all_is_closed()


def test_a_request_that_is_cancelled_as_its_time_is_over_ends(simulator: Simulator, connect: Connect) -> None:
    """Both in one turn of the loop, as on a busy machine. A cancellation that is lost is not said again."""
    arrived = threading.Event()
    simulator.faults.add(Noted(lambda _: arrived.set(), Stall(30)), times=None)
    connect(host=simulator.url, extra={"timeout": 1, "max_attempts": 1})

    async def cancel() -> asyncio.Task[Any]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        task = asyncio.create_task(ReductoHook().aget_usage(QUERY))
        assert await asyncio.to_thread(arrived.wait, 10)
        await asyncio.sleep(0.3)

        async def cancel_first() -> None:
            await asyncio.sleep(begun + 0.9 - loop.time())
            task.cancel()

        canceller = asyncio.create_task(cancel_first())
        loop.call_at(begun + 0.8, lambda: time.sleep(0.8))  # and both timers are due
        await asyncio.wait([task, canceller])
        return task

    assert asyncio.run(cancel()).cancelled()


def test_a_request_over_tls_closes_its_session(
    listen: Callable[..., Any], connect: Connect, certificate: Any, all_is_closed: Callable[[], None]
) -> None:
    connect(host=listen(tls=certificate.tls).url, extra={"verify": str(certificate.bundle)})
    asyncio.run(ReductoHook().aget_usage(QUERY))
    all_is_closed()


def test_a_request_that_is_cancelled_as_one_address_wins_over_another_ends(
    simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch, all_is_closed: Callable[[], None]
) -> None:
    """What aiohttp connects by then waits for the loser, and loses the cancellation."""
    simulator.faults.add(Stall(30), times=None)
    connect(host=simulator.url.replace("127.0.0.1", "localhost"), extra={"max_attempts": 1})

    def two_addresses(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, port)) for address in ("127.0.0.1", "127.0.0.2")]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)

    async def cancelled() -> bool:
        loop = asyncio.get_running_loop()
        sock_connect = loop.sock_connect

        async def slowly(sock: socket.socket, address: Any) -> None:
            if address[0] == "127.0.0.1":
                await asyncio.sleep(0.5)  # the other one is tried meanwhile
                return await sock_connect(sock, address)
            try:
                await asyncio.sleep(30)
            finally:
                task.cancel()

        loop.sock_connect = slowly  # type: ignore[method-assign,assignment]
        task = asyncio.create_task(ReductoHook().aget_usage(QUERY))
        await asyncio.wait([task], timeout=10)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return task.cancelled()

    assert asyncio.run(cancelled())
    all_is_closed()


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_request_that_loses_a_cancellation_is_cancelled_again(cancelled: bool) -> None:
    async def loses_one() -> Any:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def ends() -> None:
        task = asyncio.create_task(transport.within(30 if cancelled else 0.1, loses_one()))
        await asyncio.sleep(0.1)
        if cancelled:
            task.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else TimeoutError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(ends())


# A resolver that hangs, which no thread can be made to stop


class Hanging:
    """Looks names up without end, until the test is over."""

    def __init__(self) -> None:
        self.called, self.may_end = threading.Event(), threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.called.set()
        self.may_end.wait(60)
        raise socket.gaierror(-3, "Temporary failure in name resolution")


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    hanging = Hanging()
    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    yield hanging
    assert not hanging.may_end.is_set(), "nobody has waited for it"
    hanging.may_end.set()


@pytest.mark.parametrize("way", ["get_usage", "aget_usage", "through a proxy"])
def test_a_resolver_that_hangs_holds_no_request_longer_than_its_time(
    hanging: Hanging, connect: Connect, way: str
) -> None:
    extra = {"timeout": 0.2, "max_attempts": 2}
    connect(
        host="https://studio.example", extra={**extra, **({"proxy": "http://proxy.example"} if "proxy" in way else {})}
    )
    hook = ReductoHook()
    with pytest.raises(ReductoTransportError, match=r"no whole answer within 0\.2 s"):
        asyncio.run(hook.aget_usage(QUERY)) if way == "aget_usage" else hook.get_usage(QUERY)
    assert hanging.called.is_set()


@pytest.mark.parametrize("how", ["on_kill", "an exception"])
def test_a_task_that_is_killed_does_not_wait_for_a_resolver_that_hangs(
    hanging: Hanging, connect: Connect, how: str
) -> None:
    class Killed(BaseException):
        pass

    def on_signal(*_: Any) -> None:
        if how != "on_kill":
            raise Killed
        ReductoUsageExportOperator(task_id="export").on_kill()

    def kill_when_called() -> None:
        hanging.called.wait(60)
        os.kill(os.getpid(), signal.SIGALRM)

    connect(host="https://studio.example")
    before = signal.signal(signal.SIGALRM, on_signal)
    try:
        threading.Thread(target=kill_when_called).start()
        with pytest.raises(asyncio.CancelledError if how == "on_kill" else Killed):
            ReductoHook().get_usage(QUERY)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_the_process_ends_while_a_resolver_hangs() -> None:
    script = """
import asyncio, datetime as dt, os, socket, time
socket.getaddrinfo = lambda *args, **kwargs: time.sleep(3600)
from reducto_provider.hooks.reducto import ReductoHook
from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.usage.query import UsageQuery

query = UsageQuery(start=dt.date(2026, 6, 1), end=dt.date(2026, 6, 1), org_id="org_acme")
for get_usage in (ReductoHook().get_usage, lambda query: asyncio.run(ReductoHook().aget_usage(query))):
    try:
        get_usage(query)
    except Exception as error:
        print(type(error).__name__)
"""
    connection = {"conn_type": "reducto", "password": KEY, "extra": {"timeout": 0.2, "max_attempts": 1}}
    environment = {**os.environ, "AIRFLOW_CONN_REDUCTO_DEFAULT": json.dumps(connection)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines().count("ReductoTransportError") == 2, done.stderr


def test_names_are_looked_up_as_before(simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of both kinds, of which the first refuses."""
    connected = []

    def both(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        connected.append((host, port))
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    connect(host=f"http://studio.localhost:{simulator.port}", extra={"max_attempts": 1})
    assert ReductoHook().get_usage(QUERY).rows
    assert connected == [("studio.localhost", simulator.port)]
    assert simulator.requests[0].headers["Host"] == f"studio.localhost:{simulator.port}"

"""The hook on loopback: what it sends, what it makes of every answer, and what it never gives away."""

from __future__ import annotations

import asyncio
import copy
import gc
import gzip
import json
import pickle
import random
import socket
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowNotFoundException

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
from reducto_provider.hooks import reducto
from reducto_provider.hooks.reducto import ReductoHook
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport
from simulator import (
    Altered,
    CutShort,
    Endless,
    Fault,
    Gzip,
    Reply,
    Reset,
    Simulator,
    Stall,
    Trickle,
    html,
    redirect,
    status,
)

KEY = "sim-key-all"
PATH = "/api/v1/usage/export"
FIRST, LAST = date(2026, 6, 1), date(2026, 6, 7)
QUESTION = UsageQuery(start=FIRST, end=LAST, org_id="org_acme")
ATTEMPTS = 3

Ask = Callable[[ReductoHook, UsageQuery], UsageReport]
Connect = Callable[..., str]


def figures(report: UsageReport) -> list[tuple[Any, ...]]:
    return [(row.date, row.group, row.credits, row.request_count) for row in report.rows]


def truth(simulator: Simulator, query: UsageQuery) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in simulator.truth(query.org_id or "org_acme", query.start, query.end, query.group_by)]


@dataclass(frozen=True)
class Noted(Fault):
    """Notes something about each request, then answers properly or with another fault."""

    note: Callable[[Any], None]
    fault: Fault | None = None

    async def play(self, request: Any, answer: Callable[[], Awaitable[Any]]) -> Any:
        self.note(request)
        return await (self.fault.play(request, answer) if self.fault else answer())


# What is asked


@pytest.mark.parametrize(
    ("asked", "sent"),
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
def test_the_query_string(ask: Ask, simulator: Simulator, connect: Connect, asked: dict[str, Any], sent: str) -> None:
    connect(host=simulator.url)
    query = UsageQuery(**{"start": FIRST, "end": LAST, **asked})
    report = ask(ReductoHook(), query)
    (request,) = simulator.requests
    assert (request.method, request.path, request.query_string) == ("GET", PATH, sent)
    assert (report.org_id, report.start, report.end, report.group_by) == ("org_acme", FIRST, query.end, query.group_by)


def test_an_odd_organization_is_sent_as_it_is(ask: Ask, simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url)
    with pytest.raises(ReductoPermissionError, match=r"'org a/b&orgId=c\+é'"):
        ask(ReductoHook(), UsageQuery(start=FIRST, end=FIRST, org_id="org a/b&orgId=c+é"))
    assert simulator.requests[0].query_string.endswith("&orgId=org%20a%2Fb%26orgId%3Dc%2B%C3%A9")


def test_the_connection_s_organization_fills_in(ask: Ask, simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url, extra={"org_id": "org_globex"})
    hook = ReductoHook()
    assert ask(hook, UsageQuery(start=FIRST, end=LAST)).org_id == "org_globex"
    assert ask(hook, QUESTION).org_id == "org_acme"


def test_the_headers(ask: Ask, simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url)
    ask(ReductoHook(), QUESTION)
    (request,) = simulator.requests
    assert request.headers.getall("Authorization") == [f"Bearer {KEY}"]
    assert request.headers["User-Agent"].startswith("airflow-provider-reducto/")
    assert set(request.headers) <= {"Host", "Authorization", "User-Agent", "Accept", "Accept-Encoding", "Connection"}


# What comes of it


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The next requests meet these faults, `times` each; with three attempts, this comes of it."""

    faults: tuple[Fault, ...]
    times: int | None = 1
    error: type[ReductoError] | None = None
    requests: int = 1
    says: tuple[str, ...] = ()
    key: str = KEY
    query: UsageQuery = field(default=QUESTION)
    timeout: float = 10
    limit: int | None = None


def contract(*faults: Fault, says: tuple[str, ...] = (), **options: Any) -> Scenario:
    """An answer that is never taken for data, nor asked for again."""
    return Scenario(faults=faults, error=ReductoResponseError, says=says, **options)


def refused(code: int, *says: str, error: type[ReductoError] = ReductoRequestError) -> Scenario:
    """A status that asking again can't change."""
    return Scenario(faults=(status(code),), error=error, says=(str(code), *says))


def passing(fault: Fault, error: type[ReductoError] = ReductoServerError, **options: Any) -> dict[str, Scenario]:
    """A fault that may pass: survived when it does, and its error when it never does."""
    says = options.pop("says", ())
    return {
        "once": Scenario(faults=(fault,), requests=2, **options),
        "twice": Scenario(faults=(fault,), times=2, requests=3, **options),
        "always": Scenario(faults=(fault,), times=None, error=error, says=says, requests=ATTEMPTS, **options),
    }


NO_ANSWER = {"error": ReductoTransportError, "says": ("no answer from http://127.0.0.1",)}
TIMED_OUT = {"error": ReductoTransportError, "says": ("no answer from http://127.0.0.1", "0.2"), "timeout": 0.2}
DEEP = b"[" * 2000

SCENARIOS = {
    "proper": Scenario(faults=()),
    "401": Scenario(
        faults=(),
        key="sim-key-wrong",
        error=ReductoAuthenticationError,
        says=("'reducto_default'", "personal key", "Reducto Studio", "REDUCTO_API_KEY", "platform.reducto.ai"),
    ),
    "403": Scenario(
        faults=(),
        key="sim-key-globex",
        error=ReductoPermissionError,
        says=("'org_acme'", "'reducto_default'", "member"),
    ),
    "400": refused(400, "startDate=2026-06-01", "groupBy=product"),
    "404": refused(404),
    "418": refused(418),
    "an error deeply nested, 400": Scenario(faults=(Reply(400, DEEP),), error=ReductoRequestError),
    "an error that shows the key": Scenario(
        faults=(Reply(400, json.dumps({"error": f"the key {KEY} is odd"})),),
        error=ReductoRequestError,
        says=("the key *** is odd",),
    ),
    "an error that is long": Scenario(
        faults=(Reply(400, json.dumps({"error": "x" * 1900})),), error=ReductoRequestError, says=("x" * 200,)
    ),
    **{
        f"{code}, {how}": scenario
        for code in (500, 502, 503, 504, 520)
        for how, scenario in passing(status(code), says=(str(code),)).items()
    },
    **{
        f"429, {how}": scenario
        for how, scenario in passing(
            status(429), ReductoRateLimitError, says=("429", "requests_per_second", "'reducto_default'")
        ).items()
    },
    **{f"an error deeply nested, {how}": scenario for how, scenario in passing(Reply(503, DEEP)).items()},
    **{
        f"HTML, {code}, {how}": scenario
        for code in (200, 302, 401, 403, 404, 407, 429, 502)
        for how, scenario in passing(
            html(code), ReductoGatewayError, says=("an HTML page came with status", str(code), "proxy", "login")
        ).items()
    },
    **{
        f"{code}, {how}": scenario
        for code in (408, 425)
        for how, scenario in passing(status(code), says=(str(code),)).items()
    },
    **{
        f"407, {how}": scenario
        for how, scenario in passing(status(407), ReductoGatewayError, says=("407", "'proxy'")).items()
    },
    **{f"reset, {how}": scenario for how, scenario in passing(Reset(), **NO_ANSWER).items()},
    **{f"cut short, {how}": scenario for how, scenario in passing(CutShort(), **NO_ANSWER).items()},
    **{
        f"cut short in a chunk, {how}": scenario
        for how, scenario in passing(CutShort(chunked=True), **NO_ANSWER).items()
    },
    "one fault after another": Scenario(faults=(Reset(), status(429)), requests=3),
    "a passing fault, then a lasting one": Scenario(
        faults=(status(503), status(400)), error=ReductoRequestError, requests=2
    ),
    "a stall in the headers": passing(Stall(30), **TIMED_OUT)["always"],
    "a stall in the body": passing(Stall(30, "body"), **TIMED_OUT)["always"],
    "a stall, once": passing(Stall(30), **TIMED_OUT)["once"],
    "a trickle": passing(Trickle(0.05), **TIMED_OUT)["always"],
    "HTML in disguise": passing(
        Reply(401, b"\xef\xbb\xbf \n<!DOCTYPE html>", {"Content-Type": "application/json"}), ReductoGatewayError
    )["always"],
    "HTML in some other encoding": passing(
        Reply(200, "<html>".encode("utf-16"), {"Content-Type": "text/html; charset=utf-16"}), ReductoGatewayError
    )["always"],
    "HTML that says what it is": passing(
        Reply(403, f"<title>\n No {KEY} here </title>", {"Content-Type": "text/html"}),
        ReductoGatewayError,
        says=("an HTML page (No *** here) came with status 403",),
    )["always"],
    "HTML and a redirect": passing(
        Reply(302, "<html>moved</html>", {"Location": "https://login.example/?from=usage"}),
        ReductoGatewayError,
        says=("an HTML page and a redirect to login.example came with status 302",),
    )["always"],
    "HTML packed by gzip": passing(
        Reply(403, gzip.compress(b"<html>"), {"Content-Encoding": "gzip"}), ReductoGatewayError
    )["always"],
    "an empty 401": Scenario(faults=(Reply(401),), error=ReductoAuthenticationError),
    "an empty 401, labelled HTML": Scenario(
        faults=(Reply(401, headers={"Content-Type": "text/html"}),), error=ReductoAuthenticationError
    ),
    "a JSON 401, labelled HTML": Scenario(
        faults=(Reply(401, '{"error": "no"}', {"Content-Type": "text/html"}),),
        error=ReductoAuthenticationError,
        says=("(401: no)",),
    ),
    "an empty 403": Scenario(faults=(Reply(403),), error=ReductoPermissionError),
    "204": contract(Reply(204), says=("204",)),
    "206": contract(Reply(206, "{}"), says=("206",)),
    "304": contract(Reply(304), says=("304",)),
    "another encoding": contract(Reply(200, "{}", {"Content-Encoding": "br"}), says=("packed as br",)),
    "a redirect to nowhere": contract(redirect("http://[oops/"), says=("302", "'reducto_default'")),
    "a redirect that shows the key": contract(redirect(f"http://{KEY}.example/{KEY}"), says=("302", "redirects")),
    "wrong organization": contract(Altered({"orgId": "org_other"}), says=("orgId", "'org_other'", "'org_acme'")),
    "wrong first day": contract(Altered({"startDate": "2026-06-02"}), says=("startDate", "2026-06-02", "2026-06-01")),
    "wrong last day": contract(Altered({"endDate": "2026-06-06"}), says=("endDate", "2026-06-06", "2026-06-07")),
    "wrong dimension": contract(Altered({"groupBy": "feature"}), says=("groupBy", "'feature'", "'product'")),
    "an echo that shows the key": contract(Altered({"orgId": KEY}), says=("orgId", "***")),
    "no organization in the echo": contract(
        Altered({"orgId": ""}), says=("names no organization",), query=UsageQuery(start=FIRST, end=LAST)
    ),
    "a day outside": contract(
        Altered({"data": [{"date": "2026-06-08", "group": "parse", "credits": 1, "requestCount": 1}]}),
        says=("2026-06-08", "2026-06-07"),
    ),
    # Pythons differ in how deep is too deep.
    "nested without end": contract(Reply(200, b'{"a":' * 3000), says=("can't be used",)),
    "an empty body": contract(Reply(200), says=("not JSON",)),
    "an endless body": contract(Endless(), says=("longer than 1 MiB", "fewer days"), limit=2**20),
    "gzip": Scenario(faults=(Gzip(),)),
    "gzip undeclared": contract(Gzip(declared=False), says=("not JSON",)),
    "declared gzip that is none": passing(
        Reply(200, "{}", {"Content-Encoding": "gzip"}), **NO_ANSWER
    )["always"],
}  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_scenario(
    ask: Ask,
    simulator: Simulator,
    connect: Connect,
    logged: Any,
    conceals: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    scenario: Scenario,
) -> None:
    if scenario.limit:
        monkeypatch.setattr(reducto, "MAX_RESPONSE_BYTES", scenario.limit)
    simulator.faults.add(*scenario.faults, times=scenario.times)
    connect(host=simulator.url, password=scenario.key, extra={"max_attempts": ATTEMPTS, "timeout": scenario.timeout})
    error = None
    if scenario.error is None:
        assert figures(ask(ReductoHook(), scenario.query)) == truth(simulator, scenario.query)
    else:
        with pytest.raises(ReductoError) as caught:
            ask(ReductoHook(), scenario.query)
        error = caught.value
        assert type(error) is scenario.error
        assert [words for words in scenario.says if words not in str(error)] == []
        assert len(str(error)) < 700
    assert len(simulator.requests) == scenario.requests
    assert len(logged.retries) == scenario.requests - 1
    conceals(error, scenario.key)


REASONS = {
    "error": ({"error": "too old"}, "too old"),
    "message": ({"message": "too old"}, "too old"),
    "detail": ({"detail": "too old"}, "too old"),
    "an error with a message": ({"error": {"message": "too old", "code": 7}}, "too old"),
    "a detail with several": (
        {"detail": [{"loc": ["query", "startDate"], "msg": "too old", "type": "x"}, {"msg": "too long"}]},
        "too old; too long",
    ),
    "errors with details": ({"errors": [{"title": "Bad", "detail": "too old"}]}, "too old; Bad"),
    "a message of several": (
        {"statusCode": 400, "message": ["too old", "too long"], "error": "Bad"},
        "Bad; too old; too long",
    ),
    "the same twice": ({"error": "too old", "message": "too old"}, "too old"),
    "a list": ([{"msg": "too old"}], "too old"),
    "a text": ("too old", "too old"),
    "deep inside": ({"error": {"errors": [{"detail": {"message": "too old"}}]}}, "too old"),
    "an error beside it that is none": ({"error": True, "message": "too old"}, "too old"),
    "on several lines": ({"error": " too\n\told\x00\x1b "}, "too old"),
}


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/problem+json"])
@pytest.mark.parametrize("reason", REASONS)
def test_the_reason_of_the_service_is_told(
    ask: Ask, simulator: Simulator, connect: Connect, reason: str, kind: str
) -> None:
    body, told = REASONS[reason]
    simulator.faults.add(Reply(422, json.dumps(body), {"Content-Type": kind}))
    connect(host=simulator.url)
    with pytest.raises(ReductoRequestError, match=rf"^Reducto refused the request \(422: {told}\): startDate="):
        ask(ReductoHook(), QUESTION)


@pytest.mark.parametrize("kind", ["text/plain", "text/plain; charset=utf-8", None])
def test_a_reason_as_text_is_told(listen: Callable[..., Any], ask: Ask, connect: Connect, kind: str | None) -> None:
    head = f"Content-Type: {kind}\r\n" if kind else ""
    listener = listen(
        lambda request, proper: [
            f"HTTP/1.1 400 No\r\n{head}Connection: close\r\n\r\nat most\n365 {KEY}\xfc".encode("latin1")
        ]
    )
    connect(host=listener.url)
    with pytest.raises(ReductoRequestError, match=r"\(400: at most 365 \*\*\*\ufffd\)"):
        ask(ReductoHook(), QUESTION)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("{}", "application/json"),
        ("[]", "application/json"),
        ("7", "text/plain"),
        ('{"error": {"code": 7, "token": "t-1"}}', "application/json"),
        ('{"error": ', "application/json"),
        ("\x00\x01", "application/octet-stream"),
        ("not for people", "application/octet-stream"),
    ],
)
def test_what_is_no_reason_is_not_told(ask: Ask, simulator: Simulator, connect: Connect, body: str, kind: str) -> None:
    simulator.faults.add(Reply(400, body, {"Content-Type": kind}))
    connect(host=simulator.url)
    with pytest.raises(ReductoRequestError, match=r"request \(400\): "):
        ask(ReductoHook(), QUESTION)


def test_a_reason_is_short_and_without_secrets(
    ask: Ask, simulator: Simulator, connect: Connect, conceals: Callable[..., None]
) -> None:
    around = ["x" * 190, f"{KEY} https://me:pass-1@host/", "y" * 60_000]
    simulator.faults.add(Reply(400, json.dumps({"detail": [{"msg": text, "input": "z-1"} for text in around]})))
    connect(host=simulator.url)
    with pytest.raises(ReductoRequestError, match=r"\(400: x{190}; \*\*\* ht") as caught:
        ask(ReductoHook(), QUESTION)
    assert len(str(caught.value)) < 400
    conceals(caught.value, KEY, "pass-1", "z-1")


def test_html_that_says_when_to_come_back(ask: Ask, simulator: Simulator, connect: Connect, clock: Any) -> None:
    page = {"Content-Type": "text/html", "Retry-After": "70"}
    simulator.faults.add(Reply(403, "<html>Maintenance</html>", page))
    connect(host=simulator.url)
    assert ask(ReductoHook(), QUESTION).rows
    assert [70 <= wait <= 71 for wait in clock.waits] == [True]


def test_html_is_no_refusal_of_the_key(ask: Ask, simulator: Simulator, connect: Connect, logged: Any) -> None:
    simulator.faults.add(html(401))
    connect(host=simulator.url)
    hook = ReductoHook()
    _ = hook.settings
    connect(host="http://127.0.0.1:1")
    assert ask(hook, QUESTION).rows


# How answers are packed

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "two members": lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:]),
    "zeros at the end": lambda body: gzip.compress(body) + bytes(600),
    "zeros between": lambda body: gzip.compress(body[:9]) + bytes(3) + gzip.compress(body[9:]) + bytes(1),
    "an empty member": lambda body: gzip.compress(b"") + gzip.compress(body) + gzip.compress(b""),
    "thousands of members": lambda body: b"".join(gzip.compress(body[at : at + 1]) for at in range(len(body))),
    "hardly smaller": lambda body: gzip.compress(body, 0),
    "as much as one piece": lambda body: gzip.compress(body + b" " * (reducto._CHUNK_BYTES - len(body))),
    "as much as two pieces": lambda body: gzip.compress(body + b" " * (2 * reducto._CHUNK_BYTES - len(body))),
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
        yield f"HTTP/1.1 200 OK\r\nContent-Encoding: {name}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for at in range(0, len(body), piece):
            yield body[at : at + piece]

    return answer


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "GZip"])
@pytest.mark.parametrize("piece", [2**20, 7])
@pytest.mark.parametrize("how", PACKED)
def test_gzip(ask: Ask, listen: Callable[..., Any], connect: Connect, how: str, piece: int, name: str) -> None:
    connect(host=listen(packed(PACKED[how], name, piece)).url, extra={"max_attempts": 1})
    assert ask(ReductoHook(), QUESTION).rows == ()


@pytest.mark.parametrize("how", BROKEN)
def test_gzip_that_is_broken(ask: Ask, listen: Callable[..., Any], connect: Connect, how: str) -> None:
    listener = listen(packed(BROKEN[how], "gzip", 2**20))
    connect(host=listener.url, extra={"max_attempts": 2})
    with pytest.raises(ReductoTransportError, match="no answer from"):
        ask(ReductoHook(), QUESTION)
    assert len(listener.requests) == 2


# What comes before the body


@pytest.mark.parametrize("length", [9_000, 65_000])
def test_a_long_header(ask: Ask, listen: Callable[..., Any], connect: Connect, length: int) -> None:
    more = b"\r\nContent-Security-Policy: " + b"a" * length + b"\r\n\r\n"
    connect(host=listen(lambda request, proper: [proper.replace(b"\r\n\r\n", more)]).url, extra={"max_attempts": 1})
    assert ask(ReductoHook(), QUESTION).rows == ()


RAW = {
    "a header that is too long": b"HTTP/1.1 200 OK\r\nX-Long: RAW" + b"x" * 70_000 + b"RAW\r\n\r\n",
    "a name that is too long": b"HTTP/1.1 200 OK\r\nRAW" + b"x" * 70_000 + b": RAW\r\n\r\n",
    "a status line that is too long": b"HTTP/1.1 200 RAW" + b"x" * 70_000 + b"RAW\r\n\r\n",
    "a bad status line": b"HTTP/1.1 2x0 RAW\r\n\r\n",
    "another protocol": b"RAW-2.0-OpenSSH\r\n",
    "a bad header": b"HTTP/1.1 200 OK\r\nX-Raw RAW\r\n\r\n",
    "a NUL in a header": b"HTTP/1.1 200 OK\r\nX-Raw: RAW\0RAW\r\n\r\n",
    "headers that are cut short": b"HTTP/1.1 200 OK\r\nX-Raw: RAW\r\nX-Raw-2: RAW",
    "a bad length": b"HTTP/1.1 200 OK\r\nContent-Length: RAW\r\n\r\n",
    "a bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nRAW\r\n",
    "a bad trailer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nRAW RAW\r\n\r\n",
}


@pytest.mark.parametrize("how", RAW)
def test_raw_bytes_are_not_shown(
    listen: Callable[..., Any], connect: Connect, conceals: Callable[..., None], how: str
) -> None:
    connect(host=listen(lambda request, proper: [RAW[how]]).url, extra={"max_attempts": 2})
    with pytest.raises(ReductoError) as caught:
        asyncio.run(ReductoHook().aget_usage(QUESTION))
    assert len(str(caught.value)) < 200
    conceals(caught.value, "RAW", "xxxx")


@pytest.mark.parametrize("where", ["headers", "body"])
def test_the_sockets_own_time_limit_says_the_same(
    simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch, where: Literal["headers", "body"]
) -> None:
    within = reducto._call_within
    monkeypatch.setattr(reducto, "_call_within", lambda seconds, function: within(seconds + 30, function))
    simulator.faults.add(Stall(30, where))
    connect(host=simulator.url, extra={"max_attempts": 1, "timeout": 0.2})
    with pytest.raises(ReductoTransportError, match=r"no whole answer within 0\.2 s"):
        ReductoHook().get_usage(QUESTION)


def test_a_403_without_an_organization_names_none(ask: Ask, simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(status(403))
    connect(host=simulator.url)
    with pytest.raises(ReductoPermissionError) as caught:
        ask(ReductoHook(), UsageQuery(start=FIRST, end=LAST))
    assert "None" not in str(caught.value)


def test_refused_connections(ask: Ask, connect: Connect, logged: Any, conceals: Callable[..., None]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and doesn't listen
        connect(host=f"http://127.0.0.1:{taken.getsockname()[1]}", extra={"max_attempts": ATTEMPTS})
        with pytest.raises(ReductoTransportError, match=r"no answer from http://127\.0\.0\.1") as caught:
            ask(ReductoHook(), QUESTION)
    assert [text.split(":")[0] for text in logged.retries] == ["Attempt 1 of 3 failed", "Attempt 2 of 3 failed"]
    conceals(caught.value, KEY)


def test_a_host_that_is_not_found(ask: Ask, connect: Connect, logged: Any, mocker: Any) -> None:
    mocker.patch("socket.getaddrinfo", side_effect=socket.gaierror(-2, "Name or service not known"))
    connect(host="studio.example", extra={"max_attempts": 2})
    with pytest.raises(ReductoTransportError, match=r"no answer from https://studio\.example"):
        ask(ReductoHook(), QUESTION)
    assert len(logged.retries) == 1


def test_a_connection_that_closes_without_an_answer(
    ask: Ask, listen: Callable[..., Any], connect: Connect, logged: Any
) -> None:
    listener = listen(lambda request, proper: [])
    connect(host=listener.url, extra={"max_attempts": ATTEMPTS})
    with pytest.raises(ReductoTransportError):
        ask(ReductoHook(), QUESTION)
    assert (len(listener.requests), len(logged.retries)) == (ATTEMPTS, ATTEMPTS - 1)


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 2x0 OK\r\n\r\n", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"],
    ids=["a bad status", "no HTTP", "a long header"],
)
def test_an_answer_that_is_not_http(
    ask: Ask,
    listen: Callable[..., Any],
    connect: Connect,
    conceals: Callable[..., None],
    head: bytes,
) -> None:
    listener = listen(lambda request, proper: [head])
    connect(host=listener.url, extra={"max_attempts": ATTEMPTS})
    with pytest.raises(ReductoTransportError) as caught:
        ask(ReductoHook(), QUESTION)
    assert len(listener.requests) == ATTEMPTS
    conceals(caught.value, KEY)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(
    ask: Ask, simulator: Simulator, connect: Connect, conceals: Callable[..., None], code: int
) -> None:
    with Simulator() as other:
        simulator.faults.add(redirect(f"{other.url}{PATH}", code))
        connect(host=simulator.url)
        with pytest.raises(ReductoResponseError, match=rf"redirects to 127\.0\.0\.1:{other.port} \({code}") as caught:
            ask(ReductoHook(), QUESTION)
        assert other.requests == []
    assert len(simulator.requests) == 1
    conceals(caught.value, KEY)


def test_a_redirect_to_the_same_host_is_not_followed_either(ask: Ask, simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(redirect(PATH))
    connect(host=simulator.url)
    with pytest.raises(ReductoResponseError, match="not followed"):
        ask(ReductoHook(), QUESTION)
    assert len(simulator.requests) == 1


def test_cookies_are_not_sent_back(ask: Ask, simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(status(503, headers={"Set-Cookie": "session=1; Path=/"}))
    connect(host=simulator.url)
    ask(ReductoHook(), QUESTION)
    assert ["Cookie" in request.headers for request in simulator.requests] == [False, False]


def test_300_000_rows(ask: Ask, simulator: Simulator, connect: Connect) -> None:
    rows = ",".join(
        f'{{"date":"2026-06-0{day}","group":"key-{number:05}","credits":0.1,"requestCount":2}}'
        for day in range(1, 7)
        for number in range(50_000)
    )
    echo = '"orgId":"org_acme","startDate":"2026-06-01","endDate":"2026-06-07","groupBy":"api_key"'
    simulator.faults.add(Reply(200, f'{{{echo},"data":[{rows}]}}'))
    connect(host=simulator.url)
    report = ask(ReductoHook(), UsageQuery(start=FIRST, end=LAST, group_by="api_key"))
    assert (len(report.rows), report.credits, report.request_count) == (300_000, 30_000, 600_000)


@pytest.mark.parametrize("code", [200, 500])
def test_a_gzip_bomb_is_not_unpacked(
    ask: Ask, simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(reducto, "MAX_RESPONSE_BYTES", 2**16)
    unpacked = 2**26
    bomb = gzip.compress(b" " * unpacked)
    simulator.faults.add(Reply(code, bomb, {"Content-Encoding": "gzip"}))
    connect(host=simulator.url, extra={"max_attempts": 1})
    tracemalloc.start()
    try:
        with pytest.raises(ReductoResponseError if code == 200 else ReductoServerError):
            ask(ReductoHook(), QUESTION)
        assert tracemalloc.get_traced_memory()[1] < unpacked / 8
    finally:
        tracemalloc.stop()


def test_an_answer_of_exactly_the_limit(
    ask: Ask, simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(host=simulator.url)
    length = len(ask(ReductoHook(), QUESTION).body)
    monkeypatch.setattr(reducto, "MAX_RESPONSE_BYTES", length)
    assert len(ask(ReductoHook(), QUESTION).body) == length
    monkeypatch.setattr(reducto, "MAX_RESPONSE_BYTES", length - 1)
    with pytest.raises(ReductoResponseError, match="longer than"):
        ask(ReductoHook(), QUESTION)


def test_an_endless_error_page(ask: Ask, listen: Callable[..., Any], connect: Connect) -> None:
    def page(request: bytes, proper: bytes) -> Iterator[bytes]:
        yield b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n"
        while True:
            yield b"<p>" * 20_000

    listener = listen(page)
    connect(host=listener.url, extra={"max_attempts": 1})
    with pytest.raises(ReductoGatewayError, match="400"):
        ask(ReductoHook(), QUESTION)
    assert len(listener.requests) == 1


# How long an attempt may take: each of these answers is proper in the end, but comes too late


def in_the_status_line(head: bytes, body: bytes) -> tuple[bytes, bytes, bytes]:
    return b"HTTP/1.1 200 ", b"O", head.removeprefix(b"HTTP/1.1 200 ") + b"\r\n\r\n" + body


def in_a_header(head: bytes, body: bytes) -> tuple[bytes, bytes, bytes]:
    return head + b"\r\nX-Slow: ", b"x", b"\r\n\r\n" + body


def in_interim_answers(head: bytes, body: bytes) -> tuple[bytes, bytes, bytes]:
    return b"", b"HTTP/1.1 100 Continue\r\n\r\n", head + b"\r\n\r\n" + body


def chunked(head: bytes) -> bytes:
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    return b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""])


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
    ask: Ask, listen: Callable[..., Any], connect: Connect, slow: Callable[..., Any], timeout: float
) -> None:
    sent_to_its_end = []

    def answer(request: bytes, proper: bytes) -> Iterator[bytes]:
        before, piece, after = slow(*proper.split(b"\r\n\r\n", 1))
        yield before
        for _ in range(16):
            time.sleep(0.05 if timeout < 1 else 0)
            yield piece
        sent_to_its_end.append(request)
        yield after

    listener = listen(answer)
    connect(host=listener.url, extra={"max_attempts": 1, "timeout": timeout})
    if timeout > 1:  # the answer is a proper one
        assert ask(ReductoHook(), QUESTION).rows == ()
    else:
        with pytest.raises(ReductoTransportError):
            ask(ReductoHook(), QUESTION)
        assert not sent_to_its_end  # by then the hook had given up
    assert len(listener.requests) == 1


def test_the_timeout_is_for_the_whole_attempt(ask: Ask, listen: Callable[..., Any], connect: Connect) -> None:
    def answer(request: bytes, proper: bytes) -> Iterator[bytes]:
        head, body = proper.split(b"\r\n\r\n", 1)
        time.sleep(0.3)
        yield head + b"\r\n\r\n" + body[:5]
        time.sleep(0.3)
        yield body[5:]

    connect(host=listen(answer).url, extra={"max_attempts": 1, "timeout": 0.45})
    with pytest.raises(ReductoTransportError, match=r"0\.45"):
        ask(ReductoHook(), QUESTION)


# How long it waits, and how often it asks


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(
    ask: Ask, simulator: Simulator, connect: Connect, clock: Any, logged: Any, code: int, form: Any
) -> None:
    simulator.faults.add(status(code, retry_after=70, retry_after_as=form))
    connect(host=simulator.url)
    ask(ReductoHook(), QUESTION)
    (wait,) = clock.waits
    # A date has whole seconds, and it passes meanwhile.
    assert 70 - (form == "date") * 10 <= wait <= 71 + reducto.BACKOFF_INITIAL
    assert len(simulator.requests) == 2
    (retry,) = logged.retries
    assert retry.startswith("Attempt 1 of 5 failed: ")
    assert retry.endswith(f"the next in {wait:.1f} s (org_acme, 2026-06-01 to 2026-06-07, by product)")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_capped(ask: Ask, simulator: Simulator, connect: Connect, clock: Any, form: Any) -> None:
    simulator.faults.add(status(429, retry_after=86_400, retry_after_as=form), times=None)
    connect(host=simulator.url, extra={"max_attempts": ATTEMPTS})
    with pytest.raises(ReductoRateLimitError) as caught:
        ask(ReductoHook(), QUESTION)
    assert caught.value.retry_after == pytest.approx(86_400, abs=60)
    cap = reducto.RETRY_AFTER_CAP
    assert [cap <= wait <= cap + reducto.BACKOFF_INITIAL for wait in clock.waits] == [True, True]


def test_not_all_callers_come_back_at_the_moment_that_retry_after_names(
    ask: Ask, simulator: Simulator, connect: Connect, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reducto, "BACKOFF_INITIAL", 1.0)
    simulator.faults.add(status(503, retry_after=7), times=None)
    connect(host=simulator.url, extra={"max_attempts": 8})
    with pytest.raises(ReductoServerError):
        ask(ReductoHook(), QUESTION)
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
    ask: Ask, simulator: Simulator, connect: Connect, clock: Any, text: str
) -> None:
    simulator.faults.add(status(503, headers={"Retry-After": text}))
    connect(host=simulator.url)
    assert ask(ReductoHook(), QUESTION).rows
    assert sum(clock.waits) <= reducto.BACKOFF_INITIAL


def test_waits_grow_with_jitter_up_to_a_limit(
    ask: Ask, simulator: Simulator, connect: Connect, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reducto, "BACKOFF_INITIAL", 1.0)
    monkeypatch.setattr(reducto, "BACKOFF_MAX", 5.0)
    simulator.faults.add(status(500), times=None)
    connect(host=simulator.url, extra={"max_attempts": 7})
    with pytest.raises(ReductoServerError):
        ask(ReductoHook(), QUESTION)
    assert len(simulator.requests) == 7
    assert all(top / 2 <= wait <= top for wait, top in zip(clock.waits, [1, 2, 4, 5, 5, 5], strict=True))
    assert len({wait % 1 for wait in clock.waits}) > 1


def test_one_attempt_is_one_request(ask: Ask, simulator: Simulator, connect: Connect, logged: Any, clock: Any) -> None:
    simulator.faults.add(status(503, retry_after=5), times=None)
    connect(host=simulator.url, extra={"max_attempts": 1})
    with pytest.raises(ReductoServerError) as caught:
        ask(ReductoHook(), QUESTION)
    assert (len(simulator.requests), caught.value.retry_after) == (1, 5)
    assert (logged.retries, clock.waits) == ([], [])


@pytest.mark.parametrize("fault", [None, status(503), Reset()], ids=["proper", "503", "reset"])
def test_requests_per_second_with_retries(
    ask: Ask, simulator: Simulator, connect: Connect, clock: Any, fault: Fault | None
) -> None:
    arrived: list[float] = []
    noted = Noted(lambda _: arrived.append(clock.now))
    if fault:
        simulator.faults.add(Noted(noted.note, fault), times=2)
    simulator.faults.add(noted, times=None)
    connect(host=simulator.url, extra={"requests_per_second": 0.25, "max_attempts": ATTEMPTS})
    hook = ReductoHook()
    for _ in range(3):
        ask(hook, QUESTION)
    assert len(arrived) == (5 if fault else 3)
    gaps = [later - earlier for earlier, later in pairwise(arrived)]
    assert gaps == pytest.approx([4.0] * len(gaps))


def test_a_slot_that_was_not_used_is_not_saved_up(ask: Ask, simulator: Simulator, connect: Connect, clock: Any) -> None:
    connect(host=simulator.url, extra={"requests_per_second": 2})
    hook = ReductoHook()
    for pause in (0, 100, 0.3, 0):
        clock.now += pause
        ask(hook, QUESTION)
    assert clock.waits == pytest.approx([0.2, 0.5])


def test_requests_per_second_among_concurrent_questions(simulator: Simulator, connect: Connect, clock: Any) -> None:
    connect(host=simulator.url, extra={"requests_per_second": 4})
    clock.stands_still = True

    async def ask_at_once() -> None:
        async with ReductoHook() as hook:
            await asyncio.gather(*(hook.aget_usage(QUESTION) for _ in range(5)))

    asyncio.run(ask_at_once())
    assert clock.waits == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_requests_per_second_when_a_key_is_rotated_under_many(
    simulator: Simulator, connect: Connect, clock: Any
) -> None:
    fields = {"host": simulator.url, "extra": {"requests_per_second": 4}}
    connect(password="sim-key-of-yesterday", **fields)
    clock.stands_still = True

    async def ask_at_once() -> None:
        async with ReductoHook() as hook:
            connect(**fields)
            await asyncio.gather(*(hook.aget_usage(QUESTION) for _ in range(3)))

    asyncio.run(ask_at_once())
    assert sorted(clock.waits) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.25])


def test_requests_per_second_among_threads(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url, extra={"requests_per_second": 4})
    hook, asked = ReductoHook(), threading.Barrier(8)
    waits: list[float] = []

    def reserve() -> None:
        asked.wait()
        waits.append(hook._reserve(hook.settings))

    clock = type("Clock", (), {"monotonic": staticmethod(lambda: 50.0)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reducto, "time", clock)
        threads = [threading.Thread(target=reserve) for _ in range(8)]
        hook._reserve(hook.settings)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(waits) == pytest.approx([0.25 * slot for slot in range(1, 9)])


# What is never given away


def test_netrc_does_not_replace_the_key(
    ask: Ask, simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\ndefault login me password mine\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    connect(host=simulator.url)
    ask(ReductoHook(), QUESTION)
    assert [request.headers.getall("Authorization") for request in simulator.requests] == [[f"Bearer {KEY}"]]


def test_extras_never_become_headers(
    ask: Ask, simulator: Simulator, connect: Connect, logged: Any, conceals: Callable[..., None]
) -> None:
    unknown = {"X-Team": "team-value", "Authorization": "auth-value", "retries": 81729, "headers": {"X-A": "a-value"}}
    connect(host=simulator.url, extra={**unknown, "timeout": 10})
    ask(ReductoHook(), QUESTION)
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
    report = hook.get_usage(QUESTION)
    assert asyncio.run(hook.aget_usage(QUESTION)) == report
    copied = how(hook)
    assert KEY.encode() not in pickle.dumps(hook)
    assert KEY not in str(vars(copied))
    assert copied.reducto_conn_id == "another"
    assert copied.keep_alive_adapter.socket_options == hook.keep_alive_adapter.socket_options
    assert copied.get_usage(QUESTION) == report
    assert asyncio.run(copied.aget_usage(QUESTION)) == report


# Proxies and certificates


@pytest.mark.parametrize("lower", [True, False], ids=["http_proxy", "HTTP_PROXY"])
def test_the_environment_s_proxy_is_used(
    ask: Ask,
    simulator: Simulator,
    listen: Callable[..., Any],
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    lower: bool,
) -> None:
    proxy = listen()
    monkeypatch.setenv("http_proxy" if lower else "HTTP_PROXY", proxy.url)
    connect(host=simulator.url)
    ask(ReductoHook(), QUESTION)
    assert simulator.requests == []
    assert [text.split(b"?")[0] for text in proxy.requests] == [f"GET {simulator.url}{PATH}".encode()]


def test_a_proxy_without_a_scheme(
    ask: Ask, simulator: Simulator, listen: Callable[..., Any], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = listen()
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
    connect(host=simulator.url)
    ask(ReductoHook(), QUESTION)
    assert (len(proxy.requests), simulator.requests) == (1, [])


def test_no_proxy_is_honoured(
    ask: Ask, simulator: Simulator, listen: Callable[..., Any], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = listen()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "example.com,127.0.0.1")
    connect(host=simulator.url)
    ask(ReductoHook(), QUESTION)
    assert (proxy.requests, len(simulator.requests)) == ([], 1)


def test_the_connection_s_proxy_comes_first(
    ask: Ask, simulator: Simulator, listen: Callable[..., Any], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, other = listen(), listen()
    monkeypatch.setenv("http_proxy", other.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    connect(host=simulator.url, extra={"proxy": proxy.url.replace("//", "//me:pass%40word@")})
    ask(ReductoHook(), QUESTION)
    assert (len(proxy.requests), other.requests, simulator.requests) == (1, [], [])
    assert proxy.headers("Proxy-Authorization") == ["Basic bWU6cGFzc0B3b3Jk"]


def test_a_proxy_of_another_kind_is_not_taken_for_an_http_proxy(
    ask: Ask, simulator: Simulator, listen: Callable[..., Any], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = listen()
    monkeypatch.setenv("all_proxy", f"socks5://127.0.0.1:{proxy.port}")
    connect(host=simulator.url, extra={"max_attempts": 1})
    with pytest.raises(ReductoError, match=r"(?i)socks"):
        ask(ReductoHook(), QUESTION)
    assert (proxy.requests, simulator.requests) == ([], [])


@pytest.mark.parametrize("address", ["[bad:1", "127.0.0.1:99999", "127.0.0.1:port"])
def test_a_proxy_that_is_no_url(
    ask: Ask,
    simulator: Simulator,
    connect: Connect,
    conceals: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:proxy-password@{address}")
    connect(host=simulator.url, extra={"max_attempts": 1})
    with pytest.raises(ReductoError) as caught:
        ask(ReductoHook(), QUESTION)
    assert simulator.requests == []
    conceals(caught.value, "proxy-password", KEY)


@pytest.mark.parametrize("where", ["environment", "connection"])
def test_a_proxy_learns_neither_the_key_nor_tells_its_password(
    ask: Ask,
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
        ask(ReductoHook(), QUESTION)
    (request,) = proxy.requests
    assert request.startswith(b"CONNECT studio.example:443 ")
    assert KEY.encode() not in request
    conceals(caught.value, KEY, "proxy-pass", "bWU6cHJveHktcGFzc0B3b3Jk")


def test_an_unknown_certificate_is_refused_before_the_key_is_sent(
    ask: Ask, listen: Callable[..., Any], connect: Connect, certificate: Any, logged: Any, conceals: Callable[..., None]
) -> None:
    listener = listen(tls=certificate.tls)
    connect(host=listener.url, extra={"max_attempts": 2})
    with pytest.raises(ReductoTransportError, match=r"(?i)certificate") as caught:
        ask(ReductoHook(), QUESTION)
    assert listener.requests == []
    conceals(caught.value, KEY)


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@pytest.mark.parametrize("trust", ["a bundle", "a folder", "anyone", "as text", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_certificate_that_is_trusted(
    ask: Ask,
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
    ask(ReductoHook(), QUESTION)
    assert listener.headers("Authorization") == [f"Bearer {KEY}"]


def test_verify_comes_before_the_environment(
    ask: Ask,
    listen: Callable[..., Any],
    connect: Connect,
    certificate: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    connect(host=listen(tls=certificate.tls).url, extra={"verify": str(certificate.bundle)})
    ask(ReductoHook(), QUESTION)


@pytest.mark.parametrize("bundle", ["absent", "no certificate"])
@pytest.mark.parametrize("where", ["environment", "connection"])
def test_a_bundle_that_can_t_be_used(
    ask: Ask,
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
        ask(ReductoHook(), QUESTION)
    assert listener.requests == []


# Hosts


@pytest.mark.parametrize("prefix", ["/reducto", "/pä th", "/a%20b"])
def test_a_path_in_the_host(ask: Ask, listen: Callable[..., Any], connect: Connect, prefix: str) -> None:
    listener = listen()
    connect(host=f"{listener.url}{prefix}/")
    ask(ReductoHook(), QUESTION)
    sent = {"/reducto": "/reducto", "/pä th": "/p%C3%A4%20th", "/a%20b": "/a%20b"}[prefix]
    assert [text.split(b"?")[0] for text in listener.requests] == [f"GET {sent}{PATH}".encode()]


@pytest.mark.parametrize("host", ["https://.example", "https://" + "a" * 70 + ".example", "https://a..example"])
def test_a_host_that_can_t_be_a_name(ask: Ask, connect: Connect, host: str) -> None:
    connect(host=host, extra={"max_attempts": 1})
    with pytest.raises(ReductoError):
        ask(ReductoHook(), QUESTION)


def test_a_host_in_another_script_gets_the_key(connect: Connect) -> None:
    connect(host="https://bücher.example")
    hook = ReductoHook()
    request = hook.get_conn().prepare_request(requests.Request("GET", hook.url_from_endpoint(PATH)))
    assert request.headers["Authorization"] == f"Bearer {KEY}"


# What HttpHook offers beside


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("run", ()),
        ("run", (PATH, {"groupBy": "product"}, {"X": "y"}, {"check_response": False})),
        ("run_and_check", (requests.Session(), requests.Request("GET", PATH), {})),
        ("check_response", (requests.Response(),)),
        ("run_with_advanced_retry", ({}, PATH)),
    ],
)
def test_other_ways_to_a_request_are_refused(
    simulator: Simulator, connect: Connect, method: str, arguments: tuple[Any, ...]
) -> None:
    connect(host=simulator.url)
    with pytest.raises(ReductoConfigurationError, match=rf"ReductoHook\.{method}\(\).*get_usage"):
        getattr(ReductoHook(), method)(*arguments)
    assert simulator.requests == []


def test_get_conn_keeps_one_session(simulator: Simulator, connect: Connect) -> None:
    ports: set[int] = set()
    simulator.faults.add(Noted(lambda request: ports.add(request.transport.get_extra_info("peername")[1])), times=None)
    connect(host=simulator.url)
    hook = ReductoHook()
    session = hook.get_conn()
    for _ in range(3):
        hook.get_usage(QUESTION)
    assert hook.get_conn() is session
    assert len(ports) == 1


def test_get_conn_is_for_the_connection_s_host_only(simulator: Simulator, connect: Connect) -> None:
    with Simulator() as other:
        connect(host=simulator.url)
        session = ReductoHook().get_conn()
        assert session.get(f"{simulator.url}{PATH}", timeout=10).status_code == 200
        for url in (
            f"{other.url}{PATH}",
            f"http://127.0.0.1:{simulator.port}@127.0.0.1:{other.port}{PATH}",
            f"http://localhost:{simulator.port}{PATH}",
            f"https://127.0.0.1:{simulator.port}{PATH}",
        ):
            with pytest.raises(ReductoConfigurationError, match=rf"for {simulator.url}: it is not sent to another"):
                session.get(url, timeout=10)
        assert (len(simulator.requests), other.requests) == (1, [])


@pytest.mark.parametrize("follow", [{}, {"allow_redirects": True}])
def test_get_conn_follows_no_redirect(simulator: Simulator, connect: Connect, follow: dict[str, Any]) -> None:
    with Simulator() as other:
        simulator.faults.add(redirect(f"{other.url}{PATH}"), redirect(PATH))
        connect(host=simulator.url)
        session = ReductoHook().get_conn()
        assert [session.get(f"{simulator.url}{PATH}", timeout=10, **follow).status_code for _ in range(2)] == [302, 302]
        assert (len(simulator.requests), other.requests) == (2, [])


def test_get_conn_ignores_netrc(
    simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password mine\n")
    monkeypatch.setenv("NETRC", str(netrc))
    connect(host=simulator.url)
    ReductoHook().get_conn().get(f"{simulator.url}{PATH}", timeout=10)
    assert simulator.requests[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("options", [{"headers": {"X": "y"}}, {"extra_options": {"verify": False}}])
def test_get_conn_takes_no_options(simulator: Simulator, connect: Connect, options: dict[str, Any]) -> None:
    connect(host=simulator.url)
    with pytest.raises(ReductoConfigurationError, match="connection's extras"):
        ReductoHook().get_conn(**options)


def test_an_adapter_of_the_caller_is_used(simulator: Simulator, connect: Connect, mocker: Any) -> None:
    connect(host=simulator.url)
    adapter = requests.adapters.HTTPAdapter()
    sent = mocker.spy(adapter, "send")
    ReductoHook(adapter=adapter).get_usage(QUESTION)
    assert sent.call_count == 1
    assert len(simulator.requests) == 1


@pytest.mark.parametrize(
    ("host", "endpoint", "url"),
    [
        (None, PATH, f"https://studio.reducto.ai{PATH}"),
        ("example.com", "a/b", "https://example.com/a/b"),
        ("https://example.com/", "/a", "https://example.com/a"),
        ("https://example.com/reducto/", "a", "https://example.com/reducto/a"),
        ("https://example.com/reducto", None, "https://example.com/reducto/"),
        ("https://example.com", "", "https://example.com/"),
        ("https://example.com", "//other.example/a", "https://example.com/other.example/a"),
    ],
)
def test_url_from_endpoint(connect: Connect, host: str | None, endpoint: str | None, url: str) -> None:
    connect(host=host)
    assert ReductoHook().url_from_endpoint(endpoint) == url


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
        hook.get_usage(QUESTION),
        asyncio.run(hook.aget_usage(QUESTION)),
        hook.get_usage(QUESTION),
        asyncio.run(hook.aget_usage(QUESTION)),
    ]
    assert all(report == reports[0] for report in reports)


def test_a_context_keeps_one_session(simulator: Simulator, connect: Connect, all_is_closed: Callable[[], None]) -> None:
    ports: list[int] = []
    simulator.faults.add(
        Noted(lambda request: ports.append(request.transport.get_extra_info("peername")[1])), times=None
    )
    connect(host=simulator.url)

    async def ask_within_and_after() -> None:
        hook = ReductoHook()
        async with hook as entered:
            assert entered is hook
            for _ in range(3):
                await hook.aget_usage(QUESTION)
        for _ in range(2):
            await hook.aget_usage(QUESTION)

    asyncio.run(ask_within_and_after())
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
            await hook.aget_usage(QUESTION)
            raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(fail())
    all_is_closed()


@pytest.mark.parametrize("fault", [None, status(401), Stall(30), Reset(), Endless()], ids=lambda fault: str(fault)[:9])
def test_a_question_without_a_context_closes_its_session(
    simulator: Simulator,
    connect: Connect,
    all_is_closed: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault | None,
) -> None:
    monkeypatch.setattr(reducto, "MAX_RESPONSE_BYTES", 2**18)
    if fault:
        simulator.faults.add(fault, times=None)
    connect(host=simulator.url, extra={"max_attempts": 2, "timeout": 0.3})

    async def question() -> str:
        try:
            await ReductoHook().aget_usage(QUESTION)
        except ReductoError as error:
            return type(error).__name__
        return "proper"

    assert (asyncio.run(question()) == "proper") == (fault is None)
    all_is_closed()


def test_a_question_over_tls_closes_its_session(
    listen: Callable[..., Any], connect: Connect, certificate: Any, all_is_closed: Callable[[], None]
) -> None:
    connect(host=listen(tls=certificate.tls).url, extra={"verify": str(certificate.bundle)})
    asyncio.run(ReductoHook().aget_usage(QUESTION))
    all_is_closed()


def test_a_question_that_is_cancelled_closes_its_session(
    simulator: Simulator, connect: Connect, all_is_closed: Callable[[], None]
) -> None:
    arrived = threading.Event()
    simulator.faults.add(Noted(lambda _: arrived.set(), Stall(30)))
    connect(host=simulator.url)

    async def cancel() -> None:
        task = asyncio.create_task(ReductoHook().aget_usage(QUESTION))
        assert await asyncio.to_thread(arrived.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    all_is_closed()


def test_a_question_that_is_cancelled_as_its_time_is_over_ends(simulator: Simulator, connect: Connect) -> None:
    """Both in one turn of the loop, as on a busy machine. A cancellation that is lost is not said again."""
    arrived = threading.Event()
    simulator.faults.add(Noted(lambda _: arrived.set(), Stall(30)), times=None)
    connect(host=simulator.url, extra={"timeout": 1, "max_attempts": 1})

    async def cancel() -> asyncio.Task[Any]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        task = asyncio.create_task(ReductoHook().aget_usage(QUESTION))
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


def test_a_question_that_is_cancelled_as_one_address_wins_over_another_ends(
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
        task = asyncio.create_task(ReductoHook().aget_usage(QUESTION))
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
        task = asyncio.create_task(reducto._acall_within(30 if cancelled else 0.1, loses_one()))
        await asyncio.sleep(0.1)
        if cancelled:
            task.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else TimeoutError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(ends())


@pytest.mark.parametrize("half", ["get_async_connection", "get_async_extra_dejson"])
def test_a_look_up_that_is_cancelled_goes_on_to_its_end(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    connect()
    look_up = getattr(reducto, half)

    async def cancel() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def slow(*arguments: Any, **options: Any) -> Any:
            begun.set()
            await asyncio.sleep(0.05)
            found = await look_up(*arguments, **options)
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
                await hook.aget_usage(QUESTION)
            await hook.aget_usage(QUESTION)

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
                report = await hook.aget_usage(QUESTION)
            first_is_out.set()
            return report

        async def second() -> UsageReport:
            async with hook:
                second_is_in.set()
                simulator.faults.add(Stall(0.1))
                report = asyncio.create_task(hook.aget_usage(QUESTION))
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

    monkeypatch.setattr(reducto, "_ssl_context", noting("bundle", reducto._ssl_context))
    monkeypatch.setattr(ReductoHook, "_decode", noting("decoding", ReductoHook._decode))
    monkeypatch.setattr(ReductoHook, "get_connection", staticmethod(noting("connection", ReductoHook.get_connection)))
    connect(host=listen(long, certificate.tls).url, extra={"verify": str(certificate.bundle)})
    asyncio.run(ReductoHook().aget_usage(QUESTION))
    elsewhere.setdefault("connection", True)  # Airflow has an asynchronous look-up since 3.1
    assert elsewhere == {"bundle": True, "decoding": True, "connection": True}


def test_a_connection_that_the_asynchronous_look_up_can_t_see(
    simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def blind(conn_id: str, hook: Any = None) -> Any:
        raise AirflowNotFoundException(conn_id)

    monkeypatch.setattr(reducto, "get_async_connection", blind)
    connect(host=simulator.url)
    assert asyncio.run(ReductoHook().aget_usage(QUESTION)).rows


def test_questions_of_one_context_run_at_once(simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(Stall(0.1), times=None)
    connect(host=simulator.url)

    async def ask_at_once() -> list[UsageReport]:
        async with ReductoHook() as hook:
            return await asyncio.gather(*(hook.aget_usage(QUESTION) for _ in range(4)))

    assert len(asyncio.run(ask_at_once())) == 4
    assert simulator.journal.max_in_flight == 4


# The connection itself


def test_a_connection_that_does_not_exist(ask: Ask) -> None:
    with pytest.raises(AirflowNotFoundException, match="nowhere"):
        ask(ReductoHook("nowhere"), QUESTION)


def test_the_connection_is_looked_up_once_and_late(
    ask: Ask, simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = ReductoHook("late")
    connect(host=simulator.url, conn_id="late")
    ask(hook, QUESTION)
    monkeypatch.delenv("AIRFLOW_CONN_LATE")
    ask(hook, QUESTION)
    assert len(simulator.requests) == 2


def test_a_retry_asks_the_very_same(ask: Ask, simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(status(503), Reset(), CutShort(), status(429))
    connect(host=simulator.url)
    ask(ReductoHook(), UsageQuery(start=FIRST, end=LAST, products=["b", "a"], org_id="org_acme"))
    sent = {(request.method, request.path, request.query_string) for request in simulator.requests}
    assert len(sent) == 1
    assert len(simulator.requests) == 5


def test_mostly_failing_service(ask: Ask, simulator: Simulator, connect: Connect, clock: Any) -> None:
    simulator.faults.at_rate(0.4, seed=random.Random(1).randrange(100))
    connect(host=simulator.url, extra={"max_attempts": 20})
    hook = ReductoHook()
    for _ in range(10):
        assert figures(ask(hook, QUESTION)) == truth(simulator, QUESTION)
    assert len(simulator.requests) > 10


# A key that was rotated while the hook lived

ROTATED = "sim-key-rotated-5d1e"


@pytest.fixture(params=["sync", "async", "context"])
def asking(request: pytest.FixtureRequest) -> Iterator[Callable[[], UsageReport]]:
    """One hook, kept: asked in the three ways, again and again. It is open from its first question on."""
    hook = ReductoHook()
    if request.param == "sync":
        yield lambda: hook.get_usage(QUESTION)
        return
    with asyncio.Runner() as runner, ExitStack() as stack:

        def ask_once() -> UsageReport:
            if request.param == "context" and not hook._contexts:
                runner.run(hook.__aenter__())
                stack.callback(lambda: runner.run(hook.__aexit__(None, None, None)))
            return runner.run(hook.aget_usage(QUESTION))

        yield ask_once


def rotate(simulator: Simulator) -> None:
    simulator.keys[ROTATED] = simulator.keys.pop(KEY)


def statuses(simulator: Simulator) -> list[int | None]:
    return [request.status for request in simulator.requests]


def test_a_key_that_was_rotated(
    asking: Callable[[], UsageReport], simulator: Simulator, connect: Connect, conceals: Callable[..., None]
) -> None:
    connect(host=simulator.url)
    before = asking()
    rotate(simulator)
    connect(host=simulator.url, password=ROTATED)

    assert asking() == before
    assert statuses(simulator) == [200, 401, 200]
    assert asking() == before
    assert statuses(simulator) == [200, 401, 200, 200], "the new key is kept"
    conceals(None, KEY, ROTATED)


def test_a_rotation_is_logged(ask: Ask, simulator: Simulator, connect: Connect, logged: Any) -> None:
    connect(host=simulator.url)
    hook = ReductoHook()
    ask(hook, QUESTION)
    rotate(simulator)
    connect(host=simulator.url, password=ROTATED)
    ask(hook, QUESTION)
    assert sum("has changed since it was read" in text for text in logged.everything[::2]) == 1


def test_a_refused_key_that_was_not_rotated_is_sent_once(
    asking: Callable[[], UsageReport], simulator: Simulator, connect: Connect, conceals: Callable[..., None]
) -> None:
    connect(host=simulator.url, password="sim-key-wrong-77")
    for count in (1, 2):
        with pytest.raises(ReductoAuthenticationError, match="'reducto_default'") as caught:
            asking()
        assert statuses(simulator) == [401] * count
    conceals(caught.value, "sim-key-wrong-77")


def test_a_rotated_key_that_is_refused_too(
    asking: Callable[[], UsageReport], simulator: Simulator, connect: Connect, conceals: Callable[..., None]
) -> None:
    connect(host=simulator.url)
    asking()
    rotate(simulator)
    connect(host=simulator.url, password="sim-key-wrong-77")
    with pytest.raises(ReductoAuthenticationError) as caught:
        asking()
    assert statuses(simulator) == [200, 401, 401]
    conceals(caught.value, KEY, "sim-key-wrong-77")
    connect(host=simulator.url, password=ROTATED)
    asking()
    assert statuses(simulator) == [200, 401, 401, 401, 200]


def test_only_a_401_reads_the_connection_again(
    asking: Callable[[], UsageReport], simulator: Simulator, connect: Connect
) -> None:
    connect(host=simulator.url)
    asking()
    connect(host=simulator.url, password=ROTATED)
    simulator.faults.add(status(403), status(400))
    for error in (ReductoPermissionError, ReductoRequestError):
        with pytest.raises(error):
            asking()
    asking()
    assert statuses(simulator) == [200, 403, 400, 200]


def test_a_connection_that_moved(
    asking: Callable[[], UsageReport],
    simulator: Simulator,
    connect: Connect,
    listen: Callable[..., Any],
    certificate: Any,
) -> None:
    connect(host=simulator.url, password="sim-key-wrong")
    with pytest.raises(ReductoAuthenticationError):
        asking()
    moved = listen(tls=certificate.tls)
    connect(host=moved.url, password=ROTATED, extra={"verify": str(certificate.bundle)})

    assert asking().rows == ()
    assert moved.headers("Authorization") == [f"Bearer {ROTATED}"]
    assert statuses(simulator) == [401, 401]


def refuse(request: bytes, proper: bytes) -> list[bytes]:
    return [b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]


@pytest.mark.filterwarnings("ignore:Unverified HTTPS")
def test_a_certificate_is_checked_from_then_on(
    asking: Callable[[], UsageReport], connect: Connect, listen: Callable[..., Any], certificate: Any
) -> None:
    server = listen(refuse, tls=certificate.tls)
    connect(host=server.url, extra={"verify": False, "max_attempts": 1})
    with pytest.raises(ReductoAuthenticationError):
        asking()
    connect(host=server.url, password=ROTATED, extra={"verify": True, "max_attempts": 1})
    for _ in range(2):
        with pytest.raises(ReductoTransportError, match=r"(?i)certificate"):
            asking()
    assert f"Bearer {ROTATED}" not in server.headers("Authorization")


@pytest.mark.parametrize("rate", [4, 2])
def test_the_pace_is_kept(
    asking: Callable[[], UsageReport], simulator: Simulator, connect: Connect, clock: Any, rate: float
) -> None:
    connect(host=simulator.url, extra={"requests_per_second": 4})
    asking()
    rotate(simulator)
    connect(host=simulator.url, password=ROTATED, extra={"requests_per_second": rate})
    asking()
    asking()
    assert statuses(simulator) == [200, 401, 200, 200]
    assert clock.waits == pytest.approx([1 / 4, 1 / 4, 1 / rate])


def test_a_connection_that_is_gone_and_comes_back(
    asking: Callable[[], UsageReport], simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(host=simulator.url)
    before = asking()
    rotate(simulator)
    monkeypatch.delenv("AIRFLOW_CONN_REDUCTO_DEFAULT")
    with pytest.raises(AirflowNotFoundException, match="reducto_default"):
        asking()
    with pytest.raises(AirflowNotFoundException, match="reducto_default"):
        asking()
    connect(host=simulator.url, password=ROTATED)
    assert asking() == before
    assert statuses(simulator) == [200, 401, 200]


def test_a_connection_that_can_t_be_used_any_more(
    asking: Callable[[], UsageReport], simulator: Simulator, connect: Connect
) -> None:
    connect(host=simulator.url)
    asking()
    rotate(simulator)
    connect(host=simulator.url, password="")
    with pytest.raises(ReductoConfigurationError, match="password is empty"):
        asking()


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

    async def ask_at_once() -> list[UsageReport]:
        hook = ReductoHook()
        async with hook if within else nullcontext():
            await hook.aget_settings()
            connect(host=server.url, password=ROTATED, extra=extra)
            return await asyncio.gather(*(hook.aget_usage(QUESTION) for _ in range(5)))

    assert len(asyncio.run(ask_at_once())) == 5
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
        reports = [pool.submit(hook.get_usage, QUESTION) for _ in range(5)]
        assert all(report.result(20).rows == () for report in reports)
    assert server.headers("Authorization") == [f"Bearer {KEY}"] * 5
    assert moved.headers("Authorization") == [f"Bearer {ROTATED}"] * 5

"""What the hook makes of every answer: data, or an error that says what to do."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from reducto_provider.exceptions import (
    ReductoAuthenticationError,
    ReductoError,
    ReductoGatewayError,
    ReductoPermissionError,
    ReductoRateLimitError,
    ReductoRequestError,
    ReductoResponseError,
    ReductoServerError,
    ReductoTransportError,
)
from reducto_provider.hooks import transport
from reducto_provider.hooks.reducto import ReductoHook
from reducto_provider.usage.query import UsageQuery
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
from tests.hooks.queries import (
    ATTEMPTS,
    FIRST,
    KEY,
    LAST,
    QUERY,
    Connect,
    figures,
    truth,
)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The next requests meet these faults, `times` each; with three attempts, this is the outcome."""

    faults: tuple[Fault, ...]
    times: int | None = 1
    error: type[ReductoError] | None = None
    requests: int = 1
    says: tuple[str, ...] = ()
    key: str = KEY
    query: UsageQuery = field(default=QUERY)
    timeout: float = 10
    limit: int | None = None


def contract(*faults: Fault, says: tuple[str, ...] = (), **options: Any) -> Scenario:
    """An answer that is never taken for data, nor requested again."""
    return Scenario(faults=faults, error=ReductoResponseError, says=says, **options)


def refused(code: int, *says: str, error: type[ReductoError] = ReductoRequestError) -> Scenario:
    """A status that another request can't change."""
    return Scenario(faults=(status(code),), error=error, says=(str(code), *says))


def transient(fault: Fault, error: type[ReductoError] = ReductoServerError, **options: Any) -> dict[str, Scenario]:
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
        for how, scenario in transient(status(code), says=(str(code),)).items()
    },
    **{
        f"429, {how}": scenario
        for how, scenario in transient(
            status(429), ReductoRateLimitError, says=("429", "requests_per_second", "'reducto_default'")
        ).items()
    },
    **{f"an error deeply nested, {how}": scenario for how, scenario in transient(Reply(503, DEEP)).items()},
    **{
        f"HTML, {code}, {how}": scenario
        for code in (200, 302, 401, 403, 404, 407, 429, 502)
        for how, scenario in transient(
            html(code), ReductoGatewayError, says=("an HTML page came with status", str(code), "proxy", "login")
        ).items()
    },
    **{
        f"{code}, {how}": scenario
        for code in (408, 425)
        for how, scenario in transient(status(code), says=(str(code),)).items()
    },
    **{
        f"407, {how}": scenario
        for how, scenario in transient(status(407), ReductoGatewayError, says=("407", "'proxy'")).items()
    },
    **{f"reset, {how}": scenario for how, scenario in transient(Reset(), **NO_ANSWER).items()},
    **{f"cut short, {how}": scenario for how, scenario in transient(CutShort(), **NO_ANSWER).items()},
    **{
        f"cut short in a chunk, {how}": scenario
        for how, scenario in transient(CutShort(chunked=True), **NO_ANSWER).items()
    },
    "one fault after another": Scenario(faults=(Reset(), status(429)), requests=3),
    "a transient fault, then a lasting one": Scenario(
        faults=(status(503), status(400)), error=ReductoRequestError, requests=2
    ),
    "a stall in the headers": transient(Stall(30), **TIMED_OUT)["always"],
    "a stall in the body": transient(Stall(30, "body"), **TIMED_OUT)["always"],
    "a stall, once": transient(Stall(30), **TIMED_OUT)["once"],
    "a trickle": transient(Trickle(0.05), **TIMED_OUT)["always"],
    "HTML in disguise": transient(
        Reply(401, b"\xef\xbb\xbf \n<!DOCTYPE html>", {"Content-Type": "application/json"}), ReductoGatewayError
    )["always"],
    "HTML in some other encoding": transient(
        Reply(200, "<html>".encode("utf-16"), {"Content-Type": "text/html; charset=utf-16"}), ReductoGatewayError
    )["always"],
    "HTML that says what it is": transient(
        Reply(403, f"<title>\n No {KEY} here </title>", {"Content-Type": "text/html"}),
        ReductoGatewayError,
        says=("an HTML page (No *** here) came with status 403",),
    )["always"],
    "HTML and a redirect": transient(
        Reply(302, "<html>moved</html>", {"Location": "https://login.example/?from=usage"}),
        ReductoGatewayError,
        says=("an HTML page and a redirect to login.example came with status 302",),
    )["always"],
    "HTML packed by gzip": transient(
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
    "another encoding": contract(Reply(200, "{}", {"Content-Encoding": "br"}), says=("encoded as br",)),
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
    "declared gzip that is none": transient(
        Reply(200, "{}", {"Content-Encoding": "gzip"}), **NO_ANSWER
    )["always"],
}  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_scenario(
    simulator: Simulator,
    connect: Connect,
    logged: Any,
    conceals: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    scenario: Scenario,
) -> None:
    if scenario.limit:
        monkeypatch.setattr(transport, "MAX_RESPONSE_BYTES", scenario.limit)
    simulator.faults.add(*scenario.faults, times=scenario.times)
    connect(host=simulator.url, password=scenario.key, extra={"max_attempts": ATTEMPTS, "timeout": scenario.timeout})
    error = None
    if scenario.error is None:
        assert figures(ReductoHook().get_usage(scenario.query)) == truth(simulator, scenario.query)
    else:
        with pytest.raises(ReductoError) as caught:
            ReductoHook().get_usage(scenario.query)
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
def test_the_reason_of_the_service_is_shown(simulator: Simulator, connect: Connect, reason: str, kind: str) -> None:
    body, shown = REASONS[reason]
    simulator.faults.add(Reply(422, json.dumps(body), {"Content-Type": kind}))
    connect(host=simulator.url)
    with pytest.raises(ReductoRequestError, match=rf"^Reducto refused the request \(422: {shown}\): startDate="):
        ReductoHook().get_usage(QUERY)


@pytest.mark.parametrize("kind", ["text/plain", "text/plain; charset=utf-8", None])
def test_a_reason_as_text_is_shown(listen: Callable[..., Any], connect: Connect, kind: str | None) -> None:
    head = f"Content-Type: {kind}\r\n" if kind else ""
    listener = listen(
        lambda request, proper: [
            f"HTTP/1.1 400 No\r\n{head}Connection: close\r\n\r\nat most\n365 {KEY}\xfc".encode("latin1")
        ]
    )
    connect(host=listener.url)
    with pytest.raises(ReductoRequestError, match=r"\(400: at most 365 \*\*\*\ufffd\)"):
        ReductoHook().get_usage(QUERY)


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
def test_what_is_no_reason_is_not_shown(simulator: Simulator, connect: Connect, body: str, kind: str) -> None:
    simulator.faults.add(Reply(400, body, {"Content-Type": kind}))
    connect(host=simulator.url)
    with pytest.raises(ReductoRequestError, match=r"request \(400\): "):
        ReductoHook().get_usage(QUERY)


def test_a_reason_is_short_and_without_secrets(
    simulator: Simulator, connect: Connect, conceals: Callable[..., None]
) -> None:
    around = ["x" * 190, f"{KEY} https://me:pass-1@host/", "y" * 60_000]
    simulator.faults.add(Reply(400, json.dumps({"detail": [{"msg": text, "input": "z-1"} for text in around]})))
    connect(host=simulator.url)
    with pytest.raises(ReductoRequestError, match=r"\(400: x{190}; \*\*\* ht") as caught:
        ReductoHook().get_usage(QUERY)
    assert len(str(caught.value)) < 400
    conceals(caught.value, KEY, "pass-1", "z-1")


def test_html_that_says_when_to_come_back(simulator: Simulator, connect: Connect, clock: Any) -> None:
    page = {"Content-Type": "text/html", "Retry-After": "70"}
    simulator.faults.add(Reply(403, "<html>Maintenance</html>", page))
    connect(host=simulator.url)
    assert ReductoHook().get_usage(QUERY).rows
    assert [70 <= wait <= 71 for wait in clock.waits] == [True]


def test_html_is_no_refusal_of_the_key(simulator: Simulator, connect: Connect, logged: Any) -> None:
    simulator.faults.add(html(401))
    connect(host=simulator.url)
    hook = ReductoHook()
    _ = hook.settings
    connect(host="http://127.0.0.1:1")
    assert hook.get_usage(QUERY).rows


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
        asyncio.run(ReductoHook().aget_usage(QUERY))
    assert len(str(caught.value)) < 200
    conceals(caught.value, "RAW", "xxxx")


def test_a_403_without_an_organization_names_none(simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(status(403))
    connect(host=simulator.url)
    with pytest.raises(ReductoPermissionError) as caught:
        ReductoHook().get_usage(UsageQuery(start=FIRST, end=LAST))
    assert "None" not in str(caught.value)

"""What the hook inherits from Airflow's HttpHook, under the promises of the hook's own requests."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

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
from reducto_provider.hooks.reducto import ReductoHook
from simulator import CutShort, Fault, Reply, Reset, Simulator, Stall, html, redirect, status
from tests.hooks.queries import KEY, PATH, Connect

ASKED = {"startDate": "2026-06-01", "endDate": "2026-06-02", "orgId": "org_acme"}

# Requests of one's own


def test_run(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url)
    response = ReductoHook().run(PATH, ASKED)
    assert response.json()["orgId"] == "org_acme"
    (request,) = simulator.requests
    assert (request.method, request.path, dict(request.query)) == ("GET", PATH, ASKED)
    assert request.headers.getall("Authorization") == [f"Bearer {KEY}"]
    assert request.headers["User-Agent"].startswith("airflow-provider-reducto/")


def test_run_with_all_that_httphook_takes(listen: Callable[..., Any], connect: Connect, logged: Any) -> None:
    listener = listen()
    connect(host=f"{listener.url}/reducto")
    hook = ReductoHook(method="POST", tcp_keep_alive=False)
    response = hook.run("/jobs", '{"a": 1}', {"X-Team": "finance"}, {"check_response": False}, params={"b": "2"})
    assert response.status_code == 200
    (request,) = listener.requests
    assert request.startswith(b"POST /reducto/jobs?b=2 HTTP/1.1\r\n")
    assert listener.headers("X-Team") == ["finance"]
    assert listener.headers("Authorization") == [f"Bearer {KEY}"]


def test_run_with_advanced_retry(simulator: Simulator, connect: Connect) -> None:
    import tenacity

    simulator.faults.add(status(503), Reset())
    connect(host=simulator.url)
    arguments = {
        "stop": tenacity.stop_after_attempt(3),
        "retry": tenacity.retry_if_exception(lambda error: getattr(error, "transient", False)),
    }
    assert ReductoHook().run_with_advanced_retry(arguments, PATH, ASKED).status_code == 200
    assert len(simulator.requests) == 3


OPERATOR = """
from tests.airflow_sdk import DAG
from airflow.providers.http.operators.http import HttpOperator

with DAG("request"):
    HttpOperator(
        task_id="request",
        http_conn_id="reducto_default",
        endpoint="/api/v1/usage/export",
        method="GET",
        data={"startDate": "2026-06-01", "endDate": "2026-06-02", "orgId": "org_acme"},
        response_filter=lambda response: response.json()["orgId"],
    )
"""


def test_airflow_s_own_http_operator(run_dag: Callable[..., Any], simulator: Simulator) -> None:
    result = run_dag(OPERATOR).expect()
    assert result.xcom("request") == "org_acme"
    assert simulator.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_another_way_to_log_in_is_refused() -> None:
    with pytest.raises(ReductoConfigurationError, match="auth_type must be left out"):
        ReductoHook(auth_type=requests.auth.HTTPDigestAuth)


def test_an_adapter_of_the_caller_is_used(simulator: Simulator, connect: Connect, mocker: Any) -> None:
    connect(host=simulator.url)
    adapter = requests.adapters.HTTPAdapter()
    sent = mocker.spy(adapter, "send")
    ReductoHook(adapter=adapter).run(PATH, ASKED)
    assert (sent.call_count, len(simulator.requests)) == (1, 1)


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


# What goes wrong


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (status(400), ReductoRequestError, "(400: Bad Request): startDate=2026-06-01"),
        (status(401), ReductoAuthenticationError, "'reducto_default' (401: Unauthorized)"),
        (status(403), ReductoPermissionError, "'org_acme'"),
        (status(429, retry_after=7), ReductoRateLimitError, "(429: Too Many Requests)"),
        (status(500), ReductoServerError, "(500: Internal Server Error)"),
        (html(), ReductoGatewayError, "an HTML page came with status 200"),
        (html(401), ReductoGatewayError, "an HTML page came with status 401"),
        (redirect("https://other.example/"), ReductoResponseError, "redirects to other.example"),
        (Reset(), ReductoTransportError, "no answer from http://127.0.0.1"),
        (CutShort(), ReductoTransportError, "no answer from http://127.0.0.1"),
        (Stall(30), ReductoTransportError, "no whole answer within 0.2 s"),
        (Stall(30, "body"), ReductoTransportError, "no answer from http://127.0.0.1"),
    ],
    ids=str,
)
def test_an_error_is_typed_and_without_the_body(
    simulator: Simulator,
    connect: Connect,
    conceals: Callable[..., None],
    fault: Fault,
    error: type[ReductoError],
    says: str,
) -> None:
    simulator.faults.add(fault)
    connect(host=simulator.url, extra={"timeout": 0.2})
    with pytest.raises(ReductoError) as caught:
        ReductoHook().run(PATH, ASKED)
    assert type(caught.value) is error
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500
    assert len(simulator.requests) == 1
    assert caught.value.retry_after == getattr(fault, "retry_after", None)
    conceals(caught.value, KEY)


def test_a_body_is_not_logged(simulator: Simulator, connect: Connect, conceals: Callable[..., None]) -> None:
    simulator.faults.add(Reply(400, json.dumps({"error": "odd", "echo": f"{KEY} and much more"})))
    connect(host=simulator.url)
    with pytest.raises(ReductoRequestError) as caught:
        ReductoHook().run(PATH, ASKED)
    conceals(caught.value, KEY, "and much more")


@pytest.mark.parametrize("code", [200, 201, 204])
def test_check_response_takes_what_is_good(simulator: Simulator, connect: Connect, code: int) -> None:
    simulator.faults.add(Reply(code))
    connect(host=simulator.url)
    assert ReductoHook().run(PATH).status_code == code


def test_a_stream_is_not_read_by_the_check(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url)
    with ReductoHook().run(PATH, ASKED, extra_options={"stream": True}) as response:
        assert response.raw.read(1) == b"{"


def test_a_check_can_be_left_out(simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(status(503))
    connect(host=simulator.url)
    assert ReductoHook().run(PATH, extra_options={"check_response": False}).status_code == 503


def test_a_host_that_is_not_found(connect: Connect, mocker: Any) -> None:
    mocker.patch("socket.getaddrinfo", side_effect=socket.gaierror(-2, "Name or service not known"))
    connect(host="studio.example")
    with pytest.raises(ReductoTransportError, match="Name or service not known"):
        ReductoHook().run(PATH)


@pytest.mark.parametrize("bundle", ["absent.pem", "empty.pem"])
def test_a_bundle_that_can_t_be_used(
    listen: Callable[..., Any],
    connect: Connect,
    certificate: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    bundle: str,
) -> None:
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / bundle))
    listener = listen(tls=certificate.tls)
    connect(host=listener.url)
    with pytest.raises(ReductoError):
        ReductoHook().run(PATH)
    assert listener.requests == []


# Where the key goes


def test_a_certificate_that_is_trusted(listen: Callable[..., Any], connect: Connect, certificate: Any) -> None:
    listener = listen(tls=certificate.tls)
    connect(host=listener.url, extra={"verify": str(certificate.bundle)})
    assert ReductoHook().run(PATH, ASKED).status_code == 200
    connect(host=listener.url)
    with pytest.raises(ReductoTransportError, match=r"(?i)certificate"):
        ReductoHook().run(PATH, ASKED)
    assert listener.headers("Authorization") == [f"Bearer {KEY}"]


@pytest.mark.parametrize("where", ["environment", "connection"])
def test_a_proxy_learns_neither_the_key_nor_tells_its_password(
    listen: Callable[..., Any],
    connect: Connect,
    conceals: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    proxy = listen(lambda request, proper: [b"HTTP/1.1 407 RAW\r\n\r\n"])
    url = proxy.url.replace("//", "//me:proxy-pass%40word@")
    if where == "environment":
        monkeypatch.setenv("https_proxy", url)
    connect(host="https://studio.example", extra={"proxy": url if where == "connection" else ""})
    with pytest.raises(ReductoTransportError, match="ProxyError") as caught:
        ReductoHook().run(PATH)
    assert KEY.encode() not in proxy.requests[0]
    conceals(caught.value, KEY, "proxy-pass", "RAW")


def test_get_conn_is_for_the_connection_s_host_only(simulator: Simulator, connect: Connect) -> None:
    with Simulator() as other:
        connect(host=simulator.url)
        session = ReductoHook().get_conn()
        assert session.get(f"{simulator.url}{PATH}").status_code == 200
        for url in (
            f"{other.url}{PATH}",
            f"http://127.0.0.1:{simulator.port}@127.0.0.1:{other.port}{PATH}",
            f"http://localhost:{simulator.port}{PATH}",
            f"https://127.0.0.1:{simulator.port}{PATH}",
        ):
            with pytest.raises(ReductoConfigurationError, match=rf"for {simulator.url}: it is not sent to another"):
                session.get(url)
        assert (len(simulator.requests), other.requests) == (1, [])


@pytest.mark.parametrize("follow", [{}, {"allow_redirects": True}])
def test_get_conn_follows_no_redirect(simulator: Simulator, connect: Connect, follow: dict[str, Any]) -> None:
    with Simulator() as other:
        simulator.faults.add(redirect(f"{other.url}{PATH}"), redirect(PATH))
        connect(host=simulator.url)
        session = ReductoHook().get_conn()
        assert [session.get(f"{simulator.url}{PATH}", **follow).status_code for _ in range(2)] == [302, 302]
        assert (len(simulator.requests), other.requests) == (2, [])


@pytest.mark.parametrize("trust", [{}, {"trust_env": True}])
def test_netrc_is_ignored(
    simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trust: dict[str, Any]
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password mine\n")
    monkeypatch.setenv("NETRC", str(netrc))
    connect(host=simulator.url)
    ReductoHook().run(PATH, ASKED, extra_options=trust)
    assert simulator.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_extras_never_become_headers(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url, extra={"X-Team": "team-value", "Authorization": "auth-value", "timeout": 7})
    ReductoHook().run(PATH, ASKED)
    assert set(simulator.requests[0].headers) <= {
        "Host",
        "Authorization",
        "User-Agent",
        "Accept",
        "Accept-Encoding",
        "Connection",
    }


def test_cookies_are_not_sent_back(simulator: Simulator, connect: Connect) -> None:
    simulator.faults.add(Reply(200, headers={"Set-Cookie": "session=1; Path=/"}))
    connect(host=simulator.url)
    session = ReductoHook().get_conn()
    for _ in range(2):
        session.get(f"{simulator.url}{PATH}")
    assert ["Cookie" in request.headers for request in simulator.requests] == [False, False]


def test_a_host_without_a_scheme_is_https(connect: Connect) -> None:
    connect(host="example.com", port=8443)
    hook = ReductoHook()
    hook.get_conn()
    assert hook.base_url == hook.url_from_endpoint("").rstrip("/") == "https://example.com:8443"


def test_a_host_in_another_script_gets_the_key(connect: Connect) -> None:
    connect(host="https://bücher.example")
    hook = ReductoHook()
    request = hook.get_conn().prepare_request(requests.Request("GET", hook.url_from_endpoint(PATH)))
    assert request.headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("given", [{}, {"timeout": 0.2}, {"timeout": (None, None)}, {"timeout": (0.2, None)}])
def test_every_request_has_a_timeout(simulator: Simulator, connect: Connect, given: dict[str, Any]) -> None:
    simulator.faults.add(Stall(5), times=None)
    connect(host=simulator.url, extra={"timeout": 60 if given == {"timeout": 0.2} else 0.2})
    hook = ReductoHook()
    with pytest.raises(ReductoTransportError):
        hook.get_conn().get(f"{simulator.url}{PATH}", **given)
    with pytest.raises(ReductoTransportError):
        hook.run(PATH, extra_options=given)


def test_the_session_shows_no_secret(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url, extra={"proxy": "http://me:proxy-password@127.0.0.1:1"})
    session = ReductoHook().get_conn()
    for thing in (session, session.auth, vars(session)["_settings"]):
        assert KEY not in f"{thing}{thing!r}"
        assert "proxy-password" not in f"{thing}{thing!r}"


def test_srv_lookup_changes_nothing(simulator: Simulator, connect: Connect) -> None:
    connect(host=simulator.url, extra={"srv_lookup": True})
    assert ReductoHook().run(PATH, ASKED).status_code == 200

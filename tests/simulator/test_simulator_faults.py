"""Each fault as a raw client sees it, and the plan of which request meets which."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable
from contextlib import closing
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, IncompleteRead

import pytest
import requests

from simulator import (
    Altered,
    CutShort,
    Endless,
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

Get = Callable[..., requests.Response]


def connect(sim: Simulator, timeout: float = 10) -> HTTPConnection:
    """Return a connection on which a request has been sent."""
    connection = HTTPConnection(sim.host, sim.port, timeout=timeout)
    connection.request("GET", "/api/v1/usage/export", headers={"Authorization": "Bearer sim-key-acme"})
    return connection


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("code", [400, 401, 403, 429, 500, 502, 503, 504, 520])
def test_a_status_for_the_next_requests(sim: Simulator, get: Get, code: int) -> None:
    sim.faults.add(status(code), times=2)
    responses = [get() for _ in range(3)]
    assert [response.status_code for response in responses] == [code, code, 200]
    assert set(responses[0].json()) == {"error"}


def test_any_status_body_and_headers(sim: Simulator, get: Get) -> None:
    sim.faults.add(Reply(418, b"\xff\x00", {"content-type": "application/x-tea", "X-Pot": "short"}))
    response = get()
    assert (response.status_code, response.content) == (418, b"\xff\x00")
    assert response.headers["Content-Type"] == "application/x-tea"
    assert response.headers["X-Pot"] == "short"


def test_a_raw_body_with_status_200(sim: Simulator, get: Get) -> None:
    sim.faults.add(Reply(body='{"data": [1e400, NaN'))
    response = get()
    assert (response.status_code, response.text) == (200, '{"data": [1e400, NaN')
    assert response.headers["Content-Type"] == "application/json"


def test_the_journal_names_the_fault_that_a_request_met(sim: Simulator, get: Get) -> None:
    sim.faults.add(status(503), Gzip())
    for _ in range(3):
        get()
    assert [(request.fault, request.status) for request in sim.requests] == [("Reply", 503), ("Gzip", 200), (None, 200)]
    assert sim.requests[0].as_json()["fault"] == "Reply"


def test_retry_after(sim: Simulator, get: Get) -> None:
    sim.faults.add(
        status(429, retry_after=7),
        status(503, retry_after=3600, retry_after_as="date"),
        status(503, headers={"Retry-After": "soon"}),
    )
    assert get().headers["Retry-After"] == "7"
    in_an_hour = get().headers
    ahead = parsedate_to_datetime(in_an_hour["Retry-After"]) - parsedate_to_datetime(in_an_hour["Date"])
    assert 3500 < ahead.total_seconds() < 3700
    assert get().headers["Retry-After"] == "soon"


def test_a_page_with_status_200(sim: Simulator, get: Get) -> None:
    sim.faults.add(html())
    response = get()
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    assert "<html>" in response.text


def test_a_redirect(sim: Simulator, get: Get) -> None:
    sim.faults.add(redirect("https://elsewhere.invalid/x"), redirect("/login", 307))
    responses = get(), get()
    assert [response.status_code for response in responses] == [302, 307]
    assert [response.headers["Location"] for response in responses] == [
        "https://elsewhere.invalid/x",
        "/login",
    ]


@pytest.mark.parametrize("name", ["orgId", "startDate", "endDate", "groupBy"])
def test_a_wrong_echo(sim: Simulator, get: Get, name: str) -> None:
    proper = get().json()
    sim.faults.add(Altered({name: "wrong"}))
    assert get().json() == {**proper, name: "wrong"}


def test_an_error_has_nothing_to_alter(sim: Simulator, get: Get) -> None:
    sim.faults.add(Altered({"orgId": "wrong"}))
    assert get("nobody").status_code == 401


def test_gzip(sim: Simulator, get: Get) -> None:
    proper = get()
    sim.faults.add(Gzip(), Gzip(declared=False))
    declared, raw = get(), get()
    assert declared.headers["Content-Encoding"] == "gzip"
    assert declared.content == proper.content
    assert "Content-Encoding" not in raw.headers
    assert gzip.decompress(raw.content) == proper.content


def test_a_stall_ends_in_the_proper_answer(sim: Simulator, get: Get) -> None:
    proper = get().content
    sim.faults.add(Stall(0.01), Stall(0.01, "body"))
    assert [get().content, get().content] == [proper, proper]


def test_a_stall_before_the_headers(sim: Simulator, get: Get) -> None:
    sim.faults.add(Stall(60))
    with closing(connect(sim, timeout=0.1)) as connection, pytest.raises(TimeoutError):
        connection.getresponse()
    until(lambda: sim.journal.in_flight == 0)
    assert sim.requests[0].status is None
    assert get().status_code == 200


def test_a_stall_in_the_middle_of_the_body(sim: Simulator) -> None:
    sim.faults.add(Stall(60, "body"))
    with closing(connect(sim, timeout=0.1)) as connection:
        response = connection.getresponse()
        assert response.status == 200
        with pytest.raises(TimeoutError):
            response.read()
    until(lambda: sim.journal.in_flight == 0)


def test_a_trickle(sim: Simulator) -> None:
    sim.usage.set_rows("org_acme", [])
    sim.faults.add(Trickle(0.001))
    with closing(connect(sim)) as connection:
        response = connection.getresponse()
        pieces = list(iter(lambda: response.read1(65536), b""))
    assert len(pieces) > 1
    assert json.loads(b"".join(pieces))["orgId"] == "org_acme"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_cut_short(sim: Simulator, get: Get, chunked: bool) -> None:
    proper = get("sim-key-acme").content
    sim.faults.add(CutShort(chunked=chunked))
    with closing(connect(sim)) as connection:
        response = connection.getresponse()
        assert response.status == 200
        assert (response.getheader("Content-Length") is None) is chunked
        with pytest.raises(IncompleteRead) as cut:
            response.read()
    assert cut.value.partial == proper[: len(proper) // 2]


def test_a_connection_reset(sim: Simulator, get: Get) -> None:
    sim.faults.add(Reset())
    with closing(connect(sim)) as connection, pytest.raises(ConnectionResetError):
        connection.getresponse()
    until(lambda: sim.journal.in_flight == 0)
    assert sim.requests[0].status is None
    assert get().status_code == 200


def test_an_endless_body(sim: Simulator, get: Get) -> None:
    sim.faults.add(Endless())
    with closing(connect(sim)) as connection:
        response = connection.getresponse()
        assert response.status == 200
        assert len(response.read(3_000_000)) == 3_000_000
        assert get().status_code == 200, "others are served meanwhile"
    until(lambda: sim.journal.in_flight == 0)


def test_the_simulator_ends_whatever_is_under_way() -> None:
    with Simulator() as sim:
        sim.faults.add(Stall(60), Endless())
        connections = [connect(sim), connect(sim)]
        until(lambda: sim.journal.in_flight == 2)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((sim.host, sim.port), timeout=10)
    for connection in connections:
        connection.close()


def test_requests_at_once_are_counted(sim: Simulator, get: Get) -> None:
    get()
    get()
    assert sim.journal.max_in_flight == 1
    sim.faults.add(Stall(60), times=4)
    connections = [connect(sim) for _ in range(4)]
    until(lambda: sim.journal.in_flight == 4)
    for connection in connections:
        connection.close()
    until(lambda: sim.journal.in_flight == 0)
    assert sim.journal.max_in_flight == 4


def test_faults_queue_up(sim: Simulator, get: Get) -> None:
    sim.faults.add(status(500), status(502), times=2)
    sim.faults.add(status(503))
    assert [get().status_code for _ in range(6)] == [500, 500, 502, 502, 503, 200]


def test_a_fault_for_one_organization(sim: Simulator, get: Get) -> None:
    sim.faults.add(status(500), times=2, org="org_globex")
    assert get().status_code == 200
    assert get(orgId="org_globex").status_code == 500
    assert get("sim-key-globex").status_code == 500
    assert get(orgId="org_globex").status_code == 200


def test_a_fault_for_good(sim: Simulator, get: Get) -> None:
    sim.faults.add(status(500), times=None)
    assert {get().status_code for _ in range(5)} == {500}
    sim.faults.clear()
    assert get().status_code == 200


def test_a_seeded_share_of_requests(sim: Simulator, get: Get) -> None:
    def statuses(seed: int) -> list[int]:
        sim.faults.clear()
        sim.faults.at_rate(0.3, status(500), status(503), seed=seed)
        return [get(startDate="2026-06-18").status_code for _ in range(60)]

    assert statuses(7) == statuses(7) != statuses(8)
    assert set(statuses(7)) == {200, 500, 503}
    assert statuses(7).count(200) > 30


def test_how_often_must_make_sense(sim: Simulator) -> None:
    with pytest.raises(ValueError, match="times"):
        sim.faults.add(status(500), times=0)

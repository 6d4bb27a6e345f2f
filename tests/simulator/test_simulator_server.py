"""The journal, the admin API, and the simulator as a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator import Simulator, status

Get = Callable[..., requests.Response]

ROOT = Path(__file__).parents[2]


def admin(sim: Simulator, what: str, **content: Any) -> requests.Response:
    return requests.post(f"{sim.url}/_simulator/{what}", json=content, timeout=10)


def test_the_journal_keeps_requests_as_they_came(sim: Simulator, get: Get) -> None:
    before = datetime.now(UTC)
    sim.faults.add(status(503))
    get("sim-key-acme", groupBy="api_key", product=["split", "parse"], apiKey="a b&c/ü")
    get("nobody")
    requests.get(f"{sim.url}/elsewhere?x", timeout=10)
    first, second, third = sim.requests
    assert (first.method, first.path, first.status) == ("GET", "/api/v1/usage/export", 503)
    assert first.query == [
        ("groupBy", "api_key"),
        ("product", "split"),
        ("product", "parse"),
        ("apiKey", "a b&c/ü"),
    ]
    assert first.query_string == "groupBy=api_key&product=split&product=parse&apiKey=a+b%26c%2F%C3%BC"
    assert first.headers["authorization"] == "Bearer sim-key-acme"
    assert before <= first.at <= second.at <= datetime.now(UTC)
    assert first.monotonic <= second.monotonic
    assert second.status == 401
    assert (third.path, third.query, third.status) == ("/elsewhere", [("x", "")], 404)
    sim.clear()
    assert sim.requests == []


def test_a_port_in_use_raises_in_the_caller(sim: Simulator) -> None:
    with pytest.raises(OSError, match="in use"):
        Simulator(port=sim.port).start()


def test_health(sim: Simulator) -> None:
    assert requests.get(f"{sim.url}/healthz", timeout=10).json() == {"status": "ok"}


def test_admin_adds_faults(sim: Simulator, get: Get) -> None:
    assert admin(sim, "faults", kind="status", code=503, retry_after=2, times=2).status_code == 200
    admin(sim, "faults", kind="altered", fields={"groupBy": "day"}, org="org_hooli")
    admin(sim, "faults", kind="reply", status=200, body="nonsense")
    admin(sim, "faults", kind="stall", seconds=0.01, where="body")
    assert [get().headers.get("Retry-After") for _ in range(2)] == ["2", "2"]
    assert get(orgId="org_hooli").json()["groupBy"] == "day"
    assert get().text == "nonsense"
    assert get().json()["orgId"] == "org_acme"


def test_admin_adds_faults_at_a_rate(sim: Simulator, get: Get) -> None:
    admin(sim, "faults", kind="redirect", location="/", rate=1, org="org_acme")
    assert {get().status_code for _ in range(3)} == {302}
    assert get(orgId="org_hooli").status_code == 200


def test_admin_changes_usage(sim: Simulator, get: Get) -> None:
    def on_the_tenth() -> list[tuple[str, float | None]]:
        rows = get(startDate="2026-06-10", endDate="2026-06-10").json()["data"]
        return [(row["group"], row.get("credits")) for row in rows]

    original = on_the_tenth()
    day = {"org": "org_acme", "day": "2026-06-10"}
    admin(sim, "restate", **day, factor=0)
    assert on_the_tenth() == []
    admin(sim, "usage", **day, credits=12.5, requests=3, product="edit")
    assert on_the_tenth() == [("edit", 12.5)]
    admin(sim, "records", org="org_acme", records=[{"date": "2026-06-10", "credits": "0.1", "requests": 1}])
    assert on_the_tenth() == [("parse", 0.1)]
    admin(sim, "credits", org="org_acme", shown="absent")
    assert on_the_tenth() == [("parse", None)]
    admin(sim, "rows", org="org_acme", rows=[{"group": "anything"}])
    assert on_the_tenth() == [("anything", None)]
    assert requests.delete(f"{sim.url}/_simulator/", timeout=10).status_code == 200
    assert on_the_tenth() == original


def test_admin_returns_the_requests(sim: Simulator, get: Get) -> None:
    get("sim-key-acme", groupBy="feature")
    found = requests.get(f"{sim.url}/_simulator/requests", timeout=10).json()
    assert (found["inFlight"], found["maxInFlight"]) == (0, 1)
    (only,) = found["requests"]
    assert (only["method"], only["query"], only["status"]) == ("GET", [["groupBy", "feature"]], 200)
    assert ["Authorization", "Bearer sim-key-acme"] in only["headers"]
    requests.delete(f"{sim.url}/_simulator/", timeout=10)
    assert requests.get(f"{sim.url}/_simulator/requests", timeout=10).json()["requests"] == []


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("faults", {"kind": "unheard-of"}),
        ("faults", {"kind": "stall"}),
        ("faults", {"kind": "reset", "times": 0}),
        ("usage", {"org": "org_unheard_of", "day": "2026-06-10", "credits": 1, "requests": 1}),
        ("usage", {"org": "org_acme", "day": "soon", "credits": 1, "requests": 1}),
        ("restate", {"org": "org_acme", "day": "2026-06-10", "factor": "much"}),
        ("records", {"org": "org_acme", "records": [{}]}),
    ],
)
def test_admin_refuses_what_it_does_not_understand(sim: Simulator, what: str, content: dict[str, Any]) -> None:
    response = admin(sim, what, **content)
    assert response.status_code == 400
    assert response.json()["error"]


@contextmanager
def process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The simulator as a process of its own, and its address."""
    command = [sys.executable, "-m", "simulator", "--port", "0", *options]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        try:
            assert started.stdout
            yield started, started.stdout.readline().split()[-1]
        finally:
            started.kill()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_process_serves_until_a_signal(ending: signal.Signals) -> None:
    with process("--now", "2026-06-18T15:00", "--api-keys", "3") as (started, url):
        assert requests.get(f"{url}/healthz", timeout=10).status_code == 200
        answer = requests.get(
            f"{url}/api/v1/usage/export",
            params={"groupBy": "api_key"},
            headers={"Authorization": "Bearer sim-key-large"},
            timeout=10,
        ).json()
        assert (answer["orgId"], answer["endDate"]) == ("org_large", "2026-06-18")
        assert {row["group"] for row in answer["data"]} == {"key-00000", "key-00001", "key-00002"}
        requests.post(f"{url}/_simulator/faults", json={"kind": "stall", "seconds": 60}, timeout=10)
        waiting = HTTPConnection(url.removeprefix("http://"), timeout=10)
        waiting.request("GET", "/api/v1/usage/export")
        started.send_signal(ending)
        assert started.communicate(timeout=10) == ("", "")
        assert started.returncode == 0
        waiting.close()


def test_a_process_with_faults() -> None:
    def outcome(url: str) -> str:
        try:
            headers = {"Authorization": "Bearer sim-key-acme"}
            response = requests.get(f"{url}/api/v1/usage/export", headers=headers, timeout=10)
        except requests.RequestException as error:
            return type(error).__name__
        return str(response.status_code)

    with (
        process("--fault-rate", "0.5", "--seed", "7") as (_, url),
        process("--fault-rate", "0.5") as (_, other),
    ):
        outcomes = [outcome(url) for _ in range(20)]
        assert outcomes.count("200") in range(4, 17)
        assert outcomes != [outcome(other) for _ in range(20)]

"""A simulator on a clock that stands still, and a client without any cleverness of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
import requests

from simulator import Simulator


class Clock:
    """A clock that shows what a test sets it to."""

    now = datetime(2026, 6, 18, 15, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sim(clock: Clock) -> Iterator[Simulator]:
    with Simulator(clock=clock) as running:
        yield running


@pytest.fixture
def get(sim: Simulator) -> Iterator[Callable[..., requests.Response]]:
    with requests.Session() as session:
        session.trust_env = False

        def get(key: str | None = "sim-key-all", **query: str | list[str]) -> requests.Response:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            return session.get(
                f"{sim.url}/api/v1/usage/export",
                params=query,
                headers=headers,
                timeout=10,
                allow_redirects=False,
            )

        yield get

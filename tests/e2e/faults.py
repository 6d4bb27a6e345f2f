"""What goes wrong in `make e2e`: processes die, requests fail, a key is revoked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psutil

from tests.object_storage.s3server import Answer, Call
from tests.real_airflow.processes import processes_in

if TYPE_CHECKING:
    from tests.e2e.story import Story

RATE = 0.1
"""The share of requests that meet a fault."""


class Faults:
    """The faults of a story, one after the other while its runs go on."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self.what: list[str] = []
        self.revoked_at: datetime | None = None

    def begin(self) -> None:
        """From now on a tenth of all requests goes wrong: 500, 502, 503, 429, a reset, a body cut short."""
        self._story.simulator.faults.at_rate(RATE, seed=6)

    def happen(self) -> None:
        """All that is done to processes, and to a key."""
        from tests.e2e.story import MONTHLY, REVOKED

        story, airflow = self._story, self._story.airflow
        with self._step("a worker is killed while it writes files"), story.s3.answering(slowly):
            airflow.wait_for(lambda: self._writes("worker-1"), 300, "worker-1 to write")
            airflow.kill("worker-1")
        time.sleep(5)
        airflow.start_service("worker-1")
        self._go_on()

        with self._step("the scheduler is killed"):
            airflow.kill("scheduler")
        time.sleep(5)
        airflow.start_service("scheduler")
        self._go_on()

        runs = {org: story.scheduled_run(MONTHLY[org])["dag_run_id"] for org in ("org_acme", "org_initech", REVOKED)}
        for org, run_id in runs.items():
            airflow.wait_for_task(MONTHLY[org], run_id, "budget_exceeded", "deferred", timeout=900)
        with self._step("the key of an organization is revoked, and its waiting sensor fails"):
            del story.simulator.keys[story.keys[REVOKED]]
            self.revoked_at = datetime.now(UTC)
            airflow.wait_for_task(MONTHLY[REVOKED], runs[REVOKED], "budget_exceeded", "failed", timeout=300)
        self._go_on()

        with self._step("the triggerer is killed, and a budget is exceeded meanwhile"):
            airflow.kill("triggerer")
            story.spend("org_acme")
        airflow.start_service("triggerer")
        airflow.wait_for_task(MONTHLY["org_acme"], runs["org_acme"], "budget_exceeded", "success", timeout=300)

        with self._step("Redis is restarted"):
            story.redis.restart()
        self._go_on()

        with self._step("a worker is killed again, the other one"), story.s3.answering(slowly):
            with suppress(TimeoutError):
                airflow.wait_for(lambda: self._writes("worker-2"), 60, "worker-2 to write")
            airflow.kill("worker-2")
        airflow.start_service("worker-2")

    def met(self) -> Counter[str]:
        """How often each fault was met."""
        requests = self._story.simulator.requests
        return Counter(str(each.status) if each.fault == "Reply" else each.fault for each in requests if each.fault)

    def _step(self, what: str) -> AbstractContextManager[None]:
        self.what.append(what)
        return self._story.step(what)

    def _go_on(self, instances: int = 10) -> None:
        """Wait until some more task instances have ended."""
        count = self._ended_instances()
        probe: Callable[[], bool] = lambda: self._ended_instances() >= count + instances  # noqa: E731
        self._story.airflow.wait_for(probe, 600, "task instances to go on")

    def _ended_instances(self) -> int:
        [[count]] = self._story.postgres.query("select count(*) from task_instance where end_date is not null")
        return int(count)

    def _writes(self, worker: str) -> bool:
        """Whether a process of a worker talks to the storage, and requests are held there."""
        port = int(self._story.s3.url.rpartition(":")[2])
        for process in processes_in(self._story.airflow.home / "run" / worker):
            with suppress(psutil.Error, OSError):
                for connection in process.net_connections(kind="tcp"):
                    if connection.status == psutil.CONN_ESTABLISHED and connection.raddr.port == port:
                        return any(call.method == "PUT" and call.status is None for call in self._story.s3.calls)
        return False


def slowly(call: Call, proper: Callable[[], Answer]) -> Answer:
    """Let writing take a while, so that it can be interrupted."""
    if call.method == "PUT":
        time.sleep(1)
    return proper()

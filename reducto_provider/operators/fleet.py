"""How a fleet is exported: many questions at a time on the event loop, whose end does not depend on any one of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, redact

from reducto_provider.exceptions import ReductoAuthenticationError, typed_errors
from reducto_provider.export.dataset import Attempt, PublishedDays, UsageDataset
from reducto_provider.export.fleet import FleetEntry, FleetOutcome, split_query
from reducto_provider.hooks import event_loop
from reducto_provider.usage.query import unmatched_filters
from reducto_provider.usage.report import UsageReport
from reducto_provider.usage.window import today

if TYPE_CHECKING:
    from reducto_provider.hooks.reducto import ReductoHook
    from reducto_provider.usage.query import UsageQuery

Result = TypeVar("Result")


class FleetExport:
    """
    Exports organizations into one dataset, at most ``concurrency`` at a time, each with one report in memory.

    :param query: the days and filters that are asked for of each.
    :param run: names the task instance.
    :param attempt: which try it is. What earlier ones published is not asked for again.
    :param log: called with a level, a message and its arguments.
    """

    def __init__(
        self,
        entries: Sequence[FleetEntry],
        query: UsageQuery,
        dataset: UsageDataset,
        *,
        days_per_request: int,
        concurrency: int,
        run: str,
        attempt: Attempt,
        log: Callable[..., None],
    ) -> None:
        from reducto_provider.hooks.reducto import ReductoHook

        self.outcomes: list[FleetOutcome] = []
        self.asked: list[tuple[str, str, str]] = []
        """Service, organization and dimension of each answer that was written."""
        self._entries = entries
        self._query = query
        self._dataset = dataset
        self._days_per_request = days_per_request
        self._concurrency = concurrency
        self._run = run
        self._attempt = attempt
        self._log = log
        # One each, so that all of a connection's requests keep its pace.
        self._hooks = {entry.conn_id: ReductoHook(entry.conn_id) for entry in entries}
        self._refusals: dict[str, str] = {}

    def run(self) -> list[FleetOutcome]:
        """
        Export them all. ``outcomes`` has them as they come, the result as they were given.

        Connections are looked up, and lines are logged, in the calling thread. Whatever is raised there meanwhile ends
        the export, as soon as the files under way are written.

        :raises asyncio.CancelledError: when :func:`~reducto_provider.hooks.event_loop.cancel` ended it.
        """
        with ThreadPoolExecutor(self._concurrency, "reducto-fleet") as self._storage_threads:
            event_loop.run(self._work_all())
        places = {entry: place for place, entry in enumerate(self._entries)}
        return sorted(self.outcomes, key=lambda outcome: places[outcome.entry])

    async def _work_all(self) -> None:
        waiting = iter(self._entries)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._concurrency, len(self._entries))):
                group.create_task(self._work(waiting))

    async def _work(self, waiting: Iterator[FleetEntry]) -> None:
        for entry in waiting:
            outcome = FleetOutcome(entry)
            try:
                with typed_errors(str(entry)):
                    await self._export(entry, outcome)
                query = replace(self._query, org_id=entry.org_id, group_by=entry.group_by)
                if warning := unmatched_filters(query, outcome.row_count):
                    await event_loop.run_aside(self._log, logging.WARNING, "%s", warning)
            except Exception as error:  # noqa: BLE001  # one organization's failure is no other's
                # Airflow masks what is logged, but not what goes to XCom.
                reason = str(redact(f"{type(error).__name__}: {error}"))
                outcome.fail(reason, hopeless=isinstance(error, AirflowFailException))
                if not isinstance(error, AirflowException):
                    message = "%s failed for a reason that was not foreseen"
                    await event_loop.run_aside(partial(self._log, logging.ERROR, message, entry, exc_info=error))
            self.outcomes.append(outcome)
            level = logging.ERROR if outcome.status == "failed" else logging.INFO
            await event_loop.run_aside(
                self._log, level, "%d of %d: %s", len(self.outcomes), len(self._entries), outcome
            )

    async def _export(self, entry: FleetEntry, outcome: FleetOutcome) -> None:
        hook = self._hooks[entry.conn_id]
        settings = await hook.aget_settings()
        what = (self._attempt.fingerprint, entry.conn_id, settings.base_url)
        attempt = replace(self._attempt, fingerprint=sha256(repr(what).encode()).hexdigest()[:16])
        query = replace(self._query, org_id=entry.org_id, group_by=entry.group_by)
        async with AsyncExitStack() as stack:
            for part in split_query(query, self._days_per_request):
                days = None
                if attempt.number > attempt.first:
                    days = await self._in_thread(self._dataset.published_before, part, self._run, attempt)
                if days is None:
                    if outcome.status != "exported":
                        await stack.enter_async_context(hook)
                        outcome.status = "exported"
                    days = await self._ask_and_publish(hook, part, attempt)
                    self.asked.append((settings.base_url, entry.org_id, entry.group_by))
                outcome.add(days)

    async def _ask_and_publish(self, hook: ReductoHook, query: UsageQuery, attempt: Attempt) -> PublishedDays:
        if refusal := self._refusals.get(hook.reducto_conn_id):
            raise ReductoAuthenticationError(refusal)
        final = query.end < today()  # before it is asked: the day may end meanwhile
        try:
            report = await hook.aget_usage(query)
        except ReductoAuthenticationError as error:
            # The key is the same for all of the connection's organizations: it is not tried on each.
            self._refusals[hook.reducto_conn_id] = str(error)
            raise
        return await self._in_thread(self._publish, report, query, attempt if final else None)

    def _publish(self, report: UsageReport, query: UsageQuery, attempt: Attempt | None) -> PublishedDays:
        files = self._dataset.publish(report, query, run=self._run, attempt=attempt)
        return PublishedDays(
            row_count=len(report.rows),
            credits=report.credits,
            request_count=report.request_count,
            changed={file.day: file.change for file in files if file.day and file.changed},
        )

    async def _in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._storage_threads, partial(function, *arguments))

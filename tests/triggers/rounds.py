"""Rounds of polls made by hand for a level trigger, and the levels that fire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from reducto_provider.triggers.levels import ReductoUsageLevelTrigger
from reducto_provider.triggers.polls import Poll
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport, UsageRow

JUNE_18 = datetime(2026, 6, 18, 12, tzinfo=UTC)
ANY_DAY = date(2026, 6, 10)

Round = Callable[[ReductoUsageLevelTrigger], list[Poll]]


class Store:
    """The state store of one asset, as far as triggers use it. It keeps JSON, as Airflow's does."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.error: Exception | None = None

    async def aget(self, key: str, default: Any = None) -> Any:
        if self.error:
            raise self.error
        return json.loads(self.kept[key]) if key in self.kept else default

    async def aset(self, key: str, value: Any) -> None:
        if self.error:
            raise self.error
        self.kept[key] = json.dumps(value)


def manual_trigger(store: Any = None, **arguments: Any) -> ReductoUsageLevelTrigger:
    """Return a trigger that does not poll by itself."""
    trigger = ReductoUsageLevelTrigger(**{"budget": 100, **arguments})
    trigger.asset_state_store = store
    trigger.poll_immediately = False
    return trigger


def at(
    moment: datetime,
    used: Mapping[date, str] | str | None,
    *,
    org_id: str = "org_acme",
    error: Exception | None = None,
    requests: int = 1,
) -> Round:
    """
    Return one round of polls: the answer at a moment to each query of the trigger at that moment.

    ``used`` is credits by day, or those of one day in June.
    """
    days = used if isinstance(used, Mapping) else {ANY_DAY: used}

    def poll(query: UsageQuery) -> Poll:
        if error:
            return Poll(moment, query, error=error)
        rows = tuple(
            UsageRow(day, "parse", None if amount is None else Decimal(amount), requests)
            for day, amount in sorted(days.items())
            if query.start <= day <= query.end
        )
        report = UsageReport(org_id=org_id, start=query.start, end=query.end, group_by="product", rows=rows)
        return Poll(moment, query, report)

    return lambda trigger: [poll(query) for query in trigger._queries(moment)]


def fires(trigger: ReductoUsageLevelTrigger, *rounds: Round) -> list[tuple[float, str]]:
    """Return the levels that fire, with the first day of their window."""
    return [(event["level"], event["reading"]["usage_start_date"]) for event in payloads(trigger, *rounds)]


def june(*levels: float) -> list[tuple[float, str]]:
    return [(level, "2026-06-01") for level in levels]


def by_group(moment: datetime, used: Mapping[str | None, Mapping[date, str] | str]) -> Round:
    """
    Return one round of polls of a service that has several groups.

    ``used`` is credits by group, on one day in June or by day.
    """
    days = [
        (day, group, Decimal(amount))
        for group, amounts in used.items()
        for day, amount in (amounts if isinstance(amounts, Mapping) else {ANY_DAY: amounts}).items()
    ]

    def poll(query: UsageQuery) -> Poll:
        rows = tuple(
            UsageRow(day, group, amount, 1)
            for day, group, amount in sorted(days, key=str)
            if query.start <= day <= query.end
        )
        report = UsageReport(org_id="org_acme", start=query.start, end=query.end, group_by=query.group_by, rows=rows)
        return Poll(moment, query, report)

    return lambda trigger: [poll(query) for query in trigger._queries(moment)]


def payloads(trigger: ReductoUsageLevelTrigger, *rounds: Round) -> list[dict[str, Any]]:
    """Return the contents of the events."""

    async def stream() -> AsyncIterator[Poll]:
        for polls in rounds:
            for poll in polls(trigger):
                yield poll

    async def collect() -> list[dict[str, Any]]:
        return [event.payload async for event in trigger.filter_shared_stream(stream())]

    return asyncio.run(collect())


def groups_that_fire(trigger: ReductoUsageLevelTrigger, *rounds: Round) -> list[tuple[float, list[str | None]]]:
    """Return the levels that fire, each with its groups, the largest first."""
    return [
        (event["level"], [reading["group"] for reading in event["readings"]]) for event in payloads(trigger, *rounds)
    ]

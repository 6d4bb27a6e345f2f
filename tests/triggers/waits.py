"""Triggers that poll the simulator, and how tests wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, date, datetime
from typing import Any

from reducto_provider.triggers.base import BaseUsageTrigger
from reducto_provider.triggers.levels import ReductoUsageLevelTrigger
from reducto_provider.triggers.threshold import ReductoUsageThresholdTrigger

INTERVAL = 0.2
"""Seconds between polls. The fixture ``short_interval`` allows it; real ones are a second at least."""


def today() -> date:
    return datetime.now(UTC).date()


def threshold_trigger(**arguments: Any) -> ReductoUsageThresholdTrigger:
    """Return a trigger that waits for more than ten credits today, and polls once per interval."""
    days = {"usage_start_date": str(today()), "usage_end_date": str(today())}
    return ReductoUsageThresholdTrigger(
        **{"reducto_conn_id": "reducto_default", "threshold": "10", "poke_interval": INTERVAL, **days, **arguments}
    )


def level_trigger(**arguments: Any) -> ReductoUsageLevelTrigger:
    """Return a trigger of a large budget that polls once per interval, in every poll for one window."""
    return ReductoUsageLevelTrigger(**{"budget": 1_000_000, "settle_days": 0, "poke_interval": INTERVAL, **arguments})


async def first_event(trigger: BaseUsageTrigger) -> dict[str, Any]:
    """Return the payload of a trigger's first event, polling alone."""
    async with asyncio.timeout(60), aclosing(trigger.run()) as events:
        return (await anext(events)).payload


async def first_shared_event(manager: Any, number: int, trigger: BaseUsageTrigger) -> dict[str, Any]:
    """Return the payload of its first event from a shared stream, subscribed as a triggerer does."""
    key = trigger.shared_stream_key()
    stream = manager.subscribe(trigger_id=number, trigger=trigger, key=key)
    try:
        return (await anext(trigger.filter_shared_stream(stream))).payload
    finally:
        await manager.unsubscribe(number, key)


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something in another thread, for less than the minute that a stalled request takes here."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)

"""Remember which levels of a budget have fired."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from reducto_provider.usage.threshold import Reading

if TYPE_CHECKING:
    from reducto_provider.triggers.levels import ReductoUsageLevelTrigger

_WINDOWS_REMEMBERED = 50  # more than are ever watched at the same time


class FiredLevels:
    """Keep which levels have fired, by window: in Airflow's asset state store if there is one, else in memory."""

    def __init__(self) -> None:
        self._fired: dict[str, dict[str, list[float]]] = {}
        self._to_store: set[str] = set()
        self._stored = True

    async def new(self, trigger: ReductoUsageLevelTrigger, reading: Reading, exceeded: list[float]) -> list[float]:
        """Return the exceeded levels that have not fired yet in the window of the reading."""
        key, window = _memory_key(trigger, reading), reading.window.first.isoformat()
        if key not in self._fired:
            self._fired[key] = await self._load(trigger, key)
        elif not {*exceeded} <= {*self._fired[key].get(window, [])}:
            # Another triggerer may have fired them while this one was considered dead. If the store fails they fire:
            # again, rather than not at all. The failure is logged when they are stored.
            with suppress(Exception):
                self._fired[key] = _union(await self._load(trigger, key), self._fired[key])
        return [level for level in exceeded if level not in self._fired[key].get(window, [])]

    def add(self, trigger: ReductoUsageLevelTrigger, level: float, reading: Reading) -> None:
        key, window = _memory_key(trigger, reading), reading.window.first.isoformat()
        windows = self._fired.setdefault(key, {})
        windows[window] = [*windows.get(window, []), level]
        self._to_store.add(key)

    async def store(self, trigger: ReductoUsageLevelTrigger) -> None:
        """
        Store what was added, and check at the next call that it is there: storing may have failed, or another trigger
        of the asset may have overwritten it at the same moment.
        """
        if not self._stored or (store := _store_of(trigger)) is None:
            return
        for key in list(self._to_store):
            stored = await self._load(trigger, key)
            windows = dict(list(_union(stored, self._fired[key]).items())[-_WINDOWS_REMEMBERED:])
            if windows == stored:
                self._to_store.discard(key)
            else:
                await store.aset(key, windows)

    async def _load(self, trigger: ReductoUsageLevelTrigger, key: str) -> dict[str, list[float]]:
        if not self._stored or (store := _store_of(trigger)) is None:
            return {}
        try:
            stored = await store.aget(key)
        except ValueError as error:
            if type(error) is not ValueError:  # invalid JSON: the store fails for now, as with any other error
                raise
            # Several assets share this trigger, and so Airflow does not know whose store to use.
            self._stored = False
            await trigger._alog(
                "warning",
                "Fired levels are kept in memory, and fire again when the triggerer restarts or the DAG is paused; "
                "give each asset a trigger with its own arguments: %s",
                error,
            )
            return {}
        if stored is None:
            return {}
        try:
            return msgspec.convert(stored, dict[str, list[int | float]])
        except msgspec.ValidationError as error:  # another program wrote it: rather fire a level again than never
            await trigger._alog("warning", "Fired levels stored as %s are invalid, and fire again: %s", key, error)
            return {}


def _union(windows: dict[str, list[float]], others: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return the levels of both, by window, the oldest first."""
    return {
        window: sorted({*windows.get(window, []), *others.get(window, [])})
        for window in sorted(windows.keys() | others.keys())
    }


def _store_of(trigger: ReductoUsageLevelTrigger) -> Any:
    return getattr(trigger, "asset_state_store", None)  # there is none before Airflow 3.3


def _memory_key(trigger: ReductoUsageLevelTrigger, reading: Reading) -> str:
    """Return one key for each condition, whatever the interval and the connection."""
    watched = {
        "org_id": reading.org_id,
        "window": trigger.window,
        "metric": trigger.metric,
        "budget": trigger.budget,
        "filters": trigger._condition_for(reading.window).query.filters(),
    }
    digest = hashlib.sha256(json.dumps(watched, sort_keys=True).encode()).hexdigest()
    return f"reducto_usage_levels_{digest[:32]}"

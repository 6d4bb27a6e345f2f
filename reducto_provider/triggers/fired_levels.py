"""Remember which levels of a budget have fired."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any, Final

import msgspec

from reducto_provider.usage.report import EXACT
from reducto_provider.usage.threshold import Reading

if TYPE_CHECKING:
    from reducto_provider.triggers.levels import ReductoUsageLevelTrigger

MAX_GROUPS: Final = 100
"""Groups that fire at a level in a window, at most. It limits what is stored, and what an event holds."""

# One more than are ever watched at the same time, with the longest settle_days.
_MAX_WINDOWS: Final = {"month": 4, "week": 7, "day": 33}


class FiredLevels:
    """
    Keep which levels have fired, by window or by window and group: in Airflow's asset state store if there is one, else
    in memory.
    """

    def __init__(self) -> None:
        self._fired: dict[str, dict[str, list[float]]] = {}
        self._to_store: set[str] = set()
        self._stored = True

    async def new(
        self, trigger: ReductoUsageLevelTrigger, readings: list[Reading], levels: list[float]
    ) -> dict[float, list[Reading]]:
        """
        Return the readings that pass a level which has not fired for them, by level.

        :param readings: at least one, all of one organization and window.
        """
        key = _memory_key(trigger, readings[0])
        exceeded = [(level, reading) for level in levels for reading in readings if _passes(reading, level)]
        if key not in self._fired:
            self._fired[key] = await self._load(trigger, key)
        elif not all(self._has_fired(key, *each) for each in exceeded):
            # Another triggerer may have fired them while this one was considered dead. If the store fails they fire:
            # again, rather than not at all. The failure is logged when they are stored.
            with suppress(Exception):
                self._fired[key] = _union(await self._load(trigger, key), self._fired[key])
        new: dict[float, list[Reading]] = {}
        for level, reading in exceeded:
            if not self._has_fired(key, level, reading):
                new.setdefault(level, []).append(reading)
        return new

    def count(self, trigger: ReductoUsageLevelTrigger, level: float, reading: Reading) -> int:
        """Return how many groups have fired at a level in the window of a reading."""
        fired = self._fired[_memory_key(trigger, reading)]
        window = reading.window.first.isoformat()
        return sum(level in levels for entry, levels in fired.items() if _window_of(entry) == window)

    def add(self, trigger: ReductoUsageLevelTrigger, level: float, readings: list[Reading]) -> None:
        key = _memory_key(trigger, readings[0])
        fired = self._fired[key]
        for reading in readings:
            entry = _entry(reading)
            fired[entry] = [*fired.get(entry, []), level]
        self._fired[key] = _newest(fired, trigger.window)
        self._to_store.add(key)

    def _has_fired(self, key: str, level: float, reading: Reading) -> bool:
        return level in self._fired[key].get(_entry(reading), [])

    async def store(self, trigger: ReductoUsageLevelTrigger) -> None:
        """
        Store what was added, and check at the next call that it is there: storing may have failed, or another trigger
        of the asset may have overwritten it at the same moment.
        """
        if not self._stored or (store := _store_of(trigger)) is None:
            return
        for key in list(self._to_store):
            stored = await self._load(trigger, key)
            fired = _newest(_union(stored, self._fired[key]), trigger.window)
            if fired == stored:
                self._to_store.discard(key)
            else:
                await store.aset(key, fired)

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
            return msgspec.convert(stored, dict[str, list[int | float]])  # noqa: TID251  # no struct in it
        except msgspec.ValidationError as error:  # another program wrote it: rather fire a level again than never
            await trigger._alog("warning", "Fired levels stored as %s are invalid, and fire again: %s", key, error)
            return {}


def _passes(reading: Reading, level: float) -> bool:
    """Return whether a value is more than a level, in percent of the threshold, decided on all digits."""
    with localcontext(EXACT):
        return reading.value * 100 > reading.threshold * Decimal(str(level))


def _union(fired: dict[str, list[float]], others: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return the levels of both, by entry."""
    return {
        entry: sorted({*fired.get(entry, []), *others.get(entry, [])}) for entry in sorted(fired.keys() | others.keys())
    }


def _newest(fired: dict[str, list[float]], window: str) -> dict[str, list[float]]:
    """Return the entries of the windows that may still be watched."""
    windows = sorted({_window_of(entry) for entry in fired})[-_MAX_WINDOWS[window] :]
    return {entry: levels for entry, levels in fired.items() if _window_of(entry) in windows}


def _entry(reading: Reading) -> str:
    """Return the first day of the window, and with ``per_group`` a digest of the group: its name may be long."""
    window = reading.window.first.isoformat()
    if reading.group is None:
        return window
    return f"{window} {hashlib.sha256(reading.group.encode()).hexdigest()[:16]}"


def _window_of(entry: str) -> str:
    return entry.partition(" ")[0]


def _store_of(trigger: ReductoUsageLevelTrigger) -> Any:
    return getattr(trigger, "asset_state_store", None)  # there is none before Airflow 3.3


def _memory_key(trigger: ReductoUsageLevelTrigger, reading: Reading) -> str:
    """Return one key for each condition, whatever the interval and the connection."""
    watched = {
        "org_id": reading.org_id,
        "window": trigger.window,
        "metric": trigger.metric,
        "budget": trigger.budget,
        "projected": trigger.projected,
        "per_group": trigger.group_by if trigger.per_group else None,
        "filters": trigger._condition_for(reading.window).query.filters(),
    }
    digest = hashlib.sha256(json.dumps(watched, sort_keys=True).encode()).hexdigest()
    return f"reducto_usage_levels_{digest[:32]}"

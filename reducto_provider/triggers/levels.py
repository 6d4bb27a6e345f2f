"""Fire an event for each level of a budget that usage exceeds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from airflow.triggers.base import TriggerEvent

from reducto_provider.airflow_compat import WATCHERS_HAVE_QUEUES
from reducto_provider.exceptions import ReductoError
from reducto_provider.triggers.base import BaseStreamTrigger, make_event
from reducto_provider.triggers.fired_levels import MAX_GROUPS, FiredLevels
from reducto_provider.triggers.polls import Poll, error_text, figures_of
from reducto_provider.usage.checks import (
    check_bool,
    check_choice,
    check_number,
    check_seconds,
    check_whole_number,
    is_number,
)
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.fields import check_not_empty, is_literal, parse_query
from reducto_provider.usage.query import FILTER_PARAMETERS, UsageQuery
from reducto_provider.usage.report import Metric, format_decimal
from reducto_provider.usage.threshold import Reading, UsageThreshold, is_budget
from reducto_provider.usage.window import CALENDAR_WINDOWS, calendar_window

# Until an event has reached the database, where the triggerer writes it once a second, and the scheduler has created a
# run for it. A sooner event of the same asset would start no run of its own: it is left to the run of the next event.
_PERSIST_SECONDS = 15.0


class ReductoUsageLevelTrigger(BaseStreamTrigger):
    """
    Fire an event for each level of a budget that usage exceeds, for an ``AssetWatcher`` that starts DAGs.

    Each level fires once per window and organization, and again in the next window. A value equal to a level does not
    exceed it. Levels exceeded at the same time fire one after the other, the lowest first. An event is
    ``{"level": 80, "reading": {...}}``; the reading is that of the threshold sensor, with the budget as its threshold.
    With ``per_group`` each level fires once for each group, for at most a hundred groups in a window, the largest
    first. The groups that a poll finds above a level share an event, ``{"level": 80, "readings": [{...}, ...]}``.
    Unlike a sensor's, the window moves with the clock: it is the calendar period, in UTC days, that contains the moment
    of the poll. A window that ended is watched for ``settle_days`` more, beside the next one, since its last hours are
    only counted then.

    On Airflow 3.3 and later, fired levels are stored in the asset's state store, some seconds after the event: if the
    triggerer stops in between, the level fires again, rather than not at all. On Airflow 3.0 to 3.2, and if several
    assets have triggers with the same arguments, they are kept in memory: after a restart of the triggerer, a pause of
    the DAGs that the asset starts, or a change of the arguments, levels that are exceeded already fire once more.
    Airflow 2 has no watchers.

    A watcher never fails: a failed poll is logged, and the next one follows after ``poke_interval`` seconds.

    :param budget: the usage that is 100 %; from 1e-9 to less than 1e18.
    :param levels: percentages of the budget, each more than 0 and up to 10,000.
    :param metric: ``credits`` or ``requests``.
    :param window: ``month``, ``week`` (from Monday) or ``day``.
    :param per_group: compare each group of ``group_by`` with the budget, instead of their sum.
    :param projected: compare the projected usage of the whole window, as the threshold sensor does. A level that has
        fired stays fired when the projection falls. After the window's end its usage is compared.
    :param group_by: ``product``, ``feature``, ``api_key`` or ``file_type``.
    :param settle_days: days after a window's end during which it is still watched. A projection leaves out as many days
        before today, as the sensor's does.
    :param org_id: the organization; by default the one of the connection's extra ``org_id``, else the key's own.
    :param products: only these; one text or several, ``"*"`` for all. Likewise ``features``, ``api_keys`` and
        ``file_types``.
    :param reducto_conn_id: the Airflow connection of type ``reducto``.
    :param poke_interval: seconds between polls.
    :param queue: the queue of the triggerers that run this, with ``[triggerer] queues_enabled``. New in Airflow 3.4.
    :raises ValueError: for an invalid argument, and for a template, which Airflow does not render in a watcher.
    """

    poll_immediately = True

    def __init__(
        self,
        *,
        budget: float | Decimal | str,
        levels: Sequence[float] = (50, 80, 100),
        metric: Metric = "credits",
        window: str = "month",
        per_group: bool = False,
        projected: bool = False,
        group_by: str = "product",
        settle_days: int = 1,
        org_id: str | None = None,
        products: str | Sequence[str] | None = None,
        features: str | Sequence[str] | None = None,
        api_keys: str | Sequence[str] | None = None,
        file_types: str | Sequence[str] | None = None,
        reducto_conn_id: str = "reducto_default",
        poke_interval: float | timedelta = 300.0,
        queue: str | None = None,
    ) -> None:
        super().__init__()
        self.queue = _parse_queue(queue)
        filters = {"products": products, "features": features, "api_keys": api_keys, "file_types": file_types}
        _check_literals({"group_by": group_by, "org_id": org_id, **filters, "reducto_conn_id": reducto_conn_id})
        self.budget = format_decimal(check_number("budget", budget, is_budget, "a number from 1e-9 to less than 1e18"))
        self.levels = _parse_levels(levels)
        self.metric = metric
        self.window = window
        self.per_group = check_bool("per_group", per_group)
        self.projected = check_bool("projected", projected)
        self.group_by = group_by
        self.settle_days = settle_days
        self.org_id = org_id
        self.reducto_conn_id = reducto_conn_id
        self.poke_interval = check_seconds("poke_interval", poke_interval, positive=True)
        check_choice("window", window, CALENDAR_WINDOWS)
        check_whole_number("settle_days", settle_days, 0, 31)
        today = datetime.now(UTC).date()
        self._condition = UsageThreshold(
            query=parse_query(
                usage_start_date=today,
                usage_end_date=today,
                group_by=group_by,
                org_id=org_id,
                **filters,
            ),
            metric=metric,
            threshold=Decimal(self.budget),
            per_group=per_group,
            projected=projected,
            settle_days=settle_days,
        )
        names = self._condition.query.filters()
        for field in FILTER_PARAMETERS:
            setattr(self, field, names.get(field))
        self._fired_levels = FiredLevels()
        self._crowded_levels: set[tuple[date, float]] = set()
        """The windows and levels that it has warned of, as more than :data:`MAX_GROUPS` groups exceeded the level."""

    def _stream_key(self) -> Hashable:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            self.reducto_conn_id,
            self.window,
            self.projected,
            self.settle_days,
            self.org_id,
            self.group_by,
            *((name, *values) for name, values in self._condition.query.filters().items()),
            self.poke_interval,
        )

    def _queries(self, moment: datetime) -> list[UsageQuery]:
        windows = [calendar_window(self.window, moment.date())]
        while (before := windows[0].first - timedelta(days=1)) >= moment.date() - timedelta(days=self.settle_days):
            windows.insert(0, calendar_window(self.window, before))
        queries = (self._condition_for(window).query_at(moment) for window in windows)
        return [query for query in queries if query is not None]

    def _condition_for(self, window: DayRange) -> UsageThreshold:
        return replace(self._condition, query=replace(self._condition.query, start=window.first, end=window.last))

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Poll]) -> AsyncGenerator[TriggerEvent, None]:
        """Yield an event for each level that is newly exceeded in a poll."""
        async with self._polls(shared_stream) as polls:
            async for poll in polls:
                try:
                    exceeded = await self._newly_exceeded(poll)
                except Exception as error:  # noqa: BLE001  # a watcher must not end: Airflow would restart it at once
                    await self._log_failure(error, poll)
                    continue
                await self._store_fired_levels()
                for level, readings in exceeded.items():
                    yield make_event(self._payload(level, readings))
                    self._fired_levels.add(self, level, readings)
                    await asyncio.sleep(_PERSIST_SECONDS)
                    await self._store_fired_levels()

    async def _newly_exceeded(self, poll: Poll) -> dict[float, list[Reading]]:
        """Return the levels that were exceeded since they last fired in the poll's window, with the readings."""
        day = poll.query.end if poll.query else poll.time.date()
        condition = self._condition_for(calendar_window(self.window, day))
        readings = await poll.evaluate(lambda report, time: condition.read_largest(report, time, MAX_GROUPS + 1))
        if readings is None:
            return {}
        await self._warn_if_unmatched(poll)
        new = await self._fired_levels.new(self, readings, self.levels)
        exceeded = {}
        for level, each in new.items():
            room = MAX_GROUPS - self._fired_levels.count(self, level, readings[0])
            if len(each) > room:
                await self._warn_of_groups(level, readings[0])
            if room > 0:
                exceeded[level] = each[:room]
        if log_level := self._level_of(poll, "info", (figures_of(readings[0]), *exceeded)):
            exceeded_text = (
                f"; exceeded {', '.join(self._describe(*each) for each in exceeded.items())}" if exceeded else ""
            )
            await self._alog(log_level, "%s%s; next poll in %g s", readings[0], exceeded_text, poll.next_in)
        return exceeded

    def _payload(self, level: float, readings: list[Reading]) -> dict[str, Any]:
        contents = [reading.as_json() for reading in readings]
        return {"level": level, "readings": contents} if self.per_group else {"level": level, "reading": contents[0]}

    def _describe(self, level: float, readings: list[Reading]) -> str:
        if not self.per_group:
            return f"{level:g} %"
        return f"{level:g} % by {len(readings)} group{'s' if len(readings) > 1 else ''}"

    async def _warn_of_groups(self, level: float, reading: Reading) -> None:
        crowded = reading.window.first, level
        if crowded in self._crowded_levels:
            return
        self._crowded_levels.add(crowded)
        await self._alog(
            "warning",
            "%s: more than %d groups by %s exceeded %g %% of the budget, and only the %d largest fire: watch fewer "
            "with a filter, or raise the budget",
            reading.window,
            MAX_GROUPS,
            self.group_by,
            level,
            MAX_GROUPS,
        )

    async def _log_failure(self, error: Exception, poll: Poll) -> None:
        transient = isinstance(error, ReductoError) and error.transient
        level = self._level_of(poll, "warning" if transient else "error", error_text(error))
        if level is None:
            return
        if transient:
            await self._alog(level, "Poll of %s failed: %s; next poll in %g s", poll.query, error, poll.next_in)
        else:
            unforeseen = None if isinstance(error, ReductoError) else error
            await self._alog(
                level,
                "Poll of %s failed, and will until the cause is fixed: %s; next poll in %g s",
                poll.query,
                error,
                poll.next_in,
                exc_info=unforeseen,
            )

    async def _store_fired_levels(self) -> None:
        try:
            await self._fired_levels.store(self)
        except Exception as error:  # noqa: BLE001  # as above
            text = "Fired levels could not be stored, and would fire again after a restart"
            await self._alog("warning", text, exc_info=error)


def _check_literals(fields: dict[str, Any]) -> None:
    check_not_empty(fields)
    for name, value in fields.items():
        if not is_literal(value):
            raise ValueError(f"{name} must be a literal, not {value!r}: Airflow renders no templates of a watcher")


def _parse_queue(queue: str | None) -> str | None:
    if queue is None:
        return None
    if not isinstance(queue, str) or not queue.strip():
        raise ValueError(f"queue must be the name of a triggerer's queue, not {queue!r}")
    if not WATCHERS_HAVE_QUEUES:
        raise ValueError(f"queue={queue!r} needs Airflow 3.4 or newer: leave it out")
    return queue


def _parse_levels(levels: object) -> list[float]:
    if isinstance(levels, list | tuple | set) and levels:
        numbers = [level for level in levels if is_number(level)]
        if len(set(numbers)) == len(levels) and all(0 < level <= 10_000 for level in numbers):
            return sorted(numbers)
    raise ValueError(f"levels must be different percentages, each more than 0 and up to 10000, not {levels!r}")

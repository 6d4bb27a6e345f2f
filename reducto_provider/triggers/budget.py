"""Sleep until the next window of a budget begins, then request its usage until it has room."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Hashable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any, Final

from airflow.triggers.base import TriggerEvent

from reducto_provider.exceptions import ReductoError
from reducto_provider.triggers.base import BaseUsageTrigger, make_event
from reducto_provider.triggers.polls import Poll, as_reducto_error, delay_after, error_text, utc_minute
from reducto_provider.triggers.threshold import error_event
from reducto_provider.usage.fields import parse_query
from reducto_provider.usage.query import FILTER_PARAMETERS, UsageQuery
from reducto_provider.usage.report import Metric, format_decimal, json_number
from reducto_provider.usage.threshold import UsageThreshold
from reducto_provider.usage.window import calendar_window

MIN_DELAY: Final = 5
"""Seconds after the turn of a window before it is requested: the service's clock may be slow."""

MAX_JITTER: Final = 60
"""Seconds over which the queries of different gates are spread at the turn of a window."""

_MAX_SLEEP = 60.0  # the event loop's clock stands still while a machine sleeps, and does not follow the wall clock


class ReductoBudgetTrigger(BaseUsageTrigger):
    """
    Sleep until the window turns, request usage, and fire one event when the budget of the new window has room.

    It does not poll in between: while a window is over the budget, only time helps. All triggers of the same query poll
    at the same moment and share the request; those of different queries poll at different moments, up to
    :data:`MAX_JITTER` seconds apart.

    The parameters that are not named here are those of the gate.

    :param budget: a number as text, so that no digit is lost; likewise ``reserve``.
    :param window: ``month``, ``week`` or ``day``.
    :param next_poll: when to poll first, in seconds since the epoch: it holds in whichever triggerer this runs.
    :param poke_interval: seconds until the next query after a transient error, with ``on_unknown="block"``.
    """

    def __init__(
        self,
        *,
        reducto_conn_id: str,
        budget: str,
        next_poll: float,
        reserve: str = "0",
        window: str = "month",
        metric: Metric = "credits",
        per_group: bool = False,
        projected: bool = False,
        org_id: str | None = None,
        group_by: str = "product",
        products: list[str] | None = None,
        features: list[str] | None = None,
        api_keys: list[str] | None = None,
        file_types: list[str] | None = None,
        on_unknown: str = "fail",
        poke_interval: float = 300.0,
    ) -> None:
        super().__init__()
        self.reducto_conn_id = reducto_conn_id
        self.budget = budget
        self.next_poll = next_poll
        self.reserve = reserve
        self.window = window
        self.metric = metric
        self.per_group = per_group
        self.projected = projected
        self.org_id = org_id
        self.group_by = group_by
        self.products = products
        self.features = features
        self.api_keys = api_keys
        self.file_types = file_types
        self.on_unknown = on_unknown
        self.poke_interval = poke_interval

    @classmethod
    def waiting_for(cls, condition: UsageThreshold, reserve: Decimal, **options: Any) -> ReductoBudgetTrigger:
        """Return the trigger that waits until a budget has room; ``options`` are its other arguments."""
        query = condition.query
        arguments: dict[str, Any] = {
            "budget": format_decimal(condition.threshold),
            "reserve": format_decimal(reserve),
            "metric": condition.metric,
            "per_group": condition.per_group,
            "projected": condition.projected,
            "org_id": query.org_id,
            "group_by": query.group_by,
            **query.filters(),
        }
        return cls(**arguments, **options)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire one event, the end of the wait."""
        next_poll = self.next_poll
        while True:
            while (seconds := next_poll - time.time()) > 0:  # noqa: ASYNC110  # nothing else tells the time
                await asyncio.sleep(min(seconds, _MAX_SLEEP))
            [poll] = await self._poll_now()
            outcome = await self._outcome(poll)
            if not isinstance(outcome, float):
                yield make_event(outcome)
                return
            next_poll = outcome

    def _stream_key(self) -> Hashable:
        moment = datetime.now(UTC)
        [query] = self._queries(moment)
        # Windows that differ have the same query while one's history begins with the other's first day.
        window = self._condition(moment).window
        return f"{type(self).__module__}.{type(self).__qualname__}", self.reducto_conn_id, window, *query.params()

    def _queries(self, moment: datetime) -> list[UsageQuery]:
        query = self._condition(moment).query_at(moment)
        return [] if query is None else [query]

    def _condition(self, moment: datetime) -> UsageThreshold:
        window = calendar_window(self.window, moment.date())
        return UsageThreshold(
            query=parse_query(
                usage_start_date=window.first,
                usage_end_date=window.last,
                group_by=self.group_by,
                org_id=self.org_id,
                **{name: getattr(self, name) for name in FILTER_PARAMETERS},
            ),
            metric=self.metric,
            threshold=Decimal(self.budget),
            per_group=self.per_group,
            projected=self.projected,
        )

    async def _outcome(self, poll: Poll) -> dict[str, Any] | float:
        """Return the event that a poll leads to, or when to poll again."""
        condition = self._condition(poll.time)
        try:
            reading = await poll.read(condition)
        except Exception as error:  # noqa: BLE001  # whatever it is, the task that waits must hear of it
            return await self._outcome_of_error(error, poll)
        await self._warn_if_unmatched(poll)
        assert reading is not None  # noqa: S101  # for mypy: the window holds the moment
        reserve = Decimal(self.reserve)
        if reading.has_room_for(reserve):
            return {"status": "within", "reading": reading.as_json(), "reserve": json_number(reserve)}
        next_poll = turn_of_window(self.reducto_conn_id, condition)
        await self._alog("info", "%s; next query at %s", reading.describe_room(reserve), utc_minute(next_poll))
        return next_poll

    async def _outcome_of_error(self, error: Exception, poll: Poll) -> dict[str, Any] | float:
        reserve = json_number(Decimal(self.reserve))
        if not isinstance(error, ReductoError) or not error.transient:
            return {**error_event(as_reducto_error(error)), "reserve": reserve}
        if self.on_unknown != "block":
            return {**error_event(error), "status": "unknown", "reserve": reserve}
        seconds = delay_after(error, self.poke_interval)
        if level := self._level_of(replace(poll, next_in=seconds), "warning", error_text(error)):
            await self._alog(level, "Query of %s failed: %s; next query in %g s", poll.query, error, seconds)
        return time.time() + seconds


def turn_of_window(reducto_conn_id: str, condition: UsageThreshold) -> float:
    """
    Return when to poll for the window after that of ``condition``, in seconds since the epoch.

    It is the same moment for all with the same query, so that they share a request, and in whichever process.
    """
    next_day = condition.window.last + timedelta(days=1)
    _first_day, _last_day, *what = condition.query.params()
    jitter = zlib.crc32(repr((reducto_conn_id, what)).encode()) % (MAX_JITTER - MIN_DELAY)
    return datetime.combine(next_day, time_of_day.min, UTC).timestamp() + MIN_DELAY + jitter

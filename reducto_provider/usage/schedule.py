"""When the runs of a timetable are due, and which period ended last."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pendulum

from reducto_provider.usage.days import USAGE_TIMEZONE, Zone

if TYPE_CHECKING:
    from croniter import croniter


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is known of a timetable, each attribute None where it has none.

    :param timetable: its class, as messages name it.
    :param expression: a cron expression that croniter knows.
    :param timezone: the time zone of ``expression``.
    :param delta: the time between two runs, a ``timedelta`` or a ``relativedelta``.
    :param key_format: the ``strftime`` format of the partition keys.
    :param run_offset: periods from a run to the start of its partition, negative for a partition in the past.
    :param offset_stops_at_skipped_times: whether Airflow's search for a partition in the past goes no further back than
        a time that a change of the clock skips.
    :param parts: the schedules that a timetable combines: several crons, or the times of one by time or by assets.
    """

    timetable: str
    expression: str | None = None
    timezone: Zone | None = None
    delta: Any = None
    key_format: str | None = None
    run_offset: int = 0
    offset_stops_at_skipped_times: bool = False
    parts: tuple[Schedule, ...] = ()

    def last_period(self, moment: datetime) -> tuple[datetime, datetime] | None:
        """Return the last complete period that ended at or before ``moment``; None if there are no periods."""
        if len(self.parts) == 1:
            return self.parts[0].last_period(moment)
        if self.delta is not None:
            return _step_back(moment, self.delta), moment
        if (end := self._last_tick(_just_after(moment))) is None:
            return None
        start = self._last_tick(end)
        return None if start is None else (start, end)

    def next_tick(self, after: datetime) -> pendulum.DateTime:
        """Return the first moment after ``after`` at which a period of the cron begins."""
        local = pendulum.instance(after).in_timezone(self._zone).naive()
        return on_the_clock(self._cron(local).get_next(datetime), self._zone)

    def tick_until(self, moment: datetime) -> pendulum.DateTime:
        """Return the last moment up to and including ``moment`` at which a period of the cron begins."""
        local = pendulum.instance(moment).in_timezone(self._zone).naive()
        return on_the_clock(self._cron(_just_after(local)).get_prev(datetime), self._zone)

    def _last_tick(self, before: datetime) -> datetime | None:
        """Return the last moment before ``before`` at which a run is due by cron, or by one of several."""
        if self.parts:
            return max((last for part in self.parts if (last := part._last_tick(before))), default=None)
        if self.expression is None:
            return None
        # Cron knows whole seconds of a wall clock. The zone, with its changes of the clock, is applied afterwards.
        moment = pendulum.instance(before).in_timezone(self._zone).replace(microsecond=0)
        cron = self._cron(moment.naive())
        tick: datetime = cron.get_prev(datetime)
        if cron.expanded[1] == ["*"]:
            # Due in every hour: the wall-clock time does not distinguish the two runs of an hour that is repeated.
            return moment - (moment.naive() - pendulum.naive(*tick.timetuple()[:6]))
        return pendulum.instance(tick, tz=self._zone)

    def _cron(self, local: datetime) -> croniter:
        assert self.expression is not None  # noqa: S101  # for mypy
        from croniter import croniter  # a tenth of what parsing a DAG file would take

        return croniter(self.expression, local)

    @property
    def _zone(self) -> Zone:
        return self.timezone or USAGE_TIMEZONE


def on_the_clock(local: datetime, zone: Zone) -> pendulum.DateTime:
    """Return the moment of a wall-clock time as Airflow does: the later of two; a skipped time moves forward."""
    return pendulum.instance(local.replace(fold=1), tz=zone)


def _just_after(moment: datetime) -> datetime:
    """Return a moment before which a run due at ``moment`` is due: runs are due at whole seconds."""
    return moment + timedelta(seconds=1)


def _step_back(moment: datetime, delta: Any) -> datetime:
    """Return the moment from which ``delta`` leads to ``moment``. A relativedelta adds months before days."""
    if any(getattr(delta, name, 0) for name in ("years", "months")):
        months = type(delta)(years=delta.years, months=delta.months)
        before: datetime = moment - (delta - months) - months
        return before
    whole: datetime = moment - delta
    return whole

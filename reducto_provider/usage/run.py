"""What determines the days of a DAG run."""

from __future__ import annotations

from datetime import datetime

import msgspec

from reducto_provider.usage.schedule import Schedule


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """
    A DAG run, as far as its days depend on it.

    :param interval_start: start of the data interval; None, like the end, for a run without one.
    :param interval_end: end of the data interval, excluded.
    :param moment: end of the data interval; without one, the moment after which it was to run.
    :param by_assets: asset events triggered it, so the schedule does not determine its days.
    :param partition_key: the key of its partition; None for a run without one.
    :param partition_date: the moment at which its partition begins, where Airflow passes it on.
    :param schedule: that of its DAG.
    """

    interval_start: datetime | None
    interval_end: datetime | None
    moment: datetime
    by_assets: bool
    partition_key: str | None
    partition_date: datetime | None
    schedule: Schedule

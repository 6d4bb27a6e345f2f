"""Days as manifests describe them, and datasets with usage, for the usage page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import time_machine

from reducto_provider.export.exported_days import ExportedDay, ExportedDays
from reducto_provider.export.formats import check_format
from reducto_provider.export.sink import open_sink
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.wire import decode_report

TODAY = date(2026, 11, 21)


@pytest.fixture
def exported() -> Callable[..., ExportedDays]:
    """Days that were exported, from amounts of credits; a day whose amount is None had no usage."""

    def make(amounts: Mapping[date, Any], *, not_final: tuple[date, ...] = (), unreadable: tuple[date, ...] = ()):
        days = {
            day: ExportedDay(
                day=day,
                row_count=0 if amount is None else 1,
                credits=Decimal(0) if amount is None else (None if amount == "none" else Decimal(amount)),
                request_count=0 if amount is None else 7,
                is_final=day not in not_final,
                exported_at=f"{day + timedelta(days=1)}T00:00:05+00:00",
                run="dag/run/task",
                sha256=None,
            )
            for day, amount in amounts.items()
        }
        span = DayRange(min(days), max(days)) if days else None
        return ExportedDays(days=days, unreadable=unreadable, span=span)

    return make


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., str]:
    """Publish an organization's days, from amounts by group. Return the location."""

    def publish(
        usage: Mapping[date, Mapping[str | None, Any]],
        *,
        org_id: str = "org_acme",
        group_by: str = "product",
        days: DayRange | None = None,
        folder: str = "usage",
        at: str = "2026-11-21T06:00:00Z",
        filters: Mapping[str, tuple[str, ...]] | None = None,
        output_format: str = "jsonl",
    ) -> str:
        start, end = days or (min(usage), max(usage))
        query = UsageQuery(start=start, end=end, org_id=org_id, group_by=group_by, **(filters or {}))
        data = [
            {"date": str(day), "group": group, "credits": amount, "requestCount": 3}
            for day, groups in usage.items()
            for group, amount in groups.items()
        ]
        echo = {"orgId": org_id, "startDate": str(start), "endDate": str(end), "groupBy": group_by}
        report = decode_report(json.dumps({**echo, "data": data}).encode(), query)
        location = f"{tmp_path}/{folder}"
        with time_machine.travel(at, tick=False):
            sink = open_sink(location, None, check_format(output_format), query.filters())
            sink.publish(report, query, run="dag/run/task")
        return location

    return publish

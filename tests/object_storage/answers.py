"""What the service would answer, without a request, and what is then published by an export that nobody disturbs."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.export.storage import LocalStorage
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport
from reducto_provider.usage.wire import decode_report
from simulator import ORGANIZATIONS
from simulator.usage import Usage

Answer = tuple[UsageReport, UsageQuery]
"""An answer, and the query."""


def usage() -> Usage:
    """The simulator's figures, up to a fixed day."""
    return Usage(ORGANIZATIONS, lambda: datetime(2026, 11, 22, tzinfo=UTC))


def answer(source: Usage, org_id: str, first: date, last: date, **fields: Any) -> Answer:
    """What the service would answer from these figures."""
    query = UsageQuery(start=first, end=last, org_id=org_id, **fields)
    return decoded(query, source.rows(org_id, first, last, query.group_by, {}))


def large_answer(first: date, last: date, credits: str, *without: date, org_id: str = "org_acme") -> Answer:
    """Many groups a day, each with these credits, but for days without usage."""
    query = UsageQuery(start=first, end=last, org_id=org_id)
    days = [date.fromordinal(number) for number in range(first.toordinal(), last.toordinal() + 1)]
    return decoded(
        query,
        [
            {"date": day.isoformat(), "group": f"group-{number:03}", "credits": float(credits), "requestCount": 1}
            for day in days
            if day not in without
            for number in range(300)
        ],
    )


def decoded(query: UsageQuery, rows: list[dict[str, Any]]) -> Answer:
    """The answer of these rows, decoded as the hook does it."""
    body = {
        "orgId": query.org_id,
        "startDate": query.start.isoformat(),
        "endDate": query.end.isoformat(),
        "groupBy": query.group_by,
        "data": rows,
    }
    # As the simulator writes it: the `json` format keeps rows as they were sent.
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return decode_report(text.encode(), query), query


def files_of(given: Answer, folder: Path) -> dict[str, bytes]:
    """The files of an answer, by name, after an undisturbed export into a new folder."""
    UsageDataset(LocalStorage(folder), check_format("jsonl"), {}).publish(*given)
    return local_files(folder)


def local_files(folder: Path) -> dict[str, bytes]:
    """The data files below a folder, by name. First their names, then what they hold, as engines read."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("data/**/*.jsonl")}

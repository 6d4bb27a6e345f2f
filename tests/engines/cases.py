"""Reports that are exported to be read by engines."""

from __future__ import annotations

import json
from datetime import date

from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport
from reducto_provider.usage.wire import decode_report
from tests.object_storage.answers import Answer

ODD_ID = "org/ü 50%=x"
NUMBER_ID = "007"
GROUPS = ["parse", "", None, "null", "NULL", "\\N", 'say "hi", ok', "two\nlines", " blanks ", "=1+1", "ünï 🦊", "'"]


def literal(org_id: str, *rows: tuple[str | None, str, int]) -> Answer:
    """An answer for one day: groups, credits as they stand in the JSON text, and requests."""
    query = UsageQuery(start=date(2026, 5, 1), end=date(2026, 5, 1), org_id=org_id)
    data = ",".join(
        f'{{"date":"{query.start}","group":{json.dumps(group)},"credits":{credits},"requestCount":{requests}}}'
        for group, credits, requests in rows
    )
    text = (
        f'{{"orgId":{json.dumps(org_id)},"startDate":"{query.start}","endDate":"{query.end}","groupBy":"product",'
        f'"data":[{data}]}}'
    )
    return decode_report(text.encode(), query), query


ODD = [
    literal(ODD_ID, *[(group, f"{number}.5", number) for number, group in enumerate(GROUPS)]),
    literal(
        NUMBER_ID,
        ("a", "0.000000001", 0),
        ("b", "999999.123456789", 9223372036854775807),
        ("c", "null", 1),
        ("d", "0", 1),
        ("e", "230.10000000000002", 1),
    ),
]
"""What is unusual, and yet every engine has to read it right."""

ENORMOUS = literal("org_enormous", ("a", "9007199.254740993", 1), ("b", f"{10**27}.123456789", 1))
"""Credits with more digits than a binary float has."""


def rows_of(*reports: UsageReport) -> list[tuple]:
    """All that reports hold, in the columns of the table."""
    return sorted(
        (
            (report.org_id, report.group_by, row.date, row.group, row.credits, row.request_count)
            for report in reports
            for row in report.rows
        ),
        key=repr,
    )

"""Responses of any size, and their exact figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Final, NamedTuple

from reducto_provider.usage.query import UsageQuery

FIRST: Final = date(2016, 1, 1)
ORG: Final = "org_large"

DOCUMENTED: Final = ("1", "2", "0.5")
"""The prices of a page in the service's documentation, in credits."""
WITH_TENTHS: Final = (*DOCUMENTED, "0.1")
"""Prices with one that binary floats cannot represent: sums are 230.10000000000002."""


class TrueRow(NamedTuple):
    """The exact figures of one row, and the binary float that the service made of the credits."""

    date: date
    group: str
    credits: Decimal
    request_count: int
    sent: float


class Answer(NamedTuple):
    """A response, its query, and the exact figures."""

    query: UsageQuery
    body: bytes
    rows: list[TrueRow]


def make_answer(days: int, groups: int, prices: Sequence[str] = WITH_TENTHS, first: date = FIRST) -> Answer:
    """Return a response of ``days`` with a row per API key, each key's pages at one of the prices."""
    query = UsageQuery(start=first, end=first + timedelta(days=days - 1), group_by="api_key", org_id=ORG)
    exact = [Decimal(price) for price in prices]
    binary = [float(price) for price in prices]
    rows, sent = [], []
    for offset in range(days):
        day = first + timedelta(days=offset)
        text = day.isoformat()
        for key in range(groups):
            price = key % len(prices)
            # Two kinds of work, added up by the service as binary floats.
            pages, more = (offset * 7919 + key * 104_729) % 997 + 1, (offset * 31 + key * 17) % 61
            credits = binary[price] * pages + binary[price] * more
            requests = (offset + key) % 89 + 1
            group = f"key-{key:05}"
            rows.append(TrueRow(day, group, exact[price] * (pages + more), requests, credits))
            sent.append({"date": text, "group": group, "credits": credits, "requestCount": requests})
    echo = {"orgId": ORG, "startDate": str(query.start), "endDate": str(query.end), "groupBy": query.group_by}
    return Answer(query, json.dumps({**echo, "data": sent}, separators=(",", ":")).encode(), rows)

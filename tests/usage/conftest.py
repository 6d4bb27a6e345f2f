"""Queries, and answers as the service would send them, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport
from reducto_provider.usage.wire import decode_report

FIRST, LAST = date(2026, 5, 19), date(2026, 6, 18)


@pytest.fixture
def query() -> Callable[..., UsageQuery]:
    """A query for the days of the service's documented example, but for what is given."""

    def make(**fields: Any) -> UsageQuery:
        return UsageQuery(**{"start": FIRST, "end": LAST, **fields})

    return make


@pytest.fixture
def row() -> Callable[..., str]:
    """The JSON text of a row; values are JSON texts themselves, so that they may be anything. None leaves one out."""

    def make(**literals: str | None) -> str:
        fields = {"date": '"2026-05-19"', "group": '"parse"', "credits": "1.5", "requestCount": "2", **literals}
        return "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items() if text is not None) + "}"

    return make


@pytest.fixture
def body() -> Callable[..., bytes]:
    """The answer with these rows; other keys as JSON texts, None leaves one out."""

    def make(*rows: str, **literals: str | None) -> bytes:
        fields = {
            "orgId": '"org_abc123"',
            "startDate": f'"{FIRST}"',
            "endDate": f'"{LAST}"',
            "groupBy": '"product"',
            "data": f"[{', '.join(rows)}]",
            **literals,
        }
        text = "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items() if text is not None) + "}"
        return text.encode()

    return make


@pytest.fixture
def report(query, row, body) -> Callable[..., UsageReport]:
    """A decoded report of ``(group, credits, requests)``, all of one day; a fourth item is another day."""

    def make(*usage: tuple[Any, ...]) -> UsageReport:
        rows = [
            row(
                group=json.dumps(group),
                credits=credits,
                requestCount=str(requests),
                date=f'"{day[0] if day else FIRST}"',
            )
            for group, credits, requests, *day in usage
        ]
        return decode_report(body(*rows), query())

    return make


@pytest.fixture
def decode(query, body) -> Callable[..., UsageReport]:
    """Decode an answer with these rows, to a query with these fields."""

    def decode(*rows: str, **fields: Any) -> UsageReport:
        return decode_report(body(*rows), query(**fields))

    return decode

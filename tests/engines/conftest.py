"""Datasets to be read by engines, and the definitions that the guide gives for them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.export.storage import LocalStorage
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport
from tests.conftest import PROJECT
from tests.object_storage.answers import answer, usage

YEAR = (date(2025, 7, 1), date(2026, 6, 30))
ODD_ID = "org/ü 50%=x"
NUMBER_ID = "007"
GROUPS = ["parse", "", None, "null", "NULL", "\\N", 'say "hi", ok', "two\nlines", " blanks ", "=1+1", "ünï 🦊", "'"]
BLOCKS = re.findall(
    r"^```\w+ (\w+) (\w+)\n(.*?)^```", (PROJECT / "docs/engines.md").read_text(), re.DOTALL | re.MULTILINE
)


def blocks(engine: str, kind: str) -> list[str]:
    """The marked regions of the guide."""
    found = [text for *names, text in BLOCKS if names == [engine, kind]]
    assert found, f"the guide has no such block: {engine} {kind}"
    return found


def from_guide(engine: str, kind: str, root: Path, extension: str = "") -> str:
    """A definition, for a dataset that lies here instead."""
    [text] = blocks(engine, kind)
    text = text.replace("s3://finops-lake/reducto", str(root))
    return text.replace(f"usage.{kind}", f"usage.{extension}") if extension else text


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


@pytest.fixture(scope="session")
def _quick_disk() -> Iterator[None]:
    """What is tested here is what engines make of the files, not that the files survive a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def year(tmp_path_factory: pytest.TempPathFactory, _quick_disk: None) -> tuple[Path, list[UsageReport]]:
    """Two organizations by two dimensions over a year, in Parquet. Credits have up to nine places."""
    root, source, reports = tmp_path_factory.mktemp("year"), usage(), []
    for day in range(1, 29):
        source.add("org_acme", date(2026, 3, day), f"{day}.000000{day:03}", day)
    for org_id in ("org_acme", "org_globex"):
        for group_by in ("product", "api_key"):
            report, query = answer(source, org_id, *YEAR, group_by=group_by)
            UsageDataset(LocalStorage(root), check_format("parquet"), {}).publish(report, query)
            reports.append(report)
    return root, reports


@pytest.fixture(scope="session")
def reports() -> list[tuple[UsageReport, UsageQuery]]:
    """A few days: usual ones, without credits, and of organizations, groups and numbers that are not usual."""
    source = usage()
    days = (date(2026, 5, 1), date(2026, 5, 3))
    usual = [answer(source, org_id, *days) for org_id in ("org_acme", "org_umbrella")]
    groups = [f'"{group}"' if group else group for group in GROUPS]
    assert groups
    return [
        *usual,
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


def literal(org_id: str, *rows: tuple[str | None, str, int]) -> tuple[UsageReport, UsageQuery]:
    """An answer for one day, credits as they stand in the JSON text."""
    import json

    query = UsageQuery(start=date(2026, 5, 1), end=date(2026, 5, 1), org_id=org_id)
    data = ",".join(
        f'{{"date":"{query.start}","group":{json.dumps(group)},"credits":{credits},"requestCount":{requests}}}'
        for group, credits, requests in rows
    )
    text = (
        f'{{"orgId":{json.dumps(org_id)},"startDate":"{query.start}","endDate":"{query.end}","groupBy":"product",'
        f'"data":[{data}]}}'
    )
    return UsageReport.decode(text.encode(), query), query


@pytest.fixture(scope="session")
def tree(
    tmp_path_factory: pytest.TempPathFactory, reports: list[tuple[UsageReport, UsageQuery]], _quick_disk: None
) -> Callable[..., Path]:
    """A dataset of the reports in a format, where a killed writer has left something behind."""

    def write(name: str, compression: str | None = None, *more: tuple[UsageReport, UsageQuery]) -> Path:
        root = tmp_path_factory.mktemp("tree")
        dataset = UsageDataset(LocalStorage(root), check_format(name, compression), {})
        for report, query in [*reports, *more]:
            dataset.publish(report, query)
        left = next(root.glob("data/*/*/*")) / ".0123456789abcdef.writing"
        left.write_bytes(b"half a fi")
        return root

    return write


@pytest.fixture(scope="session")
def enormous() -> tuple[UsageReport, UsageQuery]:
    """Credits with more digits than a binary float has."""
    return literal("org_enormous", ("a", "9007199.254740993", 1), ("b", f"{10**27}.123456789", 1))


def total(values: list[Decimal | None]) -> Decimal:
    return sum((value for value in values if value is not None), Decimal(0))

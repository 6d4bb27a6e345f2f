"""Engines read a Delta table by the definitions in the guide, also while it is written."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from threading import Event, Thread

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from reducto_provider.export.formats import check_format
from reducto_provider.export.sink import open_sink
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport
from tests.engines.cases import ENORMOUS, literal, rows_of
from tests.engines.guide import defined
from tests.object_storage.answers import Answer

COLUMNS = ("org_id", "group_by", "date", "group", "credits", "request_count")
TABLE = 'SELECT org_id, group_by, "date", "group", credits, request_count FROM reducto_usage'
ENGINES = ["deltalake", "duckdb", "polars", "datafusion"]


def publish(root: Path, *answers: Answer) -> None:
    """Export answers to the table that the guide has beside its dataset."""
    sink = open_sink(f"{root}_table", None, check_format("delta"), {})
    sink.check()
    for report, query in answers:
        sink.publish(report, query, "dag/run/task/-1")


def _query(report: UsageReport) -> UsageQuery:
    return UsageQuery(start=report.start, end=report.end, group_by=report.group_by, org_id=report.org_id)


def rows(engine: str, root: Path) -> list[tuple]:
    """All rows of the table, as the engine reads them now."""
    pytest.importorskip(engine, reason="make engines installs it")
    names = defined(engine, "delta", root)
    if engine == "duckdb":
        found = names["connection"].sql(TABLE).fetchall()
    elif engine == "datafusion":
        found = [tuple(row.values()) for row in names["context"].sql(TABLE).to_pylist()]
    else:
        table = names["usage"].collect().to_arrow() if engine == "polars" else pa.table(names["usage"])
        found = list(zip(*[table[name].to_pylist() for name in COLUMNS], strict=True))
    return sorted(found, key=repr)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_row(engine: str, tmp_path: Path, answers: list[Answer]) -> None:
    root = tmp_path / "reducto"
    publish(root, *answers, ENORMOUS)

    assert rows(engine, root) == rows_of(*[report for report, _ in [*answers, ENORMOUS]])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_month(engine: str, tmp_path: Path, year: tuple[Path, list[UsageReport]]) -> None:
    pytest.importorskip(engine, reason="make engines installs it")
    root = tmp_path / "reducto"
    reports = year[1]
    publish(root, *[(report, _query(report)) for report in reports])
    names = defined(engine, "month", root, defined(engine, "delta", root))  # DataFusion needs its context until the end
    credits = names["credits"]

    found = credits.to_pylist() if hasattr(credits, "to_pylist") else pa.table(credits).to_pylist()
    assert {row["org_id"]: row["credits"] for row in found} == {
        report.org_id: sum(row.credits for row in report.rows if date(2026, 3, 1) <= row.date <= date(2026, 3, 31))
        for report in reports
        if report.group_by == "product"
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_beside_a_writer_every_read_is_of_one_export(engine: str, tmp_path: Path) -> None:
    root = tmp_path / "reducto"
    versions = [
        literal("org_acme", *[(f"group {number}", str(version), version) for number in range(20)]) for version in (1, 2)
    ]
    other = literal("org_other", ("a", "1", 1))
    publish(root, versions[0], other)
    expected = [rows_of(report, other[0]) for report, _ in versions]
    done, seen = Event(), set()

    def keep_publishing() -> None:
        try:
            for number in range(1, 30):
                publish(root, versions[number % 2])
        finally:
            done.set()

    writer = Thread(target=keep_publishing)
    writer.start()
    try:
        while not done.is_set():
            seen.add(expected.index(rows(engine, root)))
    finally:
        writer.join()
    assert seen == {0, 1}
    assert DeltaTable(f"{root}_table").version() == 31

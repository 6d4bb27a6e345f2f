"""Datasets to be read by engines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.export.storage import LocalStorage
from reducto_provider.usage.report import UsageReport
from tests.engines.cases import ODD
from tests.object_storage.answers import Answer, answer, usage

if TYPE_CHECKING:
    from tests.object_storage.s3server import S3Server


@pytest.fixture(scope="session", autouse=True)
def _quick_disk() -> Iterator[None]:
    """What is tested here is what engines make of the files, not that the files survive a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A server for all tests: Airflow keeps a connection's client for as long as the process lives."""
    from tests.object_storage.s3server import S3Server

    server = S3Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def year(tmp_path_factory: pytest.TempPathFactory, _quick_disk: None) -> tuple[Path, list[UsageReport]]:
    """Two organizations by two dimensions over a year, in Parquet. Some credits have nine places."""
    root, source, reports = tmp_path_factory.mktemp("year"), usage(), []
    for day in range(1, 29):
        source.add("org_acme", date(2026, 3, day), f"{day}.000000{day:03}", day)
    for org_id in ("org_acme", "org_globex"):
        for group_by in ("product", "api_key"):
            report, query = answer(source, org_id, date(2025, 7, 1), date(2026, 6, 30), group_by=group_by)
            UsageDataset(LocalStorage(root), check_format("parquet"), {}).publish(report, query)
            reports.append(report)
    return root, reports


@pytest.fixture(scope="session")
def answers() -> list[Answer]:
    """A few days: usual ones, without credits, and all that is odd."""
    days = (date(2026, 5, 1), date(2026, 5, 3))
    return [*[answer(usage(), org_id, *days) for org_id in ("org_acme", "org_umbrella")], *ODD]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory, answers: list[Answer], _quick_disk: None) -> Callable[..., Path]:
    """A dataset of the answers in a format, in which a killed writer has left something behind."""

    def write(name: str, compression: str | None = None, *more: Answer) -> Path:
        root = tmp_path_factory.mktemp("tree")
        dataset = UsageDataset(LocalStorage(root), check_format(name, compression), {})
        for report, query in [*answers, *more]:
            dataset.publish(report, query)
        (next(root.glob("data/*/*/*")) / ".0123456789abcdef.writing").write_bytes(b"half a fi")
        return root

    return write

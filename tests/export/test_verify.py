"""Verifying a dataset names what is missing or altered."""

from __future__ import annotations

import pytest

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import FORMATS
from reducto_provider.export.storage import LocalStorage
from reducto_provider.export.verify import main, verify_dataset

FOLDER = "org_id=org_abc123/group_by=product"


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path / "usage")


@pytest.fixture
def published(storage, make_export):
    """Three days, the one in the middle without usage."""
    export = make_export(("2026-06-16", "parse", "1.5", 1), ("2026-06-18", "parse", "2", 2))
    UsageDataset(storage, FORMATS["jsonl"], {}).publish(export.report, export.query)
    return storage


def problems(storage):
    return [(problem.kind, problem.name) for problem in verify_dataset(storage).problems]


def test_a_dataset_as_it_was_published(published, tmp_path, capsys):
    found = verify_dataset(published)

    assert (found.days, found.files, found.problems) == (3, 2, ())
    assert main([str(tmp_path / "usage")]) == 0
    assert capsys.readouterr().out == "3 days, 2 files, 0 problems\n"


def test_a_file_that_was_lost(published, tmp_path, capsys):
    published.remove(f"data/{FOLDER}/dt=2026-06-16/usage.jsonl")

    assert problems(published) == [("missing", f"data/{FOLDER}/dt=2026-06-16/usage.jsonl")]
    assert main([str(tmp_path / "usage")]) == 1
    assert "missing: data/" in capsys.readouterr().out


def test_a_file_that_was_altered(published):
    published.replace(f"data/{FOLDER}/dt=2026-06-18/usage.jsonl", b"{}")

    assert problems(published) == [("altered", f"data/{FOLDER}/dt=2026-06-18/usage.jsonl")]


@pytest.mark.parametrize("name", ["dt=2026-06-17/usage.jsonl", "dt=2026-06-16/copy.jsonl", "dt=2026-06-16/usage.csv"])
def test_a_file_that_nobody_knows(published, name):
    published.replace(f"data/{FOLDER}/{name}", b"{}")

    assert problems(published) == [("unknown", f"data/{FOLDER}/{name}")]


def test_a_day_that_was_never_exported(published):
    published.remove(f"metadata/{FOLDER}/dt=2026-06-17.json")

    assert problems(published) == [("missing", f"metadata/{FOLDER}/dt=2026-06-17.json")]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"file": "\xff"}'])
def test_a_manifest_that_can_not_be_read(published, content):
    published.replace(f"metadata/{FOLDER}/dt=2026-06-16.json", content)

    assert ("unreadable", f"metadata/{FOLDER}/dt=2026-06-16.json") in problems(published)


def test_no_dataset(storage):
    assert problems(storage) == [("missing", "metadata/dataset.json")]

"""Verifying a dataset names what is missing or altered."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path

import pytest

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import FORMATS
from reducto_provider.export.reported import acknowledge
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


def test_a_path_in_the_current_folder(published, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert main(["usage"]) == 0
    assert capsys.readouterr().out == "3 days, 2 files, 0 problems\n"


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("ftp://host/usage", "output_path must be in a store whose files can be replaced at once"),
        ("usage/metadata/dataset.json", "could not read "),
    ],
)
def test_what_can_not_be_checked_is_an_error_and_no_problem(published, tmp_path, capsys, monkeypatch, location, error):
    monkeypatch.chdir(tmp_path)

    assert main([location]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(error)


def test_a_file_that_was_lost(published, tmp_path, capsys):
    published.remove(f"data/{FOLDER}/dt=2026-06-16/usage.jsonl")

    assert problems(published) == [("missing", f"data/{FOLDER}/dt=2026-06-16/usage.jsonl")]
    assert main([str(tmp_path / "usage")]) == 1
    assert "missing: data/" in capsys.readouterr().out


def test_a_file_that_was_altered(published):
    published.replace(f"data/{FOLDER}/dt=2026-06-18/usage.jsonl", b"{}")

    assert problems(published) == [("altered", f"data/{FOLDER}/dt=2026-06-18/usage.jsonl")]


def test_what_was_reported_is_no_manifest(published):
    acknowledge(published, {f"metadata/{FOLDER}": {date(2026, 6, 16): "0123456789abcdef"}})
    published.replace(f"metadata/{FOLDER}/.reported-2026", b"spoilt")  # is read as if nothing had been reported

    assert problems(published) == []


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


DEEP = b'{"more": ' + b"[" * 100_000


class TestAHostileBucket:
    """Somebody else writes there too."""

    @pytest.mark.parametrize("content", [DEEP, b'{"file": 1e999}', b"null"])
    def test_a_manifest_that_breaks_readers(self, published, content):
        published.replace(f"metadata/{FOLDER}/dt=2026-06-16.json", content)

        assert ("unreadable", f"metadata/{FOLDER}/dt=2026-06-16.json") in problems(published)

    @pytest.mark.parametrize(
        "file", ["../../etc/passwd", "/etc/passwd", f"data/{FOLDER}/dt=2026-06-18/usage.jsonl", "metadata/dataset.json"]
    )
    def test_a_manifest_that_tells_of_another_file(self, published, file, mocker):
        name = f"metadata/{FOLDER}/dt=2026-06-16.json"
        published.replace(name, json.dumps({"file": file, "bytes": 1, "sha256": None}).encode())
        read = mocker.spy(LocalStorage, "read")

        assert problems(published) == [
            ("unreadable", name),
            ("unknown", f"data/{FOLDER}/dt=2026-06-16/usage.jsonl"),
        ]
        assert [call.args[1] for call in read.call_args_list if call.args[1].startswith(("/", ".."))] == []

    @pytest.mark.parametrize(
        "name", ["notes.txt", "dt=2026-06-16.json", f"{FOLDER}/dt=2026-02-30.json", f"{FOLDER}/a/dt=2026-06-16.json"]
    )
    def test_a_file_that_is_no_manifest(self, published, name):
        published.replace(f"metadata/{name}", b"{}")

        assert problems(published) == [("unknown", f"metadata/{name}")]

    def test_days_of_all_times_are_one_problem(self, published):
        for day in ("0001-01-01", "9999-12-31"):
            published.replace(f"metadata/{FOLDER}/dt={day}.json", b'{"file": null, "bytes": 0, "sha256": null}')

        first, second = verify_dataset(published).problems
        assert (
            str(first) == f"missing: metadata/{FOLDER}/dt=0001-01-02.json: 0001-01-02 to 2026-06-15 were never exported"
        )
        assert second.name == f"metadata/{FOLDER}/dt=2026-06-19.json"

    def test_names_are_printed_on_one_line(self, published, tmp_path, capsys):
        folder = os.fsencode(tmp_path / "usage" / "data")
        Path(os.fsdecode(folder + b"/\xff\n0 problems\x1b[2K")).write_bytes(b"")

        assert main([str(tmp_path / "usage")]) == 1
        assert capsys.readouterr().out.splitlines() == [
            r"unknown: data/\udcff\n0 problems\x1b[2K: no manifest lists it",
            "3 days, 2 files, 1 problems",
        ]

"""Whole files or none, wherever they lie and whatever happens to the writer."""

from __future__ import annotations

import os
import signal
import time
import tomllib
from pathlib import Path
from urllib.parse import unquote
from urllib.request import urlopen

import pytest
from pyarrow.fs import FileSystem

from reducto_provider.export import storage
from reducto_provider.export.locations import check_output_path
from reducto_provider.export.storage import open_storage
from tests.airflow_sdk import ObjectStoragePath
from tests.real_airflow.environment import PROJECT_ROOT


class TestAnyPlace:
    def test_what_is_not_there(self, place):
        assert place.storage.read("data/none") is None
        place.storage.remove("data/none")
        assert place.files() == {}

    @pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 100], ids=["empty", "short", "long"])
    def test_write_read_and_remove(self, place, content):
        place.storage.replace("a/b=1/c.json", content)
        assert place.storage.read("a/b=1/c.json") == content
        assert place.files() == {"a/b=1/c.json": content}

        place.storage.remove("a/b=1/c.json")
        assert place.storage.read("a/b=1/c.json") is None
        assert place.files() == {}

    def test_a_file_is_replaced_by_a_shorter_one(self, place):
        place.storage.replace("a/b", b"long content")
        place.storage.replace("a/b", b"short")

        assert place.files() == {"a/b": b"short"}

    def test_other_files_stay(self, place):
        for name in ("a/b", "a/bb", "a/b.c", "b"):
            place.storage.replace(name, name.encode())

        place.storage.remove("a/b")

        assert place.files() == {name: name.encode() for name in ("a/bb", "a/b.c", "b")}

    def test_the_place_itself_may_be_a_file(self, place):
        assert place.storage.read() is None

        place.storage.replace("", b"content")

        assert place.storage.read() == b"content"
        assert ObjectStoragePath(place.url).read_bytes() == b"content"

    @pytest.mark.parametrize("name", ["", "a/b=%2F/c.json"])
    def test_a_uri_leads_there(self, place, name):
        place.storage.replace(name, b"content")

        assert ObjectStoragePath(place.storage.location(name)).read_bytes() == b"content"
        assert ObjectStoragePath(unquote(place.storage.uri(name))).read_bytes() == b"content"

    def test_a_slash_at_the_end_makes_no_difference(self, place):
        open_storage(place.url + "/").replace("a", b"content")

        assert place.files() == {"a": b"content"}
        assert open_storage(place.url + "/").uri("a") == place.storage.uri("a")

    def test_slashes_count_once(self, place):
        """Some templates render to nothing, and no store means an empty folder."""
        scheme, _, path = place.url.partition("://")
        bucket, _, rest = path.partition("/")
        twice = open_storage(f"{scheme}://{bucket}//{rest.replace('/', '//')}/" + "/")
        twice.replace("a/b", b"content")

        assert place.files() == {"a/b": b"content"}
        assert list(twice.names("a")) == ["a/b"]
        assert twice.uri("a/b") == place.storage.uri("a/b")


class TestLocal:
    @pytest.mark.parametrize("scheme", ["", "file://", "local://"])
    @pytest.mark.parametrize("name", ["plain", "with blank", "a#b?c", "per%20cent", "caf\u00e9", "x[1]*", "~", "a@b:c"])
    def test_any_folder(self, tmp_path, scheme, name):
        storage = open_storage(f"{scheme}{tmp_path}/{name}")

        storage.replace("x/y", b"content")

        assert (tmp_path / name / "x" / "y").read_bytes() == b"content"
        assert storage.read("x/y") == b"content"
        assert storage.location("x/y") == f"file://{tmp_path}/{name}/x/y"
        with urlopen(storage.uri("x/y")) as opened:
            assert opened.read() == b"content"
        _, path = FileSystem.from_uri(storage.uri("x/y"))
        assert path == f"{tmp_path}/{name}/x/y"

    def test_nothing_else_is_left_behind(self, tmp_path):
        storage = open_storage(str(tmp_path))

        for content in (b"1", b"2"):
            storage.replace("a/b", content)

        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b"]

    def test_a_full_disk_leaves_the_old_file_and_no_other(self, tmp_path, small_files):
        storage = open_storage(str(tmp_path))
        storage.replace("a/b", b"old")

        with small_files(100_000), pytest.raises(OSError, match="File too large"):
            storage.replace("a/b", b"x" * 1_000_000)

        assert storage.read("a/b") == b"old"
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b"]

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
    def test_an_interrupted_writer_leaves_the_old_file_and_no_other(self, tmp_path, mocker, error):
        storage = open_storage(str(tmp_path))
        storage.replace("a/b", b"old")
        mocker.patch("os.fsync", side_effect=error)

        with pytest.raises(error):
            storage.replace("a/b", b"new")

        assert storage.read("a/b") == b"old"
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b"]

    def test_a_folder_in_the_place_of_the_file(self, tmp_path):
        (tmp_path / "a" / "b").mkdir(parents=True)

        with pytest.raises(OSError):
            open_storage(str(tmp_path)).replace("a/b", b"new")

        assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]

    def test_a_file_in_the_place_of_a_folder(self, tmp_path):
        (tmp_path / "a").write_bytes(b"somebody else's")
        storage = open_storage(str(tmp_path))

        for refused in (
            lambda: storage.replace("a/b", b"new"),
            lambda: storage.read("a/b"),
            lambda: storage.remove("a/b"),
        ):
            with pytest.raises(OSError):
                refused()

        assert (tmp_path / "a").read_bytes() == b"somebody else's"

    def test_a_killed_writer_never_shows_half_a_file(self, tmp_path, forked):
        storage = open_storage(str(tmp_path))
        old, new = b"o" * 3_000_000, b"n" * 4_000_000
        storage.replace("a/b", old)
        seen = set()

        for attempt in range(8):
            writer = forked(_write_in_turns, storage, new, old)
            while writer.is_alive() and (tmp_path / "a" / "b").read_bytes() != new:
                pass  # it is at work, then
            deadline = time.monotonic() + 0.02 + attempt * 0.013
            while time.monotonic() < deadline:
                seen.add((tmp_path / "a" / "b").read_bytes())
            writer.kill()
            writer.join()
            assert writer.exitcode == -signal.SIGKILL
            seen.add((tmp_path / "a" / "b").read_bytes())

        assert {content[:1] + str(len(content)).encode() for content in seen} == {b"o3000000", b"n4000000"}
        assert seen == {old, new}
        # What a killed writer leaves behind has a name that readers pass over.
        assert [path.name for path in tmp_path.rglob("[!.]*") if path.is_file()] == ["b"]

    def test_what_killed_writers_left_is_removed_once_it_is_old(self, tmp_path):
        (tmp_path / "a").mkdir()
        for name, age in ((".old.writing", 3700), (".new.writing", 3500), ("old.writing", 3700)):
            (tmp_path / "a" / name).write_bytes(b"half a f")
            os.utime(tmp_path / "a" / name, (time.time() - age,) * 2)

        open_storage(str(tmp_path)).replace("a/b", b"content")

        assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".new.writing", "b", "old.writing"]

    def test_a_folder_is_not_looked_through_for_each_of_its_files(self, tmp_path, mocker):
        looked_through = mocker.spy(Path, "glob")
        storage = open_storage(str(tmp_path))
        for number in range(20):
            storage.replace(f"metadata/{number}", b"content")
            storage.replace(f"data/{number}/usage", b"content")

        assert looked_through.call_count == 21


def _write_in_turns(storage, *contents):
    while True:
        for content in contents:
            storage.replace("a/b", content)


class TestOutputPath:
    @pytest.mark.parametrize("path", ["/", "file:///", "//"])
    def test_the_root_is_the_root(self, path):
        assert open_storage(check_output_path(path)).uri("data") == "file:///data"

    @pytest.mark.parametrize("name", ["a::b", "2026::06"])
    def test_a_folder_is_not_cut_off(self, tmp_path, name):
        assert open_storage(check_output_path(f"{tmp_path}/{name}")).uri("x") == f"file://{tmp_path}/{name}/x"


class TestClients:
    """Old clients of stores ignore that an object must not exist."""

    @pytest.mark.parametrize("installed", ["2023.10.0", "2024.6.1", "2024.10.0"])
    def test_one_that_overwrites_is_refused(self, monkeypatch, installed):
        pytest.importorskip("s3fs")
        monkeypatch.setattr(storage, "version", {"s3fs": installed}.__getitem__)

        with pytest.raises(ValueError, match=rf"^s3fs {installed} can't create .* install s3fs>=2024\.12$"):
            open_storage("s3://bucket/usage")

    @pytest.mark.parametrize("installed", ["2024.12.0", "2025.2.0.post1", "2026.10.1.dev3+g0"])
    def test_one_that_does_not_is_used(self, monkeypatch, installed):
        pytest.importorskip("s3fs")
        monkeypatch.setattr(storage, "version", {"s3fs": installed}.__getitem__)

        assert open_storage("s3://bucket/usage").uri("a") == "s3://bucket/usage/a"

    def test_the_extras_say_the_same(self):
        requirements = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

        for extra, client in {"s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs"}.items():
            assert f"{client}>=2024.12.0" in requirements[extra]

"""What every destination promises, tried on each of them with real files; and which one an export has."""

from __future__ import annotations

import json
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.delta.reader import UsageTableReader
from reducto_provider.export.delta.sink import UsageTable
from reducto_provider.export.delta.upkeep import compact_table, vacuum_table
from reducto_provider.export.delta.verify import verify_table
from reducto_provider.export.formats import FORMATS, base, delta
from reducto_provider.export.one_object import UsageObject
from reducto_provider.export.reader import UsageReadError
from reducto_provider.export.sink import (
    DatasetMismatchError,
    PublishError,
    choose_sink,
    open_sink,
)
from tests.airflow_sdk import ObjectStoragePath
from tests.airflows import DELTA
from tests.export.test_dataset import THREE_DAYS

RUN = "dag/run/task/-1"
JUNE_16, JUNE_17, JUNE_18, JUNE_19 = (date(2026, 6, day) for day in (16, 17, 18, 19))
RESTATED = [*THREE_DAYS[:2], ("2026-06-17", "parse", "231", 76), THREE_DAYS[3]]
"""Three days, of which the second has changed."""


class Dataset:
    """A partitioned dataset, read as an engine does: the keys from the names of its folders."""

    kind = UsageDataset
    format = "jsonl"
    options: ClassVar = {"partitioned": True}
    description = "metadata/dataset.json"
    days: ClassVar = [JUNE_16, JUNE_17, JUNE_18, JUNE_19]
    """What has a file of its own in an export of these days."""
    restated: ClassVar = [JUNE_17]
    holds_many = True

    def __init__(self, place):
        self.place = place
        self.output_path = place.url

    @staticmethod
    def contents(files):
        return [ObjectStoragePath(unquote(file.uri)).read_bytes() for file in files if file.uri]

    def read(self):
        found = []
        for name, content in self.place.data().items():
            keys = dict(part.split("=") for part in name.split("/") if "=" in part)
            for line in content.splitlines():
                row = json.loads(line, parse_float=Decimal)
                assert row["date"] == keys["dt"]
                found.append({**row, "org_id": unquote(keys["org_id"]), "group_by": keys["group_by"]})
        return found


class OneObject:
    """One object at exactly the output path."""

    kind = UsageObject
    format = "jsonl"
    options: ClassVar = {"partitioned": False}
    description = ".usage.jsonl.reducto"
    days: ClassVar = [None]
    restated: ClassVar = [None]
    holds_many = False

    def __init__(self, place):
        self.place = place
        self.output_path = f"{place.url}/usage.jsonl"

    contents = staticmethod(Dataset.contents)

    def read(self):
        content = self.place.files().get("usage.jsonl", b"")
        return [json.loads(line, parse_float=Decimal) for line in content.splitlines()]


class Table:
    """One Delta table, read by the library's own engine."""

    kind = UsageTable
    format = "delta"
    options: ClassVar = {"partitioned": True}
    description = "_delta_log/00000000000000000000.json"
    days = Dataset.days
    restated = Dataset.restated
    records_tries = True
    holds_many = True

    def __init__(self, place):
        self.place = place
        self.output_path = place.url

    def contents(self, files):
        """The whole table, which an unchanged answer leaves as it is."""
        return {name: content for name, content in self.place.files().items() if not name.startswith("_reducto/")}

    def read(self):
        path = self.output_path.removeprefix("file://")
        rows = pa.table(DeltaTable(path).scan()).to_pylist() if DeltaTable.is_deltatable(path) else []
        return [{**row, "date": str(row["date"])} for row in rows]


@pytest.fixture(params=[Dataset, OneObject, pytest.param(Table, marks=DELTA)], ids=lambda kind: kind.__name__)
def destination(request, place):
    if request.param is Table and not place.url.startswith("file:"):
        pytest.skip("a Delta table is never in fsspec's memory")
    return request.param(place)


@pytest.fixture
def open_for(destination):
    """Open the destination for an export."""

    def open_for(export):
        filters = export.query.filters()
        return open_sink(destination.output_path, None, FORMATS[destination.format], filters, **destination.options)

    return open_for


@pytest.fixture
def publish(open_for):
    """Check the destination and publish an export, as a task does that may succeed."""

    def publish(export, *, succeeds=False):
        sink = open_for(export)
        sink.check(replace(export.query, org_id=export.report.org_id), RUN)
        files = sink.publish(export.report, export.query, RUN)
        if succeeds:
            assert sink.acknowledge(changes_of(export, files)) == 0
        return files

    return publish


def changes_of(export, files):
    changes = [(file.day, file.change) for file in files if file.changed]
    return {(export.report.org_id, export.report.group_by): changes} if changes else {}


def changed(files):
    return [file.day for file in files if file.changed]


def in_order(rows):
    return sorted(rows, key=lambda row: (row["org_id"], row["group_by"], row["date"], row["group"] or ""))


def rows_of(*exports):
    """What a reader must see."""
    return in_order(
        {
            "date": str(row.date),
            "group": row.group,
            "credits": row.credits,
            "request_count": row.request_count,
            "org_id": export.report.org_id,
            "group_by": export.report.group_by,
        }
        for export in exports
        for row in export.report.rows
    )


class TestPublish:
    def test_a_reader_sees_exactly_the_rows(self, destination, make_export, publish):
        export = make_export(*THREE_DAYS)
        publish(export)

        assert in_order(destination.read()) == rows_of(export)

    def test_and_then_exactly_those_of_the_next_export(self, destination, make_export, publish):
        publish(make_export(*THREE_DAYS))
        export = make_export(RESTATED[0], RESTATED[2], end="2026-06-18")
        publish(export)

        assert in_order(destination.read()) == rows_of(export)

    def test_days_that_became_empty_leave_no_row(self, destination, make_export, publish):
        publish(make_export(*THREE_DAYS))
        files = publish(make_export(start="2026-06-16", end="2026-06-18"))

        assert destination.read() == []
        assert sum(file.row_count for file in files) == 0

    def test_what_is_returned_is_what_is_there(self, destination, make_export, publish):
        files = publish(make_export(*THREE_DAYS, end="2026-06-19"))

        assert [file.day for file in files] == destination.days
        assert sum(file.row_count for file in files) == len(THREE_DAYS)
        assert all(file.row_count == 0 for file in files if not file.uri)
        if destination.kind is UsageTable:
            assert {file.uri for file in files if file.row_count} == {destination.output_path}
            assert {file.size for file in files} == {None}, "the days have no files of their own"
        else:
            written = [file.size for file in files if file.uri]
            assert written == [len(content) for content in destination.contents(files)]
            assert all(file.size == 0 for file in files if not file.uri)

    def test_the_same_answer_gives_the_same_bytes(self, destination, make_export, publish):
        files = publish(make_export(*THREE_DAYS))
        before = destination.contents(files)
        again = publish(make_export(*reversed(THREE_DAYS)))

        assert destination.contents(again) == before

    def test_several_organizations_at_the_same_time(self, destination, make_export, open_for):
        exports = [make_export(*THREE_DAYS, org_id=f"org {number}/%") for number in range(12)]
        sink = open_for(exports[0])
        with ThreadPoolExecutor(len(exports)) as threads:
            published = [threads.submit(sink.publish, each.report, each.query) for each in exports]
        refused = [each.exception() for each in published if each.exception()]

        if destination.holds_many:
            assert refused == []
            assert in_order(destination.read()) == rows_of(*exports)
        else:
            assert {type(error) for error in refused} == {DatasetMismatchError}
            [winner] = [export for export, each in zip(exports, published, strict=True) if not each.exception()]
            assert in_order(destination.read()) == rows_of(winner)


class TestChanges:
    def test_are_reported_until_a_success_acknowledged_them(self, destination, make_export, publish):
        export = make_export(*THREE_DAYS, end="2026-06-19")

        assert changed(publish(export)) == destination.days
        assert changed(publish(export, succeeds=True)) == destination.days
        assert changed(publish(export, succeeds=True)) == []

    def test_only_what_was_restated_has_changed(self, destination, make_export, publish):
        publish(make_export(*THREE_DAYS), succeeds=True)

        assert changed(publish(make_export(*RESTATED))) == destination.restated

    def test_back_as_it_was_is_a_change(self, destination, make_export, publish):
        publish(make_export(*THREE_DAYS), succeeds=True)
        publish(make_export(*RESTATED))

        assert changed(publish(make_export(*THREE_DAYS))) == destination.restated

    def test_a_late_acknowledgement_hides_no_change(self, destination, make_export, publish, open_for):
        export = make_export(*THREE_DAYS)
        late = changes_of(export, publish(export))
        publish(make_export(*RESTATED))
        open_for(export).acknowledge(late)

        assert changed(publish(make_export(*RESTATED))) == destination.restated


class TestCheck:
    def test_an_empty_place_fits_and_stays_empty(self, destination, make_export, open_for):
        export = make_export(*THREE_DAYS)
        sink = open_for(export)
        sink.check(export.query, RUN)
        sink.check()

        assert destination.place.files() == {}

    def test_the_same_export_fits_whatever_is_known_of_it(self, make_export, publish, open_for):
        export = make_export(*THREE_DAYS)
        publish(export)

        sink = open_for(export)
        sink.check()
        sink.check(export.query)  # the organization is the key's own, and not known yet
        sink.check(replace(export.query, org_id=export.report.org_id), RUN)

    def test_other_filters_are_refused_before_a_request_and_after(self, destination, make_export, publish, open_for):
        publish(make_export(*THREE_DAYS))
        before = destination.place.files()
        other = make_export(THREE_DAYS[0], products=["parse"])
        sink = open_for(other)

        for refused in (
            sink.check,
            lambda: sink.check(other.query, RUN),
            lambda: sink.publish(other.report, other.query, RUN),
        ):
            with pytest.raises(DatasetMismatchError, match="output_path") as error:
                refused()
            assert sink.location in str(error.value)
            assert "'products': ['parse']" in str(error.value)
        assert destination.place.files() == before

    def test_a_description_that_can_not_be_decoded_is_no_permission(self, destination, make_export, publish):
        publish(make_export(*THREE_DAYS))
        destination.place.put(destination.description, b"{")
        before = destination.place.files()

        with pytest.raises(DatasetMismatchError, match="can't be decoded"):
            publish(make_export(*RESTATED))
        assert destination.place.files() == before

    @pytest.mark.parametrize("place", ["file"], indirect=True)
    def test_a_place_that_can_not_be_read_is_named(self, destination, make_export, open_for, tmp_path):
        export = make_export(*THREE_DAYS)
        if destination.kind is UsageTable:
            destination.place.put("_delta_log", b"no folder")
        else:
            (tmp_path / "usage" / destination.description).mkdir(parents=True)

        with pytest.raises(PublishError, match=f"could not read .*{urlsplit(destination.output_path).path}"):
            open_for(export).check(export.query, RUN)


@pytest.mark.parametrize("place", ["file"], indirect=True)  # fsspec's memory has no bucket, nor true URIs
class TestDescription:
    def test_location_and_uri(self, destination, make_export, open_for):
        destination.output_path = destination.output_path.replace("usage", "50% ä", 1)
        sink = open_for(make_export(*THREE_DAYS))

        assert sink.location == destination.output_path
        assert sink.uri == destination.output_path.replace("50% ä", "50%25%20%C3%A4")

    def test_a_log_line(self, destination, make_export, publish, open_for):
        export = make_export(*THREE_DAYS, end="2026-06-19")
        files = publish(export)
        size = sum(file.size or 0 for file in files)

        expected = {
            UsageDataset: f"Published 3 files with {size} bytes at {destination.output_path}, and 1 days without usage",
            UsageObject: f"Published 1 files with {size} bytes at {destination.output_path}",
            UsageTable: f"Published 4 days with 4 rows at {destination.output_path}, 1 of them without usage",
        }
        assert open_for(export).describe(files) == expected[destination.kind]

    def test_lineage_names_what_a_reader_finds(self, destination, make_export, publish, open_for):
        export = make_export(*THREE_DAYS)
        files = publish(export)
        output = open_for(export).output("org_abc123", "product", files)

        assert output.namespace == "file"
        assert output.name.startswith(urlsplit(destination.output_path).path)
        assert all(urlsplit(file.uri).path.startswith(quote(output.name, safe="/=")) for file in files)
        columns = [field.name for field in output.facets["schema"].fields]
        assert set(columns) >= {"date", "group", "credits", "request_count"}
        assert all(set(columns) <= row.keys() for row in destination.read())
        statistics = output.outputFacets["outputStatistics"]
        assert statistics.rowCount == len(destination.read())
        assert statistics.fileCount == (None if destination.kind is UsageTable else len(files))

    def test_lineage_of_what_failed_on_the_way_has_no_figures(self, make_export, open_for):
        output = open_for(make_export(*THREE_DAYS)).output("org_abc123", "product", None)

        assert output.outputFacets == {}


class TestOpen:
    def test_which_destination_an_export_has(self, destination, make_export, open_for):
        assert choose_sink(destination.format, **destination.options) is destination.kind
        assert type(open_for(make_export(*THREE_DAYS))) is destination.kind
        assert destination.place.files() == {}, "nothing is written yet"

    def test_by_default_a_dataset(self, place):
        assert choose_sink() is UsageDataset
        assert type(open_sink(place.url, None, FORMATS["jsonl"], {})) is UsageDataset

    @pytest.mark.parametrize("partitioned", ["False", "", None, 0])
    def test_what_is_neither_true_nor_false_is_refused(self, place, partitioned):
        with pytest.raises(ValueError, match=f"partitioned must be True or False, not {partitioned!r}"):
            open_sink(place.url, None, FORMATS["jsonl"], {}, partitioned=partitioned)

    @pytest.mark.parametrize("output_path", [None, "", "relative/usage.jsonl", "ftp://host/usage.jsonl", "s3:///usage"])
    def test_no_location(self, destination, output_path):
        for refused in (
            lambda: destination.kind.check_location(output_path),
            lambda: open_sink(output_path, None, FORMATS[destination.format], {}, **destination.options),
        ):
            with pytest.raises(ValueError, match="output_path must be"):
                refused()

    def test_a_folder_is_no_object(self):
        assert UsageDataset.check_location("s3://lake/usage/") == "s3://lake/usage/"
        assert UsageObject.check_location("s3://lake/usage") == "s3://lake/usage"
        for open_folder in (
            lambda: UsageObject.check_location("s3://lake/usage/"),
            lambda: open_sink("s3://lake/usage/", None, FORMATS["jsonl"], {}, partitioned=False),
        ):
            with pytest.raises(ValueError, match="must name a file when partitioned=False"):
                open_folder()

    @DELTA
    def test_a_table_is_never_one_object(self, place):
        with pytest.raises(ValueError, match="partitioned must be True for output_format='delta'"):
            open_sink(place.url, None, FORMATS["delta"], {}, partitioned=False)

    def test_a_table_is_only_where_commits_are_atomic(self):
        assert UsageTable.check_location("s3://lake/usage") == "s3://lake/usage"
        for location in ("gs://lake/usage", "memory://lake/usage"):
            with pytest.raises(ValueError, match=f"output_path must be a local path or .*not '{location}'"):
                UsageTable.check_location(location)

    def test_a_package_that_is_missing_is_named_at_once(self, destination, monkeypatch):
        for module in (base, delta):
            monkeypatch.setattr(module, "find_spec", lambda name: None)
        name = "delta" if destination.kind is UsageTable else "parquet"

        with pytest.raises(ImportError, match=rf"airflow-provider-reducto\[{name}\]"):
            open_sink(destination.output_path, None, FORMATS[name], {}, **destination.options)
        assert destination.place.files() == {}

    @pytest.mark.parametrize("installed", ["0.25.5", "1.5.0", "1.6.5"])
    def test_a_deltalake_that_is_too_old_is_named_at_once(self, tmp_path, monkeypatch, installed):
        monkeypatch.setattr(delta, "version", {"deltalake": installed}.__getitem__)

        with pytest.raises(ImportError, match=f"needs deltalake 1.6.6 or newer, not {installed}: pip install"):
            open_sink(str(tmp_path), None, FORMATS["delta"], {})
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("use", [compact_table, vacuum_table, verify_table, UsageTableReader])
    def test_also_by_what_reads_and_compacts_a_table(self, tmp_path, monkeypatch, use):
        monkeypatch.setattr(delta, "version", {"deltalake": "1.6.5"}.__getitem__)

        with pytest.raises((ImportError, UsageReadError), match=r"needs deltalake 1.6.6 or newer, not 1\.6\.5"):
            use(str(tmp_path))

    @pytest.mark.parametrize("installed", ["1.6.6", "1.10.0", "2.0.0rc1"])
    def test_a_newer_deltalake_is_used(self, tmp_path, monkeypatch, installed):
        monkeypatch.setattr(delta, "version", {"deltalake": installed}.__getitem__)
        open_sink(str(tmp_path), None, FORMATS["delta"], {})

    def test_the_extra_needs_the_same_deltalake(self):
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
        assert f"deltalake>={delta.MIN_DELTALAKE}" in project["optional-dependencies"]["delta"]

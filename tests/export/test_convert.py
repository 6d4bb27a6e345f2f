"""A dataset of files becomes a Delta table with the same usage, or nothing at all."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
import time_machine
from deltalake import DeltaTable

from reducto_provider.export.convert import convert_dataset, main
from reducto_provider.export.delta import conversion
from reducto_provider.export.delta.journal import Journal
from reducto_provider.export.delta.verify import verify_table
from reducto_provider.export.focus import FOCUS_FORMATS, BillingTerms
from reducto_provider.export.formats import COMPRESSIONS, FORMATS, TABLE_FORMAT, check_format
from reducto_provider.export.reader import UsageReadError, open_reader, read_usage
from reducto_provider.export.sink import DatasetMismatchError, open_sink
from reducto_provider.usage.days import DayRange
from tests.airflows import DELTA
from tests.export.test_sink import changed, changes_of

pytestmark = DELTA

ENCODINGS = [
    *((name, None) for name in FORMATS if name not in (*FOCUS_FORMATS, TABLE_FORMAT)),
    *(
        (name, how)
        for name, each in FORMATS.items()
        for how in COMPRESSIONS
        if not each.compression and name not in FOCUS_FORMATS
    ),
]
USAGE = [
    ("2026-05-30", "parse", "230.10000000000002", 75),
    ("2026-05-30", None, "null", 20),
    ("2026-06-01", "", "0.000000001", 0),
    ("2026-06-02", "parse", "12345678901234567890123456789.123456789", 2**63 - 1),
]
WHOLE = DayRange(date(2026, 1, 1), date(2026, 12, 31))
MAY_30, JUNE_1, JUNE_2 = date(2026, 5, 30), date(2026, 6, 1), date(2026, 6, 2)


@pytest.fixture
def files(tmp_path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def table(tmp_path) -> Path:
    return tmp_path / "table"


@pytest.fixture
def publish(make_export):
    def publish(root, *usage, format="jsonl", compression=None, run="dag/run/task/-1", succeeds=True, **fields):
        export = make_export(*usage, **fields)
        terms = BillingTerms(price_per_credit="0.015") if format in FOCUS_FORMATS else None
        sink = open_sink(str(root), None, check_format(format, compression, terms), export.query.filters())
        sink.check()
        published = sink.publish(export.report, export.query, run)
        if succeeds:
            sink.acknowledge(changes_of(export, published))
        return export, published

    return publish


def convert(files, table):
    return [str(day) for day in convert_dataset(str(files), str(table))]


def exported(root, org_id="org_abc123"):
    found = open_reader(str(root)).exported_days(org_id, "product", WHOLE).days
    return {day: (each.row_count, each.credits, each.is_final, each.exported_at) for day, each in found.items()}


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "compression"), ENCODINGS)
def test_every_format_keeps_every_row(files, table, publish, name, compression):
    with time_machine.travel("2026-06-02T12:00:00Z", tick=False):
        more = {"pages": 3} if name == "json" else None
        usage = [(*row, more) if more else row for row in USAGE]
        published, _ = publish(files, *usage, format=name, compression=compression)
        publish(files, *USAGE, format=name, compression=compression, org_id="x' OR org_id <> '", group_by="feature")

    assert convert(files, table) == [
        *(f"2026-05-{day} by feature: 1 converted" for day in (30, 31)),
        *(f"2026-05-{day} by product: 1 converted" for day in (30, 31)),
        *(f"2026-06-0{day} by feature: 1 converted" for day in (1, 2)),
        *(f"2026-06-0{day} by product: 1 converted" for day in (1, 2)),
    ]
    assert read_usage(str(table), org_id="org_abc123", start=MAY_30, end=JUNE_2) == list(published.report.rows)
    assert exported(table) == exported(files)
    assert open_reader(str(table)).organizations() == open_reader(str(files)).organizations()
    assert [each[2] for each in exported(table).values()] == [True, True, True, False]
    assert verify_table(str(table)).problems == ()


class TestAgain:
    def test_a_second_run_makes_no_commit_and_writes_nothing(self, files, table, publish):
        publish(files, *USAGE)
        convert(files, table)
        before = contents(table)

        assert convert(files, table)[0] == "2026-05-30 by product: 1 already there"
        assert contents(table) == before

    def test_what_was_exported_to_files_since_is_added(self, files, table, publish):
        with time_machine.travel("2026-06-10T00:00:00Z", tick=False):
            publish(files, *USAGE)
            convert(files, table)
        restated, _ = publish(files, *USAGE[:3], ("2026-06-02", "parse", "7", 7), ("2026-06-03", "parse", "1", 1))

        assert convert(files, table)[2:] == [
            "2026-06-01 by product: 1 already there",
            "2026-06-02 by product: 1 converted",
            "2026-06-03 by product: 1 converted",
        ]
        rows = read_usage(str(table), org_id="org_abc123", start=MAY_30, end=date(2026, 6, 3))
        assert rows == list(restated.report.rows)

    def test_a_day_that_became_final_since(self, files, table, publish):
        for moment in ("2026-06-02T12:00:00Z", "2026-06-03T12:00:00Z"):
            with time_machine.travel(moment, tick=False):
                publish(files, *USAGE)
            days = convert(files, table)

        assert days[2:] == ["2026-06-01 by product: 1 already there", "2026-06-02 by product: 1 converted"]
        assert exported(table)[JUNE_2][2]
        assert DeltaTable(table).version() == 2, "no commit for it"

    def test_what_was_exported_to_the_table_since_is_kept(self, files, table, publish):
        with time_machine.travel("2026-06-10T00:00:00Z", tick=False):
            publish(files, *USAGE)
            convert(files, table)
        newer, _ = publish(table, ("2026-06-02", "parse", "7", 7), ("2026-06-03", "parse", "1", 1), format="delta")

        assert convert(files, table)[3] == "2026-06-02 by product: 1 newer in the table"
        rows = read_usage(str(table), org_id="org_abc123", start=JUNE_2, end=date(2026, 6, 3))
        assert rows == list(newer.report.rows)

    def test_rows_of_a_killed_export_are_kept(self, files, table, publish, mocker):
        publish(files, *USAGE)
        killed = mocker.patch.object(Journal, "record", side_effect=OSError("killed"))
        with pytest.raises(OSError, match="killed"):
            publish(table, ("2026-06-02", "parse", "7", 7), format="delta")
        mocker.stop(killed)

        assert convert(files, table)[3] == "2026-06-02 by product: 1 newer in the table"
        row = [row for row in pa.table(DeltaTable(table).scan()).to_pylist() if row["date"] == JUNE_2]
        assert [each["credits"] for each in row] == [7]

    def test_it_continues_after_it_was_killed(self, files, table, publish, mocker):
        published, _ = publish(files, *USAGE)
        record = Journal.record
        for kill in (1, 2):
            calls = []

            def die(journal, *arguments, calls=calls, kill=kill, **options):
                calls.append(None)
                if len(calls) == kill:
                    raise KeyboardInterrupt
                record(journal, *arguments, **options)

            killed = mocker.patch.object(Journal, "record", autospec=True, side_effect=die)
            with pytest.raises(KeyboardInterrupt):
                convert(files, table)
            mocker.stop(killed)
        convert(files, table)

        assert {day.partition(": ")[2] for day in convert(files, table)} == {"1 already there"}
        assert DeltaTable(table).version() == 2, "created, and each month once"
        assert read_usage(str(table), org_id="org_abc123", start=MAY_30, end=JUNE_2) == list(published.report.rows)
        assert exported(table) == exported(files)
        assert verify_table(str(table)).problems == ()


class TestChanges:
    def test_reported_ones_are_not_reported_again_and_others_are(self, files, table, publish):
        publish(files, *USAGE[:3])
        publish(files, USAGE[3], succeeds=False)
        convert(files, table)
        _, published = publish(table, *USAGE, format="delta")

        assert changed(published) == [JUNE_2]
        assert changed(publish(table, *USAGE, format="delta")[1]) == []

    def test_json_with_keys_that_a_table_does_not_have(self, files, table, publish):
        publish(files, (*USAGE[0], {"pages": 3}), format="json")
        convert(files, table)

        assert changed(publish(table, USAGE[0], format="delta")[1]) == []


def test_the_history_names_the_runs_that_exported_the_files(files, table, publish):
    publish(files, *USAGE, run="dag/first/task/-1")
    publish(files, ("2026-06-02", "parse", "7", 7), run="dag/second/task/-1")
    convert(files, table)
    exports = [each for entry in DeltaTable(table).history() for each in json.loads(entry["userMetadata"])["exports"]]

    assert [(each["run"], each["replaced"], each["query"][:2]) for each in exports] == [
        ("dag/first/task/-1", [["2026-06-01", "2026-06-01"]], [["startDate", "2026-05-30"], ["endDate", "2026-06-02"]]),
        (
            "dag/second/task/-1",
            [["2026-06-02", "2026-06-02"]],
            [["startDate", "2026-06-02"], ["endDate", "2026-06-02"]],
        ),
        ("dag/first/task/-1", [["2026-05-30", "2026-05-30"]], [["startDate", "2026-05-30"], ["endDate", "2026-06-02"]]),
    ]


def test_filters_stay_pinned(files, table, publish):
    publish(files, *USAGE, products=("parse",))
    convert(files, table)

    assert open_reader(str(table)).filters == {"products": ["parse"]}
    with pytest.raises(DatasetMismatchError, match=r"filters is \{'products': \['parse'\]\}, this export's \{\}"):
        publish(table, *USAGE, format="delta")


def test_days_that_were_never_exported_stay_so(files, table, publish):
    publish(files, USAGE[0])
    publish(files, USAGE[3])
    convert(files, table)

    assert list(exported(table)) == [MAY_30, JUNE_2]
    assert len(DeltaTable(table).file_uris()) == 2


def test_many_organizations_are_committed_in_parts(files, table, publish, mocker):
    mocker.patch("reducto_provider.export.convert._MAX_ORGANIZATIONS", 2)
    for number in range(5):
        publish(files, USAGE[0], org_id=f"org_{number}")

    assert convert(files, table) == ["2026-05-30 by product: 5 converted"]
    assert DeltaTable(table).version() == 3
    assert len(pa.table(DeltaTable(table).scan())) == 5


DAMAGE = {
    "missing": (lambda path: path.unlink(), "usage.jsonl is missing"),
    "altered": (lambda path: path.write_text("{}\n"), "usage.jsonl is not what its manifest describes"),
    "in no manifest": (
        lambda path: path.with_name("copy.jsonl").write_text("{}\n"),
        "dt=2026-06-02/copy.jsonl is in no manifest",
    ),
}


class TestRefused:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        monkeypatch.setattr("reducto_provider.export.reader.time.sleep", lambda _: None)

    @pytest.mark.parametrize("kind", DAMAGE)
    def test_damaged_files_are_named_and_nothing_is_done(self, files, table, publish, kind, capsys):
        publish(files, *USAGE)
        publish(files, *USAGE, org_id="org_z")
        damage, named = DAMAGE[kind]
        for org_id in ("org_abc123", "org_z"):
            damage(files / f"data/org_id={org_id}/group_by=product/dt=2026-06-02/usage.jsonl")

        assert main([str(files), str(table)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("nothing was converted, since files are missing or damaged: ")
        assert error.count(named) == 2
        assert not table.exists()

    def test_a_manifest_that_can_not_be_decoded(self, files, table, publish):
        publish(files, *USAGE)
        (files / "metadata/org_id=org_abc123/group_by=product/dt=2026-05-31.json").write_text("{")
        with pytest.raises(UsageReadError, match=r"dt=2026-05-31.json can't be decoded"):
            convert(files, table)
        assert not table.exists()

    @pytest.mark.parametrize("name", FOCUS_FORMATS)
    def test_focus(self, files, table, publish, name, capsys):
        publish(files, USAGE[2], format=name)
        assert main([str(files), str(table)]) == 1
        assert "has FOCUS files, whose prices and other columns a table does not have" in capsys.readouterr().err
        assert not table.exists()

    def test_another_dataset_at_the_table_s_place(self, files, table, publish):
        publish(files, *USAGE)
        with pytest.raises(DatasetMismatchError, match="holds files, not a Delta table"):
            convert(files, files)
        publish(table, *USAGE, format="delta", products=("parse",))
        before = contents(table)
        with pytest.raises(DatasetMismatchError, match="filters is"):
            convert(files, table)
        assert contents(table) == before

    def test_a_table_and_nothing_as_the_dataset(self, files, table, publish):
        publish(table, *USAGE, format="delta")
        for nothing in (table, files):
            with pytest.raises(UsageReadError, match=r"there is no metadata/dataset.json"):
                convert(nothing, table.with_name("other"))


def test_the_command_tells_each_day(files, table, publish, capsys, monkeypatch):
    publish(files, *USAGE)
    publish(files, *USAGE[2:], org_id="org_b")
    monkeypatch.chdir(files.parent)
    assert main([files.name, str(table)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2026-05-30 by product: 1 converted",
        "2026-05-31 by product: 1 converted",
        "2026-06-01 by product: 2 converted",
        "2026-06-02 by product: 2 converted",
        "In all: 6 converted, 0 already there, 0 newer in the table",
    ]


def test_an_export_to_the_table_at_the_same_time(files, table, publish, mocker):
    published, _ = publish(files, *USAGE)
    compare, others = conversion.Conversion.compare, []

    def compare_and_be_overtaken(self, *arguments):
        compare(self, *arguments)
        if not others:
            others.append(publish(table, ("2026-05-29", "parse", "5", 5), format="delta"))

    mocker.patch.object(conversion.Conversion, "compare", compare_and_be_overtaken)
    convert(files, table)

    rows = read_usage(str(table), org_id="org_abc123", start=date(2026, 5, 29), end=JUNE_2)
    assert rows == [*others[0][0].report.rows, *published.report.rows]
    assert verify_table(str(table)).problems == ()

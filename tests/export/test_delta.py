"""The dataset as a Delta table: what goes beyond the contract of every destination (test_sink.py)."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
import time_machine
from deltalake import DeltaTable, write_deltalake

from reducto_provider import __version__
from reducto_provider.export.delta import upkeep
from reducto_provider.export.delta.counts import CommitCounts
from reducto_provider.export.delta.journal import Day, Journal
from reducto_provider.export.delta.location import check_table_location
from reducto_provider.export.delta.publication import Publication
from reducto_provider.export.delta.table import UsageDeltaTable
from reducto_provider.export.delta.verify import verify_table
from reducto_provider.export.formats import FORMATS
from reducto_provider.export.sink import DatasetMismatchError, OutdatedReportError, PublishError, open_sink
from reducto_provider.export.storage import LocalStorage
from reducto_provider.export.verify import main
from reducto_provider.usage.days import DayRange
from tests.airflows import DELTA
from tests.export.test_dataset import THREE_DAYS
from tests.export.test_sink import JUNE_16, JUNE_17, JUNE_18, JUNE_19, RESTATED, RUN, changed, changes_of

HOSTILE = [
    "x' OR org_id <> '",
    "x' OR '1'='1",
    "'",
    "''",
    "\\",
    "\\'",
    "a -- b",
    "a /* b",
    'quoted "id"',
    "line\nbreak",
    "nul\0",
    "../../etc",
    "50%",
    "_",
    "org_abc123 ",
    "ORG_ABC123",
    "\U0001f600 \u202e",
    "{}",
    "$1",
    "?",
    "x" * 200,
]

pytestmark = DELTA


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "usage"


@pytest.fixture
def open_table(root):
    """A new task's destination, checked before its request."""

    def open_table(**filters):
        sink = open_sink(str(root), None, FORMATS["delta"], filters)
        sink.check()
        return sink

    return open_table


@pytest.fixture
def publish(open_table):
    def publish(export, *, succeeds=True):
        sink = open_table(**export.query.filters())
        files = sink.publish(export.report, export.query, RUN)
        if succeeds:
            sink.acknowledge(changes_of(export, files))
        return files

    return publish


def rows(root, **version):
    found = pa.table(DeltaTable(root, **version).scan()).to_pylist()
    return sorted((r["org_id"], r["group_by"], str(r["date"]), r["group"] or "", str(r["credits"])) for r in found)


def rows_of(*exports):
    return sorted(
        (e.report.org_id, e.report.group_by, str(r.date), r.group or "", f"{r.credits:.9f}")
        for e in exports
        for r in e.report.rows
    )


def user_metadata(root, version=None):
    table = DeltaTable(root, version=version)
    return json.loads(table.history(1)[0]["userMetadata"])


class TestForeignText:
    @pytest.mark.parametrize("org_id", HOSTILE)
    def test_an_organization_touches_no_other(self, root, make_export, publish, org_id):
        others = [make_export(*THREE_DAYS), make_export(*THREE_DAYS, org_id="x", group_by="api_key")]
        for export in others:
            publish(export)
        for mine in ([*THREE_DAYS], [*RESTATED]):
            export = make_export(*mine, org_id=org_id)
            publish(export)
            assert rows(root) == rows_of(*others, export)
        publish(make_export(start="2026-06-16", end="2026-06-18", org_id=org_id))
        assert rows(root) == rows_of(*others)

    def test_all_of_them_in_one_compacted_file(self, root, make_export, publish):
        exports = {org_id: make_export(*THREE_DAYS, org_id=org_id) for org_id in HOSTILE}
        for export in exports.values():
            publish(export)
        DeltaTable(root).optimize.compact()
        for org_id in HOSTILE:
            exports[org_id] = make_export(*RESTATED, org_id=org_id)
            publish(exports[org_id])
            assert rows(root) == rows_of(*exports.values())

    @pytest.mark.parametrize("group", ["x' OR '1'='1", "", None, "nul\0", "\U0001f600"])
    def test_a_group_is_only_content(self, root, make_export, publish, group):
        publish(make_export(("2026-06-16", group, "1.5", 1)))
        [row] = pa.table(DeltaTable(root).scan()).to_pylist()
        assert row["group"] == group
        assert changed(publish(make_export(("2026-06-16", group, "1.5", 1)))) == []


class TestCommits:
    def test_only_days_that_changed_are_replaced(self, root, make_export, publish):
        publish(make_export(*THREE_DAYS))
        publish(make_export(*RESTATED))

        assert [each["replaced"] for each in user_metadata(root)["exports"]] == [[["2026-06-17", "2026-06-17"]]]
        assert rows(root) == rows_of(make_export(*RESTATED))

    def test_an_unchanged_answer_makes_none(self, root, make_export, publish):
        publish(make_export(*THREE_DAYS))
        publish(make_export(*THREE_DAYS, end="2026-06-19"))
        publish(make_export(start="2026-06-01", end="2026-06-10"))
        publish(make_export(start="2026-06-01", end="2026-06-10", org_id="org_without_usage"))

        assert DeltaTable(root).version() == 1

    def test_credits_are_exact_and_may_be_unknown(self, root, make_export, publish):
        days = [
            ("2026-06-16", "a", "12345678901234567890123456789.123456789", 2**63 - 1),
            ("2026-06-16", "b", "null", 0),
            ("2026-06-16", "c", "230.10000000000002", 1),
        ]
        publish(make_export(*days))

        found = {r["group"]: r["credits"] for r in pa.table(DeltaTable(root).scan()).to_pylist()}
        assert found == {"a": Decimal("12345678901234567890123456789.123456789"), "b": None, "c": Decimal("230.1")}
        assert changed(publish(make_export(*days))) == []
        assert DeltaTable(root).version() == 1

    def test_a_report_of_days_that_others_replaced_meanwhile_is_outdated(self, root, make_export, open_table, publish):
        late, old = open_table(), make_export(*THREE_DAYS)
        publish(make_export(*RESTATED))

        with pytest.raises(OutdatedReportError, match=r"version 1 of .* has replaced some of its days"):
            late.publish(old.report, old.query, RUN)
        assert rows(root) == rows_of(make_export(*RESTATED))
        late.publish(old.report, old.query, RUN)  # requested again
        assert rows(root) == rows_of(old)

    def test_other_days_organizations_and_dimensions_do_not_matter(self, root, make_export, open_table, publish):
        late = open_table()
        others = [
            make_export(("2026-06-15", "parse", "1", 1)),
            make_export(*THREE_DAYS, org_id="org_other"),
            make_export(*THREE_DAYS, group_by="api_key"),
        ]
        for export in others:
            publish(export)
        DeltaTable(root).optimize.compact()
        mine = make_export(*THREE_DAYS)
        late.publish(mine.report, mine.query, RUN)

        assert rows(root) == rows_of(mine, *others)

    def test_a_foreign_commit_may_have_changed_anything(self, root, make_export, open_table, publish):
        publish(make_export(*THREE_DAYS))
        late, mine = open_table(), make_export(*RESTATED)
        DeltaTable(root).delete("org_id = 'org_other'")
        late.publish(mine.report, mine.query, RUN)  # nothing was deleted, so nothing was committed
        late = open_table()
        DeltaTable(root).delete("org_id = 'org_abc123'")

        with pytest.raises(OutdatedReportError):
            late.publish(mine.report, mine.query, RUN)

    def test_what_threads_publish_at_the_same_time_shares_commits(self, root, make_export, open_table):
        exports = [make_export(*THREE_DAYS, org_id=f"org_{number}") for number in range(16)]
        again = [make_export(*RESTATED, org_id="org_0")] * 2
        sink = open_table()
        with ThreadPoolExecutor(18) as threads:
            list(threads.map(lambda each: sink.publish(each.report, each.query, RUN), [*exports, *again]))

        assert DeltaTable(root).version() < 9
        assert Counter(row[0] for row in rows(root)) == dict.fromkeys((e.report.org_id for e in exports), 4)
        assert verify_table(str(root)).problems == ()

    def test_an_outdated_report_fails_alone(self, root, make_export, open_table, publish):
        late, old = open_table(), make_export(*THREE_DAYS)
        publish(make_export(*RESTATED))
        others = [make_export(*THREE_DAYS, org_id=f"org_{number}") for number in range(4)]
        with ThreadPoolExecutor(5) as threads:
            published = [threads.submit(late.publish, each.report, each.query, RUN) for each in (old, *others)]

        assert [type(each.exception()) for each in published] == [OutdatedReportError, *[type(None)] * 4]
        assert rows(root) == rows_of(make_export(*RESTATED), *others)

    def test_none_of_them_succeeds_when_the_thread_that_commits_is_ended(self, root, make_export, open_table, mocker):
        exports = [make_export(*THREE_DAYS, org_id=f"org_{number}") for number in range(8)]
        sink = open_table()
        mocker.patch.object(UsageDeltaTable, "create", side_effect=SystemExit)
        with ThreadPoolExecutor(8) as threads:
            published = [threads.submit(sink.publish, each.report, each.query, RUN) for each in exports]

        assert [type(each.exception()) for each in published] == [SystemExit] * 8

    def test_conflicts_without_end_are_a_clear_error(self, make_export, open_table, publish, mocker):
        publish(make_export(*THREE_DAYS))
        mocker.patch("time.sleep")
        replaced = mocker.patch("deltalake.write_deltalake", side_effect=_conflict())

        with pytest.raises(PublishError, match="30 commits in a row have conflicted with others: somebody was faster"):
            publish(make_export(*RESTATED))
        assert replaced.call_count == 30


def _conflict():
    from deltalake.exceptions import CommitFailedError

    return CommitFailedError("somebody was faster")


class TestChanges:
    """`changed` when a writer is killed between its commit and the record of the exported days."""

    def test_a_change_whose_record_is_missing_is_reported(self, make_export, publish, mocker):
        publish(make_export(*THREE_DAYS))
        killed = mocker.patch.object(Journal, "record", side_effect=OSError("killed"))
        with pytest.raises(PublishError):
            publish(make_export(*RESTATED))
        mocker.stop(killed)

        assert changed(publish(make_export(*RESTATED))) == [JUNE_16, JUNE_17, JUNE_18]
        assert changed(publish(make_export(*RESTATED))) == []

    def test_nor_is_one_lost_that_is_back_as_it_was(self, make_export, publish, mocker):
        publish(make_export(*THREE_DAYS))
        killed = mocker.patch.object(Journal, "record", side_effect=OSError("killed"))
        for days in (RESTATED, THREE_DAYS):
            with pytest.raises(PublishError):
                publish(make_export(*days))
        mocker.stop(killed)

        assert JUNE_17 in changed(publish(make_export(*THREE_DAYS)))

    def test_days_beyond_the_export_are_reported_when_they_are_covered(self, make_export, publish, mocker):
        publish(make_export(*THREE_DAYS))
        killed = mocker.patch.object(Journal, "record", side_effect=OSError("killed"))
        with pytest.raises(PublishError):
            publish(make_export(*RESTATED))
        mocker.stop(killed)
        publish(make_export(*THREE_DAYS[:2]))  # records the year again

        assert changed(publish(make_export(*RESTATED))) == [JUNE_17, JUNE_18]

    def test_nothing_is_reported_because_others_exported_other_days_meanwhile(self, make_export, publish, mocker):
        publish(make_export(*THREE_DAYS))
        publish(make_export(("2026-06-19", "parse", "1", 1)))
        load = mocker.patch.object(Publication, "load", autospec=True)

        def load_before_another_export(publication):
            mocker.stop(load)
            publication.load()
            publish(make_export(("2026-06-19", "parse", "2", 1)))

        load.side_effect = load_before_another_export
        assert changed(publish(make_export(*THREE_DAYS))) == []

    def test_after_others_have_written_the_table(self, root, make_export, publish):
        publish(make_export(*THREE_DAYS))
        DeltaTable(root).delete("date = '2026-06-17'")

        assert changed(publish(make_export(*THREE_DAYS))) == [JUNE_17]
        assert rows(root) == rows_of(make_export(*THREE_DAYS))

    def test_after_the_table_was_restored_to_an_earlier_version(self, root, make_export, publish):
        publish(make_export(*THREE_DAYS))
        publish(make_export(*RESTATED))
        DeltaTable(root).restore(1)

        assert changed(publish(make_export(*RESTATED))) == [JUNE_17]
        assert rows(root) == rows_of(make_export(*RESTATED))

    def test_after_the_table_was_made_anew(self, root, make_export, publish):
        publish(make_export(*THREE_DAYS))
        publish(make_export(*RESTATED))
        for path in root.glob("_delta_log/*"):
            path.unlink()

        assert changed(publish(make_export(*THREE_DAYS))) == [JUNE_16, JUNE_17, JUNE_18]
        assert changed(publish(make_export(*THREE_DAYS))) == []


class TestCommitCounts:
    @pytest.fixture
    def find(self, root):
        """The counts, which must be those that the library finds."""
        counts = CommitCounts(LocalStorage(root))

        def find(**version):
            table = UsageDeltaTable(DeltaTable(root, **version), "")
            counters = [Journal(LocalStorage(root), f"org_{number}", "product").counter(2026) for number in range(3)]
            found = counts.find(table, counters)
            assert found == {counter: table.commit_count(counter) for counter in counters}
            return list(found.values())

        return find

    def publish(self, publish, make_export, *numbers):
        for number, times in enumerate(numbers):
            for credits in range(times):
                publish(make_export(("2026-06-16", "parse", str(credits), 1), org_id=f"org_{number}"))

    def test_each_commit_is_read_once(self, find, publish, make_export, mocker):
        self.publish(publish, make_export, 1, 2, 0)
        read = mocker.spy(LocalStorage, "read")
        assert find() == [1, 2, 0]
        assert find() == [1, 2, 0]
        self.publish(publish, make_export, 0, 0, 2)
        read.reset_mock()
        assert find() == [1, 2, 2]

        names = [name for (_, name), _ in read.call_args_list]
        assert names == ["_delta_log/00000000000000000004.json", "_delta_log/00000000000000000005.json"]

    def test_after_a_checkpoint(self, root, find, publish, make_export):
        self.publish(publish, make_export, 1, 2, 3)
        DeltaTable(root).create_checkpoint()
        for path in sorted(root.glob("_delta_log/*.json"))[:-1]:  # the checkpoint's own stays
            path.unlink()
        assert find() == [1, 2, 3]
        self.publish(publish, make_export, 2)  # the first of them is as before
        assert find() == [2, 2, 3]

    @pytest.mark.parametrize(
        "hint", [b"{", b'{"version": 3, "parts": 2}', b'{"version": 2}', b'{"version": 3, "sizeInBytes": 1}', b"\xff"]
    )
    def test_whatever_the_hint_says(self, root, find, publish, make_export, hint):
        self.publish(publish, make_export, 1, 2)
        DeltaTable(root).create_checkpoint()
        self.publish(publish, make_export, 0, 0, 1)
        (root / "_delta_log" / "_last_checkpoint").write_bytes(hint)
        assert find() == [1, 2, 1]

    def test_of_an_older_version_and_of_a_table_made_anew(self, root, find, publish, make_export):
        self.publish(publish, make_export, 2, 1)
        assert find() == [2, 1, 0]
        DeltaTable(root).create_checkpoint()
        assert find(version=1) == [1, 0, 0]
        shutil.rmtree(root)
        self.publish(publish, make_export, 1)
        assert find() == [1, 0, 0]


class TestExportedDays:
    def journal(self, root, year=2026):
        return Journal(LocalStorage(root), "org_abc123", "product").read(year)

    def test_empty_ones_too_and_whether_they_are_final(self, root, make_export, publish):
        today = datetime.now(UTC).date()
        yesterday = today - timedelta(days=1)
        publish(make_export((str(today), "parse", "1.5", 3), start=str(yesterday - timedelta(days=1)), end=str(today)))

        known = {}
        for year in {yesterday.year - 1, yesterday.year, today.year}:
            known |= self.journal(root, year).days
        assert {day: (each.final, each.row_count) for day, each in known.items()} == {
            yesterday - timedelta(days=1): (True, 0),
            yesterday: (True, 0),
            today: (False, 1),
        }
        assert known[today].credits == "1.5"
        assert known[today].request_count == 3

    def test_when_they_last_changed(self, root, make_export, publish):
        exported_at = []
        for hour, days in enumerate([THREE_DAYS, THREE_DAYS, RESTATED]):
            with time_machine.travel(f"2026-07-01T0{hour}:00:00Z", tick=False):
                publish(make_export(*days))
            exported_at.append([each.exported_at[11:13] for each in self.journal(root).days.values()])

        assert exported_at == [["00"] * 3, ["00"] * 3, ["00", "02", "00"]]

    def test_or_became_final(self, root, make_export, publish):
        for moment in ("2026-06-18T23:00:00Z", "2026-06-19T00:00:00Z"):
            with time_machine.travel(moment, tick=False):
                publish(make_export(*THREE_DAYS))
        found = self.journal(root).days
        assert [each.exported_at[:13] for each in found.values()] == [*["2026-06-18T23"] * 2, "2026-06-19T00"]
        assert found[JUNE_18].final

    def test_a_day_that_was_not_over_becomes_final_without_a_commit(self, root, make_export, open_table):
        export, sink = make_export(*THREE_DAYS), open_table()
        files = sink.publish(export.report, export.query, RUN, JUNE_18)
        assert {day: each.final for day, each in self.journal(root).days.items()} == {
            JUNE_16: True,
            JUNE_17: True,
            JUNE_18: False,
        }
        assert all(file.written for file in files)

        files = sink.publish(export.report, export.query, RUN, JUNE_19)
        assert {each.final for each in self.journal(root).days.values()} == {True}
        assert not any(file.written for file in files)
        assert DeltaTable(root).version() == 1

    def test_across_the_end_of_a_year(self, root, make_export, publish):
        days = [(day, "parse", "1", 1) for day in ("2025-12-30", "2025-12-31", "2026-01-01")]
        publish(make_export(*days))

        assert len(self.journal(root, 2025).days) == 2
        assert len(self.journal(root, 2026).days) == 1
        assert changed(publish(make_export(*days))) == []

    def test_one_that_can_not_be_decoded_is_replaced(self, root, make_export, publish):
        publish(make_export(*THREE_DAYS))
        [path] = root.glob("_reducto/*/*/2026.json")
        path.write_bytes(b"{")

        assert changed(publish(make_export(*THREE_DAYS))) == [JUNE_16, JUNE_17, JUNE_18]
        assert len(self.journal(root).days) == 3

    def test_one_that_does_not_say_when_has_no_days(self, root, make_export, publish):
        publish(make_export(*THREE_DAYS))
        [path] = root.glob("_reducto/*/*/2026.json")
        recorded = json.loads(path.read_bytes())
        del recorded["days"]["2026-06-16"]["exported_at"]
        path.write_text(json.dumps(recorded))

        assert self.journal(root).days == {}, (
            "with the moment of reading it would look newer than files that are to be converted"
        )

    def test_a_late_record_does_not_replace_a_newer_one(self, tmp_path):
        journal = Journal(LocalStorage(tmp_path), "org", "product")

        fields = {
            "rows_sha256": None,
            "row_count": 0,
            "credits": "0",
            "request_count": 0,
            "final": True,
            "exported_at": "2026-07-01T00:00:00+00:00",
        }
        day = {number: Day(change=f"{number:016x}", **fields) for number in (1, 2, 4)}

        journal.record(2026, "table", 2, {JUNE_16: day[2], JUNE_17: day[2]}, committed=True)
        journal.record(2026, "table", 1, {JUNE_16: day[1], JUNE_18: day[1]}, committed=True)
        found = journal.read(2026)
        assert found.commit == 2
        assert found.days == {JUNE_16: day[2], JUNE_17: day[2], JUNE_18: day[1]}

        journal.record(2026, "table", 4, {JUNE_19: day[4]}, committed=True)
        found = journal.read(2026)
        assert found.days[JUNE_19] == day[4]
        assert found.days[JUNE_16].change != day[2].change, "whoever made commit 3 may have changed it"


class TestCheck:
    @pytest.fixture
    def refused(self, root, make_export, open_table):
        def refused(reason):
            before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
            export = make_export(*THREE_DAYS)
            sink = open_sink(str(root), None, FORMATS["delta"], {})
            for attempt in (sink.check, lambda: sink.publish(export.report, export.query, RUN)):
                with pytest.raises(DatasetMismatchError, match=reason) as error:
                    attempt()
                assert str(root) in str(error.value)
            assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before

        return refused

    def test_files_are_refused(self, root, make_export, refused):
        export = make_export(*THREE_DAYS)
        open_sink(str(root), None, FORMATS["jsonl"], {}).publish(export.report, export.query)
        refused("holds files, not a Delta table")

    def test_and_by_files_a_table(self, root, make_export, publish):
        export = make_export(*THREE_DAYS)
        publish(export)
        sink = open_sink(str(root), None, FORMATS["jsonl"], {})
        for attempt in (sink.check, lambda: sink.publish(export.report, export.query)):
            with pytest.raises(DatasetMismatchError, match="is a Delta table"):
                attempt()

    def test_and_if_its_first_versions_were_removed(self, root, make_export, publish, capsys):
        export = make_export(*THREE_DAYS)
        publish(export)
        table = DeltaTable(root)
        table.create_checkpoint()
        for version in range(table.version()):
            (root / "_delta_log" / f"{version:020}.json").unlink()

        assert changed(publish(export)) == []
        assert main([str(root)]) == 0
        assert capsys.readouterr().out == "3 days, 1 files, 0 problems\n"
        with pytest.raises(DatasetMismatchError, match="is a Delta table"):
            open_sink(str(root), None, FORMATS["jsonl"], {}).check()

    def test_one_that_forbids_to_replace_rows_is_refused(self, root, make_export, publish, refused):
        publish(make_export(*THREE_DAYS))
        DeltaTable(root).alter.set_table_properties({"delta.appendOnly": "true"})
        refused("has the property delta.appendOnly, which forbids to replace usage that was restated")

    def test_a_table_of_something_else_is_refused(self, root, refused):
        write_deltalake(root, pa.table({"a": [1]}))
        refused("was made by something else")

    def test_another_schema_is_refused(self, root, make_export, publish, refused):
        publish(make_export(*THREE_DAYS))
        table = pa.table(DeltaTable(root).scan())
        write_deltalake(
            root, table.append_column("more", pa.array([1] * len(table))), mode="append", schema_mode="merge"
        )
        refused("was made by something else, or changed since: it has the columns .*more")

    @pytest.mark.parametrize(
        ("protocol", "named"),
        [
            ({"minReaderVersion": 1, "minWriterVersion": 8}, "writer version 8"),
            ({"minReaderVersion": 1, "minWriterVersion": 6}, "writer version 6"),
            (
                {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["appendOnly", "zebraStripes"]},
                "needs the features zebraStripes of writer version 7",
            ),
            (
                {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["new"], "writerFeatures": ["new"]},
                "can't be decoded, so what it holds is unknown: .*'new' is not supported",
            ),
        ],
    )
    def test_a_newer_protocol_is_refused_with_its_name(self, root, make_export, publish, refused, protocol, named):
        publish(make_export(*THREE_DAYS))
        (root / "_delta_log" / f"{2:020}.json").write_text(json.dumps({"protocol": protocol}) + "\n")
        refused(named)

    def test_an_error_of_the_library_is_one_plain_line(self, root, make_export, publish, open_table, mocker):
        text = "Generic S3 error\n   \x1b[31m↳\x1b[0m HTTP error\n    \x1b[31m↳\x1b[0m refused\n   0: <unknown>\n"
        publish(make_export(*THREE_DAYS))
        mocker.patch("deltalake.write_deltalake", side_effect=OSError(text))
        with pytest.raises(PublishError, match=r"run again: OSError: Generic S3 error: HTTP error: refused$"):
            publish(make_export(*RESTATED))
        (root / "_delta_log" / f"{2:020}.json").write_text('{"prot')
        with pytest.raises(DatasetMismatchError, match=r"unknown: [^\n\x1b]* reading string\. Export to another"):
            open_table()

    def test_a_location_with_every_kind_of_character(self, tmp_path, make_export):
        export = make_export(*THREE_DAYS)
        for name in ("50% ä", "a b", "a#b", "a?b", "a+b", "a'b", "x@y", 'a"b', "{a}", "100%", "中\U0001f600"):
            sink = open_sink(str(tmp_path / name), None, FORMATS["delta"], {})
            sink.publish(export.report, export.query)
            assert rows(tmp_path / name) == rows_of(export)
            assert {path.name for path in (tmp_path / name).iterdir()} == {"_delta_log", "_reducto", "group_by=product"}

    @pytest.mark.parametrize("name", ["%41", "a%2Fb", "a\\b", "[a]", "a^b", "a|b", "a\tb", "a\x85b", "a\u2028b"])
    def test_one_that_the_library_takes_for_another_is_refused(self, tmp_path, name):
        with pytest.raises(ValueError, match=r"output_path must not contain .* for output_format='delta'"):
            open_sink(str(tmp_path / name), None, FORMATS["delta"], {})

    @pytest.mark.parametrize("path", ["a#b", "a?b", "a/./b", "."])
    def test_in_an_object_store_also_what_it_cuts_off_or_leaves_out(self, tmp_path, make_export, path):
        with pytest.raises(ValueError, match=r"output_path must not contain '[#?/.]+' for output_format='delta'"):
            check_table_location(f"s3://lake/{path}")
        export = make_export(*THREE_DAYS)
        open_sink(f"{tmp_path}/{path}", None, FORMATS["delta"], {}).publish(export.report, export.query)
        assert rows(tmp_path / path) == rows_of(export)


class TestHistory:
    def test_a_commit_names_dag_run_query_and_package(self, root, make_export, publish):
        publish(make_export(*THREE_DAYS))

        assert user_metadata(root) == {
            "exports": [
                {
                    "org_id": "org_abc123",
                    "group_by": "product",
                    "run": RUN,
                    "query": [["startDate", "2026-06-16"], ["endDate", "2026-06-18"], ["groupBy", "product"]],
                    "replaced": [["2026-06-16", "2026-06-18"]],
                }
            ],
            "package_version": __version__,
        }

    def test_what_was_known_by_version_and_by_time_and_what_was_restated(self, root, make_export, publish):
        publish(make_export(*THREE_DAYS))
        first = datetime.fromtimestamp(DeltaTable(root).history(1)[0]["timestamp"] / 1000, UTC)
        age(root, timedelta(days=10))
        publish(make_export(*RESTATED))

        assert rows(root, version=1) == rows_of(make_export(*THREE_DAYS))
        table = DeltaTable(root)
        table.load_as_version(first - timedelta(days=5))
        assert table.version() == 1
        then = Counter(rows(root, version=1))
        now = Counter(rows(root))
        assert list(now - then) == [("org_abc123", "product", "2026-06-17", "parse", "231.000000000")]
        assert [row[2] for row in then - now] == ["2026-06-17"]

    def test_a_log_of_two_years_keeps_every_version(self, root, make_export, publish):
        publish(make_export(*THREE_DAYS))
        age(root, timedelta(days=730))
        for credits in range(5):
            publish(make_export(("2026-06-17", "parse", str(credits), 1)))
        table = DeltaTable(root)
        table.create_checkpoint()
        table.cleanup_metadata()

        assert rows(root, version=1) == rows_of(make_export(*THREE_DAYS))
        assert table.vacuum(dry_run=True) == []
        assert len(table.history()) == 7


class TestVerify:
    @pytest.fixture
    def published(self, root, make_export, publish):
        publish(make_export(*THREE_DAYS, end="2026-06-19"))
        publish(make_export(*THREE_DAYS, org_id="x' / %", group_by="api_key"))
        return root

    def problems(self, root):
        return [(each.kind, each.name) for each in verify_table(str(root)).problems]

    def test_a_table_as_it_was_published(self, published, capsys):
        found = verify_table(str(published))

        assert (found.days, found.files, found.problems) == (7, 2, ())
        assert main([str(published)]) == 0
        assert capsys.readouterr().out == "7 days, 2 files, 0 problems\n"

    def test_compaction_and_restatements_are_no_problem(self, published, make_export, publish):
        publish(make_export(*RESTATED))
        DeltaTable(published).optimize.compact()
        assert self.problems(published) == []

    def test_rows_that_were_altered_or_removed(self, published, capsys):
        DeltaTable(published).delete("org_id = 'org_abc123' AND date = '2026-06-17'")
        DeltaTable(published).update({"credits": "1"}, predicate="org_id <> 'org_abc123' AND date = '2026-06-18'")

        assert self.problems(published) == [
            ("missing", "org_abc123 by product on 2026-06-17"),
            ("altered", "x' / % by api_key on 2026-06-18"),
        ]
        assert main([str(published)]) == 1
        assert "missing: org_abc123 by product on 2026-06-17: 0 rows, not the 1 published" in capsys.readouterr().out

    def test_rows_that_were_doubled_or_added(self, published):
        table = pa.table(DeltaTable(published).scan())
        column = table.column_names.index("org_id")
        row = table["org_id"].to_pylist().index("org_abc123")
        doubled = table.slice(row, 1)
        write_deltalake(published, doubled, mode="append")
        write_deltalake(published, doubled.set_column(column, "org_id", [["org_z"]]), mode="append")

        day = doubled["date"][0].as_py()
        assert self.problems(published) == [
            ("unknown", f"org_z by product on {day}"),
            ("altered", f"org_abc123 by product on {day}"),
        ]

    def test_a_file_that_was_lost(self, published):
        [path] = published.glob("group_by=product/*.parquet")
        path.unlink()
        assert self.problems(published) == [("missing", f"group_by=product/{path.name}")]

    def test_days_that_were_never_exported(self, published, make_export, publish):
        publish(make_export(("2026-06-22", "parse", "1", 1)))
        assert self.problems(published) == [("missing", "org_abc123 by product on 2026-06-20")]

    def test_what_is_no_journal(self, published):
        [journal] = published.glob("_reducto/*/group_by=product/2026.json")
        journal.write_text("{")
        (published / "_reducto" / "notes.txt").write_text("mine")
        assert self.problems(published) == [
            ("unknown", "_reducto/notes.txt"),
            ("unreadable", "_reducto/org_id=org_abc123/group_by=product/2026.json"),
            *(("unknown", f"org_abc123 by product on {day}") for day in (JUNE_16, JUNE_17, JUNE_18)),
        ]

    def test_a_table_of_something_else_is_refused(self, root):
        write_deltalake(root, pa.table({"a": [1]}))
        with pytest.raises(DatasetMismatchError, match="was made by something else"):
            verify_table(str(root))

    def test_where_no_table_is(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no Delta table at"):
            verify_table(str(tmp_path))


class TestUpkeep:
    @pytest.fixture(autouse=True)
    def on(self, mocker):
        """Upkeep on another day; by default on one on which nothing is old enough."""
        today = mocker.patch.object(upkeep, "today", return_value=date(2026, 1, 1))
        return lambda *day: setattr(today, "return_value", date(*day))

    def fill(self, publish, make_export, days, organizations):
        """A commit for each day and organization, as daily exports make them."""
        exports = []
        for number in range(days):
            day = str(date(2026, 1, 1) + timedelta(days=number))
            for org_id in organizations:
                exports.append(make_export((day, "parse", f"{number}.5", 1), (day, "b", "2", 2), org_id=org_id))
                publish(exports[-1], succeeds=False)
        return exports

    def files(self, root):
        return Counter(file.first.strftime("%Y-%m") for file in UsageDeltaTable(DeltaTable(root), "").data_files())

    def test_by_itself_old_months_are_few_files_and_the_newest_days_are_left_alone(
        self, root, make_export, publish, on
    ):
        on(2026, 5, 1)
        exports = self.fill(publish, make_export, 120, ["org_a"])

        assert rows(root) == rows_of(*exports)
        found = self.files(root)
        assert found["2026-01"] <= upkeep.MAX_FILES
        assert found["2026-02"] <= upkeep.MAX_FILES
        assert found["2026-03"] == 31, "March is not over for forty days"
        assert found["2026-04"] == 30
        assert verify_table(str(root)).problems == ()

    def test_on_request_and_again(self, root, make_export, publish, on):
        exports = self.fill(publish, make_export, 70, ["org_a"])
        on(2026, 12, 1)
        before = len(DeltaTable(root).file_uris())

        assert upkeep.compact_table(str(root)) == upkeep.Compaction(before - 3, ())
        assert rows(root) == rows_of(*exports)
        assert self.files(root) == {"2026-01": 1, "2026-02": 1, "2026-03": 1}
        version = DeltaTable(root).version()
        assert upkeep.compact_table(str(root)).files == 0
        assert DeltaTable(root).version() == version
        assert rows(root, version=30)

    def test_many_files_are_compacted_in_parts(self, root, make_export, publish, on, mocker):
        exports = self.fill(publish, make_export, 31, ["org_a", "org_b"])
        mocker.patch.object(upkeep, "_MAX_FILES_AT_ONCE", 10)
        on(2026, 12, 1)
        upkeep.compact_table(str(root))

        assert rows(root) == rows_of(*exports)
        assert self.files(root)["2026-01"] <= upkeep.MAX_FILES + 2

    def test_it_yields_to_an_export(self, root, make_export, publish):
        self.fill(publish, make_export, 31, ["org_a"])
        table = UsageDeltaTable(DeltaTable(root), "")
        restated = make_export(("2026-01-05", "parse", "77", 1), org_id="org_a")
        publish(restated)
        version = DeltaTable(root).version()

        assert upkeep.compact(table, "product", DayRange(date(2026, 1, 1), date(2026, 1, 31))) == 0
        assert DeltaTable(root).version() == version
        assert rows_of(restated)[0] in rows(root)

    def test_a_month_that_is_exported_meanwhile_is_left_and_the_next_is_compacted(
        self, root, make_export, publish, on, mocker, caplog
    ):
        exports = self.fill(publish, make_export, 58, ["org_a"])
        on(2026, 12, 1)
        exports[4], compact = make_export(("2026-01-05", "parse", "77", 1), org_id="org_a"), UsageDeltaTable.compact

        def compact_beside_an_export(table, group_by, first, last):
            if first == date(2026, 1, 1):
                publish(exports[4])
            compact(table, group_by, first, last)

        mocker.patch.object(UsageDeltaTable, "compact", compact_beside_an_export)
        assert upkeep.compact_table(str(root)) == upkeep.Compaction(26, (("product", date(2026, 1, 1)),))
        assert self.files(root) == {"2026-01": 31, "2026-02": 1}
        assert rows(root) == rows_of(*exports)
        assert "while 2026-01-01 to 2026-01-31 by product was compacted, so it still has many files" in caplog.text

        assert upkeep.compact_table(str(root)) == upkeep.Compaction(30, ())

    def test_it_makes_no_report_outdated(self, root, make_export, publish, open_table, on):
        self.fill(publish, make_export, 31, ["org_a"])
        late = open_table()
        on(2026, 12, 1)
        assert upkeep.compact_table(str(root)).files > 0
        restated = make_export(("2026-01-05", "parse", "77", 1), org_id="org_a")
        late.publish(restated.report, restated.query, RUN)

        assert rows_of(restated)[0] in rows(root)

    def test_an_error_does_not_fail_the_export(self, root, make_export, publish, mocker, caplog):
        mocker.patch.object(upkeep, "find_due", side_effect=OSError("no space left"))
        self.fill(publish, make_export, 20, ["org_a"])

        assert "Could not compact the Delta table: no space left. The next try is after 20 commits" in caplog.text

    def test_days_at_the_end_of_the_calendar(self, root, make_export, publish):
        for number in range(upkeep.MAX_FILES + 1):
            publish(make_export(("9999-12-31", "parse", "1", 1), org_id=f"org_{number}"))
        assert upkeep.compact_table(str(root)) == upkeep.Compaction(0, ())

    def test_files_that_tell_no_days_are_left_alone(self, root, make_export, publish, on):
        publish(make_export(("2026-01-01", "parse", "1", 1)))
        DeltaTable(root).alter.set_table_properties({"delta.dataSkippingNumIndexedCols": "0"})
        exports = self.fill(publish, make_export, 12, ["org_a"])
        on(2026, 12, 1)

        assert upkeep.compact_table(str(root)) == upkeep.Compaction(0, ())
        DeltaTable(root).optimize.compact()
        assert upkeep.compact_table(str(root)) == upkeep.Compaction(0, ())
        assert rows(root) == rows_of(*exports, make_export(("2026-01-01", "parse", "1", 1)))

    @pytest.mark.parametrize("filters", [{}, {"products": ("parse",)}])
    def test_of_whatever_filters(self, root, make_export, publish, on, filters):
        for number in range(upkeep.MAX_FILES + 1):
            publish(make_export(("2026-01-01", "parse", "1", 1), org_id=f"org_{number}", **filters))
        on(2026, 12, 1)
        assert upkeep.compact_table(str(root)).files == upkeep.MAX_FILES
        assert upkeep.vacuum_table(str(root)) == []

    @pytest.mark.parametrize(
        "run", [upkeep.compact_table, lambda path: upkeep.vacuum_table(path, keep_days=1)], ids=["compact", "vacuum"]
    )
    def test_a_table_of_something_else_is_left_alone(self, root, run):
        write_deltalake(root, pa.table({"a": [1]}))
        write_deltalake(root, pa.table({"a": [2]}), mode="overwrite")
        age(root, timedelta(days=10))
        before = sorted(root.rglob("*"))

        with pytest.raises(DatasetMismatchError, match="was made by something else"):
            run(str(root))
        assert sorted(root.rglob("*")) == before

    def test_vacuum_keeps_what_history_needs(self, root, make_export, publish):
        publish(make_export(*THREE_DAYS))
        publish(make_export(*RESTATED))
        age(root, timedelta(days=800))
        publish(make_export(*THREE_DAYS))

        assert upkeep.vacuum_table(str(root)) == []
        assert rows(root, version=1) == rows_of(make_export(*THREE_DAYS))
        for days in (0, True, "365"):
            with pytest.raises(ValueError, match="keep_days must be a whole number, 1 or more, not"):
                upkeep.vacuum_table(str(root), keep_days=days)
        assert upkeep.vacuum_table(str(root), keep_days=365) != []
        assert rows(root) == rows_of(make_export(*THREE_DAYS))
        assert verify_table(str(root)).problems == ()


AGES = (("commitInfo", "timestamp"), ("add", "modificationTime"), ("remove", "deletionTimestamp"))


def age(root, by):
    """Let everything that is there be older."""
    for path in root.rglob("*"):
        if path.is_file():
            if path.parent.name == "_delta_log" and path.suffix == ".json":
                actions = [json.loads(line) for line in path.read_text().splitlines()]
                for action in actions:
                    for name, key in AGES:
                        if name in action:
                            action[name][key] -= int(by.total_seconds() * 1000)
                path.write_text("".join(json.dumps(action) + "\n" for action in actions))
            seen = path.stat().st_mtime - by.total_seconds()
            os.utime(path, (seen, seen))

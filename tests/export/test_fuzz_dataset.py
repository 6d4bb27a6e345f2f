"""Exports in any order, killed now and then, with names from anywhere: each day is as its last export left it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import tempfile
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import FORMATS
from reducto_provider.export.manifest import metadata_folder, partition_of
from reducto_provider.export.reported import acknowledge
from reducto_provider.export.storage import LocalStorage, Storage
from reducto_provider.export.verify import verify_dataset
from reducto_provider.usage.query import DIMENSIONS, UsageQuery
from reducto_provider.usage.report import UsageReport, format_decimal
from reducto_provider.usage.wire import decode_report

FIRST = date(2026, 6, 1)
DAYS = 6
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ODD = st.sampled_from(
    ["..", "../..", "/etc/passwd", "a/b", "a%2Fb", "a=b", "\\", "\0", "\n", ".", "~", "é", "é", "CON"]
)
ORGANIZATIONS = st.one_of(ODD, TEXT).filter(lambda text: text.strip())
GROUPS = st.one_of(st.none(), ODD, TEXT)
USAGE = st.tuples(st.decimals(0, 10**9, places=3), st.integers(0, 10**6))


def answer(org_id, group_by, first, last, rows):
    """The answer for these days, as it is decoded; ``rows`` are usage by day and group."""
    query = UsageQuery(start=first, end=last, group_by=group_by)
    data = ",".join(
        f'{{"date":"{day}","group":{json.dumps(group)},"credits":{format_decimal(credits)},"requestCount":{count}}}'
        for (day, group), (credits, count) in rows
    )
    echo = f'"orgId":{json.dumps(org_id)},"startDate":"{first}","endDate":"{last}","groupBy":"{group_by}"'
    return decode_report(f'{{{echo},"data":[{data}]}}'.encode(), query), query


def read_back(name, content):
    """The rows of a file, by a reader that knows nothing of the one who wrote it."""
    if name.endswith(".parquet"):
        rows = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    elif name.endswith(".csv"):
        # The library's reader can't tell an empty text from none at all.
        rows = [
            dict(row, group=row["group"] or None) for row in csv.DictReader(io.StringIO(content.decode(), newline=""))
        ]
    elif name.endswith(".jsonl"):
        rows = [json.loads(line, parse_float=Decimal) for line in content.decode().split("\n") if line]
    else:
        rows = json.loads(content, parse_float=Decimal)
    return {
        (str(row["date"]), row["group"]): (
            Decimal(row["credits"]),
            int(row["requestCount"] if "requestCount" in row else row["request_count"]),
        )
        for row in rows
    }


class Killed(BaseException):
    """As if the process ended here."""


class Mortal(LocalStorage):
    """A folder whose writer is killed before one of the steps to come. It may list MD5s, as S3 does."""

    lives: int | None = None
    lists: bool = False

    def md5s(self, folder: str, prefix: str) -> dict[str, str] | None:
        self._step()
        if not self.lists:
            return None
        files = self._path(folder).glob(f"{prefix}*/*" if folder.startswith("data/") else f"{prefix}*")
        return {str(path.relative_to(self._root)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}

    def _step(self) -> None:
        if self.lives is not None:
            self.lives -= 1
            if self.lives < 0:
                raise Killed

    def read(self, name: str = "") -> bytes | None:
        self._step()
        return super().read(name)

    def replace(self, name: str, content: bytes) -> None:
        self._step()
        super().replace(name, content)

    def create(self, name: str, content: bytes) -> None:
        self._step()
        super().create(name, content)

    def remove(self, name: str) -> None:
        self._step()
        super().remove(name)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OFFSETS = st.tuples(st.integers(0, DAYS - 1), st.integers(0, DAYS - 1)).map(sorted)
USED = st.dictionaries(
    st.tuples(st.integers(0, DAYS - 1), st.sampled_from(["parse", "extract", None])), USAGE, max_size=6
)


class Exports(RuleBasedStateMachine):
    """A dataset, and what each day of each organization's dimension must hold: ``expected`` by partition and day."""

    def __init__(self) -> None:
        super().__init__()
        self.parent = Path(tempfile.mkdtemp())
        self.storage = Mortal(self.parent / "usage")
        self.dataset = UsageDataset(self.storage, FORMATS["jsonl"], {})
        self.expected: dict[tuple[str, str], dict[date, dict[object, object]]] = {}
        self.unfinished = False
        self.last: tuple[UsageReport, UsageQuery] | None = None
        self.indexes: list[bytes] = []

    @initialize(lists=st.booleans())
    def choose_a_store(self, lists):
        self.storage.lists = lists

    @rule(
        org_id=st.sampled_from(["org_acme", "../org_acme", "org/acme", "org%2Facme"]),
        group_by=st.sampled_from(DIMENSIONS[:2]),
        offsets=OFFSETS,
        used=USED,
    )
    def export(self, org_id, group_by, offsets, used):
        self._export(*self._answer(org_id, group_by, offsets, used))

    @rule(org_id=st.sampled_from(["org_acme", "../org_acme"]), offsets=OFFSETS, used=USED, lives=st.integers(0, 40))
    def export_and_be_killed(self, org_id, offsets, used, lives):
        self.storage.lives = lives
        try:
            self._export(*self._answer(org_id, "product", offsets, used))
        except Killed:
            self.unfinished = True
        finally:
            self.storage.lives = None

    @precondition(lambda self: self.unfinished)
    @rule()
    def run_the_killed_one_again(self):
        self._export(*self.last)

    @precondition(lambda self: self.last and not self.unfinished)
    @rule()
    def run_the_last_one_again(self):
        before = files_below(self.parent)
        assert not any(file.written for file in self.dataset.publish(*self.last))
        found = files_below(self.parent)
        assert {name for name in before | found if before.get(name) != found.get(name)} <= {self._index()}

    @precondition(lambda self: self.last and not self.unfinished)
    @rule(which=st.integers(0, 100), harm=st.sampled_from(["remove", "alter", "empty"]))
    def run_the_last_one_again_after_damage(self, which, harm):
        """Of one file, be it a day's, a manifest or the index. The invariant has what must then be there."""
        partition = partition_of(self.last[0].org_id, self.last[0].group_by)
        days = [self.last[1].start + timedelta(days=offset) for offset in range(query_length(self.last[1]))]
        names = [
            name
            for name in sorted(files_below(self.parent))
            if f"/{partition}/" in name and (name.endswith("index.json") or any(f"dt={day}" in name for day in days))
        ]
        file = self.parent / names[which % len(names)]
        if harm == "remove":
            file.unlink()
        else:
            content = file.read_bytes()
            place = which % len(content)
            file.write_bytes(b"" if harm == "empty" else content[:place] + b"\1" + content[place + 1 :])
        self._export(*self.last)

    @precondition(lambda self: self.indexes)
    @rule(which=st.integers(0, 100))
    def put_back_an_old_index(self, which):
        """As of two exports at the same time the later one does, or somebody who restores a file."""
        (self.parent / self._index()).parent.mkdir(parents=True, exist_ok=True)
        (self.parent / self._index()).write_bytes(self.indexes[which % len(self.indexes)])

    @invariant()
    def each_day_holds_what_its_last_export_left(self):
        found: dict[str, object] = {
            name: read_back(name, content)
            for name, content in files_below(self.parent).items()
            if name.startswith("usage/data/")
        }
        certain = {
            f"usage/data/{partition_of(*partition)}/dt={day}/usage.jsonl": rows
            for partition, days in self.expected.items()
            for day, rows in days.items()
        }
        if not self.unfinished:
            assert found == {name: rows for name, rows in certain.items() if rows}
            if self.expected:
                assert [
                    each for each in verify_dataset(self.storage).problems if "never exported" not in each.detail
                ] == []
            return
        report, query = self.last  # of the killed one each day is old or new
        for offset in range(query_length(query)):
            day = query.start + timedelta(days=offset)
            name = f"usage/data/{partition_of(report.org_id, report.group_by)}/dt={day}/usage.jsonl"
            assert found.pop(name, {}) in (certain.pop(name, {}), rows_of(report, day))
        assert found == {name: rows for name, rows in certain.items() if rows}

    def teardown(self):
        assert set(files_below(self.parent)) == {f"usage/{name}" for name in files_below(self.parent / "usage")}
        shutil.rmtree(self.parent)

    def _answer(self, org_id, group_by, offsets, used):
        if self.unfinished:  # Airflow runs it again before anything else of the same days is exported
            self._export(*self.last)
        first, last = (FIRST + timedelta(days=offset) for offset in offsets)
        rows = [
            ((FIRST + timedelta(days=offset), group), usage)
            for (offset, group), usage in used.items()
            if offsets[0] <= offset <= offsets[1]
        ]
        return answer(org_id, group_by, first, last, rows)

    def _export(self, report, query):
        self.last = (report, query)
        self.dataset.publish(report, query)
        self.unfinished = False
        days = self.expected.setdefault((report.org_id, report.group_by), {})
        for offset in range(query_length(query)):
            day = query.start + timedelta(days=offset)
            days[day] = rows_of(report, day)
        self.indexes.append((self.parent / self._index()).read_bytes())

    def _index(self):
        report, _ = self.last
        return f"usage/{metadata_folder(report.org_id, report.group_by)}/index.json"


LATER = st.integers(0, DAYS - 1)
AMOUNTS = st.lists(st.sampled_from([None, 1, 2]), min_size=DAYS, max_size=DAYS)


class Reports(RuleBasedStateMachine):
    """
    Tasks that export, fail, succeed and are killed, and somebody who knows nothing but what successful ones report.

    ``reported`` has what that is of each day. Amounts are few, so that days often become again what they once were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parent = Path(tempfile.mkdtemp())
        self.storage = Mortal(self.parent / "usage")
        self.dataset = UsageDataset(self.storage, FORMATS["jsonl"], {})
        self.folder = metadata_folder("org_acme", "product")
        self.reported: dict[date, object] = {}
        self.acknowledged: set[date] = set()
        """Days of which nothing but what was reported, and acknowledged in time, has been published since."""
        self.late: list[dict[date, str]] = []
        self.versions: list[bytes] = []
        self.indexes: list[bytes] = []

    @initialize(lists=st.booleans())
    def choose_a_store(self, lists):
        self.storage.lists = lists

    @precondition(lambda self: self.indexes)
    @rule(which=LATER)
    def put_back_an_old_index(self, which):
        self.storage.replace(f"{self.folder}/index.json", self.indexes[which % len(self.indexes)])

    @rule(offsets=OFFSETS, amounts=AMOUNTS)
    def fail(self, offsets, amounts):
        self._export(offsets, amounts)

    @rule(offsets=OFFSETS, amounts=AMOUNTS, lives=st.integers(0, 40))
    def be_killed(self, offsets, amounts, lives):
        self.storage.lives = lives
        try:
            self._export(offsets, amounts)
        except Killed:
            pass
        finally:
            self.storage.lives = None

    @rule(offsets=OFFSETS, amounts=AMOUNTS)
    def succeed(self, offsets, amounts):
        rows, changes = self._export(offsets, amounts)
        self.reported |= rows
        acknowledge(self.storage, {self.folder: changes})
        self.acknowledged |= rows.keys()
        self._keep_version()

    @rule(offsets=OFFSETS, amounts=AMOUNTS, lives=st.integers(0, 3))
    def succeed_and_be_killed(self, offsets, amounts, lives):
        rows, changes = self._export(offsets, amounts)
        self.reported |= rows
        self.acknowledged -= changes.keys()
        self.storage.lives = lives
        try:
            acknowledge(self.storage, {self.folder: changes})
        except Killed:
            pass
        finally:
            self.storage.lives = None

    @rule(offsets=OFFSETS, amounts=AMOUNTS)
    def succeed_and_acknowledge_late(self, offsets, amounts):
        rows, changes = self._export(offsets, amounts)
        self.reported |= rows
        self.acknowledged -= changes.keys()
        self.late.append(changes)

    @precondition(lambda self: self.late)
    @rule(which=LATER)
    def acknowledge_at_last(self, which):
        changes = self.late.pop(which % len(self.late))
        acknowledge(self.storage, {self.folder: changes})
        self.acknowledged -= changes.keys()

    @precondition(lambda self: self.versions)
    @rule(which=LATER)
    def acknowledge_over_others(self, which):
        """Write a stale acknowledgement file."""
        self.storage.replace(f"{self.folder}/.reported-{FIRST.year}", self.versions[which % len(self.versions)])
        self.acknowledged.clear()

    def teardown(self):
        shutil.rmtree(self.parent)

    def _keep_version(self):
        if content := self.storage.read(f"{self.folder}/.reported-{FIRST.year}"):
            self.versions.append(content)

    def _export(self, offsets, amounts):
        """Publish, and compare the reported changes with those reported before."""
        first, last = (FIRST + timedelta(days=offset) for offset in offsets)
        days = [FIRST + timedelta(days=offset) for offset in range(offsets[0], offsets[1] + 1)]
        rows = {day: amounts[(day - FIRST).days] for day in days}
        self.acknowledged -= {day for day in days if self.reported.get(day, "nothing") != rows[day]}
        used = [((day, "parse"), (Decimal(amount), 1)) for day, amount in rows.items() if amount]
        files = self.dataset.publish(*answer("org_acme", "product", first, last, used))
        self.indexes.append(self.storage.read(f"{self.folder}/index.json"))
        changes = {file.day: file.change for file in files if file.changed}
        unknown = {day for day in days if self.reported.get(day, "nothing") != rows[day]}
        assert unknown <= changes.keys(), "a change was lost"
        assert not changes.keys() & self.acknowledged, "a change was repeated without need"
        return rows, changes


def query_length(query):
    return (query.end - query.start).days + 1


def rows_of(report, day):
    return {(str(day), row.group): (row.credits, row.request_count) for row in report.rows if row.date == day}


TestExports = Exports.TestCase
TestExports.settings = settings(max_examples=max(20, settings.default.max_examples // 4), stateful_step_count=8)

TestReports = Reports.TestCase
TestReports.settings = settings(max_examples=max(40, settings.default.max_examples // 4), stateful_step_count=15)


@pytest.mark.parametrize("format", [name for name in FORMATS if not name.startswith(("focus", "delta"))])
@given(
    org_id=ORGANIZATIONS,
    group_by=st.sampled_from(DIMENSIONS),
    used=st.dictionaries(st.tuples(st.integers(0, 2), GROUPS), USAGE, min_size=1, max_size=4),
)
def test_a_file_read_back_gives_the_rows(format, org_id, group_by, used):
    rows = [((FIRST + timedelta(days=offset), group), usage) for (offset, group), usage in used.items()]
    report, query = answer(org_id, group_by, FIRST, FIRST + timedelta(days=2), rows)
    with tempfile.TemporaryDirectory() as parent:
        storage: Storage = LocalStorage(Path(parent, "usage"))
        UsageDataset(storage, FORMATS[format], {}).publish(report, query)

        found = files_below(Path(parent))
        assert all(name.startswith("usage/") for name in found)
        data = {name: content for name, content in found.items() if name.startswith("usage/data/")}
        read = {}
        for name, content in data.items():
            assert name.split("/")[3:4] == [f"group_by={group_by}"]
            rows_of_file = read_back(name, content)
            assert {day for day, _ in rows_of_file} == {name.split("/")[4].removeprefix("dt=")}
            read |= rows_of_file
        said = {(str(row.date), row.group): (row.credits, row.request_count) for row in report.rows}
        if format == "csv":  # as its reader has it
            said = {(day, group or None): usage for (day, group), usage in said.items()}
        assert read == said


@given(ids=st.lists(ORGANIZATIONS, min_size=2, max_size=5, unique=True))
def test_no_two_organizations_share_a_path(ids):
    folders = [partition_of(org_id, "product") for org_id in ids]

    assert len(set(folders)) == len(ids)
    for folder in folders:
        assert [part.partition("=")[0] for part in folder.split("/")] == ["org_id", "group_by"]
        assert folder.isascii()
        assert folder.isprintable()

"""Writers that are killed while others read, and writers that meet."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from itertools import count, pairwise, product
from threading import Event, Semaphore, Thread
from typing import NamedTuple

import pytest
from botocore.exceptions import ClientError

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.export.reader import UsageReader
from reducto_provider.export.storage import Storage, open_storage
from reducto_provider.export.stored import StoredDays
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.query import UsageQuery
from tests.object_storage import writers
from tests.object_storage.answers import decoded, files_of, large_answer, local_files
from tests.object_storage.s3server import refusal

ROOT = "org_id=org_acme/group_by=product"
FIRST, SECOND = date(2026, 6, 1), date(2026, 6, 2)
ANSWERS = [
    large_answer(FIRST, SECOND, "1.5"),
    large_answer(FIRST, SECOND, "2.25"),
    large_answer(FIRST, SECOND, "3.125", SECOND),
]
LOST = refusal("500 Internal Server Error", "InternalError", "nobody is there to read this")


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """The files of each answer."""
    return [files_of(each, tmp_path_factory.mktemp("whole")) for each in ANSWERS]


class Reader:
    """Somebody who reads everything again and again, and notes what is not as one of the answers has it."""

    def __init__(self, look: Callable[[], dict[str, bytes]], wholes: list[dict[str, bytes]]) -> None:
        self._look = look
        self._wholes = wholes
        self.seen: set[int] = set()
        self.wrong: list[str] = []

    def look(self) -> None:
        files = self._look()
        for name in {name for each in self._wholes for name in each} | files.keys():
            found = {number for number, each in enumerate(self._wholes) if each.get(name) == files.get(name)}
            self.seen |= found if name in files else set()
            if not found:
                self.wrong.append(f"{name}: {len(files[name])} bytes" if name in files else f"{name} is missing")

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Read in a thread meanwhile."""
        over = Event()

        def run() -> None:
            while not over.wait(0.001):  # else it would keep the writers, and the server in this process, from working
                self.look()

        thread = Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def disagreeing(storage: Storage, days: list[date]) -> list[str]:
    """The days whose manifest is not of their file."""
    found = []
    for day in days:
        manifest = json.loads(storage.read(f"metadata/{ROOT}/dt={day}.json") or b"{}")
        content = storage.read(f"data/{ROOT}/dt={day}/usage.jsonl")
        if manifest.get("sha256", "none") != (None if content is None else hashlib.sha256(content).hexdigest()):
            found.append(str(day))
    return found


def as_read(storage: Storage, days: list[date]) -> dict[date, tuple[str | None, int, bool]]:
    """What a reader says of the days, who may use the index."""
    found = UsageReader(storage).exported_days("org_acme", "product", DayRange(days[0], days[-1]))
    assert found.unreadable == ()
    return {day: (each.sha256, each.request_count, each.is_final) for day, each in found.days.items()}


def as_described(storage: Storage, days: list[date]) -> dict[date, tuple[str | None, int, bool]]:
    """What the manifests say of the days."""
    found = {day: json.loads(storage.read(f"metadata/{ROOT}/dt={day}.json")) for day in days}
    return {day: (each["sha256"], each["request_count"], each["final"]) for day, each in found.items()}


class TestKilled:
    def test_at_every_step_in_a_local_folder(self, tmp_path, wholes, started):
        url = f"file://{tmp_path}/usage"
        writers.export(url, "jsonl", ANSWERS[:1])
        reader = Reader(lambda: local_files_of(tmp_path / "usage"), wholes)
        exits = []

        with reader.beside():
            for step in count():
                writer = started(writers.export_and_die, url, "jsonl", [ANSWERS[(step + 1) % 3]], step)
                writer.join()
                reader.look()
                exits.append(writer.exitcode)
                if writer.exitcode != -signal.SIGKILL:
                    break  # it had fewer steps than that

        assert exits.pop() == 0
        assert len(exits) > 20
        assert reader.wrong == []
        assert reader.seen == {0, 1, 2}
        writers.export(url, "jsonl", ANSWERS[:1])
        assert local_files(tmp_path / "usage") == wholes[0]
        assert disagreeing(open_storage(url), [FIRST, SECOND]) == []

    def test_at_every_request_to_s3(self, s3, bucket, storage, wholes, prepared):
        url, env = f"s3://lake@{bucket}/usage", {"AIRFLOW_CONN_LAKE": s3.connection()}
        writers.export(url, "jsonl", ANSWERS[:1])
        s3.calls.clear()
        writers.export(url, "jsonl", ANSWERS[1:2])
        steps = len(s3.calls)

        def look():
            keys = [f"data/{ROOT}/dt={day}/usage.jsonl" for day in (FIRST, SECOND)]
            files = {}
            for key in keys:
                with suppress(ClientError):  # there is none
                    files[key] = s3.bystander.get_object(Bucket=bucket, Key=f"usage/{key}")["Body"].read()
            return files

        calls = [(writers.export_on_command, url, "jsonl", [ANSWERS[(step + 1) % 3]]) for step in range(steps)]
        waiting = prepared(*calls, environment=env)
        reader = Reader(look, wholes)
        with reader.beside():
            for step, (writer, ours) in enumerate(waiting):
                requests = count()

                def kill(call, serve, step=step, pid=writer.pid, requests=requests):
                    number = next(requests)
                    if number == step:
                        os.kill(pid, signal.SIGKILL)
                    return serve() if number < step else LOST

                with s3.answering(kill):
                    ours.send("go")
                    writer.join()
                reader.look()
                assert as_read(storage, [FIRST, SECOND]) == as_described(storage, [FIRST, SECOND])

        assert [writer.exitcode for writer, _ in waiting] == [-signal.SIGKILL] * steps
        assert reader.wrong == []
        assert reader.seen == {0, 1, 2}
        writers.export(url, "jsonl", ANSWERS[:1])
        assert look() == wholes[0]
        assert disagreeing(storage, [FIRST, SECOND]) == []


def local_files_of(folder):
    """As `local_files`; a day that is emptied between the two looks counts as empty."""
    while True:
        with suppress(FileNotFoundError):
            return local_files(folder)


class TestAtTheSameTime:
    """Overlapping ranges: days 1 to 4 and 3 to 6."""

    EARLY = (date(2026, 6, 1), date(2026, 6, 4))
    LATE = (date(2026, 6, 3), date(2026, 6, 6))
    DAYS = tuple(date(2026, 6, day) for day in range(1, 7))

    @pytest.mark.parametrize("place", ["local", "s3"])
    def test_each_day_is_of_one_export_and_so_is_its_manifest(self, tmp_path, place, request, together):
        url, env = f"file://{tmp_path}/usage", {}
        if place == "s3":
            s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
            url, env = f"s3://lake@{bucket}/usage", {"AIRFLOW_CONN_LAKE": s3.connection()}
        given = [
            [large_answer(*self.EARLY, "1"), large_answer(*self.EARLY, "2", date(2026, 6, 3))],
            [large_answer(*self.LATE, "3"), large_answer(*self.LATE, "4", date(2026, 6, 4))],
        ]
        wholes = [
            [files_of(each, tmp_path / f"{writer}-{number}") for number, each in enumerate(answers)]
            for writer, answers in enumerate(given)
        ]

        together(*[(writers.export_on_command, url, "jsonl", answers * 3) for answers in given], environment=env)

        storage = open_storage(url)
        for day in self.DAYS:
            name = f"data/{ROOT}/dt={day}/usage.jsonl"
            # Each ended with its second answer: what a day holds is of one of those that hold the day.
            last = [
                each[-1].get(name)
                for each, (first, to) in zip(wholes, (self.EARLY, self.LATE), strict=True)
                if first <= day <= to
            ]
            assert storage.read(name) in last, day
        assert disagreeing(storage, list(self.DAYS)) == []
        # Both wrote the index, and the later one may have left out or overwritten lines of the other.
        assert as_read(storage, list(self.DAYS)) == as_described(storage, list(self.DAYS))
        for answers in given:
            writers.export(url, "jsonl", answers[-1:])
        index = json.loads(storage.read(f"metadata/{ROOT}/index.json"))
        assert {date.fromisoformat(day): each["sha256"] for day, each in index.items()} == {
            day: sha256 for day, (sha256, *_) in as_described(storage, list(self.DAYS)).items()
        }


class Step(NamedTuple):
    """What a writer does in its turn. A listing has the beginning of names for its name."""

    writer: int
    name: str
    writes: bool = False
    lists: bool = False

    def commutes_with(self, other: Step) -> bool:
        is_apart = self.name != other.name and not self.lists and not other.lists
        return self.writer != other.writer and (is_apart or not (self.writes or other.writes))


class Turns:
    """Lets threads go on step by step, one at a time, in an order that is given."""

    def __init__(self, writers: int) -> None:
        self._may_go = [Semaphore(0) for _ in range(writers)]
        self._waiting = [Semaphore(0) for _ in range(writers)]
        self._next: list[Step | None] = [None] * writers

    def wait(self, step: Step) -> None:
        self._next[step.writer] = step
        self._waiting[step.writer].release()
        self._may_go[step.writer].acquire()

    def end(self, writer: int) -> None:
        self._next[writer] = None
        self._waiting[writer].release()

    def begin(self) -> None:
        """Wait until each is before its first step."""
        for waiting in self._waiting:
            waiting.acquire()

    def take(self, writer: int) -> Step | None:
        """Let it take a step, which is returned, and wait until it is before the next one. None if it is through."""
        if step := self._next[writer]:
            self._may_go[writer].release()
            self._waiting[writer].acquire()
        return step


class StepwiseStorage(Storage):
    """A store in memory, of which each step on a day or the index waits for its turn."""

    def __init__(self, files: dict[str, bytes], turns: Turns | None, writer: int, lists: bool) -> None:
        self._files = files
        self._lists = lists
        self._turns = turns
        self._writer = writer

    def uri(self, name: str = "") -> str:
        return f"memory://{name}"

    def read(self, name: str = "") -> bytes | None:
        self._wait(Step(self._writer, name))
        return self._files.get(name)

    def replace(self, name: str, content: bytes) -> None:
        self._wait(Step(self._writer, name, writes=True))
        self._files[name] = content

    def create(self, name: str, content: bytes) -> None:
        self._files.setdefault(name, content)

    def remove(self, name: str) -> None:
        self._wait(Step(self._writer, name, writes=True))
        self._files.pop(name, None)

    def names(self, folder: str) -> Iterator[str]:
        yield from ()

    def folders(self, folder: str) -> list[str]:
        return []

    def md5s(self, folder: str, prefix: str) -> dict[str, str] | None:
        if not self._lists:
            return None
        self._wait(Step(self._writer, prefix, lists=True))
        start = f"{folder}/{prefix}"
        return {n: hashlib.md5(found).hexdigest() for n, found in self._files.items() if n.startswith(start)}

    def _wait(self, step: Step) -> None:
        if self._turns and ("dt=" in step.name or step.name.endswith("/index.json")):
            self._turns.wait(step)


class TestEveryOrder:
    """Exports of the same day take a handful of steps each: try the ways in which they can mix."""

    NAME = f"data/{ROOT}/dt={FIRST}/usage.jsonl"

    @pytest.fixture(autouse=True)
    def _no_pauses(self, mocker):
        mocker.patch("time.sleep")

    def mix(self, given, order, lists, files):
        """Export in threads, one step of one of them after the other; then each to its end. What is left?"""
        turns, errors = Turns(len(given)), []

        def run(writer, answer):
            try:
                UsageDataset(StepwiseStorage(files, turns, writer, lists), check_format("jsonl"), {}).publish(*answer)
            except Exception as error:
                errors.append(error)
            turns.end(writer)

        threads = [Thread(target=run, args=pair) for pair in enumerate(given)]
        for thread in threads:
            thread.start()
        turns.begin()
        steps = [turns.take(writer) for writer in order]
        for writer in range(len(given)):
            while turns.take(writer):
                pass
        for thread in threads:
            thread.join()
        content = files.get(self.NAME)
        stored = StoredDays(StepwiseStorage(files, None, 0, lists=True), "org_acme", "product", {}, "jsonl")
        stored.look([FIRST])
        assert stored.manifest(FIRST) == stored.read_manifest(FIRST), "whatever the index holds"
        manifest = json.loads(files[f"metadata/{ROOT}/dt={FIRST}.json"])
        agrees = manifest["sha256"] == (None if content is None else hashlib.sha256(content).hexdigest())
        return content, agrees, errors, steps

    def answers(self, tmp_path, *credits):
        """Answers for one day, of one row each or, without credits, of none; and their files."""
        query = UsageQuery(start=FIRST, end=FIRST, org_id="org_acme")
        row = {"date": str(FIRST), "group": "parse", "requestCount": 1}
        given = [decoded(query, [row | {"credits": number}] if number else []) for number in credits]
        return given, [files_of(each, tmp_path / str(number)).get(self.NAME) for number, each in enumerate(given)]

    @pytest.mark.parametrize("lists", [False, True], ids=["", "lists MD5s"])
    @pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
    @pytest.mark.parametrize("credits", [(1, 2), (1, 0), (0, 1)])
    def test_of_two(self, tmp_path, credits, there, lists):
        """With ``there``, the first of them finds what it would write."""
        given, wholes = self.answers(tmp_path, *credits)
        start = {}
        if there:
            self.mix(given[:1], (), lists, start)

        seen: set[tuple[int, ...]] = set()
        for order in product((0, 1), repeat=11):
            if any(order[:length] in seen for length in range(2, 12)):
                continue
            content, agrees, errors, steps = self.mix(given, order, lists, dict(start))
            assert (errors, content in wholes, agrees) == ([], True, True), order
            # Two steps that commute were taken the other way round before, with all that can follow.
            seen |= {
                order[: number + 2]
                for number, (one, other) in enumerate(pairwise(steps))
                if order[number] > order[number + 1] and (not one or not other or one.commutes_with(other))
            }

    @pytest.mark.parametrize("lists", [False, True], ids=["", "lists MD5s"])
    def test_of_three(self, tmp_path, lists):
        given, wholes = self.answers(tmp_path, 1, 2, 0)

        for seed in range(200):
            order = random.Random(seed).choices((0, 1, 2), k=40)
            content, agrees, errors, _ = self.mix(given, order, lists, {})
            assert (errors, content in wholes, agrees) == ([], True, True), order

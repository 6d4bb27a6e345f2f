"""Delta tables: exported to S3 by real Airflow, and by processes that meet each other or are killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import contextmanager
from datetime import date, timedelta
from itertools import count
from threading import Event, Thread

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from reducto_provider.export.convert import main
from reducto_provider.export.delta.verify import verify_table
from reducto_provider.export.formats import check_format
from reducto_provider.export.reader import read_usage
from reducto_provider.export.sink import open_sink
from reducto_provider.usage.query import UsageQuery
from tests.airflows import DELTA
from tests.object_storage import writers
from tests.object_storage.answers import large_answer
from tests.object_storage.exports import check_every_version
from tests.object_storage.s3server import ACCESS_DENIED, BYSTANDER, REGION, refusal

FIRST, LAST = date(2026, 5, 1), date(2026, 5, 3)
LOST = refusal("500 Internal Server Error", "InternalError", "nobody is there to read this")

pytestmark = DELTA


def options(s3) -> dict[str, str]:
    """For a reader that the server does not count as an exporter."""
    return {
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": BYSTANDER,
        "AWS_SECRET_ACCESS_KEY": BYSTANDER,
    }


def rows(table):
    found = pa.table(table.scan()).to_pylist()
    return sorted((r["org_id"], str(r["date"]), r["group"] or "", r["credits"], r["request_count"]) for r in found)


class TestS3:
    def test_export_again_and_restated(self, export, s3, bucket, simulator):
        place = {"output_path": f"s3://lake@{bucket}/deep/50% ä", "output_format": "delta"}

        def expected():
            truth = simulator.truth("org_acme", FIRST, LAST)
            return sorted(("org_acme", str(r.date), r.group or "", r.credits, r.requests) for r in truth)

        first = export(days=place, days_again=place).expect()
        table = DeltaTable(f"s3://{bucket}/deep/50% ä", storage_options=options(s3))
        assert rows(table) == expected()
        assert table.version() == 1
        names = {key.removeprefix("deep/50% ä/").split("/")[0] for key in s3.objects(bucket)}
        assert names == {"_delta_log", "_reducto", "group_by=product"}
        assert [file["changed"] for file in first.xcom("days")["files"]] == [True] * 3
        assert [file["changed"] for file in first.xcom("days_again")["files"]] == [False] * 3
        assert "lake@" not in repr(first.xcoms)
        assert "a-secret-of-the-tests" not in first.log

        simulator.usage.restate("org_acme", date(2026, 5, 2), factor=2)
        second = export(days=place).expect()
        assert [file["changed"] for file in second.xcom("days")["files"]] == [False, True, False]
        table.update_incremental()
        assert rows(table) == expected()

    def test_files_become_a_table_and_are_read(self, export, s3, bucket, simulator, monkeypatch, capsys):
        monkeypatch.setenv("AIRFLOW_CONN_LAKE", s3.connection())
        files, table = f"s3://lake@{bucket}/files", f"s3://lake@{bucket}/deep/table"
        export(days={"output_path": files, "output_format": "csv", "compression": "gzip"}).expect()
        truth = [(r.date, r.group, r.credits, r.requests) for r in simulator.truth("org_acme", FIRST, LAST)]

        assert main([files, table]) == 0
        found = read_usage(table, org_id="org_acme", start=FIRST, end=LAST)
        assert [(row.date, row.group, row.credits, row.request_count) for row in found] == truth
        before = s3.objects(bucket)
        assert main([files, table]) == 0
        assert "In all: 0 converted, 3 already there" in capsys.readouterr().out
        assert s3.objects(bucket) == before

        [file, *_] = [key for key in before if key.startswith("files/data/")]
        s3.bystander.delete_object(Bucket=bucket, Key=file)
        assert main([files, f"{table}_2"]) == 1
        assert f"{file} is missing" in capsys.readouterr().err
        assert not [key for key in s3.objects(bucket) if key.startswith("deep/table_2")]

    def test_a_key_that_is_refused_is_a_clear_error(self, export, s3, bucket):
        place = {"output_path": f"s3://lake@{bucket}/table", "output_format": "delta"}
        with s3.authorizing():
            [error] = export(days=place).expect("failed").errors

        assert error.type == "ReductoExportError"
        assert f"could not read s3://{bucket}/table" in error.message

    def test_a_store_that_overwrites_what_must_only_be_created_is_refused(self, s3, bucket, mocker):
        answer = s3._moto_answer
        mocker.patch.object(
            s3, "_moto_answer", lambda environ, call: answer(environ | {"HTTP_IF_NONE_MATCH": ""}, call)
        )
        sink = open_sink(f"s3://lake@{bucket}/table", None, check_format("delta"), {})

        with pytest.raises(ValueError, match=r"If-None-Match.*ignores: exports .* would lose each other's commits"):
            sink.check()
        assert s3.objects(bucket) == {}

    def test_a_key_that_may_not_remove_objects_is_enough(self, s3, bucket):
        def refuse_removals(call, serve):
            return ACCESS_DENIED if call.method in ("DELETE", "POST") else serve()

        report, query = large_answer(FIRST, LAST, "1.5")
        sink = open_sink(f"s3://lake@{bucket}/table", None, check_format("delta"), {})
        with s3.answering(refuse_removals):
            sink.check(query)
            sink.publish(report, query)
        assert verify_table(f"s3://lake@{bucket}/table").problems == ()

    def test_the_environment_does_not_change_the_connection(self, s3, bucket, monkeypatch):
        for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.setenv(variable, "http://127.0.0.1:1")
        report, query = large_answer(FIRST, LAST, "1.5")
        for url in (f"s3://lake@{bucket}/table", f"s3://token@{bucket}/table"):
            sink = open_sink(url, None, check_format("delta"), {})
            sink.check(query)
            sink.publish(report, query)
            monkeypatch.setenv("AWS_SESSION_TOKEN", "of another key")
            monkeypatch.setenv("AIRFLOW_CONN_TOKEN", s3.connection(aws_session_token="a-token-of-the-tests"))

        with pytest.raises(ValueError, match=r"AWS_SESSION_TOKEN is set, .* keys of connection 'lake'"):
            open_sink(f"s3://lake@{bucket}/table", None, check_format("delta"), {}).check(query)


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """Where a table is for its writers, what they need for it, and how a reader opens it."""
    if request.param == "local":
        return f"{tmp_path}/table", {}, lambda **version: DeltaTable(f"{tmp_path}/table", **version)
    s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
    uri = f"s3://{bucket}/table"
    env = {"AIRFLOW_CONN_LAKE": s3.connection()}
    return f"s3://lake@{bucket}/table", env, lambda **version: DeltaTable(uri, storage_options=options(s3), **version)


class TestEightWriters:
    JUNE = date(2026, 6, 1)

    def days(self, first, last):
        return self.JUNE + timedelta(days=first), self.JUNE + timedelta(days=last)

    def compacted(self, place, clock, *partitions):
        """Fill the table with what will be replaced, in one file."""
        url, _, read = place
        for org_id, days in partitions:
            query = UsageQuery(start=days[0], end=days[1], org_id=org_id)
            sink = open_sink(url, None, check_format("delta"), {})
            sink.publish(writers.current_answer(query, clock), query)
        read().optimize.compact()
        assert len(read().file_uris()) == 1

    @pytest.mark.parametrize("is_compacted", [False, True], ids=["fresh", "compacted"])
    def test_of_different_organizations(self, place, clock, together, is_compacted):
        url, env, read = place
        mine = [(f"org_{number}", self.days(0, 2)) for number in range(8)]
        if is_compacted:
            self.compacted(place, clock, *mine)
        # What a second export replaces is no longer in the compacted file.
        times = 1 if is_compacted else 2
        calls = [(writers.export_current_usage, url, org_id, days, clock, times) for org_id, days in mine]
        together(*calls, environment=env)

        check_every_version(read, {f"org_{number}": 3 for number in range(8)})

    @pytest.mark.parametrize("is_compacted", [False, True], ids=["fresh", "compacted"])
    def test_of_overlapping_days(self, place, clock, together, is_compacted):
        url, env, read = place
        if is_compacted:
            self.compacted(place, clock, ("org_acme", self.days(0, 9)))
        each = [self.days(number, number + 2) for number in range(8)]
        together(*[(writers.export_current_usage, url, "org_acme", days, clock, 1) for days in each], environment=env)

        check_every_version(read, {"org_acme": 10})

    @pytest.mark.parametrize("place", ["local"], indirect=True)
    def test_while_the_same_days_are_compacted(self, place, clock, together):
        url, env, read = place
        self.compacted(place, clock, ("org_acme", self.days(0, 9)), ("org_globex", self.days(0, 9)))
        each = [("org_acme", self.days(number, number + 2)) for number in range(4)]
        each += [("org_globex", self.days(3 * number, 3 * number)) for number in range(4)]
        together(
            *[(writers.export_current_usage, url, org_id, days, clock, 3) for org_id, days in each],
            *[(writers.compact_again_and_again, url, self.days(0, 9), 20)] * 2,
            environment=env,
        )

        check_every_version(read, {"org_acme": 10, "org_globex": 10})


class TestKilled:
    ANSWERS = tuple(
        large_answer(FIRST, LAST, credits, *without)
        for credits, without in (("1.5", ()), ("2.25", ()), ("3.125", (LAST,)))
    )

    @contextmanager
    def reading(self, read):
        """Read the whole table again and again beside it. What is seen must be exactly one of the answers."""
        over, seen, wrong = Event(), set(), []

        def run():
            while not over.wait(0.001):
                seen.add(self.seen(read, wrong))

        thread = Thread(target=run)
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()
        assert wrong == []

    def seen(self, read, wrong):
        table = pa.table(read().scan())
        found = Counter((row["date"], row["group"], row["credits"]) for row in table.to_pylist())
        for number, (report, _) in enumerate(self.ANSWERS):
            if found == Counter((row.date, row.group, row.credits) for row in report.rows):
                return number
        wrong.append(len(found))
        return None

    def test_at_any_moment_in_a_local_folder(self, tmp_path, prepared):
        url, read = f"{tmp_path}/table", lambda: DeltaTable(f"{tmp_path}/table")
        self.export(url, 0)
        chance, outcomes, wrong = random.Random(19), Counter(), []
        with self.reading(read) as seen:
            current = 0
            for number in range(1, 26):
                [(writer, ours)] = prepared((writers.export_table_on_command, url, [self.ANSWERS[number % 3]]))
                ours.send("go")
                if number < 23:  # the last three may finish: each answer is seen
                    time.sleep(chance.uniform(0, 0.25))
                    writer.kill()
                writer.join()
                now = self.seen(read, wrong)
                outcomes["before" if now == current else "after" if now == number % 3 else "wrong"] += 1
                current = now

        assert (wrong, outcomes["wrong"]) == ([], 0)
        assert outcomes["before"]
        assert outcomes["after"]
        assert len(seen) == 3
        self.export(url, 1)
        assert self.seen(read, []) == 1

    def test_at_every_request_to_s3(self, s3, bucket, prepared):
        url, env = f"s3://lake@{bucket}/table", {"AIRFLOW_CONN_LAKE": s3.connection()}

        def read():
            return DeltaTable(f"s3://{bucket}/table", storage_options=options(s3))

        self.export(url, 0)
        s3.calls.clear()
        self.export(url, 1)
        steps = len(s3.calls)
        assert steps > 10
        wrong, outcomes, current = [], Counter(), 1
        for step in range(steps):
            call = (writers.export_table_on_command, url, [self.ANSWERS[step % 3]])
            [(writer, ours)] = prepared(call, environment=env)
            requests = count()

            def kill(call, serve, step=step, pid=writer.pid, requests=requests):
                number = next(requests)
                if number == step:
                    os.kill(pid, signal.SIGKILL)
                return serve() if number < step else LOST

            with s3.answering(kill):
                ours.send("go")
                writer.join()
            now = self.seen(read, wrong)
            outcomes["before" if now == current else "after" if now == step % 3 else "wrong"] += 1
            current = now

        assert (wrong, outcomes["wrong"]) == ([], 0)
        assert outcomes["before"]
        assert outcomes["after"]
        self.export(url, 1)
        assert self.seen(read, []) == 1

    def export(self, url, number):
        report, query = self.ANSWERS[number]
        sink = open_sink(url, None, check_format("delta"), {})
        sink.check(query)
        sink.publish(report, query)

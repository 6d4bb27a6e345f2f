"""Exports to S3, run by real Airflow with a connection, against a server that speaks the protocol."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import date
from decimal import Decimal
from functools import partial
from pathlib import Path
from threading import Barrier

import pyarrow.fs
import pyarrow.parquet
import pytest
import s3fs
from s3fs.utils import FileExpired

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.focus import parse_terms
from reducto_provider.export.formats import COMPRESSIONS, check_format
from reducto_provider.export.manifest import metadata_folder
from reducto_provider.export.one_object import UsageObject
from reducto_provider.export.reported import acknowledge
from reducto_provider.export.sink import DatasetMismatchError, PublishError
from reducto_provider.export.storage import open_storage
from reducto_provider.usage.report import UsageRow
from tests.conftest import PROJECT
from tests.object_storage import answers, s3server
from tests.object_storage.s3server import ACCESS_DENIED, EXPIRED_TOKEN, refusal
from tests.threads import call_together

FIRST, LAST = date(2026, 5, 1), date(2026, 5, 3)
FORMATS = [
    *[(name, compression) for name in ("json", "jsonl", "csv") for compression in (None, *COMPRESSIONS)],
    *[(name, None) for name in ("parquet", "focus_csv", "focus_parquet")],
]
PRICES = {"price_per_credit": "0.015"}
GUIDE = PROJECT / "docs/object-storage.md"


def local_format(name, compression):
    terms = parse_terms(name, PRICES | {"billing_currency": "USD"}) if name.startswith("focus") else None
    return check_format(name, compression, terms)


def visible(files: dict[str, bytes]) -> dict[str, bytes]:
    """What engines do not pass over."""
    return {name: content for name, content in files.items() if not name.rpartition("/")[2].startswith(".")}


def local_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def data_of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if "/data/" in name}


class TestExport:
    def test_every_format_holds_the_same_bytes_as_a_local_folder(self, export, s3, bucket, simulator, tmp_path):
        tasks = {}
        for name, compression in FORMATS:
            place, prices = f"{name}-{compression}", PRICES if name.startswith("focus") else {}
            common = {"output_format": name, "compression": compression, **prices}
            tasks[f"{place}-days"] = {**common, "output_path": f"s3://lake@{bucket}/deep/{place}"}
            tasks[f"{place}-one"] = {
                **common,
                "output_path": f"s3://{bucket}/deep/{place}.one",
                "output_conn_id": "lake",
                "partitioned": False,
            }
        result = export(**tasks).expect()

        report, query = answers.answer(simulator.usage, "org_acme", FIRST, LAST)
        for name, compression in FORMATS:
            place, output = f"{name}-{compression}", local_format(name, compression)
            UsageDataset(open_storage(f"{tmp_path}/deep/{place}"), output, {}).publish(report, query)
            UsageObject(open_storage(f"{tmp_path}/deep"), f"{place}.one", output, {}).publish(report, query)
        found, expected = visible(s3.objects(bucket)), visible(local_files(tmp_path))
        assert found.keys() == expected.keys()
        assert [name for name in found if "/metadata/org_id" not in name and found[name] != expected[name]] == []
        for name in tasks:
            xcom = result.xcom(name)
            assert xcom["row_count"] == len(report.rows)
            keys = [file["uri"].removeprefix(f"s3://{bucket}/") for file in xcom["files"]]
            assert [file["bytes"] for file in xcom["files"]] == [len(found[key]) for key in keys]
        # Stored files are for people and other tools, whose connections have other ids.
        assert "lake@" not in repr(result.xcoms)
        assert "a-secret-of-the-tests" not in result.log + repr(result.xcoms)

    def test_again_and_restated(self, export, s3, bucket, simulator, tmp_path):
        arguments = {"output_path": f"s3://lake@{bucket}/usage", "output_format": "parquet"}
        one = {"output_path": f"s3://lake@{bucket}/one.csv", "output_format": "csv", "partitioned": False}

        def expected():
            report, query = answers.answer(simulator.usage, "org_acme", FIRST, LAST)
            place = tmp_path / str(len(list(tmp_path.iterdir())))
            UsageDataset(open_storage(f"{place}/usage"), check_format("parquet"), {}).publish(report, query)
            UsageObject(open_storage(str(place)), "one.csv", check_format("csv"), {}).publish(report, query)
            files = visible(local_files(place))
            return {name: text for name, text in files.items() if not name.startswith("usage/metadata")}

        def found():
            files = visible(s3.objects(bucket))
            return {name: text for name, text in files.items() if not name.startswith("usage/metadata")}

        first = export(days=arguments, days_again=arguments, one=one, one_again=one).expect()
        assert found() == expected()
        assert {name: [file["changed"] for file in xcom["files"]] for (name, _, _), xcom in summaries(first)} == {
            "days": [True] * 3,
            "days_again": [False] * 3,
            "one": [True],
            "one_again": [False],
        }

        simulator.usage.restate("org_acme", date(2026, 5, 2), factor=2)
        simulator.usage.restate("org_acme", date(2026, 5, 3), factor=0)
        second = export(days=arguments, one=one).expect()

        assert found() == expected()
        assert not any("dt=2026-05-03" in name for name in found())
        files = second.xcom("days")["files"]
        assert [file["changed"] for file in files] == [False, True, True]
        assert files[2]["uri"] is None
        manifest = json.loads(s3.objects(bucket)["usage/metadata/org_id=org_acme/group_by=product/dt=2026-05-03.json"])
        assert (manifest["file"], manifest["row_count"]) == (None, 0)


def summaries(result):
    return [(key, value) for key, value in result.xcoms.items() if key[2] == "return_value"]


class TestRefusals:
    def test_each_is_one_clear_error_and_leaves_no_half_export(self, export, s3, simulator):
        missing, empty, full, unreadable, expired = "no-such-bucket", *[s3.make_bucket() for _ in range(4)]
        everything = {"Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}}
        allowed = s3.user({"Version": "2012-10-17", **everything})
        wrong = json.loads(allowed) | {"password": "not-the-secret-of-that-user"}
        sts = {
            "role_arn": "arn:aws:iam::123456789012:role/exporter",
            "service_config": {"sts": {"endpoint_url": s3.url}},
        }
        no_role = json.loads(allowed) | {"extra": json.loads(allowed)["extra"] | sts}

        def refuse(call, serve):
            if call.bucket == expired:
                return EXPIRED_TOKEN
            denied = call.method != "GET" if call.bucket in (empty, full) else call.bucket == unreadable
            return ACCESS_DENIED if denied else serve()

        days = {"output_format": "jsonl"}
        one = {"output_format": "csv", "partitioned": False}
        before = export(
            days={"output_path": f"s3://lake@{full}/usage", **days},
            one={"output_path": f"s3://lake@{full}/usage.csv", **one},
        ).expect()
        assert before.xcom("days")["row_count"] > 0
        simulator.usage.restate("org_acme", date(2026, 5, 2), factor=2)
        contents = {bucket: s3.objects(bucket) for bucket in (empty, full, unreadable, expired)}
        permission = ["PermissionError: Access Denied", "credential", "may read, write, remove and list"]
        expected = {
            "missing_days": (f"s3://lake@{missing}/usage", days, ["bucket does not exist", "does not create it"]),
            "missing_one": (f"s3://lake@{missing}/usage.csv", one, ["bucket does not exist", "does not create it"]),
            "denied_first": (f"s3://lake@{empty}/usage", days, permission),
            "denied_days": (f"s3://lake@{full}/usage", days, [*permission, " of 3 days are published"]),
            "denied_one": (f"s3://lake@{full}/usage.csv", one, [*permission, "what was there is untouched"]),
            "unreadable_days": (f"s3://lake@{unreadable}/usage", days, permission),
            "unreadable_one": (f"s3://lake@{unreadable}/usage.csv", one, permission),
            "expired_days": (f"s3://lake@{expired}/usage", days, ["The provided token has expired", "credential"]),
            "expired_one": (f"s3://lake@{expired}/usage.csv", one, ["The provided token has expired", "credential"]),
            "wrong_secret": (f"s3://wrong@{full}/usage", days, ["request signature we calculated does not match"]),
            "no_role": (f"s3://no_role@{full}/usage", days, ["AccessDenied", "AssumeRole"]),
            "unknown_in_path": (f"s3://nowhere@{full}/usage", days, ["no Airflow connection 'nowhere'"]),
            "unknown_id": (f"s3://{full}/usage", {**days, "output_conn_id": "nowhere"}, ["connection 'nowhere'"]),
        }
        tasks = {name: {"output_path": path, **arguments} for name, (path, arguments, _) in expected.items()}
        connections = {"LAKE": allowed, "WRONG": json.dumps(wrong), "NO_ROLE": json.dumps(no_role)}
        with s3.authorizing(), s3.answering(refuse):
            env = {f"AIRFLOW_CONN_{name}": connection for name, connection in connections.items()}
            result = export(env=env, **tasks).expect("failed")

        assert [error.task_id for error in result.errors] == list(expected)
        for error in result.errors:
            path, _, words = expected[error.task_id]
            unknown = error.task_id.startswith("unknown")
            assert error.type == ("ReductoConfigurationError" if unknown else "ReductoExportError")
            opened = not unknown and error.task_id != "no_role"
            location = re.sub("//.*@", "//", path) if opened else path
            assert [word for word in (location, *words) if word not in error.message] == []
        assert {bucket: s3.objects(bucket) for bucket in contents} == contents
        for secret in (json.loads(allowed)["password"], wrong["password"]):
            assert secret not in result.log + repr(result.errors)

    def test_denied_midway_leaves_whole_days_and_can_be_run_again(self, s3, bucket, storage):
        usage = answers.usage()
        dataset = UsageDataset(storage, check_format("jsonl"), {})
        old = answers.answer(usage, "org_acme", FIRST, date(2026, 5, 20))
        dataset.publish(*old)
        before = data_of(s3.objects(bucket))
        for day in range(1, 21):
            usage.restate("org_acme", date(2026, 5, day), factor=2)
        new = answers.answer(usage, "org_acme", FIRST, date(2026, 5, 20))
        puts = iter(range(15))

        def refuse(call, serve):
            return ACCESS_DENIED if call.method == "PUT" and next(puts, None) is None else serve()

        with s3.answering(refuse), pytest.raises(PublishError, match=r"Access Denied.* \d+ of 20 days|\d+ of 20 days"):
            dataset.publish(*new)

        midway = data_of(s3.objects(bucket))
        dataset.publish(*new)
        after = data_of(s3.objects(bucket))
        assert midway.keys() == before.keys() == after.keys()
        assert {name for name in midway if midway[name] not in (before[name], after[name])} == set()
        assert before != midway != after

    def test_an_emptied_day_that_may_not_be_removed(self, s3, bucket, storage):
        usage = answers.usage()
        dataset = UsageDataset(storage, check_format("jsonl"), {})
        dataset.publish(*answers.answer(usage, "org_acme", FIRST, LAST))
        before = s3.objects(bucket)
        usage.restate("org_acme", LAST, factor=0)

        def refuse(call, serve):
            return ACCESS_DENIED if call.method == "DELETE" else serve()

        with s3.answering(refuse), pytest.raises(PublishError, match="could not publish 2026-05-03"):
            dataset.publish(*answers.answer(usage, "org_acme", FIRST, LAST))

        name = "usage/metadata/org_id=org_acme/group_by=product/dt=2026-05-03.json"
        assert s3.objects(bucket)[name] == before[name], "the manifest does not say that the day is empty"


class TestClaim:
    """What a dataset is, is settled by whoever creates `metadata/dataset.json`."""

    @pytest.fixture
    def together(self, storage):
        """Export in two formats at once."""

        def export(*formats):
            def run(name):
                try:
                    dataset = UsageDataset(storage, check_format(name), {})
                    return dataset.publish(*answers.answer(answers.usage(), "org_acme", FIRST, LAST))
                except Exception as error:
                    return error

            return dict(zip(formats, call_together(*(partial(run, name) for name in formats)), strict=True))

        return export

    def test_exactly_one_of_two_first_exports_wins(self, s3, bucket, together):
        both = Barrier(2)

        def meet(call, serve):
            if call.method == "PUT" and call.key.endswith("dataset.json"):
                both.wait(timeout=30)  # neither may write before both have seen that there is none
            return serve()

        with s3.answering(meet):
            outcomes = together("jsonl", "parquet")

        claims = [call for call in s3.calls if call.method == "PUT" and call.key.endswith("dataset.json")]
        assert sorted((call.if_none_match, call.status) for call in claims) == [("*", 200), ("*", 412)]
        [loser] = [name for name, outcome in outcomes.items() if isinstance(outcome, DatasetMismatchError)]
        [winner] = set(outcomes) - {loser}
        assert len(outcomes[winner]) == 3
        assert "Export to another output_path" in str(outcomes[loser])
        files = s3.objects(bucket)
        assert json.loads(files["usage/metadata/dataset.json"])["format"] == winner
        assert {name.rpartition(".")[2] for name in data_of(files)} == {winner}

    def test_two_first_exports_that_agree_both_succeed(self, s3, together, storage):
        # While the object of one of them is under way, S3 answers the other one with a conflict, not with a failed
        # condition.
        conflicts = iter(range(2))
        conflict = refusal("409 Conflict", "ConditionalRequestConflict", "The conditional request cannot succeed.")

        def refuse(call, serve):
            return conflict if call.if_none_match and next(conflicts, None) is not None else serve()

        with s3.answering(refuse):
            outcomes = together("jsonl")

        assert len(outcomes["jsonl"]) == 3
        assert [call.status for call in s3.calls if call.if_none_match] == [409, 409, 200]

    @pytest.mark.parametrize("moment", ["metadata/dataset.json", "usage.jsonl"])
    def test_a_store_without_conditions_is_claimed_twice_and_says_so(self, s3, storage, moment):
        days = answers.answer(answers.usage(), "org_acme", FIRST, LAST)
        other = UsageDataset(storage, check_format("csv"), {})
        written = iter(range(1))

        def overtake(call, serve):
            answer = serve()
            if call.method == "PUT" and call.key.endswith(moment) and next(written, None) is not None:
                # Another export that saw no dataset either, and whose condition the store passes over.
                storage.remove("metadata/dataset.json")
                other.publish(*days)
            return answer

        with (
            s3.answering(overtake),
            pytest.raises(DatasetMismatchError, match="format is 'csv', this"),
        ):
            UsageDataset(storage, check_format("jsonl"), {}).publish(*days)


def policy(*without: str) -> dict:
    """The policy that the guide gives, for a test's bucket, maybe without some actions."""
    [text] = re.findall(r"```json policy\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    found = json.loads(text)
    for statement in found["Statement"]:
        statement["Action"] = [action for action in statement["Action"] if action not in without]
    found["Statement"] = [statement for statement in found["Statement"] if statement["Action"]]
    return found


class TestPermissions:
    """The policy in the guide is enough, and no action of it too much."""

    @pytest.fixture
    def attempt(self, s3, bucket, monkeypatch):
        """Export, again, and with an emptied day, as somebody with the guide's policy."""

        def attempt(*without):
            text = json.dumps(policy(*without)).replace("finops-lake/reducto", f"{bucket}/usage")
            user = s3.user(json.loads(text.replace("finops-lake", bucket)))
            monkeypatch.setenv(f"AIRFLOW_CONN_{bucket.replace('-', '_').upper()}", user)
            usage = answers.usage()
            with s3.authorizing():
                storage = open_storage(f"s3://{bucket}/usage", bucket.replace("-", "_"))
                dataset = UsageDataset(storage, check_format("jsonl"), {})
                dataset.publish(*answers.answer(usage, "org_acme", FIRST, LAST))
                usage.restate("org_acme", LAST, factor=0)
                dataset.publish(*answers.answer(usage, "org_acme", FIRST, LAST))
                list(storage.names(""))

        return attempt

    def test_are_enough(self, s3, attempt):
        attempt()

        assert {call.action for call in s3.calls} == {
            action for statement in policy()["Statement"] for action in statement["Action"]
        } - {"s3:AbortMultipartUpload"}
        assert {call.status for call in s3.calls} == {200, 204, 404}

    @pytest.mark.parametrize("action", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"])
    def test_are_all_needed(self, attempt, action):
        with pytest.raises(PublishError, match="Access Denied"):
            attempt(action)

    def test_a_place_beside_is_out_of_reach(self, s3, bucket, attempt):
        attempt()
        with s3.authorizing(), pytest.raises(PermissionError):
            open_storage(f"s3://{bucket}/other", bucket.replace("-", "_")).replace("x", b"")


class TestRequests:
    """The requests of an export to the store, and so what it costs: the table in the guide."""

    def test_of_a_day(self, s3, storage):
        usage, counts = answers.usage(), {}

        def publish(title, first, last):
            dataset = UsageDataset(storage, check_format("parquet"), {})
            s3.calls.clear()
            dataset.check()  # as the operator does, before it sends a request
            files = dataset.publish(*answers.answer(usage, "org_acme", first, last))
            counts[title] = Counter(call.method for call in s3.calls)
            return files

        files = publish("first", FIRST, date(2026, 5, 10))
        s3.calls.clear()
        acknowledge(storage, {metadata_folder("org_acme", "product"): {file.day: file.change for file in files}})
        counts["noted"] = Counter(call.method for call in s3.calls)
        publish("10 unchanged days", FIRST, date(2026, 5, 10))
        publish("one unchanged day", FIRST, FIRST)
        assert counts["10 unchanged days"] == counts["one unchanged day"]
        usage.restate("org_acme", date(2026, 5, 10), factor=2)
        publish("one changed day", FIRST, date(2026, 5, 10))
        for day in (8, 9, 10):
            usage.restate("org_acme", date(2026, 5, day), factor=2)
        publish("three changed days", FIRST, date(2026, 5, 10))
        usage.restate("org_acme", date(2026, 5, 10), factor=0)
        publish("emptied", FIRST, date(2026, 5, 10))

        def times(counted, number):
            return Counter({name: number * count for name, count in counted.items()})

        day = Counter(
            {name: count // 2 for name, count in (counts["three changed days"] - counts["one changed day"]).items()}
        )
        export = counts["one unchanged day"]
        change = counts["one changed day"] - day - export
        rows = {
            "one export of days in one year": export,
            "if any day has changed": change,
            "each changed day": day,
            "each day that has become empty": counts["emptied"] - change - export,
            "the first export of a dataset": counts["first"] - times(day, 10) - change - export,
            "noting that changes were reported": counts["noted"],
        }
        written = [
            f"| {title} | {calls['GET']} | {calls['PUT']} | {calls['DELETE']} |" for title, calls in rows.items()
        ]
        assert [line for line in written if line not in GUIDE.read_text()] == []

    def test_a_file_is_read_by_one_request(self, s3, bucket, storage):
        storage.replace("a", b"x")
        s3.calls.clear()

        assert storage.read("a") == b"x"
        assert storage.read("none") is None
        assert [(call.method, call.key) for call in s3.calls] == [("GET", "usage/a"), ("GET", "usage/none")]


class TestReaders:
    """What `docs/engines.md` says of readers of a day that is replaced meanwhile."""

    KEY = "data/org_id=org_acme/group_by=product/dt=2026-05-01/usage.parquet"
    OLD = (("edit", "10.5"), ("extract", "20.5"), ("parse", "30.5"))
    NEW = (("edit", "11.5"), ("extract", "21.5"), ("split", "31.5"))

    @pytest.fixture
    def replace(self, s3, bucket):
        """Write the old day, and return what replaces it by the new one: an object of the same size."""

        def write(rows):
            rows = [UsageRow(FIRST, group, Decimal(credits), 1) for group, credits in rows]
            content = check_format("parquet", None).encode(rows, {})
            s3.bystander.put_object(Bucket=bucket, Key=self.KEY, Body=content)
            return len(content)

        size = write(self.OLD)

        def replaced():
            assert write(self.NEW) == size, "else pyarrow finds itself beyond a page"

        return replaced

    def test_pyarrow_s_own_file_system_mixes_two_versions(self, s3, bucket, replace):
        lake = pyarrow.fs.S3FileSystem(
            endpoint_override=s3.url, access_key="reader", secret_key="reader", region=s3server.REGION
        )
        with lake.open_input_file(f"{bucket}/{self.KEY}") as file:
            reader = pyarrow.parquet.ParquetFile(file)
            groups = reader.read(["group"])["group"].to_pylist()
            replace()
            credits = reader.read(["credits"])["credits"].to_pylist()

        mixed = [(old, Decimal(new)) for (old, _), (_, new) in zip(self.OLD, self.NEW, strict=True)]
        assert list(zip(groups, credits, strict=True)) == mixed, "if it pins the version by now, the docs can say so"

    def test_s3fs_pins_the_version_that_it_opened(self, s3, bucket, replace):
        lake = s3fs.S3FileSystem(
            key="reader", secret="reader", client_kwargs={"endpoint_url": s3.url}, skip_instance_cache=True
        )
        with lake.open(f"{bucket}/{self.KEY}") as file:
            replace()
            with pytest.raises(FileExpired):
                pyarrow.parquet.ParquetFile(file)

    def test_a_local_file_that_is_open_stays_what_it_was(self, tmp_path):
        storage = open_storage(str(tmp_path))
        storage.replace("usage", b"old")
        with (tmp_path / "usage").open("rb") as file:
            storage.replace("usage", b"new")
            assert file.read() == b"old"

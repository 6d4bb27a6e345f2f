"""Exports to Azure Blob Storage, run by real Airflow, against Azurite: `make azure`."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from deltalake import DeltaTable

from reducto_provider.export.delta.location import table_location
from reducto_provider.export.delta.table import ConflictError, UsageDeltaTable
from reducto_provider.export.delta.verify import verify_table
from reducto_provider.export.formats import check_format
from reducto_provider.export.reader import read_usage
from reducto_provider.export.sink import OutdatedReportError, open_sink
from reducto_provider.export.storage import open_storage
from tests.airflows import DELTA
from tests.object_storage import writers
from tests.object_storage.answers import answer, large_answer, usage
from tests.object_storage.exports import check_every_version, check_export_again_and_restated

AZURITE = os.environ.get("AZURITE", "")
"""The program, `azurite-blob` of the npm package azurite."""

pytestmark = pytest.mark.skipif(not AZURITE, reason="AZURITE does not name azurite-blob: make azure")

ACCOUNT = "devstoreaccount1"
# Not a secret: every Azurite has this one.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


FIRST, LAST = date(2026, 5, 1), date(2026, 5, 3)


@contextmanager
def azurite(folder, *options, scheme="http"):
    """The URL of an account without containers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [*options, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    process = subprocess.Popen(
        [AZURITE, *options, "--disableTelemetry", "--silent", "--skipApiVersionCheck"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"{scheme}://127.0.0.1:{port}/{ACCOUNT}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    with azurite(tmp_path_factory.mktemp("azurite")) as url:
        yield url


@pytest.fixture
def connection(endpoint):
    """An Airflow connection, by the key given or the right one."""

    def connection(key=KEY):
        text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={endpoint};"
        return wasb(connection_string=text)

    return connection


@pytest.fixture
def container(connection, monkeypatch):
    """A new container's name; the connection `lake` leads there."""
    from azure.storage.blob import BlobServiceClient

    monkeypatch.setenv("AIRFLOW_CONN_LAKE", connection())
    text = json.loads(connection())["extra"]["connection_string"]
    name = f"lake-{time.monotonic_ns()}"
    return BlobServiceClient.from_connection_string(text).create_container(name)


def wasb(**extra):
    return json.dumps({"conn_type": "wasb", "extra": extra})


def text_of(endpoint, **credential):
    """A connection string."""
    return ";".join(f"{name}={value}" for name, value in {"BlobEndpoint": endpoint, **credential}.items())


def blobs(container) -> dict[str, bytes]:
    return {name: container.download_blob(name).readall() for name in container.list_blob_names()}


@pytest.mark.parametrize("scheme", ["abfs", "abfss"])
def test_export_again_and_restated(export, container, connection, simulator, tmp_path, scheme):
    root = f"{scheme}://{container.container_name}"
    check_export_again_and_restated(export, simulator, tmp_path, root, connection(), lambda: blobs(container))


def test_a_dataset_of_another_format_is_refused(export, container, connection):
    place = {"output_path": f"abfs://lake@{container.container_name}/usage"}
    env = {"AIRFLOW_CONN_LAKE": connection()}

    result = export(env=env, first=place, second={**place, "output_format": "csv"}).expect("failed")

    [error] = result.errors
    assert (error.task_id, error.type) == ("second", "ReductoConfigurationError")


def test_what_it_takes_of_the_store(container):
    storage = open_storage(f"abfs://lake@{container.container_name}/usage")

    assert storage.read("a=%2F/b") is None
    storage.remove("a=%2F/b")
    storage.create("a=%2F/b", b"first")
    with pytest.raises(FileExistsError):
        storage.create("a=%2F/b", b"second")
    assert storage.read("a=%2F/b") == b"first"
    storage.replace("a=%2F/b", b"")
    assert list(storage.names("")) == ["a=%2F/b"]
    assert blobs(container) == {"usage/a=%2F/b": b""}
    assert storage.account == ACCOUNT


def test_refusals_are_clear_errors(export, container, connection):
    wrong = KEY[:-8] + "AAAAAA=="
    tasks = {
        "no_container": {"output_path": "abfs://lake@nowhere/usage"},
        "wrong_key": {"output_path": f"abfs://wrong@{container.container_name}/usage"},
        "unknown_id": {"output_path": f"abfs://nowhere@{container.container_name}/usage"},
    }

    result = export(env={"AIRFLOW_CONN_LAKE": connection(), "AIRFLOW_CONN_WRONG": connection(wrong)}, **tasks)

    errors = {error.task_id: error for error in result.expect("failed").errors}
    assert {name: error.type for name, error in errors.items()} == {
        "no_container": "ReductoExportError",
        "wrong_key": "ReductoExportError",
        "unknown_id": "ReductoConfigurationError",
    }
    assert "abfs://nowhere/usage" in errors["no_container"].message
    assert "The specified container does not exist" in errors["no_container"].message
    assert "Server failed to authenticate the request" in errors["wrong_key"].message
    assert "connection 'nowhere'" in errors["unknown_id"].message
    assert wrong not in result.log + repr(result.errors)
    assert KEY not in result.log
    assert blobs(container) == {}


def sas_token():
    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    allowed = AccountSasPermissions(read=True, write=True, delete=True, list=True, add=True, create=True)
    kinds = ResourceTypes(service=True, container=True, object=True)
    return generate_account_sas(ACCOUNT, KEY, kinds, allowed, datetime.now(UTC) + timedelta(hours=1))


@pytest.fixture
def authority(tmp_path, monkeypatch):
    """Files with a certificate of 127.0.0.1 and its key. Their authority is the only one that clients trust."""
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("authority", "azurite")}
    names = {name: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in keys}
    extensions = {
        "authority": x509.BasicConstraints(ca=True, path_length=None),
        "azurite": x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
    }
    for name, key in keys.items():
        builder = x509.CertificateBuilder(
            names["authority"], names[name], key.public_key(), x509.random_serial_number()
        )
        builder = builder.not_valid_before(datetime(2026, 1, 1)).not_valid_after(datetime(2126, 1, 1))
        certificate = builder.add_extension(extensions[name], critical=False).sign(keys["authority"], hashes.SHA256())
        (tmp_path / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(keys["azurite"].private_bytes(serialization.Encoding.PEM, *plain))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return str(tmp_path / "azurite.pem"), str(tmp_path / "key.pem")


def publish(url, given):
    """Export an answer to a table."""
    report, query = given
    sink = open_sink(url, None, check_format("delta"), {})
    sink.check(query)
    return sink.publish(report, query)


def publish_and_read(url):
    """Publish days, again, and restated; and read and verify them each time."""
    days = answer(usage(), "org_acme", FIRST, LAST)
    for given, changed in ((days, True), (days, False), (large_answer(FIRST, LAST, "1.5"), True)):
        assert [file.written for file in publish(url, given)] == [changed] * 3
        assert read_usage(url, org_id="org_acme", start=FIRST, end=LAST) == list(given[0].rows)
        assert verify_table(url).problems == ()


@DELTA
class TestTable:
    """A Delta table, whose commits rely on the store's conditional put."""

    @pytest.fixture
    def url(self, container):
        return f"abfs://lake@{container.container_name}/deep/table"

    def read(self, endpoint, container, **version):
        options = {"azure_storage_account_name": ACCOUNT, "azure_storage_account_key": KEY, "allow_http": "true"}
        options["azure_storage_endpoint"] = endpoint
        return DeltaTable(f"abfs://{container.container_name}/deep/table", storage_options=options, **version)

    @pytest.mark.parametrize("scheme", ["abfs", "abfss"])
    def test_export_again_and_restated(self, export, container, connection, endpoint, simulator, scheme):
        url = f"{scheme}://lake@{container.container_name}/deep/table"
        place, env = {"output_path": url, "output_format": "delta"}, {"AIRFLOW_CONN_LAKE": connection()}

        def check(version):
            table = self.read(endpoint, container)
            found = pa.table(table.scan()).to_pylist()
            truth = [(r.date, r.group, r.credits, r.requests) for r in simulator.truth("org_acme", FIRST, LAST)]
            assert sorted((r["date"], r["group"], r["credits"], r["request_count"]) for r in found) == sorted(truth)
            rows = read_usage(url, org_id="org_acme", start=FIRST, end=LAST)
            assert [(row.date, row.group, row.credits, row.request_count) for row in rows] == truth
            assert table.version() == version
            assert verify_table(url).problems == ()

        first = export(env=env, days=place, days_again=place).expect()
        check(1)
        assert [file["changed"] for file in first.xcom("days")["files"]] == [True] * 3
        assert [file["changed"] for file in first.xcom("days_again")["files"]] == [False] * 3
        assert "lake@" not in repr(first.xcoms)
        assert KEY not in first.log

        simulator.usage.restate("org_acme", date(2026, 5, 2), factor=2)
        second = export(env=env, days=place).expect()
        check(2)
        assert [file["changed"] for file in second.xcom("days")["files"]] == [False, True, False]

    @pytest.mark.parametrize("credential", ["key", "lower_case", "sas_token"])
    def test_connection_strings(self, container, endpoint, monkeypatch, credential):
        text = {
            "key": text_of(endpoint, AccountName=ACCOUNT, AccountKey=KEY),
            "lower_case": text_of(endpoint, accountname=ACCOUNT, accountkey=KEY),
            "sas_token": text_of(endpoint, SharedAccessSignature=sas_token()),
        }[credential]
        monkeypatch.setenv(f"AIRFLOW_CONN_{credential.upper()}", wasb(connection_string=text))

        publish_and_read(f"abfs://{credential}@{container.container_name}/deep/table")

    @pytest.mark.parametrize("credential", ["account_key", "sas_token"])
    def test_an_endpoint_of_one_s_own(self, tmp_path, authority, credential):
        """It has a certificate, since `account_host` leaves no choice but https."""
        from azure.storage.blob import BlobServiceClient

        certificate, key = authority
        secret = {"account_key": KEY, "sas_token": sas_token()}[credential]
        with azurite(tmp_path, "--cert", certificate, "--key", key, scheme="https") as endpoint:
            BlobServiceClient(endpoint, KEY, connection_verify=os.environ["SSL_CERT_FILE"]).create_container("own")
            extra = {"account_name": ACCOUNT, credential: secret, "account_host": endpoint.removeprefix("https://")}
            # In a new process: this one knows already which authorities it trusts.
            script = "from tests.object_storage.test_azure import publish_and_read as run; run('abfs://own@own/table')"
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", script],
                env={**os.environ, "AIRFLOW_CONN_OWN": wasb(**extra)},
                cwd=Path(__file__).parents[2],
                check=True,
                timeout=120,
            )

    def test_the_environment_does_not_change_the_connection(self, container, url, endpoint, monkeypatch):
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:1")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "another")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "AAAA")
        publish_and_read(url)

        text = text_of(endpoint, SharedAccessSignature=sas_token())
        monkeypatch.setenv("AIRFLOW_CONN_SAS_TOKEN", wasb(connection_string=text))
        with pytest.raises(ValueError, match=r"AZURE_STORAGE_ACCOUNT_KEY is set, .* instead of .* SAS token"):
            open_sink(url.replace("lake@", "sas_token@"), None, check_format("delta"), {})

    def test_two_writers_of_overlapping_days(self, container, connection, url, endpoint, together, clock):
        days = [(date(2026, 6, 1), date(2026, 6, 4)), (date(2026, 6, 3), date(2026, 6, 6))]
        calls = [(writers.export_current_usage, url, "org_acme", each, clock, 3) for each in days]
        together(*calls, environment={"AIRFLOW_CONN_LAKE": connection()})

        check_every_version(lambda **version: self.read(endpoint, container, **version), {"org_acme": 6})
        assert self.read(endpoint, container).version() == 6, "each export is one commit"
        assert verify_table(url).problems == ()

    def test_an_older_answer_is_refused(self, container, url):
        older, newer = large_answer(FIRST, LAST, "1.5"), large_answer(FIRST, LAST, "2.5")
        late = open_sink(url, None, check_format("delta"), {})
        late.check(older[1])
        publish(url, newer)

        with pytest.raises(OutdatedReportError, match=r"version 1 of .* has replaced some of its days"):
            late.publish(*older)
        assert read_usage(url, org_id="org_acme", start=FIRST, end=LAST) == list(newer[0].rows)

    def test_a_version_is_committed_once(self, container, url):
        """What Azurite does with `If-None-Match: *`, through the client that commits."""
        publish(url, large_answer(FIRST, LAST, "1.5"))
        place = table_location(url, None)
        tables = [UsageDeltaTable.open_existing(place) for _ in range(2)]
        tables[0].compact("product", FIRST, LAST)
        before = blobs(container)

        with pytest.raises(ConflictError):
            tables[1].compact("product", FIRST, LAST)
        with pytest.raises(ConflictError):
            UsageDeltaTable.create(place.uri, place.options(), url, {})
        log = {name: content for name, content in before.items() if "/_delta_log/" in name}
        assert {name: content for name, content in blobs(container).items() if "/_delta_log/" in name} == log
        assert len(log) == 3

    def test_a_wrong_key_is_a_clear_error(self, export, container, connection):
        place = {"output_path": f"abfs://lake@{container.container_name}/table", "output_format": "delta"}
        wrong = KEY[:-8] + "AAAAAA=="
        result = export(env={"AIRFLOW_CONN_LAKE": connection(wrong)}, days=place).expect("failed")

        [error] = result.errors
        assert error.type == "ReductoExportError"
        assert f"could not read abfs://{container.container_name}/table" in error.message
        assert wrong not in result.log + repr(result.errors)
        assert blobs(container) == {}

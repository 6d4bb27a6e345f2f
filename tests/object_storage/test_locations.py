"""Where an export goes, and by which connection."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from urllib.parse import quote, unquote

import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSystem

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.export.locations import check_output_path
from reducto_provider.export.storage import Storage, open_storage
from reducto_provider.export.verify import Verification, verify_dataset
from tests.airflow_sdk import ObjectStoragePath
from tests.object_storage import answers


def with_usage(storage: Storage, org_id: str = "org_acme") -> Storage:
    """A place, with three days of usage."""
    report, query = answers.answer(answers.usage(), "org_acme", date(2026, 5, 4), date(2026, 5, 6))
    UsageDataset(storage, check_format("parquet"), {}).publish(replace(report, org_id=org_id), query)
    return storage


@pytest.mark.parametrize("location", ["s3://{}/usage", "s3a://{}/usage", "s3://{}/usage/", "s3://{}/"])
def test_a_connection_in_the_url_or_beside_it(s3, bucket, location):
    url = location.format(bucket)

    open_storage(url, "lake").replace("a/b", b"beside")
    assert list(s3.objects(bucket).values()) == [b"beside"]

    open_storage(url.replace("//", "//lake@"), None).replace("a/b", b"inside")
    assert list(s3.objects(bucket).values()) == [b"inside"]


def test_the_url_wins(s3, bucket):
    open_storage(f"s3://lake@{bucket}/usage", "nowhere").replace("x", b"")

    assert list(s3.objects(bucket)) == ["usage/x"]
    with pytest.raises(ValueError, match="'nowhere'"):
        open_storage(f"s3://nowhere@{bucket}/usage", "lake")


def test_no_uri_names_the_connection(bucket):
    storage = open_storage(f"s3://lake@{bucket}/usage")

    assert storage.uri() == f"s3://{bucket}/usage"
    assert storage.uri("a/b") == f"s3://{bucket}/usage/a/b"


def test_an_unknown_connection_is_not_taken_for_anonymous_access(s3, bucket, capfd):
    with pytest.raises(ValueError, match=r"there is no Airflow connection 'nowhere', which s3://.*/usage needs"):
        open_storage(f"s3://{bucket}/usage", "nowhere")

    assert s3.calls == []
    assert "anonymous" not in capfd.readouterr().out


def test_a_role_that_may_not_be_assumed(s3, bucket, monkeypatch):
    elsewhere = {"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::elsewhere/*"}
    policy = {"Version": "2012-10-17", "Statement": [elsewhere]}
    extra = {"role_arn": "arn:aws:iam::123456789012:role/exporter", "service_config": {"sts": {"endpoint_url": s3.url}}}
    monkeypatch.setenv("AIRFLOW_CONN_NOBODY", s3.user(policy, **extra))

    with s3.authorizing(), pytest.raises(OSError, match="AccessDenied"):
        open_storage(f"s3://nobody@{bucket}/usage").read("x")


@pytest.mark.parametrize("location", ["s3://AKIA:p4ssw0rd@bucket/usage", "abfs://account:p4ssw0rd@container/usage"])
def test_a_password_in_a_url_is_refused_and_not_repeated(location):
    with pytest.raises(ValueError, match="must not hold a password") as error:
        check_output_path(location)

    assert "p4ssw0rd" not in str(error.value)


@pytest.mark.parametrize("host", ["finops.dfs.core.windows.net", "finops.blob.core.windows.net"])
def test_an_azure_url_with_its_account_is_refused(host):
    # Airflow takes the container for a connection's id, and the account for the container.
    with pytest.raises(ValueError, match="abfs://container/folder"):
        check_output_path(f"abfs://usage@{host}/folder")


@pytest.mark.parametrize(
    "location", ["adl://container/usage", "az://container/usage", "s3://", "s3:///usage", "s3://lake@"]
)
def test_what_no_store_takes_is_refused(location):
    with pytest.raises(ValueError, match="output_path must be"):
        check_output_path(location)


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="the provider for gs:// is installed")
def test_a_missing_provider_is_named():
    with pytest.raises(ValueError, match=r"airflow-provider-reducto\[gcs\]"):
        open_storage("gs://bucket/usage")


def test_a_location_with_two_slashes(s3, bucket):
    """As of a template that rendered to nothing: it counts as one, since a store lists others than it writes."""
    storage = with_usage(open_storage(f"s3://lake@{bucket}//finops///usage//"))
    with_usage(open_storage(f"s3://lake@{bucket}/usage"))

    assert verify_dataset(storage) == Verification(days=3, files=3, problems=())
    assert {name.split("/")[0] for name in s3.objects(bucket)} == {"finops", "usage"}
    assert storage.uri("data") == f"s3://{bucket}/finops/usage/data"


def test_uris_are_percent_encoded(s3, bucket, monkeypatch):
    """As pyarrow takes them; s3fs takes a name."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "pyarrow")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "pyarrow")
    storage = with_usage(open_storage(f"s3://lake@{bucket}/a b#?+/usage"), "org & \u00fc/%")
    name = "data/org_id=org%20%26%20%C3%BC%2F%25/group_by=product/dt=2026-05-04/usage.parquet"

    uri = storage.uri(name)

    assert uri == f"s3://{bucket}/a%20b%23%3F%2B/usage/{name.replace('%', '%25')}"
    endpoint = s3.url.removeprefix("http://")
    system, path = FileSystem.from_uri(f"{uri}?scheme=http&endpoint_override={endpoint}&region=us-east-1")
    assert pq.read_table(path, filesystem=system, partitioning=None).num_rows > 0
    assert ObjectStoragePath(unquote(uri), conn_id="lake").read_bytes() == storage.read(name)
    usual = f"s3://{bucket}/finops-lake/usage.v2/data/org_id=org_acme/group_by=product/dt=2026-05-04/usage.parquet"
    assert quote(usual, safe="/:=@") == usual, "what most have is the same for all"

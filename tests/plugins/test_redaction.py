"""Errors without credentials."""

from __future__ import annotations

import pytest

from reducto_provider.plugins.usage_page.redaction import without_credentials

SECRET = "wJalrXUtnFEMI/K7MDENG+x"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('Could not connect to "http://AKIA:{}@minio:9000/lake"', 'Could not connect to "http://***@minio:9000/lake"'),
        ("there is no Airflow connection 'aws://AKIA:{}@'", "there is no Airflow connection 'aws://***@'"),
        (
            "403, url='https://lake.s3.amazonaws.com/a?X-Amz-Signature={}&b'",
            "403, url='https://lake.s3.amazonaws.com/a?***'",
        ),
        ("DefaultEndpointsProtocol=https;AccountKey={};x", "DefaultEndpointsProtocol=https;AccountKey=***;x"),
        ("{{'aws_secret_access_key': '{}'}}", "{'aws_secret_access_key': '***'}"),
        ("sig={}&se=2026", "sig=***&se=2026"),
        ("could not read s3://lake@finops/usage: NoSuchKey: The specified key does not exist",) * 2,
    ],
)
def test_no_credential_is_left(text, shown, mocker):
    # What other tests have registered as secrets would be masked too.
    mocker.patch("reducto_provider.plugins.usage_page.redaction.redact", side_effect=str)
    assert without_credentials(text.format(SECRET.replace("/", "%2F") if "://AKIA" in text else SECRET)) == shown


def test_what_airflow_masks_in_logs_is_masked(mocker):
    mocker.patch(
        "reducto_provider.plugins.usage_page.redaction.redact", side_effect=lambda text: text.replace(SECRET, "***")
    )
    assert without_credentials(f"the key {SECRET} was refused") == "the key *** was refused"

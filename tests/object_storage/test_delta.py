"""Delta tables: exported to S3 by real Airflow, and by processes that meet each other or are killed."""

from __future__ import annotations

from datetime import date

import pyarrow as pa
from deltalake import DeltaTable

from tests.object_storage.s3server import BYSTANDER, REGION

FIRST, LAST = date(2026, 5, 1), date(2026, 5, 3)


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
        assert [file["changed"] for file in first.xcom("days")["files"]] == [True] * 3
        assert [file["changed"] for file in first.xcom("days_again")["files"]] == [False] * 3
        assert "lake@" not in repr(first.xcoms)
        assert "a-secret-of-the-tests" not in first.log

        simulator.usage.restate("org_acme", date(2026, 5, 2), factor=2)
        second = export(days=place).expect()
        assert [file["changed"] for file in second.xcom("days")["files"]] == [False, True, False]
        table.update_incremental()
        assert rows(table) == expected()

    def test_a_key_that_is_refused_is_a_clear_error(self, export, s3, bucket):
        place = {"output_path": f"s3://lake@{bucket}/table", "output_format": "delta"}
        with s3.authorizing():
            [error] = export(days=place).expect("failed").errors

        assert error.type == "ReductoExportError"
        assert f"could not read s3://{bucket}/table" in error.message

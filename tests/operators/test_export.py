"""The export operator, run by real Airflow against the simulator."""

from __future__ import annotations

import csv
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from reducto_provider.operators.export import ReductoUsageExportOperator
from simulator import Altered, Organization, Record, Row, many_keys, status
from tests.airflows import DELTA
from tests.real_airflow.dagtest import DagTestError

RANGE = {"usage_start_date": "2026-05-01", "usage_end_date": "2026-05-31"}


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def days_of(folder: Path, org_id: str = "org_acme", group_by: str = "product") -> dict[str, Path]:
    files = (folder / f"data/org_id={org_id}/group_by={group_by}").glob("dt=*/*")
    return {path.parent.name.removeprefix("dt="): path for path in sorted(files)}


def figures(rows: list[Row]) -> list[tuple[str, str | None, Decimal, int]]:
    return [(row.date.isoformat(), row.group, Decimal(row.credits), row.requests) for row in rows]


def test_to_xcom(export, simulator):
    result = export(org_id="org_acme", usage_start_date="2026-05-01", usage_end_date="2026-05-02").expect()

    truth = simulator.truth("org_acme", date(2026, 5, 1), date(2026, 5, 2))
    assert result.xcom("export") == {
        "org_id": "org_acme",
        "usage_start_date": "2026-05-01",
        "usage_end_date": "2026-05-02",
        "group_by": "product",
        "row_count": len(truth),
        "credits": float(sum(row.credits for row in truth)),
        "request_count": sum(row.requests for row in truth),
        "rows": [
            {"date": day, "group": group, "credits": float(credits), "request_count": count}
            for day, group, credits, count in figures(truth)
        ],
    }


@pytest.mark.parametrize("output_format", ["json", "jsonl", "csv"])
def test_to_a_file_a_day(export, simulator, tmp_path, output_format):
    result = export(org_id="org_acme", output_path=str(tmp_path), output_format=output_format, **RANGE).expect()

    read = []
    for day, path in days_of(tmp_path).items():
        assert path.name == f"usage.{output_format}"
        if output_format == "json":
            rows = json.loads(path.read_text(), parse_float=Decimal)
            read += [(r["date"], r["group"], round(Decimal(r["credits"]), 9), r["requestCount"]) for r in rows]
        elif output_format == "jsonl":
            rows = [json.loads(line, parse_float=Decimal) for line in path.read_text().splitlines()]
            read += [(r["date"], r["group"], r["credits"], r["request_count"]) for r in rows]
        else:
            rows = list(csv.DictReader(path.read_text().splitlines()))
            read += [(r["date"], r["group"], Decimal(r["credits"]), int(r["request_count"])) for r in rows]
        assert {row[0] for row in read if row[0] == day} == {day}
    truth = simulator.truth("org_acme", date(2026, 5, 1), date(2026, 5, 31))
    assert read == figures(truth)

    xcom = result.xcom("export")
    assert "rows" not in xcom
    assert xcom["row_count"] == len(truth)
    assert [file["date"] for file in xcom["files"]] == [f"2026-05-{day:02}" for day in range(1, 32)]
    for file in xcom["files"]:
        path = Path(file["uri"].removeprefix("file://"))
        assert file["bytes"] == path.stat().st_size
        assert file["changed"] is True


@pytest.mark.parametrize("output_format", ["json", "jsonl", "csv"])
def test_to_one_object(export, simulator, tmp_path, output_format):
    target = tmp_path / f"deep/down/usage.{output_format}"
    result = export(
        org_id="org_acme", output_path=f"file://{target}", output_format=output_format, partitioned=False, **RANGE
    ).expect()

    [file] = result.xcom("export")["files"]
    assert file["uri"] == f"file://{target}"
    assert file["bytes"] == target.stat().st_size
    if output_format == "csv":
        rows = list(csv.DictReader(target.read_text().splitlines()))
    elif output_format == "jsonl":
        rows = [json.loads(line) for line in target.read_text().splitlines()]
    else:
        rows = json.loads(target.read_text())
    truth = simulator.truth("org_acme", date(2026, 5, 1), date(2026, 5, 31))
    assert len(rows) == file["row_count"] == len(truth)
    assert {(row["org_id"], row["group_by"]) for row in rows} == {("org_acme", "product")}
    assert sum(float(row["credits"]) for row in rows) == pytest.approx(float(sum(row.credits for row in truth)))
    assert {path.name for path in target.parent.glob("[!.]*")} == {target.name}, "what else is there engines pass over"


def test_a_range_of_many_months(export, simulator, tmp_path):
    export(
        org_id="org_globex", output_path=str(tmp_path), usage_start_date="2025-09-15", usage_end_date="2026-08-14"
    ).expect()

    truth = simulator.truth("org_globex", date(2025, 9, 15), date(2026, 8, 14))
    assert list(days_of(tmp_path, "org_globex")) == sorted({row.date.isoformat() for row in truth})
    assert len(list(tmp_path.glob("metadata/*/*/dt=*.json"))) == 334, "a manifest for each day, empty ones included"
    assert len(simulator.requests) == 1


def test_running_it_again_gives_the_same_bytes(export, tmp_path):
    arguments = {"org_id": "org_acme", "output_path": str(tmp_path), **RANGE}
    export(**arguments).expect()
    before = content_of(tmp_path / "data")
    again = export(**arguments).expect()

    assert content_of(tmp_path / "data") == before
    assert not any(file["changed"] for file in again.xcom("export")["files"])


def test_restated_and_emptied_days_replace_what_was_there(export, simulator, tmp_path):
    arguments = {"org_id": "org_acme", "output_path": str(tmp_path), **RANGE}
    export(**arguments).expect()
    before = content_of(tmp_path / "data")
    simulator.usage.restate("org_acme", date(2026, 5, 10), factor=2)
    simulator.usage.restate("org_acme", date(2026, 5, 20), factor=0)
    result = export(**arguments).expect()

    changed = [file for file in result.xcom("export")["files"] if file["changed"]]
    assert [file["date"] for file in changed] == ["2026-05-10", "2026-05-20"]
    assert changed[1] == {"uri": None, "date": "2026-05-20", "row_count": 0, "bytes": 0, "changed": True}
    after = content_of(tmp_path / "data")
    assert {name.split("dt=")[1][:10] for name in before.keys() ^ after.keys()} == {"2026-05-20"}
    assert {name.split("dt=")[1][:10] for name in after if after[name] != before[name]} == {"2026-05-10"}
    truth = simulator.truth("org_acme", date(2026, 5, 10), date(2026, 5, 10))
    lines = days_of(tmp_path)["2026-05-10"].read_text().splitlines()
    assert [json.loads(line, parse_float=Decimal)["credits"] for line in lines] == [row.credits for row in truth]


@pytest.mark.parametrize(("compression", "ending"), [("gzip", "gz"), ("zstd", "zst")])
def test_compressed_files(export, tmp_path, compression, ending):
    arguments = {"org_id": "org_acme", **RANGE}
    export(**arguments, output_path=str(tmp_path / "plain")).expect()
    export(**arguments, output_path=str(tmp_path / "packed"), compression=compression).expect()

    plain, packed = days_of(tmp_path / "plain"), days_of(tmp_path / "packed")
    assert plain.keys() == packed.keys()
    for day, path in packed.items():
        assert path.name == f"usage.jsonl.{ending}"
        with pyarrow.input_stream(str(path), compression=compression) as stream:
            assert stream.read() == plain[day].read_bytes()


def test_parquet(export, simulator, tmp_path):
    export(org_id="org_acme", output_path=str(tmp_path), output_format="parquet", **RANGE).expect()

    tables = [pq.ParquetFile(path).read() for path in days_of(tmp_path).values()]
    rows = [tuple(row.values()) for table in tables for row in table.to_pylist()]
    truth = simulator.truth("org_acme", date(2026, 5, 1), date(2026, 5, 31))
    assert rows == [(row.date, row.group, row.credits, row.requests) for row in truth]
    assert str(tables[0].schema) == (
        "date: date32[day]\ngroup: string\ncredits: decimal128(38, 9)\nrequest_count: int64"
    )


def test_days_that_are_not_settled_are_left_out(export, simulator):
    today = datetime.now(UTC).date()
    arguments = {"org_id": "org_acme", "usage_end_date": str(today)}
    result = export(usage_start_date=str(today - timedelta(days=5)), settle_days=2, **arguments).expect()
    assert result.xcom("export")["usage_end_date"] == str(today - timedelta(days=3))

    simulator.clear()
    result = export(usage_start_date=str(today - timedelta(days=2)), settle_days=2, **arguments)
    assert result.tasks["export"] == "skipped"
    assert f"is {today - timedelta(days=3)}" in result.log
    assert not simulator.requests


def test_the_event_of_an_asset_carries_the_summary(run_dag, tmp_path):
    source = f"""
        from tests.airflow_sdk import DAG, Asset
        from reducto_provider.operators.export import ReductoUsageExportOperator

        with DAG("export", schedule=None):
            ReductoUsageExportOperator(
                task_id="export",
                org_id="org_acme",
                usage_start_date="2026-05-01",
                usage_end_date="2026-05-02",
                output_path={str(tmp_path)!r},
                outlets=[Asset("s3://lake/reducto")],
            )
        """
    result = run_dag(source).expect()

    [event] = result.asset_events
    xcom = result.xcom("export")
    del xcom["files"]
    assert event["uri"] == "s3://lake/reducto"
    assert event["extra"] == {**xcom, "uri": f"file://{tmp_path}", "changed_days": ["2026-05-01", "2026-05-02"]}


def test_lookback_begins_earlier(export):
    result = export(
        org_id="org_acme", lookback_days=2, run={"logical_date": datetime(2026, 10, 22, tzinfo=UTC)}
    ).expect()

    assert result.xcom("export")["usage_start_date"] == "2026-10-19"
    assert result.xcom("export")["usage_end_date"] == "2026-10-21"


def test_today_is_exported_as_not_final(export):
    today = datetime.now(UTC).date()
    result = export(
        org_id="org_acme", usage_start_date=str(today - timedelta(days=1)), usage_end_date=str(today)
    ).expect()

    assert f"Usage from {today} on is not final" in result.log


def test_templates(export, simulator, tmp_path):
    result = export(
        params={"org": "org_globex", "start": "2026-05-01", "products": ["parse", "extract"], "by": "feature"},
        org_id="{{ params.org }}",
        usage_start_date="{{ params.start }}",
        usage_end_date="{{ macros.ds_add(params.start, 6) }}",
        group_by="{{ params.by }}",
        products=["{{ params.products[0] }}", "{{ params.products[1] }}"],
        features="{{ 'standard' }}",
        output_path=f"{tmp_path}/{{{{ params.org }}}}",
        output_format="{{ 'csv' }}",
        reducto_conn_id="reducto_{{ 'default' }}",
    ).expect()

    [request] = simulator.requests
    assert request.query == [
        ("startDate", "2026-05-01"),
        ("endDate", "2026-05-07"),
        ("groupBy", "feature"),
        ("orgId", "org_globex"),
        ("product", "parse"),
        ("product", "extract"),
        ("feature", "standard"),
    ]
    assert result.xcom("export")["files"][0]["uri"].startswith(f"file://{tmp_path}/org_globex/data/")


@pytest.mark.parametrize("to_files", [False, True])
def test_filters_that_nothing_matches_are_warned_of(export, tmp_path, to_files):
    arguments = {"org_id": "org_acme", **RANGE, **({"output_path": str(tmp_path)} if to_files else {})}
    result = export(**arguments, products=["pasre", "parse,edit"]).expect()

    assert result.xcom("export")["credits"] == 0
    assert "warning" in result.log.lower()
    assert "matches products=['parse,edit', 'pasre']: check the names" in result.log


def test_no_usage_without_a_filter_is_not(export, simulator):
    simulator.faults.add(Altered({"data": []}))

    assert "check the names" not in export(org_id="org_acme", **RANGE).expect().log


def test_a_mapped_export(run_dag, simulator):
    organizations = ["org_acme", "org_globex", "org_initech"]
    result = run_dag(f"""
        from tests.airflow_sdk import DAG
        from reducto_provider.operators.export import ReductoUsageExportOperator

        with DAG("fleet", schedule=None):
            ReductoUsageExportOperator.partial(
                task_id="export",
                usage_start_date="2026-05-01",
                usage_end_date="2026-05-02",
            ).expand(org_id={organizations})
        """).expect()

    assert [xcom["org_id"] for xcom in result.xcom("export")] == organizations


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"usage_start_date": "2026-05-02", "usage_end_date": "2026-05-01"}, ["2026-05-02", "after", "2026-05-01"]),
        ({"usage_start_date": "2026-05-02"}, ["usage_start_date", "usage_end_date", "both"]),
        ({"usage_start_date": "02.05.2026", "usage_end_date": "2026-05-03"}, ["usage_start_date", "02.05.2026"]),
        ({"group_by": "apiKey"}, ["group_by", "apiKey", "api_key"]),
        ({"products": ["parse", ""]}, ["products", "empty", "'*' for all"]),
        ({"org_id": ""}, ["org_id", "empty", "leave the argument out"]),
        ({"api_keys": "prod,ci"}, ["api_keys", "comma", "['prod', 'ci']"]),
        ({"output_path": " "}, ["output_path", "empty", "URL"]),
        ({"output_format": "xml"}, ["output_format", "xml", "jsonl"]),
        ({"output_path": "usage/files"}, ["output_path", "usage/files", "absolute"]),
        ({"output_path": "/usage/", "partitioned": False}, ["output_path", "/usage/", "file"]),
        ({"lookback_days": -1}, ["lookback_days", "-1"]),
        ({"settle_days": "2"}, ["settle_days", "'2'"]),
        ({"compression": "zip"}, ["compression", "zip", "gzip"]),
        ({"output_format": "parquet", "compression": "gzip"}, ["compression", "parquet", "zstd"]),
    ],
)
def test_bad_literals_are_errors_of_the_dag_file(export, simulator, arguments, words):
    with pytest.raises(DagTestError) as error:
        export(**arguments)

    for word in words:
        assert word in str(error.value)
    assert not simulator.requests


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"usage_start_date": "{{ '2026-05-02' }}", "usage_end_date": "{{ '2026-05-01' }}"},
            ["2026-05-02", "after", "2026-05-01"],
        ),
        (
            {"usage_start_date": "{{ '' }}", "usage_end_date": "2026-05-01"},
            ["usage_start_date", "''", "yyyy-mm-dd", "'run'"],
        ),
        ({"group_by": "{{ 'page' }}"}, ["group_by", "page", "api_key"]),
        ({"products": "{{ ['parse'] }}"}, ["products", "render_template_as_native_obj"]),
        ({"org_id": "{{ '' }}"}, ["org_id", "resolved to ''"]),
        ({"features": "{{ 'a,b' }}"}, ["features", "comma", "['a', 'b']"]),
        ({"output_format": "{{ 'xml' }}", "output_path": "/nowhere"}, ["output_format", "xml", "jsonl"]),
        ({"output_path": "{{ 'usage' }}"}, ["output_path", "'usage'", "absolute"]),
        ({"output_path": "{{ 'sftp' }}://host/usage"}, ["sftp", "replaced at once"]),
        ({"output_path": "s3://bucket/usage", "output_conn_id": "missing"}, ["missing"]),
    ],
)
def test_bad_rendered_input_fails_at_once_without_a_request(export, simulator, arguments, words):
    result = export(**{"org_id": "org_acme", "retries": 2, **arguments}).expect("failed")

    assert len(result.errors) == 1 or "missing" in words, "no retry is spent on it"
    for word in words:
        assert word in result.errors[0].message
    assert not simulator.requests


@pytest.mark.parametrize(
    ("connection", "words"),
    [
        ({"password": ""}, ["reducto_default", "password", "Studio"]),
        ({"password": "a key"}, ["reducto_default", "password", "white space"]),
        ({"extra": {"timeout": "soon"}}, ["reducto_default", "'timeout'", "'soon'", "seconds"]),
        ({"extra": {"verify": "yes"}}, ["'verify'", "'yes'"]),
        ({"host": "ftp://files.example"}, ["host", "https"]),
    ],
)
def test_a_bad_connection_fails_at_once(export, simulator, connection, words):
    result = export(org_id="org_acme", retries=2, run={"connection": connection}, **RANGE).expect("failed")

    [error] = result.errors
    assert error.type == "ReductoConfigurationError"
    for word in words:
        assert word in error.message
    assert not simulator.requests


@pytest.mark.parametrize(
    ("fault", "error_type"),
    [(status(401), "ReductoAuthenticationError"), (status(403), "ReductoPermissionError")],
)
def test_what_no_retry_mends_spends_none(export, simulator, tmp_path, fault, error_type):
    simulator.faults.add(fault, times=10)
    result = export(org_id="org_acme", retries=3, output_path=str(tmp_path / "usage"), **RANGE).expect("failed")

    [error] = result.errors
    assert (error.type, error.state) == (error_type, "failed")
    assert len(simulator.requests) == 1
    assert not (tmp_path / "usage").exists()


def test_a_passing_fault_is_for_airflow_to_retry(export, simulator, tmp_path):
    simulator.faults.add(status(503), times=2)
    result = export(
        org_id="org_acme",
        retries=1,
        output_path=str(tmp_path),
        run={"connection": {"extra": {"max_attempts": 2}}},
        **RANGE,
    ).expect()

    assert [(error.type, error.state) for error in result.errors] == [("ReductoServerError", "up_for_retry")]
    assert [request.status for request in simulator.requests] == [503, 503, 200]
    assert len(days_of(tmp_path)) == 31


def test_too_much_for_xcom_points_to_files(export):
    result = export(org_id="org_acme", max_xcom_bytes=1000, **RANGE).expect("failed")

    [error] = result.errors
    assert error.type == "ReductoConfigurationError"
    assert "max_xcom_bytes=1000" in error.message
    assert "output_path" in error.message


def test_another_format_into_the_same_dataset_is_refused(export, simulator, tmp_path):
    arguments = {"org_id": "org_acme", "output_path": str(tmp_path), **RANGE}
    export(**arguments).expect()
    before = content_of(tmp_path)
    simulator.clear()

    for different in ({"output_format": "csv"}, {"products": "parse"}):
        result = export(**arguments, **different).expect("failed")
        assert next(iter(different)).removeprefix("output_").rstrip("s") in result.errors[0].message
        assert "another output_path" in result.errors[0].message
    assert content_of(tmp_path) == before
    assert not simulator.requests


HOSTILE_GROUPS = [
    "a/b",
    "../../x",
    'say "hi"',
    "two\nlines",
    "tab\there",
    "🦊 ünï",
    "=1+1",
    "",
    None,
    "\u2028",
    "a,b;c",
]


@pytest.fixture
def hostile(simulator):
    """An organization whose id and groups try to get out of their places."""
    records = [
        Record(date(2026, 5, 1), Decimal("1.5") + index, index, product=group)
        for index, group in enumerate(HOSTILE_GROUPS)
    ]
    simulator.usage.organizations["../../etc"] = Organization("../../etc", records=records)
    simulator.keys["sim-key-all"] = (*simulator.keys["sim-key-all"], "../../etc")


@pytest.mark.parametrize("output_format", ["json", "jsonl", "csv"])
@pytest.mark.usefixtures("hostile")
def test_foreign_text_stays_in_its_place(export, tmp_path, output_format):
    root = tmp_path / "a/b/usage"
    export(
        org_id="../../etc",
        output_path=str(root),
        output_format=output_format,
        usage_start_date="2026-05-01",
        usage_end_date="2026-05-01",
    ).expect()

    assert all(name.startswith("a/b/usage/") for name in content_of(tmp_path))
    path = root / f"data/org_id=..%2F..%2Fetc/group_by=product/dt=2026-05-01/usage.{output_format}"
    text = path.read_bytes().decode()
    if output_format == "csv":
        groups = [row["group"] for row in csv.DictReader(text.splitlines(keepends=True))]
        groups = [group or None for group in groups]
        expected = [group or None for group in HOSTILE_GROUPS]
        assert text.count('""') >= 1, "an empty group is quoted"
    else:
        rows = json.loads(text) if output_format == "json" else [json.loads(line) for line in text.strip().split("\n")]
        groups = [row["group"] for row in rows]
        expected = HOSTILE_GROUPS
    assert sorted(groups, key=repr) == sorted(expected, key=repr)


def test_an_unwritable_path_is_one_clear_error(export, tmp_path):
    (tmp_path / "usage").write_text("a file where the folder should be")
    result = export(org_id="org_acme", output_path=str(tmp_path / "usage"), **RANGE).expect("failed")

    assert result.errors[0].type == "ReductoExportError"
    assert str(tmp_path / "usage") in result.errors[0].message
    assert (tmp_path / "usage").read_text() == "a file where the folder should be"


def test_three_hundred_thousand_rows(export, simulator, tmp_path):
    simulator.usage.organizations["org_large"] = many_keys("org_large", 10_000)
    simulator.keys["sim-key-all"] = (*simulator.keys["sim-key-all"], "org_large")
    result = export(
        org_id="org_large",
        group_by="api_key",
        usage_start_date="2026-05-01",
        usage_end_date="2026-05-30",
        output_path=str(tmp_path),
        run={"timeout": 120},
    ).expect()

    assert result.xcom("export")["row_count"] == 300_000
    lines = sum(path.read_bytes().count(b"\n") for path in days_of(tmp_path, "org_large", "api_key").values())
    assert lines == 300_000


def test_the_key_is_nowhere(export, simulator, tmp_path):
    simulator.keys["sim-key-canary-9f3a"] = ("org_acme",)
    simulator.faults.add(status(500, body='{"error": "sim-key-canary-9f3a"}'), times=1)
    result = export(
        org_id="org_acme",
        output_path=str(tmp_path),
        run={"connection": {"password": "sim-key-canary-9f3a"}},
        **RANGE,
    ).expect()

    assert simulator.requests[-1].headers["Authorization"] == "Bearer sim-key-canary-9f3a"
    kept = [result.log, repr(result.xcoms), repr(result.task_instances), repr(content_of(tmp_path))]
    assert not any("canary" in text for text in kept)


@pytest.mark.parametrize("arguments", [{"output_format": "parquet"}, {"compression": "zstd"}])
def test_what_needs_pyarrow_says_so_before_it_asks(run_dag, simulator, tmp_path, arguments):
    result = run_dag(f"""
        from reducto_provider.export.formats import base
        from tests.airflow_sdk import DAG
        from reducto_provider.operators.export import ReductoUsageExportOperator

        base.find_spec = lambda name: None
        with DAG("export", schedule=None):
            ReductoUsageExportOperator(
                task_id="export", org_id="org_acme", output_path={str(tmp_path)!r}, retries=1, **{arguments!r}
            )
    """)

    [error] = result.errors
    assert error.type == "ReductoConfigurationError"
    assert "airflow-provider-reducto[parquet]" in error.message
    assert not simulator.requests
    assert not list(tmp_path.iterdir())


CALLBACKS = """
from pathlib import Path
from tests.airflow_sdk import DAG
from reducto_provider.operators.export import ReductoUsageExportOperator

def note(context):
    with Path({noted!r}).open("a") as file:
        file.write("noted ")

def fail(context):
    note(context)
    raise ValueError("the author's own callback fails")

common = {{"task_id": "export", "org_id": "org_acme", "output_path": {path!r}, **{days!r}}}
with DAG("export", schedule=None, default_args={default_args}):
    task = ReductoUsageExportOperator(**common, {arguments})
    {more}
"""


@pytest.mark.parametrize(
    ("arguments", "default_args", "more", "calls"),
    [
        ("", "{}", "", 0),
        ("on_success_callback=note", "{}", "", 1),
        ("on_success_callback=[note, fail, note]", "{}", "", 3),
        ("", "{'on_success_callback': fail}", "", 1),
        ("", "{'on_success_callback': [note, note]}", "", 2),
        ("", "{}", "task.on_success_callback = [note]", 1),
        ("", "{}", "task.on_success_callback = note", 1),
    ],
)
def test_success_is_noted_beside_the_callbacks_of_the_author(
    run_dag, export, tmp_path, arguments, default_args, more, calls
):
    fields = {"noted": str(tmp_path / "noted.txt"), "path": str(tmp_path / "usage"), "days": RANGE}
    source = CALLBACKS.format(arguments=arguments, default_args=default_args, more=more, **fields)
    result = run_dag(source).expect()

    assert all(file["changed"] for file in result.xcom("export")["files"])
    assert calls == (len((tmp_path / "noted.txt").read_text().split()) if calls else 0)
    again = export(org_id="org_acme", output_path=str(tmp_path / "usage"), **RANGE).expect()
    assert not any(file["changed"] for file in again.xcom("export")["files"])


def test_an_error_in_noting_what_was_reported_is_none_of_the_task(run_dag, tmp_path):
    source = f"""
        from tests.airflow_sdk import DAG
        from reducto_provider.export import reported
        from reducto_provider.operators.export import ReductoUsageExportOperator

        def refuse(*arguments):
            raise OSError("the disk is full")

        reported.acknowledge = refuse
        with DAG("export", schedule=None):
            ReductoUsageExportOperator(
                task_id="export", org_id="org_acme", output_path={str(tmp_path)!r}, **{RANGE!r}
            )
    """
    for _ in range(2):
        result = run_dag(source).expect()
        assert all(file["changed"] for file in result.xcom("export")["files"])
        assert "The changes that this task reported could not be recorded" in result.log
        assert "the disk is full" in result.log


@pytest.mark.parametrize("how", ["fails", "is skipped"])
def test_what_a_task_that_did_not_succeed_reported_is_reported_again(run_dag, export, tmp_path, how):
    error = {"fails": "ValueError", "is skipped": "AirflowSkipException"}[how]
    source = f"""
        from tests.airflow_sdk import DAG, AirflowSkipException
        from reducto_provider.operators.export import ReductoUsageExportOperator

        def end(context, result):
            raise {error}("after the last write")

        with DAG("export", schedule=None):
            ReductoUsageExportOperator(
                task_id="export", org_id="org_acme", output_path={str(tmp_path)!r}, post_execute=end, **{RANGE!r}
            )
    """
    result = run_dag(source)
    assert result.tasks["export"] == {"fails": "failed", "is skipped": "skipped"}[how]

    for expected in (True, False):
        result = export(org_id="org_acme", output_path=str(tmp_path), **RANGE).expect()
        assert {file["changed"] for file in result.xcom("export")["files"]} == {expected}


def test_one_object_of_another_organization_is_refused_before_a_request(export, simulator, tmp_path):
    arguments = {"output_path": str(tmp_path / "usage.jsonl"), "partitioned": False, **RANGE}
    export(org_id="org_acme", **arguments).expect()
    before = content_of(tmp_path)
    simulator.clear()

    for different in (
        {"org_id": "org_globex"},
        {"run": {"connection": {"extra": {"org_id": "org_globex"}}}},
        {"org_id": "org_acme", "group_by": "feature"},
        {"org_id": "org_acme", "products": "parse"},
    ):
        result = export(retries=1, **arguments, **different).expect("failed")
        [error] = result.errors
        assert error.type == "ReductoConfigurationError"
        assert "Name in output_path what the exports differ in" in error.message
    assert content_of(tmp_path) == before
    assert not simulator.requests
    again = export(org_id="org_acme", **arguments).expect()
    assert [file["changed"] for file in again.xcom("export")["files"]] == [False]


@pytest.mark.parametrize(
    "expand",
    [
        'org_id=["org_acme", "org_globex"]',
        'group_by=["product", "feature"]',
        'usage_start_date=["2026-05-04", "2026-05-05"]',
    ],
)
def test_mapped_tasks_onto_one_object_are_refused_but_for_the_first(run_dag, tmp_path, expand):
    given = {"org_id": "org_acme", "usage_start_date": "2026-05-04", "usage_end_date": "2026-05-06"}
    common = {name: value for name, value in given.items() if name != expand.partition("=")[0]}
    result = run_dag(f"""
        from tests.airflow_sdk import DAG
        from reducto_provider.operators.export import ReductoUsageExportOperator

        with DAG("export", schedule=None):
            ReductoUsageExportOperator.partial(
                task_id="export", output_path={str(tmp_path / "usage.jsonl")!r}, partitioned=False, **{common!r}
            ).expand({expand})
        """).expect("failed")

    assert sorted(result.tasks["export"]) == ["failed", "success"]
    [error] = result.errors
    assert error.type == "ReductoConfigurationError"
    assert "output_path" in error.message
    [winner] = [index for (_, index), state in result.task_states().items() if state == "success"]
    assert (tmp_path / "usage.jsonl").read_bytes().count(b"\n") == result.xcom("export", winner)["row_count"]


def test_an_event_of_one_object_says_whether_it_changed(run_dag, tmp_path):
    source = f"""
        from tests.airflow_sdk import DAG, Asset
        from reducto_provider.operators.export import ReductoUsageExportOperator

        with DAG("export", schedule=None):
            ReductoUsageExportOperator(
                task_id="export",
                org_id="org_acme",
                output_path={str(tmp_path / "all usage.csv")!r},
                output_format="csv",
                partitioned=False,
                outlets=[Asset("s3://lake/reducto")],
                **{RANGE!r},
            )
        """
    for changed in (True, False):
        [event] = run_dag(source).expect().asset_events
        assert event["extra"]["changed"] is changed
        assert event["extra"]["uri"] == f"file://{tmp_path}/all%20usage.csv"


@DELTA
class TestDelta:
    @staticmethod
    def rows(folder: Path):
        rows = pyarrow.table(DeltaTable(folder).scan()).to_pylist()
        assert {(row["org_id"], row["group_by"]) for row in rows} <= {("org_acme", "product")}
        return sorted((str(row["date"]), row["group"], row["credits"], row["request_count"]) for row in rows)

    def test_a_range_again_and_restated(self, export, simulator, tmp_path):
        arguments = {"org_id": "org_acme", "output_path": str(tmp_path / "table"), "output_format": "delta", **RANGE}

        def exported():
            found = export(**arguments).expect().xcom("export")
            truth = simulator.truth("org_acme", date(2026, 5, 1), date(2026, 5, 31))
            assert self.rows(tmp_path / "table") == sorted(figures(truth))
            assert found["row_count"] == len(truth)
            return [file["date"] for file in found["files"] if file["changed"]], found["files"]

        changed, files = exported()
        assert changed == [f"2026-05-{day:02}" for day in range(1, 32)]
        assert {(file["uri"], file["bytes"]) for file in files if file["row_count"]} == {
            (f"file://{tmp_path}/table", None)
        }
        assert exported()[0] == []
        simulator.usage.restate("org_acme", date(2026, 5, 10), factor=2)
        simulator.usage.restate("org_acme", date(2026, 5, 20), factor=0)
        assert exported()[0] == ["2026-05-10", "2026-05-20"]
        assert DeltaTable(tmp_path / "table").version() == 2, "creation, first export and restatement"

    def test_files_and_a_table_do_not_share_a_place(self, export, tmp_path, simulator):
        arguments = {"org_id": "org_acme", "output_path": str(tmp_path), **RANGE}
        export(**arguments, output_format="delta").expect()
        before = len(simulator.requests)
        [error] = export(**arguments).expect("failed").errors

        assert error.type == "ReductoConfigurationError"
        assert "is a Delta table. Use output_format='delta'" in error.message
        assert len(simulator.requests) == before

    def test_what_others_exported_meanwhile_is_requested_again(self, export, simulator, tmp_path):
        arguments = {"org_id": "org_acme", "output_path": str(tmp_path), "output_format": "delta", **RANGE}
        imports = """
import sys
if not hasattr(sys, "patched"):
    sys.patched = True
    from copy import copy
    from reducto_provider.export.delta.sink import UsageTable
    publish = UsageTable.publish
    def publish_late(self, report, query, run=None, requested_on=None):
        UsageTable.publish = publish
        other = UsageTable.open(self.location, None, self._format, {})
        import dataclasses
        other.publish(dataclasses.replace(report, rows=report.rows[1:]), query)
        return publish(self, report, query, run, requested_on)
    UsageTable.publish = publish_late
"""
        result = export(imports=imports, **arguments).expect()

        assert "is outdated: version 1 of" in result.log
        assert len(simulator.requests) == 2
        truth = simulator.truth("org_acme", date(2026, 5, 1), date(2026, 5, 31))
        assert self.rows(tmp_path) == sorted(figures(truth))

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({"partitioned": False, "output_path": "/tmp/x"}, "partitioned must be True for output_format='delta'"),
            ({"compression": "gzip", "output_path": "/tmp/x"}, "compression must be left out for delta"),
            ({"price_per_credit": 1, "output_path": "/tmp/x"}, "price_per_credit"),
            ({}, "output_path must be given for output_format='delta'"),
            ({"output_path": "gs://lake/usage"}, "output_path must be a local path or one of"),
        ],
    )
    def test_what_does_not_go_with_it_is_refused_at_once(self, arguments, reason):
        with pytest.raises(ValueError, match=reason):
            ReductoUsageExportOperator(task_id="export", output_format="delta", **arguments)

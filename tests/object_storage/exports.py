"""What an export does in any object store: again, restated, with a day that became empty, and beside others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.export.one_object import UsageObject
from reducto_provider.export.storage import open_storage
from simulator import Simulator
from tests.object_storage.answers import answer

if TYPE_CHECKING:
    from deltalake import DeltaTable


def check_export_again_and_restated(
    export: Callable[..., Any],
    simulator: Simulator,
    folder: Path,
    root: str,
    connection: str,
    objects: Callable[[], dict[str, bytes]],
) -> None:
    """
    Export days and one object to a store twice, and again once they were restated.

    ``root`` is the store's bucket as a URL that goes without the connection ``lake``, which is ``connection``;
    ``objects`` returns what the bucket holds. It must be what the same exports leave in a folder.
    """
    scheme, _, bucket = root.partition("://")
    days = {"output_path": f"{scheme}://lake@{bucket}/deep/usage", "output_format": "parquet"}
    one = {"output_path": f"{root}/one.csv", "output_conn_id": "lake", "output_format": "csv"}
    tasks = {"days": days, "days_again": days, "one": {**one, "partitioned": False}}
    env = {"AIRFLOW_CONN_LAKE": connection}

    def expected() -> dict[str, bytes]:
        report, query = answer(simulator.usage, "org_acme", date(2026, 5, 1), date(2026, 5, 3))
        place = folder / str(len(list(folder.iterdir())))
        UsageDataset(open_storage(f"{place}/deep/usage"), check_format("parquet"), {}).publish(report, query)
        UsageObject(open_storage(str(place)), "one.csv", check_format("csv"), {}).publish(report, query)
        files = (path for path in place.rglob("*") if path.is_file())
        return usage_of({str(path.relative_to(place)): path.read_bytes() for path in files})

    first = export(env=env, **tasks).expect()
    assert usage_of(objects()) == expected()
    assert [file["changed"] for file in first.xcom("days")["files"]] == [True] * 3
    assert [file["changed"] for file in first.xcom("days_again")["files"]] == [False] * 3
    assert first.xcom("one")["files"][0]["uri"] == f"{root}/one.csv"
    assert "lake@" not in repr(first.xcoms)

    simulator.usage.restate("org_acme", date(2026, 5, 2), factor=2)
    simulator.usage.restate("org_acme", date(2026, 5, 3), factor=0)
    second = export(env=env, **tasks).expect()
    assert usage_of(objects()) == expected()
    assert [file["changed"] for file in second.xcom("days")["files"]] == [False, True, True]


def usage_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return those that are the same whoever wrote them and when."""
    return {
        name: content
        for name, content in files.items()
        if "/metadata/org_id" not in name and not name.rpartition("/")[2].startswith(".")
    }


def check_every_version(read: Callable[..., DeltaTable], expected_days: dict[str, int]) -> None:
    """
    Check a table that `writers.export_current_usage` wrote: no version has lost, doubled or mixed a row.

    And no day ever goes back to an older answer. ``expected_days`` is how many days each organization has at the end.
    """
    newest: defaultdict[tuple[str, date], int] = defaultdict(int)
    for version in range(read().version() + 1):
        found = pa.table(read(version=version).scan()).to_pylist()
        by_day = defaultdict(list)
        for row in found:
            by_day[row["org_id"], row["date"]].append((row["group"], int(row["credits"]), row["request_count"]))
        for day, rows in by_day.items():
            [number] = {credits for _, credits, _ in rows}
            assert sorted(rows) == [(f"group-{group}", number, number) for group in range(3)]
            assert number >= newest[day]
            newest[day] = number
        assert set(newest) == set(by_day), "no day has disappeared"
    assert Counter(org_id for org_id, _ in newest) == expected_days

"""Check the files of both sides, and decoded rows, against the exact figures."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from benchmarks.answers import Answer
from benchmarks.measuring import check_equal


def exactly(answer: Answer) -> list[tuple[date, str, Decimal, int]]:
    """Return the rows as ours has them: dates, and exact credits."""
    return [row[:4] for row in answer.rows]


def as_sent(answer: Answer) -> list[tuple[str, str, float, int]]:
    """Return the rows as the service sent them, with binary floats."""
    return [(row.date.isoformat(), row.group, row.sent, row.request_count) for row in answer.rows]


def check_exact_parquet(folder: Path, answer: Answer) -> None:
    check_equal(_parquet_rows(folder, "date32[day]", "decimal128(38, 9)"), exactly(answer), "exact Parquet")


def check_their_parquet(folder: Path, answer: Answer) -> None:
    rows = [(moment.date().isoformat(), *rest) for moment, *rest in _parquet_rows(folder, "timestamp", "double")]
    check_equal(rows, as_sent(answer), "pandas' Parquet")


def check_our_lines(folder: Path, answer: Answer) -> None:
    rows = [
        (date.fromisoformat(row["date"]), row["group"], row["credits"], row["request_count"])
        for row in _lines(folder, Decimal)
    ]
    check_equal(rows, exactly(answer), "our JSON lines")


def check_their_lines(folder: Path, answer: Answer) -> None:
    rows = [
        (row["date"], row["group"], round(row["credits"], 9), row["request_count"]) for row in _lines(folder, float)
    ]
    # to_json writes ten decimal places, which is pandas' default.
    expected = [(day, group, round(credits, 9), count) for day, group, credits, count in as_sent(answer)]
    check_equal(rows, expected, "pandas' JSON lines")


def check_our_csv(folder: Path, answer: Answer) -> None:
    rows = [
        (date.fromisoformat(day), group, Decimal(credits), int(count)) for day, group, credits, count in _csv(folder)
    ]
    check_equal(rows, exactly(answer), "our CSV")


def check_their_csv(folder: Path, answer: Answer) -> None:
    rows = [(day, group, float(credits), int(count)) for day, group, credits, count in _csv(folder)]
    check_equal(rows, as_sent(answer), "pandas' CSV")


def check_our_rows(folder: Path, answer: Answer) -> None:
    check_equal(pickle.loads((folder / "rows").read_bytes()), exactly(answer), "our rows")  # noqa: S301


def check_their_rows(folder: Path, answer: Answer) -> None:
    check_equal(pickle.loads((folder / "rows").read_bytes()), as_sent(answer), "orjson's rows")  # noqa: S301


CHECKS: Final[dict[str, tuple[Callable[[Path, Answer], None], Callable[[Path, Answer], None]]]] = {
    "parquet": (check_exact_parquet, check_their_parquet),
    "exact parquet": (check_exact_parquet, check_exact_parquet),
    "jsonl": (check_our_lines, check_their_lines),
    "csv": (check_our_csv, check_their_csv),
    "decode": (check_our_rows, check_their_rows),
}


def _files(folder: Path, extension: str) -> list[Path]:
    """Return the file, or those of the days in order."""
    return sorted(folder.glob(f"**/usage.{extension}"))


def _parquet_rows(folder: Path, date_type: str, credits_type: str) -> list[tuple[Any, ...]]:
    import pyarrow.parquet as pq

    rows: list[tuple[Any, ...]] = []
    for file in _files(folder, "parquet"):
        table = pq.read_table(file, partitioning=None)
        types = [str(field.type) for field in table.schema]
        check_equal(table.schema.names, ["date", "group", "credits", "request_count"], "the columns")
        check_equal([types[0].startswith(date_type), types[2]], [True, credits_type], f"the types, which are {types}")
        rows += zip(*(column.to_pylist() for column in table.columns), strict=True)
    return rows


def _lines(folder: Path, number: Callable[[str], Any]) -> list[dict[str, Any]]:
    lines = (line for file in _files(folder, "jsonl") for line in file.read_text().splitlines())
    return [json.loads(line, parse_float=number) for line in lines]


def _csv(folder: Path) -> list[list[str]]:
    import csv

    rows: list[list[str]] = []
    for file in _files(folder, "csv"):
        header, *of_file = csv.reader(file.read_text().splitlines())
        check_equal(header, ["date", "group", "credits", "request_count"], "the header")
        rows += of_file
    return rows

"""Measure the way from a response body to a file, and to checked rows alone, alternating between ours and theirs.

Each measurement is a separate process. It starts with the body in memory, after all imports and a warm-up on a small
response, and ends with the file in place. Ours decodes into typed rows, checks them against the contract and replaces
the file atomically, as an export does. Theirs is what users write: a table of the body as ``json`` decodes it, with
neither checks nor decimals.
"""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from benchmarks.answers import Answer, make_answer
from benchmarks.measuring import Rounds, Sample, check_equal, in_a_process, measured
from reducto_provider.usage.query import UsageQuery

WARM_UP_ROWS: Final = 500


def export(body: bytes, query: UsageQuery, folder: Path, name: str) -> None:
    """Ours: do what an export does between the response and the file."""
    from reducto_provider.export.formats import check_format
    from reducto_provider.export.storage import open_storage
    from reducto_provider.usage.wire import decode_report

    report = decode_report(body, query)
    file_format = check_format(name.removeprefix("exact "))
    content = file_format.encode(file_format.rows(report), {})
    open_storage(str(folder)).replace(f"usage.{file_format.extension}", content)


def decode(body: bytes, query: UsageQuery, folder: Path, name: str) -> Any:
    """Ours: decode and check typed rows."""
    from reducto_provider.usage.wire import decode_report

    return decode_report(body, query)


def parquet_by_pandas(body: bytes, query: UsageQuery, folder: Path, name: str) -> None:
    """Theirs: make a table of the response of ``requests``, with dates as such."""
    import pandas
    import requests

    response = requests.Response()
    response.status_code, response._content = 200, body
    frame = pandas.DataFrame(response.json()["data"]).rename(columns={"requestCount": "request_count"})
    frame["date"] = pandas.to_datetime(frame["date"], format="%Y-%m-%d")
    frame.to_parquet(folder / "usage.parquet", index=False, compression="zstd")


def exact_parquet_by_pandas(body: bytes, query: UsageQuery, folder: Path, name: str) -> None:
    """Theirs, equivalent to our export: decimals, dates, and the contract's rules."""
    import pandas
    import pyarrow as pa

    answer = json.loads(body, parse_float=Decimal)
    echo = (answer["orgId"], answer["startDate"], answer["endDate"], answer["groupBy"])
    if echo != (query.org_id, str(query.start), str(query.end), query.group_by):
        raise ValueError("the answer is for another query")
    frame = pandas.DataFrame(answer["data"]).rename(columns={"requestCount": "request_count"})
    moments = pandas.to_datetime(frame["date"], format="%Y-%m-%d")
    if not moments.between(pandas.Timestamp(query.start), pandas.Timestamp(query.end)).all():
        raise ValueError("a day is outside of the requested range")
    if frame.duplicated(["date", "group"]).any():
        raise ValueError("a day has a group twice")
    nine_places = Decimal("1e-9")
    frame["credits"] = [Decimal(credits).quantize(nine_places) for credits in frame["credits"]]
    if (frame["credits"] < 0).any() or (frame["request_count"] < 0).any():
        raise ValueError("a number is negative")
    frame["date"] = moments.dt.date
    types = {"date": pa.date32(), "group": pa.string(), "credits": pa.decimal128(38, 9), "request_count": pa.int64()}
    frame = frame.sort_values(["date", "group"])[list(types)]
    frame.to_parquet(folder / "usage.parquet", index=False, compression="zstd", schema=pa.schema(types))


def lines_by_pandas(body: bytes, query: UsageQuery, folder: Path, name: str) -> None:
    """Theirs: dates remain text, as in JSON."""
    import pandas

    frame = pandas.DataFrame(json.loads(body)["data"]).rename(columns={"requestCount": "request_count"})
    frame.to_json(folder / "usage.jsonl", orient="records", lines=True)


def csv_by_pandas(body: bytes, query: UsageQuery, folder: Path, name: str) -> None:
    """Theirs, likewise."""
    import pandas

    frame = pandas.DataFrame(json.loads(body)["data"]).rename(columns={"requestCount": "request_count"})
    frame.to_csv(folder / "usage.csv", index=False)


def loads(body: bytes, query: UsageQuery, folder: Path, name: str) -> Any:
    """Theirs: the fastest way to read JSON into Python, no types, no checks."""
    import orjson

    return orjson.loads(body)


SIDES: Final[dict[str, tuple[Callable[..., Any], Callable[..., Any]]]] = {
    "parquet": (export, parquet_by_pandas),
    "exact parquet": (export, exact_parquet_by_pandas),
    "jsonl": (export, lines_by_pandas),
    "csv": (export, csv_by_pandas),
    "decode": (decode, loads),
}


def compare(name: str, answer: Answer, rounds: int) -> Rounds:
    """
    Measure both sides in turns, and check the output of each.

    :raises WrongOutputError: if it is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="reducto-bench-") as folder:
        body = Path(folder, "answer.json")
        body.write_bytes(answer.body)
        Path(folder, "query").write_bytes(pickle.dumps(answer.query))

        def take(side: int) -> Sample:
            sample: Sample = in_a_process(__name__, name, side, folder)
            CHECKS[name][side](Path(folder), answer)
            return sample

        return Rounds(rounds, lambda: take(0), lambda: take(1))


def main(name: str, side: str, folder: Path) -> None:
    """Run one side once, and print the measurement."""
    function = SIDES[name][int(side)]
    small = make_answer(1, WARM_UP_ROWS)
    with tempfile.TemporaryDirectory() as elsewhere:
        function(small.body, small.query, Path(elsewhere), name)
    body = (folder / "answer.json").read_bytes()
    query = pickle.loads((folder / "query").read_bytes())  # noqa: S301  # of the process that started this one
    sample: Sample = {}
    with measured(sample):
        result = function(body, query, folder, name)
    if name == "decode":
        keep_rows(result, folder)
    print(json.dumps(sample))


def keep_rows(result: Any, folder: Path) -> None:
    """Store the decoded rows, to be checked."""
    if isinstance(result, dict):
        rows = [(row["date"], row["group"], row["credits"], row["requestCount"]) for row in result["data"]]
    else:
        rows = [(row.date, row.group, row.credits, row.request_count) for row in result.rows]
    (folder / "rows").write_bytes(pickle.dumps(rows))


# -- the expected output


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


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

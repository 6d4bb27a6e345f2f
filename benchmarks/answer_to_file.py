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
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from benchmarks.answers import DOCUMENTED, WITH_TENTHS, Answer, make_answer
from benchmarks.measuring import Rounds, Sample, in_a_process, measured
from benchmarks.outputs import CHECKS
from benchmarks.section import Result, Section, Size, faster, mib, times
from reducto_provider.usage.query import UsageQuery

WARM_UP_ROWS: Final = 500


NOISE: Final = ", credits with noise"

HOW: Final = """
{rows} in {bytes}, as for a thousand API keys in a year, at the prices of the service's documentation. *Credits with
noise* come from a response in which a quarter of the keys has a price of 0.1, so that the service's sums of binary
floats are `230.10000000000002` and have to be rounded. Each run is a separate process that has imported everything and
warmed up on a small response. The measurement starts with the body in memory and ends with the file in place. The ratio
is of CPU time, since wall-clock time includes other work of the machine. Memory is the peak beyond the resident memory
before, without the body.

Ours is what an export does: decode into typed rows with decimals, check them against the contract, sort them, write the
file and replace the old one atomically. Theirs is `pandas.DataFrame(response.json()["data"])`, `pandas.to_datetime` for
Parquet, and `to_parquet`, `to_json` or `to_csv`: binary floats and no checks. *With decimals and checks* it reads
numbers as `Decimal`, checks the echo, the days, duplicates and signs with pandas, sorts, and writes dates and decimals
as such. All files are read back and compared with the exact figures: those with decimals with the exact credits, the
others with the floats that were sent.
"""


def section(size: Size) -> Section:
    """Measure answers to files."""
    answer = make_answer(size.days, size.groups, DOCUMENTED)
    inexact = make_answer(size.days, size.groups, WITH_TENTHS)
    rows = f"{len(answer.rows):,} rows"
    parquet, exact_parquet, lines, csv, decoding = (
        compare(name, answer, size.rounds) for name in ("parquet", "exact parquet", "jsonl", "csv", "decode")
    )
    inexact_parquet, inexact_decoding = (compare(name, inexact, size.rounds) for name in ("parquet", "decode"))
    typed = "each row becomes an object, its date and decimal two more, and each rule of the contract is checked"
    what = f"answer to checked rows to Parquet, {rows}"
    bare, exact = "`requests`, `pandas` `to_parquet`", "the same with decimals and checks"

    def memory(against: str, rounds: Rounds) -> Result:
        return Result(
            what=f"{what}: peak memory",
            against=against,
            aim="at most half",
            ours=f"{mib(rounds.our('added'))} (process: {mib(rounds.our('peak'))})",
            theirs=f"{mib(rounds.their('added'))} (process: {mib(rounds.their('peak'))})",
            value=1 / rounds.ratio("added"),
            limit=0.5,
            why=f"What takes the room: {typed}.",
        )

    def decoded(what: str, rounds: Rounds, why: str) -> Result:
        return Result(
            what=f"decoding and checking alone, {rows}{what}",
            against="`orjson.loads`: no types, no checks",
            aim="at most 1.3 times its time",
            ours=times(rounds, rounds.our),
            theirs=times(rounds, rounds.their),
            value=1 / rounds.ratio("cpu"),
            limit=1.3,
            why=why,
        )

    return Section(
        title="Answers to rows and files",
        how=HOW.format(rows=rows, bytes=mib(len(answer.body))),
        results=[
            faster(
                what,
                bare,
                parquet,
                2.5,
                f"Theirs has binary floats and checks nothing; here {typed}. Columns are built from buffers, which "
                "takes 130 ms where `pyarrow.array` takes 75: but that imports `pandas`, which takes 320 to 440 in a "
                "fresh process, as is measured in the next lines.",
            ),
            memory(bare, parquet),
            faster(f"{what}{NOISE}", bare, inexact_parquet, 2.5, "Besides that, decimals have to be rounded."),
            faster(what, exact, exact_parquet, 2.5, f"There as here, {typed}."),
            memory(exact, exact_parquet),
            faster(
                f"answer to JSON lines, {rows}",
                "`json`, `pandas` `to_json`",
                lines,
                4,
                f"More than half of it is the decoding and checking, where {typed}; the rest is one more object for "
                "each line, its text, and putting that on the disk.",
            ),
            faster(f"answer to CSV, {rows}", "`json`, `pandas` `to_csv`", csv, 2, f"As for Parquet, {typed}."),
            decoded("", decoding, f"The floor has neither types nor checks; here {typed}."),
            decoded(NOISE, inexact_decoding, "Besides that, decimals have to be rounded."),
        ],
    )


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


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

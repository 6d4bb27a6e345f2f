"""The benchmarks, as far as that takes seconds: they measure, and what is wrong makes them fail."""

from __future__ import annotations

from decimal import Decimal

import pytest

for name in ("pandas", "orjson"):
    pytest.importorskip(name, reason="make .venv/.with-bench installs what the benchmarks need")

import benchmarks.page  # noqa: E402
from benchmarks import __main__ as command  # noqa: E402
from benchmarks import (  # noqa: E402
    answer_to_file,
    by_day,
    changed_fleet,
    growth,
    imports,
    object_store,
    open_connection,
    operator_run,
    tables,
    task_imports,
    unchanged_days,
    waiting,
)
from benchmarks.answers import DOCUMENTED, WITH_TENTHS, make_answer  # noqa: E402
from benchmarks.measuring import Rounds, WrongOutputError, check_equal, in_a_process  # noqa: E402
from benchmarks.outputs import CHECKS  # noqa: E402
from benchmarks.section import Result, Section  # noqa: E402

NAMES = list(answer_to_file.SIDES)


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_are_measured_and_right(name):
    rounds = answer_to_file.compare(name, make_answer(3, 40), 1)
    for [sample] in (rounds.ours, rounds.theirs):
        assert sample.keys() == {"cpu", "wall", "peak", "added"}
        assert sample["cpu"] > 0
        assert sample["peak"] > 2**20


def test_the_answers_have_what_makes_them_hard():
    assert any(len(str(row.sent)) > 15 for row in make_answer(10, 100, WITH_TENTHS).rows)
    assert all(float(row.credits) == row.sent for row in make_answer(10, 100, DOCUMENTED).rows)


@pytest.mark.parametrize("side", [0, 1], ids=["ours", "theirs"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", ["credits", "request_count", "a row less", "another order"])
def test_a_wrong_output_fails(tmp_path, name, side, wrong):
    answer = make_answer(2, 9)
    result = answer_to_file.SIDES[name][side](answer.body, answer.query, tmp_path, name)
    if name == "decode":
        answer_to_file.keep_rows(result, tmp_path)
    check = CHECKS[name][side]
    check(tmp_path, answer)

    first, *rest = answer.rows
    rows = {
        "credits": [first._replace(credits=first.credits + Decimal("1e-9"), sent=first.sent + 1e-8), *rest],
        "request_count": [first._replace(request_count=first.request_count + 1), *rest],
        "a row less": rest,
        "another order": [*rest, first],
    }[wrong]
    with pytest.raises(WrongOutputError):
        check(tmp_path, answer._replace(rows=rows))


@pytest.mark.parametrize("compare", [tables.compare_queries, tables.compare_fleets])
def test_a_table_and_files_are_measured_and_right(compare, monkeypatch):
    rounds = compare(3, 1)
    for [sample] in (rounds.ours, rounds.theirs):
        assert {"cpu", "wall"} < sample.keys()
        assert sample.get("requests", 1) > 0

    exact = tables.credits_of
    monkeypatch.setattr(tables, "credits_of", lambda *size: [*exact(*size)[:-1], ["org_0002", "1.000000001"]])
    with pytest.raises(WrongOutputError, match="the credits in the"):
        compare(3, 1)


def test_a_process_that_fails_is_wrong_output():
    with pytest.raises(WrongOutputError, match="no_such_side"):
        in_a_process("benchmarks.answer_to_file", "parquet", "no_such_side", "/")


def test_an_export_to_s3_is_measured_and_right(monkeypatch):
    pytest.importorskip("s3fs")
    monkeypatch.setattr(object_store, "SECONDS_PER_REQUEST", 0.0)
    rounds = object_store.compare(3, 1)
    assert rounds.their("requests") == 1 + 2 * 3
    assert rounds.our("requests") < rounds.their("requests") + 20

    three_days = object_store.make_answer(3, object_store.GROUPS)
    monkeypatch.setattr(object_store, "make_answer", lambda *_: three_days._replace(rows=three_days.rows[1:]))
    with pytest.raises(WrongOutputError, match="the files of 3 days in S3"):
        object_store.compare(3, 1)


@pytest.mark.parametrize("name", by_day.FORMATS)
def test_the_default_export_is_measured_and_right(name, monkeypatch):
    answer = by_day.make(2, 9)
    rounds = by_day.compare(name, answer, 1)
    for [sample] in (rounds.ours, rounds.theirs):
        assert sample["cpu"] > 0
        assert sample["added"] > 0
    with pytest.raises(WrongOutputError):
        by_day.compare(name, answer._replace(rows=answer.rows[1:]), 1)


def test_a_fleets_second_export_is_measured_and_right(monkeypatch):
    pytest.importorskip("s3fs")
    monkeypatch.setattr(changed_fleet, "SECONDS_PER_REQUEST", 0.0)
    sample = changed_fleet.take(2)
    assert sample["writes"] == 4, "the day's file and manifest, the index, the reported changes"
    assert sample["requests"] <= 2 * 5 + 8

    monkeypatch.setattr(changed_fleet, "check_organizations", lambda place, *_: operator_run.check_files(place, {}))
    with pytest.raises(WrongOutputError, match="the files at"):
        changed_fleet.take(2)


def test_days_exported_again_are_counted_and_right(monkeypatch):
    pytest.importorskip("s3fs")
    unchanged, changed = unchanged_days.take(2)
    assert (unchanged["requests"], unchanged["writes"]) == (5, 0)
    assert (changed["requests"], changed["writes"]) == (13, 4)

    monkeypatch.setattr(unchanged_days, "check_organizations", lambda place, *_: operator_run.check_files(place, {}))
    with pytest.raises(WrongOutputError, match="the files at"):
        unchanged_days.take(2)


@pytest.mark.parametrize("axis", growth.TAKERS)
def test_growth_is_measured_and_right(axis, monkeypatch):
    if axis.endswith(growth.IN_S3):
        pytest.importorskip("s3fs")
    sample = growth.TAKERS[axis](growth.SMALL_SIZES[axis][0])
    assert sample["cpu"] > 0
    assert (sample["requests"] > 0) == axis.endswith(growth.IN_S3)

    for module in (growth, operator_run):
        monkeypatch.setattr(module, "check_equal", lambda found, expected, what: check_equal([found], expected, what))
    with pytest.raises(WrongOutputError, match=r"file|number of requests"):
        growth.TAKERS[axis](growth.SMALL_SIZES[axis][0])


def test_something_heavy_is_wrong_output(monkeypatch):
    found = {"airflow": 1.0, "ours": 0.1, "heavy": ["pandas"]}
    monkeypatch.setattr(imports, "in_a_process", lambda *_, **__: found)
    with pytest.raises(WrongOutputError, match="pandas"):
        imports.take()


def test_requests_are_measured_and_counted():
    rounds = open_connection.compare(1)
    for [sample] in (rounds.ours, rounds.theirs):
        assert 0 < sample["cpu"] < 1, "of one request"


def test_a_wrong_response_fails(monkeypatch):
    monkeypatch.setattr(open_connection, "in_a_process", lambda *_, **__: {"credits": "1", "sample": {}})
    with pytest.raises(WrongOutputError, match="the credits"):
        open_connection.compare(1)


def test_an_export_that_writes_nothing_is_wrong_output(monkeypatch):
    monkeypatch.setattr(task_imports, "in_a_process", lambda *_, **__: {"files": 1})
    with pytest.raises(WrongOutputError, match="the number of files"):
        task_imports.take("http://127.0.0.1:1")


def test_the_first_difference_is_named():
    with pytest.raises(WrongOutputError, match="rows: number 1 is 'c', not 'b'"):
        check_equal(["a", "c"], ["a", "b"], "rows")
    with pytest.raises(WrongOutputError, match="1 of 2"):
        check_equal(["a"], ["a", "b"], "rows")


def test_rounds_take_turns():
    turns = []
    rounds = Rounds(3, lambda: turns.append("o") or {"cpu": 2.0}, lambda: turns.append("t") or {"cpu": 5.0})
    assert "".join(turns) == "ottoot"
    assert rounds.ratio("cpu") == 2.5


def test_the_least_cpu_time_and_memory_of_waits_count():
    first = {"cpu": 3.0, "idle cpu": 2.0, "memory": 7.0, "memory of as many more": 4.0, "longest stall": 0.1}
    second = {"cpu": 2.0, "idle cpu": 0.5, "memory": 6.0, "memory of as many more": 5.0, "longest stall": 0.2}
    best = {"cpu": 3.0, "idle cpu": 2.0, "memory": 6.0, "memory of as many more": 4.0, "longest stall": 0.2}
    assert waiting.least([first, second]) == waiting.least([second, first]) == best


def result(value, **options):
    words = {"what": "export", "against": "pandas", "aim": "half", "ours": "1 s", "theirs": "2 s", "why": "It checks."}
    return Result(**{**words, "limit": 0.5, **options}, value=value)


@pytest.fixture
def page(monkeypatch, tmp_path):
    """Redirect what the command stores."""
    monkeypatch.setattr(benchmarks.page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(benchmarks.page, "FIGURES", tmp_path / "figures.json")
    return tmp_path / "page.md"


def run(monkeypatch, parts, *arguments):
    """Run the command with these parts."""
    monkeypatch.setattr(command, "PARTS", parts)
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    return command.main()


def test_what_is_short_is_told_with_its_reason(monkeypatch, page):
    exports = Section(title="Exports", how="So.", results=[result(0.5), result(0.6)])
    assert run(monkeypatch, {"files": lambda size: exports}) == 0
    text = page.read_text()
    assert "| export | pandas | half | 0.60 times | 1 s | 2 s | short by 20% |" in text
    assert "- **export** (half): 0.60 times, short by 20%. It checks." in text
    assert "1 of 2 aims are met" in text
    assert [result(value, limit=2, at_least=True).verdict for value in (2, 1.5)] == ["met", "short by 25%"]


def test_a_wrong_output_fails_the_command_and_stores_nothing(monkeypatch, page, capsys):
    def wrong(size):
        raise WrongOutputError("the file has a row too many")

    assert run(monkeypatch, {"files": wrong}) == 1
    assert "a row too many" in capsys.readouterr().err
    assert not page.exists()


def test_parts_are_stored_one_by_one(monkeypatch, page):
    parts = {
        name: lambda size, name=name: Section(title=name, how="", results=[result(size.rounds, what=name)])
        for name in ("first", "second")
    }
    assert run(monkeypatch, parts, "--rounds", "3") == 0
    assert run(monkeypatch, parts, "--rounds", "4", "--only", "second") == 0
    text = page.read_text()
    assert "| first | pandas | half | 3.00 times |" in text
    assert "| second | pandas | half | 4.00 times |" in text
    assert text.index("## first") < text.index("## second")

    assert run(monkeypatch, parts, "--small", "--rounds", "9") == 0
    assert page.read_text() == text

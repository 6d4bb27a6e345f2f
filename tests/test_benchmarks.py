"""The benchmarks, as far as that takes seconds: they measure, and what is wrong makes them fail."""

from __future__ import annotations

from decimal import Decimal

import pytest

for name in ("pandas", "orjson"):
    pytest.importorskip(name, reason="make .venv/.with-bench installs what the benchmarks need")

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import answer_to_file, imports, object_store, open_connection, tables, task_imports  # noqa: E402
from benchmarks.answers import DOCUMENTED, WITH_TENTHS, make_answer  # noqa: E402
from benchmarks.measuring import Rounds, WrongOutputError, check_equal, in_a_process  # noqa: E402
from benchmarks.page import Result, Section, document  # noqa: E402

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
    check = answer_to_file.CHECKS[name][side]
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


def result(value, **options):
    words = {"what": "export", "against": "pandas", "aim": "half", "ours": "1 s", "theirs": "2 s", "why": "It checks."}
    return Result(**{**words, "limit": 0.5, **options}, value=value)


def test_what_is_short_is_told_with_its_reason():
    page = "\n".join(document([Section(title="Exports", how="So.", results=[result(0.5), result(0.6)])], 3))
    assert "| export | pandas | half | 0.60 times | 1 s | 2 s | short by 20% |" in page
    assert "- **export** (half): 0.60 times, short by 20%. It checks." in page
    assert "1 of 2 aims are met" in page
    assert [result(value, limit=2, at_least=True).verdict for value in (2, 1.5)] == ["met", "short by 25%"]


def test_a_wrong_output_fails_the_command_and_stores_nothing(monkeypatch, tmp_path, capsys):
    def wrong(size):
        raise WrongOutputError("the file has a row too many")

    monkeypatch.setattr(command, "PARTS", {"files": wrong})
    monkeypatch.setattr(command, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    assert command.main() == 1
    assert "a row too many" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()

    monkeypatch.setattr(command, "PARTS", {"files": lambda size: Section(title="Exports", how="", results=[result(1)])})
    assert command.main() == 0
    assert "| export |" in (tmp_path / "page.md").read_text()
    monkeypatch.setattr("sys.argv", ["benchmarks", "--small"])
    (tmp_path / "page.md").unlink()
    assert command.main() == 0
    assert not (tmp_path / "page.md").exists()

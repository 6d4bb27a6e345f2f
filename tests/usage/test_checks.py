"""Texts and numbers, checked the same way wherever they are given."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from reducto_provider.usage.checks import (
    INVALID_JSON,
    check_bool,
    check_choice,
    check_name,
    check_number,
    check_seconds,
    check_single_name,
    check_text,
    check_whole_number,
    excerpt,
)

HUGE = 10**5000
"""An integer that Python refuses to write."""


def check_percent(field, value):
    return check_number(field, value, lambda number: 0 <= number <= 100, "a number from 0 to 100", "does it render?")


@pytest.mark.parametrize(
    ("check", "value", "result"),
    [
        (check_text, " a ", " a "),
        (check_name, "None", "None"),
        (check_name, "[a]", "[a]"),
        (check_single_name, "parse", "parse"),
        (check_bool, False, False),
        (lambda field, value: check_whole_number(field, value, 0), 10**30, 10**30),
        (lambda field, value: check_whole_number(field, value, 1, 20), 20, 20),
        (check_seconds, 0, 0.0),
        (check_seconds, timedelta(minutes=1), 60.0),
        (check_percent, 0.1, Decimal("0.1")),
        (check_percent, " 1e2\n", Decimal(100)),
        (check_percent, ".5", Decimal("0.5")),
        (check_percent, Decimal("99.9"), Decimal("99.9")),
        (check_percent, -0.0, Decimal(0)),
    ],
)
def test_a_valid_value_is_returned(check, value, result):
    returned = check("field", value)

    assert (returned, type(returned)) == (result, type(result))


def test_zero_has_no_sign():
    assert not check_percent("field", "-0").is_signed()


NUMBERS = "field must be a number from 0 to 100, not {}; does it render?"
WHOLE = "field must be a whole number{}, not {}"
SECONDS = "field must be a number of seconds, {}, or a timedelta, not {}"


@pytest.mark.parametrize(
    ("check", "value", "message"),
    ids=lambda value: getattr(value, "__name__", excerpt(value)),  # a function's repr is its address
    argvalues=[
        *((check_text, value, f"field must be text that is not empty, not {value!r}") for value in ("", " ", None, 1)),
        (check_text, "\ud800", "field must be valid Unicode text, not '\\ud800'"),
        (check_name, HUGE, "field must be text, not a number: with render_template_as_native_obj=True "),
        (check_name, " ", "field must be text that is not empty, not ' '; leave it out to set no field"),
        (check_single_name, "None", "field is the text 'None': a template rendered None; leave it out"),
        (check_single_name, "['a']", "field is a list written as text, \"['a']\": give the list itself"),
        *((check_bool, value, f"field must be True or False, not {value!r}") for value in ("False", 1, None)),
        (lambda f, v: check_choice(f, v, ("a", "b")), "c", "field must be one of a, b, not 'c'"),
        (lambda f, v: check_choice(f, v, ("a", "b")), ["a"], "field must be one of a, b, not ['a']"),
        *(
            (lambda f, v: check_whole_number(f, v, 0), value, WHOLE.format(", 0 or more", repr(value)))
            for value in (-1, True, 1.0, "1", None)
        ),
        *(
            (lambda f, v: check_whole_number(f, v, 1, 20), value, WHOLE.format(" from 1 to 20", repr(value)))
            for value in (0, 21)
        ),
        (lambda f, v: check_whole_number(f, v, 1, 20), HUGE, WHOLE.format(" from 1 to 20", "a number")),
        *(
            (check_seconds, value, SECONDS.format("0 or more", repr(value)))
            for value in (-1, True, "60", None, float("nan"), float("inf"), timedelta(-1))
        ),
        (check_seconds, HUGE, SECONDS.format("0 or more", "a number")),
        (lambda f, v: check_seconds(f, v, positive=True), 0, SECONDS.format("more than 0", 0)),
        *(
            (check_percent, value, NUMBERS.format(repr(value)))
            for value in (-1, 101, True, None, [1], float("nan"), float("inf"), Decimal("NaN"), Decimal("sNaN"))
        ),
        *(
            (check_percent, value, NUMBERS.format(repr(value)))
            for value in ("", "None", "1_0", "+1", "1,5", "0x1", "\u0661", "1e999999999999999999999", "nan", "{{ x }}")
        ),
        (check_percent, HUGE, NUMBERS.format("a number")),
    ],
)
def test_an_invalid_value_is_named(check, value, message):
    with pytest.raises(ValueError) as error:
        check("field", value)

    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "form"),
    [(b"", int), (b"{", dict), (b'"a"', int), (b'["\xff"]', list), (b"[" * 100_000, Any), (b"1" * 5000, int)],
    ids=["empty", "cut short", "another form", "not UTF-8", "endless nesting", "too many digits"],
)
def test_any_invalid_json_raises_one_of_these(content, form):
    with pytest.raises(INVALID_JSON):
        msgspec.json.decode(content, type=form)


def test_a_long_value_is_shortened():
    assert len(excerpt("x" * 500)) == 80
    assert excerpt(-HUGE) == "a number"
    assert excerpt("short") == "'short'"

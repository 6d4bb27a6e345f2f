"""
Checks of texts and numbers. Each raises a ``ValueError`` that names the field, the value and the remedy.

:data:`INVALID_JSON` has the errors of decoding JSON that another program wrote.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Final, TypeGuard

import msgspec

INVALID_JSON: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""
All that msgspec raises for JSON that is invalid or of another form: its own errors, which before version 0.21 are no
``ValueError``; a ``ValueError`` for text that is not UTF-8; a ``RecursionError`` for endless nesting.
"""

_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_MAX_SHOWN = 80


def excerpt(value: object) -> str:
    """Return a value as a message shows it: short, whatever it is."""
    if isinstance(value, int) and abs(value) > 10**_MAX_SHOWN:
        return "a number"  # Python refuses to write thousands of digits
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def check_text(field: str, value: object, remedy: str = "") -> str:
    """Return text that is not blank and can be encoded."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field} must be text that is not empty, not {excerpt(value)}{remedy and f'; {remedy}'}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} must be valid Unicode text, not {value!r}") from error
    return value


def check_name(field: str, value: object) -> str:
    """Return text that names something, as an element of a list gives it."""
    if isinstance(value, int | float):
        raise ValueError(
            f"{field} must be text, not {excerpt(value)}: with render_template_as_native_obj=True a template makes a "
            "number of digits; put quotes around it, as in \"'{{ params.name }}'\", or give another task's output "
            "itself"
        )
    return check_text(field, value, f"leave it out to set no {field}")


def check_single_name(field: str, value: object) -> str:
    """
    Return text that names something, as a template may have rendered it: not its None, not its list.

    Sent unchanged, these would match nothing, and no usage would look like the usage.
    """
    text = check_name(field, value)
    if text.strip() == "None":
        raise ValueError(f"{field} is the text {value!r}: a template rendered None; leave it out to set no {field}")
    if (text.strip()[0], text.strip()[-1]) in (("[", "]"), ("(", ")"), ("{", "}")):
        raise ValueError(
            f"{field} is a list written as text, {value!r}: give the list itself, or set "
            "render_template_as_native_obj=True on the DAG"
        )
    return text


def check_bool(field: str, value: object) -> bool:
    """Return True or False. Any text, ``"False"`` too, would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{field} must be True or False, not {excerpt(value)}")
    return value


def check_choice(field: str, value: object, allowed: tuple[str, ...]) -> None:
    """Check that a value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{field} must be one of {', '.join(allowed)}, not {excerpt(value)}")


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is an ``int`` or ``float``, and not True or False."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole_number(value: object, minimum: int, maximum: int | None = None) -> TypeGuard[int]:
    """Return whether a value is an ``int`` in this range, and not True or False."""
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= minimum
        and (maximum is None or value <= maximum)
    )


def check_whole_number(field: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return a whole number in this range."""
    if not is_whole_number(value, minimum, maximum):
        allowed = f", {minimum} or more" if maximum is None else f" from {minimum} to {maximum}"
        raise ValueError(f"{field} must be a whole number{allowed}, not {excerpt(value)}")
    return value


def check_seconds(field: str, value: object, *, positive: bool = False) -> float:
    """Return the seconds of a number or ``timedelta``, 0 or more, or if ``positive`` more than 0."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if is_number(seconds) and 0 <= seconds <= sys.float_info.max and (seconds or not positive):
        return float(seconds)
    allowed = "more than 0" if positive else "0 or more"
    raise ValueError(f"{field} must be a number of seconds, {allowed}, or a timedelta, not {excerpt(value)}")


def check_number(
    field: str, value: object, is_allowed: Callable[[Decimal], bool], allowed: str, remedy: str = ""
) -> Decimal:
    """
    Return the exact number that is given as ``int``, ``float``, ``Decimal`` or text. A ``float`` has the value of its
    ``repr``.

    :param is_allowed: whether the number, which is finite, is in the range.
    :param allowed: the range, for the message.
    """
    number = _decimal(value)
    if number is None or not is_allowed(number):
        raise ValueError(f"{field} must be {allowed}, not {excerpt(value)}{remedy and f'; {remedy}'}")
    return number if number else abs(number)


def _decimal(value: object) -> Decimal | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    if isinstance(value, float | Decimal | str) and _NUMBER.fullmatch(text := str(value).strip()):
        with suppress(InvalidOperation):  # the exponent may be too large even for a Decimal
            return Decimal(text)
    return None

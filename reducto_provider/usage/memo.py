"""Memoize functions of the values of a report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")

V = TypeVar("V")

_MAX_ENTRIES = 2**14


class Memo(dict[K, V]):
    """Memoize a function of one argument. Most reports have the same values many times."""

    def __init__(self, function: Callable[[K], V]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, argument: K) -> V:
        result = self[argument] = self._function(argument)
        return result

    def function(self) -> Callable[[K], V]:
        """Return the memoized function, or the function itself once too many different values were stored."""
        return self.__getitem__ if len(self) < _MAX_ENTRIES else self._function

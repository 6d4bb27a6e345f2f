"""Look up what a function returned before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")

V = TypeVar("V")

_MAX_REMEMBERED = 2**14


class Remembered(dict[K, V]):
    """What a function makes of figures of usage, which repeat themselves in most reports."""

    def __init__(self, function: Callable[[K], V]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, argument: K) -> V:
        result = self[argument] = self._function(argument)
        return result

    def memo(self) -> Callable[[K], V]:
        """What to call for the next figures: the function itself if there were too many different ones to look up."""
        return self.__getitem__ if len(self) < _MAX_REMEMBERED else self._function

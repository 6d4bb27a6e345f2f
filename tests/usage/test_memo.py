"""Repeated values are computed once, and the memory for them is bounded."""

from __future__ import annotations

from reducto_provider.usage import memo
from reducto_provider.usage.memo import Memo


def test_a_repeated_value_is_computed_once():
    computed = []
    memoized = Memo(lambda text: computed.append(text) or float(text))

    assert [memoized.function()(text) for text in ("1.5", "2", "1.5", "1.5")] == [1.5, 2, 1.5, 1.5]
    assert computed == ["1.5", "2"]


def test_of_many_different_values_only_the_first_are_kept(monkeypatch):
    monkeypatch.setattr(memo, "_MAX_ENTRIES", 3)
    memoized = Memo(float)

    assert [memoized.function()(str(number)) for number in range(10)] == list(range(10))
    assert len(memoized) == 3

"""The table of docs/projection.md, as far as the simulator's organizations go: the public series need a package."""

from __future__ import annotations

import pytest

from benchmarks import backtest


@pytest.mark.parametrize(("name", "series"), [pytest.param(*each, id=each[0]) for each in backtest.simulated()])
def test_the_errors_are_those_on_the_page(name, series):
    assert backtest.row(name, series) in backtest.PAGE.read_text().splitlines()

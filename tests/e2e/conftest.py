"""The options of the runs, and the story that the tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.figures import write_figures
from tests.e2e.story import Story


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("e2e")
    group.addoption("--days", type=int, default=3, help="days to export, ending yesterday")
    group.addoption("--faults", action="store_true", help="let processes die and requests fail meanwhile")
    group.addoption("--figures", type=Path, help="the page whose figures to write if all is right")
    group.addoption("--keep", type=Path, help="copy logs and files here at the end")


@pytest.fixture(scope="session")
def story(request: pytest.FixtureRequest) -> Iterator[Story]:
    """What happened: everything has ended but the sensors that have to wait."""
    option = request.config.getoption
    with Story(days=option("--days"), faults=option("--faults"), keep=option("--keep")) as story:
        story.happen()
        yield story
        if option("--figures") and not request.session.testsfailed:
            write_figures(option("--figures"), story)

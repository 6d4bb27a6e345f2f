"""A secrets backend whose connections can change while a DAG runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.secrets import BaseSecretsBackend


class ConnectionFiles(BaseSecretsBackend):
    """
    Connections as JSON, each in a file of a folder.

    Airflow's own backend for files makes and encrypts all connections of its one file at each look-up: with two
    hundred of them that took half of the time of all tests on the sensor's modes.
    """

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(**options)
        self._folder = Path(folder)

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> str | None:
        """Return a connection as JSON, or None where it has no file."""
        path = self._folder / f"{conn_id}.json"
        return path.read_text() if path.exists() else None

"""Where benchmarks export to: a folder on this machine, or a bucket of an S3 server in this process."""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.object_storage.s3server import Answer, Call, S3Server

WARM_UP_NAME: Final = "warm-up"
"""The name of an object that is read before a measurement. That request is not counted."""


class Place(ABC):
    """
    A location for an export.

    :param location: as operators take it.
    :param env: what a process needs to reach it.
    """

    def __init__(self, location: str, env: Mapping[str, str]) -> None:
        self.location = location
        self.env = env

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """Return the content of all files by their names relative to the location."""

    @abstractmethod
    def requests(self) -> list[tuple[str, str]]:
        """Return the method and the name of each request since the last call; a folder gets none."""


class Folder(Place):
    """A folder on a local disk."""

    def files(self) -> dict[str, bytes]:
        root = Path(self.location)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def requests(self) -> list[tuple[str, str]]:
        return []


class Bucket(Place):
    """A bucket of moto's S3 server."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._name = server.make_bucket()
        super().__init__(f"s3://lake@{self._name}/usage", {"AIRFLOW_CONN_LAKE": server.connection()})

    def files(self) -> dict[str, bytes]:
        found = self._server.objects(self._name)
        return {name.removeprefix("usage/"): content for name, content in found.items()}

    def requests(self) -> list[tuple[str, str]]:
        found = [(call.method, call.key) for call in self._server.calls if not call.key.endswith(WARM_UP_NAME)]
        self._server.calls.clear()
        return found

    @contextmanager
    def delay(self, seconds: float) -> Iterator[None]:
        """Meanwhile answer each request only after ``seconds``."""

        def slow(_: Call, serve: Callable[[], Answer]) -> Answer:
            time.sleep(seconds)
            return serve()

        with self._server.answering(slow):
            yield


@contextmanager
def folder() -> Iterator[Place]:
    """Yield a new folder."""
    with tempfile.TemporaryDirectory(prefix="reducto-bench-") as path:
        yield Folder(path, {})


@contextmanager
def bucket() -> Iterator[Bucket]:
    """Yield a new bucket."""
    from tests.object_storage.s3server import S3Server

    server = S3Server()
    try:
        yield Bucket(server)
    finally:
        server.close()

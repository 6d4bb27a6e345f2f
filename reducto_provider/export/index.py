"""The index of an organization's dimension: what its manifests hold, in one file."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import date
from typing import Final, Self

import msgspec

from reducto_provider.export.manifest import Count, Manifest
from reducto_provider.export.reported import Change
from reducto_provider.export.storage import Storage
from reducto_provider.usage.checks import INVALID_JSON

INDEX_NAME: Final = "index.json"

_DAYS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class IndexedDay(msgspec.Struct, kw_only=True):
    """
    What the index holds of a day.

    :param digest: of the rows; None for a day without usage.
    :param version: the MD5 of the file.
    :param query_days: the first and the last day of the query.
    """

    digest: str | None
    credits: str | None
    requests: Count
    final: bool
    size: Count
    version: str | None
    rows: Count
    sha256: str | None
    change: Change
    query_days: tuple[str, str]
    run: str | None
    package_version: str
    exported_at: str

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Self:
        query = dict(manifest.query)
        return cls(
            digest=manifest.rows_sha256,
            credits=manifest.credits,
            requests=manifest.request_count,
            final=manifest.final,
            size=manifest.bytes,
            version=manifest.md5,
            rows=manifest.row_count,
            sha256=manifest.sha256,
            change=manifest.change,
            query_days=(query.get("startDate", ""), query.get("endDate", "")),
            run=manifest.run,
            package_version=manifest.package_version,
            exported_at=manifest.exported_at,
        )

    def manifest(self, day: date, file: str, query: list[tuple[str, str]]) -> Manifest:
        """
        Return the manifest that the day has if the index is right.

        :param file: the name of the day's file, if it has one.
        :param query: the parameters of a query for the days in ``query_days``.
        :raises ValueError: if no export writes such a manifest.
        """
        return Manifest(
            date=day,
            file=None if self.sha256 is None else file,
            row_count=self.rows,
            bytes=self.size,
            sha256=self.sha256,
            md5=self.version,
            rows_sha256=self.digest,
            change=self.change,
            credits=self.credits,
            request_count=self.requests,
            final=self.final,
            query=query,
            run=self.run,
            package_version=self.package_version,
            exported_at=self.exported_at,
        )


_DAY = msgspec.json.Decoder(IndexedDay)


class Index:
    """
    The index of the manifests in a folder: a JSON object with a line per day.

    It is a cache, which saves reading every manifest. Exports that run at the same time can overwrite each other's
    days, so that it may lack days or hold an older export of them; whatever it holds needs a proof.

    :param folder: the folder of the manifests.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self._name = f"{folder}/{INDEX_NAME}"
        self._days: dict[date, msgspec.Raw] = {}

    @property
    def days(self) -> Collection[date]:
        """The days it holds."""
        return self._days.keys()

    def load(self) -> None:
        """Read the file. Days are decoded only if needed."""
        content = self._storage.read(self._name)
        # An index that can't be decoded is empty, and is then replaced.
        with suppress(*INVALID_JSON):
            if content is not None:
                self._days = {date.fromisoformat(day): each for day, each in _DAYS.decode(content).items()}

    def find(self, day: date) -> IndexedDay | None:
        """Return what the index holds of a day, None if it is not there or can't be decoded."""
        found = self._days.get(day)
        with suppress(*INVALID_JSON):
            return None if found is None else _DAY.decode(found)
        return None

    def update(self, manifests: Iterable[Manifest]) -> None:
        """Write the index if it does not hold these manifests yet."""
        added = {each.date: msgspec.Raw(msgspec.json.encode(IndexedDay.from_manifest(each))) for each in manifests}
        if any(bytes(self._days.get(day, b"")) != bytes(content) for day, content in added.items()):
            self._days |= added
            lines = (b'"%s": %s' % (str(day).encode(), bytes(each)) for day, each in sorted(self._days.items()))
            self._storage.replace(self._name, b"{\n" + b",\n".join(lines) + b"\n}\n")

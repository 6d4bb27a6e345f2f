"""The index of an organization's dimension: what its manifests hold, in one file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from typing import Final, Self

import msgspec

from reducto_provider.export.manifest import Count, Manifest
from reducto_provider.export.reported import Change
from reducto_provider.export.storage import Storage
from reducto_provider.usage.query import UsageQuery

INDEX_NAME: Final = "index.json"

_DAYS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class IndexedDay(msgspec.Struct, kw_only=True):
    """
    What the index holds of a day.

    :param digest: of the rows; None for a day without usage.
    :param version: the MD5 of the file.
    :param asked: the first and the last day of the query. All else of the query is the same for every export.
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
    asked: tuple[str, str]
    run: str | None
    package_version: str
    exported_at: str

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Self:
        asked = dict(manifest.query)
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
            asked=(asked.get("startDate", ""), asked.get("endDate", "")),
            run=manifest.run,
            package_version=manifest.package_version,
            exported_at=manifest.exported_at,
        )

    def manifest(self, day: date, file: str, query: UsageQuery) -> Manifest:
        """
        Return the manifest that the day has if the index is right.

        :param file: the name of the day's file, if it has one.
        :param query: a query of the same organization, dimension and filters.
        :raises ValueError: if no export writes such a manifest.
        """
        asked = dict(zip(("startDate", "endDate"), self.asked, strict=True))
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
            query=[(name, asked.get(name, value)) for name, value in query.params()],
            run=self.run,
            package_version=self.package_version,
            exported_at=self.exported_at,
        )


class Index:
    """
    The index of the manifests in a folder: a JSON object with a line per day.

    It is a cache, which saves reading every manifest. Exports that run at the same time can overwrite each other's
    days, so that it may lack days or hold an older export of them; whatever it says needs a proof.

    :param folder: the folder of the manifests.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self._name = f"{folder}/{INDEX_NAME}"
        self._days: Mapping[date, msgspec.Raw] | None = None

    def find(self, day: date) -> IndexedDay | None:
        """Return what the index holds of a day, None if it is not there or can't be decoded."""
        found = self.read().get(day)
        with suppress(msgspec.MsgspecError, ValueError, RecursionError):
            return None if found is None else msgspec.json.decode(found, type=IndexedDay)
        return None

    def update(self, manifests: Iterable[Manifest]) -> None:
        """Write the index if it does not hold these manifests yet."""
        days = self.read()
        added = {each.date: msgspec.Raw(msgspec.json.encode(IndexedDay.from_manifest(each))) for each in manifests}
        if any(bytes(days.get(day, b"")) != bytes(content) for day, content in added.items()):
            lines = (b'"%s": %s' % (str(day).encode(), bytes(each)) for day, each in sorted({**days, **added}.items()))
            self._storage.replace(self._name, b"{\n" + b",\n".join(lines) + b"\n}\n")

    def read(self) -> Mapping[date, msgspec.Raw]:
        """Return the days with their content, which is decoded only if needed. The file is read once."""
        if self._days is None:
            self._days = {}
            content = self._storage.read(self._name)
            # An index that can't be decoded is empty, and is then replaced.
            with suppress(msgspec.MsgspecError, ValueError, RecursionError):
                if content is not None:
                    self._days = {date.fromisoformat(day): each for day, each in _DAYS.decode(content).items()}
        return self._days

"""What a store holds of the days of a partition, proven with as few requests as possible."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from itertools import groupby

from reducto_provider.export.index import Index
from reducto_provider.export.manifest import Manifest, checksum, json_file, md5_of
from reducto_provider.export.storage import Storage
from reducto_provider.usage.query import UsageQuery


class StoredDays:
    """
    The files and manifests that a store holds of some days.

    Stores like S3 list the MD5 of each file. A manifest that is made again from the index is proven by its MD5 in a
    fresh listing, and a file by the MD5 in its manifest. What is not proven is read: what is listed as an MD5 can be
    something else, as with SSE-KMS, and other stores list none.

    :param partition: the organization's dimension, see :func:`~reducto_provider.export.manifest.partition_of`.
    :param extension: of the files.
    """

    def __init__(self, storage: Storage, partition: str, extension: str, query: UsageQuery) -> None:
        self.folder = f"metadata/{partition}"
        self._data_folder = f"data/{partition}"
        self._storage = storage
        self._extension = extension
        self._query = query
        self._index = Index(storage, self.folder)
        self._md5s: dict[str, str] | None = None
        self._proven: set[date] = set()

    def file(self, day: date) -> str:
        """Return the name of a day's file."""
        return f"{self._data_folder}/dt={day}/usage.{self._extension}"

    def manifest_name(self, day: date) -> str:
        """Return the name of a day's manifest."""
        return f"{self.folder}/dt={day}.json"

    def look(self, days: Iterable[date]) -> None:
        """List the files and manifests of the days, and read the index if it can help."""
        self._md5s = self._list(days)
        if self._md5s and any(name.startswith(self.folder) for name in self._md5s):
            self._index.read()

    def manifest(self, day: date) -> Manifest | None:
        """Return the manifest of a day, None if there is none or it can't be decoded."""
        if self._md5s is None:
            return self._read(day)
        listed = self._md5s.get(self.manifest_name(day))
        if listed is None:
            return None
        with suppress(ValueError):  # no export writes what the index says
            if (indexed := self._index.find(day)) is not None:
                manifest = indexed.manifest(day, self.file(day), self._query)
                if md5_of(json_file(manifest)) == listed:
                    self._proven.add(day)
                    return manifest
        return self._read(day)

    def has_file_of(self, manifest: Manifest) -> bool:
        """Return whether the day's file is the one of its manifest; also if it has none and needs none."""
        file = self.file(manifest.date)
        if manifest.file != (None if manifest.sha256 is None else file):
            return False
        if self._md5s is not None and self._md5s.get(file) == manifest.md5 and manifest.date in self._proven:
            return True
        content = self._storage.read(file)
        return (len(content or b""), checksum(content), md5_of(content)) == (
            manifest.bytes,
            manifest.sha256,
            manifest.md5,
        )

    def unproven(self, written: Sequence[Manifest]) -> list[Manifest]:
        """Return those of the manifests which, with their files, a new listing does not show as they were written."""
        md5s = self._list([manifest.date for manifest in written]) or {}
        return [
            manifest
            for manifest in written
            if md5s.get(self.manifest_name(manifest.date)) != md5_of(json_file(manifest))
            or md5s.get(self.file(manifest.date)) != manifest.md5
        ]

    def keep_index(self, manifests: Iterable[Manifest]) -> None:
        """Write the index if it lacks some of these manifests."""
        self._index.update(manifests)

    def _read(self, day: date) -> Manifest | None:
        return Manifest.decode(self._storage.read(self.manifest_name(day)))

    def _list(self, days: Iterable[date]) -> dict[str, str] | None:
        found: dict[str, str] = {}
        for folder in (self.folder, self._data_folder):
            for prefix in _prefixes(days):
                listed = self._storage.md5s(folder, prefix)
                if listed is None:
                    return None
                found |= listed
        return found


def _prefixes(days: Iterable[date]) -> Iterator[str]:
    """Yield what the names of these days begin with: per year the month, or the year if there are several months."""
    for year, of_year in groupby(sorted(days), key=lambda day: f"dt={day}"[:8]):
        months = {f"dt={day}"[:10] for day in of_year}
        yield months.pop() if len(months) == 1 else year

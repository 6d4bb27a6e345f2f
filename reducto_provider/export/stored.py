"""What a store holds of the days of a partition, proven with as few requests as possible."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import date
from itertools import groupby
from os.path import commonprefix
from typing import Final

from reducto_provider.export.index import Index
from reducto_provider.export.manifest import (
    InvalidManifestError,
    Manifest,
    checksum,
    decode_manifest,
    json_file,
    md5_of,
    parse_manifest_name,
    partition_of,
)
from reducto_provider.export.sink import Filters
from reducto_provider.export.storage import Storage
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.query import FILTER_PARAMETERS

_NAMES_PER_REQUEST: Final = 1000
"""How many names a store lists at once."""


class StoredDays:
    """
    The files and manifests that a store holds of an organization by a dimension.

    Stores like S3 list the MD5 of each file. A manifest that is rebuilt from the index is proven by its MD5 in a fresh
    listing, and a file by the MD5 in its manifest. What is not proven is read: what is listed as an MD5 can be
    something else, as with SSE-KMS, and other stores list none.

    :param filters: those of the dataset.
    :param extension: of the files.
    """

    def __init__(self, storage: Storage, org_id: str, group_by: str, filters: Filters, extension: str) -> None:
        self.partition = partition_of(org_id, group_by)
        self.folder = f"metadata/{self.partition}"
        self._storage = storage
        self._extension = extension
        self._parameters = [
            ("groupBy", group_by),
            ("orgId", org_id),
            *((name, value) for field, name in FILTER_PARAMETERS.items() for value in filters.get(field, ())),
        ]
        self._index = Index(storage, self.folder)
        self._md5s: dict[str, str] | None = None
        self._proven: set[date] = set()

    def file(self, day: date) -> str:
        """Return the name of a day's file."""
        return f"data/{self.partition}/dt={day}/usage.{self._extension}"

    def manifest_name(self, day: date) -> str:
        """Return the name of a day's manifest."""
        return f"{self.folder}/dt={day}.json"

    def query(self, first: str, last: str) -> list[tuple[str, str]]:
        """Return the query of some days as manifests have it: the same for every export, but for the days."""
        return [("startDate", first), ("endDate", last), *self._parameters]

    def look(self, days: Collection[date]) -> None:
        """Read the index, and list the files and manifests of the days."""
        self._index.load()
        self._md5s = self._list(days)

    def list_manifests(self) -> list[date]:
        """List all manifests, without the files, and return their days in order."""
        self._md5s = self._storage.md5s(self.folder, "dt=")
        names = self._storage.names(self.folder) if self._md5s is None else self._md5s
        found = [parse_manifest_name(name) for name in names]
        return sorted(each[1] for each in found if each and each[0] == self.partition)

    def load_index(self) -> None:
        """Read the index if the store's listings can prove what it holds."""
        if self._md5s:
            self._index.load()

    def indexed(self, days: DayRange) -> tuple[list[Manifest], DayRange] | None:
        """
        Return the manifests of these days as the index has them, unproven, and the first and the last day it has.

        :return: None if it has none.
        :raises ValueError: if it holds what no export writes.
        """
        self._index.load()
        held = sorted(self._index.days)
        if not held:
            return None
        manifests = []
        for day in held:
            if days.first <= day <= days.last:
                if (indexed := self._index.find(day)) is None:
                    raise ValueError(f"the index can't be decoded at {day}")
                manifests.append(indexed.manifest(day, self.file(day), self.query(*indexed.query_days)))
        return manifests, DayRange(held[0], held[-1])

    def manifest(self, day: date) -> Manifest | None:
        """
        Return the manifest of a day, None if there is none.

        :raises InvalidManifestError: if it can't be decoded, or is of another day.
        """
        if self._md5s is not None:
            listed = self._md5s.get(self.manifest_name(day))
            if listed is None:
                return None
            with suppress(ValueError):  # no export writes what the index holds
                if (indexed := self._index.find(day)) is not None:
                    manifest = indexed.manifest(day, self.file(day), self.query(*indexed.query_days))
                    if md5_of(json_file(manifest)) == listed:
                        self._proven.add(day)
                        return manifest
        return self.read_manifest(day)

    def read_manifest(self, day: date) -> Manifest | None:
        """
        Read the manifest of a day.

        :raises InvalidManifestError: see :meth:`manifest`.
        """
        content = self._storage.read(self.manifest_name(day))
        if content is None:
            return None
        manifest = decode_manifest(content)
        if manifest.date != day:
            raise InvalidManifestError(f"it is of {manifest.date}")
        return manifest

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

    def _list(self, days: Collection[date]) -> dict[str, str] | None:
        found: dict[str, str] = {}
        for folder in (self.folder, f"data/{self.partition}"):
            for prefix in _prefixes(days, self._index.days):
                listed = self._storage.md5s(folder, prefix)
                if listed is None:
                    return None
                found |= listed
        return found


def _prefixes(days: Iterable[date], exported: Iterable[date]) -> list[str]:
    """
    Return what the names of these days begin with, so that few requests list them.

    :param exported: all days that are probably there.
    """
    names = sorted({f"dt={day}"[:10] for day in days})
    years = [_common_start(list(of_year)) for _, of_year in groupby(names, key=lambda name: name[:8])]
    common = _common_start(years)
    pages = -(-sum(f"dt={day}".startswith(common) for day in exported) // _NAMES_PER_REQUEST)
    return [common] if pages < len(years) else years


def _common_start(sorted_names: Sequence[str]) -> str:
    return commonprefix([sorted_names[0], sorted_names[-1]])  # noqa: RUF071  # these are no paths

"""One object with a whole range of usage, and the two small files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Self

import msgspec
from msgspec import structs

from reducto_provider import __version__
from reducto_provider.export.formats import Format
from reducto_provider.export.locations import split_object_path
from reducto_provider.export.manifest import checksum, json_file, settle, write_with_manifest
from reducto_provider.export.reported import Change, new_change
from reducto_provider.export.sink import (
    Changes,
    DatasetMismatchError,
    Filters,
    PublishedFile,
    Sink,
    short,
    storage_errors,
)
from reducto_provider.export.storage import Storage, open_storage
from reducto_provider.usage.checks import INVALID_JSON
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import UsageReport

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset


class _Manifest(msgspec.Struct, kw_only=True):
    """The object's contents. Until the first publication, only what it is reserved for."""

    org_id: str
    group_by: str
    filters: dict[str, list[str]]
    format: dict[str, Any]
    run: str | None
    sha256: str | None = None
    rows_sha256: str | None = None
    change: Change | None = None


_MANIFEST = msgspec.json.Decoder(_Manifest)


class UsageObject(Sink):
    """
    The usage of one organization by one dimension as one object, with both as columns.

    Two small files are stored beside it, which engines skip because their names begin with a dot: ``.<name>.reducto``
    describes the object, and ``.<name>.reported`` has the change last reported by a successful run. An export replaces
    the whole object, so one with other contents is refused.

    :param storage: the folder.
    """

    def __init__(self, storage: Storage, name: str, format: Format, filters: Filters) -> None:
        self._storage = storage
        self._name = name
        self._format = format
        self._filters = {field: list(values) for field, values in filters.items()}
        self._manifest = f".{name}.reducto"
        self._reported = f".{name}.reported"

    @classmethod
    def check_location(cls, output_path: object) -> str:
        path = super().check_location(output_path)
        split_object_path(path)
        return path

    @classmethod
    def open(cls, output_path: str, conn_id: str | None, format: Format, filters: Filters) -> Self:
        folder, name = split_object_path(output_path)
        return cls(open_storage(folder, conn_id), name, format, filters)

    @property
    def location(self) -> str:
        return self._storage.location(self._name)

    @property
    def uri(self) -> str:
        return self._storage.uri(self._name)

    def check(self, query: UsageQuery | None = None, run: str | None = None) -> None:
        with storage_errors(f"could not read which usage {self.location} holds; what was there is untouched"):
            found = self._read()
        self._check(found, query.org_id if query else None, query.group_by if query else None, run)

    def publish(
        self, report: UsageReport, query: UsageQuery, run: str | None = None, requested_on: date | None = None
    ) -> list[PublishedFile]:
        """
        Replace the object by the report. Remove it if there are no rows and the format allows no empty file.

        After an error the object is complete: the previous version or the new one.
        """
        keys = {"org_id": report.org_id, "group_by": report.group_by}
        rows = self._format.rows(report)
        content = self._format.encode(rows, keys) if report.rows or self._format.allows_empty_file else None
        mine = _Manifest(
            org_id=report.org_id,
            group_by=report.group_by,
            filters=self._filters,
            format=self._format.identity(),
            run=run,
            sha256=checksum(content),
            rows_sha256=self._format.digest(report.rows, rows),
        )
        with storage_errors(
            f"could not write usage of {report.org_id} to {self.location}; what was there is untouched, or replaced as "
            "a whole"
        ):
            if self._storage.read(self._manifest) is None:
                with suppress(FileExistsError):  # another export was faster
                    self._storage.create(self._manifest, _content(structs.replace(mine, sha256=None, rows_sha256=None)))
            before = self._read() or mine
            self._check(before, report.org_id, report.group_by, run)
            same = (before.rows_sha256, before.format) == (mine.rows_sha256, mine.format)
            mine.change = before.change if same and before.change else new_change()

            def write() -> None:
                write_with_manifest(self._storage, self._name, content, self._manifest, _content(mine))

            write()
            settle(self._storage, self._name, self._manifest, write)
            # A store that can't create exclusively may have been claimed twice, and map indexes run at the same time.
            self._check(self._read(), report.org_id, report.group_by, run)
            reported = self._storage.read(self._reported)  # last, as of a dataset
        published = PublishedFile(
            uri=None if content is None else self.uri,
            day=None,
            row_count=len(report.rows),
            size=len(content or b""),
            changed=reported != _acknowledgement(mine.change),
            change=mine.change,
        )
        return [published]

    def acknowledge(self, changes: Changes) -> int:
        for [(_, change)] in changes.values():
            self._storage.replace(self._reported, _acknowledgement(change))
        return 0

    def output(self, org_id: str, group_by: str, files: Sequence[PublishedFile] | None) -> OutputDataset | None:
        from reducto_provider.lineage import files_dataset

        if files and files[0].uri is None:
            return None
        return files_dataset(self._storage, self._name, self._format.columns("org_id", "group_by"), files)

    def _read(self) -> _Manifest | None:
        content = self._storage.read(self._manifest)
        try:
            return None if content is None else _MANIFEST.decode(content)
        except INVALID_JSON as error:
            raise DatasetMismatchError(
                f"{self._storage.location(self._manifest)} can't be decoded, so the contents of {self._name} "
                f"beside it are unknown: {error}. Remove both, or export to another output_path"
            ) from error

    def _check(self, found: _Manifest | None, org_id: str | None, group_by: str | None, run: str | None) -> None:
        if found is None:
            return
        expected = {
            "org_id": org_id or found.org_id,
            "group_by": group_by or found.group_by,
            "filters": self._filters,
        }
        different = [name for name, value in expected.items() if getattr(found, name) != value]
        if different:
            holds = ", ".join(f"{name} {short(repr(getattr(found, name)))}" for name in different)
            export = ", ".join(f"{name} {expected[name]!r}" for name in different)
            raise DatasetMismatchError(
                f"{self.location} is the object of {holds}; this export is of {export}, and would replace it. Name in "
                f"output_path what the exports differ in, or remove the object and {self._manifest} beside it first"
            )
        if found.run and run and found.run != run and _task(found.run) == _task(run):
            raise DatasetMismatchError(
                f"{self.location} was written in the same run by {short(found.run)}; {run} would replace it. Name in "
                "output_path what the mapped task instances differ in"
            )


def _acknowledgement(change: str) -> bytes:
    return f"{change}\n".encode()


def _content(manifest: _Manifest) -> bytes:
    exported = {"package_version": __version__, "exported_at": datetime.now(UTC).isoformat(timespec="seconds")}
    return json_file({**structs.asdict(manifest), **exported})


def _task(run: str) -> str:
    """Return the run and task of a task instance, without its map index."""
    return run.rpartition("/")[0]

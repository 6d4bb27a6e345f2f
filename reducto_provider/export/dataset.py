"""A partitioned dataset of usage: its layout, its manifests, and how each day is published."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import groupby
from typing import Annotated, Any, Final, Self
from urllib.parse import quote

import msgspec

from reducto_provider import __version__
from reducto_provider.export.formats import Format
from reducto_provider.export.reported import Change, ReportedChanges, new_change
from reducto_provider.export.storage import Storage
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.report import CREDITS_SCALE, UsageReport, UsageRow, add_credits, format_decimal, sum_credits
from reducto_provider.usage.window import DayRange, today

LAYOUT_VERSION: Final = 1
DATASET_FILE = "metadata/dataset.json"
_MAX_NAME_BYTES = 255  # the limit of common file systems
_MAX_WRITES = 10
_MAX_NAMED = 10
_PLAIN_NUMBER = re.compile(rf"\d{{1,60}}(\.\d{{1,{CREDITS_SCALE}}})?", re.ASCII)


class DatasetMismatchError(ValueError):
    """The export does not match the dataset: its format, compression or filters differ."""


class PublishError(OSError):
    """Files could not be written or read. Each file is complete: the previous version or the new one."""


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """
    The published state of one day, or of the object of an unpartitioned export.

    :param uri: None if there is no file: a day without usage, or an empty object in a format that allows none.
    :param day: None for an unpartitioned export.
    :param changed: whether the rows differ from those last reported by a successful run; True if none reported any.
    :param change: the id of the change that produced these rows.
    """

    uri: str | None
    day: date | None
    row_count: int
    size: int
    changed: bool
    change: str

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for XCom."""
        return {
            "uri": self.uri,
            "date": self.day and self.day.isoformat(),
            "row_count": self.row_count,
            "bytes": self.size,
            "changed": self.changed,
        }


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """
    A try of a task instance, recorded so that later tries can skip what it published.

    Airflow keeps counting tries when a task is cleared.

    :param number: the number of this try.
    :param first: the number of the first try since the task was last cleared.
    :param fingerprint: of everything but the query that decides what is exported. Tries with another one are ignored.
    """

    number: int
    first: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class PublishedDays:
    """
    The totals of the days of a query. ``credits`` is None if any row has none.

    :param changed: the days whose rows differ from those last reported by a successful run, with their change ids.
    """

    row_count: int
    credits: Decimal | None
    request_count: int
    changed: Mapping[date, str]


class _ManifestHead(msgspec.Struct):
    """The fields of a day's manifest that every export reads."""

    sha256: str | None
    rows_sha256: str | None
    change: Change
    run: str | None = None

    @classmethod
    def read(cls, content: bytes | None) -> Self | None:
        """Return None if there is no manifest or it can't be decoded."""
        try:
            return None if content is None else msgspec.json.decode(content, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None


class _ManifestAttempt(msgspec.Struct):
    number: int
    fingerprint: str


class _Manifest(_ManifestHead, kw_only=True):
    """What a later try reads. Its figures are passed on to XCom, so they are validated."""

    query: list[tuple[str, str]]
    attempt: _ManifestAttempt
    row_count: Annotated[int, msgspec.Meta(ge=0)]
    credits: str | None
    request_count: Annotated[int, msgspec.Meta(ge=0)]

    def __post_init__(self) -> None:
        """
        Validate ``credits``.

        :raises ValueError: for a number that no export writes. Printing some of these would exhaust memory.
        """
        if self.credits is not None and not _PLAIN_NUMBER.fullmatch(self.credits):
            raise ValueError("credits must be a decimal number without sign or exponent")


class UsageDataset:
    """
    Usage at one location, partitioned by organization, dimension and day::

        data/org_id=<org>/group_by=<dimension>/dt=YYYY-MM-DD/usage.<ext>
        metadata/dataset.json
        metadata/org_id=<org>/group_by=<dimension>/dt=YYYY-MM-DD.json
        metadata/org_id=<org>/group_by=<dimension>/.reported-YYYY

    A day has one file, always of the same name, or none if it had no usage. The manifest is written after the file and
    distinguishes a day without usage from one that was never exported. The dimensions are views of the same usage and
    have separate folders, so that a sum over one never counts twice. The changes reported by successful runs are kept
    per year, see :class:`~reducto_provider.export.reported.ReportedChanges`.
    """

    def __init__(self, storage: Storage, format: Format, filters: Mapping[str, Sequence[str]]) -> None:
        self._storage = storage
        self._format = format
        self._identity = {"layout_version": LAYOUT_VERSION, **format.identity(), "filters": dict(filters)}

    def check(self) -> None:
        """
        Check that this export matches the dataset.

        :raises DatasetMismatchError: naming the differences and the remedy.
        :raises PublishError: if the dataset's description can't be read.
        """
        with storage_errors(f"could not read {self._storage.location(DATASET_FILE)}"):
            content = self._storage.read(DATASET_FILE)
        if content is None:
            return
        try:
            found = msgspec.json.decode(content, type=dict[str, Any])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise DatasetMismatchError(
                f"{self._storage.location(DATASET_FILE)} can't be decoded, so the dataset's format and filters are "
                f"unknown: {error}"
            ) from error
        different = [
            f"{short(name)} is {short(repr(found.get(name)))}, this export's {self._identity.get(name)!r}"
            for name in dict.fromkeys((*self._identity, *found))
            if found.get(name) != self._identity.get(name)
        ]
        if different:
            more = f"; and {len(different) - _MAX_NAMED} more" if len(different) > _MAX_NAMED else ""
            raise DatasetMismatchError(
                f"the dataset at {self._storage.location()} holds something else: {'; '.join(different[:_MAX_NAMED])}"
                f"{more}. Export to another output_path, or remove the dataset first"
            )

    def published_before(self, query: UsageQuery, run: str, attempt: Attempt) -> PublishedDays | None:
        """
        Return what earlier tries, from ``attempt.first`` on, published for the query.

        :param query: with its organization.
        :return: None unless they published every day of it.
        :raises PublishError: if a manifest can't be read.
        """
        folder = metadata_folder(str(query.org_id), query.group_by)
        found: dict[date, _Manifest] = {}
        for day in DayRange(query.start, query.end).days():
            name = f"{folder}/dt={day}.json"
            with storage_errors(f"could not read {self._storage.location(name)}"):
                manifest = _Manifest.read(self._storage.read(name))
            if (
                manifest is None
                or manifest.run != run
                or not attempt.first <= manifest.attempt.number < attempt.number
                or manifest.attempt.fingerprint != attempt.fingerprint
                or manifest.query != query.params()
            ):
                return None
            found[day] = manifest
        reported = self._reported(folder, found)
        return PublishedDays(
            row_count=sum(each.row_count for each in found.values()),
            credits=add_credits(None if each.credits is None else Decimal(each.credits) for each in found.values()),
            request_count=sum(each.request_count for each in found.values()),
            changed={day: each.change for day, each in found.items() if each.change != reported.get(day)},
        )

    def publish(
        self, report: UsageReport, query: UsageQuery, run: str | None = None, attempt: Attempt | None = None
    ) -> list[PublishedFile]:
        """
        Publish each day of the report: write its rows, and remove the file of a day without rows.

        :param query: the query of the report, for the manifests.
        :param run: identifies the exporting task instance across its tries.
        :param attempt: lets later tries find what this one published, see :meth:`published_before`. Leave it out for a
            report that is not final.
        :raises DatasetMismatchError: see :meth:`check`.
        :raises PublishError: naming the day. Days published before it stay; the export can be run again.
        """
        folder = partition_of(report.org_id, report.group_by)
        self.check()
        rows_of = _rows_by_day(report, self._format)  # before any write: a format can reject a report
        # A future day has no usage yet: publishing it as a day without usage would be wrong.
        days = [day for day in DayRange(report.start, report.end).days() if day <= today() or day in rows_of]
        self._ensure_identity()
        done = 0

        def publish_day(day: date) -> PublishedFile:
            nonlocal done
            with storage_errors(
                lambda: (
                    f"could not publish {day} of {report.org_id} at {self._storage.location()} ({done} of "
                    f"{len(days)} days are published, each file is whole, and the export can be run again)"
                )
            ):
                published = self._publish_day(folder, day, *rows_of.get(day, ((), ())), query, run, attempt)
            done += 1
            return published

        if self._storage.max_concurrent_writes == 1:
            files = [publish_day(day) for day in days]
        else:
            with ThreadPoolExecutor(self._storage.max_concurrent_writes) as executor:
                waiting = [executor.submit(publish_day, day) for day in days]
                try:
                    files = [each.result() for each in waiting]
                except BaseException:
                    executor.shutdown(cancel_futures=True)
                    raise
        self.check()  # a store that can't create exclusively may have been claimed twice
        # Read last: what another run published and reported meanwhile may just have been replaced by an older answer.
        reported = self._reported(metadata_folder(report.org_id, report.group_by), days)
        return [replace(file, changed=file.change != reported.get(day)) for file, day in zip(files, days, strict=True)]

    def _reported(self, folder: str, days: Iterable[date]) -> dict[date, str]:
        with storage_errors(f"could not read the reported changes in {self._storage.location(folder)}"):
            return ReportedChanges(self._storage, folder).read(days)

    def _ensure_identity(self) -> None:
        """Write the dataset's description if there is none, and check that this export matches it."""
        with storage_errors(f"could not write {self._storage.location(DATASET_FILE)}"):
            if self._storage.read(DATASET_FILE) is None:
                with suppress(FileExistsError):  # another export was faster
                    self._storage.create(DATASET_FILE, json_file(self._identity))
        self.check()

    def _publish_day(
        self,
        folder: str,
        day: date,
        rows: Sequence[UsageRow],
        encodable: Sequence[Any],
        query: UsageQuery,
        run: str | None,
        attempt: Attempt | None,
    ) -> PublishedFile:
        file = f"data/{folder}/dt={day}/usage.{self._format.extension}"
        manifest = f"metadata/{folder}/dt={day}.json"
        content = self._format.encode(encodable, {}) if rows else None
        size = len(content or b"")
        credits = sum_credits(rows)
        rows_sha256 = self._format.digest(rows, encodable)
        before = _ManifestHead.read(self._storage.read(manifest))
        change = before.change if before is not None and before.rows_sha256 == rows_sha256 else new_change()
        description = json_file(
            {
                "date": day.isoformat(),
                "file": None if content is None else file,
                "row_count": len(rows),
                "bytes": size,
                "sha256": checksum(content),
                "rows_sha256": rows_sha256,
                "change": change,
                "credits": None if credits is None else format_decimal(credits),
                "request_count": sum(row.request_count for row in rows),
                "query": query.params(),
                "run": run,
                **({"attempt": {"number": attempt.number, "fingerprint": attempt.fingerprint}} if attempt else {}),
                "package_version": __version__,
                "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        write_with_manifest(self._storage, file, content, manifest, description)
        return PublishedFile(
            uri=None if content is None else self._storage.uri(file),
            day=day,
            row_count=len(rows),
            size=size,
            changed=True,  # unless it has been reported
            change=change,
        )


def write_with_manifest(storage: Storage, file: str, content: bytes | None, manifest: str, description: bytes) -> None:
    """
    Write a file and then its manifest. Remove the file if ``content`` is None.

    :raises OSError: also anything else the store raises.
    """
    for write in range(_MAX_WRITES):
        # Jitter: in lockstep, two exports would keep overwriting each other.
        time.sleep(write and random.uniform(0, 0.02 * 2**write))  # noqa: S311
        if content is None:
            storage.remove(file)
        else:
            storage.replace(file, content)
        storage.replace(manifest, description)
        # Another export may have written between the two. The last writer notices, so that file and manifest end up
        # from the same export.
        written = _ManifestHead.read(storage.read(manifest))
        if written is not None and written.sha256 == checksum(storage.read(file)):
            return
    raise OSError(f"other exports keep writing {storage.location(file)} at the same time")


def partition_of(org_id: str, group_by: str) -> str:
    """
    Return the folder of an organization's dimension. Ids are escaped as Hive does, so that each stays one name.

    :raises ValueError: if the id is too long for a file name.
    """
    name = f"org_id={quote(org_id, safe='')}"
    if len(name) > _MAX_NAME_BYTES:
        raise ValueError(f"org_id is too long for the name of a folder: {org_id[:60]!r}...")
    return f"{name}/group_by={group_by}"


def metadata_folder(org_id: str, group_by: str) -> str:
    """Return the folder of the manifests of an organization's dimension."""
    return f"metadata/{partition_of(org_id, group_by)}"


def _rows_by_day(report: UsageReport, format: Format) -> dict[date, tuple[Sequence[UsageRow], Sequence[Any]]]:
    pairs = zip(report.rows, format.rows(report), strict=True)
    return {
        day: tuple(zip(*group, strict=True))  # type: ignore[misc]  # the rows, and their encodable form
        for day, group in groupby(pairs, key=lambda pair: pair[0].date)
    }


def checksum(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


@contextmanager
def storage_errors(what: str | Callable[[], str]) -> Iterator[None]:
    """Translate any error of a store into a :class:`PublishError` that begins with ``what``."""
    try:
        yield
    except DatasetMismatchError:
        raise
    except Exception as error:
        message = what if isinstance(what, str) else what()
        raise PublishError(f"{message}: {type(error).__name__}: {error}") from error


def short(text: str) -> str:
    """Return untrusted text as printable and at most 200 characters, for logs."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 200 else f"{text[:197]}..."


def json_file(content: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content)) + b"\n"

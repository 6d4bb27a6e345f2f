"""A partitioned dataset of usage: its layout, its publication day by day, and what it says of itself."""

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
from reducto_provider.usage.report import CREDITS_SCALE, UsageReport, UsageRow, add_credits, plain, sum_credits
from reducto_provider.usage.window import DayRange, today

LAYOUT_VERSION: Final = 1
DATASET_FILE = "metadata/dataset.json"
_LONGEST_NAME = 255  # bytes that file systems allow a name
_MOST_WRITES = 10
_MOST_NAMED = 10
_PLAIN_NUMBER = re.compile(rf"\d{{1,60}}(\.\d{{1,{CREDITS_SCALE}}})?", re.ASCII)


class DatasetMismatchError(ValueError):
    """The export would put into a dataset what does not belong there: another format, or filtered days."""


class PublishError(OSError):
    """Files could not be written or read. Each file is whole, the one before or the new one."""


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """
    What one day, or the one object of an unpartitioned export, now holds.

    :param uri: None for a day without usage: it has no file. Likewise for one object, where a format can't be empty.
    :param day: None for an unpartitioned export.
    :param changed: whether the rows differ from those that a successful run has reported last; True if none has.
    :param change: names the change by which the rows became what they are.
    """

    uri: str | None
    day: date | None
    row_count: int
    size: int
    changed: bool
    change: str

    def as_json(self) -> dict[str, Any]:
        """For XCom: plain JSON values."""
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
    A try of a task instance, for its later tries to know what it did. Airflow counts tries on when a task is cleared.

    :param number: which try it is.
    :param first: which was the first one since the task was cleared, or at all.
    :param fingerprint: of all that decides what is exported, but for the query: tries that differ in it do not count.
    """

    number: int
    first: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class PublishedDays:
    """
    What the days of a query hold in all; ``credits`` is None when any row has none.

    :param changed: the days whose rows differ from those that a successful run has reported last, with their changes.
    """

    row_count: int
    credits: Decimal | None
    request_count: int
    changed: Mapping[date, str]


class _Manifest(msgspec.Struct):
    """What of a day's manifest an export looks at."""

    sha256: str | None
    rows_sha256: str | None
    change: Change
    run: str | None = None

    @classmethod
    def read(cls, content: bytes | None) -> Self | None:
        """None if there is no manifest, or none that can be read."""
        try:
            return None if content is None else msgspec.json.decode(content, type=cls)
        except (ValueError, RecursionError):
            return None


class _AttemptOfManifest(msgspec.Struct):
    number: int
    fingerprint: str


class _WholeManifest(_Manifest, kw_only=True):
    """What a later try wants to know: figures that are told on, and so not whatever somebody may have written there."""

    query: list[tuple[str, str]]
    attempt: _AttemptOfManifest
    row_count: Annotated[int, msgspec.Meta(ge=0)]
    credits: str | None
    request_count: Annotated[int, msgspec.Meta(ge=0)]

    def __post_init__(self) -> None:
        """
        Check the figure that is text.

        :raises ValueError: for a number that no export writes: of these, some would take all memory to print.
        """
        if self.credits is not None and not _PLAIN_NUMBER.fullmatch(self.credits):
            raise ValueError("credits must be a number as exports write it")


class UsageDataset:
    """
    Usage at one location, partitioned by organization, dimension and day::

        data/org_id=<org>/group_by=<dimension>/dt=YYYY-MM-DD/usage.<ext>
        metadata/dataset.json
        metadata/org_id=<org>/group_by=<dimension>/dt=YYYY-MM-DD.json
        metadata/org_id=<org>/group_by=<dimension>/.reported-YYYY

    A day has one file, always of the same name, or none when it had no usage. Its manifest, written after it,
    tells a day without usage from one that was never exported. The dimensions are views of the same usage: they
    lie apart, so that a sum over one never counts twice. The changes that successful runs have reported are kept per
    year, see :class:`~reducto_provider.export.reported.ReportedChanges`.
    """

    def __init__(self, storage: Storage, format: Format, filters: Mapping[str, Sequence[str]]) -> None:
        self._storage = storage
        self._format = format
        self._identity = {"layout_version": LAYOUT_VERSION, **format.identity(), "filters": dict(filters)}

    def check(self) -> None:
        """
        Make sure that an export like this one belongs into the dataset.

        :raises DatasetMismatchError: naming what differs, and what to do.
        :raises PublishError: if that can't be read.
        """
        with storage_errors(f"could not read {self._storage.location(DATASET_FILE)}"):
            content = self._storage.read(DATASET_FILE)
        if content is None:
            return
        try:
            found = msgspec.json.decode(content, type=dict[str, Any])
        except (ValueError, RecursionError) as error:
            raise DatasetMismatchError(
                f"{self._storage.location(DATASET_FILE)} can't be read, so what the dataset holds can't be told: "
                f"{error}"
            ) from error
        different = [
            f"{short(name)} is {short(repr(found.get(name)))}, this export's {self._identity.get(name)!r}"
            for name in dict.fromkeys((*self._identity, *found))
            if found.get(name) != self._identity.get(name)
        ]
        if different:
            more = f"; and {len(different) - _MOST_NAMED} more" if len(different) > _MOST_NAMED else ""
            raise DatasetMismatchError(
                f"the dataset at {self._storage.location()} holds something else: {'; '.join(different[:_MOST_NAMED])}"
                f"{more}. Export to another output_path, or remove the dataset first"
            )

    def published_before(self, query: UsageQuery, run: str, attempt: Attempt) -> PublishedDays | None:
        """
        What the tries before this one, since the first that counts, published in answer to the query.

        :param query: names its organization.
        :return: None unless they published every day of it.
        :raises PublishError: when a manifest can't be read.
        """
        folder = metadata_folder(str(query.org_id), query.group_by)
        found: dict[date, _WholeManifest] = {}
        for day in DayRange(query.start, query.end).days():
            name = f"{folder}/dt={day}.json"
            with storage_errors(f"could not read {self._storage.location(name)}"):
                manifest = _WholeManifest.read(self._storage.read(name))
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
        Make the dataset hold, for each day of the report, exactly its rows: days without rows lose their file.

        :param query: what was asked, for the manifests.
        :param run: names the task instance that exports, whichever its try.
        :param attempt: lets later tries find what this one published, see :meth:`published_before`. To be left out
            for an answer that is not final.
        :raises DatasetMismatchError: see :meth:`check`.
        :raises PublishError: naming the day. Days published before it stay; the export can be run again.
        """
        folder = partition_of(report.org_id, report.group_by)
        self.check()
        rows_of = _rows_by_day(report, self._format)  # before anything is written: not every format takes every report
        # A day to come has no usage yet, which is another thing than a day without.
        days = [day for day in DayRange(report.start, report.end).days() if day <= today() or day in rows_of]
        self._claim()
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

        if self._storage.parallel == 1:
            files = [publish_day(day) for day in days]
        else:
            with ThreadPoolExecutor(self._storage.parallel) as executor:
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
        with storage_errors(f"could not read which changes were reported, in {self._storage.location(folder)}"):
            return ReportedChanges(self._storage, folder).read(days)

    def _claim(self) -> None:
        """Say what the dataset is, if nobody did, and see that it is what this export takes it for."""
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
        before = _Manifest.read(self._storage.read(manifest))
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
                "credits": None if credits is None else plain(credits),
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
    Write a file, or remove it where there is no content, and the manifest that describes it.

    :raises OSError: and whatever else the store raises.
    """
    for write in range(_MOST_WRITES):
        # In step with each other, two exports would go on correcting what both of them write.
        time.sleep(write and random.uniform(0, 0.02 * 2**write))  # noqa: S311
        if content is None:
            storage.remove(file)
        else:
            storage.replace(file, content)
        storage.replace(manifest, description)
        # Another export may have written between the two. Whoever writes last looks after that, so that in the end
        # file and manifest are of one export, whichever it is.
        written = _Manifest.read(storage.read(manifest))
        if written is not None and written.sha256 == checksum(storage.read(file)):
            return
    raise OSError(f"other exports keep writing {storage.location(file)} at the same time")


def partition_of(org_id: str, group_by: str) -> str:
    """
    The folder of an organization's dimension. Foreign text is escaped as Hive does, so that it stays one name.

    :raises ValueError: for an id that is longer than a name can be.
    """
    name = f"org_id={quote(org_id, safe='')}"
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"org_id is too long for the name of a folder: {org_id[:60]!r}...")
    return f"{name}/group_by={group_by}"


def metadata_folder(org_id: str, group_by: str) -> str:
    """The folder of the manifests of an organization's dimension."""
    return f"metadata/{partition_of(org_id, group_by)}"


def _rows_by_day(report: UsageReport, format: Format) -> dict[date, tuple[Sequence[UsageRow], Sequence[Any]]]:
    pairs = zip(report.rows, format.rows(report), strict=True)
    return {
        day: tuple(zip(*group, strict=True))  # type: ignore[misc]  # the rows, and what the format takes for them
        for day, group in groupby(pairs, key=lambda pair: pair[0].date)
    }


def checksum(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


@contextmanager
def storage_errors(what: str | Callable[[], str]) -> Iterator[None]:
    """Whatever a store raises, and each has errors of its own, becomes one that says what could not be done."""
    try:
        yield
    except DatasetMismatchError:
        raise
    except Exception as error:
        message = what if isinstance(what, str) else what()
        raise PublishError(f"{message}: {type(error).__name__}: {error}") from error


def short(text: str) -> str:
    """What somebody else may have written, as it can be logged."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 200 else f"{text[:197]}..."


def json_file(content: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content)) + b"\n"

"""A partitioned dataset of usage: its layout, its publication day by day, and what it says of itself."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import groupby
from typing import Annotated, Any, Final, Self
from urllib.parse import quote

import msgspec

from reducto_provider import __version__
from reducto_provider.export.formats import Format
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
    :param changed: whether the content differs from what was published before; True if nothing was.
    """

    uri: str | None
    day: date | None
    row_count: int
    size: int
    changed: bool

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
    """What the days of a query hold in all; ``credits`` is None when any row has none."""

    row_count: int
    credits: Decimal | None
    request_count: int
    changed: tuple[date, ...]


class _Manifest(msgspec.Struct):
    """What of a day's manifest an export looks at."""

    sha256: str | None
    run: str | None = None
    changed: bool = False

    def is_untold_by(self, run: str | None) -> bool:
        """Whether an earlier try of ``run`` changed the day, and failed before it could tell."""
        return self.changed and run is not None and self.run == run

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

    A day has one file, always of the same name, or none when it had no usage. Its manifest, written after it,
    tells a day without usage from one that was never exported. The dimensions are views of the same usage: they
    lie apart, so that a sum over one never counts twice.
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
        with _storage_errors(f"could not read {self._storage.uri(DATASET_FILE)}"):
            content = self._storage.read(DATASET_FILE)
        if content is None:
            return
        try:
            found = msgspec.json.decode(content, type=dict[str, Any])
        except (ValueError, RecursionError) as error:
            raise DatasetMismatchError(
                f"{self._storage.uri(DATASET_FILE)} can't be read, so what the dataset holds can't be told: {error}"
            ) from error
        different = [
            f"{_short(name)} is {_short(repr(found.get(name)))}, this export's {self._identity.get(name)!r}"
            for name in dict.fromkeys((*self._identity, *found))
            if found.get(name) != self._identity.get(name)
        ]
        if different:
            more = f"; and {len(different) - _MOST_NAMED} more" if len(different) > _MOST_NAMED else ""
            raise DatasetMismatchError(
                f"the dataset at {self._storage.uri()} holds something else: {'; '.join(different[:_MOST_NAMED])}"
                f"{more}. Export to another output_path, or remove the dataset first"
            )

    def published_before(self, query: UsageQuery, run: str, attempt: Attempt) -> PublishedDays | None:
        """
        What the tries before this one, since the first that counts, published in answer to the query.

        :param query: names its organization.
        :return: None unless they published every day of it.
        :raises PublishError: when a manifest can't be read.
        """
        folder = partition_of(str(query.org_id), query.group_by)
        found: dict[date, _WholeManifest] = {}
        for day in DayRange(query.start, query.end).days():
            name = f"metadata/{folder}/dt={day}.json"
            with _storage_errors(f"could not read {self._storage.uri(name)}"):
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
        return PublishedDays(
            row_count=sum(each.row_count for each in found.values()),
            credits=add_credits(None if each.credits is None else Decimal(each.credits) for each in found.values()),
            request_count=sum(each.request_count for each in found.values()),
            changed=tuple(day for day, each in found.items() if each.changed),
        )

    def publish(
        self, report: UsageReport, query: UsageQuery, run: str | None = None, attempt: Attempt | None = None
    ) -> list[PublishedFile]:
        """
        Make the dataset hold, for each day of the report, exactly its rows: days without rows lose their file.

        :param query: what was asked, for the manifests.
        :param run: names the task instance that exports, whichever its try. What an earlier try of it changed
            counts as changed: nobody was told, since that try failed.
        :param attempt: lets later tries find what this one published, see :meth:`published_before`. To be left out
            for an answer that is not final.
        :raises DatasetMismatchError: see :meth:`check`.
        :raises PublishError: naming the day. Days published before it stay; the export can be run again.
        """
        folder = partition_of(report.org_id, report.group_by)
        self.check()
        rows_of = _rows_by_day(report, self._format)  # before anything is written: not every format takes every report
        self._claim()
        done = 0

        def publish_day(day: date) -> PublishedFile:
            nonlocal done
            with _storage_errors(
                lambda: (
                    f"could not publish {day} of {report.org_id} at {self._storage.uri()} ({done} of "
                    f"{len(days)} days are published, each file is whole, and the export can be run again)"
                )
            ):
                published = self._publish_day(folder, day, *rows_of.get(day, ((), ())), query, run, attempt)
            done += 1
            return published

        # A day to come has no usage yet, which is another thing than a day without.
        days = [day for day in DayRange(report.start, report.end).days() if day <= today() or day in rows_of]
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
        return files

    def _claim(self) -> None:
        """Say what the dataset is, if nobody did, and see that it is what this export takes it for."""
        with _storage_errors(f"could not write {self._storage.uri(DATASET_FILE)}"):
            if self._storage.read(DATASET_FILE) is None:
                with suppress(FileExistsError):  # another export was faster
                    self._storage.create(DATASET_FILE, _json_file(self._identity))
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
        before = _Manifest.read(self._storage.read(manifest))
        changed = before is None or before.sha256 != _checksum(content) or before.is_untold_by(run)
        description = _json_file(
            {
                "date": day.isoformat(),
                "file": None if content is None else file,
                "row_count": len(rows),
                "bytes": size,
                "sha256": _checksum(content),
                "credits": None if credits is None else plain(credits),
                "request_count": sum(row.request_count for row in rows),
                "query": query.params(),
                "run": run,
                **({"attempt": {"number": attempt.number, "fingerprint": attempt.fingerprint}} if attempt else {}),
                "changed": changed,
                "package_version": __version__,
                "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        for write in range(_MOST_WRITES):
            # In step with each other, two exports would go on correcting what both of them write.
            time.sleep(write and random.uniform(0, 0.02 * 2**write))  # noqa: S311
            if content is None:
                self._storage.remove(file)
            else:
                self._storage.replace(file, content)
            self._storage.replace(manifest, description)
            # Another export of the day may have written between the two. Whoever writes last looks after that, so
            # that in the end file and manifest are of one export, whichever it is.
            written = _Manifest.read(self._storage.read(manifest))
            if written is not None and written.sha256 == _checksum(self._storage.read(file)):
                break
        else:
            raise OSError(f"other exports of {day} keep writing it at the same time")
        return PublishedFile(
            uri=None if content is None else self._storage.uri(file),
            day=day,
            row_count=len(rows),
            size=size,
            changed=changed,
        )


def publish_object(storage: Storage, format: Format, report: UsageReport) -> PublishedFile:
    """
    Write the whole report as one object at the storage's own location, organization and dimension as columns.

    A format that has no files without rows leaves no object when there are none, also none from before.

    :raises PublishError: what was there before is untouched.
    """
    keys = {"org_id": report.org_id, "group_by": report.group_by}
    content = format.encode(format.rows(report), keys) if report.rows or format.without_rows else None
    size = len(content or b"")
    with _storage_errors(f"could not write usage of {report.org_id} to {storage.uri()}; what was there is untouched"):
        changed = storage.read() != content
        if content is None:
            storage.remove("")
        else:
            storage.replace("", content)
    uri = None if content is None else storage.uri()
    return PublishedFile(uri=uri, day=None, row_count=len(report.rows), size=size, changed=changed)


def partition_of(org_id: str, group_by: str) -> str:
    """
    The folder of an organization's dimension. Foreign text is escaped as Hive does, so that it stays one name.

    :raises ValueError: for an id that is longer than a name can be.
    """
    name = f"org_id={quote(org_id, safe='')}"
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"org_id is too long for the name of a folder: {org_id[:60]!r}...")
    return f"{name}/group_by={group_by}"


def _rows_by_day(report: UsageReport, format: Format) -> dict[date, tuple[Sequence[UsageRow], Sequence[Any]]]:
    pairs = zip(report.rows, format.rows(report), strict=True)
    return {
        day: tuple(zip(*group, strict=True))  # type: ignore[misc]  # the rows, and what the format takes for them
        for day, group in groupby(pairs, key=lambda pair: pair[0].date)
    }


def _checksum(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


@contextmanager
def _storage_errors(what: str | Callable[[], str]) -> Iterator[None]:
    """Whatever a store raises, and each has errors of its own, becomes one that says what could not be done."""
    try:
        yield
    except Exception as error:
        message = what if isinstance(what, str) else what()
        raise PublishError(f"{message}: {type(error).__name__}: {error}") from error


def _short(text: str) -> str:
    """What somebody else may have written, as it can be logged."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _json_file(content: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content)) + b"\n"

"""What every destination of files or tables can do, and which one an export has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from reducto_provider.export.locations import check_output_path

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset

    from reducto_provider.export.formats import Format
    from reducto_provider.usage.query import UsageQuery
    from reducto_provider.usage.report import UsageReport

Filters = Mapping[str, Sequence[str]]
"""The filters of a query: by field, the values."""

Changes = Mapping[tuple[str, str], Collection[tuple[date | None, str]]]
"""By organization and dimension, the days that changed and the ids of their changes. The day of an object is None."""


class DatasetMismatchError(ValueError):
    """The export does not match what the destination holds: its format, compression or filters differ."""


class PublishError(OSError):
    """A destination could not be written or read. Each file is complete: the previous version or the new one."""


class OutdatedReportError(PublishError):
    """Another export has replaced some of the same days since the report was requested. Request it again."""


MAX_REQUESTS: Final = 5
"""How often an export requests a report whose days others keep replacing."""


class PublishedFile(msgspec.Struct, frozen=True, kw_only=True):
    """
    The published state of one day, or of the object of an unpartitioned export.

    :param uri: None if there is no file: a day without usage, or an empty object in a format that allows none. The
        days of a table have the URI of the table.
    :param day: None for an unpartitioned export.
    :param size: in bytes; None for the days of a table.
    :param changed: whether the rows differ from those last reported by a successful run; True if none reported any.
    :param change: the id of the change that produced these rows.
    :param written: False if the destination held the same rows and was left as it was.
    """

    uri: str | None
    day: date | None
    row_count: int
    size: int | None
    changed: bool
    change: str
    written: bool = True

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for XCom."""
        return {
            "uri": self.uri,
            "date": self.day and self.day.isoformat(),
            "row_count": self.row_count,
            "bytes": self.size,
            "changed": self.changed,
        }


class Sink(ABC):
    """
    A destination of usage.

    A task opens it, checks it before it spends a request, publishes each report, and once it has succeeded acknowledges
    the changes it reported. Every method may be called in several threads at once, as a fleet does: a destination may
    then publish several reports together.
    """

    @classmethod
    def check_location(cls, output_path: object) -> str:
        """
        Return ``output_path`` if it can name a destination of this kind.

        :raises ValueError: naming the value and the remedy.
        """
        return check_output_path(output_path)

    @classmethod
    @abstractmethod
    def open(cls, output_path: str, conn_id: str | None, format: Format, filters: Filters) -> Self:
        """
        Return the destination at ``output_path``, see :func:`open_sink`.

        :param output_path: as :meth:`check_location` returned it.
        """

    @property
    @abstractmethod
    def location(self) -> str:
        """The URI with nothing encoded, for people."""

    @property
    @abstractmethod
    def uri(self) -> str:
        """The URI without a connection id, percent-encoded (RFC 3986)."""

    @abstractmethod
    def check(self, query: UsageQuery | None = None, run: str | None = None) -> None:
        """
        Check, before a request is spent, that the export matches what the destination holds.

        :param query: may lack the organization; the report then names it. None for a fleet, which has many.
        :param run: identifies the exporting task instance across its tries.
        :raises DatasetMismatchError: naming the differences and the remedy.
        :raises PublishError: if the destination can't be read.
        """

    @abstractmethod
    def publish(
        self, report: UsageReport, query: UsageQuery, run: str | None = None, requested_on: date | None = None
    ) -> list[PublishedFile]:
        """
        Publish the report: a reader then sees for each of its days exactly its rows.

        :param query: the query of the report.
        :param run: see :meth:`check`.
        :param requested_on: the UTC day of the request, None for today. The days before it were over.
        :return: a file per day, or one for all of them.
        :raises DatasetMismatchError: see :meth:`check`.
        :raises OutdatedReportError: nothing has been published; request the report again, at most
            :data:`MAX_REQUESTS` times.
        :raises PublishError: the export can be run again.
        """

    @abstractmethod
    def acknowledge(self, changes: Changes) -> int:
        """
        Record that a successful run reported ``changes``: later runs need not report them.

        :return: the number of organizations and dimensions left when time ran out. Their changes are reported again.
        """

    @abstractmethod
    def output(self, org_id: str, group_by: str, files: Sequence[PublishedFile] | None) -> OutputDataset | None:
        """
        Return the usage of an organization by a dimension as OpenLineage names it; None if nothing is there.

        :param files: what was published; None if that failed on the way or is not known.
        """

    def describe(self, files: Sequence[PublishedFile]) -> str:
        """Describe what was published, for a log line."""
        empty = sum(file.uri is None for file in files)
        unwritten = sum(not file.written for file in files)
        empty_days = sum(file.uri is None and file.day is not None for file in files)
        size = sum(file.size or 0 for file in files)
        return (
            f"Published {len(files) - empty} files with {size} bytes at {self.location}"
            + (f", and {empty_days} days without usage" if empty_days else "")
            + (f"; {unwritten} days were there and not written again" if unwritten else "")
        )


def choose_sink(output_format: str | None = None, *, partitioned: bool = True) -> type[Sink]:
    """
    Return the kind of destination for an export's arguments.

    :param output_format: ``delta`` for a table, any other or None for files.
    :param partitioned: True for a dataset with a file per day, False for one object.
    :raises ValueError: naming the value and what is allowed.
    """
    if not isinstance(partitioned, bool):  # not a template field: any text would count as True
        raise ValueError(f"partitioned must be True or False, not {partitioned!r}")
    # Imported here, since these modules need this one.
    from reducto_provider.export.formats import TABLE_FORMAT

    if output_format == TABLE_FORMAT:
        if not partitioned:
            raise ValueError(f"partitioned must be True for output_format={TABLE_FORMAT!r}, which is one table")
        from reducto_provider.export.delta.sink import UsageTable

        return UsageTable
    if partitioned:
        from reducto_provider.export.dataset import UsageDataset

        return UsageDataset
    from reducto_provider.export.one_object import UsageObject

    return UsageObject


def open_sink(
    output_path: object, conn_id: str | None, format: Format, filters: Filters, *, partitioned: bool = True
) -> Sink:
    """
    Return the destination of an export. Nothing is read or written yet.

    :param output_path: its location, see :func:`~reducto_provider.export.locations.check_output_path`.
    :param conn_id: the Airflow connection for an object store; ``s3://conn_id@bucket`` takes precedence.
    :param filters: those of the query: a destination holds usage with the same filters only.
    :param partitioned: see :func:`choose_sink`.
    :raises ValueError: if the location can't be used.
    :raises ImportError: naming the extra to install, if a package for the format or the store is missing.
    """
    format.load()
    sink = choose_sink(format.name, partitioned=partitioned)
    return sink.open(sink.check_location(output_path), conn_id, format, filters)


@contextmanager
def storage_errors(what: str | Callable[[], str]) -> Iterator[None]:
    """Translate any error of a store into a :class:`PublishError` that begins with ``what``."""
    try:
        yield
    except (DatasetMismatchError, PublishError):
        raise
    except Exception as error:
        message = what if isinstance(what, str) else what()
        raise PublishError(f"{message}: {type(error).__name__}: {error}") from error


def short(text: str) -> str:
    """Return untrusted text as printable and at most 200 characters, for logs."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 200 else f"{text[:197]}..."

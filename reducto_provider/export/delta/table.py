"""A Delta table of usage: its schema and settings, and commits that replace exactly the rows of some days."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import msgspec

from reducto_provider.export.delta.commits import CommitRecord, Days, ExportRecord, sql_literal
from reducto_provider.export.formats import COLUMNS
from reducto_provider.export.formats.base import ROWS_PER_BATCH
from reducto_provider.export.sink import DatasetMismatchError, Filters, short
from reducto_provider.usage.checks import INVALID_JSON
from reducto_provider.usage.days import DayRange
from reducto_provider.usage.report import CREDITS_SCALE, UsageRow
from reducto_provider.usage.wire import row_order

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

    from reducto_provider.export.delta.location import TableLocation

LAYOUT_VERSION: Final = 1

TABLE_COLUMNS: Final = {**COLUMNS, "org_id": "string", "group_by": "string"}
"""The columns of the table in order, and their types as SQL engines name them."""

_PARTITION_COLUMNS: Final = ["group_by"]
_DELTA_TYPES = {"bigint": "long"}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_BACKTRACE = re.compile(r"\n\s+0: .*", re.DOTALL)
_PINNED = ("reducto.layout_version", "reducto.filters")
_FILTERS = msgspec.json.Decoder(dict[str, list[str]])
_JSON = msgspec.json.Decoder()

# By default, Delta forgets the versions of a table after thirty days.
_RETENTION = "interval 3650 days"
_RETENTIONS = {"delta.logRetentionDuration": _RETENTION, "delta.deletedFileRetentionDuration": _RETENTION}

# What deltalake writes; it refuses other features only when it commits.
_WRITER_VERSIONS = {*range(1, 6), 7}
_WRITER_FEATURES = {
    *("appendOnly", "invariants", "checkConstraints", "changeDataFeed", "generatedColumns", "deletionVectors"),
    *("timestampNtz", "v2Checkpoint"),
}


class ConflictError(Exception):
    """Another commit was faster, and may have changed what this one read: read again and rerun it."""


@dataclass(frozen=True)
class DataFile:
    """A file of the table, and the first and last day of its rows."""

    group_by: str
    first: date
    last: date
    size: int

    def overlaps(self, days: DayRange) -> bool:
        """Return whether it may have rows of these days."""
        return self.first <= days.last and days.first <= self.last


class UsageDeltaTable:
    """
    A version of a Delta table, and what can be done with it.

    :param location: for messages.
    """

    def __init__(self, table: DeltaTable, location: str) -> None:
        self._table = table
        self._location = location

    @classmethod
    def open(cls, uri: str, options: Mapping[str, str], location: str) -> UsageDeltaTable | None:
        """
        Return the newest version of the table, None if there is none.

        :raises DatasetMismatchError: if it can't be read.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:
            with _plain_errors():
                return cls(DeltaTable(uri, storage_options=dict(options)), location)
        except TableNotFoundError:
            return None
        except DeltaError as error:
            raise DatasetMismatchError(
                f"the Delta table at {location} can't be decoded, so what it holds is unknown: {error}. "
                "Export to another output_path, or read it with a newer deltalake"
            ) from error

    @classmethod
    def create(cls, uri: str, options: Mapping[str, str], location: str, filters: Filters) -> UsageDeltaTable:
        """
        Create the table.

        :raises ConflictError: if another export was faster.
        """
        from deltalake import CommitProperties, DeltaTable
        from deltalake.exceptions import DeltaError

        try:
            with _plain_errors():
                table = DeltaTable.create(
                    uri,
                    schema=arrow_schema(),
                    mode="error",
                    partition_by=_PARTITION_COLUMNS,
                    name="reducto_usage",
                    configuration={**_RETENTIONS, **_pins(filters)},
                    raise_if_key_not_exists=False,  # the pinned settings are not Delta's own
                    commit_properties=CommitProperties({"userMetadata": CommitRecord([]).as_text()}),
                    storage_options=dict(options),
                )
        except DeltaError as error:
            raise ConflictError(str(error)) from error
        return cls(table, location)

    @classmethod
    def open_or_create(cls, uri: str, options: Mapping[str, str], location: str, filters: Filters) -> UsageDeltaTable:
        """
        Return the newest version of the table, or create it.

        :raises DatasetMismatchError: if it has other filters, or can't be read.
        :raises ConflictError: if another export was faster.
        """
        table = cls.open(uri, options, location)
        if table is None:
            return cls.create(uri, options, location, filters)
        table.check(filters)
        return table

    @classmethod
    def open_existing(cls, place: TableLocation) -> UsageDeltaTable:
        """
        Return the newest version of a table of usage, with whatever filters.

        :raises FileNotFoundError: if there is no table.
        :raises DatasetMismatchError: if it is not one of usage, or can't be read.
        """
        location = place.storage.location()
        table = cls.open(place.uri, place.options(), location)
        if table is None:
            raise FileNotFoundError(f"there is no Delta table at {location}")
        table.check(table.filters)
        return table

    @property
    def id(self) -> str:
        return str(self._table.metadata().id)

    @property
    def version(self) -> int:
        return self._table.version()

    def update(self) -> None:
        """Go to the newest version."""
        with _plain_errors():
            self._table.update_incremental()

    def check(self, filters: Filters) -> None:
        """
        Check that the table is one of usage with these filters, which this package can write.

        :raises DatasetMismatchError: naming the differences and the remedy.
        """
        if str(self._table.metadata().configuration.get("delta.appendOnly")).lower() == "true":
            raise DatasetMismatchError(
                f"the Delta table at {self._location} has the property delta.appendOnly, which forbids to replace "
                "usage that was restated. Remove the property, or export to another output_path"
            )
        protocol = self._table.protocol()
        unknown = sorted(set(protocol.writer_features or ()) - _WRITER_FEATURES)
        if protocol.min_writer_version not in _WRITER_VERSIONS or unknown:
            needed = f"the features {', '.join(map(short, unknown))} of " if unknown else ""
            raise DatasetMismatchError(
                f"the Delta table at {self._location} needs {needed}writer version {protocol.min_writer_version}, "
                "which this package does not write. Export to another output_path"
            )
        pinned = self._pinned()
        different = [
            f"{name.removeprefix('reducto.')} is {short(_decoded(pinned.get(name)))}, this export's {_decoded(value)}"
            for name, value in _pins(filters).items()
            if pinned.get(name) != value
        ]
        if different:
            raise DatasetMismatchError(
                f"the Delta table at {self._location} holds something else: {'; '.join(different)}. Export to another "
                "output_path, or remove the table first"
            )

    @property
    def filters(self) -> Filters:
        """
        The filters of the usage.

        :raises DatasetMismatchError: if the table is not one of usage that this version of the package reads.
        """
        version, filters = (self._pinned().get(name) for name in _PINNED)
        with suppress(*INVALID_JSON):
            if version == str(LAYOUT_VERSION):
                return _FILTERS.decode(filters or "")
        raise DatasetMismatchError(
            f"the Delta table at {self._location} has layout {short(repr(version))} and filters "
            f"{short(repr(filters))}, which this version of the package can't read"
        )

    def commit_count(self, counter: str) -> int:
        """Return how many commits have counted themselves under this id."""
        return self._table.transaction_version(counter) or 0

    def read_rows(self, days: Sequence[Days]) -> dict[tuple[str, str], dict[date, list[UsageRow]]]:
        """Return the rows of some days in the order of a report, by organization and dimension and by day."""
        found: dict[tuple[str, str], dict[date, list[UsageRow]]] = {}
        for batch in self._scan(predicate=_any_of(days)).to_batches(ROWS_PER_BATCH):
            for row in batch.to_pylist():
                partition = row.pop("org_id"), row.pop("group_by")
                found.setdefault(partition, {}).setdefault(row["date"], []).append(UsageRow(**row))
        for by_day in found.values():
            for rows in by_day.values():
                rows.sort(key=row_order)
        return found

    def days_with_rows(self) -> set[tuple[tuple[str, str], date]]:
        """Return which days of which organizations and dimensions have rows."""
        found = self._scan(columns=["org_id", "group_by", "date"])
        columns = (found[name].to_pylist() for name in ("org_id", "group_by", "date"))
        return {((org_id, group_by), day) for org_id, group_by, day in zip(*columns, strict=True)}

    def file_names(self) -> list[str]:
        """Return the names of the table's data files, relative to its location."""
        import pyarrow as pa

        return [unquote(path) for path in pa.table(self._table.get_add_actions())["path"].to_pylist()]

    def data_files(self) -> list[DataFile]:
        """Return the table's files. Those of other writers that tell no days are left out."""
        import pyarrow as pa

        found = pa.table(self._table.get_add_actions(flatten=True))
        names = ("partition.group_by", "min.date", "max.date", "size_bytes")
        if not set(names) <= set(found.column_names):
            return []
        files = zip(*(found[name].to_pylist() for name in names), strict=True)
        return [DataFile(*values) for values in files if None not in values]

    def compact(self, group_by: str, first: date, last: date) -> None:
        """
        Commit: write the rows of a dimension's days as one file, sorted by organization and day.

        :raises ConflictError: nothing has been committed.
        """
        import pyarrow as pa

        condition = f"group_by = {sql_literal(group_by)} AND date >= '{first}' AND date <= '{last}'"
        found = self._scan(predicate=condition)
        rows = pa.table([_cast(found[field.name], field.type) for field in arrow_schema()], schema=arrow_schema())
        self._commit(rows.sort_by([("org_id", "ascending"), ("date", "ascending")]), condition, CommitRecord([]), {})

    def vacuum(self, keep_days: int | None) -> list[str]:
        """Remove files that no version of the last days needs; None for as long as the table's history is kept."""
        hours = None if keep_days is None else keep_days * 24
        with _plain_errors():
            return self._table.vacuum(hours, dry_run=False, enforce_retention_duration=keep_days is None)

    def replace(self, rows: Sequence[pa.Table], exports: Sequence[ExportRecord], counts: Mapping[str, int]) -> None:
        """
        Commit: replace exactly the rows of the exports' days.

        :param counts: the new count of each counter.
        :raises ConflictError: nothing has been committed.
        """
        import pyarrow as pa

        condition = _any_of([export.days for export in exports])
        self._commit(pa.concat_tables(rows), condition, CommitRecord(list(exports)), counts)

    def _commit(self, rows: pa.Table, condition: str, record: CommitRecord, counts: Mapping[str, int]) -> None:
        from deltalake import CommitProperties, Transaction, WriterProperties, write_deltalake
        from deltalake.exceptions import CommitFailedError

        try:
            with _plain_errors():
                write_deltalake(
                    self._table,
                    rows.select(list(TABLE_COLUMNS)),
                    mode="overwrite",
                    predicate=condition,
                    writer_properties=WriterProperties(compression="ZSTD"),
                    commit_properties=CommitProperties(
                        custom_metadata={"userMetadata": record.as_text()},
                        # Two commits that count themselves under the same id conflict.
                        app_transactions=[Transaction(counter, count) for counter, count in sorted(counts.items())],
                    ),
                )
        except CommitFailedError as error:
            raise ConflictError(str(error)) from error

    def _pinned(self) -> dict[str, str]:
        """
        Return the pinned settings.

        :raises DatasetMismatchError: if the table is not one of usage.
        """
        metadata = self._table.metadata()
        fields = _JSON.decode(self._table.schema().to_json())["fields"]
        found = {str(field["name"]): field["type"] for field in fields}
        expected = {name: _DELTA_TYPES.get(kind, kind) for name, kind in TABLE_COLUMNS.items()}
        pinned = {name: value for name, value in metadata.configuration.items() if name in _PINNED}
        if not pinned or found != expected or metadata.partition_columns != _PARTITION_COLUMNS:
            raise DatasetMismatchError(
                f"the Delta table at {self._location} was made by something else, or changed since: it has the columns "
                f"{short(str(found))} partitioned by {short(str(metadata.partition_columns))}. Export to another "
                "output_path"
            )
        return pinned

    def _scan(self, predicate: str | None = None, columns: list[str] | None = None) -> pa.Table:
        import pyarrow as pa

        with _plain_errors():
            return pa.table(self._table.scan(columns=columns, predicate=predicate))


def arrow_schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {
        "date": pa.date32(),
        "string": pa.string(),
        "bigint": pa.int64(),
        COLUMNS["credits"]: pa.decimal128(38, CREDITS_SCALE),
    }
    return pa.schema([(name, kinds[kind]) for name, kind in TABLE_COLUMNS.items()])


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column with the values as this type."""
    import pyarrow as pa

    try:
        return column.cast(kind)
    except pa.ArrowNotImplementedError:  # pyarrow 16 can't cast views of strings, as deltalake returns them
        return pa.chunked_array([pa.array(column.to_pylist(), kind)])


def _pins(filters: Filters) -> dict[str, str]:
    text = msgspec.json.encode({name: list(filters[name]) for name in sorted(filters)}).decode()
    return dict(zip(_PINNED, (str(LAYOUT_VERSION), text), strict=True))


def _decoded(pin: str | None) -> str:
    """Return a pinned value as it is written in Python, like the arguments of an export."""
    with suppress(*INVALID_JSON):
        return repr(_JSON.decode(pin or ""))
    return repr(pin)


def _any_of(days: Sequence[Days]) -> str:
    return " OR ".join(each.predicate() for each in days)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Put the causes in an error of deltalake on one line, without colours and backtrace."""
    try:
        yield
    except Exception as error:
        text = _BACKTRACE.sub("", _COLOUR.sub("", str(error)))
        error.args = (": ".join(cause for line in text.splitlines() if (cause := line.strip(" ↳"))),)
        raise

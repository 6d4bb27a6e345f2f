"""Exports usage to XCom or to files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.providers.common.compat.sdk import AirflowSkipException, Asset

from reducto_provider import __version__
from reducto_provider.airflow_compat import GivenArguments, call_after_success
from reducto_provider.exceptions import (
    ReductoConfigurationError,
    ReductoDayNotOverError,
    ReductoExportError,
    ReductoFleetError,
    ReductoFleetFailError,
    ReductoReconciliationError,
    typed_errors,
)
from reducto_provider.export.dataset import Attempt
from reducto_provider.export.fleet import (
    describe_failures,
    failures,
    fleet_result,
    is_literal_fleet,
    parse_fleet,
    reported_changes,
)
from reducto_provider.export.focus import PRICE_OPTIONS, parse_literal_terms, parse_terms
from reducto_provider.export.formats import check_format
from reducto_provider.export.storage import check_output_path, split_object_path
from reducto_provider.hooks import event_loop
from reducto_provider.links.studio import ReductoStudioLink
from reducto_provider.operators.fleet import FleetExport
from reducto_provider.run_state import DropsRunState
from reducto_provider.usage.fields import (
    QUERY_FIELDS,
    check_both_days,
    check_literals,
    is_literal,
    is_run_days,
    parse_query,
)
from reducto_provider.usage.query import DIMENSIONS, shown, unmatched_filters
from reducto_provider.usage.reconciliation import reconcile
from reducto_provider.usage.report import json_number, plain
from reducto_provider.usage.window import (
    DayNotOverError,
    DayRange,
    NoDayEndedError,
    check_days_over,
    days_of_run,
    today,
    warn_of_early_run,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset
    from airflow.providers.common.compat.sdk import Context, XComArg
    from airflow.providers.openlineage.extractors import OperatorLineage

    from reducto_provider.export.dataset import PublishedFile
    from reducto_provider.export.fleet import FleetEntry, FleetOutcome
    from reducto_provider.export.focus import BillingTerms
    from reducto_provider.export.formats import Format
    from reducto_provider.export.storage import Storage
    from reducto_provider.hooks.reducto import ReductoHook
    from reducto_provider.usage.query import UsageQuery
    from reducto_provider.usage.report import UsageReport

DEFAULT_MAX_XCOM_BYTES = 48 * 1024
MOST_CONCURRENT = 64
_MOST_SHOWN = 20


class _ReductoUsageOperator(DropsRunState, GivenArguments):
    """What the operators here share: whose usage, of which days, through which connection."""

    run_state = ("hook", "_reports", "_target", "_files", "_fleet", "_reported_changes")

    operator_extra_links = (ReductoStudioLink(),)
    ui_color = "#e4e0f5"

    group_by: str | Sequence[str] = "product"

    # What the task has read, for its lineage. Nothing of it is known at the start: to look the connection up then, in a
    # process that shares the task's channel to Airflow, could hang the task.
    _reports: Sequence[UsageReport] = ()
    _target: tuple[Storage, Format] | None = None

    def __init__(
        self,
        *,
        org_id: str | None = None,
        usage_start_date: date | str | None = None,
        usage_end_date: date | str | None = None,
        lookback_days: int = 0,
        settle_days: int = 0,
        products: str | Sequence[str] | None = None,
        features: str | Sequence[str] | None = None,
        api_keys: str | Sequence[str] | None = None,
        file_types: str | Sequence[str] | None = None,
        reducto_conn_id: str = "reducto_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.org_id = org_id
        self.usage_start_date = usage_start_date
        self.usage_end_date = usage_end_date
        self.lookback_days = lookback_days
        self.settle_days = settle_days
        self.products = products
        self.features = features
        self.api_keys = api_keys
        self.file_types = file_types
        self.reducto_conn_id = reducto_conn_id

    @cached_property
    def hook(self) -> ReductoHook:
        """The hook of ``reducto_conn_id``."""
        from reducto_provider.hooks.reducto import ReductoHook

        return ReductoHook(self.reducto_conn_id)

    def on_kill(self) -> None:
        """End the requests under way. Files under way are written."""
        event_loop.cancel()

    def _query_fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in QUERY_FIELDS}

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """What the task read and wrote, for OpenLineage, which asks after a success and after a failure."""
        from airflow.providers.openlineage.extractors import OperatorLineage

        from reducto_provider.lineage import usage_dataset

        return OperatorLineage(inputs=[usage_dataset(*each) for each in self._asked()], outputs=self._outputs())

    def _asked(self) -> list[tuple[str, str, str]]:
        """What has been read: of which service, which organization, by which dimension."""
        return [(self.hook.settings.base_url, report.org_id, report.group_by) for report in self._reports]

    def _outputs(self) -> list[OutputDataset]:
        return []

    def _check_literals(self) -> None:
        check_literals(self._query_fields())
        self._check_number("lookback_days", 0)
        self._check_number("settle_days", 0)
        if self.usage_start_date is None or is_run_days(self._query_fields()):
            self._check_settle_days()

    def _check_settle_days(self) -> None:
        """See that a day of a run that is left out until it has settled is in reach of a later run."""
        if self.settle_days > self.lookback_days:
            raise ValueError(
                f"lookback_days must be at least settle_days={self.settle_days}, not {self.lookback_days}: a day that "
                "one run leaves out until it has settled is then taken along by a later one"
            )

    def _check_number(self, name: str, least: int, most: int | None = None) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least or (most and value > most):
            raise ValueError(
                f"{name} must be a whole number, {least} {f'to {most}' if most else 'or more'}, not {value!r}"
            )

    def _query(self, context: Context) -> UsageQuery:
        """As :meth:`_query_of_run`, and say so."""
        query = self._query_of_run(context)
        self.log.info(
            "Asking Reducto for usage: %s; through connection %s",
            query,
            self.reducto_conn_id,
        )
        return query

    def _query_of_run(self, context: Context) -> UsageQuery:
        """
        What to ask.

        :raises AirflowSkipException: when no day is left.
        :raises ReductoDayNotOverError: when a retry can ask for the days, and now is too early.
        :raises ValueError: naming the field that can't be right.
        """
        fields = self._query_fields()
        check_both_days(fields)
        day = today()
        if days_of_the_run := fields["usage_start_date"] is None or is_run_days(fields):
            self._check_settle_days()
            fields["usage_start_date"], fields["usage_end_date"] = self._days_of_run(context, day)
        query = parse_query(**fields)
        query = replace(query, start=query.start - timedelta(days=self.lookback_days))
        if query.start > day:
            raise ReductoDayNotOverError(
                f"{self.task_id}: {DayRange(query.start, query.end)} is to come: nothing can have been used before "
                f"{query.start} 00:00 UTC, retry after that"
            )
        if query.end > day:
            self.log.warning("The days after %s are left out: nothing can have been used on them yet", day)
            query = replace(query, end=day)
        if self.settle_days:
            settled = day - timedelta(days=self.settle_days + 1)
            if query.start > settled:
                raise AirflowSkipException(
                    f"no day of {DayRange(query.start, query.end)} is settled: the last one that is, with "
                    f"settle_days={self.settle_days}, is {settled}. lookback_days takes the days before along"
                )
            if query.end > settled:
                self.log.log(
                    logging.INFO if days_of_the_run else logging.WARNING,
                    "The days after %s are left out: with settle_days=%d they have not settled",
                    settled,
                    self.settle_days,
                )
                query = replace(query, end=settled)
        return query

    def _days_of_run(self, context: Context, day: date) -> DayRange:
        try:
            days = days_of_run(context)
            check_days_over(context, day, self.settle_days)
        except NoDayEndedError as error:
            raise AirflowSkipException(str(error)) from error
        except DayNotOverError as error:
            raise ReductoDayNotOverError(f"{self.task_id}: {error}") from error
        if warning := warn_of_early_run(context, day, self.settle_days):
            self.log.warning("%s", warning)
        return days

    def _warn_if_not_final(self, query: UsageQuery) -> None:
        if query.end >= (day := today()):
            self.log.warning("Usage from %s on is not final: it still grows. Export it again when it is over.", day)

    def _warn_if_unmatched(self, query: UsageQuery, row_count: int) -> None:
        if warning := unmatched_filters(query, row_count):
            self.log.warning("%s", warning)

    def _tell_outlets(self, context: Context, summary: dict[str, Any]) -> None:
        """Give the event of each asset that the task produces the summary, for who is started by it."""
        for outlet in self.outlets:
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra = summary

    def _acknowledge(self, changes: Mapping[str, Mapping[date, str]]) -> None:
        """Note that this task has reported ``changes``, of each folder of manifests its days: later ones need not."""
        from reducto_provider.export.reported import acknowledge

        assert self._target is not None  # noqa: S101  # for mypy
        if left := acknowledge(self._target[0], changes):
            self.log.warning("There was no time to note what was reported of %d: it is reported again", left)


class ReductoUsageExportOperator(_ReductoUsageOperator):
    """
    Export the usage of one organization by one dimension: to XCom, or to files in object storage.

    Without dates the days are those that the DAG run covers (:func:`reducto_provider.usage.window.days_of_run`):
    under a daily schedule the day before. Days are UTC days and whole. A range that reaches today is exported as
    it stands and logged as not final; days after today are left out. A run by partition of a day or longer fails, and
    can be retried, until the last day of its partition is over.

    Without ``output_path`` the XCom holds ``org_id``, ``usage_start_date``, ``usage_end_date``, ``group_by``,
    ``row_count``, ``credits``, ``request_count`` and ``rows``; an answer too large for that fails, and nothing is
    cut off. With it, the XCom holds ``files`` instead of ``rows``: for each day its URI (None for a day without
    usage, which has no file), rows, bytes, and whether it changed. Numbers in XCom are for people and branches; in
    the files they are exact. ``credits`` is None for an account whose usage comes without credits.

    A day has changed when its rows differ from those that a task which succeeded has reported last. So a change is
    reported by each run that covers it until one of them succeeds.

    Running it again replaces what it wrote: the same answer gives the same bytes, restated days are replaced and
    emptied ones removed. One task exports one organization: fan out with ``.expand(org_id=...)``.

    An argument that is not named, or is None when the DAG is parsed, is left out and has its default. Any other is
    given: if it comes out as None, an empty list, blank text or the text "None", the task fails at once and asks
    nothing.

    :param org_id: the organization; by default the one of the connection's extra ``org_id``, else the key's own.
    :param usage_start_date: first day, as ``date`` or ``yyyy-mm-dd``; ``"run"`` as both days for those of the run.
    :param usage_end_date: last day, included.
    :param lookback_days: begin so many days earlier, to take in what was restated meanwhile.
    :param settle_days: leave out days that are not final: today, and so many complete days before it, in which
        restatements may still come. Without dates ``lookback_days`` must be at least as much, so that a later run takes
        them along. With no day left the task is skipped; a run by partition fails until all of it has settled. 0, the
        default, leaves out nothing.
    :param group_by: ``product``, ``feature``, ``api_key`` or ``file_type``.
    :param products: only these; one text or several, ``"*"`` for all. Likewise ``features``, ``api_keys`` and
        ``file_types``.
    :param output_path: where files go: a URL, or an absolute path.
    :param output_conn_id: the Airflow connection for the object store.
    :param output_format: ``jsonl``, ``csv``, ``json`` (rows as the service sent them), ``parquet``; or FOCUS 1.2, which
        FinOps tools ingest: ``focus_csv`` or ``focus_parquet``.
    :param compression: of the text formats: ``gzip`` or ``zstd``. Parquet always has zstd.
    :param partitioned: a dataset with a file a day below ``output_path``; False for one object at exactly
        ``output_path``, with ``org_id`` and ``group_by`` as columns.
    :param price_per_credit: for FOCUS alone, and needed there: the list price of one credit, as text, ``Decimal`` or
        number.
    :param contracted_price_per_credit: for FOCUS: what was agreed on instead of the list price.
    :param billing_currency: for FOCUS: the currency of both, as in ISO 4217.
    :param prepaid: for FOCUS: the credits were bought before, so that using them is billed with 0.
    :param billing_account_name: for FOCUS: the organization's name; by default its id.
    :param max_xcom_bytes: the largest result that goes to XCom with its rows.
    :param reducto_conn_id: the Airflow connection of type ``reducto``.
    :raises ValueError: when the DAG is parsed, for a literal argument that can't be right.
    :raises ReductoError: one class per cause, see :mod:`reducto_provider.exceptions`.
    """

    template_fields: Sequence[str] = (
        *QUERY_FIELDS,
        "output_path",
        "output_conn_id",
        "output_format",
        "compression",
        "price_per_credit",
        "contracted_price_per_credit",
        "billing_currency",
        "billing_account_name",
        "reducto_conn_id",
    )

    _files: Sequence[PublishedFile] | None = None

    def __init__(
        self,
        *,
        group_by: str = "product",
        output_path: str | None = None,
        output_conn_id: str | None = None,
        output_format: str = "jsonl",
        compression: str | None = None,
        partitioned: bool = True,
        price_per_credit: str | Decimal | float | None = None,
        contracted_price_per_credit: str | Decimal | float | None = None,
        billing_currency: str = "USD",
        prepaid: bool = False,
        billing_account_name: str | None = None,
        max_xcom_bytes: int = DEFAULT_MAX_XCOM_BYTES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.group_by = group_by
        self.output_path = output_path
        self.output_conn_id = output_conn_id
        self.output_format = output_format
        self.compression = compression
        self.partitioned = partitioned
        self.price_per_credit = price_per_credit
        self.contracted_price_per_credit = contracted_price_per_credit
        self.billing_currency = billing_currency
        self.prepaid = prepaid
        self.billing_account_name = billing_account_name
        self.max_xcom_bytes = max_xcom_bytes
        self.parse_arguments()

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask, write, and return what goes to XCom."""
        with typed_errors(self.task_id):
            self.check_arguments()
            query = self._query(context)
            file_format = self._format(parse_terms(self.output_format, _price_options(self)), query.group_by)
            self._warn_if_not_final(query)
            if self.output_path is None:
                return self._export_to_xcom(query, context)
            return self._export_to_files(query, file_format, context)

    def _check_literals(self) -> None:
        super()._check_literals()
        terms = parse_literal_terms(self.output_format, _price_options(self))
        if is_literal(self.output_format) and is_literal(self.compression):
            self._format(terms)
        if not isinstance(self.partitioned, bool):  # no template: any text would be taken for True
            raise ValueError(f"partitioned must be True or False, not {self.partitioned!r}")
        if self.output_path is not None and is_literal(self.output_path):
            self._check_output_path()
        self._check_number("max_xcom_bytes", 1)

    def _check_output_path(self) -> str:
        path = check_output_path(self.output_path)
        if not self.partitioned:
            split_object_path(path)
        return path

    def _format(self, terms: BillingTerms | None, group_by: str = "product") -> Format:
        if terms is not None and self.output_path is None:
            raise ValueError(f"output_path must be given for output_format={self.output_format!r}, which is for files")
        return check_format(self.output_format, self.compression, terms, group_by)

    def _export_to_xcom(self, query: UsageQuery, context: Context) -> dict[str, Any]:
        report = self._ask(query)
        rows = [
            {
                "date": row.date.isoformat(),
                "group": row.group,
                "credits": None if row.credits is None else json_number(row.credits),
                "request_count": row.request_count,
            }
            for row in report.rows
        ]
        result = {**_summary(report), "rows": rows}
        size = len(msgspec.json.encode(result))
        if size > self.max_xcom_bytes:
            raise ReductoConfigurationError(
                f"{len(rows)} rows make {size} bytes, more than max_xcom_bytes={self.max_xcom_bytes}: set output_path "
                "to export to files, or ask for fewer days"
            )
        self.log.info("The rows go to XCom, %d bytes", size)
        self._tell_outlets(context, _summary(report))
        return result

    def _export_to_files(self, query: UsageQuery, file_format: Format, context: Context) -> dict[str, Any]:
        from reducto_provider.export.dataset import UsageDataset
        from reducto_provider.export.one_object import UsageObject
        from reducto_provider.export.storage import open_storage

        file_format.check_installed()
        path, run = self._check_output_path(), _run_of(context)
        if self.partitioned:
            storage = open_storage(path, self.output_conn_id)
            self._target = (storage, file_format)
            dataset = UsageDataset(storage, file_format, query.filters())
            dataset.check()  # before a request is spent on it
            report = self._ask(query)
            files = dataset.publish(report, query, run=run)
            location, uri = storage.location(), storage.uri()
        else:
            folder, name = split_object_path(path)
            storage = open_storage(folder, self.output_conn_id)
            self._target = (storage, file_format)
            usage_object = UsageObject(storage, name, file_format, query.filters())
            usage_object.check(replace(query, org_id=query.org_id or self.hook.settings.org_id), run)
            report = self._ask(query)
            files = [usage_object.publish(report, run)]
            location, uri = storage.location(name), storage.uri(name)
        self._files = files
        changed = [file.day.isoformat() for file in files if file.day and file.changed]
        empty = sum(file.uri is None for file in files)
        self.log.info(
            "Published %d files with %d bytes at %s%s; %s",
            len(files) - empty,
            sum(file.size for file in files),
            location,
            f", and {empty} days without usage" if empty and self.partitioned else "",
            _what_changed(changed) if self.partitioned or not files[0].changed else "it has changed",
        )
        event = {**_summary(report), "uri": uri, "changed_days": changed}
        self._tell_outlets(context, event if self.partitioned else {**event, "changed": files[0].changed})
        if any(file.changed for file in files):
            call_after_success(self, self._acknowledge_files)
        return {**_summary(report), "files": [file.as_json() for file in files]}

    def _acknowledge_files(self) -> None:
        from reducto_provider.export.dataset import metadata_folder
        from reducto_provider.export.one_object import acknowledge_object

        assert self._target is not None  # noqa: S101  # for mypy
        assert self._files is not None  # noqa: S101
        if self.partitioned:
            [report] = self._reports
            changes = {file.day: file.change for file in self._files if file.day and file.changed}
            self._acknowledge({metadata_folder(report.org_id, report.group_by): changes})
        else:
            [file] = self._files
            acknowledge_object(self._target[0], split_object_path(self._check_output_path())[1], file.change)

    def _outputs(self) -> list[OutputDataset]:
        if self._target is None or not self._reports:
            return []
        from reducto_provider.export.dataset import partition_of
        from reducto_provider.lineage import files_dataset

        storage, file_format = self._target
        if self.partitioned:
            [report] = self._reports
            folder = f"data/{partition_of(report.org_id, report.group_by)}"
            return [files_dataset(storage, folder, file_format.columns(), self._files)]
        if self._files and self._files[0].uri is None:
            return []  # a format that can't be empty has left no object
        _, name = split_object_path(self._check_output_path())
        return [files_dataset(storage, name, file_format.columns("org_id", "group_by"), self._files)]

    def _ask(self, query: UsageQuery) -> UsageReport:
        report = self.hook.get_usage(query)
        self._reports = [report]
        self.log.info(
            "%s used %s credits in %d requests (%d rows)",
            shown(report.org_id),
            "no figure of" if report.credits is None else plain(report.credits),
            report.request_count,
            len(report.rows),
        )
        self._warn_if_unmatched(query, len(report.rows))
        return report


class ReductoUsageFleetExportOperator(_ReductoUsageOperator):
    """
    Export many organizations, by one dimension or several, into one dataset, in one task.

    Each organization's files are those of :class:`ReductoUsageExportOperator`, and so are the days. Up to
    ``concurrency`` organizations are exported at a time; each connection's ``requests_per_second`` is kept by all of
    its organizations together. Memory holds at most ``concurrency`` answers of ``days_per_request`` days.

    One organization's failure stops no other. The task fails in the end if any did, with the result in XCom all the
    same, and is retried unless no retry can mend any of the failures. The next try asks again only for what the tries
    before did not publish, which the days' manifests tell. It asks for everything again once the task was cleared, and
    always for days that were not over.

    The XCom holds ``usage_start_date``, ``usage_end_date``, how many were ``exported`` and ``failed`` (counting each
    dimension of an organization), and ``organizations``: ``org_id``, ``reducto_conn_id``, ``group_by``, ``status``
    (``exported``, ``exported before`` by an earlier try, ``failed``), ``row_count``, ``credits``, ``request_count``,
    ``changed_day_count``, ``changed_days`` (the 31 latest) and ``error``. Those that failed come first, and
    ``organizations_left_out`` counts those beyond ``max_xcom_bytes``.

    :param organizations: ids, or dicts of ``org_id`` and ``reducto_conn_id`` for one with a connection of its own; also
        as JSON text, as templates give it.
    :param output_path: where the dataset is: a URL, or an absolute path.
    :param group_by: ``product``, ``feature``, ``api_key`` or ``file_type``, or several of them. FOCUS takes one.
    :param concurrency: how many organizations are exported at a time, 1 to 64.
    :param days_per_request: a longer range is asked for in parts. The dataset and the totals are the same.
    :param max_xcom_bytes: the largest result.
    :raises ValueError: when the DAG is parsed, for a literal argument that can't be right.
    :raises ReductoFleetError: when some were not exported; :class:`~reducto_provider.exceptions.ReductoFleetFailError`
        when no retry can mend any of them.
    :raises ReductoError: one class per cause, before anything is asked.

    The other parameters are those of :class:`ReductoUsageExportOperator`, but for ``org_id``, ``partitioned`` and
    ``billing_account_name``, which it does not take.
    """

    template_fields: Sequence[str] = (
        "organizations",
        *(name for name in QUERY_FIELDS if name != "org_id"),
        "output_path",
        "output_conn_id",
        "output_format",
        "compression",
        "price_per_credit",
        "contracted_price_per_credit",
        "billing_currency",
        "reducto_conn_id",
    )

    billing_account_name = None  # one for all would be wrong

    _fleet: FleetExport | None = None
    _reported_changes: Mapping[str, Mapping[date, str]] = {}

    def __init__(
        self,
        *,
        organizations: Sequence[str | Mapping[str, str]] | str | XComArg,
        output_path: str,
        group_by: str | Sequence[str] = "product",
        output_conn_id: str | None = None,
        output_format: str = "jsonl",
        compression: str | None = None,
        price_per_credit: str | Decimal | float | None = None,
        contracted_price_per_credit: str | Decimal | float | None = None,
        billing_currency: str = "USD",
        prepaid: bool = False,
        concurrency: int = 8,
        days_per_request: int = 31,
        max_xcom_bytes: int = DEFAULT_MAX_XCOM_BYTES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.organizations = organizations
        self.output_path = output_path
        self.group_by = group_by
        self.output_conn_id = output_conn_id
        self.output_format = output_format
        self.compression = compression
        self.price_per_credit = price_per_credit
        self.contracted_price_per_credit = contracted_price_per_credit
        self.billing_currency = billing_currency
        self.prepaid = prepaid
        self.concurrency = concurrency
        self.days_per_request = days_per_request
        self.max_xcom_bytes = max_xcom_bytes
        self.parse_arguments()

    def execute(self, context: Context) -> dict[str, Any]:
        """Export them all, and return what goes to XCom."""
        from reducto_provider.export.dataset import UsageDataset
        from reducto_provider.export.storage import open_storage

        with typed_errors(self.task_id):
            self.check_arguments()
            entries = parse_fleet(self.organizations, self.group_by, self.reducto_conn_id)
            terms = parse_terms(self.output_format, _price_options(self))
            file_format = self._format(terms, entries)
            file_format.check_installed()
            query = self._query_of_run(context)
            self._warn_if_not_final(query)
            storage = open_storage(check_output_path(self.output_path), self.output_conn_id)
            dataset = UsageDataset(storage, file_format, query.filters())
            dataset.check()  # before a request is spent on it
        self.log.info(
            "Exporting %d organizations and dimensions on %s, %d at a time",
            len(entries),
            DayRange(query.start, query.end),
            self.concurrency,
        )
        self._target = (storage, file_format)
        self._fleet = fleet = FleetExport(
            entries,
            query,
            dataset,
            days_per_request=self.days_per_request,
            concurrency=self.concurrency,
            run=_run_of(context),
            attempt=self._attempt(context, repr(terms)),
            log=self.log.log,
        )
        try:
            outcomes = fleet.run()
        except asyncio.CancelledError:
            raise ReductoExportError(
                f"{self.task_id} was stopped when {len(fleet.outcomes)} of {len(entries)} were done. Each file is "
                "whole, and the next try goes on"
            ) from None
        return self._conclude(query, outcomes, storage, context)

    def _asked(self) -> list[tuple[str, str, str]]:
        return list(dict.fromkeys(self._fleet.asked)) if self._fleet else []

    def _outputs(self) -> list[OutputDataset]:
        if self._target is None:
            return []
        from reducto_provider.export.dataset import partition_of
        from reducto_provider.lineage import files_dataset

        storage, file_format = self._target
        folders = [f"data/{partition_of(org_id, group_by)}" for _, org_id, group_by in self._asked()]
        return [files_dataset(storage, folder, file_format.columns(), None) for folder in folders]

    def _conclude(
        self, query: UsageQuery, outcomes: list[FleetOutcome], storage: Storage, context: Context
    ) -> dict[str, Any]:
        result = fleet_result(query, outcomes, self.max_xcom_bytes)
        failed = failures(outcomes)
        self.log.info(
            "Exported %d of %d at %s, %d of them by an earlier try; %d days changed",
            len(outcomes) - len(failed),
            len(outcomes),
            storage.location(),
            sum(each.status == "exported before" for each in outcomes),
            sum(each.changed_day_count for each in outcomes),
        )
        if not failed:
            self._tell_outlets(context, {**result, "uri": storage.uri()})
            if changes := reported_changes(result, outcomes):
                self._reported_changes = changes
                call_after_success(self, self._acknowledge_fleet)
            return result
        if self.do_xcom_push:
            context["ti"].xcom_push(key="return_value", value=result)
        hopeless = all(each.hopeless for each in failed)
        raise (ReductoFleetFailError if hopeless else ReductoFleetError)(
            f"{self.task_id}: {describe_failures(outcomes)}"
        )

    def _acknowledge_fleet(self) -> None:
        self._acknowledge(self._reported_changes)

    def _attempt(self, context: Context, terms: str) -> Attempt:
        """
        Which try this is. Where it can't be told, what was published before is exported again.

        A retry leaves ``max_tries`` as it is, and a clear sets it to the tries so far and ``retries`` more. Clearing
        a task that is running makes a retry of it, but for ``clear_number``, which counts that too from Airflow 3.3 on.
        """
        ti, retries = context["ti"], self.retries or 0
        first = ti.max_tries - retries + 1 if ti.max_tries >= retries else ti.try_number
        what = (ti.max_tries, retries, getattr(context["dag_run"], "clear_number", None), terms, __version__)
        return Attempt(number=ti.try_number, first=first, fingerprint=repr(what))

    def _query_fields(self) -> dict[str, Any]:
        return {**super()._query_fields(), "group_by": "product"}  # stands for all of them

    def _check_literals(self) -> None:
        if self.org_id is not None:
            raise ValueError(f"org_id must be left out, not {self.org_id!r}: name it in organizations")
        super()._check_literals()
        terms = parse_literal_terms(self.output_format, _price_options(self))
        if is_literal_fleet(self.organizations) and is_literal(self.group_by):
            conn_id = self.reducto_conn_id if is_literal(self.reducto_conn_id) else "any"
            entries = parse_fleet(self.organizations, self.group_by, conn_id)
            if is_literal(self.output_format) and is_literal(self.compression):
                self._format(terms, entries)
        if is_literal(self.output_path):
            check_output_path(self.output_path)
        self._check_number("concurrency", 1, MOST_CONCURRENT)
        self._check_number("days_per_request", 1)
        self._check_number("max_xcom_bytes", 1)

    def _format(self, terms: BillingTerms | None, entries: list[FleetEntry]) -> Format:
        dimensions = list(dict.fromkeys(entry.group_by for entry in entries))
        if terms is not None and len(dimensions) > 1:
            raise ValueError(
                f"group_by must be one dimension for output_format={self.output_format!r}, not {dimensions}: each "
                "restates the same costs"
            )
        return check_format(self.output_format, self.compression, terms, dimensions[0])


class ReductoUsageReconciliationOperator(_ReductoUsageOperator):
    """
    Check that the four dimensions of the same days agree, in credits and in requests.

    They are views of the same usage, so their totals of each day are equal. Days as for
    :class:`ReductoUsageExportOperator`; a day that is not over is left out, since it grows from one question to
    the next. The XCom holds ``org_id``, ``usage_start_date``, ``usage_end_date``, ``credits`` and
    ``request_count``, as all four say.

    The parameters are ``org_id``, the days, ``lookback_days``, ``settle_days``, the filters and ``reducto_conn_id``, as
    of :class:`ReductoUsageExportOperator`.

    :raises ReductoReconciliationError: naming each day that differs, the dimensions' totals and the difference.
    """

    template_fields: Sequence[str] = (*(name for name in QUERY_FIELDS if name != "group_by"), "reducto_conn_id")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parse_arguments()

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask four times, and compare."""
        with typed_errors(self.task_id):
            self.check_arguments()
            return self._reconcile(self._query(context))

    def _reconcile(self, query: UsageQuery) -> dict[str, Any]:
        yesterday = today() - timedelta(days=1)
        if query.start > yesterday:
            raise AirflowSkipException(f"no day of {DayRange(query.start, query.end)} is over yet")
        query = replace(query, end=min(query.end, yesterday))
        reports = {name: self.hook.get_usage(replace(query, group_by=name)) for name in DIMENSIONS}
        self._reports = list(reports.values())
        self._warn_if_unmatched(query, sum(len(report.rows) for report in self._reports))
        if discrepancies := reconcile(reports):
            raise ReductoReconciliationError(
                f"the dimensions of {reports['product'].org_id} do not agree on {len(discrepancies)} figures: "
                + "; ".join(map(str, discrepancies[:_MOST_SHOWN]))
                + ("; ..." if len(discrepancies) > _MOST_SHOWN else "")
            )
        summary = _summary(reports["product"])
        self.log.info("All dimensions agree on %s of %s", DayRange(query.start, query.end), summary["org_id"])
        names = ("org_id", "usage_start_date", "usage_end_date", "credits", "request_count")
        return {name: summary[name] for name in names}


def _price_options(operator: ReductoUsageExportOperator | ReductoUsageFleetExportOperator) -> dict[str, Any]:
    return {name: getattr(operator, name) for name in PRICE_OPTIONS}


def _what_changed(days: Sequence[str]) -> str:
    """The days that changed, in words short enough for a line."""
    if not days:
        return "nothing has changed since it was last reported"
    return f"{len(days)} days have changed, {days[0]} to {days[-1]}" if len(days) > 1 else f"{days[0]} has changed"


def _run_of(context: Context) -> str:
    ti = context["ti"]
    return f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}"


def _summary(report: UsageReport) -> dict[str, Any]:
    return {
        "org_id": report.org_id,
        "usage_start_date": report.start.isoformat(),
        "usage_end_date": report.end.isoformat(),
        "group_by": report.group_by,
        "row_count": len(report.rows),
        "credits": None if report.credits is None else json_number(report.credits),
        "request_count": report.request_count,
    }

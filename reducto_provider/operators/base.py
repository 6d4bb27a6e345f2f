"""Base classes of the operators: organization, days, filters and connection; and where an export goes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from reducto_provider.airflow_compat import (
    AirflowSkipException,
    Asset,
    GivenArguments,
    run_from_context,
)
from reducto_provider.airflow_compat.success import call_after_success
from reducto_provider.exceptions import ReductoDayNotOverError
from reducto_provider.export.focus import PRICE_OPTIONS, parse_literal_terms, parse_terms
from reducto_provider.export.formats import TABLE_FORMAT, check_format
from reducto_provider.export.sink import choose_sink, open_sink
from reducto_provider.hooks import event_loop
from reducto_provider.links.studio import ReductoStudioLink
from reducto_provider.run_state import DropsRunState
from reducto_provider.usage.checks import check_whole_number
from reducto_provider.usage.days import DayRange, NoDayEndedError, today
from reducto_provider.usage.fields import (
    QUERY_FIELDS,
    check_both_days,
    check_literals,
    is_literal,
    is_run_days,
    parse_query,
)
from reducto_provider.usage.partition import DayNotOverError, check_days_over, warn_of_early_run
from reducto_provider.usage.query import unmatched_filters
from reducto_provider.usage.report import json_number
from reducto_provider.usage.window import days_of_run

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    from reducto_provider.airflow_compat import Context
    from reducto_provider.export.focus import BillingTerms
    from reducto_provider.export.formats import Format
    from reducto_provider.export.sink import Changes, Sink
    from reducto_provider.hooks.reducto import ReductoHook
    from reducto_provider.usage.query import UsageQuery
    from reducto_provider.usage.report import UsageReport

DEFAULT_MAX_XCOM_BYTES = 48 * 1024


class BaseQueryOperator(DropsRunState, GivenArguments):
    """Base class of the operators: organization, days, filters and connection."""

    run_state: ClassVar[tuple[str, ...]] = ("hook", "_reports")

    operator_extra_links = (ReductoStudioLink(),)
    ui_color = "#e4e0f5"

    group_by: str | Sequence[str] = "product"

    # What the task has read, for its lineage. Empty at the start: OpenLineage then runs in a process that shares the
    # task's channel to Airflow, where a connection lookup could hang the task.
    _reports: Sequence[UsageReport] = ()

    def __init__(
        self,
        *,
        org_id: str | None = None,
        usage_start_date: date | str | None = None,
        usage_end_date: date | str | None = None,
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
        """Cancel requests in flight. Files being written are completed."""
        event_loop.cancel()

    def _query_fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in QUERY_FIELDS}

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return what the task read and wrote. OpenLineage calls this after a success or a failure."""
        from airflow.providers.openlineage.extractors import OperatorLineage

        from reducto_provider.lineage import usage_dataset

        return OperatorLineage(inputs=[usage_dataset(*each) for each in self._inputs()], outputs=self._outputs())

    def _inputs(self) -> list[tuple[str, str, str]]:
        """Return service, organization and dimension of each report that was read."""
        return [(self.hook.settings.base_url, report.org_id, report.group_by) for report in self._reports]

    def _outputs(self) -> list[OutputDataset]:
        return []

    def _check_literals(self) -> None:
        check_literals(self._query_fields())

    def _warn_if_unmatched(self, query: UsageQuery, row_count: int) -> None:
        if warning := unmatched_filters(query, row_count):
            self.log.warning("%s", warning)


class BaseUsageOperator(BaseQueryOperator):
    """Base class of the operators that read the usage of a run's days."""

    def __init__(self, *, lookback_days: int = 0, settle_days: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lookback_days = lookback_days
        self.settle_days = settle_days

    def _check_literals(self) -> None:
        super()._check_literals()
        check_whole_number("lookback_days", self.lookback_days, 0)
        check_whole_number("settle_days", self.settle_days, 0)
        if self.usage_start_date is None or is_run_days(self._query_fields()):
            self._check_settle_days()

    def _check_settle_days(self) -> None:
        """Check that days left out as unsettled are within the lookback of a later run."""
        if self.settle_days > self.lookback_days:
            raise ValueError(
                f"lookback_days must be at least settle_days={self.settle_days}, not {self.lookback_days}: a day "
                "that one run leaves out as unsettled is otherwise never exported"
            )

    def _query(self, context: Context) -> UsageQuery:
        """Return the query of this run, and log it."""
        query = self._query_of_run(context)
        self.log.info(
            "Requesting usage from Reducto: %s; through connection %s",
            query,
            self.reducto_conn_id,
        )
        return query

    def _query_of_run(self, context: Context) -> UsageQuery:
        """
        Return the query of this run.

        :raises AirflowSkipException: if no day is left.
        :raises ReductoDayNotOverError: if it is too early; a retry can request the days later.
        :raises ValueError: naming the invalid field.
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
                f"{self.task_id}: {DayRange(query.start, query.end)} is in the future: there is no usage before "
                f"{query.start} 00:00 UTC, retry after that"
            )
        if query.end > day:
            self.log.warning("The days after %s are left out: they are in the future", day)
            query = replace(query, end=day)
        if self.settle_days:
            settled = day - timedelta(days=self.settle_days + 1)
            if query.start > settled:
                raise AirflowSkipException(
                    f"no day of {DayRange(query.start, query.end)} has settled: the last settled day, with "
                    f"settle_days={self.settle_days}, is {settled}. Use lookback_days to export the days before"
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
        run = run_from_context(context)
        try:
            days = days_of_run(run)
            check_days_over(run, day, self.settle_days)
        except NoDayEndedError as error:
            raise AirflowSkipException(str(error)) from error
        except DayNotOverError as error:
            raise ReductoDayNotOverError(f"{self.task_id}: {error}") from error
        if warning := warn_of_early_run(run, day, self.settle_days):
            self.log.warning("%s", warning)
        return days

    def _emit_asset_events(self, context: Context, summary: dict[str, Any]) -> None:
        """Attach the summary to the event of each asset outlet, for the DAGs that it triggers."""
        for outlet in self.outlets:
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra = summary


class BaseUsageExportOperator(BaseUsageOperator):
    """Base class of the operators that write files: the arguments that say where to, and the destination."""

    run_state = ("hook", "_reports", "_sink", "_files", "_fleet", "_changes")

    output_path: str | None
    output_conn_id: str | None
    output_format: str
    compression: str | None
    max_xcom_bytes: int
    partitioned: bool = True

    _sink: Sink | None = None
    _changes: Changes | None = None

    def _check_literals(self) -> None:
        super()._check_literals()
        terms = parse_literal_terms(self.output_format, self._price_options())
        if is_literal(self.output_format) and is_literal(self.compression):
            self._check_format(terms)
        sink = choose_sink(self.output_format if is_literal(self.output_format) else None, partitioned=self.partitioned)
        if self.output_path is not None and is_literal(self.output_path):
            sink.check_location(self.output_path)
        check_whole_number("max_xcom_bytes", self.max_xcom_bytes, 1)

    def _price_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in PRICE_OPTIONS}

    def _check_format(self, terms: BillingTerms | None, group_by: str = "product") -> Format:
        if self.output_path is None and (terms is not None or self.output_format == TABLE_FORMAT):
            raise ValueError(f"output_path must be given for output_format={self.output_format!r}, which is for files")
        return check_format(self.output_format, self.compression, terms, group_by)

    def _open_sink(self, query: UsageQuery, group_by: str) -> Sink | None:
        """
        Return the destination, None for an export to XCom. Warn if the query's last day is not over.

        :raises ValueError: naming the invalid argument.
        :raises ImportError: naming the extra to install.
        """
        file_format = self._check_format(parse_terms(self.output_format, self._price_options()), group_by)
        self._warn_if_not_final(query)
        if self.output_path is not None:
            self._sink = open_sink(
                self.output_path, self.output_conn_id, file_format, query.filters(), partitioned=self.partitioned
            )
        return self._sink

    def _warn_if_not_final(self, query: UsageQuery) -> None:
        if query.end >= (day := today()):
            self.log.warning(
                "Usage from %s on is not final: it still grows. Export it again once the day is over.", day
            )

    def _acknowledge_after_success(self, changes: Changes) -> None:
        """Record ``changes`` as reported once Airflow has recorded the success of this task."""
        if changes:
            self._changes = changes
            call_after_success(self, self._acknowledge)

    def _acknowledge(self) -> None:
        assert self._sink is not None  # noqa: S101  # for mypy
        assert self._changes is not None  # noqa: S101
        if left := self._sink.acknowledge(self._changes):
            self.log.warning(
                "Time ran out before the reported changes of %d partitions were recorded: they are reported again", left
            )


def run_key(context: Context) -> str:
    ti = context["ti"]
    return f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}"


def summarize(report: UsageReport) -> dict[str, Any]:
    return {
        "org_id": report.org_id,
        "usage_start_date": report.start.isoformat(),
        "usage_end_date": report.end.isoformat(),
        "group_by": report.group_by,
        "row_count": len(report.rows),
        "credits": None if report.credits is None else json_number(report.credits),
        "request_count": report.request_count,
    }

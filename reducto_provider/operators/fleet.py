"""Export the usage of many organizations into one dataset, in one task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from reducto_provider.airflow_compat import AirflowException, AirflowFailException, redact
from reducto_provider.exceptions import (
    ReductoAuthenticationError,
    ReductoExportError,
    ReductoFleetError,
    ReductoFleetFailError,
    translate_errors,
)
from reducto_provider.export.fleet import (
    FleetEntry,
    FleetOutcome,
    describe_failures,
    failures,
    fleet_result,
    is_literal_fleet,
    parse_fleet,
    reported_changes,
    split_query,
)
from reducto_provider.export.focus import FOCUS_FORMATS
from reducto_provider.export.locations import check_output_path
from reducto_provider.export.sink import MAX_REQUESTS, OutdatedReportError
from reducto_provider.hooks import event_loop
from reducto_provider.operators.base import DEFAULT_MAX_XCOM_BYTES, BaseUsageExportOperator, run_key
from reducto_provider.usage.checks import check_whole_number
from reducto_provider.usage.days import DayRange, today
from reducto_provider.usage.fields import QUERY_FIELDS, is_literal
from reducto_provider.usage.query import unmatched_filters
from reducto_provider.usage.report import UsageReport

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset

    from reducto_provider.airflow_compat import Context, XComArg
    from reducto_provider.export.sink import Sink
    from reducto_provider.hooks.reducto import ReductoHook
    from reducto_provider.usage.query import UsageQuery

MAX_CONCURRENCY = 64

Result = TypeVar("Result")


class ReductoUsageFleetExportOperator(BaseUsageExportOperator):
    """
    Export many organizations, by one or more dimensions, into one dataset, in one task.

    Days and files are those of :class:`ReductoUsageExportOperator`. Up to ``concurrency`` organizations are exported at
    a time; the organizations of a connection share its ``requests_per_second``. Memory holds at most ``concurrency``
    reports of ``days_per_request`` days.

    One organization's failure does not stop the others. If any failed, the task pushes the result to XCom, fails, and
    is retried if any failure is transient. The next try asks for all organizations again, and writes only the days that
    are not there yet or have changed.

    The XCom holds ``usage_start_date``, ``usage_end_date``, how many were ``exported`` and ``failed`` (counting each
    dimension of an organization), and ``organizations``: ``org_id``, ``reducto_conn_id``, ``group_by``, ``status``
    (``exported`` or ``failed``), ``row_count``, ``credits``, ``request_count``, ``changed_day_count``, ``changed_days``
    (the 31 latest) and ``error``. Failed ones come first. ``organizations_left_out`` counts those that did not fit into
    ``max_xcom_bytes``.

    :param organizations: ids, or dicts of ``org_id`` and ``reducto_conn_id`` for those with their own connection; or
        JSON text of such a list, as templates render it.
    :param output_path: the location of the dataset: a URL or an absolute path.
    :param group_by: ``product``, ``feature``, ``api_key`` or ``file_type``, or a list of them. FOCUS accepts only one.
    :param concurrency: how many organizations to export at a time, 1 to 64.
    :param days_per_request: split longer ranges into requests of this many days. Dataset and totals stay the same.
    :param max_xcom_bytes: the maximum size of the XCom result.
    :raises ValueError: when the DAG is parsed, for an invalid literal argument.
    :raises ReductoFleetError: if some exports failed; :class:`~reducto_provider.exceptions.ReductoFleetFailError` if
        all of these failures are permanent.
    :raises ReductoError: one class per cause, before any request.

    The other parameters are those of :class:`ReductoUsageExportOperator`, except ``org_id``, ``partitioned`` and
    ``billing_account_name``, which it does not accept.
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
        """Export all organizations and return the XCom result."""
        with translate_errors(self.task_id):
            self.check_arguments()
            entries = self._entries(self.reducto_conn_id)
            query = self._query_of_run(context)
            sink = self._open_sink(query, entries[0].group_by)
            assert sink is not None  # noqa: S101  # for mypy: output_path is required
            sink.check()  # before a request is spent
        self.log.info(
            "Exporting %d organizations and dimensions on %s, %d at a time",
            len(entries),
            DayRange(query.start, query.end),
            self.concurrency,
        )
        self._fleet = fleet = FleetExport(
            entries,
            query,
            sink,
            days_per_request=self.days_per_request,
            concurrency=self.concurrency,
            run=run_key(context),
            log=self.log.log,
        )
        try:
            outcomes = fleet.run()
        except asyncio.CancelledError:
            raise ReductoExportError(
                f"{self.task_id} was stopped after {len(fleet.outcomes)} of {len(entries)} exports. Each file is "
                "complete, and the next try writes the rest"
            ) from None
        return self._conclude(query, outcomes, sink, context)

    def _inputs(self) -> list[tuple[str, str, str]]:
        return list(dict.fromkeys(self._fleet.sources)) if self._fleet else []

    def _outputs(self) -> list[OutputDataset]:
        if self._sink is None:
            return []
        found = [self._sink.output(org_id, group_by, None) for _, org_id, group_by in self._inputs()]
        return [output for output in found if output]

    def _conclude(
        self, query: UsageQuery, outcomes: list[FleetOutcome], sink: Sink, context: Context
    ) -> dict[str, Any]:
        result = fleet_result(query, outcomes, self.max_xcom_bytes)
        failed = failures(outcomes)
        self.log.info(
            "Exported %d of %d at %s; %d days changed",
            len(outcomes) - len(failed),
            len(outcomes),
            sink.location,
            sum(each.changed_day_count for each in outcomes),
        )
        if not failed:
            self._emit_asset_events(context, {**result, "uri": sink.uri})
            self._acknowledge_after_success(reported_changes(result, outcomes))
            return result
        if self.do_xcom_push:
            context["ti"].xcom_push(key="return_value", value=result)
        permanent = all(each.permanent for each in failed)
        raise (ReductoFleetFailError if permanent else ReductoFleetError)(
            f"{self.task_id}: {describe_failures(outcomes)}"
        )

    def _query_fields(self) -> dict[str, Any]:
        return {**super()._query_fields(), "group_by": "product"}  # a placeholder: each entry has its own

    def _check_literals(self) -> None:
        if self.org_id is not None:
            raise ValueError(f"org_id must be left out, not {self.org_id!r}: name it in organizations")
        if self.output_path is None:
            check_output_path(self.output_path)
        super()._check_literals()
        if is_literal_fleet(self.organizations) and is_literal(self.group_by):
            self._entries(self.reducto_conn_id if is_literal(self.reducto_conn_id) else "any")
        check_whole_number("concurrency", self.concurrency, 1, MAX_CONCURRENCY)
        check_whole_number("days_per_request", self.days_per_request, 1)

    def _entries(self, conn_id: str) -> list[FleetEntry]:
        entries = parse_fleet(self.organizations, self.group_by, conn_id)
        dimensions = list(dict.fromkeys(entry.group_by for entry in entries))
        if self.output_format in FOCUS_FORMATS and len(dimensions) > 1:
            raise ValueError(
                f"group_by must be one dimension for output_format={self.output_format!r}, not {dimensions}: each "
                "restates the same costs"
            )
        return entries


class FleetExport:
    """
    Export organizations into one destination, at most ``concurrency`` at a time, each with one report in memory.

    :param query: the days and filters for each organization.
    :param run: identifies the task instance.
    :param log: called with a level, a message and its arguments.
    """

    def __init__(
        self,
        entries: Sequence[FleetEntry],
        query: UsageQuery,
        sink: Sink,
        *,
        days_per_request: int,
        concurrency: int,
        run: str,
        log: Callable[..., None],
    ) -> None:
        from reducto_provider.hooks.reducto import ReductoHook

        self.outcomes: list[FleetOutcome] = []
        self.sources: list[tuple[str, str, str]] = []
        """Service, organization and dimension of each report that was published."""
        self._entries = entries
        self._query = query
        self._sink = sink
        self._days_per_request = days_per_request
        self._concurrency = concurrency
        self._run = run
        self._log = log
        # One hook per connection, so that its requests share one rate limit.
        self._hooks = {entry.conn_id: ReductoHook(entry.conn_id) for entry in entries}
        self._auth_errors: dict[str, str] = {}

    def run(self) -> list[FleetOutcome]:
        """
        Export all entries. ``outcomes`` is in order of completion, the result in the given order.

        Connection lookups and logging run in the calling thread. An exception raised there ends the export once the
        files being written are complete.

        :raises asyncio.CancelledError: when :func:`~reducto_provider.hooks.event_loop.cancel` ended it.
        """
        with ThreadPoolExecutor(self._concurrency, "reducto-fleet") as self._storage_threads:
            event_loop.run(self._work_all())
        places = {entry: place for place, entry in enumerate(self._entries)}
        return sorted(self.outcomes, key=lambda outcome: places[outcome.entry])

    async def _work_all(self) -> None:
        waiting = iter(self._entries)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._concurrency, len(self._entries))):
                group.create_task(self._work(waiting))

    async def _work(self, waiting: Iterator[FleetEntry]) -> None:
        for entry in waiting:
            outcome = FleetOutcome(entry)
            try:
                with translate_errors(str(entry)):
                    await self._export(entry, outcome)
                query = replace(self._query, org_id=entry.org_id, group_by=entry.group_by)
                if warning := unmatched_filters(query, outcome.row_count):
                    await event_loop.run_aside(self._log, logging.WARNING, "%s", warning)
            except Exception as error:  # noqa: BLE001  # a failure must not stop other organizations
                # Airflow masks secrets in logs, but not in XCom.
                reason = str(redact(f"{type(error).__name__}: {error}"))
                outcome.fail(reason, permanent=isinstance(error, AirflowFailException))
                if not isinstance(error, AirflowException):
                    message = "%s failed with an unexpected error"
                    await event_loop.run_aside(partial(self._log, logging.ERROR, message, entry, exc_info=error))
            self.outcomes.append(outcome)
            level = logging.ERROR if outcome.status == "failed" else logging.INFO
            await event_loop.run_aside(
                self._log, level, "%d of %d: %s", len(self.outcomes), len(self._entries), outcome
            )

    async def _export(self, entry: FleetEntry, outcome: FleetOutcome) -> None:
        hook = self._hooks[entry.conn_id]
        settings = await hook.aget_settings()
        query = replace(self._query, org_id=entry.org_id, group_by=entry.group_by)
        async with hook:
            for part in split_query(query, self._days_per_request):
                await self._request_until_published(hook, part, outcome)
                self.sources.append((settings.base_url, entry.org_id, entry.group_by))

    async def _request_until_published(self, hook: ReductoHook, query: UsageQuery, outcome: FleetOutcome) -> None:
        for _ in range(MAX_REQUESTS - 1):
            try:
                await self._request_and_publish(hook, query, outcome)
                return
            except OutdatedReportError as error:
                await event_loop.run_aside(self._log, logging.WARNING, "%s: requesting again", error)
        await self._request_and_publish(hook, query, outcome)

    async def _request_and_publish(self, hook: ReductoHook, query: UsageQuery, outcome: FleetOutcome) -> None:
        requested_on = today()  # before the request: the day may end meanwhile
        report = await self._request(hook, query)
        files = await self._in_thread(self._sink.publish, report, query, self._run, requested_on)
        outcome.add(report, files)

    async def _request(self, hook: ReductoHook, query: UsageQuery) -> UsageReport:
        if auth_error := self._auth_errors.get(hook.reducto_conn_id):
            raise ReductoAuthenticationError(auth_error)
        try:
            return await hook.aget_usage(query)
        except ReductoAuthenticationError as error:
            # All organizations of the connection share the key: do not try it again.
            self._auth_errors[hook.reducto_conn_id] = str(error)
            raise

    async def _in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._storage_threads, partial(function, *arguments))

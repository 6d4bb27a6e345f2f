"""Export the usage of one organization to XCom or to files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from reducto_provider.exceptions import ReductoConfigurationError, translate_errors
from reducto_provider.export.sink import MAX_REQUESTS, OutdatedReportError
from reducto_provider.operators.base import DEFAULT_MAX_XCOM_BYTES, BaseUsageExportOperator, run_key, summarize
from reducto_provider.usage.days import today
from reducto_provider.usage.fields import QUERY_FIELDS
from reducto_provider.usage.query import printable
from reducto_provider.usage.report import format_decimal, json_number

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset

    from reducto_provider.airflow_compat import Context
    from reducto_provider.export.sink import PublishedFile, Sink
    from reducto_provider.usage.query import UsageQuery
    from reducto_provider.usage.report import UsageReport


class ReductoUsageExportOperator(BaseUsageExportOperator):
    """
    Export the usage of one organization by one dimension: to XCom, or to files in object storage.

    By default it exports the days that the DAG run covers (:func:`reducto_provider.usage.window.days_of_run`): the day
    before, under a daily schedule. Days are whole UTC days. A range that reaches today is exported as it is and logged
    as not final; days after today are left out. A run of a partition of a day or longer fails, and can be retried,
    until the last day of its partition is over.

    Without ``output_path`` the XCom holds ``org_id``, ``usage_start_date``, ``usage_end_date``, ``group_by``,
    ``row_count``, ``credits``, ``request_count`` and ``rows``. The task fails if that is too large; nothing is
    truncated. With ``output_path`` the XCom holds ``files`` instead of ``rows``: for each day its URI (None for a day
    without usage, which has no file), rows, bytes, and whether it changed. Numbers in XCom are for people and branches;
    those in files are exact. ``credits`` is None for an account without credits.

    A day has changed if its rows differ from those last reported by a successful task. Each run that covers a change
    reports it, until one of them succeeds.

    Running it again replaces what it wrote: the same answer gives the same bytes, restated days are replaced, and
    files of days that lost their usage are removed. One task exports one organization: fan out with
    ``.expand(org_id=...)``.

    An argument that is omitted, or is None when the DAG is parsed, has its default. If any other argument renders to
    None, an empty list, blank text or the text "None", the task fails at once, without a request.

    :param org_id: the organization; by default the connection's extra ``org_id``, else that of the key.
    :param usage_start_date: first day, as ``date`` or ``yyyy-mm-dd``; ``"run"`` for both dates means the run's days.
    :param usage_end_date: last day, included.
    :param lookback_days: also export this many days before the first day, to pick up restatements.
    :param settle_days: leave out today and this many complete days before it, which may still be restated. Without
        dates ``lookback_days`` must be at least as large, so that a later run exports these days. The task is skipped
        if no day is left; a run of a partition fails until all of it has settled. 0, the default, leaves out nothing.
    :param group_by: ``product``, ``feature``, ``api_key`` or ``file_type``.
    :param products: export only these: one text or a list, ``"*"`` for all. Likewise ``features``, ``api_keys`` and
        ``file_types``.
    :param output_path: the location of the files: a URL or an absolute path.
    :param output_conn_id: the Airflow connection for the object store.
    :param output_format: ``jsonl``, ``csv``, ``json`` (rows as the service sent them), ``parquet``; ``delta`` for one
        Delta table; or FOCUS 1.2, which FinOps tools ingest: ``focus_csv`` or ``focus_parquet``.
    :param compression: of the text formats: ``gzip`` or ``zstd``. Parquet and Delta always have zstd.
    :param partitioned: True for a dataset below ``output_path`` with a file per day; False for one object at exactly
        ``output_path``, with ``org_id`` and ``group_by`` as columns.
    :param price_per_credit: required for FOCUS, and only allowed there: the list price of one credit, as text,
        ``Decimal`` or number.
    :param contracted_price_per_credit: for FOCUS: the agreed price, if it is not the list price.
    :param billing_currency: for FOCUS: the currency of both prices, as in ISO 4217.
    :param prepaid: for FOCUS: whether the credits were bought in advance, so that their use is billed with 0.
    :param billing_account_name: for FOCUS: the organization's name; by default its id.
    :param max_xcom_bytes: the maximum size of an XCom result with rows.
    :param reducto_conn_id: the Airflow connection of type ``reducto``.
    :raises ValueError: when the DAG is parsed, for an invalid literal argument.
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
        """Get the usage, write it, and return the XCom result."""
        with translate_errors(self.task_id):
            self.check_arguments()
            query = self._query(context)
            sink = self._open_sink(query, query.group_by)
            if sink is None:
                return self._export_to_xcom(query, context)
            return self._export_to_sink(query, sink, context)

    def _export_to_xcom(self, query: UsageQuery, context: Context) -> dict[str, Any]:
        report = self._request(query)
        rows = [
            {
                "date": row.date.isoformat(),
                "group": row.group,
                "credits": None if row.credits is None else json_number(row.credits),
                "request_count": row.request_count,
            }
            for row in report.rows
        ]
        result = {**summarize(report), "rows": rows}
        size = len(msgspec.json.encode(result))
        if size > self.max_xcom_bytes:
            raise ReductoConfigurationError(
                f"{len(rows)} rows make {size} bytes, more than max_xcom_bytes={self.max_xcom_bytes}: set output_path "
                "to export to files, or ask for fewer days"
            )
        self.log.info("The rows go to XCom, %d bytes", size)
        self._emit_asset_events(context, summarize(report))
        return result

    def _export_to_sink(self, query: UsageQuery, sink: Sink, context: Context) -> dict[str, Any]:
        run = run_key(context)
        # Before a request is spent.
        sink.check(replace(query, org_id=query.org_id or self.hook.settings.org_id), run)
        report, files = self._request_and_publish(query, sink, run)
        self._files = files
        self.log.info("%s; %s", sink.describe(files), _describe_changes(files))
        event = {
            **summarize(report),
            "uri": sink.uri,
            "changed_days": [file.day.isoformat() for file in files if file.day and file.changed],
        }
        if files and files[0].day is None:
            event["changed"] = files[0].changed
        self._emit_asset_events(context, event)
        if changes := [(file.day, file.change) for file in files if file.changed]:
            self._acknowledge_after_success({(report.org_id, report.group_by): changes})
        return {**summarize(report), "files": [file.as_json() for file in files]}

    def _request_and_publish(self, query: UsageQuery, sink: Sink, run: str) -> tuple[UsageReport, list[PublishedFile]]:
        for _ in range(MAX_REQUESTS - 1):
            try:
                return self._request_and_publish_once(query, sink, run)
            except OutdatedReportError as error:
                self.log.warning("%s: requesting again", error)
        return self._request_and_publish_once(query, sink, run)

    def _request_and_publish_once(
        self, query: UsageQuery, sink: Sink, run: str
    ) -> tuple[UsageReport, list[PublishedFile]]:
        requested_on = today()  # before the request: the day may end meanwhile
        report = self._request(query)
        return report, sink.publish(report, query, run, requested_on)

    def _outputs(self) -> list[OutputDataset]:
        if self._sink is None or not self._reports:
            return []
        [report] = self._reports
        output = self._sink.output(report.org_id, report.group_by, self._files)
        return [output] if output else []

    def _request(self, query: UsageQuery) -> UsageReport:
        report = self.hook.get_usage(query)
        self._reports = [report]
        self.log.info(
            "%s used %s credits in %d requests (%d rows)",
            printable(report.org_id),
            "an unknown number of" if report.credits is None else format_decimal(report.credits),
            report.request_count,
            len(report.rows),
        )
        self._warn_if_unmatched(query, len(report.rows))
        return report


def _describe_changes(files: Sequence[PublishedFile]) -> str:
    """Describe what changed, for a log line."""
    days = [file.day for file in files if file.changed]
    if not days:
        return "nothing has changed since it was last reported"
    if days == [None]:
        return "it has changed"
    return f"{len(days)} days have changed, {days[0]} to {days[-1]}" if len(days) > 1 else f"{days[0]} has changed"

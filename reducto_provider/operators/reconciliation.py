"""Check that the dimensions of the same usage agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSkipException

from reducto_provider.exceptions import (
    ReductoReconciliationError,
    translate_errors,
)
from reducto_provider.operators.base import BaseUsageOperator, summarize
from reducto_provider.usage.days import DayRange, today
from reducto_provider.usage.fields import (
    QUERY_FIELDS,
)
from reducto_provider.usage.query import DIMENSIONS
from reducto_provider.usage.reconciliation import reconcile

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from reducto_provider.usage.query import UsageQuery

_MAX_SHOWN = 20


class ReductoUsageReconciliationOperator(BaseUsageOperator):
    """
    Check that the four dimensions of the same days agree, in credits and in requests.

    They are views of the same usage, so their daily totals must be equal. The days are those of
    :class:`ReductoUsageExportOperator`, without a day that is not over: its usage grows between requests. The XCom
    holds ``org_id``, ``usage_start_date``, ``usage_end_date``, ``credits`` and ``request_count``, on which all four
    agree.

    The parameters are ``org_id``, the days, ``lookback_days``, ``settle_days``, the filters and ``reducto_conn_id`` of
    :class:`ReductoUsageExportOperator`.

    :raises ReductoReconciliationError: naming each day that differs, the dimensions' totals and the difference.
    """

    template_fields: Sequence[str] = (*(name for name in QUERY_FIELDS if name != "group_by"), "reducto_conn_id")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parse_arguments()

    def execute(self, context: Context) -> dict[str, Any]:
        """Get the usage by each dimension and compare the totals."""
        with translate_errors(self.task_id):
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
                + "; ".join(map(str, discrepancies[:_MAX_SHOWN]))
                + ("; ..." if len(discrepancies) > _MAX_SHOWN else "")
            )
        summary = summarize(reports["product"])
        self.log.info("All dimensions agree on %s of %s", DayRange(query.start, query.end), summary["org_id"])
        names = ("org_id", "usage_start_date", "usage_end_date", "credits", "request_count")
        return {name: summary[name] for name in names}

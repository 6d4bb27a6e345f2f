"""Base class of the operators that compare usage with a budget before work begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from reducto_provider.airflow_compat import run_from_context
from reducto_provider.exceptions import ReductoError, translate_errors
from reducto_provider.operators.base import BaseQueryOperator
from reducto_provider.usage.checks import check_bool, check_choice
from reducto_provider.usage.fields import QUERY_FIELDS, is_literal
from reducto_provider.usage.report import Metric, json_number
from reducto_provider.usage.threshold import METRICS, UsageThreshold, check_one_window, parse_threshold
from reducto_provider.usage.window import check_window

if TYPE_CHECKING:
    from reducto_provider.airflow_compat import Context

UnknownAction = Literal["fail", "allow", "block"]

UNKNOWN_ACTIONS: Final = get_args(UnknownAction)


@dataclass(frozen=True)
class BudgetDecision:
    """
    Whether a budget has room.

    :param reading: as JSON; None if the usage is unknown.
    :param message: for the log, and for the error or the skip that follows.
    :param error: why the usage is unknown.
    """

    decision: Literal["within", "exceeded", "unknown"]
    message: str
    reserve: int | float
    reading: dict[str, Any] | None = None
    error: ReductoError | None = None

    @classmethod
    def unknown(cls, error: ReductoError, reserve: int | float) -> BudgetDecision:
        return cls("unknown", f"usage unknown: {error}", reserve, error=error)


class BaseBudgetOperator(BaseQueryOperator):
    """Base class of the operators that compare usage with a budget before work begins."""

    template_fields: Sequence[str] = ("budget", "reserve", "window", *QUERY_FIELDS, "reducto_conn_id")

    def __init__(
        self,
        *,
        budget: float | Decimal | str,
        reserve: float | Decimal | str = 0,
        metric: Metric = "credits",
        window: str | int = "month",
        per_group: bool = False,
        projected: bool = False,
        group_by: str = "product",
        on_unknown: UnknownAction = "fail",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.budget = budget
        self.reserve = reserve
        self.metric = metric
        self.window = window
        self.per_group = per_group
        self.projected = projected
        self.group_by = group_by
        self.on_unknown = on_unknown

    def _check_literals(self) -> None:
        super()._check_literals()
        for name in ("budget", "reserve"):
            if is_literal(getattr(self, name)):
                parse_threshold(getattr(self, name), name)
        if is_literal(self.window):
            check_one_window(check_window(self.window), self.usage_start_date)
        for name, allowed in self._choices.items():
            check_choice(name, getattr(self, name), allowed)
        for name in ("per_group", "projected"):
            check_bool(name, getattr(self, name))

    @property
    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {"metric": METRICS, "on_unknown": UNKNOWN_ACTIONS}

    def _condition(self, context: Context, moment: datetime) -> UsageThreshold:
        """Return the query for the window that holds ``moment``."""
        return UsageThreshold.from_run(
            lambda: run_from_context(context),
            window=self.window,
            threshold=parse_threshold(self.budget, "budget"),
            metric=self.metric,
            per_group=self.per_group,
            projected=self.projected,
            moment=moment,
            **self._query_fields(),
        )

    def _decide(
        self, context: Context, condition: UsageThreshold, reserve: Decimal, moment: datetime
    ) -> BudgetDecision:
        """
        Request the usage, and compare it with the budget.

        :raises ReductoError: unless it is transient, and ``on_unknown`` decides what follows.
        :raises ValueError: if the window has not begun.
        """
        if (query := condition.query_at(moment)) is None:
            raise ValueError(f"{condition.window} has not begun: give the days of a window that holds today")
        try:
            with translate_errors(self.task_id):
                report = self.hook.get_usage(query)
                reading = condition.read(report, moment)
        except ReductoError as error:
            decision = BudgetDecision.unknown(error, json_number(reserve))
            if not error.transient or self.on_unknown == "fail":
                self._publish(context, decision, "fail", warn=True)
                raise
            return decision
        self._reports = [report]
        self._warn_if_unmatched(query, len(report.rows))
        return BudgetDecision(
            "within" if reading.has_room_for(reserve) else "exceeded",
            reading.describe_room(reserve),
            json_number(reserve),
            reading.as_json(),
        )

    def _publish(self, context: Context, decision: BudgetDecision, action: str, *, warn: bool = False) -> None:
        """Log a decision and push it to XCom, before the task skips, fails or waits, when it returns nothing."""
        (self.log.warning if warn else self.log.info)("%s; %s", decision.message, action)
        if self.do_xcom_push:
            content = {
                "decision": decision.decision,
                "action": action,
                "reserve": decision.reserve,
                "reading": decision.reading,
                "error": None if decision.error is None else str(decision.error),
            }
            context["ti"].xcom_push(key="return_value", value=content)

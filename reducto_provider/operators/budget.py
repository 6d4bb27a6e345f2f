"""Let work begin only within a budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, get_args

from reducto_provider.airflow_compat import AirflowSkipException, SkippingBranchMixIn, is_from_mapped, run_from_context
from reducto_provider.exceptions import (
    ReductoBudgetExceededError,
    ReductoError,
    ReductoTriggerEventError,
    error_by_name,
    translate_errors,
)
from reducto_provider.operators.base import BaseQueryOperator
from reducto_provider.triggers.polls import delay_after, utc_minute
from reducto_provider.usage.checks import check_bool, check_choice, check_seconds
from reducto_provider.usage.fields import QUERY_FIELDS, is_literal
from reducto_provider.usage.report import Metric, json_number
from reducto_provider.usage.threshold import METRICS, Reading, UsageThreshold, check_one_window, parse_threshold
from reducto_provider.usage.window import CALENDAR_WINDOWS, check_window

if TYPE_CHECKING:
    from reducto_provider.airflow_compat import Context

ExceededAction = Literal["skip", "fail", "wait", "warn"]
UnknownAction = Literal["fail", "allow", "block"]

EXCEEDED_ACTIONS: Final = get_args(ExceededAction)
UNKNOWN_ACTIONS: Final = get_args(UnknownAction)


@dataclass(frozen=True)
class _Decision:
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
    def unknown(cls, error: ReductoError, reserve: int | float) -> _Decision:
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

    def _decide(self, context: Context, condition: UsageThreshold, reserve: Decimal, moment: datetime) -> _Decision:
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
            decision = _Decision.unknown(error, json_number(reserve))
            if not error.transient or self.on_unknown == "fail":
                self._publish(context, decision, "fail", warn=True)
                raise
            return decision
        self._reports = [report]
        self._warn_if_unmatched(query, len(report.rows))
        return _Decision(
            "within" if reading.has_room_for(reserve) else "exceeded",
            reading.describe_room(reserve),
            json_number(reserve),
            reading.as_json(),
        )

    def _publish(self, context: Context, decision: _Decision, action: str, *, warn: bool = False) -> None:
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


class ReductoBudgetGateOperator(BaseBudgetOperator):
    """
    Let the tasks that follow run only while usage and a reserve are within a budget.

    Within is ``value + reserve <= budget``, decided on all digits. Otherwise ``on_exceeded`` decides:

    =========  ====================================================================================================
    ``skip``   the gate is skipped, and the tasks that follow act on their trigger rules
    ``fail``   the gate fails at once, without retries
    ``wait``   the gate is deferred until the budget of a later month, week or day has room. It holds no worker and
               does not poll: shortly after the window turns, it requests the new one. ``execution_timeout`` and the
               DAG's ``dagrun_timeout`` limit the wait
    ``warn``   the gate succeeds with a warning, to try out a budget
    =========  ====================================================================================================

    Calendar and trailing windows are those that hold the moment of the request, not the run's: a late or cleared run
    decides on the usage of now. Days are UTC days.

    Transient errors (408, 425, 429, 5xx, an HTML page, no whole answer), after the connection's attempts, leave the
    usage unknown, and ``on_unknown`` decides: ``fail`` raises the error, for Airflow's retries; ``allow`` lets the
    work begin; ``block`` acts as ``on_exceeded``, but under ``wait`` requests again every ``poke_interval``. Any other
    error fails the gate, whatever ``on_unknown``.

    The XCom, pushed before the gate skips, fails or waits, has ``decision`` (``within``, ``exceeded``, ``unknown``),
    ``action`` (``continue`` or one of ``on_exceeded``), ``reserve``, ``reading`` (as of the threshold sensor, with the
    budget for its threshold) and ``error``.

    An argument that is given and comes out as nothing fails the gate: never no limit, and never nothing allowed.

    :param budget: 0 or more, less than 1e18; templated.
    :param reserve: what the work behind the gate will need; with ``per_group`` added to each group; templated.
    :param metric: ``credits`` or ``requests``.
    :param window: ``month`` (the default), ``week`` (from Monday) or ``day``: the calendar period, in UTC days, of the
        moment of the request; a whole number N: the N days that end with that moment's; ``run``: the days that the run
        covers. ``on_exceeded="wait"`` needs one of the first three.
    :param usage_start_date: first day of an explicit window, instead of ``window``.
    :param usage_end_date: its last day, included.
    :param per_group: compare each group of ``group_by`` with the budget, instead of their sum.
    :param projected: compare the projected usage of the whole window, as the threshold sensor does.
    :param on_exceeded: ``skip``, ``fail``, ``wait`` or ``warn``.
    :param on_unknown: ``fail``, ``allow`` or ``block``.
    :param poke_interval: seconds between queries while the usage is unknown, with ``wait`` and ``block``.
    :param org_id: the organization; by default the one of the connection's extra ``org_id``, else the key's own.
    :param group_by: ``product``, ``feature``, ``api_key`` or ``file_type``.
    :param products: only these; one text or several, ``"*"`` for all. Likewise ``features``, ``api_keys`` and
        ``file_types``.
    :param reducto_conn_id: the Airflow connection of type ``reducto``.
    :raises ReductoBudgetExceededError: over the budget, with ``on_exceeded="fail"``.
    :raises ValueError: when the DAG is parsed, for a literal argument that can't be right.
    """

    def __init__(
        self, *, on_exceeded: ExceededAction = "skip", poke_interval: timedelta | float = 300, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.on_exceeded = on_exceeded
        self.poke_interval = poke_interval
        self.parse_arguments()

    def execute(self, context: Context) -> None:
        """Request once, and go on, skip, fail or wait."""
        with translate_errors(self.task_id):
            self.check_arguments()
            moment = datetime.now(UTC)
            reserve = parse_threshold(self.reserve, "reserve")
            condition = self._condition(context, moment)
            self._check_turn()
            self._check_room(reserve, condition.threshold)
            decision = self._decide(context, condition, reserve, moment)
            if self._passes(context, decision):
                return
        self._defer(condition, reserve, self._next_poll(condition, decision), moment)

    def execute_complete(self, context: Context, event: Any = None) -> None:
        """Go on, or raise the error that ended the wait."""
        try:
            match event:
                case {"status": "within", "reading": dict(reading), "reserve": int() | float() as reserve}:
                    # The triggerer decided on all digits; JSON numbers do not have them all.
                    read = Reading.from_json(reading).with_reserve(Decimal(str(reserve)))
                    message = f"{read}: within the budget, as the triggerer saw"
                    self._publish(context, _Decision("within", message, reserve, reading), "continue")
                    return
                case {
                    "status": "unknown" | "error" as status,
                    "error": str(name),
                    "message": str(message),
                    "reserve": int() | float() as reserve,
                }:
                    failure = error_by_name(name, message)
                    is_allowed = status == "unknown" and self.on_unknown == "allow"
                    action = "continue" if is_allowed else "fail"
                    self._publish(context, _Decision.unknown(failure, reserve), action, warn=True)
                    if not is_allowed:
                        raise failure
                    return
        except (ValueError, ArithmeticError) as error:
            raise ReductoTriggerEventError(f"the trigger's event can't be read: {error}") from error
        raise ReductoTriggerEventError(f"the trigger's event is invalid: {event!r:.200}")

    @property
    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {**super()._choices, "on_exceeded": EXCEEDED_ACTIONS}

    def _check_literals(self) -> None:
        super()._check_literals()
        check_seconds("poke_interval", self.poke_interval, positive=True)
        if self.usage_start_date is not None or is_literal(self.window):
            self._check_turn()
        if is_literal(self.reserve) and is_literal(self.budget):
            self._check_room(parse_threshold(self.reserve, "reserve"), parse_threshold(self.budget, "budget"))

    @property
    def _seconds(self) -> float:
        return check_seconds("poke_interval", self.poke_interval, positive=True)

    def _check_turn(self) -> None:
        """Check that a wait has a next window."""
        if self.on_exceeded != "wait" or (self.usage_start_date is None and self.window in CALENDAR_WINDOWS):
            return
        given = f"window={self.window!r}" if self.usage_start_date is None else "usage_start_date"
        raise ValueError(
            f"on_exceeded='wait' needs window='month', 'week' or 'day', not {given}: no later window comes"
        )

    def _check_room(self, reserve: Decimal, budget: Decimal) -> None:
        """Check that a wait can end."""
        if self.on_exceeded == "wait" and reserve > budget:
            raise ValueError(f"reserve={reserve} is more than budget={budget}: no window will have room for it")

    def _passes(self, context: Context, decision: _Decision) -> bool:
        """
        Publish a decision and what follows from it, and return whether the work may begin, else whether to wait.

        :raises AirflowSkipException: or an error, if that follows.
        """
        if decision.decision == "within" or (decision.decision == "unknown" and self.on_unknown == "allow"):
            self._publish(context, decision, "continue", warn=decision.decision == "unknown")
            return True
        action = "continue" if self.on_exceeded == "warn" else self.on_exceeded
        self._publish(context, decision, action, warn=self.on_exceeded == "warn" or decision.error is not None)
        if self.on_exceeded == "skip":
            raise AirflowSkipException(decision.message)
        if self.on_exceeded == "fail":
            raise ReductoBudgetExceededError(decision.message)
        return self.on_exceeded == "warn"

    def _next_poll(self, condition: UsageThreshold, decision: _Decision) -> float:
        """Return when to request again, in seconds since the epoch."""
        from reducto_provider.triggers.budget import turn_of_window

        if decision.error is not None:
            return time.time() + delay_after(decision.error, self._seconds)
        return turn_of_window(self.reducto_conn_id, condition)

    def _defer(self, condition: UsageThreshold, reserve: Decimal, next_poll: float, moment: datetime) -> NoReturn:
        from reducto_provider.triggers.budget import ReductoBudgetTrigger

        self.log.info("The next query is at %s", utc_minute(next_poll))
        left = self.execution_timeout and max(self.execution_timeout - (datetime.now(UTC) - moment), timedelta(0))
        self.defer(
            trigger=ReductoBudgetTrigger.waiting_for(
                condition,
                reserve,
                window=str(self.window),
                next_poll=next_poll,
                on_unknown=self.on_unknown,
                poke_interval=self._seconds,
                reducto_conn_id=self.reducto_conn_id,
            ),
            method_name="execute_complete",
            timeout=left,
        )


class ReductoBudgetBranchOperator(BaseBudgetOperator, SkippingBranchMixIn):
    """
    Follow one branch while usage and a reserve are within a budget, and another otherwise.

    The tasks directly downstream that are on neither the followed branch nor downstream of it are skipped. With
    ``on_unknown="allow"`` a transient error counts as within the budget, with ``"block"`` as over it, and with
    ``"fail"`` (the default) it is raised, for Airflow's retries.

    The parameters that are not named here, the decision and the XCom are those of :class:`ReductoBudgetGateOperator`;
    in the XCom ``action`` is ``fail``, or ``follow`` and the ids.

    :param follow_task_ids_if_within: the id or ids of tasks or task groups directly downstream.
    :param follow_task_ids_if_exceeded: likewise.
    :raises ValueError: when the DAG is parsed, for a literal argument that can't be right.
    """

    inherits_from_skipmixin = True  # Airflow 3 looks at it when a task downstream is cleared

    def __init__(
        self,
        *,
        follow_task_ids_if_within: str | Sequence[str],
        follow_task_ids_if_exceeded: str | Sequence[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.follow_task_ids_if_within = follow_task_ids_if_within
        self.follow_task_ids_if_exceeded = follow_task_ids_if_exceeded
        self.parse_arguments()

    def execute(self, context: Context) -> None:
        """Request once, and follow a branch."""
        with translate_errors(self.task_id):
            self.check_arguments()
            if_within = self._followed("follow_task_ids_if_within")
            if_exceeded = self._followed("follow_task_ids_if_exceeded")
            moment = datetime.now(UTC)
            reserve = parse_threshold(self.reserve, "reserve")
            decision = self._decide(context, self._condition(context, moment), reserve, moment)
            is_blocked = decision.decision == "exceeded" or (decision.error is not None and self.on_unknown == "block")
            branch = if_exceeded if is_blocked else if_within
            self._publish(context, decision, f"follow {', '.join(branch)}", warn=decision.error is not None)
        self.do_branch(context, branch)

    def _check_literals(self) -> None:
        super()._check_literals()
        for name in ("follow_task_ids_if_within", "follow_task_ids_if_exceeded"):
            value = getattr(self, name)
            ids = [value] if isinstance(value, str) and value else value
            if not isinstance(ids, list | tuple | set) or not ids or not all(isinstance(each, str) for each in ids):
                raise ValueError(f"{name} must be the id of a task or task group, or a list of ids, not {value!r}")

    def _followed(self, name: str) -> list[str]:
        """
        Return the ids of a branch.

        :raises ValueError: for one that is not directly downstream: all the others would be skipped unnoticed.
        """
        if is_from_mapped(self):  # its instances would decide for the same tasks
            raise ValueError("a branch can't be mapped: put it into a mapped task group, with the tasks that follow")
        value = getattr(self, name)
        ids = [value] if isinstance(value, str) else list(value)
        groups = self.dag.task_group_dict
        for each in ids:
            tasks = {root.task_id for root in groups[each].roots} if each in groups else {each}
            if tasks.isdisjoint(self.downstream_task_ids):
                raise ValueError(f"{name} names {each!r}, which is not directly downstream of this task: set it there")
        return ids

"""Let work begin only within a budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, get_args

from reducto_provider.airflow_compat import (
    BRANCHES_SKIP_MAPPED_TASKS,
    AirflowSkipException,
    has_instances_from_the_start,
    is_from_mapped,
    mapped_task_group_of,
)
from reducto_provider.airflow_compat.branch import SkippingBranchMixIn
from reducto_provider.exceptions import (
    ReductoBudgetExceededError,
    ReductoTriggerEventError,
    error_by_name,
    translate_errors,
)
from reducto_provider.operators.base_budget import BaseBudgetOperator, BudgetDecision
from reducto_provider.triggers.polls import delay_after, utc_minute
from reducto_provider.usage.checks import check_seconds
from reducto_provider.usage.fields import is_literal
from reducto_provider.usage.threshold import Reading, UsageThreshold, parse_threshold
from reducto_provider.usage.window import CALENDAR_WINDOWS

if TYPE_CHECKING:
    from reducto_provider.airflow_compat import Context

ExceededAction = Literal["skip", "fail", "wait", "warn"]

EXCEEDED_ACTIONS: Final = get_args(ExceededAction)


class ReductoBudgetGateOperator(BaseBudgetOperator):
    """
    Let the tasks that follow run only while usage and a reserve are within a budget.

    Within is ``value + reserve <= budget``, decided on all digits. Otherwise ``on_exceeded`` decides:

    =========  ====================================================================================================
    ``skip``   the gate is skipped, and the tasks that follow act on their trigger rules
    ``fail``   the gate fails at once, without retries
    ``wait``   the gate is deferred until the budget of a later month, week or day has room. It holds no worker and
               does not poll: shortly after the window turns, it requests the new one, and compares it with the budget
               and reserve of when the wait began. ``execution_timeout`` and the DAG's ``dagrun_timeout`` limit the wait
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
    :param poke_interval: seconds between queries while the usage is unknown, with ``wait`` and ``block``; at least 1.
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
                    self._publish(context, BudgetDecision("within", message, reserve, reading), "continue")
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
                    self._publish(context, BudgetDecision.unknown(failure, reserve), action, warn=True)
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

    def _passes(self, context: Context, decision: BudgetDecision) -> bool:
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

    def _next_poll(self, condition: UsageThreshold, decision: BudgetDecision) -> float:
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
            self._check_that_all_can_be_skipped()
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
            ids = [value] if isinstance(value, str) else value
            if (
                not isinstance(ids, list | tuple | set)
                or not ids
                or not all(each and isinstance(each, str) for each in ids)
            ):
                raise ValueError(f"{name} must be the id of a task or task group, or a list of ids, not {value!r}")

    def _followed(self, name: str) -> list[str]:
        """
        Return the ids of a branch.

        :raises ValueError: for one that is not directly downstream: all the others would be skipped unnoticed. And for
            one outside of this task's mapped task group: Airflow would never skip it.
        """
        if is_from_mapped(self):  # its instances would decide for the same tasks
            raise ValueError("a branch can't be mapped: put it into a mapped task group, with the tasks that follow")
        value = getattr(self, name)
        ids = [value] if isinstance(value, str) else list(value)
        groups, mapped_group = self.dag.task_group_dict, mapped_task_group_of(self)
        for each in ids:
            roots = {root.task_id for root in groups[each].roots} if each in groups else {each}
            followed = [task for task in self.downstream_list if task.task_id in roots]
            if not followed:
                raise ValueError(f"{name} names {each!r}, which is not directly downstream of this task: set it there")
            if mapped_group and any(mapped_task_group_of(task) is not mapped_group for task in followed):
                raise ValueError(
                    f"{name} names {each!r}, which is outside of the mapped task group {mapped_group.group_id!r}: each "
                    "instance of the group would decide for the same tasks; put them into the group"
                )
        return ids

    def _check_that_all_can_be_skipped(self) -> None:
        """
        Check that Airflow skips each task downstream when the other branch is followed.

        :raises ValueError: for mapped ones that it would run, over the budget as well.
        """
        if BRANCHES_SKIP_MAPPED_TASKS:
            return
        mapped_group = mapped_task_group_of(self)
        for task in self.downstream_list:
            is_of_own_group = mapped_group is not None and mapped_task_group_of(task) is mapped_group
            if not is_of_own_group and has_instances_from_the_start(task):
                raise ValueError(
                    f"{task.task_id!r} is mapped over literals, and before 3.2 Airflow skips no such task after a "
                    "branch: put a task between that is not mapped, as an EmptyOperator, and follow that"
                )

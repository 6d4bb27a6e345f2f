"""
The gate and the branch before work that costs credits.

What is skipped when is measured on real Airflow, and is the tables of `docs/budget.md`. To write them anew::

    REWRITE_DOCS=1 make test ARGS=tests/operators/test_budget.py
"""

from __future__ import annotations

import os
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import time_machine

from reducto_provider import exceptions
from reducto_provider.operators.base_budget import BaseBudgetOperator
from reducto_provider.operators.budget import ReductoBudgetBranchOperator, ReductoBudgetGateOperator
from reducto_provider.usage.fields import REMEDIES
from reducto_provider.usage.threshold import UsageThreshold
from simulator import Organization, html, status
from tests.airflow_sdk import DAG, AirflowSkipException, TaskDeferred
from tests.airflows import gone_in, new_in

DOCUMENT = Path(__file__).parents[2] / "docs/budget.md"

NOON = datetime(2026, 11, 18, 12, tzinfo=UTC)
OCTOBER_S = SimpleNamespace(
    data_interval_start=datetime(2026, 10, 1, tzinfo=UTC),
    data_interval_end=datetime(2026, 10, 2, tzinfo=UTC),
    run_type="manual",
)


class Log:
    """What an operator logged: Airflow 3's loggers are not those of `logging`."""

    def __init__(self):
        self.lines, self.warnings = [], []

    def info(self, text, *args):
        self.lines.append(text % args)

    def warning(self, text, *args):
        self.info(text, *args)
        self.warnings.append(text % args)

    @property
    def text(self):
        return "\n".join(self.lines)


class Pushed(dict):
    """A task instance that keeps its XComs."""

    def xcom_push(self, key: str, value: Any) -> None:
        self[key] = value

    @property
    def decision(self) -> dict[str, Any]:
        return self["return_value"]


@pytest.fixture
def service(simulator, connect):
    """The service on 18 November 2026, where org_acme has used 100 credits in November."""
    simulator.usage.set_records("org_acme", [])
    simulator.usage.add("org_acme", date(2026, 11, 2), 100, 40)
    connect(host=simulator.url, extra={"max_attempts": 1})
    with time_machine.travel(NOON, tick=False):
        yield simulator


@pytest.fixture
def log(monkeypatch):
    log = Log()
    monkeypatch.setattr(BaseBudgetOperator, "log", log, raising=False)
    return log


@pytest.fixture
def gate():
    def make(operator=ReductoBudgetGateOperator, dag=None, **arguments):
        with dag or DAG("batches", schedule=None, start_date=datetime(2026, 1, 1)):
            return operator(**{"task_id": "gate", "org_id": "org_acme", "budget": 100, **arguments})

    return make


def execute(operator, run=OCTOBER_S, ti=None, **context):
    """Render and execute, and return what was pushed."""
    ti = Pushed() if ti is None else ti
    context = {"ti": ti, "dag_run": run, "dag": operator.dag, "params": {}, **context}
    operator.render_template_fields(context)
    operator.execute(context)
    return ti


def requested(service):
    return [(dict(request.query)["startDate"], dict(request.query)["endDate"]) for request in service.requests]


class TestBoundary:
    @pytest.mark.parametrize(
        ("used", "reserve", "budget", "decision"),
        [
            ("100", 0, 100, "within"),
            ("100.000000001", 0, 100, "exceeded"),
            ("99.5", "0.5", 100, "within"),
            ("99.5", "0.500000001", 100, "exceeded"),
            ("0.1", "0.2", "0.3", "within"),
            ("0", 0, 0, "within"),
            ("0.000000001", 0, 0, "exceeded"),
            ("100000000000000000", "0.000000001", "1e17", "exceeded"),
        ],
    )
    def test_is_exact(self, service, gate, used, reserve, budget, decision):
        service.usage.set_records("org_acme", [])
        service.usage.add("org_acme", date(2026, 11, 2), used, 1)

        pushed = execute(gate(budget=budget, reserve=reserve, on_exceeded="warn"))

        assert pushed.decision["decision"] == decision

    def test_what_was_used_before_the_window_does_not_count(self, service, gate):
        service.usage.add("org_acme", date(2026, 10, 31), 500, 1)

        assert execute(gate()).decision["decision"] == "within"
        assert execute(gate(projected=True)).decision["reading"]["used"] == 100

    def test_the_reserve_is_added_to_each_group(self, service, gate):
        service.usage.add("org_acme", date(2026, 11, 2), 60, 1, product="extract")
        grouped = {"per_group": True, "group_by": "product", "budget": 110, "on_exceeded": "warn"}

        assert execute(gate(**grouped, reserve=10)).decision["decision"] == "within"
        over = execute(gate(**grouped, reserve="10.000000001")).decision
        assert (over["decision"], over["reading"]["group"], over["reading"]["value"]) == ("exceeded", "parse", 100)

    def test_a_metric_and_filters(self, service, gate):
        arguments = {"metric": "requests", "budget": 39, "on_exceeded": "warn"}

        assert execute(gate(**arguments)).decision["decision"] == "exceeded"
        assert execute(gate(**arguments, products="extract")).decision["decision"] == "within"

    def test_a_projection(self, service, gate):
        for day in range(3, 18):
            service.usage.add("org_acme", date(2026, 11, day), 100, 1)
        decision = execute(gate(projected=True, budget=2900, on_exceeded="warn")).decision

        assert decision["decision"] == "within", "29 days of 100: history begins on the second"
        assert decision["reading"].items() >= {"value": 2900, "used": 1600, "projected": True}.items()
        assert requested(service) == [("2026-10-04", "2026-11-18")]


class TestWindow:
    @pytest.mark.parametrize(
        ("arguments", "days"),
        [
            ({}, ("2026-11-01", "2026-11-18")),
            ({"window": "week"}, ("2026-11-16", "2026-11-18")),
            ({"window": "day"}, ("2026-11-18", "2026-11-18")),
            ({"window": 3}, ("2026-11-16", "2026-11-18")),
            ({"window": "{{ 3 }}"}, ("2026-11-16", "2026-11-18")),
            ({"window": "run"}, ("2026-10-01", "2026-10-01")),
            ({"usage_start_date": "2026-10-05", "usage_end_date": "2026-12-31"}, ("2026-10-05", "2026-11-18")),
        ],
        ids=str,
    )
    def test_holds_the_moment_of_asking(self, service, gate, arguments, days):
        """The run is October's: it was late, or has been cleared."""
        execute(gate(budget=1000, **arguments))

        assert requested(service) == [days]

    def test_that_has_not_begun_is_an_error(self, service, gate):
        operator = gate(usage_start_date="2026-12-01", usage_end_date="2026-12-31")

        with pytest.raises(exceptions.ReductoConfigurationError, match="2026-12-01 to 2026-12-31 has not begun"):
            execute(operator)


class TestDecision:
    def test_within(self, service, gate, log):
        pushed = execute(gate(budget="120.5", reserve=20))

        assert pushed.decision == {
            "decision": "within",
            "action": "continue",
            "reserve": 20,
            "reading": {
                "metric": "credits",
                "value": 100,
                "used": 100,
                "projected": False,
                "threshold": 120.5,
                "exceeded": False,
                "usage_start_date": "2026-11-01",
                "usage_end_date": "2026-11-30",
                "org_id": "org_acme",
                "group_by": "product",
                "group": None,
                "time": "2026-11-18T12:00:00+00:00",
            },
            "error": None,
        }
        assert [line for line in log.lines if "budget" in line] == [
            (
                "org_acme, 2026-11-01 to 2026-11-30: 100 of 120.5 credits (83.0%), and 20 in reserve: "
                "within the budget; continue"
            )
        ]

    @pytest.mark.parametrize(
        ("on_exceeded", "raised"),
        [
            ("skip", AirflowSkipException),
            ("fail", exceptions.ReductoBudgetExceededError),
            ("wait", TaskDeferred),
            ("warn", None),
        ],
    )
    def test_over_the_budget(self, service, gate, log, on_exceeded, raised):
        ti = Pushed()
        operator = gate(budget=99, on_exceeded=on_exceeded)
        context = {"ti": ti, "dag_run": OCTOBER_S, "dag": operator.dag}
        if raised is None:
            operator.execute(context)
        else:
            with pytest.raises(raised) as error:
                operator.execute(context)

        action = "continue" if raised is None else on_exceeded
        assert (ti.decision["decision"], ti.decision["action"]) == ("exceeded", action)
        assert ti.decision["reading"]["value"] == 100
        message = "org_acme, 2026-11-01 to 2026-11-30: 100 of 99 credits (101.0%): over the budget"
        assert f"{message}; {action}" in log.text
        if raised not in (None, TaskDeferred):
            assert str(error.value) == message

    def test_the_wait_ends_with_the_window_and_its_row_holds_no_secret(self, service, gate):
        service.usage.add("org_acme", NOON.date(), 99, 1)
        with pytest.raises(TaskDeferred) as deferred:
            execute(
                gate(
                    budget="{{ 99 }}",
                    reserve="0.000000001",
                    products=["parse"],
                    window="week",
                    on_exceeded="wait",
                    on_unknown="block",
                    poke_interval=timedelta(seconds=90),
                )
            )

        trigger = deferred.value.trigger
        sent = trigger.serialize()[1]
        turn = datetime(2026, 11, 23, tzinfo=UTC).timestamp()
        assert turn + 5 <= sent.pop("next_poll") < turn + 60
        assert sent == {
            "reducto_conn_id": "reducto_default",
            "budget": "99",
            "reserve": "0.000000001",
            "window": "week",
            "metric": "credits",
            "per_group": False,
            "projected": False,
            "org_id": "org_acme",
            "group_by": "product",
            "products": ["parse"],
            "features": None,
            "api_keys": None,
            "file_types": None,
            "on_unknown": "block",
            "poke_interval": 90.0,
        }
        assert deferred.value.timeout is None

    def test_the_wait_has_what_is_left_of_the_execution_timeout(self, service, gate, monkeypatch):
        """Airflow applies it to a deferral only if it is passed on."""
        clock = time_machine.travel(NOON, tick=False)
        read = UsageThreshold.read

        def slowly(*args):
            moment.shift(600)
            return read(*args)

        monkeypatch.setattr(UsageThreshold, "read", slowly)
        left = []
        for hours in (2, 0.1):
            with clock as moment, pytest.raises(TaskDeferred) as deferred:
                execute(gate(budget=99, on_exceeded="wait", execution_timeout=timedelta(hours=hours)))
            left.append(deferred.value.timeout)

        assert left == [timedelta(minutes=110), timedelta(0)]

    def test_filters_that_match_nothing_are_a_warning(self, service, gate, log):
        execute(gate(products="prase"))

        assert [line for line in log.warnings if "products=['prase']: check the names" in line]

    def test_xcom_can_be_switched_off(self, service, gate):
        assert execute(gate(do_xcom_push=False)) == {}


class TestUnknown:
    @pytest.mark.parametrize("fault", [status(500), status(429), html()], ids=["500", "429", "html"])
    @pytest.mark.parametrize(
        ("arguments", "raised", "action"),
        [
            ({}, exceptions.ReductoError, "fail"),
            ({"on_unknown": "fail", "on_exceeded": "warn"}, exceptions.ReductoError, "fail"),
            ({"on_unknown": "allow"}, None, "continue"),
            ({"on_unknown": "allow", "on_exceeded": "wait"}, None, "continue"),
            ({"on_unknown": "block"}, AirflowSkipException, "skip"),
            ({"on_unknown": "block", "on_exceeded": "fail"}, exceptions.ReductoBudgetExceededError, "fail"),
            ({"on_unknown": "block", "on_exceeded": "warn"}, None, "continue"),
            ({"on_unknown": "block", "on_exceeded": "wait"}, TaskDeferred, "wait"),
        ],
        ids=str,
    )
    def test_after_a_transient_error(self, service, gate, fault, arguments, raised, action, log):
        service.faults.add(fault, times=None)
        ti, operator = Pushed(), gate(**arguments)
        context = {"ti": ti, "dag_run": OCTOBER_S, "dag": operator.dag}
        if raised is None:
            operator.execute(context)
        else:
            with pytest.raises(raised) as error:
                operator.execute(context)
            if raised is exceptions.ReductoError:
                assert error.value.transient, "for Airflow's retries"
        assert (ti.decision["decision"], ti.decision["action"]) == ("unknown", action)
        assert ti.decision["reading"] is None
        assert ti.decision["error"]
        assert f"usage unknown: {ti.decision['error']}; {action}" in log.warnings

    def test_under_wait_it_is_requested_again_after_the_interval(self, service, gate):
        service.faults.add(status(500))
        with pytest.raises(TaskDeferred) as deferred:
            execute(gate(on_exceeded="wait", on_unknown="block", poke_interval=90))

        assert deferred.value.trigger.next_poll == NOON.timestamp() + 90

    @pytest.mark.parametrize(
        ("fault", "seconds"), [(status(500), 1), (status(429, retry_after=120), 120)], ids=["500", "429"]
    )
    def test_but_not_at_once_and_not_before_retry_after(self, service, gate, fault, seconds):
        service.faults.add(fault)
        with pytest.raises(TaskDeferred) as deferred:
            execute(gate(on_exceeded="wait", on_unknown="block", poke_interval=0.001))

        assert deferred.value.trigger.next_poll == NOON.timestamp() + seconds

    @pytest.mark.parametrize("on_unknown", ["fail", "allow", "block"])
    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (401, exceptions.ReductoAuthenticationError),
            (403, exceptions.ReductoPermissionError),
            (400, exceptions.ReductoRequestError),
        ],
    )
    def test_a_permanent_error_fails_the_task(self, service, gate, on_unknown, code, error):
        service.faults.add(status(code), times=None)
        ti = Pushed()

        with pytest.raises(error) as raised:
            execute(gate(on_unknown=on_unknown, reserve=2), ti=ti)
        assert ti.decision == {
            "decision": "unknown",
            "action": "fail",
            "reserve": 2,
            "reading": None,
            "error": str(raised.value),
        }

    def test_so_does_an_account_without_credits(self, service, gate):
        service.usage.set_credits("org_acme", "null")
        ti = Pushed()

        with pytest.raises(exceptions.ReductoCreditsUnavailableError, match="metric='requests'") as raised:
            execute(gate(on_unknown="allow"), ti=ti)
        assert (ti.decision["action"], ti.decision["error"]) == ("fail", str(raised.value))

    def test_so_does_a_connection_that_is_wrong(self, service, gate, connect):
        connect(host=service.url, extra={"timeout": "soon"})

        with pytest.raises(exceptions.ReductoConfigurationError, match="timeout"):
            execute(gate(on_unknown="allow"))

    @pytest.mark.parametrize("on_unknown", ["fail", "allow", "block"])
    @pytest.mark.parametrize("lost", ["{{ none }}", "{{ '' }}", " {{ ' ' }} ", "{# unlimited #}"])
    @pytest.mark.parametrize("field", ReductoBudgetGateOperator.template_fields)
    def test_so_does_a_lost_argument(self, service, gate, on_unknown, lost, field):
        days = {"usage_start_date": "2026-11-01", "usage_end_date": "2026-11-30"} if field.endswith("date") else {}
        operator = gate(**{**days, field: lost, "on_unknown": on_unknown})

        words = f"gate: {field} is given but resolved to"
        with pytest.raises(exceptions.ReductoConfigurationError, match=words) as error:
            execute(operator)
        assert REMEDIES[field] in str(error.value)
        assert not service.requests


class TestResume:
    READING: ClassVar[dict[str, Any]] = {
        "metric": "credits",
        "value": 1,
        "used": 1,
        "projected": False,
        "threshold": 100,
        "exceeded": False,
        "usage_start_date": "2026-12-01",
        "usage_end_date": "2026-12-31",
        "org_id": "org_acme",
        "group_by": "product",
        "group": None,
        "time": "2026-12-01T00:00:30+00:00",
    }

    def test_within_the_next_window(self, gate, log):
        ti = Pushed()
        gate(on_exceeded="wait").execute_complete(
            {"ti": ti}, {"status": "within", "reading": self.READING, "reserve": 5}
        )

        assert ti.decision == {
            "decision": "within",
            "action": "continue",
            "reserve": 5,
            "reading": self.READING,
            "error": None,
        }
        assert "(1.0%), and 5 in reserve: within the budget, as the triggerer saw; continue" in log.text

    def test_unknown(self, gate):
        ti = Pushed()
        event = {"status": "unknown", "error": "ReductoServerError", "message": "500", "reserve": 0}
        gate(on_exceeded="wait", on_unknown="allow").execute_complete({"ti": ti}, event)

        assert (ti.decision["decision"], ti.decision["action"], ti.decision["error"]) == ("unknown", "continue", "500")

    def test_unknown_that_fails_is_published_as_in_a_worker(self, gate, log):
        ti = Pushed()
        event = {"status": "unknown", "error": "ReductoServerError", "message": "500", "reserve": 2}
        with pytest.raises(exceptions.ReductoServerError, match="500"):
            gate(on_exceeded="wait").execute_complete({"ti": ti}, event)

        assert ti.decision == {"decision": "unknown", "action": "fail", "reserve": 2, "reading": None, "error": "500"}
        assert "usage unknown: 500; fail" in log.text

    def test_an_error(self, gate):
        """The XCom of before the wait said that it waits."""
        ti = Pushed()
        event = {"status": "error", "error": "ReductoAuthenticationError", "message": "refused", "reserve": 2}
        with pytest.raises(exceptions.ReductoAuthenticationError, match="refused"):
            gate(on_exceeded="wait", on_unknown="allow", reserve="{{ none }}").execute_complete({"ti": ti}, event)

        expected = {"decision": "unknown", "action": "fail", "reserve": 2, "reading": None, "error": "refused"}
        assert ti.decision == expected

    @pytest.mark.parametrize("on_unknown", ["fail", "block"])
    def test_unknown_after_the_dag_has_changed(self, gate, on_unknown):
        """The trigger was to allow it, a month ago."""
        ti = Pushed()
        event = {"status": "unknown", "error": "ReductoServerError", "message": "500", "reserve": 0}
        with pytest.raises(exceptions.ReductoServerError, match="500"):
            gate(on_exceeded="wait", on_unknown=on_unknown).execute_complete({"ti": ti}, event)

        assert ti.decision["action"] == "fail"

    @pytest.mark.parametrize(
        "event",
        [
            None,
            {},
            {"status": "within"},
            {"status": "within", "reading": {}, "reserve": 0},
            {"status": "within", "reading": {**READING, "value": "much"}, "reserve": 0},
            {"status": "within", "reading": READING, "reserve": None},
            {"status": "within", "reading": READING, "reserve": True},
            {"status": "error", "error": "ReductoServerError", "message": "500"},
            {"status": "unknown", "error": "ReductoServerError", "message": None, "reserve": 0},
        ],
        ids=str,
    )
    def test_an_event_that_no_trigger_sends(self, gate, event):
        with pytest.raises(exceptions.ReductoTriggerEventError):
            gate(on_exceeded="wait", on_unknown="allow").execute_complete({"ti": Pushed()}, event)


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"budget": None}, "budget must be 0 or a number"),
            ({"budget": ""}, "budget is given but empty"),
            ({"budget": "None"}, "budget must be 0 or a number"),
            ({"budget": -1}, "budget must be 0 or a number"),
            ({"budget": float("nan")}, "budget must be 0 or a number"),
            ({"budget": True}, "budget must be 0 or a number"),
            ({"reserve": "much"}, "reserve must be 0 or a number"),
            ({"reserve": " "}, "reserve is given but empty"),
            ({"metric": "pages"}, "metric must be one of credits, requests"),
            ({"on_exceeded": "block"}, "on_exceeded must be one of skip, fail, wait, warn"),
            ({"on_unknown": "skip"}, "on_unknown must be one of fail, allow, block"),
            ({"per_group": "no"}, "per_group must be True or False"),
            ({"window": "year"}, "window must be"),
            ({"window": "week", "usage_start_date": "2026-11-01", "usage_end_date": "2026-11-02"}, "two windows"),
            ({"poke_interval": 0}, "poke_interval must be a number of seconds"),
            ({"group_by": "user"}, "group_by must be one of"),
            ({"on_exceeded": "wait", "window": 30}, "on_exceeded='wait' needs window='month', 'week' or 'day', not "),
            ({"on_exceeded": "wait", "window": "run"}, "on_exceeded='wait' needs"),
            (
                {"on_exceeded": "wait", "usage_start_date": "{{ ds }}", "usage_end_date": "{{ ds }}"},
                "not usage_start_date: no later window comes",
            ),
            ({"on_exceeded": "wait", "reserve": 101}, "reserve=101 is more than budget=100: no window"),
        ],
        ids=str,
    )
    def test_that_can_t_be_right_are_refused_when_parsed(self, gate, arguments, said):
        with pytest.raises(ValueError, match=said):
            gate(**arguments)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"on_exceeded": "wait", "reserve": 100},
            *({"on_exceeded": each, "reserve": 101} for each in ("skip", "warn")),
        ],
        ids=str,
    )
    def test_a_reserve_up_to_the_budget_can_have_room_and_a_larger_one_needs_no_wait(self, gate, arguments):
        assert gate(**arguments).reserve == arguments["reserve"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"window": "{{ 30 }}"}, "on_exceeded='wait' needs"),
            ({"reserve": "{{ 101 }}"}, "reserve=101 is more than budget=100"),
            ({"budget": "{{ 'plenty' }}"}, "budget must be 0 or a number from 1e-9 to less than 1e18, not 'plenty'"),
        ],
        ids=str,
    )
    def test_or_when_rendered(self, service, gate, arguments, said):
        with pytest.raises(exceptions.ReductoConfigurationError, match=said):
            execute(gate(on_exceeded="wait", **arguments))
        assert not service.requests

    @pytest.mark.parametrize("missing", ["settle_days", "lookback_days"])
    def test_that_have_no_effect_do_not_exist(self, gate, missing):
        with pytest.raises(Exception, match=missing):
            gate(**{missing: 1})

    @pytest.mark.parametrize("ids", [None, [], "", 1, ["a", 2], ["a", ""]])
    def test_a_branch_needs_ids(self, gate, ids):
        with pytest.raises(ValueError, match="follow_task_ids_if_exceeded"):
            gate(
                ReductoBudgetBranchOperator,
                follow_task_ids_if_within="work",
                follow_task_ids_if_exceeded=ids,
            )

    def test_a_branch_that_is_not_directly_downstream_is_an_error(self, service, gate):
        with DAG("batches", schedule=None, start_date=datetime(2026, 1, 1)) as dag:
            branch = gate(
                ReductoBudgetBranchOperator,
                dag,
                follow_task_ids_if_within="work",
                follow_task_ids_if_exceeded="elsewhere",
            )
            branch >> gate(dag=dag, task_id="work") >> gate(dag=dag, task_id="elsewhere")

        with pytest.raises(exceptions.ReductoConfigurationError, match="if_exceeded names 'elsewhere', which is not"):
            execute(branch)
        assert not service.requests

    def test_a_branch_that_is_mapped_by_itself_is_an_error(self, run_dag, organizations):
        result = run_dag(MAPPED_BRANCH, connection=organizations)

        assert result.tasks["branch"] == ["failed", "failed"]
        assert {error.message for error in result.errors} == {
            "branch: a branch can't be mapped: put it into a mapped task group, with the tasks that follow"
        }

    def test_so_is_one_that_leads_out_of_its_mapped_group(self, run_dag, organizations, simulator):
        """Airflow skips no task outside: the work would begin, though each instance is over the budget."""
        result = run_dag(BRANCH_OUT_OF_A_MAPPED_GROUP, connection=organizations)

        assert result.tasks["lanes.branch"] == ["failed", "failed"]
        assert result.tasks["work"] == "upstream_failed"
        assert {error.message for error in result.errors} == {
            (
                "lanes.branch: follow_task_ids_if_within names 'work', which is outside of the mapped task group "
                "'lanes': each instance of the group would decide for the same tasks; put them into the group"
            )
        }
        assert not simulator.requests


# -- what is skipped when

RULES = ("all_success", "none_failed", "none_failed_min_one_success", "all_done")

GATES: dict[str, dict[str, Any]] = {
    "within the budget": {"org_id": "within"},
    "over it, `on_exceeded='skip'`": {"org_id": "over"},
    "over it, `on_exceeded='fail'`": {"org_id": "over", "on_exceeded": "fail"},
    "over it, `on_exceeded='warn'`": {"org_id": "over", "on_exceeded": "warn"},
    "a transient error, `on_unknown='fail'`": {"org_id": "down"},
    "a transient error, `on_unknown='allow'`": {"org_id": "down", "on_unknown": "allow"},
    "a transient error, `on_unknown='block'`": {"org_id": "down", "on_unknown": "block"},
    "a transient error, `'block'` and `on_exceeded='fail'`": {
        "org_id": "down",
        "on_unknown": "block",
        "on_exceeded": "fail",
    },
    "a transient error, `'block'` and `on_exceeded='warn'`": {
        "org_id": "down",
        "on_unknown": "block",
        "on_exceeded": "warn",
    },
    "the key is refused (401), `on_unknown='allow'`": {"org_id": "refused", "on_unknown": "allow"},
    "no credits, `on_unknown='allow'`": {"org_id": "uncounted", "on_unknown": "allow"},
    "the budget renders to nothing": {"org_id": "within", "budget": "{{ params.nothing }}"},
}

GATE_DAG = """
from datetime import datetime, timedelta
from tests.airflow_sdk import DAG, task
from reducto_provider.operators.budget import ReductoBudgetGateOperator


@task
def nothing():
    pass


with DAG("gates", schedule=None, start_date=datetime(2026, 1, 1), params={{"nothing": None}}):
    for number, arguments in enumerate({gates!r}):
        gate = ReductoBudgetGateOperator(
            task_id=f"gate_{{number}}", retries=1, retry_delay=timedelta(0), **{{"budget": 100, **arguments}}
        )
        for rule in {rules!r}:
            after = nothing.override(task_id=f"{{rule}}_{{number}}", trigger_rule=rule)()
            gate >> after
            if rule == "all_success":
                after >> nothing.override(task_id=f"next_{{number}}")()
"""

BRANCHES: dict[str, dict[str, Any]] = {
    "within the budget": {"org_id": "within"},
    "over it": {"org_id": "over"},
    "a transient error, `on_unknown='fail'`": {"org_id": "down"},
    "a transient error, `on_unknown='allow'`": {"org_id": "down", "on_unknown": "allow"},
    "a transient error, `on_unknown='block'`": {"org_id": "down", "on_unknown": "block"},
}

BRANCH_DAG = """
from datetime import datetime, timedelta
from tests.airflow_sdk import DAG, TaskGroup, task
from reducto_provider.operators.budget import ReductoBudgetBranchOperator


@task
def nothing():
    pass


with DAG("branches", schedule=None, start_date=datetime(2026, 1, 1)):
    for number, arguments in enumerate({branches!r}):
        branch = ReductoBudgetBranchOperator(
            task_id=f"branch_{{number}}",
            budget=100,
            follow_task_ids_if_within=f"within_{{number}}",
            follow_task_ids_if_exceeded=[f"exceeded_{{number}}"],
            retries=1,
            retry_delay=timedelta(0),
            **arguments,
        )
        within = nothing.override(task_id=f"within_{{number}}")()
        with TaskGroup(f"exceeded_{{number}}") as exceeded:
            nothing.override(task_id="cheaper")()
        branch >> [within, exceeded, nothing.override(task_id=f"unnamed_{{number}}")()]
        for rule in {rules!r}:
            [within, exceeded] >> nothing.override(task_id=f"{{rule}}_{{number}}", trigger_rule=rule)()
"""


@pytest.fixture
def organizations(simulator):
    today = datetime.now(UTC).date()
    for org in ("within", "over", "down", "refused", "uncounted"):
        simulator.usage.organizations[org] = Organization(org, records=(), credits="number")
        simulator.usage.add(org, today, 101 if org == "over" else 100, 1)
    simulator.keys["sim-key-budget"] = ("within", "over", "down", "refused", "uncounted")
    simulator.usage.set_credits("uncounted", "null")
    simulator.faults.add(status(503), times=None, org="down")
    simulator.faults.add(status(401), times=None, org="refused")
    return {"password": "sim-key-budget", "extra": {"max_attempts": 1}}


def state_of(result, task_id):
    instance = result.task_instance(task_id)
    return f"{instance.state}{' twice' if instance.try_number == 2 else ''}"


def check_document(name, table):
    begin, end = f"<!-- {name}, written by tests/operators/test_budget.py -->\n", f"<!-- end of {name} -->\n"
    before, begin, rest = DOCUMENT.read_text().partition(begin)
    documented, end, after = rest.partition(end)
    if os.environ.get("REWRITE_DOCS"):
        DOCUMENT.write_text(before + begin + table + end + after)
    else:
        assert documented == table


def test_what_follows_a_gate_is_what_the_document_says(run_dag, organizations):
    dag = GATE_DAG.format(gates=list(GATES.values()), rules=RULES)
    result = run_dag(dag, connection=organizations, timeout=300)
    columns = ("gate", "all_success", "next", *RULES[1:])
    heads = ("the gate", "`all_success` (default)", "the task after that", *(f"`{rule}`" for rule in RULES[1:]))
    lines = [f"| | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for number, what in enumerate(GATES):
        lines.append(f"| {what} | {' | '.join(state_of(result, f'{column}_{number}') for column in columns)} |")

    check_document("gates", "\n".join(lines) + "\n")
    decisions = [
        result.xcom(f"gate_{number}")["decision"]
        for number, arguments in enumerate(GATES.values())
        if arguments["org_id"] in ("within", "over", "down") and "budget" not in arguments
    ]
    assert decisions == ["within", *["exceeded"] * 3, *["unknown"] * 5]
    assert all(f"over the budget; {action}" in result.log for action in ("skip", "fail", "continue"))


def test_what_follows_a_branch_is_what_the_document_says(run_dag, organizations):
    dag = BRANCH_DAG.format(branches=list(BRANCHES.values()), rules=RULES)
    result = run_dag(dag, connection=organizations, timeout=300)
    columns = ("branch_{}", "within_{}", "exceeded_{}.cheaper", "unnamed_{}", *(f"{rule}_{{}}" for rule in RULES))
    heads = (
        *("the branch", "`follow_task_ids_if_within`", "`follow_task_ids_if_exceeded`", "not named"),
        *(f"join, `{rule}`" for rule in RULES),
    )
    lines = [f"| | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for number, what in enumerate(BRANCHES):
        lines.append(f"| {what} | {' | '.join(state_of(result, column.format(number)) for column in columns)} |")

    check_document("branches", "\n".join(lines) + "\n")
    assert result.xcom("branch_1").items() >= {"decision": "exceeded", "action": "follow exceeded_1"}.items()
    assert result.xcom("branch_2")["action"] == "fail"


WAIT = """
from datetime import datetime
from tests.airflow_sdk import DAG, task
from reducto_provider.operators.budget import ReductoBudgetGateOperator

with DAG("waits", schedule=None, start_date=datetime(2026, 1, 1)):

    @task
    def work():
        pass

    gate = ReductoBudgetGateOperator.partial(
        task_id="gate", budget=100, on_exceeded="wait", on_unknown="block", poke_interval=0.1
    ).expand(org_id=["within"])
    gate >> work()
"""


def test_a_wait_goes_through_the_triggerer(run_dag, simulator, organizations):
    simulator.faults.add(status(503), times=2, org="within")
    result = run_dag(WAIT, connection=organizations).expect()

    assert result.tasks == {"gate": ["success"], "work": "success"}
    [decision] = result.xcom("gate")
    assert (decision["decision"], decision["reading"]["value"]) == ("within", 100)
    assert [request.status for request in simulator.requests] == [503, 503, 200]


MAPPED = """
from datetime import datetime
from tests.airflow_sdk import DAG, task, task_group
from reducto_provider.operators.budget import ReductoBudgetBranchOperator, ReductoBudgetGateOperator

with DAG("mapped", schedule=None, start_date=datetime(2026, 1, 1)):
    gate = ReductoBudgetGateOperator.partial(task_id="gate", budget=100).expand(org_id=["within", "over"])

    @task(trigger_rule="all_done")
    def after():
        pass

    gate >> after()

    @task
    def work(org):
        return org

    @task
    def cheaper(org):
        return org

    @task_group
    def gated(org):
        ReductoBudgetGateOperator(task_id="gate", budget=100, org_id=org) >> work(org)

    gated.expand(org=["within", "over"])

    @task
    def organizations():
        return ["over", "within"]

    @task_group
    def branched(org):
        within, exceeded = work(org), cheaper(org)
        branch = ReductoBudgetBranchOperator(
            task_id="branch",
            budget=100,
            org_id=org,
            follow_task_ids_if_within=within.operator.task_id,
            follow_task_ids_if_exceeded=[exceeded.operator.task_id],
        )
        branch >> [within, exceeded]

    branched.expand(org=["within", "over"])
    branched.override(group_id="later").expand(org=organizations())

    @task
    def budgets():
        return [100, 101]

    ReductoBudgetGateOperator.partial(task_id="each", org_id="over").expand(budget=budgets())
"""


def test_each_instance_of_a_mapped_operator_decides_for_itself(run_dag, organizations):
    result = run_dag(MAPPED, connection=organizations, timeout=120).expect()

    assert result.tasks == {
        "gate": ["success", "skipped"],
        "after": "success",
        "gated.gate": ["success", "skipped"],
        "gated.work": ["success", "skipped"],
        "branched.branch": ["success", "success"],
        "branched.work": ["success", "skipped"],
        "branched.cheaper": ["skipped", "success"],
        "organizations": "success",
        "later.branch": ["success", "success"],
        "later.work": ["skipped", "success"],
        "later.cheaper": ["success", "skipped"],
        "budgets": "success",
        "each": ["skipped", "success"],
    }
    assert [decision["decision"] for decision in result.xcom("gate")] == ["within", "exceeded"]


LANES = """
from datetime import datetime
from tests.airflow_sdk import DAG, task, task_group
from reducto_provider.operators.budget import ReductoBudgetBranchOperator

with DAG("lanes", schedule=None, start_date=datetime(2026, 1, 1)):

    @task
    def work(number):
        pass

    @task
    def numbers():
        return [1, 2]

    @task
    def cheaper(org):
        pass

    @task_group
    def documents(number):
        work(number)

    for org in ("within", "over"):
        ReductoBudgetBranchOperator(
            task_id=f"lane_{{org}}",
            budget=100,
            org_id=org,
            follow_task_ids_if_within=f"documents_{{org}}",
            follow_task_ids_if_exceeded=f"cheaper_{{org}}",
        ) >> [
            documents.override(group_id=f"documents_{{org}}").expand(number={numbers}),
            cheaper.override(task_id=f"cheaper_{{org}}")(org),
        ]
"""

LANES_AFTER_THE_BUDGET = {
    "lane_within": "success",
    "documents_within.work": ["success", "success"],
    "cheaper_within": "skipped",
    "lane_over": "success",
    "cheaper_over": "success",
}


@new_in(3, 2, "branches that skip mapped tasks whose instances are there")
def test_a_branch_skips_a_mapped_group(run_dag, organizations):
    result = run_dag(LANES.format(numbers="[1, 2]"), connection=organizations, timeout=120).expect()

    assert result.tasks == {**LANES_AFTER_THE_BUDGET, "documents_over.work": ["skipped", "skipped"]}


@gone_in(3, 2, "branches that skip no mapped task whose instances are there")
def test_a_branch_that_could_not_skip_a_mapped_group_is_an_error(run_dag, organizations, simulator):
    result = run_dag(LANES.format(numbers="[1, 2]"), connection=organizations, timeout=120)

    assert {state for task, state in result.tasks.items() if task.startswith("lane")} == {"failed"}
    assert not [task for (task, _), state in result.task_states().items() if "work" in task and state == "success"]
    assert {error.message.partition(": ")[2][:80] for error in result.errors} == {
        f"'documents_{org}.work' is mapped over literals, and before 3.2 Airflow skips no such task"[:80]
        for org in ("within", "over")
    }
    assert not simulator.requests


def test_a_branch_skips_a_group_that_is_mapped_over_the_result_of_a_task(run_dag, organizations):
    result = run_dag(LANES.format(numbers="numbers()"), connection=organizations, timeout=120).expect()

    tasks = {task: state for task, state in result.tasks.items() if not task.startswith("numbers")}
    assert tasks.pop("documents_over.work") in ("skipped", ["skipped", "skipped"])
    assert tasks == LANES_AFTER_THE_BUDGET


MAPPED_BRANCH = """
from datetime import datetime
from tests.airflow_sdk import DAG, task
from reducto_provider.operators.budget import ReductoBudgetBranchOperator

with DAG("mapped", schedule=None, start_date=datetime(2026, 1, 1)):

    @task
    def work():
        pass

    branch = ReductoBudgetBranchOperator.partial(
        task_id="branch", budget=100, follow_task_ids_if_within="work", follow_task_ids_if_exceeded="work"
    ).expand(org_id=["within", "over"])
    branch >> work()
"""

BRANCH_OUT_OF_A_MAPPED_GROUP = """
from datetime import datetime
from tests.airflow_sdk import DAG, task, task_group
from reducto_provider.operators.budget import ReductoBudgetBranchOperator

with DAG("mapped", schedule=None, start_date=datetime(2026, 1, 1)):

    @task
    def work():
        pass

    @task
    def cheaper():
        pass

    expensive = work()

    @task_group
    def lanes(org):
        branch = ReductoBudgetBranchOperator(
            task_id="branch",
            budget=100,
            org_id=org,
            follow_task_ids_if_within="work",
            follow_task_ids_if_exceeded="lanes.cheaper",
        )
        branch >> [expensive, cheaper()]

    lanes.expand(org=["over", "over"])
"""

"""Given is given: an argument that was written in a DAG and resolved to nothing never counts as left out."""

from __future__ import annotations

import copy
import inspect
import pickle
from datetime import date, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.timetables import trigger as core_trigger
from jinja2 import Undefined
from msgspec.structs import replace

from reducto_provider.airflow_compat import run_from_context
from reducto_provider.exceptions import ReductoConfigurationError
from reducto_provider.operators.budget import ReductoBudgetBranchOperator, ReductoBudgetGateOperator
from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator
from reducto_provider.operators.reconciliation import ReductoUsageReconciliationOperator
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor
from reducto_provider.usage.fields import REMEDIES
from reducto_provider.usage.schedule import Schedule
from tests.airflow_sdk import DAG, Asset, BaseOperator
from tests.airflows import PARTITIONS, ResolveMixin, dag_author
from tests.usage.runs import make_run, run_context, utc

MAY = {"usage_start_date": "2026-05-01", "usage_end_date": "2026-05-31"}
FOCUS = {"output_format": "focus_csv", "price_per_credit": "0.015"}

MAKE: dict[str, Any] = {
    "export": lambda **given: ReductoUsageExportOperator(**{"output_path": "/nowhere", **given}),
    "fleet": lambda **given: ReductoUsageFleetExportOperator(
        **{"organizations": ["org_acme"], "output_path": "/nowhere", **given}
    ),
    "reconciliation": ReductoUsageReconciliationOperator,
    "gate": lambda **given: ReductoBudgetGateOperator(**{"budget": 1, "on_unknown": "allow", **given}),
    "branch": lambda **given: ReductoBudgetBranchOperator(
        **{"budget": 1, "follow_task_ids_if_within": "work", "follow_task_ids_if_exceeded": "other", **given}
    ),
    "poke": lambda **given: ReductoUsageThresholdSensor(**{"threshold": 1, **given}),
    "deferrable": lambda **given: ReductoUsageThresholdSensor(**{"threshold": 1, "deferrable": True, **given}),
}
FIELDS = [
    (name, field)
    for name, made in {
        "export": ReductoUsageExportOperator,
        "fleet": ReductoUsageFleetExportOperator,
        "reconciliation": ReductoUsageReconciliationOperator,
        "gate": ReductoBudgetGateOperator,
        "branch": ReductoBudgetBranchOperator,
        "poke": ReductoUsageThresholdSensor,
        "deferrable": ReductoUsageThresholdSensor,
    }.items()
    for field in made.template_fields
]


class OtherTask(ResolveMixin):  # type: ignore[misc]
    """Another task's output, as far as rendering goes."""

    def __init__(self, output: Any) -> None:
        self.output = output

    def __repr__(self) -> str:
        return f"OtherTask({self.output!r})"

    def iter_references(self) -> Any:
        return ()

    def resolve(self, *_: Any, **__: Any) -> Any:
        return self.output


def made(operator: str, field: str, value: Any, **dag: Any) -> BaseOperator:
    """An operator of which one argument is given, and what goes along with it."""
    along: dict[str, Any] = {}
    if field in MAY:
        along = dict.fromkeys(MAY, "{{ params.day }}")
    elif "price" in field or "billing" in field:
        along = FOCUS
    with DAG("given", schedule=None, params={"day": "2026-05-01"}, **dag):
        return MAKE[operator](task_id="task", retries=2, **{**along, field: value})


def rendered(operator: BaseOperator, **params: Any) -> BaseOperator:
    """The copy that a worker executes."""
    task = copy.copy(operator).prepare_for_execution()
    task.render_template_fields({"params": {"day": "2026-05-01", **params}})
    return task


class TestRunFromContext:
    def test_on_airflow_2_a_run_has_a_logical_date_instead_of_run_after(self):
        context = run_context(None, None, logical_date=utc("2026-06-18T12:30"))
        del context["dag_run"].run_after

        assert run_from_context(context).moment == utc("2026-06-18T12:30")

    @pytest.mark.parametrize("name", ["CronTriggerTimetable", pytest.param("CronPartitionTimetable", marks=PARTITIONS)])
    def test_schedules_are_read_from_public_and_private_attributes_alike(self, name):
        public, private = (
            make_run(getattr(module, name)("0 0 * * 1", timezone="Asia/Tokyo"), None).schedule
            for module in (dag_author, core_trigger)
        )

        assert (public.timetable, public.expression, public.parts) == (name, "0 0 * * 1", ())
        assert {getattr(each.timezone, "name", each.timezone) for each in (public, private)} == {"Asia/Tokyo"}
        assert replace(public, timezone=None) == replace(private, timezone=None)

    def test_a_schedule_by_time_or_by_assets_combines_one_by_time(self):
        by_time = dag_author.DeltaTriggerTimetable(timedelta(days=7))
        either = dag_author.AssetOrTimeSchedule(assets=[Asset("usage")], timetable=by_time)

        assert [part.delta for part in make_run(either, None).schedule.parts] == [timedelta(days=7)]

    def test_what_has_no_schedule(self):
        assert make_run(object(), None).schedule == Schedule(timetable="object")

    @pytest.mark.parametrize(
        "own", [{"expression": ["0 0 * * *"]}, {"timetables": 2}, {"timetables": {"summer": "0 0 * * *"}}]
    )
    def test_attributes_of_an_authors_own_timetable_that_mean_something_else(self, own):
        run = make_run(SimpleNamespace(**own), utc("2026-06-18"), utc("2026-06-19"))

        assert run.schedule == Schedule(timetable="SimpleNamespace")

    def test_a_preset_that_croniter_does_not_know(self):
        timetable = SimpleNamespace(expression="@quarterly", timezone="UTC")

        assert make_run(timetable, None).schedule.expression == "0 0 1 */3 *"


def test_there_is_a_remedy_for_each_templated_argument():
    assert {field for _, field in FIELDS} == REMEDIES.keys()


@pytest.mark.parametrize(
    ("written", "native", "came_out"),
    [
        pytest.param("{{ params.value }}", False, "'None'", id="text None"),
        pytest.param("{{ params.value }}", True, "None", id="native None"),
        pytest.param("{{ ' ' }}", False, "' '", id="blank text"),
        pytest.param("{# nothing #}", False, "''", id="a comment"),
        pytest.param("{# nothing #}", True, "None", id="a native comment"),
        pytest.param("{{ [] }}", True, "[]", id="native empty list"),
        pytest.param("{{ {} }}", True, "{}", id="native empty dict"),
        pytest.param("{{ undefined }}", True, "Undefined", id="native undefined"),
        pytest.param(OtherTask(None), False, "None", id="None of another task"),
        pytest.param(OtherTask([]), False, "[]", id="empty list of another task"),
        pytest.param(OtherTask(""), True, "''", id="empty text of another task"),
    ],
)
@pytest.mark.parametrize(("operator", "field"), FIELDS)
def test_what_came_out_as_nothing_is_one_error_at_once(connect, simulator, operator, field, written, native, came_out):
    connect(host=simulator.url)
    task = rendered(made(operator, field, written, render_template_as_native_obj=native), value=None)

    for each in (task, pickle.loads(pickle.dumps(task)) if native else copy.deepcopy(task)):
        with pytest.raises(ReductoConfigurationError) as error:
            each.execute({})
        assert f"{field} is given but resolved to {came_out}: {REMEDIES[field]}" in str(error.value)
    assert not simulator.requests


@pytest.mark.parametrize("undefined", [Undefined, None])
def test_an_undefined_name_is_not_left_out_whatever_jinja_makes_of_it(connect, simulator, undefined):
    connect(host=simulator.url)
    options = {"template_undefined": undefined} if undefined else {}
    task = made("export", "org_id", "{{ nothing }}", render_template_as_native_obj=True, **options)

    with pytest.raises(ReductoConfigurationError, match="org_id is given but resolved to Undefined"):
        rendered(task).execute({})
    assert not simulator.requests


@pytest.mark.parametrize("empty", ["", " \n", [], (), set()], ids=repr)
@pytest.mark.parametrize(("operator", "field"), FIELDS)
def test_a_literal_that_is_empty_is_refused_when_parsed(operator, field, empty):
    with pytest.raises(ValueError, match=f"^{field} is given but empty") as error:
        made(operator, field, empty)
    assert REMEDIES[field] in str(error.value)


REQUIRED = {"threshold", "budget", "organizations"}


@pytest.mark.parametrize(("operator", "field"), FIELDS)
def test_none_when_parsed_is_left_out(operator, field):
    if field in REQUIRED or (operator, field) == ("fleet", "output_path"):
        with pytest.raises(ValueError, match=field), DAG("given", schedule=None):
            MAKE[operator](task_id="none", **{field: None})
        return
    with DAG("given", schedule=None):
        left_out, none = MAKE[operator](task_id="left_out"), MAKE[operator](task_id="none", **{field: None})
    if (operator, field) != ("export", "output_path"):
        assert getattr(none, field) == getattr(left_out, field)
    rendered(none).check_arguments()


@pytest.mark.parametrize("made", [ReductoUsageExportOperator, ReductoUsageThresholdSensor])
def test_arguments_are_shown_to_who_inspects_a_class(made):
    parameters = inspect.signature(made).parameters
    assert "group_by" in parameters
    assert "self" not in parameters


@pytest.mark.parametrize("operator", MAKE)
def test_an_attribute_that_is_assigned_was_given(connect, simulator, operator):
    connect(host=simulator.url)
    task = made(operator, "products", None)
    task.products = ["parse", "{{ params.value }}"]

    with pytest.raises(ReductoConfigurationError, match="products is given but an element of it resolved to 'None'"):
        rendered(task, value=None).execute({})
    assert not simulator.requests


def test_so_was_one_that_a_subclass_assigns(connect, simulator):
    class OfATeam(ReductoUsageExportOperator):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.api_keys = "{{ params.team }}"

    connect(host=simulator.url)
    with DAG("given", schedule=None, render_template_as_native_obj=True):
        task = OfATeam(task_id="task")
    with pytest.raises(ReductoConfigurationError, match="api_keys is given but resolved to \\[\\]"):
        rendered(task, team=[]).execute({})


@pytest.mark.parametrize("operator", [ReductoUsageExportOperator, ReductoUsageThresholdSensor])
def test_a_subclass_has_templated_arguments_of_its_own(connect, simulator, operator):
    """Set after those here, as usual. What they may be is not for this package to say."""

    class OfATeam(operator):  # type: ignore[misc]
        template_fields = (*operator.template_fields, "team", "members")

        def __init__(self, *, team: str | None = None, members: Any = None, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.team = team
            self.members = members

    connect(host=simulator.url)
    given: dict[str, Any] = {"team": "", "members": ["{{ params.none }}"], "org_id": "{{ params.org }}", **MAY}
    if operator is ReductoUsageThresholdSensor:
        given["threshold"] = 1
    with DAG("given", schedule=None):
        task = OfATeam(task_id="task", **given)

    ready = rendered(task, none=None, org="org_acme")
    assert (ready.team, ready.members, ready.org_id) == ("", ["None"], "org_acme")
    ready.execute({})
    with pytest.raises(ReductoConfigurationError, match="org_id is given but resolved to 'None'"):
        rendered(task, none=None, org=None).execute({})


def test_a_subclass_that_templates_less():
    class OneOrganization(ReductoUsageExportOperator):
        template_fields = ("org_id",)

    with DAG("given", schedule=None):
        with pytest.raises(ValueError, match="api_keys is given but empty"):
            OneOrganization(task_id="task", api_keys=[])
        assert OneOrganization(task_id="none", group_by=None).group_by == "product"


@pytest.mark.parametrize("native", [False, True])
def test_templates_with_other_delimiters(connect, simulator, native):
    """Any text may be one: none is taken for literal, and all are checked when they are rendered."""
    connect(host=simulator.url)
    options = {"variable_start_string": "<<", "variable_end_string": ">>"}
    days = dict.fromkeys(MAY, "<< params.day >>")
    with DAG("given", schedule=None, jinja_environment_kwargs=options, render_template_as_native_obj=native):
        task = ReductoUsageExportOperator(
            task_id="task", org_id="<< params.org >>", products=["<< params.name >>", "b"], **days
        )
        with pytest.raises(ValueError, match="start_from_trigger can't be used"):
            ReductoUsageThresholdSensor(task_id="wait", threshold=1, start_from_trigger=True)
        wrong = ReductoUsageExportOperator(task_id="wrong", lookback_days=-1)

    rendered(task, org="org_acme", name="a").execute({})
    [request] = simulator.requests
    assert [value for name, value in request.query if name in ("orgId", "product", "startDate")] == [
        "2026-05-01",
        "org_acme",
        "a",
        "b",
    ]
    with pytest.raises(ReductoConfigurationError, match="org_id is given but resolved to"):
        rendered(task, org=None, name="a").execute({})
    with pytest.raises(ReductoConfigurationError, match="lookback_days must be a whole number"):
        rendered(wrong).execute({})


@pytest.mark.parametrize("value", ["False", None, 1])
def test_what_is_true_or_false_is_no_text(value):
    """Which would be taken for True."""
    with pytest.raises(ValueError, match="partitioned must be True or False"):
        ReductoUsageExportOperator(task_id="task", output_path="/nowhere", partitioned=value)


@pytest.mark.parametrize(
    ("written", "came_out"),
    [
        (["parse", "{{ params.none }}"], "'None'"),
        (["{{ params.blank }}", "parse"], "' '"),
        (["parse", OtherTask(None)], "None"),
        (["parse", OtherTask([])], "[]"),
        (("parse", OtherTask("")), "''"),
        ({"{{ params.none }}"}, "'None'"),
        (OtherTask(["parse", None]), "None"),
        (OtherTask(["parse", ""]), "''"),
        (OtherTask(("parse", "None")), "'None'"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("field", ["products", "features", "api_keys", "file_types"])
def test_an_element_of_a_list_that_came_out_as_nothing(connect, simulator, field, written, came_out):
    connect(host=simulator.url)
    with pytest.raises(ReductoConfigurationError) as error:
        rendered(made("export", field, written), none=None, blank=" ").execute({})
    assert f"{field} is given but an element of it resolved to {came_out}: " in str(error.value)
    assert not simulator.requests


@pytest.mark.parametrize(
    "organizations",
    [
        ["org_acme", "{{ params.none }}"],
        ["org_acme", OtherTask(None)],
        [{"org_id": "{{ params.none }}"}],
        [{"org_id": "org_acme", "reducto_conn_id": OtherTask("")}],
        OtherTask(["org_acme", None]),
        OtherTask([{"org_id": "org_acme", "reducto_conn_id": None}]),
    ],
    ids=repr,
)
def test_an_element_of_a_fleet_that_came_out_as_nothing(connect, simulator, organizations):
    connect(host=simulator.url)
    with pytest.raises(ReductoConfigurationError, match="organizations is given but an element of it resolved to"):
        rendered(made("fleet", "organizations", organizations), none=None).execute({})
    assert not simulator.requests


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("operator", MAKE)
def test_what_is_literal_is_taken_as_it_is_written(operator, native):
    """Native rendering makes a number of digits and None of a text that says so, template or not."""
    names = ["[legacy]", "(ci)", "None", "7", " a ", "a,b", "*", "{{ params.day }}"]
    task = rendered(made(operator, "api_keys", names, render_template_as_native_obj=native))

    task.check_arguments()
    assert task.api_keys == [*names[:-1], "2026-05-01"]
    assert rendered(made(operator, "file_types", "7", render_template_as_native_obj=native)).file_types == "7"


@pytest.mark.parametrize("operator", ["export", "reconciliation", "poke", "deferrable"])
def test_digits_of_a_native_template(connect, simulator, operator):
    """A text of digits becomes a number, which is no id; quotes keep it what it is, as the error says."""
    connect(host=simulator.url)
    with DAG("given", schedule=None, render_template_as_native_obj=True):
        for number, (field, written) in enumerate(
            [("org_id", "{{ params.id }}"), ("api_keys", "{{ params.id }}"), ("api_keys", ["a", "{{ params.id }}"])]
        ):
            task = MAKE[operator](task_id=f"task_{number}", **MAY, **{field: written})
            with pytest.raises(ReductoConfigurationError) as error:
                rendered(task, id="12345").execute({})
            assert f"{field} must be text, not 12345" in str(error.value)
            assert "as in \"'{{ params.name }}'\"" in str(error.value)
        quoted = MAKE[operator](task_id="quoted", **MAY, org_id="'{{ params.id }}'")
    assert rendered(quoted, id="12345").org_id == "12345"
    assert not simulator.requests


RUN = """
from datetime import timedelta
from tests.airflow_sdk import DAG, task, task_group
from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator
from reducto_provider.operators.reconciliation import ReductoUsageReconciliationOperator
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor

EXPORT = {{"usage_start_date": "2026-05-01", "usage_end_date": "2026-05-02", "retries": 2, "retry_delay": timedelta(0)}}
PARAMS = {{"none": None, "blank": " ", "empty": [], "org": "org_globex", "all": "*", "run": "run"}}

with DAG("given", schedule=None, params=PARAMS, render_template_as_native_obj={native}, default_args={default_args!r}):
    @task
    def none():
        return None

    @task
    def empty():
        return []

    @task
    def holed():
        return ["parse", None]

    @task
    def broken():
        raise ValueError("no keys today")

    none, empty, holed = none(), empty(), holed()
    export, mapped = ReductoUsageExportOperator, ReductoUsageExportOperator.partial
{tasks}
"""


def run_tasks(run_dag: Any, *tasks: str, native: bool = False, default_args: dict[str, Any] | None = None) -> Any:
    """Run a DAG of these tasks, each named task_N, with %s for what else is given."""
    written = [f"    {task}" for task in (each.replace("TASK", f"task_{n}") for n, each in enumerate(tasks))]
    return run_dag(RUN.format(native=native, default_args=default_args or {}, tasks="\n".join(written)))


def test_what_other_tasks_and_params_made_nothing_of(run_dag, simulator):
    """On real Airflow: each task fails at once, without a retry or a request."""
    tasks = {
        "export(task_id='TASK', api_keys=empty, **EXPORT)": "api_keys is given but resolved to []",
        "export(task_id='TASK', api_keys=holed, **EXPORT)": "api_keys is given but an element of it resolved to None",
        "export(task_id='TASK', api_keys=['a', none], **EXPORT)": "api_keys is given but an element of it resolved to",
        "export(task_id='TASK', org_id=none, **EXPORT)": "org_id is given but resolved to None",
        "export(task_id='TASK', org_id='{{ params.none }}', **EXPORT)": "org_id is given but resolved to None",
        "export(task_id='TASK', org_id=broken(), trigger_rule='all_done', **EXPORT)": "org_id is given but resolved to",
        "export(task_id='TASK', retries=2, usage_start_date=none, usage_end_date=none)": "usage_start_date is given",
        "export(task_id='TASK', output_path=none, **EXPORT)": "output_path is given but resolved to None",
        "export(task_id='TASK', output_path='/nowhere', output_format='focus_csv', price_per_credit='1', "
        "contracted_price_per_credit='{{ params.none }}', **EXPORT)": "contracted_price_per_credit is given but",
        "ReductoUsageFleetExportOperator(task_id='TASK', organizations=empty, output_path='/nowhere', **EXPORT)": (
            "organizations is given but resolved to []"
        ),
        "ReductoUsageReconciliationOperator(task_id='TASK', products='{{ params.empty }}', **EXPORT)": (
            "products is given but resolved to []"
        ),
        **{
            f"ReductoUsageThresholdSensor(task_id='TASK', threshold=1, {mode}, retries=2, usage_start_date='{{{{ "
            "params.none }}', usage_end_date='{{ params.none }}')": "usage_start_date is given but resolved to None"
            for mode in ("mode='poke'", "mode='reschedule'", "deferrable=True")
        },
    }
    result = run_tasks(run_dag, *tasks, native=True).expect("failed")

    errors = {error.task_id: error for error in result.errors if error.task_id != "broken"}
    assert len(errors) == len(tasks) == len(result.errors) - 1, "no retry is spent"
    for number, said in enumerate(tasks.values()):
        assert errors[f"task_{number}"].type == "ReductoConfigurationError"
        assert said in errors[f"task_{number}"].message
    assert not simulator.requests


def test_an_element_of_a_mapped_argument_was_given(run_dag, simulator):
    result = run_tasks(
        run_dag,
        "mapped(task_id='TASK', **EXPORT).expand(org_id=['org_acme', None])",
        "mapped(task_id='TASK', **EXPORT).expand(products=holed)",
        "mapped(task_id='TASK', **EXPORT).expand_kwargs([{'org_id': None}, {'features': []}, {'file_types': ' '}])",
        "mapped(task_id='TASK', org_id='org_acme', **EXPORT).expand_kwargs([{'org_id': None}], strict=False)",
        "mapped(task_id='TASK', **EXPORT).expand(org_id=['{{ params.none }}'])",
        "mapped(task_id='TASK', org_id='{{ params.none }}', **EXPORT).expand(group_by=['product'])",
        "mapped(task_id='TASK', **EXPORT).expand(lookback_days=['2'])",
        "ReductoUsageThresholdSensor.partial(task_id='TASK', threshold=1, retries=2, deferrable=True)"
        ".expand(org_id=[None])",
        "mapped(task_id='TASK', org_id=None, **EXPORT).expand_kwargs([{'org_id': None}], strict=False)",
        "task_group(group_id='TASK')(lambda org: export(task_id='export', org_id=org, **EXPORT)).expand(org=[None])",
        native=True,
    ).expect("failed")

    said = {(error.task_id, error.map_index): error for error in result.errors if error.task_id.startswith("task")}
    assert {error.type for error in said.values()} == {"ReductoConfigurationError"}
    assert len(said) == sum(error.task_id.startswith("task") for error in result.errors), "no retry is spent"
    assert {key: error.message.partition(": ")[2].split(" is given")[0] for key, error in said.items()} == {
        ("task_0", 1): "org_id",
        ("task_1", 1): "products",
        ("task_2", 0): "org_id",
        ("task_2", 1): "features",
        ("task_2", 2): "file_types",
        ("task_3", 0): "org_id",
        ("task_4", 0): "org_id",
        ("task_5", 0): "org_id",
        ("task_6", 0): "lookback_days must be a whole number, 0 or more, not '2'",
        ("task_7", 0): "org_id",
        ("task_8", 0): "org_id",
        ("task_9.export", 0): "org_id",
    }
    queries = [dict(request.query) for request in simulator.requests]
    assert [(query.get("orgId"), query.get("product")) for query in queries] == [("org_acme", None), (None, "parse")]


def test_what_was_left_out_keeps_its_default(run_dag, simulator):
    """None in partial() is left out, and so is None in default_args; what these name otherwise was given."""
    result = run_tasks(
        run_dag,
        "export(task_id='TASK', org_id='org_acme', api_keys=None, group_by=None, **EXPORT)",
        "mapped(task_id='TASK', products=None, output_path=None, **EXPORT).expand(org_id=['org_acme'])",
        "mapped(task_id='TASK', group_by=None, **EXPORT).expand_kwargs([{'org_id': 'org_acme'}])",
        "mapped(task_id='TASK', org_id='org_acme', **EXPORT).expand(lookback_days=[0])",
        default_args={"features": None, "file_types": None},
    ).expect()

    assert [result.task_states()[key] for key in [("task_0", -1), ("task_1", 0), ("task_2", 0), ("task_3", 0)]]
    params = {"startDate": "2026-05-01", "endDate": "2026-05-02", "groupBy": "product", "orgId": "org_acme"}
    assert [dict(request.query) for request in simulator.requests] == [params] * 4


def test_default_args_count_as_named(run_dag, simulator):
    result = run_tasks(
        run_dag,
        "export(task_id='TASK', **EXPORT)",
        "mapped(task_id='TASK', **EXPORT).expand(lookback_days=[0])",
        default_args={"org_id": "{{ params.none }}"},
    ).expect("failed")

    messages = [error.message for error in result.errors if error.task_id.startswith("task")]
    assert len(messages) == 2
    assert all("org_id is given but resolved to 'None'" in message for message in messages)
    assert not simulator.requests


@pytest.mark.parametrize("native", [False, True])
def test_optional_params_have_a_word_for_all(run_dag, simulator, native):
    run_tasks(
        run_dag,
        "export(task_id='TASK', org_id='{{ params.org }}', products='{{ params.all }}', retries=2,"
        " usage_start_date='{{ params.run }}', usage_end_date='{{ params.run }}', lookback_days=2)",
        native=native,
    ).expect()

    [request] = simulator.requests
    query = dict(request.query)
    assert query["orgId"] == "org_globex"
    assert "product" not in query
    assert date.fromisoformat(query["endDate"]) - date.fromisoformat(query["startDate"]) == timedelta(days=2)

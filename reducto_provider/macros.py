"""Functions for templates and tasks of DAG authors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import pass_context

from reducto_provider.airflow_compat import run_from_context
from reducto_provider.usage.days import USAGE_TIMEZONE, DayRange
from reducto_provider.usage.window import days_of_run


@pass_context
def usage_days(context: Mapping[str, Any], timezone: str = USAGE_TIMEZONE) -> DayRange:
    """
    Return the days that a task's DAG run covers, as :func:`reducto_provider.usage.window.days_of_run` defines them.

    As a macro of a DAG (``user_defined_macros={"usage_days": usage_days}``) it takes the context from the template.

    :param context: the task's context, for instance from ``get_current_context()``.
    :param timezone: the time zone whose days to count.
    :raises NoDayEndedError: if the run covers no day, as after a change of the clock near midnight.
    :raises ValueError: if a partition key names no days.
    """
    return days_of_run(run_from_context(context), timezone)

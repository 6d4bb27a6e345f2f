"""
The names of Airflow that the tests and their DAGs use, from wherever the Airflow that the suite runs on has them.

Airflow skips DAG files in which the word "airflow" does not occur: keep it in this module's name.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

MODULES = (
    "reducto_provider.airflow_compat",
    *("airflow.sdk", "airflow.sdk.exceptions", "airflow.sdk.log", "airflow.sdk.execution_time.secrets_masker"),
    # Airflow 2 and, for what was not in the SDK yet, 3.0.
    *("airflow.decorators", "airflow.models.dag", "airflow.models.baseoperator", "airflow.models.param"),
    *("airflow.operators.python", "airflow.exceptions", "airflow.utils.log.secrets_masker", "airflow.utils.task_group"),
)


def find(name: str, *modules: str) -> Any:
    """Return what the first of these modules has that has it, or None."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError):
            continue
    return None


def __getattr__(name: str) -> Any:
    if name.startswith("__") or (found := find(name, *MODULES)) is None:
        raise AttributeError(name)
    return found

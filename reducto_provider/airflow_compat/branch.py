"""The branch mixin of Airflow, which only the branches of a budget need."""

from __future__ import annotations

from collections.abc import Sequence

from reducto_provider.airflow_compat import AIRFLOW_VERSION, BranchMixIn


class SkippingBranchMixIn(BranchMixIn):
    """
    Airflow's branch mixin, which skips in a mapped task group as well.

    There Airflow leaves it to the scheduler to skip. From 3.2 on its scheduler looks for what a branch followed under
    the index of a branch that is not mapped, finds nothing, and runs all branches. The instances are there by then:
    those of a mapped task group are made together.
    """

    if AIRFLOW_VERSION >= (3, 2):

        @staticmethod
        def _set_state_to_skipped(tasks: Sequence[str | tuple[str, int]], map_index: int | None) -> None:
            from airflow.sdk.exceptions import DownstreamTasksSkipped

            if tasks:
                raise DownstreamTasksSkipped(tasks=tasks)  # type: ignore[no-untyped-call]

"""Compact and vacuum a Delta table of usage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reducto_provider.airflow_compat import GivenArguments
from reducto_provider.exceptions import translate_errors
from reducto_provider.export.delta.location import check_table_location
from reducto_provider.usage.checks import check_whole_number
from reducto_provider.usage.fields import is_literal

if TYPE_CHECKING:
    from reducto_provider.airflow_compat import Context


class ReductoUsageTableUpkeepOperator(GivenArguments):
    """
    Compact a Delta table of usage, and on request vacuum it.

    Exports compact the table by themselves, a month at a time. This operator compacts all months that have many files,
    except for the newest forty days. Exports may run at the same time.

    The XCom holds ``compacted_files`` and ``removed_files``: how many files were replaced by few, and how many were
    removed; and ``months_left``, the ``group_by`` and ``month`` of those that still have many files, since exports
    changed the table while they were compacted.

    :param output_path: the location of the table.
    :param output_conn_id: the Airflow connection for the object store.
    :param vacuum_keep_days: remove the files that only versions older than this many days need, which then can't be
        read any more. By default nothing is removed: the history is complete.
    :raises ValueError: when the DAG is parsed, for an invalid literal argument.
    """

    template_fields: Sequence[str] = ("output_path", "output_conn_id")
    ui_color = "#e4e0f5"

    def __init__(
        self,
        *,
        output_path: str,
        output_conn_id: str | None = None,
        vacuum_keep_days: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.output_path = output_path
        self.output_conn_id = output_conn_id
        self.vacuum_keep_days = vacuum_keep_days
        self.parse_arguments()

    def execute(self, context: Context) -> dict[str, Any]:
        """Compact the table, and vacuum it if that is requested."""
        from reducto_provider.export.delta.upkeep import compact_table, vacuum_table

        with translate_errors(self.task_id):
            self.check_arguments()
            compacted, removed = compact_table(self.output_path, self.output_conn_id), 0
            if self.vacuum_keep_days is not None:
                removed = len(vacuum_table(self.output_path, self.output_conn_id, keep_days=self.vacuum_keep_days))
        self.log.info("Compacted %d files of %s, and removed %d", compacted.files, self.output_path, removed)
        left = [{"group_by": group_by, "month": f"{month:%Y-%m}"} for group_by, month in compacted.months_left]
        return {"compacted_files": compacted.files, "removed_files": removed, "months_left": left}

    def _check_literals(self) -> None:
        if is_literal(self.output_path):
            check_table_location(self.output_path)
        if self.vacuum_keep_days is not None:
            check_whole_number("vacuum_keep_days", self.vacuum_keep_days, 1)

"""The link from a task to Reducto Studio, which shows its organization's usage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey

STUDIO_URL = "https://studio.reducto.ai"


class ReductoStudioLink(BaseOperatorLink):
    """Open Reducto Studio's start page. The address of its usage page is not documented."""

    name = "Reducto Studio"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        return STUDIO_URL

"""From a task to Reducto Studio, where its organization's usage is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reducto_provider.airflow_compat import BaseOperatorLink

if TYPE_CHECKING:
    from reducto_provider.airflow_compat import BaseOperator, TaskInstanceKey

STUDIO_URL = "https://studio.reducto.ai"


class ReductoStudioLink(BaseOperatorLink):
    """Opens Reducto Studio. The address of its usage page is not documented, so the link leads to its front."""

    name = "Reducto Studio"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        return STUDIO_URL

"""The link from a task to Reducto Studio."""

from __future__ import annotations

import pytest

from reducto_provider.links.studio import ReductoStudioLink
from reducto_provider.operators.export import ReductoUsageExportOperator
from reducto_provider.operators.fleet import ReductoUsageFleetExportOperator
from reducto_provider.operators.reconciliation import ReductoUsageReconciliationOperator
from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor

TASKS = (
    ReductoUsageExportOperator(task_id="task"),
    ReductoUsageFleetExportOperator(task_id="task", organizations=["org_acme"], output_path="/usage"),
    ReductoUsageReconciliationOperator(task_id="task"),
    ReductoUsageThresholdSensor(task_id="task", threshold=1),
)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_every_task_leads_to_studio(task):
    [link] = task.operator_extra_links

    assert isinstance(link, ReductoStudioLink)
    assert (link.name, link.get_link(task, ti_key=None)) == ("Reducto Studio", "https://studio.reducto.ai")

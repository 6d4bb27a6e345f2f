"""
# A DAG that runs when an organization exceeds a level of its budget

Watchers in the triggerer read the month's usage of each organization once an hour. When usage exceeds 50, 80 or 100
percent of the budget, a watcher fires an event, once for each level, month and organization, and this DAG runs. Levels
that are exceeded at the same time share a run. No sensor waits, and no DAG run is open meanwhile.

Replace `act` by your own action: notify somebody, open a ticket, pause the DAGs that use Reducto.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from reducto_organizations import ORGANIZATIONS

from reducto_provider.triggers.levels import ReductoUsageLevelTrigger

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task

LEVELS = (50, 80, 100)  # percent of the budget

try:
    from airflow.sdk import Asset as WatchedAsset
    from airflow.sdk import AssetAny, AssetWatcher
except ImportError:  # Airflow 2 has no watchers
    AssetWatcher = None


@task
def act(*, triggering_asset_events: dict) -> list[str]:
    """Print which organization exceeded which level of its budget. An event has the level and the reading."""
    messages = []
    for events in triggering_asset_events.values():
        for event in events:
            level, reading = event.extra["payload"]["level"], event.extra["payload"]["reading"]
            messages.append(
                f"{reading['org_id']} exceeded {level:g} % of its budget of {reading['threshold']:,} "
                f"{reading['metric']}: {reading['value']:,} from {reading['usage_start_date']} to "
                f"{reading['usage_end_date']}"
            )
    print(*messages, sep="\n")
    return messages


if AssetWatcher is not None:
    # One asset per level: an event of an asset starts no run while another event of the same asset waits for its run.
    exceeded = [
        WatchedAsset(
            f"reducto_budget_{organization['id']}_{level}",
            watchers=[
                AssetWatcher(
                    name=f"reducto_budget_{organization['id']}_{level}",
                    trigger=ReductoUsageLevelTrigger(
                        org_id=organization["id"],
                        reducto_conn_id=organization["connection"],
                        budget=organization["budget"],
                        metric=organization["metric"],
                        levels=[level],
                        poke_interval=timedelta(hours=1),
                    ),
                )
            ],
        )
        for organization in ORGANIZATIONS
        for level in LEVELS
    ]

    with DAG(
        dag_id="reducto_usage_budget_levels",
        schedule=AssetAny(*exceeded),
        start_date=datetime(2026, 1, 1),
        catchup=False,
        doc_md=__doc__,
        tags=["reducto", "example"],
    ):
        act()

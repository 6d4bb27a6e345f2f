"""
# Chargeback by API key: a DAG that runs when a key exceeds its share of the budget

Each API key may use a quarter of its organization's monthly budget. Watchers in the triggerer read the month's usage
by API key once an hour. When keys exceed 80 or 100 percent of their share, a watcher fires an event that lists them,
and this DAG runs. Each key appears once for each level and month.

Replace `charge` by your own action: notify the key's owner, open a ticket, charge a cost center.
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

try:
    from airflow.sdk import Asset as WatchedAsset
    from airflow.sdk import AssetAny, AssetWatcher
except ImportError:  # Airflow 2 has no watchers
    AssetWatcher = None

SHARE = 0.25  # of the organization's budget, for each key
LEVELS = (80, 100)  # percent of that


@task
def charge(*, triggering_asset_events: dict) -> list[str]:
    """Print which API key exceeded which level of its share. An event has the level and a reading for each key."""
    messages = [
        f"{reading['org_id']}, {reading['group']}: {reading['value']:,} {reading['metric']} from "
        f"{reading['usage_start_date']} to {reading['usage_end_date']}, "
        f"more than {event.extra['payload']['level']:g} % of {reading['threshold']:,}"
        for events in triggering_asset_events.values()
        for event in events
        for reading in event.extra["payload"]["readings"]
    ]
    print(*messages, sep="\n")
    return messages


if AssetWatcher is not None:
    # One asset per level: an event of an asset starts no run while another event of the same asset waits for its run.
    exceeded = [
        WatchedAsset(
            f"reducto_keys_{organization['id']}_{level}",
            watchers=[
                AssetWatcher(
                    name=f"reducto_keys_{organization['id']}_{level}",
                    trigger=ReductoUsageLevelTrigger(
                        org_id=organization["id"],
                        reducto_conn_id=organization["connection"],
                        budget=SHARE * organization["budget"],
                        metric=organization["metric"],
                        group_by="api_key",
                        per_group=True,
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
        dag_id="reducto_usage_budget_keys",
        schedule=AssetAny(*exceeded),
        start_date=datetime(2026, 1, 1),
        catchup=False,
        doc_md=__doc__,
        tags=["reducto", "example"],
    ):
        charge()

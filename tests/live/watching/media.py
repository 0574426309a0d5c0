"""DAGs of the live test of watchers: one takes the ready assets, one has watchers without events."""

from __future__ import annotations

import functools
import operator
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from airflow.sdk import DAG, Asset, AssetWatcher, Context, task

from airflow_provider_roughy.events import take_assets
from airflow_provider_roughy.triggers import RoughyAssetsReadyTrigger

#: A folder each: of the ledger, and of what was done with each asset.
TAKEN, DONE = os.environ["WATCHED_TAKEN"], Path(os.environ["WATCHED_DONE"])


def watched(name: str, project_id: str | None = None) -> Asset:
    """Declare an asset of Airflow's, whose events come from a watcher of its own."""
    trigger = RoughyAssetsReadyTrigger(ledger=TAKEN, project_id=project_id, poll_interval=3)
    return Asset(name, watchers=[AssetWatcher(name="ready", trigger=trigger)])


# As often as the scheduler may be killed.
with DAG(
    "reacts_to_media",
    schedule=watched("roughy_media"),
    default_args={"retries": 50, "retry_delay": timedelta(seconds=1)},
):

    @task
    def take(**context: Any) -> list[str]:
        """Return the assets that are this run's."""
        return take_assets(cast("Context", context), ledger=TAKEN)

    @task
    def process(asset_ids: Any, run_id: str | None = None) -> None:
        """Write down for each that this run has dealt with it."""
        for asset_id in asset_ids:
            with (DONE / asset_id).open("a") as done:
                done.write(f"{run_id}\n")

    process(take())

# Of projects in which there is nothing.
OTHERS = [watched(f"roughy_media_{number}", f"019de7f7-3a52-74d1-9eeb-{number:012}") for number in range(1, 20)]

never_runs = DAG("never_runs", schedule=functools.reduce(operator.and_, OTHERS))

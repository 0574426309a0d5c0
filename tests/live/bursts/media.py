"""DAGs of the live test of bursts: each takes all assets, by webhooks or a watcher, with one or many events per run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from airflow.sdk import DAG, Asset, AssetWatcher, Context, task

from airflow_provider_roughy.compat import QUEUES_EACH_EVENT
from airflow_provider_roughy.events import take_assets
from airflow_provider_roughy.triggers import RoughyAssetsReadyTrigger

#: A folder for each DAG: of its ledger, and of what its runs have taken.
LEDGERS, DONE = Path(os.environ["BURST_LEDGERS"]), Path(os.environ["BURST_DONE"])


def schedules(asset: Asset) -> dict[str, Any]:
    """Return the schedules for an asset, by name: Airflow's default, and on Airflow 3.4 its own argument."""
    if not QUEUES_EACH_EVENT:
        return {"": [asset]}
    from airflow.sdk.definitions.timetables.assets import AssetTriggeredTimetable

    return {"": [asset], "_batched": AssetTriggeredTimetable(asset, batch_asset_events=True)}  # type: ignore[call-arg]


def watched(name: str) -> Asset:
    """Return an asset with a watcher whose ledger is that of a DAG."""
    trigger = RoughyAssetsReadyTrigger(ledger=str(LEDGERS / name), poll_interval=6)
    return Asset(name, watchers=[AssetWatcher(name="ready", trigger=trigger)])


plans = {f"told{kind}": schedule for kind, schedule in schedules(Asset("roughy_media")).items()}
plans |= {f"watching{kind}": schedules(watched(f"watching{kind}"))[kind] for kind in schedules(Asset("x"))}

for dag_id, schedule in plans.items():
    with DAG(dag_id, schedule=schedule, max_active_runs=4):

        @task
        def take(dag: Any = None, run_id: Any = None, **context: Any) -> None:
            """Write down the assets that are this run's."""
            ids = take_assets(cast("Context", context), ledger=LEDGERS / dag.dag_id)
            (DONE / dag.dag_id / run_id).write_text("\n".join(ids))

        take()

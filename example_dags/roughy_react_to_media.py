"""Whenever media becomes ready, whoever uploaded it: cut it, and export captions. Needs Airflow 3.0 or later.

The watcher looks at the account's assets in a triggerer, and starts this DAG with all that has become ready since it
was first switched on. It does so again until they are taken, since Airflow may leave a single event lying. ``take``
hands each asset to one run only: what was taken is kept in the ledger, a folder that triggerers and workers share. What
was not paid for comes by itself after a top-up, be it weeks later.

If a run fails, clear its failed tasks: what it has taken is not given to another one.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task, task_group

from airflow_provider_roughy.events import take_assets
from airflow_provider_roughy.operators import RoughyCutOperator, RoughyExportSubtitlesOperator
from airflow_provider_roughy.triggers import RoughyAssetsReadyTrigger

# [START media]
#: Read when the DAG is, as a watcher has no templates.
LEDGER = os.environ.get("ROUGHY_TAKEN", "/data/roughy-taken")
CAPTIONS = os.environ.get("ROUGHY_CAPTIONS", "/data/captions")
#: The asset of an instance, which the grid shows rather than 0, 1, 2.
ASSET_ID = "{{ ti.xcom_pull(task_ids='take')[ti.map_index] }}"

media = Asset(
    "roughy_media",
    watchers=[AssetWatcher(name="ready", trigger=RoughyAssetsReadyTrigger(ledger=LEDGER, poll_interval=30))],
)
# [END media]

with DAG(
    dag_id="roughy_react_to_media",
    schedule=[media],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10), "map_index_template": ASSET_ID},
    tags=["roughy"],
    doc_md=__doc__,
) as dag:
    # [START take]
    @task(map_index_template=None)
    def take(**context: Any) -> list[str]:
        """Return the assets that are this run's."""
        return take_assets(context, ledger=LEDGER)

    @task_group
    def caption(asset_id: str) -> None:
        """Take one asset all the way."""
        cut = RoughyCutOperator(task_id="cut", asset_id=asset_id, deferrable=True, poll_interval=5)
        RoughyExportSubtitlesOperator(task_id="captions", cut_id=cut.output, target=f"{CAPTIONS}/{ASSET_ID}.srt")

    caption.expand(asset_id=take())
    # [END take]

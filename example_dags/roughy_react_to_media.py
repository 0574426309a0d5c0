"""Cut each recording that becomes ready, whoever uploaded it, and export captions. Needs Airflow 3.0 or later.

The watcher polls the account's assets in a triggerer. It starts this DAG with all assets that have become ready since
its first start. It repeats assets that no run has taken, because Airflow may not start a DAG for a single event.
``take`` gives each asset to one run only: the ledger, a folder that triggerers and workers share, has the assets that
were taken. An unpaid asset is announced when it becomes ready after a top-up, even weeks later.

If a run fails, clear its failed tasks. No other run gets the assets that it has taken.
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
#: Read when the DAG is parsed, because a watcher has no templates.
LEDGER = os.environ.get("ROUGHY_TAKEN", "/data/roughy-taken")
CAPTIONS = os.environ.get("ROUGHY_CAPTIONS", "/data/captions")
#: The asset of a task instance. The grid shows it instead of 0, 1, 2.
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
        """Return the assets that this run takes."""
        return take_assets(context, ledger=LEDGER)

    @task_group
    def caption(asset_id: str) -> None:
        """Cut one asset and export its captions."""
        cut = RoughyCutOperator(task_id="cut", asset_id=asset_id, deferrable=True, poll_interval=5)
        RoughyExportSubtitlesOperator(task_id="captions", cut_id=cut.output, target=f"{CAPTIONS}/{ASSET_ID}.srt")

    caption.expand(asset_id=take())
    # [END take]

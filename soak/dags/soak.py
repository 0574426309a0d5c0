"""The DAGs of a soak: ingest the new recordings, turn videos into rough cuts, and take every asset that is ready."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any, cast

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Asset, AssetWatcher, task, task_group
from airflow.sdk.exceptions import AirflowSkipException

from airflow_provider_roughy.events import take_assets
from airflow_provider_roughy.operators import (
    RoughyCutOperator,
    RoughyDownloadOperator,
    RoughyExportSubtitlesOperator,
    RoughyIngestOperator,
    RoughyRenderOperator,
)
from airflow_provider_roughy.triggers import RoughyAssetsReadyTrigger

FOLDER = os.environ["ROUGHY_SOAK"]
TAKEN = f"{FOLDER}/taken"
CUTS = f"{FOLDER}/cuts"
#: The asset of a mapped task instance.
ASSET_ID = "{{ ti.xcom_pull(task_ids='videos')[ti.map_index] }}"

OPTIONS: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1),
    "catchup": False,
    # With enough retries for the kills of a soak.
    "default_args": {"retries": 3, "retry_delay": timedelta(seconds=5)},
}
WAIT: dict[str, Any] = {"deferrable": True, "poll_interval": 3, "timeout": 3600}

with DAG("soak_night", schedule=None, max_active_runs=2, **OPTIONS):
    ingest = RoughyIngestOperator(
        task_id="ingest",
        source=f"{FOLDER}/recordings",
        ledger=f"{FOLDER}/ledger",
        on_pending_payment="return",
        on_failed="return",
        **WAIT,
    )

    @task
    def videos(asset_ids: Any, sources: Any) -> list[str]:
        """Return the assets of videos."""
        found = [asset_id for asset_id in asset_ids if sources[asset_id].endswith(".mp4")]
        if not found:
            raise AirflowSkipException("No video became ready")
        return found

    ingested: Any = ingest.output
    # A fixed run id, so that a second try starts no second run.
    TriggerDagRunOperator(
        task_id="cut_them",
        trigger_dag_id="soak_rough_cuts",
        trigger_run_id="of_{{ run_id }}",
        conf={"asset_ids": videos(ingested, ingested["sources"])},
        skip_when_already_exists=True,
    )

with DAG("soak_rough_cuts", schedule=None, **OPTIONS):

    @task(task_id="videos")
    def videos_of_run(dag_run: Any = None) -> list[str]:
        """Return the assets of the run's configuration."""
        return list(dag_run.conf["asset_ids"])

    @task_group
    def rough_cut(asset_id: Any) -> None:
        """Cut, caption, render and download one video."""
        cut: Any = RoughyCutOperator(task_id="cut", asset_id=asset_id, **WAIT)
        RoughyExportSubtitlesOperator(task_id="captions", cut_id=cut.output, target=f"{CUTS}/{ASSET_ID}.srt")
        render: Any = RoughyRenderOperator(
            task_id="render", asset_id=asset_id, cut_id=cut.output, output={"format": "mp4"}, **WAIT
        )
        RoughyDownloadOperator(task_id="download", render_id=render.output, target=f"{CUTS}/{ASSET_ID}.mp4")

    rough_cut.expand(asset_id=videos_of_run())

# The API server creates events of the same Airflow asset, from Roughy's webhooks.
media = Asset(
    "roughy_media",
    watchers=[AssetWatcher(name="ready", trigger=RoughyAssetsReadyTrigger(ledger=TAKEN, poll_interval=5))],
)

with DAG("soak_media", schedule=[media], **OPTIONS):

    @task
    def take(**context: Any) -> list[str]:
        """Return the assets that this run has taken."""
        return take_assets(cast(Any, context), ledger=TAKEN)

    take()

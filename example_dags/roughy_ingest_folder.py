"""Upload all recordings of a folder every night, with a mapped task for each file.

Airflow retries each file separately. An error in one file does not affect the others.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_provider_roughy.compat import DAG, Param, task
from airflow_provider_roughy.operators import RoughyCreateUploadOperator
from airflow_provider_roughy.sensors import RoughyAssetSensor

with DAG(
    dag_id="roughy_ingest_folder",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    params={"folder": Param("/data/recordings", type="string", description="Where the recordings of the day are")},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["roughy"],
    doc_md=__doc__,
) as dag:
    # [START task_per_file]
    @task
    def recordings(params: dict) -> list[str]:
        """List the folder."""
        from pathlib import Path

        return sorted(str(path) for path in Path(params["folder"]).iterdir() if path.is_file())

    upload = RoughyCreateUploadOperator.partial(
        task_id="upload",
        max_active_tis_per_dag=4,  # More would only share the worker's uplink.
        map_index_template="{{ task.source.rpartition('/')[2] }}",  # The grid shows files.
    ).expand(source=recordings())

    @task(trigger_rule="all_done")
    def uploaded(asset_ids: list[str]) -> list[str]:
        """Leave out the files that were not uploaded, because they have no asset."""
        return [asset_id for asset_id in asset_ids if asset_id]

    wait = RoughyAssetSensor.partial(
        task_id="wait",
        deferrable=True,
        poke_interval=5,
        timeout=6 * 3600,
        map_index_template="{{ task.asset_id }}",
    ).expand(asset_id=uploaded(upload.output))

    @task(trigger_rule="all_done")
    def report(assets: list[dict]) -> dict:
        """Return how many recordings are ready, and their minutes."""
        ready = [asset for asset in assets if asset]
        minutes = sum(float(asset["duration_seconds"]) for asset in ready) / 60
        return {"ready": len(ready), "minutes": round(minutes, 1)}

    report(wait.output)
    # [END task_per_file]

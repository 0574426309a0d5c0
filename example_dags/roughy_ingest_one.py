"""Upload one recording, wait for it without a worker slot, use it, and delete it.

Run it with the path or URI of a recording: ``{"source": "/data/interview.mp4"}``.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_provider_roughy.compat import DAG, Param, task
from airflow_provider_roughy.operators import RoughyCreateUploadOperator, RoughyDeleteAssetOperator
from airflow_provider_roughy.sensors import RoughyAssetSensor

with DAG(
    dag_id="roughy_ingest_one",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    params={"source": Param("/data/interview.mp4", type="string", description="A path, or a URI such as s3://…")},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["roughy"],
    doc_md=__doc__,
) as dag:
    upload = RoughyCreateUploadOperator(task_id="upload", source="{{ params.source }}")

    ready = RoughyAssetSensor(
        task_id="wait_until_ready",
        asset_id=upload.output,
        deferrable=True,
        poke_interval=5,
        timeout=3600,
    )

    @task
    def use(asset: dict) -> str:
        """Use the asset. Put your own work here."""
        return f"{asset['type']} of {asset['duration_seconds']} s, {asset['size_bytes']} bytes"

    # A teardown deletes the asset whether the work succeeds or fails.
    delete = RoughyDeleteAssetOperator(task_id="delete", asset_id=upload.output).as_teardown(setups=upload.as_setup())

    use(ready.output) >> delete

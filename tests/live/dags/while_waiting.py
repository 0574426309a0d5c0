"""DAGs of the live tests for events during the wait for an asset."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_provider_roughy.operators import RoughyCreateUploadOperator
from airflow_provider_roughy.sensors import RoughyAssetSensor

CONN_ID = "{{ dag_run.conf['conn_id'] }}"
ASSET: dict[str, Any] = {"asset_id": "{{ dag_run.conf['asset_id'] }}", "roughy_conn_id": CONN_ID}
# A retry that is burned shows in the try number, and soon.
RETRIES = {"retries": 3, "retry_delay": timedelta(seconds=1)}

with DAG("awaits", schedule=None, default_args=RETRIES):
    RoughyAssetSensor(
        task_id="wait",
        **ASSET,
        deferrable=True,
        poke_interval=1,
        timeout=300,
        # Less than any of the waits: it bounds what a worker does, not what the triggerer does.
        execution_timeout=timedelta(seconds=15),
    )

with DAG("awaits_another_each_try", schedule=None, default_args=RETRIES):
    RoughyAssetSensor(
        task_id="wait",
        asset_id="{{ dag_run.conf['asset_ids'][ti.try_number - 1] }}",
        roughy_conn_id=CONN_ID,
        deferrable=True,
        poke_interval=1,
        timeout=300,
    )

with DAG("awaits_briefly", schedule=None, default_args=RETRIES):
    RoughyAssetSensor(task_id="wait", **ASSET, deferrable=True, poke_interval=1, timeout=25)

with DAG("uploads_and_awaits", schedule=None, default_args=RETRIES):
    RoughyCreateUploadOperator(
        task_id="wait",
        source="{{ dag_run.conf['source'] }}",
        roughy_conn_id=CONN_ID,
        wait_for_completion=True,
        deferrable=True,
        poll_interval=1,
        timeout=300,
    )

with DAG("awaits_by_default", schedule=None, default_args=RETRIES):
    RoughyAssetSensor(task_id="wait", **ASSET, poke_interval=1, timeout=5)

with DAG("uploads_and_awaits_by_default", schedule=None, default_args=RETRIES):
    RoughyCreateUploadOperator(
        task_id="wait",
        source="{{ dag_run.conf['source'] }}",
        wait_for_completion=True,
        poll_interval=1,
        timeout=5,
    )

with DAG("awaits_by_default_at_leisure", schedule=None, default_args=RETRIES):
    RoughyAssetSensor(task_id="wait", **ASSET, poke_interval=60, timeout=60)

with DAG("awaits_on_a_worker", schedule=None, default_args=RETRIES):
    # Reschedules about as short as the executor's event lag would be taken for failures.
    for mode in ("poke", "reschedule"):
        RoughyAssetSensor(task_id=mode, **ASSET, deferrable=False, mode=mode, poke_interval=5, timeout=300)

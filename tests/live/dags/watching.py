"""A DAG of the live tests that waits for many assets at the same time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_roughy.sensors import RoughyAssetSensor

with DAG("many_wait", schedule=None):

    @task
    def waits(dag_run: Any = None) -> list[dict[str, Any]]:
        """Say what is waited for, and how: arguments of the sensor."""
        return list(dag_run.conf["waits"])

    RoughyAssetSensor.partial(
        task_id="wait",
        deferrable=True,
        poke_interval=5,
        timeout=1800,
        # A retry that is burned shows in the try number, and soon.
        retries=3,
        retry_delay=timedelta(seconds=1),
    ).expand_kwargs(waits())

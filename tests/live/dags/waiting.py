"""DAGs of the live tests that wait for assets."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_roughy.operators import RoughyCreateUploadOperator
from airflow_provider_roughy.sensors import RoughyAssetSensor

SOURCE = "{{ dag_run.conf['source'] }}"
# A retry that is burned shows in the try number, and soon.
RETRIES = {"retries": 3, "retry_delay": timedelta(seconds=1)}

with DAG("waits", schedule=None, default_args=RETRIES):
    upload: Any = RoughyCreateUploadOperator(task_id="upload", source=SOURCE)
    RoughyAssetSensor(task_id="wait", asset_id=upload.output, deferrable=True, poke_interval=2, timeout=300)

with DAG("unpaid", schedule=None, default_args=RETRIES):
    upload = RoughyCreateUploadOperator(task_id="upload", source=SOURCE)
    for policy in ("fail", "skip", "return", "wait"):
        RoughyAssetSensor(
            task_id=policy,
            asset_id=upload.output,
            on_pending_payment=policy,
            deferrable=True,
            poke_interval=2,
            timeout=300,
        )

with DAG("uploads_and_waits", schedule=None, default_args=RETRIES):
    RoughyCreateUploadOperator(
        task_id="upload",
        source=SOURCE,
        wait_for_completion=True,
        deferrable=True,
        poll_interval=2,
        timeout=300,
    )

with DAG("crowd", schedule=None):

    @task
    def people(dag_run: Any = None) -> list[int]:
        """Say how many meet."""
        return list(range(dag_run.conf["count"]))

    @task
    def meet(number: int, dag_run: Any = None) -> None:
        """Come to the meeting place, and stay until all are there at the same time."""
        place = Path(dag_run.conf["place"])
        (place / str(number)).touch()
        deadline = time.monotonic() + 120
        while len(list(place.iterdir())) < dag_run.conf["count"]:
            if time.monotonic() > deadline:
                raise TimeoutError("The others did not come")
            time.sleep(0.1)

    meet.expand(number=people())

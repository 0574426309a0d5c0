"""DAGs of the live tests that create cuts and renders of an asset."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_roughy.operators import RoughyRenderOperator

with DAG("renders", schedule=None, default_args={"retries": 3, "retry_delay": timedelta(seconds=1)}):
    for wanted in (True, False):
        RoughyRenderOperator(
            task_id="cancelled" if wanted else "kept",
            asset_id="{{ dag_run.conf['asset_id'] }}",
            output={"format": "mp3" if wanted else "m4a"},
            cancel_on_kill=wanted,
            deferrable=True,
            poll_interval=2,
            timeout=300,
        )

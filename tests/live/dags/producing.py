"""A DAG of the live tests that makes the outputs of a batch."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_roughy.operators import RoughyProduceOperator

with DAG("produces", schedule=None, render_template_as_native_obj=True):
    RoughyProduceOperator(
        task_id="produce",
        asset_ids="{{ dag_run.conf['asset_ids'] }}",
        captions=["srt", "vtt"],
        render={"audio": {"format": "m4a"}},
        target="{{ dag_run.conf['target'] }}/{asset_id}/",
        ledger="{{ dag_run.conf['ledger'] }}",
        deferrable=True,
        poll_interval=1,
        timeout=600,
        retries=10,
        retry_delay=timedelta(seconds=1),
    )

"""A DAG of the live tests whose task has enough retries for many kills."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_roughy.operators import RoughyCreateUploadOperator

with DAG("uploads", schedule=None):
    RoughyCreateUploadOperator(
        task_id="upload",
        source="{{ dag_run.conf['source'] }}",
        roughy_conn_id="{{ dag_run.conf['conn_id'] }}",
        retries=30,
        retry_delay=timedelta(seconds=1),
    )

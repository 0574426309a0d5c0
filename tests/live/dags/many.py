"""A DAG of the live tests that uploads many files, two at a time."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_roughy.operators import RoughyCreateUploadOperator

with DAG("two_at_a_time", schedule=None):

    @task
    def files(dag_run: Any = None) -> list[str]:
        """Say which files."""
        return list(dag_run.conf["files"])

    RoughyCreateUploadOperator.partial(task_id="upload", max_active_tis_per_dag=2).expand(source=files())

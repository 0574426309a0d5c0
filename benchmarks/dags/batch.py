"""The DAGs of ``benchmarks/batch.py``: a folder as one task, and as one task per file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_roughy.operators import RoughyCreateUploadOperator, RoughyIngestOperator

with DAG("one_task", schedule=None):
    RoughyIngestOperator(task_id="ingest", source="{{ dag_run.conf['folder'] }}", ledger="{{ dag_run.conf['ledger'] }}")

with DAG("one_task_per_file", schedule=None):

    @task
    def files(dag_run: Any = None) -> list[str]:
        """List the folder."""
        return sorted(str(path) for path in Path(dag_run.conf["folder"]).iterdir())

    RoughyCreateUploadOperator.partial(task_id="upload", wait_for_completion=True).expand(source=files())

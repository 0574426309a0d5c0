"""DAGs of the live tests, which ingest a folder in one task."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_provider_roughy.operators import RoughyIngestOperator

COMMON: dict[str, Any] = {
    "task_id": "ingest",
    "source": "{{ dag_run.conf['folder'] }}",
    "ledger": "{{ dag_run.conf['ledger'] }}",
    "roughy_conn_id": "{{ dag_run.conf.get('conn_id', 'roughy_default') }}",
    "poll_interval": 1,
    "retries": 3,
    "retry_delay": timedelta(seconds=1),
}

with DAG("ingests", schedule=None):
    RoughyIngestOperator(**COMMON)

with DAG("ingests_and_waits", schedule=None):
    RoughyIngestOperator(**COMMON, deferrable=True, timeout=300)

with DAG("ingests_briefly", schedule=None):
    # It bounds uploads and wait together, although Airflow does not count the time in the triggerer.
    RoughyIngestOperator(**COMMON, deferrable=True, timeout=300, execution_timeout=timedelta(seconds=20))

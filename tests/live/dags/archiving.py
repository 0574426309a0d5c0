"""A DAG of the live tests, whose mapped tasks share the manifest of a plan."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_roughy.operators import RoughyIngestOperator, RoughyPlanIngestOperator

SHARDS = 3

with DAG(
    "archives",
    schedule=None,
    default_args={
        "roughy_conn_id": "{{ dag_run.conf['conn_id'] }}",
        "retries": 3,
        "retry_delay": timedelta(seconds=1),
    },
):
    plan = RoughyPlanIngestOperator(
        task_id="plan",
        source="{{ dag_run.conf['folder'] }}",
        ledger="{{ dag_run.conf['ledger'] }}",
        manifest="{{ dag_run.conf['manifest'] }}",
        shards=SHARDS,
    )
    RoughyIngestOperator.partial(
        task_id="ingest", source=plan.output, parallel=2, poll_interval=1, deferrable=True, timeout=300
    ).expand(shard=list(range(SHARDS)))

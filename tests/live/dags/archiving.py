"""A DAG of the live tests, whose mapped tasks share the manifest of a plan."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_roughy.ledger import lease
from airflow_provider_roughy.operators import RoughyIngestOperator, RoughyPlanIngestOperator

SHARDS = 3

# In the process of each task, so that a test does not have to wait ten minutes until a lease expires.
if seconds := float(os.environ.get("ARCHIVES_LEASE_SECONDS", 0)):
    for name, module in list(sys.modules.items()):
        if name.startswith(lease.__name__.partition(".")[0]) and hasattr(module, "LEASE_SECONDS"):
            vars(module).update(LEASE_SECONDS=seconds, RENEW_SECONDS=seconds / 6)

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

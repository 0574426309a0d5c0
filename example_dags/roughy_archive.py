"""Ingest a whole archive, such as 100,000 recordings, by several workers that share one plan.

``plan`` lists the archive once and writes a manifest: one line for each recording that the ledger does not have yet, as
far as ``max_credits`` allows. The mapped task ``ingest`` uploads it: each of its instances takes one shard of the
manifest, and then helps the others. Each writes its results into the report beside the manifest; XComs have counts
only. ``summary`` and ``captions`` read the report.

Trigger it again to continue: a new plan contains only what is missing. A retry, a cleared task and a worker that was
killed upload and pay for nothing again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_provider_roughy.compat import DAG, AirflowSkipException, Param, task
from airflow_provider_roughy.operators import (
    RoughyIngestOperator,
    RoughyPlanIngestOperator,
    RoughyProduceOperator,
)

SHARDS = 3

with DAG(
    dag_id="roughy_archive",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    params={
        "archive": Param("/data/archive", type="string", description="Where the recordings are: a path, or s3://…"),
        "ledger": Param("/data/roughy-ledger", type="string", description="A folder that all workers can write to"),
        "captions": Param("/data/captions", type="string", description="Where the captions go"),
        "plans": Param("/data/roughy-plans", type="string", description="A folder for manifests and reports"),
        "max_credits": Param(5000, type="integer", minimum=0, description="The most credits that this run may cost"),
    },
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    tags=["roughy"],
    doc_md=__doc__,
) as dag:
    # [START archive]
    plan = RoughyPlanIngestOperator(
        task_id="plan",
        source="{{ params.archive }}",
        recursive=True,
        ledger="{{ params.ledger }}",
        manifest="{{ params.plans }}/{{ ts_nodash }}.jsonl",
        max_credits="{{ params.max_credits }}",
        shards=SHARDS,
    )
    ingest = RoughyIngestOperator.partial(
        task_id="ingest",
        source=plan.output,
        parallel=4,
        bandwidth_limit=50_000_000,  # Bytes a second, for each shard.
        on_pending_payment="return",
        on_failed="return",
        poll_interval=5,
        timeout=12 * 3600,
        deferrable=True,
    ).expand(shard=list(range(SHARDS)))
    # [END archive]

    # [START captions]
    RoughyProduceOperator(
        task_id="captions",
        from_report=ingest.output["report"],
        source_root="{{ params.archive }}",
        captions="srt",
        target="{{ params.captions }}/{source_dir}/{source_name}.srt",
        ledger="{{ params.ledger }}",
        poll_interval=5,
        timeout=12 * 3600,
        deferrable=True,
    )
    # [END captions]

    # [START summary]
    @task(trigger_rule="all_done")
    def summary(reports: list[str]) -> str:
        """Make one page of the parts of the report. Send the text by mail or chat here."""
        from airflow_provider_roughy.observability.report import combine_report

        folders = {report for report in reports if report}
        if not folders:
            raise AirflowSkipException("Nothing was planned")
        return "\n".join(combine_report(folder).text(report=folder) for folder in sorted(folders))

    summary(ingest.output["report"])
    # [END summary]

"""Ingest the new recordings of a folder every night, in one task, and report the ones that are not ready.

The ledger remembers which recordings were ingested: a retry, a cleared task or the next night uploads and pays for none
of them again. The result of ``ingest`` is the list of assets that are ready; ``go_on`` is mapped over it. The other
recordings are in XComs of ``ingest``.

- ``notify_unpaid`` names the recordings that the credits do not cover. They are uploaded: Roughy makes them ready after
  a top-up, and the next night reports them as ready. Until then, each night reports them again.
- ``notify_failed`` names the recordings that failed, were rejected or were interrupted, and why.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_provider_roughy.compat import DAG, AirflowSkipException, Param, task
from airflow_provider_roughy.operators import RoughyIngestOperator

with DAG(
    dag_id="roughy_nightly_batch",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    params={
        "folder": Param("/data/recordings", type="string", description="Where the recordings are: a path, or s3://…"),
        "ledger": Param("/data/roughy-ledger", type="string", description="A folder that all workers can write to"),
    },
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["roughy"],
    doc_md=__doc__,
) as dag:
    # [START ingest]
    ingest = RoughyIngestOperator(
        task_id="ingest",
        source="{{ params.folder }}",
        ledger="{{ params.ledger }}",
        on_pending_payment="return",
        on_failed="return",
        deferrable=True,
        poll_interval=5,
        timeout=6 * 3600,
    )
    # [END ingest]

    # [START outcomes]
    # The grid shows files instead of 0, 1, 2.
    @task(map_index_template="{{ ti.xcom_pull(task_ids='ingest', key='names')[ti.map_index] }}")
    def go_on(asset_id: str) -> str:
        """Use a recording that is ready. Put your own work here, or a cut or render."""
        return asset_id

    @task
    def notify_unpaid(asset_ids: list[str], sources: dict) -> str:
        """Notify the people who can top up. Send a mail or a chat message here."""
        if not asset_ids:
            raise AirflowSkipException("All recordings are paid for")
        return "\n".join(["Top up at Roughy within 30 days for:", *(sources[asset_id] for asset_id in asset_ids)])

    @task
    def notify_failed(failed: dict, rejected: dict, interrupted: dict, sources: dict) -> str:
        """Notify the people who made the recordings or who run this DAG. Send a mail or a chat message here."""
        # The keys of `failed` are asset ids, those of the others are files.
        reasons = {**failed, **rejected, **interrupted}
        if not reasons:
            raise AirflowSkipException("Nothing went wrong")
        return "\n".join(f"{sources.get(name, name)}: {reason}" for name, reason in reasons.items())

    go_on.expand(asset_id=ingest.output)
    xcoms = ingest.output
    notify_unpaid(xcoms["pending_payment"], xcoms["sources"])
    notify_failed(xcoms["failed"], xcoms["rejected"], xcoms["interrupted"], xcoms["sources"])
    # [END outcomes]

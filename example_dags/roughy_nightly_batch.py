"""Every night, ingest what is new in a folder, in one task; what is ready goes on, and two notifications tell the rest.

The ledger remembers what was ingested: nothing is uploaded, or paid for, twice, whatever is retried, cleared or killed.
Each night's result is the list of assets that became ready, which ``go_on`` is mapped over. (Airflow maps over a task's
result only; what else came of the night is in XComs beside it.)

- ``notify_unpaid`` names what the credits did not cover. It is uploaded: after a top-up Roughy makes it ready by
  itself, and the next night reports it as ready.
- ``notify_failed`` names what failed, was refused or is not finished, and why.
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
    # The grid shows files, not 0, 1, 2.
    @task(map_index_template="{{ ti.xcom_pull(task_ids='ingest', key='sources')[task.op_kwargs['asset_id']] }}")
    def go_on(asset_id: str) -> str:
        """Stand for whatever follows when a recording is ready: a cut, a render, a line in a catalogue."""
        return asset_id

    @task
    def notify_unpaid(asset_ids: list[str], sources: dict) -> str:
        """Tell who can top up. A mail or a chat message would go out here."""
        if not asset_ids:
            raise AirflowSkipException("All is paid for")
        return "\n".join(["Top up at Roughy within 30 days for:", *(sources[asset_id] for asset_id in asset_ids)])

    @task
    def notify_failed(failed: dict, refused: dict, unfinished: dict, sources: dict) -> str:
        """Tell who made the recordings, or who runs this."""
        # By asset, or by file where there is none.
        reasons = {**failed, **refused, **unfinished}
        if not reasons:
            raise AirflowSkipException("Nothing went wrong")
        return "\n".join(f"{sources.get(name, name)}: {reason}" for name, reason in reasons.items())

    go_on.expand(asset_id=ingest.output)
    told = ingest.output
    notify_unpaid(told["pending_payment"], told["sources"])
    notify_failed(told["failed"], told["refused"], told["unfinished"], told["sources"])
    # [END outcomes]

"""Upload a recording. If the credits do not cover it, ask for a top-up, wait for it, then continue.

``pending_payment`` is neither success nor failure: Roughy has the bytes and keeps them for 30 days. It makes the asset
ready after a top-up, and nothing is uploaded again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_provider_roughy.compat import DAG, Param, task
from airflow_provider_roughy.operators import RoughyCreateUploadOperator
from airflow_provider_roughy.sensors import RoughyAssetSensor

with DAG(
    dag_id="roughy_branch_on_payment",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    params={"source": Param("/data/interview.mp4", type="string", description="A path, or a URI such as s3://…")},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["roughy"],
    doc_md=__doc__,
) as dag:
    # [START branch]
    upload = RoughyCreateUploadOperator(task_id="upload", source="{{ params.source }}")

    settle = RoughyAssetSensor(
        task_id="wait_until_settled",
        asset_id=upload.output,
        on_pending_payment="return",
        deferrable=True,
        poke_interval=5,
        timeout=3600,
    )

    @task.branch
    def paid(asset: dict) -> str:
        """Choose the next task by the state that the sensor returned."""
        return "ask_for_top_up" if asset["state"] == "pending_payment" else "go_on"

    @task
    def ask_for_top_up(asset: dict) -> None:
        """Ask for a top-up. Send a mail or a chat message here."""
        minutes = -(-float(asset["duration_seconds"]) // 60)
        print(f"Asset {asset['id']} needs {minutes:.0f} credits: please top up")

    topped_up = RoughyAssetSensor(
        task_id="wait_for_top_up",
        asset_id=upload.output,
        on_pending_payment="wait",
        deferrable=True,
        poke_interval=5,
        timeout=timedelta(days=29).total_seconds(),
    )

    @task(trigger_rule="none_failed_min_one_success")
    def go_on(asset_id: str) -> str:
        """Use the asset, which is ready on both branches."""
        return asset_id

    decision = paid(settle.output)
    asked = ask_for_top_up(settle.output)
    done = go_on(upload.output)
    decision >> [asked, done]
    asked >> topped_up >> done
    # [END branch]

"""Upload a recording; if the credits do not cover it, tell somebody and wait for the top-up, then go on.

``pending_payment`` is neither success nor failure: the bytes are there and stay for 30 days, and Roughy makes the asset
ready by itself once there are credits. So nothing is uploaded again.
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
        """Look at what the sensor returned."""
        return "ask_for_top_up" if asset["state"] == "pending_payment" else "go_on"

    @task
    def ask_for_top_up(asset: dict) -> None:
        """Tell somebody. A mail or a chat message would go out here."""
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
        """Use the asset, which is ready whichever way it came here."""
        return asset_id

    decision = paid(settle.output)
    asked = ask_for_top_up(settle.output)
    done = go_on(upload.output)
    decision >> [asked, done]
    asked >> topped_up >> done
    # [END branch]

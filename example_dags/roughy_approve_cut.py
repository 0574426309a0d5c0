"""Cut a recording, let a person look at the captions and approve, then render the cut. Needs Airflow 3.1 or later.

``approve`` takes no worker until somebody answers under "Required Actions" in Airflow's UI, or in the API. A
rejected cut is not rendered: the tasks after ``approve`` are skipped.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, Param

from airflow_provider_roughy.operators import (
    RoughyCreateUploadOperator,
    RoughyCutOperator,
    RoughyDownloadOperator,
    RoughyExportSubtitlesOperator,
    RoughyRenderOperator,
)

with DAG(
    dag_id="roughy_approve_cut",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    params={
        "source": Param("/data/interview.mp4", type="string", description="The recording"),
        "target": Param("/data/rough-cuts", type="string", description="The folder that the results go to"),
    },
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["roughy"],
    doc_md=__doc__,
) as dag:
    # [START approve]
    upload = RoughyCreateUploadOperator(task_id="upload", source="{{ params.source }}")
    cut = RoughyCutOperator(task_id="cut", asset_id=upload.output, deferrable=True, poll_interval=5)
    captions = RoughyExportSubtitlesOperator(
        task_id="captions", cut_id=cut.output, target="{{ params.target }}/captions.srt"
    )
    approve = ApprovalOperator(
        task_id="approve",
        subject="Render this cut of {{ params.source }}?",
        body="Cut {{ ti.xcom_pull(task_ids='cut') }}; its captions are in {{ ti.xcom_pull(task_ids='captions') }}.",
    )
    render = RoughyRenderOperator(
        task_id="render",
        asset_id=upload.output,
        cut_id=cut.output,
        output={"format": "mp4", "resolution": "720p"},
        deferrable=True,
        poll_interval=5,
    )
    download = RoughyDownloadOperator(
        task_id="download", render_id=render.output, target="{{ params.target }}/rough-cut.mp4"
    )
    captions >> approve >> render
    # [END approve]

"""Make rough cuts of new recordings every night: captions, a timeline for the editor, a video.

One task uploads the new recordings and waits until they are ready. Its ledger remembers them, so none is uploaded
twice. Then each recording is cut, and continues while others are still being cut: captions, timeline and rendered video
are written into a folder with its name. Both folders may be in any storage that Airflow supports, such as
``s3://bucket/recordings``.

A file that failed, was rejected or is not paid for does not affect the rest: it is in the log of ``ingest`` and in its
XComs ``failed``, ``rejected`` and ``pending_payment``. A recording that was not paid for is cut in the night after a
top-up.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_provider_roughy.compat import DAG, Param, task_group
from airflow_provider_roughy.operators import (
    RoughyCutOperator,
    RoughyDownloadOperator,
    RoughyExportCutOperator,
    RoughyExportSubtitlesOperator,
    RoughyIngestOperator,
    RoughyRenderOperator,
)

# [START file]
#: The file of a task instance. It names the folder, and the grid shows it instead of 0, 1, 2.
FILE = "{{ ti.xcom_pull(task_ids='ingest', key='names')[ti.map_index] }}"
FOLDER = "{{ params.target }}/" + FILE
# [END file]

with DAG(
    dag_id="roughy_rough_cut",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    params={
        "source": Param("/data/recordings", type="string", description="Where the recordings are"),
        "target": Param("/data/rough-cuts", type="string", description="Where the rough cuts go"),
        "ledger": Param("/data/roughy-ledger", type="string", description="Remembers which recordings were ingested"),
        "resolution": Param(
            "1080p", enum=["720p", "1080p", "4k"], description="Resolution of the video, which is never upscaled"
        ),
    },
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10), "map_index_template": FILE},
    tags=["roughy"],
    doc_md=__doc__,
) as dag:
    # [START rough_cut]
    ingest = RoughyIngestOperator(
        task_id="ingest",
        source="{{ params.source }}",
        ledger="{{ params.ledger }}",
        on_pending_payment="return",
        on_failed="return",
        deferrable=True,
        poll_interval=5,
        map_index_template=None,
    )

    @task_group
    def rough_cut(asset_id: str) -> None:
        """Make and download the rough cut of one recording."""
        waiting = {"deferrable": True, "poll_interval": 5, "timeout": 6 * 3600}
        cut = RoughyCutOperator(task_id="cut", asset_id=asset_id, **waiting)
        RoughyExportSubtitlesOperator(task_id="captions", cut_id=cut.output, target=FOLDER + "/captions.srt")
        RoughyExportCutOperator(
            task_id="timeline", cut_id=cut.output, format="fcpxml", target=FOLDER + "/timeline.fcpxml"
        )
        render = RoughyRenderOperator(
            task_id="render",
            asset_id=asset_id,
            cut_id=cut.output,
            output={"format": "mp4", "resolution": "{{ params.resolution }}"},
            **waiting,
        )
        RoughyDownloadOperator(task_id="download", render_id=render.output, target=FOLDER + "/rough-cut.mp4")

    rough_cut.expand(asset_id=ingest.output)
    # [END rough_cut]

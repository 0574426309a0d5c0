"""Every night, from recordings in a folder to rough cuts in another: captions, a timeline for the editor, a video.

One task uploads what is new and waits until it is ready; its ledger keeps it from uploading anything twice. Then each
recording is cut, and goes on while others are still cut: captions, timeline and rendered video are written into a
folder of its name. Both folders may be in any storage that Airflow knows, such as ``s3://bucket/recordings``.

Nothing sinks the others: a file that is refused, failed or not paid for is an entry in the log of ``ingest`` and in its
XComs ``refused``, ``failed`` and ``pending_payment``. What was not paid for goes on by itself in the night after a
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
#: The file of an instance, which names its folder, and which the grid shows rather than 0, 1, 2.
FILE = (
    "{{ ti.xcom_pull(task_ids='ingest', key='sources')[ti.xcom_pull(task_ids='ingest')[ti.map_index]]"
    ".rpartition('/')[2] }}"
)
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
        "ledger": Param("/data/roughy-ledger", type="string", description="Where is remembered what was uploaded"),
        "resolution": Param("1080p", enum=["720p", "1080p", "4k"], description="Of the video, which is never upscaled"),
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
        """Take one recording all the way."""
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

"""Make rough cuts of new recordings every night: captions, a timeline for the editor, a video.

One task uploads the new recordings and waits until they are ready. Its ledger remembers them, so none is uploaded
twice. A second task cuts all of them and writes captions, timeline and rendered video into a folder with the name of
the recording. It remembers in the same ledger what it has written. A recording continues while others are still being
cut. Source, target and ledger may be in any storage that Airflow supports, such as ``s3://bucket/recordings``.

Audio and video may be in the same folder: audio becomes an m4a, and gets captions but no timeline, as it has no frame
rate.

A file that failed, was rejected or is not paid for does not affect the rest: it is in the log of ``ingest`` and in its
XComs ``failed``, ``rejected`` and ``pending_payment``. A recording that was not paid for is cut in the night after a
top-up. A recording that could not be cut or rendered fails ``produce`` at the end, when all others are written.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_provider_roughy.compat import DAG, Param
from airflow_provider_roughy.operators import RoughyIngestOperator, RoughyProduceOperator

with DAG(
    dag_id="roughy_rough_cut",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    params={
        "source": Param("/data/recordings", type="string", description="Where the recordings are"),
        "target": Param("/data/rough-cuts", type="string", description="Where the rough cuts go"),
        "ledger": Param("/data/roughy-ledger", type="string", description="Remembers what was ingested and written"),
        "resolution": Param(
            "1080p", enum=["720p", "1080p", "4k"], description="Resolution of the video, which is never upscaled"
        ),
    },
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
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
    )

    produce = RoughyProduceOperator(
        task_id="produce",
        asset_ids=ingest.output,
        captions=["srt", "vtt"],
        timeline="fcpxml",
        render={
            "video": {"format": "mp4", "resolution": "{{ params.resolution }}"},
            "audio": {"format": "m4a"},
        },
        target="{{ params.target }}/{source_dir}/{source_name}/",
        ledger="{{ params.ledger }}",
        deferrable=True,
        poll_interval=5,
        timeout=6 * 3600,
    )
    # [END rough_cut]

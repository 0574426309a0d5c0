"""The outputs of many recordings: in one task, and with mapped tasks for each."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, cast

from airflow_provider_roughy.compat import DAG, task, task_group
from airflow_provider_roughy.operators import (
    RoughyCutOperator,
    RoughyDownloadOperator,
    RoughyExportCutOperator,
    RoughyExportSubtitlesOperator,
    RoughyProduceOperator,
    RoughyRenderOperator,
)

OPTIONS: dict[str, Any] = {
    "schedule": None,
    "start_date": datetime(2026, 1, 1),
    "params": {"file": "", "target": ""},
    "default_args": {"retries": 1, "retry_delay": timedelta(seconds=2)},
}
WAITING: dict[str, Any] = {"deferrable": True, "poll_interval": 5, "timeout": 3600}


@task
def ids(params: Any = None) -> Any:
    """Read the ids of the assets."""
    import json
    from pathlib import Path

    return json.loads(Path(params["file"]).read_text())


with DAG("produce_in_one_task", **OPTIONS):
    RoughyProduceOperator(
        task_id="produce",
        asset_ids=cast("Any", ids()),
        captions="srt",
        timeline="fcpxml",
        frame_rate=25,
        render={"format": "m4a"},
        target="{{ params.target }}/{asset_id}/",
        ledger="{{ params.target }}-ledger",
        **WAITING,
    )

with DAG("produce_mapped", **OPTIONS):

    @task_group
    def produce(asset_id: Any) -> None:
        """Make the outputs of one recording."""
        folder = "{{ params.target }}/"
        cut: Any = RoughyCutOperator(task_id="cut", asset_id=asset_id, **WAITING)
        RoughyExportSubtitlesOperator(task_id="captions", cut_id=cut.output, target=folder)
        RoughyExportCutOperator(task_id="timeline", cut_id=cut.output, format="fcpxml", frame_rate=25, target=folder)
        render: Any = RoughyRenderOperator(
            task_id="render", asset_id=asset_id, cut_id=cut.output, output={"format": "m4a"}, **WAITING
        )
        RoughyDownloadOperator(task_id="download", render_id=render.output, target=folder)

    produce.expand(asset_id=ids())

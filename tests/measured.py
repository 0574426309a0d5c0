"""A process with Airflow's metrics on, by its environment: a batch that waits in a triggerer, then a download.

``python -m tests.measured SOURCE LEDGER TARGET``
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from airflow_provider_roughy.observability import metrics
from airflow_provider_roughy.operators import RoughyDownloadOperator, RoughyIngestOperator
from tests.running import TaskInstance, run_task


class Ingest(RoughyIngestOperator):
    """Continues after the wait as in another process, in which nothing has started the metrics."""

    def execute_complete(self, context: Any, event: dict[str, Any] | None = None) -> list[str] | str:
        """Continue."""
        metrics.stop()
        return super().execute_complete(context, event)


def main(source: str, ledger: str, target: str) -> None:
    """Run both tasks; what the batch waits for is counted as in a triggerer, whose module is imported."""
    import_module("airflow.jobs.triggerer_job_runner")
    ti = TaskInstance("night")
    batch = Ingest(task_id="ingest", source=source, ledger=ledger, deferrable=True, poll_interval=0.5, timeout=60)
    ended = run_task(batch, context={"ti": ti})
    assert ended.waited == "triggerer", ended
    assert ended.state == "success", ended
    download = RoughyDownloadOperator(task_id="download", asset_id=ended.result[0], target=f"{target}/")
    assert run_task(download).state == "success"


if __name__ == "__main__":
    main(*sys.argv[1:])

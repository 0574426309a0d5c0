"""One upload in a new process, which prints its cost as JSON, without imports.

Usage: ``python -m benchmarks.uploads operator FILE [ASSET_ID]`` (this package, with Airflow's connection from the
environment), ``... tuspy FILE URL CHUNK_BYTES`` (tuspy without changes; 0 for the whole file at once), or
``... memory FILE`` (this package's memory, step by step).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module

from benchmarks.measure import forget_peak, measured, memory

#: The modules that a task's process of Airflow 3 has imported before it parses a DAG.
IDLE = ("airflow.sdk.execution_time.supervisor", "airflow.sdk.execution_time.task_runner")
#: The modules of this package that an upload imports.
OURS = (
    "airflow_provider_roughy.operators",
    "airflow_provider_roughy.http.client",
    "airflow_provider_roughy.transfer.tus",
)


def operator(file: str, asset_id: str | None = None) -> dict[str, float]:
    """Upload with the operator, or resume with it.

    :returns: A sample's fields, and when the operator started: seconds on the machine's monotonic clock.
    """
    for name in (*IDLE, *OURS):
        import_module(name)
    from airflow_provider_roughy.operators import RoughyCreateUploadOperator

    task = RoughyCreateUploadOperator(task_id="upload", source=file, asset_id=asset_id)
    started = time.monotonic()
    return {**asdict(measured(lambda: task.execute({}))), "started": started}


def tuspy(file: str, url: str, chunk_bytes: str) -> dict[str, float]:
    """Upload with tuspy.

    :returns: A sample's fields.
    """
    from tusclient.client import TusClient

    size = {"chunk_size": int(chunk_bytes)} if int(chunk_bytes) else {}
    return asdict(measured(lambda: TusClient(url).uploader(file_path=file, url=url, **size).upload()))


def memory_steps(file: str) -> dict[str, int]:
    """Upload with the operator and measure this process' memory during the upload.

    :returns: Resident bytes after Airflow's imports, after this package's, and before the first byte is read; and the
        peak from there to the last byte.
    """
    for name in IDLE:
        import_module(name)
    steps = {"idle": memory("VmRSS")}
    for name in OURS:
        import_module(name)
    steps["imported"] = memory("VmRSS")

    from airflow_provider_roughy.operators import RoughyCreateUploadOperator
    from airflow_provider_roughy.transfer.source import Reader

    plain = Reader.blocks

    def blocks(self: Reader, offset: int, length: int) -> Iterator[bytes]:
        forget_peak()
        steps["first"] = memory("VmRSS")
        yield from plain(self, offset, length)
        steps["peak"] = memory("VmHWM")

    Reader.blocks = blocks  # type: ignore[method-assign]
    RoughyCreateUploadOperator(task_id="upload", source=file).execute({})
    return steps


if __name__ == "__main__":
    work = {"operator": operator, "tuspy": tuspy, "memory": memory_steps}[sys.argv[1]]
    print(json.dumps(work(*sys.argv[2:])))  # type: ignore[operator]

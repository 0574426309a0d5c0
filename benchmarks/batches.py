"""A folder of recordings in a new process, which prints its cost as JSON, without imports.

Usage: ``python -m benchmarks.batches operator FOLDER [LEDGER]`` (this package, with Airflow's connection from the
environment), or ``... script FOLDER URL KEY PROJECT`` (by hand: one ``POST`` and one ``PATCH`` per file, nothing else).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

from benchmarks.measure import measured, memory
from benchmarks.uploads import IDLE, OURS

#: Concurrent uploads.
PARALLEL = 4


def operator(folder: str, ledger: str | None = None) -> dict[str, float]:
    """Ingest with the operator.

    :returns: A sample's fields, and the resident bytes before anything of this package was imported.
    """
    for name in IDLE:
        import_module(name)
    idle = memory("VmRSS")
    for name in OURS:
        import_module(name)
    from airflow_provider_roughy.operators import RoughyIngestOperator

    task = RoughyIngestOperator(task_id="ingest", source=folder, ledger=ledger, parallel=PARALLEL)
    ti = SimpleNamespace(
        dag_id="batch", task_id="ingest", run_id=folder, map_index=-1, xcom_push=lambda key, value: None
    )
    return {**asdict(measured(lambda: task.execute({"ti": ti}))), "idle": idle}  # type: ignore[typeddict-item]


def script(folder: str, url: str, key: str, project_id: str) -> dict[str, float]:
    """Upload by hand, with the same number of concurrent uploads.

    :returns: A sample's fields, and the resident bytes before.
    """
    import httpx

    files = iter(sorted(Path(folder).iterdir()))

    async def blocks(file: Path) -> AsyncIterator[bytes]:
        with file.open("rb") as reader:
            while block := reader.read(1024 * 1024):
                yield block

    async def work(client: httpx.AsyncClient) -> None:
        for file in files:
            size = file.stat().st_size
            created = await client.post("/v1/assets", json={"project_id": project_id, "size_bytes": size})
            headers = {
                "Tus-Resumable": "1.0.0",
                "Upload-Offset": "0",
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(size),
            }
            url = created.raise_for_status().json()["upload_url"]
            (await client.patch(url, content=blocks(file), headers=headers)).raise_for_status()

    async def upload() -> None:
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            await asyncio.gather(*(work(client) for _ in range(PARALLEL)))

    idle = memory("VmRSS")
    return {**asdict(measured(lambda: asyncio.run(upload()))), "idle": idle}


if __name__ == "__main__":
    work = {"operator": operator, "script": script}[sys.argv[1]]
    print(json.dumps(work(*sys.argv[2:])))  # type: ignore[operator]

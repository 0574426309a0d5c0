"""An archive that several worker processes share, one of which is killed."""

from __future__ import annotations

import hashlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.observability.report import read_report
from harness.airflow import LocalAirflow
from tests.live import LIVE
from tests.live.running import Run, connect, wait_until
from tests.uploading import asked

pytestmark = LIVE

COUNT = 90


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    """A Roughy of this test's own, which takes its time for each upload."""
    with Emulator(progression="immediate") as emulator:
        emulator.inject(Fault(method="PATCH", path="/v1/uploads/*", delay=0.3, times=None))
        yield emulator


def test_mapped_tasks_share_an_archive_and_one_is_killed(
    start: Callable[..., Run],
    roughy: Emulator,
    recordings: dict[str, Path],
    local_airflow: LocalAirflow,
    tmp_path: Path,
) -> None:
    folder, manifest = tmp_path / "archive", tmp_path / "plan.jsonl"
    folder.mkdir()
    audio = recordings["audio"].read_bytes()
    for number in range(COUNT):
        (folder / f"{number:03}.mp3").write_bytes(audio + bytes(number))
    conn_id = connect(local_airflow, roughy)
    run = start("archives", folder=folder, ledger=tmp_path / "ledger", manifest=manifest, conn_id=conn_id)
    wait_until(lambda: asked(roughy, "PATCH") >= COUNT // 4)
    where = (run.dag_id, run.run_id, "ingest", 1)
    pids = local_airflow.worker_pids(*where)
    os.kill(pids[0], signal.SIGKILL)
    assert run.end() == "success"
    assert local_airflow.task_instance(*where)["try_number"] == 2

    wanted = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir())
    assert sorted(asset["sha256"] for asset in roughy.assets if asset["stored_bytes"]) == wanted
    rows = Counter(row.source for row in read_report(tmp_path / "plan-results"))
    assert rows == Counter({str(path): 1 for path in folder.iterdir()})
    sizes = [
        len(str(local_airflow.xcom(run.dag_id, run.run_id, "ingest", number, key)))
        for number in range(3)
        for key in ("return_value", "report", "counts")
    ]
    assert max(sizes) < 300

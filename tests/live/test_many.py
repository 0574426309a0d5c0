"""Many uploads of one mapped task."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from airflow_provider_roughy.emulator import Emulator, Fault
from tests.live import LIVE
from tests.live.running import PARALLELISM, Run

pytestmark = LIVE

LIMIT, COUNT = 2, 6


def test_no_more_uploads_run_at_a_time_than_the_dag_allows(
    start: Callable[..., Run], roughy: Emulator, recordings: dict[str, Path], tmp_path: Path
) -> None:
    assert LIMIT < PARALLELISM, "there are slots for more"
    files = [shutil.copy(recordings["audio"], tmp_path / f"{number}.mp3") for number in range(COUNT)]
    roughy.clear_requests()
    # Long enough for a third to start meanwhile.
    roughy.inject(Fault(method="PATCH", delay=3, times=None))
    try:
        run = start("two_at_a_time", files=[str(path) for path in files])
        assert run.end() == "success"
    finally:
        roughy.clear_faults()

    assets = [run.airflow.xcom(run.dag_id, run.run_id, "upload", map_index) for map_index in range(COUNT)]
    sha256 = hashlib.sha256(recordings["audio"].read_bytes()).hexdigest()
    assert {roughy.asset(asset)["sha256"] for asset in assets} == {sha256}
    assert len(set(assets)) == COUNT
    assert busiest(roughy) == LIMIT


def busiest(roughy: Emulator) -> int:
    """Return how many uploads were under way at the same time, at most."""
    patches = [request for request in roughy.requests if request.method == "PATCH"]
    return max(
        sum(other.started_at <= one.started_at < other.started_at + other.seconds for other in patches)
        for one in patches
    )

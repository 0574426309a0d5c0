"""The example DAGs on a real Airflow; ``test_demo.py`` runs those that are not run here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from airflow_provider_roughy.emulator import Emulator
from harness.airflow import LocalAirflow
from tests import media
from tests.live import LIVE
from tests.live.conftest import EXAMPLE_DAGS
from tests.live.running import Run, wait_until

pytestmark = LIVE


def test_all_example_dags_are_imported_without_errors(local_airflow: LocalAirflow) -> None:
    expected = {path.stem for path in EXAMPLE_DAGS.glob("*.py")}
    assert len(expected) >= 3
    wait_until(lambda: expected <= listed(local_airflow))
    assert local_airflow.request("GET", "/importErrors").json()["import_errors"] == []


def listed(airflow: LocalAirflow) -> set[str]:
    dags = airflow.request("GET", "/dags").json()["dags"]
    return {dag["dag_id"] for dag in dags if not dag["has_import_errors"]}


def test_in_a_nightly_batch_a_ready_one_goes_on_at_once_and_an_unpaid_one_after_the_top_up(
    start: Callable[..., Run], roughy: Emulator, recordings: dict[str, Path], tmp_path: Path
) -> None:
    roughy.balance = 2
    shutil.copy(recordings["audio"], tmp_path / "0.mp3")
    media.make_long_audio(tmp_path / "1.wav", seconds=200)
    shutil.copy(recordings["video"], tmp_path / "2.mp4")
    run = start("roughy_nightly_batch", folder=tmp_path)
    airflow, here = run.airflow, (run.dag_id, run.run_id)
    for index in range(3):
        airflow.wait_for_task(*here, "recording.wait", "deferred", map_index=index)
    ready, unpaid, slow = (airflow.xcom(*here, "recording.upload", index) for index in range(3))

    roughy.settle(ready)
    airflow.wait_for_task(*here, "recording.go_on", "success", map_index=0)
    assert airflow.xcom(*here, "recording.go_on", 0) == ready
    assert roughy.asset(slow)["state"] == "processing"
    assert airflow.task_instance(*here, "recording.wait", 2)["state"] == "deferred"

    roughy.settle()
    assert run.end() == "success"
    assert run.xcom("result") == {"ready": 2, "pending_payment": 1, "failed": 0}
    assert unpaid in run.xcom("notify_unpaid")
    assert run.task("notify_failed")["state"] == "skipped"

    # What the notification asks for: nobody else is disturbed, nothing is uploaded again.
    roughy.top_up(10)
    roughy.clear_requests()
    body = {
        "dag_run_id": run.run_id,
        "task_ids": [["recording.wait", 1]],
        "include_downstream": True,
        "only_failed": False,
        "dry_run": False,
    }
    cleared = airflow.request("POST", f"/dags/{run.dag_id}/clearTaskInstances", json=body).json()["task_instances"]
    assert {(task["task_id"], task["map_index"]) for task in cleared} == {
        ("recording.wait", 1),
        ("recording.go_on", 1),
        *((name, -1) for name in ("outcomes", "notify_unpaid", "notify_failed", "result")),
    }
    assert run.end() == "success"
    assert airflow.xcom(*here, "recording.go_on", 1) == unpaid
    assert run.xcom("result") == {"ready": 3, "pending_payment": 0, "failed": 0}
    assert run.task("notify_unpaid")["state"] == "skipped"
    assert {request.method for request in roughy.requests} == {"GET"}

"""The example DAGs on a real Airflow; ``test_demo.py`` runs more of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from airflow_provider_roughy.emulator import Emulator
from harness import media
from harness.airflow import LocalAirflow
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


def test_run_continues_with_ready_assets_and_the_next_one_with_paid_ones(
    start: Callable[..., Run], roughy: Emulator, recordings: dict[str, Path], tmp_path: Path
) -> None:
    folder, ledger = tmp_path / "recordings", tmp_path / "ledger"
    folder.mkdir()
    roughy.balance = 2
    shutil.copy(recordings["audio"], folder / "0.mp3")
    media.make_long_audio(folder / "1.wav", seconds=200)
    earlier = {asset["id"] for asset in roughy.assets}
    first = start("roughy_nightly_batch", folder=folder, ledger=ledger)
    first.wait_until_watched("ingest", "processing")
    roughy.settle()
    assert first.end() == "success"
    assets = {asset["state"]: asset["id"] for asset in roughy.assets if asset["id"] not in earlier}
    assert first.xcom("ingest") == [assets["ready"]]
    assert first.airflow.xcom(first.dag_id, first.run_id, "go_on", 0) == assets["ready"]
    assert "1.wav" in first.xcom("notify_unpaid")
    assert first.task("notify_failed")["state"] == "skipped"

    roughy.top_up(10)
    roughy.clear_requests()
    second = start("roughy_nightly_batch", folder=folder, ledger=ledger)
    assert second.end() == "success"
    assert second.xcom("ingest") == [assets["pending_payment"]]
    assert second.task("notify_unpaid")["state"] == "skipped"
    assert {request.method for request in roughy.requests} == {"GET"}

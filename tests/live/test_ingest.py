"""A batch that waits in the triggerer: marked, cleared, timed out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.ledger import ClaimOwner, Ledger, Version
from harness.airflow import LocalAirflow
from tests.live import LIVE
from tests.live.running import Run, connect, wait_until
from tests.uploading import asked

pytestmark = LIVE

COUNT = 3
MANY = 1000
#: Of what Airflow stores: some 100 KiB for a thousand.
BYTES_EACH = 100


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    """A Roughy of this test's own; nothing settles by itself."""
    with Emulator(progression="manual") as emulator:
        yield emulator


@pytest.fixture
def night(
    roughy: Emulator, recordings: dict[str, Path], local_airflow: LocalAirflow, tmp_path: Path
) -> dict[str, str | Path]:
    """The configuration of a run: a folder of recordings, a ledger, a connection."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for number in range(COUNT):
        shutil.copy(recordings["audio"], folder / f"{number}.mp3")
    return {"folder": folder, "ledger": tmp_path / "ledger", "conn_id": connect(local_airflow, roughy)}


@pytest.fixture
def start_batch(start: Callable[..., Run], night: dict[str, str | Path]) -> Callable[[str], Run]:
    """Start a run that ingests the folder, and wait until it waits for what it has uploaded."""

    def start_batch(dag_id: str) -> Run:
        run = start(dag_id, **night)
        run.wait_until_watched("ingest", "processing")
        return run

    return start_batch


def test_a_batch_survives_the_triggerer_and_being_cleared(
    start_batch: Callable[[str], Run], roughy: Emulator, local_airflow: LocalAirflow
) -> None:
    run = start_batch("ingests_and_waits")
    assert run.task("ingest")["trigger"]["classpath"] == "airflow_provider_roughy.triggers.RoughyBatchTrigger"
    local_airflow.kill("triggerer")
    local_airflow.restart("triggerer")
    run.wait_until_watched("ingest", "processing", triggerers=2)

    # What the first try has sent, the next one waits for.
    clear(run)
    run.wait_until_watched("ingest", "processing", triggerers=3)
    roughy.settle()
    assert run.end() == "success"
    ids = sorted(asset["id"] for asset in roughy.assets)
    assert len(ids) == COUNT
    assert sorted(run.xcom("ingest")) == ids
    assert run.task("ingest")["try_number"] == 2

    # And what was ready before is the result again.
    roughy.clear_requests()
    clear(run)
    assert run.end() == "success"
    assert sorted(run.xcom("ingest")) == ids
    assert roughy.requests == []


def test_batch_marked_as_failed_stops_waiting_and_can_be_resumed(
    start_batch: Callable[[str], Run], roughy: Emulator, local_airflow: LocalAirflow
) -> None:
    run = start_batch("ingests_and_waits")
    path = f"/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances/ingest"
    local_airflow.request("PATCH", path, json={"new_state": "failed"})
    wait_until(lambda: not triggers(local_airflow))
    roughy.settle()
    assert run.end() == "failed"

    roughy.clear_requests()
    clear(run)
    assert run.end() == "success"
    assert sorted(run.xcom("ingest")) == sorted(asset["id"] for asset in roughy.assets)
    assert {request.method for request in roughy.requests} == {"GET"}


def test_next_run_resumes_recordings_that_timed_out(
    start_batch: Callable[[str], Run], start: Callable[..., Run], roughy: Emulator, night: dict[str, str | Path]
) -> None:
    late = start_batch("ingests_briefly")
    assert late.end() == "failed"
    task = late.task("ingest")
    assert (task["try_number"], task["max_tries"]) == (1, 3), "no retry would hasten it"
    taken = datetime.fromisoformat(task["end_date"]) - datetime.fromisoformat(task["start_date"])
    assert 20 <= taken.total_seconds() < 80
    assert f"{COUNT} interrupted" in late.log("ingest")

    roughy.settle()
    roughy.clear_requests()
    following = start("ingests_briefly", **night)
    assert following.end() == "success"
    assert sorted(following.xcom("ingest")) == sorted(asset["id"] for asset in roughy.assets)
    assert asked(roughy, "POST") == asked(roughy, "PATCH") == 0


def test_many_fit_into_airflow(
    start: Callable[..., Run], roughy: Emulator, night: dict[str, str | Path], local_airflow: LocalAirflow
) -> None:
    roughy.balance = 2 * MANY
    ids = left_by_another_run(roughy, Ledger(night["ledger"]), MANY)
    run = start("ingests_and_waits", **night)
    run.wait_until_watched("ingest", "processing")
    [stored] = triggers(local_airflow)
    assert all(asset_id in stored for asset_id in ids)
    assert len(stored) <= MANY * BYTES_EACH

    roughy.settle()
    assert run.end() == "success"
    assert set(run.xcom("ingest")) > set(ids)
    [log] = run.trigger_logs("ingest")
    [event] = [line for line in log.splitlines() if "TriggerEvent<" in line]
    assert len(event) <= MANY * BYTES_EACH


def left_by_another_run(roughy: Emulator, ledger: Ledger, count: int) -> list[str]:
    """Make recordings which a run of yesterday has uploaded before it died, and return their assets."""
    ledger.check()
    ids = [roughy.seed_asset("processing") for _ in range(count)]
    owner = ClaimOwner("ingests_and_waits.ingest", "yesterday")
    for number, asset_id in enumerate(ids):
        source = f"/data/recordings/interview-{number}.mp3"
        wanted = {"uri": source, "size": 1000, "project_id": roughy.project_id, "language": None}
        assert ledger.create_version(Version(f"{number:040x}", 1, owner, source, wanted, "sent", asset_id))
    return ids


def triggers(airflow: LocalAirflow) -> list[str]:
    return [text for place, text in airflow.everything_visible() if place == "trigger.kwargs"]


def clear(run: Run) -> None:
    """Clear the task, and wait until its next try is under way."""
    tries = run.task("ingest")["try_number"]
    run.airflow.clear(run.dag_id, run.run_id)
    wait_until(lambda: run.task("ingest")["try_number"] > tries)

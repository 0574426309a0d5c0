"""The outputs of a batch, while Airflow's own parts are killed: triggerers, the scheduler, and the worker with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.ledger import Ledger
from harness.airflow import Component, LocalAirflow
from tests.live import LIVE
from tests.live.running import Run, wait_until

pytestmark = LIVE

COUNT = 30
TRIGGERERS: tuple[Component, ...] = ("triggerer", "triggerer-2")
FILES = ("captions.srt", "captions.vtt", "render.m4a")


@pytest.fixture
def airflow(two_triggerers: LocalAirflow) -> Iterator[LocalAirflow]:
    yield two_triggerers
    restart_dead(two_triggerers)


def restart_dead(airflow: LocalAirflow) -> None:
    for name in (*TRIGGERERS, "scheduler"):
        if not airflow.pids(name):
            airflow.restart(name)


def test_each_output_is_made_once_whatever_dies(
    airflow: LocalAirflow, two_triggerers_roughy: Emulator, recordings: dict[str, Path], tmp_path: Path
) -> None:
    roughy, target = two_triggerers_roughy, tmp_path / "out"
    roughy.reset()
    audio = recordings["audio"].read_bytes()
    ids = [roughy.seed_asset(type="audio", extension="mp3", content=audio) for _ in range(COUNT)]
    restart_dead(airflow)

    def written(name: str) -> int:
        return len(list(target.glob(f"*/{name}")))

    def kill(*names: Component) -> None:
        for name in names:
            airflow.kill(name)
        restart_dead(airflow)

    conf = {"asset_ids": ids, "target": str(target), "ledger": str(tmp_path / "ledger")}
    # Delay replies, so that each kill happens during the work.
    roughy.inject(Fault(method="POST", path="/v1/renders", delay=0.3, times=None))
    roughy.inject(Fault(method="GET", path="/v1/cuts/*", delay=0.1, times=None))
    run = Run(airflow, "produces", airflow.trigger_dag("produces", conf=conf))
    airflow.pause("produces", paused=False)
    run.wait_until_watched("produce", "pending")
    assert len(roughy.cuts) == COUNT
    kill(*TRIGGERERS)
    roughy.settle()
    wait_until(lambda: len(roughy.renders) >= COUNT // 3)
    kill("scheduler")
    wait_until(lambda: written("captions.vtt") >= COUNT // 3)
    kill("scheduler", "triggerer")
    wait_until(lambda: len(roughy.renders) == COUNT)
    kill("triggerer-2")
    roughy.settle()
    wait_until(lambda: written("render.m4a") >= COUNT // 3)
    kill("scheduler")
    roughy.clear_faults()
    assert run.end() == "success"
    assert run.task("produce")["try_number"] > 1

    assert sorted(run.xcom("produce")) == sorted(ids)
    made = Counter(str(each["asset_id"]) for each in [*roughy.cuts, *roughy.renders])
    assert made == dict.fromkeys(ids, 2)
    assert {path.parent.name for path in target.rglob("*") if path.is_file()} == set(ids)
    ledger = Ledger(tmp_path / "ledger")
    for asset_id in ids:
        folder = target / asset_id
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES), "a part of a file is left"
        for name in FILES:
            record = ledger.find_output(str(folder / name))
            assert record is not None
            assert record.size_bytes == (folder / name).stat().st_size > 0

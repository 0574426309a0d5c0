"""Events about assets: what a task takes of them, each once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import airflow
import pytest

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.events import check_states, take_assets
from airflow_provider_roughy.exceptions import RoughyConfigurationError, RoughyUnusableLedgerError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.triggers import RoughyAssetsReadyTrigger
from tests.running import TaskInstance, started_by

ON_AIRFLOW_2 = airflow.__version__.startswith("2.")

needs_airflow_3 = pytest.mark.skipif(ON_AIRFLOW_2, reason="Airflow 2 has no watchers of assets")

A, B, C = (str(uuid4()) for _ in range(3))


def from_watcher(**ids: list[str]) -> dict[str, Any]:
    """What Airflow makes of a trigger's event."""
    return {"from_trigger": True, "payload": ids}


@needs_airflow_3
def test_a_run_takes_what_its_events_tell_each_once(tmp_path: Path) -> None:
    events = started_by(from_watcher(ready=[A, B]), from_watcher(ready=[A, B, C]), alias="an alias brings each twice")
    assert take_assets(events, ledger=tmp_path) == [A, B, C]
    entries = {entry.asset_id: entry for entry in Ledger(tmp_path).entries()}
    assert set(entries) == {A, B, C}
    assert {(entry.state, entry.owner, entry.series) for entry in entries.values()} == {
        ("taken", "dag.task, run run", "dag.task")
    }
    assert Ledger(tmp_path).names(()).open == set(), "nobody has to come back for them"


@needs_airflow_3
def test_another_run_takes_the_rest_and_a_retry_the_same(tmp_path: Path) -> None:
    first, second = started_by(from_watcher(ready=[A, B]), run="1"), started_by(from_watcher(ready=[A, B, C]), run="2")
    assert take_assets(first, ledger=tmp_path) == [A, B]
    assert take_assets(second, ledger=str(tmp_path)) == [C]
    assert take_assets(first, ledger=tmp_path) == [A, B]
    assert take_assets(second, ledger=tmp_path) == [C]


@needs_airflow_3
def test_runs_at_the_same_time_take_each_asset_once(tmp_path: Path) -> None:
    ids = [str(uuid4()) for _ in range(50)]
    runs = [started_by(from_watcher(ready=ids), run=str(number)) for number in range(8)]
    start = threading.Barrier(len(runs))

    def take(events: Any) -> list[str]:
        start.wait()
        return take_assets(events, ledger=tmp_path)

    with ThreadPoolExecutor(len(runs)) as pool:
        taken = [id for found in pool.map(take, runs) for id in found]
    assert sorted(taken) == sorted(ids)


@needs_airflow_3
def test_states_are_taken_by_themselves(tmp_path: Path) -> None:
    events = started_by(from_watcher(ready=[A], pending_payment=[B], failed=[C]))
    assert take_assets(events, ledger=tmp_path, states=["pending_payment"]) == [B]
    # What was announced as unpaid is announced as ready once it is.
    assert take_assets(started_by(from_watcher(ready=[B]), run="later"), ledger=tmp_path) == [B]
    assert take_assets(events, ledger=tmp_path, states=("failed", "ready")) == [A, C]


@needs_airflow_3
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"payload": None},
        {"payload": "ready"},
        {"payload": {"ready": A}},
        {"payload": {"ready": {"ids": [A]}}},
        {"payload": {"ready": [None, 7, {"id": A}, "../../etc/passwd", ""]}},
        {"payload": {"done": [A]}, "ready": [A]},
    ],
)
def test_events_of_others_are_left_alone(tmp_path: Path, extra: dict[str, Any]) -> None:
    assert take_assets(started_by(extra), ledger=tmp_path / "ledger") == []
    assert take_assets(started_by(extra, {"payload": {"ready": [A.upper()]}}), ledger=tmp_path / "ledger") == [A]


@needs_airflow_3
def test_a_run_that_somebody_started_takes_nothing(tmp_path: Path) -> None:
    assert take_assets(started_by(), ledger=tmp_path / "ledger") == []
    assert take_assets({"ti": TaskInstance()}, ledger=tmp_path / "ledger") == []  # type: ignore[typeddict-item]
    assert not (tmp_path / "ledger").exists()


@needs_airflow_3
def test_a_ledger_that_cannot_be_written_is_said_before_anything_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RoughyUnusableLedgerError):
        take_assets(started_by(from_watcher(ready=[A])), ledger=tmp_path / "file" / "ledger")


@needs_airflow_3
def test_an_s3_is_asked_once_an_asset(s3: Any) -> None:
    where = {"ledger": "s3://recordings/taken", "ledger_conn_id": "s3"}
    ids = [str(uuid4()) for _ in range(20)]
    assert take_assets(started_by(from_watcher(ready=ids), run="1"), **where) == ids
    assert take_assets(started_by(from_watcher(ready=[*ids, A]), run="2"), **where) == [A]
    assert len(s3.list_objects_v2(Bucket="recordings")["Contents"]) == 21


@needs_airflow_3
@pytest.mark.usefixtures("connection")
def test_what_was_taken_is_not_taken_for_ingested(roughy: Emulator, tmp_path: Path) -> None:
    there = roughy.seed_asset()
    assert take_assets(started_by(from_watcher(ready=[there, A])), ledger=tmp_path) == [there, A]
    with RoughyHook() as hook:
        assert hook.recheck_ledger(Ledger(tmp_path), forget=True) == []
    assert {entry.asset_id for entry in Ledger(tmp_path).entries()} == {there, A}


@pytest.mark.parametrize("states", [(), ("redy",), ("ready", "processing"), "redy"])
def test_states_that_do_not_exist_are_refused(states: Any) -> None:
    with pytest.raises(ValueError, match="states must be some of"):
        check_states(states)


# ---- The trigger, as Airflow stores it


@needs_airflow_3
def test_the_same_watch_is_stored_the_same_way_however_it_is_written() -> None:
    from airflow.triggers.base import BaseEventTrigger

    project = str(uuid4())
    one = RoughyAssetsReadyTrigger(ledger="/data/taken", states={"ready", "failed"}, project_id=project)
    two = RoughyAssetsReadyTrigger(
        ledger=Path("/data/taken"), states=("failed", "ready"), project_id=project.upper(), poll_interval=60
    )
    assert one.serialize() == two.serialize()
    assert BaseEventTrigger.hash(*one.serialize()) == BaseEventTrigger.hash(*two.serialize())
    classpath, kwargs = one.serialize()
    assert classpath == "airflow_provider_roughy.triggers.RoughyAssetsReadyTrigger"
    assert RoughyAssetsReadyTrigger(**kwargs).serialize() == one.serialize()


@needs_airflow_3
def test_airflow_takes_it_for_a_watcher() -> None:
    from airflow.sdk import Asset, AssetWatcher

    trigger = RoughyAssetsReadyTrigger(ledger="/data/taken")
    assert Asset("media", watchers=[AssetWatcher(name="ready", trigger=trigger)]).watchers[0].trigger is trigger


@needs_airflow_3
@pytest.mark.parametrize(
    "wrong", [{"ledger": ""}, {"states": ["done"]}, {"poll_interval": 0}, {"project_id": "my project"}]
)
def test_what_is_unusable_is_refused_when_the_dag_is_read(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, RoughyConfigurationError)):
        RoughyAssetsReadyTrigger(**{"ledger": "/data/taken", **wrong})


@needs_airflow_3
def test_a_password_in_the_ledgers_uri_is_refused_and_not_shown() -> None:
    """Airflow stores a trigger as it is, with the DAG."""
    with pytest.raises(ValueError, match="names an Airflow connection") as refused:
        RoughyAssetsReadyTrigger(ledger="s3://me:topsecret@bucket/taken")
    assert "topsecret" not in str(refused.value)
    stored = RoughyAssetsReadyTrigger(ledger="hdfs://me@node:8020/taken@home").serialize()[1]
    assert stored["ledger"] == "hdfs://me@node:8020/taken@home"


@pytest.mark.skipif(not ON_AIRFLOW_2, reason="Airflow 3 has watchers")
def test_airflow_2_is_told_what_it_needs(tmp_path: Path) -> None:
    for make in (
        lambda: RoughyAssetsReadyTrigger(ledger=tmp_path),
        lambda: take_assets({"ti": TaskInstance()}, ledger=tmp_path),  # type: ignore[typeddict-item]
    ):
        with pytest.raises(RuntimeError, match=r"needs Apache Airflow 3\.0\.0\+; this is 2\."):
            make()

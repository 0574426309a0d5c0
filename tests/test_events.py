"""Events about assets: tasks take each asset once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import airflow
import pytest

from airflow_provider_roughy.compat import QUEUES_EACH_EVENT
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
    """The asset event that Airflow makes of a trigger's event."""
    return {"from_trigger": True, "payload": ids}


@needs_airflow_3
def test_run_takes_each_asset_of_its_events_once(tmp_path: Path) -> None:
    events = started_by(from_watcher(ready=[A, B]), from_watcher(ready=[A, B, C]), alias="an alias brings each twice")
    assert take_assets(events, ledger=tmp_path) == [A, B, C]
    entries = {entry.asset_id: entry for entry in Ledger(tmp_path).entries()}
    assert set(entries) == {A, B, C}
    assert {(entry.state, entry.owner, entry.series) for entry in entries.values()} == {
        ("taken", "dag.task, run run", "dag.task")
    }
    assert Ledger(tmp_path).snapshot().open == {}, "nobody has to come back for them"


@needs_airflow_3
def test_retry_takes_the_same_assets_and_another_run_the_rest(tmp_path: Path) -> None:
    first, second = started_by(from_watcher(ready=[A, B]), run="1"), started_by(from_watcher(ready=[A, B, C]), run="2")
    assert take_assets(first, ledger=tmp_path) == [A, B]
    assert take_assets(second, ledger=str(tmp_path)) == [C]
    assert take_assets(first, ledger=tmp_path) == [A, B]
    assert take_assets(second, ledger=tmp_path) == [C]


@needs_airflow_3
def test_concurrent_runs_take_each_asset_once(tmp_path: Path) -> None:
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
def test_each_state_is_taken_separately(tmp_path: Path) -> None:
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
def test_events_with_another_payload_are_ignored(tmp_path: Path, extra: dict[str, Any]) -> None:
    assert take_assets(started_by(extra), ledger=tmp_path / "ledger") == []
    assert take_assets(started_by(extra, {"payload": {"ready": [A.upper()]}}), ledger=tmp_path / "ledger") == [A]


@needs_airflow_3
def test_manual_run_takes_nothing(tmp_path: Path) -> None:
    assert take_assets(started_by(), ledger=tmp_path / "ledger") == []
    assert take_assets({"ti": TaskInstance()}, ledger=tmp_path / "ledger") == []  # type: ignore[typeddict-item]
    assert not (tmp_path / "ledger").exists()


@needs_airflow_3
def test_unusable_ledger_fails_before_anything_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RoughyUnusableLedgerError):
        take_assets(started_by(from_watcher(ready=[A])), ledger=tmp_path / "file" / "ledger")


@needs_airflow_3
def test_taking_an_asset_on_s3_costs_one_request(s3: Any) -> None:
    where = {"ledger": "s3://recordings/taken", "ledger_conn_id": "s3"}
    ids = [str(uuid4()) for _ in range(20)]
    assert take_assets(started_by(from_watcher(ready=ids), run="1"), **where) == ids
    assert take_assets(started_by(from_watcher(ready=[*ids, A]), run="2"), **where) == [A]
    assert len(s3.list_objects_v2(Bucket="recordings")["Contents"]) == 21


@needs_airflow_3
@pytest.mark.usefixtures("connection")
def test_taken_assets_do_not_count_as_ingested(roughy: Emulator, tmp_path: Path) -> None:
    there = roughy.seed_asset()
    assert take_assets(started_by(from_watcher(ready=[there, A])), ledger=tmp_path) == [there, A]
    with RoughyHook() as hook:
        assert hook.recheck_ledger(Ledger(tmp_path), forget=True) == []
    assert {entry.asset_id for entry in Ledger(tmp_path).entries()} == {there, A}


@pytest.mark.parametrize("states", [(), ("redy",), ("ready", "processing"), "redy"])
def test_unknown_states_are_refused(states: Any) -> None:
    with pytest.raises(ValueError, match="states must be some of"):
        check_states(states)


# ---- The trigger


@needs_airflow_3
def test_equal_watchers_are_stored_equally() -> None:
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
def test_watcher_runs_in_its_queue_from_airflow_3_4_on() -> None:
    from airflow.triggers.base import BaseEventTrigger

    if not QUEUES_EACH_EVENT:
        with pytest.raises(
            RuntimeError, match=r"queue of an event trigger needs Apache Airflow 3\.4\.0\+; this is 3\."
        ):
            RoughyAssetsReadyTrigger(ledger="/data/taken", queue="media")
        return
    from airflow.models.trigger import Trigger

    one, other = (RoughyAssetsReadyTrigger(ledger="/data/taken", queue=queue) for queue in ("media", None))
    assert Trigger.from_object(one).queue == "media"
    assert BaseEventTrigger.hash(*one.serialize()) == BaseEventTrigger.hash(*other.serialize())


@needs_airflow_3
def test_airflow_accepts_the_trigger_for_a_watcher() -> None:
    from airflow.sdk import Asset, AssetWatcher

    trigger = RoughyAssetsReadyTrigger(ledger="/data/taken")
    assert Asset("media", watchers=[AssetWatcher(name="ready", trigger=trigger)]).watchers[0].trigger is trigger


@needs_airflow_3
@pytest.mark.parametrize(
    "wrong", [{"ledger": ""}, {"states": ["done"]}, {"poll_interval": 0}, {"project_id": "my project"}]
)
def test_unusable_arguments_are_refused_at_dag_parse(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, RoughyConfigurationError)):
        RoughyAssetsReadyTrigger(**{"ledger": "/data/taken", **wrong})


@needs_airflow_3
def test_password_in_the_ledgers_uri_is_refused_without_showing_it() -> None:
    """Airflow stores the arguments of a trigger in plain text."""
    with pytest.raises(ValueError, match="names an Airflow connection") as refused:
        RoughyAssetsReadyTrigger(ledger="s3://me:topsecret@bucket/taken")
    assert "topsecret" not in str(refused.value)
    stored = RoughyAssetsReadyTrigger(ledger="hdfs://me@node:8020/taken@home").serialize()[1]
    assert stored["ledger"] == "hdfs://me@node:8020/taken@home"


@pytest.mark.skipif(not ON_AIRFLOW_2, reason="Airflow 3 has watchers")
def test_airflow_2_raises_an_error_with_the_needed_version(tmp_path: Path) -> None:
    for make in (
        lambda: RoughyAssetsReadyTrigger(ledger=tmp_path),
        lambda: take_assets({"ti": TaskInstance()}, ledger=tmp_path),  # type: ignore[typeddict-item]
    ):
        with pytest.raises(RuntimeError, match=r"needs Apache Airflow 3\.0\.0\+; this is 2\."):
            make()

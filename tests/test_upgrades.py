"""What earlier releases have left in Airflow's database and in ledgers is read: tests/upgrades/ has it recorded."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import aclosing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

import airflow_provider_roughy
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.events import take_assets, taken_key
from airflow_provider_roughy.ledger import Ledger, entry_key
from tests.upgrades import record
from tests.upgrades.record import FOLDER, STORIES, Store, TaskInstance, first_event, outcome

RELEASES = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "upgrades").glob("*.json")}
ROWS = {
    f"{release}: {story}, part {number}": (story, row)
    for release, recorded in sorted(RELEASES.items())
    for story, rows in recorded["stories"].items()
    for number, row in enumerate(rows, 1)
}
WAITS = {name: row for name, row in ROWS.items() if "trigger" in row[1]}
BROKEN_OFF = {name: row for name, row in ROWS.items() if "trigger" not in row[1]}
NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture(scope="module")
def roughy() -> Iterator[Emulator]:
    """A Roughy in which nothing happens by itself."""
    with Emulator(progression="manual", balance=1000) as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def quiet(roughy: Emulator) -> None:
    roughy.clear_requests()


def replayed(row: dict[str, Any], roughy: Emulator, folder: Path) -> dict[str, Any]:
    """Return a row as if it were of this Roughy and this folder, where what it speaks of now is."""
    text = json.dumps(row).replace(FOLDER, str(folder))
    for resource in row["resources"]:
        text = text.replace(resource["id"], seed(roughy, **resource))
    again: dict[str, Any] = json.loads(text)
    record.write_recordings(folder)
    write(folder, again["left"]["files"])
    return again


def seed(roughy: Emulator, *, id: str, kind: str, state: str) -> str:
    if state == "deleted":
        return NOBODY
    size = {"size_bytes": 25644} if state == "pending_upload" else {}
    return str(getattr(roughy, f"seed_{kind}")(state, **size))


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def context_of(row: dict[str, Any], run_id: str = "run") -> dict[str, Any]:
    left = row["left"]
    return {"ti": TaskInstance(run_id, left["xcoms"]), "task_state_store": Store(left["task_state"])}


def recorded(files: dict[str, str]) -> set[tuple[Any, ...]]:
    """Return what the ledger of an earlier release says last: each recording, what became of it, and its asset."""
    entries = [json.loads(text.splitlines()[-1]) for text in files.values() if text.startswith('{"source"')]
    return {(entry["source"], entry["state"], entry["asset_id"]) for entry in entries}


def remembered(folder: Path) -> set[tuple[Any, ...]]:
    """Return the same of a ledger that this release has written."""
    if not (folder / "ledger").exists():
        return set()
    return {(entry.source, entry.state, entry.asset_id) for entry in Ledger(folder / "ledger").entries()}


@pytest.mark.parametrize("name", WAITS)
def test_a_trigger_of_an_earlier_release_waits_on(name: str, roughy: Emulator, tmp_path: Path) -> None:
    row = replayed(WAITS[name][1], roughy, tmp_path)
    event, before = first_event(*row["trigger"]), row["kwargs"]["event"]
    told = [(each["id"], each["status"], each["state"]) for each in verdicts(event)]
    assert told == [(each["id"], each["status"], each["state"]) for each in verdicts(before)]


def verdicts(event: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what an event says of each resource."""
    if "batch" not in event:
        return [event]
    return sorted(({**row, "id": id} for row in event["batch"] for id in row["ids"]), key=lambda row: str(row["id"]))


@pytest.mark.parametrize("name", WAITS)
def test_a_task_takes_the_event_of_an_earlier_release(name: str, roughy: Emulator, tmp_path: Path) -> None:
    story, row = WAITS[name][0], replayed(WAITS[name][1], roughy, tmp_path)
    task = STORIES[story].build(row["options"], str(tmp_path))
    ended, _ = outcome(lambda: task.resume_execution(row["method"], row["kwargs"], context_of(row)))
    assert ended == row["ended"]
    assert remembered(tmp_path) == recorded(row["files_then"])


@pytest.mark.parametrize("name", BROKEN_OFF)
def test_upload_started_by_an_earlier_release_is_resumed(name: str, roughy: Emulator, tmp_path: Path) -> None:
    story, row = BROKEN_OFF[name][0], replayed(BROKEN_OFF[name][1], roughy, tmp_path)
    ids = {resource["id"] for resource in row["resources"]}
    task = STORIES[story].build(row["options"], str(tmp_path))
    outcome(lambda: task.execute(context_of(row)))
    bytes_of_it = hashlib.sha256((tmp_path / "a.wav").read_bytes()).hexdigest()
    created = [request for request in roughy.requests if (request.method, request.path) == ("POST", "/v1/assets")]
    recordings = 3 if story.startswith("batch") else 1
    assert len(created) == recordings - len(ids)
    assert [roughy.asset(id)["sha256"] for id in ids] == [bytes_of_it] * len(ids)


@pytest.mark.parametrize("name", [name for name, (_, row) in WAITS.items() if row["files_then"]])
def test_what_an_earlier_release_has_ingested_is_known(name: str, roughy: Emulator, tmp_path: Path) -> None:
    story, row = WAITS[name][0], replayed(WAITS[name][1], roughy, tmp_path)
    write(tmp_path, row["files_then"])
    (tmp_path / "ledger").mkdir(exist_ok=True)
    for entry in Ledger(tmp_path / "ledger").entries():
        assert entry_key(entry.wanted) == entry.key
    context = context_of(row, run_id="the next night")
    task = STORIES[story].build(row["options"], str(tmp_path))
    outcome(lambda: task.execute(context))
    # What is not paid for is reported each night.
    assert context["ti"].xcoms["known"] + len(context["ti"].xcoms["pending_payment"]) == 3
    assert [request for request in roughy.requests if request.method == "POST"] == []


@pytest.mark.parametrize("release", [name for name, recorded in RELEASES.items() if "watch" in recorded])
async def test_watcher_of_an_earlier_release_continues(release: str, roughy: Emulator, tmp_path: Path) -> None:
    roughy.reset()
    row = RELEASES[release]["watch"]
    (was,), taken, new = row["taken"], roughy.seed_asset("ready"), roughy.seed_asset("ready")
    again: dict[str, Any] = json.loads(json.dumps(row).replace(FOLDER, str(tmp_path)).replace(was, taken))
    # Names are hashes of what they are about: of that Roughy's address, of that asset.
    (key,) = (Path(name).stem for name in row["files"] if "/note-" not in name)
    assert key == taken_key(was, "ready")
    write(tmp_path, {name.replace(key, taken_key(taken, "ready")): text for name, text in again["files"].items()})
    ledger = Ledger(tmp_path / "ledger")
    (noted,) = (json.loads(text) for name, text in again["files"].items() if "/note-" in name)
    assert ledger.note(noted["of"]) == noted
    about = noted["of"].replace(row["base_url"], roughy.url)
    ledger.note_once(about, {**noted, "of": about})

    module, _, name = again["trigger"][0].rpartition(".")
    trigger = getattr(import_module(module), name)(**again["trigger"][1])
    async with asyncio.timeout(30), aclosing(trigger.run()) as events:
        payload = (await anext(events)).payload
    assert payload == {"ready": [new]}
    assert take(again["payload"], tmp_path) == [], "another run has taken it"
    assert take(payload, tmp_path) == [new]


def take(payload: dict[str, Any], folder: Path) -> list[str]:
    event = type("AssetEvent", (), {"extra": {"from_trigger": True, "payload": payload}})
    context: Any = {"ti": TaskInstance("another run"), "triggering_asset_events": {"asset": [event]}}
    return take_assets(context, ledger=str(folder / "ledger"))


def test_each_release_is_recorded_with_all_that_it_has() -> None:
    newest = max(RELEASES, key=Version)
    assert set(RELEASES[newest]["stories"]) == set(STORIES)
    assert airflow_provider_roughy.__version__ in RELEASES
    assert set(RELEASES["0.1.0"]["stories"]) < set(STORIES)


def test_no_secret_is_left_behind(roughy: Emulator) -> None:
    text = json.dumps(RELEASES)
    for secret in (roughy.airflow_connection["password"], "/v1/uploads/", "upload_url", "download_url"):
        assert secret not in text

"""An upload whose bytes have all arrived succeeds, once, and is never mixed with another file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from airflow_provider_roughy.exceptions import RoughySourceError, RoughyUnconfirmedUploadError, RoughyUploadError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.transfer.resumable import DurableUpload, UploadState
from airflow_provider_roughy.transfer.source import find_source
from harness import media
from tests.uploading import MIB, Store, Told, arrived, as_it_was, asked, break_off, upload

PATCH: dict[str, Any] = {"method": "PATCH", "path": "/v1/uploads/*"}
HEAD: dict[str, Any] = {"method": "HEAD", "path": "/v1/uploads/*"}
GET: dict[str, Any] = {"method": "GET", "path": "/v1/assets/*"}
CANCEL: dict[str, Any] = {"method": "DELETE", "path": "/v1/uploads/*"}
#: What a cache, a lock, an outage, a captive portal, a firewall and a gateway make of ``HEAD``.
USELESS: dict[str, dict[str, Any]] = {
    "cache": {"status": 200, "body": ""},
    "lock": {"status": 423, "body": ""},
    "outage": {"status": 503},
    "portal": {"garbage": True},
    "reset": {"drop": True},
    "refusal": {"status": 403, "body": "<html>Blocked</html>"},
    "lag": {"status": 200, "body": "", "headers": {"Upload-Offset": "0", "Upload-Length": str(3 * MIB)}},
    "another upload": {"status": 200, "body": "", "headers": {"Upload-Offset": "9", "Upload-Length": "9"}},
    "an offset beyond": {"status": 200, "body": "", "headers": {"Upload-Offset": "1" + "0" * 18}},
}
HOUR = 3600.0

pytestmark = pytest.mark.usefixtures("connection")


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    # What is uploaded stays in ``processing``, for it is no real recording; an upload stays open for a week.
    choices = Choices(upload_ttl_seconds=7 * 24 * HOUR)
    with Emulator(progression="manual", choices=choices) as emulator:
        yield emulator


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def recording(tmp_path: Path, recordings: dict[str, Path]) -> Path:
    """3 MiB that begin like a recording."""
    return media.pad(recordings["audio"], tmp_path / "recording.mp3", size=3 * MIB)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


class Clock:
    """The worker's clock, which a test moves on."""

    def __init__(self) -> None:
        self.hours = 0.0
        self._now = time.time

    def __call__(self) -> float:
        return self._now() + self.hours * HOUR


def durable(hook: RoughyHook, source: Path, **options: Any) -> DurableUpload:
    return DurableUpload(hook.client, find_source(source), **options)


def state_of(store: Store) -> UploadState:
    state = UploadState.read(store.get("roughy_upload"))
    assert state is not None
    return state


def states(roughy: Emulator) -> list[str]:
    return [asset["state"] for asset in roughy.assets]


# ---- The asset is read before an upload is given up


@pytest.mark.parametrize("head", USELESS.values(), ids=USELESS)
def test_lost_last_reply_and_useless_head_is_a_complete_upload(
    roughy: Emulator, recording: Path, head: dict[str, Any]
) -> None:
    roughy.inject(Fault(**PATCH, lose_reply=True))
    roughy.inject(Fault(**HEAD, times=None, **head))
    ended = upload(None, recording)
    assert ended.state == "success", ended.error
    assert arrived(roughy, ended.result, recording)
    assert (states(roughy), asked(roughy, "DELETE")) == (["processing"], 0)


def test_useless_head_and_no_asset_to_read_is_asked_for_again(roughy: Emulator, recording: Path) -> None:
    roughy.inject(Fault(**PATCH, lose_reply=True))
    roughy.inject(Fault(**HEAD, times=None, status=503))
    roughy.inject(Fault(**GET, times=9, status=503))
    ended = upload(None, recording)
    assert ended.state == "success", ended.error
    assert states(roughy) == ["processing"]


def test_refused_key_after_the_last_byte_is_a_complete_upload(roughy: Emulator, recording: Path) -> None:
    refused = {"error": {"code": "unauthenticated", "message": "Missing or invalid API key."}}
    roughy.inject(Fault(**PATCH, lose_reply=True))
    # HEAD lags, so that the bytes are sent again, and a gateway refuses them.
    roughy.inject(Fault(**HEAD, times=None, **USELESS["lag"]))
    roughy.inject(Fault(**PATCH, nth=2, times=None, status=401, body=refused))
    ended = upload(None, recording)
    assert ended.state == "success", ended.error
    assert states(roughy) == ["processing"]


def test_upload_is_unconfirmed_and_kept_while_roughy_is_down(roughy: Emulator, store: Store, recording: Path) -> None:
    roughy.inject(Fault(**PATCH, lose_reply=True))
    for where in (HEAD, GET):
        roughy.inject(Fault(**where, times=None, status=503))
    ended = upload(store, recording)
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyUnconfirmedUploadError)
    assert str(ended.error).count("attempts without progress") == 1
    assert state_of(store).all_sent
    roughy.clear_faults()
    assert upload(store, recording).result == roughy.assets[0]["id"]
    assert (asked(roughy, "PATCH"), asked(roughy, "DELETE")) == (1, 0)


def test_asset_that_arrives_while_it_is_discarded_is_a_complete_upload(roughy: Emulator, recording: Path) -> None:
    # The last PATCH is processed while HEAD and the asset's replicas lag; the asset is right when it is read once more.
    def lag(asset_id: str) -> None:
        roughy.inject(Fault(**GET, times=1, status=200, body=as_it_was(roughy, asset_id)))

    roughy.inject(Fault(**PATCH, lose_reply=True))
    roughy.inject(Fault(**PATCH, nth=2, times=None, status=400))
    roughy.inject(Fault(**HEAD, times=None, **USELESS["lag"]))
    with RoughyHook() as hook:
        asset_id = hook.durable_upload(recording, log=Told(lag)).run(roughy.project_id)
    assert (states(roughy), asked(roughy, "DELETE")) == (["processing"], 0)
    assert arrived(roughy, asset_id, recording)


# ---- What is acknowledged is remembered


def test_state_says_how_far_roughy_acknowledged(roughy: Emulator, store: Store, recording: Path) -> None:
    break_off(roughy, store, recording)
    state = state_of(store)
    assert (state.acknowledged, state.all_sent, state.all_sent_at) == (MIB, False, None)
    before = time.time()
    upload(store, recording)
    state = state_of(store)
    assert (state.acknowledged, state.all_sent) == (3 * MIB, True)
    assert state.all_sent_at is not None
    assert before <= state.all_sent_at <= time.time()


def test_acknowledged_upload_is_remembered_before_anybody_confirms_it(
    roughy: Emulator, store: Store, recording: Path, hook: RoughyHook
) -> None:
    with pytest.raises(KeyboardInterrupt):
        hook.durable_upload(recording, memory=Killing(store)).run(roughy.project_id)
    assert state_of(store).all_sent
    # A replica lags, and the finished upload is gone: only the state tells that nothing is to be sent again.
    [asset] = roughy.assets
    roughy.inject(Fault(**GET, times=None, status=200, body=as_it_was(roughy, asset["id"])))
    assert type(upload(store, recording).error) is RoughyUnconfirmedUploadError
    roughy.clear_faults()
    assert upload(store, recording).result == asset["id"]
    assert (len(roughy.assets), asked(roughy, "PATCH")) == (1, 1)


class Killing:
    """A store whose process ends as soon as it holds that all bytes were acknowledged."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, key: str) -> Any:
        return self._store.get(key)

    def set(self, key: str, value: Any) -> None:
        self._store.set(key, value)
        if key == "roughy_upload" and value["all_sent"]:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stale", [5, 30])
def test_resume_by_id_remembers_what_was_acknowledged(
    roughy: Emulator, store: Store, recording: Path, hook: RoughyHook, stale: int
) -> None:
    asset_id = durable(hook, recording, memory=store, confirm=False).run(roughy.project_id)
    roughy.inject(Fault(**GET, times=stale, status=200, body=as_it_was(roughy, asset_id)))
    for _ in range(5):
        try:
            assert hook.durable_upload(recording, memory=store).resume(asset_id) == asset_id
            break
        except RoughyUnconfirmedUploadError:
            continue
    else:
        pytest.fail("it was never confirmed")
    assert asked(roughy, "PATCH") == 1


def test_store_that_fails_at_the_last_byte_does_not_end_the_upload(
    roughy: Emulator, store: Store, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = store.set

    def fail(key: str, value: Any, **options: Any) -> None:
        if key == "roughy_upload" and value["all_sent"]:
            raise RuntimeError("Airflow's API is down")
        keep(key, value)

    monkeypatch.setattr(store, "set", fail)
    assert upload(store, recording).state == "success"


@pytest.mark.parametrize(
    "odd", [{"all_sent_at": "soon"}, {"acknowledged": None}, {"revision": 7}, {"newer": 1}], ids=str
)
def test_state_with_odd_fields_is_read(roughy: Emulator, store: Store, recording: Path, odd: dict[str, Any]) -> None:
    asset_id = break_off(roughy, store, recording)
    store.set("roughy_upload", {**store.get("roughy_upload"), **odd})
    assert upload(store, recording).result == asset_id


def test_state_of_0_2_is_resumed(roughy: Emulator, store: Store, recording: Path) -> None:
    asset_id = break_off(roughy, store, recording)
    left = store.get("roughy_upload")
    store.set("roughy_upload", {"asset_id": asset_id, "wanted": left["wanted"], "all_sent": False})
    assert upload(store, recording).result == asset_id
    assert arrived(roughy, asset_id, recording)


# ---- Roughy has all bytes and missed that they are all


@pytest.mark.parametrize("reply", ["came", "lost"])
def test_end_that_roughy_missed_is_sent_again(roughy: Emulator, recording: Path, reply: str) -> None:
    roughy.inject(Fault(**PATCH, miss_end=True, lose_reply=reply == "lost"))
    ended = upload(None, recording)
    assert ended.state == "success", ended.error
    assert arrived(roughy, ended.result, recording)
    sizes = [request.body_bytes for request in roughy.requests if request.method == "PATCH"]
    assert (sizes, states(roughy)) == ([3 * MIB, 0], ["processing"])


def test_end_that_roughy_missed_is_sent_again_by_the_next_try(roughy: Emulator, store: Store, recording: Path) -> None:
    roughy.inject(Fault(**PATCH, miss_end=True))
    roughy.inject(Fault(**HEAD, times=None, status=503))
    assert type(upload(store, recording).error) is RoughyUnconfirmedUploadError
    roughy.clear_faults()
    ended = upload(store, recording)
    assert ended.state == "success", ended.error
    assert (len(roughy.assets), states(roughy)) == (1, ["processing"])


def test_end_that_was_missed_is_sent_again_although_the_caller_confirms(
    roughy: Emulator, store: Store, recording: Path, hook: RoughyHook
) -> None:
    roughy.inject(Fault(**PATCH, miss_end=True))
    for _ in range(2):
        durable(hook, recording, memory=store, confirm=False).run(roughy.project_id)
    assert states(roughy) == ["processing"]


def test_end_that_is_never_noticed_starts_anew_after_a_day(
    roughy: Emulator, store: Store, recording: Path, clock: Clock
) -> None:
    roughy.inject(Fault(**PATCH, miss_end=True, times=None))
    for clock.hours in (0, 1, 23.9):
        ended = upload(store, recording)
        assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyUnconfirmedUploadError)
    assert (len(roughy.assets), asked(roughy, "DELETE")) == (1, 0)
    [first] = roughy.assets
    clock.hours = 24.1
    # The upload of the new asset is missed as well: one asset with bytes at a time, and another day to notice.
    assert type(upload(store, recording).error) is RoughyUnconfirmedUploadError
    [second] = roughy.assets
    assert second["id"] != first["id"]
    clock.hours = 30
    roughy.clear_faults()
    assert upload(store, recording).result == second["id"]
    assert [(asset["id"], asset["state"]) for asset in roughy.assets] == [(second["id"], "processing")]


def test_end_that_is_noticed_after_a_day_is_a_complete_upload(
    roughy: Emulator, store: Store, recording: Path, clock: Clock
) -> None:
    roughy.inject(Fault(**PATCH, miss_end=True, times=None))
    upload(store, recording)
    roughy.clear_faults()
    [asset] = roughy.assets
    clock.hours = 48
    assert upload(store, recording).result == asset["id"]
    assert (states(roughy), asked(roughy, "DELETE")) == (["processing"], 0)


@pytest.mark.parametrize("status", [404, 405, 409, 410])
def test_upload_that_cannot_be_cancelled_after_a_day_is_deleted_with_its_asset(
    roughy: Emulator, store: Store, recording: Path, clock: Clock, status: int
) -> None:
    roughy.inject(Fault(**PATCH, miss_end=True, times=None))
    upload(store, recording)
    roughy.clear_faults()
    [first] = roughy.assets
    for method in ("HEAD", "PATCH"):
        roughy.inject(Fault(method=method, path=f"/v1/uploads/{first['upload_id']}", times=None, status=410))
    roughy.inject(Fault(**CANCEL, times=None, status=status))
    clock.hours = 25
    ended = upload(store, recording)
    assert ended.state == "success", ended.error
    assert [(asset["id"], asset["state"]) for asset in roughy.assets] == [(ended.result, "processing")]
    assert ended.result != first["id"]


def test_asset_that_cannot_be_removed_after_a_day_is_not_doubled(
    roughy: Emulator, store: Store, recording: Path, clock: Clock
) -> None:
    roughy.inject(Fault(**PATCH, miss_end=True, times=None))
    upload(store, recording)
    roughy.inject(Fault(method="DELETE", times=None, status=503))
    clock.hours = 25
    assert type(upload(store, recording).error) is RoughyUnconfirmedUploadError
    assert len(roughy.assets) == 1


def test_upload_of_0_2_that_was_never_noticed_starts_anew_two_days_after_it_began(
    roughy: Emulator, store: Store, recording: Path, clock: Clock
) -> None:
    roughy.inject(Fault(**PATCH, miss_end=True, times=None))
    upload(store, recording)
    [first] = roughy.assets
    old = {"asset_id": first["id"], "wanted": store.get("roughy_upload")["wanted"], "all_sent": True}
    for clock.hours in (25, 47):
        store.set("roughy_upload", old)
        assert type(upload(store, recording).error) is RoughyUnconfirmedUploadError
        assert [asset["id"] for asset in roughy.assets] == [first["id"]]
    clock.hours = 49
    store.set("roughy_upload", old)
    roughy.clear_faults()
    roughy.inject(Fault(method="PATCH", path=f"/v1/uploads/{first['upload_id']}", miss_end=True, times=None))
    ended = upload(store, recording)
    assert ended.state == "success", ended.error
    assert [asset["id"] for asset in roughy.assets] == [ended.result] != [first["id"]]


@pytest.mark.parametrize("url", ["shown", "hidden"])
def test_upload_that_expired_with_all_bytes_does_not_fail_forever(
    connection: dict[str, Any], store: Store, recording: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    with Emulator(progression="manual", choices=Choices(expired_asset="kept")) as roughy:
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(roughy.airflow_connection))
        roughy.inject(Fault(**PATCH, miss_end=True, times=None))
        upload(store, recording)
        roughy.clear_faults()
        [first] = roughy.assets
        if url == "hidden":
            shown = {**as_it_was(roughy, first["id"]), "upload_url": None}
            roughy.inject(Fault(method="GET", path=f"/v1/assets/{first['id']}", times=None, status=200, body=shown))
        roughy.advance(25 * HOUR)
        clock.hours = 23
        assert type(upload(store, recording).error) is RoughyUnconfirmedUploadError
        clock.hours = 25
        ended = upload(store, recording)
        assert ended.state == "success", ended.error
        assert [asset["id"] for asset in roughy.assets] == [ended.result] != [first["id"]]


# ---- A file that was replaced is another one


def stamped(path: Path, content: bytes) -> None:
    """Replace a file by one of the same time, as ``cp -p`` to a new name and ``mv`` do."""
    path.with_name("new").write_bytes(content)
    os.utime(path.with_name("new"), ns=(10**18, 10**18))
    os.replace(path.with_name("new"), path)


def in_place(path: Path, content: bytes) -> None:
    """Write a file again and restore its time, as ``mp3gain -p`` does."""
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(10**18, 10**18))


@pytest.mark.parametrize("how", [stamped, in_place], ids=["replaced", "rewritten in place"])
def test_file_replaced_by_one_of_the_same_size_and_time_starts_anew(
    roughy: Emulator, store: Store, recording: Path, how: Any
) -> None:
    content = recording.read_bytes()
    os.utime(recording, ns=(10**18, 10**18))
    first = break_off(roughy, store, recording)
    how(recording, content[: 64 * 1024] + content[64 * 1024 :][::-1])
    ended = upload(store, recording)
    assert ended.state == "success", ended.error
    assert arrived(roughy, ended.result, recording)
    assert [asset["id"] for asset in roughy.assets] == [ended.result] != [first]


def test_named_asset_is_not_resumed_with_a_replaced_file(
    roughy: Emulator, store: Store, recording: Path, hook: RoughyHook
) -> None:
    content = recording.read_bytes()
    os.utime(recording, ns=(10**18, 10**18))
    first = break_off(roughy, store, recording)
    stamped(recording, content[: 64 * 1024] + content[64 * 1024 :][::-1])
    with pytest.raises(RoughySourceError, match="was replaced since"):
        hook.durable_upload(recording, memory=store).resume(first)
    assert [asset["stored_bytes"] for asset in roughy.assets] == [MIB]


@pytest.mark.parametrize("state", ["complete", "acknowledged"])
def test_new_mode_or_link_does_not_pay_for_a_whole_upload_again(
    roughy: Emulator, store: Store, recording: Path, state: str
) -> None:
    if state == "acknowledged":
        roughy.inject(Fault(**PATCH, lose_reply=True))
        for where in (HEAD, GET):
            roughy.inject(Fault(**where, times=None, status=503))
    upload(store, recording)
    roughy.clear_faults()
    [asset] = roughy.assets
    recording.chmod(0o600)
    os.link(recording, recording.with_name("link.mp3"))
    if state == "acknowledged":
        # A replica lags, and cannot make us forget that Roughy may have all bytes.
        roughy.inject(Fault(**GET, times=3, status=200, body=as_it_was(roughy, asset["id"])))
        assert type(upload(store, recording).error) is RoughyUnconfirmedUploadError
    assert upload(store, recording).result == asset["id"]
    assert (len(roughy.assets), asked(roughy, "PATCH")) == (1, 1)


def test_new_mode_of_a_partial_upload_starts_anew(roughy: Emulator, store: Store, recording: Path) -> None:
    first = break_off(roughy, store, recording)
    recording.chmod(0o600)
    ended = upload(store, recording)
    assert [asset["id"] for asset in roughy.assets] == [ended.result] != [first]
    assert arrived(roughy, ended.result, recording)


@pytest.mark.parametrize("how", [stamped, in_place], ids=["replaced", "rewritten in place"])
def test_file_that_is_replaced_while_it_is_read_is_never_completed(
    roughy: Emulator, recording: Path, hook: RoughyHook, how: Any
) -> None:
    content = recording.read_bytes()
    os.utime(recording, ns=(10**18, 10**18))

    def meddle(done: int, total: int) -> None:
        if done == MIB:
            how(recording, content[::-1])

    with pytest.raises(RoughySourceError, match="changed while it was read: "):
        durable(hook, recording, on_progress=meddle).run(roughy.project_id)
    assert roughy.assets == []


def test_state_without_a_revision_is_resumed(roughy: Emulator, store: Store, recording: Path) -> None:
    # As of an object in a storage, whose fingerprint holds all that there is.
    first = break_off(roughy, store, recording)
    store.set("roughy_upload", replace(state_of(store), revision={}).to_dict())
    recording.chmod(0o600)
    assert upload(store, recording).result == first


def test_error_of_a_partial_upload_says_what_was_acknowledged(roughy: Emulator, store: Store, recording: Path) -> None:
    break_off(roughy, store, recording)
    roughy.inject(Fault(**HEAD, times=None, status=503))
    ended = upload(store, recording)
    assert type(ended.error) is RoughyUploadError
    assert state_of(store).acknowledged == MIB

"""No complete upload is lost, and no incomplete one counts as complete, whoever replies instead of Roughy."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAssetFailedError,
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyInsufficientCreditsError,
    RoughyUnconfirmedUploadError,
    RoughyUnreachableError,
    RoughyUnsupportedMediaError,
    RoughyUntrustedUrlError,
    RoughyUploadClosedError,
    RoughyUploadError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.transfer.progress import Progress
from harness import media
from tests.running import whenever
from tests.uploading import MIB, Store, Told, arrived, as_it_was, asked, remember, upload

PATCH: dict[str, Any] = {"method": "PATCH", "path": "/v1/uploads/*"}
HEAD: dict[str, Any] = {"method": "HEAD", "path": "/v1/uploads/*"}
GET: dict[str, Any] = {"method": "GET", "path": "/v1/assets/*"}

PAGE = "<html>Sign in to the network</html>"

pytestmark = pytest.mark.usefixtures("connection")


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    # What is uploaded stays in ``processing``, for it is no real recording.
    with Emulator(progression="manual") as emulator:
        yield emulator


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def recording(tmp_path: Path, recordings: dict[str, Path]) -> Path:
    """3 MiB that begin like a recording."""
    return media.pad(recordings["audio"], tmp_path / "recording.mp3", size=3 * MIB)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A file that is neither audio nor video."""
    path = tmp_path / "notes.txt"
    path.write_text("These are notes, and no recording. " * 100)
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)


# ---- Complete is a state, and no missing URL


def test_a_refused_file_whose_asset_has_no_upload_is_no_success(
    roughy: Emulator, hook: RoughyHook, store: Store, notes: Path
) -> None:
    asset = remember(roughy, hook, store, notes)
    roughy.inject(Fault(**GET, nth=2, times=None, status=200, body={**asset, "upload_url": None}))
    ended = upload(store, notes)
    assert (ended.state, type(ended.error)) == ("failed", RoughyUnsupportedMediaError)


def test_an_upload_that_dies_in_the_middle_is_no_success(
    roughy: Emulator, hook: RoughyHook, store: Store, recording: Path
) -> None:
    asset = remember(roughy, hook, store, recording)
    roughy.inject(Fault(**PATCH, cut_after=MIB))
    roughy.inject(Fault(**HEAD, nth=2, times=None, status=410))
    roughy.inject(Fault(**GET, nth=2, times=None, status=200, body={**asset, "upload_url": None}))
    ended = upload(store, recording)
    # The bytes went to a new asset, whose arrival Roughy does not confirm in this test.
    assert ended.state == "up_for_retry"
    assert type(ended.error) is RoughyUnconfirmedUploadError


def test_an_asset_that_waits_for_bytes_and_has_no_upload_is_an_error_of_its_own(
    roughy: Emulator, hook: RoughyHook, store: Store, recording: Path
) -> None:
    asset = remember(roughy, hook, store, recording)
    roughy.inject(Fault(**GET, times=None, status=200, body={**asset, "upload_url": None}))
    ended = upload(None, recording, asset_id=asset["id"])
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyUploadClosedError)


# ---- What was acknowledged is not given up


@pytest.mark.parametrize("stale", [1, 4])
def test_a_reply_that_lags_behind_the_last_byte_is_asked_again(
    roughy: Emulator, hook: RoughyHook, store: Store, recording: Path, stale: int
) -> None:
    asset = remember(roughy, hook, store, recording)
    roughy.inject(Fault(**GET, nth=2, times=stale, status=200, body=asset))
    ended = upload(store, recording)
    assert ended.result == asset["id"], ended.error
    assert arrived(roughy, asset["id"], recording)
    assert (asked(roughy, "DELETE"), asked(roughy, "PATCH")) == (0, 1)


def test_a_lag_that_does_not_end_leaves_the_asset_for_the_next_try(
    roughy: Emulator, hook: RoughyHook, store: Store, recording: Path
) -> None:
    asset = remember(roughy, hook, store, recording)
    roughy.inject(Fault(**GET, nth=2, times=None, status=200, body=asset))
    for _ in range(2):
        ended = upload(store, recording)
        assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyUnconfirmedUploadError)
    roughy.clear_faults()
    assert upload(store, recording).result == asset["id"]
    assert arrived(roughy, asset["id"], recording)
    assert (asked(roughy, "DELETE"), asked(roughy, "PATCH"), len(roughy.assets)) == (0, 1, 1)


def test_a_lost_last_reply_and_a_lag_are_asked_again(
    roughy: Emulator, hook: RoughyHook, store: Store, recording: Path
) -> None:
    asset = remember(roughy, hook, store, recording)
    roughy.inject(Fault(**PATCH, lose_reply=True))
    roughy.inject(Fault(**GET, nth=2, times=4, status=200, body=asset))
    assert upload(store, recording).result == asset["id"]
    assert (asked(roughy, "DELETE"), asked(roughy, "PATCH")) == (0, 1)


def test_an_arrival_that_cannot_be_asked_for_is_asked_for_again(roughy: Emulator, recording: Path) -> None:
    roughy.inject(Fault(**GET, status=503, times=5))
    ended = upload(None, recording)
    assert ended.state == "success", ended.error
    assert arrived(roughy, ended.result, recording)
    assert asked(roughy, "DELETE") == 0


def test_unconfirmed_arrival_is_no_success_and_deletes_nothing(roughy: Emulator, recording: Path) -> None:
    roughy.inject(Fault(**GET, status=503, times=None))
    ended = upload(None, recording)
    assert ended.state == "up_for_retry"
    assert isinstance(ended.error, RoughyUnconfirmedUploadError)
    assert ended.error.offset == 3 * MIB
    [asset] = roughy.assets
    assert arrived(roughy, asset["id"], recording)
    assert asked(roughy, "DELETE") == 0


@pytest.mark.parametrize("reply", ["came", "lost"])
def test_replica_that_lags_forever_leaves_the_asset_unchanged(
    roughy: Emulator, hook: RoughyHook, recording: Path, reply: str
) -> None:
    """No store, and no end of the lag: the asset is whole, and nobody says so."""

    def lag(asset_id: str) -> None:
        roughy.inject(Fault(**GET, times=None, status=200, body=as_it_was(roughy, asset_id)))

    if reply == "lost":
        headers = {"Upload-Offset": "0", "Upload-Length": str(3 * MIB)}
        roughy.inject(Fault(**PATCH, lose_reply=True))
        roughy.inject(Fault(**HEAD, times=None, status=200, headers=headers, body=""))
        roughy.inject(Fault(**PATCH, nth=2, times=None, status=503))
    with pytest.raises(RoughyUploadError) as ended:
        hook.durable_upload(recording, log=Told(lag)).run(roughy.project_id)
    assert isinstance(ended.value, RoughyUnconfirmedUploadError) == (reply == "came")
    [asset] = roughy.assets
    assert arrived(roughy, asset["id"], recording)
    deleted = [request.path for request in roughy.requests if request.method == "DELETE"]
    # What may be open may be cancelled: that cannot hit what is complete.
    assert [path.startswith("/v1/uploads/") for path in deleted] == ([True] if reply == "lost" else [])


# ---- A gateway is not Roughy


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 415])
@pytest.mark.parametrize("durable", [True, False], ids=["durable", "not durable"])
def test_gateway_refusal_does_not_end_the_upload(
    roughy: Emulator, store: Store, recording: Path, status: int, durable: bool
) -> None:
    roughy.inject(Fault(**PATCH, cut_after=2 * MIB))
    roughy.inject(Fault(**PATCH, nth=2, status=status, body=PAGE))
    ended = upload(store if durable else None, recording)
    assert ended.state == "success", ended.error
    assert arrived(roughy, ended.result, recording)
    assert asked(roughy, "DELETE") == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 415])
def test_a_refused_head_is_confirmed_before_anything_is_given_up(
    roughy: Emulator, recording: Path, status: int
) -> None:
    roughy.inject(Fault(**PATCH, cut_after=2 * MIB))
    roughy.inject(Fault(**HEAD, status=status))
    ended = upload(None, recording)
    assert ended.state == "success", ended.error
    assert asked(roughy, "DELETE") == 0


def test_bytes_that_can_be_resumed_are_not_discarded_for_want_of_a_key(
    roughy: Emulator, store: Store, recording: Path
) -> None:
    refused = {"error": {"code": "unauthenticated", "message": "Missing or invalid API key."}}
    roughy.inject(Fault(**PATCH, cut_after=2 * MIB))
    roughy.inject(Fault(**PATCH, nth=2, status=401, body=refused))
    ended = upload(store, recording)
    assert (ended.state, type(ended.error)) == ("failed", RoughyAuthenticationError)
    [asset] = roughy.assets
    assert upload(store, recording).result == asset["id"]
    assert asked(roughy, "DELETE") == 0


# ---- A conflict


def test_a_conflict_that_passes_is_no_unsupported_media(roughy: Emulator, recording: Path) -> None:
    busy = {"error": {"code": "conflict", "message": "Another request writes to this upload."}}
    roughy.inject(Fault(**PATCH, status=409, body=busy, times=2))
    ended = upload(None, recording)
    assert ended.state == "success", ended.error
    assert asked(roughy, "DELETE") == 0


def test_a_conflict_and_a_refused_head_are_no_unsupported_media_until_they_stay(
    roughy: Emulator, recording: Path
) -> None:
    roughy.inject(Fault(**PATCH, status=409))
    roughy.inject(Fault(**HEAD, status=404, times=2))
    ended = upload(None, recording)
    assert ended.state == "success", ended.error


def test_a_conflict_and_a_head_that_contradict_each_other_end(
    roughy: Emulator, hook: RoughyHook, store: Store, recording: Path
) -> None:
    remember(roughy, hook, store, recording)
    # A replica that lags tells two offsets in turn, and none is right.
    for nth in range(1, 60):
        roughy.inject(Fault(**HEAD, nth=nth, reply_headers={"Upload-Offset": str((nth % 2) * MIB)}))
    roughy.inject(Fault(**PATCH, status=409, times=None))
    ended = upload(store, recording)
    assert ended.state == "up_for_retry"
    assert asked(roughy, "PATCH") <= 10


def test_a_conflict_that_does_not_pass_may_be_retried(roughy: Emulator, store: Store, recording: Path) -> None:
    roughy.inject(Fault(**PATCH, status=409, times=None))
    ended = upload(store, recording)
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyUploadError)
    roughy.clear_faults()
    [asset] = roughy.assets
    assert upload(store, recording).result == asset["id"]


# ---- What must not stay


def test_an_upload_that_must_not_see_the_key_leaves_no_asset(
    roughy: Emulator, store: Store, recording: Path, hook: RoughyHook
) -> None:
    asset_id = roughy.seed_asset(state="pending_upload", size_bytes=3 * MIB)
    body = {**hook.get_asset(asset_id).to_dict(), "upload_url": "https://elsewhere.example/v1/uploads/1"}
    roughy.inject(Fault(method="POST", path="/v1/assets", status=201, body=body))
    ended = upload(store, recording)
    assert (ended.state, type(ended.error)) == ("failed", RoughyUntrustedUrlError)
    assert roughy.assets == []


def test_an_upload_that_nothing_can_be_sent_to_leaves_no_asset(
    roughy: Emulator, store: Store, recording: Path, hook: RoughyHook
) -> None:
    asset_id = roughy.seed_asset(state="pending_upload", size_bytes=3 * MIB)
    body = {**hook.get_asset(asset_id).to_dict(), "upload_url": f"{roughy.url}/v1/uploads/{'1' * 70_000}"}
    roughy.inject(Fault(method="POST", path="/v1/assets", status=201, body=body))
    ended = upload(store, recording)
    assert (ended.state, type(ended.error)) == ("failed", RoughyConfigurationError)
    assert roughy.assets == []


@pytest.mark.parametrize("code", ["conflict", "unsupported_media_type"])
def test_an_upload_that_roughy_rejected_but_kept_is_deleted(
    connection: dict[str, Any], notes: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    with Emulator(choices=Choices(rejected_upload="kept", unsupported_media_code=code)) as roughy:
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(roughy.airflow_connection))
        assert type(upload(None, notes).error) is RoughyUnsupportedMediaError
        assert roughy.assets == []


def test_an_asset_that_fails_by_its_first_bytes_is_one_that_failed(
    connection: dict[str, Any], notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Emulator(choices=Choices(rejected_upload="failed")) as roughy:
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(roughy.airflow_connection))
        ended = upload(None, notes, wait_for_completion=True)
        assert (ended.state, type(ended.error)) == ("failed", RoughyAssetFailedError)
        assert "neither audio nor video" in str(ended.error)
        assert [asset["state"] for asset in roughy.assets] == ["failed"]


def test_lost_reply_to_the_creation_leaves_an_empty_asset_and_logs_it(
    roughy: Emulator, store: Store, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roughy.inject(Fault(method="POST", path="/v1/assets", lose_reply=True))
    ended = upload(store, recording)
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyUnreachableError)
    assert "Roughy may have created an asset in project" in "".join(capsys.readouterr())
    ended = upload(store, recording)
    orphan, asset = roughy.assets
    assert (orphan["state"], orphan["stored_bytes"]) == ("pending_upload", 0)
    assert ended.result == asset["id"]


def test_a_refused_creation_is_no_lost_reply(
    roughy: Emulator, store: Store, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roughy.balance = 0
    assert type(upload(store, recording).error) is RoughyInsufficientCreditsError
    assert "may have created an asset" not in "".join(capsys.readouterr())


# ---- What is said


def test_each_pause_is_one_line(
    roughy: Emulator, hook: RoughyHook, recording: Path, caplog: pytest.LogCaptureFixture
) -> None:
    roughy.inject(Fault(**PATCH, status=429, headers={"Retry-After": "1"}))
    roughy.inject(Fault(**PATCH, nth=2, drop=True, times=3))
    roughy.inject(Fault(**HEAD, nth=2, status=423, body=""))
    with caplog.at_level("INFO"):
        hook.upload(hook.create_asset(None, 3 * MIB), recording, fresh=True)
    said = [record.getMessage() for record in caplog.records if "no progress" in record.getMessage()]
    assert len(said) == 5
    assert "no progress (attempt 1 of 8); retrying in 1.0 s (Retry-After): PATCH /v1/uploads/…: 429" in said[0]
    assert "no progress (attempt 5 of 8); retrying in 0.0 s: " in said[4]
    assert sum(": 423" in line for line in said) == 1
    assert sum("no answer from 127.0.0.1" in line for line in said) == 3
    for line in said:
        assert line.startswith(f"Upload of {recording} to asset ")


def test_progress_is_measured_within_a_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The first request is refused after a block, the next one breaks off, and its last block has not arrived.
    course = [(0.5, 1), (31.0, 1), (31.1, 2), (33.0, 3), (34.0, 3), (36.0, 4)]
    clock = iter([0.0, *(at for at, _ in course)])
    monkeypatch.setattr("airflow_provider_roughy.transfer.progress.time", SimpleNamespace(monotonic=clock.__next__))
    progress = Progress(logging.getLogger(__name__), "Asset 1")
    with caplog.at_level("INFO"):
        for _, done in course:
            progress(done * MIB, 6 * MIB)
    assert [record.getMessage() for record in caplog.records] == [
        "Asset 1: 3.0 MiB of 6.0 MiB (50 %), 1.0 MiB/s, 3 s left",
        "Asset 1: 4.0 MiB of 6.0 MiB (67 %), 512.0 KiB/s, 4 s left",
    ]


# ---- Without an operator


def test_custom_task_can_resume_an_upload(roughy: Emulator, hook: RoughyHook, store: Store, recording: Path) -> None:
    roughy.inject(Fault(**PATCH, cut_after=2 * MIB))
    roughy.inject(Fault(**PATCH, nth=2, status=503, times=None))
    with pytest.raises(RoughyUploadError):
        hook.durable_upload(recording, memory=store).run(roughy.project_id)
    roughy.clear_faults()
    roughy.clear_requests()
    asset_id = hook.durable_upload(recording, memory=store).run(roughy.project_id)
    assert arrived(roughy, asset_id, recording)
    assert sum(request.body_bytes for request in roughy.requests if request.method == "PATCH") == MIB
    assert hook.durable_upload(recording).resume(asset_id) == asset_id


# ---- Airflow's own trouble


def test_a_store_that_hangs_does_not_stall_the_transfer(
    roughy: Emulator, store: Store, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow's API is down: the call that shows the progress comes back only after the upload."""
    released, asked_for = threading.Event(), threading.Event()
    keep = store.set
    over: list[bool] = []

    def hang(key: str, value: Any, **options: Any) -> None:
        if key == "roughy_progress" and not asked_for.is_set():
            asked_for.set()
            over.append(released.wait(10))
        keep(key, value, **options)

    store.set = hang  # type: ignore[method-assign]
    # A minute passes with each look at the clock, so that each block is a reason to show the progress.
    clock = SimpleNamespace(monotonic=Minutes())
    monkeypatch.setattr("airflow_provider_roughy.transfer.progress.time", clock)
    with whenever(lambda: [asset["state"] for asset in roughy.assets] == ["processing"], released.set):
        ended = upload(store, recording)
    assert ended.state == "success", ended.error
    assert asked_for.is_set()
    assert over == [True], "the transfer waited for the store"


class Minutes:
    """A clock of which each look is a minute later than the one before."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 60.0
        return self._now


def test_a_name_that_is_no_utf8_can_be_remembered(roughy: Emulator, store: Store, recording: Path) -> None:
    named = recording.with_name(b"G\xe4ste.mp3".decode("utf-8", "surrogateescape"))
    recording.rename(named)
    roughy.inject(Fault(**PATCH, cut_after=2 * MIB))
    roughy.inject(Fault(**PATCH, nth=2, status=503, times=None))
    assert upload(store, named).state == "up_for_retry"
    roughy.clear_faults()
    [asset] = roughy.assets
    assert upload(store, named).result == asset["id"]
    assert arrived(roughy, asset["id"], named)

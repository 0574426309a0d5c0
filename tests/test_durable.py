"""A later start of a task resumes the upload of an earlier one."""

from __future__ import annotations

import json
import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyServerError,
    RoughyUnsupportedMediaError,
    RoughyUploadError,
    RoughyValidationError,
)
from airflow_provider_roughy.operators import RoughyCreateUploadOperator
from harness import media
from tests.running import TaskInstance, whenever
from tests.uploading import MIB, Store, arrived, asked, break_off, sent, upload

pytestmark = pytest.mark.usefixtures("connection")


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def recording(tmp_path: Path, recordings: dict[str, Path]) -> Path:
    """4 MiB that begin like a recording."""
    return media.pad(recordings["audio"], tmp_path / "recording.mp3", size=4 * MIB)


@pytest.fixture(autouse=True)
def quick(roughy: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries; and what is uploaded stays in ``processing``, for it is no real recording."""
    roughy.progression = "manual"
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)


def test_next_try_resumes_at_roughys_offset(roughy: Emulator, store: Store, recording: Path) -> None:
    asset_id = break_off(roughy, store, recording)
    ended = upload(store, recording)
    assert ended.result == asset_id
    assert arrived(roughy, asset_id, recording)
    assert sent(roughy) == 3 * MIB
    assert len(roughy.assets) == 1


def test_a_complete_upload_is_not_sent_again(roughy: Emulator, store: Store, recording: Path) -> None:
    first = upload(store, recording)
    roughy.clear_requests()
    again = upload(store, recording)
    assert again.result == first.result
    assert [request.method for request in roughy.requests] == ["GET"]


def test_the_note_is_written_before_the_first_byte(roughy: Emulator, store: Store, recording: Path) -> None:
    roughy.inject(Fault(method="PATCH", drop=True, times=None))
    upload(store, recording)
    note = store.get("roughy_upload")
    assert note["asset_id"] == roughy.assets[0]["id"]
    assert "upload_url" not in json.dumps(note)
    assert b"/v1/uploads/" not in b"".join(store.rows.values())


def test_an_asset_that_is_gone_is_made_anew(roughy: Emulator, store: Store, hook: Any, recording: Path) -> None:
    first = upload(store, recording).result
    hook.delete_asset(first)
    second = upload(store, recording).result
    assert second != first
    assert arrived(roughy, second, recording)


def test_an_asset_that_failed_is_made_anew(roughy: Emulator, store: Store, recording: Path) -> None:
    first = upload(store, recording).result
    roughy.set_state(first, "failed", error_code="probe_failed", error_message="cannot be read")
    second = upload(store, recording).result
    assert second != first
    assert arrived(roughy, second, recording)


@pytest.mark.parametrize("open_still", [True, False], ids=["open", "complete"])
def test_a_changed_source_is_uploaded_anew(roughy: Emulator, store: Store, recording: Path, open_still: bool) -> None:
    first = break_off(roughy, store, recording) if open_still else upload(store, recording).result
    recording.write_bytes(recording.read_bytes()[:-1] + b"!")
    os.utime(recording, ns=(1, 1))
    second = upload(store, recording).result
    assert second != first
    assert arrived(roughy, second, recording)
    left = {asset["id"] for asset in roughy.assets}
    assert left == ({second} if open_still else {first, second}), "only an open upload is nobody's"


def test_a_mapped_list_that_shifted_does_not_inherit_a_neighbours_upload(
    roughy: Emulator, store: Store, recording: Path, tmp_path: Path
) -> None:
    begun = break_off(roughy, store, recording)
    neighbour = tmp_path / "neighbour.mp3"
    # Of the same size and time, and different only where the neighbour's upload would go on.
    neighbour.write_bytes(recording.read_bytes()[:-MIB] + os.urandom(MIB))
    os.utime(neighbour, ns=(recording.stat().st_atime_ns, recording.stat().st_mtime_ns))
    ended = upload(store, neighbour)
    assert arrived(roughy, ended.result, neighbour)
    assert [asset["id"] for asset in roughy.assets] == [ended.result] != [begun]


@pytest.mark.parametrize("change", [{"language": "de"}, {"project_id": "other"}])
def test_another_language_or_project_is_another_asset(
    roughy: Emulator, store: Store, hook: Any, recording: Path, change: dict[str, str]
) -> None:
    if "project_id" in change:
        change = {"project_id": hook.create_project("Other").id}
    first = upload(store, recording).result
    second = upload(store, recording, **change).result
    assert second != first
    assert {name: roughy.asset(second)[name] for name in change} == change


@pytest.mark.parametrize("finished", ["expired", "cancelled"])
def test_an_upload_that_expired_is_made_anew(roughy: Emulator, store: Store, recording: Path, finished: str) -> None:
    first = break_off(roughy, store, recording)
    if finished == "expired":
        roughy.advance(25 * 3600)
    else:
        # The asset is there, and says that its upload is open; only the upload itself is gone.
        roughy.inject(Fault(method="HEAD", path="/v1/uploads/*", status=410, times=None))
    second = upload(store, recording).result
    assert second != first
    assert arrived(roughy, second, recording)
    assert [asset["id"] for asset in roughy.assets] == [second]


def test_durable_false_starts_anew_and_leaves_nothing(roughy: Emulator, store: Store, recording: Path) -> None:
    assert break_off(roughy, store, recording, durable=False) == ""
    assert store.rows == {}
    ended = upload(store, recording, durable=False)
    assert arrived(roughy, ended.result, recording)
    assert sent(roughy) == 4 * MIB


def test_without_a_store_a_try_that_fails_leaves_nothing(roughy: Emulator, recording: Path) -> None:
    assert break_off(roughy, None, recording) == ""


def test_what_no_retry_can_mend_is_cancelled_although_there_is_a_store(
    roughy: Emulator, store: Store, recording: Path, tmp_path: Path
) -> None:
    roughy.inject(Fault(method="PATCH", status=400, times=None))
    assert type(upload(store, recording).error) is RoughyValidationError
    assert roughy.assets == []
    text = tmp_path / "notes.txt"
    text.write_text("notes " * 1000)
    roughy.clear_faults()
    assert type(upload(Store(), text).error) is RoughyUnsupportedMediaError
    assert roughy.assets == []


def test_a_note_that_cannot_be_checked_is_kept_for_the_next_try(
    roughy: Emulator, store: Store, recording: Path
) -> None:
    asset_id = break_off(roughy, store, recording)
    roughy.inject(Fault(method="GET", path="/v1/assets/*", status=503, times=5))
    assert type(upload(store, recording).error) is RoughyServerError
    assert upload(store, recording).result == asset_id


@pytest.mark.parametrize("note", ["text", 7, [], {"asset_id": 7}, {"asset_id": "x"}, {"wanted": {}}], ids=str)
def test_foreign_value_in_the_store_is_ignored(roughy: Emulator, store: Store, recording: Path, note: Any) -> None:
    store.set("roughy_upload", note)
    ended = upload(store, recording)
    assert arrived(roughy, ended.result, recording)


def test_a_store_that_fails_in_mid_transfer_does_not_end_it(
    roughy: Emulator, store: Store, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(key: str, value: Any, **options: Any) -> None:
        raise RuntimeError("Airflow's API is down")

    keep = store.set
    store.set = lambda key, value, **options: (fail if key == "roughy_progress" else keep)(key, value)  # type: ignore[method-assign]
    assert arrived(roughy, upload(store, recording).result, recording)


def test_a_store_that_fails_before_the_first_byte_leaves_nothing(
    roughy: Emulator, store: Store, recording: Path
) -> None:
    def fail(key: str, value: Any, **options: Any) -> None:
        raise RuntimeError("Airflow's API is down")

    store.set = fail  # type: ignore[method-assign]
    ended = upload(store, recording)
    assert "Airflow's API is down" in str(ended.error)
    assert roughy.assets == []


def test_the_progress_is_in_the_store(roughy: Emulator, store: Store, recording: Path) -> None:
    upload(store, recording)
    assert store.get("roughy_progress") == {"bytes": 4 * MIB, "of": 4 * MIB, "percent": 100}


def kill_while_sending(roughy: Emulator) -> AbstractContextManager[None]:
    """Send this process a signal, as Airflow does, while the bytes are under way."""
    return whenever(lambda: asked(roughy, "PATCH") > 0, lambda: os.kill(os.getpid(), signal.SIGUSR1))


@pytest.mark.parametrize("durable", [True, False])
def test_a_killed_task_leaves_its_upload_only_where_it_will_be_found(
    roughy: Emulator, store: Store, recording: Path, durable: bool
) -> None:
    operator = RoughyCreateUploadOperator(task_id="upload", source=recording, durable=durable)
    context: Any = {"ti": TaskInstance(), "task_state_store": store}
    roughy.inject(Fault(method="PATCH", hang=True))

    # Airflow calls on_kill() from a signal handler, while the request is under way.
    class Killed(BaseException):
        pass

    def kill(*args: Any) -> None:
        operator.on_kill()
        raise Killed

    before = signal.signal(signal.SIGUSR1, kill)
    try:
        with kill_while_sending(roughy), pytest.raises(Killed):
            operator.execute(context)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(roughy.assets) == (1 if durable else 0)
    operator.on_kill()


def test_a_task_that_airflow_3_kills_may_be_retried(roughy: Emulator, recording: Path) -> None:
    operator = RoughyCreateUploadOperator(task_id="upload", source=recording)
    context: Any = {"ti": TaskInstance()}
    roughy.inject(Fault(method="PATCH", delay=1.0))
    # A signal whose handler only calls on_kill().
    before = signal.signal(signal.SIGUSR1, lambda *_: operator.on_kill())
    try:
        with (
            kill_while_sending(roughy),
            pytest.raises(RoughyUploadError, match="discarded, as its task was killed") as killed,
        ):
            operator.execute(context)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not killed.value.final
    assert roughy.assets == []

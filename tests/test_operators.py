"""The operators for uploads and deletions, run as Airflow runs them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.compat import DAG
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAssetFailedError,
    RoughyConfigurationError,
    RoughyInsufficientCreditsError,
    RoughyNotFoundError,
    RoughyPaymentRequiredError,
    RoughySourceError,
    RoughyTimeoutError,
    RoughyUnsupportedMediaError,
    RoughyUnusableSourceError,
    RoughyUploadError,
)
from airflow_provider_roughy.operators import (
    RoughyCreateUploadOperator,
    RoughyCutOperator,
    RoughyDeleteAssetOperator,
    RoughyIngestOperator,
    RoughyRenderOperator,
)
from harness import media
from tests.running import Ended, run_task, whenever

NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"

pytestmark = pytest.mark.usefixtures("connection")


def upload(source: Path | str, **options: Any) -> Ended:
    return run_task(RoughyCreateUploadOperator(task_id="upload", source=source, **options))


@pytest.fixture
def audio(recordings: dict[str, Path]) -> Path:
    return recordings["audio"]


def test_recording_is_uploaded_completely(roughy: Emulator, recordings: dict[str, Path]) -> None:
    for name, kind in (("audio", "audio"), ("video", "video")):
        ended = upload(recordings[name], language="DE")
        asset = roughy.asset(ended.result)
        assert asset["sha256"] == hashlib.sha256(recordings[name].read_bytes()).hexdigest()
        assert (asset["state"], asset["type"], asset["language"]) == ("ready", kind, "de")
        assert asset["project_id"] == roughy.project_id


MODES: dict[str, dict[str, Any]] = {
    "no wait": {},
    "sync": {"wait_for_completion": True, "deferrable": False},
    "deferrable": {"wait_for_completion": True, "deferrable": True},
}


@pytest.mark.parametrize("progression", ["immediate", "polls=2"])
@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_result_is_the_asset_id_in_every_mode(
    roughy: Emulator, audio: Path, options: dict[str, Any], progression: str
) -> None:
    roughy.progression = progression
    ended = upload(audio, poll_interval=0.05, **options)
    assert ended.state == "success", ended.error
    assert ended.result == roughy.assets[0]["id"]
    assert (ended.waited == "triggerer") == (options.get("deferrable", False) and progression != "immediate")


@pytest.mark.once
@pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
def test_retry_after_of_the_first_poll_is_obeyed(roughy: Emulator, audio: Path, deferrable: bool) -> None:
    # After the look that confirms the upload.
    roughy.inject(Fault(method="GET", path="/v1/assets/*", nth=2, status=429, headers={"Retry-After": "1"}))
    ended = upload(audio, wait_for_completion=True, deferrable=deferrable, poll_interval=0.05)
    assert ended.state == "success", ended.error
    refused, again = [request for request in roughy.requests if request.method == "GET"][1:]
    assert (refused.status, again.status) == (429, 200)
    assert again.started_at - refused.started_at >= 1.0


@pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
@pytest.mark.parametrize("progression", [pytest.param("immediate", marks=pytest.mark.once), "polls=2"])
@pytest.mark.parametrize(
    ("policy", "state", "error"),
    [("fail", "failed", RoughyPaymentRequiredError), ("skip", "skipped", None), ("return", "success", None)],
)
def test_unpaid_asset_ends_as_on_pending_payment_says(
    roughy: Emulator, tmp_path: Path, deferrable: bool, progression: str, policy: Any, state: str, error: Any
) -> None:
    roughy.progression = progression
    roughy.balance = 1
    long = media.make_audio(tmp_path / "long.wav", seconds=61, format="wav")
    ended = upload(
        long,
        wait_for_completion=True,
        deferrable=deferrable,
        on_pending_payment=policy,
        poll_interval=0.05,
    )
    assert ended.state == state, ended.error
    assert roughy.assets[0]["state"] == "pending_payment"
    if error:
        assert type(ended.error) is error


@pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
def test_failed_asset_fails_the_task(roughy: Emulator, audio: Path, tmp_path: Path, deferrable: bool) -> None:
    roughy.progression = "polls=2"
    broken = tmp_path / "broken.mp3"
    content = audio.read_bytes()
    broken.write_bytes(content[:128] + os.urandom(4000))
    ended = upload(broken, wait_for_completion=True, deferrable=deferrable, poll_interval=0.05)
    assert type(ended.error) is RoughyAssetFailedError
    assert roughy.assets[0]["id"] in str(ended.error)


@pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
def test_timeout_of_the_wait_uses_no_retry(roughy: Emulator, audio: Path, deferrable: bool) -> None:
    roughy.progression = "manual"
    ended = upload(audio, wait_for_completion=True, deferrable=deferrable, poll_interval=0.05, timeout=0.3)
    assert (ended.state, type(ended.error)) == ("failed", RoughyTimeoutError)


@pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
def test_execution_timeout_bounds_upload_and_wait_together(roughy: Emulator, audio: Path, deferrable: bool) -> None:
    roughy.progression = "manual"
    ended = upload(
        audio,
        wait_for_completion=True,
        deferrable=deferrable,
        poll_interval=0.05,
        timeout=600,
        execution_timeout=timedelta(seconds=1),
    )
    assert (ended.state, type(ended.error)) == ("failed", RoughyTimeoutError)


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "not deferrable"])
def test_poll_ends_with_the_timeout_of_the_wait(
    roughy: Emulator,
    audio: Path,
    connection: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    deferrable: bool,
) -> None:
    patient = {**connection, "extra": {**connection["extra"], "timeout": 60}}
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(patient))
    # The first GET confirms that the bytes have arrived.
    roughy.inject(Fault(method="GET", path="/v1/assets/*", nth=2, hang=True))
    ended = upload(audio, wait_for_completion=True, deferrable=deferrable, poll_interval=0.05, timeout=1)
    assert ended.state == "success", ended.error
    assert "no complete reply within 1 s" in "".join(capsys.readouterr())


@pytest.mark.parametrize("words", ["Trigger timeout", "Trigger/execution timeout"], ids=["Airflow 3", "Airflow 2"])
def test_wait_without_a_triggerer_uses_no_retry(roughy: Emulator, audio: Path, words: str) -> None:
    operator = RoughyCreateUploadOperator(task_id="upload", source=audio)
    with pytest.raises(RoughyTimeoutError, match="is a triggerer running"):
        operator.resume_execution("__fail__", {"error": words}, {})


def test_wait_works_inside_a_running_event_loop(roughy: Emulator, audio: Path) -> None:
    """As in a notebook's ``dag.test()``."""
    roughy.progression = "polls=3"

    async def notebook() -> Ended:
        return upload(audio, wait_for_completion=True, poll_interval=0.05)

    ended = asyncio.run(notebook())
    assert (ended.state, ended.result) == ("success", roughy.assets[0]["id"]), ended.error


def test_kill_ends_a_wait_inside_a_running_event_loop(roughy: Emulator, audio: Path) -> None:
    roughy.progression = "manual"
    task = RoughyCreateUploadOperator(
        task_id="upload", source=audio, wait_for_completion=True, poll_interval=0.05, timeout=100, asset_id=None
    )

    async def notebook() -> Ended:
        def looked() -> bool:
            return sum(request.method == "GET" for request in roughy.requests) > 3

        def settle() -> None:
            roughy.progression = "immediate"

        # Started again after a kill, it makes an asset of its own, as there is no store.
        return run_task(task, kill_once=looked, before_resuming=settle)

    assert asyncio.run(notebook()).state == "success"


@pytest.mark.parametrize("name", ["timeout", "poll_interval"])
@pytest.mark.parametrize(
    "value",
    [0, -1, float("nan"), float("inf"), pytest.param(10**400, id="10**400"), "30", True, timedelta(0)],
    ids=repr,
)
def test_invalid_time_is_refused_when_the_dag_is_parsed(audio: Path, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a number of seconds above 0, or a timedelta"):
        RoughyCreateUploadOperator(task_id="upload", source=audio, **{name: value})


@pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
@pytest.mark.parametrize("timeout", [timedelta(seconds=20), timedelta.max, 1e15], ids=str)
def test_times_may_be_a_timedelta_and_long(
    roughy: Emulator, audio: Path, deferrable: bool, timeout: timedelta | float
) -> None:
    roughy.progression = "polls=2"
    ended = upload(
        audio,
        wait_for_completion=True,
        deferrable=deferrable,
        poll_interval=timedelta(milliseconds=50),
        timeout=timeout,
    )
    assert ended.state == "success", ended.error


UNUSABLE: dict[str, Any] = {
    "missing": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "too small": lambda path: path.write_bytes(b"x" * 63),
    "too big": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 50 * 1024**3 + 1),
}


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_source_is_refused_before_an_asset_is_created(roughy: Emulator, tmp_path: Path, make: Any) -> None:
    make(tmp_path / "recording.mp3")
    ended = upload(tmp_path / "recording.mp3")
    assert (ended.state, type(ended.error)) == ("failed", RoughyUnusableSourceError)
    assert roughy.requests == []


@pytest.mark.parametrize("options", [{"language": "german"}, {"project_id": "None"}, {"asset_id": "None"}], ids=str)
def test_unusable_argument_is_refused_before_a_request(roughy: Emulator, audio: Path, options: dict[str, Any]) -> None:
    ended = upload(audio, **options)
    assert (ended.state, type(ended.error)) == ("failed", RoughyConfigurationError)
    assert roughy.requests == []


def test_missing_credits_are_named_and_use_no_retry(roughy: Emulator, audio: Path) -> None:
    roughy.balance = 0
    ended = upload(audio)
    assert (ended.state, type(ended.error)) == ("failed", RoughyInsufficientCreditsError)
    assert roughy.assets == []


def test_rejected_file_leaves_no_asset(roughy: Emulator, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("notes " * 1000)
    ended = upload(text)
    assert (ended.state, type(ended.error)) == ("failed", RoughyUnsupportedMediaError)
    assert [asset for asset in roughy.assets if asset["state"] == "pending_upload"] == []


@pytest.mark.parametrize(("status", "state"), [(400, "failed"), (415, "failed"), (404, "up_for_retry")])
def test_refused_try_leaves_no_asset(
    roughy: Emulator, audio: Path, status: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    roughy.inject(Fault(method="PATCH", status=status, times=None))
    ended = upload(audio)
    assert ended.state == state
    assert str(status) in str(ended.error)
    assert roughy.assets == []


def test_killed_try_cancels_its_upload(roughy: Emulator, audio: Path) -> None:
    """Airflow ends a task by an exception raised in a signal handler: execution_timeout, mark failed."""

    class Killed(BaseException):
        pass

    def kill(*args: Any) -> None:
        raise Killed

    before = signal.signal(signal.SIGALRM, kill)
    roughy.inject(Fault(method="PATCH", hang=True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(Killed):
            upload(audio)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert roughy.assets == []


def test_failed_cancellation_keeps_the_error_of_the_try(roughy: Emulator, audio: Path) -> None:
    roughy.inject(Fault(method="PATCH", status=400, times=None))
    roughy.inject(Fault(method="DELETE", status=403, times=None))
    ended = upload(audio)
    assert "400" in str(ended.error)


def test_changed_source_may_be_retried(
    roughy: Emulator, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.05)
    live = tmp_path / "live.mp3"
    live.write_bytes(audio.read_bytes() + os.urandom(3 * 1024 * 1024))
    roughy.inject(Fault(method="PATCH", status=503, times=None))

    def change() -> None:
        os.utime(live, ns=(1, 1))
        roughy.clear_faults()

    with whenever(lambda: any(request.method == "PATCH" for request in roughy.requests), change):
        ended = upload(live)
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughySourceError)
    assert roughy.assets == []


def test_upload_that_gave_up_may_be_retried(roughy: Emulator, audio: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    roughy.inject(Fault(method="PATCH", status=503, times=None))
    ended = upload(audio)
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyUploadError)
    assert roughy.assets == []


def test_asset_id_resumes_an_open_upload(roughy: Emulator, hook: Any, audio: Path) -> None:
    asset = hook.create_asset(None, audio.stat().st_size)
    ended = upload(audio, asset_id=asset.id)
    assert ended.result == asset.id
    assert roughy.asset(asset.id)["sha256"] == hashlib.sha256(audio.read_bytes()).hexdigest()
    assert len(roughy.assets) == 1


def test_asset_id_of_a_complete_upload_sends_nothing(roughy: Emulator, audio: Path) -> None:
    first = upload(audio)
    roughy.clear_requests()
    assert upload(audio, asset_id=first.result).result == first.result
    assert [request.method for request in roughy.requests] == ["GET"]


def test_failed_resume_by_asset_id_keeps_the_upload(roughy: Emulator, hook: Any, audio: Path) -> None:
    asset = hook.create_asset(None, audio.stat().st_size)
    roughy.inject(Fault(method="PATCH", status=400, times=None))
    assert upload(audio, asset_id=asset.id).state == "failed"
    assert [kept["id"] for kept in roughy.assets] == [asset.id]


def test_resuming_with_another_file_is_refused(roughy: Emulator, hook: Any, recordings: dict[str, Path]) -> None:
    asset = hook.create_asset(None, recordings["audio"].stat().st_size)
    ended = upload(recordings["video"], asset_id=asset.id)
    assert type(ended.error) is RoughyUnusableSourceError


def test_nothing_secret_is_returned_or_logged(
    roughy: Emulator, audio: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    roughy.inject(Fault(method="PATCH", status=400))
    failed = upload(audio)
    ended = upload(audio, wait_for_completion=True)
    uploads = {request.path.rpartition("/")[2] for request in roughy.requests if request.method == "PATCH"}
    assert len(uploads) == 2
    output = capsys.readouterr()
    own = "".join(record.getMessage() for record in caplog.records if not record.name.startswith("uvicorn"))
    said = own + output.out + output.err + json.dumps(ended.result) + repr(failed.error)
    assert ended.result in said
    for secret in (roughy.api_key, *uploads, "X-Amz-Signature"):
        assert secret not in said


# ---- Delete


def delete(asset_id: str, **options: Any) -> Ended:
    return run_task(RoughyDeleteAssetOperator(task_id="delete", asset_id=asset_id, **options))


@pytest.mark.parametrize("state", ["pending_upload", "processing", "ready", "failed", "pending_payment"])
def test_deleting_is_idempotent_in_any_state(roughy: Emulator, state: str) -> None:
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state=state)
    assert delete(asset_id).result == {"asset_id": asset_id, "deleted": True}
    assert delete(asset_id).result == {"asset_id": asset_id, "deleted": False}
    assert roughy.assets == []


def test_deleting_a_missing_asset_fails_with_missing_ok_false(roughy: Emulator) -> None:
    ended = delete(NOBODY, missing_ok=False)
    assert (ended.state, type(ended.error)) == ("failed", RoughyNotFoundError)


def test_deleting_an_empty_id_is_refused(roughy: Emulator) -> None:
    ended = delete("None")
    assert (ended.state, type(ended.error)) == ("failed", RoughyConfigurationError)
    assert roughy.requests == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: RoughyCreateUploadOperator(task_id="task", source="/a.mp3"),
        lambda: RoughyIngestOperator(task_id="task", source="/a"),
        lambda: RoughyCutOperator(task_id="task", asset_id=NOBODY),
        lambda: RoughyRenderOperator(task_id="task", asset_id=NOBODY, output={"format": "mp3"}),
    ],
    ids=["upload", "ingest", "cut", "render"],
)
def test_default_args_set_common_parameters(make: Callable[[], Any]) -> None:
    defaults = {
        "deferrable": True,
        "poll_interval": timedelta(minutes=1),
        "timeout": 7,
        "on_pending_payment": "wait",
        "roughy_conn_id": "other",
    }
    with DAG("dag", start_date=datetime(2026, 1, 1), schedule=None, default_args=defaults):
        task = make()
    assert (task.deferrable, task.poll_interval, task.timeout) == (True, 60.0, 7.0)
    assert (task.on_pending_payment, task.roughy_conn_id) == ("wait", "other")


@pytest.mark.parametrize("cls", [RoughyCreateUploadOperator, RoughyIngestOperator])
def test_mapped_operators_take_common_parameters(cls: Any) -> None:
    with DAG("dag", start_date=datetime(2026, 1, 1), schedule=None):
        mapped = cls.partial(task_id="task", deferrable=True, poll_interval=5).expand(source=["/a.mp3", "/b.mp3"])
    assert mapped.partial_kwargs["poll_interval"] == 5

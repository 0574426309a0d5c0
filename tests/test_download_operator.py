"""The download operator, run as Airflow runs it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_roughy.compat import AIRFLOW_VERSION, DAG, ObjectStoragePath, attach
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAssetFailedError,
    RoughyConfigurationError,
    RoughyDownloadError,
    RoughyInterruptedError,
    RoughyNotFoundError,
    RoughyNotReadyError,
    RoughyPaymentRequiredError,
    RoughyTargetExistsError,
    RoughyUnusableTargetError,
)
from airflow_provider_roughy.operators import RoughyDownloadOperator
from tests.running import Ended, run_task, whenever
from tests.storage import Answer, Storage, lead
from tests.uploading import MIB

CONTENT = os.urandom(3 * MIB)

pytestmark = pytest.mark.usefixtures("patient")


def download(target: Path | str | ObjectStoragePath, **options: Any) -> Ended:
    return run_task(RoughyDownloadOperator(task_id="download", target=target, **options))


def test_the_result_is_the_targets_uri(roughy: Emulator, tmp_path: Path) -> None:
    asset_id = roughy.seed_asset(content=CONTENT, extension="wav")
    render_id = roughy.seed_render(content=CONTENT[::-1], output={"format": "m4a"})
    ended = download(f"{tmp_path}/new/", asset_id=asset_id)
    assert ended.result == f"{tmp_path}/new/{asset_id}.wav", ended.error
    assert Path(ended.result).read_bytes() == CONTENT
    ended = download(f"file://{tmp_path}/new", render_id=render_id)
    assert ended.result == f"file://{tmp_path}/new/{render_id}.m4a", ended.error
    assert (tmp_path / "new" / f"{render_id}.m4a").read_bytes() == CONTENT[::-1]
    assert json.loads(json.dumps(ended.result)) == ended.result


@pytest.mark.parametrize("spell", [str.upper, lambda id: id.replace("-", "")])
def test_an_id_may_be_spelled_as_any_uuid(roughy: Emulator, tmp_path: Path, spell: Callable[[str], str]) -> None:
    asset_id = roughy.seed_asset(content=CONTENT, extension="wav")
    ended = download(f"{tmp_path}/", asset_id=spell(asset_id))
    assert ended.result == f"{tmp_path}/{asset_id}.wav", ended.error


def test_an_object_storage_path_is_a_target(roughy: Emulator, tmp_path: Path) -> None:
    ended = download(ObjectStoragePath(f"file://{tmp_path}/talk.mp3"), asset_id=roughy.seed_asset(content=CONTENT))
    assert ended.state == "success", ended.error
    assert (tmp_path / "talk.mp3").read_bytes() == CONTENT


def test_its_fields_are_templates() -> None:
    operator = RoughyDownloadOperator(
        task_id="download",
        target="s3://out/{{ ds }}/",
        render_id="{{ ti.render }}",
        target_conn_id="{{ params.conn }}",
        roughy_conn_id="{{ params.roughy }}",
        dag=DAG("templates", schedule=None),
    )
    context: Any = {"ds": "2026-11-26", "ti": {"render": "id"}, "params": {"conn": "aws", "roughy": "staging"}}
    operator.render_template_fields(context)
    assert (operator.target, operator.render_id) == ("s3://out/2026-11-26/", "id")
    assert (operator.target_conn_id, operator.roughy_conn_id) == ("aws", "staging")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "neither is given"),
        ({"asset_id": "a", "render_id": "b"}, "not both"),
        ({"asset_id": "a", "overwrite": "never"}, "overwrite must be one of"),
    ],
)
def test_invalid_arguments_fail_when_the_dag_is_parsed(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RoughyDownloadOperator(task_id="download", target="x", **options)


@pytest.mark.parametrize(
    ("state", "ends", "error"),
    [
        ("processing", "up_for_retry", RoughyNotReadyError),
        ("pending_payment", "failed", RoughyPaymentRequiredError),
        ("failed", "failed", RoughyAssetFailedError),
    ],
)
def test_unready_resource_may_be_retried_and_failed_one_not(
    roughy: Emulator, tmp_path: Path, state: str, ends: str, error: type[Exception]
) -> None:
    roughy.progression = "manual"
    ended = download(tmp_path / "talk.mp3", asset_id=roughy.seed_asset(state))
    assert (ended.state, type(ended.error)) == (ends, error)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"asset_id": "no id"}, RoughyConfigurationError),
        ({"asset_id": ""}, RoughyConfigurationError),
        ({"asset_id": "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"}, RoughyNotFoundError),
        ({"render_id": "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"}, RoughyNotFoundError),
    ],
)
def test_what_no_retry_can_mend_burns_none(tmp_path: Path, options: dict[str, Any], error: type[Exception]) -> None:
    ended = download(tmp_path / "talk.mp3", **options)
    assert (ended.state, type(ended.error)) == ("failed", error)


def test_a_target_that_cannot_be_written_burns_no_retries(roughy: Emulator, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"another")
    asset_id = roughy.seed_asset(content=CONTENT)
    ended = download(tmp_path / "file" / "talk.mp3", asset_id=asset_id)
    assert (ended.state, type(ended.error)) == ("failed", RoughyUnusableTargetError)
    ended = download(tmp_path / "file", asset_id=asset_id, overwrite="fail")
    assert (ended.state, type(ended.error)) == ("failed", RoughyTargetExistsError)
    assert (tmp_path / "file").read_bytes() == b"another"


@pytest.mark.parametrize("overwrite", ["replace", "skip", "fail"])
def test_a_retry_after_success_succeeds(roughy: Emulator, tmp_path: Path, overwrite: str) -> None:
    asset_id = roughy.seed_asset(content=CONTENT)
    for _ in range(2):
        ended = download(tmp_path / "talk.mp3", asset_id=asset_id, overwrite=overwrite)
        assert ended.result == str(tmp_path / "talk.mp3"), ended.error
    assert (tmp_path / "talk.mp3").read_bytes() == CONTENT


def stalled(roughy: Emulator, storage: Storage) -> str:
    """Return an asset whose storage stops in mid-way, once."""
    asset_id = roughy.seed_asset(content=CONTENT)
    lead(roughy, asset_id, storage)
    storage.answers = [Answer(stall_after=MIB)]
    return asset_id


def test_a_task_that_is_killed_leaves_nothing_and_the_next_try_succeeds(roughy: Emulator, tmp_path: Path) -> None:
    with Storage(CONTENT) as storage:
        asset_id = stalled(roughy, storage)
        left: list[Path] = []
        ended = run_task(
            RoughyDownloadOperator(task_id="download", target=tmp_path / "talk.mp3", asset_id=asset_id),
            kill_once=lambda: any(path.stat().st_size for path in tmp_path.iterdir()),
            before_resuming=lambda: left.extend(tmp_path.iterdir()),
        )
    assert left == []
    assert ended.result == str(tmp_path / "talk.mp3"), ended.error
    assert storage.ranges == [None, None]
    assert (tmp_path / "talk.mp3").read_bytes() == CONTENT


def test_a_kill_that_airflow_announces_ends_the_download(roughy: Emulator, tmp_path: Path) -> None:
    with Storage(CONTENT) as storage:
        asset_id = stalled(roughy, storage)
        storage.answers.clear()
        operator = RoughyDownloadOperator(task_id="download", target=tmp_path / "talk.mp3", asset_id=asset_id)
        storage.on_sent = lambda sent: operator.on_kill() if sent == MIB else None
        with pytest.raises(RoughyDownloadError, match="The task was killed at"):
            operator.execute({})
    assert list(tmp_path.iterdir()) == []


#: Where a download can wait for long.
WAITS = {
    "body that stalls": Answer(stall_after=MIB + 5),
    "chunked body that stalls": Answer(stall_after=MIB + 5, chunked=True),
    "answer that never comes": Answer(silent=True),
    "pause": Answer(status=503, headers={"Retry-After": "60"}),
}


@contextmanager
def killed_by_airflow(operator: RoughyDownloadOperator, when: Callable[[], bool]) -> Iterator[list[float]]:
    """Call ``on_kill`` as Airflow 3 does: in a handler of a signal, after which the task goes on."""
    killed: list[float] = []

    def kill(*_: object) -> None:
        killed.append(time.monotonic())
        operator.on_kill()

    def send() -> None:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, kill)
    try:
        with whenever(when, send):
            yield killed
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("wait", WAITS)
def test_kill_is_noticed_within_a_second(roughy: Emulator, tmp_path: Path, wait: str) -> None:
    with Storage(CONTENT) as storage:
        asset_id = stalled(roughy, storage)
        storage.answers.clear()
        storage.manner = WAITS[wait]
        operator = RoughyDownloadOperator(task_id="download", target=tmp_path / "talk.mp3", asset_id=asset_id)
        with (
            killed_by_airflow(operator, lambda: bool(storage.asked)) as killed,
            pytest.raises(RoughyDownloadError, match="The task was killed at"),
        ):
            operator.execute({})
        assert time.monotonic() - killed[0] < 1
    assert list(tmp_path.iterdir()) == []


def test_kill_from_another_thread_is_noticed_at_any_rate(roughy: Emulator, tmp_path: Path) -> None:
    """Bytes come, but it takes minutes until there is a block of them."""
    asset_id = roughy.seed_asset(content=CONTENT)
    roughy.inject(Fault(path="/storage/*", reply_rate=20_000))
    operator = RoughyDownloadOperator(task_id="download", target=tmp_path / "talk.mp3", asset_id=asset_id)

    def is_begun() -> bool:
        return any(request.path.startswith("/storage") for request in roughy.requests)

    killed: list[float] = []

    def kill() -> None:
        time.sleep(0.3)
        killed.append(time.monotonic())
        operator.on_kill()

    with whenever(is_begun, kill), pytest.raises(RoughyDownloadError, match="The task was killed at"):
        operator.execute({})
    assert time.monotonic() - killed[0] < 1
    assert list(tmp_path.iterdir()) == []


def test_task_that_was_killed_before_it_began_downloads_nothing(roughy: Emulator, tmp_path: Path) -> None:
    operator = RoughyDownloadOperator(
        task_id="download", target=tmp_path / "talk.mp3", asset_id=roughy.seed_asset(content=CONTENT)
    )
    operator.on_kill()
    with pytest.raises(RoughyInterruptedError, match="The task was killed"):
        operator.execute({})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(AIRFLOW_VERSION.startswith("2."), reason="Airflow 2 runs a task in no thread")
@pytest.mark.parametrize("same", [True, False], ids=["same bytes", "other bytes"])
@pytest.mark.parametrize("way", ["path", "memory://"])
def test_concurrent_downloads_with_overwrite_fail_do_not_replace(
    roughy: Emulator, tmp_path: Path, way: str, same: bool
) -> None:
    """The files are as long, and both have begun before either is written."""
    attach("memory", fs=MemoryFileSystem())
    target = f"{tmp_path}/cut.mp4" if way == "path" else "memory://two/cut.mp4"
    contents = [CONTENT, CONTENT if same else CONTENT[::-1]]
    renders = [roughy.seed_render(content=content) for content in contents]
    both, ended = threading.Barrier(2), dict[int, BaseException | str]()

    def run(number: int) -> None:
        operator = RoughyDownloadOperator(
            task_id=f"download_{number}", target=target, render_id=renders[number], overwrite="fail"
        )
        try:
            both.wait(20)
            ended[number] = operator.execute({})
        except BaseException as error:
            ended[number] = error

    roughy.inject(Fault(path="/storage/*", delay=0.5, times=2))
    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = Path(target).read_bytes() if way == "path" else MemoryFileSystem().cat("/two/cut.mp4")
    MemoryFileSystem.store.clear()
    results = [number for number in range(2) if ended[number] == target]
    assert len(results) == 1 + same
    assert {type(each) for each in ended.values()} == ({str} if same else {str, RoughyTargetExistsError})
    assert written == contents[results[0]]


def test_no_secret_is_reported(
    roughy: Emulator, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with Storage(CONTENT) as storage:
        asset_id = stalled(roughy, storage)
        storage.answers = [Answer(cut_after=MIB), Answer(status=403), Answer(drop=True)]
        ended = download(tmp_path / "talk.mp3", asset_id=asset_id)
        assert all("authorization" not in asked.headers for asked in storage.asked)
    assert ended.state == "success", ended.error
    told = "".join(capfd.readouterr()) + caplog.text + ended.result
    assert "Renewing the link" in told
    for secret in ("X-Amz-Signature", "s1gned", roughy.api_key):
        assert secret not in told

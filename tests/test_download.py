"""A download is complete or has no effect, whatever the storage does."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_roughy.compat import AirflowFailException
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAssetFailedError,
    RoughyConfigurationError,
    RoughyDownloadError,
    RoughyError,
    RoughyNotFoundError,
    RoughyNotReadyError,
    RoughyPaymentRequiredError,
    RoughyRenderFailedError,
    RoughyTargetError,
    RoughyTargetExistsError,
    RoughyUntrustedUrlError,
    RoughyUnusableTargetError,
)
from airflow_provider_roughy.hooks import RoughyHook
from tests.storage import Answer, Storage
from tests.storage import lead as lead_to
from tests.uploading import MIB

SIZE = 3 * MIB + 7
CONTENT = os.urandom(SIZE)
OTHER = os.urandom(SIZE)

GET: dict[str, Any] = {"method": "GET", "path": "/v1/assets/*"}


pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which take no time."""
    taken: list[float] = []
    monkeypatch.setattr("airflow_provider_roughy.transfer.download.time.sleep", taken.append)
    return taken


@pytest.fixture
def storage() -> Iterator[Storage]:
    with Storage(CONTENT) as storage:
        yield storage


@pytest.fixture
def asset_id(roughy: Emulator) -> str:
    return roughy.seed_asset(content=CONTENT, extension="mp3", content_type="audio/mpeg")


@pytest.fixture
def lead(roughy: Emulator, asset_id: str, storage: Storage) -> Callable[..., None]:
    """Lead the asset's link to the storage."""
    return partial(lead_to, roughy, asset_id, storage)


def fetch(hook: RoughyHook, asset_id: str, folder: Path, **options: Any) -> Path:
    """Download, and see that all of it is there and nothing else."""
    hook.download(folder / "talk.mp3", asset_id=asset_id, **options)
    assert [path.name for path in folder.iterdir()] == ["talk.mp3"]
    return folder / "talk.mp3"


def refuse(
    hook: RoughyHook, asset_id: str, folder: Path, error: type[RoughyError], match: str | None = None
) -> RoughyError:
    """Fail to download, and see that nothing is left."""
    with pytest.raises(error, match=match) as refused:
        hook.download(folder / "talk.mp3", asset_id=asset_id)
    assert type(refused.value) is error
    assert list(folder.iterdir()) == []
    return refused.value


# ---- What comes


def test_an_asset_and_a_render_arrive(roughy: Emulator, hook: RoughyHook, asset_id: str, tmp_path: Path) -> None:
    render_id = roughy.seed_render(content=OTHER, output={"format": "mov"})
    assert hook.download(f"{tmp_path}/new/", asset_id=asset_id) == f"{tmp_path}/new/{asset_id}.mp3"
    assert hook.download(tmp_path, render_id=render_id) == f"{tmp_path}/{render_id}.mov"
    assert (tmp_path / "new" / f"{asset_id}.mp3").read_bytes() == CONTENT
    assert (tmp_path / f"{render_id}.mov").read_bytes() == OTHER


def test_the_storage_never_sees_the_key(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    lead()
    storage.answers = [Answer(cut_after=MIB)]
    fetch(hook, asset_id, tmp_path)
    for asked in storage.asked:
        assert not {"authorization", "cookie"} & set(asked.headers)
        assert hook.settings.api_key not in str(asked)
        assert asked.headers["accept-encoding"] == "identity"


def test_download_progress_is_reported(hook: RoughyHook, asset_id: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    fetch(hook, asset_id, tmp_path, on_progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (SIZE, SIZE)
    assert len(told) >= 4


# ---- What breaks is gone on with


def test_transfer_cut_seven_times_resumes_at_its_offset(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    lead()
    storage.answers = [Answer(cut_after=100_001) for _ in range(7)]
    assert fetch(hook, asset_id, tmp_path).read_bytes() == CONTENT
    assert storage.ranges == [None, *(f"bytes={100_001 * number}-" for number in range(1, 8))]
    assert {asked.headers.get("if-range") for asked in storage.asked[1:]} == {storage.etag}


@pytest.mark.parametrize("after", [1, 65_537, SIZE - 1])
def test_whatever_has_come_is_kept(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path, after: int
) -> None:
    lead()
    storage.answers = [Answer(cut_after=after)]
    assert fetch(hook, asset_id, tmp_path).read_bytes() == CONTENT
    assert storage.ranges == [None, f"bytes={after}-"]


@pytest.mark.parametrize("chunked", [False, True], ids=["length known", "chunked"])
def test_a_storage_that_falls_silent_is_left(
    connection: dict[str, Any],
    asset_id: str,
    storage: Storage,
    lead: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunked: bool,
) -> None:
    lead()
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(connection))
    storage.answers = [Answer(stall_after=MIB + 5, chunked=chunked)]
    with RoughyHook() as impatient:
        assert fetch(impatient, asset_id, tmp_path).read_bytes() == CONTENT
    assert storage.ranges[:2] == [None, f"bytes={MIB + 5}-"]


#: Each is met once, and survived: the answers, and what is asked for then.
SURVIVED: dict[str, tuple[list[Answer], list[str | None]]] = {
    "reset before the first byte": ([Answer(drop=True)] * 3, [None] * 4),
    "reset in the place of a part": ([Answer(cut_after=500), Answer(drop=True)], [None, *["bytes=500-"] * 2]),
    "the whole for a part": ([Answer(cut_after=500), Answer(ignore_range=True)], [None, "bytes=500-"]),
    "another part": (
        [Answer(cut_after=500), Answer(headers={"Content-Range": f"bytes 499-{SIZE - 1}/{SIZE}"})],
        [None, "bytes=500-", None],
    ),
    "a part of something longer": (
        [Answer(cut_after=500), Answer(headers={"Content-Range": f"bytes 500-{SIZE - 1}/{SIZE + 1}"})],
        [None, "bytes=500-", None],
    ),
    "a part with no name": (
        [Answer(cut_after=500), Answer(headers={"Content-Range": None})],
        [None, "bytes=500-", None],
    ),
    "a part of another version": (
        [Answer(cut_after=500), Answer(headers={"ETag": '"another"'})],
        [None, "bytes=500-", None],
    ),
    "a part of unknown whole": (
        [Answer(cut_after=500), Answer(headers={"Content-Range": f"bytes 500-{SIZE - 1}/*"})],
        [None, "bytes=500-"],
    ),
    "a part of unknown version": (
        [Answer(cut_after=500), Answer(headers={"ETag": None})],
        [None, "bytes=500-", None],
    ),
    "a part of a weak version": (
        [Answer(cut_after=500), Answer(headers={"ETag": 'W/"weak"'})],
        [None, "bytes=500-", None],
    ),
    "a part that ends too early": (
        [Answer(cut_after=500), Answer(headers={"Content-Range": f"bytes 500-999/{SIZE}"})],
        [None, "bytes=500-", None],
    ),
    "several parts": (
        [
            Answer(cut_after=500),
            Answer(headers={"Content-Range": None, "Content-Type": "multipart/byteranges; boundary=x"}),
        ],
        [None, "bytes=500-", None],
    ),
    "a part that nobody asked for": (
        [Answer(status=206, body=CONTENT, headers={"Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}"})],
        [None, None],
    ),
    "no version": ([Answer(cut_after=500, headers={"ETag": None})], [None, None]),
    "a weak version": ([Answer(cut_after=500, headers={"ETag": 'W/"weak"'})], [None, None]),
    "an empty version": ([Answer(cut_after=500, headers={"ETag": '""'})], [None, None]),
    "416": ([Answer(cut_after=500), Answer(status=416)], [None, "bytes=500-", None]),
    "no content": ([Answer(status=204, headers={"Content-Length": None})], [None, None]),
    "shorter": ([Answer(body=CONTENT[:-1])], [None, None]),
    "longer": ([Answer(body=CONTENT + b"x")], [None, None]),
    "shorter in chunks": ([Answer(body=CONTENT[:-1], chunked=True)], [None, f"bytes={SIZE - 1}-"]),
    "longer in chunks": ([Answer(body=CONTENT + b"x", chunked=True)], [None, None]),
    "in chunks": ([Answer(chunked=True)], [None]),
    "packed": ([Answer(headers={"Content-Encoding": "gzip"})], [None, None]),
    "a page": ([Answer(body=b"<html>Sign in</html>" * 1000, headers={"Content-Type": "text/html"})], [None, None]),
    "a page of XML": (
        [Answer(body=CONTENT, headers={"Content-Type": "Application/XHTML+xml; charset=utf-8"})],
        [None, None],
    ),
    "redirected": ([Answer(status=302, headers={"Location": "http://127.0.0.1:9/"})], [None, None]),
    "503": ([Answer(status=503)] * 5, [None] * 6),
}


@pytest.mark.parametrize("fault", SURVIVED)
def test_what_a_storage_does_once_is_survived(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path, fault: str
) -> None:
    lead()
    answers, ranges = SURVIVED[fault]
    storage.answers = list(answers)
    assert fetch(hook, asset_id, tmp_path).read_bytes() == CONTENT
    assert storage.ranges == ranges


def test_a_file_that_changed_on_the_way_is_not_mixed(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    lead()
    storage.answers = [Answer(cut_after=MIB)]

    def change(sent: int) -> None:
        if sent == MIB:
            storage.content = OTHER

    storage.on_sent = change
    assert fetch(hook, asset_id, tmp_path).read_bytes() == OTHER
    assert storage.ranges == [None, f"bytes={MIB}-"]


def test_file_of_another_length_is_accepted_if_roughy_declares_it(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    lead(times=1)
    lead(nth=2, size_bytes=SIZE - 100)
    storage.answers = [Answer(cut_after=MIB)]

    def change(sent: int) -> None:
        storage.content = OTHER[:-100] if sent == MIB else storage.content

    storage.on_sent = change
    assert fetch(hook, asset_id, tmp_path).read_bytes() == OTHER[:-100]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path, pauses: list[float], status: int
) -> None:
    lead()
    storage.answers = [Answer(cut_after=500), Answer(status=status, headers={"Retry-After": "17"})]
    fetch(hook, asset_id, tmp_path)
    assert len(pauses) == 2
    assert 17 <= pauses[1] < 18
    assert storage.ranges == [None, "bytes=500-", "bytes=500-"]


# ---- Links expire


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_an_expired_link_is_renewed_in_mid_way(
    roughy: Emulator,
    hook: RoughyHook,
    asset_id: str,
    storage: Storage,
    lead: Any,
    tmp_path: Path,
    pauses: list[float],
    status: int,
) -> None:
    lead(times=1)
    fresh = f"{storage.url}-fresh"
    lead(nth=2, download_url=fresh)
    storage.answers = [Answer(cut_after=MIB), Answer(status=status)]
    assert fetch(hook, asset_id, tmp_path).read_bytes() == CONTENT
    assert storage.ranges == [None, *[f"bytes={MIB}-"] * 2]
    assert fresh.endswith(storage.asked[2].target)
    # The cut was a failure; the expiry is none.
    assert len(pauses) == 1
    assert sum(request.method == "GET" for request in roughy.requests) == 2


def test_a_link_of_the_emulator_that_expires_in_mid_way_is_renewed(
    roughy: Emulator, hook: RoughyHook, asset_id: str, tmp_path: Path
) -> None:
    roughy.inject(Fault(method="GET", path="/storage/*", cut_reply_after=MIB))

    def expire(done: int, total: int) -> None:
        if done == MIB:
            roughy.advance(16 * 60)

    assert fetch(hook, asset_id, tmp_path, on_progress=expire).read_bytes() == CONTENT
    asked = [request.path for request in roughy.requests if request.method == "GET"]
    storage = f"/storage/assets/{roughy.project_id}/{asset_id}"
    asset = f"/v1/assets/{asset_id}"
    assert [path.startswith(storage) for path in asked] == [False, True, True, False, True]
    assert {path for path in asked if not path.startswith(storage)} == {asset}


def test_how_often_a_link_is_renewed_is_bounded(
    roughy: Emulator, hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    lead()
    storage.answers = [Answer(cut_after=500)]
    storage.manner = Answer(status=403)
    error = refuse(
        hook, asset_id, tmp_path, RoughyDownloadError, "after 8 attempts without progress: GET /bucket/…: 403"
    )
    assert isinstance(error, RoughyDownloadError)
    assert error.offset == 500
    assert not isinstance(error, AirflowFailException)
    assert len(storage.asked) <= 10
    assert sum(request.method == "GET" for request in roughy.requests) <= 10


def test_how_often_roughy_is_asked_for_a_link_is_bounded(
    roughy: Emulator, hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    """A gateway answers in its place."""
    lead(times=1)
    roughy.inject(Fault(**GET, nth=2, times=None, status=403, body="<html>Sign in</html>"))
    storage.answers = [Answer(cut_after=500), Answer(status=403)]
    refuse(hook, asset_id, tmp_path, RoughyDownloadError, "after 8 attempts without progress: GET /v1/assets/")
    assert sum(request.method == "GET" for request in roughy.requests) <= 10


# ---- What never ends is named


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(drop=True), "no answer from 127.0.0.1: ReadError"),
        (Answer(body=CONTENT[:-1]), f"{SIZE - 1} bytes, but Roughy reports {SIZE}"),
        (Answer(body=CONTENT + b"x"), f"{SIZE + 1} bytes, but Roughy reports {SIZE}"),
        (Answer(body=CONTENT + b"x", chunked=True), f"more than the expected {SIZE} bytes"),
        (Answer(headers={"Content-Encoding": "gzip"}), "content coding 'gzip', which was not requested"),
        (Answer(headers={"Content-Type": "text/html; charset=utf-8"}), "an HTML page and not the file"),
        (Answer(body=b"", chunked=True), f"ended at 0 of {SIZE} bytes"),
        (Answer(status=500), "500"),
        (Answer(status=302), "a redirect, which is not followed"),
        (Answer(headers={"ETag": None}, cut_after=500), f"{SIZE - 500} bytes are missing from 127.0.0.1"),
    ],
)
def test_what_never_ends_is_named(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path, answer: Answer, words: str
) -> None:
    lead()
    storage.manner = answer
    error = refuse(hook, asset_id, tmp_path, RoughyDownloadError, "after 8 attempts without progress")
    assert words in str(error)
    assert f"Download of Asset {asset_id} gave up at " in str(error)
    assert "s1gned" not in str(error)


def test_a_body_of_unknown_length_is_not_taken(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    lead(size_bytes=None)
    storage.manner = Answer(chunked=True)
    error = refuse(hook, asset_id, tmp_path, RoughyDownloadError)
    assert "neither Roughy nor the storage reports the length of the file" in str(error)


def test_longer_file_is_not_cut_to_the_expected_length(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    """Also if a chunk ends exactly there."""
    lead(size_bytes=64 * 1024)
    storage.manner = Answer(chunked=True)
    error = refuse(hook, asset_id, tmp_path, RoughyDownloadError)
    assert "more than the expected 65536 bytes" in str(error)


def test_empty_file_is_not_taken(hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path) -> None:
    lead(size_bytes=None)
    storage.manner = Answer(body=b"")
    error = refuse(hook, asset_id, tmp_path, RoughyDownloadError)
    assert "an empty file" in str(error)


def test_size_comes_from_the_storage_if_roughy_has_none(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    lead(size_bytes=None)
    storage.answers = [Answer(cut_after=500)]
    assert fetch(hook, asset_id, tmp_path).read_bytes() == CONTENT
    assert storage.ranges == [None, "bytes=500-"]


@pytest.mark.parametrize("url", ["http://storage.example/x?secret", "file:///etc/passwd?secret", "/v1/assets"])
def test_a_link_to_nowhere_is_refused_for_good(
    hook: RoughyHook, asset_id: str, lead: Any, tmp_path: Path, url: str
) -> None:
    lead(download_url=url)
    assert "secret" not in str(refuse(hook, asset_id, tmp_path, RoughyUntrustedUrlError))


# ---- What Roughy has nothing of


@pytest.mark.parametrize(
    ("state", "error", "final"),
    [
        ("processing", RoughyNotReadyError, False),
        ("pending_upload", RoughyNotReadyError, False),
        ("pending_payment", RoughyPaymentRequiredError, True),
        ("failed", RoughyAssetFailedError, True),
    ],
)
def test_an_asset_that_is_not_ready_is_an_error_of_its_own(
    roughy: Emulator, hook: RoughyHook, tmp_path: Path, state: str, error: type[RoughyError], final: bool
) -> None:
    roughy.progression = "manual"
    refused = refuse(hook, roughy.seed_asset(state), tmp_path, error)
    assert refused.final is final


def test_a_render_that_is_not_completed_is_one_too(roughy: Emulator, hook: RoughyHook, tmp_path: Path) -> None:
    roughy.progression = "manual"
    for state, error in (("processing", RoughyNotReadyError), ("failed", RoughyRenderFailedError)):
        with pytest.raises(error):
            hook.download(tmp_path / "talk.mp4", render_id=roughy.seed_render(state))
    assert list(tmp_path.iterdir()) == []


def test_an_asset_that_is_deleted_on_the_way_ends_the_download(
    roughy: Emulator, hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    lead(times=1)
    storage.answers = [Answer(cut_after=MIB)]
    storage.manner = Answer(status=404)

    def delete(sent: int) -> None:
        if sent == MIB:
            roughy.clear_faults()
            with RoughyHook() as other:
                other.delete_asset(asset_id)

    storage.on_sent = delete
    refuse(hook, asset_id, tmp_path, RoughyNotFoundError)


def test_a_ready_asset_without_a_link_is_asked_for_again(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    lead(times=1)
    lead(nth=2, times=1, download_url=None)
    lead(nth=3)
    storage.answers = [Answer(cut_after=MIB), Answer(status=403)]
    assert fetch(hook, asset_id, tmp_path).read_bytes() == CONTENT


def test_a_download_needs_one_id(roughy: Emulator, hook: RoughyHook, tmp_path: Path) -> None:
    for asset_id, render_id, wrong in ((None, None, "both are empty"), ("a", "b", "not both"), ("", None, "both are")):
        with pytest.raises(RoughyConfigurationError, match=wrong):
            hook.download(tmp_path / "x", asset_id=asset_id, render_id=render_id)
    with pytest.raises(RoughyConfigurationError, match="must be a UUID"):
        hook.download(tmp_path / "x", asset_id="../../etc/passwd")
    assert roughy.requests == []


def test_roughys_extension_is_no_path(hook: RoughyHook, asset_id: str, lead: Any, tmp_path: Path) -> None:
    lead(extension="/../../mp3")
    assert hook.download(f"{tmp_path}/", asset_id=asset_id) == f"{tmp_path}/{asset_id}"


# ---- The target


def test_what_is_there_already_is_not_downloaded_again(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    lead()
    for policy in ("fail", "fail", "skip"):
        assert fetch(hook, asset_id, tmp_path, overwrite=policy).read_bytes() == CONTENT
    assert len(storage.asked) == 1
    fetch(hook, asset_id, tmp_path, overwrite="replace")
    assert len(storage.asked) == 2
    (tmp_path / "talk.mp3").write_bytes(b"another")
    with pytest.raises(RoughyTargetExistsError):
        hook.download(tmp_path / "talk.mp3", asset_id=asset_id, overwrite="fail")
    assert fetch(hook, asset_id, tmp_path, overwrite="skip").read_bytes() == CONTENT
    with pytest.raises(ValueError, match="overwrite must be one of"):
        hook.download(tmp_path / "talk.mp3", asset_id=asset_id, overwrite="never")  # type: ignore[arg-type]


def test_a_target_that_cannot_work_is_refused_before_anything_is_downloaded(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    lead()
    (tmp_path / "file").touch()
    with pytest.raises(RoughyUnusableTargetError):
        hook.download(tmp_path / "file" / "talk.mp3", asset_id=asset_id)
    assert storage.asked == []


def test_a_full_disk_is_no_reason_to_ask_again(
    hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead()
    room, write = [2 * MIB], os.write

    def write_with_bounds(file: int, block: Any) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(file, block[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_with_bounds)
        refuse(hook, asset_id, tmp_path, RoughyTargetError, "No space left on device")
    assert len(storage.asked) == 1
    assert fetch(hook, asset_id, tmp_path).read_bytes() == CONTENT


def test_concurrent_downloads_to_one_target_do_not_mix(
    roughy: Emulator, hook: RoughyHook, asset_id: str, storage: Storage, lead: Any, tmp_path: Path
) -> None:
    """Both are in the middle at the same time."""
    lead()
    both = threading.Barrier(2)

    def meet(sent: int) -> None:
        if sent in (MIB, 2 * MIB):
            both.wait(20)

    storage.on_sent = meet
    failed: list[Exception] = []

    def download() -> None:
        try:
            with RoughyHook() as own:
                own.download(tmp_path / "talk.mp3", asset_id=asset_id)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=download) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"talk.mp3": CONTENT}


def _tell(reached: threading.Event, when: int, sent: int) -> None:
    if sent == when:
        reached.set()


def _download_in_a_process(connection: str, asset_id: str, target: str) -> None:
    os.environ["AIRFLOW_CONN_ROUGHY_DEFAULT"] = connection
    RoughyHook().download(target, asset_id=asset_id)


def test_a_worker_that_is_killed_leaves_nothing_under_the_name_and_the_next_one_succeeds(
    hook: RoughyHook,
    asset_id: str,
    storage: Storage,
    lead: Any,
    tmp_path: Path,
) -> None:
    """At ten points; each time the next one finds what the one before has left."""
    lead()
    (tmp_path / "talk.mp3").write_bytes(b"before")
    # From a process without threads, which has imported everything.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["airflow_provider_roughy.hooks", __name__])
    for point in range(10):
        reached, bytes_then = threading.Event(), SIZE * point // 10
        storage.answers = [Answer(stall_after=bytes_then)]
        storage.on_sent = partial(_tell, reached, bytes_then)
        arguments = (os.environ["AIRFLOW_CONN_ROUGHY_DEFAULT"], asset_id, str(tmp_path / "talk.mp3"))
        worker = processes.Process(target=_download_in_a_process, args=arguments)
        worker.start()
        assert reached.wait(60)
        worker.kill()
        worker.join()
        assert (tmp_path / "talk.mp3").read_bytes() == b"before"
        assert len(list(tmp_path.iterdir())) <= 2
    storage.answers.clear()
    assert fetch(hook, asset_id, tmp_path).read_bytes() == CONTENT


# ---- Secrets


def test_neither_link_nor_key_is_ever_reported(
    hook: RoughyHook,
    asset_id: str,
    storage: Storage,
    lead: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    lead()
    caplog.set_level(logging.DEBUG)
    storage.answers = [Answer(cut_after=500), Answer(status=403), Answer(drop=True), Answer(status=416)]
    uri = hook.download(tmp_path / "talk.mp3", asset_id=asset_id)
    storage.manner = Answer(status=403, body=b"<StringToSign>s1gned</StringToSign>")
    with pytest.raises(RoughyDownloadError) as error:
        hook.download(tmp_path / "talk.mp3", asset_id=asset_id)
    told = caplog.text + "".join(capfd.readouterr()) + uri
    told += repr(error.value) + repr(error.value.__cause__) + repr(error.value.__dict__)
    assert "gave up" in told
    assert f"Renewing the link of Asset {asset_id}, which has expired" in told
    for secret in ("s1gned", urlsplit(storage.url).query, hook.settings.api_key):
        assert secret not in told

"""The transfer: every fault is survived or reported, with identical bytes and one asset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.api import RoughyAsset
from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAuthenticationError,
    RoughyConflictError,
    RoughyError,
    RoughyNotFoundError,
    RoughySourceError,
    RoughyUnsupportedMediaError,
    RoughyUnusableSourceError,
    RoughyUploadClosedError,
    RoughyUploadError,
    RoughyValidationError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.http.retry import Backoff
from airflow_provider_roughy.lifecycle import Arrival
from airflow_provider_roughy.transfer import source as source_module
from airflow_provider_roughy.transfer.source import find_source
from airflow_provider_roughy.transfer.tus import RoughyUploader
from harness import media

MIB = 1024 * 1024
UPLOADS = "/v1/uploads/*"


@pytest.fixture(params=[True, False], ids=["keeps parts", "keeps nothing"])
def roughy(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Both kinds of server: what Roughy does with the part of a broken PATCH that arrived is not documented."""
    with Emulator(progression="manual", choices=Choices(keep_partial=request.param)) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, recordings: dict[str, Path]) -> Path:
    """8 MiB that begin like a recording."""
    return media.pad(recordings["audio"], tmp_path_factory.mktemp("upload") / "recording.mp3", size=8 * MIB)


Upload = Callable[..., RoughyAsset]


@pytest.fixture
def upload(hook: RoughyHook, recording: Path) -> Upload:
    """Create an asset and upload to it, with short pauses."""

    def run(path: Path = recording, *, fresh: bool = True, tries: int = 8, **options: Any) -> RoughyAsset:
        source = find_source(path)
        asset = hook.create_asset(None, source.size)
        assert asset.upload_url is not None
        backoff = Backoff(tries=tries, first=0.01)
        with source.open() as reader:
            RoughyUploader(
                hook.client,
                asset.upload_url,
                reader,
                look=lambda: Arrival.of(hook.get_asset(asset.id)),
                fresh=fresh,
                backoff=backoff,
                **options,
            ).upload()
        return asset

    return run


def arrived_whole(roughy: Emulator, path: Path) -> bool:
    """Whether there is one asset, it left the upload behind, and its bytes are the file's."""
    (asset,) = roughy.assets
    return (asset["state"], asset["sha256"]) == ("processing", hashlib.sha256(path.read_bytes()).hexdigest())


def patches(roughy: Emulator) -> list[Any]:
    return [request for request in roughy.requests if request.method == "PATCH"]


def test_an_upload_is_one_request_on_the_connection_of_the_first(
    roughy: Emulator, upload: Upload, recording: Path
) -> None:
    upload()
    assert arrived_whole(roughy, recording)
    assert [request.method for request in roughy.requests] == ["POST", "PATCH", "GET"]
    assert len({request.connection for request in roughy.requests}) == 1
    assert patches(roughy)[0].headers["content-length"] == str(8 * MIB)
    assert "transfer-encoding" not in patches(roughy)[0].headers


def test_an_upload_that_is_not_fresh_asks_where_it_stands(roughy: Emulator, upload: Upload, recording: Path) -> None:
    upload(fresh=False)
    assert arrived_whole(roughy, recording)
    assert [request.method for request in roughy.requests] == ["POST", "HEAD", "PATCH", "GET"]


def test_progress_is_reported_block_by_block(roughy: Emulator, upload: Upload) -> None:
    told: list[tuple[int, int]] = []
    upload(on_progress=lambda done, total: told.append((done, total)))
    assert [total for _, total in told] == [8 * MIB] * len(told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (8 * MIB, 8 * MIB)


PATCH: dict[str, Any] = {"method": "PATCH", "path": UPLOADS}
HEAD: dict[str, Any] = {"method": "HEAD", "path": UPLOADS}

SURVIVED: dict[str, list[Fault]] = {
    "cut after N bytes": [Fault(**PATCH, cut_after=3 * MIB + 11)],
    "reset before the first byte": [Fault(**PATCH, drop=True)],
    "500": [Fault(**PATCH, status=500)],
    "502 with a proxy's page": [Fault(**PATCH, status=502, body="<html>Bad gateway</html>")],
    "503": [Fault(**PATCH, status=503)],
    "503 on the re-syncing HEAD": [Fault(**PATCH, cut_after=MIB), Fault(**HEAD, status=503)],
    "HEAD cut": [Fault(**PATCH, cut_after=MIB), Fault(**HEAD, drop=True)],
    "408": [Fault(**PATCH, status=408)],
    "423 locked, twice": [Fault(**PATCH, status=423, body="", times=2)],
    "423 locked, with the code of a conflict": [
        Fault(**PATCH, status=423, body={"error": {"code": "conflict", "message": "Locked."}})
    ],
    "PATCH never answered": [Fault(**PATCH, hang=True)],
    "HEAD never answered": [Fault(**PATCH, cut_after=MIB), Fault(**HEAD, hang=True)],
    "204 without an offset": [Fault(**PATCH, reply_headers={"Upload-Offset": None})],
    "204 with an offset beyond the file": [Fault(**PATCH, reply_headers={"Upload-Offset": str(9 * MIB)})],
    "204 with an offset behind the last one": [Fault(**PATCH, reply_headers={"Upload-Offset": "0"})],
    "204 with an offset that is no number": [Fault(**PATCH, reply_headers={"Upload-Offset": "lots"})],
    "204 that stores nothing and admits it": [Fault(**PATCH, swallow="unchanged")],
    "204 that stores nothing and claims all": [Fault(**PATCH, swallow=True)],
    "204 that stores nothing, twice": [Fault(**PATCH, swallow="unchanged", times=2)],
    "HEAD with an offset beyond the file": [
        Fault(**PATCH, cut_after=MIB),
        Fault(**HEAD, reply_headers={"Upload-Offset": str(9 * MIB)}),
    ],
    "HEAD without an offset": [Fault(**PATCH, cut_after=MIB), Fault(**HEAD, reply_headers={"Upload-Offset": None})],
    "200 with HTML": [Fault(**PATCH, garbage=True)],
    "200 with HTML to HEAD": [Fault(**PATCH, cut_after=MIB), Fault(**HEAD, garbage=True)],
    "reply lost after the last byte": [Fault(**PATCH, lose_reply=True)],
    "413 of a proxy": [Fault(**PATCH, status=413, body="<html>too large</html>", times=2)],
}


@pytest.mark.parametrize("faults", SURVIVED.values(), ids=SURVIVED)
def test_a_fault_is_survived(roughy: Emulator, upload: Upload, recording: Path, faults: list[Fault]) -> None:
    for fault in faults:
        roughy.inject(fault)
    upload()
    assert arrived_whole(roughy, recording)


def test_seven_cuts_in_a_row_with_progress_do_not_use_up_the_tries(
    roughy: Emulator, upload: Upload, recording: Path
) -> None:
    if not roughy.choices.keep_partial:
        pytest.skip("a server that keeps nothing of a broken request makes no progress by a cut")
    roughy.inject(Fault(**PATCH, cut_after=MIB, times=7))
    upload(tries=2)
    assert arrived_whole(roughy, recording)
    assert len(patches(roughy)) == 8
    sent = sum(request.body_bytes for request in patches(roughy))
    assert sent == 8 * MIB, "a byte that was acknowledged was sent again"


def test_requests_shrink_until_they_fit_between_two_cuts(roughy: Emulator, upload: Upload, recording: Path) -> None:
    roughy.inject(Fault(**PATCH, cut_after=3 * MIB, times=None))
    upload()
    assert arrived_whole(roughy, recording)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed(roughy: Emulator, upload: Upload, recording: Path, status: int) -> None:
    roughy.inject(Fault(**PATCH, status=status, headers={"Retry-After": "1"}))
    upload()
    assert arrived_whole(roughy, recording)
    refused, repeated = patches(roughy)
    assert repeated.started_at - refused.started_at >= 1.0


@pytest.mark.parametrize("finished", ["gone", "not_found", "offset"])
def test_lost_last_reply_is_detected_whatever_head_returns(
    connection: dict[str, Any], recording: Path, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Emulator(progression="manual", choices=Choices(finished_upload=finished)) as roughy:
        import json

        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(roughy.airflow_connection))
        roughy.inject(Fault(**PATCH, lose_reply=True))
        with RoughyHook() as hook:
            hook.upload(hook.create_asset(None, recording.stat().st_size), recording, fresh=True)
        assert arrived_whole(roughy, recording)
        assert len(patches(roughy)) == 1


def test_a_wrong_offset_is_put_right(roughy: Emulator, hook: RoughyHook, recording: Path) -> None:
    asset = hook.create_asset(None, 8 * MIB)
    roughy.inject(Fault(**PATCH, cut_after=2 * MIB))
    if roughy.choices.keep_partial:
        # Somebody else moved the upload on: our first PATCH is at the wrong offset, and 409 leads to HEAD.
        import httpx

        headers = {
            "Authorization": f"Bearer {roughy.api_key}",
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": "0",
            "Content-Type": "application/offset+octet-stream",
        }
        httpx.patch(str(asset.upload_url), content=recording.read_bytes()[:MIB], headers=headers)
    roughy.clear_faults()
    hook.upload(asset, recording, fresh=True)
    assert arrived_whole(roughy, recording)


NAMED: dict[str, tuple[dict[str, Any], type[RoughyError]]] = {
    "401": ({"status": 401}, RoughyAuthenticationError),
    "403": ({"status": 403}, RoughyAuthenticationError),
    "400": ({"status": 400}, RoughyValidationError),
    "412": ({"status": 412}, RoughyValidationError),
    "415": ({"status": 415}, RoughyValidationError),
}


@pytest.mark.parametrize("nth", [1, 2], ids=["at the start", "in mid-transfer"])
@pytest.mark.parametrize(("fault", "error"), NAMED.values(), ids=NAMED)
def test_what_cannot_be_mended_is_named_at_once(
    roughy: Emulator, upload: Upload, fault: dict[str, Any], error: type[RoughyError], nth: int
) -> None:
    if nth == 2:
        roughy.inject(Fault(**PATCH, cut_after=MIB))
    roughy.inject(Fault(**PATCH, nth=nth, times=None, **fault))
    with pytest.raises(error):
        upload()
    assert len(patches(roughy)) == nth
    assert roughy.assets[0]["state"] == "pending_upload"


@pytest.mark.parametrize("status", [404, 410])
def test_an_upload_that_is_gone_while_its_asset_is_open_is_asked_for_again(
    roughy: Emulator, upload: Upload, status: int
) -> None:
    roughy.inject(Fault(**PATCH, status=status, times=None))
    with pytest.raises(RoughyUploadClosedError, match=str(status)) as ended:
        upload()
    assert not ended.value.final
    assert len(patches(roughy)) == 8


def test_an_upload_that_is_gone_with_its_asset_is_named(roughy: Emulator, hook: RoughyHook, recording: Path) -> None:
    asset = hook.create_asset(None, 8 * MIB)
    hook.delete_asset(asset.id)
    with pytest.raises(RoughyNotFoundError):
        hook.upload(asset, recording)
    assert [request.method for request in roughy.requests[2:]] == ["HEAD", "GET"] * 3


def test_unsupported_media_is_named_at_once(roughy: Emulator, upload: Upload, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("These are notes, and no recording. " * 100)
    with pytest.raises(RoughyUnsupportedMediaError, match="neither audio nor video") as refused:
        upload(text)
    assert isinstance(refused.value, RoughyConflictError)
    assert len(patches(roughy)) == 1


def test_a_limit_on_one_request_is_named_once_requests_cannot_shrink_further(roughy: Emulator, upload: Upload) -> None:
    roughy.inject(Fault(**PATCH, status=413, times=None))
    with pytest.raises(RoughyValidationError, match="413"):
        upload()
    sizes = [int(request.headers["content-length"]) for request in patches(roughy)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) < 12
    assert sizes[-1] == 64 * 1024


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"drop": True},
        {"swallow": "unchanged"},
        {"swallow": True},
        {"garbage": True},
        {"status": 423, "body": ""},
        {"reply_headers": {"Upload-Offset": "0"}, "status": 204},
        {"status": 409},
    ],
    ids=str,
)
def test_a_server_that_makes_no_progress_ends_the_transfer(
    roughy: Emulator, upload: Upload, fault: dict[str, Any]
) -> None:
    roughy.inject(Fault(**PATCH, cut_after=MIB))
    roughy.inject(Fault(**PATCH, nth=2, times=None, **fault))
    with pytest.raises(RoughyUploadError, match="without progress") as ended:
        upload()
    if not fault.get("swallow"):
        assert ended.value.offset == (MIB if roughy.choices.keep_partial else 0)
    assert len(patches(roughy)) < 20


def test_an_upload_for_another_size_is_refused(roughy: Emulator, hook: RoughyHook, recording: Path) -> None:
    asset = hook.create_asset(None, 8 * MIB + 1)
    with pytest.raises(RoughyUnusableSourceError, match="was created for 8388609"):
        hook.upload(asset, recording)
    assert patches(roughy) == []


@pytest.mark.parametrize("change", ["shrunk", "grown", "rewritten", "removed"])
def test_a_source_that_changes_on_the_way_is_never_completed(
    roughy: Emulator, upload: Upload, recording: Path, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "live.mp3"
    content = recording.read_bytes()
    path.write_bytes(content)

    def meddle(done: int, total: int) -> None:
        if done != 2 * MIB:
            return
        if change == "shrunk":
            os.truncate(path, 3 * MIB)
        elif change == "grown":
            with path.open("ab") as file:
                file.write(b"more")
        elif change == "rewritten":
            path.write_bytes(content)
            os.utime(path, ns=(1, 1))
        else:
            path.unlink()

    with pytest.raises(RoughySourceError):
        upload(path, on_progress=meddle)
    assert roughy.assets[0]["state"] == "pending_upload"
    # The emulator takes note of a request when it is over, which may be a moment after its client has left.
    assert len(patches(roughy)) <= 1


def test_a_source_that_fails_to_be_read_is_named(
    roughy: Emulator, upload: Upload, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

        def seek(self, offset: int) -> None:
            pass

        def read(self, length: int) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(source_module, "open", lambda *args, **options: Broken(), raising=False)
    with pytest.raises(RoughySourceError, match="Input/output error"):
        upload()


def test_the_first_request_always_carries_64_bytes(roughy: Emulator, upload: Upload, recording: Path) -> None:
    roughy.inject(Fault(**PATCH, status=413, times=3))
    roughy.inject(Fault(**PATCH, drop=True, times=3))
    upload()
    assert arrived_whole(roughy, recording)
    assert min(int(request.headers["content-length"]) for request in patches(roughy)) >= 64


def test_error_names_the_upload_and_never_the_key(roughy: Emulator, upload: Upload) -> None:
    roughy.inject(Fault(**PATCH, status=503, times=None))
    with pytest.raises(RoughyUploadError) as ended:
        upload()
    assert "recording.mp3 gave up at 0 of 8388608 bytes" in str(ended.value)
    assert isinstance(ended.value.__cause__, RoughyApiError)
    assert roughy.api_key not in str(ended.value)

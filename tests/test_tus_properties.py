"""With any faults in any order, the bytes are identical in the end, and the transfer ends."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from airflow_provider_roughy import api
from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from airflow_provider_roughy.exceptions import RoughyError, RoughyUploadError
from airflow_provider_roughy.http.client import Backoff, Client, Settings
from airflow_provider_roughy.lifecycle import Arrival
from airflow_provider_roughy.transfer import source as source_module
from airflow_provider_roughy.transfer.resumable import DurableUpload
from airflow_provider_roughy.transfer.source import find_source
from airflow_provider_roughy.transfer.tus import RoughyUploader
from harness import media
from tests.properties import examples
from tests.uploading import Store, Told, as_it_was

# Seconds; a hundred examples on a busy machine.
pytestmark = pytest.mark.timeout(900)

KIB = 1024
MIB = 1024 * KIB
SIZE = 700 * KIB + 13

PATCH: dict[str, Any] = {"method": "PATCH", "path": "/v1/uploads/*"}
HEAD: dict[str, Any] = {"method": "HEAD", "path": "/v1/uploads/*"}
PAGE = "<html>Sign in to the network</html>"
#: More than any reply may have.
ENDLESS = "0" * 9 * MIB
BUSY: dict[str, Any] = {
    "status": 409,
    "body": {"error": {"code": "conflict", "message": "Another request writes to this upload."}},
}


@pytest.fixture(scope="module", params=[True, False], ids=["keeps parts", "keeps nothing"])
def server(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    with Emulator(progression="manual", choices=Choices(keep_partial=request.param)) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, recordings: dict[str, Path]) -> Path:
    return media.pad(recordings["audio"], tmp_path_factory.mktemp("properties") / "recording.mp3", size=SIZE)


def offsets() -> st.SearchStrategy[str | None]:
    return st.one_of(st.none(), st.sampled_from(["", "lots", "-1"]), st.integers(0, 2 * SIZE).map(str))


def answers() -> st.SearchStrategy[dict[str, Any]]:
    """What may go wrong with a request, and pass."""
    return st.one_of(
        st.sampled_from([408, 423, 500, 502, 503]).map(lambda status: {"status": status, "body": ""}),
        st.sampled_from([429, 503]).map(lambda status: {"status": status, "headers": {"Retry-After": "0"}}),
        st.just({"drop": True}),
        st.just({"garbage": True}),
        st.just({"hang": True}),
        st.just({"lose_reply": True}),
        offsets().map(lambda offset: {"reply_headers": {"Upload-Offset": offset}}),
    )


def patch_faults() -> st.SearchStrategy[dict[str, Any] | None]:
    return st.one_of(
        st.none(),
        st.integers(0, SIZE).map(lambda count: {"cut_after": count}),
        st.sampled_from([{"swallow": True}, {"swallow": "unchanged"}]),
        answers(),
    )


# A hang costs the client's timeout, so they are short, and the deadline of an example is none.
@settings(
    max_examples=examples(30),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    patches=st.lists(patch_faults(), max_size=8),
    heads=st.lists(st.one_of(st.none(), answers()), max_size=4),
    tries=st.integers(2, 6),
)
def test_any_sequence_of_passing_faults_ends_in_identical_bytes(
    server: Emulator,
    recording: Path,
    monkeypatch: pytest.MonkeyPatch,
    patches: list[dict[str, Any] | None],
    heads: list[dict[str, Any] | None],
    tries: int,
) -> None:
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 64 * KIB)
    server.reset()
    server.clear_requests()
    server.clear_faults()
    for where, faults in ((PATCH, patches), (HEAD, heads)):
        for nth, fault in enumerate(faults, start=1):
            if fault is not None:
                server.inject(Fault(**where, nth=nth, **fault))

    source = find_source(recording)
    restarts = 0
    patient = Settings(server.api_key, base_url=server.url)
    with Client(patient) as rest, Client(replace(patient, timeout=0.5)) as client:
        asset = rest.run(api.create_asset(server.project_id, source.size))
        assert asset.upload_url is not None
        while True:
            try:
                with source.open() as reader:
                    RoughyUploader(
                        client,
                        asset.upload_url,
                        reader,
                        look=lambda: Arrival.of(rest.run(api.get_asset(asset.id))),
                        fresh=restarts == 0,
                        backoff=Backoff(tries=tries, first=0.001, longest=0.002),
                    ).upload()
                break
            except RoughyUploadError as error:
                restarts += 1
                # A few more than faults, for a machine so busy that it misses the short timeout by itself.
                if restarts > len(patches) + len(heads) + 3:
                    raise AssertionError("there are fewer faults than restarts") from error
    event(f"restarts: {restarts}")
    (stored_asset,) = server.assets
    assert stored_asset["state"] == "processing"
    assert stored_asset["sha256"] == hashlib.sha256(recording.read_bytes()).hexdigest()
    assert len(server.requests) <= 30 + 6 * (len(patches) + len(heads)), "more requests than the faults explain"


# ---- The same with lies, and in as many starts as it takes


def lies() -> st.SearchStrategy[dict[str, Any]]:
    """What a gateway, a broken link or a busy server answers to any request."""
    return st.one_of(
        st.sampled_from([400, 401, 403, 404, 410, 415]).map(lambda status: {"status": status, "body": PAGE}),
        st.sampled_from([429, 503]).map(lambda status: {"status": status, "headers": {"Retry-After": "0"}}),
        st.sampled_from([408, 500, 502, 504]).map(lambda status: {"status": status, "body": PAGE}),
        st.sampled_from([{"drop": True}, {"garbage": True}, {"lose_reply": True}, {"status": 200, "body": ENDLESS}]),
    )


def refuses(fault: Any) -> bool:
    return isinstance(fault, dict) and fault.get("status") in (400, 401, 403, 404, 410, 415)


def some(faults: st.SearchStrategy[Any], *, at_most: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.one_of(st.none(), faults), max_size=at_most)


@settings(
    max_examples=examples(30),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    patches=some(
        st.one_of(
            lies(),
            st.sampled_from([BUSY, {"lose_reply": True}, {"swallow": True}, {"swallow": "unchanged"}]),
            st.integers(0, SIZE).map(lambda count: {"cut_after": count}),
        ),
        at_most=6,
    ),
    # Three refusals in a row, and no word against it, are believed.
    heads=some(
        st.one_of(lies(), st.sampled_from([404, 410]).map(lambda status: {"status": status}), st.integers(0, SIZE)),
        at_most=5,
    ).filter(lambda all: sum(map(refuses, all)) < 3),
    gets=st.one_of(
        some(st.one_of(lies(), st.sampled_from(["stale", "closed"])), at_most=12),
        st.integers(1, 30).map(lambda count: ["stale"] * count),
    ),
    deletes=some(lies(), at_most=3),
    posts=some(lies(), at_most=2),
    remembers=st.booleans(),
)
def test_complete_uploads_and_only_those_count_despite_wrong_replies(
    server: Emulator,
    recording: Path,
    monkeypatch: pytest.MonkeyPatch,
    patches: list[Any],
    heads: list[Any],
    gets: list[Any],
    deletes: list[Any],
    posts: list[Any],
    remembers: bool,
) -> None:
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 64 * KIB)
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    server.reset()
    server.clear_faults()
    server.clear_requests()
    uploads: dict[str, str] = {}

    def inject(where: dict[str, Any], faults: list[Any]) -> None:
        for nth, fault in enumerate(faults, start=1):
            if isinstance(fault, int):
                # A replica that lags tells an offset of some time ago, whatever became of the upload.
                fault = {
                    "status": 200,
                    "body": "",
                    "headers": {"Upload-Offset": str(fault), "Upload-Length": str(SIZE)},
                }
            if fault is not None:
                server.inject(Fault(**where, nth=nth, **fault))

    def created(asset_id: str) -> None:
        facts = server.asset(asset_id)
        url = f"{server.url}/v1/uploads/{facts['upload_id']}"
        if not uploads:
            path = {"method": "GET", "path": f"/v1/assets/{asset_id}"}
            stale = as_it_was(server, asset_id)
            pictures = {"stale": stale, "closed": {**stale, "upload_url": None}}
            inject(path, [{"status": 200, "body": pictures[it]} if isinstance(it, str) else it for it in gets])
        uploads[asset_id] = url

    inject(PATCH, patches)
    inject(HEAD, heads)
    inject({"method": "DELETE"}, deletes)
    inject({"method": "POST", "path": "/v1/assets"}, posts)
    memory = Store() if remembers else None
    starts = 0
    with Client(Settings(server.api_key, base_url=server.url, timeout=5.0)) as client:
        while True:
            starts += 1
            try:
                upload = DurableUpload(client, find_source(recording), memory=memory, log=Told(created))
                asset_id = upload.run(server.project_id)
                break
            except RoughyError as error:
                most = 3 + sum(map(len, (patches, heads, gets, deletes, posts)))
                if error.final or starts > most:
                    raise AssertionError("a lie was believed, or no fault explains it") from error
        event(f"starts: {starts}")
        digest = hashlib.sha256(recording.read_bytes()).hexdigest()
        assert (server.asset(asset_id)["state"], server.asset(asset_id)["sha256"]) == ("processing", digest)
        server.clear_faults()
        for gone in uploads.keys() - {asset["id"] for asset in server.assets}:
            # The emulator tells 404 of an upload that was cancelled, and 410 of one that was complete.
            call = api.read_offset(uploads[gone])
            assert client.send(call.request).status == 404, "a whole asset was deleted"
    if remembers:
        whole = [asset["id"] for asset in server.assets if asset["state"] == "processing"]
        assert whole == [asset_id], "it was uploaded, and paid for, twice"


@pytest.mark.parametrize("keep_partial", [True, False], ids=["keeps parts", "keeps nothing"])
def test_a_link_that_breaks_every_24_mib_lets_128_mib_through(
    tmp_path: Path, recordings: dict[str, Path], keep_partial: bool
) -> None:
    recording = tmp_path / "long.mp3"
    with recording.open("wb") as file:
        file.write(recordings["audio"].read_bytes())
        for _ in range(16):
            file.write(os.urandom(8 * MIB))
        file.truncate(128 * MIB)
    with Emulator(progression="manual", choices=Choices(keep_partial=keep_partial)) as roughy:
        roughy.inject(Fault(**PATCH, cut_after=24 * MIB, times=None))
        with Client(Settings(roughy.api_key, base_url=roughy.url)) as client, find_source(recording).open() as reader:
            asset = client.run(api.create_asset(roughy.project_id, 128 * MIB))
            assert asset.upload_url is not None
            RoughyUploader(
                client,
                asset.upload_url,
                reader,
                look=lambda: Arrival.of(client.run(api.get_asset(asset.id))),
                fresh=True,
                backoff=Backoff(tries=8, first=0.01),
            ).upload()
        with recording.open("rb") as file:
            assert roughy.assets[0]["sha256"] == hashlib.file_digest(file, "sha256").hexdigest()

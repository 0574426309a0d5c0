"""Third-party clients against the emulator: they verify that it follows the protocol."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tusclient.client import TusClient

from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from tests.emulator.api import Api


@pytest.fixture
def media(tmp_path: Path) -> Path:
    path = tmp_path / "media.flac"
    path.write_bytes(b"fLaC" + os.urandom(3_000_000))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tuspy(roughy: Emulator, asset: dict[str, Any], path: Path, chunk: int, retries: int = 0) -> None:
    client = TusClient("http://unused.invalid", headers={"Authorization": f"Bearer {roughy.api_key}"})
    url = asset["upload_url"]
    client.uploader(str(path), url=url, chunk_size=chunk, retries=retries, retry_delay=0).upload()
    # It leaves files open, which are to be complained of here, where that is ignored.
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("chunk", [64, 100_000, 1_048_576, sys.maxsize])
def test_tuspy(api: Api, roughy: Emulator, media: Path, chunk: int) -> None:
    if chunk == 64:
        media.write_bytes(media.read_bytes()[:1000])
    asset = api.create(media.stat().st_size)
    tuspy(roughy, asset, media, chunk)
    facts = roughy.asset(asset["id"])
    assert (facts["sha256"], facts["state"]) == (sha256(media), "processing")
    patches = [r for r in roughy.requests if r.method == "PATCH"]
    assert len(patches) == -(-media.stat().st_size // chunk)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("keep", [True, False])
def test_tuspy_resumes_after_cuts(media: Path, keep: bool) -> None:
    # Its HEAD after the last chunk needs an upload that still answers.
    with Emulator(choices=Choices(keep_partial=keep, finished_upload="offset")) as roughy, Api(roughy) as api:
        asset = api.create(media.stat().st_size)
        for nth, after in ((1, 1000), (3, 999_999)):
            roughy.inject(Fault(method="PATCH", nth=nth, cut_after=after))
        roughy.inject(Fault(method="PATCH", nth=4, status=503))
        tuspy(roughy, asset, media, 1_048_576, retries=3)
        assert roughy.asset(asset["id"])["sha256"] == sha256(media)


@pytest.mark.parametrize("chunk", [0, 500_000])
def test_tus_js_client(api: Api, roughy: Emulator, node: Path, media: Path, chunk: int) -> None:
    asset = api.create(media.stat().st_size)
    roughy.inject(Fault(method="PATCH", nth=2 if chunk else 1, cut_after=300_000))
    command = ["node", "upload.mjs", asset["upload_url"], str(media), roughy.api_key, str(chunk)]
    run = subprocess.run(command, cwd=node, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    facts = roughy.asset(asset["id"])
    assert (facts["sha256"], facts["state"]) == (sha256(media), "processing")
    assert None in [r.status for r in roughy.requests if r.method == "PATCH"]

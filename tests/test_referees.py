"""Uploads to third-party TUS servers, so that client and emulator cannot share a misunderstanding."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from airflow_provider_roughy import api
from airflow_provider_roughy.exceptions import RoughyAuthenticationError, RoughyNotFoundError
from airflow_provider_roughy.http.client import Backoff, Client, Settings
from airflow_provider_roughy.lifecycle import Arrival
from airflow_provider_roughy.transfer.source import find_source
from airflow_provider_roughy.transfer.tus import RoughyUploader
from tests.proxy import BreakingLink

MIB = 1024 * 1024
KEY = "sk_referee"


@dataclass
class Server:
    """A running TUS server.

    :param port: Where, on loopback.
    :param folder: Where it keeps its files.
    """

    port: int
    folder: Path

    def open_upload(self, size: int) -> str:
        """Open an upload and return its path."""
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(size), "Authorization": f"Bearer {KEY}"}
        response = httpx.post(f"http://127.0.0.1:{self.port}/files", headers=headers)
        assert response.status_code == 201, response.text
        return httpx.URL(response.headers["location"]).path

    def stored(self, path: str) -> bytes:
        """Return the bytes of an upload."""
        return (self.folder / path.rpartition("/")[2]).read_bytes()


@pytest.fixture(params=["@tus/server", "resumable-upload"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "stored"
    folder.mkdir()
    if request.param == "@tus/server":
        started = node_server(request.getfixturevalue("node"), folder)
    else:
        started = python_server(folder, tmp_path / "uploads.db")
    with started as server:
        yield server


@contextmanager
def node_server(node: Path, folder: Path) -> Iterator[Server]:
    """Start the reference server, which asks for the key."""
    with running(["node", "server.mjs", str(folder), KEY], cwd=node) as process:
        assert process.stdout is not None
        yield Server(int(process.stdout.readline()), folder)


@contextmanager
def python_server(folder: Path, database: Path) -> Iterator[Server]:
    """Start the strict one, which keeps nothing of a broken request and knows no keys."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = str(Path(sys.executable).parent / "resumable-upload")
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port), "--log-level", "ERROR"]
    with running([*command, "--upload-dir", str(folder), "--db-path", str(database)]):
        wait_until_open(port)
        yield Server(port, folder)


@contextmanager
def running(command: list[str], cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def wait_until_open(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nobody listens on {port}")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "recording.mp3"
    path.write_bytes(os.urandom(8 * MIB + 77))
    return path


def upload(port: int, path: str, recording: Path, *, key: str = KEY, fresh: bool = True) -> None:
    url = f"http://127.0.0.1:{port}"
    with Client(Settings(key, base_url=url, timeout=20)) as client, find_source(recording).open() as reader:
        # These servers know no assets. What they say to HEAD has to do.
        def look() -> Arrival:
            offset, length = client.once(api.read_offset(url + path))
            return Arrival.ARRIVED if offset == length else Arrival.OPEN

        RoughyUploader(
            client, url + path, reader, look=look, fresh=fresh, backoff=Backoff(tries=8, first=0.02)
        ).upload()


@pytest.mark.parametrize("fresh", [True, False])
def test_a_recording_arrives_whole(server: Server, recording: Path, fresh: bool) -> None:
    path = server.open_upload(recording.stat().st_size)
    upload(server.port, path, recording, fresh=fresh)
    assert server.stored(path) == recording.read_bytes()


@pytest.mark.parametrize("cuts", [[3 * MIB], [700, MIB, 2 * MIB, 100, 3 * MIB]], ids=str)
def test_a_broken_link_is_survived(server: Server, recording: Path, cuts: list[int]) -> None:
    path = server.open_upload(recording.stat().st_size)
    with BreakingLink(server.port, cuts) as link:
        upload(link.port, path, recording)
    assert server.stored(path) == recording.read_bytes()


def test_a_complete_upload_is_not_sent_again(server: Server, recording: Path) -> None:
    path = server.open_upload(recording.stat().st_size)
    upload(server.port, path, recording)
    upload(server.port, path, recording, fresh=False)
    assert server.stored(path) == recording.read_bytes()


def test_an_upload_that_is_not_there_is_named(server: Server, recording: Path) -> None:
    with pytest.raises(RoughyNotFoundError):
        upload(server.port, f"/files/{uuid4()}", recording)


def test_a_wrong_key_is_named(request: pytest.FixtureRequest, tmp_path: Path, recording: Path) -> None:
    with node_server(request.getfixturevalue("node"), tmp_path) as server:
        path = server.open_upload(recording.stat().st_size)
        with pytest.raises(RoughyAuthenticationError):
            upload(server.port, path, recording, key="sk_wrong")

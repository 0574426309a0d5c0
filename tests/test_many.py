"""Hundreds of mapped tasks, several at a time in one process: they are independent, and release their resources."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import airflow
import pytest

from airflow_provider_roughy.compat import DAG, BaseOperator
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.exceptions import RoughyUnsupportedMediaError
from airflow_provider_roughy.operators import RoughyCreateUploadOperator
from tests.running import Ended, run_task
from tests.uploading import Store

COUNT = 300
AT_A_TIME = 8

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture(autouse=True)
def unlike_recordings(roughy: Emulator) -> None:
    """What is uploaded stays in ``processing``."""
    roughy.progression = "manual"


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Mock]:
    """The logs of the tasks, by source: whatever Airflow would do with the lines, these are counted."""
    found: dict[str, Mock] = {}
    log = property(lambda task: found.setdefault(task.source, Mock()))
    monkeypatch.setattr(RoughyCreateUploadOperator, "log", log)
    return found


def make_files(folder: Path, head: bytes, count: int) -> list[Path]:
    """Write small files that begin alike, and end each in its own way."""
    folder.mkdir()
    files = [folder / f"{number:03}.mp3" for number in range(count)]
    for number, path in enumerate(files):
        path.write_bytes(head + os.urandom(20 * number))
    return files


def map_over(files: Sequence[Path]) -> list[BaseOperator]:
    """Make the tasks that Airflow makes of a mapped operator."""
    with DAG("many", schedule=None):
        mapped = RoughyCreateUploadOperator.partial(task_id="upload").expand(source=[str(path) for path in files])
    return [mapped.unmap({"source": str(path)}) for path in files]


def run_all(tasks: Sequence[BaseOperator], stores: Sequence[Store]) -> list[Ended]:
    """Run tasks, several at a time, each with a store of its own."""

    def run(task: BaseOperator, store: Store) -> Ended:
        return run_task(task, context={"task_state_store": store})

    if airflow.__version__.startswith("2."):
        # It guards execute() by something that only its main thread has.
        return list(map(run, tasks, stores))
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(run, tasks, stores))


def held() -> tuple[int, set[str]]:
    """Return what this process holds: how many files and sockets, and which threads."""
    # The emulator lives here as well, and has a pool of its own.
    threads = {thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}
    return len(list(Path("/proc/self/fd").iterdir())), threads


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what is open is counted in Linux's /proc")
def test_every_file_arrives_and_nothing_is_left_behind(
    roughy: Emulator, recordings: dict[str, Path], tmp_path: Path, logs: dict[str, Mock]
) -> None:
    head = recordings["audio"].read_bytes()
    # Once before: what is imported, and what the emulator opens for good.
    run_all(map_over(make_files(tmp_path / "first", head, AT_A_TIME)), [Store() for _ in range(AT_A_TIME)])
    roughy.reset()
    files_before, threads_before = held()

    files = make_files(tmp_path / "many", head, COUNT)
    stores = [Store() for _ in files]
    ended = run_all(map_over(files), stores)

    found = {asset["id"]: asset for asset in roughy.assets}
    assert len(found) == COUNT
    for path, store, task in zip(files, stores, ended, strict=True):
        assert task.state == "success", task.error
        assert found[task.result]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert store.get("roughy_upload")["asset_id"] == task.result
        # One line when it is created, one when all has arrived.
        lines = [call.args[0] % call.args[1:] for call in logs[str(path)].info.call_args_list]
        assert [task.result in line for line in lines] == [True, True], lines

    # Everything of a file goes over one connection; and no request is made twice.
    assert len({request.connection for request in roughy.requests}) <= COUNT
    assert len(roughy.requests) == 3 * COUNT
    # The emulator notices a little later that somebody has left.
    deadline = time.monotonic() + 10
    while held()[0] > files_before and time.monotonic() < deadline:
        time.sleep(0.1)
    files_after, threads_after = held()
    assert files_after <= files_before
    assert threads_after <= threads_before


def test_one_that_fails_is_no_concern_of_the_others(
    roughy: Emulator, recordings: dict[str, Path], tmp_path: Path
) -> None:
    files = make_files(tmp_path / "many", recordings["audio"].read_bytes(), 40)
    for path in files[::4]:
        path.write_text("These are notes, whatever the name says. " * 50)
    ended = run_all(map_over(files), [Store() for _ in files])
    for number, (path, task) in enumerate(zip(files, ended, strict=True)):
        if number % 4:
            assert roughy.asset(task.result)["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            assert type(task.error) is RoughyUnsupportedMediaError
    assert len(roughy.assets) == 30

"""Progress in Airflow's store: the thread that writes it, and when that thread ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy import compat
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.logs import SILENT
from airflow_provider_roughy.operators import RoughyCreateUploadOperator, RoughyIngestOperator
from airflow_provider_roughy.transfer.progress import Newest, Progress
from tests.conftest import DAGS_FOLDER
from tests.running import TaskInstance, run_task
from tests.test_example_dags import load
from tests.uploading import Store

#: Seconds that the store takes for a value.
_SLOW = 0.2


class SlowStore(Store):
    """A store that takes its time, and takes note of the threads that talk to it, and of each value."""

    def __init__(self) -> None:
        super().__init__()
        self.talking: list[threading.Thread] = []
        self.overlaps = 0
        self.shown: list[Any] = []

    def get(self, key: str, default: Any = None) -> Any:
        with _Turn(self):
            return super().get(key, default)

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        with _Turn(self):
            time.sleep(_SLOW)
            if key == "roughy_progress":
                self.shown.append(value)
            super().set(key, value)


class _Turn:
    def __init__(self, store: SlowStore) -> None:
        self._store = store

    def __enter__(self) -> None:
        self._store.overlaps += bool(self._store.talking)
        self._store.talking.append(threading.current_thread())

    def __exit__(self, *error: object) -> None:
        self._store.talking.remove(threading.current_thread())


def progress_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "roughy-progress"]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("ends", ["well", "badly"])
@pytest.mark.parametrize("task", ["batch", "upload"])
def test_no_progress_thread_outlives_its_task(
    roughy: Emulator, recordings: dict[str, Path], tmp_path: Path, task: str, ends: str
) -> None:
    if ends == "badly":
        roughy.inject(Fault(method="PATCH", status=403, body={"error": {"code": "forbidden", "message": "No."}}))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp3").write_bytes(recordings["audio"].read_bytes())
    store = SlowStore()
    operator: Any = (
        RoughyIngestOperator(task_id="t", source=str(tmp_path / "in"), ledger=None, poll_interval=0.1)
        if task == "batch"
        else RoughyCreateUploadOperator(task_id="t", source=str(tmp_path / "in" / "a.mp3"))
    )
    ended = run_task(operator, context={"ti": TaskInstance(), "task_state_store": store})
    assert progress_threads() == []
    assert store.talking == []
    assert store.overlaps == 0
    assert ended.state == ("success" if ends == "well" else ended.state)
    if ends == "well":
        assert store.shown[-1].get("percent", 100) == 100
        assert store.shown[-1].get("files", 1) == 1


def test_the_last_value_is_shown_before_the_end() -> None:
    shown: list[int] = []

    def show(value: int) -> None:
        time.sleep(_SLOW)
        shown.append(value)

    with Newest(show) as newest:
        for value in range(1, 100):
            newest.put(value)
    assert shown[-1] == 99
    assert len(shown) < 5, "values that a newer one has replaced are skipped"
    newest.put(100)
    assert progress_threads() == []
    assert shown[-1] == 99


def test_an_error_waits_for_the_call_under_way_and_shows_nothing_more() -> None:
    begun, shown = threading.Event(), []

    def show(value: int) -> None:
        begun.set()
        time.sleep(_SLOW)
        shown.append(value)

    with pytest.raises(KeyError), Newest(show) as newest:
        newest.put(1)
        assert begun.wait(5)
        newest.put(2)
        raise KeyError
    assert shown == [1]
    assert progress_threads() == []


def test_progress_for_the_log_alone_starts_no_thread() -> None:
    with Progress(SILENT, "Asset 1") as progress:
        progress(1, 10)
        progress.finish(10)
        assert progress_threads() == []


#: A database that takes a while to store progress, as a loaded one does.
DAG = """
import pathlib
from airflow.sdk import DAG, Asset
from airflow_provider_roughy.operators import RoughyCreateUploadOperator, RoughyIngestOperator

folder = {folder!r}
with DAG("progress", schedule=None) as dag:
    batch = RoughyIngestOperator(
        task_id="batch", source=folder, ledger=folder + "-ledger", poll_interval=0.2, outlets=[Asset("batch")]
    )
    upload = RoughyCreateUploadOperator(task_id="upload", source=folder + "/a.mp3", outlets=[Asset("upload")])
    batch >> upload
"""


@pytest.mark.skipif(compat._LINE < (3, 3), reason="This Airflow has no task state store")
@pytest.mark.usefixtures("airflow_db", "patient")
@pytest.mark.timeout(300)
def test_dag_test_is_green_with_a_database_that_is_slow(recordings: dict[str, Path], tmp_path: Path) -> None:
    from airflow import settings
    from sqlalchemy import event

    def slow(connection: Any, cursor: Any, sql: str, *more: Any) -> None:
        if "task_state_store" in sql and "INSERT" in sql:
            time.sleep(_SLOW)

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp3").write_bytes(recordings["audio"].read_bytes())
    file = DAGS_FOLDER / "progress.py"
    file.write_text(DAG.format(folder=str(tmp_path / "in")))
    event.listen(settings.engine, "before_cursor_execute", slow)
    try:
        run: Any = load(file).dag.test()
    finally:
        event.remove(settings.engine, "before_cursor_execute", slow)
        file.unlink()
    assert {instance.task_id: instance.state for instance in run.get_task_instances()} == {
        "batch": "success",
        "upload": "success",
    }

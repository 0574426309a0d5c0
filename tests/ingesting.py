"""Shared parts of the tests of batches: a folder of recordings, and a task that ingests it in several runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.operators import RoughyCreateUploadOperator, RoughyIngestOperator
from tests.running import Ended, TaskInstance, run_task
from tests.uploading import Store


@pytest.fixture
def folder(tmp_path: Path, recordings: dict[str, Path]) -> Path:
    """Three recordings, oldest first: a, b, c."""
    folder = tmp_path / "incoming"
    folder.mkdir()
    for number, name in enumerate("abc"):
        add(folder, f"{name}.mp3", recordings["audio"], day=number)
    return folder


def add(folder: Path, name: str, recording: Path, *, day: int = 10) -> Path:
    """Copy a recording into a folder, as if it was made on some day of 2026."""
    file = folder / name
    shutil.copyfile(recording, file)
    os.utime(file, (1_770_000_000 + day * 86400,) * 2)
    return file


class Nights:
    """Runs of one task, night after night.

    :param folder: What is ingested.
    """

    def __init__(self, folder: Path, *, ledger: Path | None) -> None:
        self.options: dict[str, Any] = {"source": str(folder), "ledger": None if ledger is None else str(ledger)}
        self.number = 0
        self.xcoms: dict[str, Any] = {}

    def run(self, *, again: bool = False, store: Store | None = None, **options: Any) -> Ended:
        """Run the next night, or another try of this one; what it pushed is in ``xcoms``."""
        self.number += not again
        ti = TaskInstance(run_id=f"night {self.number}")
        steps = {name: options.pop(name) for name in ("before_resuming", "kill_once") if name in options}
        task = RoughyIngestOperator(
            task_id="ingest", **{**self.options, "poll_interval": 0.2, "timeout": 60, **options}
        )
        context = {"ti": ti, **({} if store is None else {"task_state_store": store})}
        ended = run_task(task, context=context, **steps)
        self.xcoms = {name: json.loads(value) for name, value in ti.xcoms.items()}
        return ended


@pytest.fixture
def nights(folder: Path, tmp_path: Path) -> Nights:
    return Nights(folder, ledger=tmp_path / "ledger")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What the task has said: Airflow 2 says it by the standard library's log, later ones on standard output."""
    caplog.set_level("INFO")
    return lambda: caplog.text + capsys.readouterr().out


def names(sources: dict[str, Any] | list[str]) -> list[str]:
    return sorted(Path(source).name for source in sources)


def upload_one(source: Path | str, ledger: Path, *, run: str = "night 1", dag: str = "other") -> Ended:
    ti = TaskInstance(run_id=run)
    ti.dag_id = dag
    task = RoughyCreateUploadOperator(task_id="upload", source=str(source), ledger=str(ledger))
    return run_task(task, context={"ti": ti})

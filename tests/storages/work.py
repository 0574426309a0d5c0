"""What the children of :mod:`tests.storages.processes` do. The first argument says something to the test."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_roughy.ledger import ClaimOwner, Ledger, Version
from airflow_provider_roughy.operators import RoughyIngestOperator
from airflow_provider_roughy.transfer.target import find_target
from tests.running import TaskInstance, run_task

Say = Callable[[str], None]


def claim(say: Say, *, ledger: str, conn_id: str | None, owner: str, keys: list[str], go: str) -> list[Any]:
    """Claim recordings, as soon as a file exists; return for each whether that succeeded, or the error."""
    me = ClaimOwner("dag.task", "night", owner)
    here = Ledger(ledger, conn_id=conn_id)
    here.snapshot()
    say("ready")
    _wait_for(go)
    found: list[Any] = []
    for key in keys:
        try:
            found.append(here.create_version(Version(key, 1, me, "a", {"uri": "a"})))
        except Exception as error:
            found.append(repr(error))
    return found


def ingest(say: Say, *, run: str, go: str, **options: Any) -> dict[str, Any]:
    """Run a batch, as soon as a file exists; return how it ended."""
    ti = TaskInstance(run_id=run)
    say("ready")
    _wait_for(go)
    task = RoughyIngestOperator(task_id="ingest", poll_interval=0.2, timeout=60, **options)
    ended = run_task(task, context={"ti": ti})
    return {"state": ended.state, "result": ended.result, "error": repr(ended.error), "xcoms": ti.xcoms}


def write(
    say: Say,
    *,
    target: str,
    conn_id: str | None,
    size: int,
    overwrite: Any = "replace",
    go: str = "",
    stall_at: int = -1,
) -> str:
    """Write a file of as many bytes; stop before the end for ever, if asked."""
    piece = b"n" * 1024 * 1024
    try:
        with find_target(target, name="x", conn_id=conn_id).open(size, overwrite) as sink:
            for start in range(0, size, len(piece)):
                if 0 <= stall_at <= start:
                    say("stalled")
                    time.sleep(600)
                sink.write(piece[: size - start])
            if go:
                say("ready")
                _wait_for(go)
    except Exception as error:
        return type(error).__name__
    return "written" if sink.written else "the same is there"


def _wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.002)


__all__ = ["claim", "ingest", "write"]

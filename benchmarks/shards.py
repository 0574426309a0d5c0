"""A plan, or a shard of its manifest, in a new process that may be killed; it prints its cost as JSON.

Usage: ``python -m benchmarks.shards plan JOB``, or ``... shard JOB NUMBER COUNTS``: a job is a file of JSON, and
``COUNTS`` a file that keeps what the process has asked the ledger and the service, also if it is killed.
"""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.measure import measured, memory
from benchmarks.uploads import IDLE, OURS

#: What is counted: operations of the ledger's storage, failed creates among them, requests to the service, creates.
COUNTED = ("reads", "lists", "creates", "lost", "writes", "removes", "requests")
#: Seconds of a lease and between two renewals: a death is noticed sooner than with the usual ten minutes.
LEASE = (20.0, 4.0)


class Counts:
    """Numbers in a file that is mapped into memory.

    :param path: The file.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * len(COUNTED)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._values = memoryview(self._map).cast("Q")

    def add(self, name: str, number: int = 1) -> None:
        """Count something."""
        self._values[COUNTED.index(name)] += number

    def to_dict(self) -> dict[str, int]:
        """Return all numbers."""
        return dict(zip(COUNTED, self._values, strict=True))


def count_in(counts: Counts) -> None:
    """Count what this process asks the ledger's storage and the service."""
    import httpx

    from airflow_provider_roughy.ledger import folder

    def counting(do: Callable[..., Any], name: str, *, when: Callable[[Any], bool] = lambda reply: True) -> Any:
        def counted(self: Any, first: Any = "", *args: Any, **kwargs: Any) -> Any:
            reply = do(self, first, *args, **kwargs)
            # Each process tests once whether the storage refuses to create an object twice.
            if "probe-" not in str(first):
                counts.add(name)
                if name == "creates" and reply is False:
                    counts.add("lost")
            return reply

        return counted

    names = {"read": "reads", "names": "lists", "create": "creates", "write": "writes", "remove": "removes"}
    for cls in (folder.LocalFolder, folder.StoredFolder):
        for method, name in names.items():
            setattr(cls, method, counting(getattr(cls, method), name))
    for client in (httpx.Client, httpx.AsyncClient):
        client.send = counting(client.send, "requests")  # type: ignore[method-assign]


def shorten_leases() -> None:
    """Notice the death of a worker sooner."""
    for name in ("lease", "ledger", "runs"):
        vars(import_module(f"airflow_provider_roughy.ledger.{name}")).update(
            LEASE_SECONDS=LEASE[0], RENEW_SECONDS=LEASE[1]
        )
    vars(import_module("airflow_provider_roughy.ingest.batch")).update(LEASE_SECONDS=LEASE[0])


def task_instance(task_id: str, map_index: int, pushed: dict[str, Any]) -> Any:
    """Return what the operators need of a task instance."""
    return SimpleNamespace(
        dag_id="archive",
        task_id=task_id,
        run_id="run",
        map_index=map_index,
        try_number=1,
        xcom_push=lambda key, value: pushed.update({key: value}),
    )


def run(what: str, job: dict[str, Any], number: int, counts: Path | None) -> dict[str, Any]:
    """Run a task.

    :returns: A sample's fields, the resident bytes before anything of this package was imported, and the XComs.
    """
    for name in IDLE:
        import_module(name)
    idle = memory("VmRSS")
    for name in OURS:
        import_module(name)
    from airflow_provider_roughy.operators import RoughyIngestOperator, RoughyPlanIngestOperator

    shorten_leases()
    if counts is not None:
        count_in(Counts(counts))
    pushed: dict[str, Any] = {}
    if what == "plan":
        task: Any = RoughyPlanIngestOperator(task_id="plan", **job["plan"])
    else:
        task = RoughyIngestOperator(task_id="ingest", shard=number, **job["shard"])
    ti = task_instance(task.task_id, number, pushed)
    cost = asdict(measured(lambda: task.execute({"ti": ti})))
    sizes = {key: len(json.dumps(value)) for key, value in pushed.items()}
    return {**cost, "idle": idle, "counts": pushed["counts"], "xcom_bytes": sum(sizes.values())}


if __name__ == "__main__":
    what, job, *rest = sys.argv[1:]
    number, counts = (int(rest[0]), Path(rest[1])) if rest else (-1, None)
    print(json.dumps(run(what, json.loads(Path(job).read_text()), number, counts)))

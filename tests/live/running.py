"""One run of a DAG on a real Airflow, for the live tests."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_roughy.emulator import Emulator, Request
from harness.airflow import PATIENCE, LocalAirflow

#: Of the table that :func:`printed_load` prints.
TITLES = (" seconds", "  rounds", "   pages", "    GETs", "  most in a second")
#: Worker slots of the Airflow under test.
PARALLELISM = 4

_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Run:
    """A run.

    :param airflow: Where.
    :param dag_id: Of which DAG.
    :param run_id: Which.
    """

    airflow: LocalAirflow
    dag_id: str
    run_id: str

    def task(self, task_id: str) -> dict[str, Any]:
        """Return a task instance as the API shows it."""
        return self.airflow.task_instance(self.dag_id, self.run_id, task_id)

    def xcom(self, task_id: str) -> Any:
        """Return what a task returned."""
        return self.airflow.xcom(self.dag_id, self.run_id, task_id)

    def log(self, task_id: str) -> str:
        """Return the log of a task's first try."""
        return self.airflow.task_log(self.dag_id, self.run_id, task_id)

    def end(self) -> str:
        """Wait for the run's end, and return its state."""
        return self.airflow.wait_for_run(self.dag_id, self.run_id)

    def trigger_logs(self, task_id: str) -> list[str]:
        """Return what each triggerer wrote about a task, oldest first: one file each."""
        folder = self.airflow.home / "logs" / f"dag_id={self.dag_id}" / f"run_id={self.run_id}" / f"task_id={task_id}"
        files = sorted(folder.glob("*.trigger.*"), key=lambda path: path.stat().st_ctime)
        return [path.read_text() for path in files]

    def wait_until_watched(self, task_id: str, state: str, triggerers: int = 1) -> dict[str, Any]:
        """Wait until a task is deferred, and a triggerer has seen its asset, or some of its batch, in a state.

        :param task_id: The task.
        :param state: The state of the asset.
        :param triggerers: How many triggerers must have seen it, one after another.
        :return: The task instance.
        """
        task = self.airflow.wait_for_task(self.dag_id, self.run_id, task_id, "deferred")
        seen = re.compile(rf"\b(is|[\d,]+) {state}\b")
        wait_until(lambda: sum(bool(seen.search(log)) for log in self.trigger_logs(task_id)) == triggerers)
        return task


def wait_until(is_so: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until something is so.

    :param is_so: Asked again and again.
    :param seconds: For how long.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.2)


def connect(airflow: LocalAirflow, server: Emulator, *, port: int | None = None) -> str:
    """Store a new connection in Airflow's database, and return its id.

    :param airflow: Where.
    :param server: To what it leads.
    :param port: The port of a relay on loopback, over which it leads there.
    """
    conn_id = f"roughy_{next(_NUMBERS)}"
    connection = server.airflow_connection
    if port is not None:
        connection["host"] = f"http://127.0.0.1:{port}"
    body = {**connection, "connection_id": conn_id, "extra": json.dumps(connection["extra"])}
    airflow.request("POST", "/connections", json=body)
    return conn_id


@dataclass
class Load:
    """What Roughy was asked in a stretch of time.

    :param seconds: How long it was.
    :param requests: What was asked.
    """

    seconds: float = 0
    requests: list[Request] = field(default_factory=list)

    def __add__(self, other: Load) -> Load:
        return Load(self.seconds + other.seconds, self.requests + other.requests)

    def pages(self) -> list[Request]:
        """Return the requests for a page of a list."""
        return [request for request in self.requests if request.path == "/v1/assets"]

    def rounds(self) -> int:
        """Return how often the list of those in work was begun."""
        return sum("state=processing" in page.query and "offset=0" in page.query for page in self.pages())

    def looks(self) -> Counter[str]:
        """Return how often each asset was asked for by itself."""
        paths = [request.path for request in self.requests]
        return Counter(path.removeprefix("/v1/assets/") for path in paths if path.startswith("/v1/assets/"))

    def busiest(self) -> int:
        """Return how many requests there were in one second, at most."""
        times = [request.started_at for request in self.requests]
        return max((sum(0 <= other - one < 1 for other in times) for one in times), default=0)

    def __str__(self) -> str:
        figures = (round(self.seconds), self.rounds(), len(self.pages()), self.looks().total(), self.busiest())
        return "".join(f"{figure:>{len(title)}}" for figure, title in zip(figures, TITLES, strict=True))


@contextmanager
def printed_load(roughy: Emulator, name: str) -> Iterator[Load]:
    """Note what Roughy is asked meanwhile, available afterwards, and print it as a row of a table.

    :param roughy: Who is asked.
    :param name: What the row is called.
    """
    load, start = Load(), time.time()
    yield load
    load.seconds = time.time() - start
    load.requests = [request for request in roughy.requests if request.started_at >= start]
    print(f"{name:32}{load}")

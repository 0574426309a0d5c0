"""A process that has loaded everything and runs each task in a child of its own, which can be killed at any moment.

It has one thread, so that forking it is safe, which it would not be for a process of tests with servers in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass
class Child:
    """A task that runs.

    :param pid: Its process.
    :param result: Where it leaves what came of it.
    """

    pid: int
    result: Path


class Zygote:
    """Starts tasks.

    :param folder: For what they leave.
    :param connection: Airflow's connection ``roughy_default``, as JSON.
    """

    def __init__(self, folder: Path, connection: str) -> None:
        self._folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "AIRFLOW_CONN_ROUGHY_DEFAULT": connection},
        )
        assert self._ask({"do": "hello"}) == "hello"

    def start(self, run: str, **options: Any) -> Child:
        """Start the ingest operator as one try of a run."""
        self._count += 1
        result = self._folder / f"{self._count}.json"
        return Child(int(self._ask({"do": "start", "run": run, "options": options, "result": str(result)})), result)

    def wait(self, child: Child) -> dict[str, Any] | None:
        """Wait for the end of a task, and return what came of it, if it was not killed."""
        self._ask({"do": "wait", "pid": child.pid})
        return json.loads(child.result.read_text()) if child.result.exists() else None

    def __enter__(self) -> Zygote:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _ask(self, command: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        answer = str(self._process.stdout.readline()).strip()
        assert answer, "the zygote died"
        return answer


def main() -> None:
    """Read commands, a line of JSON each, and answer each with a line."""
    import logging
    import random

    import airflow_provider_roughy.tus
    from airflow_provider_roughy import ledger
    from airflow_provider_roughy.client import Client
    from airflow_provider_roughy.operators import RoughyIngestOperator
    from airflow_provider_roughy.settings import Settings
    from tests.running import TaskInstance, run_task

    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    assert airflow_provider_roughy.tus
    # What takes long to make is made once, for all.
    Client(Settings("sk_warm", base_url="http://127.0.0.1:9")).close()
    ledger.LEASE_SECONDS, ledger.RENEW_SECONDS = 2.0, 0.3

    def run(command: dict[str, Any]) -> None:
        random.seed()
        pause = random.uniform
        random.uniform = lambda a, b: pause(a, b) / 100
        ti = TaskInstance(run_id=command["run"])
        task = RoughyIngestOperator(task_id="ingest", **command["options"])
        ended = run_task(task, context={"ti": ti})
        told = {name: json.loads(value) for name, value in ti.xcoms.items()}
        text = json.dumps({"state": ended.state, "error": repr(ended.error), **told})
        part = Path(command["result"] + ".part")
        part.write_text(text)
        part.rename(command["result"])

    for line in sys.stdin:
        command = json.loads(line)
        answer = "hello"
        if command["do"] == "start":
            pid = os.fork()
            if not pid:
                try:
                    run(command)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                os._exit(0)
            answer = str(pid)
        elif command["do"] == "wait":
            answer = str(os.waitpid(command["pid"], 0)[1])
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()

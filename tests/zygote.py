"""A process that has loaded everything and runs each task in a child of its own, which can die at any step.

It has one thread, so that forking it is safe, which it would not be for a process of tests with servers in it.

A child dies by its own hand, right before its n-th step that others can see: a change of a file, or bytes to or from a
socket. Between two such steps, it makes no difference when it dies. So it dies at the same place on a slow machine.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass
class Child:
    """A task that runs.

    :param run: The run of which it is a try.
    :param pid: Its process.
    :param result: Where it leaves what came of it.
    """

    run: str
    pid: int
    result: Path


@dataclass
class Told:
    """What came of a task.

    :param run: The run of which it was a try.
    :param state: As of :class:`~tests.running.Ended`; ``None`` if it died.
    :param error: What it raised.
    :param xcoms: What it pushed by then. Airflow keeps that of a task that dies later, until the next try starts.
    """

    run: str
    state: str | None = None
    error: str = ""
    xcoms: dict[str, Any] = field(default_factory=dict)


class Zygote:
    """Starts tasks.

    :param folder: For what they leave.
    :param connection: Airflow's connection ``roughy_default``, as JSON.
    :param options: Of a task that is run first, in the zygote itself, so that its children have nothing left to load.
    """

    def __init__(self, folder: Path, connection: str, **options: Any) -> None:
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
        assert self._ask({"do": "warm up", "options": options}) == "success"

    def start(self, run: str, **options: Any) -> Child:
        """Start an operator as one try of a run.

        :param options: Of the operator; ``operator``: ``"ingest"``, the default, or ``"produce"``; ``map_index``: of
            its task; ``clock``: how many seconds its clock is ahead; ``lag``: whether its lists of the ledger miss what
            is there; ``dies_at``: before which of its steps it dies, ``None`` for never.
        """
        self._count += 1
        result = self._folder / f"{self._count}.jsonl"
        command = {"do": "start", "run": run, "options": options, "result": str(result)}
        return Child(run, int(self._ask(command)), result)

    def wait(self, child: Child) -> Told:
        """Wait for the end of a task, and return what came of it."""
        status = int(self._ask({"do": "wait", "pid": child.pid}))
        assert status in (0, signal.SIGKILL), "see standard error"
        told = Told(child.run)
        for line in child.result.read_text().splitlines(keepends=True) if child.result.exists() else ():
            if line.endswith("\n"):  # It may have died while it wrote the last one.
                name, value = json.loads(line)
                if name == "end":
                    told.state, told.error = value
                else:
                    told.xcoms[name] = value
        return told

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


def die_at(step: int) -> None:
    """Kill this process before its n-th step that others can see.

    :param step: n, from 0.
    """
    steps = itertools.count()

    def count() -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        changes = event in ("os.link", "os.remove", "os.rename", "os.mkdir", "socket.connect")
        if changes or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
            count()

    def counted(do: Callable[..., Any], is_seen: Callable[[Any], bool]) -> Callable[..., Any]:
        def do_counted(what: Any, *args: Any) -> Any:
            if is_seen(what):
                count()
            return do(what, *args)

        return do_counted

    sys.addaudithook(audit)
    # Events of these are not audited.
    os.write = counted(os.write, lambda file: True)
    for name in ("send", "sendall", "recv", "recv_into"):
        # A loop wakes itself by a socket that nobody else sees.
        setattr(socket.socket, name, counted(getattr(socket.socket, name), lambda sock: sock.family == socket.AF_INET))


def main() -> None:
    """Read commands, a line of JSON each, and answer each with a line."""
    import logging
    import random
    import time

    from airflow_provider_roughy import ledger
    from airflow_provider_roughy.ingest import batch, shard
    from airflow_provider_roughy.ledger import folder
    from airflow_provider_roughy.operators import RoughyIngestOperator, RoughyProduceOperator
    from tests.running import Ended, TaskInstance, run_task

    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for module in (ledger.lease, ledger.ledger, batch):
        vars(module).update(LEASE_SECONDS=2.0, RENEW_SECONDS=0.1)
    vars(shard).update(_WATCH_SECONDS=0.2)

    operators = {"ingest": RoughyIngestOperator, "produce": RoughyProduceOperator}

    def ingest(ti: TaskInstance, options: dict[str, Any]) -> Ended:
        name = options.pop("operator", "ingest")
        return run_task(operators[name](task_id=name, **options), context={"ti": ti})

    def run(command: dict[str, Any]) -> None:
        random.seed()
        pause = random.uniform
        random.uniform = lambda a, b: pause(a, b) / 100
        options = command["options"]
        map_index = options.pop("map_index", -1)
        clock, ahead = time.time, options.pop("clock", 0.0)
        time.time = lambda: clock() + ahead
        if options.pop("lag", False):
            names = folder.LocalFolder.names
            # What was written lately is not on every list.
            vars(folder)["LocalFolder"].names = lambda self, subfolder="": (
                name for name in names(self, subfolder) if random.random() < 0.7
            )
        result = os.open(command["result"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def tell(name: str, value: Any) -> None:
            os.write(result, json.dumps([name, value]).encode() + b"\n")

        class TellingTaskInstance(TaskInstance):
            """Stores at once what is pushed, as Airflow does."""

            def xcom_push(self, key: str, value: Any) -> None:
                super().xcom_push(key, value)
                tell(key, value)

        if (step := options.pop("dies_at", None)) is not None:
            die_at(step)
        ti = TellingTaskInstance(run_id=command["run"])
        ti.map_index = map_index
        ended = ingest(ti, options)
        tell("end", [ended.state, repr(ended.error)])

    for line in sys.stdin:
        command = json.loads(line)
        answer = ""
        if command["do"] == "warm up":
            answer = ingest(TaskInstance("warm"), command["options"]).state
            for thread in threading.enumerate():
                # That of the lease ends a moment later.
                if thread is not threading.main_thread():
                    thread.join(30)
            assert threading.active_count() == 1, threading.enumerate()
            gc.collect()
            gc.freeze()
        elif command["do"] == "start":
            pid = os.fork()
            if not pid:
                try:
                    run(command)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            answer = str(pid)
        elif command["do"] == "wait":
            answer = str(os.waitpid(command["pid"], 0)[1])
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()

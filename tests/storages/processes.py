"""A process without threads that has loaded Airflow and its providers, and forks a child for each piece of work."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_ROOT = Path(__file__).parent.parent.parent


@dataclass
class Child:
    """A child that works.

    :param pid: Its process.
    :param path: Where it leaves its result.
    """

    pid: int
    path: Path

    def kill(self) -> None:
        """Kill it, as a worker is killed."""
        os.kill(self.pid, signal.SIGKILL)

    def wait_for(self, line: str) -> None:
        """Wait until it has said something."""
        deadline = time.monotonic() + 60
        while line not in self.lines():
            assert time.monotonic() < deadline, f"{line} did not come"
            time.sleep(0.01)

    def lines(self) -> list[str]:
        """What it has said so far."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    def result(self) -> Any:
        """Wait for its end, and return what it returned."""
        self.wait_for("end")
        value = json.loads(self.lines()[-2])
        assert "error" not in value, value["error"]
        return value["result"]


class Processes:
    """Starts children.

    :param folder: For what they leave.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.storages.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )
        self._read()

    def start(self, work: str, **options: Any) -> Child:
        """Run a function of :mod:`tests.storages.work` in a child.

        :param work: Its name.
        :param options: Its arguments. The child has the current environment.
        """
        self._count += 1
        path = self._folder / f"{self._count}.txt"
        connections = {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW_CONN_")}
        command = {"work": work, "options": options, "path": str(path), "env": connections}
        assert self._process.stdin is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return Child(int(self._read()), path)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        answer: str = self._process.stdout.readline().strip()
        assert answer, "the process has ended"
        return answer


def main() -> None:
    """Read commands, a line of JSON each, and answer each with the process of its child."""
    import logging

    from tests.storages import work

    # Nobody waits for the children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for module in ("s3fs", "gcsfs", "adlfs", "sshfs"):
        with contextlib.suppress(ImportError):
            __import__(module)
    for module in ("google.cloud.fs.gcs", "amazon.aws.fs.s3", "microsoft.azure.fs.adls", "sftp.fs.sftp"):
        with contextlib.suppress(ImportError):
            __import__(f"airflow.providers.{module}")
    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _work(command, vars(work))
        print(pid, file=answers, flush=True)


def _work(command: dict[str, Any], functions: dict[str, Callable[..., Any]]) -> None:
    os.environ.update(command["env"])
    with open(command["path"], "a", buffering=1) as said:
        try:
            value = {"result": functions[command["work"]](lambda text: print(text, file=said), **command["options"])}
        except BaseException:
            import traceback

            value = {"error": traceback.format_exc()}
        print(json.dumps(value), file=said)
        print("end", file=said)
    os._exit(0)


if __name__ == "__main__":
    main()

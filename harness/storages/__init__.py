"""Servers of storages on loopback, each with a connection of Airflow.

One process of its own runs them (:mod:`harness.storages.__main__`), for all test processes that share a folder. It
starts with the first of these processes, and ends when none of them is left, however they end.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: Seconds within which a server answers, or within which npm installs one of them.
_PATIENCE = 180.0

#: The bucket, container or folder that each storage has.
BUCKET = "recordings"


class NoServer(Exception):
    """A storage has no server here, such as without Node. The message says what it needs."""


@dataclass(frozen=True)
class Server:
    """A running server.

    :param url: Its address.
    :param connection: The fields of Airflow's connection.
    :param root: The URI of the bucket, container or folder, without a connection.
    :param folder: The folder of this machine that it serves, if it serves one.
    """

    url: str
    connection: dict[str, Any]
    root: str
    folder: str = ""

    @property
    def port(self) -> int:
        """The port on loopback."""
        return urlsplit(self.url).port or 0

    def connection_to(self, port: int) -> dict[str, Any]:
        """Return the connection with another port, such as that of a proxy.

        :param port: The port on loopback.
        """
        fields: dict[str, Any] = json.loads(
            json.dumps(self.connection).replace(f"127.0.0.1:{self.port}", f"127.0.0.1:{port}")
        )
        return {**fields, "port": port} if "port" in fields else fields


@dataclass
class Servers:
    """The servers that share a folder.

    :param folder: Where their addresses and logs are.
    """

    folder: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the process that runs the servers, unless it runs already."""
        with (self.folder / "starting").open("w") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            if self._is_running():
                return
            for old in self.folder.glob("*.json"):
                old.unlink()
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "harness.storages", str(self.folder)],
                    cwd=Path(__file__).parent.parent.parent,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Interrupting the tests does not interrupt it: it ends when they do.
                    start_new_session=True,
                )
            (self.folder / "pid").write_text(str(self._process.pid))

    def _is_running(self) -> bool:
        try:
            os.kill(int((self.folder / "pid").read_text()), 0)
        except (OSError, ValueError):
            return False
        return True

    def get(self, name: str) -> Server:
        """Wait until a server answers, and return it.

        :param name: One of :data:`harness.storages.kinds.SERVERS`.
        :raises NoServer: If it cannot run on this machine.
        """
        path = self.folder / f"{name}.json"
        deadline = time.monotonic() + _PATIENCE
        while not path.exists():
            if time.monotonic() > deadline or not self._is_running():
                log = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise NoServer(f"the server of {name} has not started in {_PATIENCE:.0f} s: {log}")
            if self._process is not None:
                self._process.poll()
            time.sleep(0.05)
        fields = json.loads(path.read_text())
        if "error" in fields:
            raise NoServer(fields["error"])
        return Server(**fields)

    def end(self) -> None:
        """Wait until the process has ended, if this one has started it."""
        if self._process is None:
            return
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)


@contextmanager
def shared_servers(folder: Path) -> Iterator[Servers]:
    """Use the servers of a folder together with other processes.

    :param folder: A folder that exists, the same for all of them.
    """
    servers = Servers(folder)
    with (folder / "users").open("w") as users:
        # The process that runs the servers takes this lock alone, once no test process holds it.
        fcntl.flock(users, fcntl.LOCK_SH)
        servers.start()
        try:
            yield servers
        finally:
            fcntl.flock(users, fcntl.LOCK_UN)
    servers.end()

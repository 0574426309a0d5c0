"""Run the servers: ``python -m harness.storages FOLDER``. It ends when nobody holds the lock ``FOLDER/users``."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from harness.storages import NoServer
from harness.storages.launch import LAUNCHERS, Launched


def main(folder: Path) -> None:
    """Start all servers at once, write the address of each, and wait for the last user.

    :param folder: Where the users have their lock.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    launched: list[Launched] = []

    def prepare(name: str, launch: Callable[[Path], Launched]) -> None:
        data = folder / name
        data.mkdir(exist_ok=True)
        try:
            started = launch(data)
            launched.append(started)
            written = asdict(started.ready())
        except NoServer as error:
            written = {"error": str(error)}
        except Exception as error:
            written = {"error": f"the server of {name} does not start: {type(error).__name__}: {error}"}
        # A reader sees all of it or nothing.
        new = folder / f"{name}.new"
        new.write_text(json.dumps(written))
        new.rename(folder / f"{name}.json")

    threads = [threading.Thread(target=prepare, args=each, daemon=True) for each in LAUNCHERS.items()]
    try:
        for thread in threads:
            thread.start()
        with (folder / "users").open("w") as users:
            while True:
                try:
                    # It is kept to the end: who comes now waits for it, and starts the servers anew.
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.2)
            _end(launched, folder)
    finally:
        _end(launched, folder)


def _end(launched: list[Launched], folder: Path) -> None:
    for each in launched:
        each.process.kill()
    for each in launched:
        try:
            each.process.wait(10)
        except subprocess.TimeoutExpired:
            print(f"process {each.process.pid} does not end", file=sys.stderr)
    (folder / "pid").unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    # npm may still be installing in a thread.
    sys.stdout.flush()
    os._exit(0)

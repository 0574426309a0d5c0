"""Servers in separate processes, which never outlive the benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment(**more: str) -> dict[str, str]:
    """Return the environment of all processes, without Airflow's variables, proxies and certificates.

    :param more: Additional variables.
    """
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | more


def module(name: str, *arguments: str | os.PathLike[str]) -> list[str]:
    """Return the command that runs one of these modules in a new interpreter."""
    return [sys.executable, "-m", f"benchmarks.{name}", *(os.fspath(argument) for argument in arguments)]


@contextmanager
def serving(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run a server that prints its port and ends with its standard input; yield the port.

    :param command: The server.
    :param env: Its environment.
    """
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env or environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                raise RuntimeError(f"{' '.join(command)} did not start")
            yield int(line)
        finally:
            server.kill()


def end_with_parent() -> None:
    """End this process as soon as its standard input ends, which is when its parent ends."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()

"""The cost of a killed worker: bytes that are sent again, and the time until new ones arrive."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.clients import run as run_client
from benchmarks.measure import MIB, Spread, Target, table
from benchmarks.processes import ROOT, module
from benchmarks.servers import Scratch, Server, distant_sink, tls_sink

_CASES: dict[str, Callable[[Scratch], AbstractContextManager[Server]]] = {
    "sink over TLS": tls_sink,
    "sink over TLS, 20 ms each way": distant_sink,
}
_KILLS = 5


@dataclass(frozen=True)
class Retry:
    """One kill and its consequences.

    :param stored: Bytes that the server had when the worker was dead.
    :param twice: Bytes that were sent again.
    :param from_start: Seconds from the start of the new process to its first new byte at the server.
    :param from_execute: Seconds from the operator's start to that byte.
    """

    stored: int
    twice: int
    from_start: float
    from_execute: float


def run(scratch: Scratch, *, size: int, say: Callable[[str], None]) -> tuple[list[str], list[Target]]:
    """Kill uploads, each at a different point, and resume them.

    :param scratch: The folder for files.
    :param size: Bytes of an upload.
    :param say: Called with lines about the progress.
    :returns: Tables and targets.
    """
    file = scratch.source(size)
    rows, twice = [], []
    for title, serve in _CASES.items():
        say(f"retry: {title}")
        with serve(scratch) as server:
            retries = [_kill_and_resume(server, file, (kill + random.random()) / _KILLS) for kill in range(_KILLS)]
        twice += [retry.twice for retry in retries]
        rows.append(
            [
                title,
                ", ".join(f"{retry.stored / size:.0%}" for retry in retries),
                str(max(retry.twice for retry in retries)),
                Spread.of([retry.from_execute for retry in retries]).text(3),
                Spread.of([retry.from_start for retry in retries]).text(),
            ]
        )
    header = [
        "server",
        "stored when killed",
        "bytes sent twice, at most",
        "from execute() to a new byte, s",
        "from process start, s",
    ]
    return (
        [
            table(
                f"SIGKILL of the worker and a retry with asset_id, {size / MIB:.0f} MiB; median (least-most)",
                header,
                rows,
            )
        ],
        [Target("bytes that are sent twice after a kill", 0, max(twice))],
    )


def _kill_and_resume(server: Server, file: Path, share: float) -> Retry:
    """Kill an upload in its middle, and resume it.

    :param server: The server.
    :param file: The source.
    :param share: The minimum share of the bytes that have arrived before the kill; 0 to 1.
    """
    size = file.stat().st_size
    earlier = len(server.ask("/log"))
    cut = _kill(server, file, share)
    if cut["received"] == size:
        # The upload was finished before the kill.
        return _kill_and_resume(server, file, share / 2)
    started = time.monotonic()
    sample = run_client(module("uploads", "operator", file, cut["asset_id"]), server)
    patches = server.ask("/log")[earlier:]
    first = patches[1]["first"]
    return Retry(
        stored=cut["received"],
        twice=sum(patch["received"] for patch in patches) - size,
        from_start=first - started,
        from_execute=first - sample["started"],
    )


def _kill(server: Server, file: Path, share: float) -> dict[str, Any]:
    """Kill an upload and return its entry in the sink's log."""
    size = file.stat().st_size
    earlier = len(server.ask("/log"))
    worker = subprocess.Popen(
        module("uploads", "operator", file),
        cwd=ROOT,
        env=server.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await(server, earlier, lambda patch: patch["received"] >= share * size)
    finally:
        worker.kill()
        worker.wait()
    return _await(server, earlier, lambda patch: patch["ended"])


def _await(server: Server, index: int, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until a request in the sink's log meets a condition, and return it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        patches: list[dict[str, Any]] = server.ask("/log")[index:]
        if patches and condition(patches[0]):
            return patches[0]
        time.sleep(0.005)
    raise TimeoutError("the upload does not move")

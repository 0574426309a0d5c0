"""Whole downloads by several clients, compared with curl, and the memory of this package's."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.clients import CURL, OURS, Client, left_out
from benchmarks.clients import run as run_client
from benchmarks.measure import MIB, Sample, Spread, Target, table
from benchmarks.processes import ROOT, module
from benchmarks.servers import Scratch, Server, storage, storage_and_s3
from benchmarks.transfer import race, race_table, ratios

_TITLES = {"plain": "download", "tls": "download over TLS"}
#: The number of downloads to S3, and of rounds that measure memory.
_ROUNDS = 3
#: The maximum bytes of a download to S3, whose server is written in Python.
_S3_BYTES = 256 * MIB


def run(
    scratch: Scratch, *, size: int, rounds: int, peer_rounds: int, say: Callable[[str], None]
) -> tuple[list[str], list[Target]]:
    """Measure downloads to a file and to S3.

    :param scratch: The folder for files.
    :param size: Bytes of a download.
    :param rounds: The number of rounds.
    :param peer_rounds: In how many of the rounds clients without a target run as well.
    :param say: Called with lines about the progress.
    :returns: Tables and targets.
    """
    file = scratch.source(size)
    clients = _clients()
    with ExitStack() as stack:
        servers = {name: stack.enter_context(storage(scratch, file, tls=name == "tls")) for name in _TITLES}
        results = race(servers, clients, file, rounds=rounds, peer_rounds=peer_rounds, say=say)
        grown = [
            run_client(module("downloads", "memory", _downloaded(server)), server)["peak"] / MIB
            for server in servers.values()
            for _ in range(_ROUNDS)
        ]
    tables = [*left_out(), *(race_table(title, size, results[name]) for name, title in _TITLES.items())]
    targets = [Target("MiB of memory from the first byte of a download to its last", 8, max(grown))]
    if CURL in clients:
        targets += [
            Target(f"{words} in curl's, {title}", limit, Spread.of(ratios(results[name], OURS, what)).median)
            for what, words, limit in (("wall", "wall time", 1.1), ("cpu", "CPU", 1.1))
            for name, title in _TITLES.items()
        ]
    s3_table, s3_grown = _to_s3(scratch, min(size, _S3_BYTES), say)
    targets.append(Target("MiB of memory from the first byte of a download to S3 to its last", 40, s3_grown))
    return [*tables, s3_table], targets


def _to_s3(scratch: Scratch, size: int, say: Callable[[str], None]) -> tuple[str, float]:
    """Return a table, and the growth of this package's memory in MiB."""
    commands = {
        OURS: module("downloads", "operator", "s3://out/ours"),
        "HttpToS3Operator": module("downloads", "http_to_s3", "file", "out", "peer"),
    }
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    with storage_and_s3(scratch, scratch.source(size)) as server:
        for number in range(_ROUNDS):
            say(f"download to S3: round {number + 1} of {_ROUNDS}")
            for name, command in commands.items():
                samples[name].append(Sample(**run_client(command, server)))
        grown = [run_client(module("downloads", "memory", "s3://out/ours"), server)["peak"] for _ in range(_ROUNDS)]
    rows = [
        [
            name,
            *(Spread.of([getattr(sample, what) for sample in found]).text() for what in ("wall", "cpu")),
            f"{Spread.of([sample.peak for sample in found]).median / MIB:.0f}",
        ]
        for name, found in samples.items()
    ]
    title = f"download to S3 (moto): {size / MIB:g} MiB; median (least-most) of {_ROUNDS}"
    return table(title, ["client", "wall, s", "CPU, s", "peak, MiB"], rows), max(grown) / MIB


def _clients() -> dict[str, Client]:
    """Return the clients that this machine can run, by name."""
    clients: dict[str, Client] = {
        OURS: _client(lambda server, target: module("downloads", "operator", target)),
        "requests": _client(lambda server, target: module("downloads", "requests", f"{server.url}/file", target)),
        "urllib3": _client(lambda server, target: module("downloads", "urllib3", f"{server.url}/file", target)),
    }
    if shutil.which("curl"):
        small = [sys.executable, "-I", "-S", str(ROOT / "benchmarks" / "curl.py")]
        quiet = ["curl", "--silent", "--show-error", "--fail", "--http1.1", "--output"]
        clients[CURL] = _client(lambda server, target: [*small, *quiet, str(target), f"{server.url}/file"])
    return clients


def _client(command: Callable[[Server, Path], list[str]]) -> Client:
    """Return a client that downloads to a new file, and checks that all bytes arrived."""

    def client(server: Server, file: Path) -> Sample:
        target = _downloaded(server)
        target.unlink(missing_ok=True)
        sample = Sample(**run_client(command(server, target), server))
        if target.stat().st_size != file.stat().st_size or _end(target) != _end(file):
            raise RuntimeError(f"{target} did not get all bytes")
        return sample

    return client


def _downloaded(server: Server) -> Path:
    return server.scratch.folder / "downloaded"


def _end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - MIB, 0))
        return file.read()

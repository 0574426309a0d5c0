"""``python -m benchmarks``: measure, print tables, and report which targets are met."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import batch, download, memory, retry, transfer, waiting
from benchmarks.measure import GIB, Target, table
from benchmarks.servers import Scratch

PARTS = (*transfer.CASES, "memory", "retry", "download", "waiting", "batch")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure this package against its peers.")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the transfers (default: 7)")
    parser.add_argument("--peer-rounds", type=int, default=3, help="rounds in which their peers but curl run, too")
    parser.add_argument("--size", type=int, default=GIB, help="bytes of a transfer (default: 1 GiB)")
    parser.add_argument("--only", metavar="NAME", action="append", choices=PARTS, help=f"one of {', '.join(PARTS)}")
    return parser.parse_args()


def _memory_folder(needed: int) -> str | None:
    """Return a folder in memory with so many free bytes, if there is one: otherwise, the disk would be measured."""
    folder = Path("/dev/shm")
    return str(folder) if folder.is_dir() and shutil.disk_usage(folder).free > needed else None


def _run(arguments: argparse.Namespace, scratch: Scratch) -> None:
    """Run the selected parts, and print their tables and the results of the targets."""
    wanted = arguments.only or PARTS
    parts: dict[str, Callable[[], tuple[list[str], list[Target]]]] = {
        "memory": lambda: memory.run(scratch, say=_say),
        "retry": lambda: retry.run(scratch, size=arguments.size, say=_say),
        "download": lambda: download.run(
            scratch,
            size=arguments.size,
            rounds=arguments.rounds,
            peer_rounds=min(arguments.peer_rounds, arguments.rounds),
            say=_say,
        ),
        "waiting": lambda: waiting.run(scratch, say=_say),
        "batch": lambda: batch.run(scratch, say=_say),
    }
    work = [parts[name] for name in parts if name in wanted]
    if cases := [name for name in transfer.CASES if name in wanted]:
        work.insert(0, lambda: _transfer(arguments, scratch, cases))
    targets = []
    for part in work:
        tables, more = part()
        targets += more
        print("\n".join(tables), flush=True)
    if targets:
        print(table("targets", ["promise", "at most", "measured", ""], [target.row for target in targets]))


def _transfer(arguments: argparse.Namespace, scratch: Scratch, cases: Sequence[str]) -> tuple[list[str], list[Target]]:
    return transfer.run(
        cases,
        scratch,
        size=arguments.size,
        rounds=arguments.rounds,
        peer_rounds=min(arguments.peer_rounds, arguments.rounds),
        say=_say,
    )


def main() -> None:
    """Measure what the arguments ask for."""
    arguments = _arguments()
    if sys.platform != "linux":
        sys.exit("The benchmarks read /proc, which only Linux has.")
    # A normal exit, which leaves neither processes nor files behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    system = f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs"
    print(f"Python {platform.python_version()}, {system}, load {_load()} before\n")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=_memory_folder(4 * max(arguments.size, GIB))) as folder:
        _run(arguments, Scratch(Path(folder)))
    print(f"load {_load()} after {(time.monotonic() - started) / 60:.1f} minutes")


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()

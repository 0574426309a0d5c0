"""The memory of an upload, by the size of its source."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.clients import run as run_client
from benchmarks.measure import GIB, MIB, Spread, Target, table
from benchmarks.processes import module
from benchmarks.servers import Scratch, tls_sink

#: Bytes; the larger files are sparse.
SIZES = (64 * MIB, GIB, 8 * GIB)
_ROUNDS = 3


def run(scratch: Scratch, *, say: Callable[[str], None]) -> tuple[list[str], list[Target]]:
    """Measure the operator's memory over TLS.

    :param scratch: The folder for files.
    :param say: Called with lines about the progress.
    :returns: Tables and targets.
    """
    rows, targets = [], []
    with tls_sink(scratch) as server:
        for size in SIZES:
            say(f"memory: {size / MIB:.0f} MiB")
            file = scratch.source(size, sparse=size == SIZES[-1])
            steps = [run_client(module("uploads", "memory", file), server) for _ in range(_ROUNDS)]
            growth = [(step["peak"] - step["first"]) / MIB for step in steps]
            rows.append(
                [
                    f"{size / MIB:.0f} MiB",
                    f"{Spread.of([step['idle'] / MIB for step in steps]).median:.1f}",
                    *(
                        f"{Spread.of([(step[to] - step[since]) / MIB for step in steps]).median:.1f}"
                        for since, to in (("idle", "imported"), ("imported", "first"))
                    ),
                    Spread.of(growth).text(1),
                    f"{Spread.of([step['peak'] / MIB for step in steps]).median:.0f}",
                ]
            )
            targets.append(
                Target(f"MiB of memory from first to last byte, source of {size / MIB:.0f} MiB", 8, max(growth))
            )
    header = [
        "source",
        "idle Airflow task",
        "+ imports of an upload",
        "+ connection, TLS, create",
        "+ first to last byte",
        "peak",
    ]
    return [table(f"memory over TLS, MiB; median (least-most) of {_ROUNDS}", header, rows)], targets

"""Requests of a watcher for assets, counted at the emulator: ``python -m benchmarks.watching``."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.triggers import RoughyAssetsReadyTrigger

#: Seconds between two rounds, and without any request after which a round has ended.
_INTERVAL, _QUIET = 4.0, 1.5
#: The numbers of assets that are ready, and that are unpaid.
_CASES = ((100, 0), (10_000, 0), (10_000, 5_000))


async def _rounds(roughy: Emulator, count: int) -> list[int]:
    """Return the numbers of requests of the next rounds."""
    found: list[int] = []
    while len(found) < count:
        roughy.clear_requests()
        seen = 0
        while not seen or len(roughy.requests) > seen:
            seen = len(roughy.requests)
            await asyncio.sleep(_QUIET)
        found.append(seen)
    return found


async def _watch(roughy: Emulator, ledger: Path, unpaid: list[str]) -> tuple[list[int], list[int]]:
    """Run a watcher; return the requests of its first rounds, and of those in which an old asset becomes ready."""

    async def run() -> None:
        async for _ in RoughyAssetsReadyTrigger(ledger=ledger, poll_interval=_INTERVAL).run():
            pass

    task = asyncio.create_task(run())
    try:
        first = await _rounds(roughy, 4)
        if unpaid:
            roughy.set_state(unpaid[len(unpaid) // 2], "ready")
        return first, await _rounds(roughy, 2)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _main() -> None:
    print("ready | unpaid | first start, then rounds | one of the unpaid is paid for | restart, then rounds")
    for ready, count in _CASES:
        with Emulator() as roughy, tempfile.TemporaryDirectory() as folder:
            os.environ["AIRFLOW_CONN_ROUGHY_DEFAULT"] = json.dumps(roughy.airflow_connection)
            unpaid = [roughy.seed_asset(state="pending_payment") for _ in range(count)]
            for _ in range(ready):
                roughy.seed_asset()
            ledger = Path(folder) / "taken"
            first, deep = asyncio.run(_watch(roughy, ledger, unpaid))
            again, _ = asyncio.run(_watch(roughy, ledger, []))
            print(f"{ready} | {count} | {first} | {deep if unpaid else '-'} | {again}", flush=True)


if __name__ == "__main__":
    _main()

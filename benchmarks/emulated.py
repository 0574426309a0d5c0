"""The emulator in a process of its own, with assets in it.

Usage: ``python -m benchmarks.emulated FOLDER KEY PROGRESSION READY PROCESSING``: where its state lives, the API key,
how fast assets become ready, and how many are, and how many are in processing, from the start on. It prints its port,
and ends when its standard input does.
"""

from __future__ import annotations

import sys
import threading
from urllib.parse import urlsplit

from airflow_provider_roughy.emulator import Emulator
from benchmarks.processes import end_with_parent


def _main(folder: str, key: str, progression: str, ready: str, processing: str) -> None:
    # Enough credits for all of them.
    with Emulator(data_dir=folder, api_key=key, balance=10**6, progression=progression) as roughy:
        for state, count in (("ready", ready), ("processing", processing)):
            for _ in range(int(count)):
                roughy.seed_asset(state)
        print(urlsplit(roughy.url).port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    end_with_parent()
    _main(*sys.argv[1:])

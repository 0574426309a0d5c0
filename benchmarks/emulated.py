"""The emulator in a separate process, with assets or cuts in it.

Usage: ``python -m benchmarks.emulated FOLDER KEY PROGRESSION KIND DONE PROCESSING``: the folder of its state, the API
key, the progression, ``asset`` or ``cut``, and how many of them are done, and how many are in processing, from the
start on. It prints its port, and ends when its standard input does.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from airflow_provider_roughy.emulator import Emulator
from benchmarks.processes import end_with_parent


def _main(folder: str, key: str, progression: str, kind: str, done: str, processing: str) -> None:
    # Enough credits for all of them.
    with Emulator(data_dir=folder, api_key=key, balance=10**6, progression=progression) as roughy:
        seeds: dict[str, tuple[Callable[..., str], str]] = {
            "asset": (roughy.seed_asset, "ready"),
            "cut": (roughy.seed_cut, "completed"),
        }
        seed, end = seeds[kind]
        for state, count in ((end, done), ("processing", processing)):
            for _ in range(int(count)):
                seed(state)
        print(urlsplit(roughy.url).port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    end_with_parent()
    _main(*sys.argv[1:])

"""A wait that fails on Airflow 3.0, whose structlog loops on an error that is its own cause."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from airflow_provider_roughy.emulator import Emulator
from harness.airflow import FINISHED, PATIENCE, LocalAirflow
from tests.live import live
from tests.live.running import Run

pytestmark = live("3.0")

#: What a worker may take: far more than it needs, far less than an endless loop gets in seconds.
MEMORY = 3 << 29


def test_a_wait_that_fails_ends(start: Callable[..., Run], roughy: Emulator, local_airflow: LocalAirflow) -> None:
    broken, breaks, never = (roughy.seed_asset("processing") for _ in range(3))
    roughy.set_state(broken, "failed", error_code="probe_failed", error_message="cannot be read")
    runs = {
        "at first look": start("awaits", asset_id=broken, conn_id="roughy_default"),
        "in the triggerer": start("awaits", asset_id=breaks, conn_id="roughy_default"),
        "in time": start("awaits_briefly", asset_id=never, conn_id="roughy_default"),
    }
    runs["in the triggerer"].wait_until_watched("wait", "processing")
    roughy.set_state(breaks, "failed", error_code="probe_failed", error_message="cannot be read")

    deadline = time.monotonic() + PATIENCE
    while unfinished := [name for name, run in runs.items() if state(run) not in FINISHED]:
        assert largest(local_airflow) < MEMORY, f"a worker grows without end: {unfinished}"
        assert time.monotonic() < deadline, unfinished
        time.sleep(0.5)
    for name, words in {
        "at first look": f"Asset {broken} failed: probe_failed: cannot be read",
        "in the triggerer": f"Asset {breaks} failed: probe_failed: cannot be read",
        "in time": f"Asset {never} was not done in time",
    }.items():
        task = runs[name].task("wait")
        assert (task["state"], task["try_number"], task["max_tries"]) == ("failed", 1, 3), name
        assert words in runs[name].log("wait"), name


def state(run: Run) -> str:
    return run.airflow.run_state(run.dag_id, run.run_id)


def largest(airflow: LocalAirflow) -> int:
    """Return the resident bytes of the largest process under the scheduler: its workers are the tasks."""
    sizes = [0]
    for pid in airflow.pids("scheduler"):
        try:
            sizes.append(psutil.Process(pid).memory_info().rss)
        except psutil.NoSuchProcess:
            continue
    return max(sizes)

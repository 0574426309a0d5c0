"""Replies that a database cannot store stop neither a triggerer nor other waits, on PostgreSQL."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_roughy.emulator import Emulator, Fault
from harness.airflow import LocalAirflow
from tests.live import LIVE
from tests.live.running import wait_until

pytestmark = LIVE

#: By what is odd: what an asset's reply holds once it has ended, how its task ends, and what that returned or logged.
ENDS: dict[str, tuple[dict[str, Any], str, dict[str, Any] | str]] = {
    "nul": (
        {"state": "failed", "error_code": "probe", "error_message": "tag \x00"},
        "failed",
        "failed: probe: tag \ufffd",
    ),
    "half": ({"state": "failed", "error_message": "tag \ud83d"}, "failed", "failed: tag \ufffd"),
    "code": ({"state": "failed", "error_code": 17}, "failed", "failed: 17"),
    "long": ({"state": "ready", "size_bytes": 2**64}, "success", {"size_bytes": None}),
    "huge": ({"state": "ready", "size_bytes": 10**400, "language": "\x00"}, "success", {"size_bytes": None}),
    "real": ({"state": "ready", "size_bytes": 1e20}, "success", {"size_bytes": None}),
    "good": ({"state": "ready"}, "success", {"state": "ready"}),
}


@pytest.mark.usefixtures("two_triggerers")
def test_odd_replies_end_no_triggerer(two_triggerers: LocalAirflow, two_triggerers_roughy: Emulator) -> None:
    airflow, roughy = two_triggerers, two_triggerers_roughy
    assets = [roughy.seed_asset("processing") for _ in ENDS]
    run_id = airflow.trigger_dag("many_wait", conf={"waits": [{"asset_id": asset_id} for asset_id in assets]})
    airflow.pause("many_wait", paused=False)

    def states() -> list[str]:
        tasks = airflow.task_instances("many_wait", run_id)
        return [
            task["state"] for task in sorted(tasks, key=lambda task: task["map_index"]) if task["task_id"] == "wait"
        ]

    wait_until(lambda: states() == ["deferred"] * len(ENDS))
    for asset_id, (odd, _, _) in zip(assets, ENDS.values(), strict=True):
        roughy.set_state(asset_id, odd["state"])
        body = json.dumps({**roughy.asset(asset_id), "download_url": None, "cuttable": False, **odd})
        headers = {"Content-Type": "application/json"}
        roughy.inject(
            Fault(method="GET", path=f"/v1/assets/{asset_id}", status=200, headers=headers, body=body, times=None)
        )

    assert airflow.wait_for_run("many_wait", run_id) == "failed"
    assert states() == [state for _, state, _ in ENDS.values()]
    for number, (_, _, told) in enumerate(ENDS.values()):
        if isinstance(told, dict):
            found = airflow.xcom("many_wait", run_id, "wait", number)
            assert {name: found[name] for name in told} == told
        else:
            assert told in airflow.task_log("many_wait", run_id, "wait", map_index=number)
    assert airflow.ended() == []
    roughy.clear_faults()

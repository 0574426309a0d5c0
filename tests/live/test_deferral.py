"""Waiting in a real triggerer, with every result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from airflow_provider_roughy.emulator import Emulator
from harness import media
from harness.airflow import LocalAirflow
from tests.live import LIVE
from tests.live.running import PARALLELISM, Run, wait_until

pytestmark = LIVE

Start = Callable[..., Run]


def test_a_wait_takes_no_worker_and_survives_the_death_of_the_triggerer(
    start: Start, roughy: Emulator, local_airflow: LocalAirflow, tmp_path: Path
) -> None:
    run = start("waits", source=media.make_audio(tmp_path / "speech.mp3", seconds=1))
    task = run.wait_until_watched("wait", "processing")
    assert task["trigger"]["classpath"] == "airflow_provider_roughy.triggers.RoughyAssetTrigger"
    assert "RoughyAssetTrigger" in rows("trigger.classpath", local_airflow)
    wait_until(lambda: task["pid"] not in local_airflow.pids("scheduler"))

    # Every slot is free: as many others as there are slots meet at the same time.
    place = tmp_path / "place"
    place.mkdir()
    assert start("crowd", place=place, count=PARALLELISM).end() == "success"
    assert run.task("wait")["state"] == "deferred"

    local_airflow.kill("triggerer")
    assert not local_airflow.pids("triggerer")
    local_airflow.restart("triggerer")
    run.wait_until_watched("wait", "processing", triggerers=2)
    roughy.settle()

    assert run.end() == "success"
    assert run.xcom("wait") == without_urls(ask_roughy(roughy, run.xcom("upload")))
    assert run.xcom("wait")["state"] == "ready"
    assert run.task("wait")["try_number"] == 1
    assert not rows("trigger.classpath", local_airflow)


def test_an_unpaid_asset_does_what_the_policy_says(start: Start, roughy: Emulator, tmp_path: Path) -> None:
    roughy.balance = 1
    run = start("unpaid", source=media.make_long_audio(tmp_path / "long.wav", seconds=100))
    for policy in ("fail", "skip", "return", "wait"):
        run.wait_until_watched(policy, "processing")
    roughy.settle()
    asset_id = run.xcom("upload")

    for policy, state in {"fail": "failed", "skip": "skipped", "return": "success"}.items():
        run.airflow.wait_for_task(run.dag_id, run.run_id, policy, state)
    assert run.xcom("return") == without_urls(ask_roughy(roughy, asset_id))
    assert run.xcom("return")["state"] == "pending_payment"
    assert "Top up the credits" in run.log("fail")
    run.wait_until_watched("wait", "pending_payment")
    roughy.top_up(1)

    assert run.end() == "failed"  # By the policy "fail".
    assert run.task("wait")["state"] == "success"
    assert run.xcom("wait")["state"] == "ready"
    assert {run.task(policy)["try_number"] for policy in ("fail", "skip", "return", "wait")} == {1}


def test_a_failed_asset_fails_at_once_and_the_log_says_why(start: Start, roughy: Emulator, tmp_path: Path) -> None:
    run = start("waits", source=media.corrupt(media.make_audio(tmp_path / "speech.mp3", seconds=1)))
    run.wait_until_watched("wait", "processing")
    roughy.settle()

    assert run.end() == "failed"
    task = run.task("wait")
    assert (task["state"], task["try_number"], task["max_tries"]) == ("failed", 1, 3)
    asset = roughy.asset(run.xcom("upload"))
    answer = [request for request in roughy.requests if request.path == f"/v1/assets/{asset['id']}"][-1]
    told = f"Asset {asset['id']} failed: {asset['error_code']}: {asset['error_message']} (request {answer.request_id})"
    assert told in run.log("wait")


def test_an_upload_that_waits_is_deferred_and_returns_the_asset_id(
    start: Start, roughy: Emulator, tmp_path: Path
) -> None:
    run = start("uploads_and_waits", source=media.make_video(tmp_path / "clip.mp4"))
    run.wait_until_watched("upload", "processing")
    [asset] = [asset for asset in roughy.assets if asset["state"] == "processing"]
    roughy.settle()

    assert run.end() == "success"
    assert run.xcom("upload") == asset["id"]
    assert roughy.asset(asset["id"])["state"] == "ready"
    assert run.task("upload")["try_number"] == 1


def rows(where: str, airflow: LocalAirflow) -> str:
    return "\n".join(text for place, text in airflow.everything_visible() if place == where)


def ask_roughy(roughy: Emulator, asset_id: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {roughy.api_key}"}
    reply = httpx.get(f"{roughy.url}/v1/assets/{asset_id}", headers=headers, trust_env=False)
    asset: dict[str, Any] = reply.raise_for_status().json()
    return asset


def without_urls(asset: dict[str, Any]) -> dict[str, Any]:
    assert {"upload_url", "download_url"} <= asset.keys()
    return {name: value for name, value in asset.items() if not name.endswith("_url")}

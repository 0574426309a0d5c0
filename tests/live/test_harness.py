"""The real Airflow of live tests and the demo (``harness/airflow.py``)."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_provider_roughy.api import create_webhook_endpoint
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.http.client import Client
from airflow_provider_roughy.settings import Settings
from harness.airflow import LocalAirflow
from tests.live import LIVE
from tests.live.running import wait_until

pytestmark = LIVE

DAGS = """
from datetime import timedelta
import os
import time

from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
from airflow.sdk import DAG, Asset, task

with DAG("waits", schedule=None):
    wait = TimeDeltaSensor(task_id="wait", delta=timedelta(seconds=8), deferrable=True)

    @task
    def tell(who):
        print("needle-in-the-log")
        return {"hello": who, "from": os.environ["AIRFLOW_CONN_SOME_PLACE"]}

    wait >> tell("{{ dag_run.conf['who'] }}")

with DAG("dies", schedule=None):

    @task(retries=1, retry_delay=timedelta(seconds=1))
    def linger(task_instance=None):
        if task_instance.try_number == 1:
            time.sleep(300)
        return task_instance.try_number

    linger()

with DAG("reacts", schedule=Asset("roughy_media")):

    @task
    def see(triggering_asset_events=None):
        return [event.extra for events in triggering_asset_events.values() for event in events]

    see()
"""


@pytest.fixture(scope="module")
def local_airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    folder = tmp_path_factory.mktemp("live")
    (folder / "dags").mkdir()
    (folder / "dags" / "stories.py").write_text(DAGS)
    with LocalAirflow(
        [folder / "dags"], home=folder / "home", connections={"some_place": {"conn_type": "http", "host": "there"}}
    ) as running:
        yield running
        ours = [psutil.Process(pid) for pid in running.pids()]
        assert len(ours) >= 4
    assert not [process for process in ours if alive(process)]


def test_a_wait_survives_the_death_of_the_triggerer(local_airflow: LocalAirflow) -> None:
    run_id = local_airflow.trigger_dag("waits", conf={"who": "needle-in-the-conf"})
    local_airflow.wait_for_task("waits", run_id, "wait", "deferred")
    assert "moment" in seen_in("trigger.", local_airflow)

    local_airflow.kill("triggerer")
    assert not local_airflow.pids("triggerer")
    assert local_airflow.pids("scheduler")
    local_airflow.restart("triggerer")

    assert local_airflow.wait_for_run("waits", run_id) == "success"
    said = local_airflow.xcom("waits", run_id, "tell")
    assert said["hello"] == "needle-in-the-conf"
    assert "there" in said["from"]
    assert local_airflow.task_instance("waits", run_id, "wait")["try_number"] == 1
    assert "Trigger fired event" in local_airflow.task_log("waits", run_id, "wait")

    assert "needle-in-the-log" in seen_in("logs/dag_id=waits", local_airflow)
    for column in ("xcom.value", "dag_run.conf", "rendered_task_instance_fields."):
        assert "needle-in-the-conf" in seen_in(column, local_airflow)


def test_a_killed_task_is_tried_again_and_a_cleared_one_runs_again(local_airflow: LocalAirflow) -> None:
    run_id = local_airflow.trigger_dag("dies")
    local_airflow.wait_for_task("dies", run_id, "linger", "running")
    pids = local_airflow.worker_pids("dies", run_id, "linger")
    os.kill(pids[0], signal.SIGKILL)

    assert local_airflow.wait_for_run("dies", run_id) == "success"
    assert local_airflow.xcom("dies", run_id, "linger") == 2
    assert local_airflow.worker_pids("dies", run_id, "linger") == []

    local_airflow.clear("dies", run_id, ["linger"])
    assert local_airflow.wait_for_run("dies", run_id) == "success"
    assert local_airflow.xcom("dies", run_id, "linger") == 3


def test_unknown_dag_raises_an_error(local_airflow: LocalAirflow) -> None:
    with pytest.raises(RuntimeError, match="no DAG nowhere"):
        local_airflow.trigger_dag("nowhere", timeout=1)


def test_a_run_that_a_locked_database_refused_is_started_once_more(tmp_path: Path) -> None:
    asked: list[bytes] = []

    class BusyAirflow(BaseHTTPRequestHandler):
        """Answers what Airflow does if SQLite is locked just when it could say that it is done."""

        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(500 if len(asked) == 1 else 409)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Be silent."""

    airflow = LocalAirflow([], home=tmp_path)
    with HTTPServer(("127.0.0.1", airflow.port), BusyAirflow) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            run_id = airflow.trigger_dag("nightly")
        finally:
            server.shutdown()
    assert [json.loads(body)["dag_run_id"] for body in asked] == [run_id, run_id]


def test_webhooks_of_roughys_start_a_dag(local_airflow: LocalAirflow) -> None:
    """The emulator signs and sends them; the API server's plugin takes them, by a connection of Airflow's own."""
    with Emulator(progression="manual") as roughy:
        fields = roughy.airflow_connection
        extra = {**fields["extra"], "webhook_secret": roughy.webhook_secret}
        body = {**fields, "connection_id": "roughy_default", "extra": json.dumps(extra)}
        local_airflow.request("POST", "/connections", json=body)
        settings = Settings(api_key=fields["password"], base_url=fields["host"])
        with Client(settings) as client:
            client.run(create_webhook_endpoint(f"{local_airflow.url}/roughy/webhooks", ["asset.ready"]))

        first, *others = (roughy.seed_asset(state="processing") for _ in range(10))
        ready_at = datetime.now(UTC)
        roughy.settle(first)
        wait_until(lambda: runs_of("reacts", local_airflow))
        (run,) = runs_of("reacts", local_airflow)
        delay = datetime.fromisoformat(run["queued_at"]) - ready_at
        print(f"\nFrom ready to a queued run: {delay.total_seconds():.1f} s")

        # A run takes the first of a burst, and Airflow leaves the rest behind.
        for asset_id in others:
            roughy.settle(asset_id)
        wait_until(lambda: len(told(local_airflow)) == 1 + len(others))
        assert Counter(told(local_airflow)) == Counter([first, *others])
        print(f"{len(runs_of('reacts', local_airflow))} runs were told of {1 + len(others)} assets")
        # The connection keeps its secret, here without a key to encrypt it with; nothing else does.
        shown = {place for place, text in local_airflow.everything_visible() if roughy.webhook_secret in text}
        assert shown == {"connection.extra"}


def told(running: LocalAirflow) -> list[str]:
    """Return the assets that runs were told of, as far as they have ended."""
    runs = [run for run in runs_of("reacts", running) if run["state"] == "success"]
    extras = [extra for run in runs for extra in running.xcom("reacts", run["dag_run_id"], "see")]
    return [asset_id for extra in extras for asset_id in extra["payload"].get("ready", [])]


def runs_of(dag_id: str, running: LocalAirflow) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = running.request("GET", f"/dags/{dag_id}/dagRuns").json()["dag_runs"]
    return found


def seen_in(where: str, running: LocalAirflow) -> str:
    return "\n".join(text for place, text in running.everything_visible() if place.startswith(where))


def alive(process: psutil.Process) -> bool:
    # The dead children of a killed component are for init to bury.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

"""A burst of assets starts exactly one run for each of them: by webhooks and by watchers."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import airflow
import pytest

from airflow_provider_roughy.api import create_webhook_endpoint
from airflow_provider_roughy.compat import QUEUES_EACH_EVENT
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.http.client import Client
from airflow_provider_roughy.settings import Settings
from harness.airflow import FINISHED, LocalAirflow
from tests.live.conftest import API_KEY, HERE
from tests.live.running import wait_until

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not airflow.__version__.startswith(("3.3.", "3.4.")), reason="runs on Airflow 3.3 and 3.4 only"),
]

#: Assets of the burst.
COUNT = 30
#: The DAGs, and how many runs there are for so many events.
DAG_IDS = ["told", "watching", *(["told_batched", "watching_batched"] if QUEUES_EACH_EVENT else [])]
#: Seconds after which a run for nothing would have been started.
QUIET = 15


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    secret = "whsec_" + base64.b64encode(b"needle of the bursts 5d10").decode()
    with Emulator(progression="manual", api_key=API_KEY, webhook_secret=secret) as emulator:
        yield emulator


@pytest.fixture
def done(tmp_path: Path) -> Path:
    for dag_id in DAG_IDS:
        (tmp_path / "done" / dag_id).mkdir(parents=True)
    # A ledger's parent folder has to exist.
    (tmp_path / "ledgers").mkdir()
    return tmp_path / "done"


@pytest.fixture
def local_airflow(roughy: Emulator, done: Path, tmp_path: Path) -> Iterator[LocalAirflow]:
    with LocalAirflow(
        [HERE / "bursts"],
        connections={"roughy_default": roughy.airflow_connection},
        environment={"BURST_LEDGERS": str(tmp_path / "ledgers"), "BURST_DONE": str(done)},
    ) as running:
        yield running


def test_a_burst_is_taken_once_and_starts_no_run_for_nothing(
    local_airflow: LocalAirflow, roughy: Emulator, done: Path, tmp_path: Path
) -> None:
    fields = roughy.airflow_connection
    client = Client(Settings(api_key=fields["password"], base_url=fields["host"]))
    client.run(create_webhook_endpoint(f"{local_airflow.url}/roughy/webhooks", ["asset.ready"]))
    client.close()
    watchers = [dag_id for dag_id in DAG_IDS if dag_id.startswith("watching")]
    wait_until(lambda: len(list((tmp_path / "ledgers").glob("*/note-*.json"))) >= len(watchers))
    wait_until(lambda: {each["dag_id"] for each in local_airflow.request("GET", "/dags").json()["dags"]} >= {*DAG_IDS})

    ids = [roughy.seed_asset("processing", content=b"media") for _ in range(COUNT)]
    for number, id in enumerate(ids):
        roughy.set_state(id, "ready")
        # In small bursts, some of which meet the scheduler at work.
        time.sleep(1.5 if number % 7 == 6 else 0.05)

    def taken(dag_id: str) -> dict[str, list[str]]:
        return {path.name: path.read_text().split() for path in (done / dag_id).iterdir()}

    def is_over() -> bool:
        states = local_airflow.request("GET", "/dags/~/dagRuns", params={"limit": 200}).json()["dag_runs"]
        everything = all(sum(map(len, taken(dag_id).values())) >= COUNT for dag_id in DAG_IDS)
        return everything and all(run["state"] in FINISHED for run in states)

    wait_until(is_over)
    time.sleep(QUIET)
    wait_until(is_over)
    for dag_id in DAG_IDS:
        runs = taken(dag_id)
        print(f"{dag_id}: {len(runs)} runs for {COUNT} assets: {sorted(map(len, runs.values()), reverse=True)}")
        assert sorted(id for each in runs.values() for id in each) == sorted(ids), dag_id
        assert all(runs.values()), f"{dag_id}: a run for nothing: {runs}"
        if dag_id == "told" and QUEUES_EACH_EVENT:
            assert len(runs) == COUNT

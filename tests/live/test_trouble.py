"""Temporary errors during waits and uploads neither end them nor use a try."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_roughy.emulator import Emulator, Fault
from harness import media
from harness.airflow import LocalAirflow
from tests.live import LIVE
from tests.live.link import HoldingLink, Stop
from tests.live.running import Run, connect, wait_until
from tests.live.secrets_backend import Secret
from tests.live.test_while_waiting import assert_no_retry

pytestmark = LIVE

Start = Callable[..., Run]

#: What stands in for Roughy's own answer: a page, and no envelope of an error.
PAGE: dict[str, Any] = {
    "headers": {"Content-Type": "text/html"},
    "body": "<html><body><h1>Sorry, you have been blocked</h1></body></html>",
}


@pytest.fixture
def server() -> Iterator[Emulator]:
    """A Roughy of this test's own, where nothing settles by itself."""
    with Emulator(progression="manual", api_key="sk_trouble") as emulator:
        yield emulator


def test_wait_starts_although_the_secrets_backend_is_down(
    start: Start, server: Emulator, local_airflow: LocalAirflow, secrets_folder: Path
) -> None:
    asset_id = server.seed_asset("processing")
    with HoldingLink(httpx.URL(server.url).port or 0) as link:
        fields = {**server.airflow_connection, "host": f"http://127.0.0.1:{link.port}"}
        secret = Secret(secrets_folder, "roughy_secret", fields)
        # Between the first look, on a worker, and the trigger, which reads the connection again.
        link.stop_at(Stop("GET", "/v1/assets/*", "reply"))
        run = start("awaits", asset_id=asset_id, conn_id=secret.conn_id)
        link.wait_until_stopped()
        secret.lose()
        link.go_on()
        wait_until(lambda: "no connection" in "".join(run.trigger_logs("wait")))
        assert run.task("wait")["state"] == "deferred"

        secret.find()
        run.wait_until_watched("wait", "processing")
        server.set_state(asset_id, "ready")
        assert run.end() == "success"
    assert run.xcom("wait")["state"] == "ready"
    assert_no_retry(run)


def test_the_list_may_be_down_as_long_as_it_likes(start: Start, server: Emulator, local_airflow: LocalAirflow) -> None:
    conn_id = connect(local_airflow, server)
    assets = [server.seed_asset("processing") for _ in range(6)]
    server.inject(Fault(method="GET", path="/v1/assets", status=503, headers={"Retry-After": "600"}, times=None))
    run = start("many_wait", waits=[{"asset_id": asset_id, "roughy_conn_id": conn_id} for asset_id in assets])
    for number in range(len(assets)):
        local_airflow.wait_for_task(run.dag_id, run.run_id, "wait", "deferred", map_index=number)
    # With so many waiters a round would rather read the list.
    wait_until(lambda: any(request.path == "/v1/assets" for request in server.requests))

    for asset_id in assets:
        server.set_state(asset_id, "ready")
    assert run.end() == "success"
    for number, asset_id in enumerate(assets):
        assert local_airflow.xcom(run.dag_id, run.run_id, "wait", number)["id"] == asset_id
        assert local_airflow.task_instance(run.dag_id, run.run_id, "wait", number)["try_number"] == 1
    assert {request.status for request in server.requests if request.path == "/v1/assets"} == {503}


def test_a_page_of_a_gateway_is_not_taken_for_roughys_word(
    start: Start, server: Emulator, local_airflow: LocalAirflow, tmp_path: Path
) -> None:
    conn_id = connect(local_airflow, server)
    asset_id = server.seed_asset("processing")
    waits = start("awaits", asset_id=asset_id, conn_id=conn_id)
    waits.wait_until_watched("wait", "processing")
    path = f"/v1/assets/{asset_id}"
    refusals = [401, 403, 404]
    server.clear_requests()
    for nth, status in enumerate(refusals, 1):
        server.inject(Fault(method="GET", path=path, nth=nth, status=status, times=1, **PAGE))
    wait_until(lambda: (path, 200) in [(request.path, request.status) for request in server.requests])
    assert waits.task("wait")["state"] == "deferred"
    server.set_state(asset_id, "ready")
    assert waits.end() == "success"
    assert_no_retry(waits)
    assert {*refusals, 200} == {request.status for request in server.requests if request.path == path}

    server.clear_requests()
    source = media.make_video(tmp_path / "clip.mp4")
    for method, status in (("PATCH", 403), ("GET", 401)):
        server.inject(Fault(method=method, path="*", status=status, times=1, **PAGE))
    uploads = start("uploads_and_awaits", source=source, conn_id=conn_id)
    uploads.wait_until_watched("wait", "processing")
    [uploaded] = [asset["id"] for asset in server.assets if asset["id"] != asset_id]
    server.set_state(uploaded, "ready")
    assert uploads.end() == "success"
    assert_no_retry(uploads)
    assert server.asset(uploaded)["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert {("PATCH", 403), ("GET", 401)} <= {(request.method, request.status) for request in server.requests}
    assert "DELETE" not in {request.method for request in server.requests}


def test_who_comes_after_a_change_of_host_is_asked_for_there(
    start: Start, server: Emulator, local_airflow: LocalAirflow
) -> None:
    conn_id = connect(local_airflow, server)
    old_id = server.seed_asset("processing")
    old = start("awaits", asset_id=old_id, conn_id=conn_id)
    old.wait_until_watched("wait", "processing")

    with Emulator(progression="manual", api_key=server.api_key) as moved:
        connection = moved.airflow_connection
        fields = {name: connection[name] for name in ("conn_type", "host")}
        body = {**fields, "connection_id": conn_id, "extra": json.dumps(connection["extra"])}
        mask = {"update_mask": ["host", "extra"]}
        local_airflow.request("PATCH", f"/connections/{conn_id}", params=mask, json=body)
        new_id = moved.seed_asset("processing")
        new = start("awaits", asset_id=new_id, conn_id=conn_id)
        new.wait_until_watched("wait", "processing")
        moved.set_state(new_id, "ready")
        assert new.end() == "success"
        assert_no_retry(new)

        # Who was there before is still asked for where the asset is.
        server.set_state(old_id, "ready")
        assert old.end() == "success"
        assert_no_retry(old)
    assert not [request for request in server.requests if new_id in request.path]
    assert not [request for request in moved.requests if old_id in request.path]

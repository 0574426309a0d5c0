"""Events during a wait in the triggerer: kills, outages, changes of the connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from airflow_provider_roughy.emulator import Emulator
from harness import media
from harness.airflow import LocalAirflow
from tests.live import LIVE
from tests.live.running import PARALLELISM, Run, connect, wait_until

pytestmark = LIVE

Start = Callable[..., Run]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Emulator]:
    """A Roughy of this test's own, which may go away and come back; nothing settles by itself."""
    with Emulator(progression="manual", api_key="sk_first", data_dir=tmp_path / "roughy") as emulator:
        yield emulator


@pytest.fixture
def deferring_airflow(server: Emulator) -> Iterator[LocalAirflow]:
    """An Airflow where everything that can be deferred is."""
    with LocalAirflow(
        [Path(__file__).parent / "dags"],
        connections={"roughy_default": server.airflow_connection},
        settings={
            "OPERATORS__DEFAULT_DEFERRABLE": "True",
            "SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
            "SCHEDULER__USE_JOB_SCHEDULE": "False",
            "CORE__PARALLELISM": str(PARALLELISM),
        },
    ) as running:
        yield running


def test_wait_survives_an_outage_but_not_past_the_deadline(
    start: Start, server: Emulator, local_airflow: LocalAirflow
) -> None:
    conn_id = connect(local_airflow, server)
    patient, hasty = server.seed_asset("processing"), server.seed_asset("processing")
    waits = start("awaits", asset_id=patient, conn_id=conn_id)
    # Before the clock of the other runs: to look up its first connection takes a triggerer seconds.
    waits.wait_until_watched("wait", "processing")
    gives_up = start("awaits_briefly", asset_id=hasty, conn_id=conn_id)
    gives_up.wait_until_watched("wait", "processing")
    server.close()

    assert gives_up.end() == "failed"
    log = gives_up.log("wait")
    assert "RoughyTimeoutError" in log
    assert f"Asset {hasty} was not done in time: it was still processing; last poll: GET /v1/assets" in log
    assert_no_retry(gives_up)

    assert waits.task("wait")["state"] == "deferred"
    server.start()
    server.set_state(patient, "ready")
    assert waits.end() == "success"
    assert waits.xcom("wait")["state"] == "ready"
    assert_no_retry(waits)
    assert seconds_taken(waits) > 15, "execution_timeout was not put to the test"


def test_a_new_key_is_picked_up_and_a_revoked_one_ends_the_wait(
    start: Start, server: Emulator, local_airflow: LocalAirflow, tmp_path: Path
) -> None:
    asset_id = server.seed_asset("processing")
    edited, forgotten = connect(local_airflow, server), connect(local_airflow, server)
    runs = {conn_id: start("awaits", asset_id=asset_id, conn_id=conn_id) for conn_id in (edited, forgotten)}
    for run in runs.values():
        run.wait_until_watched("wait", "processing")
    body = {"connection_id": edited, "conn_type": "roughy", "password": "sk_second"}
    local_airflow.request("PATCH", f"/connections/{edited}", params={"update_mask": "password"}, json=body)
    server.close()

    port = httpx.URL(server.url).port or 0
    with Emulator(progression="manual", api_key="sk_second", data_dir=tmp_path / "roughy", port=port) as renewed:
        assert runs[forgotten].end() == "failed"
        log = runs[forgotten].log("wait")
        assert "RoughyAuthenticationError" in log
        assert "401 unauthenticated" in log
        assert "Check the API key" in log
        assert_no_retry(runs[forgotten])

        wait_until(lambda: ("Bearer sk_second", 200) in answers(renewed))
        assert ("Bearer sk_first", 401) in answers(renewed)
        renewed.set_state(asset_id, "ready")
        assert runs[edited].end() == "success"
        assert runs[edited].xcom("wait")["state"] == "ready"
        assert_no_retry(runs[edited])


def test_a_cleared_wait_begins_anew_and_leaves_nothing_behind(
    start: Start, server: Emulator, local_airflow: LocalAirflow
) -> None:
    conn_id = connect(local_airflow, server)
    # One asset a try, so that the two triggers can be told apart.
    first, second = server.seed_asset("processing"), server.seed_asset("processing")
    run = start("awaits_another_each_try", asset_ids=[first, second], conn_id=conn_id)
    run.wait_until_watched("wait", "processing")
    assert count_triggers(local_airflow, first) == 1

    local_airflow.clear(run.dag_id, run.run_id)
    wait_until(lambda: run.task("wait")["try_number"] == 2)
    run.wait_until_watched("wait", "processing", triggerers=2)
    wait_until(lambda: count_triggers(local_airflow, first) == 0)
    assert count_triggers(local_airflow, second) == 1
    wait_until(lambda: looks_at_nothing_but(second, server))

    server.set_state(first, "failed")
    server.set_state(second, "ready")
    assert run.end() == "success"
    assert run.xcom("wait")["id"] == second
    assert run.task("wait")["try_number"] == 2


def test_a_marked_task_is_waited_for_no_more_and_keeps_its_mark(
    start: Start, server: Emulator, local_airflow: LocalAirflow, tmp_path: Path
) -> None:
    conn_id = connect(local_airflow, server)
    marks = {
        start("awaits", asset_id=server.seed_asset("processing"), conn_id=conn_id): state
        for state in ("success", "failed")
    }
    source = media.make_audio(tmp_path / "speech.mp3", seconds=1)
    uploads = start("uploads_and_awaits", source=source, conn_id=conn_id)
    marks[uploads] = "failed"
    other_id = server.seed_asset("processing")
    other = start("awaits", asset_id=other_id, conn_id=conn_id)
    for run in (*marks, other):
        run.wait_until_watched("wait", "processing")
    marked = {asset["id"] for asset in server.assets} - {other_id}
    assert all(count_triggers(local_airflow, asset_id) == 1 for asset_id in marked)
    [uploaded] = [asset["id"] for asset in server.assets if asset["stored_bytes"]]

    for run, state in marks.items():
        path = f"/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances/wait"
        local_airflow.request("PATCH", path, json={"new_state": state})
    wait_until(lambda: not any(count_triggers(local_airflow, asset_id) for asset_id in marked))
    assert count_triggers(local_airflow, other_id) == 1
    wait_until(lambda: looks_at_nothing_but(other_id, server))

    for asset in server.assets:
        server.set_state(asset["id"], "ready")
    assert other.end() == "success"
    for run, state in marks.items():
        assert run.end() == state
        assert run.task("wait")["state"] == state
        assert_no_retry(run)

    # Nothing was discarded, so that the task can be cleared and goes on with what is there.
    assert server.asset(uploaded)["state"] == "ready"
    server.clear_requests()
    local_airflow.clear(uploads.dag_id, uploads.run_id)
    wait_until(lambda: uploads.task("wait")["try_number"] == 2)
    assert uploads.end() == "success"
    assert uploads.xcom("wait") == uploaded
    assert {request.method for request in server.requests} == {"GET"}


@pytest.mark.timeout(600)  # An Airflow of its own, and the minute that Airflow leaves a triggerer past the deadline.
def test_wait_without_a_triggerer_times_out(
    deferring_airflow: LocalAirflow, server: Emulator, recordings: dict[str, Path]
) -> None:
    def start(dag_id: str, asset_id: str = "") -> Run:
        conf = {"asset_id": asset_id, "conn_id": "roughy_default", "source": str(recordings["audio"])}
        return Run(deferring_airflow, dag_id, deferring_airflow.trigger_dag(dag_id, conf=conf))

    never, soon, meanwhile = (server.seed_asset("processing") for _ in range(3))
    too_late = start("awaits_by_default_at_leisure", never)
    in_time = start("awaits_by_default_at_leisure", meanwhile)
    for run in (too_late, in_time):
        run.wait_until_watched("wait", "processing")
    deferring_airflow.kill("triggerer")

    unwatched = start("awaits_by_default", never)
    unwatched_upload = start("uploads_and_awaits_by_default")
    on_a_worker = start("awaits_on_a_worker", soon)
    deferring_airflow.wait_for_task(unwatched.dag_id, unwatched.run_id, "wait", "deferred")
    server.set_state(soon, "ready")
    assert on_a_worker.end() == "success"
    for mode in ("poke", "reschedule"):
        assert on_a_worker.xcom(mode)["state"] == "ready"

    for run in (unwatched, unwatched_upload):
        assert run.end() == "failed"
        assert "is a triggerer running?" in run.log("wait")
        assert_no_retry(run)
    # Its timeout, two looks and a minute.
    assert seconds_taken(unwatched) > 5 + 2 + 60
    assert not unwatched.trigger_logs("wait")

    # By now the deadline of these has passed, without a triggerer. The next one takes a last look.
    server.set_state(meanwhile, "ready")
    restarted = datetime.now(UTC)
    for run in (too_late, in_time):
        task = run.task("wait")
        assert task["state"] == "deferred"
        assert (restarted - datetime.fromisoformat(task["start_date"])).total_seconds() > 60
    deferring_airflow.restart("triggerer")
    assert in_time.end() == "success"
    assert in_time.xcom("wait")["state"] == "ready"
    assert too_late.end() == "failed"
    ended = datetime.fromisoformat(too_late.task("wait")["end_date"])
    assert (ended - restarted).total_seconds() < 60
    assert f"Asset {never} was not done in time: it was still processing" in too_late.log("wait")
    for run in (too_late, in_time):
        assert_no_retry(run)


def count_triggers(airflow: LocalAirflow, asset_id: str) -> int:
    """Count the triggers in Airflow's database that wait for an asset."""
    return sum(asset_id in text for place, text in airflow.everything_visible() if place == "trigger.kwargs")


def looks_at_nothing_but(asset_id: str, server: Emulator) -> bool:
    """Return whether this asset was looked at five times in a row; in that time any other would have had its turn."""
    return [request.path for request in server.requests[-5:]] == 5 * [f"/v1/assets/{asset_id}"]


def answers(server: Emulator) -> set[tuple[str, int | None]]:
    """Return the pairs of key and status so far."""
    return {(request.headers["authorization"], request.status) for request in server.requests}


def assert_no_retry(run: Run) -> None:
    task = run.task("wait")
    assert (task["try_number"], task["max_tries"]) == (1, 3)


def seconds_taken(run: Run) -> float:
    task = run.task("wait")
    return (datetime.fromisoformat(task["end_date"]) - datetime.fromisoformat(task["start_date"])).total_seconds()

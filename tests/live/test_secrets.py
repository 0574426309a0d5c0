"""No secret is visible in Airflow's logs and database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

from airflow_provider_roughy.emulator import Emulator
from harness import media
from harness.airflow import LocalAirflow
from tests.live import LIVE
from tests.live.running import Run, wait_until

pytestmark = LIVE


def test_neither_the_key_nor_a_signed_url_is_written_anywhere(
    start: Callable[..., Run], roughy: Emulator, local_airflow: LocalAirflow, tmp_path: Path
) -> None:
    folder, ledger = tmp_path / "recordings", tmp_path / "ledger"
    folder.mkdir()
    source = media.make_audio(folder / "speech.mp3", seconds=1)
    earlier = {asset["id"] for asset in roughy.assets}
    waits, uploads = start("waits", source=source), start("uploads_and_waits", source=source)
    ingests = start("ingests_and_waits", folder=folder, ledger=ledger)
    for run, task_id in ((waits, "wait"), (uploads, "upload"), (ingests, "ingest")):
        run.wait_until_watched(task_id, "processing")
    asset_ids = {asset["id"] for asset in roughy.assets} - earlier
    assert len(asset_ids) == 3

    # Afterwards the trigger's row is gone, so it is looked at now.
    for asset_id in asset_ids:
        assert {"trigger.kwargs"} <= places(asset_id, local_airflow)
    assert not leaks(roughy, local_airflow)

    roughy.settle()
    assert (waits.end(), uploads.end(), ingests.end()) == ("success", "success", "success")
    for asset_id in asset_ids:
        assert {"xcom.value", "log file"} <= places(asset_id, local_airflow)
    # Whatever ran before is looked at as well.
    assert not leaks(roughy, local_airflow)
    kept = [path.read_text() for path in ledger.rglob("*") if path.is_file()]
    assert any(asset_id in text for asset_id in asset_ids for text in kept)
    assert not [text for text in kept for secret in secrets(roughy) if secret in text]


def test_download_link_is_not_visible_in_airflow(
    start: Callable[..., Run], roughy: Emulator, local_airflow: LocalAirflow, tmp_path: Path
) -> None:
    source = tmp_path / "recordings"
    source.mkdir()
    media.make_talk(source / "talk.mp4", loud=[(0.5, 2)], seconds=3)
    renders_before = {render["id"] for render in roughy.renders}
    run = start("roughy_rough_cut", source=source, target=tmp_path / "cuts", ledger=tmp_path / "ledger")
    here = run.dag_id, run.run_id
    local_airflow.wait_for_task(*here, "ingest", "deferred")
    roughy.settle()
    local_airflow.wait_for_task(*here, "produce", "deferred")
    roughy.settle()
    wait_until(lambda: len(roughy.renders) > len(renders_before))
    local_airflow.wait_for_task(*here, "produce", "deferred")
    (render_id,) = {render["id"] for render in roughy.renders} - renders_before
    assert {"trigger.kwargs"} <= places(render_id, local_airflow)
    roughy.settle()
    assert run.end() == "success"
    assert {"xcom.value", "log file"} <= places(render_id, local_airflow)
    assert any("X-Amz-Signature" in request.query for request in roughy.requests)
    assert not leaks(roughy, local_airflow)


def leaks(roughy: Emulator, airflow: LocalAirflow) -> dict[str, set[str]]:
    """Return which secrets are found, and where."""
    visible = list(airflow.everything_visible())
    found = {secret: {where for where, text in visible if secret in text} for secret in secrets(roughy)}
    return {secret: where for secret, where in found.items() if where}


def secrets(roughy: Emulator) -> set[str]:
    upload_ids = {r.path.rpartition("/")[2] for r in roughy.requests if r.path.startswith("/v1/uploads/")}
    assert upload_ids
    signatures = {value for r in roughy.requests for value in parse_qs(r.query).get("X-Amz-Signature", ())}
    return {roughy.api_key, "X-Amz-Signature", *upload_ids, *signatures}


def places(needle: str, airflow: LocalAirflow) -> set[str]:
    """Return where something is found."""
    found = {where for where, text in airflow.everything_visible() if needle in text}
    return {"log file" if where.startswith("logs/") else where for where in found}

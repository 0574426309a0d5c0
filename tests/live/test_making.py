"""From recordings to rough cuts on a real Airflow; and renders are cancelled if no task waits for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from airflow_provider_roughy.emulator import Emulator
from harness import media
from harness.airflow import LocalAirflow
from tests.live import LIVE
from tests.live.running import Run, wait_until

otio = pytest.importorskip("opentimelineio", reason="the group exports is installed for the newest Airflow only")
pysubs2 = pytest.importorskip("pysubs2", reason="the group exports is installed for the newest Airflow only")

pytestmark = LIVE

#: When something is said in each recording, in seconds of six.
TALKS: dict[str, list[tuple[float, float]]] = {"monday.mp4": [(1, 2), (3, 4.5)], "tuesday.mp4": [(0.5, 3.2)]}


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """A folder of recordings, larger than what is rendered."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name, loud in TALKS.items():
        media.make_talk(folder / name, loud=loud, seconds=6, size=(1600, 900))
    return folder


def test_a_folder_of_recordings_becomes_one_of_rough_cuts(
    start: Callable[..., Run], roughy: Emulator, local_airflow: LocalAirflow, talks: Path, tmp_path: Path
) -> None:
    cuts_before, renders_before = ({each["id"] for each in made} for made in (roughy.cuts, roughy.renders))
    target = tmp_path / "rough cuts"
    roughy.clear_requests()
    run = start("roughy_rough_cut", source=talks, target=target, ledger=tmp_path / "ledger", resolution="720p")
    here = run.dag_id, run.run_id
    local_airflow.wait_for_task(*here, "ingest", "deferred")
    roughy.settle()
    wait_until(lambda: len({cut["id"] for cut in roughy.cuts} - cuts_before) == len(TALKS))
    local_airflow.wait_for_task(*here, "produce", "deferred")
    roughy.settle()
    wait_until(lambda: len({render["id"] for render in roughy.renders} - renders_before) == len(TALKS))
    local_airflow.wait_for_task(*here, "produce", "deferred")
    roughy.settle()
    assert run.end() == "success"

    cuts = {cut["asset_id"]: cut for cut in roughy.cuts if cut["id"] not in cuts_before}
    assert len(cuts) == len(TALKS)
    for asset_id in run.xcom("ingest"):
        cut, name = cuts[asset_id], Path(local_airflow.xcom(*here, "ingest", key="sources")[asset_id]).name
        folder = target / name
        outputs = local_airflow.xcom(*here, "produce", key="outputs")[asset_id]
        assert outputs["render.mp4"] == str(folder / "render.mp4")
        assert {path.name for path in folder.iterdir()} == set(outputs)
        kept = sum(end - begin for begin, end in cut["segments"])
        assert kept == pytest.approx(sum(end - begin for begin, end in TALKS[name]), abs=1.0)

        with av.open(str(folder / "render.mp4")) as film:
            picture, sound = film.streams.video[0], film.streams.audio[0]
            assert (picture.width, picture.height) == (1280, 720)
            frames = sum(1 for _ in film.decode(picture))
        assert frames == round(kept * 25)
        assert seconds(picture) == pytest.approx(kept, abs=0.05)
        assert seconds(sound) == pytest.approx(seconds(picture), abs=0.04)

        clips = video_clips(otio.adapters.read_from_file(str(folder / "timeline.fcpxml")))
        assert sum(clip.duration().to_seconds() for clip in clips) == pytest.approx(kept, abs=0.05)
        assert len(clips) == len(cut["segments"])

        captions = pysubs2.load(str(folder / "captions.srt"))
        assert len(captions) >= 1
        assert 0 <= captions[0].start <= captions[-1].end <= kept * 1000 + 1

    # The key stays with the API, and nobody asks without need.
    downloads = [request for request in roughy.requests if "X-Amz-Signature" in request.query]
    assert len(downloads) == len(TALKS)
    made = [request for request in roughy.requests if request.method == "POST" and request.path == "/v1/renders"]
    assert len(made) == len(TALKS)


def video_clips(read: Any) -> list[Any]:
    """Return the clips of the first picture track of a file, whatever it wraps its timeline in."""
    (timeline,) = [read] if isinstance(read, otio.schema.Timeline) else read
    return list(timeline.video_tracks()[0].find_clips())


def seconds(stream: av.stream.Stream) -> float:
    assert stream.duration is not None
    assert stream.time_base is not None
    return float(stream.duration * stream.time_base)


@pytest.mark.parametrize("new_state", ["failed", "success"])
def test_render_is_cancelled_on_kill_when_its_waiting_task_is_marked(
    start: Callable[..., Run], roughy: Emulator, local_airflow: LocalAirflow, new_state: str
) -> None:
    asset_id = roughy.seed_asset()
    run = start("renders", asset_id=asset_id)
    for task_id in ("cancelled", "kept"):
        run.wait_until_watched(task_id, "pending")
    renders = {r["output"]["format"]: r["id"] for r in roughy.renders if r["asset_id"] == asset_id}
    for task_id in ("cancelled", "kept"):
        path = f"/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances/{task_id}"
        local_airflow.request("PATCH", path, json={"new_state": new_state})
    wait_until(lambda: "Cancelled render" in run.trigger_logs("cancelled")[-1])
    assert roughy.render(renders["mp3"])["state"] != "pending"
    assert run.end() == new_state
    assert roughy.render(renders["m4a"])["state"] == "pending"


def test_render_continues_when_its_waiting_task_is_cleared(
    start: Callable[..., Run], roughy: Emulator, local_airflow: LocalAirflow
) -> None:
    asset_id = roughy.seed_asset()
    run = start("renders", asset_id=asset_id)
    for task_id in ("cancelled", "kept"):
        run.wait_until_watched(task_id, "pending")
    local_airflow.clear(run.dag_id, run.run_id, ["cancelled"])
    wait_until(lambda: len(run.trigger_logs("cancelled")) == 2)
    renders = [render["id"] for render in roughy.renders if render["asset_id"] == asset_id]
    assert len(renders) == 2
    for render_id in renders:
        roughy.set_state(render_id, "completed")
    assert run.end() == "success"
    assert run.xcom("cancelled") in renders

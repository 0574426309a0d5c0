"""The outputs of many recordings in one task, run as Airflow runs it, with real media."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import av
import pytest

from airflow_provider_roughy.compat import DAG, AssetAlias
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyInterruptedError,
    RoughyProduceError,
    RoughyProduceFailedError,
    RoughyServerError,
    RoughyUnusableSourceError,
)
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.observability.report import read_report
from airflow_provider_roughy.operators import RoughyIngestOperator, RoughyProduceOperator
from airflow_provider_roughy.transfer import target_local
from airflow_provider_roughy.triggers import RoughyProduceTrigger
from tests.producing import Production
from tests.running import TaskInstance, whenever
from tests.zygote import Zygote

NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"
WAYS = pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "triggerer"])

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def production(roughy: Emulator, tmp_path: Path, recordings: dict[str, Path]) -> Production:
    return Production(roughy, tmp_path, recordings)


def reason(production: Production, status: str, of: str) -> str:
    return str(production.xcoms[status][of])


# ---- What is made


@WAYS
def test_audio_and_video_of_one_folder_get_what_applies_to_each(
    production: Production, log: Callable[[], str], deferrable: bool
) -> None:
    otio = pytest.importorskip("opentimelineio", reason="the group exports is installed for the newest Airflow only")
    pysubs2 = pytest.importorskip("pysubs2", reason="the group exports is installed for the newest Airflow only")
    production.roughy.progression = "polls=1"
    audio, video = production.add("/in/talk.mp3"), production.add("/in/cam1/talk.mp4")
    ended = production.run(deferrable=deferrable, original=True)
    assert (ended.state, ended.result) == ("success", [audio, video]), ended.error
    assert ended.waited == ("triggerer" if deferrable else "")
    assert production.xcoms["outputs"] == {
        audio: {
            name: f"{production.out}/talk.mp3/{name}"
            for name in ("captions.srt", "captions.vtt", "render.m4a", "original.mp3")
        },
        video: {
            name: f"{production.out}/cam1/talk.mp4/{name}"
            for name in ("captions.srt", "captions.vtt", "timeline.otio", "render.mp4", "original.mp4")
        },
    }
    assert set(production.files()) == {
        str(Path(uri).relative_to(production.out))
        for files in production.xcoms["outputs"].values()
        for uri in files.values()
    }
    assert list(production.xcoms["left_out"]) == [audio]
    assert "timeline.otio left out: audio has no frame rate; set `frame_rate`" in log()
    with av.open(str(production.out / "cam1/talk.mp4/render.mp4")) as media:
        assert [stream.type for stream in media.streams] == ["video"]
    with av.open(str(production.out / "talk.mp3/render.m4a")) as media:
        assert [stream.type for stream in media.streams] == ["audio"]
    timeline = otio.adapters.read_from_file(str(production.out / "cam1/talk.mp4/timeline.otio"))
    assert timeline.duration().to_seconds() > 0
    for name in ("captions.srt", "captions.vtt"):
        assert len(pysubs2.load(str(production.out / "talk.mp3" / name))) >= 1
    (cut,) = (cut for cut in production.roughy.cuts if cut["asset_id"] == video)
    assert [r["cut_id"] for r in production.roughy.renders if r["asset_id"] == video] == [cut["id"]]


def test_frame_rate_gives_audio_a_timeline_and_leaves_videos_their_own(production: Production) -> None:
    otio = pytest.importorskip("opentimelineio", reason="the group exports is installed for the newest Airflow only")
    production.add("/in/talk.mp3"), production.add("/in/talk.mp4")
    ended = production.run(frame_rate=50, render=None, captions=None)
    assert ended.state == "success", ended.error
    rates = {
        name: otio.adapters.read_from_file(str(production.out / name / "timeline.otio")).duration().rate
        for name in ("talk.mp3", "talk.mp4")
    }
    assert rates == {"talk.mp3": 50, "talk.mp4": 25}


def test_picture_of_audio_is_left_out_and_video_of_unnamed_type_too(production: Production) -> None:
    audio, video = production.add("/in/talk.mp3"), production.add("/in/talk.mp4")
    assert production.run(render={"format": "mp4"}, captions=None, timeline=None).result == [video]
    assert "audio has no picture" in production.xcoms["left_out"][audio]["render.mp4"]
    production.run(render={"audio": {"format": "mp3"}}, captions=None, timeline=None)
    assert production.xcoms["left_out"] == {video: {"render": "`render` names no output for video"}}
    assert set(production.files()) == {"talk.mp4/render.mp4", "talk.mp3/render.mp3"}


def test_render_of_the_whole_asset_needs_no_cut(production: Production) -> None:
    production.add("/in/talk.mp4")
    production.run(render={"format": "mp4"}, render_of="asset", captions=None, timeline=None)
    assert [render["cut_id"] for render in production.roughy.renders] == [None]
    assert production.roughy.cuts == []
    assert set(production.files()) == {"talk.mp4/render.mp4"}


def test_script_is_one_for_all_or_one_by_recording(production: Production) -> None:
    ids = [production.add(f"/in/{name}.mp4") for name in "abcd"]
    scripts = {ids[0]: "by id", "/in/b.mp4": "by source", "c.mp4": "by name"}
    production.run(script=scripts, timeline=None, render=None)
    of_asset = {cut["asset_id"]: cut["script"] for cut in production.roughy.cuts}
    assert [of_asset[id] for id in ids] == ["by id", "by source", "by name", None]
    assert production.run(script="for all", timeline=None, render=None).state == "success"
    assert [cut["script"] for cut in production.roughy.cuts][4:] == ["for all"] * 4


def test_recording_whose_cut_is_completed_goes_on_while_another_waits(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_roughy.operators.produce._GO_ON_AFTER", 0.1)
    roughy = production.roughy
    roughy.progression = "manual"
    first, second = production.add("/in/a.mp4"), production.add("/in/b.mp4")
    seen: list[set[str]] = []

    def next_step() -> None:
        seen.append(set(production.files()))
        of_asset = {cut["asset_id"]: cut for cut in roughy.cuts}
        if of_asset[first]["state"] != "completed":
            roughy.settle(of_asset[first]["id"])
        elif [render["state"] for render in roughy.renders] == ["pending"] or len(seen) == 2:
            roughy.settle(roughy.renders[0]["id"])
        else:
            roughy.settle()

    ended = production.run(deferrable=True, before_resuming=next_step)
    assert (ended.state, ended.result) == ("success", [first, second]), ended.error
    exports = {f"a.mp4/{name}" for name in ("captions.srt", "captions.vtt", "timeline.otio")}
    assert seen[:3] == [set(), exports, {*exports, "a.mp4/render.mp4"}]


# ---- What is found


@WAYS
def test_second_run_and_cleared_task_make_nothing(production: Production, deferrable: bool) -> None:
    for name in ("talk.mp3", "cam1/talk.mp4"):
        production.add(f"/in/{name}")
    first = production.run(deferrable=deferrable)
    written, times = production.files(), {path: path.stat().st_mtime_ns for path in production.out.rglob("*")}
    outputs = production.xcoms["outputs"]
    for again in (True, False):
        ended = production.run(deferrable=deferrable, again=again)
        assert (ended.state, ended.result, ended.waited) == ("success", first.result, "")
        assert set(production.asked()) <= {"GET v1/assets"}
        assert production.xcoms["outputs"] == outputs
    assert production.files() == written
    assert {path: path.stat().st_mtime_ns for path in production.out.rglob("*")} == times


def test_only_what_is_missing_or_changed_is_made(production: Production) -> None:
    production.add("/in/a.mp4"), production.add("/in/b.mp4")
    production.run()
    (production.out / "a.mp4" / "captions.srt").unlink()
    (production.out / "b.mp4" / "render.mp4").write_bytes(b"half of it")
    assert production.run().state == "success"
    assert {name: n for name, n in production.asked().items() if not name.startswith("GET v1/assets")} == {
        "POST v1/cuts": 2,
        "GET v1/cuts export": 1,
        "POST v1/renders": 1,
        "GET v1/renders": 1,
        "GET storage/renders": 1,
    }
    assert production.files()["b.mp4/render.mp4"] > 1000
    # Another script, and another output.
    assert production.run(script="short").state == "success"
    assert (len(production.roughy.cuts), len(production.roughy.renders)) == (4, 4)
    assert production.run(script="short", render={"video": {"format": "mp4", "audio_bitrate": 128}}).state == "success"
    assert (len(production.roughy.cuts), len(production.roughy.renders)) == (4, 6)


def test_without_a_ledger_nothing_is_made_twice_at_roughy(production: Production, log: Callable[[], str]) -> None:
    production.add("/in/a.mp4")
    for _ in range(2):
        assert production.run(ledger=None).state == "success"
    assert "No `ledger` is given" in log()
    assert (len(production.roughy.cuts), len(production.roughy.renders)) == (1, 1)


@pytest.mark.once
def test_killed_at_any_step_every_output_is_whole_and_made_once(
    roughy: Emulator, tmp_path: Path, recordings: dict[str, Path]
) -> None:
    """Each try dies before one of its steps; the last one finishes what they have left."""
    production = Production(roughy, tmp_path, recordings)
    warm = Production(roughy, tmp_path / "warm", recordings)
    warm.out.mkdir(parents=True)
    warm.add("/in/warm.mp4")
    roughy.progression = "polls=1"
    options = {"operator": "produce", "asset_ids": list(warm.sources), "sources": warm.sources, **warm.options}
    with Zygote(tmp_path, json.dumps(roughy.airflow_connection), **options) as zygote:
        for number in range(30):
            production.add(f"/in/{number % 3}/{number}.{'mp3' if number % 2 else 'mp4'}")
        before = len(roughy.cuts), len(roughy.renders)
        options = {"asset_ids": list(production.sources), "sources": production.sources, **production.options}
        died = 0
        for number, step in enumerate((3, 37, 90, 150, 260, 400, 555, None)):
            how = {"dies_at": step, "deferrable": bool(number % 2)}
            told = zygote.wait(zygote.start("night", operator="produce", **how, **options))
            died += told.state is None
        assert (told.state, died >= 6) == ("success", True), told
    assert (len(roughy.cuts) - before[0], len(roughy.renders) - before[1]) == (30, 30)
    whole = {render["asset_id"]: render["size_bytes"] for render in roughy.renders}
    of_all = ["captions.srt", "captions.vtt"]
    names = {"mp3": [*of_all, "render.m4a"], "mp4": [*of_all, "render.mp4", "timeline.otio"]}
    files = production.files()
    expected = {
        f"{source.removeprefix('/in/')}/{name}" for source in production.sources.values() for name in names[source[-3:]]
    }
    assert {name for name in files if not name.rpartition("/")[2].startswith(".roughy-")} == expected
    for asset_id, source in production.sources.items():
        render = next(name for name in files if name.startswith(f"{source.removeprefix('/in/')}/render."))
        assert files[render] == whole[asset_id]
    again = production.run()
    assert again.state == "success", again.error
    assert set(production.asked()) <= {"GET v1/assets"}


# ---- Names


def test_recordings_of_one_name_in_two_folders_get_two_places(production: Production) -> None:
    production.add("/in/cam1/talk.mp4"), production.add("/in/cam2/talk.mp4")
    production.run(timeline=None, render=None, captions="srt")
    assert set(production.files()) == {"cam1/talk.mp4/captions.srt", "cam2/talk.mp4/captions.srt"}


def test_names_that_collide_are_rejected_before_anything_is_made(production: Production) -> None:
    first, second = production.add("/in/cam1/talk.mp4"), production.add("/in/cam2/talk.mp4")
    third = production.add("/in/other.mp4")
    ended = production.run(target=f"{production.out}/{{source_stem}}/", timeline=None, render=None, captions="srt")
    assert (ended.state, type(ended.error)) == ("failed", RoughyProduceFailedError)
    assert [cut["asset_id"] for cut in production.roughy.cuts] == [third]
    assert set(production.files()) == {"other/captions.srt"}
    text = reason(production, "rejected", "/in/cam1/talk.mp4")
    assert f"that of /in/cam2/talk.mp4 have the same name, {production.out}/talk/captions.srt" in text
    assert "{source_dir}" in text
    assert production.xcoms["sources"].keys() == {first, second, third}


def test_outputs_of_one_recording_with_one_name_are_refused(production: Production) -> None:
    production.add("/in/talk.mp4")
    ended = production.run(target=f"{production.out}/{{source_stem}}.{{format}}", original=True, timeline=None)
    assert (ended.state, type(ended.error)) == ("failed", RoughyConfigurationError)
    assert "gives render.mp4 and original.mp4 of /in/talk.mp4 the same name" in str(ended.error)
    assert production.roughy.cuts == []


def test_name_that_an_earlier_run_gave_to_another_recording_is_rejected(production: Production) -> None:
    flat: dict[str, Any] = {
        "target": f"{production.out}/{{source_stem}}/",
        "timeline": None,
        "render": None,
        "captions": "srt",
    }
    production.add("/in/cam1/talk.mp4")
    production.run(**flat)
    production.sources.clear()
    production.add("/in/cam2/talk.mp4")
    ended = production.run(**flat)
    assert (ended.state, type(ended.error)) == ("failed", RoughyProduceFailedError)
    assert "which dag.task, run night 1 has written for /in/cam1/talk.mp4" in str(ended.error)
    assert len(production.roughy.cuts) == 1
    # A new version of the first one replaces its files.
    production.sources.clear()
    production.add("/in/cam1/talk.mp4")
    assert production.run(**flat).state == "success"
    assert len(production.roughy.cuts) == 2


def test_target_may_have_the_id_of_the_cut(production: Production) -> None:
    for name in "ab":
        production.add(f"/in/{name}.mp4")
    target = f"{production.out}/{{cut_id}}-{{kind}}.{{format}}"
    for number in (1, 2):
        assert production.run(target=target, timeline=None, original=True).state == "success"
        ids = [cut["id"] for cut in production.roughy.cuts]
        names = ("captions.srt", "captions.vtt", "render.mp4", "original.mp4")
        assert set(production.files()) == {f"{id}-{name}" for id in ids for name in names}
        assert (number == 2) == (set(production.asked()) <= {"GET v1/assets"})


# ---- Faults


def test_expired_link_is_renewed(production: Production) -> None:
    production.add("/in/talk.mp4")
    production.roughy.inject(Fault(method="GET", path="/storage/*", status=403, body="<Error>expired</Error>"))
    assert production.run().state == "success"
    assert production.asked()["GET v1/renders"] >= 2


def test_failed_render_and_cut_fail_their_outputs_only(production: Production, log: Callable[[], str]) -> None:
    roughy = production.roughy
    roughy.progression = "manual"
    a, b, c = (production.add(f"/in/{name}.mp4") for name in "abc")

    def next_step() -> None:
        for cut in roughy.cuts:
            if cut["asset_id"] == a and cut["state"] == "pending":
                roughy.set_state(cut["id"], "failed", error_code="no_speech", error_message="nothing is said")
        for render in roughy.renders:
            if render["asset_id"] == b and render["state"] == "pending":
                roughy.set_state(render["id"], "failed", error_code="render_failed", error_message="out of luck")
        roughy.settle()

    ended = production.run(deferrable=True, before_resuming=next_step)
    assert (ended.state, type(ended.error)) == ("failed", RoughyProduceFailedError)
    assert str(ended.error).startswith("1 ready, 2 failed:")
    assert "no_speech: nothing is said" in reason(production, "failed", a)
    assert reason(production, "failed", b).startswith("render.mp4: Render ")
    assert set(production.xcoms["outputs"][b]) == {"captions.srt", "captions.vtt", "timeline.otio"}
    assert production.xcoms["ready"] == [c]
    assert "ready           /in/c.mp4" in log()
    # Reported, and no failure.
    assert production.run(on_failed="return").result == [c]


def test_asset_that_is_processing_is_waited_for(production: Production) -> None:
    roughy = production.roughy
    asset_id = production.add("/in/talk.mp3", state="processing")
    ended = production.run(deferrable=True, before_resuming=lambda: roughy.set_state(asset_id, "ready"), timeline=None)
    assert (ended.state, ended.result) == ("success", [asset_id]), ended.error
    assert set(production.files()) == {"talk.mp3/captions.srt", "talk.mp3/captions.vtt", "talk.mp3/render.m4a"}


def test_cut_refused_as_processing_waits_as_long_as_asked(production: Production) -> None:
    asset_id = production.add("/in/talk.mp3")
    refusal = {"error": {"code": "asset_processing", "message": "The asset is being processed."}}
    fault = Fault(method="POST", path="/v1/cuts", status=409, headers={"Retry-After": "1"}, body=refusal)
    production.roughy.inject(fault)
    assert production.run().result == [asset_id]
    refused, accepted = (each for each in production.roughy.requests if each.method == "POST" and "cuts" in each.path)
    assert accepted.started_at - refused.started_at >= 1.0


@pytest.mark.parametrize("policy", ["fail", "return", "skip"])
def test_unpaid_recordings_do_what_the_policy_says(production: Production, policy: Any) -> None:
    ready, unpaid = production.add("/in/a.mp3"), production.add("/in/b.mp3", state="pending_payment")
    ended = production.run(on_pending_payment=policy)
    assert ended.state == {"fail": "failed", "return": "success", "skip": "skipped"}[policy]
    assert (production.xcoms["ready"], production.xcoms["pending_payment"]) == ([ready], [unpaid])
    if policy == "fail":
        assert "pending_payment /in/b.mp3" in str(ended.error)


def test_unpaid_recording_is_waited_for_until_a_top_up(production: Production) -> None:
    unpaid = production.add("/in/b.mp3", state="pending_payment")
    top_up = lambda: production.roughy.set_state(unpaid, "ready")  # noqa: E731
    ended = production.run(on_pending_payment="wait", deferrable=True, before_resuming=top_up)
    assert ended.result == [unpaid], ended.error


def test_full_target_stops_the_batch_and_a_retry_writes_the_rest(
    production: Production, log: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        production.add(f"/in/{number}.mp3")
    room = [3]

    def write(sink: Any, block: bytes | memoryview) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(sink, block)

    original = target_local._LocalSink._write
    monkeypatch.setattr(target_local._LocalSink, "_write", write)
    ended = production.run(parallel=1, captions="srt", timeline=None, render=None)
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyProduceError)
    assert "The batch was stopped: Target " in str(ended.error)
    assert "No space left on device" in str(ended.error)
    assert "Stopping the batch at /in/" in log()
    assert len(production.files()) == 3, "an unfinished file is left, or a file is not whole"
    assert {name: len(production.xcoms[name]) for name in ("ready", "interrupted")} == {"ready": 3, "interrupted": 5}
    room[0] = 1000
    ended = production.run(again=True, captions="srt", timeline=None, render=None)
    assert (ended.state, len(ended.result)) == ("success", 8)
    assert production.asked()["GET v1/cuts export"] == 5


@WAYS
def test_revoked_key_stops_the_batch_and_uses_no_retry(production: Production, deferrable: bool) -> None:
    for number in range(6):
        production.add(f"/in/{number}.mp3")
    production.roughy.inject(Fault(path="/v1/*", nth=9, times=None, status=401))
    ended = production.run(parallel=1, deferrable=deferrable, timeline=None)
    assert ended.state == "failed"
    assert isinstance(ended.error, (RoughyProduceFailedError, RoughyAuthenticationError))
    assert "unauthenticated" in str(ended.error)
    assert "Check the API key" in str(ended.error)
    production.roughy.clear_faults()
    assert len(production.run(again=True, timeline=None).result) == 6
    assert len(production.roughy.cuts) == len(production.roughy.renders) == 6


def test_key_that_is_revoked_during_the_wait_ends_it(production: Production) -> None:
    production.roughy.progression = "manual"
    production.add("/in/a.mp3")
    revoke = lambda: production.roughy.inject(Fault(path="/v1/*", times=None, status=401))  # noqa: E731
    ended = production.run(deferrable=True, before_resuming=revoke)
    assert (ended.state, type(ended.error)) == ("failed", RoughyProduceFailedError)
    assert "The batch was stopped: GET /v1/cuts" in str(ended.error)


def test_roughy_that_is_down_is_retried(production: Production) -> None:
    production.add("/in/a.mp3")
    production.roughy.inject(Fault(path="/v1/*", times=None, status=503, headers={"Retry-After": "0"}))
    ended = production.run()
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyServerError)


def test_deleted_asset_and_malformed_id_fail_alone(production: Production) -> None:
    ready = production.add("/in/a.mp3")
    production.sources |= {NOBODY: "/in/gone.mp3", "no id": "/in/odd.mp3"}
    ended = production.run()
    assert (ended.state, type(ended.error)) == ("failed", RoughyProduceFailedError)
    assert production.xcoms["ready"] == [ready]
    assert "not_found" in reason(production, "failed", NOBODY)
    assert "no id" in reason(production, "failed", "no id")


def test_unknown_format_fails_that_output(production: Production) -> None:
    asset_id = production.add("/in/a.mp4")
    ended = production.run(timeline=["otio", "aaf"])
    assert ended.state == "failed"
    assert "timeline.aaf: GET /v1/cuts/" in reason(production, "failed", asset_id)
    assert "timeline.otio" in production.xcoms["outputs"][asset_id]


def test_timeout_interrupts_what_is_not_made(production: Production) -> None:
    production.roughy.progression = "manual"
    production.add("/in/a.mp4")
    ended = production.run(timeout=0.3, deferrable=True)
    assert (ended.state, type(ended.error)) == ("failed", RoughyProduceFailedError)
    assert "was not done in time" in reason(production, "interrupted", "/in/a.mp4")


def test_timeout_also_bounds_the_writing_of_files(production: Production) -> None:
    for number in range(4):
        production.add(f"/in/{number}.mp3")
    production.roughy.inject(Fault(method="GET", path="/v1/cuts/*/subtitle/export", times=None, delay=1.5))
    ended = production.run(timeout=4, parallel=1, captions="srt", timeline=None, render=None)
    assert (ended.state, type(ended.error)) == ("failed", RoughyProduceFailedError)
    left = set(production.xcoms["interrupted"])
    assert left, "files were written after the end of the timeout"
    assert left == {f"/in/{number}.mp3" for number in range(4)} - {f"/in/{each[:5]}" for each in production.files()}
    assert "`timeout` was over" in str(ended.error)


def test_state_that_is_lost_during_the_wait_is_found_again(production: Production) -> None:
    production.roughy.progression = "polls=1"
    asset_id = production.add("/in/a.mp3")
    ti = TaskInstance()
    lose = lambda: ti.xcoms.pop("roughy_before_the_wait", None)  # noqa: E731
    ended = production.run(
        deferrable=True, before_resuming=lose, timeline=None, render=None, captions="srt", context={"ti": ti}
    )
    assert (ended.state, ended.result) == ("success", [asset_id])
    assert set(production.files()) == {"a.mp3/captions.srt"}


def test_kill_on_the_worker_ends_the_writing_and_a_retry_goes_on(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        production.add(f"/in/{number}.mp3")
    task: dict[str, RoughyProduceOperator] = {}
    execute = RoughyProduceOperator.execute

    def remember(self: RoughyProduceOperator, context: Any) -> list[str]:
        task["running"] = self
        return execute(self, context)

    monkeypatch.setattr(RoughyProduceOperator, "execute", remember)
    production.roughy.inject(Fault(method="GET", path="/storage/*", times=None, reply_rate=100))
    is_writing = lambda: any("storage" in each.path for each in production.roughy.requests)  # noqa: E731
    with whenever(lambda: "running" in task and is_writing_or_late(production), lambda: task["running"].on_kill()):
        ended = production.run(timeline=None)
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyInterruptedError)
    assert "The task was killed" in str(ended.error)
    assert not [name for name in production.files() if ".roughy-" in name]
    production.roughy.clear_faults()
    assert len(production.run(again=True, timeline=None).result) == 4
    assert len(production.roughy.renders) == 4
    assert is_writing()


def is_writing_or_late(production: Production) -> bool:
    """Whether captions are written, so that renders are being downloaded."""
    return production.out.exists() and len(production.files()) >= 8


def test_overwrite_fail_protects_files_of_others(production: Production) -> None:
    production.add("/in/a.mp3"), production.add("/in/b.mp3")
    other = production.out / "a.mp3" / "captions.srt"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    ended = production.run(overwrite="fail", timeline=None)
    assert (ended.state, other.read_text()) == ("failed", "mine")
    assert "exists" in reason(production, "rejected", "/in/a.mp3")
    assert len(production.files()) == 6


def test_overwrite_fail_replaces_own_files_unless_someone_changed_them(production: Production) -> None:
    production.add("/in/a.mp3"), production.add("/in/b.mp3")
    options: dict[str, Any] = {"overwrite": "fail", "timeline": None, "captions": "srt"}
    production.run(**options)
    changed = production.out / "b.mp3" / "captions.srt"
    changed.write_text("mine")
    before = production.files()
    ended = production.run(script="short", **options)
    assert (ended.state, changed.read_text()) == ("failed", "mine")
    assert "exists" in reason(production, "rejected", "/in/b.mp3")
    after = production.files()
    assert {name for name in after if after[name] != before[name]} == {
        "a.mp3/captions.srt",
        "a.mp3/render.m4a",
        "b.mp3/render.m4a",
    }


# ---- Where recordings come from


def test_report_of_a_batch_names_recordings_and_sources(production: Production, tmp_path: Path) -> None:
    a, b = production.add("/in/a.mp3"), production.add("/in/b.mp3")
    report = tmp_path / "report.jsonl"
    rows = [
        {"source": "/in/a.mp3", "status": "ready", "asset_id": a, "new_field": 1},
        {"source": "/in/b.mp3", "status": "failed", "asset_id": b, "reason": "no"},
        {"source": "/in/c.mp3", "status": "rejected"},
    ]
    report.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert production.run(from_report=str(report), timeline=None, render=None).result == [a]
    assert set(production.files()) == {"a.mp3/captions.srt", "a.mp3/captions.vtt"}
    # As mapped tasks pass it on, which share a report.
    assert production.run(from_report=[str(report), None, str(report)], timeline=None, render=None).result == [a]
    ended = production.run(from_report="['/reports/a', '/reports/a']")
    assert (ended.state, "`from_report` is a text that looks like a list" in str(ended.error)) == ("failed", True)
    for nothing in ([], [None]):
        ended = production.run(from_report=nothing)
        assert (ended.state, "`from_report` is empty" in str(ended.error)) == ("failed", True)
    report.write_text("{")
    ended = production.run(from_report=str(report))
    assert (ended.state, type(ended.error)) == ("failed", RoughyUnusableSourceError)


def test_sources_come_from_the_ledger_of_the_batch(
    production: Production, tmp_path: Path, recordings: dict[str, Path]
) -> None:
    from tests.ingesting import Nights, add

    folder = tmp_path / "in"
    folder.mkdir()
    add(folder, "talk.mp3", recordings["audio"])
    nights = Nights(folder, ledger=production.ledger)
    ids = nights.run().result
    ended = production.run(asset_ids=ids, sources=None, source_root=str(folder), timeline=None, render=None)
    assert ended.state == "success", ended.error
    assert set(production.files()) == {"talk.mp3/captions.srt", "talk.mp3/captions.vtt"}
    # Without any, the asset's id is the name.
    production.run(asset_ids=ids, sources=None, ledger=None, timeline=None, render=None, captions="srt")
    assert f"{ids[0]}/captions.srt" in production.files()


def test_output_of_an_ingest_task_brings_sources_and_root() -> None:
    with DAG("rough_cut", schedule=None, start_date=datetime(2026, 1, 1)):
        ingest: Any = RoughyIngestOperator(task_id="ingest", source="/in", ledger="/ledger")
        produce: Any = RoughyProduceOperator(task_id="produce", asset_ids=ingest.output, captions="srt", target="/out/")
    assert produce.upstream_task_ids == {"ingest"}
    assert (produce.sources.key, produce.sources.operator, produce.source_root) == ("sources", ingest, "/in")


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ("['a', 'b']", "looks like a list"),
        ({"a": 1}, "must be a list"),
        ([1], "has 1"),
        (7, "must be a list"),
        ([["a"], ["b"]], "has ['a']. If a mapped task returns a list each"),
    ],
)
def test_asset_ids_that_are_no_list_are_refused(production: Production, ids: Any, words: str) -> None:
    ended = production.run(asset_ids=ids)
    assert (ended.state, type(ended.error)) == ("failed", RoughyConfigurationError)
    assert words in str(ended.error)


def test_empty_ids_and_repeats_are_left_out(production: Production) -> None:
    a = production.add("/in/a.mp3")
    assert production.run(asset_ids=[None, a, a.upper(), ""], timeline=None, render=None).result == [a]
    assert production.run(asset_ids=[], timeline=None).result == []


def test_source_is_named_without_its_secrets_and_an_empty_one_counts_as_none(
    production: Production, log: Callable[[], str]
) -> None:
    a, b, c = (production.add(f"/in/{name}.mp3") for name in "abc")
    sources = {a: "https://me:secret@host/x.mp3?X-Amz-Signature=secret", b: "", c: None}
    ended = production.run(sources=sources, timeline=None, render=None, captions="srt", source_root="https://host/")
    assert ended.state == "success", ended.error
    assert set(production.files()) == {"x.mp3/captions.srt", f"{b}/captions.srt", f"{c}/captions.srt"}
    told = log() + json.dumps(production.xcoms) + "".join(map(str, production.ledger.rglob("*")))
    assert "secret" not in told + "".join(path.read_text() for path in production.ledger.rglob("*.json"))


# ---- Arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "/out/{stem}"}, "unknown placeholder {stem}"),
        ({"target": "/out/{{ ds }}/{source_steam}/"}, "unknown placeholder {source_steam}"),
        ({"target": "/out/{source_stem!r}"}, "format or conversion"),
        ({"target": "/out/{source_stem"}, "cannot be read"),
        ({"captions": None}, "nothing to make"),
        ({"captions": ["../srt"]}, "which is not the name of a format"),
        ({"render": {"resolution": "720p"}}, "render must be an output"),
        ({"render": {"video": {"format": "mp4"}, "text": {"format": "x"}}}, "render must be an output"),
        ({"render": {"format": "m/p4"}}, "which is not the name of a format"),
        ({"from_report": "/r"}, "`asset_ids` or `from_report`"),
        ({"asset_ids": None}, "`asset_ids` or `from_report`"),
        ({"render_of": "all"}, "render_of"),
        ({"parallel": 0}, "parallel"),
        ({"on_failed": "skip"}, "on_failed"),
        ({"overwrite": "yes"}, "overwrite"),
        ({"original": "False"}, "original"),
    ],
)
@pytest.mark.once
def test_arguments_are_checked_when_the_dag_is_parsed(options: dict[str, Any], words: str) -> None:
    known = {"task_id": "produce", "asset_ids": ["x"], "captions": "srt", "target": "/out/"}
    with pytest.raises(ValueError, match=re.escape(words)):
        RoughyProduceOperator(**{**known, **options})


def test_placeholder_that_a_template_renders_is_checked_before_anything_is_made(production: Production) -> None:
    production.add("/in/a.mp3")
    task = RoughyProduceOperator(
        task_id="produce", asset_ids=list(production.sources), captions="srt", target="/out/{{ params.rest }}"
    )
    task.render_template_fields({"params": {"rest": "{nobody}"}})
    with pytest.raises(RoughyConfigurationError, match=re.escape("unknown placeholder {nobody}")):
        task.execute({"ti": TaskInstance()})  # type: ignore[typeddict-item]
    assert production.roughy.cuts == []


def test_trigger_is_stored_as_plain_json() -> None:
    trigger = RoughyProduceTrigger(ids={"cut": [NOBODY]}, go_on_after=60.0, deadline=1.0, poll_interval=5.0)
    path, kwargs = trigger.serialize()
    assert path == "airflow_provider_roughy.triggers.RoughyProduceTrigger"
    assert RoughyProduceTrigger(**json.loads(json.dumps(kwargs))).serialize() == (path, kwargs)


def test_ledger_remembers_where_and_what(production: Production) -> None:
    asset_id = production.add("/in/a.mp3")
    production.run(timeline=None, render=None, captions="srt")
    record = Ledger(production.ledger).find_output(f"{production.out}/a.mp3/captions.srt")
    assert record is not None
    assert (record.uri, record.asset_id, record.source) == (
        f"{production.out}/a.mp3/captions.srt",
        asset_id,
        "/in/a.mp3",
    )
    assert record.size_bytes == (production.out / "a.mp3" / "captions.srt").stat().st_size
    # A damaged record is as none.
    (name,) = (production.ledger / "outputs").iterdir()
    name.write_text("[" * 100_000)
    assert production.run(timeline=None, render=None, captions="srt").state == "success"
    assert "GET v1/cuts export" in production.asked()


def test_one_unusable_script_fails_its_recording_only(production: Production) -> None:
    a, b = production.add("/in/a.mp3"), production.add("/in/b.mp3")
    ended = production.run(script={a: "x" * 100_001}, timeline=None, render=None)
    assert ended.state == "failed"
    assert "at most 100000 characters" in reason(production, "failed", a)
    assert production.xcoms["ready"] == [b]


def test_target_that_cannot_be_used_is_found_before_anything_is_made(production: Production, tmp_path: Path) -> None:
    production.add("/in/a.mp3")
    (tmp_path / "file").write_text("no folder")
    for target in (f"{tmp_path}/file/{{source_name}}/", "nowhere://bucket/{source_name}/", ""):
        ended = production.run(target=target)
        assert (ended.state, type(ended.error).__name__) == ("failed", "RoughyUnusableTargetError"), target
    assert production.roughy.cuts == []


# ---- What is reported


def test_target_that_may_not_be_written_stops_the_batch(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        production.add(f"/in/no/{number:02}.mp3")

    def write(sink: Any, block: bytes | memoryview) -> None:
        # Tests may run as root, who may write everywhere.
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(target_local._LocalSink, "_write", write)
    ended = production.run(captions="srt", timeline=None, render=None, parallel=1)
    assert (ended.state, ended.waited) == ("failed", "")
    assert "The batch was stopped: Target " in str(ended.error)
    assert {name: len(production.xcoms[name]) for name in ("rejected", "deferred")} == {"rejected": 5, "deferred": 15}


def test_report_and_summary_have_the_files(production: Production, tmp_path: Path) -> None:
    a, gone = production.add("/in/a.mp3"), NOBODY
    production.sources[gone] = "/in/gone.mp3"
    production.run(report=str(tmp_path / "report"), on_failed="return", timeline=None)
    rows = {result.asset_id: result for result in read_report(tmp_path / "report")}
    assert (rows[a].status, rows[gone].status) == ("ready", "failed")
    assert rows[a].outputs == production.xcoms["outputs"][a]
    assert production.xcoms["report"] == str(tmp_path / "report")
    assert "1 ready" in production.xcoms["summary"]
    assert "Some outputs of these recordings cannot be made" in production.xcoms["summary"]
    assert "uploads" not in production.xcoms["summary"]


def test_written_files_are_announced_once_and_reported_to_lineage(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = production.add("/in/a.mp3")
    told: list[tuple[list[str], list[str]]] = []
    monkeypatch.setattr(
        "airflow_provider_roughy.operators.produce.lineage.report",
        lambda hook, read, written, project_id: told.append((list(read), list(written))),
    )
    files = [f"file://{production.out}/a.mp3/{name}" for name in ("captions.srt", "captions.vtt", "render.m4a")]

    def announced(**options: Any) -> list[tuple[str, dict[str, Any]]]:
        events = Events()
        production.run(timeline=None, outlets=[AssetAlias("cuts")], context={"outlet_events": events}, **options)
        return events.added

    first = announced()
    (cut,), (render,) = production.roughy.cuts, production.roughy.renders
    ids = {"asset_id": a, "cut_id": cut["id"], "source": "/in/a.mp3"}
    assert sorted(uri for uri, _ in first) == files
    by_output = {extra["output"]: extra for _, extra in first}
    assert by_output["captions.srt"] == {"target": files[0][7:], "output": "captions.srt", **ids}
    assert by_output["render.m4a"] == {"target": files[2][7:], "output": "render.m4a", "render_id": render["id"], **ids}
    assert told == [([f"roughy://asset/{a}"], files)], "cuts and renders would fill what Airflow keeps"
    # A retry announces what an earlier try of the run has written; the next run does not.
    assert sorted(uri for uri, _ in announced(again=True)) == files
    assert announced() == []


class Events:
    """Takes the events of one outlet, as Airflow's accessors do."""

    def __init__(self) -> None:
        self.added: list[tuple[str, dict[str, Any]]] = []
        self.extra: dict[str, Any] = {}

    def __getitem__(self, outlet: object) -> Events:
        return self

    def add(self, asset: Any, extra: dict[str, Any]) -> None:
        self.added.append((asset.uri, extra))

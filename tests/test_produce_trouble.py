"""What a task that makes outputs does when something goes wrong at an awkward moment."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.compat import DAG, AirflowFailException, AirflowTaskTimeout, TaskDeferred
from airflow_provider_roughy.emulator import Fault
from airflow_provider_roughy.exceptions import (
    RoughyConfigurationError,
    RoughyError,
    RoughyInterruptedError,
    RoughyProduceFailedError,
)
from airflow_provider_roughy.ingest.result import RecordingResult
from airflow_provider_roughy.lifecycle import batch_to_event
from airflow_provider_roughy.observability.report import find_missing_shards, read_report, write_report
from airflow_provider_roughy.operators import RoughyProduceOperator, produce
from airflow_provider_roughy.produce import production as productions
from airflow_provider_roughy.sensors import RoughyAssetSensor
from airflow_provider_roughy.transfer import target_local
from tests.ingesting import Nights
from tests.producing import Production
from tests.running import TaskInstance, whenever
from tests.test_produce import NOBODY, WAYS
from tests.test_produce import production as production

CAPTIONS: dict[str, Any] = {"captions": "srt", "timeline": None, "render": None}
ORIGINAL: dict[str, Any] = {"captions": None, "timeline": None, "render": None, "original": True}

pytestmark = [pytest.mark.usefixtures("patient"), pytest.mark.once]


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> dict[str, RoughyProduceOperator]:
    """The task that is running."""
    found: dict[str, RoughyProduceOperator] = {}
    execute = RoughyProduceOperator.execute

    def remember(self: RoughyProduceOperator, context: Any) -> list[str]:
        found["running"] = self
        return execute(self, context)

    monkeypatch.setattr(RoughyProduceOperator, "execute", remember)
    return found


def add_unsent(production: Production, source: str, *, more: bytes = b"") -> str:
    """Seed a video whose upload has not ended, so that its type is unknown."""
    asset_id = production.roughy.seed_asset("pending_upload", content=production._media["video"] + more)
    production.sources[asset_id] = source
    return asset_id


# ---- Before the outputs are planned


@pytest.mark.parametrize("status", [401, 503])
def test_recordings_whose_assets_were_not_read_are_not_ready(
    production: Production, tmp_path: Path, status: int
) -> None:
    production.add("/in/0.mp3")
    production.add("/in/1.mp3")
    production.roughy.inject(
        Fault(method="GET", path="/v1/assets*", status=status, times=None, headers={"Retry-After": "0"})
    )
    report = str(tmp_path / "report")
    ended = production.run(report=report, **CAPTIONS)
    assert ended.state == {401: "failed", 503: "up_for_retry"}[status]
    assert production.xcoms["ready"] == []
    assert {result.status for result in read_report(report)} == {"interrupted"}


def test_timeout_while_assets_are_read_leaves_no_recording_ready(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    production.add("/in/0.mp3")

    def time_out(make: Any) -> Any:
        raise AirflowTaskTimeout("Timeout")

    monkeypatch.setattr(productions, "run_here", time_out)
    ti = TaskInstance()
    with pytest.raises(AirflowTaskTimeout):
        production.run(context={"ti": ti}, **CAPTIONS)
    assert json.loads(ti.xcoms["ready"]) == []


@pytest.mark.parametrize("status", [429, 503])
def test_one_error_of_a_read_is_repeated(production: Production, status: int) -> None:
    for number in range(3):
        production.add(f"/in/{number}.mp3")
    production.roughy.inject(Fault(method="GET", path="/v1/assets*", status=status, headers={"Retry-After": "0"}))
    ended = production.run(**CAPTIONS)
    assert (ended.state, len(ended.result or ())) == ("success", 3)


@WAYS
def test_error_of_the_read_after_the_wait_is_repeated(production: Production, deferrable: bool) -> None:
    roughy = production.roughy
    for number in range(2):
        production.add(f"/in/{number}.mp3")
    late = add_unsent(production, "/in/late.mp4")

    def ready() -> None:
        roughy.set_state(late, "ready", type="video", extension="mp4")
        roughy.inject(Fault(method="GET", path="/v1/assets*", nth=2, status=503, headers={"Retry-After": "0"}))

    with whenever(lambda: any(r.method == "POST" for r in roughy.requests), ready):
        ended = production.run(deferrable=deferrable, poll_interval=0.3, **CAPTIONS)
    assert (ended.state, len(ended.result or ())) == ("success", 3)


# ---- Names


def test_names_that_collide_after_a_wait_are_found_before_anything_is_made(production: Production) -> None:
    ids = [add_unsent(production, source) for source in ("/in/talk.MP4", "/in/talk.mov")]

    def ready() -> None:
        for asset_id in ids:
            production.roughy.set_state(asset_id, "ready", type="video", extension="mp4")

    target = f"{production.out}/{{source_stem}}.{{format}}"
    ended = production.run(deferrable=True, before_resuming=ready, target=target, **ORIGINAL)
    assert ended.state == "failed"
    assert set(production.xcoms["rejected"]) == {"/in/talk.MP4", "/in/talk.mov"}
    assert not production.out.exists()


def test_file_of_another_recording_is_not_replaced_after_a_wait(production: Production) -> None:
    production.add("/in/talk.mp4")
    target = f"{production.out}/{{source_stem}}.{{format}}"
    assert production.run(target=target, **ORIGINAL).state == "success"
    written = (production.out / "talk.mp4").read_bytes()
    production.sources.clear()
    other = add_unsent(production, "/in/talk.mov", more=b"another recording")
    ready = lambda: production.roughy.set_state(other, "ready", type="video", extension="mp4")  # noqa: E731
    ended = production.run(deferrable=True, before_resuming=ready, target=target, **ORIGINAL)
    assert (ended.state, set(production.xcoms["rejected"])) == ("failed", {"/in/talk.mov"})
    assert (production.out / "talk.mp4").read_bytes() == written


@pytest.mark.parametrize("name", ["{source_stem}.{format}", "{source_stem}/rendered"])
def test_recording_of_unknown_type_collides_with_none(production: Production, name: str) -> None:
    video = add_unsent(production, "/in/talk.mp4")
    production.add("/in/talk.mp3" if "format" in name else "/in/other.mp3")
    ready = lambda: production.roughy.set_state(video, "ready", type="video", extension="mp4")  # noqa: E731
    render = {"video": {"format": "mp4"}, "audio": {"format": "m4a"}}
    options: dict[str, Any] = {"captions": None, "timeline": None, "render": render}
    ended = production.run(deferrable=True, before_resuming=ready, target=f"{production.out}/{name}", **options)
    assert (ended.state, len(ended.result or ())) == ("success", 2)


def test_name_of_a_recording_that_is_gone_is_free(production: Production) -> None:
    asset_id = production.add("/in/talk.mp3")
    production.sources[NOBODY] = "/in/talk.mp3"
    production.run(**CAPTIONS)
    assert (production.xcoms["ready"], set(production.xcoms["failed"])) == ([asset_id], {NOBODY})


@WAYS
def test_recording_that_fails_during_the_wait_keeps_no_name(production: Production, deferrable: bool) -> None:
    roughy = production.roughy
    dead = production.add("/in/a/talk.mp4", state="pending_payment")
    good = add_unsent(production, "/in/b/talk.mp4")

    def change() -> None:
        roughy.set_state(dead, "failed")
        roughy.set_state(good, "ready", type="video", extension="mp4")

    target = f"{production.out}/{{source_stem}}.{{format}}"
    options = {**ORIGINAL, "target": target, "on_pending_payment": "wait", "on_failed": "return"}
    if deferrable:
        production.run(deferrable=True, before_resuming=change, **options)
    else:
        with whenever(lambda: len(roughy.requests) > 3, change):
            production.run(poll_interval=0.3, **options)
    assert (production.xcoms["ready"], list(production.xcoms["failed"])) == ([good], [dead])


def test_name_that_is_the_folder_of_another_is_a_collision(production: Production) -> None:
    sources = ["/in/talk/captions.srt.mp4", "/in/talk.mp4"]
    for source in sources:
        production.add(source)
    target = f"{production.out}/{{source_dir}}/{{source_stem}}"
    (production.out / "talk").mkdir(parents=True)
    ended = production.run(target=target, parallel=1, **CAPTIONS)
    assert (ended.state, set(production.xcoms["rejected"])) == ("failed", set(sources))
    assert production.files() == {}


def test_names_with_the_id_of_a_cut(production: Production) -> None:
    production.add("/in/a.mp4")
    target = f"{production.out}/{{cut_id}}/{{source_name}}/"
    assert production.run(target=target, **ORIGINAL).state == "success"
    assert production.roughy.cuts == []
    options = {**CAPTIONS, "original": True, "target": target, "render": {"format": "mp4"}, "render_of": "asset"}
    for script in ("old", "new"):
        assert production.run(script=script, **options).state == "success"
        (outputs,) = production.xcoms["outputs"].values()
        (cut_id,) = {cut["id"] for cut in production.roughy.cuts if cut["script"] == script}
        assert {name for name, uri in outputs.items() if cut_id in uri} == set(outputs)
        assert len(outputs) == 3


def test_folder_may_have_any_name(production: Production) -> None:
    production.add("/in/output/a.mp3")
    production.out.mkdir()
    ledger = f"{production.out}/.roughy"
    assert production.run(ledger=ledger, **CAPTIONS).state == "success"
    assert production.run(ledger=ledger, **CAPTIONS).state == "success"


@pytest.mark.parametrize("output", [CAPTIONS, ORIGINAL], ids=["captions", "original"])
def test_name_that_is_a_folder_of_another_night_is_refused(production: Production, output: dict[str, Any]) -> None:
    target = f"{production.out}/{{source_dir}}/{{source_stem}}"
    production.add("/in/day1/captions.srt.mp3")
    production.run(target=target, **output)
    before = {path: path.read_bytes() for path in production.out.rglob("*") if path.is_file()}
    production.sources.clear()
    production.add("/in/day1.mp3")
    ended = production.run(target=target, script="other words", **output)
    assert {path: path.read_bytes() for path in production.out.rglob("*") if path.is_file()} == before
    assert (ended.state, list(production.xcoms["rejected"])) == ("failed", ["/in/day1.mp3"])


@WAYS
def test_newer_version_of_a_recording_is_made_and_the_older_one_left_out(
    production: Production, deferrable: bool
) -> None:
    old, new = production.add("/in/a.mp3"), production.add("/in/a.mp3")
    production.roughy.progression = "manual"

    def settle() -> None:
        production.roughy.settle()

    with whenever(lambda: any(each.method == "POST" for each in production.roughy.requests), settle):
        ended = production.run(deferrable=deferrable, before_resuming=settle, asset_ids=[new, old], **CAPTIONS)
    assert (ended.state, ended.result) == ("success", [new])
    assert [cut["asset_id"] for cut in production.roughy.cuts] == [new]
    assert new in production.xcoms["left_out"][old]["captions.srt"]


SOURCES = [
    ("https://cms/download?id=1", "https://cms/download?id=2"),
    ("s3://berlin@media/a.mp3", "s3://paris@media/a.mp3"),
]
NAMES = ("a.mp3", "a.mp3")


@pytest.mark.parametrize("sources", [*SOURCES, NAMES], ids=["https", "s3", "names"])
def test_sources_that_are_shown_alike_are_no_versions_of_a_file(
    production: Production, sources: tuple[str, str]
) -> None:
    ids = [production.add("/in/a.mp3") for _ in range(2)]
    ended = production.run(sources=dict(zip(ids, sources, strict=True)), **CAPTIONS)
    assert (ended.state, production.xcoms["left_out"], production.files()) == ("failed", {}, {})
    assert production.xcoms["rejected"]


@pytest.mark.parametrize("sources", SOURCES, ids=["https", "s3"])
def test_scripts_of_sources_that_are_shown_alike_are_not_mixed_up(
    production: Production, sources: tuple[str, str]
) -> None:
    ids = [production.add("/in/a.mp3") for _ in range(2)]
    named = dict(zip(ids, sources, strict=True))
    target = f"{production.out}/{{asset_id}}/"
    scripts = {source: f"script of {source}" for source in sources}
    assert production.run(sources=named, script=scripts, target=target, **CAPTIONS).state == "success"
    assert {cut["asset_id"]: cut["script"] for cut in production.roughy.cuts} == {
        id: scripts[source] for id, source in named.items()
    }


@pytest.mark.parametrize("words", ["Forbidden: /o?name=a", "Forbidden: /o"], ids=["signed", "plain"])
def test_permission_that_a_storage_refuses_stops_the_batch_whatever_its_words(
    production: Production, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    for number in range(8):
        production.add(f"/in/{number}.mp3")

    def write(sink: Any, block: bytes | memoryview) -> None:
        raise OSError(words)  # As gcsfs does.

    monkeypatch.setattr(target_local._LocalSink, "_write", write)
    production.run(parallel=1, on_failed="return", **CAPTIONS)
    assert {name: len(production.xcoms[name]) for name in ("rejected", "deferred")} == {"rejected": 5, "deferred": 3}


def test_name_with_the_id_of_a_cut_may_be_as_long_as_any(production: Production) -> None:
    production.add("/in/a.mp3")
    target = f"{production.out}/{'x' * 215}{{cut_id}}.srt"
    assert production.run(target=target, **CAPTIONS).state == "success"


def test_outputs_of_one_late_recording_that_collide_stop_no_other(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(produce, "_GO_ON_AFTER", 0.1)
    roughy = production.roughy
    late = add_unsent(production, "/in/late.mp4")
    good = [production.add(f"/in/{number}.mp3") for number in range(3)]
    ready = lambda: roughy.set_state(late, "ready", type="video", extension="mp4")  # noqa: E731
    options = {**ORIGINAL, "render": {"video": {"format": "mp4"}, "audio": {"format": "m4a"}}, "on_failed": "return"}
    target = f"{production.out}/{{source_stem}}.{{format}}"
    production.run(deferrable=True, before_resuming=ready, target=target, **options)
    assert (production.xcoms["ready"], list(production.xcoms["rejected"])) == (good, ["/in/late.mp4"])


@pytest.mark.parametrize("state", ["ready", "processing"])
def test_asset_of_which_nothing_is_written_is_not_in_the_result(production: Production, state: str) -> None:
    production.add("/in/a.mp3", state=state)
    render = {"video": {"format": "mp4"}}
    assert production.run(captions=None, timeline=None, render=render, timeout=5).result == []
    assert production.xcoms["ready"] == []


# ---- The wait


@pytest.mark.parametrize("changed", ["script", "render", "target", "ledger"])
def test_arguments_that_change_during_the_wait_concern_the_next_try(
    production: Production, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    roughy = production.roughy
    roughy.progression = "manual"
    production.add("/in/a.mp4")
    old: dict[str, Any] = {
        "captions": "srt",
        "timeline": None,
        "render": {"format": "mp4"},
        "script": "old",
        "target": production.options["target"],
        "ledger": str(production.ledger),
    }
    values: dict[str, Any] = {
        "script": "new",
        "render": {"format": "mov"},
        "target": f"{production.out}/new/{{source_name}}/",
        "ledger": f"{production.ledger}-new",
    }
    new: dict[str, Any] = {**old, changed: values[changed]}
    resume = RoughyProduceOperator.execute_complete

    def change(self: RoughyProduceOperator, context: Any, event: Any = None) -> list[str]:
        setattr(self, changed, new[changed])
        return resume(self, context, event)

    with monkeypatch.context() as patch:
        patch.setattr(RoughyProduceOperator, "execute_complete", change)
        ended = production.run(deferrable=True, before_resuming=lambda: roughy.settle(), **old)
    assert ended.state == "success"
    assert set(production.files()) == {"a.mp4/captions.srt", "a.mp4/render.mp4"}
    assert [cut["script"] for cut in roughy.cuts] == ["old"]
    assert not Path(values["ledger"]).exists()
    roughy.progression = "immediate"
    assert production.run(**new).state == "success"
    (outputs,) = production.xcoms["outputs"].values()
    if changed == "target":
        assert all("/new/" in uri for uri in outputs.values())
    if changed == "script":
        assert [cut["script"] for cut in roughy.cuts] == ["old", "new"]
        assert len(roughy.renders) == 2
    if changed == "render":
        assert b"ftypqt" in Path(outputs["render.mov"]).read_bytes()[:16]


def test_long_wait_of_some_does_not_hold_up_the_others(production: Production, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(produce, "MAX_IDS", 2)
    monkeypatch.setattr(produce, "_TURN_SECONDS", 0.3)
    monkeypatch.setattr(produce, "_GO_ON_AFTER", 0.1)
    for number in range(2):
        production.add(f"/in/unpaid {number}.mp3", state="pending_payment")
    late = production.add("/in/late.mp3", state="processing")
    resumed: list[float] = []

    def ready() -> None:
        resumed.append(time.time())
        production.roughy.set_state(late, "ready")

    ended = production.run(
        deferrable=True, before_resuming=ready, on_pending_payment="wait", on_failed="return", timeout=5, **CAPTIONS
    )
    assert production.xcoms["ready"] == [late]
    assert (ended.state, len(production.xcoms["interrupted"])) == ("success", 2)
    assert len(resumed) >= 2


def begin_wait(production: Production, tmp_path: Path, **options: Any) -> tuple[RoughyProduceOperator, Any]:
    """Run a task until it waits in the triggerer, and return it for the time after that, with its context."""
    options = {**production.options, **CAPTIONS, "original": True, "deferrable": True, **options}
    arguments: dict[str, Any] = {"asset_ids": list(production.sources), "sources": production.sources}
    context: Any = {"ti": TaskInstance()}
    make = lambda: RoughyProduceOperator(  # noqa: E731
        task_id="produce", report=str(tmp_path / "report"), **arguments, **options
    )
    with pytest.raises(TaskDeferred):
        make().execute(context)
    return make(), context


@pytest.mark.parametrize("trouble", ["no triggerer", "no ledger"])
def test_files_from_before_the_wait_are_reported_whatever_ends_it(
    production: Production, tmp_path: Path, trouble: str
) -> None:
    production.roughy.progression = "manual"
    asset_id = production.add("/in/a.mp3")
    task, context = begin_wait(production, tmp_path)
    kwargs: dict[str, Any]
    if trouble == "no ledger":
        production.ledger.rename(tmp_path / "away")
        production.ledger.write_text("no folder")
        method, kwargs = "execute_complete", {"event": batch_to_event([])}
    else:
        method, kwargs = "__fail__", {"error": "Trigger timeout"}
    with pytest.raises(RoughyError):
        task.resume_execution(method, kwargs, context)
    outputs = json.loads(context["ti"].xcoms["outputs"])
    assert set(outputs[asset_id]) == {"original.mp3"}
    (result,) = read_report(tmp_path / "report")
    assert (result.status, set(result.outputs or ())) == ("interrupted", {"original.mp3"})


@pytest.mark.parametrize("lost", ["arguments", "scripts", "deadline", "turn", "arguments.ledger"])
def test_state_of_the_wait_that_is_another_one_is_not_used(production: Production, lost: str) -> None:
    asset_id = production.add("/in/a.mp3")
    ti = TaskInstance()

    def lose() -> None:
        state = json.loads(ti.xcoms["roughy_before_the_wait"])
        group, _, name = lost.rpartition(".")
        del (state[group] if group else state)[name]
        ti.xcoms["roughy_before_the_wait"] = json.dumps(state)

    ended = production.run(deferrable=True, before_resuming=lose, context={"ti": ti}, **CAPTIONS)
    assert (ended.state, ended.result) == ("success", [asset_id])


# ---- What Roughy refuses for the time being


@WAYS
def test_refusals_are_counted_over_all_waits(production: Production, deferrable: bool) -> None:
    production.add("/in/a.mp3")
    body = {"error": {"code": "asset_processing", "message": "The asset is being processed."}}
    refusal = Fault(method="POST", path="/v1/cuts", status=409, headers={"Retry-After": "0"}, body=body, times=None)
    production.roughy.inject(refusal)
    ended = production.run(deferrable=deferrable, timeout=30, **CAPTIONS)
    assert ended.state == "up_for_retry"
    assert production.asked()["POST v1/cuts"] == 6


def test_refused_recordings_do_not_stop_the_batch(production: Production, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(productions, "_MAX_RETRY_AFTER", 1.0)
    production.roughy.progression = "manual"
    for number in range(6):
        production.add(f"/in/{number}.mp3")
    body = {"error": {"code": "asset_processing", "message": "The asset is being processed."}}
    refusal = Fault(method="POST", path="/v1/cuts", nth=2, status=409, body=body, times=None)
    production.roughy.inject(refusal)
    production.run(timeout=9, on_failed="return", parallel=1, poll_interval=0.2, **CAPTIONS)
    assert (production.xcoms["deferred"], len(production.xcoms["interrupted"])) == ({}, 6)


def test_refused_recording_is_asked_about_again_in_time(production: Production) -> None:
    production.roughy.progression = "manual"
    for number in range(2):
        production.add(f"/in/{number}.mp3")
    body = {"error": {"code": "asset_processing", "message": "The asset is being processed."}}
    refusal = Fault(method="POST", path="/v1/cuts", status=409, headers={"Retry-After": "1"}, body=body)
    production.roughy.inject(refusal)
    production.run(poll_interval=30, timeout=6, on_failed="return", parallel=1, **CAPTIONS)
    assert production.asked()["POST v1/cuts"] == 3


def test_refused_recordings_do_not_hold_up_the_others(production: Production) -> None:
    for number in range(8):
        production.add(f"/in/{number}.mp3")
    body = {"error": {"code": "asset_processing", "message": "The asset is being processed."}}
    refusal = Fault(method="POST", path="/v1/cuts", status=409, headers={"Retry-After": "20"}, body=body, times=4)
    production.roughy.inject(refusal)
    began = time.monotonic()
    production.run(timeout=5, on_failed="return", **CAPTIONS)
    assert len(production.xcoms["ready"]) == 4
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("trouble", ["target", "exports"])
def test_recording_with_many_bad_outputs_does_not_stop_the_others(
    production: Production, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(produce, "_GO_ON_AFTER", 0.1)
    roughy = production.roughy
    roughy.progression = "manual"
    bad = production.add("/in/bad.mp4")
    good = [production.add(f"/in/{number}.mp4") for number in range(3)]
    if trouble == "target":
        production.out.mkdir()
        (production.out / "bad.mp4").write_text("a file in the way of the folder")

    def settle() -> None:
        (cut,) = (cut for cut in roughy.cuts if cut["asset_id"] == bad)
        if cut["state"] == "completed":
            roughy.settle()
            return
        roughy.settle(cut["id"])
        if trouble == "exports":
            path = f"/v1/cuts/{cut['id']}/*"
            roughy.inject(Fault(method="GET", path=path, status=500, times=None, headers={"Retry-After": "0"}))

    options: dict[str, Any] = {"captions": ["srt", "vtt"], "timeline": ["otio", "fcpxml", "edl"], "render": None}
    production.run(deferrable=True, before_resuming=settle, on_failed="return", **options)
    assert sorted(production.xcoms["ready"]) == sorted(good)
    assert set(production.xcoms[{"target": "rejected", "exports": "interrupted"}[trouble]]) == {"/in/bad.mp4"}


def test_credits_that_are_gone_again_are_waited_for_and_reported(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(productions, "_MAX_RETRY_AFTER", 0.1)
    asset_id = production.add("/in/a.mp3")
    body = {"error": {"code": "asset_payment_required", "message": "The credits do not cover the asset."}}
    production.roughy.inject(Fault(method="POST", path="/v1/cuts", status=409, body=body, times=9))
    ended = production.run(on_pending_payment="wait", **CAPTIONS)
    assert (ended.state, production.xcoms["ready"], production.asked()["POST v1/cuts"]) == ("success", [asset_id], 10)


def test_credits_that_are_gone_until_the_timeout_do_not_end_as_a_success(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(productions, "_MAX_RETRY_AFTER", 0.1)
    production.add("/in/a.mp3")
    body = {"error": {"code": "asset_payment_required", "message": "The credits do not cover the asset."}}
    production.roughy.inject(Fault(method="POST", path="/v1/cuts", status=409, body=body, times=None))
    assert production.run(on_pending_payment="wait", timeout=3, **CAPTIONS).state == "failed"
    assert "timeout" in production.xcoms["interrupted"]["/in/a.mp3"]


def test_reads_after_the_wait_end_by_the_timeout(production: Production, monkeypatch: pytest.MonkeyPatch) -> None:
    roughy = production.roughy
    late = add_unsent(production, "/in/late.mp4")
    done = production.add("/in/done.mp3")

    def ready() -> None:
        roughy.set_state(late, "ready", type="video", extension="mp4")
        fault = Fault(method="GET", path="/v1/assets*", nth=2, status=429, times=None, headers={"Retry-After": "20"})
        roughy.inject(fault)

    began = time.monotonic()
    with whenever(lambda: any(each.method == "POST" for each in roughy.requests), ready):
        production.run(timeout=4, poll_interval=0.3, on_failed="return", **CAPTIONS)
    assert (production.xcoms["ready"], list(production.xcoms["interrupted"])) == ([done], ["/in/late.mp4"])
    assert time.monotonic() - began < 15


# ---- What Roughy, or something in its place, answers


@WAYS
def test_cut_of_another_recording_is_not_written(production: Production, deferrable: bool) -> None:
    first = production.add("/in/first.mp3")
    assert production.run(**CAPTIONS).result == [first]
    other = production.add("/in/other.mp3")
    reply = json.loads(json.dumps(production.roughy.cuts[0], default=str))
    fault = Fault(method="POST", path="/v1/cuts", status=201, body=reply, headers={"Retry-After": "0"}, times=None)
    production.roughy.inject(fault)
    ended = production.run(deferrable=deferrable, timeout=4, on_failed="return", **CAPTIONS)
    assert (ended.state, production.xcoms["ready"]) == ("success", [first])
    assert f"its asset_id is {first}, not {other}" in production.xcoms["interrupted"]["/in/other.mp3"]
    assert set(production.files()) == {"first.mp3/captions.srt"}


def test_render_of_another_recording_is_not_written(production: Production) -> None:
    first = production.add("/in/first.mp4")
    options: dict[str, Any] = {"captions": None, "timeline": None, "render": {"format": "mp4"}, "render_of": "asset"}
    assert production.run(**options).result == [first]
    production.add("/in/other.mp4")
    reply = json.loads(json.dumps(production.roughy.renders[0], default=str))
    production.roughy.inject(Fault(method="POST", path="/v1/renders", status=201, body=reply, times=None))
    production.run(timeout=4, on_failed="return", **options)
    assert (production.xcoms["ready"], set(production.files())) == ([first], {"first.mp4/render.mp4"})


@WAYS
def test_asset_that_is_read_as_ready_and_as_not_ready_is_not_read_without_end(
    production: Production, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    roughy = production.roughy
    late = add_unsent(production, "/in/late.mp4")
    production.add("/in/done.mp3")
    begin, reads = productions.Production._begin_ready, [0]

    def flip(self: productions.Production, recordings: Any) -> None:
        reads[0] += 1
        roughy.set_state(late, "pending_upload")
        try:
            begin(self, recordings)
        finally:
            roughy.set_state(late, "ready", type="video", extension="mp4")

    monkeypatch.setattr(productions.Production, "_begin_ready", flip)
    ready = lambda: roughy.set_state(late, "ready", type="video", extension="mp4")  # noqa: E731
    options = {**CAPTIONS, "timeout": 6, "poll_interval": 0.2, "on_failed": "return"}
    if deferrable:
        production.run(deferrable=True, before_resuming=ready, **options)
    else:
        with whenever(lambda: any(each.method == "POST" for each in roughy.requests), ready):
            production.run(**options)
    assert 1 <= reads[0] <= 4
    assert set(production.xcoms["interrupted"]) == {"/in/late.mp4"}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(method="POST", path="/v1/cuts", status=503, headers={"Retry-After": "12"}, times=None),
        Fault(method="GET", path="/v1/cuts/*/subtitle/export", status=503, headers={"Retry-After": "12"}, times=None),
        Fault(method="GET", path="/v1/renders/*", status=503, headers={"Retry-After": "12"}, times=None),
        Fault(method="GET", path="/storage/*", status=503, headers={"Retry-After": "12"}, times=None),
    ],
    ids=["cut", "export", "render", "storage"],
)
def test_requests_are_not_repeated_after_the_timeout(production: Production, fault: Fault) -> None:
    production.add("/in/a.mp3")
    production.roughy.inject(fault)
    began = time.monotonic()
    assert production.run(timeout=4, timeline=None, captions="srt").state == "failed"
    assert time.monotonic() - began < 12


@pytest.mark.parametrize("status", [429, 503])
def test_timeout_and_not_its_errors_ends_a_batch(production: Production, status: int) -> None:
    for number in range(7):
        production.add(f"/in/{number}.mp3")
    production.roughy.inject(
        Fault(method="POST", path="/v1/cuts", status=status, headers={"Retry-After": "30"}, times=None)
    )
    ended = production.run(timeout=3, on_failed="return", parallel=7, **CAPTIONS)
    assert (ended.state, len(production.xcoms["interrupted"])) == ("success", 7)
    assert production.run(timeout=3, parallel=7, **CAPTIONS).state == "failed"


def test_link_that_is_refused_does_not_stop_the_others(production: Production) -> None:
    bad = production.add("/in/0bad.mp3")
    good = [production.add(f"/in/{number}.mp3") for number in range(6)]
    (asset,) = (asset for asset in production.roughy.assets if asset["id"] == bad)
    body = {**json.loads(json.dumps(asset, default=str)), "download_url": "http://10.1.2.3/x"}
    production.roughy.inject(Fault(method="GET", path=f"/v1/assets/{bad}", status=200, body=body, times=None))
    production.run(on_failed="return", parallel=1, **ORIGINAL)
    assert sorted(production.xcoms["ready"]) == sorted(good)


def test_file_in_the_place_of_a_folder_does_not_stop_the_others(production: Production) -> None:
    production.out.mkdir()
    (production.out / "cam1").write_text("This is no folder.")
    for number in range(8):
        production.add(f"/in/cam1/{number}.mp3")
    good = [production.add(f"/in/cam2/{number}.mp3") for number in range(2)]
    production.run(on_failed="return", parallel=1, **CAPTIONS)
    assert (sorted(production.xcoms["ready"]), len(production.xcoms["rejected"])) == (sorted(good), 8)


def test_name_that_the_target_refuses_does_not_stop_the_others(production: Production) -> None:
    for number in range(5):
        production.add(f"/in/None/{number}.mp3")
    good = production.add("/in/good.mp3")
    production.run(parallel=1, on_failed="return", **CAPTIONS)
    assert (production.xcoms["ready"], len(production.xcoms["rejected"])) == ([good], 5)


def test_names_that_are_too_long_do_not_stop_the_others(production: Production) -> None:
    for number in range(5):
        production.add(f"/in/{number}{'x' * 245}.mp3")
    good = [production.add(f"/in/{number}.mp3") for number in range(2)]
    target = f"{production.out}/{{source_name}}.{{kind}}.{{format}}"
    production.run(target=target, parallel=1, on_failed="return", **CAPTIONS)
    assert (production.xcoms["ready"], len(production.xcoms["rejected"])) == (good, 5)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/assets*"), ("POST", "/v1/cuts"), ("GET", "/v1/cuts/*")])
@pytest.mark.parametrize("status", [400, 422, 500])
def test_signed_url_in_an_error_is_not_repeated(
    production: Production, log: Callable[[], str], tmp_path: Path, method: str, path: str, status: int
) -> None:
    production.add("/in/a.mp3")
    message = "sorry: cannot read https://storage/x?X-Amz-Signature=needle&X-Amz-Credential=needle, retry"
    body = {"error": {"code": "odd", "message": message}}
    fault = Fault(method=method, path=path, status=status, body=body, headers={"Retry-After": "0"}, times=None)
    production.roughy.inject(fault)
    ended = production.run(report=str(tmp_path / "report"), timeout=4, **CAPTIONS)
    folders = (tmp_path / "report", production.ledger)
    files = [each.read_text(errors="replace") for folder in folders for each in folder.rglob("*") if each.is_file()]
    told = f"{ended.error} {ended.error!r} {log()} {json.dumps(production.xcoms)} {files}"
    assert "needle" not in told
    assert "sorry" in told


def test_signed_url_in_the_reason_of_a_failure_is_not_repeated(
    production: Production, log: Callable[[], str], tmp_path: Path
) -> None:
    asset_id = production.add("/in/a.mp3")
    roughy = production.roughy
    production.run(**CAPTIONS)
    (cut,) = roughy.cuts
    reason = {"error_code": "media_error", "error_message": "sorry: https://s/x?X-Amz-Signature=needle"}
    reply = json.loads(json.dumps({**cut, "state": "failed", **reason}, default=str))
    roughy.inject(Fault(method="POST", path="/v1/cuts", status=200, body=reply, times=None))
    ended = production.run(report=str(tmp_path / "report"), script="new", on_failed="return", **CAPTIONS)
    assert "sorry" in production.xcoms["failed"][asset_id]
    report = [each.read_text() for each in (tmp_path / "report").iterdir()]
    assert "needle" not in f"{ended.result} {log()} {json.dumps(production.xcoms)} {report}"


# ---- Kills


@pytest.mark.parametrize(
    ("path", "progression"),
    [
        ("GET /v1/assets*", "immediate"),
        ("POST /v1/cuts", "immediate"),
        ("GET /v1/cuts/*/subtitle/export", "immediate"),
        ("GET /v1/cuts", "manual"),
    ],
    ids=["reading", "requesting", "exporting", "waiting"],
)
@pytest.mark.parametrize("on_failed", ["fail", "return"])
def test_killed_task_ends_at_once_and_never_as_a_success(
    production: Production, task: dict[str, RoughyProduceOperator], path: str, progression: str, on_failed: str
) -> None:
    for number in range(3):
        production.add(f"/in/{number}.mp3")
    production.roughy.progression = progression
    method, _, pattern = path.partition(" ")
    if progression == "immediate":
        production.roughy.inject(Fault(method=method, path=pattern, times=None, hang=True))
    part = pattern.strip("*").rpartition("/")[2] or "assets"
    is_there = lambda: any(  # noqa: E731
        each.method == method and part in each.path for each in production.roughy.requests
    )
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.monotonic())
        task["running"].on_kill()

    with whenever(is_there, kill):
        ended = production.run(on_failed=on_failed, **CAPTIONS)
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyInterruptedError)
    assert time.monotonic() - killed[0] < 8


# ---- The target and the report


def test_target_that_cannot_be_looked_at_is_not_taken_for_empty(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    production.add("/in/a.mp3")
    assert production.run(timeline=None, captions="srt").state == "success"
    stat = os.stat
    broken = [True]

    def fail_once(path: Any, *args: Any, **options: Any) -> Any:
        if broken[0] and str(path).endswith("captions.srt"):
            raise OSError(5, "Input/output error")
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", fail_once)
    ended = production.run(timeline=None, captions="srt")
    assert (ended.state, len(production.xcoms["interrupted"])) == ("up_for_retry", 1)
    assert "POST v1/cuts" not in production.asked()
    broken[0] = False
    assert production.run(timeline=None, captions="srt").state == "success"
    assert "POST v1/cuts" not in production.asked()


def test_report_of_the_batch_is_not_overwritten(production: Production, tmp_path: Path) -> None:
    asset_id = production.add("/in/a.mp3")
    folder = f"{tmp_path}/report/"
    write_report(folder, [RecordingResult("/in/a.mp3", "ready", asset_id=asset_id)])
    ended = production.run(from_report=folder, report=folder.rstrip("/"), **CAPTIONS)
    assert (ended.state, type(ended.error)) == ("failed", RoughyConfigurationError)
    assert "a folder of its own" in str(ended.error)
    assert [result.asset_id for result in read_report(folder)] == [asset_id]
    assert production.run(from_report=folder, report=f"{tmp_path}/another", **CAPTIONS).state == "success"


def test_report_of_the_batch_is_not_overwritten_if_it_is_named_as_a_file(
    production: Production, tmp_path: Path
) -> None:
    asset_id = production.add("/in/a.mp3")
    write_report(str(tmp_path), [RecordingResult("/in/a.mp3", "ready", asset_id=asset_id)])
    ended = production.run(from_report=f"{tmp_path}/results.jsonl", report=str(tmp_path), **CAPTIONS)
    assert (ended.state, "a folder of its own" in str(ended.error)) == ("failed", True)


def test_missing_shard_is_said(production: Production, tmp_path: Path, log: Callable[[], str]) -> None:
    asset_id = production.add("/in/a.mp3")
    folder = tmp_path / "report"
    write_report(str(folder), [RecordingResult("/in/a.mp3", "ready", asset_id=asset_id)], part="shard-0001-of-0003")
    assert production.run(from_report=str(folder), **CAPTIONS).result == [asset_id]
    assert "No results of 2 shards of 3: 0, 2" in log()
    write_report(str(folder), [], part="0123abcd-shard-0001-of-0002")
    write_report(str(folder), [], part="4567abcd-shard-0000-of-0004")
    assert find_missing_shards(str(folder)) == (
        "No results of 2 shards of 3: 0, 2; No results of 1 shard of 2, whose parts begin with 0123abcd: 0; "
        "No results of 3 shards of 4, whose parts begin with 4567abcd: 1, 2, 3. Clear the task of each, or let it end"
    )


# ---- Arguments


@pytest.mark.parametrize("name", ["talk.mp3", "id"])
def test_script_of_one_recording_is_found_whatever_the_target_has(
    production: Production, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    production.roughy.progression = "immediate"
    (folder / "talk.mp3").write_bytes(production._media["audio"])
    (asset_id,) = Nights(folder, ledger=production.ledger).run().result
    scripts = {asset_id.upper() if name == "id" else name: "the intro"}
    target = f"{production.out}/{{asset_id}}/"
    ended = production.run(asset_ids=[asset_id], sources=None, script=scripts, target=target, **CAPTIONS)
    assert (ended.state, [cut["script"] for cut in production.roughy.cuts]) == ("success", ["the intro"])


@pytest.mark.parametrize(
    "source", ["s3://archive@bucket/a.mp3", "https://u:p@host/a.mp3?X-Amz-Signature=needle"], ids=["s3", "https"]
)
def test_script_by_source_is_found_with_what_messages_leave_out(production: Production, source: str) -> None:
    asset_id = production.add("/in/a.mp3")
    ended = production.run(sources={asset_id: source}, script={source: "the intro"}, **CAPTIONS)
    assert (ended.state, [cut["script"] for cut in production.roughy.cuts]) == ("success", ["the intro"])


def test_result_of_another_task_within_an_argument_is_rendered_first() -> None:
    with DAG("produce"):
        other = RoughyAssetSensor(task_id="other", asset_id="0")
        options: dict[str, Any] = {"captions": ["srt", other.output], "render": {"format": "mp4", "x": other.output}}
        task = RoughyProduceOperator(task_id="produce", asset_ids=["0"], target="/out/", **options)
    assert task.upstream_task_ids == {"other"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"frame_rate": "abc"}, "frame_rate must be a number above zero"),
        ({"frame_rate": -5}, "frame_rate must be a number above zero"),
        ({"frame_rate": float("nan")}, "frame_rate must be a number above zero"),
        ({"script": ["a"]}, "script must be a text"),
        ({"script": {"a.mp3": 5}}, "script of 'a.mp3' must be a text, not int"),
        ({"render": {"format": "m4a", "audio_bitrate": float("nan")}}, "render cannot be sent"),
        ({"render": {"format": "m4a", "tags": {1, 2}}}, "render cannot be sent"),
        ({"source_root": 7}, "source_root must be"),
        ({"asset_ids": ""}, "`asset_ids` is empty text"),
    ],
    ids=str,
)
def test_unusable_argument_is_found_before_anything_is_made(
    production: Production, options: dict[str, Any], says: str
) -> None:
    production.add("/in/a.mp3")
    try:
        error: BaseException | None = production.run(**options).error
    except ValueError as invalid:
        error = invalid
    assert says in str(error)
    assert isinstance(error, ValueError | AirflowFailException)
    assert production.roughy.requests == []


def test_rejected_key_takes_no_retry_whatever_was_interrupted_before(production: Production) -> None:
    for number in range(3):
        production.add(f"/in/{number}.mp3")
    roughy = production.roughy
    roughy.inject(Fault(method="POST", path="/v1/cuts", status=503, headers={"Retry-After": "0"}, times=5))
    roughy.inject(Fault(method="POST", path="/v1/cuts", status=401, times=None))
    ended = production.run(parallel=1, **CAPTIONS)
    assert (ended.state, type(ended.error)) == ("failed", RoughyProduceFailedError)


@pytest.mark.parametrize(
    "options",
    [
        {"target": "sftp://user:{}@host/None/{{source_name}}/"},
        {"target": "sftp://user:{}@{{source_name}}/x"},
        {"target": "sftp://user:{}@host/x/{{source_name}}/"},
        {"target": "s3://user:{}@"},
        {"target": "s3://user:{}@bucket/ /x"},
        {"ledger": "sftp://user:{}@host/x"},
        {"report": "sftp://user:{}@host/x"},
        {"report": "sftp://user:{}@host/None/x"},
        {"from_report": "sftp://user:{}@host/x"},
    ],
    ids=str,
)
@pytest.mark.parametrize("password", ["hunter2secret", "hunter2/secret+x"])
def test_password_in_a_location_is_shown_nowhere(
    production: Production, log: Callable[[], str], options: dict[str, str], password: str
) -> None:
    production.add("/in/a.mp3")
    filled = {name: value.format(password) for name, value in options.items()}
    ended = production.run(**{**CAPTIONS, **filled})
    assert ended.state == "failed"
    assert "hunter2" not in f"{ended.error!r} {ended.error} {log()} {json.dumps(production.xcoms)}"


def test_secrets_of_sources_in_a_report_are_not_repeated(
    production: Production, tmp_path: Path, log: Callable[[], str]
) -> None:
    asset_id = production.add("/in/a.mp3")
    row = {"source": "https://u:hunter2@h/a.mp3?X-Amz-Signature=hunter2", "status": "ready", "asset_id": asset_id}
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    assert production.run(from_report=str(tmp_path / "results.jsonl"), **CAPTIONS).state == "success"
    assert "hunter2" not in f"{log()} {json.dumps(production.xcoms)}"

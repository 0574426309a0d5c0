"""Timelines and captions of a cut, written by their operators."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyConfigurationError,
    RoughyConflictError,
    RoughyFrameRateRequiredError,
    RoughyInterruptedError,
    RoughyNotFoundError,
    RoughyProtocolError,
    RoughyTargetExistsError,
    RoughyUnsupportedFormatError,
    RoughyUnusableTargetError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.operators import RoughyExportCutOperator, RoughyExportSubtitlesOperator
from tests.running import Ended, run_task, whenever

NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def cut_id(roughy: Emulator) -> str:
    """A completed cut of a video."""
    asset_id = roughy.seed_asset(type="video", extension="mp4", duration_seconds=75)
    return roughy.seed_cut(asset_id=asset_id, segments=[(1, 2), (10, 12)], frame_rate=25)


@pytest.fixture
def spoken_cut_id(roughy: Emulator) -> str:
    """A completed cut of a recording without a picture."""
    asset_id = roughy.seed_asset(type="audio", extension="mp3", duration_seconds=75)
    return roughy.seed_cut(asset_id=asset_id, segments=[(1, 2), (10, 12)])


def timeline(cut_id: str, target: Path | str, **options: Any) -> Ended:
    known = {"task_id": "export", "cut_id": cut_id, "target": target, "format": "edl"}
    return run_task(RoughyExportCutOperator(**{**known, **options}))


def captions(cut_id: str, target: Path | str, **options: Any) -> Ended:
    return run_task(RoughyExportSubtitlesOperator(task_id="export", cut_id=cut_id, target=target, **options))


@pytest.mark.parametrize("format", ["edl", "fcpxml", "otio"])
def test_a_timeline_is_written_as_roughy_made_it(
    roughy: Emulator, hook: RoughyHook, cut_id: str, tmp_path: Path, format: str
) -> None:
    target = tmp_path / "made" / f"talk.{format}"
    ended = timeline(cut_id, target, format=format)
    assert (ended.state, ended.result) == ("success", str(target)), ended.error
    assert target.read_bytes() == hook.export_cut(cut_id, format).content
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize(("options", "format"), [({}, "srt"), ({"format": "vtt"}, "vtt")])
def test_captions_are_written_as_roughy_made_them(
    hook: RoughyHook, cut_id: str, tmp_path: Path, options: dict[str, str], format: str
) -> None:
    ended = captions(cut_id, f"file://{tmp_path}/talk.{format}", **options)
    assert ended.result == f"file://{tmp_path}/talk.{format}"
    assert (tmp_path / f"talk.{format}").read_bytes() == hook.export_subtitles(cut_id, format).content


def test_in_a_folder_the_file_has_the_cuts_name(roughy: Emulator, cut_id: str, tmp_path: Path) -> None:
    assert timeline(cut_id, tmp_path).result == f"{tmp_path}/{cut_id}.edl"
    assert captions(cut_id, f"{tmp_path}/new/").result == f"{tmp_path}/new/{cut_id}.srt"
    roughy.inject(Fault(method="GET", path="/v1/cuts/*", reply_headers={"Content-Disposition": None}))
    assert timeline(cut_id, tmp_path, format="fcpxml").result == f"{tmp_path}/{cut_id}.fcpxml"


def test_a_timeline_takes_the_frame_rate_that_the_recording_lacks(
    hook: RoughyHook, spoken_cut_id: str, tmp_path: Path
) -> None:
    ended = timeline(spoken_cut_id, tmp_path / "talk.edl")
    assert (ended.state, type(ended.error)) == ("failed", RoughyFrameRateRequiredError)
    assert "Pass frame_rate" in str(ended.error)
    assert timeline(spoken_cut_id, tmp_path / "talk.edl", frame_rate=25).state == "success"
    assert (tmp_path / "talk.edl").read_bytes() == hook.export_cut(spoken_cut_id, "edl", 25).content


def test_roughy_refuses_a_format_that_it_does_not_know(cut_id: str, tmp_path: Path) -> None:
    for ended in (timeline(cut_id, tmp_path / "a", format="cdr"), captions(cut_id, tmp_path / "a", format="cdr")):
        assert (ended.state, type(ended.error)) == ("failed", RoughyUnsupportedFormatError)
    assert os.listdir(tmp_path) == []


def test_a_cut_that_is_not_completed_may_be_retried(roughy: Emulator, tmp_path: Path) -> None:
    roughy.progression = "manual"
    ended = captions(roughy.seed_cut("processing"), tmp_path / "talk.srt")
    assert ended.state == "up_for_retry"
    assert isinstance(ended.error, RoughyConflictError)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("cut_id", "error"), [(NOBODY, RoughyNotFoundError), ("None", RoughyConfigurationError)])
def test_invalid_cut_uses_no_retries(cut_id: str, error: type[Exception], tmp_path: Path) -> None:
    ended = timeline(cut_id, tmp_path / "talk.edl")
    assert (ended.state, type(ended.error)) == ("failed", error)


@pytest.mark.parametrize(
    "fault",
    [{"status": 500}, {"drop": True}, {"status": 429, "headers": {"Retry-After": "0"}}, {"lose_reply": True}],
    ids=str,
)
def test_a_passing_fault_is_survived(roughy: Emulator, cut_id: str, tmp_path: Path, fault: dict[str, Any]) -> None:
    roughy.inject(Fault(method="GET", path="/v1/cuts/*", **fault))
    assert timeline(cut_id, tmp_path / "talk.edl").state == "success"


def test_a_web_page_in_its_place_is_not_written(
    roughy: Emulator, cut_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    roughy.inject(Fault(method="GET", path="/v1/cuts/*", garbage=True, times=None))
    ended = timeline(cut_id, tmp_path / "talk.edl")
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyProtocolError)
    assert os.listdir(tmp_path) == []


def test_empty_timeline_is_not_written(
    roughy: Emulator, cut_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    roughy.inject(Fault(method="GET", path="/v1/cuts/*", status=200, body="", times=None))
    ended = timeline(cut_id, tmp_path / "talk.edl")
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyProtocolError)
    # A recording in which nobody speaks has no captions.
    assert captions(cut_id, tmp_path / "talk.srt").state == "success"
    assert os.listdir(tmp_path) == ["talk.srt"]


def test_a_file_that_is_there_is_replaced_kept_or_an_error(cut_id: str, tmp_path: Path) -> None:
    target = tmp_path / "talk.edl"
    target.write_text("mine")
    assert timeline(cut_id, target, overwrite="fail").state == "failed"
    assert type(timeline(cut_id, target, overwrite="fail").error) is RoughyTargetExistsError
    assert target.read_text() == "mine"
    assert timeline(cut_id, target).state == "success"
    written = target.read_bytes()
    assert written.startswith(b"TITLE")
    # A retry finds what the first try has written.
    assert timeline(cut_id, target, overwrite="fail").result == str(target)
    assert timeline(cut_id, target, overwrite="skip").result == str(target)
    with pytest.raises(ValueError, match="overwrite"):
        timeline(cut_id, target, overwrite="ask")


@pytest.mark.parametrize("overwrite", ["skip", "fail"])
def test_file_of_another_cut_that_is_as_long_is_another_file(roughy: Emulator, tmp_path: Path, overwrite: str) -> None:
    """A timeline's lines, and those of captions, are of a fixed width."""
    asset_id = roughy.seed_asset(type="video")
    old, new = (
        roughy.seed_cut(asset_id=asset_id, segments=segments, frame_rate="25", script=script)
        for segments, script in (([(0, 10), (20, 30)], "a"), ([(5, 15), (40, 50)], "b"))
    )
    for export, target in ((timeline, tmp_path / "talk.edl"), (captions, tmp_path / "talk.srt")):
        assert export(old, target).state == "success"
        before = target.read_bytes()
        assert export(old, target, overwrite=overwrite).state == "success"
        ended = export(new, target, overwrite=overwrite)
        expected = tmp_path / "expected"
        export(new, expected)
        assert len(before) == expected.stat().st_size
        if overwrite == "fail":
            assert (ended.state, type(ended.error)) == ("failed", RoughyTargetExistsError)
        assert target.read_bytes() == (before if overwrite == "fail" else expected.read_bytes())


@pytest.mark.parametrize("operator", [RoughyExportCutOperator, RoughyExportSubtitlesOperator])
def test_kill_ends_an_export_that_waits(
    roughy: Emulator, cut_id: str, tmp_path: Path, operator: type[RoughyExportCutOperator]
) -> None:
    roughy.inject(Fault(method="GET", path="/v1/cuts/*", status=503, headers={"Retry-After": "60"}, times=None))
    task = operator(task_id="export", cut_id=cut_id, target=tmp_path / "talk", format="srt")
    began = time.monotonic()
    with whenever(lambda: bool(roughy.requests), task.on_kill), pytest.raises(RoughyInterruptedError):
        task.execute({})
    assert time.monotonic() - began < 10
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_written_burns_no_retries(cut_id: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    ended = timeline(cut_id, tmp_path / "file" / "talk.edl")
    assert (ended.state, type(ended.error)) == ("failed", RoughyUnusableTargetError)


def test_an_export_is_longer_than_any_other_reply_may_be(roughy: Emulator, cut_id: str, tmp_path: Path) -> None:
    """A day of captions has more than a page of a list."""
    long = "1\n00:00:00,000 --> 00:00:01,000\nHello.\n\n" * 300_000
    headers = {"Content-Type": "application/x-subrip"}
    roughy.inject(Fault(method="GET", path="/v1/cuts/*", status=200, headers=headers, body=long))
    assert captions(cut_id, tmp_path / "day.srt").state == "success"
    assert (tmp_path / "day.srt").stat().st_size == len(long) > 8 * 1024 * 1024

"""Cuts and renders of real recordings, checked by reading the resulting files."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

from airflow_provider_roughy.emulator import Choices, Emulator
from harness import media
from tests.emulator.api import Api

#: When the recordings are loud and white, in seconds, and how long they are.
LOUD = ((0.5, 1.5), (3.0, 4.0), (5.5, 6.0))
SECONDS = 6.6


@pytest.fixture(scope="session")
def talks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("talks")
    return {
        "film": media.make_talk(folder / "a.mp4", LOUD, SECONDS, size=(96, 54)).read_bytes(),
        "ntsc": media.make_talk(folder / "b.mkv", LOUD, SECONDS, "mkv", rate=Fraction(30000, 1001)).read_bytes(),
        "sound": media.make_talk(folder / "c.wav", LOUD, SECONDS, "wav").read_bytes(),
    }


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    with Emulator(progression="immediate") as emulator:
        yield emulator


def cut(api: Api, asset_id: str, script: str | None = None) -> str:
    cut_id = api.http.post("/v1/cuts", json={"asset_id": asset_id, "script": script}).json()["id"]
    body = api.http.get(f"/v1/cuts/{cut_id}").json()
    api.roughy.settle()
    assert api.http.get(f"/v1/cuts/{cut_id}").json()["state"] == "completed", body
    return str(cut_id)


def render(api: Api, asset_id: str, format: str, cut_id: str | None = None, **output: Any) -> dict[str, Any]:
    body = {"asset_id": asset_id, "cut_id": cut_id, "output": {"format": format, **output}}
    reply = api.http.post("/v1/renders", json=body)
    assert reply.status_code == 201, reply.text
    api.roughy.settle()
    return dict(api.http.get(f"/v1/renders/{reply.json()['id']}").json())


def download(render: dict[str, Any], path: Path) -> Seen:
    assert render["state"] == "completed", render
    path.write_bytes(httpx.get(render["download_url"]).content)
    assert path.stat().st_size == render["size_bytes"]
    return Seen(path)


class Seen:
    """What is in a media file, by FFmpeg: when its picture turns white and black, and its sound loud and silent."""

    def __init__(self, path: Path) -> None:
        with av.open(str(path)) as container:
            self.format = container.format.name
            self.duration = (container.duration or 0) / av.time_base
            self.streams = [(stream.type, stream.codec_context.name) for stream in container.streams]
            self.bit_rates = {stream.type: stream.codec_context.bit_rate for stream in container.streams}
            self.size = (0, 0)
            self.white: list[tuple[float, bool]] = []
            samples = bytearray()
            resampler = av.AudioResampler(format="s16", layout="mono", rate=8000)
            for frame in container.decode():
                if isinstance(frame, av.VideoFrame):
                    self.size = (frame.width, frame.height)
                    middle = frame.planes[0].line_size * (frame.height // 2) + frame.width // 2
                    self.white.append((float(frame.time or 0), bytes(frame.planes[0])[middle] > 128))
                elif isinstance(frame, av.AudioFrame):
                    for each in resampler.resample(frame):
                        samples += bytes(each.planes[0])[: each.samples * 2]
        windows = [memoryview(samples[at : at + 80]).cast("h") for at in range(0, len(samples) - 79, 80)]
        self.loud = [(number / 200, max(window) > 3000) for number, window in enumerate(windows)]

    @staticmethod
    def changes(moments: list[tuple[float, bool]]) -> list[float]:
        return [at for (_, before), (at, now) in itertools.pairwise(moments) if before != now]


def test_silence_is_cut_out(api: Api, roughy: Emulator, talks: dict[str, bytes]) -> None:
    for name, step in (("film", 1 / 25), ("ntsc", 1001 / 30000), ("sound", 0.02)):
        segments = roughy.cut(cut(api, roughy.seed_asset(content=talks[name])))["segments"]
        assert len(segments) == len(LOUD)
        for (begin, end), (first, last) in zip(segments, LOUD, strict=True):
            # A margin of a tenth of a second, and what is left of a frame or window.
            assert first - 0.1 - step <= begin <= first - 0.08
            assert last + 0.08 <= end <= last + 0.1 + step + 0.02


def test_a_script_changes_the_cut_and_the_same_one_does_not(
    api: Api, roughy: Emulator, talks: dict[str, bytes]
) -> None:
    scripts = [None, "", "Keep the best.", "Keep the worst."]
    cuts = []
    for _ in range(2):
        asset_id = roughy.seed_asset(content=talks["film"])
        cuts.append([roughy.cut(cut(api, asset_id, script))["segments"] for script in scripts])
    assert cuts[0] == cuts[1]
    whole = cuts[0][0]
    for segments in cuts[0][1:]:
        assert segments != whole
        assert {begin for begin, _ in segments} <= {begin for begin, _ in whole}
    assert len({str(segments) for segments in cuts[0]}) == len(scripts)


def test_a_script_changes_the_cut_of_a_single_stretch(api: Api, roughy: Emulator, tmp_path: Path) -> None:
    asset_id = roughy.seed_asset(content=media.make_long_audio(tmp_path / "a.wav", 2).read_bytes())
    found = [roughy.cut(cut(api, asset_id, script))["segments"] for script in (None, "One.", "Two.")]
    assert [[begin for begin, _ in segments] for segments in found] == [[0], [0], [0]]
    assert len({segments[0][1] for segments in found}) == 3


@pytest.mark.parametrize("name", ["film", "ntsc"])
@pytest.mark.parametrize("format", ["mp4", "mov"])
def test_a_cut_is_rendered_frame_by_frame(
    api: Api, roughy: Emulator, talks: dict[str, bytes], tmp_path: Path, name: str, format: str
) -> None:
    asset_id = roughy.seed_asset(content=talks[name], type="video")
    cut_id = cut(api, asset_id)
    segments = roughy.cut(cut_id)["segments"]
    seen = download(render(api, asset_id, format, cut_id), tmp_path / "render")
    rate = {"film": 25, "ntsc": 30000 / 1001}[name]
    total = sum(end - begin for begin, end in segments)
    assert seen.streams == [("video", "h264"), ("audio", "aac")]
    assert len(seen.white) == round(total * rate)
    assert abs(seen.duration - total) < 0.05
    # Each change of the picture is where it must be, and that of the sound with it.
    expected, before = [], 0.0
    for (begin, end), (first, last) in zip(segments, LOUD, strict=True):
        expected += [before + first - begin, before + last - begin]
        before += end - begin
    for changes in (seen.changes(seen.white), seen.changes(seen.loud)):
        assert changes == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize(
    ("name", "format", "streams"),
    [
        ("film", "mp4", [("video", "h264"), ("audio", "aac")]),
        ("ntsc", "mov", [("video", "h264"), ("audio", "aac")]),
        ("ntsc", "m4a", [("audio", "aac")]),
        ("sound", "m4a", [("audio", "aac")]),
        ("sound", "mp3", [("audio", "mp3")]),
    ],
)
def test_the_whole(
    api: Api,
    roughy: Emulator,
    talks: dict[str, bytes],
    tmp_path: Path,
    name: str,
    format: str,
    streams: list[tuple[str, str]],
) -> None:
    asset_id = roughy.seed_asset(content=talks[name], type="audio" if name == "sound" else "video")
    seen = download(render(api, asset_id, format), tmp_path / "render")
    assert [(kind, codec.removesuffix("float")) for kind, codec in seen.streams] == streams
    assert abs(seen.duration - SECONDS) < 0.05
    assert seen.changes(seen.loud) == pytest.approx([at for pair in LOUD for at in pair], abs=0.04)
    if len(streams) == 2:
        # Frame by frame what it was, although Matroska rounds its time stamps.
        (tmp_path / "source").write_bytes(talks[name])
        source = Seen(tmp_path / "source")
        assert [is_white for _, is_white in seen.white] == [is_white for _, is_white in source.white]
        assert len(seen.white) == {"film": 165, "ntsc": 198}[name]


@pytest.mark.parametrize("name", ["film", "sound"])
@pytest.mark.parametrize("format", ["m4a", "mp3"])
def test_the_sound_of_a_cut(
    api: Api, roughy: Emulator, talks: dict[str, bytes], tmp_path: Path, name: str, format: str
) -> None:
    asset_id = roughy.seed_asset(content=talks[name])
    cut_id = cut(api, asset_id, "Some of it.")
    seen = download(render(api, asset_id, format, cut_id), tmp_path / "render")
    assert len(seen.streams) == 1
    assert abs(seen.duration - sum(end - begin for begin, end in roughy.cut(cut_id)["segments"])) < 0.05


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((1280, 720), "720p", (1280, 720)),
        ((1440, 810), "720p", (1280, 720)),
        ((810, 1440), "720p", (720, 1280)),
        ((640, 360), "1080p", (640, 360)),
        ((640, 360), None, (640, 360)),
    ],
)
def test_resolutions(
    api: Api,
    roughy: Emulator,
    tmp_path: Path,
    size: tuple[int, int],
    resolution: str | None,
    expected: tuple[int, int],
) -> None:
    content = media.make_talk(tmp_path / "a.mp4", [(0, 0.2)], 0.2, size=size).read_bytes()
    asset_id = roughy.seed_asset(content=content, type="video")
    assert download(render(api, asset_id, "mp4", resolution=resolution), tmp_path / "render").size == expected


@pytest.mark.parametrize(
    ("matrix", "size", "white"),
    [((0, 1, -1, 0), (36, 64), (18, 8)), ((0, -1, 1, 0), (36, 64), (18, 56)), ((-1, 0, 0, -1), (64, 36), (56, 18))],
)
def test_a_phone_that_was_held_upright(
    api: Api,
    roughy: Emulator,
    tmp_path: Path,
    matrix: tuple[int, int, int, int],
    size: tuple[int, int],
    white: tuple[int, int],
) -> None:
    path = media.make_halves(tmp_path / "phone.mp4")
    media.turn(path, matrix)
    asset_id = roughy.seed_asset(content=path.read_bytes(), type="video")
    seen = download(render(api, asset_id, "mp4"), tmp_path / "render")
    assert seen.size == size
    with av.open(str(tmp_path / "render")) as container:
        frame = next(container.decode(video=0))
        assert getattr(frame, "rotation", 0) == 0
        plane = frame.planes[0]
        x, y = white
        assert bytes(plane)[y * plane.line_size + x] > 200
        assert bytes(plane)[(frame.height - 1 - y) * plane.line_size + frame.width - 1 - x] < 50


def test_bit_rates_and_frame_rates(api: Api, roughy: Emulator, talks: dict[str, bytes], tmp_path: Path) -> None:
    sound = roughy.seed_asset(content=talks["sound"])
    for asked, kbps in ((128, 128), (320, 320), (None, 192)):
        seen = download(render(api, sound, "mp3", audio_bitrate=asked), tmp_path / "render")
        assert seen.bit_rates == {"audio": kbps * 1000}
    poor = media.make_audio(tmp_path / "poor.mp3", 1)
    asset_id = roughy.seed_asset(content=poor.read_bytes())
    seen = download(render(api, asset_id, "mp3", audio_bitrate=320), tmp_path / "render")
    assert seen.bit_rates == Seen(poor).bit_rates
    film = roughy.seed_asset(content=talks["film"], type="video")
    seen = download(render(api, film, "mp4", frame_rate=50, video_bitrate=5), tmp_path / "render")
    assert len(seen.white) == SECONDS * 50
    assert seen.changes(seen.white) == pytest.approx([at for pair in LOUD for at in pair], abs=0.04)


def test_without_sound_or_picture(api: Api, roughy: Emulator, talks: dict[str, bytes], tmp_path: Path) -> None:
    silent = media.make_video(tmp_path / "silent.mp4", 1).read_bytes()
    asset_id = roughy.seed_asset(content=silent, type="video")
    assert roughy.cut(cut(api, asset_id))["segments"] == [(0, 1)]
    seen = download(render(api, asset_id, "mp4"), tmp_path / "render")
    assert (seen.streams, len(seen.white)) == ([("video", "h264")], 25)
    failed = render(api, asset_id, "mp3")
    assert (failed["state"], failed["error_code"], failed["download_url"]) == ("failed", "render_failed", None)
    assert "sound" in failed["error_message"]
    nothing = media.make_long_audio(tmp_path / "nothing.wav", 2).read_bytes()
    assert roughy.cut(cut(api, roughy.seed_asset(content=nothing)))["segments"] == [(0, 2)]
    with Emulator(progression="immediate", choices=Choices(audio_has_video_renders=True)) as other, Api(other) as there:
        asset_id = other.seed_asset(content=talks["sound"], type="audio")
        assert download(render(there, asset_id, "mp4"), tmp_path / "render").streams == [("audio", "aac")]


def test_spoilt_media_fails(api: Api, roughy: Emulator, talks: dict[str, bytes], tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    spoilt.write_bytes(talks["film"])
    asset_id = roughy.seed_asset(content=media.corrupt(spoilt).read_bytes(), type="video")
    cut_id = api.http.post("/v1/cuts", json={"asset_id": asset_id}).json()["id"]
    roughy.settle()
    facts = api.http.get(f"/v1/cuts/{cut_id}").json()
    assert (facts["state"], facts["error_code"]) == ("failed", "cut_failed")
    assert "\n" not in facts["error_message"]
    for format in ("mp4", "mp3"):
        assert render(api, asset_id, format)["state"] == "failed"


def test_an_uploaded_film_becomes_a_rendered_cut(
    api: Api, roughy: Emulator, talks: dict[str, bytes], tmp_path: Path
) -> None:
    asset_id = api.upload(talks["film"])
    assert api.get(asset_id)["state"] == "ready"
    seen = download(render(api, asset_id, "mp4", cut(api, asset_id), resolution="720p"), tmp_path / "render")
    assert seen.size == (96, 54)


def test_short_media_is_finished_at_the_first_poll(api: Api, roughy: Emulator, talks: dict[str, bytes]) -> None:
    asset_id = roughy.seed_asset(content=talks["sound"])
    reply = api.http.post("/v1/cuts", json={"asset_id": asset_id})
    assert reply.json()["state"] == "pending"
    # A look waits for a second; on a very busy machine another one is needed.
    looks = (api.http.get(f"/v1/cuts/{reply.json()['id']}").json()["state"] for _ in range(10))
    assert next((number for number, state in enumerate(looks) if state == "completed"), 10) < 10


def test_cancelled_and_others(talks: dict[str, bytes]) -> None:
    with Emulator(progression="manual") as roughy, Api(roughy) as api:
        asset_id = roughy.seed_asset(content=talks["film"], type="video")
        ids = []
        for height in ("720p", "1080p", "4k"):
            body = {"asset_id": asset_id, "output": {"format": "mp4", "resolution": height}}
            ids.append(api.http.post("/v1/renders", json=body).json()["id"])
        assert api.http.delete(f"/v1/renders/{ids[1]}").status_code == 204
        assert set(roughy.settle()) == {ids[0], ids[2]}
        assert [roughy.render(each)["state"] for each in ids] == ["completed", "failed", "completed"]
        assert roughy.render(ids[1])["stored_bytes"] == 0


def test_what_was_being_made_is_made_after_a_start(tmp_path: Path, talks: dict[str, bytes]) -> None:
    with Emulator(data_dir=tmp_path, progression="manual") as roughy, Api(roughy) as api:
        asset_id = roughy.seed_asset(content=talks["film"], type="video")
        cut_id = api.http.post("/v1/cuts", json={"asset_id": asset_id}).json()["id"]
        render_id = api.http.post("/v1/renders", json={"asset_id": asset_id, "output": {"format": "mp3"}}).json()["id"]
    # As if it had been killed at work.
    with contextlib.closing(sqlite3.connect(tmp_path / "roughy.sqlite")) as database:
        database.execute("UPDATE cuts SET worked = 0, segments = NULL")
        database.execute("UPDATE renders SET worked = 0, size_bytes = NULL")
        database.commit()
    (tmp_path / "bytes" / render_id).write_bytes(b"half of it")
    with Emulator(data_dir=tmp_path, progression="manual") as roughy, Api(roughy) as api:
        roughy.settle()
        assert len(roughy.cut(cut_id)["segments"]) == len(LOUD)
        seen = download(api.http.get(f"/v1/renders/{render_id}").json(), tmp_path / "render")
        assert abs(seen.duration - SECONDS) < 0.05

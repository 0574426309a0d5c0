"""Media whose container declares no duration, or a wrong one: measured, rendered and cut completely."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import httpx
import pytest

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.emulator.editing import edit
from airflow_provider_roughy.emulator.media import MediaProblem, measure, sniff
from airflow_provider_roughy.emulator.rendering import render
from harness import media
from tests.emulator.api import Api

NO_TAGS = {"id3v2_version": "0", "write_xing": "0"}


def never() -> bool:
    return False


def vbr(path: Path, *, tag: bytes = b"") -> Path:
    """Write an MP3 of 1 s at 256 kbit/s and 3 s at 32 kbit/s: by its first frame it is 1.4 s long."""
    loud = media.make_audio(path, 1, options=NO_TAGS, bit_rate=256_000).read_bytes()
    quiet = media.make_audio(path, 3, options=NO_TAGS, bit_rate=32_000).read_bytes()
    path.write_bytes(tag + loud + quiet)
    return path


def empty_xing() -> bytes:
    """Return a frame with a tag that has no number of frames, as a writer to a pipe leaves it."""
    frame = bytearray(b"\xff\xfb\x94\xc4" + bytes(380))
    frame[36:44] = b"Xing\x00\x00\x00\x01"
    return bytes(frame)


MADE = {
    "live.webm": lambda path: media.make_video(path, 3, "webm", piped=True),
    "audio.webm": lambda path: media.make_audio(path, 3, "weba", piped=True),
    "live.mkv": lambda path: media.make_video(path, 3, "mkv", audio=True, piped=True),
    "live.mka": lambda path: media.make_audio(path, 3, "mka", piped=True),
    "pipe.flac": lambda path: media.make_audio(path, 3, "flac", piped=True),
    "pipe.wav": lambda path: media.make_audio(path, 3, "wav", piped=True),
    "pipe.avi": lambda path: media.make_video(path, 3, "avi", piped=True),
    "pipe.flv": lambda path: media.make_video(path, 3, "flv", piped=True),
    "pipe.wmv": lambda path: media.make_video(path, 3, "wmv", piped=True),
    "pipe.ts": lambda path: media.make_video(path, 3, "ts", piped=True),
    "pipe.mpg": lambda path: media.make_video(path, 3, "mpg", piped=True),
    "a.aac": lambda path: media.make_audio(path, 3, "aac"),
    "fragments.mp4": lambda path: media.make_video(path, 3, "mp4", options={"movflags": "empty_moov"}, piped=True),
    "vbr.mp3": lambda path: vbr(path),
    "empty-xing.mp3": lambda path: vbr(path, tag=empty_xing()),
}


def seconds_of(path: Path) -> float:
    with av.open(str(path)) as container:
        return (container.duration or 0) / av.time_base


@pytest.mark.parametrize("name", MADE)
def test_undeclared_length_is_measured_rendered_and_cut(tmp_path: Path, name: str) -> None:
    path = MADE[name](tmp_path / name)
    expected = 4 if name.endswith("mp3") else 3
    found = measure(path)
    assert found.problem is None
    assert float(found.seconds or 0) == pytest.approx(expected, abs=0.1)
    kind = sniff(path.read_bytes()[:65536])
    assert kind is not None
    output = {"format": "mp4" if kind.type == "video" else "m4a"}
    asked = dict.fromkeys(("resolution", "video_bitrate", "audio_bitrate", "frame_rate"))
    render(path, tmp_path / "out", None, {**asked, **output}, never)
    assert seconds_of(tmp_path / "out") == pytest.approx(expected, abs=0.1)
    assert sum(end - begin for begin, end in edit(path, None, never).segments) == pytest.approx(expected, abs=0.1)


def stamped_wav(path: Path, riff: int, data: int, seconds: float = 2) -> Path:
    content = bytearray(media.make_long_audio(path, seconds).read_bytes())
    content[4:8], content[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("riff", "data"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0),
        (0, 0),
        (0, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF - 36),
        (0x7FFFF024, 0x7FFFF000),
        (0x7FFFF044, 0x7FFFEFFC),
        (0x80000024, 0x80000000),
        (0x7FFFFFFF, 0x7FFFFFFF - 36),
        (0x7FFFFFFF, 0x7FFFFFFF),
        (0x80000023, 0x7FFFFFFF),
        (36 + 16_000, 0xFFFFFFFF),
        (36 + 16_000, 0),
    ],
    ids=hex,
)
def test_wav_from_a_pipe_is_whole(tmp_path: Path, riff: int, data: int) -> None:
    assert measure(stamped_wav(tmp_path / "a.wav", riff, data)).seconds == "2.000"


@pytest.mark.parametrize("riff", [36 + 16_010, 1_000_000, 0x70000000, 0xF0000000])
def test_wav_that_ends_before_its_length_is_truncated(tmp_path: Path, riff: int) -> None:
    assert "truncated" in str(measure(stamped_wav(tmp_path / "a.wav", riff, riff - 36)).problem)


@pytest.mark.parametrize("fact", [0x555252AA, 0xFFFFFFFF])
def test_wav_from_a_pipe_with_a_number_of_samples_is_measured(tmp_path: Path, fact: int) -> None:
    """SoX writes the number of samples that its impossible length would have, by which it is two hours long."""
    content = stamped_wav(tmp_path / "a.wav", 0x7FFFF044, 0x7FFFEFFC).read_bytes()
    (tmp_path / "a.wav").write_bytes(content[:36] + b"fact" + struct.pack("<II", 4, fact) + content[36:])
    assert measure(tmp_path / "a.wav").seconds == "2.000"


@pytest.mark.parametrize("size", [0x7F000050, 0x7F00002E])
def test_aiff_of_sox_from_a_pipe_is_measured(tmp_path: Path, size: int) -> None:
    content = bytearray(media.make_audio(tmp_path / "a.aiff", 2, "aiff").read_bytes())
    at, sound = content.index(b"COMM"), content.index(b"SSND")
    content[4:8] = struct.pack(">I", size)
    content[at + 10 : at + 14] = struct.pack(">I", 0x3F800000)
    content[sound + 4 : sound + 8] = struct.pack(">I", 0x7F000008)
    (tmp_path / "a.aiff").write_bytes(content)
    assert measure(tmp_path / "a.aiff").seconds == "2.000"


def test_rf64_is_truncated_by_its_long_length(tmp_path: Path) -> None:
    path = media.make_audio(tmp_path / "a.wav", 2, "wav", options={"rf64": "always"})
    assert path.read_bytes()[:4] == b"RF64"
    assert measure(path).seconds == "2.000"
    assert "truncated" in str(measure(media.truncate(path)).problem)


def test_live_recording_is_rendered_whole_over_http(tmp_path: Path) -> None:
    path = media.make_video(tmp_path / "live.webm", 2, "webm", piped=True)
    with Emulator(progression="immediate") as roughy, Api(roughy) as api:
        asset = api.create(path.stat().st_size)
        api.patch(asset["upload_url"], 0, path.read_bytes())
        assert float(api.get(asset["id"])["duration_seconds"]) == pytest.approx(2, abs=0.1)
        body = {"asset_id": asset["id"], "output": {"format": "mp4"}}
        made = api.http.post("/v1/renders", json=body)
        assert made.status_code in (200, 201, 202), made.text
        found = api.http.get(f"/v1/renders/{made.json()['id']}").json()
        assert found["state"] == "completed"
        (tmp_path / "out.mp4").write_bytes(httpx.get(found["download_url"]).content)
    assert seconds_of(tmp_path / "out.mp4") == pytest.approx(2, abs=0.1)


def test_too_short_a_cut_fails_instead_of_an_unreadable_file(tmp_path: Path) -> None:
    path = media.make_audio(tmp_path / "a.mp3", 1)
    asked = dict.fromkeys(("resolution", "video_bitrate", "audio_bitrate", "frame_rate"))
    with pytest.raises(MediaProblem, match="too short"):
        render(path, tmp_path / "out", [(Fraction(0), Fraction(1, 10**6))], {**asked, "format": "m4a"}, never)

"""Media detection: real files of many formats, complete, truncated and damaged."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_roughy.emulator.media import measure, sniff
from harness import media

#: Name of the maker's format -> what its bytes must be taken for.
EXPECTED = {
    "mp3": ("audio", "mp3", "audio/mpeg"),
    "wav": ("audio", "wav", "audio/wav"),
    "flac": ("audio", "flac", "audio/flac"),
    "opus": ("audio", "opus", "audio/ogg"),
    "m4a": ("audio", "m4a", "audio/mp4"),
    "aac": ("audio", "aac", "audio/aac"),
    "mka": ("audio", "mka", "audio/x-matroska"),
    "weba": ("audio", "webm", "audio/webm"),
    "aiff": ("audio", "aiff", "audio/aiff"),
    "ac3": ("audio", "ac3", "audio/ac3"),
    "mp4": ("video", "mp4", "video/mp4"),
    "mov": ("video", "mov", "video/quicktime"),
    "mkv": ("video", "mkv", "video/x-matroska"),
    "webm": ("video", "webm", "video/webm"),
    "avi": ("video", "avi", "video/x-msvideo"),
    "ts": ("video", "ts", "video/mp2t"),
    "mpg": ("video", "mpg", "video/mpeg"),
    "flv": ("video", "flv", "video/x-flv"),
    "wmv": ("video", "wmv", "video/x-ms-wmv"),
}
#: Streams without any declared length: half of one is a shorter one.
ENDLESS = {"aac", "ac3", "ts", "mpg"}


def make(folder: Path, name: str, seconds: float = 3) -> Path:
    path = folder / f"media.{name}"
    if name in media.AUDIO:
        return media.make_audio(path, seconds, name)
    return media.make_video(path, seconds, name, audio=name in ("mp4", "mov", "mkv"))


@pytest.mark.parametrize("name", EXPECTED)
def test_kind_and_duration(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, name)
    kind = sniff(path.read_bytes()[:65536])
    assert kind is not None
    assert (kind.type, kind.extension, kind.content_type) == EXPECTED[name]
    assert sniff(path.read_bytes()[:64]) is not None
    found = measure(path)
    assert found.problem is None
    assert float(found.seconds or 0) == pytest.approx(3, abs=0.06)
    assert (found.seconds or "").partition(".")[2].isdigit()


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - ENDLESS))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_truncated(tmp_path: Path, name: str, share: float) -> None:
    assert measure(media.truncate(make(tmp_path, name), share)).problem


@pytest.mark.parametrize("name", sorted(ENDLESS))
def test_half_an_endless_stream_is_a_shorter_one(tmp_path: Path, name: str) -> None:
    found = measure(media.truncate(make(tmp_path, name)))
    assert float(found.seconds or 0) == pytest.approx(1.5, abs=0.2)


# Noise is a perfectly good recording of noise where samples are not coded.
@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"wav", "aiff"}))
def test_corrupt(tmp_path: Path, name: str) -> None:
    assert measure(media.corrupt(make(tmp_path, name))).problem


@pytest.mark.parametrize("options", [{"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
@pytest.mark.parametrize("name", ["mp4", "mov"])
def test_mp4_with_the_index_in_front(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    path = media.make_video(tmp_path / name, 3, name, options=options)
    assert float(measure(path).seconds or 0) == pytest.approx(3, abs=0.05)
    assert measure(media.truncate(path)).problem


def test_mp3_without_any_header(tmp_path: Path) -> None:
    path = media.make_audio(tmp_path / "a.mp3", 3, options={"id3v2_version": "0", "write_xing": "0"})
    kind = sniff(path.read_bytes()[:64])
    assert kind is not None
    assert kind.extension == "mp3"
    assert float(measure(path).seconds or 0) == pytest.approx(3, abs=0.05)


def test_mp3_with_a_large_cover_before_the_sound(tmp_path: Path) -> None:
    sound = media.make_audio(tmp_path / "a.mp3", 3, options={"id3v2_version": "0"}).read_bytes()
    size = 200_000
    tag = b"ID3\x04\x00\x00" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127]) + bytes(size)
    path = tmp_path / "b.mp3"
    path.write_bytes(tag + sound)
    kind = sniff(path.read_bytes()[:65536])
    assert kind is not None
    assert kind.extension == "mp3"
    assert float(measure(path).seconds or 0) == pytest.approx(3, abs=0.05)


def test_wav_from_a_pipe_has_no_length(tmp_path: Path) -> None:
    path = media.make_long_audio(tmp_path / "a.wav", 5)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert float(measure(path).seconds or 0) == pytest.approx(5, abs=0.05)


def test_an_audio_only_mp4_of_a_video_brand(tmp_path: Path) -> None:
    path = media.make_audio(tmp_path / "a.m4a", 2, "m4a", options={"movflags": "faststart"})
    content = path.read_bytes().replace(b"M4A ", b"isom")
    kind = sniff(content)
    assert kind is not None
    assert (kind.type, kind.extension) == ("audio", "m4a")


@pytest.mark.parametrize(
    "head",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(100),
        b"GIF89a" + bytes(100),
        b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(100),
        b"\x00\x00\x00\x18ftypheic" + bytes(100),
        b"\x00\x00\x00\x1cftypavif" + bytes(100),
        b"%PDF-1.7" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"\x7fELF" + bytes(100),
        b"Good morning, everybody. " * 10,
        bytes(4096),
        b"\xff" * 4096,
        b"G" * 64,
    ],
)
def test_what_is_neither_audio_nor_video(head: bytes) -> None:
    assert sniff(head) is None


def test_noise_is_hardly_ever_media() -> None:
    source = random.Random(7)
    assert sum(sniff(source.randbytes(4096)) is not None for _ in range(3000)) < 5


def test_measuring_never_raises(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert measure(path).problem
    for content in (
        b"",
        b"ID3",
        b"fLaC",
        b"OggS",
        b"\x1aE\xdf\xa3" + bytes(20),
        b"\x00\x00\x00\x18ftypisom",
        os.urandom(5000),
    ):
        path.write_bytes(content)
        assert measure(path).problem


def test_cut_anywhere(tmp_path: Path) -> None:
    for name in ("mp4", "wav", "flac", "mkv"):
        content = make(tmp_path, name).read_bytes()
        source = random.Random(name)
        for _ in range(10):
            path = tmp_path / "cut"
            path.write_bytes(content[: source.randrange(len(content) * 9 // 10)])
            assert measure(path).problem, name


def test_the_package_needs_no_extra_until_the_server_is_used() -> None:
    code = (
        "import sys; sys.modules['starlette'] = sys.modules['uvicorn'] = sys.modules['av'] = None\n"
        "from airflow_provider_roughy.emulator import Choices, Fault\n"
        "from airflow_provider_roughy.emulator.__main__ import main\n"
        "sys.exit(main([]))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert "pip install 'airflow-provider-roughy[emulator]'" in run.stderr
    assert "Traceback" not in run.stderr

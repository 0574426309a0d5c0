"""The duration of a recording from its headers, whatever they contain and with every PyAV."""

from __future__ import annotations

import io
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pytest

from airflow_provider_roughy import probe
from airflow_provider_roughy.exceptions import RoughySourceError
from airflow_provider_roughy.transfer.source import LocalSource, Reader, Source
from harness import media

#: As they are made with three seconds; raw AAC and AC-3 have no header that declares a length.
SECONDS = {
    **dict.fromkeys(["mp3", "wav", "flac", "ogg", "opus", "m4a", "mka", "weba", "aiff"], 3),
    **dict.fromkeys(["mp4", "mov", "mkv", "webm", "avi", "ts", "mpg", "flv", "wmv"], 3),
    **dict.fromkeys(["aac", "ac3"], None),
}


def seconds_of(path: Path) -> float | None:
    return probe.seconds_of(LocalSource(str(path), uri=str(path)))


def make(path: Path, format: str, seconds: float = 3, options: dict[str, str] | None = None) -> Path:
    maker = media.make_audio if format in media.AUDIO else media.make_video
    return maker(path, seconds, format, options=options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A recording in each format."""
    folder = tmp_path_factory.mktemp("made")
    return {format: make(folder / f"recording.{format}", format) for format in SECONDS}


@pytest.mark.parametrize("format", SECONDS)
def test_length_of_a_format(made: dict[str, Path], format: str) -> None:
    expected = SECONDS[format]
    assert seconds_of(made[format]) == (pytest.approx(expected, abs=0.1) if expected else None)


@pytest.mark.parametrize("format", ["mp3", "mkv", "mov", "flac"])
def test_titles_in_another_encoding_do_not_hide_the_length(tmp_path: Path, format: str) -> None:
    import av

    path = tmp_path / f"title.{format}"
    container_format, codec = {**media.AUDIO, **media.VIDEO}[format]
    with av.open(str(path), "w", format=container_format) as container:
        container.metadata["title"] = "TITLE" * 4
        stream: Any = container.add_stream("aac" if format in media.VIDEO else codec, rate=media.SAMPLE_RATE)
        stream.layout = "mono"
        media._encode_sine(container, stream, 3)
    content = path.read_bytes()
    wide = "TITLE".encode("utf-16-le")
    assert b"TITLE" in content or wide in content
    path.write_bytes(content.replace(b"TITLE", b"\xff\xc3(\x80\xfe").replace(wide, b"\x00\xd8" * 5))
    assert seconds_of(path) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("options", [{"write_xing": "0"}, {"write_xing": "0", "id3v2_version": "0"}])
def test_mp3_that_does_not_count_its_frames_is_unknown(tmp_path: Path, options: dict[str, str]) -> None:
    """A guess from the first bit rate can be wrong by a factor of ten where the bit rate varies."""
    assert seconds_of(make(tmp_path / "guess.mp3", "mp3", options=options)) is None


def test_mp3_behind_a_long_tag(made: dict[str, Path], tmp_path: Path) -> None:
    content = made["mp3"].read_bytes()
    assert content.startswith(b"ID3")
    path = tmp_path / "cover.mp3"
    # 300,000 bytes, as a tag with a cover has, in front of the tag that is there: four bytes of seven bits.
    path.write_bytes(b"ID3\x03\0\0" + bytes([0, 18, 39, 96]) + bytes(300_000) + content[10 + content[9] :])
    assert seconds_of(path) == pytest.approx(3, abs=0.1)


def test_wav_that_was_streamed_is_as_long_as_its_file(made: dict[str, Path], tmp_path: Path) -> None:
    """A length of 0, of 2 or of 4 GiB is what a recorder writes that does not know it yet."""
    content = made["wav"].read_bytes()
    at = content.index(b"data") + 4
    path = tmp_path / "streamed.wav"
    for declared in (0, 0x7FFFF024, 0x7FFFFFFF, 0xFFFFFFFF):
        path.write_bytes(content[:at] + struct.pack("<I", declared) + content[at + 4 :])
        assert seconds_of(path) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("format", ["mkv", "webm"])
def test_live_recording_without_a_length_is_unknown(tmp_path: Path, format: str) -> None:
    assert seconds_of(make(tmp_path / f"live.{format}", format, options={"live": "1"})) is None


def test_damaged_recordings_never_raise(made: dict[str, Path], tmp_path: Path) -> None:
    chance = random.Random(7)
    path = tmp_path / "damaged"
    for content in (each.read_bytes() for each in made.values()):
        for number in range(8):
            damaged = bytearray(content[: max(64, len(content) * (number + 1) // 8)])
            for _ in range(20):
                damaged[chance.randrange(min(len(damaged), 800 if number % 2 else len(damaged)))] = chance.randrange(
                    256
                )
            path.write_bytes(damaged)
            length = seconds_of(path)
            assert length is None or length > 0


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {path}\nduration 9\n# and a few more bytes than an upload has at least\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n",
        '<MPD type="static" mediaPresentationDuration="PT9S"><Period><AdaptationSet>'
        '<Representation mimeType="video/mp4"><BaseURL>{url}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>",
    ],
    ids=["HLS by HTTP", "HLS of files", "concat", "SDP", "DASH"],
)
def test_playlist_is_unknown_and_opens_nothing(made: dict[str, Path], tmp_path: Path, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        path = tmp_path / "list.m3u8"
        path.write_text(text.format(url=f"http://127.0.0.1:{port}/a.ts", path=made["ts"], port=port))
        assert seconds_of(path) is None
        with pytest.raises(TimeoutError):
            server.accept()


class Stored(Source):
    """An object of a storage whose reads fail as its own library raises it, or take their time."""

    def __init__(self, content: bytes, failure: Exception | None = None, after: int = 0) -> None:
        self._content, self._failure, self._after = content, failure, after
        super().__init__("s3://recordings/talk.mp4")

    def _stat(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"size": len(self._content)}, {}

    def _open(self) -> IO[bytes]:
        return io.BytesIO(self._content)

    @contextmanager
    def open(self) -> Iterator[Reader]:
        file = _Breaking(self._content, self._failure, self._after)
        with file:
            yield Reader(self, cast("IO[bytes]", file))


class _Breaking(io.BytesIO):
    def __init__(self, content: bytes, failure: Exception | None, after: int) -> None:
        super().__init__(content)
        self._failure, self._left = failure, after

    def read(self, size: int | None = -1, /) -> bytes:
        if self._failure and self._left <= 0:
            raise self._failure
        self._left -= 1
        return super().read(size)


class _StorageError(Exception):
    """As botocore's and others': no OSError."""


@pytest.mark.parametrize("failure", [OSError("reset by peer"), _StorageError("throttled"), ValueError("closed")])
@pytest.mark.parametrize("after", [0, 1])
def test_storage_that_breaks_off_is_an_error_of_the_source(
    made: dict[str, Path], failure: Exception, after: int
) -> None:
    with pytest.raises(RoughySourceError, match=f"talk.mp4 cannot be read: {failure}"):
        probe.seconds_of(Stored(made["mp4"].read_bytes(), failure, after))


def test_length_is_unknown_where_reading_takes_too_long(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = Stored(made["mp4"].read_bytes())
    assert probe.seconds_of(source) == pytest.approx(3, abs=0.1)
    monkeypatch.setattr(probe, "TIME_LIMIT", -1.0)
    assert probe.seconds_of(source) is None

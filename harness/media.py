"""Small real media files, generated with PyAV, and functions to damage them."""

from __future__ import annotations

import array
import math
import os
import random
import struct
import wave
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

SAMPLE_RATE = 48_000

#: FFmpeg's name of the container and the codec, by the name that tests use.
AUDIO = {
    "mp3": ("mp3", "libmp3lame"),
    "wav": ("wav", "pcm_s16le"),
    "flac": ("flac", "flac"),
    "ogg": ("ogg", "libopus"),
    "opus": ("ogg", "libopus"),
    "m4a": ("ipod", "aac"),
    "aac": ("adts", "aac"),
    "mka": ("matroska", "libopus"),
    "weba": ("webm", "libopus"),
    "aiff": ("aiff", "pcm_s16be"),
    "wma": ("asf", "wmav2"),
    "ac3": ("ac3", "ac3"),
}
VIDEO = {
    "mp4": ("mp4", "mpeg4"),
    "mov": ("mov", "mpeg4"),
    "mkv": ("matroska", "mpeg4"),
    "webm": ("webm", "libvpx"),
    "avi": ("avi", "mpeg4"),
    "ts": ("mpegts", "mpeg2video"),
    "mpg": ("mpeg", "mpeg2video"),
    "flv": ("flv", "flv"),
    "wmv": ("asf", "wmv2"),
}


class Pipe:
    """A file without seek, like a pipe: the muxer cannot write the length into the header.

    :param path: The path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(b"")

    def write(self, data: bytes) -> int:
        """Append data."""
        with self._path.open("ab") as file:
            return file.write(data)


def make_audio(
    path: Path,
    seconds: float = 3,
    format: str = "mp3",
    options: dict[str, str] | None = None,
    piped: bool = False,
    bit_rate: int | None = None,
) -> Path:
    """Write a sine wave.

    :param path: The path of the file.
    :param seconds: Its duration.
    :param format: A key of :data:`AUDIO`.
    :param options: Muxer options of FFmpeg, for example ``{"id3v2_version": "0", "write_xing": "0"}``.
    :param piped: Whether to write it as to a pipe.
    :param bit_rate: Bits per second, by default the codec's own.
    """
    container_format, codec = AUDIO[format]
    file: Any = Pipe(path) if piped else str(path)
    with av.open(file, "w", format=container_format, options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=SAMPLE_RATE)
        stream.layout = "mono"
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        _encode_sine(container, stream, seconds)
    return path


def make_video(
    path: Path,
    seconds: float = 2,
    format: str = "mp4",
    audio: bool = False,
    options: dict[str, str] | None = None,
    piped: bool = False,
) -> Path:
    """Write a moving grey video of 64x64 at 25 frames per second.

    :param path: The path of the file.
    :param seconds: Its duration.
    :param format: A key of :data:`VIDEO`.
    :param audio: Whether to add a sine wave of the same duration (for containers that take AAC).
    :param options: Muxer options of FFmpeg, for example ``{"movflags": "faststart"}``.
    :param piped: Whether to write it as to a pipe.
    """
    container_format, codec = VIDEO[format]
    file: Any = Pipe(path) if piped else str(path)
    with av.open(file, "w", format=container_format, options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        sound = container.add_stream("aac", rate=SAMPLE_RATE) if audio else None
        for number in range(round(seconds * 25)):
            frame = av.VideoFrame(64, 64, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes((number * 7 + i) % 256 for i in range(plane.buffer_size)))
            frame.pts = number
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _encode_sine(container, sound, seconds)
    return path


def make_talk(
    path: Path,
    loud: Sequence[tuple[float, float]],
    seconds: float,
    format: str = "mp4",
    size: tuple[int, int] = (64, 36),
    rate: Fraction = Fraction(25),
) -> Path:
    """Write a recording that is loud (and, if a video, white) at given times, and otherwise silent (and black).

    :param path: The path of the file.
    :param loud: Start and end of each loud time in seconds.
    :param seconds: Its duration.
    :param format: A key of :data:`VIDEO` for containers that take AAC, or of :data:`AUDIO`.
    :param size: Width and height of the video in pixels.
    :param rate: Frames per second.
    """

    def is_loud(at: Fraction | float) -> bool:
        return any(begin <= at < end for begin, end in loud)

    container_format, codec = AUDIO.get(format) or VIDEO[format]
    with av.open(str(path), "w", format=container_format) as container:
        picture: Any = container.add_stream(codec, rate=rate) if format in VIDEO else None
        sound: Any = container.add_stream("aac" if picture else codec, rate=SAMPLE_RATE)
        sound.layout = "mono"
        if picture:
            picture.width, picture.height, picture.pix_fmt = *size, "yuv420p"
            for number in range(round(seconds * rate)):
                frame = av.VideoFrame(*size, "yuv420p")
                for plane, grey in zip(frame.planes, (235 if is_loud(number / rate) else 16, 128, 128), strict=True):
                    plane.update(bytes([grey]) * plane.buffer_size)
                frame.pts, frame.time_base = number, 1 / rate
                container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
        _encode_sine(container, sound, seconds, is_loud)
    return path


def make_halves(path: Path) -> Path:
    """Write five video frames of 64x36, white on the left and black on the right, as MP4."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 36, "yuv420p"
        for number in range(5):
            frame = av.VideoFrame(64, 36, "yuv420p")
            light, *colours = frame.planes
            light.update((b"\xeb" * 32 + b"\x10" * (light.line_size - 32)) * light.height)
            for plane in colours:
                plane.update(b"\x80" * plane.buffer_size)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Set the rotation of an MP4, in place (ISO 14496-12, 8.3.2: matrix of ``tkhd``)."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def make_long_audio(path: Path, seconds: float) -> Path:
    """Write silence of any duration quickly: a WAV of 8 bits at 8 kHz, 8000 bytes per second."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(b"\x80" * round(seconds * 8000))
    return path


def corrupt(path: Path, keep: int = 64) -> Path:
    """Replace all but the first bytes by noise, in place: its type is recognised, but it cannot be read.

    :param keep: How many bytes to keep, so that the type is still recognised.
    """
    content = path.read_bytes()
    path.write_bytes(content[:keep] + random.Random(1).randbytes(max(0, len(content) - keep)))
    return path


def truncate(path: Path, share: float = 0.5) -> Path:
    """Keep only the first part of a file, in place.

    :param share: How much to keep, 0 to 1.
    """
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def _encode_sine(
    container: av.container.OutputContainer,
    stream: av.AudioStream,
    seconds: float,
    is_loud: Callable[[float], bool] = lambda at: True,
) -> None:
    total = round(seconds * SAMPLE_RATE)
    wanted = stream.codec_context.format.name
    resampler = av.AudioResampler(format=wanted, layout=stream.layout.name, rate=SAMPLE_RATE)
    for start in range(0, total, 1024):
        count = min(1024, total - start)
        sine = (int(12000 * math.sin(0.0576 * (start + i))) for i in range(count))
        samples = array.array("h", (is_loud((start + i) / SAMPLE_RATE) * each for i, each in enumerate(sine)))
        frame = av.AudioFrame(format="s16", layout="mono", samples=count)
        frame.planes[0].update(samples.tobytes().ljust(frame.planes[0].buffer_size, b"\0"))
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
        for each in resampler.resample(frame):
            container.mux(stream.encode(each))
    container.mux(stream.encode(None))


def pad(recording: Path, path: Path, *, size: int) -> Path:
    """Write a file of a given size that starts with the bytes of a recording."""
    head = recording.read_bytes()
    path.write_bytes(head + os.urandom(size - len(head)))
    return path

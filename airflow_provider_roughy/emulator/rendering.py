"""Rendering: a media file of a whole recording, or of a cut of it (render page)."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av

from .editing import Segment, picture_rate, start_of, whole_steps
from .media import LENIENT, MediaProblem, Stopped, is_cover, length_of

#: Format -> the muxer's name, its options, the audio codec.
_CONTAINERS: Mapping[str, tuple[str, dict[str, str], str]] = {
    "mp4": ("mp4", {"movflags": "faststart"}, "aac"),
    "mov": ("mov", {"movflags": "faststart"}, "aac"),
    "m4a": ("ipod", {"movflags": "faststart"}, "aac"),
    "mp3": ("mp3", {}, "libmp3lame"),
}
#: The length of the shorter edge in pixels.
_EDGES = {"720p": 720, "1080p": 1080, "4k": 2160}

#: Bits per second of audio if the request does not say.
_AUDIO_BITRATE = 192_000

#: Samples of a frame for the encoder, which splits them into its own frames.
_BLOCK = 4096


def render(
    source: Path, target: Path, segments: Sequence[Segment] | None, output: Mapping[str, Any], stop: Callable[[], bool]
) -> None:
    """Write a media file. Blocks; call it in a thread.

    :param source: The recording.
    :param target: The file to write.
    :param segments: The segments to keep, in order; ``None`` for all.
    :param output: As in the API: ``format``, ``resolution``, ``video_bitrate``, ``audio_bitrate``, ``frame_rate``.
    :param stop: Called regularly; if it returns true, the work ends.
    :raises MediaProblem: If the recording cannot be read, or has no stream that the format can hold.
    :raises Stopped: If ``stop`` returned true.
    """
    muxer, options, codec = _CONTAINERS[output["format"]]
    try:
        with (
            av.open(f"file:{source}", **LENIENT) as recording,
            av.open(f"file:{target}", "w", format=muxer, options=options) as container,
        ):
            picture = next((stream for stream in recording.streams.video if not is_cover(stream)), None)
            if segments is None:
                length = length_of(source, stop=stop)
                segments = [
                    (Fraction(0), length if picture is None else whole_steps(length, 1 / picture_rate(picture)))
                ]
            _render(recording, picture, container, codec, segments, output, stop)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaProblem(f"The media could not be rendered: {type(error).__name__}.") from error


def _render(
    recording: av.container.InputContainer,
    picture: av.VideoStream | None,
    container: av.container.OutputContainer,
    codec: str,
    segments: Sequence[Segment],
    output: Mapping[str, Any],
    stop: Callable[[], bool],
) -> None:
    wants_picture = output["format"] in ("mp4", "mov")
    start = start_of(recording)
    tracks: dict[int, _Picture | _Sound] = {}
    if picture is not None and wants_picture:
        tracks[picture.index] = _Picture(picture, container, segments, start, output)
    if recording.streams.audio:
        sound = recording.streams.audio[0]
        tracks[sound.index] = _Sound(sound, container, codec, segments, start, output)
    if not tracks:
        raise MediaProblem("The recording has no sound.")
    streams = [recording.streams[index] for index in tracks]
    for number, packet in enumerate(recording.demux(streams)):
        if number % 100 == 0 and stop():
            raise Stopped
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        for frame in frames:
            tracks[packet.stream.index].take(frame)
        if all(track.is_complete for track in tracks.values()):
            break
    for track in tracks.values():
        track.finish()
    if not any(track.made for track in tracks.values()):
        raise MediaProblem("What is kept is too short to be rendered.")


class _Picture:
    """The video: every moment of the result shows the frame of the recording at the corresponding moment.

    :param start: The timestamp of the recording's start, in seconds.
    """

    def __init__(
        self,
        source: av.VideoStream,
        container: av.container.OutputContainer,
        segments: Sequence[Segment],
        start: Fraction,
        output: Mapping[str, Any],
    ) -> None:
        rate = Fraction(output["frame_rate"] or picture_rate(source)).limit_denominator(1001)
        self._container = container
        self._time_base = 1 / rate
        self._start = start
        # Timestamps may be rounded: a frame is used from half a frame before its timestamp.
        self._early = 1 / picture_rate(source) / 2
        self._moments = _moments(segments, 1 / rate)
        self._due = next(self._moments, None)
        self.made = 0
        self._shown: av.VideoFrame | None = None
        self._turn = _Turn(source)
        self._stream: av.VideoStream = container.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height = _size(*self._turn.size, output["resolution"])
        self._stream.pix_fmt = "yuv420p"
        # Tests need speed, not small files.
        self._stream.options = {"preset": "ultrafast"}
        if output["video_bitrate"]:
            self._stream.bit_rate = min(output["video_bitrate"] * 1_000_000, source.bit_rate or math.inf)

    @property
    def is_complete(self) -> bool:
        """Whether no more frames of the recording are needed."""
        return self._due is None

    def take(self, frame: Any) -> None:
        """Add the next frame of the recording."""
        if frame.pts is None or frame.time_base is None:
            return
        at = frame.pts * frame.time_base - self._start - self._early
        while self._due is not None and self._due < at and self._shown is not None:
            self._show(self._shown)
        self._shown = frame

    def _show(self, shown: av.VideoFrame) -> None:
        frame = self._turn(shown).reformat(self._stream.width, self._stream.height, "yuv420p")
        frame.pts, frame.time_base = self.made, self._time_base
        # Let the encoder decide.
        frame.pict_type = av.video.frame.PictureType.NONE
        self._container.mux(self._stream.encode(frame))
        self.made += 1
        self._due = next(self._moments, None)

    def finish(self) -> None:
        """Repeat the last frame until the end."""
        if self._shown is None:
            raise MediaProblem("The picture could not be decoded.")
        while self._due is not None:
            self._show(self._shown)
        self._container.mux(self._stream.encode(None))


class _Turn:
    """Rotates frames upright: a phone stores only in which orientation it was held."""

    def __init__(self, source: av.VideoStream) -> None:
        with av.open(source.container.name, **LENIENT) as recording:
            first = next(recording.decode(recording.streams[source.index]), None)
        degrees = _rotation(first) if first is not None else 0
        self._turns = {0: [], 90: ["cclock"], 180: ["clock", "clock"], 270: ["clock"]}.get(degrees % 360, [])
        self._source = source
        self._graph: av.filter.Graph | None = None
        self.size: tuple[int, int] = (source.width, source.height)
        if len(self._turns) == 1:
            self.size = (source.height, source.width)

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Return a frame in the orientation in which it is to be displayed."""
        if not self._turns:
            return frame
        if self._graph is None:
            self._graph = av.filter.Graph()
            filters = [self._graph.add("transpose", turn) for turn in self._turns]
            self._graph.link_nodes(
                self._graph.add_buffer(template=self._source), *filters, self._graph.add("buffersink")
            ).configure()
        self._graph.push(frame)
        return cast(av.VideoFrame, self._graph.pull())


def _rotation(frame: Any) -> int:
    """Return by how many degrees to rotate a frame, counterclockwise."""
    if hasattr(frame, "rotation"):
        return int(frame.rotation)
    # PyAV 13 and 14 have only the matrix (libavutil/display.h).
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return 0
    cosine, sine = struct.unpack_from("=2i", matrix)
    return -round(math.degrees(math.atan2(sine, cosine)))


class _Sound:
    """The audio: the samples of the segments, one after the other; silence where the recording has none."""

    def __init__(
        self,
        source: av.AudioStream,
        container: av.container.OutputContainer,
        codec: str,
        segments: Sequence[Segment],
        start: Fraction,
        output: Mapping[str, Any],
    ) -> None:
        self._container = container
        self._start = start
        self._rate = 44_100 if source.rate == 44_100 else 48_000
        self._layout = "mono" if source.channels == 1 else "stereo"
        self._bytes = 2 if source.channels == 1 else 4
        self._resampler = av.AudioResampler(format="s16", layout=self._layout, rate=self._rate)
        self._segments = [(round(begin * self._rate), round(end * self._rate)) for begin, end in segments]
        self._at: int | None = None
        self._waiting = bytearray()
        self.made = 0
        stream: Any = container.add_stream(codec, rate=self._rate)
        stream.layout = self._layout
        asked = output["audio_bitrate"] * 1000 if output["audio_bitrate"] else _AUDIO_BITRATE
        stream.bit_rate = min(asked, source.bit_rate or asked)
        if codec == "libmp3lame":
            # LAME's scale, from 0 for the best to 9 for the fastest.
            stream.options = {"compression_level": "8"}
        self._stream: av.AudioStream = stream

    @property
    def is_complete(self) -> bool:
        """Whether no more frames of the recording are needed."""
        return not self._segments

    def take(self, frame: Any) -> None:
        """Add the next frame of the recording."""
        if self._at is None and frame.pts is not None and frame.time_base is not None:
            self._at = round((frame.pts * frame.time_base - self._start) * self._rate)
        for each in self._resampler.resample(frame):
            self._take(each)

    def _take(self, frame: av.AudioFrame) -> None:
        at, samples = self._at or 0, bytes(frame.planes[0])[: frame.samples * self._bytes]
        self._at = at + frame.samples
        while self._segments and self._segments[0][0] < self._at:
            begin, end = self._segments[0]
            if begin < at:
                # The recording has no samples before this frame.
                self._waiting += bytes((min(at, end) - begin) * self._bytes)
                begin = min(at, end)
            stop = min(end, self._at)
            self._waiting += samples[(begin - at) * self._bytes : (stop - at) * self._bytes]
            self._segments[0] = (stop, end)
            if stop < end:
                break
            self._segments.pop(0)
        while len(self._waiting) >= _BLOCK * self._bytes:
            self._encode(_BLOCK)

    def _encode(self, samples: int) -> None:
        frame = av.AudioFrame(format="s16", layout=self._layout, samples=samples)
        block = bytes(self._waiting[: samples * self._bytes])
        del self._waiting[: samples * self._bytes]
        frame.planes[0].update(block.ljust(frame.planes[0].buffer_size, b"\0"))
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self.made, Fraction(1, self._rate)
        self._container.mux(self._stream.encode(frame))
        self.made += samples

    def finish(self) -> None:
        """Pad with silence up to the end of the segments."""
        for each in self._resampler.resample(None):
            self._take(each)
        self._waiting += bytes(sum(end - begin for begin, end in self._segments) * self._bytes)
        self._segments = []
        while self._waiting:
            self._encode(min(_BLOCK, len(self._waiting) // self._bytes))
        self._container.mux(self._stream.encode(None))


def _moments(segments: Sequence[Segment], step: Fraction) -> Iterator[Fraction]:
    """Yield, for each frame of the result, the moment of the recording that it shows."""
    made, before = 0, Fraction(0)
    for begin, end in segments:
        length = end - begin
        while made * step < before + length:
            yield begin + made * step - before
            made += 1
        before += length


def _size(width: int, height: int, resolution: str | None) -> tuple[int, int]:
    """Return width and height, even numbers: the shorter edge as requested, but never longer than the original."""
    shorter = min(width, height)
    scale = Fraction(min(shorter, _EDGES[resolution]) if resolution else shorter, shorter)
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)

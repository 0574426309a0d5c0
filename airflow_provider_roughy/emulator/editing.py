"""Cutting: the emulator removes silence, and a script changes the rest.

The emulator does not recognise speech. The script's hash decides which segments are kept and how much of the last one,
so that two scripts make two different cuts, and one script always the same cut.
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av

from .media import LENIENT, MediaProblem, Stopped, is_cover, length_of

#: Start and end in seconds from the start of the recording.
Segment = tuple[Fraction, Fraction]

#: Silence is sound below this share of the maximum amplitude (-40 dB), for so long.
QUIET_SHARE = 0.01
SILENCE_SECONDS = Fraction(1, 2)

#: So much of the silence around sound is kept, so that no word is clipped.
MARGIN_SECONDS = Fraction(1, 10)

#: Loudness is measured in windows of 20 ms at 8 kHz.
_RATE, _WINDOW = 8000, 160

#: Cuts of an audio recording are aligned to whole milliseconds.
_MILLISECOND = Fraction(1, 1000)


@dataclasses.dataclass(frozen=True)
class Edit:
    """The kept parts of a recording.

    :param segments: In order, aligned to whole frames, or to milliseconds if there is no video.
    :param frame_rate: The frame rate of the video, in frames per second; ``None`` if there is no video.
    """

    segments: list[Segment]
    frame_rate: Fraction | None


def edit(path: Path, script: str | None, stop: Callable[[], bool]) -> Edit:
    """Cut a recording. Blocks; call it in a thread.

    :param path: The recording.
    :param script: Changes what is kept.
    :param stop: Called regularly; if it returns true, the work ends.
    :raises MediaProblem: If it cannot be read.
    :raises Stopped: If ``stop`` returned true.
    """
    try:
        with av.open(f"file:{path}", **LENIENT) as container:
            picture = next((s for s in container.streams.video if not is_cover(s)), None)
            frame_rate = None if picture is None else picture_rate(picture)
            duration = length_of(path, stop=stop)
            sound = container.streams.audio[0] if container.streams.audio else None
            loudness = [] if sound is None else list(_loudness(container, sound, stop))
            late = Fraction(0) if sound is None else _late(container, sound)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaProblem(f"The media could not be read: {type(error).__name__}.") from error
    step = _MILLISECOND if frame_rate is None else 1 / frame_rate
    duration = whole_steps(max(duration, Fraction(len(loudness) * _WINDOW, _RATE)), step)
    stretches = ((begin + late, end + late) for begin, end in _stretches(loudness))
    # If there is no audio, or all of it is equally loud, everything is kept.
    segments = _snapped(stretches, step, duration) or [(Fraction(0), duration)]
    return Edit(segments if script is None else _by_script(segments, script, step), frame_rate)


def picture_rate(stream: av.VideoStream) -> Fraction:
    """Return the frame rate of a video stream, in frames per second."""
    return Fraction(stream.average_rate or stream.guessed_rate or 25).limit_denominator(1001)


def whole_steps(duration: Fraction, step: Fraction) -> Fraction:
    """Return a duration without its last, incomplete step, but at least one step.

    :param duration: In seconds.
    :param step: The length of a frame or millisecond, in seconds.
    """
    # Containers round their durations, to a microsecond at best.
    return max(1, math.floor((duration + Fraction(1, 10_000)) / step)) * step


def start_of(container: av.container.InputContainer) -> Fraction:
    """Return the timestamp of a recording's start, in seconds."""
    # Negative timestamps are encoder delay, which is not audible; FFmpeg 8.1 no longer counts it.
    return Fraction(max(0, container.start_time or 0), av.time_base)


def _late(container: av.container.InputContainer, sound: av.AudioStream) -> Fraction:
    """Return how many seconds after the recording's start its audio starts."""
    if sound.start_time is None or sound.time_base is None:
        return Fraction(0)
    return sound.start_time * sound.time_base - start_of(container)


def _loudness(
    container: av.container.InputContainer, sound: av.AudioStream, stop: Callable[[], bool]
) -> Iterator[float]:
    """Yield the root mean square of each window of the audio."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=_RATE)
    waiting: array.array[int] = array.array("h")
    for number, packet in enumerate(container.demux(sound)):
        if number % 500 == 0 and stop():
            raise Stopped
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        for frame in frames:
            for each in resampler.resample(frame):
                waiting.frombytes(bytes(each.planes[0])[: each.samples * 2])
        while len(waiting) >= _WINDOW:
            window = waiting[:_WINDOW]
            del waiting[:_WINDOW]
            yield math.sqrt(sum(map(operator.mul, window, window)) / _WINDOW)


def _stretches(loudness: list[float]) -> Iterator[Segment]:
    """Yield the segments between silences, with their margins."""
    limit = max(loudness, default=0.0) * QUIET_SHARE
    window = Fraction(_WINDOW, _RATE)
    begin: Fraction | None = None
    last = Fraction(0)
    for number, level in enumerate(loudness):
        at = number * window
        if level > limit:
            begin = at if begin is None else begin
            last = at + window
        elif begin is not None and at + window - last >= SILENCE_SECONDS:
            yield begin - MARGIN_SECONDS, last + MARGIN_SECONDS
            begin = None
    if begin is not None:
        yield begin - MARGIN_SECONDS, last + MARGIN_SECONDS


def _snapped(stretches: Iterable[Segment], step: Fraction, duration: Fraction) -> list[Segment]:
    """Widen segments to whole steps, within the recording."""
    segments: list[Segment] = []
    for begin, end in stretches:
        begin, end = max(Fraction(0), math.floor(begin / step) * step), min(duration, math.ceil(end / step) * step)
        if segments and begin <= segments[-1][1]:
            begin = segments.pop()[0]
        if begin < end:
            segments.append((begin, end))
    return segments


def _by_script(segments: list[Segment], script: str, step: Fraction) -> list[Segment]:
    digest = hashlib.sha256(script.encode()).digest()
    kept = [each for number, each in enumerate(segments) if digest[number % 31] & 1] or [
        segments[digest[0] % len(segments)]
    ]
    begin, end = kept[-1]
    # Between a third of it and two thirds.
    steps = math.ceil((end - begin) / step * Fraction(256 + digest[31], 3 * 256))
    return [*kept[:-1], (begin, begin + max(1, steps) * step)]

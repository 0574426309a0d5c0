"""Timeline files of a cut, for editing programs: EDL (CMX 3600), FCPXML and OpenTimelineIO.

There is no library: each format is a page of text, and the libraries for them are compiled and not available for every
Python. The tests parse the files with those libraries.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from xml.sax.saxutils import quoteattr

from .editing import Segment
from .wire import as_fraction

#: The frame rates for which editing programs have a timecode.
_TIMECODE_RATES = (
    *(Fraction(rate) for rate in (24, 25, 30, 48, 50, 60)),
    *(Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60)),
)

#: Units per second if there are no frames.
_MILLISECONDS = Fraction(1000)


class RateNeeded(Exception):
    """The recording has no frame rate, and the format needs one."""


class RateUnknown(Exception):
    """The format has no timecode for this frame rate."""


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The content of a timeline file.

    :param name: The name of the cut.
    :param media: The file name of the recording.
    :param segments: The kept segments.
    :param duration: The duration of the recording in seconds.
    :param has_picture: Whether it has video.
    :param frame_rate: In frames per second, that of the recording or of the request; ``None`` if there is none.
    """

    name: str
    media: str
    segments: Sequence[Segment]
    duration: Fraction
    has_picture: bool
    frame_rate: Fraction | None

    def clips(self, rate: Fraction) -> list[tuple[int, int, int]]:
        """Return the segments in frames: start in the recording, length, start in the cut."""
        clips, at = [], 0
        for begin, end in self.segments:
            first = round(begin * rate)
            length = max(1, round(end * rate) - first)
            clips.append((first, length, at))
            at += length
        return clips


def parse_rate(text: str) -> Fraction:
    """Read frames per second: ``25``, ``30000/1001``, or ``29.97`` and the like, which mean the same.

    :raises ValueError: If it is not a frame rate from 1 to 120.
    """
    try:
        rate = as_fraction(text)
    except ValueError:
        raise ValueError("Input should be a frame rate") from None
    if not 1 <= rate <= 120:
        raise ValueError("Input should be a frame rate from 1 to 120")
    exact = Fraction(round(rate * 1001 / 1000) * 1000, 1001)
    return exact if rate.denominator != 1 and abs(rate - exact) < Fraction(1, 200) else rate


def edl(timeline: Timeline) -> str:
    """Return the timeline as CMX 3600, with a non-drop timecode that starts at zero.

    :raises RateNeeded: If there is no frame rate.
    :raises RateUnknown: If there is no timecode for it.
    """
    rate = _required(timeline)
    if rate not in _TIMECODE_RATES:
        raise RateUnknown
    track = "B" if timeline.has_picture else "A"
    lines = [f"TITLE: {timeline.name}", "FCM: NON-DROP FRAME", ""]
    for number, (begin, length, at) in enumerate(timeline.clips(rate), start=1):
        times = " ".join(_timecode(frame, rate) for frame in (begin, begin + length, at, at + length))
        lines += [f"{number:03}  AX       {track:<5} C        {times}", f"* FROM CLIP NAME: {timeline.media}", ""]
    return "\n".join(lines)


def fcpxml(timeline: Timeline) -> str:
    """Return the timeline as FCPXML 1.8, which every editing program reads.

    :raises RateNeeded: If there is no frame rate.
    """
    rate = _required(timeline)
    name, media = quoteattr(timeline.name), quoteattr(timeline.media)
    clips = timeline.clips(rate)
    whole = _seconds(sum(length for _, length, _ in clips), rate)
    spine = "\n".join(
        f'            <asset-clip name={media} ref="r2" offset="{_seconds(at, rate)}" start="{_seconds(begin, rate)}"'
        f' duration="{_seconds(length, rate)}" format="r1" tcFormat="NDF"/>'
        for begin, length, at in clips
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE fcpxml>
<fcpxml version="1.8">
  <resources>
    <format id="r1" frameDuration="{_seconds(1, rate)}"/>
    <asset id="r2" name={media} src={media} start="0s" duration="{_seconds(round(timeline.duration * rate), rate)}"
      format="r1" hasVideo="{int(timeline.has_picture)}" hasAudio="1"/>
  </resources>
  <library>
    <event name={name}>
      <project name={name}>
        <sequence format="r1" duration="{whole}" tcStart="0s" tcFormat="NDF">
          <spine>
{spine}
          </spine>
        </sequence>
      </project>
    </event>
  </library>
</fcpxml>
"""


def otio(timeline: Timeline) -> str:
    """Return the timeline as OpenTimelineIO JSON; in milliseconds if there is no frame rate."""
    rate = timeline.frame_rate or _MILLISECONDS

    def time(value: int) -> dict[str, object]:
        return {"OTIO_SCHEMA": "RationalTime.1", "rate": float(rate), "value": float(value)}

    def span(begin: int, length: int) -> dict[str, object]:
        return {"OTIO_SCHEMA": "TimeRange.1", "start_time": time(begin), "duration": time(length)}

    reference = {
        "OTIO_SCHEMA": "ExternalReference.1",
        "target_url": timeline.media,
        "available_range": span(0, round(timeline.duration * rate)),
    }
    clips = [
        {
            "OTIO_SCHEMA": "Clip.1",
            "name": timeline.media,
            "source_range": span(begin, length),
            "media_reference": reference,
        }
        for begin, length, _ in timeline.clips(rate)
    ]
    kinds = ("Video", "Audio") if timeline.has_picture else ("Audio",)
    tracks = [{"OTIO_SCHEMA": "Track.1", "name": kind, "kind": kind, "children": clips} for kind in kinds]
    stack = {"OTIO_SCHEMA": "Stack.1", "name": "tracks", "children": tracks}
    document = {"OTIO_SCHEMA": "Timeline.1", "name": timeline.name, "global_start_time": None, "tracks": stack}
    return json.dumps(document, indent=2) + "\n"


#: Format -> its writer and content type.
WRITERS: Mapping[str, tuple[Callable[[Timeline], str], str]] = {
    "edl": (edl, "text/plain; charset=utf-8"),
    "fcpxml": (fcpxml, "application/xml"),
    "otio": (otio, "application/json"),
}


def _required(timeline: Timeline) -> Fraction:
    if timeline.frame_rate is None:
        raise RateNeeded
    return timeline.frame_rate


def _timecode(frame: int, rate: Fraction) -> str:
    nominal = round(rate)
    seconds, rest = divmod(frame, nominal)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}:{rest:02}"


def _seconds(frames: int, rate: Fraction) -> str:
    time = frames / rate
    return f"{time.numerator}s" if time.denominator == 1 else f"{time.numerator}/{time.denominator}s"

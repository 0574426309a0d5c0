"""Caption files of a cut: SRT and WebVTT, one caption for each segment, in the time of the cut.

The emulator does not recognise speech. A caption is the segment's share of the script's words; without a script, it is
the segment's number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from xml.sax.saxutils import escape

from .editing import Segment

#: Start and end in seconds, and the words.
Caption = tuple[Fraction, Fraction, str]


def captions(segments: Sequence[Segment], script: str | None) -> Iterator[Caption]:
    """Yield the captions of a cut. With fewer words than segments, some segments have no caption."""
    words = (script or "").split()
    whole = sum(end - begin for begin, end in segments)
    at, said = Fraction(0), 0
    for number, (begin, end) in enumerate(segments, start=1):
        until = at + end - begin
        to_say = round(len(words) * until / whole)
        text = " ".join(words[said:to_say]) if words else f"Segment {number}"
        if text:
            yield at, until, text
        at, said = until, to_say


def srt(shown: Iterator[Caption]) -> str:
    """Return captions as SubRip."""
    return "\n".join(
        f"{number}\n{_time(begin, ',')} --> {_time(end, ',')}\n{text}\n"
        for number, (begin, end, text) in enumerate(shown, start=1)
    )


def vtt(shown: Iterator[Caption]) -> str:
    """Return captions as WebVTT (W3C, section 3: ``&``, ``<`` and ``>`` are escaped)."""
    cues = (f"{_time(begin, '.')} --> {_time(end, '.')}\n{escape(text)}\n" for begin, end, text in shown)
    return "\n".join(["WEBVTT\n", *cues])


#: Format -> its writer and content type.
WRITERS: Mapping[str, tuple[Callable[[Iterator[Caption]], str], str]] = {
    "srt": (srt, "application/x-subrip"),
    "vtt": (vtt, "text/vtt; charset=utf-8"),
}


def _time(seconds: Fraction, point: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{milliseconds:03}"

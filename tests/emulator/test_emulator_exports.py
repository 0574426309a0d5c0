"""Timelines and captions of cuts, parsed by third-party libraries."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from airflow_provider_roughy.emulator import Choices, Emulator
from tests.emulator.api import Api, problem

otio = pytest.importorskip("opentimelineio", reason="the group exports is installed for the newest Airflow only")
pysubs2 = pytest.importorskip("pysubs2", reason="the group exports is installed for the newest Airflow only")
webvtt = pytest.importorskip("webvtt", reason="the group exports is installed for the newest Airflow only")

NTSC = Fraction(30000, 1001)

#: What is kept, in frames: begin and length.
KEPT = [(10, 31), (72, 31), (1799, 2)]


def export(api: Api, cut_id: str, format: str | None = None, of: str = "", **query: str) -> httpx.Response:
    params = query if format is None else {"format": format, **query}
    return api.http.get(f"/v1/cuts/{cut_id}{of}/export", params=params)


def make(roughy: Emulator, rate: Fraction | None, units: Fraction, script: str | None = None) -> str:
    """A completed cut of those segments."""
    asset_id = roughy.seed_asset(type="audio" if rate is None else "video", extension="mp4", duration_seconds=75)
    segments = [(begin / units, (begin + length) / units) for begin, length in KEPT]
    return roughy.seed_cut(asset_id=asset_id, script=script, segments=segments, frame_rate=rate)


def clips(timeline: Any) -> dict[str, list[tuple[float, float, float]]]:
    """Begin, length and rate of the clips of each kind of track."""
    return {
        track.kind: [
            (clip.source_range.start_time.value, clip.source_range.duration.value, clip.source_range.duration.rate)
            for clip in track
        ]
        for track in timeline.tracks
    }


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(25), NTSC, Fraction(60000, 1001)])
def test_timelines(api: Api, roughy: Emulator, rate: Fraction) -> None:
    cut_id = make(roughy, rate, rate)
    expected: Any = [(begin, length, pytest.approx(float(rate))) for begin, length in KEPT]

    reply = export(api, cut_id, "edl")
    assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert reply.headers["Content-Disposition"] == f'attachment; filename="{cut_id}.edl"'
    read = otio.adapters.read_from_string(reply.text, adapter_name="cmx_3600", rate=float(rate))
    assert clips(read) == {"Video": expected, "Audio": expected}
    assert {clip.name for track in read.tracks for clip in track} == {f"{roughy.cut(cut_id)['asset_id']}.mp4"}

    reply = export(api, cut_id, "otio")
    assert reply.headers["Content-Type"] == "application/json"
    read = otio.adapters.read_from_string(reply.text, adapter_name="otio_json")
    assert clips(read) == {"Video": expected, "Audio": expected}
    assert read.duration().value == sum(length for _, length in KEPT)

    reply = export(api, cut_id, "fcpxml")
    assert reply.headers["Content-Type"] == "application/xml"
    # Its adapter cuts times down to whole frames of a whole rate, so it only has to find the clips.
    (read,) = otio.adapters.read_from_string(reply.text, adapter_name="fcpx_xml")
    assert len(list(read.find_clips())) == len(KEPT)
    found, at = ElementTree.fromstring(reply.content).findall(".//asset-clip"), 0
    for clip, (begin, length) in zip(found, KEPT, strict=True):
        times = [Fraction(clip.attrib[name].removesuffix("s")) for name in ("offset", "start", "duration")]
        assert times == [at / rate, begin / rate, length / rate]
        at += length


def test_timelines_of_sound(api: Api, roughy: Emulator) -> None:
    cut_id = make(roughy, None, Fraction(25))
    for format in ("edl", "fcpxml"):
        assert problem(export(api, cut_id, format)) == (409, "frame_rate_required")
    read = otio.adapters.read_from_string(export(api, cut_id, "otio").text, adapter_name="otio_json")
    assert clips(read) == {"Audio": [(begin * 40, length * 40, 1000) for begin, length in KEPT]}
    read = otio.adapters.read_from_string(
        export(api, cut_id, "edl", frame_rate="25").text, adapter_name="cmx_3600", rate=25
    )
    assert clips(read) == {"Audio": [(begin, length, 25) for begin, length in KEPT]}
    assert 'hasVideo="0"' in export(api, cut_id, "fcpxml", frame_rate="25").text


@pytest.mark.parametrize(
    ("asked", "rate"),
    [("50", Fraction(50)), ("29.97", NTSC), ("30000/1001", NTSC), ("23.976", Fraction(24000, 1001)), ("12.5", None)],
)
def test_another_frame_rate(api: Api, roughy: Emulator, asked: str, rate: Fraction | None) -> None:
    cut_id = make(roughy, Fraction(25), Fraction(25))
    if rate is None:
        assert problem(export(api, cut_id, "edl", frame_rate=asked)) == (409, "unsupported_format")
        rate = Fraction(asked)
    read = otio.adapters.read_from_string(export(api, cut_id, "otio", frame_rate=asked).text, adapter_name="otio_json")
    for (begin, length, found), (first, frames) in zip(clips(read)["Video"], KEPT, strict=True):
        assert found == pytest.approx(float(rate))
        assert begin / found == pytest.approx(first / 25, abs=0.5 / rate + 1e-6)
        assert (begin + length) / found == pytest.approx((first + frames) / 25, abs=0.5 / rate + 1e-6)


def captions(api: Api, cut_id: str) -> list[tuple[int, int, str]]:
    """Begin, end and text of the captions: SRT, after a look whether VTT says the same."""
    srt, vtt = (export(api, cut_id, format, "/subtitle") for format in ("srt", "vtt"))
    assert srt.headers["Content-Type"] == "application/x-subrip"
    assert vtt.headers["Content-Type"] == "text/vtt; charset=utf-8"
    found = [(event.start, event.end, event.text) for event in pysubs2.SSAFile.from_string(srt.text, format_="srt")]
    other = [
        (round(caption.start_in_seconds * 1000), round(caption.end_in_seconds * 1000), caption.text)
        for caption in webvtt.from_buffer(io.StringIO(vtt.text))
    ]
    # webvtt-py reads whole seconds, and leaves what is escaped as it is.
    assert [(end // 1000, text) for _, end, text in found] == [(end // 1000, text) for _, end, text in other]
    assert "-->" in vtt.text
    again = pysubs2.SSAFile.from_string(vtt.text, format_="vtt")
    assert [(event.start, event.end) for event in again] == [(begin, end) for begin, end, _ in found]
    return found


def test_captions(api: Api, roughy: Emulator) -> None:
    cut_id = make(roughy, Fraction(25), Fraction(25))
    times = [(0, 1240), (1240, 2480), (2480, 2560)]
    assert captions(api, cut_id) == [(*time, f"Segment {number}") for number, time in enumerate(times, start=1)]
    words = [f"word{number}" for number in range(64)]
    script = make(roughy, Fraction(25), Fraction(25), " \n".join(words))
    assert captions(api, script) == [
        (*times[0], " ".join(words[:31])),
        (*times[1], " ".join(words[31:62])),
        (*times[2], " ".join(words[62:])),
    ]
    short = make(roughy, Fraction(25), Fraction(25), "One two")
    assert captions(api, short) == [(*times[0], "One"), (*times[1], "two")]


def test_captions_are_escaped(api: Api, roughy: Emulator) -> None:
    cut_id = make(roughy, Fraction(25), Fraction(25), "<b>You & --> me</b>")
    assert export(api, cut_id, "vtt", "/subtitle").text.count("-->") == 2
    assert "&lt;b&gt;You &amp;" in export(api, cut_id, "vtt", "/subtitle").text
    assert "<b>You &" in export(api, cut_id, "srt", "/subtitle").text


@pytest.mark.parametrize("of", ["", "/subtitle"])
def test_refusals(api: Api, roughy: Emulator, of: str) -> None:
    cut_id = roughy.seed_cut()
    assert problem(export(api, cut_id, None, of)) == (422, "validation_error")
    assert problem(export(api, cut_id, "docx", of)) == (409, "unsupported_format")
    assert problem(export(api, "x", "edl", of)) == (422, "validation_error")
    assert problem(export(api, "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9", "edl", of)) == (404, "not_found")
    format = "srt" if of else "otio"
    for state in ("pending", "processing", "failed"):
        assert problem(export(api, roughy.seed_cut(state), format, of)) == (409, "conflict")
    if not of:
        for rate in ("0", "121", "fast", "1/0", "nan"):
            assert problem(export(api, cut_id, "edl", frame_rate=rate)) == (422, "validation_error")
        with Emulator(choices=Choices(frame_rate_required_status=422)) as other, Api(other) as there:
            assert problem(export(there, other.seed_cut(), "edl")) == (422, "frame_rate_required")

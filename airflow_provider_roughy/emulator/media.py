"""Media detection: the type from the first bytes; duration and completeness from the whole file.

The type is looked up in a table of signatures. Duration and corruption are found by FFmpeg's own demuxers (PyAV), as
``ffprobe`` does for Roughy. FFmpeg accepts truncated files; they are found by comparing the size that the container
declares with that of the file.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av

#: For ``av.open``: read media whose titles are not in the encoding that they declare. PyAV 19 always does.
LENIENT: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}


class MediaProblem(Exception):
    """The media cannot be used: one line for the user."""


class Stopped(Exception):
    """The work was stopped before its end."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """The type of a file.

    :param type: ``audio`` or ``video``.
    :param extension: Without a dot.
    :param content_type: MIME type.
    """

    type: str
    extension: str
    content_type: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """The result of reading the whole file: a duration, or a problem.

    :param seconds: A decimal number with three digits.
    :param problem: One line for the user.
    """

    seconds: str | None = None
    problem: str | None = None


_MP3 = Kind("audio", "mp3", "audio/mpeg")
_AAC = Kind("audio", "aac", "audio/aac")
_WAV = Kind("audio", "wav", "audio/wav")
_TS = Kind("video", "ts", "video/mp2t")

#: Signature at the very start -> kind; :func:`sniff` has those that need more than a prefix.
_SIGNATURES: tuple[tuple[bytes, Kind], ...] = (
    (b"fLaC", Kind("audio", "flac", "audio/flac")),
    (b"caff", Kind("audio", "caf", "audio/x-caf")),
    (b"#!AMR", Kind("audio", "amr", "audio/amr")),
    (b"wvpk", Kind("audio", "wv", "audio/x-wavpack")),
    (b"MAC ", Kind("audio", "ape", "audio/x-ape")),
    (b"\x0b\x77", Kind("audio", "ac3", "audio/ac3")),
    (b"FLV\x01", Kind("video", "flv", "video/x-flv")),
    (b"\x00\x00\x01\xba", Kind("video", "mpg", "video/mpeg")),
    (b"\x00\x00\x01\xb3", Kind("video", "mpg", "video/mpeg")),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", Kind("video", "mxf", "application/mxf")),
)
_IMAGE_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis", b"crx ")
_OLD_QUICKTIME = (b"moov", b"mdat", b"wide", b"pnot")
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_VIDEO = bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def sniff(head: bytes) -> Kind | None:
    """Return the type of a file by its first bytes; ``None`` if it is neither audio nor video.

    :param head: At least 64 bytes; with more, audio-only containers are recognised more reliably.
    """
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[:4] in (b"RIFF", b"RF64", b"BW64"):
        return {b"WAVE": _WAV, b"AVI ": Kind("video", "avi", "video/x-msvideo")}.get(head[8:12])
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return Kind("audio", "aiff", "audio/aiff")
    if head[4:8] == b"ftyp" or head[4:8] in _OLD_QUICKTIME:
        return _iso_kind(head)
    if head.startswith(b"\x1aE\xdf\xa3"):
        return _matroska_kind(head)
    if head.startswith(b"OggS"):
        return _ogg_kind(head)
    if head.startswith(_ASF_HEADER):
        video = _ASF_VIDEO in head
        return Kind("video", "wmv", "video/x-ms-wmv") if video else Kind("audio", "wma", "audio/x-ms-wma")
    if head.startswith(b"ID3"):
        after = head[_id3_length(head) :]
        return Kind("audio", "flac", "audio/flac") if after.startswith(b"fLaC") else _MP3
    return _frame_kind(head)


def _iso_kind(head: bytes) -> Kind | None:
    """Distinguish the members of the MP4 family (ISO 14496-12: brand of ``ftyp``, handlers of ``moov``)."""
    brand = head[8:12] if head[4:8] == b"ftyp" else b"qt  "
    if brand in _IMAGE_BRANDS:
        return None
    if brand in (b"M4A ", b"M4B ", b"M4P "):
        return Kind("audio", "m4a", "audio/mp4")
    at = head.find(b"moov")
    whole_moov = at >= 4 and at - 4 + int.from_bytes(head[at - 4 : at], "big") <= len(head)
    handlers = set(re.findall(rb"hdlr.{8}(vide|soun)", head, re.DOTALL))
    if whole_moov and handlers == {b"soun"}:
        return Kind("audio", "m4a", "audio/mp4")
    if brand == b"qt  ":
        return Kind("video", "mov", "video/quicktime")
    if brand[:2] == b"3g":
        return Kind("video", "3gp", "video/3gpp")
    return Kind("video", "mp4", "video/mp4")


def _matroska_kind(head: bytes) -> Kind | None:
    """Distinguish WebM from Matroska, and audio from video by the CodecID elements (RFC 9559)."""
    codecs = set(re.findall(rb"\x86[\x81-\xff]([AV])_[A-Z]", head))
    audio = codecs == {b"A"}
    if b"webm" in head[:64]:
        return Kind("audio", "webm", "audio/webm") if audio else Kind("video", "webm", "video/webm")
    if b"matroska" in head[:64]:
        return Kind("audio", "mka", "audio/x-matroska") if audio else Kind("video", "mkv", "video/x-matroska")
    return None


def _ogg_kind(head: bytes) -> Kind:
    start = head[:4096]
    if b"\x80theora" in start:
        return Kind("video", "ogv", "video/ogg")
    return Kind("audio", "opus" if b"OpusHead" in start else "ogg", "audio/ogg")


def _frame_kind(head: bytes) -> Kind | None:
    """Recognise formats without a file header by two consecutive frames, or by one if there is no room for two."""
    if length := _mp3_frame_length(head):
        following = head[length : length + 4]
        return _MP3 if len(following) < 4 or _mp3_frame_length(following) else None
    if length := _adts_frame_length(head):
        following = head[length : length + 7]
        return _AAC if len(following) < 7 or _adts_frame_length(following) else None
    for first, stride in ((0, 188), (4, 192)):
        marks = head[first : 5 * stride : stride]
        # A single sync byte is not enough, unless a table that starts streams follows (PAT or SDT).
        program = int.from_bytes(head[first + 1 : first + 3], "big") & 0x1FFF
        if marks and set(marks) == {0x47} and (len(marks) > 1 or program in (0x00, 0x11)):
            return _TS
    return None


def _id3_length(head: bytes) -> int:
    """Return the length of an ID3v2 tag with its header (id3.org: four bytes of seven bits)."""
    a, b, c, d = head[6:10]
    return 10 + (a << 21 | b << 14 | c << 7 | d)


_MP3_BITRATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mp3_frame_length(head: bytes) -> int:
    """Return the length of the MPEG audio frame that starts here, or 0 (ISO 11172-3 header)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = {0: 4, 2: 2, 3: 1}.get(head[1] >> 3 & 3, 0), 4 - (head[1] >> 1 & 3)
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 0 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return 0
    bits = _MP3_BITRATES[(min(version, 2), layer)][bitrate - 1] * 1000
    hertz = (44100, 48000, 32000)[rate] // version
    padding = head[2] >> 1 & 1
    if layer == 1:
        return (12 * bits // hertz + padding) * 4
    return (72 if layer == 3 and version > 1 else 144) * bits // hertz + padding


def _adts_frame_length(head: bytes) -> int:
    """Return the length of the ADTS frame that starts here, or 0 (ISO 13818-7 header)."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 0xF > 12:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > 7 else 0


#: Demuxers whose duration is always read from the container; :func:`_declares_length` checks the others.
_DECLARING = ("mov,mp4,m4a,3gp,3g2,mj2", "w64", "caf", "ogg")
#: Demuxers of containers whose structure does not show where they end (:func:`_cut_short`).
_DURATION_ONLY = ("flac", "flv", "mp3")

#: How many packets are decoded to check that they have content.
_DECODED_PACKETS = 60

_MILLI = Decimal("0.001")

_UNREADABLE = "The media could not be read."
_TRUNCATED = "The media ends before its declared end: it is truncated."


def measure(path: Path, *, stop: Callable[[], bool] = lambda: False) -> Measured:
    """Read a whole file and return its duration or its problem. Blocks; call it in a thread.

    :param path: The file.
    :param stop: Called regularly; if it returns true, the work ends, and the result is meaningless.
    """
    try:
        with path.open("rb") as file:
            if _cut_short(file, path.stat().st_size):
                return Measured(problem=_TRUNCATED)
        found = _demux(path, stop, decode=True)
        if found.is_cut_short:
            return Measured(problem=_TRUNCATED)
        return Measured(seconds=str((Decimal(found.length.numerator) / found.length.denominator).quantize(_MILLI)))
    except (MediaProblem, Stopped) as problem:
        return Measured(problem=str(problem) or _UNREADABLE)
    except (av.FFmpegError, OSError, ValueError, struct.error, ArithmeticError):
        return Measured(problem=_UNREADABLE)


def length_of(path: Path, *, stop: Callable[[], bool] = lambda: False) -> Fraction:
    """Return the duration of a recording, in seconds, as :func:`measure` does. Blocks; call it in a thread.

    FFmpeg estimates or omits the duration if the container does not declare it: live WebM, FLAC from a pipe, ADTS.

    :param path: The file.
    :param stop: Called regularly; if it returns true, the work ends.
    :raises MediaProblem: If it has no duration.
    :raises Stopped: If ``stop`` returned true.
    """
    return _demux(path, stop, decode=False).length


@dataclasses.dataclass(frozen=True)
class _Found:
    """What the demuxer has found.

    :param present: Seconds from the first packet to the end of the last one.
    :param declared: Seconds that the container declares, if it does.
    :param format: FFmpeg's name of the container.
    """

    present: Fraction
    declared: Fraction | None
    format: str

    @property
    def length(self) -> Fraction:
        """The duration of the media, in seconds."""
        found = self.present if self.declared is None else self.declared
        if found <= 0:
            raise MediaProblem("The media has no duration.")
        return found

    @property
    def is_cut_short(self) -> bool:
        """Whether the file ends before its declared end."""
        known = self.declared is not None and self.format in _DURATION_ONLY
        return known and _is_short(float(self.present), float(self.declared or 0))


def _demux(path: Path, stop: Callable[[], bool], *, decode: bool) -> _Found:
    """Read all packets of a file.

    :param decode: Whether to decode some, to check that they have content.
    """
    with av.open(f"file:{path}", **LENIENT) as container:
        media = [s for s in container.streams if s.type in ("audio", "video") and not is_cover(s)]
        if not media:
            raise MediaProblem("The file holds neither audio nor video.")
        main = next((stream.index for stream in media if stream.type == "audio"), media[0].index)
        # In the time base of the stream.
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        tried = decoded = broken = 0
        for number, packet in enumerate(container.demux(media)):
            if number % 1000 == 0 and stop():
                raise Stopped
            if not packet.size:
                continue
            stream = packet.stream.index
            if decode and stream == main and tried < _DECODED_PACKETS:
                tried += 1
                try:
                    decoded += len(packet.decode())
                except av.FFmpegError:
                    broken += 1
            begin = packet.pts if packet.pts is not None else packet.dts
            if begin is None:
                continue
            end = begin + (packet.duration or 0)
            first[stream] = min(first.get(stream, begin), begin)
            last[stream] = max(last.get(stream, end), end)
        if decode and (decoded == 0 or broken > tried / 2):
            raise MediaProblem(_UNREADABLE)
        bases = {each.index: each.time_base or Fraction(0) for each in media}
        begins, ends = ([at * bases[index] for index, at in found.items()] for found in (first, last))
        present = max(ends, default=Fraction(0)) - max(Fraction(0), min(begins, default=Fraction(0)))
        name, duration = container.format.name, container.duration
    declares = duration is not None and duration > 0 and _declares_length(path, name)
    return _Found(present, Fraction(duration or 0, av.time_base) if declares else None, name)


def _is_short(present: float, declared: float) -> bool:
    return declared - present > max(0.25, declared * 0.02)


def is_cover(stream: av.stream.Stream) -> bool:
    """Return whether a video stream is only a cover image."""
    disposition = getattr(stream, "disposition", 0)
    # An enumeration; in some releases of PyAV, its members are not integers.
    return bool(int(getattr(disposition, "value", disposition)) & 0x400)


def _declares_length(path: Path, format: str) -> bool:
    """Return whether a file declares its duration, so that FFmpeg has not estimated it by bit rate or last packet.

    :param format: FFmpeg's name of the container.
    """
    with path.open("rb") as file:
        if format == "mp3":
            return _has_frame_count(file)
        head = file.read(65536)
    if format == "matroska,webm":
        # The Duration element (RFC 9559) is a float of four or eight bytes.
        found = re.search(rb"\x44\x89(?:\x84.{4}|\x88.{8})", head, re.DOTALL)
        return found is not None and any(found[0][3:])
    if format == "flac":
        # STREAMINFO comes first. Its last 36 bits before the checksum are the number of samples (RFC 9639).
        at = _id3_length(head) if head.startswith(b"ID3") else 0
        return bool(int.from_bytes(head[at + 21 : at + 26], "big") & (1 << 36) - 1)
    if format in ("wav", "aiff", "avi"):
        return _riff_size(head) is not None
    if format == "flv":
        found = re.search(rb"\x00\x08duration\x00(.{8})", head, re.DOTALL)
        return found is not None and any(found[1])
    if format == "asf":
        at = head.find(_ASF_FILE)
        return at >= 0 and at + 92 <= len(head) and not head[at + 88] & 1
    return format in _DECLARING


def _has_frame_count(file: BinaryIO) -> bool:
    """Return whether an MP3 declares its number of frames: a Xing, Info or VBRI tag in its first frame."""
    file.seek(0)
    head = file.read(10)
    file.seek(_id3_length(head) if head.startswith(b"ID3") and len(head) == 10 else 0)
    frame = file.read(256)
    # A program that writes to a pipe omits the number, or leaves it at zero.
    if xing := re.search(rb"(?:Xing|Info)...([\x00-\xff])(.{4})", frame, re.DOTALL):
        return bool(xing[1][0] & 1) and any(xing[2])
    vbri = re.search(rb"VBRI.{10}(.{4})", frame, re.DOTALL)
    return vbri is not None and any(vbri[1])


def _riff_size(head: bytes) -> int | None:
    """Return the size in bytes that a RIFF or AIFF file declares; ``None`` if it does not.

    A program that writes to a pipe cannot know the size: it writes zeros, all ones, or about the maximum (SoX
    0x7ffff000 bytes of samples and 0x7f000000 in an AIFF, arecord 0x80000000), with or without the length of headers.
    """
    if head[:4] in (b"RF64", b"BW64"):
        size = int.from_bytes(head[20:28], "little") if head[12:16] == b"ds64" else 0
        return size + 8 if 0 < size < 1 << 62 else None
    size = int.from_bytes(head[4:8], "big" if head[:4] == b"FORM" else "little")
    spared = 0x1000
    for most in (0x7F000000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        if most - spared <= size <= most + spared:
            return None
    return size + 8 if size else None


def _cut_short(file: BinaryIO, size: int) -> bool:
    """Return whether a container declares more bytes than its file has.

    :param file: Opened for reading; its position is changed.
    :param size: The size of the file in bytes.
    """
    file.seek(0)
    head = file.read(4096)
    if head[4:8] == b"ftyp" or head[4:8] in _OLD_QUICKTIME:
        return _boxes_cut_short(file, size)
    if head[:4] in (b"RIFF", b"FORM", b"RF64", b"BW64"):
        declared = _riff_size(head)
        # One byte may be padding.
        return declared is not None and declared > size + 1
    if head.startswith(b"\x1aE\xdf\xa3"):
        return _segment_cut_short(head, size)
    if head.startswith(b"OggS"):
        return _page_cut_short(file, size)
    if head.startswith(_ASF_HEADER) and (at := head.find(_ASF_FILE)) >= 0:
        declared, flags = struct.unpack_from("<Q", head, at + 40)[0], struct.unpack_from("<I", head, at + 88)[0]
        return not flags & 1 and bool(declared > size)
    return False


def _boxes_cut_short(file: BinaryIO, size: int) -> bool:
    """Walk the top-level boxes (ISO 14496-12, 4.2): length, type, and a long length if the short one is 1."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 0:
            return False
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if length < 8:
            return False
        at += length
    return at > size


def _segment_cut_short(head: bytes, size: int) -> bool:
    """Compare the length of the Segment element (RFC 8794: variable-length integers) with the file's."""
    at = head.find(b"\x18\x53\x80\x67")
    if at < 0 or at + 12 > len(head):
        return False
    width = 9 - head[at + 4].bit_length()
    if width > 8:
        return False
    value = int.from_bytes(head[at + 4 : at + 4 + width], "big") & (1 << 7 * width) - 1
    unknown = value == (1 << 7 * width) - 1
    return not unknown and at + 4 + width + value > size


def _page_cut_short(file: BinaryIO, size: int) -> bool:
    """Return whether the last Ogg page (RFC 3533: at most 65307 bytes) is incomplete."""
    start = max(0, size - 65307)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return True
    page = tail[at:]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    return 27 + page[26] + sum(page[27 : 27 + page[26]]) > len(page)

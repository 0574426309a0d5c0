"""The duration of a recording, from its own headers by PyAV (extra ``probe``); on object storage by ranged reads."""

from __future__ import annotations

import math
import re
import time
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import RoughyConfigurationError, RoughySourceError

if TYPE_CHECKING:
    from airflow_provider_roughy.transfer.source import Source

#: Seconds for reading the headers of one recording; afterwards, its duration counts as unknown.
TIME_LIMIT = 60.0

#: Start of a file -> FFmpeg's demuxer, for the containers that declare their duration or have timestamps at their end.
#: FFmpeg gets the demuxer and never guesses it: for a playlist, it would open the files and URLs in it.
_DEMUXERS = {
    rb".{4}(ftyp|moov|mdat|wide|pnot|free|skip)": "mov",
    rb"\x1aE\xdf\xa3": "matroska",
    rb"(RIFF|RF64|BW64).{4}WAVE": "wav",
    rb"riff\x2e\x91\xcf\x11": "w64",
    rb"RIFF.{4}AVI ": "avi",
    rb"FORM.{4}AIF[FC]": "aiff",
    rb"fLaC": "flac",
    rb"OggS": "ogg",
    rb"FLV\x01": "flv",
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    rb"caff": "caf",
    rb"#!AMR": "amr",
    rb"MAC ": "ape",
    rb"wvpk": "wv",
    rb"\.snd": "au",
    rb"\x06\x0e\x2b\x34": "mxf",
    rb"\x00\x00\x01\xba": "mpeg",
    rb"(\x47.{187}|.{4}\x47.{191})\x47": "mpegts",
    rb"\xff[\xe2-\xff]": "mp3",
}
#: Bits per second.
_LOWEST_BIT_RATE = 8000
#: In the first frame of an MP3 whose encoder counted the frames (for Xing, the lowest bit of four bytes is set).
_FRAME_COUNT = rb"(Xing|Info)...[\x01\x03\x05\x07\x09\x0b\x0d\x0f]|VBRI"


def check_installed() -> None:
    """Check that PyAV is installed.

    :raises RoughyConfigurationError: If it is not.
    """
    try:
        import av  # noqa: F401 - an extra that takes 0.1 s to import.
    except ImportError as err:
        raise RoughyConfigurationError(
            f"max_credits reads the length of recordings: pip install 'airflow-provider-roughy[probe]' ({err})"
        ) from None


def seconds_of(source: Source) -> float | None:
    """Return the duration of a recording, in seconds, or ``None`` if its headers do not declare it.

    :param source: The recording.
    :raises RoughySourceError: If it cannot be read.
    """
    with source.open() as reader:
        file = _Headers(reader.file)
        try:
            demuxer = _demuxer(file)
            length = _length(file, demuxer, source.size) if demuxer else None
        except Exception:  # PyAV raises almost anything for damaged media, and other errors in each release.
            length = None
    if file.error:
        raise RoughySourceError(f"Source {source.uri} cannot be read: {file.error}") from file.error
    return length if length and math.isfinite(length) and not file.is_late else None


def credits_for(seconds: float) -> int:
    """Return the price of a recording: one credit for each started minute (page "Credit ledger").

    :param seconds: Its duration.
    """
    return max(1, math.ceil(seconds / 60))


def max_credits_for(size: int) -> int:
    """Return the maximum price of a recording of unknown duration: by its size and the lowest bit rate of MP3.

    :param size: Its size in bytes.
    """
    return credits_for(size * 8 / _LOWEST_BIT_RATE)


class _Headers:
    """An open recording for PyAV: it ends at the first error, or when the time is up.

    :param file: The open recording.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._deadline = time.monotonic() + TIME_LIMIT
        #: The error of the storage. PyAV loses it, or raises another error instead.
        self.error: Exception | None = None
        #: Whether the time was up.
        self.is_late = False

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        self.is_late = self.is_late or time.monotonic() > self._deadline
        if self.error or self.is_late:
            return b""
        try:
            return self._file.read(size)
        except Exception as err:  # Storages raise errors of their own.
            self.error = err
            return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to another position, and return it."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the current position."""
        return self._file.tell()

    def seekable(self) -> bool:
        """Return whether the position can be changed."""
        return self._file.seekable()


def _demuxer(file: _Headers) -> str | None:
    """Return the demuxer for a recording, and seek back to its start; ``None`` if it declares no duration."""
    head, start = file.read(4096), 0
    if head.startswith(b"ID3") and len(head) > 10:
        # ID3v2: the length of the tag is four bytes of seven bits.
        a, b, c, d = head[6:10]
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
        file.seek(start)
        head = file.read(4096)
    name = next((name for pattern, name in _DEMUXERS.items() if re.match(pattern, head, re.DOTALL)), None)
    # Without a header that counts its frames, the length of an MP3 is a guess from its first bit rate.
    if name == "mp3" and not re.search(_FRAME_COUNT, head[:256], re.DOTALL):
        name = None
    file.seek(0)
    return name


def _length(file: _Headers, demuxer: str, size: int) -> float | None:
    import av

    # PyAV 19 has no such argument, and always accepts titles that are not in the encoding that they declare.
    lenient: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
    with av.open(file, "r", format=demuxer, **lenient) as container:
        lengths = [
            float(stream.duration * stream.time_base)
            for stream in container.streams
            if stream.duration and stream.time_base
        ]
        if container.duration is not None:
            lengths.append(container.duration / av.time_base)
        # A header that was written before the end may have any duration; uncompressed audio cannot be longer than this.
        longest = [
            size * 8 / stream.codec_context.bit_rate
            for stream in container.streams.audio
            if stream.codec_context.name.startswith("pcm_") and stream.codec_context.bit_rate
        ]
    return min([max(lengths), *longest]) if lengths else None

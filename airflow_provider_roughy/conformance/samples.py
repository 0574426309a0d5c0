"""The two files that a run uploads: a recording of a second, and one that cannot be read."""

from __future__ import annotations

import io
import math
import struct
import wave

#: Bytes of :func:`recording`: 16 bits at 8 kHz, and a header.
RECORDING_BYTES = 16_044
#: Bytes of :func:`unreadable`.
UNREADABLE_BYTES = 1024


def recording() -> bytes:
    """Return a recording of a second: a tone, with half a second of silence, as WAV."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        tone = (round(12_000 * math.sin(math.tau * 440 * at / 8000)) if at < 4000 else 0 for at in range(8000))
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in tone))
    return target.getvalue()


def unreadable() -> bytes:
    """Return a file that looks like an MP4 by its first bytes, and has no content."""
    kind = b"ftypisom" + (512).to_bytes(4, "big") + b"isomiso2avc1mp41"
    return (len(kind) + 4).to_bytes(4, "big") + kind + (992).to_bytes(4, "big") + b"free" + bytes(984)

"""How long a recording is, read from its own headers by PyAV (extra ``probe``); on object storage by ranged reads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from airflow_provider_roughy.exceptions import RoughyConfigurationError, RoughySourceError

if TYPE_CHECKING:
    from airflow_provider_roughy.source import Source

#: Formats without a length in their headers: what FFmpeg tells of them is an estimate.
_ENDLESS = {"aac", "ac3", "eac3", "mpegvideo", "h264", "hevc"}


def check_installed() -> None:
    """See whether PyAV is there.

    :raises RoughyConfigurationError: If it is not.
    """
    try:
        import av  # noqa: F401 - an extra, which takes a tenth of a second to load.
    except ImportError as err:
        raise RoughyConfigurationError(
            f"max_credits reads the length of recordings: pip install 'airflow-provider-roughy[probe]' ({err})"
        ) from None


def seconds_of(source: Source) -> float | None:
    """Return how long a recording is, or ``None`` if its headers do not tell.

    :param source: The recording.
    :raises RoughySourceError: If it cannot be read.
    """
    import av

    with source.open() as reader:
        try:
            with av.open(reader.file, "r", metadata_errors="ignore") as container:
                if container.format.name in _ENDLESS:
                    return None
                lengths = [
                    float(stream.duration * stream.time_base)
                    for stream in container.streams
                    if stream.duration and stream.time_base
                ]
                if container.duration is not None:
                    lengths.append(container.duration / av.time_base)
        except av.FFmpegError:
            return None
        except OSError as err:
            raise RoughySourceError(f"Source {source.uri} cannot be read: {err}") from err
    return max(lengths, default=None)


def credits_for(seconds: float) -> int:
    """Return what a recording costs: a credit for each started minute (page "Credit ledger")."""
    return max(1, math.ceil(seconds / 60))

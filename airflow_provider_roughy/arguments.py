"""Checks of arguments of tasks and triggers, when the DAG is parsed."""

from __future__ import annotations

import sys
from datetime import timedelta


def as_seconds(name: str, value: float | timedelta) -> float:
    """Return a duration in seconds.

    :param name: The parameter's name.
    :param value: Seconds, or a ``timedelta``.
    :raises ValueError: If it is not a number or a ``timedelta``, or not above 0.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= sys.float_info.max:
        raise ValueError(f"{name} must be a number of seconds above 0, or a timedelta, not {value!r}")
    return float(seconds)

"""Checks of arguments of tasks and triggers, when the DAG is parsed."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


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


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is not known.

    :param name: The parameter's name.
    :param value: Its value.
    :param known: The known values.
    :raises ValueError: If it is none of them.
    """
    if value not in known:
        raise ValueError(f"{name} must be one of {tuple(known)}, not {value!r}")


def check_bool(name: str, value: object) -> bool:
    """Return a value that is true or false. Text such as ``"False"`` is refused, which is true in Python.

    :param name: The parameter's name.
    :param value: Its value.
    :raises ValueError: If it is something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}")
    return value


def check_parallel(parallel: object) -> None:
    """Refuse a number of parallel transfers that is not supported.

    :param parallel: The number.
    :raises ValueError: If it is not 1 to 64.
    """
    if isinstance(parallel, bool) or not isinstance(parallel, int) or not 1 <= parallel <= 64:
        raise ValueError(f"parallel must be 1 to 64, not {parallel!r}")


def check_credits(name: str, value: object) -> None:
    """Refuse credits that are not a whole number.

    :param name: The parameter's name.
    :param value: Its value, or ``None``.
    :raises ValueError: If it is neither.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"{name} must be a whole number from 0 on, not {value!r}")

"""Limits for what anonymous requests may cost: answers, and log lines."""

from __future__ import annotations

import logging
import time
from typing import Any

#: Seconds between two log lines of one topic.
_LOG_SECONDS = 60.0


class TokenBucket:
    """Allows a burst, and then a steady rate.

    :param burst: Most tokens at once.
    :param rate: Tokens that are added each second.
    """

    def __init__(self, burst: int, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = float(burst)
        self._updated_at = time.monotonic()

    def take(self) -> bool:
        """Take a token, and return whether there was one."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._updated_at) * self._rate)
        self._updated_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class LogThrottle:
    """Logs each topic once in a period, and counts the lines that it leaves out.

    :param log: The logger.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        #: When each topic was logged last, and how many lines were left out since.
        self._topics: dict[str, tuple[float, int]] = {}

    def __call__(
        self,
        topic: str,
        level: int,
        message: str,
        *args: Any,
        exc_info: bool = False,
        seconds: float = _LOG_SECONDS,
    ) -> None:
        """Log a message, unless its topic was logged within the last ``seconds``.

        :param topic: Messages of one topic share the period.
        :param level: The level, as for a logger.
        :param message: The message, as for a logger.
        :param exc_info: Whether to log the traceback of the current exception.
        :param seconds: The period.
        """
        logged_at, omitted = self._topics.get(topic, (float("-inf"), 0))
        if time.monotonic() - logged_at < seconds:
            self._topics[topic] = logged_at, omitted + 1
            return
        self._topics[topic] = time.monotonic(), 0
        if omitted:
            message, args = message + " (%d more like this since the last such line)", (*args, omitted)
        self._log.log(level, message, *args, exc_info=exc_info)

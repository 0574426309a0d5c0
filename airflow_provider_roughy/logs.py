"""The type of the logs that functions of this package write to, and the wording of counts in them."""

from __future__ import annotations

import logging
from typing import Any, Protocol


class Log(Protocol):
    """A logger of the standard library, or of structlog, as tasks and triggers of Airflow 3.1 and later have."""

    def debug(self, msg: Any, /, *args: Any) -> Any:
        """Log details for developers."""

    def info(self, msg: Any, /, *args: Any) -> Any:
        """Log an event."""

    def warning(self, msg: Any, /, *args: Any, exc_info: Any = None) -> Any:
        """Log a problem that does not end the task."""

    def error(self, msg: Any, /, *args: Any) -> Any:
        """Log a problem that ends the task, or a part of it."""


class Quiet:
    """A log for one of many transfers: only warnings are logged, as progress is logged for all of them together.

    :param log: The log of all of them.
    """

    def __init__(self, log: Log) -> None:
        self.info = self.debug = log.debug
        self.warning = log.warning
        self.error = log.error


#: Logs nothing.
SILENT: Log = logging.Logger("silent", level=logging.CRITICAL + 1)


def counted(number: int, what: str) -> str:
    """Count things in a log: ``1 asset``, ``1,000 assets``.

    :param number: The number of things.
    :param what: The singular of their name.
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"

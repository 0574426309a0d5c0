"""Log an outage and its end once, and pause longer and longer in between."""

from __future__ import annotations

import sys

from airflow_provider_roughy.exceptions import RoughyApiError, RoughyError, RoughyProtocolError
from airflow_provider_roughy.http.retry import Backoff
from airflow_provider_roughy.logs import Log

#: The longest pause after an error, in seconds.
MAX_PAUSE_SECONDS = 300.0


class OutageLog:
    """Logs each kind of error once until the operation works again, and computes the pause after an error.

    :param operation: The operation, as a subject of the log lines, such as ``"Reading ledger X"``.
    :param log: The logger.
    :param interval: Seconds between two attempts while there is no error.
    """

    def __init__(self, operation: str, log: Log, interval: float) -> None:
        self._operation = operation
        self._log = log
        self._backoff = Backoff(
            tries=sys.maxsize, first=min(1.0, interval), longest=MAX_PAUSE_SECONDS, patience=float("inf")
        )
        #: Names of the classes of errors that were logged during this outage.
        self._logged: set[str] = set()

    def pause_after(self, error: BaseException, interval: float) -> float:
        """Log an error, unless one of its kind was logged, and return the seconds to wait before the next attempt.

        :param error: The error.
        :param interval: Seconds between two attempts while there is no error; a transient error pauses no longer.
        """
        kind = type(error).__name__
        known = error if isinstance(error, RoughyError) else RoughyProtocolError(kind)
        if kind not in self._logged:
            self._logged.add(kind)
            trace = None if known is error else error
            self._log.warning("%s failed; retrying until it works: %s", self._operation, error or kind, exc_info=trace)
        # Errors that a retry does not fix are retried, too, because a user may fix the cause.
        pause = self._backoff.pause_after(known if known.transient else RoughyProtocolError(kind)) or MAX_PAUSE_SECONDS
        has_retry_after = isinstance(known, RoughyApiError) and known.retry_after is not None
        return min(pause, interval if known.transient and not has_retry_after else MAX_PAUSE_SECONDS)

    def end(self) -> None:
        """Log that the operation works again, if an error was logged before."""
        self._backoff.refill()
        if self._logged:
            self._logged.clear()
            self._log.info("%s works again", self._operation)

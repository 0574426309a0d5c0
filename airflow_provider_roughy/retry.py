"""The one retry policy: which errors are tried again, after which pause. Knows neither the network nor a clock."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyError,
    RoughyNotFoundError,
    RoughyUnreachableError,
)

if TYPE_CHECKING:
    from airflow_provider_roughy.api import Call

#: Seconds from which on a pause is worth a warning.
_LONG_PAUSE = 10.0

_log = logging.getLogger(__name__)


class Backoff:
    """The one retry policy: which error is tried again, and after how many seconds.

    :param tries: How often a request is sent in all, counted anew after each :meth:`refill`.
    :param first: Seconds before the first repetition; they double from there, with jitter.
    :param longest: Seconds that a pause grows to.
    :param patience: Seconds of ``Retry-After`` that are waited; a longer one ends the tries, and the error carries it.
    """

    def __init__(self, *, tries: int = 5, first: float = 0.5, longest: float = 30.0, patience: float = 300.0) -> None:
        self.tries = tries
        self.first = first
        self.longest = longest
        self.patience = patience
        self._failed = 0

    def pause_after(self, error: RoughyError, *, idempotent: bool = True) -> float | None:
        """Return the seconds to wait before the next try, or ``None`` to give up.

        :param error: What went wrong.
        :param idempotent: Whether the request may be sent again although it may have been processed.
        """
        self._failed += 1
        if self._failed >= self.tries or not error.transient or not (idempotent or was_not_processed(error)):
            return None
        wanted = error.retry_after if isinstance(error, RoughyApiError) else None
        if wanted is not None:
            return None if wanted > self.patience else wanted + random.uniform(0, self.first)
        ceiling = min(self.longest, self.first * 2 ** min(self._failed - 1, 30))
        return random.uniform(ceiling / 2, ceiling)

    def refill(self) -> None:
        """Count the tries anew, because the work moved on."""
        self._failed = 0


def was_not_processed(error: RoughyError) -> bool:
    """Whether the request certainly did nothing: never sent, or turned away at the door."""
    if isinstance(error, RoughyUnreachableError):
        return not error.sent
    return isinstance(error, RoughyApiError) and (
        error.status == 429 or (error.status == 503 and error.retry_after is not None)
    )


class Tries:
    """What one call has been through, each try sent by a driver of ``client.py``.

    :param call: What is asked.
    :param backoff: Which errors are tried again, and when.
    """

    def __init__(self, call: Call[Any], backoff: Backoff) -> None:
        self._call = call
        self._backoff = backoff
        self._failed = 0
        self._may_be_done = False

    def did(self, error: RoughyError) -> bool:
        """Whether an error says that an earlier try succeeded: nothing is there to delete, but its reply was lost.

        :param error: What the newest try met.
        """
        deleting = self._call.request.method == "DELETE"
        return deleting and self._may_be_done and isinstance(error, RoughyNotFoundError)

    def pause_after(self, error: RoughyError) -> float | None:
        """Return the seconds to wait before the next try, and say so in the log; or ``None`` to give up.

        :param error: What the newest try met.
        """
        self._failed += 1
        self._may_be_done = self._may_be_done or not was_not_processed(error)
        seconds = self._backoff.pause_after(error, idempotent=self._call.idempotent)
        if seconds is not None:
            asked = isinstance(error, RoughyApiError) and error.retry_after is not None
            _log.log(
                logging.INFO if self._failed == 1 and seconds < _LONG_PAUSE else logging.WARNING,
                "Try %d of %d failed, the next one is in %.1f s%s: %s",
                self._failed,
                self._backoff.tries,
                seconds,
                ", as Retry-After asks" if asked else "",
                error,
            )
        return seconds


class TransferTries:
    """What a transfer has been through since bytes last moved on.

    :param what: The transfer, for the log.
    :param backoff: Which errors are tried again, and when; ``None`` for what fits a transfer, which is worth some
        minutes of waiting.
    :param log: Where each pause is told.
    """

    def __init__(self, what: str, backoff: Backoff | None, log: Any) -> None:
        self._what = what
        self._backoff = backoff or Backoff(tries=8, longest=60.0)
        self._log = log
        #: Tries that failed in a row.
        self.failed = 0

    def refill(self) -> None:
        """Count anew, because bytes moved on."""
        self.failed = 0
        self._backoff.refill()

    def pause_after(self, error: RoughyError) -> float | None:
        """Return the seconds to wait before the next try, and say so in the log; or ``None`` to give up.

        :param error: What the newest try met.
        """
        self.failed += 1
        seconds = self._backoff.pause_after(error)
        if seconds is not None:
            self._log.warning(
                "%s: try %d of %d without progress failed; going on in %.1f s%s: %s",
                self._what,
                self.failed,
                self._backoff.tries,
                seconds,
                ", as Retry-After asks" if getattr(error, "retry_after", None) is not None else "",
                error,
            )
        return seconds

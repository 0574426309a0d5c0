"""The retry policy: after which errors a request is repeated, and after which pause. No network, no clock."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Generic, TypeVar

from airflow_provider_roughy.api import Reply
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyError,
    RoughyGatewayError,
    RoughyNotFoundError,
    RoughyProtocolError,
    RoughyUnreachableError,
)
from airflow_provider_roughy.instruments import RETRIES
from airflow_provider_roughy.logs import Log

if TYPE_CHECKING:
    from airflow_provider_roughy.api import Call

T = TypeVar("T")

#: Pauses of at least so many seconds are logged as warnings.
_LONG_PAUSE_SECONDS = 10.0

_log = logging.getLogger(__name__)


class Backoff:
    """Decides whether a request is repeated after an error, and after how many seconds.

    :param tries: How often a request is sent in all. :meth:`refill` starts the count again.
    :param first: Seconds before the second attempt. Each later pause is twice as long, with jitter.
    :param longest: The longest pause in seconds.
    :param patience: The longest ``Retry-After``, in seconds, that is waited for. A longer one ends the attempts; the
        error has it as ``retry_after``.
    """

    def __init__(self, *, tries: int = 5, first: float = 0.5, longest: float = 30.0, patience: float = 300.0) -> None:
        self.tries = tries
        self.first = first
        self.longest = longest
        self.patience = patience
        self._failed = 0

    def pause_after(self, error: RoughyError, *, idempotent: bool = True) -> float | None:
        """Return the seconds to wait before the next attempt, or ``None`` to give up.

        :param error: The error of the last attempt.
        :param idempotent: Whether the request may be sent again although Roughy may have processed it.
        """
        self._failed += 1
        if self._failed >= self.tries or not error.transient or not (idempotent or was_not_processed(error)):
            return None
        requested = error.retry_after if isinstance(error, RoughyApiError) else None
        if requested is not None:
            return None if requested > self.patience else requested + random.uniform(0, self.first)
        ceiling = min(self.longest, self.first * 2 ** min(self._failed - 1, 30))
        return random.uniform(ceiling / 2, ceiling)

    def refill(self) -> None:
        """Start the count of attempts again, because the work made progress."""
        self._failed = 0


def was_not_processed(error: RoughyError) -> bool:
    """Return whether a request certainly had no effect: it was not sent, or Roughy rejected it unread (429, 503).

    :param error: The error that it ended with.
    """
    if isinstance(error, RoughyUnreachableError):
        return not error.sent
    return isinstance(error, RoughyApiError) and (
        error.status == 429 or (error.status == 503 and error.retry_after is not None)
    )


def reason_of(error: RoughyError) -> str:
    """Return the reason of a retry for metrics: a value of the tag of ``RETRIES``.

    :param error: The error of the last attempt.
    """
    if isinstance(error, RoughyUnreachableError):
        return "unreachable"
    if isinstance(error, (RoughyProtocolError, RoughyGatewayError)):
        return "unexpected_reply"
    if isinstance(error, RoughyApiError):
        return "rate_limited" if error.status == 429 else "server_error" if error.status >= 500 else "other"
    return "other"


class Tries(Generic[T]):
    """The attempts of one call. A client sends each; this class decides what follows an error.

    :param call: The call.
    :param backoff: The retry policy.
    """

    def __init__(self, call: Call[T], backoff: Backoff) -> None:
        self._call = call
        self._backoff = backoff
        self._failed = 0
        self._may_be_done = False

    def after(self, error: RoughyError) -> float | None:
        """Return the seconds to wait before the next attempt, or ``None`` if the call has done its work.

        :param error: The error of the last attempt.
        :raises RoughyError: That error, if the call is not repeated.
        """
        if self._had_succeeded(error):
            return None
        pause = self.pause_after(error)
        if pause is None:
            raise error
        return pause

    @property
    def value(self) -> T:
        """The call's value where the reply of the attempt that succeeded was lost."""
        return self._call.parse(Reply(204, {}))

    def _had_succeeded(self, error: RoughyError) -> bool:
        """Return whether an earlier attempt has deleted what the last one did not find; its reply was lost."""
        deleting = self._call.request.method == "DELETE"
        return deleting and self._may_be_done and isinstance(error, RoughyNotFoundError)

    def pause_after(self, error: RoughyError) -> float | None:
        """Log that the work is retried, and return the seconds to wait before; or return ``None`` to give up.

        :param error: The error of the last attempt.
        """
        self._failed += 1
        self._may_be_done = self._may_be_done or not was_not_processed(error)
        seconds = self._backoff.pause_after(error, idempotent=self._call.idempotent)
        if seconds is not None:
            RETRIES.add(reason=reason_of(error))
            requested = isinstance(error, RoughyApiError) and error.retry_after is not None
            _log.log(
                logging.INFO if self._failed == 1 and seconds < _LONG_PAUSE_SECONDS else logging.WARNING,
                "Retrying in %.1f s%s; attempt %d of %d failed: %s",
                seconds,
                " (Retry-After)" if requested else "",
                self._failed,
                self._backoff.tries,
                error,
            )
        return seconds


class TransferTries:
    """The attempts of a transfer since it last made progress.

    :param what: The transfer, for the log.
    :param backoff: The retry policy; by default eight attempts with pauses of up to a minute.
    :param log: Logs each pause.
    """

    def __init__(self, what: str, backoff: Backoff | None, log: Log) -> None:
        self._what = what
        self._backoff = backoff or Backoff(tries=8, longest=60.0)
        self._log = log
        #: Attempts in a row that made no progress.
        self.failed = 0

    def refill(self) -> None:
        """Start the count of attempts again, because bytes have arrived."""
        self.failed = 0
        self._backoff.refill()

    def pause_after(self, error: RoughyError, *, rejected: bool = False) -> float | None:
        """Log that the work is retried, and return the seconds to wait before; or return ``None`` to give up.

        :param error: The error of the last attempt.
        :param rejected: Whether Roughy has probably rejected the file, so that little is left to find out.
        """
        self.failed += 1
        seconds = self._backoff.pause_after(error)
        if seconds is not None:
            RETRIES.add(reason=reason_of(error))
        if seconds is not None and rejected:
            log = self._log.info if self.failed == 1 else self._log.debug
            log("%s: Roughy rejected the first bytes; reading the asset to be certain: %s", self._what, error)
            # Long enough for a replica that lags: over a second and a half between the first and the third reading.
            return min(seconds, 2 * self._backoff.first)
        if seconds is not None:
            self._log.warning(
                "%s: no progress (attempt %d of %d); retrying in %.1f s%s: %s",
                self._what,
                self.failed,
                self._backoff.tries,
                seconds,
                " (Retry-After)" if getattr(error, "retry_after", None) is not None else "",
                error,
            )
        return seconds

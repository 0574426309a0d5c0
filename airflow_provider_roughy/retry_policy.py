"""A retry policy for tasks that fail because Roughy requested a pause (Airflow 3.3)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.compat import RetryDecision, RetryPolicy
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAssetProcessingError,
    RoughyError,
    RoughyRateLimitError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_roughy.compat import Context

#: Airflow 3.4 can run a task again without using a retry.
_CAN_RESCHEDULE = hasattr(RetryDecision, "reschedule")


class RoughyRetryPolicy(RetryPolicy):
    """Retries a task when Roughy requested it, and not at all if no retry can help.

    For any task, an operator of this package or one of your own that uses the hook::

        @task(retries=5, retry_policy=RoughyRetryPolicy())
        def publish(asset_id): ...

    ================================================ =======================================================
    The task fails with                              Airflow
    ================================================ =======================================================
    an error that carries ``retry_after``            runs it again after that time
    429, 503 or "asset is processing" without it     runs it again after ``retry_delay``
    an error that is ``final``, such as a wrong key  fails it, without a retry
    anything else                                    does as it would without a policy: ``retry_delay`` and
                                                     ``retry_exponential_backoff``
    ================================================ =======================================================

    On Airflow 3.4 and later, the first two use no retry: the task waits as ``up_for_reschedule``, until ``patience`` is
    over; then they count as any other failure. On Airflow 3.3, the first uses a retry, and the second is "anything
    else".

    An error of your own that was raised ``from`` one of this package counts as that one, and an upload that gave up
    because of a 503 waits as after a 503. There are never more tries than ``retries``. To combine it with other
    policies, put it into Airflow 3.4's ``ChainRetryPolicy``: it makes no decision on errors that are not Roughy's.

    :param shortest: The shortest pause, whatever Roughy requests: the start of a task costs more than a request.
    :param longest: The longest pause.
    :param patience: How long after its first reschedule a try is still rescheduled (Airflow 3.4).
    :raises ValueError: If ``shortest`` is negative or longer than ``longest``, or ``patience`` is not positive.
    :raises RuntimeError: On import, before Airflow 3.3.
    """

    def __init__(
        self,
        *,
        shortest: timedelta = timedelta(seconds=10),
        longest: timedelta = timedelta(hours=1),
        patience: timedelta = timedelta(hours=6),
    ) -> None:
        if not timedelta(0) <= shortest <= longest:
            raise ValueError(f"shortest must be between 0 and longest ({longest}), not {shortest}")
        if patience <= timedelta(0):
            raise ValueError(f"patience must be positive, not {patience}")
        self.shortest = shortest
        self.longest = longest
        self.patience = patience

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Return the decision about an error. Airflow calls this on the worker."""
        errors = list(_causes(exception))
        # Only the error itself decides, not its causes: an upload that is gone has a final cause, but is started again.
        if errors and errors[0].final:
            return RetryDecision.fail(f"No retry can fix this: {errors[0]}")
        for error in errors:
            if isinstance(error, RoughyApiError) and error.retry_after is not None:
                delay = max(self.shortest, min(timedelta(seconds=error.retry_after), self.longest))
                return self._later(delay, f"Roughy asked to wait {error.retry_after:.0f} s: {error}")
            if _CAN_RESCHEDULE and _is_not_ready_yet(error):
                return self._later(None, f"Roughy asked to come back later: {error}")
        return RetryDecision.default()

    def _later(self, delay: timedelta | None, reason: str) -> RetryDecision:
        if _CAN_RESCHEDULE:
            later: Any = RetryDecision
            decision: RetryDecision = later.reschedule(delay, reschedule_timeout=self.patience, reason=reason)
            return decision
        return RetryDecision.retry(delay, reason)

    def serialize(self) -> dict[str, Any]:
        """Return its settings in seconds. Airflow currently stores only that there is a policy."""
        return {name: value.total_seconds() for name, value in vars(self).items()}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> RoughyRetryPolicy:
        """Create it from its settings."""
        return cls(**{name: timedelta(seconds=seconds) for name, seconds in data.items()})


def _is_not_ready_yet(error: RoughyError) -> bool:
    """Return whether an error without ``Retry-After`` means that Roughy, or a gateway before it, is not ready yet."""
    if isinstance(error, (RoughyRateLimitError, RoughyAssetProcessingError)):
        return True
    return isinstance(error, RoughyApiError) and error.status == 503


def _causes(exception: BaseException) -> Iterator[RoughyError]:
    """Yield the errors of this package among an error and its causes, the error itself first."""
    seen: set[int] = set()
    now: BaseException | None = exception
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        if isinstance(now, RoughyError):
            yield now
        now = now.__cause__

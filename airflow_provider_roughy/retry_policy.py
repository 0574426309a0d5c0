"""How long Airflow pauses before it tries a task again that Roughy turned away (Airflow 3.3)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.compat import RetryDecision, RetryPolicy
from airflow_provider_roughy.exceptions import RoughyApiError, RoughyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_roughy.compat import Context


class RoughyRetryPolicy(RetryPolicy):
    """Tries a task again when Roughy asked for it, and not at all where that could not help.

    For any task, an operator of this package or one of your own that uses the hook::

        @task(retries=5, retry_policy=RoughyRetryPolicy())
        def publish(asset_id): ...

    ================================================ =======================================================
    The task fails with                              Airflow
    ================================================ =======================================================
    an error that carries ``retry_after``            tries it again after that time
    an error that is ``final``, such as a wrong key  does not try it again
    anything else                                    does as it would without a policy: ``retry_delay`` and
                                                     ``retry_exponential_backoff``
    ================================================ =======================================================

    An error of your own that was raised ``from`` one of this package counts as that, and an upload that gave up because
    of a 503 waits as that says. There are never more tries than ``retries``.

    :param shortest: The shortest pause, whatever Roughy asks for: a task that starts costs more than a request.
    :param longest: The longest one.
    :raises ValueError: If ``shortest`` is negative or longer than ``longest``.
    :raises RuntimeError: On import, before Airflow 3.3.
    """

    def __init__(self, *, shortest: timedelta = timedelta(seconds=10), longest: timedelta = timedelta(hours=1)) -> None:
        if not timedelta(0) <= shortest <= longest:
            raise ValueError(f"shortest must be between 0 and longest ({longest}), not {shortest}")
        self.shortest = shortest
        self.longest = longest

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Decide what follows from an error, as Airflow asks on the worker."""
        errors = list(_causes(exception))
        # What it was raised from may be final, and it is not: an upload that is gone is begun anew.
        if errors and errors[0].final:
            return RetryDecision.fail(f"No retry can mend this: {errors[0]}")
        for error in errors:
            if isinstance(error, RoughyApiError) and error.retry_after is not None:
                delay = max(self.shortest, min(timedelta(seconds=error.retry_after), self.longest))
                return RetryDecision.retry(delay, f"Roughy asked to wait {error.retry_after:.0f} s: {error}")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return its settings in seconds, although Airflow 3.3 stores only that there is a policy."""
        return {"shortest": self.shortest.total_seconds(), "longest": self.longest.total_seconds()}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> RoughyRetryPolicy:
        """Make it again from its settings."""
        return cls(**{name: timedelta(seconds=seconds) for name, seconds in data.items()})


def _causes(exception: BaseException) -> Iterator[RoughyError]:
    """Yield the errors of this package that an error is, or was raised from; itself first."""
    seen: set[int] = set()
    now: BaseException | None = exception
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        if isinstance(now, RoughyError):
            yield now
        now = now.__cause__

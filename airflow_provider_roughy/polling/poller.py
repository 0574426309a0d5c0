"""Judges each poll of one resource until there is a verdict."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.api import resource_id
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyConfigurationError,
    RoughyError,
    RoughyMissingConnectionError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.http.retry import reason_of
from airflow_provider_roughy.instruments import RETRIES, WAITS
from airflow_provider_roughy.lifecycle import Kind, OnPendingPayment, Outcome, Verdict
from airflow_provider_roughy.logs import Log, counted

if TYPE_CHECKING:
    from airflow_provider_roughy.polling.shared import Wait

#: The answer to a poll: the resource, or the error that the poll ended with.
Answer = Any | RoughyError

#: Seconds that one poll of one resource may take in all.
POLL_SECONDS = 30.0
#: Seconds of ``Retry-After`` that a poll obeys; a longer one is taken for a mistake.
MAX_RETRY_AFTER = 300.0

#: What a task does about a resource that is not paid for, by its policy.
_IF_UNPAID: dict[OnPendingPayment, str] = {
    "fail": "fails",
    "skip": "is skipped",
    "return": "ends without waiting for that",
    "wait": "waits for that",
}

#: All pollers that this process waits on, in whichever thread.
waited_on: set[ResourcePoller] = set()


class ResourcePoller:
    """Evaluate one poll of a resource after another, and log each state once, with the time spent in the one before.

    A triggerer holds thousands of them, and a full garbage collection visits every object: hence the slots, and
    what :class:`~airflow_provider_roughy.polling.SharedPoll` knows of it in the same object.

    :param kind: What kind of resource it is.
    :param id: Its id, in any spelling of a UUID.
    :param log: Where to log states: a logger of the standard library or of structlog.
    :param on_pending_payment: Whether an unpaid resource is waited for (``"wait"``), if its kind is paid for.
    :param one_of_many: Whether the resource belongs to a batch, so that a list is enough to end the wait for it.
    """

    __slots__ = (
        "_failed_polls",
        "_since",
        "answered",
        "error",
        "id",
        "kind",
        "log",
        "not_before",
        "on_pending_payment",
        "one_of_many",
        "state",
        "unverified_rounds",
        "verdict",
        "wait",
    )

    def __init__(
        self,
        kind: Kind,
        id: str,
        *,
        log: Log,
        on_pending_payment: OnPendingPayment = "fail",
        one_of_many: bool = False,
    ) -> None:
        self.kind = kind
        self.id = _canonical(id)
        self.on_pending_payment = on_pending_payment
        self.one_of_many = one_of_many
        self.log = log
        self.state: str | None = None
        self.error: RoughyError | None = None
        #: The final verdict; ``None`` before the end.
        self.verdict: Verdict | None = None
        #: When to poll again at the earliest, in seconds since the epoch, as the last reply asked for.
        self.not_before = 0.0
        #: How many rounds in a row only a list reported the state.
        self.unverified_rounds = 0
        self._since = time.monotonic()
        self._failed_polls = 0
        #: Who waits on it in a shared poll; ``None`` outside of one.
        self.wait: Wait | None = None
        #: Whether the shared poll has answered it since its waiter was due.
        self.answered = False

    def poll(self, hook: RoughyHook, *, within: float = POLL_SECONDS) -> Verdict | None:
        """Poll once, and return the verdict if it is final.

        :param hook: Sends the request.
        :param within: Seconds that it may take.
        :raises RoughyMissingConnectionError: If Airflow has no such connection.
        """
        try:
            resource = hook.client.once(self.kind.read(self.id), within=min(within, POLL_SECONDS))
        except RoughyMissingConnectionError:
            raise
        except RoughyError as error:
            if error.transient:
                RETRIES.add(reason=reason_of(error))
            verdict = self.on_error(error)
        else:
            verdict = self.on_resource(resource)
        if verdict is not None:
            WAITS.add(kind=verdict.kind, outcome=verdict.outcome.name.lower())
        return verdict

    def on_answer(self, answer: Answer) -> Verdict | None:
        """Evaluate the answer to a poll, and return the verdict if it is final."""
        return self.on_error(answer) if isinstance(answer, RoughyError) else self.on_resource(answer)

    def on_resource(self, resource: Any) -> Verdict | None:
        """Evaluate a resource that was just read, and return the verdict if it is final."""
        if self._failed_polls:
            failed = counted(self._failed_polls, "failed poll")
            self.log.info("Polling %s %s works again, after %s", self.kind.name, self.id, failed)
        self.error, self.not_before, self._failed_polls = None, 0.0, 0
        if resource.state == self.state and self.verdict is None:
            return None
        verdict = Verdict.of(self.kind, resource)
        if self.one_of_many:
            verdict = verdict.brief()
        if verdict.state != self.state:
            self._log_state(verdict)
            self._since = time.monotonic()
        self.state = verdict.state
        self.verdict = verdict if verdict.is_final(self.on_pending_payment) else None
        return self.verdict

    def on_error(self, error: RoughyError) -> Verdict | None:
        """Count a poll that failed, and return the verdict if no other poll can succeed."""
        if not error.transient:
            self.verdict = Verdict.unavailable(self.kind, self.id, error)
            return self.verdict
        if type(error) is not type(self.error):
            self.log.warning("Polling %s %s failed; still waiting: %s", self.kind.name, self.id, error)
        self.error = error
        self.not_before = time.time() + (obeyed_retry_after(error) or 0.0)
        self._failed_polls += 1
        return None

    def timed_out(self) -> Verdict:
        """Return the verdict of a wait whose deadline has passed."""
        return Verdict.timed_out(self.kind, self.id, state=self.state, error=self.error)

    def _log_state(self, verdict: Verdict) -> None:
        title = self.kind.name.capitalize()
        spent = f", after {time.monotonic() - self._since:.0f} s as {self.state}" if self.state else ""
        if not verdict.known:
            self.log.warning(
                "%s %s is in state %r%s, which this version does not know: waiting until the deadline. "
                "Is there a newer airflow-provider-roughy?",
                title,
                verdict.id,
                verdict.state,
                spent,
            )
        elif verdict.outcome is Outcome.PAYMENT_REQUIRED:
            self.log.warning(
                "%s %s is %s%s: the credits did not cover it. Top up at Roughy within 30 days and it becomes ready "
                "automatically; this task %s, as on_pending_payment=%r (request %s)",
                title,
                verdict.id,
                verdict.state,
                spent,
                _IF_UNPAID.get(self.on_pending_payment, "ends"),
                self.on_pending_payment,
                verdict.request_id,
            )
        else:
            self.log.info("%s %s is %s%s (request %s)", title, verdict.id, verdict.state, spent, verdict.request_id)


@contextmanager
def waiting(pollers: Iterable[ResourcePoller]) -> Iterator[None]:
    """Count pollers as waited on for :func:`others_wait_for`, while the body runs."""
    pollers = list(pollers)
    waited_on.update(pollers)
    try:
        yield
    finally:
        waited_on.difference_update(pollers)


def others_wait_for(kind: Kind, id: str, *, than: ResourcePoller | None = None) -> bool:
    """Return whether another task of this worker or triggerer waits for a resource.

    It may be called in a signal handler. It knows nothing of other processes.

    :param kind: The resource's kind.
    :param id: The resource's id.
    :param than: A poller that does not count.
    """
    id = _canonical(id)
    return any(poller is not than and (poller.kind, poller.id) == (kind, id) for poller in tuple(waited_on))


def obeyed_retry_after(error: RoughyError) -> float | None:
    """Return the seconds of an error's ``Retry-After``, as far as they are obeyed; ``None`` if it has none."""
    asked = error.retry_after if isinstance(error, RoughyApiError) else None
    return None if asked is None else min(asked, MAX_RETRY_AFTER)


def _canonical(id: str) -> str:
    """Spell an id as Roughy does. A malformed id is returned as it is; the request refuses it."""
    try:
        return resource_id("id", id)
    except RoughyConfigurationError:
        return id

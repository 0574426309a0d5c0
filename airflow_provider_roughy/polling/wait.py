"""Waits for one resource or a batch, by the poll that all waiters share."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from airflow_provider_roughy.event_loop import run_here
from airflow_provider_roughy.exceptions import RoughyApiError, RoughyError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.http import interrupt
from airflow_provider_roughy.http.retry import Backoff
from airflow_provider_roughy.instruments import WAIT_DURATION, WAITS
from airflow_provider_roughy.lifecycle import Kind, OnPendingPayment, Verdict
from airflow_provider_roughy.logs import SILENT, Log, counted
from airflow_provider_roughy.polling.poller import POLL_SECONDS, Answer, ResourcePoller, waited_on
from airflow_provider_roughy.polling.shared import SharedPoll

#: Seconds that the last polls of a wait may take after its deadline.
_GRACE_SECONDS = 20.0
#: How many pollers are notified of an error before the event loop may do something else.
_MAX_ERRORS_A_TURN = 500
#: Seconds between two log lines about the progress of a batch.
_PROGRESS_SECONDS = 10.0

_log = logging.getLogger(__name__)


def wait_here(
    hook: RoughyHook, poller: ResourcePoller, *, poll_interval: float, deadline: float, not_before: float = 0.0
) -> Verdict:
    """Wait in this thread for a final verdict. It does not matter whether an event loop runs in it (as in a notebook).

    The parameters are those of :func:`wait_until_final`.
    """
    return run_here(
        lambda: wait_until_final(hook, poller, poll_interval=poll_interval, deadline=deadline, not_before=not_before)
    )


async def poll_batch(
    hook: RoughyHook, kind: Kind, ids: Sequence[str], *, failed: dict[str, RoughyError] | None = None
) -> dict[str, Verdict]:
    """Poll a batch of resources once.

    :param hook: Names the connection.
    :param kind: The kind of the resources.
    :param ids: Their ids.
    :param failed: Takes the errors of the polls that failed, by id.
    :returns: A verdict on each, final or not. Resources whose poll failed are left out.
    :raises RoughyError: If the connection cannot be read, or is unusable.
    """
    verdicts: dict[str, Verdict] = {}
    for id, (poller, answer) in (await _poll_once(hook, kind, ids)).items():
        verdict = poller.on_answer(answer)
        if verdict is None and not isinstance(answer, RoughyError):
            verdict = Verdict.of(kind, answer).brief()
        if verdict is not None:
            verdicts[id] = verdict
        elif failed is not None and poller.error is not None:
            failed[id] = poller.error
    return verdicts


async def read_batch(hook: RoughyHook, kind: Kind, ids: Sequence[str], *, backoff: Backoff) -> dict[str, Answer]:
    """Read a batch of resources, by lists where they cost fewer requests. Repeat reads that fail for the time being.

    :param hook: Names the connection.
    :param kind: The kind of the resources.
    :param ids: Their ids.
    :param backoff: The retry policy.
    :returns: Each resource, or the error of reading it.
    :raises RoughyError: If the connection cannot be read, or is unusable.
    """
    answers: dict[str, Answer] = {}
    left, pause = list(ids), 0.0
    while True:
        await asyncio.sleep(pause)
        answers |= {id: answer for id, (_, answer) in (await _poll_once(hook, kind, left)).items()}
        errors = {id: answer for id in left if isinstance(answer := answers.get(id), RoughyError) and answer.transient}
        if not errors:
            return answers
        seconds = backoff.pause_after(max(errors.values(), key=_retry_after))
        if seconds is None or not (time_left := interrupt.time_left()):
            return answers
        left, pause = list(errors), min(seconds, time_left)


def _retry_after(error: RoughyError) -> float:
    """Return how many seconds Roughy asks to wait for."""
    return (error.retry_after or 0.0) if isinstance(error, RoughyApiError) else 0.0


async def _poll_once(hook: RoughyHook, kind: Kind, ids: Sequence[str]) -> dict[str, tuple[ResourcePoller, Answer]]:
    answers: dict[ResourcePoller, Answer] = {}

    def take(poller: ResourcePoller, answer: Answer) -> bool:
        answers[poller] = answer
        return True

    pollers = pollers_of_batch(kind, ids)
    async with SharedPoll.joined(hook, kind) as poll:
        await poll.wait(pollers, take, interval=POLL_SECONDS)
    return {id: (poller, answers[poller]) for id, poller in zip(ids, pollers, strict=True) if poller in answers}


async def wait_for_batch(
    hook: RoughyHook,
    kind: Kind,
    ids: Sequence[str],
    *,
    poll_interval: float,
    deadline: float,
    on_pending_payment: OnPendingPayment = "fail",
    log: Log = _log,
) -> list[Verdict]:
    """Poll a batch of resources until there is a final verdict on each; log its progress, but not each resource.

    :param hook: Names the connection.
    :param kind: The kind of the resources.
    :param ids: Their ids.
    :param poll_interval: See :func:`wait_until_all_final`.
    :param deadline: See :func:`wait_until_all_final`.
    :param on_pending_payment: See :class:`ResourcePoller`.
    :param log: Where to log progress, each time that states have changed, but at most every ten seconds.
    :returns: Their verdicts, in the order of ``ids``.
    """
    pollers = pollers_of_batch(kind, ids, on_pending_payment=on_pending_payment)
    log_progress = progress_logger(kind, pollers, log=log)
    verdicts = await wait_until_all_final(
        hook, pollers, poll_interval=poll_interval, deadline=deadline, on_round=log_progress
    )
    log_progress()
    return verdicts


def pollers_of_batch(
    kind: Kind, ids: Sequence[str], *, on_pending_payment: OnPendingPayment = "fail"
) -> list[ResourcePoller]:
    """Return pollers that log nothing, and for which a list is enough to end the wait.

    :param kind: The kind of the resources.
    :param ids: Their ids.
    :param on_pending_payment: See :class:`ResourcePoller`.
    """
    return [ResourcePoller(kind, id, on_pending_payment=on_pending_payment, log=SILENT, one_of_many=True) for id in ids]


def progress_logger(kind: Kind, pollers: Sequence[ResourcePoller], *, log: Log) -> Callable[[], None]:
    """Return a function that logs how far a wait is, if states have changed, but at most every ten seconds.

    :param kind: The kind of the resources.
    :param pollers: Their pollers.
    :param log: The log.
    """
    logged, logged_at = "", float("-inf")

    def log_progress() -> None:
        nonlocal logged, logged_at
        left = sum(poller.verdict is None for poller in pollers)
        states = Counter(poller.state or "not polled yet" for poller in pollers)
        now = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
        if now != logged and (time.monotonic() - logged_at >= _PROGRESS_SECONDS or not left):
            progress = f"Waiting for {left:,} of" if left else "Finished waiting for"
            log.info("%s %s: %s", progress, counted(len(pollers), kind.name), now)
            logged, logged_at = now, time.monotonic()

    return log_progress


async def wait_until_final(
    hook: RoughyHook, poller: ResourcePoller, *, poll_interval: float, deadline: float, not_before: float = 0.0
) -> Verdict:
    """Poll a resource until there is a final verdict.

    The parameters are those of :func:`wait_until_all_final`.
    """
    (verdict,) = await wait_until_all_final(
        hook, [poller], poll_interval=poll_interval, deadline=deadline, not_before=not_before
    )
    return verdict


async def wait_until_all_final(
    hook: RoughyHook,
    pollers: Sequence[ResourcePoller],
    *,
    poll_interval: float,
    deadline: float,
    not_before: float = 0.0,
    on_round: Callable[[], None] | None = None,
) -> list[Verdict]:
    """Poll resources of one kind until there is a final verdict on each: the one polling loop of this package.

    A poll that fails for a reason that may pass does not end the wait, nor does a connection that cannot be read.

    :param hook: Names the connection.
    :param pollers: Each of a resource of its own.
    :param poll_interval: Seconds between two polls, give or take a tenth, so that rounds of many connections spread.
    :param deadline: When to give up, in seconds since the epoch. Each resource that is left is polled once more then.
    :param not_before: When to poll first, in seconds since the epoch: what a ``Retry-After`` asks for.
    :param on_round: Called after each round of polls.
    :returns: Their verdicts, in the order of ``pollers``.
    """
    if not pollers:
        return []
    poll: SharedPoll | None = None
    began = time.monotonic()
    # No context managers around the wait: thousands of them would be thousands of objects more.
    waited_on.update(pollers)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline - time.time())):
                await asyncio.sleep(max(0.0, not_before - time.time()))
                while (poll := await _join(hook, pollers)) is None and pollers[0].verdict is None:
                    if on_round is not None:
                        on_round()
                    await asyncio.sleep(poll_interval * random.uniform(0.9, 1.1))
        if poll is not None:
            await poll.wait(pollers, _is_final, interval=poll_interval, deadline=deadline, on_round=on_round)
        if left := [poller for poller in pollers if poller.verdict is None]:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_SECONDS):
                    poll = poll or await _join(hook, left)
                    await asyncio.gather(*(_poll_last(poll, poller) for poller in left if poll is not None))
        verdicts = [poller.verdict or poller.timed_out() for poller in pollers]
        _record(verdicts, time.monotonic() - began)
        return verdicts
    finally:
        waited_on.difference_update(pollers)
        if poll is not None:
            await poll.leave()


def _record(verdicts: Sequence[Verdict], seconds: float) -> None:
    """Record a wait that has ended."""
    kind = verdicts[0].kind
    WAIT_DURATION.record(seconds, kind=kind)
    for outcome, count in Counter(verdict.outcome for verdict in verdicts).items():
        WAITS.add(count, kind=kind, outcome=outcome.name.lower())


async def _join(hook: RoughyHook, pollers: Sequence[ResourcePoller]) -> SharedPoll | None:
    """Join the shared poll, or return ``None`` after all pollers have evaluated the error."""
    try:
        return await SharedPoll.join(hook, pollers[0].kind)
    except RoughyError as error:
        for number, poller in enumerate(pollers, start=1):
            poller.on_error(error)
            if number % _MAX_ERRORS_A_TURN == 0:
                await asyncio.sleep(0)
        return None


def _is_final(poller: ResourcePoller, answer: Answer) -> bool:
    return poller.on_answer(answer) is not None


async def _poll_last(poll: SharedPoll, poller: ResourcePoller) -> None:
    try:
        poller.on_resource(await poll.read_now(poller.id))
    except RoughyError as error:
        poller.on_error(error)

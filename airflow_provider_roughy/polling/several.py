"""Waits for resources of several kinds at once, and may end when some of them have ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import KINDS, OnPendingPayment, Verdict
from airflow_provider_roughy.logs import Log
from airflow_provider_roughy.polling.poller import ResourcePoller
from airflow_provider_roughy.polling.wait import pollers_of_batch, progress_logger, wait_until_all_final


async def wait_for_some(
    hook: RoughyHook,
    ids: Mapping[str, Sequence[str]],
    *,
    go_on_after: float,
    poll_interval: float,
    deadline: float,
    not_before: float = 0.0,
    ends_at: float | None = None,
    on_pending_payment: OnPendingPayment = "fail",
    log: Log,
) -> list[Verdict]:
    """Poll resources until there is a final verdict on each, or after a while on some.

    :param hook: Names the connection.
    :param ids: The ids of the resources, by the name of their kind.
    :param go_on_after: Seconds after which it is enough that some resources have ended.
    :param poll_interval: See :func:`~airflow_provider_roughy.polling.wait_until_all_final`.
    :param deadline: See the same function. Afterwards, there is a verdict on each resource.
    :param not_before: When to poll first, in seconds since the epoch.
    :param ends_at: When to end even if there is no final verdict, in seconds since the epoch.
    :param on_pending_payment: See :class:`~airflow_provider_roughy.polling.ResourcePoller`.
    :param log: Logs the progress.
    :returns: The final verdicts.
    """
    pollers = {
        kind: pollers_of_batch(KINDS[kind], of_kind, on_pending_payment=on_pending_payment)
        for kind, of_kind in ids.items()
        if of_kind
    }
    changed = asyncio.Event()
    enough_from = time.monotonic() + go_on_after
    loggers = {kind: progress_logger(KINDS[kind], of_kind, log=log) for kind, of_kind in pollers.items()}

    def after_round(log_progress: Callable[[], None]) -> Callable[[], None]:
        def on_round() -> None:
            log_progress()
            changed.set()

        return on_round

    waits = {
        kind: asyncio.ensure_future(
            wait_until_all_final(
                hook,
                of_kind,
                poll_interval=poll_interval,
                deadline=deadline,
                not_before=not_before,
                on_round=after_round(loggers[kind]),
            )
        )
        for kind, of_kind in pollers.items()
    }
    for wait in waits.values():
        wait.add_done_callback(lambda _: changed.set())
    loop = asyncio.get_running_loop()
    timers = [loop.call_later(go_on_after, changed.set)]
    if ends_at is not None:
        timers.append(loop.call_later(max(0.0, ends_at - time.time()), changed.set))
    try:
        while not all(wait.done() for wait in waits.values()):
            await changed.wait()
            changed.clear()
            if time.monotonic() >= enough_from and any(map(_has_ended, pollers.values())):
                break
            if ends_at is not None and time.time() >= ends_at:
                break
    finally:
        for timer in timers:
            timer.cancel()
        for wait in waits.values():
            wait.cancel()
        # Each one leaves its poll.
        await asyncio.gather(*waits.values(), return_exceptions=True)
    verdicts: list[Verdict] = []
    for kind, wait in waits.items():
        if wait.cancelled():
            verdicts += [poller.verdict for poller in pollers[kind] if poller.verdict is not None]
        else:
            verdicts += wait.result()
        loggers[kind]()
    return verdicts


def _has_ended(pollers: Sequence[ResourcePoller]) -> bool:
    return any(poller.verdict is not None for poller in pollers)

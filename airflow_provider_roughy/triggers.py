"""Waiting: how one look after another becomes a verdict, and the trigger that looks from a triggerer."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_roughy import api
from airflow_provider_roughy.exceptions import RoughyApiError, RoughyConfigurationError, RoughyError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import ASSET, OnPendingPayment, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Watch:
    """Judges one look at an asset after another, and logs each state once.

    :param asset_id: The asset.
    :param on_pending_payment: Whether an unpaid asset is waited for (``"wait"``).
    :param log: Where to say what was seen: a logger of the standard library or of structlog.
    """

    def __init__(self, asset_id: str, *, on_pending_payment: OnPendingPayment, log: Any) -> None:
        self.asset_id = asset_id
        self.on_pending_payment = on_pending_payment
        self.log = log
        self.state: str | None = None
        self.error: RoughyError | None = None

    def saw(self, asset: api.RoughyAsset) -> Verdict:
        """Judge an asset that was just read."""
        verdict = Verdict.of(ASSET, asset)
        if verdict.state != self.state:
            self._log_state(verdict)
        self.state, self.error = verdict.state, None
        return verdict

    def missed(self, error: RoughyError) -> None:
        """Take note of a look that failed and may succeed later."""
        self.error = error
        self.log.warning("Asset %s could not be looked at, and is waited for all the same: %s", self.asset_id, error)

    def _log_state(self, verdict: Verdict) -> None:
        if not verdict.known:
            self.log.warning(
                "Asset %s is in state %r, which this version does not know: waiting on until the deadline. "
                "Is there a newer airflow-provider-roughy?",
                verdict.id,
                verdict.state,
            )
        elif verdict.outcome is Outcome.PAYMENT_REQUIRED:
            self.log.warning(
                "Asset %s is %s: the credits did not cover it. Top up at Roughy within 30 days and it becomes ready "
                "by itself; on_pending_payment=%r decides what happens meanwhile (request %s)",
                verdict.id,
                verdict.state,
                self.on_pending_payment,
                verdict.request_id,
            )
        else:
            self.log.info("Asset %s is %s (request %s)", verdict.id, verdict.state, verdict.request_id)

    def look(self, hook: RoughyHook) -> Verdict | None:
        """Look once, and return the verdict if it is final.

        :param hook: Looks.
        :raises RoughyError: If Roughy refuses for good: wrong key, no such asset.
        """
        try:
            verdict = self.saw(hook.get_asset(self.asset_id))
        except RoughyError as error:
            if not error.transient:
                raise
            self.missed(error)
            return None
        return verdict if verdict.is_final(self.on_pending_payment) else None


async def wait_for_asset(hook: RoughyHook, watch: Watch, *, poll_interval: float, deadline: float) -> Verdict:
    """Look at an asset until there is a final verdict: the one polling loop of this package.

    A look that fails for a reason that may pass does not end the wait, and ``Retry-After`` is obeyed.

    :param hook: Looks.
    :param watch: Judges.
    :param poll_interval: Seconds between two looks, give or take a tenth, so that many waiters spread out.
    :param deadline: When to give up, in seconds since the epoch.
    """
    from airflow_provider_roughy.client import Backoff

    try:
        client = await hook.aopen()
    except RoughyConfigurationError as error:
        return Verdict.refused(ASSET, watch.asset_id, error)
    async with client:
        while True:
            pause = poll_interval * random.uniform(0.9, 1.1)
            try:
                # The next round is the retry.
                verdict = watch.saw(await client.run(api.get_asset(watch.asset_id), backoff=Backoff(tries=1)))
            except RoughyError as error:
                if not error.transient:
                    return Verdict.refused(ASSET, watch.asset_id, error)
                watch.missed(error)
                if isinstance(error, RoughyApiError) and error.retry_after is not None:
                    pause = max(pause, error.retry_after)
            else:
                if verdict.is_final(watch.on_pending_payment):
                    return verdict
            left = deadline - time.time()
            if left <= 0:
                return Verdict.timed_out(ASSET, watch.asset_id, state=watch.state, error=watch.error)
            await asyncio.sleep(min(pause, left))


class RoughyAssetTrigger(BaseTrigger):
    """Waits in a triggerer until an asset is ready, failed or, unless that is waited for as well, unpaid.

    Its one event is a :class:`~airflow_provider_roughy.lifecycle.Verdict` as plain JSON, and holds no secret.

    :param asset_id: The asset.
    :param roughy_conn_id: The Airflow connection.
    :param poll_interval: Seconds between two looks.
    :param deadline: When to give up, in seconds since the epoch: a restart of the triggerer does not move it.
    :param on_pending_payment: Whether an unpaid asset is waited for (``"wait"``).
    """

    def __init__(
        self,
        *,
        asset_id: str,
        deadline: float,
        roughy_conn_id: str = RoughyHook.default_conn_name,
        poll_interval: float = 30.0,
        on_pending_payment: OnPendingPayment = "fail",
    ) -> None:
        super().__init__()
        self.asset_id = asset_id
        self.roughy_conn_id = roughy_conn_id
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.on_pending_payment = on_pending_payment

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores, in plain text, to make this trigger again."""
        # A literal, so that what is stored today can be found tomorrow, wherever the class has moved.
        return "airflow_provider_roughy.triggers.RoughyAssetTrigger", {
            "asset_id": self.asset_id,
            "roughy_conn_id": self.roughy_conn_id,
            "poll_interval": self.poll_interval,
            "deadline": self.deadline,
            "on_pending_payment": self.on_pending_payment,
        }

    @property
    def defer_timeout(self) -> timedelta:
        """How long Airflow should wait for the event: past the deadline, as a net if no triggerer runs."""
        return timedelta(seconds=max(0.0, self.deadline - time.time()) + 2 * self.poll_interval + 60)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then say what came of it."""
        watch = Watch(self.asset_id, on_pending_payment=self.on_pending_payment, log=self.log)
        verdict = await wait_for_asset(
            RoughyHook(self.roughy_conn_id), watch, poll_interval=self.poll_interval, deadline=self.deadline
        )
        yield TriggerEvent(verdict.to_event())

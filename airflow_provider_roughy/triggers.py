"""The trigger that waits for an asset in a triggerer."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.polling import Watch, wait_for_asset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_provider_roughy.lifecycle import OnPendingPayment


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

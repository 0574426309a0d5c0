"""The trigger that waits for an asset in a triggerer."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_roughy.exceptions import RoughyTimeoutError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.polling import Watch, wait_until_final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow.providers.common.compat.sdk import BaseOperator

    from airflow_provider_roughy.lifecycle import OnPendingPayment


def check_event_came(next_method: str, next_kwargs: dict[str, Any] | None, *, asset_id: str | None = None) -> None:
    """Tell the end of a wait that no trigger reported from all else that a deferred task is resumed for.

    :param next_method: As Airflow resumes a task with.
    :param next_kwargs: Likewise.
    :param asset_id: The asset, if it is known.
    :raises RoughyTimeoutError: If Airflow itself ended the wait; no retry would help, and one might upload again.
    """
    # Airflow 3 says "Trigger timeout", Airflow 2 "Trigger/execution timeout".
    if next_method == "__fail__" and str((next_kwargs or {}).get("error")).endswith("timeout"):
        raise RoughyTimeoutError(asset_id, reason="no trigger told of any; is a triggerer running?")


class RoughyAssetTrigger(BaseTrigger):
    """Waits in a triggerer until an asset is ready, failed or, unless that is waited for as well, unpaid.

    All triggers of one event loop that use the same connection share one poll.
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

    def take_over(self, task: BaseOperator) -> NoReturn:
        """Let a task wait for the event, which its ``execute_complete`` is called with.

        Airflow ends the wait by itself some time past the deadline, in case no triggerer runs.

        :param task: The task that runs.
        :raises TaskDeferred: Always.
        """
        task.log.info("Asset %s is waited for in the triggerer", self.asset_id)
        left = max(0.0, self.deadline - time.time())
        timeout = timedelta(seconds=left + 2 * self.poll_interval + 60)
        task.defer(trigger=self, method_name="execute_complete", timeout=timeout)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then say what came of it."""
        watch = Watch(self.asset_id, on_pending_payment=self.on_pending_payment, log=self.log)
        verdict = await wait_until_final(
            RoughyHook(self.roughy_conn_id), watch, poll_interval=self.poll_interval, deadline=self.deadline
        )
        yield TriggerEvent(verdict.to_event())

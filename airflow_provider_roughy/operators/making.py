"""What the operators have in common that have Roughy make something of an asset: cuts and renders."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy import lineage
from airflow_provider_roughy.exceptions import RoughyAssetProcessingError, RoughyPaymentRequiredError
from airflow_provider_roughy.lifecycle import ASSET, Outcome, Verdict
from airflow_provider_roughy.links import asset_links, show_asset
from airflow_provider_roughy.operators.waiting import WaitingOperator
from airflow_provider_roughy.outlets import announce_verdict
from airflow_provider_roughy.polling import Watch, wait_here
from airflow_provider_roughy.triggers import RoughyAssetTrigger, RoughyTrigger

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import Context


class MakingOperator(WaitingOperator):
    """Has something made of an asset, and waits: for the asset while it is not ready, then for what is made of it.

    The request that makes it may be sent again, as the same request finds what there is. So nothing is remembered: each
    start of the task, the first one or one after a wait, a retry, a cleared task, a killed worker, asks for the same.
    A subclass holds the asset's id in ``asset_id``, and that of the cut to follow, if there is one, in ``cut_id``.

    :param wait_for_completion: Whether to wait until it is made.
    :param options: As of :class:`~airflow_provider_roughy.operators.waiting.WaitingOperator`.
    """

    operator_extra_links = asset_links()

    asset_id: str
    cut_id: str | None = None

    def __init__(self, *, wait_for_completion: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.wait_for_completion = wait_for_completion
        #: What this worker waits for.
        self._waiting_for: Watch | None = None

    def make(self) -> Any:
        """Ask for it, and return it: with ``id``, ``state``, ``request_id`` and ``to_dict()``."""
        raise NotImplementedError

    def execute(self, context: Context) -> str | None:
        """Have it made, and wait if asked to.

        :returns: Its id; ``None`` if the asset is not paid for and ``on_pending_payment`` lets that pass.
        """
        show_asset(context, self.asset_id)
        return self._run(context, None, deadline=self.deadline(time.time()))

    def _run(self, context: Context, verdict: Verdict | None, *, deadline: float) -> str | None:
        """Ask for it until there is an end.

        :param context: Airflow's.
        :param verdict: Of the wait that has ended, if there was one.
        :param deadline: When to give up, in seconds since the epoch.
        """
        with self.hook:
            while True:
                if verdict is not None:
                    if verdict.outcome is Outcome.TIMED_OUT and verdict.kind == self.kind.name:
                        self.give_up(verdict.id)
                    verdict.raise_for_failure(self.on_pending_payment)
                    if verdict.kind == self.kind.name:
                        announce_verdict(self, context, verdict)
                        return verdict.id
                    if verdict.outcome is Outcome.PAYMENT_REQUIRED:
                        announce_verdict(self, context, verdict)
                        self.log.info("Asset %s is not paid for: there is no %s", verdict.id, self.kind.name)
                        return None
                verdict = self._ask(deadline)

    def _ask(self, deadline: float) -> Verdict:
        """Ask for it once, and wait for what stands before its end.

        :returns: The verdict on what was waited for, the asset or what is made of it.
        """
        try:
            made = self.make()
        except RoughyAssetProcessingError as error:
            return self._wait_for_asset(error, "processing", deadline, pause=error.retry_after or self.poll_interval)
        except RoughyPaymentRequiredError as error:
            return self._wait_for_asset(error, "pending_payment", deadline, pause=self.poll_interval)
        watch = Watch(self.kind, made.id, log=self.log)
        verdict = watch.saw(made)
        if verdict is None and self.wait_for_completion:
            return self._wait_for(watch, deadline)
        return verdict or Verdict.of(self.kind, made)

    def _wait_for_asset(
        self,
        error: RoughyAssetProcessingError | RoughyPaymentRequiredError,
        state: str,
        deadline: float,
        *,
        pause: float,
    ) -> Verdict:
        """Wait until something can be made of the asset.

        :param error: Why nothing can be yet.
        :param state: The asset's state that this tells.
        :param pause: Seconds that pass before anything is asked again.
        """
        told = Verdict(self.asset_id, ASSET.outcomes[state], kind=ASSET.name, state=state, request_id=error.request_id)
        if told.is_final(self.on_pending_payment):
            return told
        now = time.time()
        if now >= deadline:
            return Verdict.timed_out(ASSET, self.asset_id, state=state, error=error)
        self.log.info("The %s has to wait for asset %s: %s", self.kind.name, self.asset_id, error)
        watch = Watch(ASSET, self.asset_id, on_pending_payment=self.on_pending_payment, log=self.log)
        return self._wait_for(watch, deadline, not_before=now + pause)

    def _wait_for(self, watch: Watch, deadline: float, *, not_before: float = 0.0) -> Verdict:
        if self.deferrable:
            trigger = self._trigger_of(
                watch,
                roughy_conn_id=self.roughy_conn_id,
                poll_interval=self.poll_interval,
                deadline=deadline,
                not_before=not_before,
            )
            trigger.take_over(self)
        self._waiting_for = watch
        try:
            return wait_here(
                self.hook, watch, poll_interval=self.poll_interval, deadline=deadline, not_before=not_before
            )
        finally:
            self._waiting_for = None

    def _trigger_of(self, watch: Watch, **options: Any) -> RoughyTrigger:
        if watch.kind is ASSET:
            return RoughyAssetTrigger(asset_id=watch.id, on_pending_payment=watch.on_pending_payment, **options)
        return RoughyTrigger(kind=watch.kind.name, id=watch.id, **options)

    def on_kill(self) -> None:
        """Give up what is waited for on this worker."""
        # While it is waited for, the hook's own client is idle.
        if self._waiting_for is not None and self._waiting_for.kind is self.kind:
            self.give_up(self._waiting_for.id)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> str | None:
        """Take the trigger's verdict, on the asset or on what is made of it.

        :returns: As :meth:`execute`.
        """
        verdict = Verdict.from_event(event)
        self.log.info("%s %s is %s", verdict.kind.capitalize(), verdict.id, verdict.state)
        if verdict.kind == self.kind.name:
            # What the process before the wait has reported is gone with it.
            lineage.report_making(self.hook, verdict.kind, verdict.id, asset_id=self.asset_id, cut_id=self.cut_id)
        return self._run(context, verdict, deadline=(event or {}).get("deadline", time.time() + self.timeout))

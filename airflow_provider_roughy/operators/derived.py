"""The base of operators that create a cut or a render from an asset."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import RoughyAssetProcessingError, RoughyPaymentRequiredError
from airflow_provider_roughy.ingest.verdicts import duration_of
from airflow_provider_roughy.lifecycle import ASSET, Outcome, Verdict
from airflow_provider_roughy.observability import lineage
from airflow_provider_roughy.observability.links import asset_links, show_asset
from airflow_provider_roughy.observability.openlineage import RunFacts
from airflow_provider_roughy.observability.outlets import announce_verdict
from airflow_provider_roughy.operators.waiting import WaitingOperator
from airflow_provider_roughy.polling import ResourcePoller, wait_here
from airflow_provider_roughy.triggers import RoughyAssetTrigger, RoughyTrigger

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import Context


class DerivedResourceOperator(WaitingOperator):
    """Creates a resource from an asset; waits for the asset until it is ready, then for the resource.

    For the same request, Roughy returns the resource that exists already. So the operator stores nothing: each start of
    the task (the first one, after a wait, a retry, a clear or a killed worker) sends the same request.
    A subclass holds the asset's id in ``asset_id``, and that of the cut to render by, if there is one, in ``cut_id``.

    :param wait_for_completion: Whether to wait until the resource is completed.
    :param options: See :class:`~airflow_provider_roughy.operators.waiting.WaitingOperator`.
    """

    operator_extra_links = asset_links()

    asset_id: str
    cut_id: str | None = None

    def __init__(self, *, wait_for_completion: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.wait_for_completion = wait_for_completion
        #: The resource that this worker waits for.
        self._waiting_for: ResourcePoller | None = None

    def make(self) -> Any:
        """Create the resource and return it, with ``id``, ``state``, ``request_id`` and ``to_dict()``."""
        raise NotImplementedError

    def execute(self, context: Context) -> str | None:
        """Create the resource, and wait if ``wait_for_completion`` is set.

        :returns: Its id; ``None`` if the asset is not paid for and ``on_pending_payment`` is ``"return"``.
        """
        show_asset(context, self.asset_id)
        return self._run(context, None, deadline=self.deadline(time.time()))

    def _run(
        self, context: Context, verdict: Verdict | None, *, deadline: float, others_wait: bool = False
    ) -> str | None:
        """Send the request until there is a final verdict.

        :param context: Airflow's context.
        :param verdict: The verdict of the wait that has ended, if there was one.
        :param deadline: When to give up, in seconds since the epoch.
        :param others_wait: Whether other tasks of that triggerer wait for the same resource.
        """
        with self.hook:
            while True:
                if verdict is not None:
                    if verdict.kind == self.kind.name:
                        self.run_facts = RunFacts(
                            {verdict.outcome.name.lower(): 1},
                            media_seconds=duration_of(verdict),
                            request_ids=[verdict.request_id] if verdict.request_id else [],
                        )
                    timed_out = verdict.outcome is Outcome.TIMED_OUT and verdict.kind == self.kind.name
                    if timed_out and not others_wait:
                        self.give_up(verdict.id)
                    verdict.raise_for_failure(self.on_pending_payment)
                    if verdict.kind == self.kind.name:
                        announce_verdict(self, context, verdict)
                        return verdict.id
                    if verdict.outcome is Outcome.PAYMENT_REQUIRED:
                        announce_verdict(self, context, verdict)
                        self.log.warning(
                            "Created no %s, as asset %s is not paid for: top up the credits at Roughy, then clear the "
                            "task",
                            self.kind.name,
                            verdict.id,
                        )
                        return None
                verdict = self._ask(deadline)

    def _ask(self, deadline: float) -> Verdict:
        """Send the request once, then wait for the asset or the resource.

        :returns: The verdict on the one that was waited for.
        """
        try:
            made = self.make()
        except RoughyAssetProcessingError as error:
            return self._wait_for_asset(error, "processing", deadline, pause=error.retry_after or self.poll_interval)
        except RoughyPaymentRequiredError as error:
            return self._wait_for_asset(error, "pending_payment", deadline, pause=self.poll_interval)
        poller = ResourcePoller(self.kind, made.id, log=self.log)
        verdict = poller.on_resource(made)
        if verdict is None and self.wait_for_completion:
            return self._wait_for(poller, deadline)
        return verdict or Verdict.of(self.kind, made)

    def _wait_for_asset(
        self,
        error: RoughyAssetProcessingError | RoughyPaymentRequiredError,
        state: str,
        deadline: float,
        *,
        pause: float,
    ) -> Verdict:
        """Wait until the asset is ready.

        :param error: Roughy's refusal of the request.
        :param state: The asset's state, by that refusal.
        :param pause: Seconds until the first poll.
        """
        verdict = Verdict(
            self.asset_id, ASSET.outcomes[state], kind=ASSET.name, state=state, request_id=error.request_id
        )
        if verdict.is_final(self.on_pending_payment):
            return verdict
        now = time.time()
        if now >= deadline:
            return Verdict.timed_out(ASSET, self.asset_id, state=state, error=error)
        self.log.info("Waiting for asset %s before creating its %s: %s", self.asset_id, self.kind.name, error)
        poller = ResourcePoller(ASSET, self.asset_id, on_pending_payment=self.on_pending_payment, log=self.log)
        return self._wait_for(poller, deadline, not_before=now + pause)

    def _wait_for(self, poller: ResourcePoller, deadline: float, *, not_before: float = 0.0) -> Verdict:
        if self.deferrable:
            trigger = self._trigger_of(
                poller,
                roughy_conn_id=self.roughy_conn_id,
                poll_interval=self.poll_interval,
                deadline=deadline,
                not_before=not_before,
            )
            trigger.defer(self)
        self._waiting_for = poller
        try:
            return wait_here(
                self.hook, poller, poll_interval=self.poll_interval, deadline=deadline, not_before=not_before
            )
        finally:
            self._waiting_for = None

    def _trigger_of(self, poller: ResourcePoller, **options: Any) -> RoughyTrigger:
        if poller.kind is ASSET:
            return RoughyAssetTrigger(asset_id=poller.id, on_pending_payment=poller.on_pending_payment, **options)
        return RoughyTrigger(kind=poller.kind.name, id=poller.id, **options)

    def on_kill(self) -> None:
        """Give up the resource that this worker waits for."""
        # During the wait, the hook's own client is idle.
        if self._waiting_for is not None and self._waiting_for.kind is self.kind:
            self.give_up(self._waiting_for.id)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> str | None:
        """Continue after the wait in the triggerer, with its verdict on the asset or the resource.

        :returns: As :meth:`execute`.
        """
        verdict = Verdict.from_event(event)
        self.log.info("%s %s is %s", verdict.kind.capitalize(), verdict.id, verdict.state)
        if verdict.kind == self.kind.name:
            # The lineage that was reported before the wait ended with that process.
            lineage.report_making(self.hook, verdict.kind, verdict.id, asset_id=self.asset_id, cut_id=self.cut_id)
        deadline = (event or {}).get("deadline", time.time() + self.timeout)
        return self._run(context, verdict, deadline=deadline, others_wait=bool((event or {}).get("others_wait")))

"""What the operators have in common that have Roughy make something of an asset: cuts and renders."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_roughy.compat import BaseOperator, conf
from airflow_provider_roughy.exceptions import RoughyAssetProcessingError, RoughyPaymentRequiredError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import (
    ASSET,
    Kind,
    OnPendingPayment,
    Outcome,
    Verdict,
    as_seconds,
    check_on_pending_payment,
)
from airflow_provider_roughy.polling import Watch, wait_here
from airflow_provider_roughy.triggers import RoughyAssetTrigger, RoughyTrigger, ended_by_airflow

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow_provider_roughy.compat import Context


class MakingOperator(BaseOperator):
    """Has something made of an asset, and waits: for the asset while it is not ready, then for what is made of it.

    The request that makes it may be sent again, as the same request finds what there is. So nothing is remembered: each
    start of the task, the first one or one after a wait, a retry, a cleared task, a killed worker, asks for the same.
    A subclass holds the asset's id in ``asset_id``.

    :param wait_for_completion: Whether to wait until it is made.
    :param on_pending_payment: What to do about an asset that the credits did not cover.
    :param poll_interval: Seconds, or a ``timedelta``, between two looks.
    :param timeout: Seconds, or a ``timedelta``, to wait in all; by default Airflow's ``[sensors] default_timeout``.
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: Whether to wait in the triggerer.
    """

    #: What is made.
    kind: ClassVar[Kind]
    asset_id: str
    ui_color = "#e4f0ef"

    def __init__(
        self,
        *,
        wait_for_completion: bool = True,
        on_pending_payment: OnPendingPayment = "fail",
        poll_interval: float | timedelta = 30.0,
        timeout: float | timedelta | None = None,
        roughy_conn_id: str = RoughyHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_on_pending_payment(on_pending_payment)
        self.wait_for_completion = wait_for_completion
        self.on_pending_payment = on_pending_payment
        self.poll_interval = as_seconds("poll_interval", poll_interval)
        self.timeout = as_seconds(
            "timeout", conf.getfloat("sensors", "default_timeout") if timeout is None else timeout
        )
        self.roughy_conn_id = roughy_conn_id
        self.deferrable = deferrable
        #: What this worker waits for.
        self._waiting_for: Watch | None = None

    @cached_property
    def hook(self) -> RoughyHook:
        """The hook of this task."""
        return RoughyHook(self.roughy_conn_id)

    def make(self) -> Any:
        """Ask for it, and return it: with ``id``, ``state``, ``request_id`` and ``to_dict()``."""
        raise NotImplementedError

    def give_up(self, id: str | None) -> None:
        """See to what is being made and nobody waits for any longer.

        :param id: Its id; ``None`` if Airflow has ended the wait and forgotten it.
        """

    def execute(self, context: Context) -> str | None:
        """Have it made, and wait if asked to.

        :returns: Its id; ``None`` if the asset is not paid for and ``on_pending_payment`` lets that pass.
        """
        limit = self.timeout
        if self.execution_timeout is not None:
            # Airflow 3 does not count the time in the triggerer.
            limit = min(limit, self.execution_timeout.total_seconds())
        return self._run(None, deadline=time.time() + limit)

    def _run(self, verdict: Verdict | None, *, deadline: float) -> str | None:
        """Ask for it until there is an end.

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
                        return verdict.id
                    if verdict.outcome is Outcome.PAYMENT_REQUIRED:
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

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the wait in the triggerer, unless nothing came of it."""
        verdict = ended_by_airflow(self.kind, next_method, next_kwargs)
        if verdict:
            self.give_up(None)
            verdict.raise_for_failure()
        return super().resume_execution(next_method, next_kwargs, context)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> str | None:
        """Take the trigger's verdict, on the asset or on what is made of it.

        :returns: As :meth:`execute`.
        """
        verdict = Verdict.from_event(event)
        self.log.info("%s %s is %s", verdict.kind.capitalize(), verdict.id, verdict.state)
        return self._run(verdict, deadline=(event or {}).get("deadline", time.time() + self.timeout))

"""The base of operators that create a resource and wait for it."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_roughy.arguments import as_seconds
from airflow_provider_roughy.compat import BaseOperator, conf
from airflow_provider_roughy.event_loop import run_here
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import ASSET, Kind, OnPendingPayment, check_on_pending_payment
from airflow_provider_roughy.observability import metrics
from airflow_provider_roughy.observability.openlineage import RunFacts, lineage_of_run
from airflow_provider_roughy.polling import wait_for_batch
from airflow_provider_roughy.triggers import RoughyBatchTrigger, deferral_timeout_verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from airflow_provider_roughy.compat import Context
    from airflow_provider_roughy.lifecycle import Verdict

#: The most resources of one wait in the triggerer. On MySQL, the row of a trigger holds about 1,200 ids.
MAX_IDS = 1000
#: The XCom by which a try keeps its state during the wait in the triggerer.
_STATE_XCOM = "roughy_before_the_wait"


class WaitingOperator(BaseOperator):
    """Creates resources and waits for them, on the worker or in the triggerer.

    :param on_pending_payment: What to do about assets that the credits did not cover.
    :param poll_interval: Seconds, or a ``timedelta``, between two polls.
    :param timeout: Seconds, or a ``timedelta``, to wait; by default Airflow's ``[sensors] default_timeout``.
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: Whether to wait in the triggerer.
    """

    #: The kind of the resources.
    kind: ClassVar[Kind] = ASSET
    #: What the task has done, for OpenLineage; ``None`` until it knows.
    run_facts: RunFacts | None = None
    ui_color = "#e4f0ef"

    def __init__(
        self,
        *,
        on_pending_payment: OnPendingPayment = "fail",
        poll_interval: float | timedelta = 30.0,
        timeout: float | timedelta | None = None,
        roughy_conn_id: str = RoughyHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_on_pending_payment(on_pending_payment)
        self.on_pending_payment = on_pending_payment
        self.poll_interval = as_seconds("poll_interval", poll_interval)
        self.timeout = as_seconds(
            "timeout", conf.getfloat("sensors", "default_timeout") if timeout is None else timeout
        )
        self.roughy_conn_id = roughy_conn_id
        self.deferrable = deferrable

    @cached_property
    def hook(self) -> RoughyHook:
        """The hook of this task."""
        # Start metrics here: a task that continues after a wait may send no request, and would never start them.
        metrics.start()
        return RoughyHook(self.roughy_conn_id)

    def deadline(self, started: float) -> float:
        """Return when a wait that starts now has to end, in seconds since the epoch.

        :param started: When the task was started, in seconds since the epoch: ``execution_timeout`` counts from there.
        """
        deadline = time.time() + self.timeout
        if self.execution_timeout is None:
            return deadline
        # Airflow 3 does not count the time in the triggerer.
        return min(deadline, started + self.execution_timeout.total_seconds())

    def wait_on_worker(self, ids: Sequence[str], deadline: float) -> list[Verdict]:
        """Wait for many resources on this worker, and return a verdict on each.

        :param ids: Their ids.
        :param deadline: When the wait ends in any case, in seconds since the epoch.
        """
        return run_here(
            lambda: wait_for_batch(
                self.hook,
                self.kind,
                ids,
                poll_interval=self.poll_interval,
                deadline=deadline,
                on_pending_payment=self.on_pending_payment,
                log=self.log,
            )
        )

    def defer_wait(self, ids: list[str], deadline: float, lease: dict[str, Any] | None) -> None:
        """Defer the task until the triggerer has verdicts on many resources. ``execute_complete`` continues it.

        :param ids: Their ids.
        :param deadline: When the wait ends in any case, in seconds since the epoch.
        :param lease: The lease of a ledger that is renewed meanwhile.
        :raises TaskDeferred: Always.
        """
        RoughyBatchTrigger(
            kind=self.kind.name,
            ids=ids,
            roughy_conn_id=self.roughy_conn_id,
            poll_interval=self.poll_interval,
            deadline=deadline,
            on_pending_payment=self.on_pending_payment,
            lease=lease,
        ).defer(self)

    def save_state(self, context: Context, state: dict[str, Any]) -> None:
        """Save the state of this try for the time after the wait in the triggerer.

        :param context: The context of the task.
        :param state: The state, as plain JSON.
        """
        context["ti"].xcom_push(_STATE_XCOM, state)

    def saved_state(self, context: Context) -> dict[str, Any] | None:
        """Return what :meth:`save_state` kept; ``None`` if someone has deleted it.

        :param context: The context of the task.
        """
        ti = context["ti"]
        kept: dict[str, Any] | None = ti.xcom_pull(task_ids=self.task_id, key=_STATE_XCOM, map_indexes=ti.map_index)
        return kept

    def give_up(self, id: str | None) -> None:
        """Clean up a resource that no task waits for any longer.

        :param id: Its id; ``None`` if Airflow has ended the wait and the id is lost.
        """

    def get_openlineage_facets_on_complete(self, task_instance: object) -> Any:
        """Return the facet of this run. Airflow's OpenLineage provider calls this, also when the task has failed.

        :param task_instance: The task instance.
        """
        return None if self.run_facts is None else lineage_of_run(self.run_facts)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the wait in the triggerer; fail if Airflow ended the wait without a verdict."""
        verdict = deferral_timeout_verdict(self.kind, next_method, next_kwargs)
        if verdict:
            self.give_up(None)
            verdict.raise_for_failure()
        return super().resume_execution(next_method, next_kwargs, context)

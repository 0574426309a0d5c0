"""The triggers: those that wait for resources in a triggerer, and the one that watches for assets to become ready."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_roughy.airflow_db import aget_task_state
from airflow_provider_roughy.api import resource_id
from airflow_provider_roughy.arguments import as_seconds
from airflow_provider_roughy.asset_events.payload import check_states
from airflow_provider_roughy.asset_events.subscription import Subscription
from airflow_provider_roughy.compat import BaseEventTrigger, BaseTrigger, TriggerEvent, check_airflow
from airflow_provider_roughy.event_loop import finish
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.ledger import renewing
from airflow_provider_roughy.lifecycle import ASSET, KINDS, RENDER, Kind, Outcome, Verdict, batch_to_event
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.polling import (
    ResourcePoller,
    others_wait_for,
    wait_for_batch,
    wait_for_some,
    wait_until_final,
)
from airflow_provider_roughy.transfer.storage import check_no_password

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Iterable

    from airflow_provider_roughy.compat import BaseOperator, ObjectStoragePath
    from airflow_provider_roughy.lifecycle import OnPendingPayment

#: Seconds that cancelling a render may take; Airflow allows 30.
_KILL_SECONDS = 25.0
#: The states of a task that does not continue after the wait.
_ENDED = ("failed", "removed", "skipped", "success")
#: Seconds, about 30 years. Airflow cannot compute the date of a much longer deferral.
_MAX_DEFERRAL = 1e9


def deferral_timeout_verdict(
    kind: Kind, next_method: str, next_kwargs: dict[str, Any] | None, *, id: str = ""
) -> Verdict | None:
    """Return the verdict of a wait that Airflow itself ended, because no trigger did so in time.

    That is a timeout: no retry would help, and one might upload again.

    :param kind: The kind of the resource.
    :param next_method: The method that Airflow resumes the task with.
    :param next_kwargs: Its arguments.
    :param id: The resource, if it is known.
    :returns: The verdict; ``None`` if a trigger has sent an event.
    """
    # Airflow 3 says "Trigger timeout", Airflow 2 "Trigger/execution timeout".
    if next_method == "__fail__" and str((next_kwargs or {}).get("error")).endswith("timeout"):
        reason = "no triggerer reported a state; is a triggerer running?"
        return Verdict(id, Outcome.TIMED_OUT, kind=kind.name, error={"message": reason})
    return None


#: The name in 0.2.
ended_by_airflow = deferral_timeout_verdict


def check_event_came(next_method: str, next_kwargs: dict[str, Any] | None, *, asset_id: str | None = None) -> None:
    """Raise what :func:`deferral_timeout_verdict` finds of an asset; for those who imported it from 0.1."""
    verdict = deferral_timeout_verdict(ASSET, next_method, next_kwargs, id=asset_id or "")
    if verdict is not None:
        verdict.raise_for_failure()


class _WaitingTrigger(BaseTrigger):
    """The base of triggers that wait for resources.

    :param kind: The kind of the resources, by its name in Roughy's API (``"asset"``, ``"cut"``, ``"render"``).
    :param roughy_conn_id: The Airflow connection.
    :param poll_interval: Seconds between two polls.
    :param deadline: When to give up, in seconds since the epoch. A restart of the triggerer does not move it.
    :param on_pending_payment: Whether unpaid assets are waited for (``"wait"``).
    """

    def __init__(
        self,
        *,
        kind: str,
        deadline: float,
        roughy_conn_id: str = RoughyHook.default_conn_name,
        poll_interval: float = 30.0,
        on_pending_payment: OnPendingPayment = "fail",
    ) -> None:
        super().__init__()
        self.kind = KINDS[kind]
        self.roughy_conn_id = roughy_conn_id
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.on_pending_payment = on_pending_payment

    @property
    @abstractmethod
    def subject(self) -> str:
        """The resources that are waited for, for the log."""

    def _stored_alike(self) -> dict[str, Any]:
        return {
            "roughy_conn_id": self.roughy_conn_id,
            "poll_interval": self.poll_interval,
            "deadline": self.deadline,
            "on_pending_payment": self.on_pending_payment,
        }

    def defer(self, task: BaseOperator) -> NoReturn:
        """Defer a task until the event of this trigger, with which Airflow calls its ``execute_complete``.

        If no triggerer runs, Airflow itself ends the wait some time after the deadline.

        :param task: The running task.
        :raises TaskDeferred: Always.
        """
        task.log.info("Waiting in the triggerer for %s", self.subject)
        left = max(0.0, self.deadline - time.time())
        timeout = timedelta(seconds=min(left + 2 * self.poll_interval + 60, _MAX_DEFERRAL))
        task.defer(trigger=self, method_name="execute_complete", timeout=timeout)

    #: The name in 0.2.
    take_over = defer


class RoughyTrigger(_WaitingTrigger):
    """Waits in a triggerer until a resource is in a final state, such as an asset that is ready, failed or unpaid.

    All triggers of one event loop that use the same connection and wait for the same kind of resource share one poll.
    The trigger's one event is a :class:`~airflow_provider_roughy.lifecycle.Verdict` as plain JSON, with the
    ``deadline`` for a task that then waits for another resource. It holds no secret.

    :param id: The resource's id.
    :param not_before: When to poll first, in seconds since the epoch.
    :param options: See :class:`_WaitingTrigger`: ``kind``, ``deadline``, ``roughy_conn_id``, ``poll_interval`` and
        ``on_pending_payment``.
    """

    def __init__(self, *, id: str, not_before: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.id = id
        self.not_before = not_before
        self._poller: ResourcePoller | None = None

    @property
    def subject(self) -> str:
        """The resources that are waited for, for the log."""
        return f"{self.kind.name} {self.id}"

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores, in plain text, to create this trigger again."""
        # A literal: the stored path has to stay valid, wherever the class moves.
        return "airflow_provider_roughy.triggers.RoughyTrigger", {
            "kind": self.kind.name,
            "id": self.id,
            **self._stored_alike(),
        }

    def _stored_alike(self) -> dict[str, Any]:
        return super()._stored_alike() | ({"not_before": self.not_before} if self.not_before else {})

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then yield one event with the verdict."""
        # The logger of the class, as a logger for each trigger is a dozen objects. Airflow assigns lines to tasks by
        # context variables.
        self._poller = ResourcePoller(self.kind, self.id, on_pending_payment=self.on_pending_payment, log=self.logger())
        verdict = await wait_until_final(
            RoughyHook(self.roughy_conn_id),
            self._poller,
            poll_interval=self.poll_interval,
            deadline=self.deadline,
            not_before=self.not_before,
        )
        yield TriggerEvent({**verdict.to_event(), "deadline": self.deadline})


class RoughyBatchTrigger(_WaitingTrigger):
    """Waits in a triggerer until all resources of a batch are in a final state, by the shared poll.

    Airflow stores their ids: about 53 bytes each in the trigger's row, which on MySQL holds 64 KiB, and 40 bytes in its
    one event, which :func:`~airflow_provider_roughy.lifecycle.batch_from_event` reads.

    :param ids: The resources' ids.
    :param lease: The lease to renew during the wait, see :func:`~airflow_provider_roughy.ledger.renewing`: no other
        run supersedes the claims on these recordings until it expires.
    :param options: See :class:`_WaitingTrigger`.
    """

    def __init__(self, *, ids: list[str], lease: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.ids = ids
        self.lease = lease

    @property
    def subject(self) -> str:
        """The resources that are waited for, for the log."""
        return counted(len(self.ids), self.kind.name)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores, in plain text, to create this trigger again."""
        return "airflow_provider_roughy.triggers.RoughyBatchTrigger", {
            "kind": self.kind.name,
            "ids": self.ids,
            **self._stored_alike(),
            **({"lease": self.lease} if self.lease else {}),
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then yield one event with the verdict on each."""
        async with renewing(self.lease, log=self.log):
            verdicts = await wait_for_batch(
                RoughyHook(self.roughy_conn_id),
                self.kind,
                self.ids,
                on_pending_payment=self.on_pending_payment,
                poll_interval=self.poll_interval,
                deadline=self.deadline,
                log=self.log,
            )
        yield TriggerEvent(batch_to_event(verdicts))


class RoughyProduceTrigger(_WaitingTrigger):
    """Waits in a triggerer for assets, cuts and renders of a batch, by the shared polls.

    It ends when all of them are in a final state; or, after ``go_on_after``, as soon as some of them are, so that their
    recordings continue while others wait. Its one event has the verdicts on those in a final state, as that of
    :class:`RoughyBatchTrigger`, and Airflow stores as much.

    :param ids: The ids of the resources, by the name of their kind.
    :param go_on_after: Seconds after which it is enough that some resources are in a final state.
    :param ends_at: When it ends even if none is in a final state, in seconds since the epoch.
    :param options: See :class:`_WaitingTrigger`, without ``kind``.
    """

    def __init__(
        self, *, ids: dict[str, list[str]], go_on_after: float, ends_at: float | None = None, **options: Any
    ) -> None:
        super().__init__(kind=next(iter(ids), ASSET.name), **options)
        self.ids = ids
        self.go_on_after = go_on_after
        self.ends_at = ends_at

    @property
    def subject(self) -> str:
        """The resources that are waited for, for the log."""
        return " and ".join(counted(len(ids), kind) for kind, ids in self.ids.items())

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores, in plain text, to create this trigger again."""
        return "airflow_provider_roughy.triggers.RoughyProduceTrigger", {
            "ids": self.ids,
            "go_on_after": self.go_on_after,
            "ends_at": self.ends_at,
            **self._stored_alike(),
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then yield one event with the verdict on each resource in a final state."""
        verdicts = await wait_for_some(
            RoughyHook(self.roughy_conn_id),
            self.ids,
            go_on_after=self.go_on_after,
            ends_at=self.ends_at,
            poll_interval=self.poll_interval,
            deadline=self.deadline,
            on_pending_payment=self.on_pending_payment,
            log=self.log,
        )
        yield TriggerEvent(batch_to_event(verdicts))


class RoughyAssetTrigger(RoughyTrigger):
    """Waits in a triggerer until an asset is ready, failed or, unless ``on_pending_payment`` is ``"wait"``, unpaid.

    :param asset_id: The asset.
    :param options: See :class:`RoughyTrigger`.
    """

    def __init__(self, *, asset_id: str, **options: Any) -> None:
        super().__init__(kind=ASSET.name, id=asset_id, **options)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores, in plain text, to create this trigger again."""
        return "airflow_provider_roughy.triggers.RoughyAssetTrigger", {"asset_id": self.id, **self._stored_alike()}


class RoughyRenderTrigger(RoughyTrigger):
    """Waits in a triggerer until a render is completed or failed, and can cancel it if its task is killed meanwhile.

    :param render_id: The render.
    :param cancel_on_kill: Whether to cancel the render when a user marks the waiting task as failed or as a success.
        It stays if the task is cleared, as the next start finds it, if the triggerer stops, and if another task of the
        triggerer waits for it.
    :param options: See :class:`RoughyTrigger`.
    """

    def __init__(self, *, render_id: str, cancel_on_kill: bool = False, **options: Any) -> None:
        super().__init__(kind=RENDER.name, id=render_id, **options)
        self.cancel_on_kill = cancel_on_kill

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores, in plain text, to create this trigger again."""
        return "airflow_provider_roughy.triggers.RoughyRenderTrigger", {
            "render_id": self.id,
            "cancel_on_kill": self.cancel_on_kill,
            **self._stored_alike(),
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then yield one event with the verdict."""
        try:
            async for event in super().run():
                if event.payload["status"] == Outcome.TIMED_OUT.value and self._others_wait():
                    # For the task, which continues in another process.
                    event.payload["others_wait"] = True
                yield event
        except asyncio.CancelledError:
            # Airflow 3.3 calls on_kill by itself.
            if not hasattr(BaseTrigger, "on_kill"):
                await self.on_kill()
            raise

    async def on_kill(self) -> None:
        """Cancel the render if the task has ended, by its state in Airflow.

        Airflow also stops a trigger that moves to another triggerer, and 3.3 may take that for a kill.
        """
        if not self.cancel_on_kill:
            return
        if self._others_wait():
            self.log.info("Keeping render %s: another task of this triggerer waits for it", self.id)
            return
        await finish(self._cancel_render())

    def _others_wait(self) -> bool:
        return others_wait_for(RENDER, self.id, than=self._poller)

    async def _cancel_render(self) -> None:
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                state = await aget_task_state(self.task_instance)
                if state not in _ENDED:
                    self.log.info("Keeping render %s: its task is %s", self.id, state)
                    return
                hook = RoughyHook(self.roughy_conn_id)
                await hook.aget_settings()
                with hook:
                    cancelled = await asyncio.to_thread(hook.cancel_render, self.id)
        except Exception as error:  # Whatever Roughy or Airflow raises: the task has ended and cannot fail any more.
            self.log.warning("Cancelling render %s failed: %s", self.id, error)
        else:
            self.log.info("Cancelled render %s" if cancelled else "Render %s had ended already", self.id)


class RoughyAssetsReadyTrigger(BaseEventTrigger):
    """Creates an event of an Airflow ``Asset`` when assets of Roughy have become ready, however they were uploaded.

    For an ``AssetWatcher`` of Airflow 3. The payload of an event is asset ids by state, ``{"ready": [...]}``, the
    oldest first, at most 1,000 of each state: all assets that have reached the state since the first start and were not
    taken yet by :func:`~airflow_provider_roughy.events.take_assets`. Airflow 3.0 to 3.3 may not consume an event until
    the next one comes, so there the trigger announces them again for a day; on Airflow 3.4, once after a day.

    The trigger never ends. All triggers of one event loop that use the same connection share one poll.

    :param ledger: The folder that remembers which assets were taken, and when the watch started: a local path that
        triggerers and workers share, or a URI that Airflow's object storage knows. Each DAG that has to get all assets
        needs a ledger of its own.
    :param ledger_conn_id: The Airflow connection of that storage.
    :param project_id: The project of the assets; ``None`` for all projects of the account.
    :param states: Any of ``"ready"``, ``"failed"`` and ``"pending_payment"``.
    :param poll_interval: Seconds, or a ``timedelta``, between two polls.
    :param catchup: Whether to announce assets that had reached their state before the first start, too.
    :param queue: The queue of triggerers that this runs in (``airflow triggerer --queues``), from Airflow 3.4 on.
    :param roughy_conn_id: The Airflow connection.
    :raises ValueError: At DAG parse, if an argument is unusable.
    :raises RoughyConfigurationError: At DAG parse, if ``project_id`` is no id.
    :raises RuntimeError: On Airflow 2; with ``queue``, before Airflow 3.4.
    """

    def __init__(
        self,
        *,
        ledger: str | os.PathLike[str] | ObjectStoragePath,
        ledger_conn_id: str | None = None,
        project_id: str | None = None,
        states: Iterable[str] = ("ready",),
        poll_interval: float | timedelta = 60.0,
        catchup: bool = False,
        queue: str | None = None,
        roughy_conn_id: str = RoughyHook.default_conn_name,
    ) -> None:
        check_airflow(type(self).__name__, needs=(3, 0))
        if queue is not None:
            check_airflow("queue of an event trigger", needs=(3, 4))
        # Airflow stores it beside the trigger, not with what makes it again.
        super().__init__(**({} if queue is None else {"queue": queue}))
        self.ledger = str(ledger)
        if not self.ledger.rstrip("/"):
            raise ValueError("ledger must be a path or a URI, and is empty")
        # Airflow stores a trigger's arguments in plain text.
        check_no_password(self.ledger)
        self.ledger_conn_id = ledger_conn_id or getattr(ledger, "conn_id", None)
        self.project_id = None if project_id is None else resource_id("project_id", project_id)
        self.states = check_states(states)
        self.poll_interval = as_seconds("poll_interval", poll_interval)
        self.catchup = catchup
        self.roughy_conn_id = roughy_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores to create this trigger again. Its hash identifies the trigger."""
        return "airflow_provider_roughy.triggers.RoughyAssetsReadyTrigger", {
            "ledger": self.ledger,
            "ledger_conn_id": self.ledger_conn_id,
            "project_id": self.project_id,
            "states": list(self.states),
            "poll_interval": self.poll_interval,
            "catchup": self.catchup,
            "roughy_conn_id": self.roughy_conn_id,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch, and yield an event for each payload."""
        subscription = Subscription(
            roughy_conn_id=self.roughy_conn_id,
            ledger=self.ledger,
            ledger_conn_id=self.ledger_conn_id,
            project_id=self.project_id,
            states=self.states,
            poll_interval=self.poll_interval,
            catchup=self.catchup,
            log=self.log,
        )
        async with aclosing(subscription.payloads()) as payloads:
            async for payload in payloads:
                yield TriggerEvent(payload)

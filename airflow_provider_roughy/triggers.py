"""The triggers: those that wait for resources in a triggerer, and the one that watches for assets to become ready."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_roughy.api import resource_id
from airflow_provider_roughy.compat import BaseEventTrigger, BaseTrigger, TriggerEvent, aget_task_state, check_airflow
from airflow_provider_roughy.events import check_states
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import (
    ASSET,
    KINDS,
    RENDER,
    Kind,
    Outcome,
    Verdict,
    as_seconds,
    batch_to_event,
    counted,
)
from airflow_provider_roughy.polling import Watch, finish, wait_for_batch, wait_until_final
from airflow_provider_roughy.storage import check_no_password
from airflow_provider_roughy.watching import Watcher

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Iterable

    from airflow_provider_roughy.compat import BaseOperator, ObjectStoragePath
    from airflow_provider_roughy.lifecycle import OnPendingPayment

#: Seconds that cancelling may take; Airflow grants 30.
_KILL_SECONDS = 25.0
#: The states of a task that will not come back for what it waited for.
_ENDED = ("failed", "removed", "skipped", "success")


#: Seconds, 30 years: of much more, Airflow could make no date.
_LONGEST_DEFERRAL = 1e9


def ended_by_airflow(
    kind: Kind, next_method: str, next_kwargs: dict[str, Any] | None, *, id: str = ""
) -> Verdict | None:
    """Judge what a deferred task is resumed for, if it was Airflow itself that ended the wait.

    No trigger has seen how the wait ended then. No retry would help, and one might upload again: it is a timeout.

    :param kind: What was waited for.
    :param next_method: As Airflow resumes a task with.
    :param next_kwargs: Likewise.
    :param id: The resource, if it is known.
    """
    # Airflow 3 says "Trigger timeout", Airflow 2 "Trigger/execution timeout".
    if next_method == "__fail__" and str((next_kwargs or {}).get("error")).endswith("timeout"):
        reason = "no triggerer has reported one; is a triggerer running?"
        return Verdict(id, Outcome.TIMED_OUT, kind=kind.name, error={"message": reason})
    return None


def check_event_came(next_method: str, next_kwargs: dict[str, Any] | None, *, asset_id: str | None = None) -> None:
    """Raise what :func:`ended_by_airflow` finds of an asset; for those who imported it from 0.1."""
    verdict = ended_by_airflow(ASSET, next_method, next_kwargs, id=asset_id or "")
    if verdict is not None:
        verdict.raise_for_failure()


class _WaitingTrigger(BaseTrigger):
    """What the triggers that wait have in common.

    :param kind: What is waited for, by its name in Roughy's API (``"asset"``, ``"cut"``, ``"render"``).
    :param roughy_conn_id: The Airflow connection.
    :param poll_interval: Seconds between two looks.
    :param deadline: When to give up, in seconds since the epoch: a restart of the triggerer does not move it.
    :param on_pending_payment: Whether an unpaid one is waited for (``"wait"``), if the kind is one that is paid for.
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
        """What is waited for, for the log."""

    def _stored_alike(self) -> dict[str, Any]:
        return {
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
        task.log.info("Waiting in the triggerer for %s", self.subject)
        left = max(0.0, self.deadline - time.time())
        timeout = timedelta(seconds=min(left + 2 * self.poll_interval + 60, _LONGEST_DEFERRAL))
        task.defer(trigger=self, method_name="execute_complete", timeout=timeout)


class RoughyTrigger(_WaitingTrigger):
    """Waits in a triggerer until a resource has come to its end, such as an asset being ready, failed or unpaid.

    All triggers of one event loop that use the same connection and wait for the same kind of resource share one poll.
    Its one event is a :class:`~airflow_provider_roughy.lifecycle.Verdict` as plain JSON, and the ``deadline`` for a
    task that then waits for something else; it holds no secret.

    :param id: Which.
    :param not_before: When to look first, in seconds since the epoch.
    :param options: As of :class:`_WaitingTrigger`: ``kind``, ``deadline``, ``roughy_conn_id``, ``poll_interval`` and
        ``on_pending_payment``.
    """

    def __init__(self, *, id: str, not_before: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.id = id
        self.not_before = not_before

    @property
    def subject(self) -> str:
        """What is waited for, for the log."""
        return f"{self.kind.name} {self.id}"

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores, in plain text, to make this trigger again."""
        # A literal, so that what is stored today can be found tomorrow, wherever the class has moved.
        return "airflow_provider_roughy.triggers.RoughyTrigger", {
            "kind": self.kind.name,
            "id": self.id,
            **self._stored_alike(),
        }

    def _stored_alike(self) -> dict[str, Any]:
        return super()._stored_alike() | ({"not_before": self.not_before} if self.not_before else {})

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then say what came of it."""
        watch = Watch(self.kind, self.id, on_pending_payment=self.on_pending_payment, log=self.log)
        verdict = await wait_until_final(
            RoughyHook(self.roughy_conn_id),
            watch,
            poll_interval=self.poll_interval,
            deadline=self.deadline,
            not_before=self.not_before,
        )
        yield TriggerEvent({**verdict.to_event(), "deadline": self.deadline})


class RoughyBatchTrigger(_WaitingTrigger):
    """Waits in a triggerer until all resources of a batch have come to their ends, by the poll that others use too.

    What Airflow stores of it are ids: some 53 bytes each in the trigger's row, of which a MySQL holds 64 KiB, and 40 in
    its one event, which :func:`~airflow_provider_roughy.lifecycle.batch_from_event` reads.

    :param ids: Which.
    :param options: As of :class:`_WaitingTrigger`.
    """

    def __init__(self, *, ids: list[str], **options: Any) -> None:
        super().__init__(**options)
        self.ids = ids

    @property
    def subject(self) -> str:
        """What is waited for, for the log."""
        return counted(len(self.ids), self.kind.name)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores, in plain text, to make this trigger again."""
        return "airflow_provider_roughy.triggers.RoughyBatchTrigger", {
            "kind": self.kind.name,
            "ids": self.ids,
            **self._stored_alike(),
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then say what came of each."""
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


class RoughyAssetTrigger(RoughyTrigger):
    """Waits in a triggerer until an asset is ready, failed or, unless that is waited for as well, unpaid.

    :param asset_id: The asset.
    :param options: As of :class:`RoughyTrigger`.
    """

    def __init__(self, *, asset_id: str, **options: Any) -> None:
        super().__init__(kind=ASSET.name, id=asset_id, **options)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores, in plain text, to make this trigger again."""
        return "airflow_provider_roughy.triggers.RoughyAssetTrigger", {"asset_id": self.id, **self._stored_alike()}


class RoughyRenderTrigger(RoughyTrigger):
    """Waits in a triggerer until a render is completed or failed, and can cancel it if its task is killed meanwhile.

    :param render_id: The render.
    :param cancel_on_kill: Whether to cancel it when somebody marks the waiting task as failed or as a success. A task
        that is cleared keeps it, since its next start finds it, and so does a triggerer that stops.
    :param options: As of :class:`RoughyTrigger`.
    """

    def __init__(self, *, render_id: str, cancel_on_kill: bool = False, **options: Any) -> None:
        super().__init__(kind=RENDER.name, id=render_id, **options)
        self.cancel_on_kill = cancel_on_kill

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores, in plain text, to make this trigger again."""
        return "airflow_provider_roughy.triggers.RoughyRenderTrigger", {
            "render_id": self.id,
            "cancel_on_kill": self.cancel_on_kill,
            **self._stored_alike(),
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then say what came of it."""
        try:
            async for event in super().run():
                yield event
        except asyncio.CancelledError:
            # Airflow 3.3 calls on_kill by itself.
            if not hasattr(BaseTrigger, "on_kill"):
                await self.on_kill()
            raise

    async def on_kill(self) -> None:
        """Cancel the render if Airflow says that the task has ended.

        Airflow also stops a trigger that moves to another triggerer, and 3.3 may take that for a kill.
        """
        if self.cancel_on_kill:
            await finish(self._cancel_render())

    async def _cancel_render(self) -> None:
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                state = await aget_task_state(self.task_instance)
                if state not in _ENDED:
                    self.log.info("Render %s goes on: its task is %s", self.id, state)
                    return
                hook = RoughyHook(self.roughy_conn_id)
                await hook.aget_settings()
                with hook:
                    cancelled = await asyncio.to_thread(hook.cancel_render, self.id)
        except (
            Exception
        ) as error:  # Whatever is wrong with Roughy or with Airflow: the task is gone, and nobody to tell.
            self.log.warning("Render %s could not be cancelled: %s", self.id, error)
        else:
            self.log.info("Render %s %s", self.id, "is cancelled" if cancelled else "had ended already")


class RoughyAssetsReadyTrigger(BaseEventTrigger):
    """Makes an event of an Airflow ``Asset`` when assets of Roughy have become ready, whoever uploaded them.

    For an ``AssetWatcher`` of Airflow 3. The payload of an event is asset ids by state, ``{"ready": [...]}``, the
    oldest first, at most 1,000 of each state: all that has come to that state since the first start and was not taken
    yet, which :func:`~airflow_provider_roughy.events.take_assets` does. It is sent again, after growing pauses of up to
    an hour, until it is taken, since Airflow may leave an event lying until the next one comes.

    It never ends. All triggers of one event loop that use the same connection share one poll, whatever they watch for.

    :param ledger: Where is kept what was taken, and where this began: a local path that triggerers and workers share,
        or a URI that Airflow's object storage knows. Each DAG that shall get all assets needs one of its own.
    :param ledger_conn_id: The Airflow connection of that storage.
    :param project_id: Whose assets; ``None`` for all of the account.
    :param states: Any of ``"ready"``, ``"failed"`` and ``"pending_payment"``.
    :param poll_interval: Seconds between two looks, or a ``timedelta``.
    :param catchup: Whether to announce what had come to its state before the first start as well.
    :param roughy_conn_id: The Airflow connection.
    :raises ValueError: At DAG parse, if an argument is unusable.
    :raises RoughyConfigurationError: Likewise, if ``project_id`` is no id.
    :raises RuntimeError: On Airflow 2.
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
        roughy_conn_id: str = RoughyHook.default_conn_name,
    ) -> None:
        check_airflow(type(self).__name__, needs=(3, 0))
        super().__init__()
        self.ledger = str(ledger)
        if not self.ledger.rstrip("/"):
            raise ValueError("ledger must say where is kept what was taken")
        # Airflow stores what a trigger is made of as it is.
        check_no_password(self.ledger)
        self.ledger_conn_id = ledger_conn_id or getattr(ledger, "conn_id", None)
        self.project_id = None if project_id is None else resource_id("project_id", project_id)
        self.states = check_states(states)
        self.poll_interval = as_seconds("poll_interval", poll_interval)
        self.catchup = catchup
        self.roughy_conn_id = roughy_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores to make this trigger again, and by whose hash it knows it."""
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
        """Watch, and say what is due."""
        watcher = Watcher(
            roughy_conn_id=self.roughy_conn_id,
            ledger=self.ledger,
            ledger_conn_id=self.ledger_conn_id,
            project_id=self.project_id,
            states=self.states,
            poll_interval=self.poll_interval,
            catchup=self.catchup,
            log=self.log,
        )
        async with aclosing(watcher.payloads()) as payloads:
            async for payload in payloads:
                yield TriggerEvent(payload)

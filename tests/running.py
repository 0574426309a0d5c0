"""Run one task as Airflow does, in this process: execute, defer, trigger, resume."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseOperator,
    TaskDeferred,
)

try:
    from airflow.sdk.exceptions import AirflowRescheduleException
except ImportError:
    from airflow.exceptions import AirflowRescheduleException  # type: ignore[no-redef]


@dataclass
class Ended:
    """How a task ended.

    :param state: ``success``, ``skipped``, ``failed`` (no retries) or ``up_for_retry``.
    :param result: What it returned.
    :param error: What it raised.
    :param waited: Where it waited: ``""``, ``"reschedule"`` or ``"triggerer"``.
    :param event: The trigger's event.
    """

    state: str
    result: Any = None
    error: BaseException | None = None
    waited: str = ""
    event: dict[str, Any] | None = None


class _TaskInstance:
    """The little of a task instance that a rescheduling sensor asks for."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self.try_number = 1
        self.max_tries = 0
        self.dag_id, self.run_id, self.task_id, self.map_index = "dag", "run", "task", -1

    def get_first_reschedule_date(self, context: Any) -> datetime:
        return self.started


def run_task(
    task: BaseOperator,
    *,
    before_resuming: Callable[[], None] = lambda: None,
    context: dict[str, Any] | None = None,
) -> Ended:
    """Run a task to its end.

    :param task: The task.
    :param before_resuming: Called each time it starts to wait outside of this process.
    :param context: What Airflow's context holds beside the task instance.
    """
    full: Any = {"ti": _TaskInstance(), **(context or {})}
    ended = Ended("success")

    def attempt(step: Callable[[], Any]) -> None:
        try:
            ended.result = step()
        except AirflowRescheduleException:
            ended.waited = "reschedule"
            before_resuming()
            attempt(lambda: task.execute(full))
        except TaskDeferred as deferred:
            ended.waited = "triggerer"
            before_resuming()
            ended.event = _run_trigger(deferred)
            method, kwargs = deferred.method_name, {**(deferred.kwargs or {}), "event": ended.event}
            attempt(lambda: task.resume_execution(method, kwargs, full))
        except AirflowSkipException as error:
            ended.state, ended.error = "skipped", error
        except (AirflowFailException, AirflowSensorTimeout) as error:
            ended.state, ended.error = "failed", error
        except Exception as error:
            ended.state, ended.error = "up_for_retry", error

    attempt(lambda: task.execute(full))
    return ended


def _run_trigger(deferred: TaskDeferred) -> dict[str, Any]:
    """Make the trigger again from what Airflow stores, and take its first event."""
    classpath, kwargs = json.loads(json.dumps(deferred.trigger.serialize()))
    module, _, name = classpath.rpartition(".")
    trigger = getattr(import_module(module), name)(**kwargs)

    async def first_event() -> Any:
        async for event in trigger.run():
            return event.payload
        raise AssertionError("the trigger ended without an event")

    return json.loads(json.dumps(asyncio.run(first_event())))  # type: ignore[no-any-return]

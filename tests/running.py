"""Run one task as Airflow does, in this process: execute, defer, trigger, resume."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from airflow_provider_roughy.compat import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseOperator,
    BaseTrigger,
    TaskDeferred,
)


@dataclass
class Ended:
    """How a task ended.

    :param state: ``success``, ``skipped``, ``failed`` (no retries) or ``up_for_retry``.
    :param result: What it returned.
    :param error: What it raised.
    :param waited: Where it waited: ``""``, ``"reschedule"`` or ``"triggerer"``.
    :param event: The trigger's event.
    :param rescheduled_to: When it wanted to look again, in seconds since the epoch, if it was rescheduled.
    """

    state: str
    result: Any = None
    error: BaseException | None = None
    waited: str = ""
    event: dict[str, Any] | None = None
    rescheduled_to: float | None = None


class TaskInstance:
    """The little of a task instance that the tasks ask for."""

    def __init__(self, run_id: str = "run") -> None:
        self.started = datetime.now(UTC)
        self.try_number = 1
        self.max_tries = 0
        self.dag_id, self.run_id, self.task_id, self.map_index = "dag", run_id, "task", -1
        self.xcoms: dict[str, str] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.dumps(value)

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        return json.loads(self.xcoms[key]) if key in self.xcoms else None

    def get_first_reschedule_date(self, context: Any) -> datetime:
        return self.started


def started_by(*extras: dict[str, Any], run: str = "run", asset: str = "media", alias: str = "") -> Any:
    """The context of a task of a run that events have started, with Airflow's own objects."""
    from airflow.sdk.execution_time.comms import AssetEventDagRunReferenceResult
    from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor

    events = [
        AssetEventDagRunReferenceResult.model_validate(
            {
                "asset": {"name": asset, "uri": asset, "extra": {}},
                "extra": extra,
                "source_aliases": [{"name": alias}] if alias else [],
                "timestamp": datetime.now(UTC),
                **{f"source_{name}": None for name in ("task_id", "dag_id", "run_id", "map_index")},
            }
        )
        for extra in extras
    ]
    return {"ti": TaskInstance(run), "triggering_asset_events": TriggeringAssetEventsAccessor.build(events)}


def run_task(
    task: BaseOperator,
    *,
    before_resuming: Callable[[], None] = lambda: None,
    context: dict[str, Any] | None = None,
    kill_once: Callable[[], bool] | None = None,
) -> Ended:
    """Run a task to its end, each part of it in an object of its own, as Airflow gives a process to each.

    :param task: The task.
    :param before_resuming: Called each time it starts to wait outside of this process.
    :param context: What Airflow's context holds beside the task instance.
    :param kill_once: Kill what waits, the triggerer or the worker, as soon as this is true; then start it again.
    """
    full: Any = {"ti": TaskInstance(), **(context or {})}
    ended = Ended("success")
    pristine = deepcopy(task)

    def attempt(step: Callable[[BaseOperator], Any]) -> None:
        try:
            ended.result = step(deepcopy(pristine))
        except AirflowRescheduleException as later:
            ended.waited, ended.rescheduled_to = "reschedule", later.reschedule_date.timestamp()
            before_resuming()
            attempt(lambda task: task.execute(full))
        except TaskDeferred as deferred:
            ended.waited = "triggerer"
            stored = json.dumps(deferred.trigger.serialize())
            if kill_once is not None:
                asyncio.run(_start_and_kill(stored, kill_once))
                _forget_connections()
            before_resuming()
            ended.event = json.loads(json.dumps(asyncio.run(_first_event(stored))))
            method, kwargs = deferred.method_name, {**(deferred.kwargs or {}), "event": ended.event}
            attempt(lambda task: task.resume_execution(method, kwargs, full))
        except _Killed:
            before_resuming()
            attempt(lambda task: task.execute(full))
        except AirflowSkipException as error:
            ended.state, ended.error = "skipped", error
        except (AirflowFailException, AirflowSensorTimeout) as error:
            ended.state, ended.error = "failed", error
        except Exception as error:
            ended.state, ended.error = "up_for_retry", error

    def execute(task: BaseOperator) -> Any:
        if kill_once is None or getattr(task, "deferrable", False):
            return task.execute(full)
        with _killer(kill_once):
            return task.execute(full)

    attempt(execute)
    return ended


def _forget_connections() -> None:
    """Collect what the dead has left: anyio closes no connection that is cancelled in the moment that makes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class _Killed(BaseException):
    """Airflow ends a task's process by a signal whose handler raises."""


@contextmanager
def whenever(condition: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Do something once, as soon as something is so, while the body runs."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            if condition():
                act()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _killer(condition: Callable[[], bool]) -> Iterator[None]:
    """Send this process a signal once the condition is true."""

    def die(*_: object) -> None:
        raise _Killed

    before = signal.signal(signal.SIGUSR1, die)
    try:
        with whenever(condition, lambda: os.kill(os.getpid(), signal.SIGUSR1)):
            yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _remade(stored: str) -> BaseTrigger:
    """Make a trigger again from what Airflow stores."""
    classpath, kwargs = json.loads(stored)
    module, _, name = classpath.rpartition(".")
    return getattr(import_module(module), name)(**kwargs)  # type: ignore[no-any-return]


async def _first_event(stored: str) -> Any:
    async for event in _remade(stored).run():
        return event.payload
    raise AssertionError("the trigger ended without an event")


async def _start_and_kill(stored: str, condition: Callable[[], bool]) -> None:
    waiting = asyncio.ensure_future(_first_event(stored))
    while not (condition() or waiting.done()):  # noqa: ASYNC110 - the emulator's loop is another
        await asyncio.sleep(0.02)
    waiting.cancel()
    await asyncio.wait([waiting])

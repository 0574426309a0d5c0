"""Helpers for asyncio: run a coroutine in a separate thread, finish it despite cancellation, end a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any, TypeVar

from airflow_provider_roughy.http import interrupt

T = TypeVar("T")

#: Seconds after which a cancelled task is cancelled again.
_CANCEL_SECONDS = 1.0
#: Seconds between two checks for an interrupt.
_CHECK_SECONDS = 0.25


def run_here(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, in a separate event loop and thread.

    So an event loop may run in this thread (as in a notebook). An error that a signal handler raises, when a task
    is killed or takes too long, reaches the caller and not an arbitrary part of the loop.

    :param make: Creates the coroutine.
    :raises RoughyInterruptedError: If the task is killed meanwhile.
    """
    loop: asyncio.AbstractEventLoop | None = None
    running: asyncio.Task[T] | None = None
    given_up = False

    async def run() -> T:
        nonlocal loop, running
        loop, running = asyncio.get_running_loop(), asyncio.current_task()
        if given_up:
            raise asyncio.CancelledError
        return await make()

    with ThreadPoolExecutor(1, thread_name_prefix="roughy-wait") as thread:
        future = thread.submit(copy_context().run, asyncio.run, run())
        try:
            while interrupt.current() is not None and not future.done():
                interrupt.check()
                wait([future], timeout=_CHECK_SECONDS)
            return future.result()
        except BaseException:
            # Without a cancellation, leaving the pool would wait for the coroutine, which may not have started yet.
            given_up = True
            if loop is not None and running is not None and not future.done():
                loop.call_soon_threadsafe(running.cancel)
            raise


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, even if the caller is cancelled: Airflow cancels a trigger every second.

    :param work: The coroutine.
    :raises asyncio.CancelledError: After the end of the coroutine, if the caller was cancelled.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    await task


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended: a library may mistake a cancellation for its own and swallow it.

    :param task: The task.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_SECONDS)

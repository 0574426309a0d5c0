"""Work on media in one thread, one task at a time, so that no request has to do it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """A thread and its queue of tasks, by the id of the resource that each is for.

    :param name: The name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._work: dict[str, Future[None]] = {}
        self._closing = threading.Event()

    def start(self, work_id: str, work: Callable[[str], None]) -> None:
        """Queue a task, unless it is queued or running already.

        :param work: The task; called with the id.
        """
        with self._lock:
            if work_id not in self._work:
                self._work[work_id] = self._executor.submit(self._do, work_id, work)

    def _do(self, work_id: str, work: Callable[[str], None]) -> None:
        try:
            work(work_id)
        finally:
            self.forget(work_id)

    def pending(self, work_ids: Iterable[str]) -> list[Future[None]]:
        """Return those of the given tasks that are not finished."""
        with self._lock:
            return [self._work[work_id] for work_id in work_ids if work_id in self._work]

    @property
    def idle(self) -> bool:
        """Whether no task is queued or running."""
        with self._lock:
            return not self._work

    def forget(self, work_id: str) -> None:
        """Drop a task whose result is not needed any more."""
        with self._lock:
            self._work.pop(work_id, None)

    def clear(self) -> None:
        """Drop all tasks."""
        with self._lock:
            self._work.clear()

    def closing(self) -> bool:
        """Whether a running task should stop; tasks check it regularly."""
        return self._closing.is_set()

    def close(self) -> None:
        """Drop the queued tasks, and wait until the running one ends."""
        self._closing.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

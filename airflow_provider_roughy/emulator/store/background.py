"""Work on media: in a thread, one piece after the other, so that no request has to do it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """A thread and what it has still to do, known by the id of what it is for.

    :param name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._work: dict[str, Future[None]] = {}
        self._closing = threading.Event()

    def start(self, work_id: str, work: Callable[[str], None]) -> None:
        """Do a piece of work later, unless it is already under way.

        :param work: is called with the id.
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
        """Return what of these is still to be done."""
        with self._lock:
            return [self._work[work_id] for work_id in work_ids if work_id in self._work]

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done."""
        with self._lock:
            return not self._work

    def forget(self, work_id: str) -> None:
        """Nobody waits for this any more."""
        with self._lock:
            self._work.pop(work_id, None)

    def clear(self) -> None:
        """Nobody waits for anything any more."""
        with self._lock:
            self._work.clear()

    def closing(self) -> bool:
        """Whether the work should be given up: ask now and then."""
        return self._closing.is_set()

    def close(self) -> None:
        """Give up what is to be done, and wait for the end of what is being done."""
        self._closing.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

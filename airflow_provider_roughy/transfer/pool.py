"""Parallel transfers, which are stopped together and whose progress is logged in one line.

A :class:`TransferPool` has all its items from the start on, a :class:`FedPool` gets them while it works.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from airflow_provider_roughy.exceptions import RoughyError, RoughyUploadError

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

#: Called with the bytes sent so far and the total.
OnProgress = Callable[[int, int], None]

#: Seconds between two lines about the progress, and the share of all items after which a line is logged earlier.
_LOG_SECONDS, _LOG_SHARE = 10.0, 0.05
#: Seconds to wait for the current transfers after a stop.
_STOP_SECONDS = 5.0


class Stopped(Exception):
    """Ends a transfer because the pool was stopped."""


class TransferPool(Generic[T]):
    """Transfers items in parallel, in daemon threads: a transfer that hangs must not keep a killed task alive.

    :param items: The items, in the order in which their transfers start.
    :param transfer: Transfers one item. It has to call its second argument with the progress, which raises
        :class:`Stopped` after a stop.
    :param on_error: Called with an item that failed, the error, and how many items have failed with an error that may
        pass since an item last succeeded. It returns whether to start no more items.
    """

    def __init__(
        self,
        items: Iterable[T],
        transfer: Callable[[T, OnProgress], None],
        on_error: Callable[[T, RoughyError, int], bool],
    ) -> None:
        self._transfer = transfer
        self._on_error = on_error
        #: Items whose transfer has not started.
        self.left = deque(items)
        #: How many items have ended, with or without an error, and how many of them with one.
        self.done = self.failed = 0
        self._sent: dict[T, int] = {}
        self._sent_before = 0
        self._failed_in_a_row = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._stopped = threading.Event()
        self._crash: BaseException | None = None

    def run(self, parallel: int, log_progress: Callable[[float, int], None]) -> None:
        """Transfer all items, and return when all transfers have ended.

        :param parallel: How many transfers to run at once.
        :param log_progress: Called with the seconds and the bytes so far: every ten seconds, or after a twentieth of
            all items, and at the end.
        :raises Stopped: If :meth:`stop` ended it before all items were transferred.
        """
        total, logged = len(self.left), 0
        started = logged_at = time.monotonic()
        threads = self._start(min(parallel, total))
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)
                    now = time.monotonic()
                    if self.done == total:
                        continue
                    much = self.done - logged >= max(1.0, total * _LOG_SHARE)
                    if now - logged_at >= (1.0 if much else _LOG_SECONDS):
                        logged_at, logged = now, self.done
                        log_progress(now - started, self.sent)
        except BaseException:  # A kill or a timeout of the task.
            self._abort(threads)
            raise
        if self._crash is not None:
            raise self._crash
        if self._stopped.is_set() and self.done < total:
            raise Stopped
        log_progress(time.monotonic() - started, self.sent)

    def _start(self, count: int) -> list[threading.Thread]:
        threads = [
            # In this thread's context, so that its interrupt ends their pauses, too.
            threading.Thread(
                target=copy_context().run, args=(self._work,), name=f"roughy-transfer-{number}", daemon=True
            )
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _abort(self, threads: list[threading.Thread]) -> None:
        self.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """Start no more items, and end the current transfers at their next block. Their errors are not reported."""
        self._stopped.set()
        self._closed.set()

    @property
    def sent(self) -> int:
        """The bytes sent so far."""
        with self._lock:
            return self._sent_before + sum(self._sent.values())

    def _work(self) -> None:
        while not self._closed.is_set():
            item = self._next()
            if item is None:
                return
            try:
                self._transfer(item, self._progress_of(item))
                self._failed_in_a_row = 0
            except Stopped:
                return
            except RoughyError as error:
                if self._stopped.is_set():
                    return
                self._failed(item, error)
            except BaseException as error:
                self._crash = error
                self._closed.set()
                return
            with self._lock:
                self.done += 1
                self._sent_before += self._sent.pop(item, 0)

    def _next(self) -> T | None:
        with self._lock:
            return self.left.popleft() if self.left else None

    def _progress_of(self, item: T) -> OnProgress:
        def progressed(done: int, total: Any) -> None:
            if self._stopped.is_set():
                raise Stopped
            with self._lock:
                self._sent[item] = done

        return progressed

    def _failed(self, item: T, error: RoughyError) -> None:
        with self._lock:
            self.failed += 1
            self._failed_in_a_row += error.transient or isinstance(error, RoughyUploadError)
            if self._on_error(item, error, self._failed_in_a_row):
                self._closed.set()


class FedPool(TransferPool[T]):
    """A pool that gets its items while it works, so that a slow item does not delay the ones after it.

    :param transfer: See :class:`TransferPool`.
    :param on_error: See :class:`TransferPool`.
    """

    def __init__(
        self, transfer: Callable[[T, OnProgress], None], on_error: Callable[[T, RoughyError, int], bool]
    ) -> None:
        super().__init__((), transfer, on_error)
        self._fed = threading.Condition(self._lock)
        self._is_finished = False
        #: How many items were added.
        self.added = 0

    @property
    def is_closed(self) -> bool:
        """Whether no more items are started."""
        return self._closed.is_set()

    @property
    def is_idle(self) -> bool:
        """Whether all items that were added have ended."""
        return self.done == self.added

    def add(self, items: Iterable[T]) -> None:
        """Add items, in the order in which their transfers start."""
        with self._fed:
            before = len(self.left)
            self.left.extend(items)
            self.added += len(self.left) - before
            self._fed.notify_all()

    def finish(self) -> None:
        """Add no more items: the pool ends when all have ended."""
        with self._fed:
            self._is_finished = True
            self._fed.notify_all()

    def run_fed(self, parallel: int, tick: Callable[[], None], *, seconds: float = 0.1) -> None:
        """Transfer items until :meth:`finish` was called and all transfers have ended.

        :param parallel: How many transfers to run at once.
        :param tick: Called again and again in this thread, to add items. What it raises stops the pool.
        :param seconds: Between two calls of it, at most.
        :raises Stopped: If :meth:`stop` ended it.
        """
        threads = self._start(parallel)
        try:
            while any(thread.is_alive() for thread in threads):
                tick()
                with self._fed:
                    self._fed.wait(seconds)
        except BaseException:  # A kill or a timeout of the task, or an error of the ledger.
            self._abort(threads)
            raise
        if self._crash is not None:
            raise self._crash
        if self._stopped.is_set():
            raise Stopped

    def stop(self) -> None:
        """Start no more items, and end the current transfers at their next block."""
        # Without the lock: this runs in a signal handler, whose thread may hold it.
        self._stopped.set()
        self._closed.set()

    def _next(self) -> T | None:
        with self._fed:
            while not self.left and not self._is_finished and not self._closed.is_set():
                self._fed.wait(0.5)
            if not self.left or self._closed.is_set():
                return None
            return self.left.popleft()

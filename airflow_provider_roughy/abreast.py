"""Many transfers side by side: some at a time, ended together, told of in one line."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from airflow_provider_roughy.exceptions import RoughyError, RoughyUploadError

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

#: Called with the bytes handed over so far and the bytes in all.
OnProgress = Callable[[int, int], None]

#: Seconds after which the progress is told in any case, and the share of all after which it is told before.
_TELL_SECONDS, _TELL_SHARE = 10.0, 0.05
#: Seconds that the transfers under way have to end after they were told to.
_STOP_SECONDS = 5.0


class Stopped(Exception):
    """Ends a transfer in the middle, because all were told to stop."""


class Abreast(Generic[T]):
    """Transfers side by side, in daemon threads: one that hangs must not keep a killed task alive.

    :param items: What to transfer, in this order.
    :param transfer: Transfers one; it is given what to call with its progress, which ends it when all are stopped.
    :param take_trouble: Called with one that failed, why, and how many in a row have failed for a reason that may pass;
        returns whether no more shall be begun.
    """

    def __init__(
        self,
        items: Iterable[T],
        transfer: Callable[[T, OnProgress], None],
        take_trouble: Callable[[T, RoughyError, int], bool],
    ) -> None:
        self._transfer = transfer
        self._take_trouble = take_trouble
        #: What was not begun.
        self.left = deque(items)
        #: How many have ended, well or not.
        self.done = 0
        self._sent: dict[T, int] = {}
        self._sent_before = 0
        self._failed_in_a_row = 0
        self._lock = threading.Lock()
        self._begin_no_more = threading.Event()
        self._stopped = threading.Event()
        self._crash: BaseException | None = None

    def run(self, parallel: int, tell: Callable[[float, int], None]) -> None:
        """Transfer all, and wait for it.

        :param parallel: How many at once.
        :param tell: Called now and then with the seconds and the bytes so far: at most every ten seconds or after a
            twentieth of all, and at the end.
        :raises Stopped: If :meth:`stop` left some of them undone.
        """
        total, told = len(self.left), 0
        threads = [
            threading.Thread(target=self._work, name=f"roughy-transfer-{number}", daemon=True)
            for number in range(min(parallel, total))
        ]
        started = told_at = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)
                    now = time.monotonic()
                    much = self.done - told >= max(1.0, total * _TELL_SHARE)
                    if now - told_at >= (1.0 if much else _TELL_SECONDS):
                        told_at, told = now, self.done
                        tell(now - started, self.sent)
        except BaseException:  # A kill or a timeout of the task.
            self.stop()
            deadline = time.monotonic() + _STOP_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            raise
        if self._crash is not None:
            raise self._crash
        if self._stopped.is_set() and self.done < total:
            raise Stopped
        tell(time.monotonic() - started, self.sent)

    def stop(self) -> None:
        """Begin no more, and end those under way at their next block."""
        self._stopped.set()
        self._begin_no_more.set()

    @property
    def sent(self) -> int:
        """The bytes handed over so far."""
        with self._lock:
            return self._sent_before + sum(self._sent.values())

    def _work(self) -> None:
        while not self._begin_no_more.is_set():
            with self._lock:
                if not self.left:
                    return
                item = self.left.popleft()
            try:
                self._transfer(item, self._progress_of(item))
                self._failed_in_a_row = 0
            except RoughyError as error:
                self._failed(item, error)
            except Stopped:
                return
            except BaseException as error:
                self._crash = error
                self._begin_no_more.set()
                return
            with self._lock:
                self.done += 1
                self._sent_before += self._sent.pop(item, 0)

    def _progress_of(self, item: T) -> OnProgress:
        def progressed(done: int, total: Any) -> None:
            if self._stopped.is_set():
                raise Stopped
            with self._lock:
                self._sent[item] = done

        return progressed

    def _failed(self, item: T, error: RoughyError) -> None:
        with self._lock:
            self._failed_in_a_row += error.transient or isinstance(error, RoughyUploadError)
            if self._take_trouble(item, error, self._failed_in_a_row):
                self._begin_no_more.set()

"""A limit on the bytes a second that all transfers of a task send together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from airflow_provider_roughy.transfer.pool import OnProgress
from airflow_provider_roughy.transfer.source import BLOCK_BYTES

#: The lowest limit, in bytes a second. A block of 1 MiB then keeps its connection quiet for 16 seconds at most for each
#: transfer under way.
MIN_BYTES_A_SECOND = 64 * 1024
#: Seconds between two checks, during a pause, whether the transfer was stopped.
_SLICE_SECONDS = 0.2


class Throttle:
    """A token bucket that several threads share. It may be in debt: a block is sent first, and then paid for.

    :param bytes_a_second: The limit.
    :param clock: Returns the time in seconds.
    :param sleep: Pauses for some seconds.
    """

    def __init__(
        self,
        bytes_a_second: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = float(bytes_a_second)
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        #: When all bytes so far are paid for. A pause in the transfers saves nothing up.
        self._paid_at = clock()

    def pay(self, count: int, check: Callable[[], None] = lambda: None) -> None:
        """Pause until some bytes that were sent are within the limit.

        :param count: The bytes.
        :param check: Called several times a second during the pause; what it raises ends the pause.
        """
        with self._lock:
            self._paid_at = max(self._paid_at, self._clock()) + count / self._rate
            until = self._paid_at
        while (left := until - self._clock()) > 0:
            check()
            self._sleep(min(left, _SLICE_SECONDS))

    def limiting(self, on_progress: OnProgress) -> OnProgress:
        """Return a function that reports the progress of one transfer and keeps to the limit.

        :param on_progress: Reports the progress; it raises an error if the transfer was stopped.
        """
        before = 0

        def limited(done: int, total: int) -> None:
            nonlocal before
            on_progress(done, total)
            # A transfer that resumes, or sends bytes again, starts at another offset: that is one block.
            sent = done - before if 0 < done - before <= BLOCK_BYTES else min(done, BLOCK_BYTES)
            before = done
            self.pay(sent, lambda: on_progress(done, total))

        return limited

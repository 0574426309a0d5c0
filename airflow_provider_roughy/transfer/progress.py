"""The progress of a transfer: in the log, and in Airflow's UI until the transfer ends."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from airflow_provider_roughy.logs import Log

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Progress:
    """Logs the progress of a transfer: after each tenth of it, at most once a second, and at least every 30 seconds.

    It is a context manager, and reports nothing after its end.

    :param log: The logger.
    :param what: What is transferred, such as ``Asset 019d…``.
    :param show: Also called with the bytes so far and the total, in a thread. Its errors are only logged. ``None`` for
        the log alone.
    """

    def __init__(self, log: Log, what: str, show: Callable[[int, int], None] | None = None) -> None:
        self._log = log
        self._what = what
        self._newest = None if show is None else Newest[tuple[int, int]](lambda progress: show(*progress))
        self._started = self._logged_at = time.monotonic()
        self._done: int | None = None
        #: When the current request had sent its first block, and how many bytes of the transfer that was.
        self._since, self._from = self._started, 0
        self._logged = 0

    def __call__(self, done: int, total: int) -> None:
        """Report the progress.

        :param done: Bytes so far.
        :param total: Bytes in all.
        """
        now = time.monotonic()
        begins = self._done is None or done <= self._done
        self._done = done
        if begins:
            # Neither the pause before a request nor bytes that are sent again count for the rate.
            self._since, self._from = now, done
            return
        quiet, moving = now - self._logged_at, now - self._since
        # No rate before one second: the first bytes only fill buffers.
        if done >= total or moving < 1 or not (quiet >= 30 or (quiet >= 1 and abs(done - self._logged) >= total / 10)):
            return
        self._logged_at, self._logged = now, done
        rate = (done - self._from) / moving
        self._log.info(
            "%s: %s of %s (%.0f %%), %s/s, %.0f s left",
            self._what,
            bytes_in_words(done),
            bytes_in_words(total),
            100 * done / total,
            bytes_in_words(rate),
            (total - done) / rate,
        )
        self._show(done, total)

    def finish(self, total: int) -> None:
        """Log that all bytes were transferred.

        :param total: Bytes in all.
        """
        seconds = time.monotonic() - self._started
        self._log.info("%s: all %s have arrived, after %.1f s", self._what, bytes_in_words(total), seconds)
        self._show(total, total)

    def _show(self, done: int, total: int) -> None:
        if self._newest is not None:
            self._newest.put((done, total))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._newest is not None:
            self._newest.__exit__(exc_type, exc, traceback)


class Newest(Generic[T]):
    """Shows the newest of many values in a separate thread, and skips those that a newer one has replaced.

    The transfer must not wait: Airflow's API, which shows the progress, may hang for minutes.

    It is a context manager that owns the thread. Its end waits until the last value is shown or, after an error, until
    the current call returns. So no thread talks to Airflow at the same time as the rest of the task, or after its end:
    ``dag.test()`` has one channel without a lock for all threads, and closes it with the task.

    :param show: Called with a value. Its errors are only logged.
    """

    def __init__(self, show: Callable[[T], None]) -> None:
        self._show = show
        self._lock = threading.Lock()
        self._next: T | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, value: T) -> None:
        """Show a value soon, unless a newer one replaces it or this was closed.

        :param value: The value.
        """
        with self._lock:
            if self._closed:
                return
            self._next = value
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="roughy-progress", daemon=True)
                self._thread.start()

    def close(self, *, drop: bool = False) -> None:
        """Accept no more values, and wait until the thread has ended.

        :param drop: Whether to drop a value that has not been shown yet.
        """
        with self._lock:
            self._closed = True
            if drop:
                self._next = None
            thread = self._thread
        if thread is not None:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drop=exc_type is not None)

    def _run(self) -> None:
        while True:
            with self._lock:
                value, self._next = self._next, None
                if value is None:
                    self._thread = None
                    return
            try:
                self._show(value)
            except Exception as err:  # The transfer continues without it.
                _log.debug("Showing the progress failed: %s", err)


def bytes_in_words(count: float) -> str:
    """Return a number of bytes in words, such as ``1.5 MiB``.

    :param count: The bytes.
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"

"""How far a transfer is, told now and then."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Seconds that the end of a transfer waits for its progress to be shown.
_SHOW_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Progress:
    """Tells how far a transfer is: after every tenth, but at most once a second, or after 30 seconds.

    :param log: Where to.
    :param what: What is transferred, such as ``Asset 019d…``.
    :param show: Told the bytes so far and the bytes in all as well, in a thread; what it raises is only logged.
    """

    def __init__(self, log: Any, what: str, show: Callable[[int, int], None] = lambda done, total: None) -> None:
        self._log = log
        self._what = what
        self._shown = Newest[tuple[int, int]](lambda progress: show(*progress))
        self._started = self._logged_at = time.monotonic()
        self._done: int | None = None
        #: When the request under way had handed over its first block, and how far the transfer was then.
        self._since, self._from = self._started, 0
        self._logged = 0

    def __call__(self, done: int, total: int) -> None:
        """Take note of how far it is.

        :param done: Bytes so far.
        :param total: Bytes in all.
        """
        now = time.monotonic()
        begins = self._done is None or done <= self._done
        self._done = done
        if begins:
            # Neither the pause before a request nor what it repeats says how fast the link is.
            self._since, self._from = now, done
            return
        quiet, moving = now - self._logged_at, now - self._since
        # The first bytes only fill buffers on the way.
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
        self._shown.put((done, total))

    def finish(self, total: int) -> None:
        """Log that all bytes have arrived."""
        seconds = time.monotonic() - self._started
        self._log.info("%s: all %s have arrived, after %.1f s", self._what, bytes_in_words(total), seconds)
        self._shown.put((total, total))
        self._shown.wait(_SHOW_SECONDS)


class Newest(Generic[T]):
    """Shows the newest of many values in a thread of its own, and passes over those that are overtaken.

    Progress is told in the middle of a request's body, and Airflow's API, where it is shown, may hang for minutes.

    :param show: Called with a value; what it raises is only logged.
    """

    def __init__(self, show: Callable[[T], None]) -> None:
        self._show = show
        self._lock = threading.Lock()
        self._next: T | None = None
        self._thread: threading.Thread | None = None

    def put(self, value: T) -> None:
        """Have a value shown soon, if no newer one comes first."""
        with self._lock:
            self._next = value
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="roughy-progress", daemon=True)
                self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until everything is shown, but no longer than so many seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._lock:
                value, self._next = self._next, None
                if value is None:
                    self._thread = None
                    return
            try:
                self._show(value)
            except Exception as err:  # The transfer does not need it.
                _log.debug("The progress could not be shown: %s", err)


def bytes_in_words(count: float) -> str:
    """Return a number of bytes with its unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"

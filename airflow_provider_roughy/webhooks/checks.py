"""Checks after each event that Airflow starts every DAG that waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

#: Seconds after an event, and after the start, at which to check.
_CHECK_AFTER_SECONDS = (5.0, 60.0, 600.0)

_log = logging.getLogger(__name__)


class DelayedChecks:
    """Calls a check at the start and some seconds after each event, in a thread that ends after the last of them.

    The scheduler may consume a queue row while an event is stored, and this process may die right after. The check
    finds in the database what there is to do then, so a few checks are enough, and none depends on another one.

    :param check: Gets the name of an asset, or ``None`` at the start.
    """

    def __init__(self, check: Callable[[Iterable[str] | None], None]) -> None:
        self._check = check
        #: When to check, by the asset's name; ``None`` is the start.
        self._due: dict[str | None, list[float]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def begin(self) -> None:
        """Check now, for events of earlier processes."""
        self._add(None, (0.0, *_CHECK_AFTER_SECONDS))

    def after_event(self, name: str) -> None:
        """Schedule the checks of an asset that has a new event.

        :param name: The name of the Airflow asset.
        """
        self._add(name, _CHECK_AFTER_SECONDS)

    def close(self) -> None:
        """Cancel the remaining checks, and wait for the running one."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _add(self, name: str | None, delays: Iterable[float]) -> None:
        now = time.monotonic()
        with self._changed:
            # Keep the next check, so that a stream of events does not postpone it forever.
            self._due[name] = [*self._due.get(name, [])[:1], *(now + delay for delay in delays)]
            if self._thread is None and not self._is_closed:
                # A daemon, so that it does not delay the end of the process.
                self._thread = threading.Thread(target=self._run, name="roughy-webhooks-check", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        while (name := self._next()) is not _NO_MORE:
            try:
                self._check(None if name is None else [name])
            except Exception as error:  # From Airflow's database or a secrets backend.
                of_what = "the assets of webhooks" if name is None else f"asset {name!r}"
                _log.warning("Checking whether DAGs wait for events of %s failed; retrying: %s", of_what, error)

    def _next(self) -> Any:
        """Wait until a check is due, and return the name of its asset; ``_NO_MORE`` after the last one."""
        with self._changed:
            while self._due and not self._is_closed:
                name, times = min(self._due.items(), key=lambda item: item[1][0])
                if times[0] <= time.monotonic():
                    times.pop(0)
                    if not times:
                        del self._due[name]
                    return name
                self._changed.wait(times[0] - time.monotonic())
            self._thread = None
            return _NO_MORE


_NO_MORE = object()

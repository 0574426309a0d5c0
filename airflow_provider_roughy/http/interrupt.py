"""Ends what a killed task waits for: pauses, connections that are being opened, and stalled reads.

Airflow 3 calls ``on_kill`` in a signal handler, lets the task continue, and kills the process five seconds later. So
``on_kill`` has to end the work itself, wherever it waits::

    self._interrupt = Interrupt()      # in the operator's __init__

    with self._interrupt:              # in execute()
        ...                            # all requests and pauses of this thread

    self._interrupt.set()              # in on_kill()

The code that waits then raises :class:`~airflow_provider_roughy.exceptions.RoughyInterruptedError` within a second.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

from airflow_provider_roughy.exceptions import RoughyInterruptedError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

#: Seconds between two checks of a pause for an interrupt.
_CHECK_SECONDS = 0.25


class Interrupt:
    """Ends the pauses and requests of the code in its ``with`` block.

    A signal handler may set it. The handler may have interrupted any line of that code, so no lock is taken: each
    change of shared data is atomic.
    """

    def __init__(self) -> None:
        self.is_set = False
        #: The time after which no request is repeated, in seconds since the epoch.
        self.deadline = float("inf")
        self._handles: list[socket.socket] = []
        self._tokens: list[Token[Interrupt | None]] = []

    def set(self) -> None:
        """End the current pause or request, and all later ones."""
        self.is_set = True
        for handle in tuple(self._handles):
            _shut_down(handle)

    def check(self) -> None:
        """Do nothing unless it is set.

        :raises RoughyInterruptedError: If it is set.
        """
        if self.is_set:
            raise RoughyInterruptedError("The task was killed")

    def watch(self, connection: socket.socket) -> socket.socket:
        """Make the reads, writes and handshakes of a connection fail as soon as this is set.

        :param connection: The socket, which may be wrapped for TLS later.
        :returns: A second handle of the connection. Pass it to :meth:`forget` when the connection is closed.
        """
        # Wrapping a socket for TLS invalidates the object; a duplicate stays valid, and shuts down the same connection.
        handle = connection.dup()
        self._handles.append(handle)
        if self.is_set:
            _shut_down(handle)
        return handle

    def forget(self, handle: socket.socket) -> None:
        """Close a handle that :meth:`watch` returned.

        :param handle: The handle.
        """
        with suppress(ValueError):
            self._handles.remove(handle)
        handle.close()

    def __enter__(self) -> Self:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.reset(self._tokens.pop())


#: The interrupt of the running code, if it has one.
_current: ContextVar[Interrupt | None] = ContextVar("airflow_provider_roughy_interrupt", default=None)


def current() -> Interrupt | None:
    """Return the interrupt of the running code, or ``None``."""
    return _current.get()


def check() -> None:
    """Do nothing unless the interrupt of the running code is set.

    :raises RoughyInterruptedError: If it is set.
    """
    if (interrupt := current()) is not None:
        interrupt.check()


def time_left() -> float:
    """Return the seconds until the deadline of the running code: 0 afterwards, infinity without one."""
    interrupt = current()
    return float("inf") if interrupt is None else max(0.0, interrupt.deadline - time.time())


def pause(seconds: float) -> None:
    """Sleep until the time is over or the interrupt of the running code is set.

    :param seconds: How long to sleep.
    :raises RoughyInterruptedError: If the interrupt is set.
    """
    if current() is None:
        time.sleep(seconds)
        return
    check()
    while seconds > 0:
        time.sleep(min(seconds, _CHECK_SECONDS))
        seconds -= _CHECK_SECONDS
        check()


def _shut_down(handle: socket.socket) -> None:
    # It may be closed or disconnected.
    with suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)

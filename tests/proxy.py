"""TCP relays on loopback that break connections."""

from __future__ import annotations

import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

#: Bytes that a link takes from a client before it has passed them on.
_RECEIVE_BYTES = 256 * 1024


class Link(ABC):
    """Takes connections on loopback, each in a thread of its own, until the context ends.

    :param port: The server's port on loopback.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Otherwise the kernel takes up to 32 MiB of what is held, and the client has sent it.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Wakes the thread that waits in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=10)

    def _start(self, run: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    @abstractmethod
    def _serve(self, client: socket.socket) -> None:
        """Relay a connection."""


class BreakingLink(Link):
    """Relays connections to a server, and resets some after so many bytes towards it.

    :param port: The server's port on loopback.
    :param cuts: Bytes after which each connection in turn is reset; later ones are left alone.
    """

    def __init__(self, port: int, cuts: list[int]) -> None:
        super().__init__(port)
        self._cuts = list(cuts)

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._target))
        budget = self._cuts.pop(0) if self._cuts else None
        self._start(self._relay, server, client, None)
        self._relay(client, server, budget)

    @staticmethod
    def _relay(source: socket.socket, target: socket.socket, budget: int | None) -> None:
        try:
            while data := source.recv(65536):
                if budget is not None and len(data) >= budget:
                    target.sendall(data[:budget])
                    # Lingering for no time makes close() a reset.
                    source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                target.sendall(data)
                budget = None if budget is None else budget - len(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

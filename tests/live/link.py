"""A relay that can hold a request: HTTP/1.1 on loopback, stopped at a known byte."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import IOBase
from typing import Any, Literal

from harness.airflow import PATIENCE
from tests.proxy import Link

_PIECE = 65536


@dataclass(frozen=True)
class Stop:
    """Where a link is to stop.

    :param method: Of which request.
    :param path: A glob.
    :param at: Before the ``request``, before its ``reply``, or right before the byte of the upload with this number.
    """

    method: str
    path: str
    at: Literal["request", "reply"] | int

    def matches(self, method: str, path: str, offset: int, length: int) -> bool:
        """Return whether the link is to stop in this request."""
        in_it = not isinstance(self.at, int) or offset <= self.at < offset + length
        return self.method == method and fnmatchcase(path, self.path) and in_it


@dataclass
class Passed:
    """A request that went over the link.

    :param method: Its method.
    :param path: Its path.
    :param offset: Its ``Upload-Offset``; 0 without one.
    :param body_bytes: How much of its body was passed on.
    """

    method: str
    path: str
    offset: int
    body_bytes: int = 0


class HoldingLink(Link):
    """Relays connections to a server, and holds one where it is told to.

    :param port: The server's port on loopback.
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._stop: Stop | None = None
        self._stopped = threading.Event()
        self._go_on = threading.Event()
        self._cut = threading.Event()
        #: What went over it, oldest first.
        self.passed: list[Passed] = []

    def __exit__(self, *exc: Any) -> None:
        self.cut()
        super().__exit__(*exc)

    def stop_at(self, stop: Stop) -> None:
        """Stop at the next request that fits, once."""
        self._stopped.clear()
        self._go_on = threading.Event()
        self._cut = threading.Event()
        self._stop = stop

    def has_stopped(self) -> bool:
        """Return whether a request is held, or was."""
        return self._stopped.is_set()

    def wait_until_stopped(self, seconds: float = PATIENCE) -> None:
        """Wait until a request is held."""
        assert self._stopped.wait(seconds), f"nothing came to {self._stop} in {seconds} s: {self.passed}"

    def go_on(self, to: Stop | None = None) -> None:
        """Let go what is held.

        :param to: Where to stop next.
        """
        go_on = self._go_on
        if to is not None:
            self.stop_at(to)
        go_on.set()

    def cut(self) -> None:
        """Lose what is held and what comes after it, and end the connection.

        Without this the bytes that a dead client left in the buffers of the kernel would be held as well.
        """
        self._cut.set()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            # Set while a reply is to be held.
            before_reply = threading.Event()
            replies = self._start(self._run, self._pass_replies, client, server, before_reply)
            self._run(self._pass_requests, client, server, before_reply)
            # Closed when nobody uses them any more; a client that still sends is reset.
            replies.join()

    @staticmethod
    def _run(
        relay: Callable[..., None], client: socket.socket, server: socket.socket, before_reply: threading.Event
    ) -> None:
        with suppress(OSError):
            relay(client, server, before_reply)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass_requests(self, client: socket.socket, server: socket.socket, before_reply: threading.Event) -> None:
        with client.makefile("rb", buffering=_PIECE) as reader:
            while head := _read_head(reader):
                method, path, _ = head.decode("latin-1").split(" ", 2)
                length, offset = _number(head, "content-length"), _number(head, "upload-offset")
                request = Passed(method, path, offset)
                self.passed.append(request)
                if self._is_armed(request, length, "request"):
                    self._hold()
                if self._is_armed(request, length, "reply"):
                    before_reply.set()
                server.sendall(head)
                while request.body_bytes < length:
                    if self._is_armed(request, length, offset + request.body_bytes):
                        self._hold()
                    piece = min(_PIECE, length - request.body_bytes, self._bytes_left(request))
                    if not (data := reader.read1(piece)):  # type: ignore[attr-defined]
                        return
                    server.sendall(data)
                    request.body_bytes += len(data)

    def _pass_replies(self, client: socket.socket, server: socket.socket, before_reply: threading.Event) -> None:
        while data := server.recv(_PIECE):
            if before_reply.is_set():
                before_reply.clear()
                self._hold()
            client.sendall(data)

    def _is_armed(self, request: Passed, length: int, at: Literal["request", "reply"] | int) -> bool:
        """Return whether to stop here."""
        stop = self._stop
        return stop is not None and stop.at == at and stop.matches(request.method, request.path, request.offset, length)

    def _bytes_left(self, request: Passed) -> int:
        """Return how many bytes of a body may pass before the next stop, at most."""
        stop, place = self._stop, request.offset + request.body_bytes
        return stop.at - place if stop is not None and isinstance(stop.at, int) and stop.at > place else _PIECE

    def _hold(self) -> None:
        # Those of this stop; stop_at() makes new ones.
        go_on, cut, self._stop = self._go_on, self._cut, None
        self._stopped.set()
        while not go_on.wait(0.01):
            if cut.is_set():
                raise ConnectionAbortedError


def _read_head(reader: IOBase) -> bytes:
    head = b""
    while line := reader.readline():
        head += line
        if line == b"\r\n":
            break
    return head


def _number(head: bytes, name: str) -> int:
    found = re.search(rb"(?im)^%s: *(\d+)" % name.encode(), head)
    return int(found[1]) if found else 0

"""A relay on loopback that delays every byte, like a long-distance connection.

Usage: ``python -m benchmarks.delay PORT SECONDS``: the server's port, and the delay in each direction. It prints its
own port, and ends when its standard input does. Opening a connection takes a round trip, too. The rate is not limited,
and TCP's slow start is not emulated.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress

from benchmarks.processes import end_with_parent

_BLOCK_BYTES = 256 * 1024
#: Bytes in transit in one direction: at 20 ms, more than 3 GiB/s.
_MAX_BYTES = 64 * 1024**2


class _Line:
    """One direction of one connection.

    :param source: The socket to read from.
    :param target: The socket to write to.
    :param seconds: The delay.
    :param opened: When the first byte may be read, on the monotonic clock.
    """

    def __init__(self, source: socket.socket, target: socket.socket, seconds: float, opened: float) -> None:
        self._source = source
        self._target = target
        self._seconds = seconds
        self._opened = opened
        self._blocks: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def take_in(self) -> None:
        """Read to the end."""
        data = b"-"
        while data:
            try:
                data = self._source.recv(_BLOCK_BYTES)
            except OSError:
                data = b""
            due = max(time.monotonic(), self._opened) + self._seconds
            with self._changed:
                self._changed.wait_for(lambda: self._bytes < _MAX_BYTES)
                self._blocks.append((due, data))
                self._bytes += len(data)
                self._changed.notify_all()

    def give_out(self) -> None:
        """Write to the end; drop what a broken target does not accept."""
        broken = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._blocks)
                due, data = self._blocks.popleft()
                self._bytes -= len(data)
                self._changed.notify_all()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if not data:
                    self._target.shutdown(socket.SHUT_WR)
                elif not broken:
                    self._target.sendall(data)
            except OSError:
                broken = True
                with suppress(OSError):
                    self._source.shutdown(socket.SHUT_RDWR)
            if not data:
                return


def _relay(client: socket.socket, port: int, seconds: float) -> None:
    opened = time.monotonic() + 2 * seconds
    with client, socket.create_connection(("127.0.0.1", port)) as server:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = [_Line(client, server, seconds, opened), _Line(server, client, seconds, opened)]
        threads = [threading.Thread(target=work) for line in lines for work in (line.take_in, line.give_out)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _main() -> None:
    end_with_parent()
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_relay, args=(client, port, seconds), daemon=True).start()


if __name__ == "__main__":
    _main()

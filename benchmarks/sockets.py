"""Servers on plain sockets, with as little overhead as possible in Python."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn


def server_context(certificate: str | None = None, key: str | None = None) -> ssl.SSLContext | None:
    """Return the TLS context of a server, or ``None`` without a certificate.

    :param certificate: The path of its certificate.
    :param key: The path of its key.
    """
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


def serve(talk: Callable[[socket.socket], None], context: ssl.SSLContext | None) -> NoReturn:
    """Print a new port on loopback, and serve there until the process ends.

    :param talk: Called with each connection, in its own thread; may raise ``OSError``.
    :param context: The context of a server with TLS.
    """

    def run(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context:
                connection = context.wrap_socket(connection, server_side=True)
            with connection:
                talk(connection)

    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=run, args=(connection,), daemon=True).start()

"""Proxies in front of a storage: they lose replies, or answer some requests themselves."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from tests.proxy import Link


@dataclass
class Answer:
    """How requests are answered.

    :param status: The status of the answer, without asking the storage; 0 to ask it.
    :param lost: Whether the connection is closed in place of the storage's answer.
    :param overwrites: The status that says that an object which exists was created again.
    :param times: How many requests.
    :param writes: Whether only requests are meant that create an object.
    """

    status: int = 0
    lost: bool = False
    overwrites: int = 0
    times: int = 1_000_000
    writes: bool = True


@dataclass
class Proxy:
    """A proxy.

    :param port: Its port on loopback.
    :param answers: How it answers.
    """

    port: int
    answers: list[Answer]


#: What makes a request a creation: a header of S3 and Azure, a parameter of GCS.
_CONDITION = re.compile(r"[?&]ifGenerationMatch=0")


@contextmanager
def proxy_of(port: int) -> Iterator[Proxy]:
    """Relay requests to a server on loopback, and answer as told.

    :param port: The server's port.
    """
    answers: list[Answer] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def relay(self) -> None:
            body = self._body()
            creates = bool(self.headers.get("If-None-Match") or _CONDITION.search(self.path))
            answer = next((each for each in answers if creates or not each.writes), None)
            if answer is not None:
                answer.times -= 1
                if not answer.times:
                    answers.remove(answer)
            status, content, headers = answer.status if answer else 0, b"", []
            if not status:
                del self.headers["Transfer-Encoding"], self.headers["Content-Length"]
                there = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                sent = {**dict(self.headers), "Content-Length": str(len(body))}
                there.request(self.command, self.path, body, sent)
                reply = there.getresponse()
                status, content, headers = reply.status, reply.read(), reply.getheaders()
                there.close()
            if answer is not None and answer.overwrites and status in (409, 412):
                status, content = answer.overwrites, b'{"name": "it"}' if "ifGeneration" in self.path else b""
            if answer is not None and answer.lost:
                self.close_connection = True
                return
            self.send_response(status)
            length = next((value for name, value in headers if name.lower() == "content-length"), str(len(content)))
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_PATCH = relay

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Proxy(server.server_port, answers)
    server.shutdown()
    server.server_close()
    thread.join(10)


class Breaking(Link):
    """Relays the connections of any protocol, and resets one in place of an answer.

    :param port: The server's port on loopback.
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._left = 0

    @property
    def is_armed(self) -> bool:
        """Whether an answer is still to be lost."""
        return self._left > 0

    def lose(self, nth: int) -> None:
        """Lose an answer.

        :param nth: Which of those that come from now on, from 1.
        """
        self._left = nth

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._target))
        self._start(self._relay, client, server, False)
        self._relay(server, client, True)

    def _relay(self, source: socket.socket, target: socket.socket, are_answers: bool) -> None:
        try:
            while data := source.recv(65536):
                if are_answers and self._left:
                    self._left -= 1
                    if not self._left:
                        return
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

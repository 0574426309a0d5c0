"""A Roughy with one asset, and the storage of its bytes, as fast as possible in Python.

Usage: ``python -m benchmarks.storages FILE [CERTIFICATE KEY]``. It prints its port on loopback, and ends when its
standard input does. It replies to every ``GET /v1/assets/…`` with the asset, and to ``GET /file`` with the file.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys

from benchmarks.processes import end_with_parent
from benchmarks.sockets import serve, server_context

_BLOCK_BYTES = 1024 * 1024


class Storage:
    """Serves one file.

    :param path: Its path.
    :param context: The context of a server with TLS.
    """

    def __init__(self, path: str, context: ssl.SSLContext | None) -> None:
        self.path = path
        self.size = os.path.getsize(path)
        self.context = context

    def talk(self, connection: socket.socket) -> None:
        """Handle all requests of a connection."""
        ahead = b""
        while data := connection.recv(65536):
            ahead += data
            if ahead.endswith(b"\r\n\r\n"):
                self._answer(connection, ahead.decode("latin-1"))
                ahead = b""

    def _answer(self, connection: socket.socket, head: str) -> None:
        path = head.split(" ")[1]
        if path != "/file":
            host = next(line for line in head.split("\r\n") if line.lower().startswith("host:"))[5:].strip()
            asset = json.dumps(self._asset(path.rpartition("/")[2], host)).encode()
            connection.sendall(self._head("application/json", len(asset)) + asset)
            return
        connection.sendall(self._head("video/mp4", self.size))
        with open(self.path, "rb") as file:
            if self.context is None:
                connection.sendfile(file)
            else:
                while block := file.read(_BLOCK_BYTES):
                    connection.sendall(block)

    def _asset(self, asset_id: str, host: str) -> dict[str, object]:
        unknown = ("type", "extension", "content_type", "duration_seconds", "language")
        return dict.fromkeys(unknown) | {
            "id": asset_id,
            "project_id": asset_id,
            "state": "ready",
            "size_bytes": self.size,
            "created_at": "2026-01-01T00:00:00Z",
            "download_url": f"{'https' if self.context else 'http'}://{host}/file",
        }

    @staticmethod
    def _head(content_type: str, length: int) -> bytes:
        lines = ["HTTP/1.1 200 OK", f"Content-Type: {content_type}", f"Content-Length: {length}", 'ETag: "1"', "", ""]
        return "\r\n".join(lines).encode()


if __name__ == "__main__":
    end_with_parent()
    path, *certificate = sys.argv[1:]
    context = server_context(*certificate)
    serve(Storage(path, context).talk, context)

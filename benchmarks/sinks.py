"""A server that stores offsets and discards bytes, so that the client is the bottleneck.

Usage: ``python -m benchmarks.sinks [CERTIFICATE KEY]``. It prints its port on loopback, and ends when its standard
input does. ``GET /log`` returns every ``PATCH`` so far.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
from dataclasses import asdict, dataclass
from uuid import uuid4

from benchmarks.processes import end_with_parent
from benchmarks.sockets import serve, server_context

_BUFFER_BYTES = 1024 * 1024
_TUS = {"Tus-Resumable": "1.0.0", "Cache-Control": "no-store"}


@dataclass
class Stored:
    """An upload.

    :param size: The number of all bytes.
    :param offset: Bytes that have arrived.
    """

    size: int
    offset: int = 0


@dataclass
class Patch:
    """A request with bytes.

    :param asset_id: The asset.
    :param offset: The offset of its first byte.
    :param received: How many bytes arrived.
    :param first: When the first byte arrived, in seconds of the machine's monotonic clock.
    :param ended: Whether the request has ended.
    """

    asset_id: str
    offset: int
    received: int = 0
    first: float | None = None
    ended: bool = False


class Sink:
    """All uploads of one server.

    :param context: The context of a server with TLS.
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.context = context
        self.uploads: dict[str, Stored] = {}
        self.log: list[Patch] = []

    def talk(self, connection: socket.socket) -> None:
        """Handle all requests of a connection."""
        talk = _Talk(self, connection)
        while talk.answer_next():
            pass


class _Talk:
    """One connection."""

    def __init__(self, sink: Sink, connection: socket.socket) -> None:
        self._sink = sink
        self._connection = connection
        self._buffer = bytearray(_BUFFER_BYTES)
        self._ahead = b""
        # TLS has to decrypt the bytes; without it, the kernel can drop them.
        self._flags = 0 if sink.context else socket.MSG_TRUNC

    def answer_next(self) -> bool:
        """Handle one request; return ``False`` at the end of the connection."""
        while b"\r\n\r\n" not in self._ahead:
            data = self._connection.recv(65536)
            if not data:
                return False
            self._ahead += data
        head, _, self._ahead = self._ahead.partition(b"\r\n\r\n")
        line, *rest = head.decode("latin-1").split("\r\n")
        method, path, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (entry.partition(":") for entry in rest)}
        if path == "/log":
            self._reply_json(200, [asdict(patch) for patch in self._sink.log])
        elif path == "/v1/assets":
            self._create(headers)
        elif (upload := self._sink.uploads.get(asset_id := path.rpartition("/")[2])) is None:
            self._reply(404)
        elif method == "GET":
            self._reply_json(200, self._asset(asset_id, headers))
        elif method == "HEAD":
            self._reply(200, {**_TUS, "Upload-Offset": str(upload.offset), "Upload-Length": str(upload.size)})
        elif method == "PATCH":
            self._patch(asset_id, upload, headers)
        else:
            self._reply(405)
        return True

    def _create(self, headers: dict[str, str]) -> None:
        length = int(headers["content-length"])
        while len(self._ahead) < length:
            self._ahead += self._connection.recv(65536)
        body, self._ahead = json.loads(self._ahead[:length]), self._ahead[length:]
        asset_id = str(uuid4())
        self._sink.uploads[asset_id] = Stored(body["size_bytes"])
        self._reply_json(201, self._asset(asset_id, headers))

    def _asset(self, asset_id: str, headers: dict[str, str]) -> dict[str, object]:
        upload = self._sink.uploads[asset_id]
        complete = upload.offset == upload.size
        scheme = "https" if self._sink.context else "http"
        return {
            "id": asset_id,
            "project_id": None,
            "type": None,
            "state": "ready" if complete else "pending_upload",
            "extension": None,
            "size_bytes": upload.size if complete else None,
            "content_type": None,
            "duration_seconds": None,
            "language": None,
            "created_at": "2026-01-01T00:00:00Z",
            "upload_url": None if complete else f"{scheme}://{headers['host']}/v1/uploads/{asset_id}",
        }

    def _patch(self, asset_id: str, upload: Stored, headers: dict[str, str]) -> None:
        if int(headers["upload-offset"]) != upload.offset:
            self._reply(409)
            return
        patch = Patch(asset_id, upload.offset)
        self._sink.log.append(patch)
        try:
            self._take(patch, upload, int(headers["content-length"]))
        finally:
            patch.ended = True
        self._reply(204, {**_TUS, "Upload-Offset": str(upload.offset)})

    def _take(self, patch: Patch, upload: Stored, length: int) -> None:
        received, self._ahead = len(self._ahead), b""
        while True:
            if received and patch.first is None:
                patch.first = time.monotonic()
            patch.received += received
            upload.offset += received
            length -= received
            if not length:
                return
            received = self._connection.recv_into(self._buffer, min(length, _BUFFER_BYTES), self._flags)
            if not received:
                raise ConnectionResetError

    def _reply_json(self, status: int, body: object) -> None:
        self._reply(status, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _reply(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        if status != 204:
            lines.append(f"Content-Length: {len(body)}")
        self._connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)


if __name__ == "__main__":
    end_with_parent()
    context = server_context(*sys.argv[1:])
    serve(Sink(context).talk, context)

"""An object storage on loopback with configurable faults and wrong replies."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any

from airflow_provider_roughy.emulator import Emulator, Fault
from tests.proxy import Link

#: What Roughy says of an asset beside its links.
_FACTS = (
    "id",
    "project_id",
    "type",
    "state",
    "extension",
    "content_type",
    "duration_seconds",
    "language",
    "created_at",
    "size_bytes",
)


@dataclass(frozen=True)
class Answer:
    """How one request is answered; by default honestly, as S3 would.

    :param status: Instead of the honest one; then there is no body but ``body``.
    :param headers: In the place of honest ones; ``None`` leaves one out.
    :param body: In the place of the honest one.
    :param chunked: Whether the body comes in chunks, and no head says how long it is.
    :param cut_after: The connection is reset after so many bytes of the body.
    :param stall_after: Nothing more comes after so many.
    :param drop: The connection is reset before there is any answer.
    :param silent: There is no answer, and the connection stays open.
    :param ignore_range: Whether the whole is sent although a part was asked for.
    """

    status: int | None = None
    headers: dict[str, str | None] = field(default_factory=dict)
    body: bytes | None = None
    chunked: bool = False
    cut_after: int | None = None
    stall_after: int | None = None
    drop: bool = False
    silent: bool = False
    ignore_range: bool = False


@dataclass(frozen=True)
class Asked:
    """A request that came.

    :param target: Path and query.
    :param headers: By names in small letters.
    """

    target: str
    headers: dict[str, str]


class Storage(Link):
    """Serves one object.

    :param content: Its bytes.
    :param answers: How the first requests are answered, one after another; later ones are answered honestly.
    """

    def __init__(self, content: bytes, *answers: Answer) -> None:
        super().__init__(0)
        self.content = content
        self.answers = list(answers)
        #: How all others are answered.
        self.manner = Answer()
        #: What was asked, in order.
        self.asked: list[Asked] = []
        #: Called with the bytes of each body that have been sent so far.
        self.on_sent: Callable[[int], None] = lambda sent: None
        self._over = threading.Event()

    @property
    def url(self) -> str:
        """A link to the object, with a secret in it."""
        return f"http://127.0.0.1:{self.port}/bucket/object?X-Amz-Signature=s1gned{len(self.asked)}"

    @property
    def etag(self) -> str:
        """The version of the object."""
        return f'"{md5(self.content).hexdigest()}"'

    @property
    def ranges(self) -> list[str | None]:
        """What was asked for, in order."""
        return [asked.headers.get("range") for asked in self.asked]

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        super().__exit__(None, None, None)

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                block = client.recv(65536)
                if not block:
                    return
                head += block
            line, *rest = head.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
            self.asked.append(Asked(line.split(" ")[1], headers))
            self._answer(client, self.answers.pop(0) if self.answers else self.manner, headers)

    def _answer(self, client: socket.socket, answer: Answer, asked: dict[str, str]) -> None:
        if answer.drop:
            self._reset(client)
            return
        if answer.silent:
            self._over.wait()
            return
        status, body, headers = self._honest(answer, asked)
        if answer.status is not None:
            status, body = answer.status, b""
        if answer.body is not None:
            body = answer.body
        headers |= {"Content-Length": str(len(body))} | answer.headers
        if answer.chunked:
            headers |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
        lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
        client.sendall("\r\n".join([f"HTTP/1.1 {status} -", *lines, "", ""]).encode())
        stop = min((at for at in (answer.cut_after, answer.stall_after) if at is not None), default=None)
        for start in range(0, len(body[:stop]), 64 * 1024):
            self.on_sent(start)
            piece = body[:stop][start : start + 64 * 1024]
            client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if answer.chunked else piece)
        self.on_sent(len(body[:stop]))
        if answer.stall_after is not None:
            self._over.wait()
        elif answer.cut_after is not None:
            # A reset would overtake what has not been read yet.
            client.shutdown(socket.SHUT_WR)
        elif answer.chunked:
            client.sendall(b"0\r\n\r\n")

    def _honest(self, answer: Answer, asked: dict[str, str]) -> tuple[int, bytes, dict[str, str | None]]:
        headers: dict[str, str | None] = {"Content-Type": "audio/mpeg", "ETag": self.etag, "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-", asked.get("range", ""))
        if part is None or answer.ignore_range or asked.get("if-range", self.etag) != self.etag:
            return 200, self.content, headers
        start, size = int(part[1]), len(self.content)
        if start >= size:
            return 416, b"", headers | {"Content-Range": f"bytes */{size}"}
        return 206, self.content[start:], headers | {"Content-Range": f"bytes {start}-{size - 1}/{size}"}

    @staticmethod
    def _reset(client: socket.socket) -> None:
        # Lingering for no time makes close() a reset.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def lead(
    roughy: Emulator, asset_id: str, storage: Storage, *, nth: int = 1, times: int | None = None, **fields: Any
) -> None:
    """Lead the link of an asset to a storage.

    :param nth: From which reading of an asset on.
    :param times: How often; ``None`` for ever.
    :param fields: What Roughy says of it instead.
    """
    facts = roughy.asset(asset_id)
    honest = {name: facts[name] for name in _FACTS} | {"download_url": storage.url, "cuttable": True}
    roughy.inject(Fault(method="GET", path="/v1/assets/*", nth=nth, times=times, status=200, body=honest | fields))

"""The outermost layer, which every request passes: request ids, the request log, and the faults.

It applies faults to connections as well, so that no route depends on faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import logging
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

from .faults import MISS_END, Fault, FaultBook
from .wire import ApiError, code_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: Paths below this one control the emulator: no faults, no log.
CONTROL = "/_emulator"

#: How many requests the log keeps.
LOG_LENGTH = 50_000

_log = logging.getLogger(__name__)
_HTML = b"<!DOCTYPE html><html><body><h1>Welcome to the airport WiFi</h1></body></html>"


@dataclasses.dataclass(frozen=True)
class Request:
    """One request as the emulator received it.

    :param method: HTTP method.
    :param path: The path without the query.
    :param query: The query without the question mark.
    :param headers: By lower-case name, as they were sent, including Authorization.
    :param status: The status of the reply; ``None`` if there is none (yet).
    :param request_id: As in the reply's ``X-Request-Id``.
    :param body_bytes: How many bytes of the body were read.
    :param started_at: Real time since the epoch in seconds.
    :param seconds: From the request's head to the end of the reply.
    :param connection: The client's port: requests on one connection share it.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    status: int | None
    request_id: str
    body_bytes: int
    started_at: float
    seconds: float
    connection: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON, without the key and without a signed query."""
        secret = "X-Amz-Signature" in self.query
        headers = {k: "…" if k == "authorization" else v for k, v in self.headers.items()}
        return dataclasses.asdict(self) | {"headers": headers, "query": "…" if secret else self.query}


class RequestLog:
    """The requests so far, oldest first. Thread-safe.

    :param on_finished: Called with each request that has ended.
    """

    def __init__(self, on_finished: Callable[[Request], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._entries: dict[int, Request] = {}
        self._numbers = itertools.count()
        self._on_finished = on_finished

    def open(self, request: Request) -> int:
        """Add a request that has started."""
        with self._lock:
            number = next(self._numbers)
            self._entries[number] = request
            if len(self._entries) > LOG_LENGTH:
                del self._entries[next(iter(self._entries))]
            return number

    def update(self, number: int, request: Request, *, finished: bool = False) -> None:
        """Replace a request in the log, unless the log was cleared since."""
        with self._lock:
            if number in self._entries:
                self._entries[number] = request
        if finished and self._on_finished is not None:
            self._on_finished(request)

    def clear(self) -> None:
        """Remove all requests."""
        with self._lock:
            self._entries.clear()

    @property
    def requests(self) -> list[Request]:
        """All requests, oldest first."""
        with self._lock:
            return list(self._entries.values())


class _Connection:
    """Access to the internals of uvicorn, through the bound ``receive`` to its request cycle, in this class only.

    ASGI can neither reset a connection nor return body bytes that arrived right before the client disconnected.
    uvicorn's ``RequestResponseCycle`` has both as ``transport`` and ``body``, since long before 0.30.
    """

    def __init__(self, receive: Receive) -> None:
        self._cycle: Any = receive.__self__  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Reset the connection: with a zero linger, closing it discards all data and sends a RST."""
        transport = self._cycle.transport
        raw = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def finish(self) -> None:
        """Close the connection after all data was sent."""
        self._cycle.transport.close()

    def take_rest(self) -> bytes:
        """Return the body bytes that arrived but that ``receive`` withholds after the client has disconnected."""
        rest = bytes(self._cycle.body)
        self._cycle.body = type(self._cycle.body)()
        return rest


class _ReplyCut(Exception):
    """A fault ends the reply here."""


class Gate:
    """Wraps the application.

    :param app: The application, which replies unless a fault does.
    :param faults: The rules in force.
    :param log: The request log.
    """

    def __init__(self, app: App, faults: FaultBook, log: RequestLog) -> None:
        self._app = app
        self._faults = faults
        self._log = log
        self.closing = asyncio.Event()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            return
        exchange = _Exchange(scope, receive, send, self._log, self._pause)
        path = scope["path"]
        if path == CONTROL or path.startswith(f"{CONTROL}/"):
            await self._app(scope, receive, send)
            return
        fault = self._faults.strike(scope["method"], path)
        exchange.open(fault)
        try:
            if fault is not None and fault.delay:
                await self._pause(fault.delay)
            if fault is not None and fault.answers:
                await self._answer(fault, exchange)
            else:
                await self._pass(exchange)
        except _ReplyCut:
            await exchange.finish()
        finally:
            exchange.close()

    async def _pause(self, seconds: float) -> None:
        """Wait, but not after the emulator starts to close."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.closing.wait(), seconds)

    async def _pass(self, exchange: _Exchange) -> None:
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except _ReplyCut:
            raise
        except ClientDisconnect:
            pass  # The client has disconnected.
        except Exception:
            _log.exception("%s %s", exchange.scope["method"], exchange.scope["path"])
            if exchange.status is None:
                await exchange.reply(500, json.dumps(ApiError(500, "Internal error.").body()).encode())
        if exchange.cut or exchange.lost or exchange.status is None:
            await exchange.reset()

    async def _answer(self, fault: Fault, exchange: _Exchange) -> None:
        if fault.drop:
            await exchange.reset()
        elif fault.hang:
            await exchange.drain()
            leaving = asyncio.ensure_future(exchange.left())
            closing = asyncio.ensure_future(self.closing.wait())
            await asyncio.wait((leaving, closing), return_when=asyncio.FIRST_COMPLETED)
            for task in (leaving, closing):
                task.cancel()
            await exchange.reset()
        elif fault.garbage:
            await exchange.reply(200, _HTML, "text/html; charset=utf-8")
        elif fault.swallow:
            await exchange.drain()
            claimed = exchange.headers.get("upload-offset", "")
            offset = int(claimed) if re.fullmatch(r"[0-9]{1,18}", claimed) else 0
            if fault.swallow is True:
                offset += exchange.body_bytes
            await exchange.reply(204, b"", None, {"tus-resumable": "1.0.0", "upload-offset": str(offset)})
        elif fault.status is not None:
            body, content_type = fault.reply_body(code_of(fault.status))
            await exchange.reply(fault.status, body, content_type, dict(fault.headers))


class _Exchange:
    """One request and its reply."""

    def __init__(
        self,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
        log: RequestLog,
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self.scope = scope
        self.headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        self.status: int | None = None
        self.body_bytes = 0
        self.cut = False
        self.lost = False
        self._receive = receive
        self._send = send
        self._log = log
        self._pause = pause
        self._fault: Fault | None = None
        self._number = -1
        self._started = time.monotonic()
        self._left = False
        self._over = False
        self._longer = False
        self._sent_bytes = 0
        self._request = Request(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            headers=self.headers,
            status=None,
            request_id=str(uuid.uuid4()),
            body_bytes=0,
            started_at=time.time(),
            seconds=0.0,
            connection=scope["client"][1] if scope.get("client") else 0,
        )

    def open(self, fault: Fault | None) -> None:
        """Start: log the request, and apply its fault."""
        self._fault = fault
        if fault is not None and fault.request_headers:
            changes = {name.lower(): value for name, value in fault.request_headers.items()}
            self.scope = {**self.scope, "headers": _changed(self.scope["headers"], changes)}
        if fault is not None and fault.miss_end:
            self.scope = {**self.scope, MISS_END: True}
        self.lost = fault is not None and fault.lose_reply
        self._number = self._log.open(self._request)

    def close(self) -> None:
        """End: log the result of the request."""
        if not self._over:
            self._over = True
            self._log.update(self._number, self._snapshot(), finished=True)

    def _snapshot(self) -> Request:
        seconds = time.monotonic() - self._started
        status = None if self.cut or self.lost or self._left else self.status
        return dataclasses.replace(self._request, status=status, body_bytes=self.body_bytes, seconds=seconds)

    async def receive(self) -> Message:
        """Receive for the application: count and cut the body, and return the last bytes of a disconnected client."""
        if self._left or self.cut:
            return {"type": "http.disconnect"}
        limit = self._fault.cut_after if self._fault is not None else None
        if limit is not None and self.body_bytes >= limit and self._has_more_than(limit):
            self.cut = True
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._left = True
            rest = b"" if self._over else _Connection(self._receive).take_rest()
            if not rest:
                return message
            message = {"type": "http.request", "body": rest, "more_body": True}
        body = message.get("body", b"")
        if limit is not None and self.body_bytes + len(body) > limit:
            body = body[: limit - self.body_bytes]
            self._longer = True
            message = {"type": "http.request", "body": body, "more_body": True}
        self.body_bytes += len(body)
        return message

    def _has_more_than(self, limit: int) -> bool:
        length = self.headers.get("content-length", "")
        return self._longer or (length.isdecimal() and int(length) > limit)

    async def send(self, message: Message) -> None:
        """Send for the application: add the request id, and withhold what a fault withholds."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._reply_headers(message.get("headers", ()))}
        if self.cut or self.lost:
            return
        if message["type"] == "http.response.start":
            self._log.update(self._number, self._snapshot())
            await self._send(message)
            return
        body, last = message.get("body", b""), not message.get("more_body", False)
        limit = self._fault.cut_reply_after if self._fault is not None else None
        cut = limit is not None and self._sent_bytes + len(body) > limit
        body = body[: limit - self._sent_bytes] if cut and limit is not None else body
        self._sent_bytes += len(body)
        if self._fault is not None and self._fault.reply_rate is not None:
            await self._pause(len(body) / self._fault.reply_rate)
        if last or cut:
            # Logged before the last byte is sent: a client that has its reply finds the request in the log.
            self.close()
        await self._send({**message, "body": body, "more_body": cut or not last})
        if cut:
            raise _ReplyCut

    def _reply_headers(self, headers: Any) -> list[tuple[bytes, bytes]]:
        changes: dict[str, str | None] = {"x-request-id": self._request.request_id}
        if self._fault is not None:
            changes |= {name.lower(): value for name, value in self._fault.reply_headers.items()}
        return _changed(headers, changes)

    async def reply(
        self,
        status: int,
        body: bytes,
        content_type: str | None = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send a complete reply."""
        fields = {name.lower(): value for name, value in (headers or {}).items()}
        if status in (204, 304):
            # These replies have neither a body nor headers that describe one.
            body = b""
            fields.pop("content-length", None)
        elif "transfer-encoding" not in fields:
            fields.setdefault("content-length", str(len(body)))
        if content_type is not None and body:
            fields.setdefault("content-type", content_type)
        pairs = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in fields.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})

    async def drain(self) -> None:
        """Read the rest of the body and discard it."""
        more = True
        while more:
            message = await self.receive()
            more = message["type"] == "http.request" and message.get("more_body", False)

    async def left(self) -> None:
        """Wait until the client has disconnected."""
        while not self._left and (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True

    async def reset(self) -> None:
        """Reset the connection, and wait until uvicorn has noticed."""
        self.close()
        _Connection(self._receive).reset()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def finish(self) -> None:
        """Close the connection after all data was sent, and wait until uvicorn has noticed."""
        _Connection(self._receive).finish()
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _changed(headers: Any, changes: dict[str, str | None]) -> list[tuple[bytes, bytes]]:
    """Return headers with some set or, where the new value is ``None``, removed.

    :param changes: By lower-case name.
    """
    kept = [(name, value) for name, value in headers if name.decode("latin-1").lower() not in changes]
    return kept + [(k.encode("latin-1"), v.encode("latin-1")) for k, v in changes.items() if v is not None]

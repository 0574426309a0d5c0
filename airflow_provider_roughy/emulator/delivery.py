"""Sends webhooks from a thread of its own, as Svix does for Roughy: signed, with retries until they are accepted."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import ssl
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import h11

from .store import Delivery, Store, WebhookEndpoint

#: Concurrent attempts, in all and to one endpoint, so that an endpoint that hangs does not delay the others.
MAX_ATTEMPTS = 64
MAX_ATTEMPTS_PER_ENDPOINT = 10

#: Seconds between two sweeps of the store, as long as there are endpoints.
TICK_SECONDS = 0.1

#: How many bytes of the reply are read after its status, and for how long, so that few receivers see a reset.
REST_BYTES = 65536
REST_SECONDS = 0.5

_log = logging.getLogger(__name__)


def secret_keys(secret: str) -> list[bytes]:
    """Return the keys in a signing secret: base64 after ``whsec_``, of 24 to 64 bytes (Standard Webhooks).

    :param secret: One secret, or several separated by spaces, as during a rotation.
    :raises ValueError: If one of them is not a secret.
    """
    keys = []
    for word in secret.split() or [""]:
        try:
            key = base64.b64decode(word.removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not word.startswith("whsec_") or not 24 <= len(key) <= 64:
            raise ValueError("a webhook secret is whsec_ and 24 to 64 bytes as base64")
        keys.append(key)
    return keys


def sign(secret: str, svix_id: str, seconds: int, body: bytes) -> str:
    """Return the value of ``svix-signature``, a signature for each key (Svix, "Verifying webhooks manually").

    :param seconds: The time since the epoch, as in ``svix-timestamp``.
    """
    signed = b".".join((svix_id.encode(), str(seconds).encode(), body))
    digests = [hmac.digest(key, signed, hashlib.sha256) for key in secret_keys(secret)]
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


class Deliverer:
    """Sends the deliveries that are due.

    The store has the deliveries; this object has only the attempts under way. The first :meth:`wake` starts its thread.

    :param store: The store with the webhooks.
    :param secret: The signing secret.
    :param verify: Whether to check certificates, or a file of trusted authorities.
    """

    def __init__(self, store: Store, secret: str, verify: bool | str | Path) -> None:
        self._store = store
        self._secret = secret
        self._verify = verify
        self._context: ssl.SSLContext | None = None
        if not isinstance(verify, bool):
            # Loaded now, since a missing file would go unnoticed at the first webhook.
            self._tls_context()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._progress = threading.Condition()
        store.webhooks.on_due = self.wake
        if store.webhooks.listening():
            self.wake()

    def wake(self) -> None:
        """Send what is due without waiting for the next sweep."""
        with self._lock:
            if self._closing:
                return
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, name="roughy-webhooks", daemon=True)
                self._thread.start()
            self._loop.call_soon_threadsafe(self._woken.set)

    def flush(self, timeout: float) -> bool:
        """Wait until every delivery that is due has been attempted.

        :param timeout: The maximum number of seconds to wait.
        :returns: Whether that is so.
        """
        with self._progress:
            return self._progress.wait_for(lambda: self._closing or not self._store.webhooks.is_due(), timeout)

    def close(self) -> None:
        """Cancel the attempts under way, and end the thread."""
        with self._lock:
            self._closing = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._woken.set)
        if self._thread is not None:
            self._thread.join()
        self._notify_progress()

    def _notify_progress(self) -> None:
        with self._progress:
            self._progress.notify_all()

    def _run(self) -> None:
        assert self._loop is not None
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            # Not asyncio.run(), which would wait for a host name that is still being resolved.
            self._loop.close()

    async def _serve(self) -> None:
        while not self._closing:
            self._woken.clear()
            idle = False
            try:
                endpoints = self._store.webhooks.listening()
                idle = not endpoints
                if endpoints:
                    self._store.sweep()
                for endpoint in endpoints:
                    self._start(endpoint)
            except Exception:
                _log.exception("webhooks")
            self._notify_progress()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), None if idle else TICK_SECONDS)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, endpoint: WebhookEndpoint) -> None:
        for delivery in self._store.webhooks.due(endpoint.id, MAX_ATTEMPTS_PER_ENDPOINT):
            if delivery.id not in self._tasks and len(self._tasks) < MAX_ATTEMPTS:
                self._tasks[delivery.id] = asyncio.ensure_future(self._attempt(endpoint.url, delivery))

    async def _attempt(self, url: str, delivery: Delivery) -> None:
        started, status, problem = time.monotonic(), None, None
        try:
            status = await self._post(url, delivery)
            if not 200 <= status < 300:
                problem = f"status {status}"
        except TimeoutError:
            problem = f"no answer within {self._store.choices.webhook_timeout_seconds:g} s"
        except Exception as error:  # Any error: the next attempt follows after a pause and not immediately.
            problem = f"{type(error).__name__}: {error}"
        try:
            self._store.webhooks.note_attempt(delivery, time.monotonic() - started, status, problem)
        finally:
            del self._tasks[delivery.id]
            self._woken.set()

    async def _post(self, url: str, delivery: Delivery) -> int:
        """Send one webhook, and return the status of the reply."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        context = self._tls_context() if secure else None
        port = parts.port or (443 if secure else 80)
        writer = None
        connection = h11.Connection(h11.CLIENT)
        try:
            async with asyncio.timeout(self._store.choices.webhook_timeout_seconds):
                reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
                for part in (
                    self._request(url, delivery),
                    h11.Data(data=delivery.payload.encode()),
                    h11.EndOfMessage(),
                ):
                    writer.write(connection.send(part) or b"")
                await writer.drain()
                status = await _read_status(connection, reader)
            await _read_rest(connection, reader)
            return status
        finally:
            if writer is not None:
                writer.transport.abort()

    def _request(self, url: str, delivery: Delivery) -> h11.Request:
        parts, body = urlsplit(url), delivery.payload.encode()
        # Real time, not the emulator's clock, since the receiver compares it with its own clock.
        seconds = int(time.time())
        headers = {
            "Host": parts.netloc,
            "User-Agent": "Roughy-Emulator",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            "svix-id": delivery.svix_id,
            "svix-timestamp": str(seconds),
            "svix-signature": sign(self._secret, delivery.svix_id, seconds, body),
        }
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return h11.Request(method="POST", target=target, headers=list(headers.items()))

    def _tls_context(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context(
                cafile=None if isinstance(self._verify, bool) else str(self._verify)
            )
            if self._verify is False:
                self._context.check_hostname = False
                self._context.verify_mode = ssl.CERT_NONE
        return self._context


async def _read_status(connection: h11.Connection, reader: asyncio.StreamReader) -> int:
    while not isinstance(event := await _next_event(connection, reader), h11.Response):
        if not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("no answer")
    return int(event.status_code)


async def _read_rest(connection: h11.Connection, reader: asyncio.StreamReader) -> None:
    """Discard the reply after its status."""
    size = 0
    with contextlib.suppress(TimeoutError, OSError, h11.RemoteProtocolError):
        async with asyncio.timeout(REST_SECONDS):
            while size < REST_BYTES and isinstance(rest := await _next_event(connection, reader), h11.Data):
                size += len(rest.data)


async def _next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(REST_BYTES))
    return event

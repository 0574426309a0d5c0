"""The upload protocol: TUS 1.0.0 with Roughy's rules.

Order of checks: key (401), ``Tus-Resumable`` (412, and nothing is processed, as TUS requires), the upload (404,
410), ``Content-Type`` (415), header values (400), the offset (409), the length (413), the first chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from airflow_provider_roughy.emulator.choices import Choices
from airflow_provider_roughy.emulator.faults import MISS_END
from airflow_provider_roughy.emulator.store import Store, Upload
from airflow_provider_roughy.emulator.wire import ApiError, http_date

from .endpoint import ClientLeft, Endpoint, Handler

TUS_VERSION = "1.0.0"
CONTENT_TYPE = "application/offset+octet-stream"

#: Files are written in blocks of this size, each in a thread, so that a slow disk never blocks the event loop.
WRITE_BYTES = 1 << 20

#: Without it, Windows writes two bytes for each line feed.
_BINARY: int = getattr(os, "O_BINARY", 0)


class Uploads:
    """The operations below ``/v1/uploads``.

    :param store: The store with state and bytes.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._locks: dict[str, asyncio.Lock] = {}

    def endpoints(self) -> list[Endpoint]:
        """Return the paths and their handlers."""
        # Every reply has the protocol version (TUS), and no reply to HEAD may be cached.
        headers = {"Tus-Resumable": TUS_VERSION, "Cache-Control": "no-store"}
        no_key = () if self._choices.options_needs_key else ("OPTIONS",)
        handlers: dict[str, Handler] = {"HEAD": self.head, "PATCH": self.patch, "DELETE": self.cancel}
        if self._choices.method_override:
            handlers["POST"] = self.override
        return [
            Endpoint("/v1/uploads", {"OPTIONS": self.capabilities}, headers, open_methods=no_key),
            Endpoint("/v1/uploads/{upload_id}", handlers, headers),
        ]

    @property
    def _choices(self) -> Choices:
        return self._store.choices

    async def capabilities(self, request: Request, account: int) -> Response:
        """``OPTIONS /v1/uploads``: the capabilities of the server (TUS, section "OPTIONS")."""
        headers = {
            "Tus-Version": TUS_VERSION,
            "Tus-Max-Size": str(self._choices.max_upload_bytes),
            "Tus-Extension": self._choices.tus_extension,
        }
        return Response(status_code=self._choices.options_status, headers=headers)

    async def head(self, request: Request, account: int) -> Response:
        """``HEAD /v1/uploads/{id}``: the authoritative offset. Never waits for a concurrent PATCH."""
        upload = self._find(request, account)
        offset = self._offset_when_over(upload)
        if offset is None:
            offset = self._store.uploads.offset(upload)
        headers = {"Upload-Length": str(upload.size_bytes), "Cache-Control": "no-store"}
        return self._reply(200, upload, offset, headers)

    async def patch(self, request: Request, account: int) -> Response:
        """``PATCH /v1/uploads/{id}``: store bytes at the offset."""
        upload = self._find(request, account)
        if request.headers.get("content-type", "").lower() != CONTENT_TYPE:
            raise ApiError(415, f"Content-Type must be {CONTENT_TYPE}.")
        claimed = _number(request, "upload-offset")
        length = _number(request, "content-length")
        if (full := self._offset_when_over(upload)) is not None:
            if (claimed, length) != (full, 0):
                raise ApiError(409, "The upload is finished.")
            return self._reply(204, upload, full)
        async with self._lock(upload.id):
            upload = self._find(request, account)
            if self._offset_when_over(upload) is not None:
                raise ApiError(409, "The upload is finished.")
            offset = self._store.uploads.offset(upload)
            self._check(upload, offset, claimed, length)
            try:
                await self._take(request, upload, offset, length)
            except FileNotFoundError:
                raise ApiError(404, "Upload not found.") from None
            reached = offset + length
            if reached == upload.size_bytes and MISS_END not in request.scope:
                self._store.assets.finish(upload.id)
            return self._reply(204, upload, reached)

    async def cancel(self, request: Request, account: int) -> Response:
        """``DELETE /v1/uploads/{id}``: cancel the upload and remove the asset (cancel page)."""
        upload = self._find(request, account)
        if self._offset_when_over(upload) is not None:
            raise ApiError(409, "The upload is finished.")
        async with self._lock(upload.id):
            self._store.assets.cancel(upload.id)
        return Response(status_code=self._choices.cancel_status)

    async def override(self, request: Request, account: int) -> Response:
        """``POST`` with ``X-HTTP-Method-Override`` (TUS, section "X-HTTP-Method-Override")."""
        methods = {"HEAD": self.head, "PATCH": self.patch, "DELETE": self.cancel}
        method = methods.get(request.headers.get("x-http-method-override", "").upper())
        if method is None:
            raise ApiError(405, "Method not allowed.", code="bad_request", headers={"Allow": ", ".join(methods)})
        return await method(request, account)

    def _find(self, request: Request, account: int) -> Upload:
        """Return the upload if it is open, or finished and still answering; raise the documented error otherwise."""
        if request.headers.get("tus-resumable") != TUS_VERSION:
            raise ApiError(412, "Tus-Resumable header missing or wrong version.", headers={"Tus-Version": TUS_VERSION})
        self._store.sweep()
        upload = self._store.uploads.get(account, request.path_params["upload_id"])
        rule = {
            "open": "open",
            "finished": self._choices.finished_upload,
            "expired": self._choices.expired_upload,
        }.get(upload.status, self._choices.cancelled_upload)
        if rule == "gone":
            raise ApiError(410, f"The upload is {upload.status}.")
        if rule == "not_found":
            raise ApiError(404, "Upload not found.")
        return upload

    @staticmethod
    def _offset_when_over(upload: Upload) -> int | None:
        return None if upload.status == "open" else upload.size_bytes

    def _check(self, upload: Upload, offset: int, claimed: int, length: int) -> None:
        if claimed != offset:
            raise ApiError(409, f"Upload-Offset is {claimed}, but the upload is at {offset}.")
        if offset + length > upload.size_bytes:
            raise ApiError(self._choices.over_length_status, "The chunk exceeds the declared size.")
        least = min(self._choices.min_upload_bytes, upload.size_bytes)
        if offset + length < least:
            raise ApiError(
                self._choices.short_first_chunk_status, f"The first chunk must carry at least {least} bytes."
            )

    async def _take(self, request: Request, upload: Upload, offset: int, length: int) -> None:
        """Store the body of a PATCH.

        :raises ClientLeft: If the client disconnects; ``Choices.keep_partial`` decides whether its bytes are kept.
        """
        path = self._store.files.path(upload.asset_id)
        if not self._choices.keep_partial:
            self._store.uploads.set_committed(upload.id, offset)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY, 0o600)
        try:
            arrived = 0
            identified = offset >= self._choices.identify_bytes
            async for block in _blocks(request):
                await asyncio.to_thread(_write, file, block)
                arrived += len(block)
                if not identified:
                    self._store.assets.identify(upload.id)
                    identified = True
            if arrived < length:
                if not self._choices.keep_partial:
                    os.ftruncate(file, offset)
                    self._store.assets.forget_kind(upload)
                raise ClientLeft
        finally:
            os.close(file)
            if not self._choices.keep_partial:
                self._store.uploads.set_committed(upload.id, None)

    @contextlib.asynccontextmanager
    async def _lock(self, upload_id: str) -> AsyncIterator[None]:
        """Let one request at a time change an upload."""
        lock = self._locks.setdefault(upload_id, asyncio.Lock())
        refusal = ApiError(423, "Another request is writing this upload.", code=self._choices.locked_code)
        if lock.locked() and self._choices.concurrent_patch == "locked":
            raise refusal
        try:
            # Without any time, `wait_for` would not even take a lock that is free.
            await (
                asyncio.wait_for(lock.acquire(), self._choices.lock_wait_seconds) if lock.locked() else lock.acquire()
            )
        except TimeoutError:
            raise refusal from None
        try:
            yield
        finally:
            lock.release()

    def _reply(self, status: int, upload: Upload, offset: int, headers: dict[str, str] | None = None) -> Response:
        fields = {"Upload-Offset": str(offset)} | (headers or {})
        if self._choices.upload_expires_header and upload.status == "open" and offset < upload.size_bytes:
            fields["Upload-Expires"] = http_date(upload.expires_at)
        return Response(status_code=status, headers=fields)


def _number(request: Request, name: str) -> int:
    text = request.headers.get(name, "")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ApiError(400, "Missing / malformed TUS headers.")
    return int(text)


async def _blocks(request: Request) -> AsyncIterator[bytearray]:
    """Yield the body in blocks of about :data:`WRITE_BYTES`; end early if the client disconnects."""
    block = bytearray()
    more = True
    while more:
        message = await request.receive()
        more = message["type"] == "http.request" and message.get("more_body", False)
        block += message.get("body", b"")
        if len(block) >= WRITE_BYTES:
            yield block
            block = bytearray()
    if block:
        yield block


def _write(file: int, block: bytearray) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(file, view) :]

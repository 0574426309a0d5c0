"""The object store that every ``download_url`` points to: a separate origin, as with Roughy."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
from collections.abc import MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import Response

from airflow_provider_roughy.emulator.store import Store
from airflow_provider_roughy.emulator.wire import http_date

from .endpoint import Endpoint

#: Its folders.
ASSETS, RENDERS = "assets", "renders"

#: Content type by format of renders.
CONTENT_TYPES = {"mp4": "video/mp4", "mov": "video/quicktime", "m4a": "audio/mp4", "mp3": "audio/mpeg"}

#: Files are read in blocks of this size, each in a thread.
READ_BYTES = 1 << 20


class Links:
    """Creates download URLs and verifies them: in the format of S3, with the emulator's own signature.

    :param store: The store with the clock and the signing secret.
    :param port: The port of the object store, at the host name by which the client reached the API.
    """

    def __init__(self, store: Store, port: int) -> None:
        self._store = store
        self._port = port

    def make(self, request: Request, folder: str, project_id: str, name: str) -> str:
        """Return a new ``download_url``.

        :param request: The API request in whose reply it is sent.
        :param folder: :data:`ASSETS` or :data:`RENDERS`.
        """
        path = f"/storage/{folder}/{project_id}/{name}"
        date = datetime.fromtimestamp(self._store.clock.now() / 1_000_000, UTC).strftime("%Y%m%dT%H%M%SZ")
        expires = str(self._store.choices.download_ttl_seconds)
        host = request.url.hostname or ""
        return (
            f"{request.url.scheme}://{f'[{host}]' if ':' in host else host}:{self._port}{path}"
            f"?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}&X-Amz-Expires={expires}"
            f"&X-Amz-SignedHeaders=host&X-Amz-Signature={self._signature(path, date, expires)}"
        )

    def problem(self, request: Request) -> tuple[str, str] | None:
        """Return why a download is forbidden, as S3's code and message; ``None`` if it is allowed."""
        query = request.query_params
        date, expires = query.get("X-Amz-Date", ""), query.get("X-Amz-Expires", "")
        signature = self._signature(request.url.path, date, expires)
        if not hmac.compare_digest(signature.encode(), query.get("X-Amz-Signature", "").encode()):
            return "SignatureDoesNotMatch", "The request signature does not match."
        signed_at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if self._store.clock.now() >= (signed_at + int(expires)) * 1_000_000:
            return "AccessDenied", "Request has expired"
        return None

    def _signature(self, path: str, date: str, expires: str) -> str:
        return hmac.new(self._store.secret, f"{path}\n{date}\n{expires}".encode(), hashlib.sha256).hexdigest()


class Storage:
    """The bytes of assets and renders, as S3 serves them: no API key, XML errors, one range per request.

    :param links: Verifies the signatures.
    """

    def __init__(self, store: Store, links: Links) -> None:
        self._store = store
        self._links = links

    def endpoints(self) -> list[Endpoint]:
        """Return the paths and their handlers."""
        path, handlers = "/storage/{folder}/{project_id}/{name}", {"GET": self.get, "HEAD": self.get}
        return [Endpoint(path, handlers, open_methods=("GET", "HEAD"))]

    async def get(self, request: Request, account: int) -> Response:
        """Return the bytes, or a range of them, if the signature is valid."""
        if "authorization" in request.headers:
            message = "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query "
            return _xml_error(400, "InvalidArgument", message + "string parameter or the Authorization header.")
        if problem := self._links.problem(request):
            return _xml_error(403, *problem)
        path, content_type = self._find(request.path_params["folder"], request.path_params["name"])
        try:
            file = path.open("rb") if path else None
        except FileNotFoundError:
            file = None
        if file is None:
            return _xml_error(404, "NoSuchKey", "The specified key does not exist.")
        return _serve(request, file, content_type)

    def _find(self, folder: str, name: str) -> tuple[Path | None, str | None]:
        """Return the path of a file, whether or not it exists, and its content type."""
        if folder == RENDERS:
            render = self._store.renders.find(name.partition(".")[0])
            if render is not None and render.state == "completed":
                return self._store.files.path(render.id), CONTENT_TYPES.get(str(render.output_options["format"]))
        elif folder == ASSETS and (asset := self._store.assets.find(name)):
            return self._store.files.path(asset.id), asset.content_type
        return None, None


def _serve(request: Request, file: BinaryIO, content_type: str | None) -> Response:
    """Reply with an open file, and close it (RFC 9110, sections 13.1.5 and 14)."""
    facts = os.fstat(file.fileno())
    version = f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": f'"{hashlib.sha256(version.encode()).hexdigest()[:32]}"',
        "Last-Modified": http_date(facts.st_mtime_ns // 1000),
    }
    begin, end, status = 0, facts.st_size, 200
    if request.headers.get("if-range") in (None, headers["ETag"], headers["Last-Modified"]):
        byte_range = _parse_range(request.headers.get("range", ""), facts.st_size)
        if byte_range is not None and byte_range[0] >= byte_range[1]:
            file.close()
            headers["Content-Range"] = f"bytes */{facts.st_size}"
            return _xml_error(416, "InvalidRange", "The requested range is not satisfiable", headers)
        if byte_range is not None:
            (begin, end), status = byte_range, 206
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{facts.st_size}"
    headers["Content-Length"] = str(end - begin)
    media_type = content_type or "application/octet-stream"
    if request.method == "HEAD":
        file.close()
        return Response(status_code=status, headers=headers, media_type=media_type)
    return _Part(file, begin, end, status, headers, media_type)


def _parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return start and end of the requested range; they are equal if the file has nothing of it.

    ``None``: send the whole file, as for several ranges (S3) and for an invalid range (RFC 9110, section 14.2).
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", text.strip())
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size
    begin, last = int(match[1]), int(match[2]) if match[2] else size
    return None if last < begin else (begin, min(last + 1, size))


class _Part(Response):
    """A part of an open file, which is closed at the end.

    :param begin: The offset of the first byte.
    :param end: The offset after the last byte.
    """

    def __init__(
        self, file: BinaryIO, begin: int, end: int, status: int, headers: dict[str, str], media_type: str
    ) -> None:
        super().__init__(None, status, headers, media_type)
        self._file = file
        self._begin = begin
        self._end = end

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Send the reply (ASGI)."""
        request, at = Request(scope, receive), self._begin
        with self._file as file:
            file.seek(at)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while not await request.is_disconnected():
                block = await asyncio.to_thread(file.read, min(READ_BYTES, self._end - at))
                at += len(block)
                more = bool(block) and at < self._end
                await send({"type": "http.response.body", "body": block, "more_body": more})
                if not more:
                    break


def _xml_error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    error = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    content = f'<?xml version="1.0" encoding="UTF-8"?>\n{error}'
    return Response(content, status, headers, media_type="application/xml")

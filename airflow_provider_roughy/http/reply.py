"""The bodies of replies: short ones are decompressed up to a size limit, and downloads are read block by block."""

from __future__ import annotations

import re
import ssl
import zlib
from typing import TYPE_CHECKING
from urllib.parse import unquote

from airflow_provider_roughy.api import Reply
from airflow_provider_roughy.exceptions import RoughyProtocolError, RoughyUnreachableError
from airflow_provider_roughy.http import interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from airflow_provider_roughy.api import Request

#: Bytes that a reply may have after decompression, unless its request sets another limit. A page of a list has about
#: 200 KiB.
_MAX_REPLY_BYTES = 8 * 1024 * 1024
#: The largest block of a download, and the smallest one before its last, in bytes.
_MAX_BLOCK_BYTES = 1024 * 1024
_MIN_BLOCK_BYTES = 256 * 1024


class ReplyBody:
    """Collects the body of a reply, and refuses one that is too long after decompression.

    httpx has no such limit, so a reply of some hundred KiB could fill GiB of memory, and it accepts a compressed body
    that is cut off.

    :param request: What was sent.
    :param response: The reply, whose body has not been read.
    :raises RoughyProtocolError: If the body of a success has another content coding than gzip.
    """

    def __init__(self, request: Request, response: httpx.Response) -> None:
        self._request = request
        self._response = response
        self._parts: list[bytes] = []
        self._limit = self._left = request.longest_reply or _MAX_REPLY_BYTES
        # A reply without a body may still have a Content-Encoding.
        bodiless = request.method == "HEAD" or response.status_code in (204, 304)
        codings = [] if bodiless else response.headers.get("content-encoding", "").lower().split(",")
        applied = [coding for each in codings if (coding := each.strip()) not in ("", "identity")]
        self._decompressor = _gunzip() if applied in (["gzip"], ["x-gzip"]) else None
        #: Whether the rest is discarded. A damaged body must not hide the status of an error.
        self._discarding = False
        if applied and self._decompressor is None:
            self._broken(f"has the content coding {', '.join(applied)[:100]!r}, which was not requested")

    def add(self, chunk: bytes) -> None:
        """Add a piece of the body as it was received.

        :raises RoughyProtocolError: If the body is too long, or that of a success cannot be decompressed.
        """
        while chunk and not self._discarding:
            rest = b""
            if self._decompressor is not None:
                if self._decompressor.eof:
                    # A gzip body may consist of several members (RFC 1952, 2.2).
                    self._decompressor = _gunzip()
                try:
                    chunk = self._decompressor.decompress(chunk, self._left + 1)
                except zlib.error as err:
                    return self._broken(f"cannot be decompressed: {err}")
                rest = self._decompressor.unused_data
            self._left -= len(chunk)
            if self._left < 0:
                raise RoughyProtocolError(f"{self._request}: the reply is longer than {self._limit} bytes")
            self._parts.append(chunk)
            chunk = rest
        return None

    def _broken(self, what: str) -> None:
        """Refuse the body of a success; discard the body of an error.

        :raises RoughyProtocolError: If the status is below 400.
        """
        if self._response.status_code < 400:
            raise RoughyProtocolError(f"{self._request}: the reply {what}")
        self._discarding = True
        self._parts.clear()

    def reply(self) -> Reply:
        """Return the reply, with what is secret in its headers and its body replaced by ``…``.

        :raises RoughyProtocolError: If a compressed body of a success is cut off.
        """
        if self._decompressor is not None and not self._decompressor.eof and not self._discarding:
            self._broken("is compressed and cut off")
        headers, body = dict(self._response.headers), b"".join(self._parts)
        for secret in self._secrets():
            # A reply may quote the request, and error messages quote the reply.
            headers = {name: value.replace(secret, "…") for name, value in headers.items()}
            body = body.replace(secret.encode(), "…".encode())
        framed = {"content-length", "transfer-encoding"} & set(headers)
        return Reply(self._response.status_code, headers, body, whole=bool(framed))

    def _secrets(self) -> list[str]:
        """Return the secrets of the request, the longest first: the key, and the URL of an upload."""
        sent = self._response.request
        secrets = {sent.headers.get("Authorization", "").removeprefix("Bearer ")}
        if not self._request.target.startswith("/"):
            path, _, query = sent.url.raw_path.decode().partition("?")
            parts = [path, query, path.rpartition("/")[2], *re.split("[&=]", query)]
            secrets |= {self._request.target, sent.url.raw_path.decode(), *parts, *map(unquote, parts)}
        # Shorter texts are not secret, and are part of many words.
        return sorted((secret for secret in secrets if len(secret) >= 8), key=len, reverse=True)


def _gunzip() -> zlib._Decompress:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def download_blocks(request: Request, response: httpx.Response, seconds: float) -> Iterator[memoryview]:
    """Yield the body of a download in blocks; each block overwrites the one before.

    httpx copies each byte several times, which takes three times the CPU, also over TLS. So httpx reads the first piece
    only, which empties its buffer. If the length of the rest is known, it is read from the socket.

    :param request: What was sent, for messages.
    :param response: The reply, whose body has not been read.
    :param seconds: How long the connection may be silent, in seconds.
    :raises RoughyUnreachableError: If the connection broke. All bytes that were received have been yielded then.
    """
    pieces = response.iter_raw()
    left = _length_on_the_wire(response)
    if left is None:
        for piece in pieces:
            yield memoryview(piece)
        return
    first = next(pieces, b"")
    yield memoryview(first)
    left -= len(first)
    stream = response.extensions["network_stream"].get_extra_info("socket")
    stream.settimeout(seconds)
    buffer = memoryview(bytearray(min(left, _MAX_BLOCK_BYTES)))
    while left:
        filled = 0
        try:
            # TLS returns at most 16 KiB at a time.
            while filled < min(left, _MIN_BLOCK_BYTES):
                count = stream.recv_into(buffer[filled:left])
                if not count:
                    raise ConnectionError("the connection was closed")
                filled += count
        except OSError as err:
            if filled:
                yield buffer[:filled]
            interrupt.check()
            what = f"nothing for {seconds:g} s" if isinstance(err, TimeoutError) else f"{type(err).__name__}: {err}"
            raise RoughyUnreachableError(
                f"{request}: {left - filled} bytes are missing from {response.url.host}: {what}", sent=True
            ) from err
        yield buffer[:filled]
        left -= filled


def _length_on_the_wire(response: httpx.Response) -> int | None:
    """Return how many bytes of the body can be read from the socket, or ``None`` if httpx has to decode them."""
    if isinstance(response.extensions["network_stream"].get_extra_info("ssl_object"), ssl.SSLObject):
        # TLS within TLS, through a proxy: the socket only decrypts the outer one.
        return None
    length = response.headers.get("content-length", "")
    chunked = "transfer-encoding" in response.headers
    return int(length) if length.isascii() and length.isdigit() and not chunked else None

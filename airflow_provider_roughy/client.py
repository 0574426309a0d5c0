"""The wire: one sync and one async driver of a :class:`~airflow_provider_roughy.api.Call`.

This is the only module that imports httpx.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import ssl
import time
import zlib
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import httpcore
import httpx

from airflow_provider_roughy import __version__
from airflow_provider_roughy.api import Call, Reply, Request, decipher
from airflow_provider_roughy.compat import AIRFLOW_VERSION
from airflow_provider_roughy.exceptions import (
    RoughyConfigurationError,
    RoughyError,
    RoughyProtocolError,
    RoughyUnreachableError,
    RoughyUntrustedUrlError,
)
from airflow_provider_roughy.retry import Backoff, Tries
from airflow_provider_roughy.settings import DEFAULT_BASE_URL, Address, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

__all__ = ["DEFAULT_BASE_URL", "AsyncClient", "Backoff", "Client", "Download", "Settings"]

T = TypeVar("T")
C = TypeVar("C", httpx.Client, httpx.AsyncClient)

#: Seconds. A write is one block of an upload, so 60 s tolerate a link of about 17 KiB/s.
_TIMEOUT = {"connect": 10.0, "read": 60.0, "write": 60.0, "pool": 60.0}
#: Seconds that a request may take in all, from connecting to the last byte of the reply.
_TOTAL = 60.0
#: Seconds that the reply to an upload's last byte may take, behind which Roughy may store the whole file.
_UPLOAD_REPLY = 300.0
#: Bytes that a reply may have, unpacked, unless its request says otherwise. A page of a list has some 200 KiB.
_LONGEST_REPLY = 8 * 1024 * 1024
#: Bytes of a download that are handed over at once, at most, and at least if more are to come.
_LARGEST_BLOCK = 1024 * 1024
_SMALLEST_BLOCK = 256 * 1024


@dataclass(frozen=True)
class Download:
    """A reply whose body is still to come.

    :param status: The HTTP status.
    :param headers: Its headers, with lower-case names.
    :param blocks: The body, to be read once, as it was sent; each block is overwritten by the next one.
    """

    status: int
    headers: Mapping[str, str]
    blocks: Iterator[memoryview]


class Client:
    """Drives calls, one connection pool for all of them.

    :param settings: Where to, with which key.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._trust = _Trust(settings.verify)
        self._http = _bounded(_made(httpx.Client, self._trust, _options(settings)))

    def run(self, call: Call[T], *, backoff: Backoff | None = None) -> T:
        """Send a call, again where that is safe, and return its value.

        :param call: What to ask.
        :param backoff: Another retry policy than the default one.
        :raises RoughyError: What went wrong in the last try.
        """
        tries = Tries(call, backoff or Backoff())
        while True:
            try:
                return self.once(call)
            except RoughyError as error:
                if tries.did(error):
                    return call.parse(Reply(204, {}))
                pause = tries.pause_after(error)
                if pause is None:
                    raise
            time.sleep(pause)

    def once(self, call: Call[T], *, within: float | None = None) -> T:
        """Send a call exactly once, and return its value.

        :param call: What to ask.
        :param within: Seconds that it may take in all; by default as long as any request may.
        :raises RoughyError: What went wrong.
        """
        return decipher(call, self.send(call.request, within=within))

    def send(self, request: Request, *, within: float | None = None) -> Reply:
        """Send a request once and return whatever came back.

        :param within: As in :meth:`once`.
        :raises RoughyUnreachableError: If nothing did, or not the whole of it in time.
        :raises RoughyProtocolError: If it is too long, or packed in a way that was not asked for.
        """
        deadline = _Deadline.of(self.settings, request, within)
        try:
            with _sending_within(request, deadline):
                response = self._http.send(_build(self._http, self.settings, request, deadline), stream=True)
                with closing(response):
                    body = _Body(request, response)
                    for chunk in response.iter_raw():
                        body.add(chunk)
                    return body.reply()
        except httpx.HTTPError as err:
            if isinstance(err, httpx.ConnectError):
                self._trust.renew()
            raise _translate(request, _host(self.settings), err, deadline) from err

    @contextmanager
    def download(self, url: str, *, headers: Mapping[str, str] | None = None) -> Iterator[Download]:
        """Open a URL that Roughy handed out, such as a ``download_url``, on whatever host, which never sees the key.

        The reply's head has as long as any request; then, time counts while no byte comes.

        :param url: An https URL; plain http only to this machine, unless the connection allows it.
        :param headers: Headers to send, e.g. ``Range``.
        :raises RoughyUntrustedUrlError: If the URL is none, or plain http beyond this machine.
        :raises RoughyUnreachableError: If nothing came, or it broke off.
        :raises RoughyProtocolError: If it was redirected, which is not followed.
        :raises RoughyApiError: If it was refused.
        """
        request = Request("GET", url, headers=headers or {})
        address = Address.of(url) if isinstance(url, str) else None
        if address is None or not (address.scheme == "https" or address.is_loopback or self.settings.allow_http):
            raise RoughyUntrustedUrlError(f"{request}: neither an https URL nor one of this machine")
        deadline = _Deadline(self.settings.timeout or _TOTAL)
        # A client of its own: no header, cookie or connection of the one with the key.
        headers_of_all = {"User-Agent": _user_agent(), "Accept-Encoding": "identity"}
        options = {**_options(self.settings), "headers": headers_of_all, "timeout": deadline.seconds}
        with _bounded(_made(httpx.Client, self._trust, options)) as http:
            try:
                with _sending_within(request, deadline):
                    response = http.send(http.build_request("GET", url, headers=request.headers), stream=True)
                with closing(response):
                    received = {name.lower(): value for name, value in response.headers.items()}
                    # Not with the body of an error, in which storages repeat what was signed.
                    decipher(Call(request, lambda reply: None), Reply(response.status_code, received))
                    yield Download(response.status_code, received, _blocks(request, response, deadline.seconds))
            except httpx.HTTPError as err:
                if isinstance(err, httpx.ConnectError):
                    self._trust.renew()
                raise _translate(request, address.host, err, deadline) from err

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """:class:`Client` for an event loop. Made by :meth:`open`, which does not block the loop.

    :param settings: Where to, with which key.
    :param trust: Whose certificates to accept.
    """

    def __init__(self, settings: Settings, trust: _Trust) -> None:
        self.settings = settings
        self._trust = trust
        self._http = _made(httpx.AsyncClient, trust, _options(settings))

    @classmethod
    async def open(cls, settings: Settings) -> AsyncClient:
        """Make a client; the CA bundle, some 20 to 40 ms of CPU, is read in a thread."""
        return cls(settings, await asyncio.to_thread(_Trust, settings.verify))

    async def run(self, call: Call[T], *, backoff: Backoff | None = None) -> T:
        """Send a call, again where that is safe, and return its value.

        :param call: What to ask.
        :param backoff: Another retry policy than the default one.
        :raises RoughyError: What went wrong in the last try.
        """
        tries = Tries(call, backoff or Backoff())
        while True:
            try:
                return await self.once(call)
            except RoughyError as error:
                if tries.did(error):
                    return call.parse(Reply(204, {}))
                pause = tries.pause_after(error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def once(self, call: Call[T], *, within: float | None = None) -> T:
        """Send a call exactly once, and return its value.

        :param call: What to ask.
        :param within: Seconds that it may take in all; by default as long as any request may.
        :raises RoughyError: What went wrong.
        """
        return decipher(call, await self.send(call.request, within=within))

    async def send(self, request: Request, *, within: float | None = None) -> Reply:
        """Send a request once and return whatever came back.

        :param within: As in :meth:`once`.
        :raises RoughyUnreachableError: If nothing did, or not the whole of it in time.
        :raises RoughyProtocolError: If it is too long, or packed in a way that was not asked for.
        """
        deadline = _Deadline.of(self.settings, request, within)
        sent = False

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            nonlocal sent
            sent = sent or event.endswith("send_request_headers.started")

        try:
            with _sending_within(request, deadline):
                async with asyncio.timeout(deadline.seconds):
                    outgoing = _build(self._http, self.settings, request, deadline)
                    outgoing.extensions["trace"] = trace
                    response = await self._http.send(outgoing, stream=True)
                    try:
                        body = _Body(request, response)
                        async for chunk in response.aiter_raw():
                            body.add(chunk)
                        return body.reply()
                    finally:
                        await response.aclose()
        except httpx.HTTPError as err:
            if isinstance(err, httpx.ConnectError):
                await asyncio.to_thread(self._trust.renew)
            raise _translate(request, _host(self.settings), err, deadline) from err
        except TimeoutError as err:
            raise RoughyUnreachableError(f"{request}: {deadline}", sent=sent) from err

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class _Deadline:
    """When an exchange must be over.

    Time limits of single reads and writes do not end an exchange whose other side sends a byte now and then.

    :param seconds: How long it may take in all.
    :param upload: Whether that is counted from the last byte sent, because nobody knows how long an upload takes.
    """

    def __init__(self, seconds: float, *, upload: bool = False) -> None:
        self.seconds = seconds
        self.upload = upload
        self._end = time.monotonic() + seconds

    @classmethod
    def of(cls, settings: Settings, request: Request, within: float | None) -> _Deadline:
        """Return that of a request."""
        upload = request.content is not None
        usual = settings.timeout or (_UPLOAD_REPLY if upload else _TOTAL)
        if within is None:
            return cls(usual, upload=upload)
        return cls(within if upload else min(within, usual))

    def __str__(self) -> str:
        return f"no whole answer within {self.seconds:g} s"

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._end <= time.monotonic()

    def sending(self) -> None:
        """Take note that an upload is not yet at its last byte."""
        if self.upload:
            self._end = time.monotonic() + self.seconds

    def cut(self, seconds: float | None) -> float:
        """Shorten the time limit of a single step to what is left."""
        left = max(0.0, self._end - time.monotonic())
        return left if seconds is None else min(left, seconds)


#: The exchange that the running code is in, if any.
_exchange: ContextVar[_Deadline | None] = ContextVar("airflow_provider_roughy_exchange", default=None)


@contextmanager
def _sending_within(request: Request, deadline: _Deadline) -> Iterator[None]:
    """Hold the deadline, and keep httpx from logging each URL, which may be an upload's, into the task's log.

    :raises RoughyConfigurationError: If the URL is one that nothing can be sent to.
    """
    token = _exchange.set(deadline)
    try:
        yield
    except (httpx.InvalidURL, UnicodeError) as err:
        raise RoughyConfigurationError(f"{request}: {err}") from err
    finally:
        _exchange.reset(token)


for _name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy"):
    logging.getLogger(_name).addFilter(lambda record: _exchange.get() is None)


class _Stream(httpcore.NetworkStream):
    """A connection whose every read and write ends with its exchange's deadline."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _step(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        deadline = _exchange.get() or _Deadline(float("inf"))
        # However long the source took to give these bytes.
        deadline.sending()
        self._stream.write(buffer, _step(timeout, httpcore.WriteTimeout))
        deadline.sending()

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _step(timeout, httpcore.ConnectTimeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Network(httpcore.SyncBackend):
    """Makes such connections."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        left = _step(timeout, httpcore.ConnectTimeout)
        return _Stream(super().connect_tcp(host, port, left, local_address, socket_options))


def _step(timeout: float | None, error: type[Exception]) -> float | None:
    deadline = _exchange.get()
    if deadline is None:
        return timeout
    left = deadline.cut(timeout)
    if left <= 0:
        raise error("the time is up")
    return left


def _bounded(http: httpx.Client) -> httpx.Client:
    """Have a client make its connections by :class:`_Network`, for which httpx has no public way."""
    for transport in (http._transport, *http._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            transport._pool._network_backend = _Network()
    return http


class _Body:
    """A reply's body, unpacked as it comes, and given up when it gets too long.

    httpx would unpack it whole: some hundred KiB become GiB.
    """

    def __init__(self, request: Request, response: httpx.Response) -> None:
        self._request = request
        self._response = response
        self._parts: list[bytes] = []
        self._most = self._left = request.longest_reply or _LONGEST_REPLY
        packed = response.headers.get("content-encoding", "identity").strip().lower()
        if packed not in ("identity", "gzip", "x-gzip"):
            raise RoughyProtocolError(f"{request}: the reply is packed as {packed[:100]!r}, which was not asked for")
        self._unpack = None if packed == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 16)

    def add(self, chunk: bytes) -> None:
        """Take what came.

        :raises RoughyProtocolError: If it is broken, or too long.
        """
        if self._unpack is not None:
            try:
                chunk = self._unpack.decompress(chunk, self._left + 1)
            except zlib.error as err:
                raise RoughyProtocolError(f"{self._request}: the reply cannot be unpacked: {err}") from err
        self._left -= len(chunk)
        if self._left < 0:
            raise RoughyProtocolError(f"{self._request}: the reply is longer than {self._most} bytes")
        self._parts.append(chunk)

    def reply(self) -> Reply:
        """Return the whole of it."""
        headers, body = dict(self._response.headers), b"".join(self._parts)
        for secret in self._secrets():
            # An error quotes the reply, and a reply may quote the request.
            headers = {name: value.replace(secret, "…") for name, value in headers.items()}
            body = body.replace(secret.encode(), "…".encode())
        return Reply(self._response.status_code, headers, body)

    def _secrets(self) -> list[str]:
        """Return what was sent and must not be told: the key, and the URL of an upload."""
        sent = self._response.request
        secrets = [sent.headers["Authorization"].removeprefix("Bearer ")]
        if not self._request.target.startswith("/"):
            secrets += [self._request.target, sent.url.raw_path.decode()]
        # What is as short as this is no secret, and may be a part of anything.
        return [secret for secret in secrets if len(secret) >= 8]


def _blocks(request: Request, response: httpx.Response, seconds: float) -> Iterator[memoryview]:
    """Yield the body of a download; each block is overwritten by the next one.

    httpx copies each byte several times, which costs a third of the speed of a fast line. So only the first piece comes
    through it, with which its own buffer is empty; the others come from the socket, where their length is known.

    :param seconds: How long no byte may come.
    :raises RoughyUnreachableError: If it broke off, once all that had come is yielded.
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
    buffer = memoryview(bytearray(min(left, _LARGEST_BLOCK)))
    while left:
        filled = 0
        try:
            # TLS gives 16 KiB at a time.
            while filled < min(left, _SMALLEST_BLOCK):
                count = stream.recv_into(buffer[filled:left])
                if not count:
                    raise ConnectionError("the connection was closed")
                filled += count
        except OSError as err:
            if filled:
                yield buffer[:filled]
            what = f"nothing for {seconds:g} s" if isinstance(err, TimeoutError) else f"{type(err).__name__}: {err}"
            raise RoughyUnreachableError(
                f"{request}: {left - filled} bytes are missing from {response.url.host}: {what}", sent=True
            ) from err
        yield buffer[:filled]
        left -= filled


def _length_on_the_wire(response: httpx.Response) -> int | None:
    """Return how many bytes of the body are to come from the socket as they are, or ``None`` if they are not."""
    if isinstance(response.extensions["network_stream"].get_extra_info("ssl_object"), ssl.SSLObject):
        # TLS within the TLS of a proxy: the socket knows the outer one only.
        return None
    length = response.headers.get("content-length", "")
    chunked = "transfer-encoding" in response.headers
    return int(length) if length.isascii() and length.isdigit() and not chunked else None


def _build(
    http: httpx.Client | httpx.AsyncClient, settings: Settings, request: Request, deadline: _Deadline
) -> httpx.Request:
    steps = dict.fromkeys(_TIMEOUT, settings.timeout) if settings.timeout else {**_TIMEOUT}
    if request.content is not None:
        steps["read"] = deadline.seconds
    return http.build_request(
        request.method,
        settings.url(request.target),
        params=dict(request.params) or None,
        json=request.json,
        content=request.content,
        headers={**request.headers, "Authorization": f"Bearer {settings.api_key}"},
        timeout=httpx.Timeout(**{name: deadline.cut(seconds) for name, seconds in steps.items()}),
    )


def _translate(request: Request, host: str, err: httpx.HTTPError, deadline: _Deadline) -> RoughyError:
    if isinstance(err, httpx.UnsupportedProtocol):
        return RoughyConfigurationError(f"{request}: {err}")
    never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
    what = type(err).__name__ + (f": {err}" if str(err) else "")
    if isinstance(err, httpx.TimeoutException) and deadline.is_over:
        what = str(deadline)
    return RoughyUnreachableError(f"{request}: no answer from {host}: {what}", sent=not isinstance(err, never_sent))


def _host(settings: Settings) -> str:
    own = Address.of(settings.base_url)
    return own.host if own is not None else settings.base_url


def _made(make: Callable[..., C], trust: _Trust, options: Mapping[str, Any]) -> C:
    """Make a client of httpx.

    :raises RoughyConfigurationError: If the environment names a proxy that is none.
    """
    try:
        return make(verify=trust.context, **options)
    except (ImportError, ValueError, httpx.InvalidURL) as err:
        raise RoughyConfigurationError(f"The proxy settings of the environment cannot be used: {err}") from err


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "follow_redirects": False,
        # Nothing but gzip, whose length can be bounded while it is unpacked.
        "headers": {"User-Agent": _user_agent(), "Accept": "application/json", "Accept-Encoding": "gzip"},
        # Proxies from the environment. httpx takes no credentials from .netrc, which would replace the key.
        "trust_env": True,
        # But none of them is to see what is meant for this machine, the key among it.
        "mounts": {f"all://{host}": None for host in settings.unproxied},
    }


@lru_cache(maxsize=1)
def _user_agent() -> str:
    versions = {
        "airflow-provider-roughy": __version__,
        "apache-airflow": AIRFLOW_VERSION,
        "httpx": httpx.__version__,
        "python": platform.python_version(),
    }
    return " ".join(f"{name}/{version}" for name, version in versions.items())


class _Trust:
    """Whose certificates a client accepts, also after the CA bundle was replaced on disk.

    :param verify: As in :class:`Settings`.
    """

    def __init__(self, verify: bool | str) -> None:
        self._verify = verify
        self._version = _version(verify)
        self.context = _ssl_context(verify, self._version)

    def renew(self) -> None:
        """Read the bundle again if it was replaced: its CAs are trusted as well. Only a new client forgets old ones."""
        version = _version(self._verify)
        if version is None or version == self._version:
            return
        # One that is being written cannot be read, and changes once more.
        with suppress(OSError, ssl.SSLError):
            self.context.load_verify_locations(cafile=str(self._verify))
            self._version = version


def _version(verify: bool | str) -> tuple[int, ...] | None:
    """Return what changes when a CA bundle is replaced; a folder's files are read as they are needed."""
    if not isinstance(verify, str) or not os.path.isfile(verify):
        return None
    status = os.stat(verify)
    return status.st_mtime_ns, status.st_size, status.st_ino


@lru_cache(maxsize=8)
def _ssl_context(verify: bool | str, version: tuple[int, ...] | None) -> ssl.SSLContext:
    """Make a TLS context once for all clients: it is safe to share, and reading the CA bundle is dear."""
    try:
        if not isinstance(verify, str):
            return httpx.create_ssl_context(verify=verify)
        if os.path.isdir(verify):
            return ssl.create_default_context(capath=verify)
        return ssl.create_default_context(cafile=verify)
    except (OSError, ssl.SSLError) as err:
        named = f"verify in the extra, {verify}," if isinstance(verify, str) else "SSL_CERT_FILE or SSL_CERT_DIR"
        raise RoughyConfigurationError(f"{named} is no CA bundle: {err}") from err

"""The network below httpx: connections that keep deadlines and end with a killed task, and trusted certificates.

httpx limits the time of single reads and writes only, so a server that sends a byte now and then could hold a request
for ever. Its own transport accepts no network backend. So :class:`Transport` uses httpcore's connection pools, whose
backend is a public argument.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import ssl
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import httpcore
import httpx

from airflow_provider_roughy.exceptions import RoughyConfigurationError
from airflow_provider_roughy.http import interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from airflow_provider_roughy.api import Request
    from airflow_provider_roughy.settings import Settings

T = TypeVar("T")

#: A pool's connections, how many idle ones it keeps, and for how many seconds.
_POOL = {"max_connections": 100, "max_keepalive_connections": 20, "keepalive_expiry": 5.0}
#: Seconds that a request may take from connecting to the last byte of the reply.
DEFAULT_SECONDS = 60.0
#: Seconds from the last byte of an upload to its reply. Roughy may store the whole file in between.
_UPLOAD_REPLY_SECONDS = 300.0


class Deadline:
    """The time by which a request and its reply must be complete.

    :param seconds: How long that may take in all.
    :param upload: Whether the seconds count from the last byte sent, as the duration of an upload is not known.
    """

    def __init__(self, seconds: float, *, upload: bool = False) -> None:
        self.seconds = seconds
        self.upload = upload
        self._end = time.monotonic() + seconds

    @classmethod
    def of(cls, settings: Settings, request: Request, within: float | None) -> Deadline:
        """Return the deadline of a request that starts now.

        :param settings: The connection, whose ``timeout`` replaces the default.
        :param request: The request. One with content is an upload.
        :param within: Seconds that replace the timeout if they are fewer; for an upload, always.
        """
        upload = request.content is not None
        usual = settings.timeout or (_UPLOAD_REPLY_SECONDS if upload else DEFAULT_SECONDS)
        if within is None:
            return cls(usual, upload=upload)
        return cls(within if upload else min(within, usual))

    def __str__(self) -> str:
        return f"no complete reply within {self.seconds:g} s"

    @property
    def has_passed(self) -> bool:
        """Whether no time is left."""
        return self._end <= time.monotonic()

    def restart(self) -> None:
        """Count the seconds from zero if this is an upload, of which bytes are being sent."""
        if self.upload:
            self._end = time.monotonic() + self.seconds

    def cap(self, seconds: float | None) -> float:
        """Return the timeout of a single step, in seconds: at most what is left until the deadline."""
        left = max(0.0, self._end - time.monotonic())
        return left if seconds is None else min(left, seconds)


#: The deadline of the request that the running code sends, if it sends one.
_current_deadline: ContextVar[Deadline | None] = ContextVar("airflow_provider_roughy_exchange", default=None)


@contextmanager
def exchange_within(request: Request, deadline: Deadline) -> Iterator[None]:
    """Apply a deadline to all connections that the body uses, and keep httpx from logging URLs, which may be secret.

    :param request: What the body sends.
    :param deadline: When its reply must be complete.
    :raises RoughyConfigurationError: If no request can be sent to the URL.
    """
    token = _current_deadline.set(deadline)
    try:
        yield
    except (httpx.InvalidURL, UnicodeError) as err:
        raise RoughyConfigurationError(f"{request}: {err}") from err
    finally:
        _current_deadline.reset(token)


for _name in (httpx.__name__, *(f"{httpcore.__name__}.{part}" for part in ("connection", "http11", "proxy"))):
    logging.getLogger(_name).addFilter(lambda record: _current_deadline.get() is None)


class _Stream(httpcore.NetworkStream):
    """A connection whose reads and writes end at the current deadline, or when the task is killed.

    :param connection: The connected socket, which :meth:`start_tls` wraps for TLS.
    :param forget: Called when the connection is closed.
    """

    def __init__(self, connection: socket.socket, forget: Callable[[], None]) -> None:
        self._socket = connection
        self._forget = forget

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._socket.settimeout(_step_timeout(timeout, httpcore.ReadTimeout))
        with _socket_errors(httpcore.ReadTimeout, httpcore.ReadError):
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        deadline = _current_deadline.get() or Deadline(float("inf"))
        left = memoryview(buffer)
        # The time that reading the source took does not count.
        deadline.restart()
        while left:
            self._socket.settimeout(_step_timeout(timeout, httpcore.WriteTimeout))
            with _socket_errors(httpcore.WriteTimeout, httpcore.WriteError):
                left = left[self._socket.send(left) :]
        deadline.restart()

    def close(self) -> None:
        self._forget()
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            if isinstance(self._socket, ssl.SSLSocket):
                return _TlsInTls(self, ssl_context, server_hostname, timeout)
            self._socket.settimeout(_step_timeout(timeout, httpcore.ConnectTimeout))
            with _socket_errors(httpcore.ConnectTimeout, httpcore.ConnectError):
                return _Stream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname), self._forget)
        except BaseException:
            self.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "socket":
                return self._socket
            case "ssl_object":
                return self._socket if isinstance(self._socket, ssl.SSLSocket) else None
            case "is_readable":
                return _is_readable(self._socket)
            case "client_addr":
                return self._socket.getsockname()
            case "server_addr":
                return self._socket.getpeername()
        return None


class _TlsInTls(httpcore.NetworkStream):
    """TLS to a server through a proxy that is itself reached over TLS.

    :param outer: The connection to the proxy.
    :param ssl_context: The context of the connection to the server.
    :param server_hostname: The host that the server's certificate must name.
    :param timeout: Seconds that a step of the handshake may take.
    """

    def __init__(
        self,
        outer: httpcore.NetworkStream,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None,
        timeout: float | None,
    ) -> None:
        self._outer = outer
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = ssl_context.wrap_bio(self._received, self._to_send, server_hostname=server_hostname)
        with _socket_errors(httpcore.ConnectTimeout, httpcore.ConnectError):
            self._drive(self._tls.do_handshake, timeout)

    def _drive(self, step: Callable[[], T], timeout: float | None) -> T:
        """Run an operation of TLS, and exchange the bytes that it needs with the proxy."""
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._send(timeout)
                if received := self._outer.read(64 * 1024, timeout):
                    self._received.write(received)
                else:
                    self._received.write_eof()
            else:
                self._send(timeout)
                return done

    def _send(self, timeout: float | None) -> None:
        if self._to_send.pending:
            self._outer.write(self._to_send.read(), timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _socket_errors(httpcore.ReadTimeout, httpcore.ReadError):
            try:
                return self._drive(lambda: self._tls.read(max_bytes), timeout)
            except ssl.SSLZeroReturnError:
                return b""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        left = memoryview(buffer)
        with _socket_errors(httpcore.WriteTimeout, httpcore.WriteError):
            while left:
                left = left[self._drive(lambda: self._tls.write(left), timeout) :]  # noqa: B023 - called at once

    def close(self) -> None:
        self._outer.close()

    def get_extra_info(self, info: str) -> Any:
        return self._tls if info == "ssl_object" else self._outer.get_extra_info(info)


@contextmanager
def _socket_errors(timeout: type[Exception], other: type[Exception]) -> Iterator[None]:
    """Raise the errors of a socket as those of httpcore, as its pools expect."""
    try:
        yield
    except TimeoutError as err:
        raise timeout(str(err)) from err
    except OSError as err:
        raise other(str(err)) from err


def _is_readable(connection: socket.socket) -> bool:
    """Whether there is something to read. On an idle connection, that means that the server has closed it."""
    if connection.fileno() < 0:
        return True
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        return bool(selector.select(0))


class Network(httpcore.NetworkBackend):
    """Opens connections that keep the current deadline.

    :param check: Called with the host name and each IP address before connecting to it; raises if it is not allowed.
    """

    def __init__(self, check: Callable[[str, str], None] = lambda host, ip: None) -> None:
        self._check = check

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to a host; the parameters are httpcore's."""
        with _socket_errors(httpcore.ConnectTimeout, httpcore.ConnectError):
            connection, forget = self._connect(host, port, timeout, local_address)
            for option in (*(socket_options or ()), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)):
                connection.setsockopt(*option)
        return _Stream(connection, forget)

    def _connect(
        self, host: str, port: int, timeout: float | None, local_address: str | None
    ) -> tuple[socket.socket, Callable[[], None]]:
        """Connect to the first address that accepts, as :func:`socket.create_connection` does.

        :returns: The socket, and what to call when it is closed.
        """
        failed = OSError(f"{host} has no address")
        interruption = interrupt.current()
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            self._check(host, str(address[0]))
            connection = socket.socket(family, kind, protocol)
            forget = _watch(connection, interruption)
            try:
                connection.settimeout(_step_timeout(timeout, httpcore.ConnectTimeout))
                if local_address is not None:
                    connection.bind((local_address, 0))
                connection.connect(address)
                return connection, forget
            except BaseException as err:
                forget()
                connection.close()
                if not isinstance(err, OSError):
                    raise
                failed = err
        raise failed


def _watch(connection: socket.socket, interruption: interrupt.Interrupt | None) -> Callable[[], None]:
    """Have a kill of the task end a connection, and return what to call when the connection is closed."""
    if interruption is None:
        return lambda: None
    return partial(interruption.forget, interruption.watch(connection))


def _step_timeout(timeout: float | None, error: type[Exception]) -> float | None:
    """Return the timeout of a single step in seconds.

    :param timeout: httpcore's timeout, in seconds.
    :param error: What to raise if the deadline has passed.
    """
    deadline = _current_deadline.get()
    if deadline is None:
        return timeout
    left = deadline.cap(timeout)
    if left <= 0:
        raise error("the deadline has passed")
    return left


class Transport(httpx.BaseTransport):
    """Sends the requests of an httpx client over the connections of a :class:`Network`.

    :param trust: The certificates to accept.
    :param network: Opens the connections.
    :param proxy: The proxy to use; by default none.
    """

    def __init__(self, trust: Trust, network: Network, proxy: httpx.Proxy | None = None) -> None:
        options: dict[str, Any] = {"ssl_context": trust.context, "network_backend": network, **_POOL}
        if proxy is None:
            self._pool = httpcore.ConnectionPool(**options)
            return
        options |= {"proxy_url": str(proxy.url.copy_with(userinfo=None)), "proxy_auth": proxy.raw_auth}
        if proxy.url.scheme.startswith("socks"):
            self._pool = httpcore.SOCKSProxy(**options)
        else:
            headers, context = proxy.headers.raw, proxy.ssl_context
            self._pool = httpcore.HTTPProxy(**options, proxy_headers=headers, proxy_ssl_context=context)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the reply with a body that has not been read."""
        url = request.url
        outgoing = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _httpcore_errors():
            incoming = self._pool.handle_request(outgoing)
        return httpx.Response(
            incoming.status, headers=incoming.headers, stream=_ReplyStream(incoming), extensions=incoming.extensions
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


class _ReplyStream(httpx.SyncByteStream):
    """The body of an httpcore reply, as httpx reads it."""

    def __init__(self, incoming: httpcore.Response) -> None:
        self._incoming = incoming

    def __iter__(self) -> Iterator[bytes]:
        with _httpcore_errors():
            yield from self._incoming.iter_stream()

    def close(self) -> None:
        with _httpcore_errors():
            self._incoming.close()


@contextmanager
def _httpcore_errors() -> Iterator[None]:
    """Raise the errors of httpcore as the httpx errors of the same names."""
    try:
        yield
    except (
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.TimeoutException,
        httpcore.UnsupportedProtocol,
    ) as err:
        raise getattr(httpx, type(err).__name__)(str(err)) from err


class Trust:
    """The certificates that a client accepts, also after the CA bundle was replaced on disk.

    :param verify: As in :class:`~airflow_provider_roughy.settings.Settings`.
    :raises RoughyConfigurationError: If the CA bundle cannot be read.
    """

    def __init__(self, verify: bool | str) -> None:
        self._verify = verify
        self._version = _bundle_version(verify)
        self.context = _ssl_context(verify, self._version)

    def renew(self) -> None:
        """Load the CA bundle if it was replaced. The CAs of the old one stay trusted until a new client is created."""
        version = _bundle_version(self._verify)
        if version is None or version == self._version:
            return
        # A bundle that is only half written cannot be read. It changes once more, and is loaded then.
        with suppress(OSError, ssl.SSLError):
            self.context.load_verify_locations(cafile=str(self._verify))
            self._version = version


def _bundle_version(verify: bool | str) -> tuple[int, ...] | None:
    """Return what changes when a CA bundle is replaced; ``None`` for a folder, which OpenSSL reads when needed."""
    if not isinstance(verify, str) or not os.path.isfile(verify):
        return None
    status = os.stat(verify)
    return status.st_mtime_ns, status.st_size, status.st_ino


@lru_cache(maxsize=8)
def _ssl_context(verify: bool | str, version: tuple[int, ...] | None) -> ssl.SSLContext:
    """Create a TLS context once for all clients: it is safe to share, and reading a CA bundle takes long."""
    try:
        if not isinstance(verify, str):
            return httpx.create_ssl_context(verify=verify)
        if os.path.isdir(verify):
            return ssl.create_default_context(capath=verify)
        return ssl.create_default_context(cafile=verify)
    except (OSError, ssl.SSLError) as err:
        named = f"verify in the extra, {verify}," if isinstance(verify, str) else "SSL_CERT_FILE or SSL_CERT_DIR"
        raise RoughyConfigurationError(f"{named} is no CA bundle: {err}") from err

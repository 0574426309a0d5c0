"""The clients that send calls: :class:`Client`, and :class:`AsyncClient` for event loops."""

from __future__ import annotations

import asyncio
import platform
import re
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from airflow_provider_roughy import __version__
from airflow_provider_roughy.api import Call, Reply, Request, decipher
from airflow_provider_roughy.compat import AIRFLOW_VERSION
from airflow_provider_roughy.exceptions import (
    RoughyConfigurationError,
    RoughyError,
    RoughyUnreachableError,
)
from airflow_provider_roughy.http import interrupt
from airflow_provider_roughy.http.proxies import proxy_errors, proxy_mounts
from airflow_provider_roughy.http.reply import ReplyBody, download_blocks
from airflow_provider_roughy.http.retry import Backoff, Tries
from airflow_provider_roughy.http.transport import DEFAULT_SECONDS, Deadline, Network, Transport, Trust, exchange_within
from airflow_provider_roughy.instruments import REQUESTS
from airflow_provider_roughy.settings import DEFAULT_BASE_URL, Address, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Self

__all__ = ["DEFAULT_BASE_URL", "AsyncClient", "Backoff", "Client", "Download", "Settings"]

T = TypeVar("T")

#: Timeouts of single steps in seconds. A write is one block of an upload, so 60 s allow a link of about 17 KiB/s.
_TIMEOUTS = {"connect": 10.0, "read": 60.0, "write": 60.0, "pool": 60.0}
#: Seconds that the request of :func:`_warm_up` may take.
_WARM_UP_SECONDS = 5.0


@dataclass(frozen=True)
class Download:
    """A reply whose body has not been read yet.

    :param status: The HTTP status.
    :param headers: The headers, with lower-case names.
    :param blocks: The body as it was sent. It can be read once; each block overwrites the one before.
    """

    status: int
    headers: Mapping[str, str]
    blocks: Iterator[memoryview]


class Client:
    """Sends calls over one connection pool.

    :param settings: The address and the API key.
    :raises RoughyConfigurationError: If a CA bundle or a proxy cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._trust = Trust(settings.verify)
        self._http = _sync_http(settings, self._trust, Network(), host=_host_of(settings))

    def run(self, call: Call[T], *, backoff: Backoff | None = None) -> T:
        """Send a call, repeat it after errors that may pass, and return its value.

        :param call: The call.
        :param backoff: The retry policy; by default ``Backoff()``.
        :raises RoughyError: The error of the last attempt.
        """
        tries = Tries(call, backoff or Backoff())
        while True:
            try:
                return self.once(call)
            except RoughyError as err:
                pause, error = tries.after(err), err
            if pause is None:
                return tries.value
            left = interrupt.time_left()
            interrupt.pause(min(pause, left))
            if pause >= left:
                raise error

    def once(self, call: Call[T], *, within: float | None = None) -> T:
        """Send a call once, and return its value.

        :param call: The call.
        :param within: Seconds that it may take in all; by default, the connection's ``timeout`` or 60 seconds.
        :raises RoughyError: If it failed.
        """
        try:
            reply = self.send(call.request, within=within)
        except RoughyError:
            REQUESTS.add(status="none")
            raise
        REQUESTS.add(status=_status_class(reply))
        return decipher(call, reply, conn_id=self.settings.conn_id)

    def send(self, request: Request, *, within: float | None = None) -> Reply:
        """Send a request once, and return the reply, whatever its status.

        :param request: The request.
        :param within: As in :meth:`once`.
        :raises RoughyUnreachableError: If there is no reply, or it is not complete in time.
        :raises RoughyProtocolError: If it is too long, or compressed with another coding than gzip.
        """
        deadline = Deadline.of(self.settings, request, within)
        try:
            with exchange_within(request, deadline):
                response = self._http.send(_build(self._http, self.settings, request, deadline), stream=True)
                with closing(response):
                    body = ReplyBody(request, response)
                    for chunk in response.iter_raw():
                        body.add(chunk)
                    return body.reply()
        except httpx.HTTPError as err:
            if isinstance(err, httpx.ConnectError):
                self._trust.renew()
            raise _error_of(request, _host_of(self.settings), err, deadline) from _cause_of(err)

    @contextmanager
    def download(self, url: str, *, headers: Mapping[str, str] | None = None) -> Iterator[Download]:
        """Open a URL that Roughy signed, such as a ``download_url``. Its host may be any, and never sees the API key.

        The head of the reply has as much time as any request. After that, the connection may be silent for as long.

        :param url: The URL, if ``Settings.download_address`` allows it.
        :param headers: Headers to send, such as ``Range``.
        :raises RoughyUntrustedUrlError: If the URL or the IP address of its host is not allowed.
        :raises RoughyUnreachableError: If there is no reply, or the connection broke.
        :raises RoughyProtocolError: If the reply is a redirect, which is not followed.
        :raises RoughyApiError: If the storage refused the request.
        """
        request = Request("GET", url, headers=headers or {})
        address = self.settings.download_address(url)
        deadline = Deadline(self.settings.timeout or DEFAULT_SECONDS)
        # A separate client, so that no header, cookie or connection of the one with the key is used.
        default_headers = {"User-Agent": _user_agent(), "Accept-Encoding": "identity"}
        options = {"headers": default_headers, "timeout": deadline.seconds}

        def check(host: str, ip: str) -> None:
            # Not for the host of a proxy, which decides itself which hosts it connects to.
            if host.lower() == address.host.strip("[]"):
                self.settings.check_reached(address.host, ip)

        with _sync_http(self.settings, self._trust, Network(check), host=address.host, **options) as http:
            try:
                with exchange_within(request, deadline):
                    response = http.send(http.build_request("GET", url, headers=request.headers), stream=True)
                with closing(response):
                    received = {name.lower(): value for name, value in response.headers.items()}
                    # Without the body: in errors, storages quote the signed URL.
                    decipher(Call(request, lambda reply: None), Reply(response.status_code, received))
                    yield Download(response.status_code, received, download_blocks(request, response, deadline.seconds))
            except httpx.HTTPError as err:
                if isinstance(err, httpx.ConnectError):
                    self._trust.renew()
                raise _error_of(request, address.host, err, deadline) from _cause_of(err)

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
    """:class:`Client` for an event loop. Create it with :meth:`open`, which does not block the loop.

    :param settings: The address and the API key.
    :param trust: The certificates to accept.
    """

    def __init__(self, settings: Settings, trust: Trust) -> None:
        self.settings = settings
        self._trust = trust
        self._http = _async_http(settings, trust)

    @classmethod
    async def open(cls, settings: Settings) -> AsyncClient:
        """Create a client in a thread, and load there what its first request needs.

        :param settings: The address and the API key.
        :raises RoughyConfigurationError: If a CA bundle or a proxy cannot be used.
        """
        return await asyncio.to_thread(cls._create, settings)

    @classmethod
    def _create(cls, settings: Settings) -> AsyncClient:
        client = cls(settings, Trust(settings.verify))
        _warm_up()
        return client

    async def run(self, call: Call[T], *, backoff: Backoff | None = None) -> T:
        """Send a call, repeat it after errors that may pass, and return its value.

        :param call: The call.
        :param backoff: The retry policy; by default ``Backoff()``.
        :raises RoughyError: The error of the last attempt.
        """
        tries = Tries(call, backoff or Backoff())
        while True:
            try:
                return await self.once(call)
            except RoughyError as error:
                pause = tries.after(error)
            if pause is None:
                return tries.value
            await asyncio.sleep(pause)

    async def once(self, call: Call[T], *, within: float | None = None) -> T:
        """Send a call once, and return its value.

        :param call: The call.
        :param within: Seconds that it may take in all; by default, the connection's ``timeout`` or 60 seconds.
        :raises RoughyError: If it failed.
        """
        try:
            reply = await self.send(call.request, within=within)
        except RoughyError:
            REQUESTS.add(status="none")
            raise
        REQUESTS.add(status=_status_class(reply))
        return decipher(call, reply, conn_id=self.settings.conn_id)

    async def send(self, request: Request, *, within: float | None = None) -> Reply:
        """Send a request once, and return the reply, whatever its status.

        :param request: The request.
        :param within: As in :meth:`once`.
        :raises RoughyUnreachableError: If there is no reply, or it is not complete in time.
        :raises RoughyProtocolError: If it is too long, or compressed with another coding than gzip.
        """
        deadline = Deadline.of(self.settings, request, within)
        sent = False

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            nonlocal sent
            sent = sent or event.endswith("send_request_headers.started")

        try:
            with exchange_within(request, deadline):
                async with asyncio.timeout(deadline.seconds):
                    outgoing = _build(self._http, self.settings, request, deadline)
                    outgoing.extensions["trace"] = trace
                    response = await self._http.send(outgoing, stream=True)
                    try:
                        body = ReplyBody(request, response)
                        async for chunk in response.aiter_raw():
                            body.add(chunk)
                        return body.reply()
                    finally:
                        await response.aclose()
        except httpx.HTTPError as err:
            if isinstance(err, httpx.ConnectError):
                await asyncio.to_thread(self._trust.renew)
            raise _error_of(request, _host_of(self.settings), err, deadline) from _cause_of(err)
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


@lru_cache(maxsize=1)
def _warm_up() -> None:
    """Send a request from this thread to itself, once per process.

    With the first request, httpcore and anyio import half of their modules, which takes 100 to 200 ms. Here, that
    blocks a thread and not the event loop of a triggerer.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    async def send() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            settings = Settings("", base_url=f"http://127.0.0.1:{port}", verify=False)
            async with AsyncClient(settings, Trust(verify=False)) as client:
                await client.send(Request("GET", "/"), within=_WARM_UP_SECONDS)

    # If it fails, the first real request imports the modules.
    with suppress(OSError, RoughyError):
        asyncio.run(send())


def _status_class(reply: Reply) -> str:
    """Return the status of a reply for metrics: ``"429"``, or ``"2xx"`` for all that begin with a 2."""
    return "429" if reply.status == 429 else f"{min(reply.status // 100, 5)}xx"


def _build(
    http: httpx.Client | httpx.AsyncClient, settings: Settings, request: Request, deadline: Deadline
) -> httpx.Request:
    steps = dict.fromkeys(_TIMEOUTS, settings.timeout) if settings.timeout else {**_TIMEOUTS}
    if request.content is not None:
        steps["read"] = deadline.seconds
    key = {} if request.anonymous else {"Authorization": f"Bearer {settings.api_key}"}
    return http.build_request(
        request.method,
        settings.url(request.target),
        params=dict(request.params) or None,
        json=request.json,
        content=request.content,
        headers={**request.headers, **key},
        timeout=httpx.Timeout(**{name: deadline.cap(seconds) for name, seconds in steps.items()}),
    )


def _error_of(request: Request, host: str, err: httpx.HTTPError, deadline: Deadline) -> RoughyError:
    """Return the error to raise for one of httpx.

    :raises RoughyInterruptedError: If the task was killed, which shuts down its connections.
    """
    interrupt.check()
    if isinstance(err, httpx.UnsupportedProtocol):
        return RoughyConfigurationError(f"{request}: {err}")
    never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
    # h11 quotes the line that it cannot parse, which may be a header with a signed URL.
    message = re.sub(r"bytearray\(.*", "…", str(err), flags=re.DOTALL)
    what = type(err).__name__ + (f": {message}" if message else "")
    if isinstance(err, httpx.TimeoutException) and deadline.has_passed:
        what = str(deadline)
    return RoughyUnreachableError(f"{request}: no answer from {host}: {what}", sent=not isinstance(err, never_sent))


def _cause_of(err: httpx.HTTPError) -> httpx.HTTPError | None:
    """Return the cause that a traceback may show: not an error of h11, which quotes the reply."""
    return None if isinstance(err, httpx.ProtocolError) else err


def _host_of(settings: Settings) -> str:
    own = Address.of(settings.base_url)
    return own.host if own is not None else settings.base_url


def _sync_http(settings: Settings, trust: Trust, network: Network, *, host: str, **options: Any) -> httpx.Client:
    """Create an httpx client that keeps deadlines.

    :param settings: The connection.
    :param trust: The certificates to accept.
    :param network: Opens the connections.
    :param host: The host that requests are sent to.
    :param options: Options of httpx that replace the defaults.
    :raises RoughyConfigurationError: If the environment names a proxy that cannot be used.
    """
    with proxy_errors():
        mounts = proxy_mounts(settings, host, lambda proxy: Transport(trust, network, proxy))
        transport = Transport(trust, network)
        return httpx.Client(transport=transport, mounts=mounts, **{**_http_options(), **options})


def _async_http(settings: Settings, trust: Trust) -> httpx.AsyncClient:
    """Create an httpx client for an event loop.

    :param settings: The connection.
    :param trust: The certificates to accept.
    :raises RoughyConfigurationError: If the environment names a proxy that cannot be used.
    """
    with proxy_errors():
        mounts = proxy_mounts(
            settings, _host_of(settings), lambda proxy: httpx.AsyncHTTPTransport(verify=trust.context, proxy=proxy)
        )
        transport = httpx.AsyncHTTPTransport(verify=trust.context)
        return httpx.AsyncClient(transport=transport, mounts=mounts, **_http_options())


def _http_options() -> dict[str, Any]:
    return {
        "follow_redirects": False,
        # Only gzip, whose decompressed length can be limited.
        "headers": {"User-Agent": _user_agent(), "Accept": "application/json", "Accept-Encoding": "gzip"},
        # Credentials from .netrc would replace the key. proxies.py reads the proxies of the environment.
        "trust_env": False,
    }


@lru_cache(maxsize=1)
def _user_agent() -> str:
    versions = {
        "airflow-provider-roughy": __version__,
        "apache-airflow": AIRFLOW_VERSION,
        httpx.__name__: httpx.__version__,
        "python": platform.python_version(),
    }
    return " ".join(f"{name}/{version}" for name, version in versions.items())

"""The wire: settings, retries, and one sync and one async driver of a :class:`~airflow_provider_roughy.api.Call`.

This is the only module that imports httpx.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import random
import re
import ssl
import time
import zlib
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar

import httpcore
import httpx

from airflow_provider_roughy import __version__
from airflow_provider_roughy.api import Call, Reply, Request, decipher
from airflow_provider_roughy.compat import AIRFLOW_VERSION
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyConfigurationError,
    RoughyError,
    RoughyProtocolError,
    RoughyUnreachableError,
    RoughyUntrustedUrlError,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

T = TypeVar("T")

#: Roughy in production (page "Quickstart").
DEFAULT_BASE_URL = "https://api.roughy.ai"

#: Seconds. A write is one block of an upload, so 60 s tolerate a link of about 17 KiB/s.
_TIMEOUT = {"connect": 10.0, "read": 60.0, "write": 60.0, "pool": 60.0}
#: Seconds that a request may take in all, from connecting to the last byte of the reply.
_TOTAL = 60.0
#: Seconds that the reply to an upload's last byte may take, behind which Roughy may store the whole file.
_UPLOAD_REPLY = 300.0
#: Bytes that a reply may have, unpacked. The longest that Roughy sends, a page of a list, has some 200 KiB.
_LONGEST_REPLY = 8 * 1024 * 1024


@dataclass(frozen=True)
class Settings:
    """What a connection says.

    :param api_key: Sent as a bearer token, and only to hosts that :meth:`check_may_see_key` lets pass.
    :param base_url: Roughy's address, without a trailing slash.
    :param project_id: The project that new assets belong to unless the caller names one.
    :param timeout: Seconds that a request may take in all; of one that carries an upload's bytes, seconds that may pass
        without any of them moving, and seconds until it is answered. ``None`` for this package's own choice.
    :param verify: A path to a CA bundle; ``True`` for the usual one, ``False`` to trust anybody.
    :param allow_http: Whether plain http may leave this machine.
    """

    api_key: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    project_id: str | None = None
    timeout: float | None = None
    verify: bool | str = True
    allow_http: bool = False

    @classmethod
    def from_connection(
        cls,
        *,
        host: str | None,
        schema: str | None,
        port: int | None,
        password: str | None,
        extra: Mapping[str, Any],
    ) -> Settings:
        """Read an Airflow connection's fields, which are all text if it came from a URI.

        :raises RoughyConfigurationError: If one of them is unusable; the key is never shown.
        """
        key = (password or "").strip()
        if not key:
            raise RoughyConfigurationError("it has no API key: put the key (sk_…) into the password")
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise RoughyConfigurationError("the password is no API key: it has spaces or characters beyond ASCII")
        base_url = (host or DEFAULT_BASE_URL).strip()
        if "://" not in base_url:
            base_url = f"{schema or 'https'}://{base_url}"
        base_url = base_url.rstrip("/")
        if port:
            base_url = f"{base_url}:{port}"
        settings = cls(
            api_key=key,
            base_url=base_url,
            project_id=extra.get("project_id") or None,
            timeout=_seconds(extra.get("timeout")),
            verify=_verify(extra.get("verify")),
            allow_http=_flag("allow_http", extra.get("allow_http"), default=False),
        )
        settings._check_base_url()
        return settings

    def _check_base_url(self) -> None:
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL as err:
            raise RoughyConfigurationError(f"the host is no URL: {err}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise RoughyConfigurationError("the host must be an http or https URL")
        if url.userinfo or url.query or url.fragment:
            raise RoughyConfigurationError("the host must have neither user, query nor fragment")
        if url.scheme == "http" and not (self.allow_http or _is_loopback(url.host)):
            raise RoughyConfigurationError(
                f"the host {url.host} is plain http, where anybody on the way can read the API key; "
                "use https, or set allow_http in the extra"
            )

    def url(self, target: str) -> httpx.URL:
        """Return the absolute URL of a request's target.

        :raises RoughyUntrustedUrlError: If it must not see the key: only the connection's own origin, and https hosts
            under roughy.ai, may.
        """
        if target.startswith("/"):
            return httpx.URL(self.base_url + target)
        base = httpx.URL(self.base_url)
        try:
            url = httpx.URL(target)
        except httpx.InvalidURL as err:
            raise RoughyUntrustedUrlError(f"Roughy named a URL that is none: {err}") from None
        own = _origin(url) == _origin(base)
        roughy = url.scheme == "https" and (url.host == "roughy.ai" or url.host.endswith(".roughy.ai"))
        if not (own or roughy):
            raise RoughyUntrustedUrlError(
                f"Roughy named a URL on {url.scheme}://{url.host}, which is neither {base.host} nor https under "
                "roughy.ai; the API key was not sent there"
            )
        return url


class Backoff:
    """The one retry policy: which error is tried again, and after how many seconds.

    :param tries: How often a request is sent in all, counted anew after each :meth:`refill`.
    :param first: Seconds before the first repetition; they double from there, with jitter.
    :param longest: Seconds that a pause grows to.
    :param patience: Seconds of ``Retry-After`` that are waited; a longer one ends the tries, and the error carries it.
    """

    def __init__(self, *, tries: int = 5, first: float = 0.5, longest: float = 30.0, patience: float = 300.0) -> None:
        self.tries = tries
        self.first = first
        self.longest = longest
        self.patience = patience
        self._failed = 0

    def pause_after(self, error: RoughyError, *, idempotent: bool = True) -> float | None:
        """Return the seconds to wait before the next try, or ``None`` to give up.

        :param error: What went wrong.
        :param idempotent: Whether the request may be sent again although it may have been processed.
        """
        self._failed += 1
        if self._failed >= self.tries or not error.transient or not (idempotent or _was_not_processed(error)):
            return None
        wanted = error.retry_after if isinstance(error, RoughyApiError) else None
        if wanted is not None:
            return None if wanted > self.patience else wanted + random.uniform(0, self.first)
        ceiling = min(self.longest, self.first * 2 ** min(self._failed - 1, 30))
        return random.uniform(ceiling / 2, ceiling)

    def refill(self) -> None:
        """Count the tries anew, because the work moved on."""
        self._failed = 0


def _was_not_processed(error: RoughyError) -> bool:
    """Whether the request certainly did nothing: never sent, or turned away at the door."""
    if isinstance(error, RoughyUnreachableError):
        return not error.sent
    return isinstance(error, RoughyApiError) and (
        error.status == 429 or (error.status == 503 and error.retry_after is not None)
    )


@dataclass(frozen=True)
class _Pause:
    seconds: float


def _tries(call: Call[T], backoff: Backoff) -> Generator[Request | _Pause, Reply | None, T]:
    """Drive a call without doing I/O: yields what to send or how long to sleep, is sent the reply."""
    while True:
        try:
            reply = yield call.request
            if reply is None:
                raise TypeError("a request is answered with a reply")
            return decipher(call, reply)
        except RoughyError as error:
            pause = backoff.pause_after(error, idempotent=call.idempotent)
            if pause is None:
                raise
        yield _Pause(pause)


class Client:
    """Drives calls, one connection pool for all of them.

    :param settings: Where to, with which key.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._http = _bounded(httpx.Client(verify=_ssl_context(settings.verify), **_options()))

    def run(self, call: Call[T], *, backoff: Backoff | None = None) -> T:
        """Send a call, again where that is safe, and return its value.

        :param call: What to ask.
        :param backoff: Another retry policy than the default one.
        :raises RoughyError: What went wrong in the last try.
        """
        tries = _tries(call, backoff or Backoff())
        step = next(tries)
        try:
            while True:
                if isinstance(step, _Pause):
                    time.sleep(step.seconds)
                    step = next(tries)
                    continue
                try:
                    reply = self.send(step)
                except RoughyUnreachableError as error:
                    step = tries.throw(error)
                else:
                    step = tries.send(reply)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        finally:
            tries.close()

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
            with _sending_within(deadline):
                response = self._http.send(_build(self._http, self.settings, request, deadline), stream=True)
                with closing(response):
                    body = _Body(request, response)
                    for chunk in response.iter_raw():
                        body.add(chunk)
                    return body.reply()
        except httpx.HTTPError as err:
            raise _translate(request, self.settings, err, deadline) from err

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
    :param context: The TLS context to use.
    """

    def __init__(self, settings: Settings, context: ssl.SSLContext) -> None:
        self.settings = settings
        self._http = httpx.AsyncClient(verify=context, **_options())

    @classmethod
    async def open(cls, settings: Settings) -> AsyncClient:
        """Make a client; the CA bundle, some 20 to 40 ms of CPU, is read in a thread."""
        return cls(settings, await asyncio.to_thread(_ssl_context, settings.verify))

    async def run(self, call: Call[T], *, backoff: Backoff | None = None) -> T:
        """Send a call, again where that is safe, and return its value.

        :param call: What to ask.
        :param backoff: Another retry policy than the default one.
        :raises RoughyError: What went wrong in the last try.
        """
        tries = _tries(call, backoff or Backoff())
        step = next(tries)
        try:
            while True:
                if isinstance(step, _Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(tries)
                    continue
                try:
                    reply = await self.send(step)
                except RoughyUnreachableError as error:
                    step = tries.throw(error)
                else:
                    step = tries.send(reply)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        finally:
            tries.close()

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
            with _sending_within(deadline):
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
            raise _translate(request, self.settings, err, deadline) from err
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
def _sending_within(deadline: _Deadline) -> Iterator[None]:
    """Hold the deadline, and keep httpx from logging each URL, which may be an upload's, into the task's log."""
    token = _exchange.set(deadline)
    try:
        yield
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
        self._left = _LONGEST_REPLY
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
            raise RoughyProtocolError(f"{self._request}: the reply is longer than {_LONGEST_REPLY} bytes")
        self._parts.append(chunk)

    def reply(self) -> Reply:
        """Return the whole of it."""
        headers = {name.lower(): value for name, value in self._response.headers.items()}
        return Reply(self._response.status_code, headers, b"".join(self._parts))


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


def _translate(request: Request, settings: Settings, err: httpx.HTTPError, deadline: _Deadline) -> RoughyError:
    if isinstance(err, httpx.UnsupportedProtocol):
        return RoughyConfigurationError(f"{request}: {err}")
    never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
    what = type(err).__name__ + (f": {err}" if str(err) else "")
    if isinstance(err, httpx.TimeoutException) and deadline.is_over:
        what = str(deadline)
    host = httpx.URL(settings.base_url).host
    return RoughyUnreachableError(f"{request}: no answer from {host}: {what}", sent=not isinstance(err, never_sent))


def _options() -> dict[str, Any]:
    return {
        "follow_redirects": False,
        # Nothing but gzip, whose length can be bounded while it is unpacked.
        "headers": {"User-Agent": _user_agent(), "Accept": "application/json", "Accept-Encoding": "gzip"},
        # Proxies from the environment. httpx takes no credentials from .netrc, which would replace the key.
        "trust_env": True,
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


@lru_cache(maxsize=8)
def _ssl_context(verify: bool | str) -> ssl.SSLContext:
    """Make a TLS context once for all clients: it is safe to share, and reading the CA bundle is dear."""
    if isinstance(verify, str):
        try:
            if os.path.isdir(verify):
                return ssl.create_default_context(capath=verify)
            return ssl.create_default_context(cafile=verify)
        except (OSError, ssl.SSLError) as err:
            raise RoughyConfigurationError(f"verify in the extra is no CA bundle: {verify}: {err}") from err
    return httpx.create_ssl_context(verify=verify)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _seconds(value: Any) -> float | None:
    if value in (None, ""):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise RoughyConfigurationError(f"timeout in the extra must be a number of seconds above 0, not {value!r}")
    return seconds


def _flag(name: str, value: Any, *, default: bool) -> bool:
    if value in (None, ""):
        return default
    flag = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(str(value).lower())
    if flag is None:
        raise RoughyConfigurationError(f"{name} in the extra must be true or false, not {value!r}")
    return flag


def _verify(value: Any) -> bool | str:
    if isinstance(value, str) and os.path.sep in value:
        return value
    return _flag("verify", value, default=True)

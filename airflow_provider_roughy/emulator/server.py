"""The emulator as an object: a server in a thread, and the methods with which tests control it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn

from .app import build_api, build_storage
from .choices import Choices
from .control import Control
from .delivery import Deliverer
from .faults import Fault
from .gate import App, Gate, Receive, Request, Send
from .routes.storage import Links
from .steering import Steering, as_credits
from .store import Store

DEFAULT_KEY = "sk_emulator"

#: The keys that a client can send in a header unchanged.
_KEY = re.compile(r"sk_[!-~]{0,500}")

#: How long :meth:`Emulator.close` waits for requests under way after it has reset their connections.
CLOSE_SECONDS = 5.0


class Emulator(Steering):
    """An emulated Roughy on a real socket.

    Use it as a context manager, or call :meth:`start` and :meth:`close`. All methods may be called from any thread,
    and have counterparts over HTTP below ``/_emulator/``.

    :param port: TCP port; 0 takes a free one, which is kept over :meth:`close` and :meth:`start`.
    :param host: Address to listen on.
    :param data_dir: Folder of state and media, from which a later emulator resumes; by default a temporary folder that
        :meth:`close` removes.
    :param api_key: The API key, or several: each is a separate account, the first is the default.
    :param balance: Initial credits of every account.
    :param progression: How long Roughy processes an asset, a cut or a render: ``immediate``, ``seconds=2``,
        ``polls=3`` (so many GETs or list appearances still find it unfinished), or ``manual`` (until
        :meth:`settle`). If the work on the media takes longer, it finishes later.
    :param choices: The behaviour where Roughy's documentation is silent.
    :param faults: Rules in force from the start.
    :param on_request: Called with each request that has ended, from the server's thread.
    :param storage_port: TCP port of the object store that download URLs point to, as ``port``.
    :param webhook_secret: The signing secret of webhooks (``whsec_…``), or two separated by a space, as during a
        rotation; by default a generated one, which is kept as long as ``data_dir`` is. If it is given, it is
        also in :attr:`airflow_connection`.
    :param webhook_verify: Whether to check the certificates of webhook endpoints; or a file of authorities.
    """

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        data_dir: str | Path | None = None,
        api_key: str | Sequence[str] = DEFAULT_KEY,
        balance: int = 1000,
        progression: str = "seconds=2",
        choices: Choices = Choices(),  # noqa: B008 - frozen
        faults: Iterable[Fault] = (),
        on_request: Callable[[Request], None] | None = None,
        storage_port: int = 0,
        webhook_secret: str | None = None,
        webhook_verify: bool | str | Path = True,
    ) -> None:
        self.api_keys = (api_key,) if isinstance(api_key, str) or not isinstance(api_key, Iterable) else tuple(api_key)
        if not self.api_keys or not all(isinstance(key, str) and _KEY.fullmatch(key) for key in self.api_keys):
            raise ValueError(
                "an API key starts with sk_, and the rest is letters, digits and other ASCII, without spaces"
            )
        if len(set(self.api_keys)) < len(self.api_keys):
            raise ValueError("each API key is an account of its own: one is there twice")
        for name, value in (("port", port), ("storage_port", storage_port)):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
                raise ValueError(f"{name} must be a whole number from 0 to 65535, not {value!r}")
        if not isinstance(host, str) or not host or "\0" in host:
            raise ValueError(f"host must be a name or an IP address, not {host!r}")
        if on_request is not None and not callable(on_request):
            raise ValueError(f"on_request must be a function, not {on_request!r}")
        if not isinstance(faults, Iterable):
            raise ValueError(f"faults must be a list of Fault, such as [Fault(status=503)], not {faults!r}")
        if not isinstance(webhook_verify, bool) and not (
            isinstance(webhook_verify, (str, Path)) and Path(webhook_verify).is_file()
        ):
            raise ValueError(f"webhook_verify must be true, false or a file of authorities, not {webhook_verify!r}")
        super().__init__(
            choices=choices,
            progression=progression,
            faults=faults,
            on_request=on_request,
            webhook_secret=webhook_secret,
        )
        self.api_key = self.api_keys[0]
        self._host = host
        self._port = port
        self._storage_port = storage_port
        self._data_dir = None if data_dir is None else Path(data_dir)
        self._start_balance = as_credits(balance)
        self._webhook_verify = webhook_verify
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._server: _Server | None = None

    def __enter__(self) -> Emulator:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def start(self) -> None:
        """Start to listen; return once requests are served."""
        if self._server is not None:
            raise RuntimeError("the emulator is running")
        listeners: list[socket.socket] = []
        try:
            for port in (self._port, self._storage_port):
                listeners.append(_listen(self._host, port))
            self._port, self._storage_port = (listener.getsockname()[1] for listener in listeners)
            folder = self._data_dir
            if folder is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="roughy-emulator-", ignore_cleanup_errors=True)
                folder = Path(self._temporary.name)
            self._open_store = Store(
                folder,
                accounts=len(self.api_keys),
                balance=self._start_balance,
                progression=self._start_progression,
                choices=self.choices,
            )
            self._deliverer = Deliverer(self._open_store, self.webhook_secret, self._webhook_verify)
            keys = {key: number for number, key in enumerate(self.api_keys, start=1)}
            links = Links(self._open_store, self._storage_port)
            api = build_api(self._open_store, keys, links, Control(self).routes())
            app = _by_port({self._port: api, self._storage_port: build_storage(self._open_store, links)})
            self._server = _Server(Gate(app, self._faults, self._log), listeners)
            self._server.start()
        except BaseException:
            for listener in listeners:
                listener.close()
            self.close()
            raise

    def close(self) -> None:
        """Reset all connections, stop listening, and remove the temporary folder if there is one."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._deliverer is not None:
            self._deliverer.close()
            self._deliverer = None
        if self._open_store is not None:
            self._open_store.close()
            self._open_store = None
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    @property
    def url(self) -> str:
        """Scheme and authority, without a trailing slash.

        :raises RuntimeError: Before the first start, if the port is a free one.
        """
        return self._at(self._port)

    @property
    def storage_url(self) -> str:
        """Scheme and authority of the object store that download URLs point to."""
        return self._at(self._storage_port)

    def _at(self, port: int) -> str:
        if not port:
            raise RuntimeError("the emulator is not running: it has an address once it was started")
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{port}"

    @property
    def airflow_connection(self) -> dict[str, Any]:
        """The value, as JSON, for ``AIRFLOW_CONN_ROUGHY_DEFAULT``."""
        extra: dict[str, Any] = {"project_id": self.project_id}
        if not self.is_loopback:
            # Elsewhere, the provider sends no key over plain http.
            extra["allow_http"] = True
        if self._webhook_secret is not None:
            extra["webhook_secret"] = self._webhook_secret
        return {"conn_type": "roughy", "host": self.url, "password": self.api_key, "extra": extra}

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect to it."""
        try:
            return ipaddress.ip_address(self._host).is_loopback
        except ValueError:
            return self._host == "localhost"

    @property
    def state(self) -> dict[str, Any]:
        """Settings, clock, credits and faults at one moment; without the key."""
        return {"url": self.url, "storage_url": self.storage_url, **super().state}


def _by_port(apps: dict[int, App]) -> App:
    """Return an application that dispatches by the port of a request."""

    async def choose(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await apps[scope["server"][1]](scope, receive, send)

    return choose


class _Uvicorn(uvicorn.Server):
    """uvicorn with an event that is set once it listens."""

    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and set the event."""
        await super().startup(sockets=sockets)
        self._ready.set()


class _Server:
    """uvicorn on listening sockets, in a thread with its own event loop."""

    def __init__(self, gate: Gate, listeners: list[socket.socket]) -> None:
        self._gate = gate
        self._listeners = listeners
        # h11 and asyncio, whatever else is installed: gate._Connection is tested with these.
        config = uvicorn.Config(
            gate,
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=60,
        )
        self._ready = threading.Event()
        self._uvicorn = _Uvicorn(config, self._ready)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="roughy-emulator", daemon=True)

    def start(self) -> None:
        """Start the thread and wait until the socket is served."""
        # uvicorn logs each start and stop at INFO, which does not help in tests.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        # It would log signed queries.
        logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Reset all connections and end the thread."""
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        serving = asyncio.ensure_future(self._uvicorn.serve(sockets=self._listeners))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        # uvicorn's own shutdown waits for clients and polls every 0.1 s, which adds up in tests that stop many servers.
        self._gate.closing.set()
        for server in self._uvicorn.servers:
            server.close()
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()
        if tasks := list(self._uvicorn.server_state.tasks):
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        serving.cancel()
        await asyncio.wait((serving,))
        for listener in self._listeners:
            listener.close()


def _listen(host: str, port: int) -> socket.socket:
    # Without an explicit protocol (as in socket.create_server), asyncio would not set TCP_NODELAY on accepted
    # connections, and every reply would wait 40 ms for a delayed acknowledgement.
    listener = socket.socket(_family(host), socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            # On Windows, it would let two servers share a port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror}: {host} port {port}") from None
    return listener


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET

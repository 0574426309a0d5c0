"""The emulator as an object: a server in a thread, and everything a test steers it by."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn

from .app import build
from .choices import Choices
from .control import Control
from .faults import Fault, FaultBook
from .gate import Gate, Request, RequestLog
from .store import Asset, Progression, Store, well_known_id
from .wire import timestamp

DEFAULT_KEY = "sk_emulator"

#: How long :meth:`Emulator.close` waits for requests under way after it has cut their connections.
CLOSE_SECONDS = 5.0


class Emulator:
    """A Roughy of one's own, on a real socket.

    Use it as a context manager, or call :meth:`start` and :meth:`close`. Everything here may be called from any
    thread, and the same can be done over HTTP below ``/_emulator/``.

    :param port: TCP port; 0 takes a free one, which is kept over :meth:`close` and :meth:`start`.
    :param host: address to listen on.
    :param data_dir: where state and bytes live, to be taken up again later; by default a temporary folder that is
        removed by :meth:`close`.
    :param api_key: the API key, or several: each is an account of its own, the first is the default.
    :param balance: credits that every account starts with.
    :param progression: how long ``processing`` lasts: ``immediate``, ``seconds=2``, ``polls=3`` (so many GETs or
        list appearances still find it processing), or ``manual`` (until :meth:`settle`).
    :param choices: answers where Roughy's documentation is silent.
    :param faults: rules in force from the start.
    :param on_request: called with each request that is over, from the server's thread.
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
    ) -> None:
        self.api_keys = (api_key,) if isinstance(api_key, str) else tuple(api_key)
        if not self.api_keys or not all(key.startswith("sk_") for key in self.api_keys):
            raise ValueError("an API key starts with sk_")
        Progression.parse(progression)
        self.api_key = self.api_keys[0]
        self.project_id = well_known_id(1)
        self.choices = choices
        self._host = host
        self._port = port
        self._data_dir = None if data_dir is None else Path(data_dir)
        self._start_balance = balance
        self._start_progression = progression
        self._start_faults = tuple(faults)
        self._faults = FaultBook()
        self._log = RequestLog(on_request)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._server: _Server | None = None
        self._open_store: Store | None = None
        for fault in self._start_faults:
            self._faults.inject(fault)

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
        """Listen; returns when requests are answered."""
        if self._server is not None:
            raise RuntimeError("the emulator is running")
        listener = _listen(self._host, self._port)
        try:
            self._port = listener.getsockname()[1]
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
            keys = {key: number for number, key in enumerate(self.api_keys, start=1)}
            app = build(self._open_store, keys, Control(self).routes())
            self._server = _Server(Gate(app, self._faults, self._log), listener)
            self._server.start()
        except BaseException:
            listener.close()
            self.close()
            raise

    def close(self) -> None:
        """Cut all connections, stop listening, and remove the temporary folder if there is one."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._open_store is not None:
            self._open_store.close()
            self._open_store = None
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    @property
    def url(self) -> str:
        """Scheme and authority, without a slash at the end."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    @property
    def airflow_connection(self) -> dict[str, Any]:
        """What to put, as JSON, into ``AIRFLOW_CONN_ROUGHY_DEFAULT``."""
        extra = {"project_id": self.project_id}
        return {"conn_type": "roughy", "host": self.url, "password": self.api_key, "extra": extra}

    @property
    def requests(self) -> list[Request]:
        """The requests so far, oldest first, without those of ``/_emulator/``; the last 50,000 are kept."""
        return self._log.requests

    def clear_requests(self) -> None:
        """Forget the requests so far."""
        self._log.clear()

    def inject(self, fault: Fault) -> None:
        """Put a fault in force."""
        self._faults.inject(fault)

    def clear_faults(self) -> None:
        """Forget all faults."""
        self._faults.clear()

    @property
    def balance(self) -> int:
        """Credits of the default account; setting it writes an ``adjustment`` entry and activates nothing."""
        self._store.look()
        return self._store.balance(1)

    @balance.setter
    def balance(self, balance: int) -> None:
        self._store.adjust(_whole(balance, "balance"))

    def top_up(self, credits: int) -> None:
        """Add credits to the default account; unpaid assets become ready, oldest first.

        :param credits: how many.
        """
        self._store.look()
        self._store.top_up(_whole(credits, "credits"))

    def advance(self, seconds: float) -> None:
        """Move the emulator's clock on, and let happen what is due by then.

        :param seconds: how far.
        """
        self._store.advance(seconds)

    @property
    def progression(self) -> str:
        """How long ``processing`` lasts; setting it concerns assets that are processing, too."""
        return str(self._store.progression)

    @progression.setter
    def progression(self, progression: str) -> None:
        self._store.set_progression(progression)

    def settle(self, asset_id: str | None = None) -> list[str]:
        """Let processing assets finish now, whatever the progression.

        :param asset_id: one of them, or ``None`` for all.
        :returns: the ids that were processing.
        """
        return self._store.settle(asset_id)

    @property
    def assets(self) -> list[dict[str, Any]]:
        """Every asset of every account, oldest first, as :meth:`asset` returns it."""
        self._store.look()
        return [self._facts(asset) for asset in self._store.all_assets()]

    def asset(self, asset_id: str) -> dict[str, Any]:
        """Return what the emulator knows of an asset, the API's fields and more; does not count as a poll.

        ``size_bytes`` is what was declared; ``stored_bytes`` and ``sha256`` are of the bytes on disk; ``states``
        is the history: pairs of state and time.

        :raises KeyError: when there is no such asset.
        """
        self._store.look()
        return self._facts(self._store.known(asset_id))

    def _facts(self, asset: Asset) -> dict[str, Any]:
        facts = dataclasses.asdict(asset)
        for name in ("processing_at", "unpaid_at", "created_at"):
            facts[name] = None if facts[name] is None else timestamp(facts[name])
        path = self._store.path(asset.id)
        return facts | {
            "stored_bytes": path.stat().st_size if path.exists() else 0,
            "sha256": self._store.sha256(asset.id),
            "states": self._store.states(asset.id),
        }

    def seed_asset(self, state: str = "ready", **fields: Any) -> str:
        """Put a new asset straight into a state: no upload, no charge.

        :param state: any word; the API's own states get the fields that belong to them.
        :param fields: ``content`` (bytes to store), ``account`` (number, default 1), ``project_id``,
            ``size_bytes``, ``language``, ``type``, ``extension``, ``content_type``, ``duration_seconds``,
            ``error_code``, ``error_message``.
        :returns: its id.
        """
        return self._store.seed(state, **fields).id

    def set_state(self, asset_id: str, state: str, **fields: Any) -> None:
        """Put an asset into a state by decree: nothing is charged.

        :param state: any word, also one that the API does not know.
        :param fields: as of :meth:`seed_asset`, those that describe the media or the error.
        :raises KeyError: when there is no such asset.
        """
        self._store.set_state(asset_id, state, **fields)

    @property
    def state(self) -> dict[str, Any]:
        """Settings, clock, credits and faults in one look; without the key."""
        return {
            "url": self.url,
            "project_id": self.project_id,
            "now": timestamp(self._store.now()),
            "progression": self.progression,
            "balance": self.balance,
            "faults": self._faults.describe(),
            "requests": len(self.requests),
            "choices": dataclasses.asdict(self.choices),
        }

    def reset(self) -> None:
        """Go back to the start: only the first project, balance, clock, progression and faults as given."""
        self._store.reset(progression=self._start_progression)
        self._faults.clear()
        for fault in self._start_faults:
            self._faults.inject(fault)
        self._log.clear()

    @property
    def _store(self) -> Store:
        if self._open_store is None:
            raise RuntimeError("the emulator is not running")
        return self._open_store


class _Uvicorn(uvicorn.Server):
    """uvicorn that tells when it listens."""

    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets=sockets)
        self._ready.set()


class _Server:
    """uvicorn on a listening socket, in a thread with a loop of its own."""

    def __init__(self, gate: Gate, listener: socket.socket) -> None:
        self._gate = gate
        self._listener = listener
        # h11 and asyncio whatever else is installed: gate._Connection is tested with these.
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
        # uvicorn tells of each start and stop at INFO, which is of no use to who runs tests.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Cut all connections and end the thread."""
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
        serving = asyncio.ensure_future(self._uvicorn.serve(sockets=[self._listener]))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        # uvicorn's own shutdown waits for clients and ticks in tenths of a second; tests stop hundreds of servers.
        self._gate.closing.set()
        for server in self._uvicorn.servers:
            server.close()
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()
        if tasks := list(self._uvicorn.server_state.tasks):
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        serving.cancel()
        await asyncio.wait((serving,))
        self._listener.close()


def _listen(host: str, port: int) -> socket.socket:
    # With the protocol left out (as socket.create_server does) asyncio would not set TCP_NODELAY on what it
    # accepts, and every reply would wait 40 ms for a delayed acknowledgement.
    listener = socket.socket(_family(host), socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            # Elsewhere it would let two servers share a port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _whole(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number")
    return value

"""Triggers that watch for assets, run in an event loop like a triggerer's."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.events import taken_key
from airflow_provider_roughy.ledger import Entry, Ledger
from airflow_provider_roughy.triggers import RoughyAssetsReadyTrigger

#: Seconds between two looks.
INTERVAL = 0.1


def take(ledger: Path, *ids: str, state: str = "ready") -> None:
    """Take assets as a consumer does."""
    Ledger(ledger).take(
        [Entry(taken_key(id, state), source=id, identity={}, owner="run", state="taken", asset_id=id) for id in ids]
    )


class Watching:
    """A trigger that runs in this event loop, as in a triggerer.

    :param trigger: The trigger.
    """

    def __init__(self, trigger: RoughyAssetsReadyTrigger) -> None:
        self.events: list[dict[str, list[str]]] = []
        # Where caplog hears it: Airflow 3.3 gives a trigger a log of structlog.
        trigger._log = logging.getLogger("watcher")  # type: ignore[assignment]
        self._trigger = trigger
        self._changed = asyncio.Event()
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        async for event in self._trigger.run():
            self.events.append(json.loads(json.dumps(event.payload)))
            self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            waiting = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait([waiting, self.task], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            assert not self.task.done(), f"the trigger has ended: {self.task}"

    async def told(self, *ids: str, state: str = "ready") -> None:
        """Wait until an event tells of assets, all in one."""
        await self.until(lambda: not ids or any(set(ids) <= set(event.get(state, ())) for event in self.events))

    def all(self, state: str = "ready") -> set[str]:
        return {id for event in self.events for id in event.get(state, ())}

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@asynccontextmanager
async def watch(ledger: Path, **options: Any) -> AsyncIterator[Watching]:
    watching = Watching(RoughyAssetsReadyTrigger(ledger=ledger, **{"poll_interval": INTERVAL, **options}))
    try:
        yield watching
    finally:
        await watching.stop()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the emulator's loop is another
        await asyncio.sleep(0.01)


async def begun(ledger: Path, count: int = 1) -> None:
    """Wait until so many watchers have begun, and what had ended before is old."""
    await until(lambda: len(list(ledger.glob("note-*.json"))) >= count)


async def rounds(roughy: Emulator, count: int = 1) -> None:
    """Wait until so many whole rounds have been taken from now on."""
    before = len(asked_for(roughy, "ready"))
    # One may be under way, and the next one is over when another begins.
    await until(lambda: len(asked_for(roughy, "ready")) >= before + count + 2)


def asked_for(roughy: Emulator, state: str) -> list[Any]:
    return [request for request in roughy.requests if f"state={state}" in request.query]


@contextmanager
def rewritten(
    roughy: Emulator, rewrite: Callable[[str, dict[str, Any]], None], *, date: str | None = None
) -> Iterator[str]:
    """Serve an emulator's API with other replies, and tell its URL.

    :param rewrite: Changes the JSON of a reply, by the target of the request.
    :param date: The header ``Date`` of each reply, instead of the time.
    """

    class Relay(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {"Authorization": self.headers["Authorization"]}
            reply = httpx.get(f"{roughy.url}{self.path}", headers=headers, trust_env=False)
            body = reply.json()
            rewrite(self.path, body)
            content = json.dumps(body).encode()
            self.send_response(reply.status_code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return date or super().date_time_string()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""Time that jumps: hours of waiting take milliseconds, and no verdict depends on how busy the machine is.

What is replaced is the network and the clock; all of the package is real. The network is replaced below httpx, at its
transport, since a real socket knows nothing of another time.
"""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qs

import httpx
import pytest

from airflow_provider_roughy.http import client

T = TypeVar("T")

#: Seconds since the epoch at which each test begins.
EPOCH = 1_800_000_000.0


class _Selector(selectors.DefaultSelector):
    """Instead of waiting, lets the time pass; waits in earnest for threads only."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> Any:
        if self.threads:
            return super().select(timeout if timeout == 0 else 10)
        events = super().select(0)
        if not events and timeout is None:
            raise AssertionError("nothing is left that could ever happen")
        if not events and timeout:
            self.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on a clock of its own, which starts at 0."""

    def __init__(self) -> None:
        self.clock = _Selector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self.clock.threads += 1
        future.add_done_callback(lambda _: setattr(self.clock, "threads", self.clock.threads - 1))
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        self.clock.threads += 1
        await super().shutdown_default_executor(*args)
        self.clock.threads -= 1


@dataclass(frozen=True)
class Asked:
    """A request that arrived.

    :param at: When, in seconds since the start.
    :param path: Its path; ``list`` for a list of assets.
    :param host: Where it was sent to.
    :param key: The API key that came with it.
    """

    at: float
    path: str
    host: str
    key: str


#: Answers a request, or passes (``None``). May sleep, and may raise httpx's errors.
Rule = Callable[[Asked, httpx.Request], Awaitable[httpx.Response | None]]


@dataclass
class Roughy:
    """An API in the event loop: resources that change their state at known times, and rules that come first.

    :param states: By resource, pairs of a time in seconds and the state from then on.
    :param rules: Asked in turn.
    """

    loop: VirtualLoop = field(default_factory=VirtualLoop)
    states: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def add(self, count: int, *changes: tuple[float, str], first: str = "processing") -> list[str]:
        """Add resources that are processing, or in another state at first, and change as told."""
        ids = [f"019de7f7-3a52-74d1-9eeb-{len(self.states) + number:012x}" for number in range(count)]
        self.states |= {id: [(0.0, first), *changes] for id in ids}
        return ids

    def state(self, id: str, *, at: float | None = None) -> str:
        now = self.loop.time() if at is None else at
        return [state for since, state in self.states[id] if since <= now][-1]

    async def handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/v1/").partition("/")[2] or "list"
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        asked = Asked(self.loop.time(), path, request.url.host, key)
        self.asked.append(asked)
        await asyncio.sleep(0.002)
        for rule in self.rules:
            if (response := await rule(asked, request)) is not None:
                return response
        if path != "list":
            return reply(self.item(path) | {"download_url": None, "cuttable": None})
        query = {name: values[0] for name, values in parse_qs(request.url.query.decode()).items()}
        found = [id for id in self.states if self.state(id) == query.get("state", self.state(id))]
        start, end = int(query["offset"]), int(query["offset"]) + int(query["limit"])
        items = [self.item(id) for id in found[start:end]]
        return reply({"items": items, "total": len(found), "limit": int(query["limit"]), "offset": start})

    def item(self, id: str, *, at: float | None = None) -> dict[str, Any]:
        return asset(id, self.state(id, at=at))

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run to the end, in virtual time."""
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            return runner.run(main)


def asset(id: str, state: str) -> dict[str, Any]:
    """Make an asset as a list shows it, with what else a cut and a render have."""
    empty = ("type", "extension", "size_bytes", "content_type", "duration_seconds", "language", "upload_url")
    known: dict[str, Any] = {"id": id, "project_id": id, "state": state, "created_at": "2026-05-02T08:54:52Z"}
    known |= {"asset_id": id, "output": {}}
    return known | dict.fromkeys((*empty, "error_code", "error_message"))


class Trickling(httpx.AsyncByteStream):
    """A body of which a byte comes now and then, for days."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(10_000):
            await asyncio.sleep(10)
            yield b" "


def reply(body: Any, status: int = 200, **headers: str) -> httpx.Response:
    """Make a response, as it comes off the wire."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(
        status, headers={"content-type": "application/json", **named}, stream=httpx.ByteStream(content)
    )


def error(status: int, code: str, **headers: str) -> httpx.Response:
    """Make an error of Roughy's."""
    return reply({"error": {"code": code, "message": "As the test wants it."}}, status, **headers)


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> Iterator[Roughy]:
    """A Roughy in virtual time, to which the connection ``roughy_default`` leads."""
    # Once a process, over a real socket.
    client._warm_up()
    roughy = Roughy()

    class Clock:
        """What the package reads of the module ``time``."""

        time = staticmethod(lambda: EPOCH + roughy.loop.time())
        monotonic = staticmethod(lambda: roughy.loop.time())

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        return await roughy.handle(request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
    for module in ("poller", "shared", "wait"):
        monkeypatch.setattr(f"airflow_provider_roughy.polling.{module}.time", Clock)
    connection = {"conn_type": "roughy", "host": "https://api.roughy.ai", "password": "sk_old"}
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(connection))
    yield roughy
    roughy.loop.close()

"""Waiters in one event loop, in a new process, which prints their cost as JSON.

Usage: ``python -m benchmarks.waiters WAY INTERVAL ROUNDS``: one of :data:`WAYS`, the seconds between two polls of a
waiter, and for how many intervals to measure all of them while they wait. The first line of standard input is a list of
asset ids: one that is ready, and those to wait for. The process prints a line after the measurement, after which the
assets may settle, and another one after the last event.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from importlib import import_module
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from benchmarks.measure import memory, percentile
from benchmarks.processes import end_with_parent

#: A module that a triggerer has imported: garbage collection goes through all of it.
_TRIGGERER = "airflow.jobs.triggerer_job_runner"
#: Intervals until all have polled once and their polls are spread.
_SETTLING = 1.2
#: Seconds between two measurements of the event loop's lag.
_TICK = 0.005
#: The maximum number of seconds from the measurement to the last event.
_TIMEOUT = 240.0
#: The states in which the peers continue to wait.
_WAITING = ("pending_upload", "processing")

#: Creates the trigger of an asset.
Factory = Callable[[str], BaseTrigger]


def ours(interval: float) -> Factory:
    """Wait with this package's trigger."""
    from airflow_provider_roughy.triggers import RoughyAssetTrigger

    deadline = time.time() + 24 * 3600
    return lambda asset_id: RoughyAssetTrigger(asset_id=asset_id, deadline=deadline, poll_interval=interval)


def cuts(interval: float) -> Factory:
    """Wait for cuts with this package's trigger."""
    from airflow_provider_roughy.triggers import RoughyTrigger

    deadline = time.time() + 24 * 3600
    return lambda cut_id: RoughyTrigger(kind="cut", id=cut_id, deadline=deadline, poll_interval=interval)


def naive(interval: float) -> Factory:
    """Wait with one ``GET`` per waiter and round, as efficiently as possible.

    All share one client and its connections, with at most 8 concurrent requests. Polls are spread over the interval
    from the start on, a failed poll does not end the wait, and only the state is parsed.
    """
    import httpx
    from airflow.sdk import BaseHook

    connection = BaseHook.get_connection("roughy_default")
    headers = {"Authorization": f"Bearer {connection.password}"}
    client = httpx.AsyncClient(base_url=str(connection.host), headers=headers)
    turn = asyncio.Semaphore(8)

    class Trigger(BaseTrigger):
        def __init__(self, asset_id: str) -> None:
            super().__init__()
            self.asset_id = asset_id

        def serialize(self) -> tuple[str, dict[str, Any]]:
            return "Trigger", {"asset_id": self.asset_id}

        async def run(self) -> AsyncIterator[TriggerEvent]:
            # Its sensor has just polled.
            await asyncio.sleep(random.uniform(0, interval))
            while True:
                try:
                    async with turn:
                        reply = await client.get(f"/v1/assets/{self.asset_id}")
                    state = reply.raise_for_status().json()["state"]
                except httpx.HTTPError as error:
                    self.log.warning("Asset %s: %s", self.asset_id, error)
                else:
                    if state not in _WAITING:
                        yield TriggerEvent({"state": state})
                        return
                await asyncio.sleep(interval * random.uniform(0.9, 1.1))

    return Trigger


def http_provider(interval: float) -> Factory:
    """Wait with the http provider's ``HttpSensorTrigger``.

    It has no response check (``HttpSensor`` does not defer if it has one): it waits while the reply is a 404, and its
    event is any other reply. So its hook gets the missing check, and raises 404 for an asset that is not done.
    """
    from aiohttp import ClientResponse
    from airflow.providers.http.hooks.http import HttpAsyncHook
    from airflow.providers.http.triggers.http import HttpSensorTrigger
    from airflow.sdk.exceptions import AirflowException

    class Hook(HttpAsyncHook):
        async def run(self, *args: Any, **kwargs: Any) -> ClientResponse:
            reply = await super().run(*args, **kwargs)
            if (await reply.json())["state"] in _WAITING:
                raise AirflowException("404: not yet")
            return reply

    class Trigger(HttpSensorTrigger):
        def _get_async_hook(self) -> HttpAsyncHook:
            return Hook(method=self.method, http_conn_id=self.http_conn_id)

    return lambda asset_id: Trigger(endpoint=f"v1/assets/{asset_id}", poke_interval=interval)


WAYS = {"ours": ours, "cuts": cuts, "naive": naive, "http": http_provider}


class _Ticker:
    """Measures continually how late the event loop is, and how much of that this process was working.

    The rest is the machine's: another process had the processor.
    """

    def __init__(self) -> None:
        # Not lists, which would be part of the measured memory.
        self.lags = array("d")
        self.own = array("d")
        self._task: asyncio.Task[None] | None = None

    @property
    def found(self) -> dict[str, array[float]]:
        """All measured seconds, by kind."""
        return {"lag": self.lags, "own": self.own}

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, cpu = loop.time() + _TICK, time.process_time()
            await asyncio.sleep(_TICK)
            self.lags.append(loop.time() - due)
            self.own.append(min(self.lags[-1], time.process_time() - cpu))


async def _measure(make: Factory, ids: Sequence[str], *, interval: float, rounds: float) -> None:
    """Wait for all, as a triggerer does, and print the cost."""
    events: dict[str, float] = {}

    async def follow(asset_id: str) -> None:
        async for _ in make(asset_id).run():
            events[asset_id] = time.time()

    ticker = _Ticker()
    # The first trigger of a process pays for shared objects: in lag, but not in memory per waiter.
    async with ticker:
        await follow(ids[0])
    del events[ids[0]]
    gc.collect()
    resident = memory("VmRSS")
    async with ticker:
        tasks = []
        for asset_id in ids[1:]:
            await asyncio.sleep(0)
            tasks.append(asyncio.create_task(follow(asset_id)))
        await asyncio.sleep(_SETTLING * interval)
    # Without the ticker, which uses as much processor time as many waiters.
    begin, cpu = time.time(), time.process_time()
    await asyncio.sleep(rounds * interval)
    spent = time.process_time() - cpu
    async with ticker:
        _tell(begin=begin, end=time.time(), cpu=spent, growth=memory("VmRSS") - resident, early=len(events))
        await asyncio.wait(tasks, timeout=_TIMEOUT)
    _tell(events=events, **{name: [percentile(lags, 99), max(lags)] for name, lags in ticker.found.items()})


def _tell(**values: object) -> None:
    print(json.dumps(values), flush=True)


async def _main(ids: Sequence[str], way: str, interval: str, rounds: str) -> None:
    await _measure(WAYS[way](float(interval)), ids, interval=float(interval), rounds=float(rounds))


if __name__ == "__main__":
    import_module(_TRIGGERER)
    from airflow.sdk.log import configure_logging

    wanted = json.loads(sys.stdin.readline())
    end_with_parent()
    with open(os.devnull, "wb", buffering=0) as nowhere:
        # As in a triggerer, which sends its logs as JSON to its supervisor.
        configure_logging(json_output=True, output=nowhere, sending_to_supervisor=True)
        asyncio.run(_main(wanted, *sys.argv[1:]))

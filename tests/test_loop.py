"""The triggerer's event loop is never blocked for long: its callbacks are counted rather than timed."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import ASSET, Outcome
from airflow_provider_roughy.polling import ResourcePoller, SharedPoll, shared, wait_for_batch, wait_until_final
from airflow_provider_roughy.triggers import RoughyAssetTrigger
from tests.virtual import EPOCH, Roughy, virtual

__all__ = ["virtual"]

#: The first wait of a process. It prints what was imported, and which TLS contexts were filled, in the loop's thread.
FIRST = """
import asyncio, gc, json, ssl, sys, threading, time
from importlib import import_module

if "triggerer" in sys.argv:
    import_module("airflow.jobs.triggerer_job_runner")
from airflow_provider_roughy.triggers import RoughyAssetTrigger

loop_thread, imported, contexts = threading.get_ident(), [], []
frozen = gc.get_freeze_count()

def heard(event, args):
    if event == "import" and threading.get_ident() == loop_thread:
        imported.append(args[0])

fill = ssl.SSLContext.load_verify_locations

def counted(context, *args, **kwargs):
    contexts.append(threading.get_ident() == loop_thread)
    return fill(context, *args, **kwargs)

ssl.SSLContext.load_verify_locations = counted

async def wait():
    trigger = RoughyAssetTrigger(asset_id=sys.argv[1], deadline=time.time() + 60, poll_interval=0.1)
    sys.addaudithook(heard)
    async for event in trigger.run():
        return event.payload["status"]

status = asyncio.run(wait())
print(json.dumps([status, imported, contexts, gc.get_freeze_count() - frozen]))
"""


def first_wait(asset_id: str, *arguments: str) -> list[Any]:
    command = [sys.executable, "-c", FIRST, asset_id, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=dict(os.environ))
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("process", ["triggerer", "worker"])
def test_the_first_wait_imports_nothing_and_makes_no_tls_context_on_the_loop(
    roughy: Emulator, hook: RoughyHook, recordings: dict[str, Path], patient: None, process: str
) -> None:
    asset = hook.create_asset(None, recordings["audio"].stat().st_size)
    hook.upload(asset, recordings["audio"])
    status, imported, contexts, frozen = first_wait(asset.id, process)
    assert status == Outcome.SUCCEEDED
    # What Airflow itself needs to read a connection is Airflow's. Beside Airflow 2, httpcore imports sniffio, which is
    # small.
    ours = [name for name in imported if name.split(".")[0] in ("anyio", "h11", "httpcore", "httpx", "ssl")]
    assert ours == []
    assert set(contexts) == {False}
    assert (frozen > 0) == (process == "triggerer"), "what a triggerer has imported, and of no other process"


class Turns(logging.Logger):
    """Counts what is logged in each turn of a loop.

    :param roughy: Whose loop.
    """

    def __init__(self, roughy: Roughy) -> None:
        super().__init__("turns")
        self.turn = 0
        self.counts: Counter[int] = Counter()
        select = roughy.loop.clock.select

        def next_turn(timeout: float | None = None) -> Any:
            self.turn += 1
            return select(timeout)

        roughy.loop.clock.select = next_turn  # type: ignore[method-assign]

    def count(self, *args: Any, **kwargs: Any) -> None:
        self.counts[self.turn] += 1

    info = warning = count


@pytest.fixture
def turns(virtual: Roughy) -> Turns:
    return Turns(virtual)


@pytest.mark.once
def test_a_thousand_waiters_that_settle_at_once_are_answered_some_at_a_time(virtual: Roughy, turns: Turns) -> None:
    ids = virtual.add(1000, (100.0, "ready"))

    async def wait(id: str) -> Outcome:
        poller = ResourcePoller(ASSET, id, log=turns)
        return (await wait_until_final(RoughyHook(), poller, poll_interval=30, deadline=EPOCH + 600)).outcome

    async def wait_for_all() -> set[Outcome]:
        return set(await asyncio.gather(*(wait(id) for id in ids)))

    assert virtual.run(wait_for_all()) == {Outcome.SUCCEEDED}
    assert sum(turns.counts.values()) == 2000
    assert max(turns.counts.values()) <= 2 * shared._MAX_ANSWERS_A_TURN


def test_waiters_that_share_a_connection_lookup_continue_some_at_a_time(
    virtual: Roughy, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = virtual.add(1000, (0.0, "ready"), first="ready")
    wait_in_poll, looked_up = SharedPoll.wait, []

    async def counted(poll: Any, *args: Any, **kwargs: Any) -> Any:
        turns.count()
        return await wait_in_poll(poll, *args, **kwargs)

    async def slow(conn_id: str, hook: Any = RoughyHook.aget_settings) -> Any:
        looked_up.append(1)
        await asyncio.sleep(5)
        return await hook(conn_id)

    monkeypatch.setattr(SharedPoll, "wait", counted)
    monkeypatch.setattr(RoughyHook, "aget_settings", slow)

    async def wait(id: str) -> Outcome:
        poller = ResourcePoller(ASSET, id, log=logging.getLogger(__name__))
        return (await wait_until_final(RoughyHook(), poller, poll_interval=30, deadline=EPOCH + 600)).outcome

    async def wait_for_all() -> set[Outcome]:
        return set(await asyncio.gather(*(wait(id) for id in ids)))

    assert virtual.run(wait_for_all()) == {Outcome.SUCCEEDED}
    assert sum(turns.counts.values()) == 1000
    assert max(turns.counts.values()) <= shared._MAX_ANSWERS_A_TURN
    assert len(looked_up) <= 3


@pytest.mark.once
def test_replies_of_a_batch_are_evaluated_some_at_a_time(
    virtual: Roughy, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, judge = virtual.add(2000, (100.0, "ready")), ResourcePoller.on_answer

    def counted(poller: ResourcePoller, answer: Any) -> Any:
        turns.count()
        return judge(poller, answer)

    monkeypatch.setattr(ResourcePoller, "on_answer", counted)
    verdicts = virtual.run(wait_for_batch(RoughyHook(), ASSET, ids, poll_interval=30, deadline=EPOCH + 600))
    assert {verdict.outcome for verdict in verdicts} == {Outcome.SUCCEEDED}
    assert max(turns.counts.values()) <= shared._MAX_ANSWERS_A_TURN


class Counted(Awaitable[None]):
    """Counts how often what is waited for is resumed."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.coroutine = coroutine
        self.resumed = 0

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self.coroutine.__await__()
        resume: Callable[[], Any] = partial(next, steps)
        with suppress(StopIteration):
            while True:
                future = resume()
                self.resumed += 1
                try:
                    yield future
                except BaseException as error:
                    resume = partial(steps.throw, error)
                else:
                    resume = partial(next, steps)


async def all_events(id: str) -> None:
    async for _ in RoughyAssetTrigger(asset_id=id, deadline=EPOCH + 86_400, poll_interval=30).run():
        pass


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.once
def test_rounds_wake_no_waiter_and_leave_python_nothing_to_collect(virtual: Roughy) -> None:
    waiters = [Counted(all_events(id)) for id in virtual.add(1000)]

    async def wait(waiter: Counted) -> None:
        await waiter

    async def run() -> list[tuple[int, int]]:
        tasks = [asyncio.create_task(wait(waiter)) for waiter in waiters]
        counts: list[tuple[int, int]] = []
        for seconds in (100, 30 * 40):
            await asyncio.sleep(seconds)
            if not counts:
                gc.collect()
            counts.append((sum(waiter.resumed for waiter in waiters), gc.get_stats()[2]["collections"]))
        await cancel(tasks)
        return counts

    after_three_rounds, after_forty = virtual.run(run())
    assert after_forty == after_three_rounds


@pytest.mark.once
def test_a_waiter_is_few_objects_for_a_full_collection_to_visit(virtual: Roughy) -> None:
    first, *others = virtual.add(501)

    async def run() -> float:
        tasks = [asyncio.create_task(all_events(first))]
        await asyncio.sleep(100)
        gc.collect()
        before = len(gc.get_objects())
        tasks += [asyncio.create_task(all_events(id)) for id in others]
        await asyncio.sleep(100)
        gc.collect()
        objects = len(gc.get_objects()) - before
        await cancel(tasks)
        return objects / len(others)

    # Nine are the task, the generator and the trigger, which Airflow makes for every trigger.
    assert virtual.run(run()) <= 25

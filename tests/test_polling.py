"""The poll that many waiters share: what it costs, and that nobody gets somebody else's answer."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import OnPendingPayment, Verdict
from airflow_provider_roughy.polling import SharedPoll, Watch, wait_for_asset

log = logging.getLogger(__name__)

pytestmark = pytest.mark.usefixtures("connection")


def wait(
    asset_id: str,
    *,
    poll_interval: float = 0.3,
    seconds: float = 30,
    policy: OnPendingPayment = "fail",
    conn_id: str = "roughy_default",
) -> Awaitable[Verdict]:
    watch = Watch(asset_id, on_pending_payment=policy, log=log)
    return wait_for_asset(RoughyHook(conn_id), watch, poll_interval=poll_interval, deadline=time.time() + seconds)


def seeded(roughy: Emulator, count: int, state: str = "processing") -> list[str]:
    roughy.progression = "manual"
    return [roughy.seed_asset(state=state) for _ in range(count)]


async def asked(roughy: Emulator, count: int) -> None:
    """Wait until so many requests were made."""
    while len(roughy.requests) < count:  # noqa: ASYNC110 - the emulator's loop is another
        await asyncio.sleep(0.05)


async def cancelled(tasks: list[asyncio.Task[Verdict]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_many_waiters_cost_one_pass_over_the_list(roughy: Emulator) -> None:
    ids = seeded(roughy, 230)

    async def run() -> None:
        tasks = [asyncio.ensure_future(wait(asset_id, poll_interval=2, seconds=100)) for asset_id in ids]
        await asked(roughy, 12)
        await cancelled(tasks)

    asyncio.run(run())
    # Four rounds, their first look among them: three pages each, and nobody asks alone.
    assert [request.path for request in roughy.requests][:12] == ["/v1/assets"] * 12
    offsets = [parse_qs(request.query)["offset"] for request in roughy.requests][:12]
    assert offsets == [["0"], ["100"], ["200"]] * 4
    first, fifth = roughy.requests[0], roughy.requests[9]
    assert fifth.started_at - first.started_at > 4


def test_one_waiter_asks_for_its_own(roughy: Emulator) -> None:
    (asset_id, *_) = seeded(roughy, 150)

    async def run() -> None:
        task = asyncio.ensure_future(wait(asset_id))
        await asyncio.sleep(1)
        await cancelled([task])

    asyncio.run(run())
    assert {request.path for request in roughy.requests} == {f"/v1/assets/{asset_id}"}


def test_a_list_that_is_mostly_somebody_elses_is_not_read(roughy: Emulator) -> None:
    ids = seeded(roughy, 800)[:3]

    async def run() -> None:
        tasks = [asyncio.ensure_future(wait(asset_id, poll_interval=60)) for asset_id in ids]
        await asyncio.sleep(1)
        await cancelled(tasks)

    asyncio.run(run())
    assert [request.path for request in roughy.requests].count("/v1/assets") <= 1
    assert len(roughy.requests) <= 1 + len(ids)


def test_an_unpaid_crowd_is_one_list_as_well(roughy: Emulator) -> None:
    ids = seeded(roughy, 120, "pending_payment")

    async def run() -> None:
        tasks = [
            asyncio.ensure_future(wait(asset_id, poll_interval=0.5, seconds=100, policy="wait")) for asset_id in ids
        ]
        # Each is asked once, and then known to be unpaid.
        await asked(roughy, 1 + len(ids) + 6)
        await cancelled(tasks)

    asyncio.run(run())
    later = [parse_qs(request.query) for request in roughy.requests[1 + len(ids) :]][:6]
    assert [query["state"] for query in later] == [["pending_payment"]] * 6
    assert [query["offset"] for query in later] == [["0"], ["100"]] * 3


OUTCOMES = {
    "ready": "succeeded",
    "failed": "failed",
    "pending_payment": "payment_required",
    "gone": "refused",
}


# The clock is real, since sockets are, so the examples are few and each holds many waiters.
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), count=st.integers(2, 140), faults=st.integers(0, 6))
def test_everybody_gets_their_own_outcome(roughy: Emulator, seed: int, count: int, faults: int) -> None:
    choose = random.Random(seed)
    roughy.reset()
    roughy.clear_faults()
    ids = seeded(roughy, count)
    becomes = {asset_id: choose.choice(list(OUTCOMES)) for asset_id in ids}
    for _ in range(faults):
        what = choose.choice([{"status": 503}, {"drop": True}, {"garbage": True}, {"status": 429}])
        roughy.inject(Fault(method="GET", path="/v1/assets*", nth=choose.randint(1, 30), **what))

    async def run() -> list[Verdict]:
        tasks = [asyncio.ensure_future(wait(asset_id, poll_interval=0.2, seconds=100)) for asset_id in ids]
        order = list(ids)
        choose.shuffle(order)
        with RoughyHook() as hook:
            for asset_id in order:
                await asyncio.sleep(choose.choice([0, 0, 0, 0.01]))
                # New assets shift the pages, newest first.
                roughy.seed_asset(state="processing")
                if becomes[asset_id] == "gone":
                    await asyncio.to_thread(hook.delete_asset, asset_id)
                else:
                    roughy.set_state(asset_id, becomes[asset_id])
        return list(await asyncio.gather(*tasks))

    verdicts = asyncio.run(run())
    assert [verdict.id for verdict in verdicts] == ids
    wrong = [verdict for verdict in verdicts if verdict.outcome.value != OUTCOMES[becomes[verdict.id]]]
    assert wrong == []


def test_a_waiter_that_leaves_disturbs_nobody(roughy: Emulator) -> None:
    ids = seeded(roughy, 30)

    async def run() -> list[Verdict]:
        tasks = [asyncio.ensure_future(wait(asset_id)) for asset_id in ids]
        await asyncio.sleep(0.2)
        # Among them the first, in whose name the poll was started.
        await cancelled(tasks[:20])
        for asset_id in ids:
            roughy.set_state(asset_id, "ready")
        return list(await asyncio.gather(*tasks[20:]))

    assert [verdict.id for verdict in asyncio.run(run())] == ids[20:]


def test_the_last_one_out_closes_everything(roughy: Emulator) -> None:
    ids = seeded(roughy, 5)

    async def run() -> None:
        for _ in range(2):
            tasks = [asyncio.ensure_future(wait(asset_id)) for asset_id in ids]
            await asyncio.sleep(0.3)
            assert len(SharedPoll._polls[asyncio.get_running_loop()]) == 1
            await cancelled(tasks)
            assert not SharedPoll._polls[asyncio.get_running_loop()]
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_when_roughy_says_later_everybody_waits_once(roughy: Emulator) -> None:
    ids = seeded(roughy, 40)
    limited = Fault(path="/v1/assets*", status=429, headers={"Retry-After": "1"})

    async def run() -> list[Verdict]:
        tasks = [asyncio.ensure_future(wait(asset_id, poll_interval=0.2)) for asset_id in ids]
        await asyncio.sleep(0.5)
        roughy.clear_requests()
        roughy.inject(limited)
        for asset_id in ids:
            roughy.set_state(asset_id, "ready")
        return list(await asyncio.gather(*tasks))

    assert {verdict.state for verdict in asyncio.run(run())} == {"ready"}
    refused, after = roughy.requests[:2]
    assert refused.status == 429
    assert after.started_at - refused.started_at >= 1.0


def test_one_that_always_fails_holds_up_nobody(roughy: Emulator) -> None:
    ids = seeded(roughy, 12)
    roughy.inject(Fault(path=f"/v1/assets/{ids[0]}", status=500, times=None))
    for asset_id in ids:
        roughy.set_state(asset_id, "ready")

    async def run() -> list[Verdict]:
        return list(await asyncio.gather(*(wait(asset_id, seconds=1.5) for asset_id in ids)))

    broken, *others = asyncio.run(run())
    assert broken.outcome.value == "timed_out"
    assert "500" in (broken.error or {})["message"]
    assert {verdict.state for verdict in others} == {"ready"}


def test_different_intervals_are_honoured(roughy: Emulator) -> None:
    often, seldom = seeded(roughy, 2)

    async def run() -> None:
        tasks = [
            asyncio.ensure_future(wait(often, poll_interval=0.3)),
            asyncio.ensure_future(wait(seldom, poll_interval=60)),
        ]
        await asyncio.sleep(0.2)
        roughy.clear_requests()
        await asyncio.sleep(2)
        await cancelled(tasks)

    asyncio.run(run())
    asked = [request.path.rpartition("/")[2] for request in roughy.requests]
    assert 4 <= asked.count(often) <= 9
    assert seldom not in asked


def test_a_key_that_was_changed_meanwhile_is_picked_up(
    roughy: Emulator, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (asset_id,) = seeded(roughy, 1)
    revoked = Fault(path="/v1/assets*", status=401)

    async def run() -> Verdict:
        task = asyncio.ensure_future(wait(asset_id))
        await asyncio.sleep(0.5)
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps({**connection, "extra": {"timeout": 2}}))
        roughy.inject(revoked)
        roughy.set_state(asset_id, "ready")
        return await task

    assert asyncio.run(run()).state == "ready"


def test_a_key_that_is_refused_ends_every_wait(roughy: Emulator) -> None:
    ids = seeded(roughy, 20)

    async def run() -> list[Verdict]:
        tasks = [asyncio.ensure_future(wait(asset_id)) for asset_id in ids]
        await asyncio.sleep(0.4)
        roughy.inject(Fault(path="/v1/assets*", status=401, times=None))
        return list(await asyncio.gather(*tasks))

    verdicts = asyncio.run(run())
    assert {verdict.outcome.value for verdict in verdicts} == {"refused"}
    assert all("Check the API key" in (verdict.error or {})["message"] for verdict in verdicts)


@pytest.mark.parametrize("fault", [{"hang": True}, {"status": 429, "headers": {"Retry-After": "3600"}}], ids=str)
def test_the_deadline_holds_whatever_the_api_does(
    roughy: Emulator, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    monkeypatch.setattr("airflow_provider_roughy.polling._GRACE_SECONDS", 0.2)
    (asset_id,) = seeded(roughy, 1)
    roughy.inject(Fault(path="/v1/assets*", times=None, **fault))

    async def run() -> tuple[Verdict, float]:
        started = time.time()
        return await wait(asset_id, seconds=0.6), time.time() - started

    verdict, took = asyncio.run(run())
    assert verdict.outcome.value == "timed_out"
    assert took < 5


def test_two_connections_have_polls_of_their_own(
    roughy: Emulator, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({**connection, "password": "sk_wrong"}))
    (asset_id,) = seeded(roughy, 1)
    roughy.set_state(asset_id, "ready")

    async def run() -> list[Verdict]:
        return list(await asyncio.gather(wait(asset_id), wait(asset_id, conn_id="other")))

    assert [verdict.outcome.value for verdict in asyncio.run(run())] == ["succeeded", "refused"]

"""The poll that many waiters share: its cost, and that each waiter gets its own answer."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import RoughyAssetFailedError, RoughyPaymentRequiredError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import ASSET, OnPendingPayment, Verdict
from airflow_provider_roughy.polling import ResourcePoller, SharedPoll, wait_for_batch, wait_until_final
from tests.properties import examples

log = logging.getLogger(__name__)

pytestmark = pytest.mark.usefixtures("patient")

#: What asks nothing of Airflow that its minor versions answer differently.
once = pytest.mark.once


def wait(
    asset_id: str,
    *,
    poll_interval: float = 0.3,
    seconds: float = 100,
    policy: OnPendingPayment = "fail",
    conn_id: str = "roughy_default",
) -> Awaitable[Verdict]:
    poller = ResourcePoller(ASSET, asset_id, on_pending_payment=policy, log=log)
    return wait_until_final(RoughyHook(conn_id), poller, poll_interval=poll_interval, deadline=time.time() + seconds)


def waiting(asset_ids: list[str], **options: Any) -> list[asyncio.Task[Verdict]]:
    return [asyncio.ensure_future(wait(asset_id, **options)) for asset_id in asset_ids]


def seeded(roughy: Emulator, count: int, state: str = "processing") -> list[str]:
    roughy.progression = "manual"
    return [roughy.seed_asset(state=state) for _ in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the emulator's loop is another
        await asyncio.sleep(0.02)


async def asked(roughy: Emulator, count: int) -> None:
    """Wait until so many requests were made."""
    await until(lambda: len(roughy.requests) >= count)


async def cancelled(tasks: list[asyncio.Task[Verdict]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def watch(roughy: Emulator, asset_ids: list[str], *, requests: int, **options: Any) -> None:
    """Wait for assets, none of which ends, until so many requests were made."""

    async def run() -> None:
        tasks = waiting(asset_ids, **options)
        await asked(roughy, requests)
        assert not any(task.done() for task in tasks)
        await cancelled(tasks)

    asyncio.run(run())


def watch_to_the_end(
    roughy: Emulator,
    asset_ids: list[str],
    *,
    change: Callable[[], None] | None = None,
    requests: int = 2,
    **options: Any,
) -> list[Verdict]:
    """Wait for assets until each has come to an end.

    :param change: What happens after so many requests; by default all get ready.
    """

    async def run() -> list[Verdict]:
        tasks = waiting(asset_ids, **options)
        await asked(roughy, requests)
        (change or partial(settle, roughy, asset_ids))()
        return list(await asyncio.gather(*tasks))

    return asyncio.run(run())


def settle(roughy: Emulator, asset_ids: list[str]) -> None:
    for asset_id in asset_ids:
        roughy.set_state(asset_id, "ready")


def test_many_waiters_share_one_pass_over_the_list(roughy: Emulator) -> None:
    ids = seeded(roughy, 230)

    watch(roughy, ids, requests=9, poll_interval=2)
    # Three rounds, their first look among them: three pages each, and nobody asks alone.
    assert [request.path for request in roughy.requests][:9] == ["/v1/assets"] * 9
    offsets = [parse_qs(request.query)["offset"] for request in roughy.requests]
    assert offsets[:3] == [["0"], ["100"], ["200"]]
    first, third = roughy.requests[0], roughy.requests[6]
    assert third.started_at - first.started_at > 2


@once
def test_batch_that_ends_at_once_is_read_from_lists(roughy: Emulator) -> None:
    ids = seeded(roughy, 350)
    failed, unpaid = ids[7], ids[340]

    def end() -> None:
        settle(roughy, ids)
        roughy.set_state(failed, "failed", error_code="probe_failed", error_message="cannot be read")
        roughy.set_state(unpaid, "pending_payment")
        roughy.clear_requests()

    async def run() -> list[Verdict]:
        deadline = time.time() + 100
        batch = asyncio.ensure_future(
            wait_for_batch(RoughyHook(), ASSET, ids, poll_interval=0.3, deadline=deadline, log=log)
        )
        await asked(roughy, 4)
        end()
        return await batch

    verdicts = asyncio.run(run())
    assert [verdict.id for verdict in verdicts] == ids
    states = {verdict.id: verdict.state for verdict in verdicts if verdict.state != "ready"}
    assert states == {failed: "failed", unpaid: "pending_payment"}
    # The list of those in work, four pages of those that are ready, and two that were not among them.
    assert len(roughy.requests) <= 10


@once
def test_batch_verifies_states_of_a_lagging_list(roughy: Emulator) -> None:
    ids = seeded(roughy, 30)
    settle(roughy, ids)
    empty = {"items": [], "total": 0, "limit": 100, "offset": 0}
    roughy.inject(Fault(method="GET", path="/v1/assets", status=200, body=empty, times=None))

    verdicts = asyncio.run(
        wait_for_batch(RoughyHook(), ASSET, ids, poll_interval=0.3, deadline=time.time() + 100, log=log)
    )
    assert {verdict.state for verdict in verdicts} == {"ready"}
    assert sum(request.path != "/v1/assets" for request in roughy.requests) == 30


@once
def test_batch_with_endless_resources_times_out(roughy: Emulator) -> None:
    ids = seeded(roughy, 12)
    settle(roughy, ids[:10])

    verdicts = asyncio.run(
        wait_for_batch(RoughyHook(), ASSET, ids, poll_interval=0.2, deadline=time.time() + 2, log=log)
    )
    assert [verdict.outcome for verdict in verdicts] == ["succeeded"] * 10 + ["timed_out"] * 2


@once
def test_single_waiter_polls_its_own_resource(roughy: Emulator) -> None:
    (asset_id, *_) = seeded(roughy, 150)

    watch(roughy, [asset_id], requests=3)
    assert {request.path for request in roughy.requests} == {f"/v1/assets/{asset_id}"}


@once
def test_list_of_mostly_other_resources_is_not_read(roughy: Emulator) -> None:
    ids = seeded(roughy, 800)[:3]

    watch(roughy, ids, requests=4, poll_interval=60)
    first, *others = [request.path for request in roughy.requests]
    assert first == "/v1/assets", "how long the list is, its first page tells"
    assert sorted(others) == sorted(f"/v1/assets/{asset_id}" for asset_id in ids)


@once
def test_failing_list_is_replaced_by_single_requests(roughy: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    ids = seeded(roughy, 20)
    roughy.inject(Fault(method="GET", path="/v1/assets", status=500, times=None))

    assert [verdict.state for verdict in watch_to_the_end(roughy, ids, requests=25)] == ["ready"] * 20
    assert len([record for record in caplog.records if "Listing assets of connection" in record.message]) == 1


@once
def test_list_of_other_states_ends_no_wait(roughy: Emulator) -> None:
    """A server that ignored the filter would list what is ready as well."""
    ids = seeded(roughy, 3)
    with RoughyHook() as hook:
        items = [{**asset.to_dict(), "state": "ready"} for asset in hook.list_assets()]
    roughy.clear_requests()
    body = json.dumps({"items": items, "total": 3, "limit": 100, "offset": 0})
    roughy.inject(Fault(method="GET", path="/v1/assets", status=200, body=body, times=None))

    watch(roughy, ids, requests=8)


@once
def test_resource_listed_twice_is_evaluated_once(roughy: Emulator) -> None:
    ids = seeded(roughy, 3)
    with RoughyHook() as hook:
        items = [asset.to_dict() for asset in hook.list_assets()]
    body = json.dumps({"items": [items[0], *items], "total": 4, "limit": 100, "offset": 0})
    roughy.inject(Fault(method="GET", path="/v1/assets", status=200, body=body))

    assert [verdict.state for verdict in watch_to_the_end(roughy, ids, requests=3)] == ["ready"] * 3


@once
def test_many_unpaid_assets_share_one_list(roughy: Emulator) -> None:
    ids = seeded(roughy, 120, "pending_payment")

    # Each is asked once, and then known to be unpaid.
    watch(roughy, ids, requests=1 + len(ids) + 6, poll_interval=0.5, policy="wait")
    later = [parse_qs(request.query) for request in roughy.requests[1 + len(ids) :]][:6]
    assert [query["state"] for query in later] == [["pending_payment"]] * 6
    assert [query["offset"] for query in later] == [["0"], ["100"]] * 3


OUTCOMES = {
    "ready": "succeeded",
    "failed": "failed",
    "pending_payment": "payment_required",
    "gone": "refused",
}
LIST_FAULTS: list[dict[str, Any]] = [{"status": 403}, {"status": 422}]
FAULTS: list[dict[str, Any]] = [
    {"status": 503},
    {"status": 503, "headers": {"Retry-After": "0.1"}},
    {"status": 429},
    {"drop": True},
    {"garbage": True},
    {"lose_reply": True},
]


def everybody_gets_their_own_outcome(roughy: Emulator, *, seed: int, count: int, faults: int) -> None:
    choose = random.Random(seed)
    roughy.reset()
    ids = seeded(roughy, count)
    becomes = {asset_id: choose.choice(list(OUTCOMES)) for asset_id in ids}
    for _ in range(faults):
        nth = choose.randint(1, 30)
        if choose.random() < 0.3:
            roughy.inject(Fault(method="GET", path="/v1/assets", nth=nth, **choose.choice(LIST_FAULTS)))
        else:
            roughy.inject(Fault(method="GET", path="/v1/assets*", nth=nth, **choose.choice(FAULTS)))

    async def run() -> list[Verdict]:
        tasks = waiting(ids, poll_interval=0.2)
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


# The clock is real, since sockets are, so the examples are few and each holds many waiters.
@once
@pytest.mark.timeout(300)
@settings(max_examples=examples(8), deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), count=st.integers(2, 140), faults=st.integers(0, 6))
def test_each_waiter_gets_its_own_outcome(roughy: Emulator, seed: int, count: int, faults: int) -> None:
    everybody_gets_their_own_outcome(roughy, seed=seed, count=count, faults=faults)


@once
def test_thousand_waiters_get_their_own_outcomes(roughy: Emulator) -> None:
    everybody_gets_their_own_outcome(roughy, seed=random.randrange(2**32), count=1000, faults=6)


@once
def test_cancelled_waiter_does_not_affect_the_others(roughy: Emulator) -> None:
    ids = seeded(roughy, 30)

    async def run() -> list[Verdict]:
        tasks = waiting(ids)
        await asyncio.sleep(0.2)
        # Among them the first, in whose name the poll was started.
        await cancelled(tasks[:20])
        settle(roughy, ids)
        return list(await asyncio.gather(*tasks[20:]))

    assert [verdict.id for verdict in asyncio.run(run())] == ids[20:]


def test_last_waiter_closes_the_shared_poll(roughy: Emulator) -> None:
    ids = seeded(roughy, 5)

    async def run() -> None:
        for _ in range(2):
            tasks = waiting(ids)
            await asyncio.sleep(0.3)
            assert len(SharedPoll._polls[asyncio.get_running_loop()]) == 1
            await cancelled(tasks)
            assert not SharedPoll._polls[asyncio.get_running_loop()]
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


@once
def test_repeated_cancellation_still_closes_the_shared_poll(roughy: Emulator) -> None:
    """Airflow cancels a trigger again and again until it has ended."""
    [asset_id] = seeded(roughy, 1)
    port = urlsplit(roughy.url).port

    def connections() -> list[object]:
        each = psutil.Process().net_connections()
        return [one for one in each if one.raddr and one.raddr.port == port and one.status == "ESTABLISHED"]

    async def run() -> None:
        [task] = waiting([asset_id], poll_interval=0.01)
        await asked(roughy, 2)
        assert connections()
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        assert task.cancelled()
        assert not asyncio.all_tasks() - {asyncio.current_task()}

    asyncio.run(run())
    assert not connections()


def test_retry_after_pauses_all_waiters_once(roughy: Emulator) -> None:
    ids = seeded(roughy, 40)

    def change() -> None:
        # The list's reply says nothing of single assets, theirs does.
        roughy.inject(Fault(path="/v1/assets*", status=429, headers={"Retry-After": "1"}, times=2))
        settle(roughy, ids)

    verdicts = watch_to_the_end(roughy, ids, change=change, poll_interval=0.2)
    assert {verdict.state for verdict in verdicts} == {"ready"}
    statuses = [request.status for request in roughy.requests]
    listed, refused, after = roughy.requests[statuses.index(429) :][:3]
    assert [listed.status, refused.status] == [429, 429]
    assert after.started_at - refused.started_at >= 1.0


@once
def test_failing_resource_does_not_delay_the_others(roughy: Emulator) -> None:
    ids = seeded(roughy, 12)
    roughy.inject(Fault(path=f"/v1/assets/{ids[0]}", status=500, times=None))
    settle(roughy, ids)

    async def run() -> list[Verdict]:
        return list(await asyncio.gather(wait(ids[0], seconds=2), *waiting(ids[1:])))

    broken, *others = asyncio.run(run())
    assert broken.outcome.value == "timed_out"
    assert "500" in (broken.error or {})["message"]
    assert {verdict.state for verdict in others} == {"ready"}


@once
def test_each_waiter_keeps_its_own_interval(roughy: Emulator) -> None:
    often, seldom = seeded(roughy, 2)

    def times(asset_id: str) -> list[float]:
        return [request.started_at for request in roughy.requests if request.path.endswith(asset_id)]

    async def run() -> None:
        tasks = [*waiting([often], poll_interval=0.3), *waiting([seldom], poll_interval=60)]
        await until(lambda: len(times(often)) >= 6)
        await cancelled(tasks)

    asyncio.run(run())
    assert len(times(seldom)) <= 1, "its first look, unless the list was read for both"
    assert times(often)[5] - times(often)[0] > 5 * 0.2


where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")


def test_log_lines_of_the_shared_poll_belong_to_no_task(roughy: Emulator) -> None:
    """Airflow files a log record by the context it was made in, which is that of one trigger."""
    ids = seeded(roughy, 5)
    roughy.inject(Fault(method="GET", path="/v1/assets", status=403, times=None))
    seen: list[tuple[str, str]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((where.get(), record.getMessage()))

    async def run() -> None:
        where.set("the first trigger")
        tasks = waiting(ids)
        await asked(roughy, 6)
        await cancelled(tasks)

    package = logging.getLogger("airflow_provider_roughy")
    handler = Handler()
    package.addHandler(handler)
    try:
        asyncio.run(run())
    finally:
        package.removeHandler(handler)
    assert [name for name, text in seen if "Listing assets of connection" in text] == ["nowhere"]


def test_changed_key_is_read_after_a_rejection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def serve(**options: Any) -> Emulator:
        emulator = servers.enter_context(Emulator(progression="manual", data_dir=tmp_path, **options))
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(emulator.airflow_connection))
        return emulator

    with ExitStack() as servers:
        roughy = serve()
        ids = seeded(roughy, 20)

        def change() -> None:
            roughy.close()
            settle(serve(port=int(roughy.url.rpartition(":")[2]), api_key="sk_new"), ids)

        assert [verdict.state for verdict in watch_to_the_end(roughy, ids, change=change)] == ["ready"] * 20


def test_changed_key_applies_to_its_connection_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def connect(name: str, server: Emulator) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(server.airflow_connection))

    async def run() -> list[Verdict]:
        tasks = [asyncio.ensure_future(wait(asset_id, conn_id=name)) for name in ("edited", "forgotten")]
        await asked(old, 2)
        old.close()
        port = int(old.url.rpartition(":")[2])
        with Emulator(progression="manual", data_dir=tmp_path, port=port, api_key="sk_new") as new:
            connect("EDITED", new)
            new.set_state(asset_id, "ready")
            return list(await asyncio.gather(*tasks))

    with Emulator(progression="manual", data_dir=tmp_path) as old:
        (asset_id,) = seeded(old, 1)
        # The same, word for word, until one of them is edited.
        connect("EDITED", old)
        connect("FORGOTTEN", old)
        assert [verdict.outcome.value for verdict in asyncio.run(run())] == ["succeeded", "refused"]


@once
def test_rejected_key_ends_all_waits(roughy: Emulator) -> None:
    ids = seeded(roughy, 20)

    revoked = Fault(path="/v1/assets*", status=401, times=None)
    verdicts = watch_to_the_end(roughy, ids, change=lambda: roughy.inject(revoked))
    assert {verdict.outcome.value for verdict in verdicts} == {"refused"}
    assert all("Check the API key" in (verdict.error or {})["message"] for verdict in verdicts)


@once
def test_403_ends_the_wait_for_that_resource_only(roughy: Emulator) -> None:
    ids = seeded(roughy, 50)
    roughy.inject(Fault(path=f"/v1/assets/{ids[0]}", status=403, times=None))
    settle(roughy, ids)
    verdicts = watch_to_the_end(roughy, ids, requests=0)
    assert [verdict.outcome.value for verdict in verdicts] == ["refused", *["succeeded"] * 49]


def test_deleted_connection_is_named_at_the_deadline(
    roughy: Emulator, monkeypatch: pytest.MonkeyPatch, airflow_db: None
) -> None:
    """Not before the deadline: the secrets backend may only be down."""
    ids = seeded(roughy, 1)

    def change() -> None:
        monkeypatch.delenv("AIRFLOW_CONN_ROUGHY_DEFAULT")
        roughy.inject(Fault(path="/v1/assets*", status=401, times=None))

    (verdict,) = watch_to_the_end(roughy, ids, change=change, seconds=3)
    assert verdict.outcome.value == "timed_out"
    assert (verdict.error or {})["message"].startswith("Airflow has no connection 'roughy_default'")


@once
@pytest.mark.parametrize("fault", [{"drop": True}, {"status": 503}], ids=str)
def test_outage_causes_few_requests_and_two_log_lines(
    roughy: Emulator, caplog: pytest.LogCaptureFixture, fault: dict[str, Any]
) -> None:
    caplog.set_level(logging.INFO)
    ids = seeded(roughy, 50)

    async def run() -> list[Verdict]:
        tasks = waiting(ids)
        await asked(roughy, 2)
        roughy.inject(Fault(path="/v1/assets*", times=None, **fault))
        await until(lambda: put_off() >= 4)
        roughy.clear_faults()
        settle(roughy, ids)
        return list(await asyncio.gather(*tasks))

    def put_off() -> int:
        return sum(
            text.startswith("Polling 50 assets of connection 'roughy_default' failed; next attempt in")
            for text in caplog.messages
        )

    assert {verdict.state for verdict in asyncio.run(run())} == {"ready"}
    failed = [request for request in roughy.requests if request.status != 200]
    # In each round three, as one may fail for reasons of its own; before the first is known to, as many as go at once.
    assert len(failed) <= 3 * put_off() + 8
    # Of others it may be told that the request for this one failed.
    of_one = [text for text in caplog.messages if text.lower().split(f"asset {ids[0]} ")[0] in ("", "polling ")]
    words = ["is processing", "failed; still waiting", "works again, after", "is ready"]
    assert [word in text for text, word in zip(of_one, words, strict=True)] == [True] * 4


@pytest.mark.parametrize(
    ("becomes", "error"),
    [("ready", None), ("failed", RoughyAssetFailedError), ("pending_payment", RoughyPaymentRequiredError)],
)
def test_log_event_and_error_have_the_same_text(
    roughy: Emulator, hook: RoughyHook, caplog: pytest.LogCaptureFixture, becomes: str, error: type[Exception] | None
) -> None:
    caplog.set_level(logging.INFO)
    (asset_id,) = ids = seeded(roughy, 1)
    (verdict,) = watch_to_the_end(roughy, ids, change=lambda: roughy.set_state(asset_id, becomes))
    event = verdict.to_event()
    assert (event["id"], event["state"], event["resource"]) == (asset_id, becomes, hook.get_asset(asset_id).to_dict())

    first, last = [text for name, _, text in caplog.record_tuples if name == __name__]
    assert first.startswith(f"Asset {asset_id} is processing")
    assert re.match(rf"Asset {asset_id} is {becomes}, after \d+ s as processing", last)
    assert f"(request {event['request_id']})" in last
    assert ("Top up at Roughy within 30 days" in last) == (becomes == "pending_payment")

    if error is None:
        Verdict.from_event(event).raise_for_failure("fail")
    else:
        with pytest.raises(error, match=rf"Asset {asset_id} .*\(request {event['request_id']}\)"):
            Verdict.from_event(event).raise_for_failure("fail")


@once
@pytest.mark.parametrize("fault", [{"hang": True}, {"status": 429, "headers": {"Retry-After": "3600"}}], ids=str)
def test_deadline_holds_for_any_behaviour_of_the_api(
    roughy: Emulator, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(connection))
    monkeypatch.setattr("airflow_provider_roughy.polling.wait._GRACE_SECONDS", 0.2)
    (asset_id,) = seeded(roughy, 1)
    roughy.inject(Fault(path="/v1/assets*", times=None, **fault))

    async def run() -> tuple[Verdict, float]:
        started = time.time()
        return await wait(asset_id, seconds=0.6), time.time() - started

    verdict, took = asyncio.run(run())
    assert verdict.outcome.value == "timed_out"
    assert took < 30


def test_each_connection_has_its_own_poll(
    roughy: Emulator, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({**connection, "password": "sk_wrong"}))
    (asset_id,) = seeded(roughy, 1)
    roughy.set_state(asset_id, "ready")

    async def run() -> list[Verdict]:
        return list(await asyncio.gather(wait(asset_id), wait(asset_id, conn_id="other")))

    assert [verdict.outcome.value for verdict in asyncio.run(run())] == ["succeeded", "refused"]

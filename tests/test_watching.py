"""The watcher of assets: which assets it announces, when, and how many requests that takes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.asset_events import feed as feed_module
from airflow_provider_roughy.asset_events import subscription as subscription_module
from airflow_provider_roughy.asset_events.feed import AssetFeed
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.events import taken_key
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.triggers import RoughyAssetsReadyTrigger
from tests.watching import INTERVAL, Watching, begun, rewritten, rounds, take, until, watch

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    """An emulator whose assets change only when the test changes them."""
    with Emulator(progression="manual") as emulator:
        yield emulator


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "taken"


@pytest.fixture(autouse=True)
def all_events_start_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Announce as on Airflow 3.0 to 3.3, whichever Airflow runs; tests for Airflow 3.4 change it."""
    monkeypatch.setattr(subscription_module, "QUEUES_EACH_EVENT", False)


def test_first_start_announces_new_assets_only(roughy: Emulator, ledger: Path) -> None:
    for _ in range(300):
        roughy.seed_asset()
    working, unpaid = roughy.seed_asset(state="processing"), roughy.seed_asset(state="pending_payment")

    async def run() -> None:
        async with watch(ledger) as watching:
            await begun(ledger)
            new = [roughy.seed_asset(), roughy.seed_asset()]
            await watching.told(*new)
            # Out of order, and deep in the list of what is ready.
            roughy.set_state(unpaid, "ready")
            await watching.told(*new, unpaid)
            roughy.set_state(working, "ready")
            await watching.told(*new, unpaid, working)
            assert watching.all() == {*new, unpaid, working}
            assert watching.events[-1] == {"ready": [working, unpaid, *new]}, "the oldest first"

    asyncio.run(run())


def test_quiet_round_takes_four_requests_for_any_number_of_watchers(roughy: Emulator, ledger: Path) -> None:
    roughy.seed_asset()

    async def run() -> None:
        others = [Watching(RoughyAssetsReadyTrigger(ledger=ledger, poll_interval=INTERVAL)) for _ in range(17)]
        async with (
            watch(ledger) as one,
            watch(ledger, project_id=roughy.project_id) as of_project,
            watch(ledger, project_id="019de7f7-3a52-74d1-9eeb-000000000000") as of_nothing,
        ):
            await begun(ledger, 3)
            await rounds(roughy, 2)
            roughy.clear_requests()
            await rounds(roughy, 3)
            counts = Counter(re.findall(r"state=(\w+)", " ".join(request.query for request in roughy.requests)))
            assert set(counts) == {"pending_upload", "processing", "pending_payment", "ready"}
            assert max(counts.values()) - min(counts.values()) <= 1
            assert sum(counts.values()) == len(roughy.requests), "and nothing else"
            new = roughy.seed_asset()
            for each in (one, of_project, *others):
                await each.told(new)
            assert of_nothing.events == []
            assert len(AssetFeed._feeds[asyncio.get_running_loop()]) == 1
            for each in others:
                await each.stop()

    asyncio.run(run())


def test_repeats_announce_only_assets_that_no_run_has_taken(roughy: Emulator, ledger: Path) -> None:
    async def run() -> None:
        async with watch(ledger) as watching:
            await begun(ledger)
            taken, left = roughy.seed_asset(), roughy.seed_asset()
            await watching.told(taken, left)
            take(ledger, taken)
            await watching.until(lambda: watching.events[-1] == {"ready": [left]})
            count = len(watching.events)
            take(ledger, left)
            new = roughy.seed_asset()
            await watching.until(lambda: watching.events[-1] == {"ready": [new]})
            assert len(watching.events) <= count + 2

    asyncio.run(run())


def test_assets_not_taken_are_repeated_with_exponential_backoff(roughy: Emulator, ledger: Path) -> None:
    async def run() -> None:
        async with watch(ledger) as watching:
            await begun(ledger)
            roughy.seed_asset()
            times = []
            for count in range(1, 6):
                await watching.until(lambda count=count: len(watching.events) >= count)  # type: ignore[misc]
                times.append(asyncio.get_running_loop().time())
            pauses = [after - before for before, after in pairwise(times)]
            for number, pause in enumerate(pauses):
                assert pause >= 0.89 * INTERVAL * 2**number

    asyncio.run(run())


def test_repeat_polls_only_the_assets_that_it_announces(
    roughy: Emulator, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription_module, "MAX_IDS_PER_STATE", 1)
    first, *_ = [roughy.seed_asset() for _ in range(4)]
    with RoughyHook() as hook:
        other = hook.create_project("So much that to read its list costs more than to ask for the few.").id
    for _ in range(400):
        roughy.seed_asset(project_id=other)

    async def run() -> None:
        async with watch(ledger, catchup=True, project_id=roughy.project_id) as watching:
            await watching.until(lambda: len(watching.events) >= 2)
            assert watching.events[-1] == {"ready": [first]}
            asked = {request.path for request in roughy.requests if request.method == "GET"}
            assert asked == {"/v1/assets", f"/v1/assets/{first}"}

    asyncio.run(run())


def test_catchup_announces_all_existing_assets(roughy: Emulator, ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_module, "MAX_IDS_PER_STATE", 100)
    ids = [roughy.seed_asset() for _ in range(230)]
    failed = roughy.seed_asset(state="failed")

    async def run() -> None:
        async with watch(ledger, catchup=True, states=["failed", "ready"]) as watching:
            await watching.until(lambda: bool(watching.events))
            assert watching.events[0] == {"ready": ids[:100], "failed": [failed]}, "the oldest, as many as fit"
            take(ledger, *ids[:100])
            take(ledger, failed, state="failed")
            await watching.until(lambda: watching.events[-1] == {"ready": ids[100:200]})
            take(ledger, *ids[100:200])
            await watching.until(lambda: watching.events[-1] == {"ready": ids[200:]})

    asyncio.run(run())


def test_restart_loses_no_asset_and_announces_no_settled_one(roughy: Emulator, ledger: Path) -> None:
    old = [roughy.seed_asset() for _ in range(120)]
    waiting = [roughy.seed_asset(state=state) for state in ("pending_upload", "processing", "pending_payment")]

    async def first() -> list[str]:
        async with watch(ledger) as watching:
            await begun(ledger)
            untaken, taken = roughy.seed_asset(), roughy.seed_asset()
            await watching.told(untaken, taken)
            take(ledger, taken)
            return [untaken]

    async def second(expected: list[str]) -> None:
        async with watch(ledger) as watching:
            await watching.told(*expected)
            assert watching.all() == set(expected)
            assert not watching.all() & set(old)

    due = asyncio.run(first())
    # While nobody watches.
    due += [roughy.seed_asset(state="processing"), *waiting]
    for id in due:
        roughy.set_state(id, "ready")
    asyncio.run(second(due))


def test_each_state_is_announced_separately(roughy: Emulator, ledger: Path) -> None:
    unpaid_before = roughy.seed_asset(state="pending_payment")

    async def run() -> None:
        async with watch(ledger, states=("ready", "failed", "pending_payment")) as watching:
            await begun(ledger)
            ready, failed, unpaid = (roughy.seed_asset(state="processing") for _ in range(3))
            for id, state in ((ready, "ready"), (failed, "failed"), (unpaid, "pending_payment")):
                roughy.set_state(id, state)
            expected = {"ready": [ready], "failed": [failed], "pending_payment": [unpaid]}
            await watching.until(lambda: expected in watching.events)
            take(ledger, unpaid, state="pending_payment")
            roughy.set_state(unpaid, "ready")
            roughy.set_state(unpaid_before, "ready")
            await watching.told(unpaid, unpaid_before)
            assert watching.events[-1].get("pending_payment") is None
            assert unpaid_before not in watching.all("pending_payment"), "it was so before the first start"

    asyncio.run(run())


def test_deleted_assets_are_not_announced_again(roughy: Emulator, ledger: Path) -> None:
    async def run() -> None:
        with RoughyHook() as hook:
            async with watch(ledger) as watching:
                await begun(ledger)
                gone, stays, waiting = roughy.seed_asset(), roughy.seed_asset(), roughy.seed_asset(state="processing")
                await watching.told(gone, stays)
                await asyncio.to_thread(hook.delete_asset, gone)
                await asyncio.to_thread(hook.delete_asset, waiting)
                await watching.until(lambda: watching.events[-1] == {"ready": [stays]})
                roughy.clear_requests()
                await rounds(roughy)
                assert not [request for request in roughy.requests if waiting in request.path], "it is forgotten"

    asyncio.run(run())


def threads_for_storage() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("roughy-watch")}


def test_last_watcher_to_stop_closes_the_feed(roughy: Emulator, ledger: Path) -> None:
    async def run() -> None:
        first = Watching(RoughyAssetsReadyTrigger(ledger=ledger, poll_interval=INTERVAL))
        async with watch(ledger) as second:
            await begun(ledger)
            await first.stop()
            before = threads_for_storage()
            async with watch(ledger.with_name("other")):
                await begun(ledger.with_name("other"))
                assert not threads_for_storage() <= before
            await until(lambda: threads_for_storage() <= before)
            new = roughy.seed_asset()
            await second.told(new)
        assert not AssetFeed._feeds[asyncio.get_running_loop()]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_feed_restarts_after_its_task_died(roughy: Emulator, ledger: Path) -> None:
    def kill(feed: AssetFeed) -> None:
        assert feed._task is not None
        feed._task.cancel()

    async def run() -> None:
        async with watch(ledger) as watching:
            feeds = AssetFeed._feeds.setdefault(asyncio.get_running_loop(), {})
            while not feeds:  # noqa: ASYNC110 - before anything else runs
                await asyncio.sleep(0)
            (feed,) = feeds.values()
            assert feed.base_url is None, "the connection was not read yet"
            kill(feed)
            await begun(ledger)
            kill(feed)
            new = roughy.seed_asset()
            await watching.told(new)

    asyncio.run(run())


# ---- Odd replies


def elsewhere(connection: dict[str, Any], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the base URL of the connection."""
    fields = {**connection, "host": url, "extra": {**connection["extra"], "timeout": 60}}
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(fields))


@pytest.mark.parametrize("field", ["created_at", "project_id"])
@pytest.mark.parametrize("value", [None, "", 17, "0001-01-01T00:00:00+23:59"])
def test_undecodable_asset_does_not_hide_others(
    roughy: Emulator,
    ledger: Path,
    connection: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    field: str,
    value: Any,
) -> None:
    odd: list[str] = [roughy.seed_asset()]

    def rewrite(target: str, body: dict[str, Any]) -> None:
        for asset in body.get("items", [body]):
            if asset.get("id") in odd:
                asset[field] = value

    async def run(url: str) -> None:
        elsewhere(connection, url, monkeypatch)
        async with watch(ledger) as watching:
            await begun(ledger)
            odd.extend(roughy.seed_asset(state=state) for state in ("ready", "processing"))
            new = roughy.seed_asset()
            await watching.told(new)
            await rounds(roughy, 3)
            later = roughy.seed_asset()
            await watching.told(later)
            roughy.set_state(odd[2], "ready")
            last = roughy.seed_asset()
            await watching.told(last)

    with rewritten(roughy, rewrite) as url, caplog.at_level(logging.WARNING):
        asyncio.run(run(url))
    told = [record.getMessage() for record in caplog.records if "Skipped asset" in record.getMessage()]
    assert 0 < len(told) == len(set(told)) <= len(odd), "each once"
    assert "Watching assets" not in caplog.text


def test_created_at_in_the_future_does_not_hide_other_assets(roughy: Emulator, ledger: Path) -> None:
    roughy.seed_asset()
    roughy.advance(3600)
    ahead = [roughy.seed_asset() for _ in range(120)]
    waiting = roughy.seed_asset(state="processing")
    roughy.advance(-3600)

    async def run() -> None:
        async with watch(ledger) as watching:
            await begun(ledger)
            new = roughy.seed_asset(state="processing")
            roughy.set_state(new, "ready")
            await watching.told(new)
            roughy.set_state(waiting, "ready")
            await watching.told(new, waiting)
            assert not watching.all() & set(ahead), "these were ready before"

    asyncio.run(run())


@pytest.mark.parametrize("odd", ["1970-01-01T00:00:00Z", "9999-12-31T23:59:59.999999-00:00"])
def test_odd_created_at_does_not_hide_other_assets(
    roughy: Emulator, ledger: Path, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    old = roughy.seed_asset()

    def rewrite(target: str, body: dict[str, Any]) -> None:
        if "offset=0" in target and body.get("items") and (body["items"][0]["id"] == old) == odd.startswith("9999"):
            body["items"][0]["created_at"] = odd

    async def run(url: str) -> None:
        elsewhere(connection, url, monkeypatch)
        async with watch(ledger, poll_interval=INTERVAL if odd.startswith("9999") else 3.0) as watching:
            await begun(ledger)
            # More than a page, ready within one round.
            new = await asyncio.to_thread(lambda: [roughy.seed_asset() for _ in range(150)])
            await watching.until(lambda: watching.all() >= set(new[:-1]))

    with rewritten(roughy, rewrite) as url:
        asyncio.run(run(url))


@pytest.mark.parametrize(
    "date", ["Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 99999999999 00:00:00 GMT"]
)
def test_odd_date_header_hides_no_asset(
    roughy: Emulator, ledger: Path, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch, date: str
) -> None:
    # Each full round advances the baseline to an hour before the date of its replies.
    monkeypatch.setattr(feed_module, "_FULL_ROUND_SECONDS", 0.5)
    roughy.seed_asset()

    async def run(url: str) -> None:
        elsewhere(connection, url, monkeypatch)
        async with watch(ledger) as watching:
            await begun(ledger)
            for _ in range(3):
                new = roughy.seed_asset()
                await watching.told(new)
                take(ledger, new)
                await asyncio.sleep(0.5)

    with rewritten(roughy, lambda target, body: None, date=date) as url:
        asyncio.run(run(url))


def test_asset_from_an_unknown_state_is_announced_when_ready(
    roughy: Emulator, ledger: Path, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, *old = [roughy.seed_asset() for _ in range(250)]
    monkeypatch.setattr(feed_module, "_FULL_ROUND_SECONDS", 0.5)
    monkeypatch.setattr(feed_module, "_SETTLED_AFTER", timedelta(0))
    monkeypatch.setattr(subscription_module, "_SETTLED_COUNT", 1)
    held = {before}

    def rewrite(target: str, body: dict[str, Any]) -> None:
        if body.get("id") in held:
            body["state"] = "quarantined"
        for asset in list(body.get("items", [])):
            if asset["id"] in held:
                if "state=" in target:
                    body["items"].remove(asset)
                asset["state"] = "quarantined"
        if "state=ready" in target:
            body["total"] -= len(held)

    async def run(url: str) -> None:
        elsewhere(connection, url, monkeypatch)
        async with watch(ledger) as watching:
            await begun(ledger)
            new = roughy.seed_asset()
            await watching.told(new)
            held.discard(before)
            await watching.told(new, before)
            # One that comes later is not settled by what is taken.
            later = roughy.seed_asset(state="processing")
            held.add(later)
            roughy.set_state(later, "ready")
            await asyncio.sleep(1.1)
            take(ledger, new, before)
            await begun(ledger, 2)
            held.discard(later)
            await watching.told(later)
            assert not watching.all() & set(old)

    with rewritten(roughy, rewrite) as url:
        asyncio.run(run(url))


# ---- Requests


def test_quiet_round_takes_as_many_requests_with_many_unpaid_assets(roughy: Emulator, ledger: Path) -> None:
    unpaid = [roughy.seed_asset(state="pending_payment") for _ in range(350)]

    async def run() -> None:
        async with watch(ledger) as watching:
            await begun(ledger)
            await rounds(roughy, 2)
            roughy.clear_requests()
            await rounds(roughy, 3)
            counts = Counter(re.findall(r"state=(\w+)", " ".join(request.query for request in roughy.requests)))
            assert max(counts.values()) - min(counts.values()) <= 1
            # One that is paid for deep in the list, with one that comes.
            roughy.seed_asset(state="pending_payment")
            roughy.set_state(unpaid[20], "ready")
            await watching.told(unpaid[20])
            gone = [unpaid[index] for index in (0, 100, 349)]
            for id in gone:
                roughy.set_state(id, "ready")
            await watching.told(unpaid[20], *gone)

    asyncio.run(run())


def test_baseline_advances_past_assets_that_were_taken(
    roughy: Emulator, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and requests depend on the assets that are open, new or not taken; a restart loses none of them."""
    monkeypatch.setattr(feed_module, "_FULL_ROUND_SECONDS", 0.5)
    monkeypatch.setattr(feed_module, "_SETTLED_AFTER", timedelta(0))
    monkeypatch.setattr(subscription_module, "_SETTLED_COUNT", 50)
    open_before = roughy.seed_asset(state="pending_payment")

    async def first() -> str:
        async with watch(ledger) as watching:
            await begun(ledger)
            untaken, *ids = [roughy.seed_asset() for _ in range(321)]
            await watching.told(untaken, *ids)
            take(ledger, *ids)
            await asyncio.sleep(1.1)
            await begun(ledger, 2)
            (feed,) = AssetFeed._feeds[asyncio.get_running_loop()].values()
            (reader,) = feed._readers.values()
            await until(lambda: len(feed._ended["ready"]) + len(reader._taken) < 100)
            roughy.clear_requests()
            await asyncio.sleep(1.5)
            pages = [request for request in roughy.requests if "state=ready" in request.query]
            assert max(int(re.findall(r"offset=(\d+)", page.query)[0]) for page in pages) == 0
            return untaken

    async def second(untaken: str) -> None:
        async with watch(ledger) as watching:
            await watching.told(untaken)
            assert watching.all() == {untaken}
            new = roughy.seed_asset()
            roughy.set_state(open_before, "ready")
            await watching.told(untaken, new, open_before)
            assert watching.all() == {untaken, new, open_before}

    asyncio.run(second(asyncio.run(first())))


# ---- If each event starts a run


def test_asset_is_announced_once_if_each_event_starts_a_run(
    roughy: Emulator, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription_module, "QUEUES_EACH_EVENT", True)

    async def first() -> list[str]:
        async with watch(ledger) as watching:
            await begun(ledger)
            ids = []
            for count in range(1, 4):
                ids.append(roughy.seed_asset())
                await watching.until(lambda count=count: len(watching.events) == count)  # type: ignore[misc]
            await rounds(roughy, 8)
            assert watching.events == [{"ready": [id]} for id in ids]
            take(ledger, ids[0])
            return ids[1:]

    async def killed_before_the_events_were_stored(ids: list[str]) -> None:
        monkeypatch.setattr(subscription_module, "_NOTE_AFTER_SECONDS", 0.2)
        async with watch(ledger) as watching:
            await watching.told(*ids)
            # A note of each that is not taken.
            await begun(ledger, 3)
            take(ledger, ids[0])

    async def restarted(ids: list[str]) -> None:
        async with watch(ledger) as watching:
            new = roughy.seed_asset()
            await watching.told(new)
            await rounds(roughy, 5)
            assert watching.events == [{"ready": [new]}]
            take(ledger, new)

    async def a_day_later(ids: list[str]) -> None:
        monkeypatch.setattr(subscription_module, "_ANNOUNCE_AGAIN_SECONDS", 0.3)
        async with watch(ledger) as watching:
            await watching.told(*ids)
            await rounds(roughy, 8)
            assert watching.events == [{"ready": ids}], "once more"

    left = asyncio.run(first())
    asyncio.run(killed_before_the_events_were_stored(left))
    asyncio.run(restarted(left[1:]))
    asyncio.run(a_day_later(left[1:]))


def test_assets_beyond_the_limit_of_an_event_follow_later(
    roughy: Emulator, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription_module, "QUEUES_EACH_EVENT", True)
    monkeypatch.setattr(subscription_module, "MAX_IDS_PER_STATE", 10)
    ids = [roughy.seed_asset() for _ in range(25)]

    async def run() -> None:
        async with watch(ledger, catchup=True) as watching:

            def announced() -> list[str]:
                return [id for event in watching.events for id in event["ready"]]

            for taken in (0, 10, 20):
                # A round may see a part of them taken, and announce as many others.
                await watching.until(lambda taken=taken: len(announced()) >= min(taken + 10, 25))  # type: ignore[misc]
                await rounds(roughy, 2)
                assert announced() == ids[: taken + 10]
                take(ledger, *ids[taken : taken + 10])
            await rounds(roughy, 3)
            assert announced() == ids

    asyncio.run(run())


def test_repeats_end_after_a_day_with_a_warning(
    roughy: Emulator, ledger: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subscription_module, "_FIRST_REPEAT_SECONDS", 0.1)
    monkeypatch.setattr(subscription_module, "_REPEAT_FOR_SECONDS", 0.5)

    async def run() -> None:
        async with watch(ledger) as watching:
            await begun(ledger)
            first = roughy.seed_asset()
            await until(lambda: "No run has taken 1 asset within a day" in caplog.text)
            count = len(watching.events)
            assert count >= 2
            await rounds(roughy, 8)
            assert len(watching.events) == count
            new = roughy.seed_asset()
            await watching.told(first, new)

    asyncio.run(run())


FAULTS: dict[str, dict[str, Any]] = {
    "away": {"drop": True, "times": 6},
    "broken": {"status": 500, "times": 6},
    "slow down": {"status": 429, "headers": {"Retry-After": "0.1"}, "times": 5},
    "garbage": {"garbage": True, "times": 6},
    "a gateway's page": {"status": 403, "body": "<html>no</html>", "times": 6},
    "a key that is refused": {"status": 401, "times": 3},
    "lists that are refused": {"status": 422, "times": 3},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_outage_loses_no_asset_and_is_logged_once(
    roughy: Emulator, ledger: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = roughy.seed_asset(state="processing")

    async def run() -> None:
        async with watch(ledger) as watching:
            await begun(ledger)
            await rounds(roughy)
            roughy.inject(Fault(**{"method": "GET", "path": "/v1/assets*", **FAULTS[fault]}))
            new = roughy.seed_asset()
            roughy.set_state(waiting, "ready")
            await watching.told(new, waiting)
            assert watching.all() == {new, waiting}

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    told = [
        record for record in caplog.records if "Watching assets of connection roughy_default failed" in record.message
    ]
    assert 1 <= len(told) <= 2, "not each time"


def test_corrected_connection_is_used_without_a_restart(
    roughy: Emulator,
    ledger: Path,
    connection: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps({**connection, "password": "sk_wrong"}))

    async def run() -> None:
        async with watch(ledger, catchup=True) as watching:
            asset_id = roughy.seed_asset()
            await until(lambda: "Watching assets of connection roughy_default failed" in caplog.text)
            monkeypatch.delenv("AIRFLOW_CONN_ROUGHY_DEFAULT")
            await until(lambda: "RoughyMissingConnectionError" in caplog.text or "no connection" in caplog.text.lower())
            monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(connection))
            await watching.told(asset_id)

    asyncio.run(run())
    assert "sk_" not in caplog.text


def replace_by_a_file(folder: Path) -> Path:
    """Replace a folder by a file, and return the new path of the folder."""
    away = folder.rename(folder.with_name("away"))
    folder.write_text("a file where a folder was")
    return away


def put_back(away: Path, folder: Path) -> None:
    folder.unlink()
    away.rename(folder)


def test_unavailable_ledger_announces_nothing_until_it_works(
    roughy: Emulator, ledger: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with watch(ledger) as watching:
            await begun(ledger)
            taken = roughy.seed_asset()
            await watching.told(taken)
            take(ledger, taken)
            away = replace_by_a_file(ledger)
            new = roughy.seed_asset()
            await until(lambda: f"Reading ledger {ledger} failed" in caplog.text)
            count = len(watching.events)
            put_back(away, ledger)
            await watching.told(new)
            assert watching.events[count:] == [{"ready": [new]}]

    asyncio.run(run())


def test_unreadable_baseline_announces_nothing_old(
    roughy: Emulator, ledger: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = roughy.seed_asset()

    async def start() -> None:
        async with watch(ledger):
            await begun(ledger)

    async def run() -> None:
        async with watch(ledger) as watching:
            await until(lambda: f"{note.name} of ledger" in caplog.text)
            assert watching.events == []
            note.write_bytes(whole)
            new = roughy.seed_asset()
            await watching.told(new)
            assert old not in watching.all()

    asyncio.run(start())
    (note,) = ledger.glob("note-*.json")
    whole = note.read_bytes()
    note.write_bytes(whole[: len(whole) // 2])
    asyncio.run(run())


def test_connection_with_a_new_base_url_gets_its_own_baseline(
    roughy: Emulator, ledger: Path, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_FULL_ROUND_SECONDS", 0.3)

    async def run(other: Emulator) -> None:
        before = [other.seed_asset() for _ in range(3)]
        async with watch(ledger) as watching:
            await begun(ledger)
            first = roughy.seed_asset()
            await watching.told(first)
            monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(other.airflow_connection))
            await begun(ledger, 2)
            new = other.seed_asset()
            await watching.until(lambda: watching.events[-1] == {"ready": [new]})
            assert not watching.all() & set(before)

    with Emulator(progression="manual") as other:
        asyncio.run(run(other))


def test_hanging_storage_does_not_block_other_watchers(roughy: Emulator, ledger: Path) -> None:
    asset_id = roughy.seed_asset()
    Ledger(ledger).check()
    # Whoever opens it to read waits for somebody who writes.
    hanging = ledger / f"{taken_key(asset_id, 'ready')}.json"
    os.mkfifo(hanging)

    async def run() -> None:
        async with (
            watch(ledger, catchup=True) as stuck,
            watch(ledger.with_name("other"), catchup=True) as other,
        ):
            await other.told(asset_id)
            new = roughy.seed_asset()
            await other.told(asset_id, new)
            assert stuck.events == []

    try:
        asyncio.run(run())
    finally:
        hanging.open("wb").close()


def test_watchers_of_two_event_loops_share_one_baseline(roughy: Emulator, ledger: Path) -> None:
    """As in two triggerers: there may be two events, but there is one baseline."""
    old = roughy.seed_asset()

    async def run() -> set[str]:
        async with watch(ledger) as watching:
            await begun(ledger)
            await until(lambda: len(roughy.assets) > 1)
            await watching.told(roughy.assets[-1]["id"])
            return watching.all()

    with ThreadPoolExecutor(2) as pool:
        told = [pool.submit(asyncio.run, run()) for _ in range(2)]
        while not list(ledger.glob("note-*.json")):
            time.sleep(0.01)
        new = roughy.seed_asset()
        assert [each.result() for each in told] == [{new}, {new}]
    assert old != new
    assert len(list(ledger.glob("note-*.json"))) == 1

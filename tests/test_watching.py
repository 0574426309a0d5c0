"""The watch for assets that become ready: what is announced, when, and at what cost."""

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
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy import watching as watching_module
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.events import taken_key
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.triggers import RoughyAssetsReadyTrigger
from airflow_provider_roughy.watching import Lookout
from tests.watching import INTERVAL, Watching, begun, rounds, take, until, watch

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    """A Roughy whose assets change when the test says so."""
    with Emulator(progression="manual") as emulator:
        yield emulator


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "taken"


def test_a_first_start_announces_nothing_old_and_all_that_comes(roughy: Emulator, ledger: Path) -> None:
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


def test_a_quiet_round_costs_four_requests_whoever_watches(roughy: Emulator, ledger: Path) -> None:
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
            assert len(Lookout._lookouts[asyncio.get_running_loop()]) == 1
            for each in others:
                await each.stop()

    asyncio.run(run())


def test_what_is_taken_is_announced_no_more_and_the_rest_is(roughy: Emulator, ledger: Path) -> None:
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


def test_what_is_not_taken_is_repeated_after_growing_pauses(roughy: Emulator, ledger: Path) -> None:
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


def test_a_repeat_asks_for_what_it_announces_and_no_more(
    roughy: Emulator, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching_module, "MOST_IDS", 1)
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


def test_with_catchup_all_that_there_is_is_announced(
    roughy: Emulator, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching_module, "MOST_IDS", 100)
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


def test_a_restart_loses_nothing_and_announces_nothing_old(roughy: Emulator, ledger: Path) -> None:
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


def test_states_are_announced_as_they_are(roughy: Emulator, ledger: Path) -> None:
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


def test_what_was_deleted_is_announced_no_more(roughy: Emulator, ledger: Path) -> None:
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


def test_one_that_stops_disturbs_no_other_and_the_last_one_closes_all(roughy: Emulator, ledger: Path) -> None:
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
        assert not Lookout._lookouts[asyncio.get_running_loop()]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_a_watch_whose_task_died_is_started_again(roughy: Emulator, ledger: Path) -> None:
    def kill(lookout: Lookout) -> None:
        assert lookout._task is not None
        lookout._task.cancel()

    async def run() -> None:
        async with watch(ledger) as watching:
            lookouts = Lookout._lookouts.setdefault(asyncio.get_running_loop(), {})
            while not lookouts:  # noqa: ASYNC110 - before anything else runs
                await asyncio.sleep(0)
            (lookout,) = lookouts.values()
            assert lookout.base_url is None, "the connection was not read yet"
            kill(lookout)
            await begun(ledger)
            kill(lookout)
            new = roughy.seed_asset()
            await watching.told(new)

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
def test_trouble_passes_and_nothing_is_lost(
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
    told = [record for record in caplog.records if "cannot be watched" in record.message]
    assert 1 <= len(told) <= 2, "not each time"


def test_a_new_key_is_picked_up(
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
            await until(lambda: "cannot be watched" in caplog.text)
            monkeypatch.delenv("AIRFLOW_CONN_ROUGHY_DEFAULT")
            await until(lambda: "RoughyMissingConnectionError" in caplog.text or "no connection" in caplog.text.lower())
            monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(connection))
            await watching.told(asset_id)

    asyncio.run(run())
    assert "sk_" not in caplog.text


def replace_by_a_file(folder: Path) -> Path:
    """Move a folder away, and return where it is now."""
    away = folder.rename(folder.with_name("away"))
    folder.write_text("a file where a folder was")
    return away


def put_back(away: Path, folder: Path) -> None:
    folder.unlink()
    away.rename(folder)


def test_a_ledger_that_is_away_and_comes_back(roughy: Emulator, ledger: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with watch(ledger) as watching:
            await begun(ledger)
            taken = roughy.seed_asset()
            await watching.told(taken)
            take(ledger, taken)
            away = replace_by_a_file(ledger)
            new = roughy.seed_asset()
            await until(lambda: "what was taken is not known" in caplog.text)
            count = len(watching.events)
            put_back(away, ledger)
            await watching.told(new)
            assert watching.events[count:] == [{"ready": [new]}]

    asyncio.run(run())


def test_a_baseline_that_cannot_be_read_is_not_taken_for_none(
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


def test_a_connection_that_leads_elsewhere_is_another_account(
    roughy: Emulator, ledger: Path, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching_module, "_FULL_SECONDS", 0.3)

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


def test_a_storage_that_hangs_holds_up_nobody_else(roughy: Emulator, ledger: Path) -> None:
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


def test_watchers_of_two_event_loops_announce_by_themselves(roughy: Emulator, ledger: Path) -> None:
    """As two triggerers do: there may be two events, and there is one baseline."""
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

"""The shared poll over hours, with a Roughy that lags, is wrong, limits requests or is down: in virtual time."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_roughy.event_loop import end, finish
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import ASSET, CUT, RENDER, Kind, OnPendingPayment, Outcome, Verdict
from airflow_provider_roughy.polling import ResourcePoller, SharedPoll, wait_for_batch, wait_until_final
from tests.virtual import EPOCH, Asked, Roughy, Rule, Trickling, asset, error, reply, virtual
from tests.watching import watch

__all__ = ["virtual"]

# Seconds; hours of virtual time take some, on a busy machine.
pytestmark = pytest.mark.timeout(600)

log = logging.getLogger(__name__)


async def wait(
    id: str, *, kind: Kind = ASSET, interval: float = 30, until: float = 3600, policy: OnPendingPayment = "fail"
) -> tuple[Verdict, float]:
    """Wait for a resource, and return the verdict and when it was there, in seconds since the start."""
    poller = ResourcePoller(kind, id, on_pending_payment=policy, log=log)
    verdict = await wait_until_final(RoughyHook(), poller, poll_interval=interval, deadline=EPOCH + until)
    return verdict, asyncio.get_running_loop().time()


def wait_for_all(roughy: Roughy, ids: list[str], **options: Any) -> list[tuple[Verdict, float]]:
    async def run() -> list[tuple[Verdict, float]]:
        return list(await asyncio.gather(*(wait(id, **options) for id in ids)))

    return roughy.run(run())


def outcomes(ended: list[tuple[Verdict, float]]) -> Counter[Outcome]:
    return Counter(verdict.outcome for verdict, _ in ended)


def between(start: float, end: float, answer: Callable[[], httpx.Response], *, paths: str = "") -> Rule:
    """Answer so from one time to another.

    :param paths: Only requests of this path; ``"list"`` those of lists, ``"one"`` those of single assets.
    """

    async def rule(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        kind = "list" if asked.path == "list" else "one"
        return answer() if start <= asked.at < end and paths in ("", kind, asked.path) else None

    return rule


def unreachable() -> httpx.Response:
    raise httpx.ConnectError("refused")


def trickle() -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "application/json"}, stream=Trickling())


#: Some KiB that unpack to more than any reply may have.
BOMB = gzip.compress(b" " * 64 * 1024 * 1024)


def bomb() -> httpx.Response:
    return reply(BOMB, content_encoding="gzip")


def html(status: int) -> Callable[[], httpx.Response]:
    return lambda: reply(b"<html>Welcome to the airport WiFi</html>", status, content_type="text/html")


# ---- Pauses


def spread(pauses: list[float]) -> bool:
    """Return whether pauses of half a minute are a tenth longer or shorter at most, and not all the same."""
    # A round gathers for a moment whoever comes along.
    return len(pauses) > 50 and min(pauses) >= 27 and max(pauses) < 33.2 and max(pauses) - min(pauses) > 5


def test_polls_of_many_triggerers_spread_over_time(virtual: Roughy) -> None:
    random.seed(1)  # of the pauses
    wait_for_all(virtual, virtual.add(1), interval=30, until=3600)
    # The last look is taken at the deadline.
    pauses = [later.at - sooner.at for sooner, later in pairwise(virtual.asked[:-1])]
    assert spread(pauses), pauses


def test_rounds_of_many_watchers_spread_over_time(virtual: Roughy, tmp_path: Path) -> None:
    random.seed(1)

    async def run() -> None:
        async with watch(tmp_path, poll_interval=30):
            await asyncio.sleep(2400)

    virtual.run(run())
    pauses = [later.at - sooner.at for sooner, later in pairwise(virtual.asked)]
    between_rounds = [pause for pause in pauses if pause > 10]
    assert spread(between_rounds), between_rounds


def test_batch_logs_its_progress_at_intervals(virtual: Roughy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ids = [id for second in range(10, 40) for id in virtual.add(1, (second, "ready" if second < 39 else "failed"))]
    virtual.run(wait_for_batch(RoughyHook(), ASSET, ids, poll_interval=1, deadline=EPOCH + 3600, log=log))
    first, *others, last = [text for name, _, text in caplog.record_tuples if name == __name__]
    assert first == "Waiting for 30 of 30 assets: 30 processing"
    assert last == "Finished waiting for 30 assets: 29 ready, 1 failed"
    assert 2 <= len(others) <= 3, "one in ten seconds at most"
    assert all(re.fullmatch(r"Waiting for \d+ of 30 assets: \d+ \w+, \d+ \w+", line) for line in others)


# ---- Outages and limits


def test_failing_list_does_not_delay_events_of_other_states(virtual: Roughy, tmp_path: Path) -> None:
    untaken, new = virtual.add(1, (10, "ready")), virtual.add(1, (2000, "ready"))

    async def refuse(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        if asked.at > 60 and request.url.params.get("state") == "pending_payment":
            return error(422, "validation_error")
        return None

    virtual.rules.append(refuse)

    async def run() -> set[str]:
        async with watch(tmp_path, catchup=True, poll_interval=30) as watching:
            await asyncio.sleep(3600)
            return watching.all()

    assert virtual.run(run()) == {*untaken, *new}


@pytest.mark.parametrize("seed", range(8))
def test_outage_until_just_before_the_deadline_loses_no_verdict(virtual: Roughy, seed: int) -> None:
    random.seed(seed)  # of the pauses
    ids = virtual.add(20, (3300, "ready"))
    virtual.rules.append(between(3295, 3595, unreachable))
    assert outcomes(wait_for_all(virtual, ids)) == {Outcome.SUCCEEDED: 20}


def test_polling_resumes_within_an_interval_after_an_outage(virtual: Roughy) -> None:
    ids = virtual.add(50, (100, "ready"))
    virtual.rules.append(between(60, 3000, unreachable))
    ended = wait_for_all(virtual, ids, interval=10)
    assert outcomes(ended) == {Outcome.SUCCEEDED: 50}
    assert max(at for _, at in ended) <= 3000 + 2 * 10 + 1
    away = [asked for asked in virtual.asked if 100 <= asked.at < 3000]
    assert 2900 / 10 * 0.8 <= len(away) <= 2900 / 10 * 1.2, "one request an interval, not one a waiter"


def test_retry_after_of_an_hour_is_shortened(virtual: Roughy) -> None:
    ids = virtual.add(20, (30, "ready"))
    first = between(5, 20, lambda: error(429, "rate_limited", retry_after="3600"))
    virtual.rules.append(first)
    ended = wait_for_all(virtual, ids, interval=4, until=605)
    assert outcomes(ended) == {Outcome.SUCCEEDED: 20}
    assert max(at for _, at in ended) < 330, "a pause of five minutes is obeyed, and no longer one"


def test_retry_after_is_obeyed_for_all_waiters(virtual: Roughy) -> None:
    ids = virtual.add(20, (30, "ready"))
    virtual.rules.append(between(5, 20, lambda: error(503, "upstream_unavailable", retry_after="120")))
    assert outcomes(wait_for_all(virtual, ids, interval=4)) == {Outcome.SUCCEEDED: 20}
    refused = min(asked.at for asked in virtual.asked if asked.at >= 5)
    assert [asked for asked in virtual.asked if refused + 1 <= asked.at < refused + 120] == []


def test_last_poll_at_the_deadline_ignores_the_pause(virtual: Roughy) -> None:
    ids = virtual.add(20, (30, "ready"))
    virtual.rules.append(between(5, 20, lambda: error(429, "rate_limited", retry_after="200")))
    ended = wait_for_all(virtual, ids, interval=4, until=100)
    assert outcomes(ended) == {Outcome.SUCCEEDED: 20}
    assert min(at for _, at in ended) > 99.9


def test_last_poll_has_a_time_limit(virtual: Roughy) -> None:
    (id,) = virtual.add(1)

    async def never(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        if asked.at >= 60:
            await asyncio.sleep(10_000)
        return None

    virtual.rules.append(never)
    ((verdict, at),) = wait_for_all(virtual, [id], until=100)
    assert verdict.outcome is Outcome.TIMED_OUT
    assert verdict.state == "processing"
    assert at <= 125


# ---- Lists


@pytest.mark.parametrize(
    "fault",
    [
        unreachable,
        html(403),
        lambda: error(429, "rate_limited", retry_after="600"),
        lambda: error(503, "upstream_unavailable", retry_after="600"),
        lambda: reply({"items": "none"}),
    ],
    ids=["unreachable", "gateway", "429", "503", "odd"],
)
def test_waiters_are_polled_singly_if_the_list_fails(virtual: Roughy, fault: Callable[[], httpx.Response]) -> None:
    ids = virtual.add(60, (200, "ready"))
    virtual.rules.append(between(0, 10_000, fault, paths="list"))
    ended = wait_for_all(virtual, ids, interval=10)
    assert outcomes(ended) == {Outcome.SUCCEEDED: 60}
    assert max(at for _, at in ended) < 230
    lists = [asked for asked in virtual.asked if asked.path == "list"]
    assert 1 <= len(lists) <= 7, "and is left alone for longer each time"


def test_hanging_list_does_not_block_single_polls(virtual: Roughy) -> None:
    ids = virtual.add(60, (200, "ready"))

    async def hang(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        if asked.path == "list":
            await asyncio.sleep(10_000)
        return None

    virtual.rules.append(hang)
    ended = wait_for_all(virtual, ids, interval=10)
    assert outcomes(ended) == {Outcome.SUCCEEDED: 60}
    assert max(at for _, at in ended) < 260


def test_lagging_list_is_verified_after_some_rounds(virtual: Roughy) -> None:
    """A replica that stands still goes on listing what has long been ready."""
    ids = virtual.add(60, (300, "ready"))

    async def lag(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        if asked.path != "list" or asked.at < 200:
            return None
        return reply({"items": [virtual.item(id, at=200) for id in ids], "total": 60, "limit": 100, "offset": 0})

    virtual.rules.append(lag)
    ended = wait_for_all(virtual, ids, interval=10, until=20_000)
    assert outcomes(ended) == {Outcome.SUCCEEDED: 60}
    assert max(at for _, at in ended) < 3000, "each is asked for by itself every so often, not only at the deadline"


def test_lagging_list_loses_no_verdict(virtual: Roughy) -> None:
    ids = virtual.add(60, (300, "ready"))

    async def lag(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        if asked.path != "list":
            return None
        return reply({"items": [virtual.item(id, at=0) for id in ids], "total": 60, "limit": 100, "offset": 0})

    virtual.rules.append(lag)
    assert outcomes(wait_for_all(virtual, ids, interval=100, until=400)) == {Outcome.SUCCEEDED: 60}


def test_thousand_waiters_take_few_requests_a_round(virtual: Roughy) -> None:
    ids = virtual.add(1000, (30 * 60, "ready"))
    wait_for_all(virtual, ids, until=30 * 50)
    steady = [asked for asked in virtual.asked if 60 <= asked.at < 30 * 49]
    rounds = sum(1 for before, after in pairwise(steady) if after.at - before.at > 5) + 1
    assert rounds >= 45
    assert len(steady) / rounds <= 12


@pytest.mark.parametrize("kind", [CUT, RENDER], ids=lambda kind: kind.name)
def test_thousand_cuts_or_renders_take_few_requests_a_round(virtual: Roughy, kind: Kind) -> None:
    """Also in the round in which all of them begin to be worked on, and in the first one, which knows no state yet."""
    ids = virtual.add(1000, (30 * 9, "processing"), (30 * 60, "completed"), first="pending")
    wait_for_all(virtual, ids, kind=kind, until=30 * 50)
    rounds: list[list[Asked]] = []
    for asked in virtual.asked:
        if asked.at < 30 * 49:
            if not rounds or asked.at - rounds[-1][-1].at > 5:
                rounds.append([])
            rounds[-1].append(asked)
    assert len(rounds) >= 46
    assert max(len(each) for each in rounds) <= 12


# ---- What one answer says of others


@pytest.mark.parametrize(
    "answer",
    [
        lambda: error(404, "not_found", retry_after="30"),
        lambda: error(403, "forbidden", retry_after="30"),
        lambda: error(410, "gone", retry_after="30"),
    ],
    ids=["404", "403", "410"],
)
def test_unavailable_resource_does_not_affect_the_others(virtual: Roughy, answer: Callable[[], httpx.Response]) -> None:
    ids = virtual.add(60, (100, "ready"))
    virtual.rules.append(between(0, 10_000, answer, paths=ids[7]))
    virtual.rules.append(between(0, 10_000, lambda: error(403, "forbidden"), paths="list"))
    ended = wait_for_all(virtual, ids)
    assert outcomes(ended) == {Outcome.SUCCEEDED: 59, Outcome.UNAVAILABLE: 1}
    assert ended[7][0].outcome is Outcome.UNAVAILABLE


def test_malformed_id_does_not_affect_the_others(virtual: Roughy) -> None:
    ids = virtual.add(60, (100, "ready"))
    # Each is asked for by itself, before or after one that cannot be.
    virtual.rules.append(between(0, 10_000, lambda: error(403, "forbidden"), paths="list"))
    ended = wait_for_all(virtual, [*ids, *(f"no id {number}" for number in range(5))])
    assert outcomes(ended) == {Outcome.SUCCEEDED: 60, Outcome.UNAVAILABLE: 5}
    assert "must be a UUID" in (ended[-1][0].error or {})["message"]


def test_id_may_be_spelled_in_capitals(virtual: Roughy) -> None:
    ids = virtual.add(100, (1000, "ready"))
    ended = wait_for_all(virtual, [id.upper() for id in ids])
    assert [verdict.id for verdict, _ in ended] == ids
    assert sum(asked.path != "list" for asked in virtual.asked) < 200, "found on the list, like others"


ODD = {
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "infinite": b'{"id": 1e999, "state": "ready"}',
    "a list": b"[]",
    "another one": json.dumps(asset("019de7f7-3a52-74d1-9eeb-ffffffffffff", "ready")).encode(),
    "no UTF-8": b"\xff\xfe",
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
def test_malformed_reply_about_one_does_not_affect_the_others(virtual: Roughy, body: bytes) -> None:
    ids = virtual.add(30, (100, "ready"))
    virtual.rules.append(between(0, 500, lambda: reply(body), paths=ids[3]))
    ended = wait_for_all(virtual, ids)
    assert outcomes(ended) == {Outcome.SUCCEEDED: 30}
    assert [verdict.id for verdict, _ in ended] == ids
    assert max(at for number, (_, at) in enumerate(ended) if number != 3) < 140


@pytest.mark.parametrize("date", ["Fri, 31 Dec 99999 23:59:59 GMT", "soon", "-1", "1e999", "9" * 400])
def test_malformed_retry_after_is_ignored(virtual: Roughy, date: str) -> None:
    ids = virtual.add(30, (100, "ready"))
    virtual.rules.append(between(20, 60, lambda: error(429, "rate_limited", retry_after=date)))
    assert outcomes(wait_for_all(virtual, ids)) == {Outcome.SUCCEEDED: 30}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 415])
def test_error_of_a_gateway_ends_no_wait(virtual: Roughy, status: int) -> None:
    ids = virtual.add(20, (100, "ready"))
    virtual.rules.append(between(0, 300, html(status)))
    assert outcomes(wait_for_all(virtual, ids)) == {Outcome.SUCCEEDED: 20}


@pytest.mark.parametrize("trickles", [False, True], ids=["hangs", "trickles"])
def test_hanging_request_does_not_delay_the_others_for_long(virtual: Roughy, trickles: bool) -> None:
    # Whoever changes first is asked for before the others are.
    ids = virtual.add(50, (100, "ready")) + virtual.add(50, (200, "ready"))

    async def hang(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        if asked.path != ids[0]:
            return None
        if not trickles:
            await asyncio.sleep(10_000)
        return trickle()

    virtual.rules.append(hang)
    ended = wait_for_all(virtual, ids, interval=10, until=1000)
    assert outcomes(ended) == {Outcome.SUCCEEDED: 99, Outcome.TIMED_OUT: 1}
    assert max(at for _, at in ended[1:]) < 300


# ---- The connection


def connect(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    connection = {"conn_type": "roughy", "host": "https://api.roughy.ai", "password": "sk_old", **fields}
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(connection))


@pytest.mark.usefixtures("airflow_db")
def test_secrets_backend_that_is_down_ends_no_wait(virtual: Roughy, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = virtual.add(50, (100, "ready"))
    monkeypatch.delenv("AIRFLOW_CONN_ROUGHY_DEFAULT")

    async def run() -> list[tuple[Verdict, float]]:
        asyncio.get_running_loop().call_later(95, connect, monkeypatch)
        return list(await asyncio.gather(*(wait(id) for id in ids)))

    assert outcomes(virtual.run(run())) == {Outcome.SUCCEEDED: 50}


@pytest.mark.usefixtures("airflow_db")
def test_missing_connection_is_named_at_the_deadline(virtual: Roughy, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = virtual.add(1)
    monkeypatch.delenv("AIRFLOW_CONN_ROUGHY_DEFAULT")
    ((verdict, at),) = wait_for_all(virtual, ids, until=100)
    assert verdict.outcome is Outcome.TIMED_OUT
    assert "Airflow has no connection 'roughy_default'" in (verdict.error or {})["message"]
    assert at > 99.9


def test_new_waiters_use_the_changed_host_of_a_connection(virtual: Roughy, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = virtual.add(20, (900, "ready")), virtual.add(20, (900, "ready"))

    async def elsewhere(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        at_home = new if asked.host == "new.roughy.ai" else old
        return None if asked.path in (*at_home, "list") else error(404, "not_found")

    virtual.rules.append(elsewhere)

    async def run() -> list[tuple[Verdict, float]]:
        before = [asyncio.ensure_future(wait(id)) for id in old]
        await asyncio.sleep(100)
        connect(monkeypatch, host="https://new.roughy.ai")
        after = [asyncio.ensure_future(wait(id)) for id in new]
        return list(await asyncio.gather(*before, *after))

    assert outcomes(virtual.run(run())) == {Outcome.SUCCEEDED: 40}


def test_replaced_key_is_read_after_the_old_one_was_rejected(virtual: Roughy, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = virtual.add(100, (900, "ready"))

    async def guard(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        return error(401, "unauthenticated") if asked.at > 200 and asked.key != "sk_new" else None

    virtual.rules.append(guard)

    async def run() -> list[tuple[Verdict, float]]:
        asyncio.get_running_loop().call_later(150, lambda: connect(monkeypatch, password="sk_new"))
        return list(await asyncio.gather(*(wait(id) for id in ids)))

    assert outcomes(virtual.run(run())) == {Outcome.SUCCEEDED: 100}
    assert sum(asked.key == "sk_old" for asked in virtual.asked if asked.at > 200) <= 10


def test_revoked_key_ends_all_waits_at_once(virtual: Roughy) -> None:
    ids = virtual.add(100)
    virtual.rules.append(between(200, 10_000, lambda: error(401, "unauthenticated")))
    ended = wait_for_all(virtual, ids)
    assert outcomes(ended) == {Outcome.UNAVAILABLE: 100}
    assert max(at for _, at in ended) < 240


# ---- The poll's own task


class Strange(BaseException):
    """As Airflow has some: no Exception."""


@pytest.mark.parametrize("strange", [Strange, ValueError, RecursionError])
def test_unexpected_error_ends_no_wait(
    virtual: Roughy, caplog: pytest.LogCaptureFixture, strange: type[BaseException]
) -> None:
    ids = virtual.add(20, (200, "ready"))

    async def fail(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        if 50 <= asked.at < 120:
            raise strange("never seen before")
        return None

    virtual.rules.append(fail)
    assert outcomes(wait_for_all(virtual, ids)) == {Outcome.SUCCEEDED: 20}
    assert "never seen before" in caplog.text


class Unspeakable(Strange):
    """Cannot even be told."""

    def __str__(self) -> str:
        raise ValueError("no words")


def test_end_cancels_a_task_even_if_it_is_cancelled_itself(virtual: Roughy) -> None:
    async def take_the_first_for_its_own() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)
        await asyncio.sleep(1000)

    async def run() -> None:
        task = asyncio.create_task(take_the_first_for_its_own())
        ending = asyncio.create_task(finish(end(task)))
        await asyncio.sleep(0.5)
        ending.cancel("user-action")
        with pytest.raises(asyncio.CancelledError, match="user-action"):
            await ending
        assert task.cancelled()

    virtual.run(run())


@pytest.mark.parametrize("newcomer", [False, True], ids=["those who wait", "a newcomer as well"])
@pytest.mark.parametrize("death", [None, Unspeakable()], ids=["cancelled", "raises"])
def test_crashed_poll_task_is_restarted(virtual: Roughy, death: BaseException | None, newcomer: bool) -> None:
    ids = virtual.add(20, (200, "ready"))

    async def fail(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        if death and 50 <= asked.at < 85:
            raise death
        return None

    virtual.rules.append(fail)

    async def run() -> list[tuple[Verdict, float]]:
        tasks = [asyncio.ensure_future(wait(id)) for id in ids[:19]]
        await asyncio.sleep(50)
        (poll,) = SharedPoll._polls[asyncio.get_running_loop()].values()
        assert poll._task is not None
        if death is None:
            poll._task.cancel()
        await asyncio.sleep(1)
        return list(await asyncio.gather(*tasks, *([wait(ids[19])] if newcomer else [])))

    ended = virtual.run(run())
    assert outcomes(ended) == {Outcome.SUCCEEDED: 19 + newcomer}
    assert max(at for _, at in ended) < 300


# ---- Any of it at random


def any_trouble(choose: random.Random, virtual: Roughy, ids: list[str]) -> Rule:
    start = choose.uniform(0, 800)
    end = start + choose.uniform(0, 300)
    kind = choose.choice(["", "list", "one", choose.choice(ids)])

    async def lag(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        if not start <= asked.at < end or kind not in ("", "list" if asked.path == "list" else "one", asked.path):
            return None
        before = max(0.0, asked.at - 200)
        if asked.path != "list":
            return reply(virtual.item(asked.path, at=before))
        listed = [virtual.item(id, at=before) for id in ids if virtual.state(id, at=before) == "processing"]
        return reply({"items": listed[:100], "total": len(listed), "limit": 100, "offset": 0})

    async def slow(asked: Asked, request: httpx.Request) -> httpx.Response | None:
        if start <= asked.at < end:
            await asyncio.sleep(choose.choice([1, 20, 500]))
        return None

    answers: list[Callable[[], httpx.Response]] = [
        unreachable,
        trickle,
        bomb,
        html(choose.choice([400, 401, 403, 404, 410, 415])),
        lambda: error(500, "internal_error"),
        lambda: error(429, "rate_limited", retry_after=str(choose.choice([1, 60, 3600]))),
        lambda: error(503, "upstream_unavailable", retry_after=str(choose.choice([1, 60, 3600]))),
        lambda: reply(choose.choice(list(ODD.values())[1:])),
    ]
    if choose.random() < 0.3:
        return choose.choice([lag, slow])
    return between(start, end, choose.choice(answers), paths=kind)


@pytest.mark.parametrize("seed", range(int(os.environ.get("SEEDS", "15"))))
def test_each_waiter_gets_the_true_state(virtual: Roughy, seed: int) -> None:
    """More seeds by hand: ``SEEDS=1000``."""
    choose = random.Random(seed)
    ids = virtual.add(choose.randint(1, 150))
    ends = {"ready": Outcome.SUCCEEDED, "failed": Outcome.FAILED, "pending_payment": Outcome.PAYMENT_REQUIRED}
    becomes: dict[str, Outcome] = {}
    for id in ids:
        end = choose.choice(list(ends))
        virtual.states[id].append((choose.uniform(0, 900), end))
        becomes[id] = ends[end]
    virtual.rules.extend(any_trouble(choose, virtual, ids) for _ in range(choose.randint(0, 4)))
    # All trouble is over by then.
    ended = wait_for_all(virtual, ids, interval=choose.choice([1, 10, 60]), until=1700)
    wrong = [(verdict, at) for verdict, at in ended if verdict.outcome is not becomes[verdict.id]]
    assert wrong == [], seed
    assert [verdict.id for verdict, _ in ended] == ids

"""The cost of waiting for many assets in one event loop, compared with other implementations."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from benchmarks.measure import Target, percentile, table
from benchmarks.processes import ROOT, module
from benchmarks.servers import KEY, Scratch, Server, emulated

OURS, CUTS = "ours", "cuts"
#: The titles of :data:`benchmarks.waiters.WAYS` in tables.
_TITLES = {
    OURS: "this package's trigger",
    CUTS: "the same, of cuts",
    "naive": "one GET per waiter",
    "http": "http provider's sensor trigger",
}

#: Seconds between two polls, by the number of waiters. The emulator serves about 200 requests per second.
_INTERVALS = {10: 1.0, 100: 2.0, 1000: 8.0, 5000: 8.0, 10_000: 16.0}
#: With more waiters, the peers would send more requests than that.
_MAX_PEER_WAITERS = 1000
#: Intervals in which all assets are processing, in which some settle one by one, and until their events arrive.
_ROUNDS, _TRICKLE, _PAUSE = 2.2, 1.0, 1.5
#: The share of the assets that settle one by one; the others settle at the same time.
_TRICKLING = 0.1


@dataclass(frozen=True)
class Wait:
    """The result of some waiters.

    :param requests: Requests per round, while all assets are processing.
    :param cpu: Seconds of processor time per round, while all assets are processing.
    :param memory: Bytes per waiter.
    :param lag: Seconds of delay of the event loop, from the first trigger to the last event, except while
        ``requests`` and ``cpu`` are counted: p99 and maximum.
    :param own_lag: The part of them in which the process was working, and did not wait for a processor.
    :param one_by_one: Seconds from a change of state to its event, of assets that settle one after another.
    :param at_once: The same of assets that all settle at the same time.
    :param lost: How many waiters had no event.
    """

    requests: float
    cpu: float
    memory: float
    lag: tuple[float, float]
    own_lag: tuple[float, float]
    one_by_one: Sequence[float]
    at_once: Sequence[float]
    lost: int


#: By number of waiters and way; ``None`` if a way is not measured.
Waits = Mapping[tuple[int, str], Wait | None]


def run(scratch: Scratch, *, say: Callable[[str], None]) -> tuple[list[str], list[Target]]:
    """Wait in all ways, for few and for many assets.

    :param scratch: The folder for files.
    :param say: Called with lines about the progress.
    :returns: Tables and targets.
    """
    waits: dict[tuple[int, str], Wait | None] = {}
    for count in _INTERVALS:
        for way in _TITLES:
            say(f"waiting: {count:,} with {_TITLES[way]}")
            left_out = (way != OURS and count > _MAX_PEER_WAITERS) or (way == CUTS and count < _MAX_PEER_WAITERS)
            waits[count, way] = None if left_out else _wait(scratch, way, count)
    return [_cost_table(waits), _delay_table(waits)], list(_targets(waits))


def _wait(scratch: Scratch, way: str, count: int) -> Wait:
    interval, kind = _INTERVALS[count], "cut" if way == CUTS else "asset"
    with emulated(scratch, f"{way}-{count}", kind=kind, done=1, processing=count) as server:
        ids = [found["id"] for found in server.ask(f"/_emulator/{kind}s")]
        waiters = subprocess.Popen(
            module("waiters", way, str(interval), str(_ROUNDS)),
            cwd=ROOT,
            env=server.environment | {"AIRFLOW_CONN_HTTP_DEFAULT": _http_connection(server)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with waiters:
            try:
                assert waiters.stdin is not None
                assert waiters.stdout is not None
                print(json.dumps(ids), file=waiters.stdin, flush=True)
                steady = json.loads(waiters.stdout.readline())
                one_by_one, at_once = _settle(server, kind, ids[1:], interval)
                end = json.loads(waiters.stdout.readline())
            finally:
                waiters.kill()
        log = server.ask("/_emulator/requests")
    if steady["early"]:
        raise RuntimeError(f"{steady['early']} events of assets that were still processing")
    asked = [entry for entry in log if steady["begin"] <= entry["started_at"] < steady["end"]]
    requests = _requests_a_round(asked)
    events: dict[str, float] = end["events"]
    return Wait(
        requests=requests,
        cpu=steady["cpu"] / len(asked) * requests,
        memory=steady["growth"] / count,
        lag=tuple(end["lag"]),
        own_lag=tuple(end["own"]),
        one_by_one=_delays(one_by_one, events),
        at_once=_delays(at_once, events),
        lost=count - len(events),
    )


def _http_connection(server: Server) -> str:
    headers = {"Authorization": f"Bearer {KEY}"}
    return json.dumps({"conn_type": "http", "host": server.url, "extra": headers})


def _settle(
    server: Server, kind: str, ids: Sequence[str], interval: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Settle some assets or cuts one by one, at random moments, and then all others at the same time.

    :returns: When each of them was done, in seconds since the epoch.
    """
    some = random.sample(ids, max(3, round(_TRICKLING * len(ids))))
    one_by_one: dict[str, float] = {}
    started = time.time()
    for asset_id, moment in zip(some, sorted(random.uniform(0, _TRICKLE) for _ in some), strict=True):
        time.sleep(max(0.0, started + moment * interval - time.time()))
        server.ask(f"/_emulator/{kind}s/{asset_id}/state", {"state": "completed" if kind == "cut" else "ready"})
        one_by_one[asset_id] = time.time()
    time.sleep(_PAUSE * interval)
    settled = server.ask("/_emulator/settle", {})["settled"]
    return one_by_one, dict.fromkeys(settled, time.time())


def _delays(changed: Mapping[str, float], events: Mapping[str, float]) -> list[float]:
    # The caller knows of a change a moment after it; an event may arrive before.
    return [max(0.0, events[asset_id] - at) for asset_id, at in changed.items() if asset_id in events]


def _requests_a_round(log: Sequence[Mapping[str, Any]]) -> float:
    """Return the number of requests from one to the next that is equal to it.

    Unlike requests by time, this does not depend on how many rounds fit into the time.
    """
    places = defaultdict(list)
    for place, entry in enumerate(log):
        places[entry["path"], entry["query"]].append(place)
    return mean((found[-1] - found[0]) / (len(found) - 1) for found in places.values() if len(found) > 1)


def _cost_table(waits: Waits) -> str:
    header = ["waiters", "way", "requests per round", "CPU per round, ms", "KiB per waiter"]
    header += ["lag p99 (own), ms", "lag max (own), ms", "requests / ours", "CPU / ours"]
    rows = []
    for (count, way), wait in waits.items():
        ours = waits[count, OURS]
        assert ours is not None
        values = wait and [
            f"{wait.requests:.1f}",
            f"{wait.cpu * 1000:.1f}",
            f"{wait.memory / 1024:.1f}",
            *(f"{lag * 1000:.0f} ({own * 1000:.0f})" for lag, own in zip(wait.lag, wait.own_lag, strict=True)),
            f"{wait.requests / ours.requests:.1f}",
            f"{wait.cpu / ours.cpu:.1f}",
        ]
        rows.append([f"{count:,}", _TITLES[way], *(values or ["-"] * (len(header) - 2))])
    title = (
        "waiting: a round while all are processing; lag in all other rounds, first and last too, own: at work itself; "
        f"-: left out, more than {_MAX_PEER_WAITERS:,} GETs a round are too many for the emulator"
    )
    return table(title, header, rows)


def _delay_table(waits: Waits) -> str:
    header = ["waiters", "way", "interval, s", "one by one, p50", "p99", "all at once, p50", "p99", "no event"]
    rows = [
        [
            f"{count:,}",
            _TITLES[way],
            f"{_INTERVALS[count]:g}",
            *(f"{percentile(delays, each):.2f}" for delays in (wait.one_by_one, wait.at_once) for each in (50, 99)),
            str(wait.lost),
        ]
        for (count, way), wait in waits.items()
        if wait
    ]
    title = (
        "waiting: seconds from ready to the event; some at random, then all others at once, at any moment of a round "
        "(then it is the emulator that takes the time)"
    )
    return table(title, header, rows)


def _targets(waits: Waits) -> Iterator[Target]:
    thousand, cuts, most = waits[1000, OURS], waits[1000, CUTS], waits[10_000, OURS]
    assert thousand is not None
    assert cuts is not None
    assert most is not None
    yield Target("requests per round, 1,000 waiters", 12, thousand.requests)
    yield Target("requests per round, 1,000 waiters for cuts", 12, cuts.requests)
    yield Target("requests per round, 10,000 waiters", 120, most.requests)
    yield Target("KiB a waiter, 1,000 waiters", 20, thousand.memory / 1024)
    yield Target("ms of lag of the event loop, p99, 1,000 waiters", 20, thousand.lag[0] * 1000)
    yield Target("ms of lag of the event loop, at most, 1,000 waiters", 200, thousand.lag[1] * 1000)
    yield Target("ms of own lag of the event loop, at most, 10,000 waiters", 100, most.own_lag[1] * 1000)

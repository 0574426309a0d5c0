"""Assets that become ready start a DAG, however often triggerers and scheduler die meanwhile; twenty watchers look.

``ROUGHY_ASSETS=500`` makes it long and thorough: some eight minutes, a dozen kills. Each run prints its seed, by which
``ROUGHY_SEED`` repeats one that has failed, as far as the machine's own timing lets it.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from airflow_provider_roughy.api import create_webhook_endpoint, delete_asset, delete_webhook_endpoint, get_asset
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.http.client import Client
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.settings import Settings
from harness.airflow import FINISHED, PATIENCE, Component, LocalAirflow
from tests.live import live
from tests.live.conftest import HERE
from tests.live.running import TITLES, Load, printed_load, wait_until

pytestmark = live("3.3", timeout=2400)

COUNT = int(os.environ.get("ROUGHY_ASSETS", "60"))
SEED = int(os.environ.get("ROUGHY_SEED", random.randrange(1_000_000)))
#: Seconds over which they become ready.
STORM = COUNT / 2.5
#: Seconds, as the DAGs have it.
POLL_INTERVAL = 3
#: As the DAGs have it, the one with something to say among them.
WATCHERS = 20
#: Requests of a round that finds nothing new.
ROUND = 4
#: Seconds that a busy machine may add, here and there.
SLACK = 60
#: Those that are ready before anybody watches, and those that are paid for one by one when all is quiet.
OLD, LATE = 5, 3
DAG_ID = "reacts_to_media"
TRIGGERERS: tuple[Component, Component] = ("triggerer", "triggerer-2")

#: Assets and what happens to them, at the same moment.
Step = Sequence[tuple[int, str]]
#: How many of twenty assets, and what happens to them after their creation, which is before all else for half of them.
FATES: list[tuple[int, Sequence[str]]] = [
    (11, ["ready"]),
    (4, ["settle", "top up"]),
    (1, ["fail"]),
    (1, ["delete"]),
    (1, ["settle", "delete"]),
    (1, ["settle"]),
    (1, ["ready", "delete"]),
]


def script(rng: random.Random) -> list[tuple[float, Step]]:
    """Return what happens, in bursts and one by one, with the seconds before it."""
    fates = [fate for share, fate in FATES for _ in range(share)]
    left = {number: ["create", *fates[number % len(fates)]] for number in range(COUNT)}
    steps: list[Step] = [[(number, left[number].pop(0)) for number in range(0, COUNT, 2)]]
    while left:
        size = 1 if rng.random() < 0.6 else rng.randint(3, 20)
        step = []
        for number in rng.choices(list(left), k=size):
            if left.get(number):
                step.append((number, left[number].pop(0)))
            if not left.get(number):
                left.pop(number, None)
        steps.append(step)
    pauses = [rng.expovariate(1) for _ in steps]
    return [(pause * STORM / sum(pauses), step) for pause, step in zip(pauses, steps, strict=True)]


class World:
    """Roughy, and all that has become of its assets.

    :param roughy: The emulator, with no credits.
    """

    def __init__(self, roughy: Emulator) -> None:
        self._roughy = roughy
        fields = roughy.airflow_connection
        self._client = Client(Settings(api_key=fields["password"], base_url=fields["host"]))
        self._ids: dict[int, str] = {}
        self._states_of_deleted: dict[str, list[tuple[str, str]]] = {}
        #: When assets were removed, by id.
        self.deleted: dict[str, float] = {}

    def close(self) -> None:
        """Let go of the network."""
        self._client.close()

    def do(self, number: int, what: str) -> None:
        """Let something happen to an asset.

        :param number: Which.
        :param what: What.
        """
        if what == "create":
            self._ids[number] = self._roughy.seed_asset("processing", content=b"media")
        id = self._ids[number]
        match what:
            case "ready":
                self._roughy.set_state(id, "ready")
            case "fail":
                self._roughy.set_state(id, "failed")
            case "settle":
                self._roughy.settle(id)
            case "top up":
                # For the one that has waited for the longest.
                self._roughy.top_up(1)
            case "delete":
                self._states_of_deleted[id] = self._roughy.asset(id)["states"]
                self._client.run(delete_asset(id))
                self.deleted[id] = time.time()

    def signed_url(self, id: str) -> str:
        """Return the link to an asset's media, as the watcher gets it too."""
        return self._client.run(get_asset(id)).download_url or ""

    @contextmanager
    def webhooks(self, airflow: LocalAirflow) -> Iterator[None]:
        """Have Airflow told by webhooks as well."""
        url, events = f"{airflow.url}/roughy/webhooks", ["asset.ready", "asset.failed", "asset.pending_payment"]
        endpoint = self._client.run(create_webhook_endpoint(url, events))
        yield
        wait_until(lambda: {each["state"] for each in self._roughy.webhook_deliveries} <= {"delivered"})
        print(f"{len(self._roughy.webhook_deliveries)} webhooks were delivered.")
        self._client.run(delete_webhook_endpoint(endpoint.id))

    def due(self) -> set[str]:
        """Return the assets that are ready, the old ones among them."""
        return {asset["id"] for asset in self._roughy.assets if asset["state"] == "ready"}

    def entered(self, state: str) -> dict[str, float]:
        """Return when assets came to a state, for the last time, by id."""
        histories = {asset["id"]: asset["states"] for asset in self._roughy.assets} | self._states_of_deleted
        return {
            id: datetime.fromisoformat(at).timestamp()
            for id, states in histories.items()
            for each, at in states
            if each == state
        }


@dataclass(frozen=True)
class Event:
    """An event of the Airflow asset.

    :param at: When it was stored.
    :param ids: What it tells of, by state.
    :param by_webhook: Whether a webhook made it; some of those are there only to wake Airflow, and tell of nothing.
    :param queued_at: When the first run that got it was queued; ``None`` if none was.
    """

    at: float
    ids: dict[str, list[str]]
    by_webhook: bool
    queued_at: float | None


class Consumer:
    """The DAG that takes what is announced.

    :param airflow: Where it runs.
    """

    def __init__(self, airflow: LocalAirflow) -> None:
        self._airflow = airflow
        self._database = sqlalchemy.create_engine(airflow.sql_alchemy_conn, poolclass=sqlalchemy.NullPool)
        self._done = Path(airflow.env["WATCHED_DONE"])
        self._taken = Path(airflow.env["WATCHED_TAKEN"])

    def start(self) -> None:
        """Switch on the DAGs and their watchers, and wait until those have begun."""
        self._done.mkdir()
        shutil.copy(HERE / "watching" / "media.py", self._airflow.home / "more")
        wait_until(lambda: len(list(self._taken.glob("note-*.json"))) == WATCHERS)

    def done(self) -> dict[str, set[str]]:
        """Return which runs have dealt with which assets."""
        return {path.name: set(path.read_text().split()) for path in self._done.iterdir()}

    def has_done(self, ids: Collection[str]) -> bool:
        """Return whether all of some assets were dealt with."""
        return {path.name for path in self._done.iterdir()}.issuperset(ids)

    def taken(self) -> list[tuple[str, str]]:
        """Return the ledger: pairs of an asset and who has taken it."""
        return [(str(entry.asset_id), entry.owner) for entry in Ledger(self._taken).entries()]

    def runs(self) -> dict[str, str]:
        """Return the states of all runs."""
        query = f"SELECT run_id, state FROM dag_run WHERE dag_id = '{DAG_ID}'"
        return {row["run_id"]: row["state"] for row in self._ask(query)}

    def tries(self) -> Counter[int]:
        """Return how many task instances took how many tries."""
        return Counter(
            row["try_number"] for row in self._ask(f"SELECT try_number FROM task_instance WHERE dag_id = '{DAG_ID}'")
        )

    def holders(self) -> Counter[int | None]:
        """Return how many triggers each triggerer holds."""
        return Counter(row["triggerer_id"] for row in self._ask("SELECT triggerer_id FROM trigger"))

    def events(self) -> list[Event]:
        """Return all events so far."""
        query = """
            SELECT event.timestamp, event.extra, (
                SELECT min(run.queued_at) FROM dagrun_asset_event link JOIN dag_run run ON run.id = link.dag_run_id
                WHERE link.event_id = event.id
            ) AS queued_at
            FROM asset_event event JOIN asset ON asset.id = event.asset_id
            WHERE asset.name = 'roughy_media' ORDER BY event.id
        """
        return [
            Event(
                at=row["timestamp"].timestamp(),
                ids=row["extra"]["payload"],
                by_webhook="from_trigger" not in row["extra"],
                queued_at=row["queued_at"] and row["queued_at"].timestamp(),
            )
            for row in self._ask(query)
        ]

    def _ask(self, query: str) -> list[Any]:
        with self._database.connect() as connection:
            return list(connection.execute(sqlalchemy.text(query)).mappings())


class Killer:
    """Kills components of Airflow and starts them again, one after the other, in a thread of its own.

    :param airflow: Whose.
    :param rng: Decides which, and for how long they are dead.
    """

    def __init__(self, airflow: LocalAirflow, rng: random.Random) -> None:
        self._airflow = airflow
        singles: list[tuple[Component, ...]] = [("triggerer",), ("triggerer-2",), ("scheduler",)]
        #: Who is still to die, the first ones last.
        self.victims = [*rng.choices([*singles, TRIGGERERS], k=max(0, COUNT - 60) // 40), ("scheduler",), TRIGGERERS]
        self._rests = [rng.uniform(0, 5) for _ in self.victims]
        self._thread = ThreadPoolExecutor(1)
        self._deeds: list[Future[None]] = []

    def kill(self) -> None:
        """Kill the next, as soon as those before are back."""
        self._deeds.append(self._thread.submit(self._kill, self.victims.pop(), self._rests.pop()))

    def _kill(self, victims: Sequence[Component], rest: float) -> None:
        begin = time.monotonic()
        for victim in victims:
            self._airflow.kill(victim)
        time.sleep(rest)
        for victim in victims:
            self._airflow.restart(victim)
        print(f"Killed: {' and '.join(victims)}; back after {time.monotonic() - begin:.0f} s")

    def wait(self) -> None:
        """Wait until all are back."""
        for deed in self._deeds:
            deed.result()

    def close(self) -> None:
        """Do no more, once all are back."""
        self._thread.shutdown()


@pytest.fixture
def world(two_triggerers_roughy: Emulator) -> Iterator[World]:
    two_triggerers_roughy.reset()
    two_triggerers_roughy.balance = 0
    world = World(two_triggerers_roughy)
    yield world
    world.close()


@pytest.fixture
def rng() -> random.Random:
    print(f"\nROUGHY_ASSETS={COUNT} ROUGHY_SEED={SEED}")
    return random.Random(SEED)


@pytest.fixture
def killer(airflow: LocalAirflow, rng: random.Random) -> Iterator[Killer]:
    killer = Killer(airflow, rng)
    yield killer
    killer.close()


@pytest.fixture
def airflow(two_triggerers: LocalAirflow) -> Iterator[LocalAirflow]:
    for name in TRIGGERERS:
        # Another test may have killed it.
        if not two_triggerers.pids(name):
            two_triggerers.restart(name)
    yield two_triggerers
    for dag_file in (two_triggerers.home / "more").glob("*.py"):
        dag_file.unlink()


def test_all_that_becomes_ready_is_taken_once_whatever_dies(
    airflow: LocalAirflow, two_triggerers_roughy: Emulator, world: World, killer: Killer, rng: random.Random
) -> None:
    roughy, consumer = two_triggerers_roughy, Consumer(airflow)
    during = partial(printed_load, roughy)
    old = {roughy.seed_asset("ready", content=b"media") for _ in range(OLD)}
    (_, first), *steps = script(rng)
    for number, what in first:
        world.do(number, what)
    consumer.start()

    # Webhooks would hide what a watcher misses.
    alone = len(steps) * 3 // 4
    kills = {
        *rng.sample(range(alone // 2), 2),
        *rng.sample(range(alone // 2, len(steps)), len(killer.victims) - 2),
    }

    def play(some: Sequence[tuple[float, Step]]) -> None:
        for number, (pause, step) in enumerate(some, start=steps.index(some[0])):
            # The pace of the story, which nothing waits for.
            time.sleep(pause)
            if number in kills:
                killer.kill()
            for asset, what in step:
                world.do(asset, what)

    print(f"{'':32}{''.join(TITLES)}")
    with during("watchers"):
        play(steps[:alone])
        killer.wait()
    webhooks_from = time.time()
    with world.webhooks(airflow), during("watchers and webhooks"):
        play(steps[alone:])
    with during("until all is taken"):
        killer.wait()
        wait_until(lambda: consumer.has_done(world.due() - old), seconds=PATIENCE + STORM)
        # Not before somebody watches again.
        back = time.time()
        wait_until(lambda: Load(requests=[each for each in roughy.requests if each.started_at > back]).rounds() >= 2)
    quiet_from, holders = time.time(), consumer.holders()
    print(f"Each triggerer that has some holds so many watchers: {sorted(holders.values())}.")
    with during("quiet, some paid at last") as quiet:
        for _ in range(LATE):
            roughy.top_up(1)
            wait_until(lambda: consumer.has_done(world.due() - old))
    with during("the rest is paid"):
        roughy.top_up(COUNT)
        wait_until(lambda: consumer.has_done(world.due() - old))
    wait_until(lambda: FINISHED.issuperset(consumer.runs().values()))

    # Whatever is ready was dealt with, and by one run, which has taken it.
    runs, done, ready, events = consumer.runs(), consumer.done(), world.entered("ready"), consumer.events()
    assert set(runs.values()) == {"success"}
    assert ready.keys() - world.deleted.keys() - old <= done.keys() <= ready.keys() - old
    assert sorted(consumer.taken()) == sorted(
        (id, f"{DAG_ID}.take, run {run}") for id, each in done.items() for run in each
    )
    assert all(len(each) == 1 for each in done.values())

    # Nothing was announced that was not so.
    gone_for = [0.0]
    entered = {state: world.entered(state) for state in ("ready", "failed", "pending_payment")}
    for event in events:
        assert event.by_webhook or event.ids.keys() == {"ready"}
        for state, ids in event.ids.items():
            assert not old.intersection(ids)
            for id in ids:
                assert entered[state][id] <= event.at
                gone_for.append(event.at - world.deleted.get(id, event.at))
    assert max(gone_for) < SLACK

    # By when a run was queued that was told of it.
    told: dict[str, float] = {}
    for event in events:
        for id in event.ids.get("ready", ()):
            told[id] = min(told.get(id, math.inf), event.queued_at or math.inf)
    delays = {
        name: sorted(told[id] - at for id, at in ready.items() if begin <= at < end and id in done)
        for name, begin, end in (
            ("watchers", 0, webhooks_from),
            ("watchers and webhooks", webhooks_from, quiet_from),
            ("quiet", quiet_from, math.inf),
        )
    }
    print(
        f"{len(events)} events, {sum(event.by_webhook for event in events)} of them by webhooks, made {len(runs)} runs."
    )
    print(f"{len(done)} assets were dealt with. Tries of the tasks, and how many took so many: {consumer.tries()}")
    print(f"A deleted asset was announced for {max(gone_for):.1f} s at most.")
    for name, each in delays.items():
        print(f"Seconds from ready to a queued run, {name}: {spread(each)}")
    assert delays["quiet"][-1] < POLL_INTERVAL + SLACK

    # Twenty watchers ask no more than one.
    print(f"When all is quiet, a round costs {len(quiet.requests) / quiet.rounds():.1f} requests.")
    assert sum(holders.values()) == WATCHERS
    most_rounds = len(holders) * (quiet.seconds / (0.9 * POLL_INTERVAL) + 1)
    assert 0 < quiet.rounds() <= most_rounds
    assert len(quiet.requests) <= ROUND * (quiet.rounds() + len(holders)) + LATE * len(holders) * 2

    assert "X-Amz-Signature" in world.signed_url(next(iter(done.keys() - world.deleted.keys())))
    secrets = (roughy.api_key, roughy.webhook_secret, "X-Amz-Signature")
    assert not {where for where, text in airflow.everything_visible() if any(secret in text for secret in secrets)}


def spread(values: Sequence[float]) -> str:
    """Describe sorted values."""
    if not values:
        return "none"
    named = {"least": 0.0, "half": 0.5, "nine in ten": 0.9, "most": 1.0}
    return ", ".join(f"{name} {values[round(share * (len(values) - 1))]:.1f}" for name, share in named.items())

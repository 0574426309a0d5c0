"""Two triggerers hold many waits, and one of them is killed.

``ROUGHY_WAITS=120`` makes it long: each triggerer then reads two pages of the list of assets in progress.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from math import ceil

import pytest
import sqlalchemy

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.lifecycle import OnPendingPayment
from harness.airflow import Component, LocalAirflow
from tests.live import LIVE
from tests.live.running import TITLES, printed_load, wait_until

pytestmark = LIVE

COUNT = int(os.environ.get("ROUGHY_WAITS", "60"))
#: Of the list of all that are in work.
PAGES = ceil(COUNT / 100)
#: Seconds, as the DAG has it.
POKE_INTERVAL = 5
TRIGGERERS: tuple[Component, Component] = ("triggerer", "triggerer-2")
#: GETs that need not be: for an asset that moved to a page already read, for a trigger that was started alone.
SLACK = 12


@dataclass(frozen=True)
class End:
    """How a wait ends.

    :param asset: The state that the asset gets.
    :param on_pending_payment: What the sensor does about an unpaid one.
    :param task: The state of the task.
    """

    asset: str
    on_pending_payment: OnPendingPayment
    task: str


READY = End("ready", "fail", "success")
PAID_LATER = End("pending_payment", "wait", "success")
OTHERS = [
    End("failed", "fail", "failed"),
    End("pending_payment", "fail", "failed"),
    End("pending_payment", "skip", "skipped"),
    End("pending_payment", "return", "success"),
    PAID_LATER,
]
#: By map index: of twenty in a row the first five are not just ready.
ENDS = [OTHERS[number % 20] if number % 20 < len(OTHERS) else READY for number in range(COUNT)]
EARLY, IN_THE_GAP, LATE = (range(COUNT * third // 3, COUNT * (third + 1) // 3) for third in range(3))


@pytest.fixture
def roughy(two_triggerers_roughy: Emulator) -> Emulator:
    return two_triggerers_roughy


@pytest.fixture
def airflow(two_triggerers: LocalAirflow) -> LocalAirflow:
    return two_triggerers


@pytest.mark.timeout(1200)
def test_the_other_triggerer_takes_over_at_the_price_of_a_list(airflow: LocalAirflow, roughy: Emulator) -> None:
    waits = Waits(airflow, roughy)
    during = partial(printed_load, roughy)
    print(f"\n{'':32}{''.join(TITLES)}")

    with during(f"{COUNT} tasks look and defer"):
        waits.start()
        wait_until(lambda: len(waits.holders()) == COUNT and None not in waits.holders().values(), seconds=400)
        time.sleep(POKE_INTERVAL)
    jobs = airflow.request("GET", "/jobs", params={"job_type": "TriggererJob", "order_by": "id"}).json()["jobs"]
    names = dict(zip([job["id"] for job in jobs], TRIGGERERS, strict=True))
    assert set(waits.holders().values()) == names.keys()

    with during("two triggerers wait") as before:
        time.sleep(3 * POKE_INTERVAL)
    with during(f"{len(EARLY)} settle") as early:
        waits.settle(EARLY)
        wait_until(lambda: waits.are_over(EARLY))

    shares = Counter(waits.holders().values())
    (dead, lost), (heir, kept) = shares.most_common()
    print(f"The one to be killed holds {lost} triggers, the other {kept}.")
    with during(f"one is killed, {len(IN_THE_GAP)} settle") as gap:
        airflow.kill(names[dead])
        assert not airflow.pids(names[dead])
        waits.settle(IN_THE_GAP)
        wait_until(lambda: dead not in waits.holders().values())
    with during("the other has taken over") as takeover:
        wait_until(lambda: waits.are_over(IN_THE_GAP))
        assert set(waits.holders().values()) == {heir}

    with during("one triggerer waits") as after:
        time.sleep(3 * POKE_INTERVAL)
    with during(f"{len(LATE)} settle") as late:
        waits.settle(LATE)
        wait_until(lambda: waits.are_over(LATE))
    with during("a top-up pays for the rest") as end:
        assert {ENDS[number] for number in waits.holders()} == {PAID_LATER}
        roughy.top_up(COUNT)
        # As some of its tasks.
        assert waits.end() == "failed"

    waits.check()
    unpaid = {waits.assets[number] for number in (*EARLY, *IN_THE_GAP) if ENDS[number] == PAID_LATER}
    for quiet, triggerers in ((before, 2), (after, 1)):
        assert quiet.rounds() >= triggerers
        # The unpaid have a list of their own, and those on the first page may have a round of their own.
        assert len(quiet.pages()) <= triggerers * (PAGES + 2) * (quiet.seconds / POKE_INTERVAL + 1)
        # For a single one a list would be no cheaper; and what a list often called unchanged is asked for, one a round.
        assert len(quiet.looks().keys() - unpaid) <= quiet.rounds() + triggerers
    # Whoever settles is asked for once, and nobody else.
    for load, settled in ((early, EARLY), (gap + takeover, IN_THE_GAP), (late, LATE)):
        assert len(load.looks()) <= len(settled) + SLACK
    whole = before + early + gap + takeover + after + late + end
    assert whole.looks().keys() == set(waits.assets)
    assert whole.looks().total() <= COUNT + ENDS.count(PAID_LATER) + whole.rounds() + SLACK


class Waits:
    """A run in which each asset is waited for by a task of its own.

    :param airflow: Where it runs.
    :param roughy: Where the assets are.
    """

    def __init__(self, airflow: LocalAirflow, roughy: Emulator) -> None:
        self._airflow = airflow
        self._roughy = roughy
        self._database = sqlalchemy.create_engine(airflow.sql_alchemy_conn, poolclass=sqlalchemy.NullPool)
        #: Their ids, by map index.
        self.assets = [roughy.seed_asset("processing") for _ in ENDS]

    def start(self) -> None:
        """Start the run."""
        waits = [
            {"asset_id": asset_id, "on_pending_payment": end.on_pending_payment}
            for asset_id, end in zip(self.assets, ENDS, strict=True)
        ]
        self._run_id = self._airflow.trigger_dag("many_wait", conf={"waits": waits})

    def holders(self) -> dict[int, int | None]:
        """Return whose job holds the trigger of each deferred task, by map index; ``None``: nobody's yet."""
        # The API would take a second.
        query = """
            SELECT task_instance.map_index, trigger.triggerer_id
            FROM task_instance JOIN trigger ON trigger.id = task_instance.trigger_id
            WHERE task_instance.state = 'deferred'
        """
        with self._database.connect() as connection:
            return {row.map_index: row.triggerer_id for row in connection.execute(sqlalchemy.text(query))}

    def settle(self, numbers: Collection[int]) -> None:
        """Let assets come to their ends."""
        for number in numbers:
            self._roughy.set_state(self.assets[number], ENDS[number].asset)

    def are_over(self, numbers: Collection[int]) -> bool:
        """Return whether nobody waits any more, save for a top-up."""
        return not {number for number in self.holders() if ENDS[number] != PAID_LATER}.intersection(numbers)

    def end(self) -> str:
        """Wait for the run's end, and return its state."""
        return self._airflow.wait_for_run("many_wait", self._run_id, timeout=300)

    def check(self) -> None:
        """Check that each task ended as it should, in its first try, and with its own asset."""
        tasks = {
            task["map_index"]: (task["state"], task["try_number"])
            for task in self._airflow.task_instances("many_wait", self._run_id)
            if task["task_id"] == "wait"
        }
        assert tasks == {number: (end.task, 1) for number, end in enumerate(ENDS)}
        for number, (asset_id, end) in enumerate(zip(self.assets, ENDS, strict=True)):
            if end.task == "success":
                asset = self._airflow.xcom("many_wait", self._run_id, "wait", number)
                state = "pending_payment" if end.on_pending_payment == "return" else "ready"
                assert (asset["id"], asset["state"]) == (asset_id, state)
            else:
                log = self._airflow.task_log("many_wait", self._run_id, "wait", map_index=number)
                assert f"Asset {asset_id} {'failed: ' if end.asset == 'failed' else 'is not paid for'}" in log
                assert [other for other in self.assets if other in log] == [asset_id]

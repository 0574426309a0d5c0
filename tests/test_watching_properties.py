"""The watcher, with events in any order: a ready asset is announced until it is taken, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_roughy.asset_events import subscription as subscription_module
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.hooks import RoughyHook
from tests.properties import examples
from tests.watching import Watching, begun, take, watch

pytestmark = [pytest.mark.usefixtures("patient"), pytest.mark.timeout(300)]


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    with Emulator(progression="manual") as emulator:
        yield emulator


#: What may happen, and to which of the assets that there are.
STEPS = st.tuples(
    st.sampled_from(
        ["create", "create ready", "settle", "settle", "unpaid", "fail", "delete", "restart", "take", "look"]
    ),
    st.integers(0, 50),
)


class Story:
    """Assets, and what became of them.

    :param roughy: Where they are.
    :param ledger: What was taken.
    """

    def __init__(self, roughy: Emulator, ledger: Path) -> None:
        self.roughy = roughy
        self.ledger = ledger
        self.states: dict[str, str] = {}
        self.ever_ready: set[str] = set()
        self.taken: set[str] = set()
        self.announced: set[str] = set()

    def create(self, state: str) -> None:
        id = self.roughy.seed_asset(state=state)
        self.states[id] = state
        if state == "ready":
            self.ever_ready.add(id)

    def happen(self, step: str, which: int) -> None:
        if step.startswith("create"):
            self.create("ready" if step == "create ready" else "processing")
            return
        among = {
            "settle": [id for id, state in self.states.items() if state in ("processing", "pending_payment")],
            "unpaid": [id for id, state in self.states.items() if state == "processing"],
            "fail": [id for id, state in self.states.items() if state == "processing"],
            "delete": list(self.states),
            "take": sorted(self.announced & self.due),
        }[step]
        if not among:
            return
        id = among[which % len(among)]
        if step == "delete":
            with RoughyHook() as hook:
                hook.delete_asset(id)
            del self.states[id]
        elif step == "take":
            take(self.ledger, id)
            self.taken.add(id)
        else:
            state = {"settle": "ready", "unpaid": "pending_payment", "fail": "failed"}[step]
            self.roughy.set_state(id, state)
            self.states[id] = state
            if state == "ready":
                self.ever_ready.add(id)

    @property
    def due(self) -> set[str]:
        """What was ready and has to be announced, as far as it is still there."""
        return {id for id in self.ever_ready if self.states.get(id) == "ready"} - self.taken


@settings(max_examples=examples(8), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(STEPS, max_size=25),
    before=st.lists(st.sampled_from(["ready", "processing", "pending_payment"]), max_size=6),
    queues_each_event=st.booleans(),
)
def test_ready_assets_are_announced_until_taken_in_any_order_of_events(
    roughy: Emulator, steps: list[tuple[str, int]], before: list[str], queues_each_event: bool
) -> None:
    roughy.reset()
    # A watcher that is cancelled leaves the write that is under way to its thread.
    folder = TemporaryDirectory(ignore_cleanup_errors=True)
    # As on Airflow 3.4, and as before.
    with folder as name, patch.object(subscription_module, "QUEUES_EACH_EVENT", queues_each_event):
        story = Story(roughy, Path(name) / "taken")
        for state in before:
            story.create(state)
        old, story.ever_ready = set(story.ever_ready), set()
        asyncio.run(live(story, steps, queues_each_event))
        assert story.announced <= story.ever_ready, "announced, and never was ready since the start"
        assert not story.announced & old


def announced(story: Story, watching: Watching, queues_each_event: bool) -> bool:
    """Return whether all that is due was announced: in the last event, or in any where each event starts a run."""
    if queues_each_event:
        return story.announced | watching.all() >= story.due
    return not story.due or (bool(watching.events) and set(watching.events[-1]["ready"]) >= story.due)


async def live(story: Story, steps: list[tuple[str, int]], queues_each_event: bool) -> None:
    options: dict[str, Any] = {"poll_interval": 0.03}
    rest, first = list(steps), True
    while rest or first:
        async with watch(story.ledger, **options) as watching:
            if first:
                await begun(story.ledger)
            first = False
            while rest:
                step, which = rest.pop(0)
                if step == "restart":
                    break
                if step == "look":
                    await watching.until(lambda: announced(story, watching, queues_each_event))
                else:
                    await asyncio.to_thread(story.happen, step, which)
                story.announced |= watching.all()
            else:
                await watching.until(lambda: announced(story, watching, queues_each_event))
            story.announced |= watching.all()
        # What happens while nobody watches: up to the next thing that must be seen.
        while rest and rest[0][0] in ("create", "create ready", "settle", "unpaid", "fail", "delete"):
            await asyncio.to_thread(story.happen, *rest.pop(0))
            if len(rest) % 3 == 0:
                break

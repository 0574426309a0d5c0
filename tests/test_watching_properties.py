"""The watch, in whatever order things happen: what became ready is announced until it is taken, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.hooks import RoughyHook
from tests.watching import begun, take, watch

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


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(STEPS, max_size=25),
    before=st.lists(st.sampled_from(["ready", "processing", "pending_payment"]), max_size=6),
)
def test_all_that_became_ready_is_announced_until_it_is_taken(
    roughy: Emulator, steps: list[tuple[str, int]], before: list[str]
) -> None:
    roughy.reset()
    with TemporaryDirectory() as folder:
        story = Story(roughy, Path(folder) / "taken")
        for state in before:
            story.create(state)
        old, story.ever_ready = set(story.ever_ready), set()
        asyncio.run(live(story, steps))
        assert story.announced <= story.ever_ready, "announced, and never was ready since the start"
        assert not story.announced & old


async def live(story: Story, steps: list[tuple[str, int]]) -> None:
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
                    await watching.told(*story.due)
                else:
                    await asyncio.to_thread(story.happen, step, which)
                story.announced |= watching.all()
            else:
                # In one event, with nothing else that would have to be in it.
                await watching.until(
                    lambda: not story.due or set(watching.events[-1:] and watching.events[-1]["ready"]) >= story.due
                )
            story.announced |= watching.all()
        # What happens while nobody watches: up to the next thing that must be seen.
        while rest and rest[0][0] in ("create", "create ready", "settle", "unpaid", "fail", "delete"):
            await asyncio.to_thread(story.happen, *rest.pop(0))
            if len(rest) % 3 == 0:
                break

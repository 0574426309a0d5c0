"""Whatever dies, overlaps or goes wrong, each recording is uploaded once, whole, and the ledger says so."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.ledger import Ledger
from harness import media
from tests.zygote import Child, Zygote

SIZE = 40_000

# Seconds; a hundred nights on a busy machine.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def roughy() -> Iterator[Emulator]:
    with Emulator(progression="immediate", balance=10**6) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def zygote(roughy: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("results"), json.dumps(roughy.airflow_connection)) as zygote:
        yield zygote


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What recordings begin with; they are told apart by their ends."""
    return media.make_long_audio(tmp_path_factory.mktemp("recording") / "silence.wav", seconds=SIZE / 8000)


def passing() -> st.SearchStrategy[dict[str, Any]]:
    """What goes wrong at Roughy and on the way there, and passes."""
    anything = [{"status": 503, "headers": {"Retry-After": "0"}}, {"status": 429, "headers": {"Retry-After": "0"}}]
    return st.builds(
        lambda where, what, nth: {**where, **what, "nth": nth},
        st.just({"method": "PATCH"}),
        st.one_of(
            st.integers(0, SIZE).map(lambda count: {"cut_after": count}),
            st.sampled_from([*anything, {"lose_reply": True}, {"drop": True}, {"swallow": True}, {"status": 500}]),
        ),
        st.integers(1, 5),
    ) | st.builds(
        lambda where, what, nth: {**where, **what, "nth": nth},
        st.sampled_from([{"method": "POST", "path": "/v1/assets"}, {"method": "GET"}, {"method": "HEAD"}]),
        st.sampled_from([*anything, {"lose_reply": True}, {"drop": True}, {"status": 500}]),
        st.integers(1, 5),
    )


def tries() -> st.SearchStrategy[dict[str, Any]]:
    """One try of a run: which night's, after how many seconds it starts, and after how many more it is killed."""
    return st.fixed_dictionaries(
        {
            "night": st.integers(1, 3),
            "after": st.just(0.0) | st.floats(0.0, 0.1),
            "lives": st.none() | st.floats(0.0, 0.25),
            "parallel": st.sampled_from([1, 3]),
        }
    )


def steps() -> st.SearchStrategy[dict[str, Any]]:
    """What happens at the same time: tries of different nights, and faults. Before it, new recordings come."""
    return st.fixed_dictionaries(
        {
            "new": st.integers(0, 3),
            "tries": st.lists(tries(), min_size=1, max_size=2, unique_by=lambda each: each["night"]),
            "faults": st.lists(passing(), max_size=3),
        }
    )


# Thirds, which the processes that share the tests run side by side.
@pytest.mark.parametrize("third", range(3))
@settings(
    max_examples=-(-int(os.environ.get("ROUGHY_EXAMPLES", "90")) // 3),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(steps(), min_size=1, max_size=3))
def test_each_recording_is_uploaded_once_and_whole(
    third: int, roughy: Emulator, zygote: Zygote, recording: Path, tmp_path: Path, steps: list[dict[str, Any]]
) -> None:
    roughy.reset()
    roughy.balance = 10**6
    roughy.clear_faults()
    roughy.clear_requests()
    place = tmp_path / uuid4().hex
    folder, where = place / "incoming", place / "ledger"
    folder.mkdir(parents=True)
    ledger = Ledger(where)
    ledger.check()
    options = {"source": str(folder), "ledger": str(where), "poll_interval": 0.05, "timeout": 60}
    kills = 0

    def add() -> None:
        number = len(list(folder.iterdir()))
        (folder / f"{number}.wav").write_bytes(recording.read_bytes()[:-16] + number.to_bytes(16, "big"))

    def finish(child: Child, lives: float | None) -> dict[str, Any] | None:
        nonlocal kills
        if lives is not None:
            time.sleep(lives)
            os.kill(child.pid, signal.SIGKILL)
        told = zygote.wait(child)
        kills += told is None
        return told

    add()
    for step in steps:
        for _ in range(step["new"]):
            add()
        for fault in step["faults"]:
            roughy.inject(Fault(**fault))
        started = []
        for each in step["tries"]:
            time.sleep(each["after"])
            started.append((zygote.start(f"night {each['night']}", parallel=each["parallel"], **options), each))
        for child, each in sorted(started, key=lambda one: one[1]["lives"] or 1):
            finish(child, each["lives"])
        roughy.clear_faults()
        for each in step["tries"]:
            # As if the time had passed after which a dead run's claims may be taken over.
            ledger.keep_alive(f"dag.task, run night {each['night']}", 0.0)

    # In the end somebody is left alone: a night, and one more that finds nothing to do.
    told = finish(zygote.start("last night", **options), None)
    assert told is not None
    assert told["state"] == "success", told["error"]
    requests = len(roughy.requests)
    again = finish(zygote.start("the night after", **options), None)
    assert again is not None
    assert (again["state"], again["ready"], again["known"]) == ("success", [], len(list(folder.iterdir())))
    assert len(roughy.requests) == requests

    files = Counter(hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir())
    whole = Counter(asset["sha256"] for asset in roughy.assets if asset["state"] != "pending_upload")
    assert whole == files, "a recording is missing, broken, or was paid for twice"
    assert {asset["state"] for asset in roughy.assets} <= {"ready", "pending_upload"}
    orphans = [asset for asset in roughy.assets if asset["state"] == "pending_upload"]
    lost = sum(fault.get("method") == "POST" and "lose_reply" in fault for step in steps for fault in step["faults"])
    assert len(orphans) <= 3 * kills + lost, "more assets without bytes than deaths and lost replies explain"
    event(f"kills: {kills}, orphans: {len(orphans)}")
    entries = list(ledger.entries())
    assert {entry.state for entry in entries} == {"ready"}
    assert {entry.asset_id for entry in entries} == {
        asset["id"] for asset in roughy.assets if asset["state"] == "ready"
    }
    assert ledger.names(()).open == set()
    shutil.rmtree(place)

"""With any kills, overlaps, delays and errors, each recording is uploaded once, completely, and reported."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.ledger import Ledger
from harness import media
from tests.properties import examples
from tests.zygote import Told, Zygote

SIZE = 40_000
#: A try has about 60 steps that others can see, and 30 more for each recording. One that ends before is not killed.
MAX_STEPS = 200

# Seconds; a hundred nights on a busy machine.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def roughy() -> Iterator[Emulator]:
    with Emulator(progression="immediate", balance=10**6) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def zygote(roughy: Emulator, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    place = tmp_path_factory.mktemp("zygote")
    warm_up = {"source": str(recording.parent), "ledger": str(place / "ledger"), "poll_interval": 0.05}
    with Zygote(place, json.dumps(roughy.airflow_connection), **warm_up) as zygote:
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
    """One try of a run: which night's, after how many seconds it starts, and before which of its steps it dies.

    Its clock may be wrong by an hour, and its lists of the ledger may lag behind.
    """
    return st.fixed_dictionaries(
        {
            "night": st.sampled_from(["night 1", "night 2", "night 3"]),
            "after": st.just(0.0) | st.floats(0.0, 0.05),
            "dies_at": st.none() | st.integers(0, MAX_STEPS // 2) | st.integers(0, MAX_STEPS),
            "parallel": st.sampled_from([1, 3]),
            "clock": st.sampled_from([0.0, 0.0, 0.0, 3600.0, -3600.0]),
            "lag": st.sampled_from([False, False, False, True]),
        }
    )


def steps() -> st.SearchStrategy[dict[str, Any]]:
    """What happens at the same time: tries, perhaps of one night, and faults. Before it, new recordings come."""
    return st.fixed_dictionaries(
        {
            "new": st.integers(0, 3),
            "tries": st.lists(tries(), min_size=1, max_size=3),
            "faults": st.lists(passing(), max_size=3),
        }
    )


@contextmanager
def described(roughy: Emulator, ledger: Path, steps: list[dict[str, Any]]) -> Iterator[None]:
    """Print what there is if the body fails: it may depend on how tries overlapped, and not happen again."""
    try:
        yield
    except Exception as error:
        assets = [{name: asset[name] for name in ("id", "state", "sha256")} for asset in roughy.assets]
        objects = {
            str(file.relative_to(ledger)): file.read_text() for file in sorted(ledger.rglob("*")) if file.is_file()
        }
        print(json.dumps({"error": str(error), "steps": steps, "assets": assets, "ledger": objects}, indent=1))
        raise


@settings(
    max_examples=examples(20),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(steps(), min_size=1, max_size=3), identity=st.sampled_from(["location", "content"]))
def test_each_recording_is_uploaded_once_and_whole(
    roughy: Emulator, zygote: Zygote, recording: Path, tmp_path: Path, steps: list[dict[str, Any]], identity: str
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
    beginning = recording.read_bytes()[:-16]
    options = {"source": str(folder), "ledger": str(where), "identity": identity, "poll_interval": 0.05, "timeout": 60}
    kills = 0
    #: What any task has told; what each run has told, as Airflow keeps it; and whether it has to be retried.
    ever_reported: set[str] = set()
    reported: dict[str, set[str]] = {}
    unfinished: dict[str, bool] = {}

    def expire_leases() -> None:
        """Let the time pass after which a dead run's claims may be superseded."""
        for lease in (where / "runs").glob("????????????????????????????????.json"):
            lease.write_text(json.dumps({**json.loads(lease.read_text()), "until": 0}))

    def add() -> None:
        number = len(list(folder.iterdir()))
        (folder / f"{number}.wav").write_bytes(beginning + number.to_bytes(16, "big"))

    def run(*tries: dict[str, Any]) -> list[Told]:
        """Run tries at the same time, to their ends."""
        nonlocal kills
        children = []
        for each in tries:
            time.sleep(each.get("after", 0.0))
            how = {name: value for name, value in each.items() if name not in ("night", "after")}
            children.append(zygote.start(each["night"], **how, **options))
            # What an earlier try has pushed, Airflow removes.
            reported[each["night"]] = set()
        tolds = [zygote.wait(child) for child in children]
        for told in tolds:
            kills += told.state is None
            ever_reported.update(told.xcoms.get("ready", ()))
            reported[told.run].update(told.xcoms.get("ready", ()))
            unfinished[told.run] = told.state != "success"
        return tolds

    with described(roughy, where, steps):
        add()
        for step in steps:
            for _ in range(step["new"]):
                add()
            for fault in step["faults"]:
                roughy.inject(Fault(**fault))
            run(*step["tries"])
            roughy.clear_faults()
            expire_leases()
            for file in folder.iterdir() if identity == "content" else ():
                file.rename(file.with_name(f"moved {file.name}"))

        # In the end somebody is left alone: a night, and one more that finds nothing to do.
        [told] = run({"night": "last night"})
        assert told.state == "success", told.error
        requests = len(roughy.requests)
        [again] = run({"night": "the night after"})
        count = len(list(folder.iterdir()))
        assert (again.state, again.xcoms["ready"], again.xcoms["known"]) == ("success", [], count), again.error
        assert len(roughy.requests) == requests

        files = Counter(hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir())
        whole = Counter(asset["sha256"] for asset in roughy.assets if asset["state"] != "pending_upload")
        assert whole == files, "a recording is missing, broken, or was paid for twice"
        assert {asset["state"] for asset in roughy.assets} <= {"ready", "pending_upload"}
        orphans = [asset for asset in roughy.assets if asset["state"] == "pending_upload"]
        # An asset that a live try has just made and lost the claim of is cancelled, unless a fault keeps it from that.
        faults = [fault for step in steps for fault in step["faults"]]
        lost = sum(fault.get("method") == "POST" and "lose_reply" in fault for fault in faults)
        most = 3 * kills + lost + len(faults)
        assert len(orphans) <= most, "more assets without bytes than deaths and lost replies explain"
        event(f"kills: {kills}, orphans: {len(orphans)}")
        entries = list(ledger.entries())
        assert {entry.state for entry in entries} == {"ready"}
        ready = {entry.asset_id for entry in entries}
        assert ready == {asset["id"] for asset in roughy.assets if asset["state"] == "ready"}
        assert ever_reported == ready, "a recording is ready, and no task has told"
        # What died or failed, Airflow may retry: then only the last try of a run counts.
        for night in [night for night, is_unfinished in unfinished.items() if is_unfinished]:
            [told] = run({"night": night})
            assert told.state == "success", told.error
        assert set().union(*reported.values()) == ready, "a retry has not told what its run had told before"
        assert ledger.snapshot().open == {}
    shutil.rmtree(place)

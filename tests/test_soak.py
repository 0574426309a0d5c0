"""The checks of ``make soak`` find every kind of failure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from soak.judge import Recording, SoakResult, judge


def asset(id: str, sha256: str, state: str = "ready") -> dict[str, Any]:
    return {"id": id, "sha256": sha256, "state": state}


GOOD = SoakResult(
    recordings=[
        Recording("talk.mp4", "good", "aa", 1),
        Recording("long.wav", "good", "bb", 5),
        Recording("damaged.mp3", "damaged", "cc", 0),
        Recording("notes.mp3", "rejected", "dd", 0),
    ],
    uploaded_by_others=["others"],
    assets=[
        asset("talk", "aa"),
        asset("long", "bb"),
        asset("damaged", "cc", "failed"),
        asset("others", "ee"),
        asset("orphan", "", "pending_upload"),
    ],
    cuts=[{"asset_id": "talk", "state": "completed"}],
    renders=[{"asset_id": "talk", "state": "completed", "sha256": "ff"}],
    spent=7,
    ledger={"talk.mp4": "ready", "long.wav": "ready", "damaged.mp3": "failed", "notes.mp3": "rejected"},
    taken=["talk", "others", "long"],
    captions=["talk"],
    downloads={"talk": "ff"},
    unfinished_files=[".roughy-1.part"],
    kills=1,
    leaks={"the API key": set()},
)


def wrong(result: SoakResult) -> dict[str, list[str]]:
    return {finding.what: list(finding.wrong) for finding in judge(result) if not finding.is_good}


def test_checks_hold_for_a_good_result() -> None:
    assert wrong(GOOD) == {}


@pytest.mark.parametrize(
    ("changes", "what", "named"),
    [
        ({"assets": [*GOOD.assets, asset("again", "bb")]}, "uploaded, and ready", "long.wav 2 times"),
        ({"assets": [*GOOD.assets, asset("again", "bb", "failed")]}, "uploaded, and ready", "long.wav lost"),
        ({"assets": GOOD.assets[:1]}, "uploaded, and ready", "long.wav lost"),
        ({"assets": [*GOOD.assets, asset("strange", "99")]}, "assets of no source file", "strange"),
        ({"spent": 12}, "credits", "+5 credits"),
        ({"ledger": {**GOOD.ledger, "notes.mp3": "claimed"}}, "not media: rejected in the ledger", "notes.mp3 lost"),
        ({"renders": []}, "rendered", "talk.mp4 lost"),
        ({"captions": []}, "captions written", "talk.mp4 lost"),
        ({"downloads": {"talk": "half"}}, "downloaded whole", "talk.mp4 lost"),
        ({"downloads": {"talk": None}}, "downloaded whole", "talk.mp4 lost"),
        ({"taken": [*GOOD.taken, "others"]}, "taken by the watcher's DAG", "others 2 times"),
        ({"taken": GOOD.taken[1:]}, "taken by the watcher's DAG", "talk lost"),
        ({"kills": 0}, "orphans: assets without an upload", "orphan"),
        ({"kills": 0}, "unfinished files", ".roughy-1.part"),
        ({"failed_runs": ["soak_night failed"]}, "runs that did not succeed", "soak_night failed"),
        ({"leaks": {"the API key": {"log.extra"}}}, "places with the API key", "log.extra"),
    ],
)
def test_check_fails_and_names_what_is_wrong(changes: dict[str, Any], what: str, named: str) -> None:
    assert named in wrong(replace(GOOD, **changes))[what]

"""Claims: who goes on with what somebody else has begun, when that one may come to life again."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_roughy.exceptions import RoughyLedgerError
from airflow_provider_roughy.ledger import Entry, Ledger, entry_key
from airflow_provider_roughy.memory import Claim, Owner, remembered
from airflow_provider_roughy.source import find_source

WANTED = {"uri": "/data/talk.mp3", "size": 46_000, "mtime": "1", "project_id": "p", "language": None}
KEY = entry_key(WANTED)
FIRST, SECOND, THIRD = (Owner("dag.task", f"night {number}") for number in (1, 2, 3))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger")
    ledger.check()
    return ledger


@pytest.fixture
def begun(ledger: Ledger) -> Entry:
    """What a run that is dead has claimed."""
    claimed = ledger.claim(Entry(KEY, source="/data/talk.mp3", wanted=WANTED, owner=str(FIRST)))
    assert claimed is not None
    return claimed


def take_over(ledger: Ledger, owner: Owner, entry: Entry) -> Claim:
    return Claim(ledger, owner, WANTED, lease=None, takes_over=entry)


@pytest.mark.parametrize("state", ["claimed", "uploading", "processing", "pending_payment"])
def test_who_comes_to_life_again_keeps_what_is_his(ledger: Ledger, begun: Entry, state: str) -> None:
    begun = ledger.write(replace(begun, state=state))
    other = take_over(ledger, SECOND, begun)
    ledger.keep_alive(str(FIRST), time.time() + 600)
    assert not other.take()
    assert ledger.latest(KEY) == begun
    assert ledger.names({KEY}).open == {KEY}
    # Nor does it hold up those who come after its end.
    ledger.keep_alive(str(FIRST), 0)
    assert take_over(ledger, THIRD, begun).take()


def test_who_cannot_be_seen_alive_or_dead_keeps_what_is_his(ledger: Ledger, begun: Entry, tmp_path: Path) -> None:
    other = take_over(ledger, SECOND, begun)
    ledger.keep_alive(str(FIRST), time.time() + 600)
    (sign,) = (tmp_path / "ledger" / "runs").iterdir()
    sign.unlink()
    # Something that cannot be read.
    sign.mkdir()
    with pytest.raises(RoughyLedgerError):
        other.take()
    assert ledger.latest(KEY) == begun
    sign.rmdir()
    ledger.keep_alive(str(FIRST), time.time() + 600)
    assert not other.take()


@pytest.mark.parametrize("goes_on", [SECOND, THIRD], ids=["its own retry", "a later run"])
def test_a_take_over_that_was_left_in_the_middle_is_made_anew(ledger: Ledger, begun: Entry, goes_on: Owner) -> None:
    # The second one dies, or the storage is away, before it has looked whether the first one lives; which it does.
    second = ledger.claim(replace(begun, owner=str(SECOND), generation=2))
    assert second is not None
    ledger.keep_alive(str(FIRST), time.time() + 600)
    ledger.keep_alive(str(goes_on), time.time() + 600)

    def go_on() -> Claim:
        found = {"entry" if goes_on is SECOND else "takes_over": second}
        return Claim(ledger, goes_on, WANTED, lease=None, **found)

    assert not go_on().take()
    ledger.write(replace(begun, state="uploading", asset_id="a"))
    ledger.keep_alive(str(FIRST), 0)
    claim = go_on()
    assert claim.take()
    assert claim.get("roughy_upload")["asset_id"] == "a"


def test_one_recording_is_taken_over_before_its_asset_is_asked_for(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "talk.mp3").write_bytes(bytes(64))
    source = find_source(tmp_path / "talk.mp3")
    wanted = {**source.fingerprint, "project_id": "p", "language": None}
    first = ledger.claim(Entry(entry_key(wanted), source=source.uri, wanted=wanted, owner=str(FIRST)))
    assert first is not None
    assert ledger.claim(replace(first, owner=str(SECOND), generation=2)) is not None
    ledger.write(replace(first, state="uploading", asset_id="a"))
    with remembered(ledger, source, owner=THIRD, project_id="p", language=None) as memory:
        assert memory.get("roughy_upload")["asset_id"] == "a"


def test_what_has_ended_is_nobodys(ledger: Ledger, begun: Entry) -> None:
    ended = ledger.close(replace(begun, state="uploaded", asset_id="a"))
    ledger.keep_alive(str(FIRST), time.time() + 600)
    assert take_over(ledger, SECOND, ended).take()


def test_what_was_made_meanwhile_is_not_made_again(ledger: Ledger, begun: Entry) -> None:
    # The second one dies while it looks for signs of life, and the first one does not see its claim any more.
    second = ledger.claim(replace(begun, owner=str(SECOND), generation=2))
    assert second is not None
    ledger.write(replace(begun, state="uploading", asset_id="a"))
    third = take_over(ledger, THIRD, second)
    assert third.take()
    assert third.entry is not None
    assert (third.entry.owner, third.entry.asset_id, third.entry.state) == (str(THIRD), "a", "uploading")

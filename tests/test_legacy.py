"""Ledgers of 0.2: finished recordings stay finished, and started ones are resumed."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.exceptions import RoughyLedgerEntryError
from airflow_provider_roughy.ledger import ClaimOwner, Ledger, LegacyEntry, Result, Version, entry_key
from airflow_provider_roughy.ledger.folder import LocalFolder

PROJECT = "01900000-0000-7000-8000-000000000001"
ME = ClaimOwner("dag.task", "night 9", "try 1")


class Release02:
    """Writes what 0.2 wrote.

    :param folder: The ledger.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "runs").mkdir(parents=True)

    def write(
        self,
        uri: str,
        state: str = "ready",
        *,
        asset_id: str | None = "asset",
        generation: int = 1,
        is_open: bool | None = None,
        all_sent: bool = False,
        **wanted: Any,
    ) -> str:
        """Write an entry, and return its key."""
        wanted = {"uri": uri, "size": 46_000, "mtime": "1", "project_id": PROJECT, "language": None, **wanted}
        key = entry_key(wanted)
        values = {
            "source": uri,
            "wanted": wanted,
            "owner": "dag.task, run night 1",
            "series": "dag.task",
            "asset_id": asset_id,
            "reason": None,
            "all_sent": all_sent,
            "at": "2026-01-01T00:00:00.000+00:00",
        }
        # On a local disk, an entry gets another line with each change.
        lines = [json.dumps({**values, "state": "claimed", "asset_id": None}), json.dumps({**values, "state": state})]
        name = f"{key}.json" if generation == 1 else f"{key}.{generation}.json"
        (self.folder / name).write_text("\n".join(lines))
        if is_open if is_open is not None else state in ("claimed", "uploading", "processing", "pending_payment"):
            (self.folder / f"{key}.open").touch()
        return key


@pytest.fixture
def before(tmp_path: Path) -> Release02:
    return Release02(tmp_path / "ledger")


@pytest.fixture
def ledger(before: Release02) -> Ledger:
    return Ledger(before.folder)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each object is read."""
    counter: Counter[str] = Counter()
    read = LocalFolder.read

    def count(self: LocalFolder, name: str) -> bytes | None:
        counter[name] += 1
        return read(self, name)

    monkeypatch.setattr(LocalFolder, "read", count)
    return counter


def find(ledger: Ledger, *uris: str, **changed: Any) -> LegacyEntry | None:
    """Look for the recording that 0.2 knew, or for one that differs from it."""
    asked: dict[str, Any] = {
        "size": 46_000,
        "versions": {"mtime": "1", "etag": "e"},
        "project_id": PROJECT,
        "language": None,
        **changed,
    }
    return ledger.legacy().find(uris, **asked)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("/in/a.wav", "file:///in/a.wav"),
        ("file:///in/a.wav", "/in/a.wav"),
        ("/in//x/../a.wav", "/in/a.wav"),
        ("s3://rec/in/a.wav", "s3a://conn@rec/in/a.wav"),
        ("S3://rec/in/a.wav", "s3://rec/in/a.wav"),
        ("gcs://rec/a.wav", "gs://rec/a.wav"),
        ("sftp://host/in/a.wav", "ssh://conn@host/in/a.wav"),
        ("s3://rec/in/Morning 08::30?.wav", "s3://rec/in/Morning 08::30?.wav"),
    ],
)
def test_a_recording_is_found_under_each_spelling(before: Release02, ledger: Ledger, was: str, now: str) -> None:
    key = before.write(was)
    found = find(ledger, "/another/spelling", now)
    assert found is not None
    assert (found.key, found.done, found.state, found.asset_id, found.owner) == (
        key,
        True,
        "ready",
        "asset",
        "dag.task, run night 1",
    )


@pytest.mark.parametrize("spelled", [PROJECT.upper(), PROJECT.replace("-", ""), f"{{{PROJECT}}}", f" {PROJECT} "])
def test_a_project_is_the_same_in_each_spelling(before: Release02, ledger: Ledger, spelled: str) -> None:
    before.write("/in/a.wav", project_id=spelled)
    assert find(ledger, "/in/a.wav") is not None
    assert find(ledger, "/in/a.wav", project_id=spelled) is not None


def test_a_recording_is_found_by_links(before: Release02, ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.wav").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "today.wav").symlink_to("real/a.wav")
    for was in ("link/a.wav", "today.wav"):
        before.write(str(tmp_path / was))
    for now in ("real/a.wav", "link/a.wav", "today.wav"):
        assert find(ledger, str(tmp_path / now)) is not None


@pytest.mark.parametrize(
    "changed",
    [
        {"size": 46_001},
        {"versions": {"mtime": "2", "etag": "1"}},
        {"versions": {}},
        {"project_id": PROJECT.replace("1", "2")},
        {"language": "de"},
    ],
)
def test_another_recording_is_not_found(before: Release02, ledger: Ledger, changed: dict[str, Any]) -> None:
    before.write("/in/a.wav")
    assert find(ledger, "/in/a.wav") is not None
    assert find(ledger, "/in/a.wav", **changed) is None
    assert find(ledger, "/in/b.wav") is None
    assert find(ledger, "s3://in/a.wav") is None


def test_the_version_is_compared_by_the_field_that_was_kept(before: Release02, ledger: Ledger) -> None:
    for uri, kept in (("gs://rec/a", {"md5hash": "m"}), ("gs://rec/b", {}), ("gs://rec/c", {"lastmodified": "l"})):
        wanted: dict[str, Any] = {"mtime": "1", **kept}
        key = before.write(uri, **wanted)
        text = (before.folder / f"{key}.json").read_text().replace('"mtime": "1", ', "")
        (before.folder / f"{key}.json").write_text(text)
    versions = {"etag": "new", "md5hash": "m", "lastmodified": "l"}
    assert find(ledger, "gs://rec/a", versions=versions) is not None
    assert find(ledger, "gs://rec/b", versions=versions) is not None
    assert find(ledger, "gs://rec/c", versions=versions) is not None
    assert find(ledger, "gs://rec/a", versions={"etag": "new"}) is None


@pytest.mark.parametrize("state", ["claimed", "uploading", "processing", "pending_payment"])
def test_started_uploads_are_to_be_resumed(before: Release02, ledger: Ledger, state: str) -> None:
    key = before.write("/in/a.wav", state, all_sent=state != "claimed")
    found = find(ledger, "/in/a.wav")
    assert found is not None
    assert (found.done, found.state, found.asset_id, found.all_sent) == (False, state, "asset", state != "claimed")
    ledger.finish_legacy(key)
    found = find(ledger, "/in/a.wav")
    assert found is not None
    assert found.done


def test_the_highest_generation_counts(before: Release02, ledger: Ledger) -> None:
    key = before.write("/in/a.wav", "uploading", asset_id="1")
    before.write("/in/a.wav", "uploading", asset_id="2", generation=2)
    before.write("/in/a.wav", "processing", asset_id="10", generation=10)
    (before.folder / f"{key}.json").write_bytes(b"\0" * 300)
    found = find(ledger, "/in/a.wav")
    assert found is not None
    assert (found.asset_id, found.done) == ("10", False)


def test_an_end_whose_mark_was_left_is_done(before: Release02, ledger: Ledger) -> None:
    before.write("/in/a.wav", "failed", is_open=True)
    found = find(ledger, "/in/a.wav")
    assert found is not None
    assert (found.done, found.state) == (True, "failed")


def test_the_last_whole_line_counts(before: Release02, ledger: Ledger) -> None:
    key = before.write("/in/a.wav", "uploading")
    with (before.folder / f"{key}.json").open("a") as file:
        file.write('\n{"source": "/in/a.wav", "state": "ready", "asse')
    found = find(ledger, "/in/a.wav")
    assert found is not None
    assert found.state == "uploading"


@pytest.mark.parametrize("content", [b"\0" * 300, b"", b"[]", b'{"source": "/in/a.wav"}'])
def test_an_entry_that_cannot_be_read_concerns_its_recording_only(
    before: Release02, ledger: Ledger, content: bytes
) -> None:
    broken = before.write("/in/a.wav")
    before.write("/in/b.wav")
    (before.folder / f"{broken}.json").write_bytes(content)
    assert find(ledger, "/in/b.wav") is not None
    assert find(ledger, "/in/c.wav") is None
    for spelled in ("/in/a.wav", "file:///in/a.wav", "/in//a.wav"):
        with pytest.raises(RoughyLedgerEntryError, match=rf"{broken}\.json .* remove that object"):
            find(ledger, spelled)


def test_a_ledger_of_10_000_is_read_once(
    before: Release02, ledger: Ledger, reads: Counter[str], record_property: Callable[[str, object], None]
) -> None:
    for number in range(10_000):
        state = "ready" if number % 100 else "pending_payment"
        before.write(f"/in/{number % 7}/{number}.wav", "taken" if number % 10 == 1 else state, mtime=str(number))
    began = time.perf_counter()
    index = ledger.legacy(ledger.snapshot())
    first = time.perf_counter() - began
    assert len(index) == 9_000
    assert reads.total() == 10_001
    reads.clear()
    began = time.perf_counter()
    again = ledger.legacy(ledger.snapshot())
    found = [
        again.find([f"/in/{number % 7}//{number}.wav"], 46_000, {"mtime": str(number)}, PROJECT.upper(), None)
        for number in range(10_000)
    ]
    later = time.perf_counter() - began
    assert reads.total() == 1 + 100
    assert [entry is None for entry in found] == [number % 10 == 1 for number in range(10_000)]
    assert sum(not entry.done for entry in found if entry) == 100
    record_property("seconds", (first, later))
    print(f"10,000 entries of 0.2: read in {first:.1f} s, then all known in {later:.1f} s")


UNSOUND = dict.fromkeys(LegacyEntry.__dataclass_fields__, "text") | {"wanted": {"uri": "/in/a.wav"}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"x.json": 1}',
        b'{"x.json": {"key": 1}}',
        b"[" * 100_000,
        json.dumps({f"{'a' * 32}.json": UNSOUND}).encode(),
        json.dumps({f"{'a' * 32}.json": UNSOUND | {"wanted": "text"}}).encode(),
    ],
)
def test_an_index_that_cannot_be_read_is_made_anew(before: Release02, ledger: Ledger, content: bytes) -> None:
    key = before.write("/in/a.wav")
    (before.folder / "index-0.2.json").write_bytes(content.replace(b"a" * 32, key.encode()))
    assert find(ledger, "/in/a.wav") is not None
    assert find(ledger, "/in/a.wav") is not None


def test_the_index_follows_what_the_previous_release_still_writes(before: Release02, ledger: Ledger) -> None:
    key = before.write("/in/a.wav")
    before.write("/in/b.wav")
    assert len(ledger.legacy()) == 2
    before.write("/in/a.wav", "uploading", generation=2)
    found = find(ledger, "/in/a.wav")
    assert found is not None
    assert (found.state, found.done) == ("uploading", False)
    for path in before.folder.glob(f"{key}.*"):
        path.unlink()
    assert find(ledger, "/in/a.wav") is None


def test_entries_of_both_releases_are_listed_once(before: Release02, ledger: Ledger) -> None:
    done = before.write("/in/a.wav")
    begun = before.write("/in/b.wav", "uploading", asset_id="b")
    taken = before.write("roughy://asset", "taken")
    assert {entry.key for entry in ledger.entries()} == {done, begun, taken}
    ledger.check()
    ledger.create_version(Version("b" * 40, 1, ME, "/in/b.wav", {"size": 46_000}, asset_id="b"))
    assert {entry.key for entry in ledger.entries()} == {done, "b" * 40, taken}
    ledger.create_result(Result("b" * 40, "/in/b.wav", {"size": 46_000}, str(ME), "ready", "b"))
    ledger.finish_legacy(begun)
    assert {entry.key for entry in ledger.entries()} == {done, "b" * 40, taken}


def test_forgetting_a_recording_forgets_it_under_its_old_name(before: Release02, ledger: Ledger) -> None:
    begun = before.write("/in/b.wav", "uploading", asset_id="b")
    before.write("/in/c.wav")
    ledger.check()
    ledger.create_result(Result("b" * 40, "file:///in/b.wav", {"size": 46_000}, str(ME), "ready", "new"))
    ledger.finish_legacy(begun)
    assert ledger.forget("b" * 40)
    assert find(ledger, "/in/b.wav") is None
    assert find(ledger, "/in/c.wav") is not None
    assert ledger.forget(next(iter(ledger.legacy())).key)
    assert list(ledger.entries()) == []


def test_what_the_previous_release_has_really_left(tmp_path: Path) -> None:
    recorded = json.loads((Path(__file__).parent / "upgrades" / "0.2.0.json").read_text())
    files = recorded["stories"]["batch"][0]["left"]["files"]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    ledger = Ledger(tmp_path / "ledger")
    index = ledger.legacy()
    assert len(index) == 3
    found = index.find(["memory://recordings/a.wav"], 25_644, {"etag": "of a.wav"}, PROJECT, None)
    assert found is not None
    assert not found.done
    assert found.asset_id is not None
    assert ledger.has_started(found.owner)
    assert not ledger.is_alive(found.owner)
    assert len([entry for entry in ledger.entries() if not entry.is_done]) == 3


def test_the_previous_release_stops_at_a_ledger_of_this_one(tmp_path: Path) -> None:
    """Where an entry beside a mark cannot be read, a batch of 0.2.0 ends with an error that quotes it."""
    Ledger(tmp_path / "ledger").check()
    (mark,) = (tmp_path / "ledger").glob("*.open")
    quoted = mark.with_suffix(".json").read_bytes()[:100]
    assert len(mark.stem) == 32
    assert b"upgrade" in quoted
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(quoted)
    assert len(Ledger(tmp_path / "ledger").legacy()) == 0
    assert list(Ledger(tmp_path / "ledger").entries()) == []


def test_a_missing_folder_is_an_empty_ledger(tmp_path: Path) -> None:
    assert len(Ledger(tmp_path / "ledger").legacy()) == 0
    assert not os.path.exists(tmp_path / "ledger")

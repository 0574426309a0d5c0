"""The ledger: who claims what, what is remembered, and what a death in the middle leaves."""

from __future__ import annotations

import json
import os
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_roughy import ledger as ledger_module
from airflow_provider_roughy.exceptions import (
    RoughyLedgerError,
    RoughyUnusableLedgerError,
    RoughyUnusableSourceError,
    RoughyUnusableTargetError,
)
from airflow_provider_roughy.ledger import Entry, Ledger, entry_key
from airflow_provider_roughy.recordings import find_recordings
from airflow_provider_roughy.source import find_source
from airflow_provider_roughy.target import find_target

WANTED = {"uri": "/data/talk.mp3", "size": 46_000, "mtime": "1", "project_id": "p", "language": None}
KEY = entry_key(WANTED)


def entry(owner: str = "night 1", **fields: object) -> Entry:
    return replace(Entry(KEY, source="/data/talk.mp3", wanted=WANTED, owner=owner), **fields)  # type: ignore[arg-type]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger")
    ledger.check()
    return ledger


def test_one_of_many_who_claim_at_the_same_time_gets_it(ledger: Ledger) -> None:
    start = threading.Barrier(16)

    def claim(number: int) -> Entry | None:
        start.wait()
        return ledger.claim(entry(f"run {number}"))

    with ThreadPoolExecutor(16) as pool:
        claims = [claimed for claimed in pool.map(claim, range(16)) if claimed is not None]
    assert len(claims) == 1
    assert ledger.read(KEY) == claims[0]


def test_one_list_tells_what_is_known_and_what_is_open(ledger: Ledger) -> None:
    other = entry_key({**WANTED, "uri": "/data/other.mp3"})
    claimed = ledger.claim(entry())
    assert claimed is not None
    ended = ledger.claim(replace(entry(), key=other))
    assert ended is not None
    ledger.close(replace(ended, state="ready", asset_id="a"))

    names = ledger.names({KEY, other, "0" * 32})
    assert (names.known, names.open) == ({KEY, other}, {KEY})
    assert ledger.names(()).known == set()
    end = ledger.read(other)
    assert end is not None
    assert (end.state, end.asset_id) == ("ready", "a")


def test_a_claim_is_taken_over_by_one_only(ledger: Ledger) -> None:
    first = ledger.claim(entry())
    assert first is not None
    assert not ledger.is_taken_over(first)
    taken = ledger.claim(entry("night 2", generation=2))
    assert taken is not None
    assert ledger.claim(entry("night 3", generation=2)) is None
    assert ledger.is_taken_over(first)
    assert ledger.names({KEY}).generations == {KEY: 2}
    # The one that was away finds out, and its word counts no more.
    ledger.write(replace(first, asset_id="too late"))
    latest = ledger.read(KEY, 2)
    assert latest is not None
    assert (latest.owner, latest.asset_id) == ("night 2", None)


def test_a_line_that_broke_off_leaves_what_was_there_before(ledger: Ledger, tmp_path: Path) -> None:
    claimed = ledger.claim(entry())
    assert claimed is not None
    ledger.write(replace(claimed, asset_id="a", state="uploading"))
    file = tmp_path / "ledger" / claimed.name
    with file.open("ab") as lines:
        lines.write(b'\n{"source": "/data/ta')
    found = ledger.read(KEY)
    assert found is not None
    assert (found.state, found.asset_id) == ("uploading", "a")
    ledger.write(replace(found, state="ready"))
    again = ledger.read(KEY)
    assert again is not None
    assert again.state == "ready"


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let writing fail as on a full disk: what fits is written, and only the next write is an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_in_mid_line_is_told(ledger: Ledger, tmp_path: Path) -> None:
    claimed = ledger.claim(entry())
    assert claimed is not None
    room = (tmp_path / "ledger" / claimed.name).stat().st_size + 20
    with file_size_limit(room), pytest.raises(RoughyLedgerError):
        ledger.write(replace(claimed, asset_id="a", state="uploading"))
    assert ledger.read(KEY) == claimed


def test_an_entry_that_is_none_is_an_error_that_says_what_to_do(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "ledger" / f"{KEY}.json").write_bytes(b"")
    with pytest.raises(RoughyLedgerError, match="remove it"):
        ledger.read(KEY)


def test_what_is_forgotten_can_be_claimed_anew(ledger: Ledger) -> None:
    for owner, generation in (("night 1", 1), ("night 2", 2)):
        assert ledger.claim(entry(owner, generation=generation)) is not None
    assert [found.owner for found in ledger.entries()] == ["night 2"]
    assert ledger.forget(KEY)
    assert not ledger.forget(KEY)
    assert ledger.names({KEY}).known == set()
    assert ledger.claim(entry("night 3")) is not None


def test_an_owner_is_alive_as_long_as_it_says(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ledger.alive_until("night 1") is None
    monkeypatch.setattr(ledger_module, "RENEW_SECONDS", 0.01)
    with ledger.lease("night 1") as lease:
        first = ledger.alive_until("night 1") or 0.0
        assert first > time.time() + 500
        for _ in range(1000):
            if (ledger.alive_until("night 1") or 0.0) > first:
                break
            time.sleep(0.01)
        else:
            pytest.fail("it was not renewed")
        assert lease.is_sure
    assert ledger.alive_until("night 1") == 0.0
    with ledger.lease("night 1") as lease:
        lease.extend(12345.0)
    assert ledger.alive_until("night 1") == 12345.0
    # What is no sign of life is none.
    (run,) = (tmp_path / "ledger" / "runs").iterdir()
    run.write_text("{}")
    assert ledger.alive_until("night 1") == 0.0


@pytest.mark.parametrize("spelled", ["/data/talk.mp3", "file:///data/talk.mp3", "/data//x/../talk.mp3"])
def test_a_recording_is_the_same_however_it_is_spelled(spelled: str) -> None:
    assert entry_key({**WANTED, "uri": spelled}) == KEY


@pytest.mark.parametrize("changed", [{"size": 1}, {"mtime": "2"}, {"project_id": "q"}, {"language": "de"}])
def test_a_recording_is_another_if_anything_differs(changed: dict[str, object]) -> None:
    assert entry_key({**WANTED, **changed}) != KEY


def test_entries_hold_no_secret_and_are_readable(ledger: Ledger, tmp_path: Path) -> None:
    claimed = ledger.claim(entry(source="/data/Größe\ud800 1.mp3"))
    assert claimed is not None
    text = (tmp_path / "ledger" / claimed.name).read_text()
    assert json.loads(text)["owner"] == "night 1"
    assert not re.search("upload_url|password|sk_", text)


@pytest.mark.parametrize(
    ("folder", "within"),
    [("/data", True), ("/data/", True), ("file:///data/in/..", True), ("/dat", False), ("/data/ledger/x", False)],
)
def test_it_knows_whether_it_is_in_a_folder(folder: str, within: bool) -> None:
    assert Ledger("/data/ledger").is_within(folder) is within
    assert Ledger("s3://conn@bucket/a/ledger").is_within("s3://bucket/a/") is True


# ---- What cannot be a ledger


@pytest.mark.parametrize("location", ["", "/", "s3://", "file:///"])
def test_a_location_that_names_no_folder(location: str) -> None:
    with pytest.raises(RoughyUnusableLedgerError, match="names no folder"):
        Ledger(location)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_must_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RoughyUnusableLedgerError, match="Permission denied"):
        Ledger(tmp_path).check()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RoughyUnusableLedgerError, match="cannot be used"):
        Ledger(tmp_path / "file" / "ledger").check()


def test_a_file_system_without_links(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert ledger.claim(entry()) is not None
    assert ledger.claim(entry("night 2")) is None


USES: dict[str, Callable[[str], object]] = {
    "ledger": lambda uri: Ledger(uri).check(),
    "source": find_source,
    "recordings": find_recordings,
    "target": lambda uri: find_target(uri, name="talk.mp3"),
}
UNUSABLE = (RoughyUnusableLedgerError, RoughyUnusableSourceError, RoughyUnusableTargetError)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_password_in_a_uri_is_refused_before_airflow_logs_it(
    use: Callable[[str], object], capfd: pytest.CaptureFixture[str]
) -> None:
    """Airflow takes it for the id of a connection, which it does not find, and says so."""
    with pytest.raises(UNUSABLE, match="before its @, a URI names an Airflow connection") as refused:
        use("memory://me:topsecret@bucket/talk")
    out, err = capfd.readouterr()
    assert "topsecret" not in f"{refused.value} {refused.value.__cause__} {out} {err}"
    assert "provider" not in str(refused.value), "which is not what is missing"


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("uri", ["nosuch://bucket/talk", "hdfs://me@bucket/talk"])
def test_a_storage_that_airflow_has_not_is_said_to_need_its_provider(uri: str, use: Callable[[str], object]) -> None:
    with pytest.raises(UNUSABLE, match="Is the provider of that storage installed"):
        use(uri)
